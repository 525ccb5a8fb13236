"""What `docs/security.md` and `docs/websocket.md` promise is tested by tests that are there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/security.md").read_text()
SOCKET = (ROOT / "docs/websocket.md").read_text()


@pytest.mark.parametrize("file, test", sorted(set(re.findall(r"`(test_\w+\.py)::(test_\w+)`", PAGE))))
def test_a_test_that_is_named_is_there(file, test):
    assert re.search(rf"^def {test}\(", (ROOT / "tests" / file).read_text(), re.MULTILINE)


def test_every_row_of_what_is_shown_names_a_test():
    shown = PAGE.split("## What a test shows")[1].split("## What remains")[0]
    rows = [line for line in shown.splitlines() if line.startswith("| ") and "---" not in line][1:]
    assert len(rows) > 20 and all("::test_" in row for row in rows)


def test_the_frames_that_are_described_are_the_ones_there_are():
    code = "".join((ROOT / f"mongars/serving/{name}.py").read_text() for name in ("channels", "live"))
    said = set(re.findall(r'"type": "(\w+)"', code))
    assert said == set(re.findall(r'"type": "(\w+)"', SOCKET)) - {"chat", "ping"}
    codes = set(map(int, re.findall(r"\b(4\d{3}|10\d\d)\b", code)))
    assert codes - {1005, 1024} <= set(map(int, re.findall(r"\b(4\d{3}|10\d\d)\b", SOCKET)))
    tests = set(
        re.findall(r"^def (test_\w+)\(", (ROOT / "tests/test_websocket.py").read_text(), re.MULTILINE)
    )
    named = set(re.findall(r"`(test_\w+)`", SOCKET))
    assert named and named <= tests, named - tests
