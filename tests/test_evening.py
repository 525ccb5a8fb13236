"""An evening: from approved answers to a chat adapter that serves, and back; a kill in the middle; forgetting."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import torch
from conftest import clean_environment
from sqlmodel import select
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from mongars.base.ledger import Run, find_run
from mongars.base.store import Store
from mongars.base.tables import Remembered
from mongars.growth.chat_lessons import fitted, lessons_of
from mongars.growth.chat_trial import Footing, surprise
from mongars.growth.lineage import CHAT, adapters, serving
from mongars.growth.planted import WordVectors, hold
from mongars.growth.planted_talks import planted_talks
from mongars.growth.shards import rows_of
from mongars.growth.withdrawal import FORGOTTEN, prune
from mongars.memory.forgetting import Forgetting
from mongars.memory.hippocampus import Hippocampus
from mongars.neurons.adapters import merge, place_of, read
from mongars.neurons.tiny_model import make_adapter, make_chat_model
from mongars.serving.accounts import Accounts
from mongars.serving.cli import app

COMMAND = [sys.executable, "-c", "from mongars.serving.cli import main; main()"]
SMALL = {
    "queries": 6, "conversations": 8, "margin": 0.5, "weight_change": 2.0, "latency_ratio": 2.0, "probes": 2,
    "least": 10, "learning_rate": 0.003, "probe_tokens": 16, "priority": 0, "batch_tokens": 256, "epochs": 2,
}  # fmt: skip
GIVEN = [word for name, value in SMALL.items() for word in ("-p", f"{name}={value}")]


@dataclass
class Home:
    """A home in which planted talks were held, with a tiny model and an adapter for everybody."""

    environment: dict[str, str]
    folder: Path
    store: Store
    person: str
    base: Path
    reader: Path

    def mongars(self, *words: str) -> str:
        """What a command says; here, where everything is imported already."""
        done = CliRunner().invoke(app, words, env=self.environment)
        assert done.exit_code == 0, done.output
        return done.stdout


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Iterator[Home]:
    """Planted talks in a home of its own."""
    room = tmp_path_factory.mktemp("evening")
    base = make_chat_model(room / "base", context=4096)
    reader = make_adapter(base, room / "reader", seed=5)
    folder = room / "home"
    folder.mkdir()
    store = Store(f"sqlite:///{folder}/mongars.sqlite3")
    store.migrate()
    person = Accounts(store).owner().id
    hold(Hippocampus(store, WordVectors()), person, planted_talks(things=3, sides=16))
    environment = {"MONGARS_HOME": str(folder), "MONGARS_MODEL": str(base), "MONGARS_ADAPTER": str(reader)}
    yield Home(clean_environment() | environment, folder, store, person, base, reader)
    store.close()


@pytest.fixture(scope="module")
def night(home) -> dict:
    """An evening's end: what the command said of it."""
    command = [*COMMAND, "evolve", "--learner", "chat", "--json", *GIVEN]
    done = subprocess.run(command, env=home.environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_what_was_approved_is_learnt_accepted_and_serves(home, night):
    assert (night["outcome"], night["learner"], night["generation"]) == ("accepted", "chat", 1), night
    now, run = serving(home.store, home.person, CHAT), find_run(home.folder, night["run"])
    place = place_of(home.folder, now.id)
    card, footing = read(place, now.adapter.base), Footing(home.base, home.reader)
    assert night["adapter"] == now.id and serving(home.store, home.person).id is None
    assert (card.owner, card.over, card.parent) == (home.person, read(home.reader).weights_sha256, None)
    assert now.adapter.weights_sha256 == card.weights_sha256 == run.row()["result"]["weights_sha256"]
    # It does what the run says: merged as a server merges it, it finds the held-out answers likelier.
    rows = rows_of(home.folder / "snapshots" / card.data_hash)
    held = [fitted(one, footing.count, 1024) for one in lessons_of(rows) if one.split == "gate"]
    model = AutoModelForCausalLM.from_pretrained(home.base, dtype=torch.float32)
    beneath = surprise(merge(model, home.reader).eval(), footing.tokenizer, held)
    gain = (beneath - surprise(footing.model(place), footing.tokenizer, held)).mean()
    assert (
        gain == pytest.approx(run.row()["result"]["verdict"]["intervals"]["answers"]["mean"], abs=1e-3)
        and gain > 0
    )
    assert {"answers", "everyday", "reading"} <= set(run.row()["result"]["verdict"]["intervals"])
    # The record: steps, a report, the views, energy that adds up; nothing that anybody said, and no weights left over.
    assert [row["step"] for row in run.metrics()] == list(range(1, run.row()["result"]["steps"] + 1))
    page = home.mongars("report", night["run"])
    assert "Accepted" in page and f"above {card.over}" in page and "rollback --learner chat" in page
    assert "regression, not asked, has" in page
    asked = "SELECT target, low > 0 AS sure, kind, state, a.generation FROM verdicts v JOIN adapters a USING (run)"
    assert json.loads(home.mongars("sql", asked, "--json")) == [
        {"target": "answers", "sure": True, "kind": "chat", "state": "serving", "generation": 1}
    ]
    energy = run.energy()
    stages = [cost["joules"] for cost in energy["stages"].values()]
    assert sum(stages) == pytest.approx(energy["total"]["joules"], rel=0.02)
    assert {"data", "training", "gate"} <= set(energy["stages"])
    told = b"".join(path.read_bytes() for path in run.folder.rglob("*") if path.is_file())
    assert not any(
        row.text.encode() in told or (row.edit or row.text).encode() in told
        for row in rows
        if row.text != "Noted."
    )
    assert [path.parent.name for path in run.folder.rglob("*.safetensors") if path.parent.name != "base"] == [
        "adapter"
    ]


def test_the_record_repeats_and_nothing_of_the_repeat_serves(home, night):
    again = json.loads(home.mongars("replay", night["run"], "--json"))
    assert again["same"] and again["repeats"] == night["run"], again["compared"]
    assert serving(home.store, home.person, CHAT).id == night["adapter"]


def killed(home: Home, params: dict) -> Run:
    """A run of the experiment whose every process was killed after some steps."""
    given = [word for name, value in params.items() for word in ("-p", f"{name}={json.dumps(value)}")]
    process = subprocess.Popen(
        [*COMMAND, "run", "chat_training", *given], env=home.environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    place, runs, end = home.folder / "runs" / "chat_training", set(), time.monotonic() + 120
    before = set(place.iterdir())
    while time.monotonic() < end and process.poll() is None:
        runs = set(place.iterdir()) - before
        lines = [path / "metrics.jsonl" for path in runs if (path / "metrics.jsonl").exists()]
        if (
            lines
            and lines[0].read_bytes().count(b"\n") >= 4
            and list(runs.copy().pop().glob("checkpoint-*/state.json"))
        ):
            break
        time.sleep(0.02)
    for one in [*psutil.Process(process.pid).children(recursive=True), process]:
        os.kill(one.pid, signal.SIGKILL)
    process.communicate()
    return Run(runs.pop())


def test_kill_9_in_the_middle_then_the_same_bits_and_a_row_for_every_step(home, night):
    first = find_run(home.folder, night["run"])
    run = killed(home, first.params | {"checkpoint_seconds": 0, "incumbent": ""})
    done = len(run.metrics())
    assert run.row()["status"] == "unfinished" and 4 <= done < first.row()["result"]["steps"]
    assert serving(home.store, home.person, CHAT).id == night["adapter"]
    resumed = subprocess.run(
        [*COMMAND, "run", "chat_training", "--resume", run.id, "--json"], env=home.environment, capture_output=True,
        text=True,
    )  # fmt: skip
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    row, was = run.row(), first.row()["result"]
    assert row["status"] == "finished" and row["result"]["weights_sha256"] == was["weights_sha256"]
    assert [one["step"] for one in run.metrics()] == list(range(1, was["steps"] + 1))
    assert [one["loss"] for one in run.metrics()] == [one["loss"] for one in first.metrics()]


def test_what_serves_is_taken_back_and_what_is_forgotten_is_unlearnt(home, night):
    store, id, run = home.store, night["adapter"], find_run(home.folder, night["run"])
    (run.folder / "checkpoint-00000003").mkdir()  # of one that was killed later
    (run.folder / "checkpoint-00000003" / "adapter.safetensors").write_bytes(b"weights")
    [listed] = [row for row in json.loads(home.mongars("adapters", "--json")) if row.get("kind") == CHAT]
    assert (listed["state"], listed["generation"]) == ("serving", 1)
    kept = {path.name: path.read_bytes() for path in place_of(home.folder, id).iterdir()}
    back = json.loads(home.mongars("rollback", "--learner", "chat", "--json"))
    assert back == {"adapter": None, "generation": 2} and serving(store, home.person, CHAT).id is None
    assert {path.name: path.read_bytes() for path in place_of(home.folder, id).iterdir()} == kept
    with store.reading() as session:
        told = session.exec(select(Remembered.id).where(Remembered.role == "user")).first()
    Forgetting(store, lambda person: prune(store, home.folder, person)).one(home.person, told)
    assert [row.state for row in adapters(store)] == ["withdrawn"] and not place_of(home.folder, id).exists()
    assert not [path for path in home.folder.rglob("*.safetensors")] and not list(
        run.folder.glob("checkpoint-*")
    )
    assert FORGOTTEN in home.mongars("report", night["run"])


def test_who_approved_too_little_is_told_how_much_is_missing(home):
    said = json.loads(home.mongars("evolve", "--learner", "chat", "--json", *GIVEN, "-p", "least=500"))
    assert said["outcome"] == "not enough evidence" and "more to learn from" in said["reasons"][0]
    assert find_run(home.folder, said["run"]).row()["result"]["steps"] == 0 and said["adapter"] is None
