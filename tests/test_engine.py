"""The fast engine on the default model: what the reference says, with the reader in effect, for many at once."""

import asyncio
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from mongars.base.settings import read_settings
from mongars.growth.marks import right
from mongars.growth.reading import examination
from mongars.neurons import adapters, engines, gguf_form, model_store
from mongars.neurons.generation import TransformersEngine
from mongars.neurons.language_model import LanguageModel
from mongars.neurons.sampling import Sampling

SETTINGS = read_settings(_env_file=None)
NAME = "SmolLM2-135M-Instruct"
READER = adapters.SHIPPED / "reader"
ITEMS = [item for row in ("one fact, English", "near miss") for item in examination(row, 2, seed=7)]

if obstacle := engines.unfit(model_store.locate(NAME, SETTINGS.models)):
    pytest.skip(obstacle, allow_module_level=True)


def wish(**changes) -> engines.Wish:
    """The default model as it is served."""
    chosen = {"name": NAME, "adapter": READER, "engine": "llama", "at_once": 8} | changes
    return engines.Wish(model_store.locate(NAME, SETTINGS.models), SETTINGS.models, **chosen)


def say(engine, messages, owner=None, **options):
    """An answer, and how it ended."""
    *pieces, finish = engine.generate(messages, Sampling(**{"max_new_tokens": 16, **options}), owner=owner)
    return "".join(pieces).strip(), finish


@pytest.fixture(scope="module")
def llama():
    chosen = engines.prepare(wish(), lambda line: None)
    engine = engines.load(wish(), chosen)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def references() -> dict:
    """What transformers says to a few questions: with the reader, and without."""
    said, threads = {}, torch.get_num_threads()
    torch.set_num_threads(1)  # two that wait awake for each other stand still on a busy machine
    for name, adapter in (("reader", READER), ("plain", None)):
        engine = TransformersEngine(wish().folder, NAME, adapter)
        said[name] = [say(engine, item.messages()) for item in ITEMS[:3]]
    torch.set_num_threads(threads)
    return said


def test_auto_takes_it_for_the_default_model_and_says_why():
    chosen = engines.choose(wish(engine="auto"))
    assert chosen.engine == "llama" or "GPU" in chosen.why
    assert engines.choose(wish(engine="auto", name=None)).engine == "transformers"


@pytest.mark.timeout(180)
def test_the_reader_is_in_effect(llama, references):
    answers = [say(llama, item.messages()) for item in ITEMS[:3]]
    same = {
        name: sum(a == b for a, b in zip(answers, said, strict=True)) for name, said in references.items()
    }
    assert same["reader"] == 3 and same["plain"] <= 1, (answers, references)  # one is easy enough for both
    probes = json.loads(
        (gguf_form.place(wish().folder, SETTINGS.models, READER) / "manifest.json").read_text()
    )["probes"]
    assert probes["to_merged"] > 0.999 and 1 - probes["to_merged"] < 0.5 * (1 - probes["to_plain"])


def test_it_reads_and_many_are_answered_at_once(llama):
    with ThreadPoolExecutor(8) as people:
        answers = [text for text, _ in people.map(lambda item: say(llama, item.messages()), ITEMS)]
    assert sum(right(a, item.expected) for a, item in zip(answers, ITEMS, strict=True)) >= len(ITEMS) // 2, (
        answers
    )


def test_a_second_turn_reads_only_what_is_new_and_only_for_the_same_person(llama):
    first = ITEMS[0].messages()
    read, counted = llama._reader.read, []
    llama._reader.read = lambda parts: counted.append(sum(len(part[2]) for part in parts)) or read(parts)
    try:
        answer, finish = say(llama, first, owner="ana", max_new_tokens=8)
        more = [*first, {"role": "assistant", "content": answer}, {"role": "user", "content": "And why?"}]
        whole = llama.count(more)
        work = {}
        for owner in ("ana", "bo", None):
            counted.clear()
            say(llama, more, owner=owner, max_new_tokens=1)
            work[owner] = sum(counted)
    finally:
        llama._reader.read = read
    assert work["ana"] < 0.35 * whole and work["bo"] == work[None] == whole


def test_a_full_queue_is_told_and_a_place_is_free_at_once_when_its_holder_leaves(llama):
    model = LanguageModel(llama, at_once=2, waiting=0)
    ask = ITEMS[0].messages()

    async def crowd() -> tuple:
        async with model.place("ana") as one, model.place("bo") as two:
            busy = None
            try:
                async with model.place():
                    pass
            except Exception as error:
                busy = error
            stream = one.stream(ask, Sampling(max_new_tokens=400, temperature=1))
            await anext(stream)
            await stream.aclose()
            began = time.monotonic()
            while llama._running and time.monotonic() - began < 10:
                await asyncio.sleep(0.01)
            freed = time.monotonic() - began
            rest = [piece async for piece in two.stream(ask, Sampling(max_new_tokens=4))]
        return busy, freed, rest

    busy, freed, rest = asyncio.run(crowd())
    assert busy.status == 429 and busy.retry_after >= 1
    assert freed < 5 and rest[-1].completion_tokens <= 4
    assert threading.active_count() < 50
