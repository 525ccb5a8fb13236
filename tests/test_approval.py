"""Approval: what a night accepted waits, and serves when an operator has approved just these files."""

import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from conftest import clean_environment
from test_night import SMALL, START, Bench, Home, home, night, said  # noqa: F401
from typer.testing import CliRunner

from mongars.base.errors import BadInput, MongarsError
from mongars.base.ledger import Run, open_run, runs, write_json
from mongars.base.settings import read_settings
from mongars.base.tables import Adapter
from mongars.growth.evaluation import ACCEPTED, TOO_LITTLE
from mongars.growth.kinds import KINDS
from mongars.growth.lineage import CHAT, RETIRED, SERVING, STAGED, WITHDRAWN, adapters, serving
from mongars.growth.safe_apply import APPROVING, STEPS, rollback
from mongars.growth.withdrawal import prune
from mongars.memory.consent import Consents
from mongars.memory.query_maps import QueryMaps
from mongars.neurons.adapters import read
from mongars.neurons.query_map import place_of
from mongars.neurons.tiny_model import make_adapter
from mongars.serving import approvals, nights
from mongars.serving.approvals import NIGHT, PASSED, approve, awaiting
from mongars.serving.audit import Audit
from mongars.serving.cli import app
from mongars.serving.learners import LEARNERS


@dataclass
class House:
    """Ana's home, where an operator is asked before what a night accepted serves."""

    bench: Bench
    asks: bool = True

    @property
    def settings(self):
        return read_settings(_env_file=None, home=self.bench.home, approval=self.asks)

    def evolve(self) -> tuple[nights.Night, str]:
        """A night of Ana, and what it says."""
        lines: list[str] = []
        ended = nights.evolve(self.settings, self.bench.store, "ana", say=lines.append)
        return ended, "\n".join(lines)

    def waits(self) -> tuple[Run, Adapter]:
        """What a night accepted, and its run."""
        run = self.bench.accepted()
        ended, _ = self.evolve()
        [row] = [row for row in adapters(self.bench.store) if row.run == run.id]
        assert (ended.run, ended.waits, ended.sha256) == (run.id, row.id, row.weights_sha256)
        return run, row

    def approve(self, row: Adapter, sha: str | None = None, at: Callable[[str], None] = lambda step: None):
        return approve(self.settings, self.bench.store, row.id, sha or row.weights_sha256[:12], at)

    def refused(self, row: Adapter, sha: str | None = None) -> str:
        """Why an approval is refused; what serves is as it was."""
        before = serving(self.bench.store, "ana")
        with pytest.raises(MongarsError) as why:
            self.approve(row, sha)
        assert serving(self.bench.store, "ana") == before
        return why.value.detail

    def states(self) -> dict[str, str]:
        return {row.id: row.state for row in adapters(self.bench.store)}

    def mongars(self, *words: str, code: int = 0) -> str:
        """What a command says, or the error that it ends with."""
        environment = clean_environment() | {"MONGARS_HOME": str(self.bench.home), "MONGARS_APPROVAL": "true"}
        done = CliRunner().invoke(app, words, env=environment)
        assert done.exit_code == code, done.output
        return done.stdout if code == 0 else str(done.exception)


@pytest.fixture
def house(night) -> House:  # noqa: F811
    return House(night)


def test_what_was_accepted_is_staged_and_serves_at_once_when_its_hash_is_approved(house):
    old = house.bench.apply(house.bench.candidate("first"), None).adapter
    maps = QueryMaps(house.bench.store, house.bench.home)  # as a server that goes on running
    run, row = house.waits()
    assert house.states() == {old.id: SERVING, row.id: STAGED} and maps.of("ana").id == old.id
    assert place_of(house.bench.home, row.id).is_dir() and awaiting(house.bench.store, house.bench.home) == [
        row
    ]
    command = f"mongars adapters approve {row.id} --sha {row.weights_sha256[:12]}"
    for page in (house.bench.next(run), house.mongars("report", run.id), house.mongars("adapters")):
        assert "waits for approval" in page and command in page and row.weights_sha256 in page
    [listed] = json.loads(house.mongars("sql", "SELECT adapter FROM adapters WHERE waits", "--json"))
    assert listed == {"adapter": row.id}
    done = house.mongars(*command.split()[1:])
    assert f"{row.id} serves, generation 2" in done and maps.of("ana").id == row.id
    assert (
        house.states() == {old.id: RETIRED, row.id: SERVING}
        and awaiting(house.bench.store, house.bench.home) == []
    )
    assert "It serves, generation 2" in house.bench.next(run) and "approv" not in house.mongars("adapters")
    [line] = Audit(house.bench.home).lines()
    assert line | {"at": ""} == {
        "at": "", "who": None, "role": None, "what": "adapter_approved", "address": "terminal", "result": "done",
        "adapter": row.id, "on": "ana", "sha256": row.weights_sha256,
    }  # fmt: skip
    assert "serves already" in house.refused(row)
    assert rollback(house.bench.store, house.bench.home, "ana").adapter.id == old.id
    assert f"when it was taken back. {old.id} serves now" in house.bench.next(run)
    assert "does not wait for approval: it is retired" in house.refused(row)


def test_the_night_itself_says_what_waits_and_with_which_command(house):
    house.bench.accepted()
    told = house.mongars("evolve", "--user", "Ana", "--learner", "map")
    [row] = adapters(house.bench.store)
    assert "No map serves, generation 0. It waits for approval" in told and row.weights_sha256 in told
    assert f"`mongars adapters approve {row.id} --sha {row.weights_sha256[:12]}` lets it serve" in told
    assert row.state == STAGED


def test_a_chat_adapter_waits_and_is_approved_in_the_same_way(house, tiny_models):
    base, bench = tiny_models[0], house.bench
    settings = house.settings.model_copy(update={"model": str(base), "adapter": "none"})
    footing = LEARNERS["chat"].footing(settings)
    data = next((bench.home / "snapshots").glob("*/snapshot.json")).parent.name
    run = open_run(bench.home, "chat_training", {"snapshot": data, "person": "ana"})
    write_json(run.folder / NIGHT, {"generation": 0})
    facts = {"owner": "ana", "data_hash": data, "run": run.id, "over": None}
    probes = footing.probes(make_adapter(base, bench.home / "measured", **facts))
    made = make_adapter(base, run.folder / "adapter", metrics={"probes": probes}, **facts)
    run.finish({
        "outcome": ACCEPTED, "reasons": ["It is better."], "verdict": None, "person": "ana", "data_hash": data,
        "pairs": {}, "limit": 1e6, "adapter": "adapter", "weights_sha256": read(made).weights_sha256,
    })  # fmt: skip
    ended = nights.evolve(settings, bench.store, "ana", say=lambda line: None, learner="chat")
    assert (ended.run, ended.adapter, ended.sha256) == (run.id, None, read(made).weights_sha256)
    config = KINDS[CHAT].place_of(bench.home, ended.waits) / "adapter_config.json"
    was = config.read_text()
    config.chmod(0o600)
    config.write_text(was.replace('"lora_alpha": 8', '"lora_alpha": 16'))  # the weights are as they were
    assert config.read_text() != was
    with pytest.raises(BadInput, match="does not hold what passed"):
        approve(settings, bench.store, ended.waits, ended.sha256)
    config.write_text(was)
    assert approve(settings, bench.store, ended.waits, ended.sha256).generation == 1
    assert serving(bench.store, "ana", CHAT).id == ended.waits and serving(bench.store, "ana").id is None


def test_another_hash_is_refused_and_written_down_without_what_was_typed(house):
    _, row = house.waits()
    right = row.weights_sha256
    for wrong in (
        "0" * 12,
        right[:12] + "0" * 52,
        right[1:13],
        right[:63] + ("0" if right[63] != "0" else "1"),
    ):
        assert "Nothing was changed" in house.refused(row, wrong)
    for short in (right[:11], "", "secret words of mine"):
        typed = ["adapters", "approve", row.id, "--sha", short]
        assert "is no sha256" in house.mongars(*typed, code=1)
    assert "has passed the gate" in house.mongars("adapters", "approve", "my words", "--sha", right, code=1)
    assert house.states() == {row.id: STAGED} and serving(house.bench.store, "ana").id is None
    assert {line["result"] for line in Audit(house.bench.home).lines()} == {"failed"}
    assert "words" not in Audit(house.bench.home).path.read_text()
    assert house.approve(row, right.upper()).adapter.id == row.id


@pytest.mark.parametrize("file", ["map.safetensors", "card.json", "more.txt"])
def test_files_that_were_changed_while_it_waited_are_refused(house, file):
    _, row = house.waits()
    changed = place_of(house.bench.home, row.id) / file
    if changed.exists():
        was = changed.read_bytes()
        changed.chmod(0o600)
        changed.write_bytes(was + b" " if file == "card.json" else was[:-1] + bytes([was[-1] ^ 1]))
    else:
        changed.write_text("more")
    assert ("has the hash" if file == "map.safetensors" else "does not hold") in house.refused(row)
    assert house.states() == {row.id: STAGED}


def test_weights_that_were_exchanged_with_their_card_are_refused(house):
    run, row = house.waits()
    other = house.bench.candidate("other")
    for place in (place_of(house.bench.home, row.id), run.folder / "map"):  # and in its run, too
        for file in other.iterdir():
            (place / file.name).chmod(0o600)
            (place / file.name).write_bytes(file.read_bytes())
    assert "does not hold what passed" in house.refused(row)


@pytest.mark.parametrize("step", [*STEPS[:-1], "marked"])
def test_kill_9_before_it_waits_serves_nobody_and_the_next_night_puts_it_up(house, step, monkeypatch):
    run = house.bench.accepted()
    house.bench.store.close()  # nothing of it is shared with the child
    child = os.fork()
    if not child:
        try:
            dies = lambda done: done == step and os.kill(os.getpid(), signal.SIGKILL)  # noqa: E731
            real = nights.apply
            nights.apply = lambda *words, **more: (dies("marked"), real(*words, at=dies, **more))[1]
            house.evolve()
        finally:
            os._exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert serving(house.bench.store, "ana").generation == 0
    staged = step in ("staged", "probed")
    assert ("waits for approval" if staged else "before it was put up") in house.bench.next(run)
    house.asks = False  # what was to be approved is not let serve because the setting has changed
    ended, lines = house.evolve()
    [row] = adapters(house.bench.store)
    if staged:
        assert ended.outcome == TOO_LITTLE and row.id in lines and "waits for approval" in lines
    else:
        assert (ended.outcome, ended.waits, ended.adapter) == (ACCEPTED, row.id, None)
    assert row.state == STAGED and serving(house.bench.store, "ana").generation == 0
    assert house.approve(row).generation == 1


@pytest.mark.parametrize("step", APPROVING)
def test_kill_9_while_it_is_approved_leaves_the_old_map_or_the_new_one(house, step):
    old = house.bench.apply(house.bench.candidate("first"), None).adapter
    _, row = house.waits()
    maps = QueryMaps(house.bench.store, house.bench.home)
    house.bench.store.close()
    child = os.fork()
    if not child:
        try:
            house.approve(row, at=lambda done: done == step and os.kill(os.getpid(), signal.SIGKILL))
        finally:
            os._exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    held, done = maps.of("ana"), step == "swapped"
    assert held.id == (row.id if done else old.id) and not held.wrong
    assert house.states() == {old.id: RETIRED if done else SERVING, row.id: SERVING if done else STAGED}
    if done:
        assert "serves already" in house.refused(row)
    else:
        assert house.approve(row).generation == 2
    assert maps.of("ana").id == row.id


def test_a_later_night_leaves_it_alone_and_what_that_accepts_takes_its_place(house):
    first, one = house.waits()
    ended, lines = house.evolve()
    assert ended.outcome == TOO_LITTLE and ended.adapter is None  # it learnt anew, and did not let it serve
    assert f"mongars adapters approve {one.id}" in lines and house.states() == {one.id: STAGED}
    second, other = house.waits()
    assert house.states() == {one.id: RETIRED, other.id: STAGED}
    assert not place_of(house.bench.home, one.id).exists()
    assert f"It never served: A newer one, {other.id}, waits" in house.bench.next(first)
    assert f"A newer one, {other.id}, waits for approval in its place" in house.refused(one)
    assert "waits for approval and does not serve" in house.bench.next(second)
    assert house.approve(other).adapter.id == other.id and len(runs(house.bench.home)) == 2


def test_two_that_wait_after_a_kill_are_one_after_the_next_night(house, monkeypatch):
    _, one = house.waits()
    with monkeypatch.context() as patched:  # killed when the newer one was staged
        patched.setattr(nights, "settle", lambda *_: None)
        _, other = house.waits()
    assert house.states() == {one.id: STAGED, other.id: STAGED}
    _, lines = house.evolve()
    assert (
        house.states() == {one.id: RETIRED, other.id: STAGED}
        and f"{one.id} waits for approval no more" in lines
    )


@pytest.mark.parametrize("how", ["approved", "night"])
def test_what_was_compared_with_something_else_than_what_serves_by_now_is_refused(house, how):
    run, row = house.waits()
    house.bench.apply(house.bench.candidate("other"), None)
    assert awaiting(house.bench.store, house.bench.home) == [] and "approv" not in house.mongars("adapters")
    if how == "approved":
        assert house.refused(row) == PASSED
    else:
        assert PASSED in house.evolve()[1]
    assert house.states()[row.id] == RETIRED and f"It never served: {PASSED}" in house.bench.next(run)
    assert not place_of(house.bench.home, row.id).exists() and "has changed since" in house.refused(row)


def test_without_the_setting_what_is_accepted_serves_and_what_waited_before_does_not(house):
    run, row = house.waits()
    house.asks = False
    newer = house.bench.accepted()
    ended, _ = house.evolve()
    assert (
        ended.run == newer.id
        and ended.waits is None
        and ended.adapter == serving(house.bench.store, "ana").id
    )
    assert house.states()[row.id] == RETIRED and f"It never served: {PASSED}" in house.bench.next(run)


@pytest.mark.parametrize("pruned", [True, False])
def test_what_was_learnt_from_what_is_taken_back_is_gone_though_it_waited(house, pruned):
    run, row = house.waits()
    Consents(house.bench.store).set("ana", False, START)
    if pruned:
        prune(house.bench.store, house.bench.home)
    assert "was learnt from something that was taken back" in house.refused(row)
    assert house.states() == {row.id: WITHDRAWN} and not place_of(house.bench.home, row.id).exists()
    assert not list(house.bench.home.rglob("map.safetensors")) and nights.TAKEN_BACK in house.bench.next(run)


def test_what_is_taken_back_while_it_is_approved_does_not_serve(house, monkeypatch):
    _, row = house.waits()
    monkeypatch.setattr(
        approvals, "still_compared", lambda *_: Consents(house.bench.store).set("ana", False, START) or True
    )
    assert "was taken back, so it does not serve" in house.refused(row)


def test_nothing_is_approved_while_a_night_goes_on_nor_on_another_encoder(house):
    _, row = house.waits()
    with approvals.undisturbed(house.bench.home):
        assert "Another night, or an approval, goes on" in house.refused(row)
    house.bench.encoder.fingerprint = "word-vectors/other"
    assert "made for the encoder" in house.refused(row) and house.states() == {row.id: STAGED}


def test_a_night_of_its_own_waits_for_approval_and_then_serves_without_a_restart(home: Home):  # noqa: F811
    home.environment["MONGARS_APPROVAL"] = "true"
    before = home.found()
    ended = home.evolve(*SMALL)
    assert ended["outcome"] == "accepted" and ended["adapter"] is None and ended["generation"] == 0, ended
    assert home.found() == before and home.recall(home.questions[0][0]).mapped.adapter is None
    done = json.loads(
        home.mongars("adapters", "approve", ended["waits"], "--sha", ended["sha256"][:12], "--json")
    )
    assert done == {"adapter": ended["waits"], "generation": 1}
    assert home.recall(home.questions[0][0]).mapped.adapter == ended["waits"] and home.found() > before + 0.3
