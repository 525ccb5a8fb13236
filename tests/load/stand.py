"""A house to be tried hard: a server over a home of its own, a fast model server, and people."""

import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

from conftest import Server, clean_environment, free_port

from load.serve import Forked
from load.turns import Turn, violations
from load.visitors import Client, Person, whole_history

PASSWORD = "correct horse"


class Stand:
    """A house, started, with its model server; both end with the block.

    `by`: `forked` starts in a second, `bentoml` is what `mongars up` starts, with the page. Its time can be set wrong
    with `clock`.
    """

    def __init__(self, by: str = "forked", folder: Path | None = None, clock: bool = False, **settings):
        self.folder = folder or Path(tempfile.mkdtemp(prefix="mongars-load-"))
        self.mine = folder is None
        self.home, port = self.folder / "home", free_port()
        self.model = subprocess.Popen(
            [sys.executable, "-m", "load.fake_model"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )  # fmt: skip
        chosen = {
            "home": self.home, "model": self.model.stdout.readline().strip(), "port": port, "answers_at_once": 8,
            "page": by == "bentoml",
        } | settings  # fmt: skip
        environment = clean_environment() | {f"MONGARS_{k.upper()}": str(v) for k, v in chosen.items()}
        if clock:
            environment["TEST_CLOCK_SHIFT"] = str(self.folder / "shift")
            (self.folder / "shift").write_text("0")
        kind = Forked if by == "forked" else Server
        self.server = kind([], environment, port, self.folder)
        if by == "bentoml":
            self.server.by_bentoml()

    def __enter__(self) -> "Stand":
        self.server.start()
        return self

    def __exit__(self, *error) -> None:
        self.server.stop()
        self.model.stdin.close()
        self.model.wait()
        if self.mine:
            shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def database(self) -> Path:
        return self.home / "mongars.sqlite3"

    def people(self, count: int, name: str = "person") -> list[Person]:
        """So many people with accounts and API keys, each at an address of their own."""
        from mongars.base.store import Store
        from mongars.serving.accounts import Accounts

        store = Store(f"sqlite:///{self.database}")
        accounts = Accounts(store)
        made, name = [], name.replace(" ", ".")
        for n in range(count):
            person = accounts.register(f"{name}{n}", PASSWORD)
            key = accounts.issue(person, "api_key")
            made.append(Person(person.username, key, PASSWORD, f"127.0.{1 + n // 250}.{1 + n % 250}"))
        store.close()
        return made

    def gauges(self) -> dict[str, float]:
        """What `/metrics` says, by name and labels."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=60) as answer:
            lines = answer.read().decode().splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    async def wrong(self, people: list[Person], turns: list[Turn]) -> list[str]:
        """What the histories of all say that cannot be, after what they were told."""
        history = {}
        for person in people:
            client = Client(self.url, person)
            history[person.name] = await whole_history(client)
            await client.close()
        return violations(turns, history)
