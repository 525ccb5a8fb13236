"""`mongars run` for real: papermill, a kernel, Ctrl-C, `kill -9`."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest
from conftest import clean_environment

from mongars.base.right_of_way import RightOfWay

ROOT = Path(__file__).parent.parent
MONGARS = [sys.executable, "-c", "from mongars.serving.cli import main; main()"]
PARAMETERS = "out_dir = None\nsteps = 3\npause_at = None  # sleeps there\nfail_at = None\nseed = 5"
JOIN = """
import json, sys, time
from mongars.base import ledger
from mongars.base.energy import Meter

run = ledger.join(out_dir)
checkpoint = run.folder / "checkpoint.json"
done = ledger.read_json(checkpoint)["done"] if checkpoint.exists() else 0
"""
COUNT = """
with Meter() as meter:
    for step in range(done, steps):
        with meter.stage("count"):
            print("step", step, flush=True)
            if step == fail_at:
                raise ValueError("too hot")
            run.log(step, square=step * step)
            ledger.write_json(checkpoint, {"done": step + 1})
        run.keep_energy(meter.record())
        if step == pause_at and not done:
            time.sleep(600)
"""
FINISH = "run.finish({'sum': sum(row['square'] for row in run.metrics()), 'python': sys.executable})"


def write_notebook(path: Path, *cells: str) -> Path:
    """An experiment's notebook."""
    made = [nbformat.v4.new_code_cell(cell) for cell in cells]
    made[0].metadata["tags"] = ["parameters"]
    python = {"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=made, metadata=python), path)
    return path


class Lab:
    """A home of its own, with an experiment called hello."""

    def __init__(self, folder: Path):
        self.home, self.folder, self.before = folder / "home", folder, None
        self.hello = write_notebook(folder / "hello.ipynb", PARAMETERS, JOIN, COUNT, FINISH)
        self.environment = clean_environment() | {"MONGARS_HOME": str(self.home)}

    def start(self, *words: str) -> subprocess.Popen:
        """The command, begun."""
        return subprocess.Popen(
            [*MONGARS, *words], env=self.environment, cwd=self.folder, text=True, preexec_fn=self.before,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def mongars(self, *words: str, code: int = 0) -> tuple[str, str]:
        """What the command says on its two streams."""
        process = self.start(*words)
        out, err = process.communicate(timeout=300)
        assert process.returncode == code, out + err
        return out, err

    def run(self, *words: str, code: int = 0) -> dict:
        """The row of a run of hello."""
        return json.loads(self.mongars("run", str(self.hello), "--json", *words, code=code)[0])

    def rows(self) -> list[dict]:
        """Every run."""
        return json.loads(self.mongars("runs", "--json")[0])

    def file(self, name: str) -> Path:
        """A file of the newest run."""
        return self.home / "runs" / "hello" / self.rows()[0]["run"] / name

    def start_and_pause(self) -> tuple[subprocess.Popen, list[psutil.Process]]:
        """A run that sleeps at its step 1, with its children: the one that executes, and the kernel."""
        process = self.start("run", str(self.hello), "-p", "pause_at=1")
        assert process.stdout.readline() == "step 0\n" and process.stdout.readline() == "step 1\n"
        until = time.monotonic() + 60
        while (
            not self.file("checkpoint.json").exists() or "2" not in self.file("checkpoint.json").read_text()
        ):
            assert time.monotonic() < until
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) == 2
        return process, family


@pytest.fixture
def lab(tmp_path) -> Lab:
    return Lab(tmp_path)


def outputs(path: Path) -> str:
    """What an executed notebook shows of its prints."""
    cells = nbformat.read(path, 4).cells
    return "".join(o.get("text", "") for cell in cells for o in cell.get("outputs", []))


def test_the_folder_of_a_run_is_its_record(lab):
    """With a kernelspec of another Python in the way, which must not be taken."""
    spec = lab.folder / "jupyter" / "kernels" / "python3"
    spec.mkdir(parents=True)
    (spec / "kernel.json").write_text(
        json.dumps({"argv": ["/bin/false"], "display_name": "x", "language": "python"})
    )
    lab.environment["JUPYTER_PATH"] = str(lab.folder / "jupyter")
    out, err = lab.mongars("run", "hello.ipynb", "-p", "steps=4", "--json")
    row = json.loads(out)  # the notebook's words are elsewhere
    assert "step 3\n" in err and "Traceback" not in err and "Warning" not in err
    assert row["status"] == "finished" and row["result"] == {"sum": 14, "python": sys.executable}
    assert row["params"] == {"steps": 4, "pause_at": None, "fail_at": None, "seed": 5} and row["seed"] == 5
    assert row["joules"] > 0 and row["method"] in ("estimate", "rapl", "nvml") and row["gco2"] > 0
    folder = Path(row["folder"])
    assert {path.name for path in folder.iterdir()} >= {
        "params.json", "environment.json", "metrics.jsonl", "energy.json", "result.json", "notebook.ipynb",
    }  # fmt: skip
    assert outputs(folder / "notebook.ipynb") == "step 0\nstep 1\nstep 2\nstep 3\n"
    for name in ("notebook.ipynb", "environment.json", "params.json"):
        assert str(lab.folder) not in (folder / name).read_text(), name
    assert [r["run"] for r in lab.rows()] == [row["run"]] and "finished" in lab.mongars("runs")[0]


def test_an_unknown_parameter_is_named_before_anything_is_written(lab):
    says = lab.mongars("run", "hello.ipynb", "-p", "step=4", code=1)[1]
    assert "no parameter step" in says and "steps, pause_at, fail_at, seed" in says
    assert not lab.home.exists()


def test_a_failing_cell_is_told_and_the_mended_notebook_goes_on(lab):
    out, err = lab.mongars("run", "hello.ipynb", "-p", "fail_at=2", code=1)
    assert out == "step 0\nstep 1\nstep 2\n" and "ValueError: too hot" in err and "Traceback" not in err
    notebook = lab.file("notebook.ipynb")
    assert str(notebook) in err.replace("\n", "") and "too hot" in notebook.read_text()
    row = lab.rows()[0]
    assert row["status"] == "failed" and row["error"] == "ValueError: too hot"
    assert f"--resume {row['run']}" in err.replace("\n", " ")
    write_notebook(lab.hello, PARAMETERS, JOIN, COUNT.replace("step == fail_at", "False"), FINISH)
    row = lab.run("--resume", row["run"])
    assert row["status"] == "finished" and row["result"]["sum"] == 5 and row["error"] is None
    assert outputs(notebook) == "step 2\n" and "too hot" in lab.file("notebook-1.ipynb").read_text()
    assert "is finished" in lab.mongars("run", "hello.ipynb", "--resume", row["run"], code=1)[1]


def test_a_notebook_that_does_not_say_what_came_out_has_failed(lab):
    write_notebook(lab.hello, PARAMETERS, JOIN, COUNT)
    out, err = lab.mongars("run", str(lab.hello), code=1)
    assert "without saying what came out" in out + err and lab.rows()[0]["status"] == "failed"


def test_ctrl_c_leaves_a_run_that_goes_on(lab):
    process, family = lab.start_and_pause()
    assert lab.rows()[0]["status"] == "running"
    assert "at work" in lab.mongars("run", "hello.ipynb", "--resume", lab.rows()[0]["run"], code=1)[1]
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=120)[1]
    assert process.returncode == 130 and "--resume" in err and "Traceback" not in err
    assert not [child for child in family if child.is_running()]
    assert "KeyboardInterrupt" in lab.file("notebook.ipynb").read_text()  # the cell was told
    row = lab.rows()[0]
    assert row["status"] == "unfinished"
    row = lab.run("--resume", row["run"])
    assert row["status"] == "finished" and row["result"]["sum"] == 5
    assert outputs(lab.file("notebook.ipynb")) == "step 2\n"
    energy = json.loads(lab.file("energy.json").read_text())
    sessions = [session["total"]["joules"] for session in energy["sessions"].values()]
    assert len(sessions) == 2 and row["joules"] == pytest.approx(sum(sessions))


def test_after_kill_9_nothing_works_on_in_the_dark(lab):
    process, family = lab.start_and_pause()
    process.kill()
    process.communicate()
    gone, alive = psutil.wait_procs(family, timeout=60)
    assert not alive
    row = lab.rows()[0]
    assert row["status"] == "unfinished" and lab.run("--resume", row["run"])["result"]["sum"] == 5


def start_and_stop(lab: Lab, way: RightOfWay) -> tuple[subprocess.Popen, list[psutil.Process]]:
    """A run in the middle, while somebody is answered."""
    process, family = lab.start_and_pause()
    way.taken(True)
    until = time.monotonic() + 30
    while family[1].status() != psutil.STATUS_STOPPED:
        assert time.monotonic() < until, "the kernel works while somebody is answered"
        time.sleep(0.02)
    assert family[0].status() != psutil.STATUS_STOPPED  # it has to notice what happens
    return process, family


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only where a kernel dies with its parent")
@pytest.mark.parametrize("killed", [0, 1], ids=["the command", "its child"])
def test_after_kill_9_while_it_stands_still_nothing_stays(lab, killed):
    process, family = start_and_stop(lab, way := RightOfWay(lab.home))
    [psutil.Process(process.pid), *family][killed].kill()
    process.communicate(timeout=60)
    assert not psutil.wait_procs(family, timeout=60)[1]
    way.taken(False)
    row = lab.rows()[0]
    assert row["status"] == ("unfinished" if killed == 0 else "failed")
    assert lab.run("--resume", row["run"])["result"]["sum"] == 5


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only where a kernel dies with its parent")
def test_ctrl_c_while_it_stands_still_ends_it_at_once(lab):
    process, family = start_and_stop(lab, RightOfWay(lab.home))
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert time.monotonic() - began < 25  # before anybody loses patience with it
    assert process.returncode == 130 and not [child for child in family if child.is_running()]
    assert "KeyboardInterrupt" in lab.file("notebook.ipynb").read_text()


def test_ctrl_c_is_said_again_to_a_cell_that_missed_it(lab):
    sleep = "            time.sleep(600)"
    again = f"            try:\n    {sleep}\n            except KeyboardInterrupt:\n    {sleep}"
    deaf = COUNT.replace(sleep, again)
    assert deaf != COUNT
    write_notebook(lab.hello, PARAMETERS, JOIN, deaf, FINISH)
    process, family = lab.start_and_pause()
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130 and time.monotonic() - began < 25
    assert not [child for child in family if child.is_running()]
    assert (
        "KeyboardInterrupt" in lab.file("notebook.ipynb").read_text()
        and lab.rows()[0]["status"] == "unfinished"
    )


def test_a_kernel_that_dies_is_told(lab):
    process, family = lab.start_and_pause()
    os.kill(family[1].pid, signal.SIGKILL)
    err = process.communicate(timeout=120)[1]
    assert process.returncode == 1 and "died" in err and "Traceback" not in err
    assert lab.rows()[0]["status"] == "failed"


def test_what_takes_more_memory_than_it_was_given_is_ended_and_says_so(lab):
    write_notebook(lab.hello, PARAMETERS, JOIN, COUNT, "held = b'x' * 600_000_000\ntime.sleep(600)", FINISH)
    says = lab.mongars("run", "hello.ipynb", "--memory", "600", code=1)[1]
    row = lab.rows()[0]
    assert row["status"] == "failed" and "it was given 600." in row["error"] and row["error"] in says
    assert outputs(lab.file("notebook.ipynb")) == "step 0\nstep 1\nstep 2\n"  # what was done is kept


def test_what_cannot_be_written_fails_the_run(lab):
    """As on a full disk: no file may grow beyond a megabyte."""
    write_notebook(lab.hello, PARAMETERS, JOIN, "print('x' * 3_000_000)", FINISH)
    lab.before = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
    says = lab.mongars("run", "hello.ipynb", code=1)[1]
    row = lab.rows()[0]
    assert row["status"] == "failed" and "File too large" in row["error"] and "File too large" in says


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "nbs" / "experiments").glob("*.ipynb")))
def test_an_experiment_that_comes_along_is_one(name):
    from mongars.serving.experiments import find_experiment, parameters

    assert parameters(find_experiment(name), {}) is not None
