"""Two people never see each other's turns, memories or history: every route, with every kind of credential."""

import json

import pytest
from routes import CANARY, ROUTES

CALLS = {name: route.call for name, route in ROUTES.items()}
NAMING = {"POST /api/v1/feedback"} | {route for route in CALLS if "{id}" in route}
OPEN = {name for name, route in ROUTES.items() if route.rule == "open"}


@pytest.fixture(scope="module")
def bo(server) -> dict:
    """Bo, who has said things with his word in them."""
    client = server.person("Bo")
    said = {"message": f"My {CANARY} sings in the morning."}
    answer = client.post(
        "/api/v1/conversation/chat", json=said, headers={"Idempotency-Key": "bos-key"}
    ).json()
    assert CANARY in json.dumps(client.get("/api/v1/conversation/history").json())
    client.post("/api/v1/conversation/chat", json={"message": f"The {CANARY} again."})
    thought = {"references": [answer["turn_id"]], "score": 1, "comment": f"A {CANARY} indeed"}
    assert client.post("/api/v1/feedback", json=thought).status_code == 200
    assert client.put("/api/v1/me/consent", json={"training_consent": True}).json()["training_consent"]
    cursor = client.get("/api/v1/conversation/history", params={"limit": 1}).json()["next"]
    page = client.get("/api/v1/memories", params={"limit": 1}).json()
    memory_id = client.get("/api/v1/memories", params={"text": "sings"}).json()["items"][0]["id"]
    person_id = client.get("/api/v1/user/me").json()["id"]
    return {
        **answer,
        "person_id": person_id,
        "cursor": cursor,
        "memory_cursor": page["next"],
        "memory_id": memory_id,
    }


def routes_of(server) -> set[str]:
    """Every route of the running server."""
    paths = server.person("Ana").get("/openapi.json").json()["paths"]
    return {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}


def test_every_route_has_a_way_to_be_tried(server):
    assert routes_of(server) == set(CALLS)


@pytest.mark.parametrize("credential", ["token", "api key"])
@pytest.mark.parametrize("route", CALLS)
def test_ana_never_meets_what_is_bos(server, bo, route, credential):
    ana = server.person("Ana")
    if credential == "api key":
        ana.headers["Authorization"] = f"Bearer {server.api_key('Ana')}"
    method, path = route.split()
    options = CALLS[route](bo)
    path = options.pop("path", path)
    answer = ana.request(method, path, **options)
    assert answer.status_code < 500, answer.text
    if "logout" in route:  # she did sign out
        del server.tokens["Ana"]
        ana = server.person("Ana")
    if route in NAMING:  # another's is told like one that is not there, to the letter
        nowhere = {name: "0" * 32 for name in ("conversation_id", "turn_id", "memory_id", "person_id")}
        elsewhere = CALLS[route](bo | nowhere)
        missing = ana.request(method, elsewhere.pop("path", path), **elsewhere)
        hidden = 404 if ROUTES[route].rule == "user" else 403
        assert answer.status_code == missing.status_code == hidden, answer.text
        ours = max(path.split("/"), key=len) if "{id}" in route else bo["turn_id"]
        assert answer.text.replace(ours, "0" * 32) == missing.text
    else:
        assert bo["turn_id"] not in answer.text
    assert CANARY not in answer.text
    if bo["conversation_id"] in json.dumps(options):  # naming what is Bo's is as if it were not there
        own = answer.status_code == 200 and answer.headers.get("X-Conversation-Id") not in (
            None,
            bo["conversation_id"],
        )
        nothing = answer.status_code == 200 and answer.json() == {"items": [], "next": None}
        assert answer.status_code == 404 or own or nothing, answer.text
    history = ana.get("/api/v1/conversation/history", params={"limit": 200}).text
    assert CANARY not in history and bo["conversation_id"] not in history


@pytest.mark.parametrize("route", sorted(set(CALLS) - OPEN))
def test_nothing_is_answered_without_a_credential(server, bo, route):
    ana = server.person("Ana")
    method, path = route.split()
    options = CALLS[route](bo)
    path = options.pop("path", path)
    for credential in ("", "Bearer", "Bearer mg-wrong", "Bearer x.y.z", "Basic Qm86Ym8="):
        ana.headers["Authorization"] = credential
        answer = ana.request(method, path, **options)
        assert answer.status_code == 401 and CANARY not in answer.text, (credential, answer.text)


def test_nothing_of_bos_was_changed(server, bo):
    client = server.person("Bo")
    memory = client.get(f"/api/v1/memories/{bo['memory_id']}").json()
    assert CANARY in memory["text"] and memory["expires_at"] is None and memory["superseded_by"] is None
    assert not client.get(f"/api/v1/conversations/{bo['conversation_id']}").json()["paused"]
    rating = client.get(f"/api/v1/feedback/{bo['turn_id']}").json()
    assert rating["score"] == 1 and CANARY in rating["comment"]
    assert client.get("/api/v1/me/consent").json()["training_consent"]


def test_the_same_words_recall_only_ones_own(server, bo):
    words = {"message": f"My {CANARY} sings in the morning, I think"}
    assert server.person("Cleo").post("/api/v1/conversation/chat", json=words).json()["memories"] == []
    own = server.person("Bo").post("/api/v1/conversation/chat", json=words)
    assert CANARY in own.json()["memories"][0]["text"]
