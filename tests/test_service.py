"""`mongars up` with the default models: BentoML serves, remembers over a restart, and leaves nobody behind."""

import os
import re
import signal
import socket
import sys
import time

import pytest

UP = [sys.executable, "-c", "from mongars.serving.cli import main; main()", "up"]
TOLD = "My sister Odile keeps bees in Annecy."


def wait_for_free(port: int, patience: float = 10) -> None:
    """Return when nobody listens on a port any more."""
    until = time.monotonic() + patience
    while time.monotonic() < until:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return
        time.sleep(0.05)
    raise AssertionError(f"somebody still listens on {port}")


@pytest.fixture(scope="module")
def up(make_server):
    """A running `mongars up` with the default models."""
    return make_server(page=True, command=UP, model=None, embedder=None, max_new_tokens=48).start(
        patience=240
    )


def chat(client, message: str) -> dict:
    answer = client.post("/api/v1/conversation/chat", json={"message": message})
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.timeout(400)
def test_what_was_told_is_recalled_after_a_restart_in_a_new_conversation(up):
    ana = up.person("Ana")
    told = [
        TOLD,
        "What is a good name for a boat?",
        "I need to buy flour tomorrow.",
        "How long do I boil an egg?",
    ]
    turns = [chat(ana, text) for text in told]
    assert len({turn["conversation_id"] for turn in turns}) == 4
    key = (up.folder / "home" / "secret_key").read_bytes()
    up.stop()
    assert up.process.returncode == 0 and "Everything said is kept" in up.log
    up.start()
    assert (up.folder / "home" / "secret_key").read_bytes() == key  # the token of before is still good
    answer = chat(ana, "Where does my sister live?")
    assert [m["text"] for m in answer["memories"]] == [TOLD] and answer["memories"][0]["speaker"] == "Ana"
    assert "annecy" in answer["response"].lower() and answer["model"] == "SmolLM2-135M-Instruct"
    items = ana.get("/api/v1/conversation/history").json()["items"]
    assert [t["message"] for t in reversed(items)] == [*told, "Where does my sister live?"]
    assert all(t["response"] for t in items)


@pytest.mark.timeout(200)
def test_a_killed_head_takes_its_family_with_it_and_the_next_start_works(up):
    if not sys.platform.startswith("linux"):
        pytest.skip("only Linux ends children with their parent")
    os.kill(up.process.pid, signal.SIGKILL)
    up.process.wait()
    wait_for_free(up.port)
    up.start()
    assert len(up.person("Ana").get("/api/v1/conversation/history").json()["items"]) == 5


def test_the_link_opens_the_page_once_as_the_owner(up):
    import httpx

    link = re.findall(r"http://127\.0\.0\.1:\d+/enter\?token=\S+", up.log)[-1]
    with httpx.Client(base_url=up.url, trust_env=False, follow_redirects=True, timeout=60) as browser:
        assert browser.get("/ui/").url.path == "/sign-in"
        assert (
            browser.get(link).status_code == 200 and browser.get("/ui/").url.path == "/sign-in"
        )  # looking changes nothing
        token = link.partition("token=")[2]
        assert browser.post("/enter", data={"token": token}).url.path == "/ui/"
        assert browser.get("/ui/").status_code == 200
        assert browser.get("/").url.path == "/ui/"
    with httpx.Client(base_url=up.url, trust_env=False) as other:
        assert other.post("/enter", data={"token": token}).status_code in (401, 403, 410)


def test_health_is_told(up):
    client = up.person("Ana")
    assert client.get("/healthz").status_code == 200
    assert client.get("/ready").json() == {"status": "ready", "model": "SmolLM2-135M-Instruct"}
    chat(client, "Hello")
    assert 'mongars_tokens_total{direction="written"}' in client.get("/metrics").text


def test_a_second_up_on_the_same_port_says_so_and_changes_nothing(up, make_server):
    import subprocess

    second = make_server(page=True, command=UP, model=None, embedder=None, port=up.port)
    run = subprocess.run(UP, env=second.environment, cwd=second.folder, capture_output=True, text=True)
    assert run.returncode == 1 and f"Port {up.port}" in run.stderr and "MONGARS_PORT" in run.stderr
    assert not (second.folder / "home").exists()


def test_its_log_holds_nothing_that_was_said_or_asked(up):
    client = up.person("Ana")
    assert client.get("/api/v1/memories/search", params={"q": "Where does Odile live?"}).json()["items"]
    assert client.get("/api/v1/memories", params={"text": "flour"}).json()["items"]
    assert not [word for word in ("Odile", "bees", "flour", "boil") if word in up.log]
