"""The log tells what failed and where, and never what was said, unless a switch says at the start that it may."""

import itertools
import logging

import pytest

WORD, numbers = "zebrafinch", itertools.count()


def bearer(client) -> dict[str, str]:
    accounts = client.app.state.house.accounts
    return {"Authorization": f"Bearer {accounts.issue(accounts.owner(), 'api_key')}"}


def say_everywhere(client, key: dict[str, str]) -> None:
    """Have a word said, asked for and refused in every way there is."""
    said = {"message": f"My {WORD} sings."}
    client.post("/api/v1/conversation/chat", json=said, headers=key)
    client.post("/api/v1/conversation/chat", json=said | {"stream": True}, headers=key)
    body = {"model": "tiny-chat", "messages": [{"role": "user", "content": WORD}], "max_tokens": 2}
    for stream in (False, True):
        client.post("/v1/chat/completions", json=body | {"stream": stream}, headers=key)
    with client.websocket_connect("/ws/chat/", headers=key) as socket:
        socket.send_json({"type": "chat", "id": f"{WORD} {next(numbers)}", "text": f"The {WORD} again"})
        while socket.receive_json()["type"] not in ("done", "error"):
            pass
    client.post("/api/v1/memories", json={"text": f"A {WORD}"}, headers=key)
    client.post("/api/v1/memories", json={"text": f"A {WORD}\0"}, headers=key)
    client.post("/v1/embeddings", json={"model": "tiny-encoder", "input": WORD}, headers=key)
    client.get("/api/v1/memories/search", params={"q": WORD}, headers=key)


def lines(caplog) -> str:
    """What the server logs; the client of this test logs addresses of its own."""
    shown = logging.Formatter("%(name)s %(message)s")
    ours = [
        record for record in caplog.records if not record.name.startswith(("httpx", "httpcore", "asyncio"))
    ]
    return "\n".join(map(shown.format, ours))


def broken(*values, **options):
    """Fail on the very words that are given."""
    raise ValueError(f"cannot take {WORD}, {values!r}, {options!r}")


@pytest.mark.parametrize("debug", [False, True])
def test_what_was_said_is_in_the_log_only_where_a_switch_says_so(make_app, monkeypatch, caplog, capfd, debug):
    caplog.set_level(logging.DEBUG)
    with make_app(debug=debug) as client:
        key, house = bearer(client), client.app.state.house
        say_everywhere(client, key)
        assert WORD not in lines(caplog)
        with monkeypatch.context() as patch:
            patch.setattr(type(house.model.engine), "generate", broken)
            say_everywhere(client, key)
        for name in ("add", "recall"):
            monkeypatch.setattr(type(house.hippocampus), name, broken)
        say_everywhere(client, key)
        refused = client.post("/api/v1/memories", json={"text": f"A {WORD}"}, headers=key)
    assert refused.status_code == 500 and WORD not in refused.text
    told = lines(caplog)
    assert "/api/v1/memories failed" in told and "ValueError" in told and "test_logs.py" in told
    assert told.count("an answer failed in mid-stream") >= 3
    assert ("MONGARS_DEBUG is on" in told) == debug == (WORD in told)
    assert debug or WORD not in "".join(capfd.readouterr())


def test_a_row_that_cannot_be_written_is_not_repeated(make_app, monkeypatch, caplog):
    """A database names the values of the row that it refused."""
    from sqlalchemy import text

    caplog.set_level(logging.DEBUG)
    with make_app() as client:
        key, house = bearer(client), client.app.state.house
        with house.store.writing() as session:
            session.execute(
                text(
                    "CREATE TRIGGER refuse BEFORE INSERT ON utterance BEGIN SELECT RAISE(ABORT, 'refused'); END"
                )
            )
        answer = client.post("/api/v1/conversation/chat", json={"message": f"My {WORD}"}, headers=key)
    told = lines(caplog)
    assert answer.status_code == 500 and "IntegrityError" in told and WORD not in told + answer.text
