"""One person's adapter in the model that answers all: in effect at once, for that person only, and taken off again."""

import asyncio
from pathlib import Path

import pytest
from sqlmodel import select

from mongars.base.store import Store
from mongars.base.tables import Adapter, Person
from mongars.growth.lineage import RETIRED, STAGED, swap
from mongars.memory.chat_adapters import KIND, ChatAdapters
from mongars.neurons import engines
from mongars.neurons.adapters import place_of, read
from mongars.neurons.language_model import LanguageModel
from mongars.neurons.sampling import Finish, Sampling
from mongars.neurons.tiny_model import make_adapter

ASK = [{"role": "user", "content": "What do bees do all day, and why do they come back?"}]
SAMPLING = Sampling(max_new_tokens=12)
ENGINES = ["transformers", "llama"]
CHATS, SWAPS = 500, 50  # while one another's adapters come and go


def enter(store: Store, home: Path, base: Path, person: str, count: int, over: str) -> list[str]:
    """Adapters of a person that may serve; their ids, which begin with a zero: none."""
    ids = []
    for n in range(count):
        row = Adapter(
            kind=KIND, owner_id=person, state=STAGED, base="", weights_sha256="", run=f"{person[:8]}{n}", data_hash="",
            outcome="accepted",
        )  # fmt: skip
        ids.append(row.id)
        place_of(home, row.id).parent.mkdir(parents=True, exist_ok=True)
        make_adapter(base, place_of(home, row.id), seed=7 + n, owner=person, over=over)
        with store.writing() as session:
            session.add(row)
    return ids


def loaded(engine: str, base: Path, learnt: Path, cache: Path) -> LanguageModel:
    """The model with what everybody hears merged."""
    wish = engines.Wish(base, cache, adapter=learnt, engine=engine, precision="f32")
    return LanguageModel(engines.load(wish, engines.prepare(wish, lambda line: None)), at_once=4, waiting=64)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("engine", ENGINES)
def test_no_answer_is_torn_or_wrong_while_adapters_are_swapped(engine, tiny_models, tmp_path):
    store = Store(f"sqlite:///{tmp_path}/mongars.sqlite3")
    store.migrate()
    with store.writing() as session:
        session.add_all([Person(id=name, username=name, username_key=name) for name in ("ana", "bo")])
    learnt = make_adapter(tiny_models[0], tmp_path / "learnt")
    ids = enter(store, tmp_path, tiny_models[0], "ana", 2, read(learnt).weights_sha256)
    model = loaded(engine, tiny_models[0], learnt, tmp_path / "cache")
    worn, heard, wanted, swaps = ChatAdapters(store, tmp_path, model.adapt), [], {}, 0

    async def answer(person: str, lora=None) -> str:
        async with model.place(person) as place:
            pieces = [piece async for piece in place.stream(ASK, SAMPLING, lora)]
        assert isinstance(pieces[-1], Finish)
        return "".join(pieces[:-1])

    async def chat(person: str) -> None:
        while len(heard) < CHATS or swaps < SWAPS:
            held = worn.of(person)
            heard.append((person, held.lora and held.id, await answer(person, held.lora)))

    async def live() -> None:
        for id in [None, *ids]:
            wanted[id] = await answer("ana", model.adapt(place_of(tmp_path, id)) if id else None)
        talks = [asyncio.create_task(chat(person)) for person in ("ana", "ana", "bo", "ana")]
        nonlocal swaps
        serves = None
        while not all(talk.done() for talk in talks):
            if len(heard) >= CHATS // SWAPS * swaps:
                after = [*ids, None][swaps % 3]
                swap(store, "ana", after, serves, KIND)
                serves, swaps = after, swaps + 1
            await asyncio.sleep(0.01)
        await asyncio.gather(*talks)
        assert swaps >= SWAPS and len(heard) >= CHATS

    asyncio.run(live())
    model.close()
    store.close()
    assert len(set(wanted.values())) == 3
    assert {id for _, id, _ in heard} == {None, *ids} and {
        id for person, id, _ in heard if person == "bo"
    } == {None}
    others = [(id, text) for _, id, text in heard if text != wanted[id]]
    assert not [text for _, text in others if text in wanted.values()], (others, wanted)
    # llama.cpp rounds otherwise in a larger batch, which rarely decides between two tokens that are as good as equal
    assert len(others) <= (CHATS // 10 if engine == "llama" else 0), (others, wanted)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_server_notices_what_another_process_lets_serve(engine, make_server, tiny_models):
    server = make_server(max_new_tokens=16, adapter="./learnt", engine=engine)
    learnt = make_adapter(tiny_models[0], server.folder / "learnt")
    server.start()
    ana, bo = server.person("Ana"), server.person("Bo")
    home = server.folder / "home"
    store = Store(f"sqlite:///{home}/mongars.sqlite3")
    with store.reading() as session:
        person = session.exec(select(Person.id).where(Person.username == "Ana")).one()

    def chat(client) -> dict:
        return client.post("/api/v1/conversation/chat", json={"message": "What do bees do?"}).json()

    assert chat(ana)["adapter"] == "learnt"
    (id,) = enter(store, home, tiny_models[0], person, 1, read(learnt).weights_sha256)
    swap(store, person, id, None, KIND)
    hers, his = chat(ana), chat(bo)
    assert (hers["adapter"], his["adapter"]) == (id, "learnt") and hers["response"] != his["response"]
    assert ana.get("/api/v1/conversation/history").json()["items"][0]["response"] == hers["response"]
    listed = {model["id"]: model for model in ana.get("/v1/models").json()["data"]}
    assert (listed[id]["parent"], listed[id]["root"]) == ("learnt", "tiny-chat")
    assert id not in {model["id"] for model in bo.get("/v1/models").json()["data"]}
    swap(store, person, None, id, KIND, leaves=RETIRED)
    assert chat(ana)["adapter"] == "learnt"
    store.close()


def test_nothing_of_a_person_stays_in_the_model_when_something_is_taken_back(make_app, monkeypatch):
    with make_app() as client:
        house, forgotten = client.app.state.house, []
        monkeypatch.setattr(house.model.engine, "forget", forgotten.append)
        ana = house.accounts.register("Ana", None)
        key = {"Authorization": f"Bearer {house.sessions.begin(ana).access}"}
        said = client.post("/api/v1/conversation/chat", json={"message": "I keep bees."}, headers=key).json()
        held, liked = house.cortex.adapters._held, {"references": [said["turn_id"]], "score": 1}
        for call in (
            lambda: client.delete(f"/api/v1/feedback/{said['turn_id']}", headers=key),
            lambda: client.delete("/api/v1/memories", params={"confirm": "everything"}, headers=key),
            lambda: client.request("DELETE", "/api/v1/me", json={"confirm": "delete Ana"}, headers=key),
        ):
            client.post("/api/v1/feedback", json=liked, headers=key)  # where the turn is still there
            held[ana.id] = object()
            forgotten.clear()
            answer = call()
            assert answer.is_success, answer.text
            assert set(forgotten) == {ana.id} and ana.id not in held
