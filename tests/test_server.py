"""What a server process does for those who wait, leave, or come back."""

import concurrent.futures
import json
import subprocess
import time

import httpx
import pytest

from mongars.serving.audit import Audit


def test_beyond_the_queue_is_429_and_nothing_of_it_is_stored(make_server):
    server = make_server(max_new_tokens=800, answers_waiting=2).start()
    ana = server.person("Ana")

    def ask(n: int) -> httpx.Response:
        return ana.post("/api/v1/conversation/chat", json={"message": f"Crowd {n}"})

    with concurrent.futures.ThreadPoolExecutor(8) as crowd:
        answers = list(crowd.map(ask, range(8)))
    busy = [a for a in answers if a.status_code == 429]
    assert {a.status_code for a in answers} == {200, 429} and len(busy) >= 3
    assert all(int(a.headers["Retry-After"]) >= 1 and a.json()["title"] for a in busy)
    turns = ana.get("/api/v1/conversation/history", params={"limit": 200}).json()["items"]
    assert len(turns) == 8 - len(busy) and all(t["response"] for t in turns)


def test_who_leaves_stops_the_model_and_keeps_what_was_said(make_server):
    server = make_server(max_new_tokens=6000, answers_waiting=0).start()
    ana = server.person("Ana")
    with ana.stream("POST", "/api/v1/conversation/chat", json={"message": "Talk", "stream": True}) as stream:
        heard = [line for line, _ in zip(stream.iter_lines(), range(40), strict=False)]
    assert any("token" in line for line in heard)
    left = time.monotonic()
    while (response := ana.get("/api/v1/conversation/history").json()["items"][0]["response"]) is None:
        assert time.monotonic() - left < 20, "the model went on without a listener"
        time.sleep(0.05)
    assert 0 < len(response) < 6000
    again = ana.post("/v1/chat/completions", json={
        "model": "tiny-chat", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3,
    })  # fmt: skip
    assert again.status_code == 200, "the only place was not given back"


def test_other_routes_answer_while_the_model_works(make_server):
    server = make_server(max_new_tokens=3000).start()
    ana = server.person("Wanda")
    with ana.stream("POST", "/api/v1/conversation/chat", json={"message": "Talk", "stream": True}) as stream:
        lines = stream.iter_lines()
        assert next(lines) == "event: start"
        assert ana.get("/healthz").status_code == 200
        items = ana.get("/api/v1/conversation/history").json()["items"]
        assert [t["response"] for t in items] == [None], "it was only answered when the model was done"
        rest = list(lines)
    ended = json.loads(rest[rest.index("event: done") + 1].removeprefix("data: "))
    assert len(ended["response"]) == 3000


def test_who_leaves_while_waiting_gives_the_place_back(make_server):
    server = make_server(max_new_tokens=7000, answers_waiting=1).start()
    ana, bo, cy = (server.person(name) for name in ("Ana", "Bo", "Cy"))
    with ana.stream("POST", "/api/v1/conversation/chat", json={"message": "Talk", "stream": True}) as stream:
        assert next(stream.iter_lines()) == "event: start"
        with pytest.raises(httpx.ReadTimeout):
            bo.post("/api/v1/conversation/chat", json={"message": "Me too"}, timeout=1)
        until = time.monotonic() + 10
        with pytest.raises(httpx.ReadTimeout):  # let in, and waiting: not 429
            while (
                cy.post("/api/v1/conversation/chat", json={"message": "And I"}, timeout=2).status_code == 429
            ):
                assert time.monotonic() < until, "Bo's place was never given back"
                time.sleep(0.1)


@pytest.mark.parametrize("by", ["uvicorn", "bentoml"])
def test_a_server_that_stops_gives_every_listener_an_end_and_keeps_what_was_said(make_server, by):
    server = make_server(max_new_tokens=7000)
    if by == "bentoml":
        server.by_bentoml()
    ana = server.start().person("Ana")
    with ana.stream("POST", "/api/v1/conversation/chat", json={"message": "Talk", "stream": True}) as stream:
        lines = stream.iter_lines()
        heard = [next(lines) for _ in range(30)]
        server.process.terminate()
        heard += list(lines)
    assert server.process.wait(15) is not None
    ended = json.loads(heard[heard.index("event: done") + 1].removeprefix("data: "))
    assert ended["finish_reason"] == "cancelled" and 0 < len(ended["response"]) < 7000
    kept = server.start().person("Ana").get("/api/v1/conversation/history").json()["items"][0]
    assert kept["response"] == ended["response"]


def test_no_header_says_where_somebody_comes_from(make_server):
    server = make_server()
    server.by_bentoml()
    server.start()
    guess, forged = {"username": "Nobody", "password": "wrong horse"}, {"X-Forwarded-For": "203.0.113.9"}
    with httpx.Client(base_url=server.url, trust_env=False) as client:
        assert client.post("/token", data=guess, headers=forged).status_code == 401
    line = Audit(server.folder / "home").lines()[-1]
    assert (line["what"], line["address"]) == ("sign_in", "127.0.0.1"), line


def test_an_api_key_that_was_ended_opens_nothing_any_more(server):
    lost, kept = (
        json.loads(server.mongars("user", "key", "owner", "--label", label, "--json").stdout)["key"]
        for label in ("lost", "kept")
    )
    rows = json.loads(server.mongars("user", "keys", "owner", "--json").stdout)
    ids = {row["label"]: row["id"] for row in rows}
    assert {"lost", "kept"} <= set(ids) and not any(lost in str(row) or kept in str(row) for row in rows)

    def status(key: str) -> int:
        url, bearer = f"{server.url}/api/v1/user/me", {"Authorization": f"Bearer {key}"}
        return httpx.get(url, headers=bearer, trust_env=False).status_code

    assert (status(lost), status(kept)) == (200, 200)
    server.mongars("user", "endkey", "owner", ids["lost"])
    assert (status(lost), status(kept)) == (401, 200)
    with pytest.raises(subprocess.CalledProcessError) as again:
        server.mongars("user", "endkey", "owner", ids["lost"])
    assert "mongars user keys" in again.value.stdout + again.value.stderr


def test_a_second_process_sees_and_adds_turns(server):
    ana = server.person("Yara")
    ana.post("/api/v1/conversation/chat", json={"message": "Said to the server"})
    server.mongars("chat", "Said in the terminal")
    owner = server.mongars("user", "key", "owner", "--json")
    key = json.loads(owner.stdout)["key"]
    items = ana.get("/api/v1/conversation/history", headers={"Authorization": f"Bearer {key}"}).json()[
        "items"
    ]
    assert [t["message"] for t in items] == ["Said in the terminal"] and items[0]["response"]


def test_the_registration_is_closed_where_others_can_reach_it(make_server):
    server = make_server(registration="false").start()
    client = httpx.Client(base_url=server.url, trust_env=False)
    answer = client.post("/api/v1/user/register", json={"username": "Eve", "password": "12345678"})
    assert answer.status_code == 403 and "user add" in answer.json()["detail"]
