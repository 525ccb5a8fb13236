"""The chat page in a real browser, against a real server process with tiny models."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import httpx
import numpy as np
import pytest

from mongars.base.store import Store
from mongars.memory.conversations import Conversations, Outcome
from mongars.memory.records import ASSISTANT, Encoded, Told
from mongars.serving.accounts import Accounts

pytestmark = pytest.mark.timeout(90)
playwright = pytest.importorskip("playwright.sync_api")
expect = playwright.expect

FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
SERVE = """
import sys, uvicorn
from pathlib import Path
from mongars.base.settings import read_settings
from mongars.neurons.tiny_model import make_chat_model, make_encoder
from mongars.serving.api import create_app
from mongars.serving.page import add_page
home, port = Path(sys.argv[1]), int(sys.argv[2])
settings = read_settings(
    _env_file=None, home=home, models=home / "models", port=port, max_new_tokens=400,
    model=str(make_chat_model(home / "chat")), embedder=str(make_encoder(home / "encoder")),
)
uvicorn.run(add_page(create_app(settings)), host="127.0.0.1", port=port, log_level="warning")
"""


@dataclass(frozen=True)
class Server:
    url: str
    store: Store

    @property
    def accounts(self) -> Accounts:
        return Accounts(self.store)


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("home")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with (home / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE, str(home), str(port)], stdout=log, stderr=log
        )
        try:
            until = time.monotonic() + 90
            while not is_ready(url):
                assert process.poll() is None and time.monotonic() < until, (home / "log").read_text()
                time.sleep(0.2)
            yield Server(url, Store(f"sqlite:///{home / 'mongars.sqlite3'}"))
        finally:
            process.kill()
            process.wait()


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready").status_code == 200
    except httpx.TransportError:
        return False


# --- a browser


def browser_path(driver) -> str | None:
    own = driver.chromium.executable_path
    found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    return found or (own if Path(own).exists() else None)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        path = browser_path(driver)
        if path is None:
            assert not os.environ.get("MONGARS_REQUIRE_BROWSER"), (
                "a browser is required here, and there is none"
            )
            pytest.skip(
                "no Chromium: put `chromium` on the PATH, set CHROMIUM, or `playwright install chromium`"
            )
        browser = driver.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, server):
    """An empty browser; at the end, nothing was asked of another origin, and nothing was kept but the cookie."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    requests, broken = [], []
    context.on("request", lambda request: requests.append(request))
    page.on("pageerror", lambda error: broken.append(str(error)))
    yield page
    elsewhere = [
        r.url for r in requests if not r.url.startswith((server.url, "data:")) and r.failure != "csp"
    ]
    assert requests and not elsewhere and not broken
    if page.url.startswith(server.url):
        assert page.evaluate("[localStorage.length, sessionStorage.length]") == [0, 0]
    context.close()


people = iter(range(1000))


def someone(server: Server, password: str | None = None):
    return server.accounts.register(f"Person{next(people)}", password)


def come_in(page, server: Server, person) -> str:
    token = server.accounts.issue(person, "sign_in")
    page.goto(f"{server.url}/enter?token={token}")
    expect(page.locator("#who .person")).to_contain_text(person.username)
    return token


def say(page, text: str) -> None:
    page.locator("#box textarea").fill(text)
    page.keyboard.press("Enter")
    expect(page.locator("#said .user.message").last).to_contain_text(text)
    answered(page)


def answered(page) -> None:
    expect(page.locator("#box .submit-button")).to_be_visible(timeout=30_000)
    expect(page.locator("#status")).to_contain_text(re.compile("last answer|stopped"))


def plant(server: Server, person, question: str, answer: str) -> None:
    """A conversation in the database, as if it had been had."""
    talk, now, vector = Conversations(server.store), datetime.now(UTC), np.ones((1, 32), np.float32)

    def encoded(text: str, role: str, speaker: str) -> Encoded:
        return Encoded(Told(text, now, role), speaker, ((0, len(text)),), vector, "elsewhere")

    turn = talk.open(person.id, encoded(question, "user", person.username))
    outcome = Outcome(answer, "stop", "tiny", None, 1, 1)
    talk.finish(person.id, turn.id, outcome, now, encoded(answer, "assistant", ASSISTANT))


# --- facts


def test_a_token_opens_the_page_once(page, server):
    token = come_in(page, server, someone(server))
    assert [cookie["name"] for cookie in page.context.cookies()] == ["mongars_session"]
    assert page.context.cookies()[0]["httpOnly"] and page.context.cookies()[0]["sameSite"] == "Lax"
    page.context.clear_cookies()
    page.goto(f"{server.url}/enter?token={token}")
    expect(page.get_by_role("alert")).to_contain_text("mongars up")
    page.goto(f"{server.url}/ui/")
    expect(page).to_have_url(f"{server.url}/sign-in")


def test_an_answer_appears_as_it_comes_and_is_remembered(page, server):
    come_in(page, server, someone(server))
    expect(page.locator("#recalled")).to_contain_text("appear here")
    page.evaluate("""() => {
        window.lengths = new Set();
        new MutationObserver(() => window.lengths.add(document.querySelector("#said .bot")?.innerText.length))
            .observe(document.querySelector("#said"), {subtree: true, childList: true, characterData: true});
    }""")
    say(page, "My sister Odile keeps bees in Annecy.")
    assert page.evaluate("window.lengths.size") > 3
    assert len(page.locator("#said .bot.message").inner_text()) == 400
    expect(page.locator("#recalled")).to_contain_text("Nothing recalled for this answer")
    expect(page.locator("#status")).to_contain_text("runs on this machine · last answer: 400 tokens")

    page.click("#new")
    expect(page.locator("#said .message")).to_have_count(0)
    say(page, "My sister Odile keeps bees in Annecy, doesn't she")
    expect(page.locator("#recalled article")).to_contain_text("My sister Odile keeps bees in Annecy.")
    expect(page.locator("#recalled article")).to_contain_text("Today")

    say(page, "And honey")
    page.locator("#said .bot.message").first.click()
    expect(page.locator("#recalled .about")).to_contain_text("doesn't she")
    expect(page.locator("#recalled article").first).to_contain_text("My sister Odile keeps bees in Annecy.")

    page.locator("#list label", has_text="My sister Odile keeps bees in Annecy.").click()
    expect(page.locator("#said .user.message")).to_have_text(["My sister Odile keeps bees in Annecy."])
    expect(page.locator("#list .selected")).to_contain_text("Annecy.")


def test_stop_keeps_what_was_said(page, server):
    come_in(page, server, someone(server))
    page.locator("#box textarea").fill("Tell me a story")
    page.keyboard.press("Enter")
    page.locator("#box .stop-button").click()
    page.keyboard.type("meanwhile")
    expect(page.locator("#said .bot.message")).to_contain_text("Stopped.")
    answered(page)
    assert len(page.locator("#said .bot.message").inner_text()) < 400
    expect(page.locator("#box textarea")).to_have_value("meanwhile")


def test_going_elsewhere_stops_the_answer(page, server):
    person = someone(server)
    plant(server, person, "Where are the bees?", "On the roof.")
    come_in(page, server, person)
    for going in (page.locator("#new"), page.locator("#list label", has_text="bees")):
        page.locator("#box textarea").fill("Tell me a story")
        page.keyboard.press("Enter")
        expect(page.locator("#box .stop-button")).to_be_visible()
        going.click()
        expect(page.locator("#box .submit-button")).to_be_visible()
        expect(page.locator("#said")).not_to_contain_text("Tell me a story")
        page.locator("#new").click()
        expect(page.locator("#said .message")).to_have_count(0)
    page.locator("#list label", has_text="story").first.click()
    expect(page.locator("#said .bot.message")).to_contain_text("Stopped.")


def test_what_is_refused_stays_in_the_box(page, server):
    come_in(page, server, someone(server))
    text = "word " * 800
    page.locator("#box textarea").fill(text)
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("tokens")
    expect(page.locator("#box textarea")).to_have_value(text)
    expect(page.locator("#list label")).to_have_count(0)


def test_it_is_used_by_keyboard_alone(page, server):
    come_in(page, server, someone(server))
    expect(page.locator("#box textarea")).to_be_focused()
    page.keyboard.type("One line")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("*and* another")
    expect(page.locator("#box textarea")).to_have_value("One line\n*and* another")
    page.keyboard.press("Enter")
    expect(page.locator("#said .user.message")).to_have_text("One line\n*and* another", use_inner_text=True)
    answered(page)
    seen = []
    for _ in range(30):
        page.keyboard.press("Shift+Tab")
        name = page.evaluate(
            "document.activeElement.id || document.activeElement.getAttribute('aria-label') || ''"
        )
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        seen.append(name)
        assert outline != "none" or page.evaluate("document.activeElement.matches('#list input')"), name
        if name == "new":
            break
    assert "Conversations" not in seen[:-1] and seen[-1] == "new", seen
    page.keyboard.press("Enter")
    expect(page.locator("#said .message")).to_have_count(0)
    expect(page.locator("#box textarea")).to_be_focused()
    page.locator("#list input").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#said .message")).to_have_count(2)


def test_signing_out_ends_the_session(page, server):
    come_in(page, server, someone(server))
    cookies = {cookie["name"]: cookie["value"] for cookie in page.context.cookies()}
    assert httpx.get(f"{server.url}/ui/", cookies=cookies).status_code == 200
    page.get_by_role("button", name="Sign out").click()
    expect(page).to_have_url(f"{server.url}/sign-in")
    assert page.context.cookies() == []
    for path, status in {
        "/ui/": 303,
        "/ui/config": 401,
        "/ui/gradio_api/queue/data?session_hash=a": 401,
    }.items():
        assert httpx.get(server.url + path, cookies=cookies).status_code == status, path
    page.go_back()
    expect(page).to_have_url(f"{server.url}/sign-in")


def test_the_next_person_sees_nothing_of_the_first(page, server):
    ana, bo = someone(server), someone(server, "correct horse")
    plant(server, ana, "My secret is a lighthouse", "I keep it.")
    come_in(page, server, ana)
    old = page
    old.locator("#list label").click()
    expect(old.locator("#said")).to_contain_text("I keep it.")

    new = page.context.new_page()
    new.goto(f"{server.url}/sign-in")
    new.get_by_label("User name").fill(bo.username)
    new.get_by_label("Password").fill("correct horse")
    new.keyboard.press("Enter")
    expect(new.locator("#who .person")).to_contain_text(bo.username)
    expect(new.locator("#list label")).to_have_count(0)
    say(new, "What is my secret")
    expect(new.locator("#recalled")).not_to_contain_text("lighthouse")

    old.locator("#box textarea").fill("Go on")  # the tab that the first person left open
    old.keyboard.press("Enter")
    expect(old.get_by_role("alert")).to_contain_text("no conversation")
    expect(old.locator("#who .person")).to_contain_text(bo.username)
    expect(old.locator("#said")).not_to_contain_text("lighthouse")
    assert len(Conversations(server.store).history(ana.id)[0]) == 1


@dataclass
class Trap:
    """Another site; it notes every connection and every request."""

    url: str = ""
    connections: int = 0
    requests: list[str] = field(default_factory=list)


@pytest.fixture
def trap() -> Iterator[Trap]:
    trap = Trap()

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            trap.requests.append(self.path)
            self.send_response(204)
            self.end_headers()

        def log_message(self, *values):
            pass

    class Listener(ThreadingHTTPServer):
        daemon_threads, block_on_close = True, False

        def verify_request(self, *values) -> bool:
            trap.connections += 1
            return True

    with Listener(("127.0.0.1", 0), Answer) as listener:
        trap.url = f"http://127.0.0.1:{listener.server_port}"
        Thread(target=listener.serve_forever, daemon=True).start()
        yield trap
        listener.shutdown()


def test_a_hostile_answer_runs_nothing_and_loads_nothing(page, server, trap):
    person, url = someone(server), trap.url
    hostile = f"""![picture]({url}/markdown.png) <img src="{url}/html.png" onerror="window.ran='img'">
<script>window.ran='script'</script><svg onload="window.ran='svg'"><script>window.ran='svg script'</script></svg>
<iframe src="{url}/frame"></iframe><object data="{url}/object"></object><video src="{url}/video"></video>
<style>@import url({url}/style.css); body {{ background: url({url}/css.png) }}</style>
<link rel="stylesheet" href="{url}/link.css"><meta http-equiv="refresh" content="0;url={url}/meta">
<form action="{url}/form"><button formaction="javascript:window.ran='button'" id="trap">Send</button></form>
<details open ontoggle="window.ran='details'">Details</details> <a href="javascript:window.ran='html'">one</a>
[two](javascript:window.ran='markdown') [three](java&#115;cript:window.ran='entity') {{{{constructor}}}} ${{1+1}}

```mermaid
graph TD; A["<img src={url}/mermaid.png onerror=window.ran='mermaid'>"] --> B; click A href "javascript:window.ran='m'"
```

The end."""
    plant(server, person, "<img src=x onerror=\"window.ran='question'\"> {{1+1}}", hostile)
    come_in(page, server, person)
    page.locator("#list label").click()
    expect(page.locator("#said .bot.message")).to_contain_text("The end.")
    expect(page.locator("#said .user.message")).to_contain_text("<img src=x")
    for link in page.locator("#said .bot.message a[href^=javascript], #said .bot.message button").all():
        link.dispatch_event("click")
    assert page.locator("#said .bot.message").locator("img, form, iframe, video, style, details").count() == 0
    expect(page.locator("#said .bot.message")).to_contain_text("<script>window.ran='script'</script>")
    expect(page.locator("#said .bot.message")).to_contain_text("{{constructor}} ${1+1}")

    assert trap.connections == 0 and page.evaluate("window.ran") is None

    # If it were to get through, the policy still stops it; all but a refresh, which no policy covers.
    page.evaluate("""html => {
        const hole = document.body.appendChild(document.createElement("div"));
        hole.innerHTML = html;
        for (const trap of hole.querySelectorAll("a, button")) trap.click();
        return new Promise(done => setTimeout(done, 300));
    }""", hostile.replace("http-equiv", "name"))  # fmt: skip
    assert page.evaluate("window.ran") is None and trap.requests == [] and page.url == f"{server.url}/ui/"
    assert httpx.get(f"{url}/control").status_code == 204 and trap.requests == ["/control"]


def test_it_fits_a_phone(browser, server):
    person = someone(server)
    plant(server, person, "Where are the bees?", "A" + "very" * 60 + "longword")
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True)
    page = context.new_page()
    page.goto(f"{server.url}/enter?token={server.accounts.issue(person, 'sign_in')}")
    for side in ("Conversations", "Memories used"):
        expect(page.get_by_role("button", name=side, expanded=False)).to_be_in_viewport()
    page.get_by_role("button", name="Conversations").tap()
    page.locator("#list label").tap()
    expect(page.locator("#said .bot.message")).to_contain_text("longword")
    expect(page.locator("#box textarea")).to_be_in_viewport()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.get_by_role("button", name="Memories used").tap()
    expect(page.locator("#recalled")).to_be_in_viewport()
    context.close()


def test_a_program_chats_through_the_page(server):
    from gradio_client import Client

    person = someone(server, "correct horse")
    key = server.accounts.issue(person, "api_key")
    client = Client(f"{server.url}/ui/", headers={"Authorization": f"Bearer {key}"}, verbose=False)
    job = client.submit("Hello", api_name="/chat")
    assert len(job.result(timeout=30)) == 400 and len(job.outputs()) > 3
    form = {"username": person.username, "password": "correct horse"}
    cookie = httpx.post(f"{server.url}/sign-in", data=form).cookies["mongars_session"]
    again = Client(f"{server.url}/ui/", headers={"Cookie": f"mongars_session={cookie}"}, verbose=False)
    assert len(again.predict("Hello", api_name="/chat")) == 400
    assert [turn.message for turn in Conversations(server.store).history(person.id)[0]] == ["Hello"] * 2
