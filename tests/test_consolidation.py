"""A memory is put in order while others use it, killed in the middle and by two at once, on both databases."""

import json
import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlmodel import select
from test_memory_store import LATER, NOON, Words, person, rows, texts, turn

from mongars.base.store import Store
from mongars.base.tables import Conversation, Embedding, MemoryCounter, Remembered
from mongars.memory.conversations import Conversations
from mongars.memory.corrections import corrects
from mongars.memory.dates import asked_period, named_days
from mongars.memory.encoding import Reading
from mongars.memory.hippocampus import Hippocampus
from mongars.memory.sayings import Told
from mongars.memory.words import language_of
from mongars.serving.carrying import conversations_of, memories_of

DAY = timedelta(days=1)
BEES = "I keep bees in Annecy"


def home(store: Store, encoder: str = "words/1", former=None, **reading) -> Hippocampus:
    read = Reading(language_of, named_days, asked_period=asked_period, **reading)
    return Hippocampus(store, Words(encoder), reading=read, former=former or (lambda fingerprint: None))


def fingerprints(store: Store) -> set[str]:
    with store.reading() as session:
        return set(session.exec(select(Embedding.fingerprint)))


def generation(store: Store, who: str) -> int:
    with store.reading() as session:
        return session.get_one(MemoryCounter, who).generation


def test_what_was_said_in_two_conversations_is_one_item_that_knows_both(store):
    ana, house = person(store, "Ana"), home(store)
    first = turn(house, ana, f"{BEES}.", "How nice.")
    second = turn(house, ana, "i keep bees in annecy!", "Again?", NOON + DAY)
    turn(house, ana, "My sister Odile sails", "Does she?", NOON + DAY)
    assert len(house.recall(ana, "Where do I keep bees in Annecy?", 5, LATER + DAY).items) == 2
    done = house.consolidate(LATER + DAY)
    assert (done.merged, done.finished) == (1, True) and rows(store) == 6
    for asked in (house, home(store)):
        [bees] = asked.recall(ana, "Where do I keep bees in Annecy?", 5, LATER + DAY).items
        assert (bees.turn_id, bees.said_at) == (first.id, NOON) and bees.reasons["likeness"] > 0.5
        assert [(m.turn_id, m.conversation_id) for m in bees.also] == [(second.id, second.conversation_id)]
        assert bees.last_said == NOON + DAY
        # said in the sight of the one who asks, it is not recalled beside it
        assert not asked.recall(
            ana, "Where do I keep bees in Annecy?", 5, LATER + DAY, without=[second.id]
        ).items
        assert len(asked.recall(ana, "Where do I keep bees?", 5, LATER, as_of=NOON + DAY / 2).items) == 1
    carried = {m.id: m for m in memories_of(store, ana)}
    assert len(carried) == 6 and carried[bees.also[0].id].repeats == bees.id
    assert [
        t.message for t in Conversations(store).history(ana, conversation_id=second.conversation_id)[0]
    ] == ["i keep bees in annecy!"]
    before = generation(store, ana)
    assert house.consolidate(LATER + DAY).did_nothing and generation(store, ana) == before


def test_a_conversation_that_goes_takes_its_words_and_not_anothers(store):
    ana, house = person(store, "Ana"), home(store)
    talks = [turn(house, ana, BEES, f"Nice {n}.", NOON + n * DAY) for n in range(3)]
    assert house.consolidate(LATER).merged == 2
    [bees] = house.recall(ana, "Where do I keep bees in Annecy?", 5, LATER + 3 * DAY).items
    asked = turn(house, ana, "Where do I keep bees?", "In Annecy.", LATER + 3 * DAY, memories=[bees])
    gone = house.forgetting.conversation(ana, talks[0].conversation_id)
    assert (gone.exchanges, gone.answers) == (1, 0)  # what was answered is still told by the others
    for known in (house, home(store)):
        [left] = known.recall(ana, "Where do I keep bees in Annecy?", 5, LATER + 3 * DAY).items
        assert left.turn_id == talks[1].id and [m.turn_id for m in left.also] == [talks[2].id]
    assert [m.id for m in Conversations(store).recollections(ana, asked.id)] == [left.id]
    assert (
        house.forgetting.one(ana, left.also[0].id).memories == 2
    )  # one turn of it: what was said, and its answer
    [last] = house.recall(ana, "Where do I keep bees in Annecy?", 5, LATER + 3 * DAY).items
    assert last.id == left.id and last.also == ()
    gone = house.forgetting.one(ana, last.id)
    assert (
        gone.answers == 1
        and not house.recall(ana, "Where do I keep bees in Annecy?", 5, LATER + 3 * DAY).items
    )


def test_the_merged_memory_deleted_no_copy_comes_back(store):
    ana, house = person(store, "Ana"), home(store)
    told = [Told(BEES, NOON + n * DAY, source=f"file:{n}", origin="imported") for n in range(3)]
    first = house.add_many(ana, told)[0]
    typed = house.add(ana, "user", BEES, NOON + 9 * DAY)
    ours = Told(BEES, NOON + 9 * DAY, speaker="Ana", source=f"mongars:{typed}", origin="imported")
    assert house.consolidate(LATER).merged == 3 and house.add_many(ana, [*told, ours]) == [None] * 4
    assert house.forgetting.one(ana, first).memories == 4 and rows(store) == 0
    assert house.add_many(ana, [*told, ours]) == [None] * 4 and house.consolidate(LATER).merged == 0
    assert not texts(house, ana, BEES, least=-1) and rows(store) == 0


def test_a_correction_ends_all_that_said_it(store):
    ana, house = person(store, "Ana"), home(store, corrects=corrects)
    ids = [house.add(ana, "user", "My dog is called Rex", NOON + n * DAY) for n in range(3)]
    assert house.consolidate(LATER).merged == 2
    house.add(ana, "user", "My dog is called Max now", NOON + 5 * DAY)
    late = NOON + 9 * DAY
    for asked in (house, home(store)):
        [dog] = asked.recall(ana, "What is my dog called?", 5, late, least=0.1).items
        assert dog.text == "My dog is called Max now"
        [then] = asked.recall(ana, "What is my dog called?", 5, late, as_of=NOON + 4 * DAY, least=0.1).items
        assert [then.id, *(m.id for m in then.also)] == ids
    assert [len(m.also) for m in house.catalogue.history(ana, dog.id)] == [2, 0]


@pytest.mark.parametrize(
    "one, other",
    [
        ("I keep bees in Annecy", "I keep bees in Lyon"), ("I keep 2 hives at home", "I keep 3 hives at home"),
        ("I do not eat any meat", "I do eat any meat"), ("My exam is tomorrow at noon", "My exam is tomorrow at noon"),
        ("She keeps bees in Annecy", "She keeps bees in Annecy"), ("Yes, me too", "Yes, me too"),
        ("I like Anna very much", "I like Hanna very much"), ("J'ai mangé des pommes", "J'ai mangé des pommes"),
    ],
)  # fmt: skip
def test_in_doubt_both_stay(one, other, tmp_path):
    store = Store(f"sqlite:///{tmp_path}/house.sqlite3")
    store.migrate()
    ana, house = person(store, "Ana"), home(store)
    house.add(ana, "user", one, NOON), house.add(ana, "user", other, NOON + 3 * DAY)
    done = house.consolidate(LATER)
    assert (done.looked_at, done.merged) == (2, 0) and len(
        house.catalogue.list(ana, LATER + 9 * DAY).items
    ) == 2
    store.close()


def test_one_persons_memory_is_put_in_order_and_expired_things_go(store):
    ana, bo, house = person(store, "Ana"), person(store, "Bo"), home(store)
    for who in (ana, bo):
        for n in range(2):
            house.add(who, "user", BEES, NOON + n * DAY)
        house.add(who, "user", "The code is 12", NOON, expires_at=NOON)
        house.add(who, "user", "The code was 11", NOON, expires_at=NOON, pinned=True)
    done = house.consolidate(LATER, ana)
    assert (done.expired, done.merged) == (1, 1) and rows(store) == 7
    assert [len(house.catalogue.list(who, NOON - DAY).items) for who in (ana, bo)] == [2, 4]
    assert house.consolidate(LATER).expired == 1 and house.consolidate(LATER).did_nothing


# Another encoder


def likeness(house: Hippocampus, who: str) -> list[float]:
    return [m.reasons["likeness"] for m in house.recall(who, "keep bees I in Annecy", 9, LATER).items]


@pytest.mark.parametrize("at_hand", [True, False])
def test_recall_goes_on_with_what_there_is_until_all_is_swapped_at_once(store, at_hand):
    ana, bo, old = person(store, "Ana"), person(store, "Bo"), home(store)
    for n in range(50):
        old.add(ana, "user", f"Thing number {n}" if n else BEES, NOON)
    old.add(bo, "user", BEES, NOON)
    compared = []

    class Watched(Words):
        def embed(self, texts):
            compared.append(self.fingerprint)
            return super().embed(texts)

    former = (lambda name: Watched(name) if name == "words/1" else None) if at_hand else None
    new = home(store, "words/2", former)
    expected = [1.0] if at_hand else [0.0]
    assert [round(x, 2) for x in likeness(new, ana)][:1] == expected and new.unread() == 51
    assert compared == (["words/1"] if at_hand else [])
    told = new.add(ana, "user", "My boat is red", NOON)
    with store.reading() as session:
        [made] = session.exec(select(Embedding.fingerprint).where(Embedding.memory_id == told))
    assert made == ("words/1" if at_hand else "words/2")
    before, steps = generation(store, ana), 0
    while (done := new.consolidate(LATER, ana, items=20)).swapped == 0:
        steps += 1
        assert steps < 9 and done.encoded <= 20
        assert [round(x, 2) for x in likeness(new, ana)][:1] == expected
        assert fingerprints(store) == {"words/1", "words/2"} or not done.encoded
        assert [round(x, 2) for x in likeness(old, ana)][:1] == [1.0]  # another process, not yet started anew
    assert steps >= 3 and generation(store, ana) == before + 1  # nothing but the swap is a change
    compared.clear()
    assert [round(x, 2) for x in likeness(new, ana)][:1] == [1.0] and not compared
    assert [round(x, 2) for x in likeness(old, ana)][:1] == [0.0]  # its encoder is not the one any more
    assert [round(x, 2) for x in likeness(new, bo)][:1] == expected and new.unread() == 1
    assert new.consolidate(LATER).swapped == 1 and fingerprints(store) == {"words/2"} and new.unread() == 0
    assert new.consolidate(LATER).did_nothing


def test_a_swap_between_encoding_a_question_and_asking_compares_nothing_foreign(store, monkeypatch):
    ana, old = person(store, "Ana"), home(store)
    old.add(ana, "user", BEES, NOON)
    new = home(store, "words/2", lambda name: Words(name))
    vector = new.encode(ana, [Told("keep bees I in Annecy", LATER)])[0]
    assert vector.fingerprint == "words/1"
    new.consolidate(LATER)
    asked = []
    monkeypatch.setattr(new.embedder, "embed", lambda texts: asked.append(texts) or Words().embed(texts))
    given = {"vector": vector.vectors[0], "fingerprint": vector.fingerprint}
    assert new.recall(ana, "keep bees I in Annecy", 1, LATER, **given).items[0].reasons["likeness"] > 0.9
    assert asked == [["keep bees I in Annecy"]]  # encoded anew by the encoder that is compared now


# Killed, and two at once

CODE = (
    "import sys; sys.path.insert(0, sys.argv[2]); from test_consolidation import *; import dataclasses; "
    "house = home(Store(sys.argv[1]), 'words/2'); print('begun', flush=True); sys.stdin.readline(); "
    "print(json.dumps(dataclasses.asdict(house.consolidate(LATER))), flush=True)"
)


def start(store: Store) -> subprocess.Popen:
    """A process that is ready to consolidate, and waits for a word."""
    command = [sys.executable, "-c", CODE, store.url, str(Path(__file__).parent)]
    running = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert running.stdout.readline() == "begun\n"
    return running


def fill(house: Hippocampus, who: str, size: int) -> None:
    """Each thing twice."""
    told = [
        Told(f"I keep number {n // 2} at home", NOON + n * DAY, source=f"file:{n}", origin="imported")
        for n in range(size)
    ]
    house.add_many(who, told)


def state(store: Store, who: str) -> dict:
    """What a consolidated memory holds."""
    with store.reading() as session:
        memories = session.exec(select(Remembered).where(Remembered.person_id == who)).all()
        vectors = session.exec(select(Embedding.memory_id, Embedding.fingerprint)).all()
    shown = {m.id for m in memories if m.repeats is None}
    assert all(m.repeats in shown for m in memories if m.repeats)
    return {
        "rows": len(memories),
        "shown": len(shown),
        "vectors": len(vectors),
        "of": {name for _, name in vectors},
    }


def test_kill_9_at_any_moment_loses_nothing_and_the_next_run_goes_on(store):
    ana, old, size = person(store, "Ana"), home(store), 400
    fill(old, ana, size)
    kills = 0
    for at_least in (1, 100, 300):  # vectors that are there when it is killed; the first time, it merges
        running = start(store)
        running.stdin.write("go\n"), running.stdin.flush()
        until = time.monotonic() + 60
        while time.monotonic() < until and running.poll() is None:
            with store.reading() as session:
                there = session.execute(
                    text("SELECT count(*) FROM embedding WHERE fingerprint = 'words/2'")
                ).scalar()
                merged = session.execute(
                    text("SELECT count(*) FROM memory WHERE repeats IS NOT NULL")
                ).scalar()
            if there >= at_least or (at_least == 1 and merged):
                break
        if running.poll() is None:
            os.kill(running.pid, signal.SIGKILL)
            kills += 1
        running.wait(60), running.stdin.close(), running.stdout.close()
        with store.reading() as session:
            counter = session.get_one(MemoryCounter, ana)
        now = state(store, ana)
        assert now["rows"] == size and size <= now["vectors"]
        if counter.fingerprint == "words/1":  # before the swap all old ones are there
            assert now["of"] >= {"words/1"}
            assert len(texts(old, ana, "I keep number 7 at home", 1)) == 1
    assert kills >= 2
    done = home(store, "words/2").consolidate(LATER)
    assert done.finished and state(store, ana) == {
        "rows": size,
        "shown": size // 2,
        "vectors": size,
        "of": {"words/2"},
    }
    assert home(store, "words/2").consolidate(LATER).did_nothing


def test_two_processes_at_once_do_each_thing_once(store):
    ana, bo, house, size = person(store, "Ana"), person(store, "Bo"), home(store), 200
    for who in (ana, bo):
        fill(house, who, size)
    house.add(ana, "user", "The code is 12", NOON, expires_at=NOON)
    both = [start(store), start(store)]
    for running in both:
        running.stdin.write("go\n"), running.stdin.flush()
    for n in range(20):  # and a third tells and asks meanwhile
        house.add(ana, "user", f"Told meanwhile {n}", NOON)
        assert house.recall(ana, "I keep number 7 at home", 3, LATER + size * DAY).items
    done = [json.loads(running.communicate(timeout=120)[0]) for running in both]
    assert sum(one["merged"] for one in done) == size and sum(one["expired"] for one in done) == 1
    last = home(store, "words/2").consolidate(LATER)
    total = sum(one["encoded"] for one in done) + last.encoded
    assert size * 2 <= total <= size * 2 + 21 and sum(one["swapped"] for one in done) + last.swapped == 2
    with store.reading() as session:
        vectors = session.exec(select(Embedding.memory_id, Embedding.fingerprint)).all()
    assert {name for _, name in vectors} == {"words/2"} and len(vectors) == rows(store) == size * 2 + 20
    assert home(store, "words/2").consolidate(LATER).did_nothing


def test_merges_fall_apart_on_the_way_down_and_nothing_is_lost(url):
    store = Store(url)
    store.migrate()
    ana, house = person(store, "Ana"), home(store)
    for n in range(3):
        house.add(ana, "user", BEES, NOON + n * DAY)
    assert house.consolidate(LATER).merged == 2
    store.migrate("0002")
    store.migrate()
    house = home(store)
    assert len(house.catalogue.list(ana, LATER).items) == 3
    assert house.consolidate(LATER).merged == 2 and len(house.catalogue.list(ana, LATER).items) == 1
    with store.reading() as session:
        assert session.get_one(MemoryCounter, ana).fingerprint == "words/1"
    store.close()


# Small things


def test_a_fact_told_later_is_found_at_a_time_when_it_held(store):
    ana, house = person(store, "Ana"), home(store)
    held = {"valid_from": NOON - 90 * DAY, "valid_until": NOON - 30 * DAY}
    house.add(ana, "user", "I rented a flat in Lyon", NOON, **held)
    found = {
        days: len(
            house.recall(ana, "flat in Lyon rented", 3, LATER, as_of=NOON - days * DAY, least=0.3).items
        )
        for days in (91, 90, 60, 31, 30, 1)
    }
    assert found == {91: 0, 90: 1, 60: 1, 31: 1, 30: 0, 1: 0}
    assert not house.recall(ana, "flat in Lyon rented", 3, NOON - DAY, as_of=NOON - 60 * DAY, least=0.3).items


def test_no_hash_of_what_was_said_is_left_of_what_was_deleted(store):
    ana, house, talk = person(store, "Ana"), home(store), Conversations(store)
    first = turn(house, ana, BEES, "How nice.", client_name="hash:abc")
    other = turn(house, ana, "My boat is red", "Is it?", client_name="id:mine")
    [bees] = house.catalogue.list(ana, LATER, text="bees").items
    house.forgetting.one(ana, bees.id)
    with store.reading() as session:
        names = dict(session.exec(select(Conversation.id, Conversation.client_name)).all())
    assert names == {first.conversation_id: None, other.conversation_id: "id:mine"}
    assert talk.named(ana, "hash:abc") is None and talk.named(ana, "id:mine") == other.conversation_id
    house.forgetting.everything(ana)
    with store.reading() as session:
        assert session.exec(select(Conversation)).all() == []
        assert session.get_one(MemoryCounter, ana).fingerprint is None


def test_titles_come_back_with_our_own_export_and_go_with_what_they_name(store, tmp_path):
    from mongars.memory.importing import Importer, export_text

    ana, bo, house = person(store, "Ana"), person(store, "Bo"), home(store)
    for message in (BEES, "My boat is red and fast"):
        turn(house, ana, message, "Is it?")
    with store.writing() as session:
        for row in session.exec(select(Conversation)).all():
            row.title = "Bees" if row.title == BEES else "Boats"
            session.add(row)

    def carried(who: str) -> str:
        pieces = export_text("json", "x", conversations_of(store, who), memories_of(store, who), LATER)
        return "".join(pieces)

    def titles(who: str) -> dict[str, str]:
        named = {c.id: c.title for c in conversations_of(store, who)}
        return {m.text: named.get(m.conversation) for m in memories_of(store, who) if m.role == "user"}

    assert titles(ana) == {BEES: "Bees", "My boat is red and fast": "Boats"}
    for _ in range(2):
        Importer(house).run(bo, carried(ana).encode(), LATER)
        assert titles(bo) == titles(ana) and len(conversations_of(store, bo)) == 2
    [bees] = house.catalogue.list(bo, LATER, text="bees").items
    house.forgetting.conversation(bo, bees.conversation_id)
    assert [c.title for c in conversations_of(store, bo)] == ["Boats"]
    Importer(house).run(bo, carried(ana).encode(), LATER)
    assert [c.title for c in conversations_of(store, bo)] == [
        "Boats"
    ]  # what was deleted brings no title back
    assert titles(ana) == {BEES: "Bees", "My boat is red and fast": "Boats"}
