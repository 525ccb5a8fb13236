"""mongars as `recall_eval.py` asks for it: the real store, encoder and recall, one home for each conversation."""

import tempfile
from datetime import datetime, timedelta

from mongars.base.settings import read_settings
from mongars.base.store import Store
from mongars.memory.corrections import corrects
from mongars.memory.dates import asked_period, named_days
from mongars.memory.encoding import Reading
from mongars.memory.hippocampus import Hippocampus
from mongars.memory.ranking import stripped
from mongars.memory.words import language_of
from mongars.neurons import model_store
from mongars.neurons.embedder import Embedder
from mongars.serving.accounts import Accounts

_embedder: list[Embedder] = []  # loaded once for all conversations


class Mongars:
    """One person's memory; every speaker's turns are that person's to recall."""

    def open(self, conversation_id: str) -> None:
        if not _embedder:
            settings = read_settings(_env_file=None)
            folder = model_store.locate(settings.embedder, settings.models)
            _embedder.append(Embedder.open(folder, settings.models))
        self.home = tempfile.TemporaryDirectory()
        self.store = Store(f"sqlite:///{self.home.name}/mongars.sqlite3")
        self.store.migrate()
        self.person = Accounts(self.store).register("reader", None).id
        reading = Reading(language_of, named_days, stripped, asked_period, corrects)
        self.hippocampus = Hippocampus(self.store, _embedder[0], reading=reading)
        self.turns: dict[str, str] = {}
        self.last = None

    def add(self, turn_id: str, speaker: str, text: str, said_at: datetime) -> None:
        id = self.hippocampus.add(self.person, "user", text, said_at, speaker)
        self.turns[id], self.last = turn_id, said_at

    def search(self, question: str, k: int) -> list[str]:
        now = self.last + timedelta(days=1)
        found = self.hippocampus.recall(self.person, question, k, now, least=-1).items
        return [self.turns[memory.id] for memory in found]

    def close(self) -> None:
        self.store.close()
        self.home.cleanup()
