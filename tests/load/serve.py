"""The whole application under uvicorn, in a process forked from one that has imported everything already.

Importing takes ten seconds, which fifty restarts would spend fifty times; what is killed and what starts again (the
database, the models, the network) is as real as otherwise.
"""

import multiprocessing
import os
import signal
import subprocess
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from conftest import Server

PRELOADED = [
    "load.quiet", "load.serve", "onnxruntime", "uvicorn", "transformers.models.bert.modeling_bert",
    "transformers.models.llama.modeling_llama", "mongars.growth.withdrawal", "mongars.serving.departures",
    "mongars.serving.live", "mongars.serving.me_api", "mongars.serving.memories_api", "mongars.serving.openai_api",
    "mongars.serving.feedback_api", "mongars.serving.service",
]  # fmt: skip


class Child:
    """A forked process by the names that `subprocess.Popen` has for things."""

    def __init__(self, process: multiprocessing.Process):
        process.start()
        self.process, self.pid = process, process.pid
        self.terminate = process.terminate

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""
        return self.process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, when it has ended."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired("the server", timeout)
        return self.process.exitcode


class Forked(Server):
    """A server whose every start is a fork."""

    def launch(self) -> Child:
        """A new process of it."""
        fork = multiprocessing.get_context("forkserver")
        fork.set_forkserver_preload(PRELOADED)
        arguments = self.environment, self.port, self.folder / "log"
        return Child(fork.Process(target=serve, args=arguments, daemon=True))


def serve(environment: dict[str, str], port: int, log: Path) -> None:
    """Be the server, until a signal ends it."""
    import uvicorn

    from mongars.base.settings import read_settings
    from mongars.serving.service import whole_app

    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(log.parent)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    handle = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    for stream in (1, 2):
        os.dup2(handle, stream)
    if shift := environment.get("TEST_CLOCK_SHIFT"):
        set_clock(Path(shift))
    uvicorn.run(whole_app(read_settings(_env_file=None)), host="127.0.0.1", port=port, log_level="warning")


def set_clock(shift: Path) -> None:
    """From now on every clock of mongars is wrong by the seconds that stand in a file, whenever they change."""
    import mongars.base.tables as tables

    true = time.time

    def now_utc() -> datetime:  # runs in the module of the other one, which has `wrong`
        return datetime.now(UTC) + wrong()  # noqa: F821

    tables.wrong = lambda: timedelta(seconds=float(shift.read_text()))
    tables.now_utc.__code__ = now_utc.__code__  # one function, by whatever name it was imported
    time.time = lambda: true() + float(shift.read_text())
