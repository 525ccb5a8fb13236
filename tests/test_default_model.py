"""What the default models do: found on this machine, unchanged, and of use."""

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest

from mongars.base.settings import read_settings
from mongars.mind.cortex import Ask
from mongars.neurons import model_store, quantised
from mongars.neurons.embedder import Embedder
from mongars.neurons.generation import Sampling
from mongars.neurons.model_folder import sha256, verify
from mongars.serving.api import sampling_of
from mongars.serving.wiring import assemble

SETTINGS = read_settings(_env_file=None)
STORIES = json.loads((Path(__file__).parent.parent / "nbs" / "benchmarks" / "stories.json").read_text())


@pytest.mark.parametrize("name", model_store.SOURCES)
def test_the_files_are_as_they_were_made(name):
    folder = model_store.locate(name, SETTINGS.models)
    assert verify(folder) == []


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
            for text in [story["told"], *STORIES["unrelated"][n : n + 3]]:
                await say(house, person, text, short)
            row = {"told": story["told"]}
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


@pytest.mark.timeout(300)
def test_what_was_told_is_recalled(answers):
    assert all(row["recalled"][0] == row["told"] for row in answers)


def test_the_model_answers_from_what_is_recalled_and_from_nothing_else(answers):
    right, guessed = sum(row["with"] for row in answers), sum(row["without"] for row in answers)
    assert right >= 6 and guessed <= 1, answers
