"""What the public catalogues of attacks on JSON web tokens list, tried at a whole application: all of it gets 401."""

# ruff: noqa: E501  (a table of attacks, one a line)

import base64
import hashlib
import hmac
import json
import logging
import time
from urllib.parse import quote

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from starlette.websockets import WebSocketDisconnect

ME = "/api/v1/user/me"
FOREVER = 4_000_000_000


def part(value: dict | bytes | str) -> str:
    data = json.dumps(value, separators=(",", ":")).encode() if isinstance(value, dict) else value
    data = data.encode() if isinstance(data, str) else data
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def signed(header: dict | str, claims: dict | str, key: bytes, method: str = "sha256") -> str:
    body = f"{part(header)}.{part(claims)}"
    return f"{body}.{part(hmac.new(key, body.encode(), method).digest())}"


@pytest.fixture(scope="module")
def ana(app) -> dict:
    """What Ana's session consists of, and the key that signs her access tokens: more than any attacker has."""
    app.post(
        "/api/v1/user/register", json={"username": "Token Ana".replace(" ", "."), "password": "correct horse"}
    )
    pair = app.post("/token", data={"username": "token.ana", "password": "correct horse"}).json()
    token = pair["access_token"]
    head, body, signature = token.split(".")
    ticket = app.post("/api/v1/auth/ws/ticket", headers={"Authorization": f"Bearer {token}"}).json()["ticket"]
    keys = app.app.state.house.tokens._keys
    return {
        "token": token, "head": head, "body": body, "signature": signature, "refresh": pair["refresh_token"],
        "ticket": ticket, "key": keys.signing("access"), "keys": keys,
        "header": json.loads(base64.urlsafe_b64decode(head + "==")),
        "claims": json.loads(base64.urlsafe_b64decode(body + "==")),
    }  # fmt: skip


def public_pem() -> bytes:
    public = generate_private_key(public_exponent=65537, key_size=2048).public_key()
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def changed(ana: dict, drop: str | None = None, **claims) -> str:
    """A token with other claims, signed with the right key: only the claims are wrong."""
    said = {**ana["claims"], **claims}
    said.pop(drop, None)
    return signed(ana["header"], said, ana["key"])


def headed(ana: dict, key: bytes | None = None, **header) -> str:
    return signed({**ana["header"], **header}, ana["claims"], ana["key"] if key is None else key)


def unsigned(ana: dict, algorithm: str, signature: str = "") -> str:
    return f"{part({'alg': algorithm, 'typ': 'at+jwt'})}.{ana['body']}.{signature}"


now = time.time
JWK = {"kty": "oct", "k": part(b"attacker" * 4)}
ATTACKS = {
    # no signature (CVE-2015-9235 and its spellings)
    **{f"alg {name!r}": lambda a, name=name: unsigned(a, name) for name in ("none", "None", "NONE", "nOnE", "", "null")},
    "alg none, old signature": lambda a: unsigned(a, "none", a["signature"]),
    "alg null": lambda a: f"{part({'alg': None, 'typ': 'at+jwt'})}.{a['body']}.",
    "alg a list": lambda a: headed(a, alg=["HS256"]),
    "alg missing": lambda a: f"{part({'typ': 'at+jwt'})}.{a['body']}.{a['signature']}",
    "signature empty (CVE-2020-28042)": lambda a: f"{a['head']}.{a['body']}.",
    "signature missing": lambda a: f"{a['head']}.{a['body']}",
    "signature of zeros (CVE-2022-21449)": lambda a: f"{a['head']}.{a['body']}.{part(bytes(32))}",
    "signature 'null'": lambda a: f"{a['head']}.{a['body']}.null",
    "signature shortened": lambda a: f"{a['head']}.{a['body']}.{a['signature'][:-4]}",
    "signature of another token": lambda a: f"{a['head']}.{part({**a['claims'], 'sub': 'x'})}.{a['signature']}",
    # another key or algorithm
    "key empty": lambda a: signed(a["header"], a["claims"], b""),
    "key of a published list": lambda a: signed(a["header"], a["claims"], b"your-256-bit-secret"),
    "key for HS384": lambda a: signed({"alg": "HS384", "typ": "at+jwt"}, a["claims"], a["key"], "sha384"),
    "key for HS512": lambda a: signed({"alg": "HS512", "typ": "at+jwt"}, a["claims"], a["key"], "sha512"),
    "RS256 confused with HS256 (CVE-2016-10555)": lambda a: signed(a["header"], a["claims"], public_pem()),
    "RS256, signed by HMAC": lambda a: headed(a, alg="RS256"),
    "ES256": lambda a: headed(a, alg="ES256"),
    "the signing key itself, not the derived one": lambda a: signed(a["header"], a["claims"], a["keys"].current),
    "the key for refresh tokens": lambda a: signed(a["header"], a["claims"], a["keys"].signing("refresh")),
    # keys brought along or pointed at
    "kid to /dev/null (CVE-2018-0114's kin)": lambda a: headed(a, b"", kid="../../../../dev/null"),
    "kid with SQL": lambda a: headed(a, b"attacker", kid="x' UNION SELECT 'attacker' --"),
    "kid with a command": lambda a: headed(a, b"attacker", kid="key; curl http://127.0.0.1:9/"),
    "kid at all": lambda a: headed(a, kid="1"),
    "jwk (CVE-2018-0114)": lambda a: headed(a, b"attacker" * 4, jwk=JWK),
    "jku": lambda a: headed(a, b"attacker" * 4, jku="http://127.0.0.1:9/jwks.json"),
    "x5u": lambda a: headed(a, b"attacker" * 4, x5u="http://127.0.0.1:9/cert.pem"),
    "x5c": lambda a: headed(a, b"attacker" * 4, x5c=["MII"]),
    "crit": lambda a: headed(a, crit=["exp"]),
    "b64 false": lambda a: headed(a, crit=["b64"], b64=False),
    "zip": lambda a: headed(a, zip="DEF"),
    # claims that are missing or wrong, signed with the right key
    **{f"no {name}": lambda a, name=name: changed(a, drop=name) for name in ("exp", "sub", "sid", "iat", "iss", "aud", "jti")},
    "exp now": lambda a: changed(a, exp=int(now())),
    "exp text": lambda a: changed(a, exp="never"),
    "exp null": lambda a: changed(a, exp=None),
    "exp true": lambda a: changed(a, exp=[FOREVER]),
    "exp infinite": lambda a: signed(a["header"], json.dumps({**a["claims"], "exp": 0}).replace('"exp": 0', '"exp": 1e999'), a["key"]),
    "exp not a number": lambda a: signed(a["header"], json.dumps({**a["claims"], "exp": float("nan")}), a["key"]),
    "iat in the future": lambda a: changed(a, iat=int(now()) + 60),
    "iat text": lambda a: changed(a, iat="yesterday"),
    "nbf in the future": lambda a: changed(a, nbf=int(now()) + 60),
    "nbf text": lambda a: changed(a, nbf="soon"),
    "aud another": lambda a: changed(a, aud="mongars-refresh"),
    "aud none of a list": lambda a: changed(a, aud=["web", "mongars"]),
    "aud a number": lambda a: changed(a, aud=7),
    "iss another": lambda a: changed(a, iss="https://evil.example"),
    "iss null": lambda a: changed(a, iss=None),
    "sub another's": lambda a: changed(a, sub="0" * 32),
    "sub empty": lambda a: changed(a, sub=""),
    "sub a number": lambda a: changed(a, sub=1),
    "sub a list": lambda a: changed(a, sub=[a["claims"]["sub"]]),
    "sid of nothing": lambda a: changed(a, sid="0" * 32),
    "sid with NUL": lambda a: changed(a, sid="a\0"),
    "typ JWT": lambda a: headed(a, typ="JWT"),
    "typ of a refresh token": lambda a: headed(a, typ="refresh+jwt"),
    "typ missing": lambda a: signed({"alg": "HS256"}, a["claims"], a["key"]),
    "claims twice": lambda a: signed(a["header"], json.dumps(a["claims"])[:-1] + ', "sub": "x"}', a["key"]),
    "claims twice, the same": lambda a: signed(a["header"], json.dumps(a["claims"])[:-1] + ', "iss": "mongars"}', a["key"]),
    "header twice": lambda a: signed('{"typ":"at+jwt","alg":"none","alg":"HS256"}', a["claims"], a["key"]),
    "claims a list": lambda a: signed(a["header"], "[1]", a["key"]),
    "claims no JSON": lambda a: signed(a["header"], b"\xff\xfe", a["key"]),
    "claims empty": lambda a: signed(a["header"], {}, a["key"]),
    # encodings
    "padding": lambda a: f"{a['token']}=",
    "padding everywhere": lambda a: ".".join(p + "=" * (-len(p) % 4 or 4) for p in a["token"].split(".")),
    "last bits changed": lambda a: a["token"][:-1] + chr(ord(a["token"][-1]) + (1 if a["token"][-1] in "AEIMQUYcgkosw048" else -1)),
    "standard alphabet": lambda a: f"{a['head']}.{a['body']}.{'+/' + a['signature'][2:]}",
    "a space before": lambda a: f"{a['head']} .{a['body']}.{a['signature']}",
    "four parts": lambda a: f"{a['token']}.x",
    "five parts, as JWE": lambda a: f"{a['head']}..{a['body']}.{a['signature']}.x",
    "dots only": lambda a: "..",
    "JSON serialisation": lambda a: json.dumps({"protected": a["head"], "payload": a["body"], "signature": a["signature"]}),
    "letters of a party": lambda a: "x.y.z",
    "oversized": lambda a: signed(a["header"], {**a["claims"], "pad": "x" * 20_000}, a["key"]),
    "oversized header": lambda a: headed(a, kid="x" * 20_000),
    "nested deep": lambda a: f"{part('[' * 1400)}.{a['body']}.{a['signature']}",
    "claims nested deep": lambda a: signed(a["header"], "[" * 1100, a["key"]),
    # one for the other
    "refresh token": lambda a: a["refresh"],
    "ticket": lambda a: a["ticket"],
    "refresh token by the access key": lambda a: signed(a["header"], {**a["claims"], "aud": "mongars-refresh"}, a["key"]),
}  # fmt: skip


def test_the_forger_can_write_a_good_token(app, ana):
    """Else each refusal below would prove nothing."""
    again = signed(ana["header"], ana["claims"], ana["key"])
    assert again == ana["token"]
    assert app.get(ME, headers={"Authorization": f"Bearer {again}"}).status_code == 200
    assert app.get(ME, headers={"Authorization": f"Bearer {changed(ana, jti='another')}"}).status_code == 200


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_gets_401_and_leaves_nothing_in_the_log(app, ana, attack, caplog):
    caplog.set_level(logging.DEBUG)
    token = ATTACKS[attack](ana)
    answer = app.get(ME, headers={"Authorization": f"Bearer {token}".encode()})
    assert answer.status_code == 401, answer.text
    assert answer.headers["WWW-Authenticate"] == "Bearer" and answer.json()["title"] == "Sign in first"
    again = app.post("/api/v1/auth/refresh", json={"refresh_token": token})
    assert again.status_code == (200 if attack == "refresh token" else 401), again.text
    told = answer.text + caplog.text
    for secret in (ana["signature"], ana["key"].hex(), ana["claims"]["jti"], "attacker"):
        assert secret not in told
    assert "Traceback" not in caplog.text


def with_ticket(app, ana: dict) -> dict:
    """The same as `ana`, about a fresh ticket in the place of the access token."""
    ticket = app.post("/api/v1/auth/ws/ticket", headers={"Authorization": f"Bearer {ana['token']}"}).json()[
        "ticket"
    ]
    head, body, signature = ticket.split(".")
    return ana | {
        "token": ticket, "head": head, "body": body, "signature": signature, "key": ana["keys"].signing("ticket"),
        "ticket": ana["token"],  # one for the other
        "header": json.loads(base64.urlsafe_b64decode(head + "==")),
        "claims": json.loads(base64.urlsafe_b64decode(body + "==")),
    }  # fmt: skip


def close_of(app, token: str, by: str) -> WebSocketDisconnect | None:
    """How a WebSocket that shows a token is closed; None when it is let in."""
    path = f"/ws/chat/?ticket={quote(token, safe='')}" if by == "ticket" else "/ws/chat/"
    headers = {"Authorization": f"Bearer {token}".encode()} if by == "bearer" else {}
    with app.websocket_connect(path, headers=headers) as socket:
        try:
            assert socket.receive_json()["type"] == "hello"
        except WebSocketDisconnect as closed:
            return closed
    return None


def test_the_forger_can_write_what_opens_a_websocket(app, ana):
    """Else each refusal below would prove nothing."""
    own = with_ticket(app, ana)
    again = signed(own["header"], own["claims"], own["key"])
    assert again == own["token"] and close_of(app, again, "ticket") is None
    assert close_of(app, ana["token"], "bearer") is None


@pytest.mark.parametrize("by", ["ticket", "bearer"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_opens_no_websocket_and_leaves_nothing_in_the_log(app, ana, attack, by, caplog):
    own = with_ticket(app, ana) if by == "ticket" else ana
    caplog.set_level(logging.DEBUG)
    tokens = [ATTACKS[attack](own)]
    if by == "ticket" and attack != "ticket":  # that one is a ticket
        tokens.append(ATTACKS[attack](ana))
    for token in tokens:
        closed = close_of(app, token, by)
        assert closed is not None and closed.code == 4401
        for secret in (own["signature"], own["key"].hex(), own["claims"]["jti"], "attacker"):
            assert secret not in closed.reason + caplog.text
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("mine", ["access", "refresh", "ticket"])
def test_each_purpose_has_a_key_of_its_own(ana, mine):
    keys = {purpose: ana["keys"].signing(purpose) for purpose in ("access", "refresh", "ticket", "peer")}
    assert len(set(keys.values())) == 4
    body = {"access": ana["token"], "refresh": ana["refresh"], "ticket": ana["ticket"]}[mine]
    head, _, signature = body.rpartition(".")
    fitting = [
        p
        for p, key in keys.items()
        if part(hmac.new(key, head.encode(), hashlib.sha256).digest()) == signature
    ]
    assert fitting == [mine]
