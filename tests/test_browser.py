"""The chat page in a real browser, against a real server process with tiny models."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import httpx
import numpy as np
import pytest

from mongars.base.ledger import open_run
from mongars.base.store import Store
from mongars.memory.catalogue import Catalogue
from mongars.memory.consent import Consents
from mongars.memory.conversations import Conversations, Outcome
from mongars.memory.ratings import Ratings
from mongars.memory.sayings import ASSISTANT, Encoded, Told
from mongars.neurons.model_folder import fingerprint
from mongars.serving.accounts import Accounts
from mongars.serving.costs import joules, seconds
from mongars.serving.memories_page import changes, memories_page

pytestmark = pytest.mark.timeout(240)
playwright = pytest.importorskip("playwright.sync_api")
expect = playwright.expect
expect.set_options(timeout=20_000)  # a busy machine is no failure

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
    encoder: str  # fingerprint
    home: Path

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
            until = time.monotonic() + 200
            while not is_ready(url):
                assert process.poll() is None and time.monotonic() < until, (home / "log").read_text()
                time.sleep(0.2)
            encoder = f"encoder/{fingerprint(home / 'encoder')[:16]}/mean/float32"
            yield Server(url, Store(f"sqlite:///{home / 'mongars.sqlite3'}"), encoder, home)
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


def plant(
    server: Server, person, question: str, answer: str, at: datetime | None = None, talk_id: str | None = None
) -> str:
    """A conversation in the database, or more of one, as if it had been had; the turn's id."""
    talk, now = Conversations(server.store), at or datetime.now(UTC)
    vector = np.zeros((1, 32), np.float32)  # of the server's encoder, and like nothing

    def encoded(text: str, role: str, speaker: str) -> Encoded:
        return Encoded(Told(text, now, role), speaker, ((0, len(text)),), vector, server.encoder)

    turn = talk.open(person.id, encoded(question, "user", person.username), talk_id)
    outcome = Outcome(answer, "stop", "tiny", None, 1, 1)
    talk.finish(person.id, turn.id, outcome, now, encoded(answer, "assistant", ASSISTANT))
    return turn.id


def anew(page) -> None:
    page.click("#new")
    expect(page.locator("#said .message")).to_have_count(0)


def remembered(server: Server, person, **filters):
    """What is remembered of a person, newest first."""
    return Catalogue(server.store).list(person.id, datetime.now(UTC), 200, **filters).items


def go(page, place: str) -> None:
    """A part of the memories, as its address opens it."""
    page.evaluate("place => location.hash = place", place)
    expect(page.locator("#remembered h1")).to_be_visible()


def bring(page, name: str, content: bytes) -> None:
    """Import a file, and wait until it is read."""
    page.locator("#file").set_input_files({"name": name, "mimeType": "", "buffer": content})
    page.get_by_role("button", name="Import", exact=True).click()
    expect(page.locator("#arriving")).to_contain_text(name)
    expect(page.locator("#arriving progress")).to_have_count(0, timeout=30_000)


# --- facts


def test_under_each_answer_stands_what_it_took_and_how_that_is_known(page, server):
    ana = someone(server)
    earlier = plant(server, ana, "Where is Odile?", "In Annecy.")  # nobody counted then
    come_in(page, server, ana)
    page.goto(f"{server.url}/ui/#turn/{earlier}")
    expect(page.locator("#said .bot.message")).to_contain_text("In Annecy.")
    for n in (1, 2):
        say(page, f"Hum {n}")
        expect(page.locator("#said .cost")).to_have_count(n)
    rows = page.locator("#said .bot-row")
    assert [rows.nth(n).locator(".cost").count() for n in range(3)] == [0, 1, 1]
    figure = rows.nth(2).locator(".cost summary")
    turn = Conversations(server.store).history(ana.id, 1)[0][0]
    assert figure.inner_text() == f"{seconds(turn.spent.seconds)} · {joules(turn.spent.joules)} (estimated)"
    assert "nothing here measures electricity" in figure.get_attribute("title")
    words = rows.nth(2).locator(".cost p")
    expect(words).to_be_hidden()
    figure.click()
    expect(words).to_be_visible()
    anew(page)
    expect(page.locator("#said .cost")).to_have_count(0)


def test_a_token_opens_the_page_once(page, server):
    token = come_in(page, server, someone(server))
    assert [cookie["name"] for cookie in page.context.cookies()] == ["mongars_session"]
    assert page.context.cookies()[0]["httpOnly"] and page.context.cookies()[0]["sameSite"] == "Lax"
    page.context.clear_cookies()
    page.goto(f"{server.url}/enter?token={token}")
    expect(page.get_by_role("alert")).to_contain_text("mongars up")
    page.goto(f"{server.url}/ui/")
    expect(page).to_have_url(f"{server.url}/sign-in")


def test_an_answer_appears_as_it_comes_is_remembered_and_rated(page, server):
    person = someone(server)
    come_in(page, server, person)
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

    ratings, turn = Ratings(server.store), Conversations(server.store).history(person.id)[0][-1]
    thumb = page.locator("#said").get_by_label("Dislike", exact=True)
    thumb.click()
    expect(page.locator("#opinion #over")).to_contain_text("About “My sister Odile keeps bees in Annecy.”")
    assert ratings.get(person.id, turn.id).score == -1
    expect(page.get_by_label("What it should have been")).to_have_value(turn.response)
    page.get_by_label("Why?").fill("It did not hear")
    page.get_by_label("What it should have been").fill("How many *hives*? <b>")
    page.locator("#keep").click()
    expect(page.locator("#opinion")).to_be_hidden()
    expect(page.locator("#said .bot.message blockquote")).to_have_text("How many *hives*? <b>")
    kept = ratings.get(person.id, turn.id)
    assert (kept.score, kept.comment, kept.edit) == (-1, "It did not hear", "How many *hives*? <b>")
    expect(page.locator("#recalled")).to_contain_text("Nothing recalled")  # to rate is not to look elsewhere

    consents = Consents(server.store)
    expect(page.locator("#consent")).to_contain_text("May I learn from what you tell me?")
    assert consents.get(person.id).changed_at is None
    page.locator("#consent-no").click()
    expect(page.locator("#consent")).to_be_hidden()
    expect(page.locator("#learn input")).not_to_be_checked()
    assert consents.get(person.id).changed_at and not consents.get(person.id).training
    page.locator("#learn input").check()
    page.wait_for_function("document.querySelector('#learn input').checked")

    page.reload()
    page.locator("#list label", has_text="My sister Odile keeps bees in Annecy.").last.click()
    taken = page.locator("#said").get_by_label("Disliked", exact=True)
    expect(taken).to_be_visible()
    expect(page.locator("#learn input")).to_be_checked()
    assert consents.get(person.id).training and page.locator("#consent").is_hidden()
    taken.click()  # taken away: what was written stays
    expect(thumb).to_be_visible()
    expect(page.get_by_label("Why?")).to_have_value("It did not hear")
    assert ratings.get(person.id, turn.id).score == 0


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


# --- the memories


def test_memories_are_listed_by_page_and_shelf(page, server):
    person, now = someone(server), datetime.now(UTC)
    come_in(page, server, person)
    page.get_by_role("link", name="Memories", exact=True).click()
    expect(page.locator("#remembered h1")).to_be_focused()
    expect(page.locator("#remembered .empty")).to_contain_text("Nothing is remembered yet")
    for n in range(35):
        plant(server, person, f"Chapter {n}.", "Read.", now - timedelta(minutes=n))
    page.get_by_role("link", name="Now").click()
    page.reload()
    items = page.locator("#remembered article")
    expect(items).to_have_count(30)
    expect(items.first.locator("blockquote")).to_have_text("Chapter 0.")
    expect(items.first).to_contain_text(person.username)
    page.get_by_role("link", name="Older ones").click()
    expect(items).to_have_count(5)
    expect(items.last.locator("blockquote")).to_have_text("Chapter 34.")
    page.get_by_role("link", name="Back to the newest").click()
    expect(items).to_have_count(30)
    for shelf, words in (("Pinned", "Nothing is pinned"), ("Past", "Nothing is past")):
        page.get_by_role("link", name=shelf).click()
        expect(page.locator("#remembered .empty")).to_contain_text(words)
        expect(page.locator("#remembered [aria-current=page]")).to_have_text(shelf)
    page.get_by_role("link", name="Answers").click()
    expect(items.first.locator("blockquote")).to_have_text("Read.")
    page.get_by_role("link", name="Back to the conversation").click()
    expect(page.locator("#remembered")).to_be_hidden()
    expect(page.locator("#box textarea")).to_be_focused()


def test_a_search_says_why_and_how_sure(page, server):
    person = someone(server)
    come_in(page, server, person)
    say(page, "My sister Odile keeps bees in Annecy.")
    go(page, "memories")
    page.get_by_label("Search the memories").fill("Where does Odile keep bees?")
    page.keyboard.press("Enter")
    first = page.locator("#remembered article").first
    expect(first).to_contain_text("keeps bees in Annecy")
    expect(page.locator("#remembered .likely")).to_have_text(
        re.compile(r"The answer is .* among these \(\d+ %\)")
    )
    expect(page.get_by_label("Search the memories")).to_have_value("Where does Odile keep bees?")
    first.get_by_text("why?").click()
    expect(first.locator(".why")).to_contain_text("Alike in meaning")
    expect(first.locator(".why .for").first).to_contain_text(re.compile(r"[A-Z].+\+\d"))


def test_a_note_is_added_corrected_pinned_and_given_an_end(page, server):
    person = someone(server)
    come_in(page, server, person)
    go(page, "memories")
    page.get_by_text("Add a note").click()
    page.get_by_label("What is to be remembered?").fill("I take sugar.")
    page.get_by_role("button", name="Remember it").click()
    status, item = page.locator("#remembered .done"), page.locator("#remembered article")
    expect(status).to_have_text("It is remembered.")
    expect(item).to_contain_text("I take sugar.")
    (note,) = remembered(server, person)
    assert note.kind == "note" and note.speaker == person.username

    page.get_by_role("button", name="Pin", exact=True).click()
    expect(status).to_contain_text("Pinned")
    expect(page.get_by_role("button", name="Unpin")).to_be_focused()
    assert remembered(server, person)[0].pinned
    page.get_by_role("link", name="Pinned").click()
    expect(item).to_contain_text("I take sugar.")
    page.get_by_role("button", name="Unpin").click()
    expect(page.locator("#remembered .empty")).to_be_visible()
    assert not remembered(server, person)[0].pinned

    go(page, "memories")
    page.get_by_role("link", name="Correct").click()
    expect(page.get_by_label("What is right")).to_be_focused()
    page.get_by_label("What is right").fill(" ")
    page.get_by_role("button", name="Save the correction").click()
    expect(page.locator("#remembered .wrong")).to_contain_text("Write something")
    page.get_by_label("What is right").fill("I take no sugar.")
    page.get_by_role("button", name="Save the correction").click()
    expect(status).to_contain_text("Corrected")
    history = page.locator("#remembered .history li")
    expect(history).to_have_text(
        [re.compile("I take sugar.*from .* until"), re.compile("I take no sugar.*since")]
    )
    assert [m.text for m in remembered(server, person)] == ["I take no sugar."]
    assert [m.text for m in remembered(server, person, state="past")] == ["I take sugar."]

    until = date.today() + timedelta(days=40)
    page.get_by_text("Forget it after a day").click()
    page.get_by_label("Last day").fill(until.isoformat())
    page.get_by_role("button", name="Save the day").click()
    expect(status).to_contain_text(f"until the end of {until}")
    expect(page.locator("#remembered .whole .mark").last).to_contain_text(f"{until.day} {until:%B %Y}")
    end = remembered(server, person)[0].expires_at.astimezone()
    assert end.date() == until + timedelta(days=1) and end.hour == 0
    page.get_by_text("Forget it after a day").click()
    page.get_by_role("button", name="Keep it for good").click()
    expect(status).to_contain_text("for good")
    assert remembered(server, person)[0].expires_at is None
    history.first.get_by_role("link").click()
    expect(page.locator("#remembered .hint").first).to_contain_text("Replaced: see")


def test_deleting_one_says_first_what_goes_with_it(page, server):
    person = someone(server)
    come_in(page, server, person)
    say(page, "My sister Odile keeps bees in Annecy.")
    anew(page)
    say(page, "My sister Odile keeps bees in Annecy, doesn't she")
    expect(page.locator("#recalled article")).to_have_count(1)
    go(page, "memories")
    page.locator("#remembered article", has_text="Annecy.").get_by_role("link", name="Delete").click()
    sure = page.locator("#remembered .sure")
    expect(sure).to_contain_text("1 exchange")
    expect(sure).to_contain_text("1 answer that was made from it")
    expect(sure).to_contain_text("2 more memories")
    sure.get_by_role("link", name="Keep it").click()
    expect(page.locator("#remembered .whole")).to_contain_text("Annecy.")
    page.get_by_role("link", name="Delete").click()
    sure.get_by_role("button", name="Delete").click()
    expect(page.locator("#remembered .done")).to_contain_text("Deleted: 3 memories, 1 exchange, 1 answer.")
    expect(page.locator("#remembered article")).to_have_count(1)
    assert [m.text for m in remembered(server, person, roles=())] == [
        "My sister Odile keeps bees in Annecy, doesn't she"
    ]
    page.get_by_role("link", name="Back to the conversation").click()
    expect(page.locator("#said .bot.message")).to_contain_text("The memory behind this answer was deleted.")
    expect(page.locator("#list label")).to_have_count(1)


def test_deleting_everything_wants_the_word(page, server):
    person = someone(server)
    plant(server, person, "I keep bees.", "Good.")
    come_in(page, server, person)
    go(page, "memories/carry")
    page.get_by_label("Type “everything” to confirm").fill("all")
    page.get_by_role("button", name="Delete everything").click()
    expect(page.locator("#remembered .wrong")).to_contain_text("Nothing was deleted. Type everything")
    assert len(remembered(server, person, roles=())) == 2
    page.get_by_label("Type “everything” to confirm").fill("everything")
    page.get_by_role("button", name="Delete everything").click()
    expect(page.locator("#remembered .done")).to_contain_text("Deleted: 2 memories, 1 exchange")
    expect(page.locator("#remembered .empty")).to_be_visible()
    assert remembered(server, person, roles=(), state="all") == ()
    page.get_by_role("link", name="Back to the conversation").click()
    expect(page.locator("#list label")).to_have_count(0)


def test_memories_go_out_as_files(page, server):
    person = someone(server)
    plant(server, person, "I keep bees.", "Good.")
    come_in(page, server, person)
    go(page, "memories/carry")
    for button, ending in (("Export as JSON", ".json"), ("Export as Markdown", ".md")):
        with page.expect_download() as started:
            page.get_by_role("link", name=button).click()
        download = started.value
        text = Path(download.path()).read_text()
        assert download.suggested_filename.endswith(ending) and "I keep bees." in text and "Good." in text
        assert ending == ".md" or len(json.loads(text)["memories"]) == 2


CHATGPT = [{
    "title": "Bees", "create_time": 1700000000.0, "conversation_id": "c-1", "current_node": "b", "mapping": {
        "a": {"message": {"id": "a", "author": {"role": "user"}, "create_time": 1700000000.0,
                          "content": {"content_type": "text", "parts": ["I keep bees in Annecy."]}}, "parent": None},
        "b": {"message": {"id": "b", "author": {"role": "assistant"}, "create_time": 1700000001.0,
                          "content": {"content_type": "text", "parts": ["How many hives?"]}}, "parent": "a"},
    },
}]  # fmt: skip
OPEN_WEBUI = [{"id": "o-1", "created_at": 1700000000, "chat": {"history": {"currentId": "m", "messages": {
    "m": {"id": "m", "role": "user", "content": "My boat is called Zephyr.", "timestamp": 1700000000},
}}}}]  # fmt: skip
FILES = {
    "conversations.json": (json.dumps(CHATGPT).encode(), "ChatGPT: 2 turns", 2),
    "open-webui.json": (json.dumps(OPEN_WEBUI).encode(), "Open WebUI: 1 turns", 1),
    "lines.jsonl": (b'{"text": "I sail."}\n{"text": "I row."}\n', "JSON lines: 2 turns", 2),
}


@pytest.mark.parametrize("name", [*FILES, "own"])
def test_a_file_comes_in_once(page, server, name):
    person, count = someone(server), 2
    if name == "own":
        other = someone(server)
        plant(server, other, "I keep bees.", "Good.")
        key = server.accounts.issue(other, "api_key")
        headers = {"Authorization": f"Bearer {key}"}
        content = httpx.get(f"{server.url}/memories/export/json", headers=headers).content
        name, words = "mongars.json", "monGARS: 2 turns"
    else:
        content, words, count = FILES[name]
    come_in(page, server, person)
    go(page, "memories/carry")
    bring(page, name, content)
    expect(page.locator("#arriving")).to_contain_text(words)
    expect(page.locator("#arriving .head")).to_have_text(f"{count} added.")
    assert len(remembered(server, person, roles=())) == count
    bring(page, name, content)
    expect(page.locator("#arriving .head")).to_have_text("Nothing was added: all of it was there already.")
    assert len(remembered(server, person, roles=())) == count


def test_what_cannot_be_imported_is_told(page, server):
    come_in(page, server, someone(server))
    go(page, "memories/carry")
    bring(page, "recipe.json", b"Take two eggs")
    expect(page.locator("#arriving")).to_contain_text(
        "recipe.json begins with 'Take two eggs', which is not JSON"
    )
    page.locator("#file").set_input_files({"name": "empty.json", "mimeType": "", "buffer": b""})
    page.get_by_role("button", name="Import", exact=True).click()
    expect(page.locator("#remembered .wrong")).to_contain_text("empty.json is empty")


def test_an_import_shows_how_far_it_is_while_the_chat_goes_on(page, server):
    person = someone(server)
    come_in(page, server, person)
    go(page, "memories/carry")
    lines = "\n".join(json.dumps({"text": f"Line {n} of the log: {n * 7919}"}) for n in range(20_000))
    page.locator("#file").set_input_files({"name": "log.jsonl", "mimeType": "", "buffer": lines.encode()})
    page.get_by_role("button", name="Import", exact=True).click()
    arriving = page.locator("#arriving")
    expect(arriving).to_contain_text(re.compile(r"[1-9][\d,]* of 20,000 turns"), timeout=30_000)
    page.get_by_role("link", name="Back to the conversation").click()
    say(page, "Are you there?")
    go(page, "memories/carry")
    expect(arriving).to_contain_text("of 20,000 turns")
    page.get_by_label("Type “everything” to confirm").fill("everything")
    page.get_by_role("button", name="Delete everything").click()
    expect(page.locator("#remembered .wrong")).to_contain_text("log.jsonl is being imported")
    arriving.get_by_role("button", name="Stop").click()
    expect(arriving).to_contain_text("Stopped before the end", timeout=30_000)
    assert 0 < len(remembered(server, person, text="of the log")) < 20_000


def test_the_memory_is_shown_as_it_was_on_a_day(page, server):
    person = someone(server)
    plant(server, person, "I keep bees in Annecy.", "Good.", datetime(2026, 3, 3, 12, tzinfo=UTC))
    come_in(page, server, person)
    (bees,) = remembered(server, person)
    go(page, f"memories/{bees.id}?do=correct")
    page.get_by_label("What is right").fill("I keep bees in Lyon.")
    page.get_by_label("It holds since").fill("2026-05-10")
    page.get_by_role("button", name="Save the correction").click()
    expect(page.locator("#remembered .done")).to_contain_text("Corrected")
    history = page.locator("#remembered .history li")
    expect(history).to_have_count(2)
    expect(history.first).to_contain_text(re.compile(r"from 3 March\D*(2026)? until 10 May"))
    expect(history.last).to_contain_text("since 10 May")

    go(page, "memories")
    items = page.locator("#remembered article blockquote")
    expect(items).to_have_text(["I keep bees in Lyon."])
    for day, held in {
        "2026-05-09": ["I keep bees in Annecy."],
        "2026-05-10": ["I keep bees in Lyon."],
        "2026-03-02": [],
    }.items():
        page.get_by_label("As it was on").fill(day)
        page.get_by_role("button", name="Search").click()
        expect(page.locator("#remembered .then")).to_contain_text("What held at the end of")
        expect(items).to_have_text(held)
        expect(page.get_by_label("As it was on")).to_have_value(day)
    expect(page.locator("#remembered .empty")).to_contain_text("held then")
    page.get_by_label("As it was on").fill("2026-04-01")
    page.get_by_role("searchbox").fill("I keep bees")
    page.get_by_role("button", name="Search").click()
    expect(items).to_have_text(["I keep bees in Annecy."])
    expect(page.locator("#remembered .held")).to_contain_text("until 10 May")
    page.get_by_role("link", name="Back to now").click()
    expect(items).to_have_text(["I keep bees in Lyon."])


def test_a_whole_conversation_is_deleted_for_good(page, server):
    person = someone(server)
    plant(server, person, "I sail.", "Good.")
    odile = plant(server, person, "My sister Odile keeps quokkas in Annecy.", "Good.")
    talk = Conversations(server.store).turn(person.id, odile).conversation_id
    plant(server, person, "My cousin Quilla paints quokkas.", "Good.", talk_id=talk)
    come_in(page, server, person)
    say(page, "My sister Odile keeps quokkas in Annecy, doesn't she")  # answered from it
    out = page.get_by_role("link", name="Delete this conversation")
    anew(page)
    expect(out).to_have_count(0)
    page.locator("#list label", has_text="My sister Odile keeps quokkas in Annecy.").last.click()
    expect(page.locator("#said .user.message")).to_have_count(2)
    out.click()
    sure = page.locator("#remembered .sure")
    expect(sure).to_contain_text("Delete this conversation for good?")
    expect(sure.locator("blockquote")).to_have_text("My sister Odile keeps quokkas in Annecy.")
    expect(sure).to_contain_text("2 exchanges: what was written")
    expect(sure).to_contain_text("1 answer given elsewhere")
    page.get_by_role("link", name="Keep it").click()
    expect(page.locator("#said .user.message")).to_have_count(2)
    assert len(remembered(server, person)) == 4
    out.click()
    sure.get_by_role("button", name="Delete").click()
    expect(page.locator("#remembered .done")).to_contain_text("2 exchanges")
    expect(page.locator("#remembered .done")).to_contain_text("Nothing of it is left in the files")
    items = page.locator("#remembered article blockquote")
    expect(items).to_have_text(["My sister Odile keeps quokkas in Annecy, doesn't she", "I sail."])
    expect(page.locator("#list label")).to_have_count(2)  # beside the memories, already

    page.get_by_role("link", name="Back to the conversation").click()
    expect(page.locator("#said .message")).to_have_count(0)
    expect(out).to_have_count(0)
    page.locator("#list label", has_text="doesn't she").click()
    expect(page.locator("#said")).to_contain_text("The memory behind this answer was deleted")
    say(page, "My cousin Quilla paints quokkas, doesn't she")
    expect(page.locator("#recalled")).not_to_contain_text("My cousin Quilla paints quokkas.")
    go(page, "memories?q=Quilla")
    expect(page.locator("#remembered .body")).not_to_contain_text("Quilla paints quokkas.")
    assert not remembered(server, person, text="paints quokkas.", roles=(), state="all")
    home = Path(server.store.url.removeprefix("sqlite:///")).parent
    files = b"".join(file.read_bytes() for file in home.glob("mongars.sqlite3*"))
    assert b"doesn't she" in files and b"paints quokkas." not in files and b"quokkas in Annecy." not in files
    come_in(page, server, person)
    expect(page.locator("#list label")).to_have_count(2)


def test_an_imported_conversation_is_deleted_from_one_of_its_memories(page, server):
    person = someone(server)
    come_in(page, server, person)
    go(page, "memories/carry")
    bring(page, "conversations.json", FILES["conversations.json"][0])
    (bees,) = remembered(server, person)
    go(page, f"memories/{bees.id}/delete")
    page.get_by_role("link", name="Delete the whole conversation").click()
    sure = page.locator("#remembered .sure")
    expect(sure).to_contain_text("An imported conversation")
    expect(sure.locator("blockquote")).to_have_text("I keep bees in Annecy.")
    expect(sure).to_contain_text("2 memories made from it")
    sure.get_by_role("button", name="Delete").click()
    expect(page.locator("#remembered .done")).to_contain_text("2 memories")
    assert remembered(server, person, roles=(), state="all") == ()
    go(page, "memories/carry")
    bring(page, "conversations.json", FILES["conversations.json"][0])
    expect(page.locator("#arriving .head")).to_contain_text("Nothing was added")
    assert remembered(server, person, roles=(), state="all") == ()


def test_a_paused_conversation_is_not_remembered(page, server):
    person = someone(server)
    come_in(page, server, person)
    switch, aside = page.get_by_label("Don’t remember this conversation"), page.locator("#aside")
    expect(aside).to_be_hidden()
    switch.check()  # before the first message
    expect(aside).to_contain_text("Not remembered")
    say(page, "My secret is a lighthouse.")
    expect(aside).to_be_visible()
    expect(switch).to_be_checked()
    expect(page.locator("#list .selected")).to_contain_text("not remembered")
    assert remembered(server, person, roles=()) == ()
    anew(page)
    expect(aside).to_be_hidden()
    expect(switch).not_to_be_checked()
    say(page, "My secret is a lighthouse, isn't it")
    expect(page.locator("#recalled")).to_contain_text("Nothing recalled")
    assert len(remembered(server, person, roles=())) == 2
    switch.check()
    expect(aside).to_be_visible()
    say(page, "And a harbour")
    assert len(remembered(server, person, roles=())) == 2
    page.reload()
    page.locator("#list label", has_text="isn't it").click()
    expect(switch).to_be_checked()
    switch.uncheck()
    expect(aside).to_be_hidden()
    say(page, "And a mill")
    assert len(remembered(server, person, roles=())) == 4


def test_a_pause_before_the_first_message_survives_a_look_at_the_memories(page, server):
    person = someone(server)
    come_in(page, server, person)
    page.get_by_label("Don’t remember this conversation").check()
    expect(page.locator("#aside")).to_be_visible()
    go(page, "memories")
    page.get_by_text("Add a note").click()
    page.get_by_label("What is to be remembered?").fill("I take sugar.")
    page.get_by_role("button", name="Remember it").click()
    expect(page.locator("#remembered .done")).to_be_visible()
    page.get_by_role("link", name="Back to the conversation").click()
    say(page, "My secret is a lighthouse.")
    assert [m.text for m in remembered(server, person, roles=())] == ["I take sugar."]


def test_a_recalled_memory_says_why_and_leads_to_its_turn(page, server):
    person = someone(server)
    come_in(page, server, person)
    for text in ("My sister Odile keeps bees in Annecy.", "I sail.", "I row."):
        say(page, text)
    anew(page)
    say(page, "My sister Odile keeps bees in Annecy, doesn't she")
    item = page.locator("#recalled article", has_text="Annecy.")
    expect(item.locator(".by")).to_contain_text(f"{person.username} · Today")
    item.get_by_text("why?").click()
    expect(item.locator(".why")).to_contain_text("Alike in meaning")
    expect(item.locator(".why .for").first).to_be_visible()
    item.locator("blockquote").click()
    expect(page.locator("#said .user.message")).to_have_count(3)
    expect(page.locator("#said .user-row.found")).to_contain_text("My sister Odile keeps bees in Annecy.")
    expect(page.locator("#said .user.message").first).to_be_in_viewport()
    expect(page.locator("#list .selected")).to_contain_text("My sister Odile")
    turn = page.url.partition("#turn/")[2]
    page.goto("about:blank")
    page.goto(f"{server.url}/ui/#turn/{turn}")  # the address alone leads there, too
    expect(page.locator("#said .user-row.found")).to_contain_text("Annecy.")
    page.evaluate("location.hash = 'turn/' + '0'.repeat(32)")
    expect(page.locator("#notice")).to_contain_text("There is no turn")

    go(page, "memories")
    page.locator("#remembered article", has_text="I row.").get_by_role("link", name="Open chat").click()
    expect(page.locator("#said .user-row.found")).to_contain_text("I row.")
    expect(page.locator("#remembered")).to_be_hidden()


def test_a_hostile_memory_is_text_everywhere(page, server, trap):
    hostile = f"""bees <img src="{trap.url}/a.png" onerror="window.ran=1"></textarea></blockquote>
<script>window.ran=2</script>
'"><svg onload="window.ran=3"> [x](javascript:window.ran=4) ${{1+1}} {{{{1+1}}}}"""
    person = someone(server)
    plant(server, person, hostile, hostile)
    come_in(page, server, person)
    (memory,) = remembered(server, person)
    search = "memories?q=" + "bees %3Cimg src=x onerror=window.ran=5%3E"
    places = [
        "memories",
        "memories?state=answers",
        search,
        f"memories/{memory.id}?do=correct",
        f"memories/{memory.id}/delete",
    ]
    for place in places:
        go(page, place)
        expect(page.locator("#remembered .body blockquote").first).to_contain_text('<img src="')
        assert page.locator("#remembered .content").locator("img, script, svg, iframe").count() == 0, place
    go(page, "memories/carry")
    bring(page, "a.json", b"<img src=x onerror=window.ran=6><svg onload=window.ran=7>")
    expect(page.locator("#arriving")).to_contain_text("begins with '<img src=x")
    assert page.locator("#remembered .content").locator("img, svg").count() == 0
    go(page, "memories/<img src=x onerror=window.ran=8>")
    expect(page.locator("#remembered .wrong")).to_be_visible()
    page.get_by_role("link", name="Back to the conversation").click()
    line = hostile.splitlines()[0]
    say(page, line)
    anew(page)
    say(page, f"{line} indeed")
    expect(page.locator("#recalled article").first).to_contain_text("onerror=")
    assert page.locator("#recalled").locator("img, script, svg").count() == 0
    assert page.evaluate("window.ran") is None and trap.connections == 0


def test_what_is_gone_or_refused_is_told_in_a_sentence(page, server):
    person = someone(server)
    plant(server, person, "I keep bees.", "Good.")
    come_in(page, server, person)
    (memory,) = remembered(server, person)
    go(page, "memories")
    expect(page.locator("#remembered article")).to_have_count(1)
    key = {"Authorization": f"Bearer {server.accounts.issue(person, 'api_key')}"}
    assert httpx.post(f"{server.url}/memories/{memory.id}/delete", headers=key).status_code == 200
    page.get_by_role("button", name="Pin", exact=True).click()  # in the tab where it still stands
    expect(page.locator("#remembered .wrong")).to_contain_text("There is no memory")
    page.context.clear_cookies()
    page.get_by_role("link", name="Pinned").click()
    expect(page).to_have_url(f"{server.url}/sign-in")


def test_nobody_meets_the_memories_of_another(server):
    ana, bo = someone(server), someone(server)
    plant(server, bo, "My zebrafinch sings.", "It sings.")
    (memory,) = remembered(server, bo)
    as_ana = {"Cookie": f"mongars_session={server.accounts.issue(ana, 'session')}", "X-Fragment": "1"}
    data = {"text": "x", "confirm": "nothing", "last": "2999-01-01", "since": "", "pinned": "true"}
    tried = 0
    for router in (memories_page, changes):
        for route in router.routes:
            (method,) = route.methods
            tried += 1
            path = route.path.replace("{id}", memory.id).replace("{format}", "json")
            options = {"data": data} if method == "POST" else {"params": {"q": "My z sings"}}
            ours = httpx.request(method, server.url + path, headers=as_ana, **options)
            assert "zebrafinch" not in ours.text and ours.status_code < 500, path
            if memory.id in path:
                nothing = httpx.request(
                    method, server.url + path.replace(memory.id, "0" * 32), headers=as_ana, **options
                )
                assert ours.status_code == nothing.status_code == 404, path
                assert ours.text.replace(memory.id, "0" * 32) == nothing.text
            assert httpx.request(method, server.url + path, **options).status_code == 401, path
            if method == "POST":
                foreign = as_ana | {"Origin": "http://elsewhere.example"}
                assert httpx.post(server.url + path, headers=foreign, data=data).status_code == 403, path
    assert tried == 17
    (kept,) = remembered(server, bo)
    assert kept == memory and len(remembered(server, bo, roles=())) == 2


def test_the_memories_fit_a_phone_and_the_keyboard(browser, server):
    person = someone(server)
    turn = plant(server, person, "A" + "very" * 60 + "longword", "Yes.")
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True)
    page = context.new_page()
    page.goto(f"{server.url}/enter?token={server.accounts.issue(person, 'sign_in')}")
    page.get_by_role("button", name="Conversations").tap()
    page.get_by_role("link", name="Memories", exact=True).tap()
    expect(page.locator("#remembered article")).to_be_in_viewport()
    expect(page.get_by_role("button", name="Conversations", expanded=False)).to_be_visible()
    (memory,) = remembered(server, person)
    places = {
        "memories": "article",
        f"memories/{memory.id}?do=correct": "#right",
        f"memories/{memory.id}/delete": ".sure",
        "memories/carry": "#file",
    }
    right = "e => Math.max(...[...e.querySelectorAll('*')].map(part => part.getBoundingClientRect().right))"
    for place, mark in places.items():
        go(page, place)
        expect(page.locator(f"#remembered {mark}").first).to_be_visible()
        assert page.locator("#remembered").evaluate(right) <= 390, place
    go(page, "memories")
    expect(page.locator("#remembered article")).to_be_visible()  # the view before this one has a heading, too
    page.locator("#remembered h1").focus()
    names = []
    for _ in range(30):
        page.keyboard.press("Tab")
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
        names.append(
            page.evaluate(
                "(document.activeElement.getAttribute('aria-label') || document.activeElement.innerText)"
            )
        )
        if names[-1] == "Delete":
            break
    for name in (
        "Search the memories",
        "Search",
        "Now",
        "Add a note",
        "Pin",
        "Correct",
        "History",
        "Open chat",
    ):
        assert name in names, names
    page.keyboard.press("Escape")
    expect(page.locator("#remembered")).to_be_hidden()
    assert turn and page.evaluate("document.documentElement.scrollWidth") <= 390
    context.close()


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_for_operators_follows_a_run_at_work(page, server, width):
    """Without a reload, and whoever stands on a link stays there; when the run has ended, its verdict is shown."""
    operator = server.accounts.register(f"Operator{width}", None, "operator")
    page.set_viewport_size({"width": width, "height": 844})
    page.goto(f"{server.url}/enter?token={server.accounts.issue(operator, 'sign_in')}")
    run = open_run(server.home, "self_training", {}, seed=0)
    row = page.locator("#runs tbody tr").filter(has_text=run.id)
    with run.hold():
        run.enter("training")
        run.count(2, 8)
        page.goto(f"{server.url}/operators")
        expect(row.locator(".far")).to_have_text("training, step 2 of 8")
        expect(row.locator("progress")).to_have_js_property("value", 2)
        page.evaluate("window.same = true")
        row.locator("a").first.focus()
        time.sleep(1.1)
        run.count(4, 8)
        expect(row.locator(".far")).to_have_text("training, step 4 of 8")
        expect(row).to_contain_text("left of this stage")
        expect(row.locator("a").first).to_be_focused()
        assert page.evaluate("window.same") and page.evaluate(
            "document.documentElement.scrollWidth <= innerWidth"
        )
        if shots := os.environ.get("MONGARS_SCREENSHOTS"):
            page.screenshot(path=f"{shots}/operators-{width}.png", full_page=True)
        run.enter("gate")
        expect(row.locator(".far")).to_have_text("gate")
        run.finish({"outcome": "refused", "reasons": ["It knows less."], "verdict": None})
    expect(row.locator(".state")).to_have_text("finished")
    expect(page.locator("figure")).to_contain_text("nothing was compared")
    expect(row.locator(".far")).to_have_count(0)
    assert not page.evaluate("window.same") and page.locator("script").count() == 0
