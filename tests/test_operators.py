"""The page for operators: who may see it, what it shows, and how what serves is taken back."""

from dataclasses import dataclass
from html.parser import HTMLParser

import numpy as np
import pytest
from routes import CANARY, PAGES

from mongars.base.ledger import Run, open_run, write_json
from mongars.base.tables import Adapter
from mongars.growth.curation import snapshot
from mongars.growth.evaluation import ACCEPTED
from mongars.growth.lineage import CANDIDATE, STAGED, adapters, enter, moved, serving
from mongars.growth.planted import hold, planted
from mongars.growth.safe_apply import apply
from mongars.neurons.query_map import MapCard, QueryMap, write
from mongars.serving import nights
from mongars.serving.accounts import ROLES
from mongars.serving.approvals import NIGHT
from mongars.serving.operators_page import operators_page

VERDICTS = [
    ("refused", 0.01, -0.06, 0.08),
    ("not enough evidence", None, None, None),
    ("accepted", 0.31, 0.22, 0.4),
]


@dataclass
class Operated:
    """A house in which something was learnt of Bo."""

    client: object
    house: object
    person: str
    runs: list[str]

    def keys(self, role: str) -> dict[str, str]:
        """What somebody of a role sends."""
        name = f"some.{role}"
        person = self.house.accounts.find(name) or self.house.accounts.register(name, None, role)
        return {"Authorization": f"Bearer {self.house.accounts.issue(person, 'api_key')}"}


def furnish(house) -> tuple[str, list[str]]:
    """Runs with verdicts, of which the last has a map that serves Bo, who said something; the runs' names."""
    settings, made = house.settings, []
    bo = house.accounts.register("some.bo", None).id
    house.hippocampus.add(bo, "user", f"My {CANARY} sings.", house.cortex.clock())
    for outcome, mean, low, high in VERDICTS:
        run = open_run(settings.home, "self_training", {"person": bo}, seed=0)
        interval = {"mean": mean, "low": low, "high": high}
        verdict = {"checks": [], "intervals": {"recall": interval}} if mean is not None else None
        run.finish({
            "outcome": outcome, "reasons": [f"It was {outcome}."], "verdict": verdict, "person": bo,
            "data_hash": "d" * 64, "pairs": {"train": 9}, "strength": 1.0, "weight_change": 0.2,
        })  # fmt: skip
        made.append(run)
    taught(house, run, bo, "d" * 64)
    apply(house.store, settings.home, run.folder / "map", ACCEPTED, None, 0.5, house.embedder)
    failed = open_run(settings.home, "train_reader", {}, seed=0)
    failed.fail("ValueError: <b>too hot</b>")
    return bo, [run.id for run in (*made, failed)]


def taught(house, run: Run, person: str, data: str) -> str:
    """Write a map of a person into a run; the hash of its weights."""
    d = house.embedder.dimension
    turned = QueryMap(np.eye(d, dtype=np.float32) + np.eye(d, k=1, dtype=np.float32) / 50)
    card = MapCard(
        house.embedder.fingerprint, person, data, run.id, 0, 1.0, 9, None, "unknown", "2026-01-02T00:00:00Z",
        probes=turned.likeness(house.embedder.embed),
    )  # fmt: skip
    return write(run.folder / "map", turned, card).weights_sha256


def put_up(house, kind: str = "query_map") -> Adapter:
    """What a night of Ann accepted, and waits for approval."""
    name = f"some.ann.{kind}"
    ann = house.accounts.register(name, None).id
    asks = house.settings.model_copy(update={"approval": True})
    experiment = "self_training" if kind == "query_map" else "chat_training"
    run = open_run(asks.home, experiment, {"person": ann}, seed=0)
    write_json(run.folder / NIGHT, {"generation": 0})
    if kind == "query_map":
        hold(house.hippocampus, ann, planted(things=2, sides=2))
        data = snapshot(house.store, asks.home, least={}, person=ann).hash
        run.finish({
            "outcome": ACCEPTED, "reasons": ["It is better."], "verdict": None, "person": ann, "data_hash": data,
            "pairs": {}, "strength": 1.0, "weight_change": 0.1, "limit": 0.5, "adapter": "map",
            "weights_sha256": taught(house, run, ann, data),
        })  # fmt: skip
        nights.conclude(asks, house.store, run, house.embedder, say=lambda line: None)
        return next(row for row in adapters(house.store) if row.run == run.id)
    run.finish({"outcome": ACCEPTED, "reasons": [], "verdict": None, "person": ann})
    write_json(run.folder / NIGHT, {"generation": 0, "approval": True})
    made = enter(
        house.store,
        Adapter(
            kind=kind,
            owner_id=ann,
            base="",
            weights_sha256="c" * 64,
            run=run.id,
            data_hash="0",
            outcome=ACCEPTED,
        ),
    )
    moved(house.store, made.id, STAGED, (CANDIDATE,))
    return made


@pytest.fixture(scope="module")
def operated(make_app):
    with make_app(page=True) as client:
        house = client.app.state.house
        bo, made = furnish(house)
        yield Operated(client, house, bo, made)


class Names(HTMLParser):
    """The elements and attributes of a page."""

    def __init__(self, html: str):
        super().__init__()
        self.seen: list[tuple[str, dict]] = []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))


def test_every_page_has_a_rule_and_every_rule_a_page():
    assert {f"{method} {route.path}" for route in operators_page.routes for method in route.methods} == set(
        PAGES
    )


@pytest.mark.parametrize("who", ["nobody", *ROLES])
@pytest.mark.parametrize("route", sorted(PAGES))
def test_a_page_is_for_whom_its_rule_says(operated, route, who):
    method, path = route.split()
    serves = serving(operated.house.store, operated.person).id
    asked = PAGES[route].call({"person_id": operated.person, "run": operated.runs[0], "adapter": serves})
    path, headers = asked.pop("path", path), {} if who == "nobody" else operated.keys(who)
    answer = operated.client.request(method, path, headers=headers, **asked)
    assert CANARY not in answer.text and answer.headers["Content-Security-Policy"].startswith(
        "default-src 'none'"
    )
    if who == "nobody":
        assert answer.status_code == 401 and "/sign-in" in answer.text
    elif ROLES.index(who) < ROLES.index(PAGES[route].rule):
        assert answer.status_code == 403 and "takes the role operator; yours is user" in answer.text
        assert operated.person not in answer.text and operated.runs[0] not in answer.text
    else:
        assert answer.status_code in (200, 409), answer.text  # nothing is rolled back, and nothing waits
    assert serving(operated.house.store, operated.person).generation == 1


def test_runs_verdicts_and_what_serves_are_shown_and_nothing_from_elsewhere(operated):
    html = operated.client.get("/operators", headers=operated.keys("operator")).text
    assert all(run in html for run in operated.runs) and "unknown" in html
    assert "accepted, +0.310 (+0.220 to +0.400)" in html and "nothing was compared" in html
    now = serving(operated.house.store, operated.person)
    assert now.id in html and operated.person in html and "some.bo" not in html
    names = Names(html).seen
    groups = [about["class"] for tag, about in names if tag == "g" and about.get("class") != "mark"]
    assert groups == ["accepted", "not-enough-evidence", "refused"]  # newest first, each with its shape
    links = [about.get(name) for _, about in names for name in ("href", "src", "action") if about.get(name)]
    assert links and all(link.startswith("/") and not link.startswith("//") for link in links)
    assert not [tag for tag, about in names if tag == "script" or "style" in about or "onclick" in about]
    report = operated.client.get(
        f"/operators/runs/{operated.runs[2]}", headers=operated.keys("operator")
    ).text
    assert "<h2>Accepted</h2>" in report and "It was accepted." in report
    broken = operated.client.get(
        f"/operators/runs/{operated.runs[3]}", headers=operated.keys("operator")
    ).text
    assert "&lt;b&gt;too hot" in broken and "<b>too" not in broken
    gone = operated.client.get("/operators/runs/nothing", headers=operated.keys("operator"))
    assert gone.status_code == 404 and "There is no run" in gone.text


def test_a_run_at_work_is_shown_with_its_step_and_asked_for_again(operated):
    client, keys = operated.client, operated.keys("operator")
    quiet = client.get("/operators", headers=keys).text
    assert "data-again" not in quiet and "<script" not in quiet
    run = open_run(operated.house.settings.home, "train_reader", {}, seed=0)
    with run.hold():
        run.enter("training")
        run.count(3, 9)
        page = client.get("/operators", headers=keys)
        assert "training, step 3 of 9<" in page.text and 'value="3" max="9"' in page.text
        scripts = [about for tag, about in Names(page.text).seen if tag == "script"]
        assert scripts == [{"src": "/pages/operators.js", "defer": None}]
        assert "connect-src 'self'" in page.headers["Content-Security-Policy"]
        assert client.get(scripts[0]["src"]).status_code == 200
        part = client.get("/operators", headers=keys | {"X-Fragment": "1"}).text
        assert (
            part.startswith('<section id="runs" data-again=')
            and "step 3 of 9" in part
            and "Verdicts" not in part
        )
        assert "running, training, step 3 of 9" in client.get(f"/operators/runs/{run.id}", headers=keys).text
        others = client.get("/operators", headers=operated.keys("user") | {"X-Fragment": "1"})
        assert others.status_code == 403 and run.id not in others.text
        run.finish({})
    part = client.get("/operators", headers=keys | {"X-Fragment": "1"}).text
    assert "data-again" not in part and run.id in part and "step 3" not in part


def test_the_way_to_it_is_shown_to_those_who_may(operated):
    from mongars.serving.view import signed_in

    people = {role: operated.house.accounts.register(f"shown.{role}", None, role) for role in ROLES}
    shown = {
        role: 'href="/operators"' in signed_in(operated.house, person.id) for role, person in people.items()
    }
    assert shown == {"user": False, "operator": True, "admin": True}


def test_what_serves_is_taken_back_when_it_is_still_what_was_shown_and_no_other_page_can(operated):
    client, keys, place = operated.client, operated.keys("operator"), f"/operators/rollback/{operated.person}"
    id = serving(operated.house.store, operated.person).id
    asked = client.get(place, headers=keys).text
    assert f'value="{id}"' in asked and "no map will serve them" in asked
    elsewhere = client.post(
        place, data={"adapter": id}, headers=keys | {"Origin": "http://elsewhere.example"}
    )
    stale = client.post(place, data={"adapter": "f" * 32}, headers=keys)
    assert (elsewhere.status_code, stale.status_code) == (403, 409) and "Nothing was changed" in stale.text
    assert serving(operated.house.store, operated.person).id == id
    done = client.post(place, data={"adapter": id}, headers=keys | {"Origin": "http://testserver"})
    assert done.status_code == 303 and serving(operated.house.store, operated.person).id is None
    page = client.get(done.headers["location"], headers=keys).text
    assert f"No map serves {operated.person} again" in page
    again = client.post(place, data={"adapter": id}, headers=keys)
    assert again.status_code == 409 and client.get(place, headers=keys).status_code == 404
    [line] = [
        line
        for line in operated.house.audit.lines()
        if line["what"] == "rollback" and line["result"] == "done"
    ]
    assert (line["on"], line["adapter"], line["role"]) == (operated.person, id, "operator")


def test_what_waits_is_approved_by_the_hash_that_was_shown_and_no_other_page_can(operated, monkeypatch):
    client, keys, house = operated.client, operated.keys("operator"), operated.house
    row = put_up(house)
    place, sha = f"/operators/approve/{row.id}", row.weights_sha256
    page = client.get("/operators", headers=keys).text
    assert "Waits for approval" in page and f"mongars adapters approve {row.id} --sha {sha[:12]}" in page
    assert f'href="{place}"' in page and sha in page and "some.ann" not in page
    assert "waits for approval" in client.get(f"/operators/runs/{row.run}", headers=keys).text
    asked = client.get(place, headers=keys).text
    assert f'name="sha" value="{sha}"' in asked and row.owner_id in asked
    elsewhere = client.post(place, data={"sha": sha}, headers=keys | {"Origin": "http://elsewhere.example"})
    user = client.post(place, data={"sha": sha}, headers=operated.keys("user"))
    other = client.post(place, data={"sha": "0" * 64}, headers=keys)
    none = client.post(place, headers=keys)
    assert [answer.status_code for answer in (elsewhere, user, other, none)] == [403, 403, 409, 422]
    assert "Nothing was changed" in other.text and serving(house.store, row.owner_id).id is None
    done = client.post(place, data={"sha": sha}, headers=keys | {"Origin": "http://testserver"})
    assert done.status_code == 303 and serving(house.store, row.owner_id).id == row.id
    page = client.get(done.headers["location"], headers=keys).text
    assert f"The map {row.id} serves {row.owner_id}, from" in page and "Waits for approval" not in page
    assert client.get(place, headers=keys).status_code == 409
    lines = [line for line in house.audit.lines() if line["what"] == "adapter_approved"]
    [line] = [line for line in lines if line["result"] == "done"]
    assert (line["on"], line["adapter"], line["role"], line["sha256"]) == (
        row.owner_id,
        row.id,
        "operator",
        sha,
    )
    assert house.embedder.embed(["It is open still."]).shape  # it was lent, not closed


def test_a_chat_adapter_is_not_approved_by_the_server_that_answers(operated):
    client, keys, house = operated.client, operated.keys("operator"), operated.house
    row = put_up(house, "chat")
    page = client.get("/operators", headers=keys).text
    assert f"mongars adapters approve {row.id}" in page and f"/operators/approve/{row.id}" not in page
    for answer in (
        client.get(f"/operators/approve/{row.id}", headers=keys),
        client.post(f"/operators/approve/{row.id}", data={"sha": row.weights_sha256}, headers=keys),
    ):
        assert answer.status_code == 409 and "is approved in the terminal" in answer.text
    assert serving(house.store, row.owner_id, "chat").id is None
