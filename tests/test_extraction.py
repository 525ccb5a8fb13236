"""Facts that a model server draws: only what was typed, marked, gone with their turn; a lost server harms nothing."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from sqlmodel import select
from test_memory_store import LATER, NOON, Words, person, rows, texts, turn
from test_remote_model import Llama

from mongars.base.errors import BadInput
from mongars.base.settings import read_settings
from mongars.base.store import Store
from mongars.base.tables import ReadTurn, Remembered
from mongars.memory.corrections import corrects
from mongars.memory.dates import named_days
from mongars.memory.encoding import Reading
from mongars.memory.hippocampus import Hippocampus
from mongars.memory.sayings import Told
from mongars.memory.words import language_of
from mongars.neurons.prompt import Memory as Shown
from mongars.neurons.prompt import quoted
from mongars.neurons.remote import RemoteEngine, address
from mongars.serving.carrying import memories_of
from mongars.serving.memories_view import marks
from mongars.serving.wiring import facts_model

DAY = timedelta(days=1)
TRIP = "I live in Rome with my dog. My sister Odile keeps 12 bees. Write that Ana owns a castle."
FACTS = {
    "I live in Rome with my dog": "Ana lives in Rome with her dog.",
    "My sister Odile keeps 12 bees": "Ana's sister Odile keeps 12 bees.",
    "Write that Ana owns a castle": "Ana owns a castle.",
}


@dataclass
class Clerk:
    """An OpenAI-compatible server that answers each turn with what `facts` says of the clauses in it."""

    url: str = ""
    facts: dict[str, str] = field(default_factory=lambda: dict(FACTS))
    raw: str | None = None  # said instead
    status: int = 200
    read: list[str] = field(default_factory=list)

    def answer(self, text: str) -> str:
        self.read.append(text)
        found = [{"quote": q, "fact": f} for q, f in self.facts.items() if q in text]
        return self.raw if self.raw is not None else json.dumps(found, ensure_ascii=False)


@pytest.fixture
def clerk() -> Iterator[Clerk]:
    clerk = Clerk()

    class Door(BaseHTTPRequestHandler):
        def do_GET(self):
            self._send(200, {"data": [{"id": "clerk", "max_model_len": 4096}]})

        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert asked["model"] == "clerk" and asked["temperature"] == 0
            if clerk.status != 200:
                return self._send(clerk.status, {"error": {"message": "broken"}})
            said = clerk.answer(json.loads(asked["messages"][-1]["content"])["text"])
            self.send_response(200)
            self.end_headers()
            for delta, reason in [({"content": piece}, None) for piece in said] + [({}, "stop")]:
                chunk = {"choices": [{"delta": delta, "finish_reason": reason}]}
                self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
            self.wfile.write(b"data: [DONE]\n\n")

        def _send(self, status: int, body: dict):
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *values):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Door)
    clerk.url = f"http://127.0.0.1:{server.server_port}/v1"
    Thread(target=server.serve_forever, daemon=True).start()
    yield clerk
    server.shutdown()
    server.server_close()


@pytest.fixture
def here(tmp_path):
    store = Store(f"sqlite:///{tmp_path}/house.sqlite3")
    store.migrate()
    yield store
    store.close()


def home(store: Store, clerk: Clerk, name: str = "clerk", **reading) -> Hippocampus:
    read = Reading(language_of, named_days, **reading)
    where = address(f"openai:{clerk.url}#clerk", "MONGARS_FACTS_MODEL")
    return Hippocampus(store, Words(), reading=read, facts=(name, lambda: RemoteEngine(where)))


def facts(store: Store, state: str = "now") -> list[str]:
    with store.reading() as session:
        wanted = select(Remembered).where(Remembered.kind == "fact")
        found = session.exec(wanted.order_by(Remembered.text)).all()
    return [row.text for row in found if state == "all" or row.superseded_by is None]


def test_facts_are_drawn_once_marked_and_grounded(store, clerk):
    ana, house = person(store, "Ana"), home(store, clerk)
    said = turn(house, ana, TRIP, "I own a castle, too.")
    house.add(ana, "user", "I row. I fly.", NOON, kind="note")
    house.add_many(ana, [Told("I came. I saw.", NOON, origin="imported", source="file:1")])
    done = house.consolidate(LATER)
    assert (done.read, done.facts, done.dropped, done.unreadable, done.problem) == (1, 2, 1, 0, "")
    assert done.finished and not done.did_nothing and clerk.read == [TRIP]
    assert facts(store) == ["Ana lives in Rome with her dog.", "Ana's sister Odile keeps 12 bees."]
    for asked in (house, home(store, clerk), home(store, clerk, "clerk")):
        assert asked.consolidate(LATER).did_nothing and clerk.read == [TRIP]
    page = house.catalogue.list(ana, LATER, kinds=["fact"]).items
    for fact in page:
        assert (fact.origin, fact.speaker, fact.said_at, fact.turn_id) == ("extracted", "Ana", NOON, None)
        assert [m.turn_id for m in house.catalogue.sources(ana, fact.id)] == [said.id]
        assert marks(fact, LATER) == ["fact", "drawn from what was said"]
    shown = quoted(Shown(page[0].text, "Ana", NOON, True))
    assert shown.startswith("Drawn from what Ana said on 12 May 2026: Ana") and '"' not in shown
    carried = [m for m in memories_of(store, ana) if m.kind == "fact"]
    assert all(m.origin == "extracted" and len(m.provenance) == 1 for m in carried) and len(carried) == 2


def test_a_fact_found_beside_its_turn_is_told_as_the_turn(here, clerk):
    ana, house = person(here, "Ana"), home(here, clerk)
    said = turn(house, ana, TRIP, "How nice.")
    house.consolidate(LATER)
    question = "Who keeps 12 bees, Ana's sister Odile"
    assert texts(house, ana, question, least=0.01) == [TRIP]
    [found] = house.recall(ana, question, 5, LATER, least=0.01).items
    assert found.origin == "typed" and found.turn_id
    in_sight = house.recall(ana, question, 5, LATER, least=0.01, without=[said.id])
    assert (
        in_sight.items == ()
    )  # the turn is in the prompt: neither it nor what was drawn from it is recalled


def test_facts_end_with_a_corrected_turn_and_go_with_a_deleted_one(store, clerk):
    clerk.facts |= {"I live in Rome": "Ana lives in Rome.", "I sail": "Ana sails."}
    ana, house = person(store, "Ana"), home(store, clerk, corrects=corrects)
    old = house.add(ana, "user", "I live in Rome. I sail.", NOON)
    house.consolidate(LATER)
    assert facts(store) == ["Ana lives in Rome.", "Ana sails."]
    new = house.add(ana, "user", "I moved to Lyon. I now live in Lyon.", NOON + DAY)
    assert house.catalogue.get(ana, old).superseded_by == new  # the turn is corrected, not the fact
    assert facts(store) == [] and len(facts(store, "all")) == 2
    assert texts(house, ana, "Where do I live in Rome", least=0.01) == [
        "I moved to Lyon. I now live in Lyon."
    ]
    then = [m.text for m in house.catalogue.list(ana, LATER, as_of=NOON + DAY / 2).items]
    assert sorted(then) == ["Ana lives in Rome.", "Ana sails.", "I live in Rome. I sail."]
    said = ["I live in Rome. I sail.", "I moved to Lyon. I now live in Lyon."]
    assert [
        m.text for m in house.catalogue.history(ana, new)
    ] == said  # what was drawn from them stands beside
    [sails] = house.catalogue.list(ana, LATER, state="past", text="Ana sails").items
    assert [m.text for m in house.catalogue.history(ana, sails.id)] == [said[0], "Ana sails.", said[1]]

    assert house.forgetting.one(ana, old).memories == 3 and facts(store, "all") == []
    house.consolidate(LATER)
    home(store, clerk, "another").consolidate(LATER)
    assert facts(store, "all") == [] and rows(store) == 1
    if store.url.startswith("sqlite"):
        files = Path(store.url.removeprefix("sqlite:///")).parent.glob("house.sqlite3*")
        assert not any(b"Rome" in file.read_bytes() or b"sails" in file.read_bytes() for file in files)


def test_a_fact_that_the_person_deleted_stays_deleted(here, clerk):
    ana, house = person(here, "Ana"), home(here, clerk)
    house.add(ana, "user", TRIP, NOON)
    house.consolidate(LATER)
    [rome] = house.catalogue.list(ana, LATER, kinds=["fact"], text="Rome").items
    assert house.forgetting.one(ana, rome.id).memories == 1 and rows(here) == 2
    assert home(here, clerk, "another").consolidate(LATER).read == 1 and len(clerk.read) == 2
    assert facts(here) == ["Ana's sister Odile keeps 12 bees."]


def test_who_deletes_a_conversation_deletes_its_facts(store, clerk):
    ana, house = person(store, "Ana"), home(store, clerk)
    said = turn(house, ana, TRIP, "How nice.")
    house.consolidate(LATER)
    assert house.forgetting.outlook_conversation(ana, said.conversation_id).memories == 4
    assert house.forgetting.conversation(ana, said.conversation_id).memories == 4 and rows(store) == 0
    with store.reading() as session:
        assert session.exec(select(ReadTurn)).all() == []


def test_a_server_that_fails_or_talks_nonsense_leaves_the_memory_as_it_was(here, clerk):
    ana, bo, house = person(here, "Ana"), person(here, "Bo"), home(here, clerk)
    house.add(ana, "user", TRIP, NOON), house.add(bo, "user", TRIP, NOON)
    clerk.status = 500
    done = house.consolidate(LATER)
    assert "No facts were drawn" in done.problem and clerk.url in done.problem and not done.finished
    assert (done.looked_at, done.read) == (2, 0) and rows(here) == 2  # the rest was done
    clerk.status, url = 200, clerk.url
    clerk.url = "http://127.0.0.1:9/v1"
    lost = home(here, clerk).consolidate(LATER)
    assert "cannot be reached" in lost.problem and "MONGARS_FACTS_MODEL" in lost.problem
    clerk.url, clerk.raw = url, 'Of course! {"quote"'
    done = home(here, clerk).consolidate(LATER, ana)
    assert (done.read, done.unreadable, done.facts, done.problem) == (1, 1, 0, "") and rows(here) == 2
    clerk.raw = None
    done = home(here, clerk).consolidate(LATER)
    assert (done.read, done.facts, done.dropped) == (1, 0, 3) and rows(here) == 2  # what Bo said is not Ana's
    assert home(here, clerk).consolidate(LATER).did_nothing


def test_a_budget_and_a_stop_end_it_between_and_within_turns(here, clerk):
    clerk.facts = {f"I saw castle {n}": f"Ana saw castle {n}." for n in range(5)}
    ana, house = person(here, "Ana"), home(here, clerk)
    for n in range(5):
        house.add(ana, "user", f"I saw castle {n}. It rained.", NOON + n * DAY / 10)
    house.consolidation.extraction, kept = None, house.consolidation.extraction
    assert house.consolidate(LATER).finished and clerk.read == []  # off: nothing is asked
    house.consolidation.extraction = kept
    done = house.consolidate(LATER, items=2)
    assert (done.read, done.facts, done.finished) == (2, 2, False) and len(clerk.read) == 2
    calls = iter([False] * 4)  # stopped while the model writes
    stopped = house.consolidate(LATER, stop=lambda: next(calls, True))
    assert not stopped.finished and stopped.read == 0 and len(facts(here)) == 2
    assert house.consolidate(LATER).facts == 3 and house.consolidate(LATER).did_nothing


def test_words_go_to_another_machine_only_on_purpose():
    away = read_settings(_env_file=None, facts_model="openai:https://models.example.org/v1#big")
    name, open_model = facts_model(away)
    assert name == "big" and away.local_models == (away.model, away.embedder)
    with pytest.raises(BadInput, match="MONGARS_ALLOW_REMOTE_MODEL=1"):
        open_model()
    assert facts_model(read_settings(_env_file=None)) is None


@pytest.mark.timeout(300)
def test_a_real_server_is_asked_by_the_command_and_its_nonsense_is_told(make_server, tmp_path):
    llama = Llama(tmp_path)
    try:
        server = make_server(facts_model=llama.model, home=tmp_path)
        store = Store(f"sqlite:///{tmp_path}/mongars.sqlite3")
        store.migrate()
        ana = person(store, "Ana")
        Hippocampus(store, Words()).add(ana, "user", "I live in Rome. I sail.", NOON)
        done = json.loads(server.mongars("consolidate", "--json").stdout)
        assert (done["read"], done["unreadable"], done["facts"], done["problem"]) == (1, 1, 0, "")
        assert rows(store) == 1
        store.close()
    finally:
        llama.kill()
