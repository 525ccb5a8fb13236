"""Recall finds more than its parts, in French too."""

import json
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import recall_adapter
from french_words import conversation as in_the_same_words
from recall_adapter import Mongars

from mongars.base.settings import read_settings
from mongars.memory import ranking
from mongars.memory.features import FEATURES
from mongars.neurons.embedder import Embedder

FRENCH = json.loads((Path(__file__).parent / "french_recall.json").read_text())


def found_among_ten(conversation: dict, k: int = 10) -> float:
    """The share of a conversation's evidence that is among the first ten, averaged over its questions."""
    memory = Mongars()
    memory.open(conversation["id"])
    for turn in conversation["turns"]:
        memory.add(turn["id"], turn["speaker"], turn["text"], datetime.fromisoformat(turn["said_at"]))
    shares = []
    for question in conversation["questions"]:
        found = memory.search(question["text"], k)
        shares.append(sum(turn in found for turn in question["evidence"]) / len(question["evidence"]))
    memory.close()
    return sum(shares) / len(shares)


def by_words_alone(conversation: dict, monkeypatch) -> float:
    """The same where a memory's score is its BM25."""
    words, real = np.array([float(name == "bm25") for name in FEATURES], np.float32), ranking.read_fusion()
    by_words = ranking.Fusion(words, words, *list(vars(real).values())[2:])
    with monkeypatch.context() as changed:
        changed.setattr(ranking, "read_fusion", lambda fingerprint: by_words)
        return found_among_ten(conversation)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("conversation", FRENCH, ids=lambda c: c["id"])
def test_french_is_found_better_than_by_its_words_alone(conversation, monkeypatch):
    assert found_among_ten(conversation) > by_words_alone(conversation, monkeypatch) + 0.05


@pytest.mark.timeout(300)
def test_french_in_the_words_of_the_answer_is_found_no_worse_than_by_them(monkeypatch):
    """Nothing was fitted on these."""
    conversation = in_the_same_words(0, asked=40, beside=30)
    assert found_among_ten(conversation) >= by_words_alone(conversation, monkeypatch)


@pytest.mark.timeout(300)
def test_the_multilingual_encoder_finds_french_in_other_words(monkeypatch):
    settings = read_settings(_env_file=None)
    folder = settings.models / "multilingual-e5-small"
    if not folder.exists():
        pytest.skip(
            f"{folder.name} is not on this machine: MONGARS_EMBEDDER={folder.name} mongars models fetch"
        )
    monkeypatch.setattr(recall_adapter, "_embedder", [Embedder.open(folder, settings.models)])
    assert found_among_ten(FRENCH[1]) > by_words_alone(FRENCH[1], monkeypatch) + 0.25
