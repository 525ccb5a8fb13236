"""A night: from what was said to a map that serves, and back; and what a kill in the middle leaves."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from conftest import clean_environment
from sqlmodel import select
from typer.testing import CliRunner

from mongars.base.errors import Conflict
from mongars.base.ledger import Run, find_run, open_run, runs, write_json
from mongars.base.settings import read_settings
from mongars.base.store import Store
from mongars.base.tables import Person, Remembered
from mongars.growth import curation
from mongars.growth.curation import snapshot
from mongars.growth.evaluation import ACCEPTED, REFUSED, TOO_LITTLE, Engine, Plan, Scores, evaluate, register
from mongars.growth.lineage import RETIRED, SERVING, STAGED, WITHDRAWN, adapters, moved, serving, swap
from mongars.growth.map_learning import Learnt, fit, learn
from mongars.growth.planted import START, WordVectors, hold, planted
from mongars.growth.recall_trial import Trial, common, lessons_of, only
from mongars.growth.safe_apply import STEPS, apply, rollback, tidy
from mongars.growth.unlearning import STEPS as UNLEARNING
from mongars.growth.withdrawal import FORGOTTEN, prune
from mongars.growth.withdrawal import WITHDRAWN as TAKEN_BACK
from mongars.memory.consent import Consents
from mongars.memory.forgetting import Forgetting
from mongars.memory.hippocampus import Hippocampus
from mongars.memory.query_maps import QueryMaps
from mongars.neurons.query_map import MapCard, QueryMap, place_of, read, write
from mongars.serving import nights
from mongars.serving.accounts import Accounts
from mongars.serving.cli import app
from mongars.serving.learners import LEARNERS
from mongars.serving.nights import NIGHT, PASSED, let_serve
from mongars.serving.wiring import open_memory

COMMAND = [sys.executable, "-c", "from mongars.serving.cli import main; main()"]
KILLED = f"""
import os
from mongars.serving import nights
nights.let_serve = lambda *_: os.kill(os.getpid(), {signal.SIGKILL})
from mongars.serving.cli import main
main()
"""


@dataclass
class Home:
    """A home in which planted conversations were held, and a memory that goes on running."""

    environment: dict[str, str]
    folder: Path
    store: Store
    memory: Hippocampus
    person: str
    questions: list[tuple[str, str]]  # asked in the last conversations, and what answers them

    def evolve(self, *words: str) -> dict:
        """The command in a process of its own, beside the memory that goes on running."""
        command = [*COMMAND, "evolve", "--learner", "map", "--json", *words]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    def mongars(self, *words: str) -> str:
        """What a command says; here, where everything is imported already."""
        done = CliRunner().invoke(app, words, env=self.environment)
        assert done.exit_code == 0, done.output
        return done.stdout

    def recall(self, question: str):
        """What the memory finds for a question, at the end of all that was said."""
        return self.memory.recall(self.person, question, 1, self.now)

    def found(self) -> float:
        """The share of the questions whose answer comes first."""
        right = [
            bool(r.items) and r.items[0].text == told for q, told in self.questions for r in [self.recall(q)]
        ]
        return sum(right) / len(right)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Iterator[Home]:
    """Planted conversations, in a home of its own, read by the real encoder."""
    folder = tmp_path_factory.mktemp("night") / "home"
    folder.mkdir()
    settings = read_settings(_env_file=None, home=folder)
    rows = planted(things=8, sides=16)
    store = Store(settings.store_url)
    store.migrate()
    memory, person = open_memory(settings, store), Accounts(store).owner().id
    hold(memory, person, rows)
    lessons = lessons_of(rows, WordVectors())
    pairs = [pair for pair in lessons.pairs if lessons.turns[pair.asked].split == "gate"][-20:]
    questions = [(lessons.turns[p.asked].text, lessons.turns[p.told[0]].text) for p in pairs]
    made = Home(clean_environment() | {"MONGARS_HOME": str(folder)}, folder, store, memory, person, questions)
    made.now = rows[-1].said_at
    yield made
    memory.embedder.close()
    store.close()


SMALL = ["-p", "queries=30", "-p", "conversations=6", "-p", "scenes=70", "-p", "margin=0.1", "-p", "still=20"]
SMALL += ["-p", "priority=0", "-p", "latency_ratio=1.5"]


def test_a_night_is_accepted_serves_without_a_restart_and_can_be_taken_back(home):
    before, unmapped = home.found(), [home.recall(q) for q, _ in home.questions]
    assert {recall.mapped.adapter for recall in unmapped} == {None}
    # Killed when its run was accepted: the next one lets that serve, and tries nothing else.
    command = [sys.executable, "-c", KILLED, "evolve", "--learner", "map", *SMALL]
    killed = subprocess.run(command, env=home.environment, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stdout + killed.stderr
    [run] = runs(home.folder)
    assert serving(home.store, home.person).id is None and not adapters(home.store)
    assert "It does not serve yet" in home.mongars("report", run.id)
    night = home.evolve()
    assert night["outcome"] == "accepted" and night["run"] == run.id, night
    assert [one.id for one in runs(home.folder)] == [run.id]
    now = serving(home.store, home.person)
    assert night["adapter"] == now.id and night["generation"] == now.generation == 1
    recall = home.recall(home.questions[0][0])
    assert (recall.mapped.adapter, recall.mapped.generation) == (now.id, 1)
    assert home.found() > before + 0.3
    # The record: a report, the views, the list of adapters, energy that adds up; and nothing that anybody said.
    page = home.mongars("report", night["run"])
    assert (
        "Accepted" in page
        and "questions with an approved answer" in page
        and "It serves, generation 1. `mongars rollback" in page
    )
    assert re.search(r"regression, not asked, has \d+ queries in \d+ conversations: \d+ more", page)
    asked = "SELECT outcome, low > 0 AS sure, v.joules > 0 AS known, state FROM verdicts v JOIN adapters USING (run)"
    assert json.loads(home.mongars("sql", asked, "--json")) == [
        {"outcome": "accepted", "sure": True, "known": True, "state": "serving"}
    ]
    energy = run.energy()
    stages = [cost["joules"] for cost in energy["stages"].values()]
    assert sum(stages) == pytest.approx(energy["total"]["joules"], rel=0.02)
    listed = json.loads(home.mongars("adapters", "--json"))
    assert [(a["state"], a["generation"]) for a in listed if a.get("kind") == "query_map"] == [("serving", 1)]
    told = b"".join(path.read_bytes() for path in run.folder.rglob("*") if path.is_file())
    assert not any(text.encode() in told for pair in home.questions for text in pair)
    # Once more from the record: the same bits, and nothing else serves than before.
    again = json.loads(home.mongars("replay", night["run"], "--json"))
    assert again["same"] and "map/map.safetensors" in [row["what"] for row in again["compared"]], again
    assert serving(home.store, home.person).id == now.id and len(adapters(home.store)) == 1
    # And back, as it was.
    weights = {p.name: p.read_bytes() for p in place_of(home.folder, now.id).iterdir()}
    assert json.loads(home.mongars("rollback", "--json")) == {"adapter": None, "generation": 2}
    assert "when it was taken back. No map serves now" in home.mongars("report", night["run"])
    again = [home.recall(q) for q, _ in home.questions]
    assert [r.items for r in again] == [r.items for r in unmapped] and again[0].mapped.generation == 2
    assert {p.name: p.read_bytes() for p in place_of(home.folder, now.id).iterdir()} == weights
    # One of the things that it was learnt from is forgotten: no copy of it is left, and that is said.
    told = home.memory.recall(home.person, home.questions[0][0], 1, home.now).items[0]
    home.memory.forgetting.one(home.person, told.id)
    assert not list(home.folder.rglob("map.safetensors"))
    [row] = [row for row in json.loads(home.mongars("adapters", "--json")) if row.get("kind") == "query_map"]
    assert row["state"] == "withdrawn" and row["withdrawn"] == FORGOTTEN
    assert FORGOTTEN in home.mongars("report", night["run"]) and FORGOTTEN in home.mongars("adapters")


def test_a_night_asks_for_the_lowest_priority_and_one_whose_kernel_is_killed_changes_nothing(home):
    served, before = serving(home.store, home.person), set((home.folder / "runs").rglob("params.json"))
    words = [word for word in SMALL if word not in ("-p", "priority=0")]
    given = [part for word in words for part in ("-p", word)]
    command = [*COMMAND, "evolve", "--learner", "map", "--json", *given]
    night = subprocess.Popen(
        command, env=home.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    until, kernel = time.monotonic() + 120, None
    while kernel is None and time.monotonic() < until and night.poll() is None:
        time.sleep(0.05)
        with contextlib.suppress(psutil.NoSuchProcess):
            below = psutil.Process(night.pid).children(recursive=True)
            kernel = next((one for one in below if one.nice() == 19 and one.ppid() != night.pid), None)
    assert kernel is not None, night.communicate()
    kernel.kill()
    killed = time.monotonic()
    said, why = night.communicate(timeout=60)
    assert night.returncode and time.monotonic() - killed < 30, (said, why)
    [made] = set((home.folder / "runs").rglob("params.json")) - before
    run = find_run(home.folder, made.parent.name)
    row = run.row()
    assert row["status"] == "failed" and row["error"] in why and "died" in why, (row, why)
    assert json.loads((run.folder / "notebook.ipynb").read_text())["cells"]
    assert serving(home.store, home.person) == served


def test_who_said_too_little_is_told_so_and_nothing_changes(home):
    Accounts(home.store).register("Bo", None)
    nights = json.loads(home.mongars("evolve", "--user", "Bo", "--json"))
    assert list(nights) == ["map", "chat"]
    for night in nights.values():
        assert (
            night["outcome"] == "not enough evidence"
            and night["run"] is None
            and re.search(r"[1-9]\d* .*missing", night["reasons"][0])
        )


def judged(rows: list, strength: float | None = None) -> tuple[str, Learnt, dict]:
    """What the gate says of a map learnt from toy rows; with `strength`, of one that was fitted in any case."""
    encoder = WordVectors()
    lessons = lessons_of(rows, encoder)
    learnt, train = learn(only(lessons, "train")), only(lessons, "train")
    if strength is not None:
        learnt = Learnt(fit(train.questions, train.answers, strength), strength, ())
    if learnt.strength is None:
        return REFUSED, learnt, {}
    scores = {}
    for name, trial in (
        ("recall", Trial(only(lessons, "gate"))),
        ("everyday", Trial(common("frozen", 60, encoder))),
    ):
        was, now = trial.marks(), trial.marks(learnt.query_map)
        scores[name] = Scores(was.queries, was.conversations, was.found, now.found)
    plan = Plan(
        "recall", encoder.fingerprint, {"everyday": 0.1}, queries=30, conversations=6, weight_change=1.0
    )
    state = register(plan, scores["recall"].queries, scores["recall"].conversations)
    verdict, _ = evaluate(
        plan, state, scores, {}, Engine(True, encoder.fingerprint, learnt.query_map.change, 1.0)
    )
    return verdict.outcome, learnt, verdict.intervals


@pytest.mark.parametrize("seed", range(3))
def test_own_words_are_accepted_and_shuffled_answers_refused(seed):
    outcome, learnt, intervals = judged(planted(seed, things=10, sides=16))
    assert outcome == ACCEPTED and learnt.query_map.change > 0.1
    assert (
        intervals["recall"].low > 0 and intervals["everyday"].low > -0.1
    )  # unlike conversations lose nothing
    mixed = planted(seed, things=10, sides=16, shuffled=True)
    assert judged(mixed)[0] == REFUSED and judged(mixed)[1].strength is None  # the learner sees it by itself
    assert judged(mixed, strength=1.0)[0] == REFUSED  # and the gate without its help


SHA = """
from mongars.growth.map_learning import learn
from mongars.growth.planted import START, WordVectors, hold, planted
from mongars.growth.recall_trial import lessons_of, only
from mongars.neurons.query_map import MapCard, write
import pathlib, sys
made = learn(only(lessons_of(planted(things=8, sides=12), WordVectors()), "train"))
card = MapCard("toy", None, "0", "run", 0, made.strength, 1, None, "unknown", "2026-01-02T00:00:00Z")
print(made.strength, write(pathlib.Path(sys.argv[1]) / "map", made.query_map, card).weights_sha256)
"""


def test_two_fresh_processes_learn_the_same_bits(tmp_path):
    said = []
    for name in ("one", "other"):
        command = [sys.executable, "-c", SHA, str(tmp_path / name)]
        said.append(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert said[0] == said[1] and len(said[0][1]) == 64 and said[0][0] != "None"


@dataclass
class Bench:
    """A home with one person, and maps that passed the gate."""

    home: Path
    store: Store
    encoder: WordVectors

    def candidate(self, run: str, data: str = "0") -> Path:
        d, rng = self.encoder.dimension, np.random.default_rng(sum(run.encode()))
        made = QueryMap((np.eye(d) + rng.standard_normal((d, d)) / d).astype(np.float32))
        card = MapCard(
            self.encoder.fingerprint, "ana", data, run, 0, 1.0, 9, 1.0, "estimate", "2026-01-02T00:00:00Z",
            probes=made.likeness(self.encoder.embed),
        )  # fmt: skip
        write(self.home / run, made, card)
        return self.home / run

    def apply(self, source: Path, instead_of: str | None, at=lambda step: None):
        return apply(self.store, self.home, source, ACCEPTED, instead_of, 0.5, self.encoder, at)

    def accepted(self) -> Run:
        """A run of a night that was broken off when its verdict was there."""
        data = next((self.home / "snapshots").glob("*/snapshot.json")).parent.name
        run = open_run(self.home, "self_training", {"snapshot": data, "person": "ana"})
        write_json(run.folder / NIGHT, {"generation": serving(self.store, "ana").generation})
        self.candidate(run.id, data).rename(run.folder / "map")
        run.finish({
            "outcome": ACCEPTED, "reasons": ["It is better."], "verdict": None, "person": "ana", "data_hash": data,
            "pairs": {}, "strength": 1.0, "weight_change": 0.1, "limit": 0.5, "adapter": "map",
            "weights_sha256": read(run.folder / "map")[1].weights_sha256,
        })  # fmt: skip
        return run

    def evolve(self) -> tuple[nights.Night, str]:
        """A night of Ana, and what it says."""
        lines: list[str] = []
        settings = read_settings(_env_file=None, home=self.home)
        return nights.evolve(settings, self.store, "ana", say=lines.append), "\n".join(lines)

    def next(self, run: Run) -> str:
        """How the report of a run ends."""
        return nights.report(run, self.store).partition("## Next\n\n")[2]


class PowerCut(Exception):
    """What ends a night in the middle."""


def cut_at(step: str) -> Callable[[str], None]:
    """What ends a night after a step."""

    def cut(done: str) -> None:
        if done == step:
            raise PowerCut

    return cut


@pytest.fixture
def bench(tmp_path) -> Iterator[Bench]:
    store = Store(f"sqlite:///{tmp_path}/mongars.sqlite3")
    store.migrate()
    with store.writing() as session:
        session.add(Person(id="ana", username="Ana", username_key="ana"))
    yield Bench(tmp_path, store, WordVectors())
    store.close()


@pytest.mark.parametrize("step", STEPS)
def test_kill_9_after_any_step_leaves_the_old_map_or_the_new_one_and_the_next_night_ends_it(night, step):
    bench, old = night, night.apply(night.candidate("first"), None).adapter
    run, maps = bench.accepted(), QueryMaps(bench.store, bench.home)
    bench.store.close()  # nothing of it is shared with the child
    child = os.fork()
    if not child:
        try:
            dies = lambda done: done == step and os.kill(os.getpid(), signal.SIGKILL)  # noqa: E731
            nights.apply = partial(apply, at=dies)
            bench.evolve()
        finally:
            os._exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    held, now = maps.of("ana"), serving(bench.store, "ana")
    rows = {row.run: row for row in adapters(bench.store)}
    assert held.id == now.id == (rows[run.id].id if step == "swapped" else old.id) and not held.wrong
    assert [row.state for row in rows.values() if row.id == now.id] == [SERVING]
    assert ("It does not serve yet" in bench.next(run)) == (step != "swapped")
    ended, _ = bench.evolve()
    assert (ended.run, ended.outcome) == ((None, TOO_LITTLE) if step == "swapped" else (run.id, ACCEPTED))
    assert maps.of("ana").id == ended.adapter == rows[run.id].id and not maps.of("ana").wrong
    assert serving(bench.store, "ana").generation == 2 and "It serves, generation 2" in bench.next(run)
    assert tidy(bench.store, bench.home) == 0 and len(runs(bench.home)) == 1
    assert rollback(bench.store, bench.home, "ana").adapter.id == old.id and maps.of("ana").id == old.id
    assert f"when it was taken back. {old.id} serves now" in bench.next(run)
    ended, lines = bench.evolve()
    assert ended.adapter == old.id and run.id not in lines  # it is not let serve again


REASONS = {
    "taken back": "was taken back",
    "another serves": PASSED,
    "another encoder": "made for the encoder",
}


@pytest.mark.parametrize("why", REASONS)
def test_what_cannot_serve_is_said_with_its_reason_and_tried_again_only_if_that_may_change(night, why):
    run, made_for = night.accepted(), night.encoder.fingerprint
    with pytest.raises(PowerCut):
        night.apply(run.folder / "map", None, cut_at("staged"))
    if why == "taken back":
        Consents(night.store).set("ana", False, START)
    elif why == "another serves":
        night.apply(night.candidate("other"), None)
    else:
        night.encoder.fingerprint = "word-vectors/other"
    now = serving(night.store, "ana")
    ended, lines = night.evolve()
    assert ended.outcome == TOO_LITTLE and REASONS[why] in lines and run.id in lines
    again, lines = night.evolve()
    assert (run.id in lines) == (why == "another encoder") and serving(night.store, "ana") == now
    [state], page = [row.state for row in adapters(night.store) if row.run == run.id], night.next(run)
    if why == "taken back":
        assert state == WITHDRAWN and nights.TAKEN_BACK in page
    elif why == "another encoder":
        assert state == STAGED and nights.WAITS.format(of="") in page
        night.encoder.fingerprint = made_for
        ended, _ = night.evolve()
        assert serving(night.store, "ana").adapter.run == run.id and ended.adapter
    else:
        assert state == RETIRED and "It never served: " in page and REASONS[why] in page


def test_what_waits_to_serve_one_person_is_left_by_the_night_of_another(night):
    run = night.accepted()
    with pytest.raises(PowerCut):
        night.apply(run.folder / "map", None, cut_at("staged"))
    with night.store.writing() as session:
        session.add(Person(id="bo", username="Bo", username_key="bo"))
    nights.evolve(read_settings(_env_file=None, home=night.home), night.store, "bo", say=lambda line: None)
    assert night.evolve()[0].run == run.id and serving(night.store, "ana").adapter.run == run.id


def test_what_no_night_began_never_serves_and_its_report_says_so(night):
    run = night.accepted()
    (run.folder / NIGHT).unlink()
    assert night.evolve()[0].outcome == TOO_LITTLE and serving(night.store, "ana").id is None
    environment = clean_environment() | {"MONGARS_HOME": str(night.home)}
    words = [*COMMAND, "run", "self_training", "-p", "person=ana", "--json"]  # on planted conversations
    tried = json.loads(
        subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout
    )
    assert tried["result"]["outcome"] == ACCEPTED and night.evolve()[0].outcome == TOO_LITTLE
    assert serving(night.store, "ana").generation == 0 and not adapters(night.store)
    for id in (run.id, tried["run"]):
        page = CliRunner().invoke(app, ["report", id], env=environment).stdout
        assert "It never served" in page and "`mongars evolve` learns anew" in page


def test_what_another_followed_is_reported_so(night):
    first = night.accepted()
    night.evolve()
    second = night.accepted()
    serves = night.evolve()[0].adapter
    assert f"when another followed it. {serves} serves now" in night.next(first)
    assert "It serves, generation 2" in night.next(second)


@pytest.mark.parametrize("step", STEPS[:-1])
def test_what_a_killed_night_left_behind_is_tidied_up(bench, step):
    with pytest.raises(PowerCut):
        bench.apply(bench.candidate("only"), None, cut_at(step))
    assert serving(bench.store, "ana").id is None and tidy(bench.store, bench.home)
    assert [row.state for row in adapters(bench.store)] == [RETIRED]
    place = place_of(bench.home, "any").parent
    assert not place.exists() or not list(place.iterdir())


@pytest.fixture(scope="module")
def said(tmp_path_factory) -> Path:
    """A home in which Ana talked, with a snapshot; to be copied."""
    folder = tmp_path_factory.mktemp("said")
    store = Store(f"sqlite:///{folder}/mongars.sqlite3")
    store.migrate()
    with store.writing() as session:
        session.add(Person(id="ana", username="Ana", username_key="ana"))
    hold(Hippocampus(store, WordVectors()), "ana", planted(things=3, sides=4))
    snapshot(store, folder, least={})
    store.close()
    return folder


@pytest.fixture
def night(said, tmp_path, monkeypatch) -> Iterator[Bench]:
    """A copy of that home, where nights learn above the toy encoder."""
    home = tmp_path / "home"
    shutil.copytree(said, home)
    bench = Bench(home, Store(f"sqlite:///{home}/mongars.sqlite3"), WordVectors())
    monkeypatch.setitem(LEARNERS, "map", replace(LEARNERS["map"], footing=lambda settings: bench.encoder))
    yield bench
    bench.store.close()


@pytest.mark.parametrize("step", ["closed", *UNLEARNING, None])
@pytest.mark.parametrize("how", ["forgotten", "withdrawn"])
def test_what_was_learnt_from_what_is_taken_back_serves_no_more_whoever_is_killed(said, tmp_path, how, step):
    home = tmp_path / "home"
    shutil.copytree(said, home)
    bench = Bench(home, Store(f"sqlite:///{home}/mongars.sqlite3"), WordVectors())
    data = next((home / "snapshots").glob("*/snapshot.json")).parent.name
    clean = bench.apply(bench.candidate("first"), None).adapter.id
    run = open_run(home, "self_training", {"snapshot": data})
    bench.candidate(run.id, data).rename(run.folder / "map")
    learnt = bench.apply(run.folder / "map", clean).adapter.id
    maps = QueryMaps(bench.store, home)
    assert maps.of("ana").id == learnt
    bench.store.close()
    child = os.fork()
    if not child:  # the server that is told, and dies of it
        try:
            dies = lambda done: done == step and os.kill(os.getpid(), signal.SIGKILL)  # noqa: E731
            pruning = lambda person: prune(bench.store, home, person, dies)  # noqa: E731
            if how == "withdrawn":
                Consents(bench.store, pruning).set("ana", False, START)
            else:
                with bench.store.reading() as session:
                    id = session.exec(select(Remembered.id).where(Remembered.role == "user")).first()
                Forgetting(bench.store, pruning).one("ana", id)
        finally:
            os._exit(0 if step is None else 3)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert ended == (0 if step is None else -signal.SIGKILL)
    left = list((home / "snapshots").glob("*/ana.parquet"))
    if step == "closed":
        assert left and maps.of("ana").id == learnt  # nothing is done yet, and the next start does it
    else:
        assert bool(left) == (step is not None) and maps.of("ana").id == clean
    assert [shard.stem for shard in prune(bench.store, home)] == ["ana"] * len(left)
    held = maps.of("ana")
    assert held.id == clean and not held.wrong and serving(bench.store, "ana").generation == 3
    assert {row.id: row.state for row in adapters(bench.store)} == {clean: SERVING, learnt: WITHDRAWN}
    assert not place_of(home, learnt).exists() and not (run.folder / "map" / "map.safetensors").exists()
    assert run.obstacle() == {"forgotten": FORGOTTEN, "withdrawn": TAKEN_BACK}[how]
    assert place_of(home, clean).exists() and not list((home / "snapshots").glob("*/ana.parquet"))
    assert rollback(bench.store, home, "ana").adapter is None and tidy(bench.store, home) == 0
    bench.store.close()


def test_a_run_whose_data_was_taken_back_is_not_replayed(said, tmp_path):
    home = tmp_path / "home"
    shutil.copytree(said, home)
    store = Store(f"sqlite:///{home}/mongars.sqlite3")
    data = next((home / "snapshots").glob("*/snapshot.json")).parent.name
    run = open_run(home, "self_training", {"snapshot": data})
    run.finish({"outcome": REFUSED, "data_hash": data})
    Consents(store).set("ana", False, START)  # and whoever should have pruned was killed
    store.close()
    done = CliRunner().invoke(app, ["replay", run.id], env=clean_environment() | {"MONGARS_HOME": str(home)})
    assert done.exit_code == 1 and f"is not replayable: {TAKEN_BACK}" in str(done.exception)
    assert len(list((home / "runs" / "self_training").iterdir())) == 1 and not list(home.rglob("*.parquet"))


def test_a_yes_after_a_no_does_not_bring_back_what_was_taken_and_a_late_map_goes(said, tmp_path):
    home = tmp_path / "home"
    shutil.copytree(said, home)
    bench = Bench(home, Store(f"sqlite:///{home}/mongars.sqlite3"), WordVectors())
    data = next((home / "snapshots").glob("*/snapshot.json")).parent.name
    assert prune(bench.store, home) == []
    consents, later = Consents(bench.store), datetime.now(UTC)
    consents.set("ana", False, later)  # whoever should have pruned was killed
    consents.set("ana", True, later + timedelta(seconds=1))
    run = open_run(home, "self_training", {"snapshot": data})
    assert [shard.stem for shard in prune(bench.store, home)] == ["ana"] and run.obstacle()
    bench.candidate(run.id, data).rename(run.folder / "map")  # by a run that was at work meanwhile
    assert prune(bench.store, home) == [] and not (run.folder / "map" / "map.safetensors").exists()
    bench.store.close()


@pytest.mark.parametrize("pruned", [True, False])
def test_a_map_whose_data_was_taken_back_during_the_night_is_not_applied(said, tmp_path, pruned):
    home = tmp_path / "home"
    shutil.copytree(said, home)
    bench = Bench(home, Store(f"sqlite:///{home}/mongars.sqlite3"), WordVectors())
    data = next((home / "snapshots").glob("*/snapshot.json")).parent.name
    run = open_run(home, "self_training", {"snapshot": data})
    bench.candidate(run.id, data).rename(run.folder / "map")
    said_so = {
        "adapter": "map", "data_hash": data, "person": "ana", "outcome": ACCEPTED, "limit": 0.5,
        "weights_sha256": read(run.folder / "map")[1].weights_sha256,
    }  # fmt: skip
    Consents(bench.store).set("ana", False, START)  # the one process, while the other learns
    settings = read_settings(_env_file=None, home=home)
    weights = (run.folder / "map" / "map.safetensors").read_bytes()
    if pruned:
        prune(bench.store, home)
        (run.folder / "map" / "map.safetensors").write_bytes(weights)  # written after the pruning looked
    with pytest.raises(Conflict, match="was taken back meanwhile"):
        let_serve(settings, bench.store, run, said_so, None, bench.encoder)
    assert serving(bench.store, "ana").id is None and not adapters(bench.store)
    assert not (run.folder / "map" / "map.safetensors").exists()
    bench.store.close()


def test_what_was_taken_back_while_a_run_learnt_goes_when_the_night_ends_also_if_it_is_refused(
    said, tmp_path, monkeypatch
):
    home = tmp_path / "home"
    shutil.copytree(said, home)
    bench = Bench(home, Store(f"sqlite:///{home}/mongars.sqlite3"), WordVectors())
    data = next((home / "snapshots").glob("*/snapshot.json")).parent.name
    made = []

    def refused(*_) -> nights.Night:
        run = open_run(home, "self_training", {"snapshot": data, "person": "ana"})
        Consents(bench.store, lambda person: prune(bench.store, home, person)).set("ana", False, START)
        bench.candidate(run.id, data).rename(run.folder / "map")  # the run went on
        (run.folder / ".checkpoint-3").mkdir()
        made.append(run.folder)
        return nights.Night(REFUSED, (), run.id, None, 0)

    monkeypatch.setattr(nights, "learn", refused)
    monkeypatch.setattr(curation, "snapshot", lambda *_, **__: SimpleNamespace(hash=data, counts={}))
    settings = read_settings(_env_file=None, home=home)
    assert nights.evolve(settings, bench.store, "ana", say=lambda line: None).outcome == REFUSED
    assert not (made[0] / "map" / "map.safetensors").exists() and not list(made[0].glob(".checkpoint-*"))
    bench.store.close()


def test_a_question_in_flight_is_never_asked_through_half_of_another_map(bench):
    one = bench.apply(bench.candidate("one"), None).adapter.id
    other = bench.apply(bench.candidate("other"), one).adapter.id
    maps, question = QueryMaps(bench.store, bench.home), bench.encoder.embed(["Where is it?"])[0]
    right = {id: maps._open("ana", id, 0).query_map(question) for id in (one, other)}
    stop, seen, torn = threading.Event(), set(), []

    def ask() -> None:
        while not stop.is_set():
            vector, through = maps.of("ana").turn(question, bench.encoder.fingerprint)
            seen.add(through.adapter)
            if not np.array_equal(vector, right[through.adapter]):
                torn.append(through)

    askers = [threading.Thread(target=ask) for _ in range(4)]
    for asker in askers:
        asker.start()
    for n in range(50):
        swap(bench.store, "ana", *((one, other) if n % 2 == 0 else (other, one)))
    stop.set()
    for asker in askers:
        asker.join()
    assert not torn and seen == {one, other} and serving(bench.store, "ana").generation == 52
    with pytest.raises(Exception, match="only one that was staged|is serving, not"):
        moved(bench.store, other, "staged", ("candidate",))
