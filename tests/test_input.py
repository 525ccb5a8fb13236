"""What somebody types goes through unchanged, whichever way it takes; what cannot be kept is refused."""

import json

import pytest
from routes import ROUTES

from mongars.serving.doors import COOKIE

TEXTS = {
    "angles": "a<b && c>d: vector<int> x; <script>alert(1)</script> &amp; &lt;",
    "emoji": "👩‍👩‍👧 🏴󠁧󠁢󠁥󠁮󠁧󠁿 ☎️ 🇫🇷",
    "combining": "e\u0301 is not \u00e9; Z\u0351\u034a\u0352a\u0300\u0323",
    "right to left": "שלום עולם \u202bمرحبا\u202c \u2067x\u2069 \u200f.",
    "controls": "tab\t, bell\x07, \x1b[31mred\x1b[0m, nel\x85, zero\u200bwidth, bom\ufeff",
    "lines": "one\r\ntwo\n\n\n  three  \u2028four ",
    "code": "{{ 7*7 }} ${PATH} %s %00 $(id) `id` '; DROP TABLE person; -- \\u0000 \\",
    "far planes": "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 \U0010fffd \ue000",
}


@pytest.fixture(scope="module")
def bearer(app) -> dict[str, str]:
    house = app.app.state.house
    return {
        "Authorization": f"Bearer {house.accounts.issue(house.accounts.register('Typist', None), 'api_key')}"
    }


def newest(app, bearer) -> dict:
    return app.get("/api/v1/conversation/history", params={"limit": 1}, headers=bearer).json()["items"][0]


def by_chat(app, bearer, text):
    answer = app.post("/api/v1/conversation/chat", json={"message": text}, headers=bearer)
    assert answer.status_code == 200, answer.text
    return newest(app, bearer)["message"]


def by_stream(app, bearer, text):
    answer = app.post("/api/v1/conversation/chat", json={"message": text, "stream": True}, headers=bearer)
    assert "event: done" in answer.text
    return newest(app, bearer)["message"]


def by_openai(app, bearer, text):
    body = {"model": "tiny-chat", "messages": [{"role": "user", "content": text}], "max_tokens": 2}
    assert app.post("/v1/chat/completions", json=body, headers=bearer).status_code == 200
    return newest(app, bearer)["message"]


def by_websocket(app, bearer, text):
    with app.websocket_connect("/ws/chat/", headers=bearer) as socket:
        socket.send_text(
            json.dumps({"type": "chat", "id": "1" + text[:20], "text": text}, ensure_ascii=False)
        )
        while socket.receive_json()["type"] not in ("done", "error"):
            pass
    return newest(app, bearer)["message"]


def by_memory(app, bearer, text):
    made = app.post("/api/v1/memories", json={"text": text}, headers=bearer)
    assert made.status_code == 201, made.text
    return app.get(f"/api/v1/memories/{made.json()['id']}", headers=bearer).json()["text"]


def by_correction(app, bearer, text):
    made = app.post("/api/v1/memories", json={"text": f"Not {text}"}, headers=bearer).json()["id"]
    corrected = app.post(f"/api/v1/memories/{made}/correction", json={"text": text}, headers=bearer)
    return app.get(f"/api/v1/memories/{corrected.json()['id']}", headers=bearer).json()["text"]


def by_edit(app, bearer, text):
    turn = app.post("/api/v1/conversation/chat", json={"message": "Hello"}, headers=bearer).json()["turn_id"]
    rated = {"references": [turn], "score": -1, "edit": text}
    assert app.post("/api/v1/feedback", json=rated, headers=bearer).status_code == 200
    return app.get(f"/api/v1/feedback/{turn}", headers=bearer).json()["edit"]


WAYS = [by_chat, by_stream, by_openai, by_websocket, by_memory, by_correction, by_edit]


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("way", WAYS)
def test_text_goes_through_unchanged(app, bearer, way, kind):
    assert way(app, bearer, TEXTS[kind]) == TEXTS[kind]


def test_it_is_the_same_in_the_export_and_after_an_import(app, bearer, make_app):
    for text in TEXTS.values():
        by_memory(app, bearer, text)
    kept = {memory["text"] for memory in app.get("/api/v1/me/export", headers=bearer).json()["memories"]}
    assert set(TEXTS.values()) <= kept
    with make_app(page=True) as client:
        house = client.app.state.house
        client.cookies.set(COOKIE, house.accounts.issue(house.accounts.owner(), "session"))
        lines = "\n".join(json.dumps({"text": text}) for text in TEXTS.values())
        sent = client.post("/memories/import", content=lines.encode(), headers={"X-File-Name": "a.jsonl"})
        assert sent.status_code == 200, sent.text
        client.app.state.arrivals.of(house.accounts.owner().id).thread.join(60)
        key = {"Authorization": f"Bearer {house.accounts.issue(house.accounts.owner(), 'api_key')}"}
        page = client.get("/api/v1/memories", params={"limit": 200}, headers=key).json()["items"]
        assert {memory["text"] for memory in page} == set(TEXTS.values())
        shown = client.get("/memories", headers={"X-Fragment": "1"}).text
        assert "a&lt;b &amp;&amp; c&gt;d" in shown and "<script>alert" not in shown


def texts_in(document: dict, route: str) -> list[tuple[str, list[str]]]:
    """The fields of a route in which a text can be sent: where they are, and the way to each."""
    method, path = route.split()
    operation = document["paths"][path][method.lower()]
    found = [(p["in"], [p["name"]]) for p in operation.get("parameters", ()) if p["in"] in ("query", "path")]
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    named = [part for part in (body, *body.get("anyOf", ())) if "$ref" in part]
    for part in named:
        schema = document["components"]["schemas"][part["$ref"].rpartition("/")[2]]
        for name, field in schema["properties"].items():
            kinds = [field, *field.get("anyOf", ()), field.get("items", {})]
            if any(kind.get("type") == "string" for kind in kinds):
                found.append(("body", [name]))
    return found


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_a_nul_character_gets_422_with_a_reason_wherever_it_is_sent(make_app, request, database):
    settings = {"database_url": request.getfixturevalue("postgres")} if database == "postgresql" else {}
    with make_app(**settings) as client:
        house, tried = client.app.state.house, 0
        person = house.accounts.find("Nul") or house.accounts.register("Nul", None, "admin")
        key = {"Authorization": f"Bearer {house.accounts.issue(person, 'api_key')}"}
        said = client.post("/api/v1/conversation/chat", json={"message": "Hello"}, headers=key).json()
        note = client.post("/api/v1/memories", json={"text": "I keep bees."}, headers=key).json()["id"]
        mine = {"person_id": person.id, "memory_id": note, "cursor": None, "memory_cursor": None, **said}
        document = client.get("/openapi.json").json()
        for route, rule in ROUTES.items():
            for place, way in texts_in(document, route):
                options = rule.call(mine)
                method, path = route.split()
                headers = options.pop("headers", {}) | key
                path = options.pop("path", path)
                if place == "path":
                    path = route.split()[1].replace("{id}", "a%00b").replace("{name}", "a%00b")
                elif place == "query":
                    options["params"] = (options.get("params") or {}) | {way[0]: "a\0b"}
                else:
                    was = options.get("json", {}).get(way[0])
                    options["json"] = options.get("json", {}) | {
                        way[0]: ["a\0b"] if isinstance(was, list) and way[0] == "references" else "a\0b"
                    }
                answer = client.request(method, path, headers=headers, **options)
                assert answer.status_code == 422, (route, place, way, answer.status_code, answer.text)
                reason = answer.json().get("detail") or answer.json()["error"]["message"]
                assert way[0] in reason or "NUL" in reason, (route, way, reason)
                tried += 1
        assert tried > 60, tried
