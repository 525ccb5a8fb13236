"""A real llama.cpp server writes the answers; memory, prompt and conversations stay here."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import clean_environment
from llama_server import ALIAS, WINDOW


class Llama:
    """A llama.cpp server with a tiny random model, in a process of its own."""

    def __init__(self, folder: Path):
        script = Path(__file__).with_name("llama_server.py")
        self.process = subprocess.Popen(
            [sys.executable, script, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True, env=clean_environment(),
        )  # fmt: skip
        self.url = self.process.stdout.readline().strip()
        assert self.url.startswith("http://127.0.0.1:"), "llama.cpp did not start"

    @property
    def model(self) -> str:
        return f"openai:{self.url}/v1#{ALIAS}"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def llama(tmp_path):
    server = Llama(tmp_path)
    yield server
    server.kill()


def chat(ana, message: str, **more):
    return ana.post("/api/v1/conversation/chat", json={"message": message, **more})


@pytest.mark.timeout(300)
def test_a_model_server_answers_from_what_is_remembered_here(make_server, llama):
    server = make_server(model=llama.model, adapter=None, max_new_tokens=30).start()
    ana = server.person("Ana")
    assert chat(ana, "My sister Odile keeps bees in Annecy.").status_code == 200
    answer = chat(ana, "Where does my sister Odile keep bees?").json()
    assert [m["text"] for m in answer["memories"]] == ["My sister Odile keeps bees in Annecy."]
    assert answer["model"] == ALIAS and re.fullmatch(r"[a-z ]{30}", answer["response"])
    said = ana.post("/v1/chat/completions", json={
        "model": ALIAS, "messages": [{"role": "user", "content": "Hum"}], "max_tokens": 5, "temperature": 0.8,
        "seed": 3,
    }).json()  # fmt: skip
    assert said["usage"]["completion_tokens"] == 5 == len(said["choices"][0]["message"]["content"])
    assert said["choices"][0]["finish_reason"] == "length" and said["usage"]["prompt_tokens"] > 100
    assert (
        answer["usage"]["energy"] is None and said["usage"]["energy"] is None
    )  # what the server used is not known
    assert ana.get("/v1/models").json()["energy"]["method"] == "unknown"
    form = {
        "name": "bees",
        "schema": {"type": "object", "properties": {"bees": {"enum": [3, 4]}}, "required": ["bees"]},
    }
    made = ana.post("/v1/chat/completions", json={
        "model": ALIAS, "messages": [{"role": "user", "content": "How many?"}], "logprobs": True, "top_logprobs": 2,
        "response_format": {"type": "json_schema", "json_schema": form}, "max_tokens": 60,
    }).json()["choices"][0]  # fmt: skip
    assert json.loads(made["message"]["content"])["bees"] in (3, 4)
    tokens = made["logprobs"]["content"]
    assert "".join(token["token"] for token in tokens) == made["message"]["content"]
    assert all(token["logprob"] <= 0 and len(token["top_logprobs"]) == 2 for token in tokens)
    doctor = server.mongars("doctor", "--json").stdout
    assert f"{ALIAS} on {llama.url}/v1, {WINDOW:,} tokens of context" in doctor
    # one token is about one byte for this model: what would not fit is refused here or by the server, in words
    long = chat(ana, "bees " * 700)
    assert long.status_code in (413, 422) and (
        "token" in long.json()["detail"] or "context" in long.json()["detail"]
    )


@pytest.mark.timeout(300)
def test_who_leaves_frees_the_place_of_the_model_server(make_server, llama):
    server = make_server(model=llama.model, max_new_tokens=600, answers_waiting=0).start()
    ana = server.person("Ana")
    with ana.stream("POST", "/api/v1/conversation/chat", json={"message": "Talk", "stream": True}) as stream:
        heard = [line for line, _ in zip(stream.iter_lines(), range(30), strict=False)]
    assert any("token" in line for line in heard)
    left = time.monotonic()
    while (response := ana.get("/api/v1/conversation/history").json()["items"][0]["response"]) is None:
        assert time.monotonic() - left < 20, "the answer went on without a listener"
        time.sleep(0.05)
    assert 0 < len(response) < 600
    asked = {"model": ALIAS, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
    assert ana.post("/v1/chat/completions", json=asked).status_code == 200


@pytest.mark.timeout(300)
def test_a_model_server_that_died_is_named_and_the_message_is_kept(make_server, llama):
    server = make_server(model=llama.model, max_new_tokens=5).start()
    ana = server.person("Ana")
    assert chat(ana, "I play the cello.").status_code == 200
    llama.kill()
    for _ in range(3):
        lost = chat(ana, "I also play the oboe.")
        assert lost.status_code == 503 and llama.url in lost.json()["detail"], lost.text
    alone = chat(ana, "And the flute.")
    assert alone.status_code == 503 and "left alone" in alone.json()["detail"]
    assert 1 <= int(alone.headers["Retry-After"]) <= 10
    turns = ana.get("/api/v1/conversation/history").json()["items"]
    assert [t["message"] for t in turns].count("I also play the oboe.") == 3


def test_words_leave_the_machine_only_on_purpose(make_server):
    server = make_server(model="openai:https://models.example.org/v1#big")
    with pytest.raises(subprocess.CalledProcessError) as refused:
        server.mongars("up")
    assert "MONGARS_ALLOW_REMOTE_MODEL=1" in refused.value.stderr and "Traceback" not in refused.value.stderr
