"""What the default models do: found on this machine, unchanged, and of use."""

import asyncio
import json
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from mongars.base.settings import read_settings
from mongars.base.store import Store
from mongars.growth.chat_trial import surprise
from mongars.growth.lookups import BOOKS, THINGS, lookups
from mongars.mind.cortex import LIKELY, Ask
from mongars.neurons import model_store, quantised
from mongars.neurons.embedder import Embedder
from mongars.neurons.model_folder import sha256, verify
from mongars.neurons.prompt import Row, compose
from mongars.neurons.sampling import Sampling
from mongars.serving.accounts import Accounts
from mongars.serving.api import sampling_of
from mongars.serving.learners import chat_footing
from mongars.serving.wiring import assemble, open_memory

SETTINGS = read_settings(_env_file=None)
MULTILINGUAL = "multilingual-e5-small"
STORIES = json.loads((Path(__file__).parent.parent / "nbs" / "benchmarks" / "stories.json").read_text())


def on_this_machine(name: str) -> Path:
    """The folder of a model; who did not ask for the multilingual encoder need not have it."""
    folder = SETTINGS.models / name
    if name == MULTILINGUAL and not folder.exists():
        pytest.skip(f"{name} is not in {SETTINGS.models}: MONGARS_EMBEDDER={name} mongars models fetch")
    return model_store.locate(name, SETTINGS.models)


@pytest.mark.parametrize("name", model_store.SOURCES)
def test_the_files_are_as_they_were_made(name):
    assert verify(on_this_machine(name)) == []


def test_the_encoder_is_the_published_one():
    folder = model_store.locate("all-MiniLM-L6-v2", SETTINGS.models)
    source = model_store.SOURCES["all-MiniLM-L6-v2"]
    assert sha256(folder / "model.safetensors") == source.weights_sha256


def test_the_encoder_in_eight_bits_is_the_same_one(tmp_path):
    """Made anew from the fetched weights: the export must not lose what they know, nor mix those who share a run."""
    folder = model_store.locate("all-MiniLM-L6-v2", SETTINGS.models)
    original = Embedder(folder)
    embedder = Embedder(folder, quantised.make(folder, tmp_path, lambda line: None))
    assert embedder.fingerprint == original.fingerprint.replace("float32", "int8")
    texts = [story["told"] for story in STORIES["stories"]] + STORIES["unrelated"] + ["蜂", "Où vit-elle ?"]
    together = embedder.embed(texts)
    assert (np.sum(together * original.embed(texts), axis=1) > 0.995).all()
    alone = np.concatenate([embedder.embed([text]) for text in texts])
    assert np.allclose(together, alone, atol=1e-4)


def test_the_middle_of_a_long_text_is_found():
    folder = model_store.locate("all-MiniLM-L6-v2", SETTINGS.models)
    embedder = Embedder.open(folder, SETTINGS.models)
    filler = "The committee approved the budget for roads and bridges in the northern districts. "
    told = "My sister keeps bees in Annecy. "
    text = filler * 600 + told + filler * 600
    parts = embedder.parts(text)
    assert len(text) > 99_000 and embedder.count(parts[:1]) <= embedder.longest
    question = embedder.embed(["Where does my sister have her bees?"])[0]
    near = embedder.embed(parts) @ question
    assert told in parts[int(near.argmax())] and near.max() > np.sort(near)[-4] + 0.1


def test_alike_meanings_are_close():
    embedder = Embedder.open(model_store.locate("all-MiniLM-L6-v2", SETTINGS.models), SETTINGS.models)
    one, alike, other = embedder.embed(
        ["The cat sat on the mat.", "A kitten rested on a rug.", "Interest rates rose again."]
    )
    assert one @ alike > 0.5 > 0.2 > one @ other and embedder.dimension == 384
    assert np.isclose(np.linalg.norm(one), 1, atol=1e-5)


TOLD = {
    "My cat is called Biscuit.": "What is my cat's name?",
    "I work as a nurse in Lyon.": "what's my job?",
    "My sister Emma lives in Bristol.": "Where does my sister live?",
    "I am allergic to peanuts.": "What food must I avoid?",
    "We fly to Lisbon on 12 May.": "when do we fly to lisbon?",
    "The code of the gate is 47B12.": "what is the gate code?",
    "I prefer tea to coffee.": "Do I like coffee?",
    "My car is a red Volvo.": "What colour is my car?",
}


@pytest.mark.parametrize("many", [2, 8])
def test_a_memory_is_surer_of_what_it_was_told_than_of_anything_else(tmp_path, many):
    """With few things told one at a time, as in the first days of an assistant."""
    store = Store(f"sqlite:///{tmp_path}/memory.sqlite3")
    store.migrate()
    memory = open_memory(SETTINGS, store)
    ana, noon = Accounts(store).register("Ana", "correct horse").id, datetime(2026, 11, 1, 12, tzinfo=UTC)
    for n, told in enumerate(list(TOLD)[:many]):
        memory.add(ana, "user", told, noon + timedelta(days=n))
    later, sure, unsure = noon + timedelta(days=30), {}, {}
    for told, question in list(TOLD.items())[:many]:
        shown = memory.recall(ana, question, 2, later, likely=LIKELY)
        assert told in [item.text for item in shown.items], (question, shown.confidence)
        sure[question] = shown.confidence
    for question in ("How are you?", "Tell me a joke.", "Write a poem about autumn.", "Hello!"):
        shown = memory.recall(ana, question, 2, later, likely=LIKELY)
        assert shown.items == (), (question, shown)
        unsure[question] = shown.confidence
    assert max(unsure.values()) < min(sure.values()), (sure, unsure)
    memory.embedder.close()


def test_the_multilingual_encoder_finds_across_words_and_languages():
    """Its cosines are spread as the default encoder's are, so that what is unlike is not taken for alike."""
    embedder = Embedder.open(on_this_machine(MULTILINGUAL), SETTINGS.models)
    assert embedder.runtime == "ONNX Runtime, int8" and embedder.dimension == 384
    told = [
        "Ma sœur élève des abeilles à Annecy.",
        "Le dentiste m'a donné rendez-vous mardi.",
        "Je repeins la clôture.",
    ]
    asked = ["Qui s'occupe de ruches ?", "When do I see the dentist?", "Was streiche ich gerade neu an?"]
    likeness = embedder.embed(asked) @ embedder.embed(told).T
    assert likeness.argmax(1).tolist() == [0, 1, 2]
    assert np.median(likeness[~np.eye(3, dtype=bool)]) < 0.28 < np.diag(likeness).mean()
    assert embedder._read([""])[0].tokens == ["<s>", "▁que", "ry", ":", "</s>"]
    composed, apart = embedder.embed(["café", "cafe\u0301"])
    assert composed @ apart > 0.9999


@pytest.fixture(scope="module", params=["transformers", "auto"])
def answers(request, tmp_path_factory) -> list[dict]:
    """Eight stories told and asked after, each by a person of its own: with recall, and without; by each engine."""
    home = tmp_path_factory.mktemp("stories")
    settings = read_settings(
        _env_file=None,
        home=home,
        model="SmolLM2-135M-Instruct",
        embedder="all-MiniLM-L6-v2",
        engine=request.param,
    )
    stories = STORIES["stories"][:8]

    async def say(house, person: str, text: str, sampling: Sampling):
        return [event async for event in house.cortex.turn(Ask(person, text, sampling=sampling))][-1]

    async def run() -> list[dict]:
        rows, house = [], assemble(settings)
        short, whole = Sampling(max_new_tokens=2), sampling_of(settings, max_new_tokens=40)
        for n, story in enumerate(stories):
            person = house.accounts.register(f"person{n}", None).id
            heard = await say(house, person, story["told"], whole)
            for text in STORIES["unrelated"][n : n + 3]:
                await say(house, person, text, short)
            row = {"told": story["told"], "heard": heard.turn.response}
            for name, memories in (("without", 0), ("with", settings.most_memories)):
                house.cortex.memories = memories
                event = await say(house, person, story["asked"], whole)
                row[name] = any(word in event.turn.response.lower() for word in story["expected"])
                row["recalled"] = [m.text for m in event.memories]
            house.cortex.memories = settings.most_memories
            rows.append(row)
        await house.close()
        return rows

    return asyncio.run(run())


def test_who_tells_something_is_not_told_that_they_never_did(answers):
    denied = [
        row["heard"] for row in answers if re.search("don't know|haven't|isn't part|sorry", row["heard"])
    ]
    assert len(denied) <= 1, denied


@pytest.mark.timeout(300)
def test_what_was_told_is_recalled(answers):
    assert all(row["recalled"][0] == row["told"] for row in answers)


def test_the_model_answers_from_what_is_recalled_and_from_nothing_else(answers):
    right, guessed = sum(row["with"] for row in answers), sum(row["without"] for row in answers)
    assert right >= 6 and guessed <= 1, answers


def test_a_lookup_is_easy_for_who_reads_and_for_nobody_else():
    """What the gate asks of a chat adapter: the same answers with what was told, with another thing's, with nothing."""
    footing = chat_footing(SETTINGS)
    asked, model = lookups("Ana")[::3], footing.model()

    def nats(shown) -> float:
        drafts = [replace(one.lesson.draft, memories=shown(one.lesson.draft.memories)) for one in asked]
        rows = [Row(compose(draft), one.lesson.answer) for draft, one in zip(drafts, asked, strict=True)]
        begun = [one.begun for one in asked]
        return float(surprise(model, footing.tokenizer, rows, end=False, begun=begun).mean())

    def exchanged(memories):
        """Each thing with what was said of the one before it."""
        texts = [memory.text for memory in memories]
        names = [next(thing for thing in (*THINGS, *BOOKS) if thing in text) for text in texts]
        others = [text.replace(names[n - 1], names[n]) for n, text in enumerate(texts[-1:] + texts[:-1])]
        return [replace(memory, text=text) for memory, text in zip(memories, others, strict=True)]

    read, misled, blind = (nats(shown) for shown in (lambda its: its, exchanged, lambda its: ()))
    assert read < 0.2 and misled > 3 * read and blind > read + 5, (read, misled, blind)
