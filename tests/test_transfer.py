"""An import survives `kill -9`, and reads far faster than a memory can take it in."""

import json
import signal
import sqlite3
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mongars.memory.importing import Importer

NOW = datetime(2026, 1, 1, tzinfo=UTC)
TURNS = 20_000


class Drawer:
    """A memory in a SQLite file: the same source twice is one, a batch is one transaction."""

    def __init__(self, path: Path):
        self.rows = sqlite3.connect(path, isolation_level=None)
        self.rows.execute("pragma journal_mode=wal")
        self.rows.execute(
            "create table if not exists told (person, source, text, primary key (person, source))"
        )

    def add_many(self, person, told):
        self.rows.execute("begin immediate")
        put = "insert or ignore into told values (?, ?, ?)"
        ids = [
            one.source if self.rows.execute(put, (person, one.source, one.text)).rowcount else None
            for one in told
        ]
        self.rows.execute("commit")
        return ids

    def count(self) -> int:
        return self.rows.execute("select count(*) from told").fetchone()[0]


SLOWLY = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_transfer import NOW, Drawer, Importer
drawer = Drawer(Path(sys.argv[2]))
Importer(drawer).run("ana", Path(sys.argv[3]), NOW, lambda done, total, seconds: time.sleep(0.02))
"""


@pytest.fixture
def export(tmp_path):
    """ChatGPT conversations of forty turns each."""

    def talk(number: int) -> dict:
        nodes = {
            f"{number}-{i}": {
                "parent": f"{number}-{i - 1}",
                "message": {
                    "author": {"role": "user" if i % 2 == 0 else "assistant"},
                    "content": {"content_type": "text", "parts": [f"turn {i} of {number}"]},
                    "create_time": 1.7e9 + i,
                },
            }
            for i in range(40)
        }
        return {"id": f"{number}", "mapping": nodes, "current_node": f"{number}-39"}

    path = tmp_path / "conversations.json"
    path.write_text(json.dumps([talk(n) for n in range(TURNS // 40)]))
    return path


def test_nothing_is_lost_by_kill_9_and_a_second_run(export, tmp_path):
    command = [
        sys.executable,
        "-c",
        SLOWLY,
        str(Path(__file__).parent),
        str(tmp_path / "told.db"),
        str(export),
    ]
    first = subprocess.Popen(command)
    drawer, until = Drawer(tmp_path / "told.db"), time.monotonic() + 240
    try:
        while drawer.count() < 2000:
            assert first.poll() is None and time.monotonic() < until
            time.sleep(0.01)
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    kept = drawer.count()
    assert 2000 <= kept < TURNS and kept % 256 == 0, "whole batches, and not all of them"
    second = Importer(drawer).run("ana", export, NOW)
    assert (second.added, second.already_there, drawer.count()) == (TURNS - kept, kept, TURNS)
    third = Importer(drawer).run("ana", export, NOW)
    assert (third.added, third.already_there) == (0, TURNS)


def test_an_import_that_adds_nothing_is_quick(export, tmp_path):
    drawer = Drawer(tmp_path / "told.db")
    Importer(drawer).run("ana", export, NOW)
    again = Importer(drawer).run("ana", export, NOW)
    assert again.added == 0 and TURNS / again.seconds > 1_500, f"{TURNS / again.seconds:,.0f} turns/s"
