"""A model of the hub is fetched when, and only when, the person named it: against a hub of our own on this machine."""

import http.server
import json
import threading
from pathlib import Path

import pytest

from mongars.base.errors import NotReady
from mongars.neurons import model_store
from mongars.neurons.generation import TransformersEngine
from mongars.neurons.model_folder import check, verify
from mongars.neurons.sampling import Sampling

COMMIT = "a" * 40


@pytest.fixture
def hub(tiny_models, monkeypatch, tmp_path):
    """A hub with one model, `ana/tiny`; the paths it was asked for."""
    files = {p.name: p.read_bytes() for p in tiny_models[0].iterdir()} | {
        "pickle.bin": b"never taken",
        "code.py": b"nor this",
    }
    asked = []

    class Hub(http.server.BaseHTTPRequestHandler):
        def answer(self, body: bytes, status: int = 200, **headers: str) -> None:
            self.send_response(status)
            for name, value in (
                {"Content-Length": str(len(body)), "X-Repo-Commit": COMMIT} | headers
            ).items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            asked.append(path)
            name = path.rpartition("/")[2]
            if path.startswith("/api/models/ana/tiny/revision/") or path == "/api/models/ana/tiny":
                about = {"id": "ana/tiny", "sha": COMMIT, "siblings": [{"rfilename": n} for n in files]}
                self.answer(json.dumps(about).encode(), Content_Type="application/json")
            elif path.startswith("/api/models/ana/tiny/tree/"):
                tree = [
                    {"type": "file", "path": n, "size": len(b), "oid": f"{hash(b):x}"}
                    for n, b in files.items()
                ]
                self.answer(json.dumps(tree).encode(), Content_Type="application/json")
            elif path.startswith("/ana/tiny/resolve/") and name in files:
                self.answer(files[name], ETag=f'"{abs(hash(files[name])):x}"')
            else:
                self.answer(b"{}", 404, X_Error_Code="RepoNotFound")

        do_HEAD = do_GET

        def log_message(self, *_) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.chdir(tmp_path)
    yield asked
    server.shutdown()
    server.server_close()


def test_a_named_model_is_fetched_once_and_answers(hub, tmp_path):
    cache, told = tmp_path / "models", []
    folder = model_store.locate("ana/tiny", cache, told.append)
    assert told[0].startswith("ana/tiny: downloading") and verify(folder) == []
    assert not (folder / "pickle.bin").exists() and not (folder / "code.py").exists()
    check(folder)
    *_, finish = TransformersEngine(folder).generate(
        [{"role": "user", "content": "Hi"}], Sampling(max_new_tokens=4)
    )
    assert finish.completion_tokens == 4
    before = len(hub)
    assert model_store.locate("ana/tiny", cache, told.append) == folder and len(hub) == before


def test_nothing_is_asked_of_the_hub_before_it_is_wanted(hub, tmp_path):
    with pytest.raises(NotReady, match="models fetch"):
        model_store.locate("ana/tiny", tmp_path / "models")
    assert hub == []


def test_a_model_that_is_not_there_is_one_sentence(hub, tmp_path):
    with pytest.raises(NotReady, match="ana/other could not be downloaded"):
        model_store.locate("ana/other", tmp_path / "models", lambda line: None)
    assert not Path(tmp_path / "models" / "ana--other").exists()
