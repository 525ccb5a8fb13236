"""The memory in its tables, on both databases: what goes wrong with the memories of others does not go wrong here."""

import os
import signal
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import text
from sqlmodel import func, select

from mongars.base.errors import NotFound
from mongars.base.store import Store
from mongars.base.tables import Embedding, Exchange, Person, Remembered, Utterance
from mongars.memory.conversations import Conversations, Outcome
from mongars.memory.encoding import Reading
from mongars.memory.hippocampus import Hippocampus
from mongars.memory.sayings import Told

NOON = datetime(2026, 5, 12, 12, tzinfo=UTC)
LATER = NOON + timedelta(days=1)


class Words:
    """An encoder that hashes words; it reads a part at a time."""

    dimension = 1024

    def __init__(self, fingerprint: str = "words/1"):
        self.fingerprint = fingerprint

    def embed(self, texts):
        vectors = np.full((len(texts), self.dimension), 1e-6, np.float32)
        for row, words in enumerate(texts):
            for word in words.lower().split():
                vectors[row, zlib.crc32(word.strip(".,?!").encode()) % self.dimension] += 1
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def spans(self, said):
        size = 600  # characters
        return [(a, min(a + size, len(said))) for a in range(0, max(1, len(said) - size // 2), size // 2)]


def person(store: Store, name: str) -> str:
    with store.writing() as session:
        made = Person(username=name, username_key=name.lower())
        session.add(made)
        return made.id


def texts(hippocampus: Hippocampus, who: str, question: str, k: int = 5, **options) -> list[str]:
    return [m.text for m in hippocampus.recall(who, question, k, LATER, **{"least": 0.5} | options).items]


def turn(
    house: Hippocampus, who: str, message: str, answer: str, moment: datetime = NOON, memories=(), **options
):
    """A whole exchange, written as the cortex writes it."""
    talk = Conversations(house.store)
    opened = talk.open(who, house.encode(who, [Told(message, moment)])[0], **options)
    said = house.encode(who, [Told(answer, moment, "assistant")])[0]
    return talk.finish(who, opened.id, Outcome(answer, "stop", "tiny", None, 1, 1), moment, said, memories)


def rows(store: Store) -> int:
    with store.reading() as session:
        return session.exec(select(func.count()).select_from(Remembered)).one()


def test_the_same_memory_twice_is_one_never_none(store):
    ana, house = person(store, "Ana"), Hippocampus(store, Words())
    first = house.add(ana, "user", "I keep bees", NOON)
    assert house.add(ana, "user", "I keep bees", NOON) == first and rows(store) == 1
    told = [Told("I sail", NOON, source=f"file:{n // 2}", origin="imported") for n in range(4)]
    ids = house.add_many(ana, told)
    assert [id is None for id in ids] == [False, True, False, True] and house.add_many(ana, told) == [
        None
    ] * 4
    assert texts(house, ana, "bees keep I") == ["I keep bees"] and rows(store) == 3


def test_many_threads_that_tell_the_same_thing_tell_it_once(store):
    ana, house = person(store, "Ana"), Hippocampus(store, Words())
    with ThreadPoolExecutor(12) as crowd:
        ids = set(crowd.map(lambda n: house.add(ana, "user", "I keep bees", NOON), range(24)))
    assert len(ids) == 1 and rows(store) == 1


def test_after_a_correction_only_the_new_one_is_live(store):
    ana, house = person(store, "Ana"), Hippocampus(store, Words())
    old = house.add(ana, "user", "The party is on Tuesday", NOON)
    assert texts(house, ana, "When is the party") == ["The party is on Tuesday"]
    new = house.correct(ana, old, "The party is on Thursday", NOON + timedelta(hours=2))
    for asked in (house, Hippocampus(store, Words())):  # the one that corrected, and one that starts now
        assert texts(asked, ana, "When is the party") == ["The party is on Thursday"]
        assert texts(asked, ana, "When is the party", as_of=NOON + timedelta(hours=1)) == [
            "The party is on Tuesday"
        ]
    history = house.catalogue.history(ana, new.id)
    assert [(m.text[-8:], m.valid_from, m.valid_until) for m in history] == [
        (" Tuesday", NOON, NOON + timedelta(hours=2)), ("Thursday", NOON + timedelta(hours=2), None),
    ]  # fmt: skip


def test_a_turn_that_corrects_an_earlier_one_takes_its_place(store):
    def corrects(new, candidates, before):
        assert before is None or before.speaker == new.speaker
        found = [old.id for old, cosine in candidates if "party" in old.text and cosine > 0.3]
        return found[0] if new.text.startswith("No,") and found else None

    ana, house = person(store, "Ana"), Hippocampus(store, Words(), reading=Reading(corrects=corrects))
    house.add(ana, "user", "The party is on Tuesday", NOON)
    house.add(ana, "user", "No, the party is on Thursday", NOON + timedelta(minutes=1))
    house.add(ana, "user", "I keep bees", NOON + timedelta(minutes=2))
    assert texts(house, ana, "When is the party") == ["No, the party is on Thursday"]
    house.add(ana, "user", "No, the party is on Friday", NOON + timedelta(minutes=3))
    assert texts(house, ana, "When is the party") == ["No, the party is on Friday"]
    live = house.catalogue.list(ana, LATER).items
    assert len(live) == 2 and len(house.catalogue.history(ana, live[0].id)) == 3


def test_deleted_stays_deleted_after_restart_and_reimport(store):
    ana, house = person(store, "Ana"), Hippocampus(store, Words())
    told = [Told(f"Thing number {n}", NOON, source=f"file:{n}", origin="imported") for n in range(5)]
    ids = house.add_many(ana, told)
    typed = house.add(ana, "user", "I keep bees", NOON)
    assert house.forgetting.one(ana, ids[2]).memories == house.forgetting.one(ana, typed).memories == 1
    store.close()
    house = Hippocampus(Store(store.url), Words())
    assert house.add_many(ana, told) == [None] * 5
    assert house.deleted(ana, told) == [False, False, True, False, False]
    ours = Told("I keep bees", NOON, speaker="Ana", source=f"mongars:{typed}", origin="imported")
    assert house.add_many(ana, [ours]) == [None]  # our own export, made before
    with pytest.raises(NotFound, match="deleted before"):
        house.add(ana, "user", told[2].text, NOON, source="file:2", origin="imported")
    assert "Thing number 2" not in texts(house, ana, "Thing number", 9) and rows(store) == 4
    assert house.add(ana, "user", "I keep bees", LATER) and texts(house, ana, "bees I keep") == [
        "I keep bees"
    ]


def test_deleting_takes_the_turn_and_all_that_came_of_it_out_of_the_files(store, tmp_path):
    ana, house = person(store, "Ana"), Hippocampus(store, Words())
    talk, word = Conversations(store), "zanzibar"
    for n in range(120):
        house.add(ana, "user", f"Filler {n} " + "x" * (n % 7 * 90), NOON + timedelta(seconds=n))
    first = turn(house, ana, f"My secret is {word}.", f"So it is {word}!", idempotency_key="k")
    turn(
        house,
        ana,
        "I keep bees.",
        "How nice.",
        NOON + timedelta(minutes=1),
        conversation_id=first.conversation_id,
    )
    [memory] = house.recall(ana, "secret is My", 1, LATER).items
    fact = Told(f"Her secret: {word}", NOON, kind="fact", origin="extracted", made_from=(memory.id,))
    house.add_many(ana, [fact])
    asked = turn(house, ana, "What is my secret?", f"It is {word}.", LATER, memories=[memory])
    assert talk.recollections(ana, asked.id)[0].id == memory.id and talk.conversations(ana)[1].title.endswith(
        f"{word}."
    )
    gone = house.forgetting.one(ana, memory.id)
    assert (gone.exchanges, gone.answers, gone.memories) == (1, 1, 4)
    history = talk.history(ana)[0]
    assert [(t.message, t.response) for t in history] == [
        ("What is my secret?", None),
        ("I keep bees.", "How nice."),
    ]
    assert [c.title for c in talk.conversations(ana)] == ["What is my secret?", "I keep bees."]
    assert talk.recollections(ana, asked.id) == [] and talk.find(ana, "k") is None
    assert texts(house, ana, "secret is My", least=-1) and word not in " ".join(
        texts(house, ana, "secret", 200, least=-1)
    )
    if store.engine.dialect.name == "sqlite":
        assert gone.wiped is True
        files = [path for path in tmp_path.iterdir() if path.is_file()]
        whole = b"".join(path.read_bytes() for path in files)
        assert {path.name for path in files} >= {"house.sqlite3"} and b"Filler 7" in whole
        assert word.encode() not in whole and word.upper().encode() not in whole.upper()
    else:
        assert gone.wiped is None


def test_who_said_what_is_right_for_two_speakers(store):
    ana, house = person(store, "Ana"), Hippocampus(store, Words())
    said = [("Caroline", "I adopted a dog"), ("Melanie", "I adopted a cat")] * 2
    told = [
        Told(words, NOON + timedelta(hours=n), speaker=name, conversation="c")
        for n, (name, words) in enumerate(said)
    ]
    assert None not in house.add_many(ana, told) and None not in house.add_many(ana, [
        Told("I adopted a dog", NOON, speaker="Melanie", conversation="c")
    ])  # fmt: skip
    found = house.recall(ana, "who adopted a dog", 9, LATER).items
    dogs = [m.speaker for m in found if m.text.endswith("dog")]
    assert sorted(dogs) == ["Caroline", "Caroline", "Melanie"]
    assert {m.speaker for m in found if m.text.endswith("cat")} == {"Melanie"}
    assert sorted((m.said_at, m.speaker) for m in house.catalogue.list(ana, LATER).items)[1:] == [
        (NOON, "Melanie"), *((NOON + timedelta(hours=n), name) for n, (name, _) in enumerate(said) if n)
    ]  # fmt: skip


def test_a_question_never_touches_anothers_cache(store):
    ana, bo = person(store, "Ana"), person(store, "Bo")
    house = Hippocampus(store, Words())
    house.add(ana, "user", "I keep bees", NOON), house.add(bo, "user", "I keep bees too", NOON)
    assert texts(house, ana, "keep bees I") and texts(house, bo, "keep bees I") == ["I keep bees too"]
    others = house.sets._copies[bo]
    with others.lock:  # whoever reached for it would wait for ever
        others.entries = None
        with ThreadPoolExecutor(1) as thread:
            assert thread.submit(texts, house, ana, "keep bees I").result(20) == ["I keep bees"]


def test_a_turn_of_one_process_is_recalled_by_another_at_its_next_question(store):
    ana, house = person(store, "Ana"), Hippocampus(store, Words())
    first = house.add(ana, "user", "I keep bees", NOON)
    assert texts(house, ana, "do I sail") == []
    code = (
        "import sys; sys.path.insert(0, sys.argv[4]); from test_memory_store import *; "
        "house = Hippocampus(Store(sys.argv[1]), Words()); house.add(sys.argv[2], 'user', 'I do sail', NOON); "
        "house.forgetting.one(sys.argv[2], sys.argv[3])"
    )
    here = str(Path(__file__).parent)
    subprocess.run([sys.executable, "-c", code, store.url, ana, first, here], check=True, timeout=120)
    assert texts(house, ana, "do I sail") == ["I do sail"] and texts(house, ana, "keep bees I") == []


def test_an_encoder_of_another_fingerprint_is_never_compared(store):
    ana, old = person(store, "Ana"), Hippocampus(store, Words("words/1"))
    old.add(ana, "user", "I keep bees " * 20, NOON)
    new = Hippocampus(store, Words("words/2"))
    assert new.unread() == 1 and texts(old, ana, "keep bees I")
    by_words = new.recall(ana, "keep bees I", 5, LATER).items  # its vector counts for nothing, its words do
    assert [m.reasons["likeness"] for m in by_words] == [0] and by_words[0].reasons["covered"] == 1
    assert old.recall(ana, "keep bees I", 5, LATER).items[0].reasons["likeness"] > 0.5
    assert new.read_again() == 1 and new.unread() == 0 and new.read_again() == 0
    assert len(texts(new, ana, "keep bees I")) == 1
    with store.reading() as session:
        assert set(session.exec(select(Embedding.fingerprint))) == {"words/2"}


@pytest.mark.parametrize("script", ["a", "é", "ж", "ع", "字", "🐝", "𐍈"])
def test_texts_of_any_script_and_length_come_back_as_they_were(script, tmp_path):
    store = Store(f"sqlite:///{tmp_path}/house.sqlite3")
    store.migrate()
    ana, house = person(store, "Ana"), Hippocampus(store, Words())
    for size in (1, 100, 100_000):
        said = script * size
        id = house.add(ana, "user", said, NOON)
        assert house.catalogue.get(ana, id).text == said
    middle = "filler words " * 3000 + " xylophone marmalade " + "filler words " * 3000
    id = house.add(ana, "user", middle, NOON)
    assert house.recall(ana, "xylophone marmalade", 1, LATER, least=0.02).items[0].id == id
    store.close()


def test_a_store_of_the_older_version_is_recalled_and_goes_back(url):
    store = Store(url)
    store.migrate("0001")
    into = "INSERT INTO"
    ana, talk, one, alone, answer = "a" * 32, "b" * 32, "c" * 32, "d" * 32, "e" * 32
    vector = Words().embed(["I keep bees in Annecy", "My boat is red", "How nice"]).astype("<f4")
    at = {"at": NOON if "postgresql" in url else NOON.replace(tzinfo=None)}
    with store.writing() as session:
        for sql in (
            f"{into} person (id, username, username_key, role, created_at) "
            f"VALUES ('{ana}', 'Ana', 'ana', 'user', :at)",
            f"{into} conversation (id, person_id, title, created_at) VALUES ('{talk}', '{ana}', 'I keep', :at)",
            f"{into} exchange (id, person_id, conversation_id, asked_at) VALUES ('{talk}', '{ana}', '{talk}', :at)",
            *(
                "INSERT INTO utterance (id, person_id, exchange_id, role, speaker, text, said_at) "
                f"VALUES ('{id}', '{ana}', {exchange}, '{role}', '{name}', '{words}', :at)"
                for id, exchange, role, name, words in (
                    (one, f"'{talk}'", "user", "Ana", "I keep bees in Annecy"),
                    (answer, f"'{talk}'", "assistant", "monGARS", "How nice"),
                    (alone, "NULL", "user", "Ana", "My boat is red"),
                )
            ),
        ):  # fmt: skip
            session.execute(text(sql), at)
        for id, row in zip((one, alone, answer), vector, strict=True):
            sql = text(
                "INSERT INTO embedding (utterance_id, fingerprint, vector) VALUES (:id, 'words/1', :vector)"
            )
            session.execute(sql, {"id": id, "vector": row.tobytes()})
        session.execute(text(f"INSERT INTO recollection VALUES ('{talk}', '{alone}', 0, 0.5)"))
    store.migrate()
    house = Hippocampus(store, Words())
    assert texts(house, ana, "bees in Annecy") == ["I keep bees in Annecy"] and house.unread() == 0
    [boat] = house.recall(ana, "red boat", 1, LATER).items
    assert (boat.id, boat.speaker, boat.said_at, boat.turn_id) == (alone, "Ana", NOON, None)
    assert [m.id for m in Conversations(store).recollections(ana, talk)] == [alone]
    assert Conversations(store).history(ana)[0][0].response == "How nice"
    ours = Told("My boat is red", NOON, speaker="Ana", source=f"mongars:{alone}", origin="imported")
    assert house.add_many(ana, [ours]) == [None]  # known again by its identity
    house.correct(ana, one, "I keep bees in Lyon", NOON)
    house.add_many(ana, [Told("My dog is old", NOON, source="file:1", origin="imported")])
    store.migrate("0001")
    with store.reading() as session:
        said = dict(session.execute(text("SELECT text, count(vector) FROM utterance LEFT JOIN embedding ON "
                                         "utterance_id = utterance.id GROUP BY text")).all())  # fmt: skip
        shown = session.execute(text("SELECT utterance_id FROM recollection")).scalars().all()
    assert said == {
        "I keep bees in Annecy": 0, "I keep bees in Lyon": 1, "My boat is red": 1, "My dog is old": 1, "How nice": 1,
    } and shown == [alone]  # fmt: skip
    store.migrate()
    assert texts(Hippocampus(store, Words()), ana, "old dog") == ["My dog is old"]
    store.close()


def test_fifty_people_at_once_lose_nothing_and_mix_nothing(store):
    people = [person(store, f"Person{n}") for n in range(50)]
    house, talk = Hippocampus(store, Words(), cache_mb=1), Conversations(store)

    def live(n: int) -> list[str]:
        who, met = people[n], []
        for step in range(6):
            mine = f"marker{n}x word{step} things"
            if step % 2:
                house.add(who, "user", mine, NOON + timedelta(minutes=step))
            else:
                turn(house, who, mine, f"answer{n}x", NOON + timedelta(minutes=step))
            found = house.recall(who, f"marker{n}x word{step}", 20, LATER).items
            met += [m.text for m in found]
            assert mine in [m.text for m in found], f"{mine} was told and not found"
        return met

    with ThreadPoolExecutor(50) as crowd:
        for n, met in enumerate(crowd.map(live, range(50))):
            assert met and all(words.startswith(f"marker{n}x ") for words in met), n
    assert rows(store) == 50 * 9 and house.sets.nbytes <= house.sets.most
    for n, who in enumerate(people):
        assert len(house.catalogue.list(who, LATER).items) == 6 and len(talk.history(who)[0]) == 3, n


def test_kill_9_in_the_middle_of_an_import_loses_nothing_and_doubles_nothing(store):
    ana, size = person(store, "Ana"), 4000
    code = (
        "import sys; sys.path.insert(0, sys.argv[3]); from test_memory_store import *; "
        "house = Hippocampus(Store(sys.argv[1]), Words()); print('begun', flush=True); "
        f"house.add_many(sys.argv[2], imported({size})); print('done', flush=True)"
    )
    command = [sys.executable, "-c", code, store.url, ana, str(Path(__file__).parent)]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert running.stdout.readline() == "begun\n"
    until = time.monotonic() + 60
    while rows(store) < 500 and time.monotonic() < until:
        time.sleep(0.01)
    os.kill(running.pid, signal.SIGKILL)
    assert "done" not in running.stdout.read() and running.wait(60)
    before = rows(store)
    with store.reading() as session:
        vectors = session.exec(select(func.count(func.distinct(Embedding.memory_id)))).one()
    assert 500 <= before < size and vectors == before and before % 256 == 0
    house = Hippocampus(store, Words())
    added = house.add_many(ana, imported(size))
    assert rows(store) == size and sum(id is not None for id in added) == size - before
    assert house.add_many(ana, imported(size)) == [None] * size


def imported(size: int) -> list[Told]:
    """As many turns as a file might hold."""
    return [Told(f"Turn {n} of many", NOON, source=f"file:{n}", origin="imported") for n in range(size)]


def test_a_turn_that_fails_half_way_leaves_nothing(store, monkeypatch):
    ana, house = person(store, "Ana"), Hippocampus(store, Words())
    import mongars.memory.records as records

    monkeypatch.setattr(records, "vector_rows", lambda *one: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        turn(house, ana, "I keep bees", "How nice")
    monkeypatch.undo()
    with store.reading() as session:
        for table in (Utterance, Exchange, Remembered):
            assert session.exec(select(table)).all() == [], table
    assert turn(house, ana, "I keep bees", "How nice").response == "How nice"
