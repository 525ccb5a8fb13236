"""`kill -9` at any moment: nothing acknowledged is lost, nothing is doubled, and the next start works."""

import asyncio
import json
import random
import threading
import time

import httpx
import pytest
from load import faults
from load.stand import Stand
from load.traffic import Traffic, figures

ANSWER_TOKENS = 200
# where the kill comes: before the answer, in mid-stream, or around the answer's commit (the end of the tokens)
MOMENTS = (
    ["at once"] * 4 + ["first token"] * 3 + ["mid-stream"] * 6 + ["around the commit"] * 6 + ["after the end"]
)


def ask_and_kill(server, client: httpx.Client, key: str, text: str, moment: str, dice: random.Random) -> str:
    """Ask something, kill the server at a moment of the stream; what the client got: nothing, a start, or the end."""
    body, got, pieces = {"message": text, "stream": True}, "nothing", 0
    kill_after = {
        "first token": 1,
        "mid-stream": dice.randrange(5, 150),
        "around the commit": ANSWER_TOKENS - 2,
        "after the end": -1,  # by the end itself
    }.get(moment)
    if kill_after is None:
        threading.Timer(dice.uniform(0, 0.05), server.kill).start()
    try:
        with client.stream(
            "POST", "/api/v1/conversation/chat", json=body, headers={"Idempotency-Key": key}
        ) as stream:
            assert stream.status_code == 200
            for line in stream.iter_lines():
                if line.startswith("event: "):
                    event = line.removeprefix("event: ")
                    got = {"start": "start", "done": "done"}.get(event, got)
                    pieces += event == "token"
                    if (moment, event) == ("after the end", "done"):
                        server.kill()
                    if pieces == kill_after and server.process.poll() is None:
                        if moment == "around the commit":
                            time.sleep(dice.uniform(0, 0.02))
                        server.kill()
    except httpx.TransportError:
        pass
    server.process.wait(60) if kill_after is None else None
    if server.process.poll() is None:  # the answer was faster than the kill
        server.kill()
    return got


@pytest.mark.timeout(400)
def test_no_acknowledged_turn_is_lost_and_none_is_doubled(make_server):
    server, dice = make_server(max_new_tokens=ANSWER_TOKENS, forked=True).start(), random.Random(5)
    acknowledged, outcomes = {}, []
    client = server.person("Ana")
    for n, moment in enumerate(MOMENTS):
        text = f"Message {n}"
        got = ask_and_kill(server, client, f"key-{n}", text, moment, dice)
        outcomes.append((moment, got))
        acknowledged[text] = got
        server.start()
        shown = {}
        for turn in client.get("/api/v1/conversation/history", params={"limit": 200}).json()["items"]:
            assert turn["message"] not in shown, f"doubled: {turn['message']}"
            shown[turn["message"]] = turn
        for said, how in acknowledged.items():
            if how != "nothing":
                assert said in shown, f"lost: {said} was acknowledged by {how}"
            if how == "done":
                assert shown[said]["response"], f"the answer to {said} was acknowledged and is lost"
    # a retry of each with its key answers what was not answered, and doubles nothing
    for n in range(len(MOMENTS)):
        body = {"message": f"Message {n}"}
        again = client.post("/api/v1/conversation/chat", json=body, headers={"Idempotency-Key": f"key-{n}"})
        assert again.status_code == 200, again.text
        assert len(again.json()["response"]) == ANSWER_TOKENS
    turns = client.get("/api/v1/conversation/history", params={"limit": 200}).json()["items"]
    assert sorted(t["message"] for t in turns) == sorted(f"Message {n}" for n in range(len(MOMENTS)))
    assert all(t["response"] for t in turns)
    # the kills came where they were meant to: some before the end was told, some after
    assert ("after the end", "done") in outcomes, json.dumps(outcomes)
    assert outcomes.count(("mid-stream", "start")) >= 5, json.dumps(outcomes)


@pytest.fixture(scope="module")
def stand(tmp_path_factory):
    """A house with a fast model server, whose clock can be set."""
    with Stand(folder=tmp_path_factory.mktemp("stand"), clock=True) as stand:
        yield stand


def test_a_crowd_is_answered_and_leaves_nothing_open(stand):
    async def talk() -> tuple[list, list]:
        people = stand.people(5, "crowd")
        async with Traffic(stand, people, 15, "Crowd") as traffic:
            await traffic.open_loop(6, 4)
            await traffic.settled()
            assert stand.gauges()["mongars_listeners"] == 5
            return traffic.diary.seen, await stand.wrong(people, traffic.diary.turns)

    seen, wrong = asyncio.run(talk())
    assert not wrong and {one.status for one in seen} == {200}, figures(seen)
    until = time.monotonic() + 10
    while stand.gauges()["mongars_listeners"]:
        assert time.monotonic() < until, "a WebSocket is still open"
        time.sleep(0.05)


FAULTS = {
    "the database is held by another process": lambda *who: faults.locked(*who, seconds=2, around=0.5),
    "the model breaks off": lambda *who: faults.model_breaks(*who, seconds=2),
    "the disk takes nothing": lambda *who: faults.unwritable(*who, seconds=2, around=0.5),
    "the clock is set back": lambda *who: faults.clock_back(*who, seconds=0.7, around=0.3),
    "it is killed": lambda *who: faults.kills(*who, times=3, around=0.5, most=1.5),
}


@pytest.mark.parametrize("what", FAULTS)
def test_whatever_breaks_each_message_is_answered_or_refused_and_kept_once(stand, what):
    found = asyncio.run(FAULTS[what](stand, stand.people(6, what)))
    assert not found["wrong"], found
    assert found["answered"] >= 6 or what == "the model breaks off", found
    broken = {
        "the disk takes nothing": "refused 503",
        "the model breaks off": "error 503",
        "it is killed": "broken",
    }
    assert what not in broken or found["endings"].get(broken[what]), found  # it did break
