"""Pairs of turns written by hand, English and French: which new turn corrects the earlier one."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from mongars.memory.corrections import corrects

LINES = (Path(__file__).parent / "correction_pairs.txt").read_text(encoding="utf-8").splitlines()
PAIRS = [line.split("|") for line in LINES if not line.startswith("#")]
FIRST = datetime(2023, 5, 1, tzinfo=UTC)


def turn(number: int, text: str, said_at: datetime) -> SimpleNamespace:
    return SimpleNamespace(id=str(number), text=text, speaker="Ana", said_at=said_at, conversation="c")


def judged(via: str, old: str, new: str) -> bool:
    earlier = turn(1, old, FIRST)
    if via == "p":
        return corrects(turn(2, new, FIRST + timedelta(minutes=1)), [], earlier) == "1"
    return corrects(turn(2, new, FIRST + timedelta(days=19)), [(earlier, 0.6)]) == "1"


@pytest.mark.parametrize("half", ["held", "open"])
def test_corrections_are_found_and_hardly_anything_else(half):
    pairs = [pair for pair in PAIRS if pair[0] == half]
    assert len(pairs) >= 60 and {pair[1] for pair in pairs} == {"en", "fr"}
    answers = [(pair[2] == "yes", judged(*pair[3:])) for pair in pairs]
    right = sum(true and found for true, found in answers)
    assert right / sum(found for _, found in answers) >= 0.97
    assert right / sum(true for true, _ in answers) >= 0.9


def of_another(old: str) -> str:
    """The same said of a neighbour."""
    for own, other in [
        ("My ", "My neighbour's "),
        ("Our ", "Our neighbour's "),
        ("I live", "My neighbour lives"),
    ]:
        if old.startswith(own):
            return old.replace(own, other, 1)
    for own in (
        "Mon frère",
        "Ma mère",
        "Mon chien",
        "Ma sœur",
        "Mon patron",
        "Mon fils",
        "J'habite",
        "Je travaille",
    ):
        if old.startswith(own):
            verb = {"J'habite": " habite", "Je travaille": " travaille"}.get(own, "")
            return old.replace(own, "Mon voisin" + verb, 1)
    return ""


def test_a_fact_of_another_subject_is_never_replaced():
    pairs = [pair for pair in PAIRS if pair[2] == "yes" and pair[3] == "c" and of_another(pair[4])]
    assert len(pairs) >= 30
    wrong = [(of_another(old), new) for *_, via, old, new in pairs if judged(via, of_another(old), new)]
    assert not wrong
