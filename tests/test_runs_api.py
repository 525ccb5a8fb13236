"""A run in a process of its own, watched over HTTP while it works."""

import subprocess
import time
from contextlib import contextmanager
from datetime import datetime

import pytest
from conftest import clean_environment
from routes import CANARY
from test_experiments import MONGARS, write_notebook

from mongars.serving.accounts import ROLES

PARAMETERS = "out_dir = None\nsteps = 12\nword = ''\nfails = False"
COUNT = """
import time
from mongars.base import ledger
from mongars.base.energy import Meter

run = ledger.join(out_dir)
with Meter(told=run.enter) as meter:
    with meter.stage("counting"):
        for step in range(1, steps + 1):
            time.sleep(0.4)
            run.log(step, square=step * step)
            run.count(step, steps)
    with meter.stage("gate"):
        time.sleep(2)
        if fails:
            raise ValueError(f"{word} is not known in {run.folder}")
    run.keep_energy(meter.record())
run.finish({"outcome": "refused", "reasons": ["It knows less.", word], "verdict": None, "person": word})
"""


class Watched:
    """A house whose runs are watched over HTTP."""

    def __init__(self, client, folder):
        self.client, self.folder = client, folder
        self.house = client.app.state.house
        self.notebook = write_notebook(folder / "counting.ipynb", PARAMETERS, COUNT)

    @contextmanager
    def at_work(self, *given: str):
        """A run in a process of its own; inside of this it works, or has ended."""
        home = self.house.settings.home
        self.before = {run["id"] for run in self.ask()["items"]}
        process = subprocess.Popen(
            [*MONGARS, "run", str(self.notebook), "-p", f"word={CANARY}", *given], cwd=self.folder, text=True,
            env=clean_environment() | {"MONGARS_HOME": str(home)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            yield process
            process.communicate(timeout=120)
        finally:
            process.kill()

    def ask(self, path: str = "", role: str = "operator", status: int = 200, **params) -> dict:
        """What the API says to somebody of a role; it names nobody's words and no path."""
        person = self.house.accounts.find(f"some.{role}") or self.house.accounts.register(
            f"some.{role}", None, role
        )
        headers = {"Authorization": f"Bearer {self.house.sessions.begin(person).access}"}
        answer = self.client.get(f"/api/v1/runs{path}", headers=headers, params=params)
        assert answer.status_code == status, answer.text
        assert CANARY not in answer.text and str(self.house.settings.home) not in answer.text
        return answer.json()

    def watch(self, process) -> list[dict]:
        """What is said of the newest run until it has ended, each time that it is something else."""
        said = []
        until = time.monotonic() + 120
        while not said or said[-1]["state"] in ("running", "unfinished"):
            assert time.monotonic() < until, said
            assert process.poll() is None or said, process.stdout.read()
            time.sleep(0.1)
            new = [run for run in self.ask(limit=1)["items"] if run["id"] not in self.before]
            if new:
                said.append(self.ask(f"/{new[0]['id']}"))
        return said


@pytest.fixture(scope="module")
def watched(make_app, tmp_path_factory):
    with make_app(requests_per_person=0, requests_per_address=0) as client:
        yield Watched(client, tmp_path_factory.mktemp("watched"))


def test_a_run_is_watched_from_its_first_step_to_its_verdict(watched):
    with watched.at_work() as process:
        said = watched.watch(process)
    at_work = [one["progress"] for one in said if one["state"] == "running"]
    assert all((one["progress"] is not None) == (one["state"] == "running") for one in said)
    counting = [one for one in at_work if one["stage"] == "counting"]
    steps = [one["step"] for one in counting if one["step"] is not None]
    assert steps == sorted(steps) and len(set(steps)) >= 3 and 6 < steps[-1] <= 12, steps
    assert {one["steps"] for one in counting if one["step"] is not None} == {12}
    assert [one["seconds"] for one in at_work] == sorted(one["seconds"] for one in at_work)
    left = [(one["step"], one["seconds_left"]) for one in counting if one["seconds_left"] is not None]
    assert left and all(seconds <= 10 * 0.4 * (12 - step) + 1 for step, seconds in left), left
    assert left[0][1] > left[-1][1]
    gate = [one for one in at_work if one["stage"] == "gate"]
    assert gate and at_work.index(gate[0]) > at_work.index(counting[-1])
    assert {(one["step"], one["steps"], one["seconds_left"]) for one in gate} == {(None, None, None)}
    last = said[-1]
    assert last["state"] == "finished" and last["experiment"] == "counting"
    assert last["verdict"] == {"outcome": "refused", "reason": "It knows less."}
    assert last["joules"] > 0 and last["method"] in ("estimate", "rapl", "nvml")
    assert datetime.fromisoformat(last["started_at"]) < datetime.fromisoformat(last["finished_at"])
    assert watched.ask()["items"][0] == last


def test_of_a_run_that_failed_no_word_and_no_path_is_told(watched):
    with watched.at_work("-p", "steps=1", "-p", "fails=true") as process:
        said = watched.watch(process)  # looks for both in each answer
    assert (said[-1]["state"], said[-1]["verdict"], said[-1]["progress"]) == ("failed", None, None)


def test_runs_are_for_operators_and_listed_page_by_page(watched):
    whole = watched.ask(role="admin")
    assert len(whole["items"]) >= 2 and whole["next"] is None
    first = watched.ask(limit=1)
    rest = watched.ask(before=first["next"])
    assert first["items"] + rest["items"] == whole["items"]
    for path in ("", f"/{first['items'][0]['id']}", "/nothing"):
        refused = watched.ask(path, role="user", status=403)
        assert refused["detail"] == "This takes the role operator; yours is user."
        assert watched.client.get(f"/api/v1/runs{path}").status_code == 401
    assert "'nothing'" in watched.ask("/nothing", status=404)["detail"]
    assert (
        watched.ask(before="..", status=422)["status"] == watched.ask(limit=201, status=422)["status"] == 422
    )
    assert set(ROLES) == {"user", "operator", "admin"}, "a new role: which runs does it see?"
