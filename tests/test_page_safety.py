"""What the page tells the browser to allow, which cookies it sets, and what no page of another site can do."""

import hashlib
import re

import pytest
from routes import PAGES, ROUTES
from sqlmodel import SQLModel, select

from mongars.serving.doors import COOKIE

EVIL = {"Origin": "https://evil.example"}
GATES = ("/sign-in", "/register", "/enter?token=x")
ROOMS = ("/memories", "/memories/carry", "/operators")
COUNTERS = {"pace", "attempt"}  # how many asked: that is what they are for


@pytest.fixture(scope="module")
def house(app):
    return app.app.state.house


@pytest.fixture(scope="module")
def app(make_app):
    with make_app(page=True) as client:
        yield client


@pytest.fixture
def owner(app, house):
    """A browser in which the owner is signed in."""
    app.cookies.set(COOKIE, house.accounts.issue(house.accounts.owner(), "session"))
    yield app
    app.cookies.clear()


def policy_of(answer) -> dict[str, set[str]]:
    rules = [rule.split() for rule in answer.headers["Content-Security-Policy"].split(";") if rule.strip()]
    return {name: set(sources) for name, *sources in rules}


@pytest.mark.parametrize("path", [*GATES, *ROOMS, "/ui/"])
def test_a_page_loads_from_this_server_only_and_runs_no_script_that_stands_in_it(owner, path):
    if path in GATES:
        owner.cookies.clear()
    answer = owner.get(path, headers={"X-Fragment": "1"})
    assert answer.status_code == 200, answer.text[:300]
    policy = policy_of(answer)
    assert policy["default-src"] == {"'none'"} and policy["frame-ancestors"] == {"'none'"}
    for name, sources in policy.items():
        own = {source for source in sources if source in ("'none'", "'self'") or source.startswith("'nonce-")}
        exceptions = {"style-src": {"'unsafe-inline'"}, "img-src": {"data:"}, "font-src": {"data:"}}
        left = (
            exceptions.get(name, set()) if path == "/ui/" else set()
        )  # what Gradio needs, each in docs/security.md
        assert sources - own <= left, (path, name, sources)
    assert "'unsafe-inline'" not in policy["script-src"] and "'unsafe-eval'" not in policy["script-src"]
    nonces = {source for source in policy["script-src"] if source.startswith("'nonce-")}
    assert bool(nonces) == (path == "/ui/")
    again = policy_of(owner.get(path))["script-src"]
    assert not nonces & again, "a nonce was given twice"
    assert (
        answer.headers["X-Content-Type-Options"] == "nosniff" and answer.headers["X-Frame-Options"] == "DENY"
    )
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", answer.text), "another site is named"
    assert answer.headers["Cache-Control"] == "no-store"


def test_no_cache_keeps_what_the_api_says(app, house):
    key = {"Authorization": f"Bearer {house.accounts.issue(house.accounts.owner(), 'api_key')}"}
    said = {"message": "I keep bees."}
    answers = [
        app.post("/api/v1/conversation/chat", json=said, headers=key),
        app.post("/api/v1/conversation/chat", json=said | {"stream": True}, headers=key),
        *(
            app.get(path, headers=key)
            for path in ("/api/v1/conversation/history", "/api/v1/memories", "/v1/models")
        ),
        app.get("/api/v1/memories"),  # by nobody
    ]
    assert [answer.status_code for answer in answers] == [200] * 5 + [401]
    assert {answer.headers.get("Cache-Control") for answer in answers} == {"no-store"}


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_cookie_of_a_browser_is_for_this_site_and_no_script_reads_it(app, house, scheme):
    house.accounts.find("Cleo") or house.accounts.register("Cleo", "correct horse")
    answer = app.post(
        f"{scheme}://testserver/sign-in", data={"username": "Cleo", "password": "correct horse"}
    )
    cookie = answer.headers["set-cookie"]
    app.cookies.clear()
    assert cookie.startswith(f"{COOKIE}=") and "HttpOnly" in cookie and "SameSite=lax" in cookie
    assert ("Secure" in cookie) == (scheme == "https") and "Domain" not in cookie


POSTS = (
    "/sign-in", "/register", "/enter", "/sign-out", "/memories", "/memories/import", "/memories/account",
    "/ui/gradio_api/call/chat", "/ui/gradio_api/queue/join", "/operators/rollback/x", "/operators/approve/x",
)  # fmt: skip


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://testserver:81"])
def test_a_page_of_another_site_sends_nothing(owner, house, path, origin):
    before = state(house)
    answer = owner.post(path, data={"username": "owner", "password": "x"}, headers={"Origin": origin})
    assert answer.status_code == 403, (path, answer.status_code)
    assert state(house) == before


def state(house) -> dict[str, str]:
    """A hash of each table, except what counts who asked."""
    with house.store.reading() as session:
        return {
            table.name: hashlib.sha256(repr(session.execute(select(table)).all()).encode()).hexdigest()
            for table in SQLModel.metadata.sorted_tables
            if table.name not in COUNTERS
        }


def test_looking_changes_nothing(owner, house):
    accounts = house.accounts
    key = {"Authorization": f"Bearer {accounts.issue(accounts.owner(), 'api_key')}"}
    said = owner.post("/api/v1/conversation/chat", json={"message": "I keep bees."}, headers=key).json()
    owner.post("/api/v1/feedback", json={"references": [said["turn_id"]], "score": 1}, headers=key)
    note = owner.post("/api/v1/memories", json={"text": "I keep bees."}, headers=key).json()["id"]
    mine = said | {
        "person_id": accounts.owner().id, "memory_id": note, "cursor": None, "memory_cursor": None, "run": "none",
        "adapter": "none",
    }  # fmt: skip
    token = accounts.issue(accounts.owner(), "sign_in")
    before, looked = state(house), 0
    for route, rule in (ROUTES | PAGES).items():
        method, path = route.split()
        if method == "GET":
            options = rule.call(mine)
            headers = options.pop("headers", {}) | key
            answer = owner.get(options.pop("path", path), headers=headers, **options)
            assert answer.status_code < 500, (route, answer.text)
            assert state(house) == before, route
            looked += 1
    for path in ("/", f"/enter?token={token}", *GATES, *ROOMS, "/ui/", "/ui/config", "/openapi.json"):
        owner.get(path)
        assert state(house) == before, path
    assert looked > 18
    assert owner.post("/enter", data={"token": token}).status_code == 303, "looking at it used the link up"
