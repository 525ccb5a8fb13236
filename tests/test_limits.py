"""How large a request may be, how long a message, and how many in a minute; and what is not counted."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest
from anyio.to_thread import current_default_thread_limiter, run_sync

from mongars.base.errors import Busy
from mongars.base.store import Store
from mongars.serving.doors import COOKIE
from mongars.serving.paces import Paces

CHAT, ME = "/api/v1/conversation/chat", "/api/v1/user/me"


def bearer(client, name: str) -> dict[str, str]:
    house = client.app.state.house
    person = house.accounts.find(name) or house.accounts.register(name, None)
    return {"Authorization": f"Bearer {house.accounts.issue(person, 'api_key')}"}


@pytest.fixture(scope="module")
def small(make_app):
    """An application with small bounds."""
    with make_app(body_bytes=20_000, message_characters=100) as client:
        yield client


@pytest.mark.parametrize("how", ["at once", "in pieces"])
def test_a_request_that_is_too_large_gets_413(small, how):
    body = b'{"message": "' + b"x" * 20_000 + b'"}'
    content = body if how == "at once" else iter([body[:10_000], body[10_000:]])
    headers = bearer(small, "Ana") | {"Content-Type": "application/json"}
    answer = small.post(CHAT, content=content, headers=headers)
    assert answer.status_code == 413 and "20,000 bytes" in answer.json()["detail"]
    assert answer.headers["content-type"] == "application/problem+json"
    if how == "in pieces":
        content = iter([body[:10_000], body[10_000:]])
    other = small.post("/v1/chat/completions", content=content, headers=headers)
    assert other.status_code == 413 and other.json()["error"]["type"] == "invalid_request_error"
    form = {"username": "ana", "password": "x" * 30_000}
    assert small.post("/token", data=form).status_code == 413


def test_a_message_that_is_too_long_gets_422_wherever_it_is_said(small):
    ana = bearer(small, "Ana")
    said = [small.post(CHAT, json={"message": "x" * n}, headers=ana) for n in (100, 101)]
    assert [answer.status_code for answer in said] == [200, 422] and "100 is the most" in said[1].text
    asked = {"model": "tiny-chat", "messages": [{"role": "user", "content": "x" * 101}]}
    assert small.post("/v1/chat/completions", json=asked, headers=ana).status_code == 422
    with small.websocket_connect("/ws/chat/", headers=ana) as socket:
        socket.send_json({"type": "chat", "id": "1", "text": "x" * 101})
        frames = [socket.receive_json() for _ in range(3)]
    assert frames[-1]["type"] == "error" and frames[-1]["status"] == 422


def test_who_asks_too_fast_waits_and_nobody_else_and_a_restart_forgets_nothing(make_app, tmp_path):
    settings = {"home": tmp_path / "home", "requests_per_person": 20}
    with make_app(**settings) as client:
        ana, bo = bearer(client, "Ana"), bearer(client, "Bo")
        assert [client.get(ME, headers=ana).status_code for _ in range(20)] == [200] * 20
        late = client.get(ME, headers=ana)
        assert late.status_code == 429 and 1 <= int(late.headers["Retry-After"]) <= 3
        assert late.json()["title"] == "Too many requests" and "20 in a minute" in late.json()["detail"]
        other = client.get("/v1/models", headers=ana)
        assert other.status_code == 429 and other.json()["error"]["type"] == "rate_limit_error"
        assert client.get(ME, headers=bo).status_code == 200
    with make_app(**settings) as client:
        assert client.get(ME, headers=bearer(client, "Ana")).status_code == 429
        with client.websocket_connect("/ws/chat/", headers=bearer(client, "Ana")) as socket:
            socket.send_json({"type": "chat", "id": "1", "text": "Hello"})
            frames = [socket.receive_json() for _ in range(3)]
        assert frames[-1]["status"] == 429 and frames[-1]["retry_after"] >= 1


def test_an_address_is_counted_before_it_is_known_who_asks_and_the_page_is_not(make_app):
    with make_app(page=True, requests_per_address=15, requests_per_person=10) as client:
        accounts = client.app.state.house.accounts
        session = accounts.issue(accounts.owner(), "session")
        answers = [client.post("/token", data={"username": "a", "password": "b"}) for _ in range(16)]
        assert [a.status_code for a in answers[10:]] == [429] * 6 and "network" in answers[-1].json()[
            "detail"
        ]
        assert client.app.state.house.audit.lines()[-1]["route"] == "POST /token"
        for path in ("/healthz", "/ready", "/metrics", "/pages/gate.css"):
            assert [client.get(path).status_code for _ in range(20)] == [200] * 20, path
        client.cookies.set(COOKIE, session)
        for path in ("/ui/", "/ui/config", "/ui/theme.css"):
            assert [client.get(path).status_code for _ in range(20)] == [200] * 20, path


def test_what_somebody_does_in_the_page_is_counted_and_a_file_to_be_imported_may_be_large(make_app):
    with make_app(page=True, requests_per_person=12, body_bytes=10_000) as client:
        accounts = client.app.state.house.accounts
        client.cookies.set(COOKIE, accounts.issue(accounts.owner(), "session"))
        lines = b'{"text": "I keep bees."}\n' * 450
        answer = client.post("/memories/import", content=lines, headers={"X-File-Name": "a.jsonl"})
        assert answer.status_code == 200, answer.text
        client.app.state.arrivals.of(accounts.owner().id).thread.join(60)
        assert client.post("/memories", data={"text": "x" * 20_000}).status_code == 413
        sent = {"data": ["Hello"], "session_hash": "abc"}
        codes = [client.post("/ui/gradio_api/call/chat", json=sent).status_code for _ in range(12)]
        assert codes == [200] * 11 + [429]
        assert client.get("/memories", headers={"X-Fragment": "1"}).status_code == 429


def test_who_comes_while_too_many_wait_is_told_to_come_back(make_app):
    with make_app(requests_waiting=1) as client:
        ana, done = bearer(client, "Ana"), Event()

        async def crowd() -> list[asyncio.Task]:
            current_default_thread_limiter().total_tokens = 1
            return [asyncio.create_task(run_sync(done.wait)) for _ in range(3)]

        tasks = client.portal.call(crowd)
        assert client.get("/healthz").status_code == 200
        late, other = client.get(ME, headers=ana), client.get("/v1/models", headers=ana)
        assert late.status_code == other.status_code == 503 and late.headers["Retry-After"] == "1"
        assert "2 requests are waiting" in late.json()["detail"] and "error" in other.json()
        done.set()
        client.portal.call(asyncio.wait, tasks)
        assert client.get(ME, headers=ana).status_code == 200


def test_one_person_has_so_many_answers_under_way_whichever_way_they_ask(make_app):
    with make_app(answers_per_person=2, max_new_tokens=4) as client:
        house, ana, bo = client.app.state.house, bearer(client, "Ana"), bearer(client, "Bo")
        chat, model = "/api/v1/conversation/chat", house.model
        asks = {"model": model.name, "messages": [{"role": "user", "content": "Hi"}]}
        held = client.portal.wrap_async_context_manager
        id = house.accounts.find("Ana").id
        with held(model.place(id)):
            assert client.post(chat, json={"message": "Second"}, headers=ana).status_code == 200
            with held(model.place(id)):
                late = client.post(chat, json={"message": "Third"}, headers=ana)
                assert late.status_code == 429 and int(late.headers["Retry-After"]) >= 1
                assert "2 of them yours (at most 2)" in late.json()["detail"]
                other = client.post("/v1/chat/completions", json=asks, headers=ana)
                assert other.status_code == 429 and int(other.headers["Retry-After"]) >= 1
                with client.websocket_connect("/ws/chat/", headers=ana) as socket:
                    socket.send_json({"type": "chat", "id": "1", "text": "Hi"})
                    frames = [socket.receive_json() for _ in range(3)]
                assert frames[-1]["status"] == 429 and frames[-1]["retry_after"] >= 1
                assert client.post(chat, json={"message": "Hi"}, headers=bo).status_code == 200
        items = client.get("/api/v1/conversation/history", headers=ana).json()["items"]
        assert [turn["message"] for turn in items] == ["Second"]


def test_several_processes_share_what_there_is(store):
    now = 1_800_000_000.0
    many = [Paces(Store(store.url), person=600, clock=lambda: now) for _ in range(4)]

    def ask(n: int) -> int:
        passed = 0
        for _ in range(50):
            try:
                many[n % 4].take("person", "ana")
                passed += 1
            except Busy as error:
                assert error.retry_after == 1
        return passed

    with ThreadPoolExecutor(16) as crowd:
        passed = sum(crowd.map(ask, range(20)))
    assert 600 - 4 * 10 < passed <= 600
