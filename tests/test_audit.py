"""What is written down of who came in, who was turned away and what was changed for good; and what is not."""

import json
import stat

import pytest
from starlette.websockets import WebSocketDisconnect

from mongars.serving.doors import COOKIE

PASSWORD, TYPED, TEXT = "canary horse 1", "canary-password-as-a-name", "the canary sings"


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture(scope="module")
def app(make_app):
    with make_app(page=True) as client:
        yield client


@pytest.fixture
def told(app):
    """What is written down from here on."""
    audit = app.app.state.house.audit
    before = len(audit.lines())
    return lambda: audit.lines()[before:]


def token(app, name: str, password: str = PASSWORD) -> str:
    app.post("/api/v1/user/register", json={"username": name, "password": password})
    answer = app.post("/token", data={"username": name, "password": password})
    app.cookies.clear()
    return answer.json()["access_token"]


def only(lines: list[dict], what: str) -> dict:
    [line] = [line for line in lines if line["what"] == what]
    return line


def test_each_way_in_is_written_down(app, told):
    accounts = app.app.state.house.accounts
    ana = bearer(token(app, "audit.ana"))
    id = app.get("/api/v1/user/me", headers=ana).json()["id"]
    app.post("/sign-in", data={"username": "audit.ana", "password": PASSWORD})
    app.post("/enter", data={"token": accounts.issue(accounts.get(id), "sign_in")})
    app.post("/enter", data={"token": "hush-hush"})
    app.cookies.clear()
    app.get("/api/v1/memories", headers=bearer(accounts.issue(accounts.get(id), "api_key")))  # is no sign-in
    made, *ins, away = told()
    assert (made["what"], made["who"], made["role"]) == ("account_made", id, "user")
    assert [(line["what"], line["how"], line["who"]) for line in ins] == [
        ("sign_in", "password", id), ("sign_in", "password", id), ("sign_in", "link", id)
    ]  # fmt: skip
    assert {line["address"] for line in told()} == {"testclient"} and away["at"].endswith("Z")
    assert (away["result"], away["who"], away["how"]) == ("denied", None, "link")


def test_who_is_turned_away_is_written_down_and_an_unknown_name_is_not(app, told):
    bo = token(app, "audit.bo")
    id = app.get("/api/v1/user/me", headers=bearer(bo)).json()["id"]
    start = len(told())
    for path, name in (("/token", "audit.bo"), ("/sign-in", "AUDIT.BO"), ("/token", TYPED)):
        assert app.post(path, data={"username": name, "password": PASSWORD + "!"}).status_code == 401
    app.cookies.clear()
    assert app.get("/api/v1/users", headers=bearer(bo)).status_code == 403
    assert app.get("/api/v1/users", headers=bearer("mg-wrong")).status_code == 401
    assert app.get("/api/v1/users").status_code == 401  # with nothing shown
    app.post("/api/v1/auth/refresh", json={"refresh_token": "x.y.z"})
    app.post("/sign-in", data={}, headers={"Origin": "https://evil.example"})
    with pytest.raises(WebSocketDisconnect), app.websocket_connect("/ws/chat/?ticket=x.y.z") as socket:
        socket.receive_text()
    lines = told()[start:]
    wrong = [line for line in lines if line["what"] == "sign_in" and line.get("status") == 401]
    assert [(line["result"], line.get("on"), line["who"]) for line in wrong] == [
        ("denied", id, None), ("denied", id, None), ("denied", None, None)
    ]  # fmt: skip
    rest = [line for line in lines if line["what"] == "request"]
    assert [(line["status"], line["route"], line["who"]) for line in rest] == [
        (403, "GET /api/v1/users", id), (401, "GET /api/v1/users", None), (401, "POST /api/v1/auth/refresh", None),
        (403, "POST /sign-in", None), (4401, "WebSocket /ws/chat/", None),
    ]  # fmt: skip


def test_the_eleventh_wrong_password_is_written_down_as_refused(make_app):
    with make_app() as client:
        for _ in range(11):
            client.post("/token", data={"username": "nobody", "password": "wrong horse"})
        lines = client.app.state.house.audit.lines()
    assert [line["status"] for line in lines] == [401] * 10 + [429]
    assert all("on" not in line for line in lines)


def test_what_is_changed_for_good_is_written_down(app, told):
    house = app.app.state.house
    cy = bearer(token(app, "audit.cy"))
    id = app.get("/api/v1/user/me", headers=cy).json()["id"]
    said = app.post("/api/v1/conversation/chat", json={"message": TEXT}, headers=cy).json()
    memory = app.post("/api/v1/memories", json={"text": TEXT}, headers=cy).json()["id"]
    admin = bearer(house.accounts.issue(house.accounts.owner(), "api_key"))
    start = len(told())
    app.delete(f"/api/v1/memories/{memory}", headers=cy)
    app.delete("/api/v1/memories/" + TEXT, headers=cy)
    app.delete(f"/api/v1/conversations/{said['conversation_id']}", headers=cy)
    app.delete("/api/v1/memories?confirm=everything", headers=cy)
    app.patch(f"/api/v1/users/{id}", headers=admin, json={"role": "operator"})
    app.post(f"/api/v1/users/{id}/logout", headers=admin)
    cy = bearer(token(app, "audit.cy"))
    app.post("/api/v1/auth/password", headers=cy, json={"current": PASSWORD, "new": PASSWORD + "2"})
    app.patch(f"/api/v1/users/{id}", headers=admin, json={"disabled": True})
    app.patch(f"/api/v1/users/{id}", headers=admin, json={"disabled": False})
    app.post("/api/v1/auth/logout-all", headers=bearer(token(app, "audit.cy", PASSWORD + "2")))
    lines = [line for line in told()[start:] if line["what"] not in ("sign_in", "account_made")]
    gone = [(line["of"], line["result"], line.get("on"), line.get("memories")) for line in lines[:4]]
    assert gone[0] == ("memory", "done", memory, 1) and gone[1] == ("memory", "failed", None, None)
    assert gone[2][:3] == ("conversation", "done", said["conversation_id"]) and gone[3][:2] == ("all", "done")
    assert all(line["who"] == id for line in lines[:4])
    owner = house.accounts.owner().id
    assert [(line["what"], line["who"], line.get("on")) for line in lines[4:]] == [
        ("role_change", owner, id), ("sign_out_everywhere", owner, id), ("password_change", id, None),
        ("account_closed", owner, id), ("account_opened", owner, id), ("sign_out_everywhere", id, None),
    ]  # fmt: skip
    assert lines[4]["to"] == "operator"


def test_what_the_page_does_is_written_down_too(app, told):
    house = app.app.state.house
    dee = house.accounts.register("audit.dee", PASSWORD)
    id = house.hippocampus.add(dee.id, "user", TEXT, house.audit.clock(), kind="note")
    app.cookies.set(COOKIE, house.accounts.issue(dee, "session"))
    assert TEXT in app.get("/memories/export/json").text
    assert app.post(f"/memories/{id}/delete").status_code == 200
    assert app.post("/memories/everything", data={"confirm": "everything"}).status_code == 200
    app.cookies.clear()
    assert [(line["what"], line["who"], line["of"]) for line in told()] == [
        ("export", dee.id, "memories"), ("deletion", dee.id, "memory"), ("deletion", dee.id, "all")
    ]  # fmt: skip


def test_nothing_secret_and_nothing_said_is_in_it(app):
    """Last: all that the tests above typed went past the log."""
    audit = app.app.state.house.audit
    text = audit.path.read_text()
    assert len(text.splitlines()) > 25 and all(json.loads(line) for line in text.splitlines())
    for secret in ("canary", "hush", "audit.ana", "x.y.z", "mg-", "$argon2"):
        assert secret not in text, secret
    assert stat.S_IMODE(audit.path.stat().st_mode) == 0o600


def test_what_is_done_in_a_terminal_is_written_down(make_server):
    """Beside the server, in a home that two processes write to."""
    from typer.testing import CliRunner

    from mongars.serving.audit import Audit
    from mongars.serving.cli import app as commands

    server = make_server()
    for words in (
        ["add", "terminal.ana", "--password-stdin"],
        ["role", "terminal.ana", "admin"],
        ["disable", "terminal.ana"],
        ["key", "terminal.ana"],
    ):
        done = CliRunner().invoke(commands, ["user", *words], env=server.environment, input=PASSWORD + "\n")
        assert done.exit_code == 0, done.output
    lines = Audit(server.folder / "home").lines()
    assert [line["what"] for line in lines] == ["account_made", "role_change", "account_closed", "key_made"]
    assert {line["address"] for line in lines} == {"terminal"} and len({line["on"] for line in lines}) == 1
