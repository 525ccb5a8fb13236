"""Every notebook runs: its examples and asserts are the tests of its module."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLAGS = {"slow", "gpu", "network"} - set(os.environ.get("MONGARS_TEST_FLAGS", "").split())
NOTEBOOKS = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
RUN = """
import sys
from pathlib import Path
from nbdev.test import test_nb
ok, seconds = test_nb(Path(sys.argv[1]), skip_flags=sys.argv[2].split(), basepath=Path.cwd())
sys.exit(not ok)
"""


def run_notebook(path: Path, flags: set[str] = FLAGS) -> subprocess.CompletedProcess:
    """Run a notebook's cells in a process of its own, except those with a flag."""
    command = [sys.executable, "-c", RUN, str(path), " ".join(sorted(flags))]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: str(p.relative_to(ROOT / "nbs")))
def test_the_notebook_runs(path):
    run = run_notebook(path)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]


def test_a_failing_cell_is_seen(tmp_path):
    import nbformat

    broken = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("assert 1 == 2")])
    nbformat.write(broken, tmp_path / "broken.ipynb")
    assert run_notebook(tmp_path / "broken.ipynb").returncode != 0
