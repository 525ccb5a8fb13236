"""The bento is built from the package index alone, and serves."""

import os
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import httpx
import pytest
import yaml


@pytest.fixture(scope="module")
def bento(source, tmp_path_factory) -> Path:
    """The built bento's folder, in a store of its own."""
    home = tmp_path_factory.mktemp("bentoml")
    environment = {**os.environ, "BENTOML_HOME": str(home), "MONGARS_HOME": str(home / "house")}
    command = [sys.executable, "-m", "bentoml", "build", "--output", "tag", "."]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=source)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-3000:]
    return next(path for path in (home / "bentos" / "mongars").iterdir() if path.is_dir())


def test_the_bento_requires_what_the_package_requires(source):
    settings = ConfigParser(delimiters=["="])
    settings.read(source / "settings.ini")
    packages = yaml.safe_load((source / "bentofile.yaml").read_text())["python"]["packages"]
    wanted = (
        settings["DEFAULT"]["requirements"].split() + settings["DEFAULT"]["postgres_requirements"].split()
    )
    assert sorted(packages) == sorted(wanted)


@pytest.mark.timeout(600)
def test_the_bento_serves_its_own_copy(bento, make_server):
    package = bento / "src" / "mongars"
    assert (package / "migrations" / "script.py.mako").exists() and list(
        (package / "serving" / "pages").iterdir()
    )
    assert (package / "adapters" / "stand-in" / "adapter_model.safetensors").exists()
    assert {path.parent for path in bento.rglob("*.ipynb")} == {bento / "src" / "nbs" / "experiments"}
    assert not list(bento.rglob("test_*.py"))
    find = "from mongars.serving.experiments import find_experiment; print(find_experiment('quick'))"
    found = subprocess.run(
        [sys.executable, "-c", find], env={**os.environ, "PYTHONPATH": str(bento / "src")}, capture_output=True,
        text=True, cwd=bento,
    )  # fmt: skip
    assert found.stdout.strip() == str(bento / "src" / "nbs" / "experiments" / "quick.ipynb"), found.stderr
    (package / "__init__.py").write_text('__version__ = "0.0.0+bento"\n')  # to see which copy answers
    server = make_server(page=True)
    server.command = [
        sys.executable,
        "-m",
        "bentoml",
        "serve",
        str(bento),
        "--host",
        "127.0.0.1",
        "--port",
        str(server.port),
    ]
    server.environment["BENTOML_HOME"] = str(bento.parents[2])
    server.start(patience=180)
    assert httpx.get(f"{server.url}/openapi.json", trust_env=False).json()["info"]["version"] == "0.0.0+bento"
    answer = server.person("Ana").post("/api/v1/conversation/chat", json={"message": "Hello"})
    assert answer.status_code == 200 and answer.json()["response"]
    server.stop()
