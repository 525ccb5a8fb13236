"""Every route of the OpenAPI document, tried by everybody: a route without a rule fails here."""

import pytest
from routes import CANARY, ROUTES

from mongars.base.tables import now_utc
from mongars.serving.accounts import ROLES
from mongars.serving.sessions import Sessions
from mongars.serving.tokens import Tokens

NOBODY = (
    "nothing",
    "rubbish",
    "an expired token",
    "an ended session",
    "a disabled account",
    "a revoked API key",
)
WRONG_PASSWORD = "POST /api/v1/auth/password"  # its 401 says something else


@pytest.fixture(scope="module")
def house(app):
    return app.app.state.house


@pytest.fixture(scope="module")
def bo(app, house) -> dict:
    """What is Bo's, who is a user."""
    bo = house.accounts.register("matrix.bo", None)
    headers = {"Authorization": f"Bearer {house.sessions.begin(bo).access}"}
    said = app.post(
        "/api/v1/conversation/chat", json={"message": f"My {CANARY} sings."}, headers=headers
    ).json()
    app.post("/api/v1/conversation/chat", json={"message": "It does."}, headers=headers)
    cursor = app.get("/api/v1/conversation/history", params={"limit": 1}, headers=headers).json()["next"]
    page = app.get("/api/v1/memories", params={"limit": 1}, headers=headers).json()
    memory = app.get("/api/v1/memories", params={"text": CANARY}, headers=headers).json()["items"][0]
    return {
        **said, "person_id": bo.id, "cursor": cursor, "memory_cursor": page["next"], "memory_id": memory["id"]
    }  # fmt: skip


@pytest.fixture
def credential(house, request) -> str:
    """What somebody sends: a role's own fresh token, or one that is worth nothing (any more), of an admin."""
    who = request.param
    name = f"matrix.{who.replace(' ', '.')}"
    person = house.accounts.find(name) or house.accounts.register(
        name, None, who if who in ROLES else "admin"
    )
    if who in ROLES:
        return house.sessions.begin(person).access
    if who == "an expired token":
        past = Tokens(house.tokens._keys, minutes=-1, clock=now_utc)
        return Sessions(house.store, house.accounts, past).begin(person).access
    if who == "an ended session":
        access = house.sessions.begin(person).access
        house.sessions.end(house.sessions.caller(access).credential)
        return access
    if who == "a disabled account":
        access = house.sessions.begin(person).access
        house.accounts.change(person.id, disabled=True)
        house.accounts.change(person.id, disabled=False)
        return access
    if who == "a revoked API key":
        key = house.accounts.issue(person, "api_key")
        house.accounts.revoke("api_key", key)
        return key
    return {"nothing": "", "rubbish": "x.y.z"}[who]


def test_every_route_has_a_rule_and_every_rule_a_route(app):
    paths = app.get("/openapi.json").json()["paths"]
    assert {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods} == set(
        ROUTES
    )


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("credential", [*NOBODY, *ROLES], indirect=True)
def test_a_route_is_for_whom_its_rule_says(app, bo, route, credential, request):
    who = request.node.callspec.params["credential"]
    rule, (method, path), options = ROUTES[route].rule, route.split(), ROUTES[route].call(bo)
    headers = {
        **options.pop("headers", {}),
        **({"Authorization": f"Bearer {credential}"} if credential else {}),
    }
    answer = app.request(method, options.pop("path", path), headers=headers, **options)
    assert answer.status_code < 500, answer.text
    if rule == "open":
        return
    if who in NOBODY:
        assert answer.status_code == 401 and answer.json().get("title", "") in ("Sign in first", ""), (
            answer.text
        )
    elif ROLES.index(who) < ROLES.index(rule):
        assert answer.status_code == 403 and rule in answer.json()["detail"], answer.text
    elif (
        "{id}" in route or route == "POST /api/v1/feedback"
    ) and rule == "user":  # what is Bo's is not there for anybody else, whatever the role
        assert answer.status_code == 404, answer.text
    elif route == WRONG_PASSWORD:
        assert answer.status_code in (401, 429) and "assword" in answer.json()["detail"], answer.text
    else:
        assert answer.status_code not in (401, 403), answer.text
    assert CANARY not in answer.text


def test_the_schema_says_which_routes_want_a_credential(app):
    paths = app.get("/openapi.json").json()["paths"]
    for name, route in ROUTES.items():
        method, path = name.split()
        wants = bool(paths[path][method.lower()].get("security"))
        assert wants == (route.rule != "open"), name
