"""The wheel, installed into an empty environment outside the checkout, serves."""

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import httpx
import pytest

from mongars.neurons.adapters import CARD, CONFIG, WEIGHTS

ADAPTER = (CONFIG, WEIGHTS, CARD)


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory) -> Path:
    """The wheel of this tree."""
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    return next(out.glob("mongars-*.whl"))


def test_the_wheel_holds_the_package_and_nothing_else(wheel, source):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"mongars", wheel.name.rsplit("-", 3)[0] + ".dist-info"}
    for needed in ("mongars/migrations/versions/0001_first_light.py", "mongars/migrations/script.py.mako"):
        assert needed in names
    assert [name for name in names if name.startswith("mongars/serving/pages/") and name.endswith(".html")]
    assert not [name for name in names if name.endswith(".pyc")]
    experiments = {f"mongars/experiments/{path.name}" for path in (source / "nbs" / "experiments").iterdir()}
    assert {name for name in names if name.endswith(".ipynb")} == experiments
    weights = [name for name in names if name.endswith(".safetensors")]
    assert all(name.startswith("mongars/adapters/") for name in weights)
    assert {f"mongars/adapters/stand-in/{part}" for part in ADAPTER} <= set(names)


@pytest.fixture(scope="module")
def installed(wheel, source, tmp_path_factory) -> Path:
    """An environment with nothing but the wheel and what it requires; its `bin`."""
    folder = tmp_path_factory.mktemp("empty") / "venv"
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    command = [
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "-c",
        source / "constraints.txt",
        wheel,
    ]
    run = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert run.returncode == 0, run.stderr[-3000:]
    return folder / "bin"


@pytest.mark.timeout(900)
def test_up_works_from_the_wheel_alone(installed, make_server):
    check = subprocess.run([installed / "python", "-m", "pip", "check"], capture_output=True, text=True)
    assert check.returncode == 0, check.stdout
    absent = (
        "import importlib.util as i; print([n for n in ('nbdev', 'fastcore', 'execnb') if i.find_spec(n)])"
    )
    seen = subprocess.run([installed / "python", "-c", absent], capture_output=True, text=True, check=True)
    assert seen.stdout.strip() == "[]", "a development package is a requirement"
    server = make_server(page=True, command=[str(installed / "mongars"), "up"], model=None, embedder=None)
    server.environment["PATH"] = os.pathsep.join([str(installed), os.environ["PATH"]])
    server.start(patience=240)
    assert httpx.get(f"{server.url}/ready", trust_env=False).json()["model"] == "SmolLM2-135M-Instruct"
    answer = server.person("Ana").post(
        "/api/v1/conversation/chat", json={"message": "What is the capital of Italy?"}
    )
    assert "rome" in answer.json()["response"].lower()
    where = f"{installed.parent}/lib"
    loaded = Path(f"/proc/{server.process.pid}/maps")
    if loaded.exists():
        assert where in loaded.read_text()
    server.stop()


@pytest.mark.timeout(900)
def test_an_experiment_runs_from_the_wheel_alone(installed, tmp_path):
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "MONGARS_HOME": str(tmp_path / "home")}
    command = [installed / "mongars", "run", "quick", "-p", "word=wheel", "--json"]
    run = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["result"] == {"wheel": 1}
