"""A run that was learnt from what somebody said, mirrored by wandb itself, and the file that it wrote read back."""

import json
import os
import shutil
import socket
import subprocess
import sys
from configparser import ConfigParser
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import clean_environment

from mongars.base.ledger import Run, find_run
from mongars.base.outbound import keep_quiet
from mongars.base.store import Store
from mongars.base.tables import Person
from mongars.growth.curation import snapshot
from mongars.growth.departure import depart
from mongars.growth.planted import START, WordVectors, hold, planted
from mongars.memory.consent import Consents
from mongars.memory.hippocampus import Hippocampus
from mongars.serving.mirrors import ABSENT

COMMAND = [sys.executable, "-c", "from mongars.serving.cli import main; main()"]
CANARY, PERSON = "kanarienvogel", "0b5e55ed-ana"


def mongars(home: Path, *words: str, **variables: str) -> str:
    """What a command says."""
    environment = clean_environment() | {"MONGARS_HOME": str(home)} | variables
    done = subprocess.run([*COMMAND, *words], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def without_wandb() -> dict[str, str]:
    """The environment of somebody who never heard of the switches of `base.outbound`."""
    return {name: value for name, value in clean_environment().items() if not name.startswith("WANDB_")}


@pytest.fixture(scope="module")
def learnt(tmp_path_factory) -> Run:
    """What a run learnt from the talk of a person who says one word again and again."""
    home = tmp_path_factory.mktemp("mirror") / f"home-{CANARY}"
    home.mkdir()
    store = Store(f"sqlite:///{home}/mongars.sqlite3")
    store.migrate()
    with store.writing() as session:
        session.add(Person(id=PERSON, username="Ana", username_key="ana"))
    rows = planted(things=6, sides=12)
    hold(Hippocampus(store, WordVectors()), PERSON, [replace(r, text=f"{r.text} {CANARY}") for r in rows])
    data = snapshot(store, home, least={}).hash
    store.close()
    assert CANARY.encode() in next(home.glob(f"snapshots/{data}/*.parquet")).read_bytes()
    given = {"snapshot": data, "person": PERSON, "latency_ratio": 50, "queries": 4, "conversations": 2}
    words = [word for name, value in given.items() for word in ("-p", f"{name}={value}")]
    run = find_run(home, json.loads(mongars(home, "run", "self_training", *words, "--json"))["run"])
    run.log(10**6, loss=1.0, said=CANARY)  # a notebook that logs what is no number
    return run


def home_of(run: Run) -> Path:
    return run.folder.parents[2]


def records(path: Path) -> list:
    """The records of a wandb file: after its head a log as LevelDB writes it, in blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole, found = path.read_bytes(), 7, b"", []
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        if (room := 32768 - at % 32768) < 7:
            at += room
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            found.append(Record.FromString(whole))
            whole = b""
    assert not whole
    return found


def values(items) -> dict:
    """What a record tells, by name; wandb's own names begin with `_`."""
    told = {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}
    return {name: value for name, value in told.items() if not name.startswith("_")}


def read_back(folder: Path) -> tuple[list[dict], dict, dict]:
    """Rows, summary and config of a mirror."""
    [file] = folder.glob("*/*")
    rows, summary, config = [], {}, {}
    for record in records(file):
        if record.HasField("history"):
            rows.append(values(record.history.item))
        summary |= values(record.summary.update)
        config |= values(record.run.config.update)
    return rows, summary, config


def test_a_mirror_tells_the_numbers_of_a_run_and_nothing_of_its_person(learnt):
    home, before = home_of(learnt), {p: p.read_bytes() for p in learnt.folder.rglob("*") if p.is_file()}
    there = {path.name for path in learnt.folder.iterdir()}
    folder = Path(json.loads(mongars(home, "runs", "mirror", learnt.id, "--json"))["folder"])
    assert folder == learnt.folder / "wandb"
    rows, summary, config = read_back(folder)
    logged, row = learnt.metrics(), learnt.row()
    assert len(logged) > 3 and logged[-1].pop("said") == CANARY and rows == logged
    assert summary["outcome"] == row["result"]["outcome"] and summary["status"] == "finished"
    assert summary["result.weight_change"] == row["result"]["weight_change"]
    assert summary["result.pairs.train"] == row["result"]["pairs"]["train"] > 4
    for name, interval in (row["result"]["verdict"] or {"intervals": {}})["intervals"].items():
        assert summary[f"result.verdict.intervals.{name}.mean"] == interval["mean"]
    stages = learnt.energy()["stages"]
    assert {name: summary[f"energy.{name}.joules"] for name in stages} == {
        name: cost["joules"] for name, cost in stages.items()
    }
    assert summary["energy.total.joules"] == row["joules"] and summary["energy.method"] == row["method"]
    assert config == {name: v for name, v in row["params"].items() if isinstance(v, int | float)}
    assert config["latency_ratio"] == 50 and config["shuffled"] is False
    # Nothing of the person, of the machine, or of where it stood; and the record is as it was.
    [written] = (path.read_bytes().lower() for path in folder.rglob("*") if path.is_file())
    private = (CANARY, PERSON, row["params"]["snapshot"], home, Path.home(), sys.prefix, os.uname().nodename)
    told = [name for name in map(str, private) if len(name) > 5 and name.lower().encode() in written]
    assert told == []  # a name as short as "/" may be anything
    assert {p: p.read_bytes() for p in before} == before
    assert {path.name for path in learnt.folder.iterdir()} == there | {"wandb"}


class Listener:
    """Where everything on its way out would come by: a proxy, and wandb's own address."""

    def __enter__(self) -> "Listener":
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.socket.setblocking(False)
        there = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        names = ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "WANDB_BASE_URL")
        self.variables = dict.fromkeys(names, there)
        return self

    def __exit__(self, *_) -> None:
        self.socket.close()

    def somebody_came(self) -> bool:
        try:
            self.socket.accept()[0].close()
        except BlockingIOError:
            return False
        return True


def test_it_asks_nobody_whatever_wandb_was_told(learnt, tmp_path):
    told = {"WANDB_MODE": "online", "WANDB_API_KEY": "0" * 40, "WANDB_ERROR_REPORTING": "true"}
    told |= {"WANDB_NOTES": CANARY, "WANDB_DIR": str(tmp_path), "HOME": str(tmp_path)}
    with Listener() as out:
        mongars(home_of(learnt), "runs", "mirror", learnt.id, **out.variables, **told)
        assert not out.somebody_came()
    assert list(tmp_path.iterdir()) == []
    [file] = (learnt.folder / "wandb").glob("*/*")
    assert CANARY.encode() not in file.read_bytes()


@pytest.mark.parametrize("quiet", [True, False])
def test_wandb_reports_a_failure_of_its_own_by_itself_and_here_it_does_not(tmp_path, quiet):
    fails = "import wandb; wandb.analytics.get_telemetry_recorder().exception(ValueError('too hot'))"
    with Listener() as out:
        environment = without_wandb() | out.variables
        environment = keep_quiet(environment) if quiet else environment
        subprocess.run([sys.executable, "-c", fails], env=environment, cwd=tmp_path, check=True)
        assert out.somebody_came() is not quiet


def test_wandb_would_send_it_from_there(learnt, tmp_path):
    said = mongars(home_of(learnt), "runs", "mirror", learnt.id)
    assert f"`wandb sync {learnt.folder / 'wandb'}`" in said and "Nothing was sent" in said
    shutil.copytree(learnt.folder / "wandb", tmp_path / "wandb")
    command = [sys.executable, "-m", "wandb", "sync", "--dry-run", str(tmp_path / "wandb")]
    done = subprocess.run(
        command, env=without_wandb() | {"WANDB_CACHE_DIR": str(tmp_path), "WANDB_ERROR_REPORTING": "false"},
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert f"run-{learnt.id}.wandb" in done.stdout + done.stderr, done.stdout + done.stderr


def test_a_run_with_a_mirror_is_repeated_as_before_and_its_repeat_has_none(learnt):
    home = home_of(learnt)
    mongars(home, "runs", "mirror", learnt.id)
    (learnt.folder / "metrics.jsonl").write_bytes(
        b"".join((learnt.folder / "metrics.jsonl").read_bytes().splitlines(keepends=True)[:-1])
    )  # without the row that the fixture added
    told = json.loads(mongars(home, "replay", learnt.id, "--json"))
    assert told["same"] and not (find_run(home, told["run"]).folder / "wandb").exists()


def test_who_lacks_wandb_is_told_which_one_the_package_wants():
    settings = ConfigParser(delimiters=["="])
    settings.read(Path(__file__).parent.parent / "settings.ini")
    wanted = settings["DEFAULT"]["wandb_requirements"]
    assert f"pip install '{wanted}'" in ABSENT and wanted in settings["DEFAULT"]["dev_requirements"].split()


def test_the_mirror_goes_with_the_run_when_its_person_leaves(learnt):
    home = home_of(learnt)
    mongars(home, "runs", "mirror", learnt.id)
    store = Store(f"sqlite:///{home}/mongars.sqlite3")
    Consents(store).set(PERSON, False, START)
    assert depart(store, home, PERSON).runs >= 1 and not list(home.rglob("*.wandb"))
    store.close()
