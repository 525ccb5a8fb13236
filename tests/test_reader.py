"""The reader: its adapter can be made again to the bit, on any architecture, and it reads."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import clean_environment
from transformers import AutoModelForCausalLM, AutoTokenizer

from mongars.base.settings import read_settings
from mongars.growth.answering import answer_all
from mongars.growth.material import LANGUAGES, composed, texts
from mongars.growth.reading import by_hand, examination, mark
from mongars.neurons import adapters, model_store

ROOT = Path(__file__).parent.parent
MONGARS = [sys.executable, "-c", "from mongars.serving.cli import main; main()"]
SMALL = ["-p", "scenes=24", "-p", "measured=0", "-p", "chat_answers=1", "-p", "checkpoint_seconds=0"]
BY_HAND = json.loads((Path(__file__).parent / "reader_dialogues.json").read_text())


class Lab:
    """A home of its own for runs of train_reader."""

    def __init__(self, home: Path):
        self.home = home
        self.environment = clean_environment() | {"MONGARS_HOME": str(home)}

    def start(self, *words: str) -> subprocess.Popen:
        """The run, begun."""
        return subprocess.Popen(
            [*MONGARS, "run", "train_reader", "--json", *words], env=self.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, *words: str) -> dict:
        """The row of a run that came to its end; what it printed is `said`."""
        process = self.start(*words)
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, out + err
        return json.loads(out) | {"said": err}


@pytest.fixture
def lab(tmp_path) -> Lab:
    return Lab(tmp_path / "home")


@pytest.mark.timeout(600)
def test_the_same_seed_gives_the_same_adapter_also_when_it_was_killed(lab):
    whole = lab.run(*SMALL)
    process = lab.start(*SMALL)
    until, steps = time.monotonic() + 200, []
    while len(steps) < 3:
        assert process.poll() is None and time.monotonic() < until
        newest = max((lab.home / "runs" / "train_reader").iterdir())
        metrics = newest / "metrics.jsonl"
        if newest.name != whole["run"] and metrics.exists():
            steps = metrics.read_bytes().splitlines()
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    resumed = lab.run("--resume", newest.name)
    from_step = int(re.search(r"from step (\d+) of (\d+)", resumed["said"])[1])
    assert 1 <= from_step < whole["result"]["steps"]
    assert resumed["result"]["weights_sha256"] == whole["result"]["weights_sha256"]
    other = lab.run(*SMALL, "-p", "seed=1")
    assert other["result"]["weights_sha256"] != whole["result"]["weights_sha256"]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("architecture", ["qwen2", "qwen3"])
def test_the_recipe_is_good_for_other_bases(lab, architecture):
    row = lab.run("-p", f"base=tiny-{architecture}", "-p", "scenes=6", "-p", "measured=1")
    assert row["status"] == "finished" and row["result"]["rows"]
    (folder,) = lab.home.glob("runs/train_reader/*")
    base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    assert base.config.model_type == architecture
    before = base.model.layers[0].mlp.up_proj.weight.detach().clone()
    merged = adapters.merge(base, folder / "adapter")
    assert not torch.equal(before, merged.model.layers[0].mlp.up_proj.weight)


def strings(value) -> list[str]:
    """All texts inside a piece of the material."""
    if isinstance(value, str):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [text for part in parts for text in strings(part)]


def test_the_dialogues_by_hand_are_judged_and_never_learnt():
    items = by_hand(BY_HAND)
    assert len(items) == 150 and {item.language for item in items} == {"en", "fr"}
    assert all(item.expected.all or item.expected.declines for item in items)
    kinds = ("facts", "yesno", "lists", "compare", "sources", "talk", "chat")
    learnt = [text for kind in kinds for language in LANGUAGES for text in strings(texts(kind, language))]
    learnt += [
        text for language in LANGUAGES for _, s in composed(language) for text in (*s.tell, *s.ask, *s.update)
    ]
    long = [text for text in learnt if len(re.findall(r"\w+", re.sub(r"\{\w+\}", "", text))) > 3]
    assert len(long) > 8000
    templates = "|".join(re.sub(r"\\\{\w+\\\}", ".+", re.escape(text)) for text in long)
    known = re.compile(rf"(?:{templates})", re.IGNORECASE)
    assert known.fullmatch("My boss is called Zork.")  # the pattern finds what is a filled template
    told = {m.text for item in items for m in item.draft.memories}
    assert [text for text in told if known.fullmatch(text)] == []
    asked = {item.draft.question for item in items}
    assert sum(bool(known.fullmatch(text)) for text in asked) <= 3  # "What did my father do for a living?"


@pytest.fixture(scope="module")
def models() -> dict:
    """The default model: as it is, with the reader beside its weights, and with the reader in them."""
    from peft import PeftModel

    settings = read_settings(_env_file=None)
    folder = model_store.locate("SmolLM2-135M-Instruct", settings.models)
    reader = adapters.SHIPPED / "reader"

    def load():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    return {
        "tokenizer": AutoTokenizer.from_pretrained(folder),
        "base": load(),
        "beside": PeftModel.from_pretrained(load(), reader).eval(),
        "merged": adapters.merge(load(), reader).eval(),
    }


def test_merged_and_beside_the_weights_it_says_the_same(models):
    items = examination("near miss", 4, seed=5)
    for item in items:
        ids = models["tokenizer"].apply_chat_template(
            item.messages(), add_generation_prompt=True, return_tensors="pt"
        )
        with torch.inference_mode():
            logits = {name: models[name](**ids).logits for name in ("base", "beside", "merged")}
        assert (logits["beside"] - logits["merged"]).abs().max() <= 1e-4 * logits["merged"].abs().max()
        assert (logits["base"] - logits["merged"]).abs().max() > 1


@pytest.fixture(scope="module")
def right(models):
    """How many of how many questions a model answers right; each is asked once, and takes minutes on one core."""
    rows, known = {"one fact, English": 16, "near miss": 12, "newer wins": 12, "nothing there": 16}, {}
    items = [item for row, n in rows.items() for item in examination(row, n, seed=7)]
    prompts = [item.messages() for item in items]

    def count(name: str) -> tuple[int, int]:
        if name not in known:
            said = answer_all(models[name], models["tokenizer"], prompts, max_new_tokens=32)
            scores = mark(items, said)
            known[name] = sum(scores[row].right for row in rows)
        return known[name], len(items)

    return count


@pytest.mark.timeout(300)
def test_the_base_reads_less_than_half(right):
    base, all_of_them = right("base")
    assert base < 0.5 * all_of_them, base


@pytest.mark.timeout(300)
def test_it_reads_what_the_base_does_not(right):
    (base, _), (merged, all_of_them) = right("base"), right("merged")
    assert merged >= 0.5 * all_of_them and merged >= base + 0.25 * all_of_them, (base, merged)
