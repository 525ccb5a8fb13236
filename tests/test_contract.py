"""What the OpenAPI document promises is so: all checks of `schemathesis`, with good data and bad."""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from conftest import clean_environment, free_port
from routes import ROUTES

CONTRACT = Path(__file__).parent / "contract"
EXAMPLES = int(os.environ.get("MONGARS_CONTRACT_EXAMPLES", "0"))  # of each route; 0: the short run


@contextlib.contextmanager
def listening(app) -> Iterator[str]:
    """Serve an application by a real server in a thread; its address."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(60)


@pytest.mark.timeout(EXAMPLES * 60 or 240)
@pytest.mark.parametrize("database", ["sqlite", *(["postgresql"] if EXAMPLES else [])])
def test_the_application_keeps_what_its_document_promises(make_app, tmp_path, request, database):
    settings = {"home": tmp_path / "home", "requests_per_person": 0, "requests_per_address": 0}
    if database == "postgresql":
        settings["database_url"] = request.getfixturevalue("postgres")
    rules = (CONTRACT / "schemathesis.toml").read_text()
    rules += "" if EXAMPLES else (CONTRACT / "short.toml").read_text()
    (tmp_path / "rules.toml").write_text(rules)
    many = ["--max-examples", str(EXAMPLES)] if EXAMPLES else []
    with listening(make_app(max_new_tokens=4, **settings).app) as url:
        environment = clean_environment() | {
            f"MONGARS_{name.upper()}": str(value) for name, value in settings.items()
        }
        environment["CONTRACT_URL"] = url
        environment["PYTHONPATH"] = os.pathsep.join([str(CONTRACT), *filter(None, sys.path)])
        command = [sys.executable, "-m", "schemathesis.cli", "--no-color", "--config-file", "rules.toml"]
        done = subprocess.run(
            [*command, "run", f"{url}/openapi.json", *many], env=environment, cwd=tmp_path, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
    print(done.stdout[-3000:])
    assert done.returncode == 0, done.stdout[-20_000:]
    assert f"Tested: {len(ROUTES)}" in done.stdout, done.stdout[-3000:]
