"""What answers and runs cost: told with each answer, and an account whose parts add up."""

import json
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from test_experiments import COUNT, FINISH, JOIN, PARAMETERS, write_notebook
from typer.testing import CliRunner

from mongars.base.ledger import find_run
from mongars.serving.cli import app

FIELDS = {"joules", "gco2", "method", "seconds", "cpu_seconds"}


@pytest.fixture(scope="module")
def house(make_server):
    """A server that writes three answers at once."""
    return make_server(answers_at_once=3, max_new_tokens=300).start()


def used(server) -> float:
    """CPU-seconds of the server's process until now."""
    spent = psutil.Process(server.process.pid).cpu_times()
    return spent.user + spent.system


def energy_of_stream(client, text: str) -> dict:
    with client.stream("POST", "/api/v1/conversation/chat", json={"message": text, "stream": True}) as stream:
        lines = list(stream.iter_lines())
    return json.loads(lines[lines.index("event: done") + 1].removeprefix("data: "))["usage"]["energy"]


def test_answers_at_the_same_time_share_what_the_server_uses_and_an_idle_one_uses_nothing_of_theirs(house):
    ana = house.person("Ana")
    assert ana.get("/v1/models").json()["energy"] | {"said": ""} == {
        "method": "estimate", "watts_per_core": 3.75, "memory_watts": 3.0, "grams_per_kwh": 475.0, "counted": None,
        "said": "",
    }  # fmt: skip
    energy_of_stream(ana, "Warm up")
    before = used(house)
    with ThreadPoolExecutor(3) as crowd:
        took = list(crowd.map(lambda n: energy_of_stream(ana, f"Tell me more, {n}"), range(6)))
    whole = used(house) - before
    assert all(one.keys() == FIELDS and one["method"] == "estimate" for one in took)
    shared = sum(one["cpu_seconds"] for one in took)
    assert 0.75 * whole < shared <= whole + 0.02, (
        shared,
        whole,
    )  # counted once; the rest is HTTP and storing
    for one in took:
        assert 3.75 * one["cpu_seconds"] < one["joules"] <= 3.75 * one["cpu_seconds"] + 3.0 * one["seconds"]
        assert one["gco2"] == pytest.approx(one["joules"] / 3.6e6 * 475)


def test_every_way_to_be_answered_tells_the_same(house):
    ana = house.person("Ana")
    ask = {"json": {"message": "Once"}, "headers": {"Idempotency-Key": "once"}}
    once, again = (ana.post("/api/v1/conversation/chat", **ask).json() for _ in range(2))
    assert once["usage"] == again["usage"] and once["usage"]["energy"].keys() == FIELDS  # it was made once
    body = {"model": "tiny-chat", "messages": [{"role": "user", "content": "Hum"}], "max_tokens": 5}
    told = ana.post("/v1/chat/completions", json=body).json()["usage"]
    assert told["energy"].keys() == FIELDS and told["energy"]["joules"] > 0
    stream = ana.post(
        "/v1/chat/completions", json=body | {"stream": True, "stream_options": {"include_usage": True}}
    )
    last = json.loads(stream.text.strip().split("\n\n")[-2].removeprefix("data: "))
    assert last["usage"]["energy"].keys() == FIELDS


def asked(house, *words: str) -> str:
    """What a command says; here, where everything is imported already."""
    done = CliRunner().invoke(app, words, env=house.environment)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_parts_of_the_account_add_up_to_the_whole(house, tmp_path):
    bo = house.person("Bo")
    answers = [bo.post("/api/v1/conversation/chat", json={"message": f"Say {n}"}).json() for n in range(3)]
    bo.post("/api/v1/feedback", json={"references": [answers[0]["turn_id"]], "score": 1}).raise_for_status()
    hello = write_notebook(
        tmp_path / "hello.ipynb", PARAMETERS + "\nbase = 'tiny-llama'", JOIN, COUNT, FINISH
    )
    done = json.loads(house.mongars("run", str(hello), "--json").stdout)
    run = find_run(house.folder / "home", done["run"])
    stages = [stage["joules"] for stage in run.energy()["stages"].values()]
    assert sum(stages) == pytest.approx(done["joules"], rel=0.02)
    account = json.loads(asked(house, "energy", "--json"))
    total = account["total"]
    assert (total["runs"], total["unknown"]) == (1, 0) and total["joules"] > done["joules"] > 0
    for parts in ("days", "runs", "models"):
        for amount in ("joules", "gco2"):
            assert sum(part[amount] for part in account[parts]) == pytest.approx(total[amount], rel=0.02)
        assert sum(part["answers"] for part in account[parts]) == total["answers"]
    question = "SELECT sum(joules) AS j, count(*) AS n FROM energy WHERE stage = 'answer'"
    [row] = json.loads(asked(house, "sql", question, "--json"))
    assert row["n"] == total["answers"] and row["j"] + done["joules"] == pytest.approx(total["joules"])
    question = "SELECT turn, joules, seconds, completion_tokens AS n, score, model FROM turns WHERE person = "
    whose = f"SELECT person FROM turns WHERE turn = '{answers[0]['turn_id']}'"
    [row] = json.loads(asked(house, "sql", whose, "--json"))
    rows = json.loads(asked(house, "sql", f"{question}'{row['person']}' ORDER BY asked_at", "--json"))
    told = [
        {
            "turn": a["turn_id"], "joules": a["usage"]["energy"]["joules"], "seconds": a["usage"]["energy"]["seconds"],
            "n": a["usage"]["completion_tokens"], "score": 1 if n == 0 else None, "model": "tiny-chat",
        }
        for n, a in enumerate(answers)
    ]  # fmt: skip
    assert rows == told
    said = json.loads(asked(house, "sql", "SELECT * FROM turns", "--json"))
    assert not any("Say" in str(value) or answers[0]["response"] in str(value) for value in said)
    talk = answers[0]["conversation_id"]
    bo.delete(f"/api/v1/conversations/{talk}").raise_for_status()  # what is deleted takes its figures with it
    left = json.loads(asked(house, "energy", "--json"))["total"]
    gone = sum(a["usage"]["energy"]["joules"] for a in answers if a["conversation_id"] == talk)
    assert left["joules"] == pytest.approx(total["joules"] - gone)
    table = asked(house, "energy")
    assert (
        "Energy by model" in table and "tiny-llama" in table and "all answers" in table and "In all" in table
    )
