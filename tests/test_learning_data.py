"""What may be learnt from, from rating to snapshot to forgetting, on SQLite and on PostgreSQL."""

from datetime import UTC, datetime, timedelta
from threading import Event, Thread

import numpy as np
import pytest

from mongars.base.ledger import open_run
from mongars.base.store import Store
from mongars.base.tables import Person
from mongars.growth import curation
from mongars.growth.shards import rows_of
from mongars.growth.withdrawal import prune
from mongars.memory.consent import Consents
from mongars.memory.conversations import Conversations, Outcome
from mongars.memory.forgetting import Forgetting
from mongars.memory.ratings import Ratings
from mongars.memory.sayings import ASSISTANT, Encoded, Told

NOON = datetime(2026, 5, 1, 12, 0, 0, 123457, tzinfo=UTC)
LEAST = {"train": 2, "gate": 1, "regression": 0}  # the one held out may be the one forgotten


class Home:
    """A store with a home, and what a server wires onto it."""

    def __init__(self, url: str, home):
        self.store, self.home = Store(url), home
        self.store.migrate()
        self.talks = Conversations(self.store)
        self.forgetting = Forgetting(self.store, self.prune)
        self.ratings = Ratings(self.store, self.prune)
        self.consents = Consents(self.store, self.prune)

    def prune(self, person: str) -> list:
        return prune(self.store, self.home, person)

    def person(self, name: str, days: int = 8) -> list[str]:
        """A consenting person with a conversation a day; the turns."""
        with self.store.writing() as session:
            session.add(Person(id=name, username=name, username_key=name))
        self.consents.set(name, True, NOON)
        return [self.chat(name, day, f"{name} asks {day}", f"Told {name} {day}") for day in range(days)]

    def chat(self, person: str, day: int, question: str, answer: str) -> str:
        def said(words: str, role: str) -> Encoded:
            speaker = ASSISTANT if role == "assistant" else person
            return Encoded(Told(words, at, role, speaker), speaker, (), np.zeros((0, 2), np.float32), "")

        at = NOON + timedelta(days=day)
        id = self.talks.open(person, said(question, "user")).id
        outcome = Outcome(answer, "stop", "tiny", None, 1, 1)
        self.talks.finish(person, id, outcome, at, said(answer, "assistant"))
        return id

    def snapshot(self, **more) -> curation.Snapshot:
        return curation.snapshot(self.store, self.home, **{"least": LEAST} | more)


@pytest.fixture
def home(url, tmp_path):
    home = Home(url, tmp_path / "home")
    yield home
    home.store.close()


def test_ratings_and_turns_reach_the_snapshot_and_leave_it(home):
    turns = {name: home.person(name) for name in ("ana", "bo")}
    home.ratings.rate("ana", [turns["ana"][2]], -1, NOON, "no", "Zanzibar")
    assert home.ratings.rate("ana", [turns["ana"][2]], -1, NOON, "no", "Zanzibar")  # again is the same
    made = home.snapshot(since=NOON + timedelta(days=1))
    run = open_run(home.home, "night", {"snapshot": made.hash}, seed=1)
    rows = rows_of(made.folder)
    assert len(rows) == 2 * 2 * 7 and {row.person for row in rows} == {"ana", "bo"}
    assert rows[0].said_at == NOON + timedelta(days=1)  # to the microsecond
    assert [(row.rating, row.edit) for row in rows if row.rating is not None] == [(-1, "Zanzibar")]
    assert home.snapshot(since=NOON + timedelta(days=1)).hash == made.hash
    assert home.ratings.list("ana")[0][0].edit == "Zanzibar" and run.obstacle() is None

    first = home.ratings.remove("ana", turns["ana"][2])
    assert first in (True, None) and home.ratings.list("ana") == ([], None)
    assert not (made.folder / "ana.parquet").exists() and (made.folder / "bo.parquet").exists()
    assert "forgotten" in run.obstacle()

    home.ratings.rate("ana", turns["ana"], 1, NOON)
    again = home.snapshot()
    conversation = home.talks.turn("ana", turns["ana"][0]).conversation_id
    home.forgetting.conversation("ana", conversation)
    assert not (again.folder / "ana.parquet").exists() and len(home.ratings.list("ana")[0]) == 7
    home.consents.set("bo", False, NOON)
    assert not list(home.home.glob("snapshots/*/*.parquet"))
    assert {row.person for row in rows_of(home.snapshot().folder)} == {"ana"}
    home.forgetting.everything("ana")
    assert home.ratings.list("ana") == ([], None) and not list(home.home.glob("snapshots/*/*.parquet"))


def test_what_is_forgotten_while_a_snapshot_is_made_is_not_in_it_afterwards(home):
    turns = home.person("ana")
    conversation = home.talks.turn("ana", turns[3]).conversation_id
    gone = Event()  # from the tables

    def after(person: str) -> None:
        gone.set()
        home.prune(person)

    forgetting = Thread(target=Forgetting(home.store, after).conversation, args=("ana", conversation))

    def while_it_is_read(text: str) -> str:
        if not forgetting.ident:
            forgetting.start()
            assert gone.wait(30)
        return text

    made = home.snapshot(scrub=while_it_is_read)
    forgetting.join(60)
    assert not forgetting.is_alive() and not (made.folder / "ana.parquet").exists()
    assert "ana asks 3" not in {row.text for row in rows_of(home.snapshot().folder)}
