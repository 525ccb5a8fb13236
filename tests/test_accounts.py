"""Signing in, staying signed in and being signed out, at a whole application."""

import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from mongars.base.errors import BadInput
from mongars.serving.accounts_api import REFRESH_COOKIE

ME = "/api/v1/user/me"
PASSWORD = "correct horse"


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def sign_in(client, name: str, password: str = PASSWORD) -> dict:
    client.post("/api/v1/user/register", json={"username": name, "password": password})
    answer = client.post("/token", data={"username": name, "password": password})
    client.cookies.clear()
    assert answer.status_code == 200, answer.text
    return answer.json()


def admin(client) -> dict[str, str]:
    accounts = client.app.state.house.accounts
    return bearer(accounts.issue(accounts.owner(), "api_key"))


def gone(client, pair: dict) -> bool:
    """Whether neither token of a pair is worth anything."""
    refreshed = client.post("/api/v1/auth/refresh", json={"refresh_token": pair["refresh_token"]})
    return [client.get(ME, headers=bearer(pair["access_token"])).status_code, refreshed.status_code] == [
        401,
        401,
    ]


def test_a_token_lives_fifteen_minutes_and_is_renewed_by_one_that_works_once(app):
    first = sign_in(app, "ada")
    assert first["expires_in"] == 900 and first["token_type"] == "bearer"
    answer = app.post("/api/v1/auth/refresh", json={"refresh_token": first["refresh_token"]})
    second = answer.json()
    assert answer.headers["Cache-Control"] == "no-store" and second["refresh_token"] != first["refresh_token"]
    assert app.get(ME, headers=bearer(second["access_token"])).json()["username"] == "ada"
    assert app.post("/api/v1/auth/refresh", json={"refresh_token": first["refresh_token"]}).status_code == 401
    assert gone(app, second), "the family survived a replay"
    app.cookies.clear()


def test_the_cookie_is_for_this_site_only_and_no_script_reads_it(app):
    app.post("/api/v1/user/register", json={"username": "bea", "password": PASSWORD})
    answer = app.post("/token", data={"username": "bea", "password": PASSWORD})
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie and "Path=/api/v1/auth" in cookie
    assert "Secure" not in cookie
    assert app.post("/api/v1/auth/refresh", headers={"Origin": "https://evil.example"}).status_code == 403
    assert app.post("/api/v1/auth/logout", headers={"Origin": "https://evil.example"}).status_code == 403
    renewed = app.post("/api/v1/auth/refresh", headers={"Origin": "http://testserver"})
    assert renewed.status_code == 200 and app.cookies[REFRESH_COOKIE] == renewed.json()["refresh_token"]
    assert app.post("/api/v1/auth/logout").status_code == 204 and REFRESH_COOKIE not in app.cookies
    assert gone(app, renewed.json())
    assert app.post("/api/v1/auth/refresh").status_code == app.post("/api/v1/auth/logout").status_code == 401


def test_over_tls_the_cookie_is_secure(app):
    sign_in(app, "tess")
    answer = app.post("https://testserver/token", data={"username": "tess", "password": PASSWORD})
    assert "Secure" in answer.headers["set-cookie"]
    app.cookies.clear()


@pytest.mark.parametrize("ending", ["logout", "logout-all", "password", "disabled", "by an admin"])
def test_sessions_end_at_once(app, ending):
    name = f"cleo.{ending.replace(' ', '')}"
    one, two = sign_in(app, name), sign_in(app, name)
    accounts = app.app.state.house.accounts
    person = accounts.find(name)
    browser = accounts.issue(person, "session")
    key = accounts.issue(person, "api_key")
    mine, ticket = (
        bearer(one["access_token"]),
        app.post("/api/v1/auth/ws/ticket", headers=bearer(one["access_token"])),
    )
    answer = {
        "logout": lambda: app.post("/api/v1/auth/logout", headers=mine),
        "logout-all": lambda: app.post("/api/v1/auth/logout-all", headers=mine),
        "password": lambda: app.post(
            "/api/v1/auth/password", headers=mine, json={"current": PASSWORD, "new": "another horse"}
        ),
        "disabled": lambda: app.patch(
            f"/api/v1/users/{person.id}", headers=admin(app), json={"disabled": True}
        ),
        "by an admin": lambda: app.post(f"/api/v1/users/{person.id}/logout", headers=admin(app)),
    }[ending]()
    assert answer.status_code in (200, 204), answer.text
    assert gone(app, one) and gone(app, two) == (ending != "logout")
    assert (accounts.holder("session", browser) is None) == (ending != "logout")
    with pytest.raises(Exception, match="ended|used already"):
        app.app.state.house.sessions.use(ticket.json()["ticket"], "")
    assert app.get(ME, headers=bearer(key)).status_code == (401 if ending == "disabled" else 200)
    if ending == "password":
        assert app.post("/token", data={"username": name, "password": PASSWORD}).status_code == 401
        assert sign_in(app, name, "another horse")
    if ending == "disabled":
        closed = app.post("/token", data={"username": name, "password": PASSWORD})
        wrong = app.post("/token", data={"username": name, "password": "wrong horse"})
        assert closed.status_code == wrong.status_code == 401 and closed.text == wrong.text
        app.patch(f"/api/v1/users/{person.id}", headers=admin(app), json={"disabled": False})
        assert sign_in(app, name)


def test_a_password_is_changed_only_by_who_knows_it(app):
    mine = bearer(sign_in(app, "dora")["access_token"])
    wrong = app.post(
        "/api/v1/auth/password", headers=mine, json={"current": "wrong horse", "new": "another horse"}
    )
    short = app.post("/api/v1/auth/password", headers=mine, json={"current": PASSWORD, "new": "short"})
    assert (wrong.status_code, short.status_code) == (401, 422)
    assert app.get(ME, headers=mine).status_code == 200


def test_a_new_role_counts_from_the_next_request(app):
    mine = bearer(sign_in(app, "emil")["access_token"])
    me = app.get(ME, headers=mine).json()["id"]
    assert app.get("/api/v1/users", headers=mine).status_code == 403
    changed = app.patch(f"/api/v1/users/{me}", headers=admin(app), json={"role": "operator"})
    assert changed.json()["role"] == "operator"
    assert app.get("/api/v1/users", headers=mine).status_code == 200
    assert app.patch(f"/api/v1/users/{me}", headers=mine, json={"role": "admin"}).status_code == 403
    app.patch(f"/api/v1/users/{me}", headers=admin(app), json={"role": "user"})
    assert app.get("/api/v1/users", headers=mine).status_code == 403
    owner = app.app.state.house.accounts.owner().id
    assert app.patch(f"/api/v1/users/{owner}", headers=admin(app), json={"role": "user"}).status_code == 409


def test_an_api_key_is_not_signed_out(app):
    assert app.post("/api/v1/auth/logout", headers=admin(app)).status_code == 409


def test_twenty_registrations_of_one_name_make_one_account(app):
    names = [f"{'fra' if n % 2 else 'FRA'}.at.once" for n in range(20)]

    def register(name: str) -> int:
        return app.post("/api/v1/user/register", json={"username": name, "password": PASSWORD}).status_code

    with ThreadPoolExecutor(20) as crowd:
        answers = sorted(crowd.map(register, names))
    assert answers == [201] + [409] * 19
    assert sum(p.username_key == "fra.at.once" for p in app.app.state.house.accounts.everybody()) == 1


def test_an_unknown_name_looks_like_a_wrong_password(app):
    sign_in(app, "gus")
    accounts = app.app.state.house.accounts
    seconds, said = {"gus": [], "nobody.here": []}, set()
    for _ in range(15):
        for name, times in seconds.items():
            began = time.perf_counter()
            with pytest.raises(Exception) as refused:
                accounts.authenticate(name, "wrong horse")
            times.append(time.perf_counter() - began)
            said.add(str(refused.value))
    known, unknown = (statistics.median(times) for times in seconds.values())
    assert len(said) == 1 and abs(known - unknown) < 0.2 * max(known, unknown), (known, unknown)
    answers = [app.post("/token", data={"username": name, "password": "wrong horse"}) for name in seconds]
    assert (
        answers[0].status_code == answers[1].status_code == 401 and answers[0].content == answers[1].content
    )
    differing = {name for name, value in answers[0].headers.items() if answers[1].headers[name] != value}
    assert differing <= {"date"}


def test_the_eleventh_wrong_password_waits_and_a_restart_forgets_nothing(make_app, tmp_path):
    settings = {"home": tmp_path / "home"}

    def wrong(client, name: str):
        return client.post("/token", data={"username": name, "password": "wrong horse"})

    with make_app(**settings) as client:
        sign_in(client, "hal")
        assert [wrong(client, "HAL" if n % 2 else "hal").status_code for n in range(10)] == [401] * 10
        late = client.post("/token", data={"username": "hal", "password": PASSWORD})
        assert late.status_code == 429 and 1 <= int(late.headers["Retry-After"]) <= 60
        assert late.json()["title"] == "Too many requests"
    with make_app(**settings) as client:
        assert client.post("/token", data={"username": "hal", "password": PASSWORD}).status_code == 429
        other = wrong(client, "somebody.else")  # of the same address
        assert other.status_code == 429 and int(other.headers["Retry-After"]) >= 1
        elsewhere = client.app.state.house.attempts
        with pytest.raises(Exception, match="Too many"), elsewhere.one("hal", "10.0.0.9"):
            pass
        with elsewhere.one("somebody.else", "10.0.0.9"):
            pass


@pytest.mark.parametrize(
    "settings, reason",
    [
        ({"secret_key": "short"}, "5 bytes"),
        ({"secret_key": "a-string-secret-at-least-256-bits-long"}, "published"),
        ({"secret_key": "09d25e094faa6ca2556c818166b7a9563b93f7099f6f0f4caa6cf63b88e8d3e7"}, "published"),
        ({"secret_key": "z" * 64}, "repeats itself"),
        ({"previous_secret_key": "f1f2d96ab4e84c1c8f7b7a3e5d2c9a0b"}, "UNTIL"),
        ({"jwt_algorithm": "RS256"}, "key manager"),
        ({"jwt_algorithm": "none"}, "HS256 only"),
    ],
)
def test_what_is_weak_does_not_start(make_app, settings, reason):
    with pytest.raises((BadInput, AssertionError), match=reason):
        with make_app(
            **settings
        ) as client:  # a server that cannot be opened tells why, and answers nothing else
            refused = client.get("/ready")
            assert refused.status_code == 503
            assert client.post("/token", data={"username": "a", "password": "12345678"}).status_code == 503
            assert settings.get("secret_key", "12345") not in refused.text
            raise BadInput(refused.json()["detail"])


def test_a_new_key_keeps_old_sessions_until_the_moment_that_was_named(make_app, tmp_path):
    old, new = "f1f2d96ab4e84c1c8f7b7a3e5d2c9a0b", "9a7c3b1e5d2f4c6a8e0b7d9f1a3c5e2d"
    with make_app(home=tmp_path, secret_key=old) as client:
        pair = sign_in(client, "ida")
    again = {"home": tmp_path, "secret_key": new, "previous_secret_key": old}
    with make_app(**again, previous_secret_key_until="2999-01-01T00:00:00Z") as client:
        assert client.get(ME, headers=bearer(pair["access_token"])).status_code == 200
        renewed = client.post("/api/v1/auth/refresh", json={"refresh_token": pair["refresh_token"]})
        client.cookies.clear()
    with make_app(**again, previous_secret_key_until="2020-01-01T00:00:00Z") as client:
        assert client.get(ME, headers=bearer(pair["access_token"])).status_code == 401
        assert client.get(ME, headers=bearer(renewed.json()["access_token"])).status_code == 200
