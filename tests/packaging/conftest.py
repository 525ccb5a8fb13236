"""What is packed is made from a copy of the tracked files, so that nothing else slips in and nothing is left behind."""

import shutil
import subprocess
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def source(tmp_path_factory) -> Path:
    """A copy of the tracked files, and one experiment more, which is quickly done."""
    folder = tmp_path_factory.mktemp("source")
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True
    ).stdout
    for name in filter(None, tracked.split("\0")):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target)
    stand_in = folder / "mongars" / "adapters" / "stand-in"  # an adapter, to see that such are packed
    stand_in.mkdir(parents=True)
    for part in ("adapter_config.json", "adapter_model.safetensors", "card.json"):
        (stand_in / part).write_text("{}")
    experiments = folder / "nbs" / "experiments"
    experiments.mkdir(exist_ok=True)
    cells = [
        "out_dir = None\nword = 'hello'",
        "from mongars.base import ledger\nledger.join(out_dir).finish({word: 1})",
    ]
    quick = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    quick.metadata["kernelspec"] = {"name": "python3", "display_name": "python3", "language": "python"}
    quick.cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(quick, experiments / "quick.ipynb")
    return folder
