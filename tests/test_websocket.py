"""Chat over a WebSocket, at a whole application and at real servers."""

import asyncio
import gc
import json
import os
import time

import psutil
import pytest
from sqlmodel import delete, func, select
from starlette.websockets import WebSocketDisconnect
from websocket_client import Client

from mongars.base.errors import NotReady
from mongars.base.tables import Credential, ToldEvent
from mongars.serving import channels, live

ORIGIN = {"Origin": "http://testserver"}


def sign_in(app, name: str):
    """The person of a name, with a session."""
    house = app.app.state.house
    person = house.accounts.find(name) or house.accounts.register(name, None)
    return person, {"Authorization": f"Bearer {house.sessions.begin(person).access}"}


def ticket_of(app, bearer: dict, **headers) -> str:
    answer = app.post("/api/v1/auth/ws/ticket", headers={**bearer, **headers})
    assert answer.json()["expires_in"] == 45
    return answer.json()["ticket"]


def until_end(socket, id: str) -> list[dict]:
    """The events of a message, up to its terminal one; what is said meanwhile of anything else is left out."""
    frames = []
    while not frames or frames[-1]["type"] not in ("done", "error"):
        frame = socket.receive_json()
        frames += [frame] if frame.get("id") == id else []
    return frames


def close_code(app, path: str, headers: dict) -> int:
    with app.websocket_connect(path, headers=headers) as socket:
        with pytest.raises(WebSocketDisconnect) as closed:
            for _ in range(2):  # who was let in would be told hello and the history
                socket.receive_json()
    return closed.value.code


def test_a_message_gets_ack_tokens_and_one_end_and_they_are_the_stored_answer(app):
    _, bearer = sign_in(app, "ws.ana")
    with app.websocket_connect("/ws/chat/", headers=bearer) as socket:
        hello, history = socket.receive_json(), socket.receive_json()
        assert hello == {
            "type": "hello", "last_event_id": 0, "heartbeat_seconds": 20, "resumed": False, "missed": 0
        }  # fmt: skip
        assert history == {"type": "history", "items": []}
        socket.send_json({"type": "chat", "id": "one", "text": "a<b, 🐝 and é"})
        frames = until_end(socket, "one")
        socket.send_json({"type": "ping"})
        assert socket.receive_json() == {"type": "pong"}
    kinds = [f["type"] for f in frames]
    assert kinds[0] == "ack" and set(kinds[1:-1]) == {"token"} and kinds[-1] == "done"
    assert [f["event_id"] for f in frames] == list(range(1, len(frames) + 1))
    assert len({f["turn_id"] for f in frames}) == 1 and frames[-1]["usage"]["energy"]["joules"] > 0
    turn = app.get("/api/v1/conversation/history", headers=bearer).json()["items"][0]
    assert turn["turn_id"] == frames[0]["turn_id"] and turn["message"] == "a<b, 🐝 and é"
    assert "".join(f["text"] for f in frames if f["type"] == "token") == turn["response"]
    with app.websocket_connect("/ws/chat/", headers=bearer) as socket:
        assert socket.receive_json()["last_event_id"] == len(frames)
        assert socket.receive_json()["items"] == [turn]


@pytest.mark.parametrize("heard", [0, 1, 3])
def test_who_comes_back_gets_exactly_what_was_missed(app, heard):
    _, bearer = sign_in(app, "ws.back")
    with app.websocket_connect("/ws/chat/", headers=bearer) as socket:
        before = socket.receive_json()["last_event_id"]
        socket.send_json({"type": "chat", "id": f"say {heard}", "text": "Hello"})
        frames = until_end(socket, f"say {heard}")
    with app.websocket_connect(f"/ws/chat/?last_event_id={before + heard}", headers=bearer) as socket:
        hello = socket.receive_json()
        assert hello["resumed"] and hello["missed"] == len(frames) - heard
        assert socket.receive_json()["type"] == "history"
        assert [socket.receive_json() for _ in frames[heard:]] == frames[heard:]
        socket.send_json({"type": "chat", "id": f"on {heard}", "text": "And on"})
        assert until_end(socket, f"on {heard}")[0]["event_id"] == frames[-1]["event_id"] + 1
    with app.websocket_connect("/ws/chat/?last_event_id=999999", headers=bearer) as socket:
        assert not socket.receive_json()["resumed"]


def test_an_answer_goes_on_without_a_listener(app):
    _, bearer = sign_in(app, "ws.gone")
    with app.websocket_connect("/ws/chat/", headers=bearer) as socket:
        socket.send_json({"type": "chat", "id": "x", "text": "Hello"})
        while socket.receive_json()["type"] != "ack":
            pass
    with app.websocket_connect("/ws/chat/?last_event_id=0", headers=bearer) as socket:
        frames = until_end(socket, "x")
        assert frames[0]["type"] == "ack" and frames[-1]["type"] == "done"
        socket.send_json({"type": "chat", "id": "x", "text": "Hello"})  # sent again, to be sure
        again = until_end(socket, "x")
    assert again[0]["turn_id"] == frames[0]["turn_id"]
    assert len(app.get("/api/v1/conversation/history", headers=bearer).json()["items"]) == 1


def test_two_people_never_hear_each_other(app):
    (_, ana), (_, bo) = sign_in(app, "ws.ana2"), sign_in(app, "ws.bo")
    with (
        app.websocket_connect("/ws/chat/", headers=ana) as hers,
        app.websocket_connect("/ws/chat/", headers=bo) as his,
    ):
        hers.send_json({"type": "chat", "id": "hers", "text": "zebrafinch"})
        turn = until_end(hers, "hers")[0]
        his.send_json({"type": "chat", "id": "his", "text": "Hi", "conversation_id": turn["conversation_id"]})
        frames = [his.receive_json() for _ in range(3)]
        assert "zebrafinch" not in json.dumps(frames) and turn["turn_id"] not in json.dumps(frames)
        assert frames[2]["type"] == "error" and frames[2]["status"] == 404
    with app.websocket_connect("/ws/chat/?last_event_id=0", headers=bo) as his:
        assert turn["turn_id"] not in json.dumps([his.receive_json() for _ in range(3)])


@pytest.mark.parametrize(
    "frame",
    ["", "[]", '{"type":"chat"}', '{"type":"shout","id":"7"}', '{"type":"chat","id":"7","text":"a\\u0000"}'],
)
def test_a_frame_that_cannot_be_used_gets_an_error_and_the_talk_goes_on(app, frame):
    _, bearer = sign_in(app, "ws.odd")
    with app.websocket_connect("/ws/chat/", headers=bearer) as socket:
        socket.receive_json(), socket.receive_json()
        socket.send_text(frame)
        error = socket.receive_json()
        assert (
            error["type"] == "error"
            and error["status"] == 422
            and error["id"] == ("7" if "7" in frame else None)
        )
        socket.send_json({"type": "ping"})
        assert socket.receive_json() == {"type": "pong"}


@pytest.mark.parametrize("sent, code", [({"bytes": b"x"}, 1003), ({"text": "x" * (live.LONGEST + 1)}, 1009)])
def test_what_is_no_text_or_too_long_ends_the_connection(app, sent, code):
    _, bearer = sign_in(app, "ws.odd")
    with app.websocket_connect("/ws/chat/", headers=bearer) as socket:
        socket.receive_json(), socket.receive_json()
        socket.send({"type": "websocket.receive", **sent})
        with pytest.raises(WebSocketDisconnect) as closed:
            socket.receive_json()
        assert closed.value.code == code


def test_a_ticket_opens_once_from_its_own_origin(app):
    _, bearer = sign_in(app, "ws.ticket")
    ticket = ticket_of(app, bearer, **ORIGIN)
    with app.websocket_connect(f"/ws/chat/?ticket={ticket}", headers=ORIGIN) as socket:
        assert socket.receive_json()["type"] == "hello"
    assert close_code(app, f"/ws/chat/?ticket={ticket}", ORIGIN) == 4401
    for wrong in ({}, {"Origin": "https://testserver"}):
        ticket = ticket_of(app, bearer, **ORIGIN)
        assert close_code(app, f"/ws/chat/?ticket={ticket}", wrong) == 4401
        assert close_code(app, f"/ws/chat/?ticket={ticket}", ORIGIN) == 4401, "it was not used up"


def test_a_ticket_lives_forty_five_seconds(app, monkeypatch):
    from datetime import timedelta

    from mongars.base.tables import now_utc
    from mongars.serving import accounts

    _, bearer = sign_in(app, "ws.late")
    for seconds, opens in ((44, True), (46, False)):
        ticket = ticket_of(app, bearer)
        monkeypatch.setattr(accounts, "now_utc", lambda s=seconds: now_utc() + timedelta(seconds=s))
        if opens:
            with app.websocket_connect(f"/ws/chat/?ticket={ticket}") as socket:
                assert socket.receive_json()["type"] == "hello"
        else:
            assert close_code(app, f"/ws/chat/?ticket={ticket}", {}) == 4401
        monkeypatch.undo()


def test_a_page_of_another_origin_does_not_come_in_whatever_it_shows(app):
    _, bearer = sign_in(app, "ws.evil")
    evil = {"Origin": "https://evil.example"}
    assert close_code(app, f"/ws/chat/?ticket={ticket_of(app, bearer, **evil)}", evil) == 4403
    assert close_code(app, "/ws/chat/", {**bearer, **evil}) == 4403
    assert close_code(app, "/ws/chat/", {**bearer, "Origin": "null"}) == 4403


def test_a_page_of_an_origin_that_the_setting_names_comes_in_and_no_other(make_app):
    with make_app(ws_origins="https://first.example, https://chat.example/") as client:
        _, bearer = sign_in(client, "ws.origins")
        for origin in ("https://chat.example", "https://first.example"):
            page = {"Origin": origin}
            ticket = ticket_of(client, bearer, **page)
            with client.websocket_connect(f"/ws/chat/?ticket={ticket}", headers=page) as socket:
                assert socket.receive_json()["type"] == "hello"
        for origin in ("https://other.example", "http://chat.example", "https://chat.example.other.example"):
            page = {"Origin": origin}
            assert close_code(client, f"/ws/chat/?ticket={ticket_of(client, bearer, **page)}", page) == 4403
        ticket = ticket_of(client, bearer, Origin="https://first.example")
        assert close_code(client, f"/ws/chat/?ticket={ticket}", {"Origin": "https://chat.example"}) == 4401


@pytest.mark.parametrize(
    "headers", [{}, {"Authorization": "Bearer x.y.z"}, {"Authorization": "Bearer mg-x"}, ORIGIN]
)
def test_without_a_credential_nobody_comes_in(app, headers):
    assert close_code(app, "/ws/chat/", headers) == 4401


def test_a_database_that_is_not_ready_ends_it_with_1013(make_app, monkeypatch):
    def fail(*_):
        raise NotReady("The database is held by another process.", retry_after=5)

    with make_app(ws_heartbeat_seconds=0.2) as client:
        house, (_, bearer) = client.app.state.house, sign_in(client, "Ana")
        with client.websocket_connect("/ws/chat/", headers=bearer) as socket:
            socket.receive_json()
            monkeypatch.setattr(house.accounts, "bearer_of", fail)
            with pytest.raises(WebSocketDisconnect) as closed:
                for _ in range(9):
                    socket.receive_json()
        assert closed.value.code == 1013 and "not ready" in closed.value.reason
        monkeypatch.setattr(house.sessions, "caller", fail)
        assert close_code(client, "/ws/chat/", bearer) == 1013


def leave(client, person, bearer: dict) -> None:
    assert client.request(
        "DELETE", "/api/v1/me", headers=bearer, json={"confirm": f"delete {person.username}"}
    ).is_success


ENDINGS = {
    "logout": lambda c, person, bearer: c.post("/api/v1/auth/logout", headers=bearer).raise_for_status(),
    "everywhere": lambda c, person, bearer: c.post(
        "/api/v1/auth/logout-all", headers=bearer
    ).raise_for_status(),
    "by an admin": lambda c, person, bearer: c.post(
        f"/api/v1/users/{person.id}/logout", headers=admin(c)
    ).raise_for_status(),
    "closed": lambda c, person, bearer: c.patch(
        f"/api/v1/users/{person.id}", headers=admin(c), json={"disabled": True}
    ).raise_for_status(),
    "deleted": leave,
    "password": lambda c, person, bearer: c.app.state.house.accounts.set_password(
        person.username, "another horse"
    ),
}


def admin(app) -> dict[str, str]:
    accounts = app.app.state.house.accounts
    return {"Authorization": f"Bearer {accounts.issue(accounts.owner(), 'api_key')}"}


@pytest.mark.parametrize("ending", ENDINGS)
def test_who_is_signed_out_is_out_here_at_once_and_hears_nothing_more(app, ending):
    person, bearer = sign_in(app, f"ws.out.{ending.replace(' ', '.')}")
    house = app.app.state.house
    with (
        app.websocket_connect("/ws/chat/", headers=bearer) as socket,
        app.websocket_connect("/ws/chat/", headers=sign_in(app, "ws.stays")[1]) as other,
    ):
        assert socket.receive_json()["heartbeat_seconds"] == 20 and socket.receive_json()
        other.receive_json(), other.receive_json()
        ENDINGS[ending](app, person, bearer)
        began = time.monotonic()
        channel = house.channels.open.get(person.id)
        for listener in list(channel.listeners) if channel else []:
            app.portal.call(listener.tell, {"type": "token", "text": "a secret"})
        with pytest.raises(WebSocketDisconnect) as closed:
            socket.receive_json()
        assert closed.value.code == 4401 and time.monotonic() - began < 1
        other.send_json({"type": "ping"})
        assert other.receive_json() == {"type": "pong"}


def test_an_event_that_is_told_as_a_session_ends_is_heard_by_the_others_only(app, monkeypatch):
    """The look is under way, and slow, when something is told."""
    person, bearer = sign_in(app, "ws.race")
    house = app.app.state.house
    key = {"Authorization": f"Bearer {house.accounts.issue(person, 'api_key')}"}
    with (
        app.websocket_connect("/ws/chat/", headers=bearer) as ended,
        app.websocket_connect("/ws/chat/", headers=key) as stays,
    ):
        for socket in (ended, stays):
            socket.receive_json(), socket.receive_json()

        look = house.accounts.bearer_of
        monkeypatch.setattr(house.accounts, "bearer_of", lambda id: (time.sleep(0.3), look(id))[1])

        def at_once() -> None:
            house.channels._doubt(person.id)
            house.channels.open[person.id].tell({"type": "token", "id": "x", "text": "a secret"})

        with house.store.writing() as session:
            session.exec(
                delete(Credential).where(Credential.kind == "family", Credential.person_id == person.id)
            )
        app.portal.call(at_once)
        assert stays.receive_json()["text"] == "a secret"
        with pytest.raises(WebSocketDisconnect) as closed:
            ended.receive_json()
        assert closed.value.code == 4401


def test_what_another_process_ends_is_seen_within_seconds(make_server):
    server = make_server().start()
    ana = server.person("Ana")
    bearer = {"Authorization": ana.headers["Authorization"]}
    client = Client(server.url.replace("http", "ws") + "/ws/chat/", bearer)
    assert client.receive()["heartbeat_seconds"] == 20 and client.receive()["type"] == "history"
    server.mongars("user", "disable", "Ana")
    began = time.monotonic()
    assert client.receive() is None and client.closed == 4401
    assert time.monotonic() - began < 6


def test_more_messages_than_one_person_may_have_get_429(make_app):
    with make_app(answers_per_person=2, max_new_tokens=200) as client:
        _, bearer = sign_in(client, "ws.many")
        with client.websocket_connect("/ws/chat/", headers=bearer) as socket:
            for id in ("1", "2", "3"):
                socket.send_json({"type": "chat", "id": id, "text": "Hello"})
            ends = {}
            while len(ends) < 3:
                frame = socket.receive_json()
                ends |= {frame["id"]: frame} if frame["type"] in ("done", "error") else {}
            assert [ends[id]["type"] for id in "123"] == ["done", "done", "error"]
            assert ends["3"]["status"] == 429 and ends["3"]["retry_after"] >= 1
            socket.send_json({"type": "chat", "id": "3", "text": "Hello"})
            assert until_end(socket, "3")[-1]["type"] == "done"


def test_switched_off_it_says_so_and_queues_nothing(make_app, monkeypatch):
    monkeypatch.setenv("WS_ENABLE_EVENTS", "false")
    with make_app() as client:
        person, bearer = sign_in(client, "ws.off")
        with client.websocket_connect("/ws/chat/", headers=bearer) as socket:
            socket.send_json({"type": "chat", "id": "1", "text": "Hi"})  # there before it is refused
            with pytest.raises(WebSocketDisconnect) as closed:
                socket.receive_json()
        assert closed.value.code == live.SWITCHED_OFF == 4503
        assert client.post("/api/v1/auth/ws/ticket", headers=bearer).status_code == 503
        house = client.app.state.house
        assert not house.channels.open and house.channels.book.last(person.id) == 0
        assert client.get("/api/v1/conversation/history", headers=bearer).json()["items"] == []
        with house.store.reading() as session:
            assert session.exec(select(func.count()).select_from(ToldEvent)).one() == 0
            assert "ticket" not in session.exec(Credential.__table__.select()).all().__repr__()


def test_what_is_forgotten_is_not_told_again(app):
    person, bearer = sign_in(app, "ws.forget")
    with app.websocket_connect("/ws/chat/", headers=bearer) as socket:
        socket.send_json({"type": "chat", "id": "1", "text": "My sister keeps bees."})
        last = until_end(socket, "1")[-1]
    book = app.app.state.house.channels.book
    assert book.after(person.id, 0)
    assert app.delete(f"/api/v1/conversations/{last['conversation_id']}", headers=bearer).status_code == 200
    assert book.after(person.id, 0) == [] and book.last(person.id) == last["event_id"]


def test_an_answer_that_is_withdrawn_is_not_told_again(app):
    person, bearer = sign_in(app, "ws.withdraw")
    with app.websocket_connect("/ws/chat/", headers=bearer) as socket:
        socket.send_json({"type": "chat", "id": "1", "text": "My sister Odile keeps bees in Annecy."})
        until_end(socket, "1")
        socket.send_json(
            {"type": "chat", "id": "2", "text": "My sister Odile keeps bees in Annecy. Is that so?"}
        )
        second = until_end(socket, "2")[0]
    assert second["memories"]
    app.delete(f"/api/v1/memories/{second['memories'][0]}", headers=bearer)
    turns = app.get("/api/v1/conversation/history", headers=bearer).json()["items"]
    assert [(t["turn_id"], t["response"]) for t in turns] == [(second["turn_id"], None)]
    assert app.app.state.house.channels.book.after(person.id, 0) == []


class Wire:
    """A connection without a network, in the loop of the application; it reads only when told to."""

    def __init__(self, app, path: str, headers: dict):
        raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        self.scope = {
            "type": "websocket", "path": path, "raw_path": path.encode(), "query_string": b"", "headers": raw,
            "scheme": "ws", "server": ("testserver", 80), "client": ("10.0.0.1", 1), "subprotocols": [], "app": app,
        }  # fmt: skip
        self.out, self.back = asyncio.Queue(1), asyncio.Queue()
        self.back.put_nowait({"type": "websocket.connect"})
        self.task = asyncio.create_task(app(self.scope, self.back.get, self.out.put))

    async def read(self) -> dict:
        return await asyncio.wait_for(self.out.get(), 10)

    def say(self, **frame) -> None:
        self.back.put_nowait({"type": "websocket.receive", "text": json.dumps(frame)})

    def leave(self) -> None:
        self.back.put_nowait({"type": "websocket.disconnect", "code": 1001})


def test_a_slow_reader_is_closed_with_1013_and_slows_nobody(app, monkeypatch):
    monkeypatch.setattr(channels, "WAITING", 8)
    monkeypatch.setattr(live, "PATIENCE", 60)
    person, bearer = sign_in(app, "ws.slow")

    async def scene() -> tuple[int, float]:
        slow, fast = Wire(app.app, "/ws/chat/", bearer), Wire(app.app, "/ws/chat/", bearer)
        for _ in range(3):
            await fast.read()  # accepted, hello, history
        began = time.monotonic()
        for n in range(6):
            fast.say(type="chat", id=f"m{n}", text="Hello")
            while json.loads((await fast.read())["text"])["type"] not in ("done", "error"):
                pass
        took = time.monotonic() - began
        message = {}
        while message.get("type") != "websocket.close":
            message = await slow.read()
        fast.leave()
        await asyncio.wait_for(asyncio.gather(slow.task, fast.task), 10)
        return message["code"], took

    code, took = app.portal.call(scene)
    assert code == 1013 and took < 20
    assert person.id not in app.app.state.house.channels.open


CYCLES = int(os.environ.get("MONGARS_WEBSOCKET_CYCLES", "100"))  # 1,000 for the long run


def test_connections_that_come_and_go_leave_nothing_behind(app):
    _, bearer = sign_in(app, "ws.cycles")
    house, process = app.app.state.house, psutil.Process()

    async def one(n: int) -> None:
        wire = Wire(app.app, "/ws/chat/", bearer)
        for _ in range(3):
            await wire.read()
        if n % 10 == 0:
            wire.say(type="chat", id=f"c{n}", text="Hello")
            await wire.read()
        wire.leave()
        await asyncio.wait_for(wire.task, 10)

    async def many(count: int) -> tuple[int, int]:
        for n in range(count):
            await one(n)
        while any(c.answering for c in house.channels.open.values()):
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        house.channels._sweep()
        gc.collect()
        return len(asyncio.all_tasks()), process.memory_info().rss

    tasks, memory = app.portal.call(many, 20)  # what is made once is made
    after, grown = app.portal.call(many, CYCLES)
    assert after <= tasks and not house.channels.open
    assert grown - memory < 16e6, f"{(grown - memory) / 1e6:.1f} MB in {CYCLES} connections"


@pytest.mark.timeout(300)
def test_bentoml_serves_it_and_a_killed_server_forgets_nothing(make_server):
    server = make_server(max_new_tokens=1200)
    uvicorn = server.command
    server.by_bentoml()
    ana = server.start(patience=200).person("Ana")
    url, bearer = (
        server.url.replace("http", "ws") + "/ws/chat/",
        {"Authorization": ana.headers["Authorization"]},
    )
    quiet = Client(url, bearer)
    began = time.monotonic()
    assert quiet.close() == 1000 and time.monotonic() - began < 2
    origin = {"Origin": server.url}
    ticket = ana.post("/api/v1/auth/ws/ticket", headers=origin).json()["ticket"]
    client = Client(f"{url}?ticket={ticket}", origin)
    client.send(type="chat", id="long", text="Talk")
    heard = []
    while sum(f["type"] == "token" for f in heard) < 3:
        heard += [f] if (f := client.receive()).get("id") else []
    server.kill()
    client.drop()
    server.command, server.environment["TEST_PING_SECONDS"] = uvicorn, "1"
    server.start()
    dead = Client(url, bearer, alive=False)
    lost = time.monotonic()
    ana = server.person("Ana")
    client = Client(f"{url}?last_event_id={heard[0]['event_id']}", bearer)
    hello, history = client.receive(), client.receive()
    assert hello["resumed"] and history["items"][0]["turn_id"] == heard[0]["turn_id"]
    missed = [client.receive() for _ in range(hello["missed"])]
    assert missed[: len(heard) - 1] == heard[1:]
    assert [f["event_id"] for f in missed] == list(range(2, 2 + len(missed)))
    assert [f["type"] for f in missed].count("error") == 1 and missed[-1]["status"] == 503
    client.send(type="chat", id="long", text="Talk")  # the same turn, answered after all
    sent, frames = time.monotonic(), []
    while not frames or frames[-1]["type"] != "done":
        frame = client.receive()
        frames += [frame] if frame.get("id") == "long" else []
        if frame["type"] == "token" and len(frames) == 2:
            first = time.monotonic() - sent
    assert first < (time.monotonic() - sent) / 4, "the first token came late"
    turn = ana.get("/api/v1/conversation/history").json()["items"][0]
    assert turn["turn_id"] == heard[0]["turn_id"]
    assert turn["response"] == "".join(f["text"] for f in frames if f["type"] == "token")
    assert client.close() == 1000
    while dead.receive() is not None:
        pass
    assert (
        dead.closed == 1011 and time.monotonic() - lost < 120
    )  # 1 s after the last frame a ping, 20 s for a pong
