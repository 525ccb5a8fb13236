"""French conversations in which a question has words of its answer, made from the relations of the dialogue generator.

`python tests/french_words.py FILE` writes them for `nbs/experiments/fit_recall.ipynb`. Every thing is asked for in one
of the ways in which the generator asks; another person's thing of the same name, and everyday talk, stand beside it.
"""

import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

from mongars.growth.material import fill, sentence, situations, texts, things, value

NAMES = ("Camille", "Nadia", "Hugo")
OTHERS = ("Inès", "Bastien", "Odile", "Marius", "Salomé", "Yann")


def conversation(number: int, asked: int = 80, beside: int = 60) -> dict:
    """One person's turns of some weeks, `asked` of them asked for, `beside` about things of others; chatter between."""
    rng = Random(number)
    every = (*situations("fr", True), *situations("fr", False), *things("fr"))
    chosen = rng.sample(list({(s.about, s.topic): s for s in every}.values()), asked)
    told = []  # (text, question or None)
    for n, situation in enumerate(chosen):
        words = value(situation.value, rng, "fr", None)
        question = fill(rng.choice(situation.ask), "fr", v=words, p=rng.choice(OTHERS))
        told.append((fill(rng.choice(situation.tell), "fr", v=words, p=rng.choice(OTHERS)), question))
        if n < beside:
            other = value(situation.value, rng, "fr", None)
            told.append((fill(rng.choice(situation.tell_other), "fr", v=other, p=rng.choice(OTHERS)), None))
    chatter = [text for text in texts("chat", "fr")["prompt"] if "?" not in text]
    told += [(text, None) for text in rng.sample(chatter, min(40, len(chatter)))]
    rng.shuffle(told)
    said_at, turns, questions = datetime(2026, 3, 2, 18, tzinfo=UTC), [], []
    for n, (text, question) in enumerate(told):
        said_at += timedelta(days=1) if n % 12 == 0 else timedelta(minutes=2)
        turn = {"id": f"{number}:{n}", "speaker": NAMES[number % 3], "text": sentence(text)}
        turns.append(turn | {"said_at": said_at.isoformat()})
        if question:
            questions.append({"text": sentence(question), "evidence": [turn["id"]]})
    return {"id": f"mots-{number}", "turns": turns, "questions": questions}


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(
        json.dumps([conversation(n) for n in range(3)], ensure_ascii=False, indent=1)
    )
