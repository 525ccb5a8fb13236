"""The README is made from its notebook, and what it says is so."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from mongars.base.settings import Settings
from mongars.serving import cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_it_is_what_the_notebook_says(tmp_path):
    command = [sys.executable, "-m", "jupyter", "nbconvert", "--log-level=ERROR", "--to", "markdown"]
    subprocess.run([*command, str(ROOT / "nbs/index.ipynb"), "--output-dir", str(tmp_path)], check=True)
    assert (tmp_path / "index.md").read_text() == README, "run `make readme`"


def test_every_module_has_its_line_on_the_map():
    modules = {p.stem[3:] for p in (ROOT / "nbs").glob("*/[0-9][0-9]_*.ipynb")}
    mapped = set(re.findall(r"^  (\w+) {2,}", README, re.MULTILINE))
    assert mapped == modules


def test_every_setting_is_listed_with_its_meaning():
    listed = dict(re.findall(r"\| `MONGARS_(\w+)` \| .*? \| (.*?) \|", README))
    assert listed == {name.upper(): field.description for name, field in Settings.model_fields.items()}


def test_every_command_is_listed():
    named = {c.name or c.callback.__name__ for c in cli.app.registered_commands}
    named |= {group.name for group in cli.app.registered_groups}
    assert set(re.findall(r"\| `mongars (\w+)` \|", README)) == named


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((docs/[^)]+)\)", README))))
def test_what_it_links_to_is_there(target):
    assert (ROOT / target).exists()
