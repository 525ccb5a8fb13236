"""Recall finds more than its parts, on conversations for which nothing was fitted."""

import json
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from recall_adapter import Mongars

from mongars.memory import ranking
from mongars.memory.features import FEATURES

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


@pytest.mark.timeout(300)
@pytest.mark.parametrize("conversation", FRENCH, ids=lambda c: c["id"])
def test_french_is_found_better_than_by_its_words_alone(conversation, monkeypatch):
    shipped, real = found_among_ten(conversation), ranking.read_fusion()
    words = np.array([float(name == "bm25") for name in FEATURES], np.float32)
    by_words = ranking.Fusion(words, words, *list(vars(real).values())[2:])
    monkeypatch.setattr(ranking, "read_fusion", lambda: by_words)
    assert shipped > found_among_ten(conversation) + 0.05
