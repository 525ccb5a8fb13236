"""Imports go down only: the house keeps its floors."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = {"base": 0, "neurons": 1, "memory": 2, "senses": 2, "mind": 3, "growth": 4, "peers": 4, "serving": 5}
STRANGERS = {("growth", "peers"), ("peers", "growth"), ("memory", "senses"), ("senses", "memory")}
HEAVY = {"torch", "transformers", "fastapi", "gradio", "bentoml", "starlette"}
MODULES = sorted(
    p for p in (ROOT / "mongars").rglob("*.py") if p.parent.name in FLOORS and p.name != "__init__.py"
)


def imported(path: Path) -> set[str]:
    """Full names of what a module imports anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = (
                ["mongars", path.parent.name][: 3 - node.level] if node.level else []
            )  # nbdev writes relative ones
            module = ".".join([*package, *filter(None, [node.module])])
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


def breaches(room: str, names: set[str]) -> list[str]:
    """What a module of a room may not import."""
    wrong = []
    for name in names:
        parts = name.split(".")
        other = parts[1] if parts[0] == "mongars" and len(parts) > 1 else None
        if other in FLOORS and (FLOORS[other] > FLOORS[room] or (room, other) in STRANGERS):
            wrong.append(name)
        if room == "growth" and other == "mind":
            wrong.append(name)
        if room == "base" and parts[0] in HEAVY:
            wrong.append(name)
    return wrong


def test_there_are_modules_to_look_at():
    assert len(MODULES) > 15
    assert {p.parent.name for p in MODULES} >= {"base", "neurons", "memory", "mind", "serving"}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: f"{p.parent.name}.{p.stem}")
def test_imports_go_down_only(path):
    assert breaches(path.parent.name, imported(path)) == []


def test_a_breach_is_seen():
    assert breaches("memory", {"mongars.mind.cortex.Cortex"}) and breaches("base", {"torch.nn"})
    assert breaches("growth", {"mongars.mind.cortex"}) and breaches("growth", {"mongars.peers.envelope"})
    assert not breaches("mind", {"mongars.memory.hippocampus", "torch", "mongars.mind.bouche"})


def test_only_cortex_calls_the_others_of_its_floor():
    for path in MODULES:
        if path.parent.name == "mind" and path.stem != "cortex":
            assert not [name for name in imported(path) if name.startswith("mongars.mind")], path


def test_only_the_modules_that_choose_know_the_engines():
    knowing = {
        f"{p.parent.name}.{p.stem}"
        for p in MODULES
        if any(
            n.startswith(("mongars.neurons.generation.T", "mongars.neurons.llama_engine"))
            for n in imported(p)
        )
    }
    assert knowing == {"neurons.language_model", "neurons.engines"}


def test_every_module_has_its_notebook():
    made = {(p.parent.name, p.stem) for p in MODULES}
    told = {(p.parent.name, p.stem[3:]) for p in (ROOT / "nbs").glob("*/[0-9][0-9]_*.ipynb")}
    assert made == told
