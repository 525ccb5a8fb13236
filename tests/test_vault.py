"""Secrets from a Vault server: one that answers, and several that do not do what they should. Each is a real server."""

import datetime
import json
import logging
import ssl
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from mongars.base.errors import BadInput, MongarsError, NotReady
from mongars.base.secret_places import SECRETS
from mongars.base.settings import read_settings
from mongars.base.vault import read_secret

TOKEN = "hvs.CAESIJ7xQ2m"
KEY = "9a7c3b1e5d2f4c6a8e0b7d9f1a3c5e2d"
HELD = {"secret_key": KEY, "model_key": "sk-from-the-vault", "empty": ""}


class Vault(BaseHTTPRequestHandler):
    """As much of Vault as a reader meets: the key/value store of version 2."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.server.asked.append((self.path, dict(self.headers)))
        mode = self.server.mode
        if mode == "slow":
            time.sleep(2)
        if mode == "elsewhere":
            return self.say(307, b"", Location=self.server.elsewhere + self.path)
        if mode == "sealed":
            return self.say(503, b'{"errors": ["Vault is sealed"]}')
        if mode == "dripping":
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            for _ in range(200):
                try:
                    self.wfile.write(b" ")
                except OSError:
                    return
                time.sleep(0.05)
        if mode == "endless":
            return self.say(200, b"[" * 3_000_000)
        if mode == "a page":
            return self.say(200, b"<html>Welcome</html>")
        if self.headers["X-Vault-Token"] != TOKEN:
            return self.say(403, b'{"errors": ["permission denied"]}')
        if self.path != "/v1/team/kv/data/house/mongars":
            return self.say(404, b'{"errors": []}')
        data = {"data": HELD, "metadata": {"version": 2, "deletion_time": "", "destroyed": False}}
        self.say(200, json.dumps({"request_id": "1", "lease_id": "", "data": data}).encode())

    def say(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        try:
            self.wfile.write(body)
        except OSError:
            pass


@contextmanager
def serving(mode: str = "good", context: ssl.SSLContext | None = None):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Vault)
    server.asked, server.mode = [], mode
    if context:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    server.url = f"{'https' if context else 'http'}://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def settings_of(server, **changes):
    """The settings of a house whose secrets are in the vault."""
    chosen = {
        "vault_url": server.url,
        "vault_token": TOKEN,
        "vault_mount": "team/kv",
        "vault_path": "house/mongars",
    }
    return read_settings(_env_file=None, **chosen | changes)


def refused(server, **changes) -> str:
    with pytest.raises(MongarsError) as error:
        settings_of(server, **changes)
    told = error.value.detail
    assert not any(secret in told for secret in (TOKEN, KEY, "sk-from-the-vault"))
    assert error.value.__suppress_context__ or error.value.__context__ is None  # a traceback shows no more
    return told


def test_a_house_signs_with_the_key_in_the_vault_and_nothing_of_it_is_in_a_log(
    make_app, tmp_path, caplog, capfd
):
    caplog.set_level(logging.DEBUG)
    with serving() as vault:
        file = tmp_path / "token"
        file.write_text(f"{TOKEN}\n")
        settings = settings_of(
            vault, vault_token=None, vault_token_file=file, vault_keys="secret_key,model_key"
        )
        assert settings.secret_key.get_secret_value() == KEY
        assert settings.model_key.get_secret_value() == "sk-from-the-vault"
        assert len(vault.asked) == 1 and vault.asked[0][1]["X-Vault-Request"] == "true"
        chosen = {
            n: getattr(settings, n) for n in ("vault_url", "vault_token_file", "vault_mount", "vault_path")
        }
        with make_app(home=tmp_path / "home", **chosen) as client:
            assert client.app.state.house.tokens._keys.current == KEY.encode()
            assert not (tmp_path / "home" / "secret_key").exists()
    told = caplog.text + repr(settings) + "".join(capfd.readouterr())
    assert not any(secret in told for secret in (TOKEN, KEY, "sk-from-the-vault"))


def test_what_is_missing_is_named():
    with serving() as vault:
        assert "MONGARS_VAULT_TOKEN" in refused(vault, vault_token="hvs.wrong")
        assert "MONGARS_VAULT_TOKEN_FILE" in refused(vault, vault_token=None)
        told = refused(vault, vault_path="house/other")
        assert "MONGARS_VAULT_PATH" in told and "team/kv/house/other" in told
        told = refused(vault, vault_keys="secret_key,database_url")
        assert "no text under database_url" in told and "vault kv patch" in told
        assert "none of" in refused(vault, vault_keys="empty")
        asked = len(vault.asked)
        assert "no path" in refused(vault, vault_path="../../sys/seal-status") and len(vault.asked) == asked


def test_two_places_must_agree(tmp_path):
    with serving() as vault:
        file = tmp_path / "key"
        file.write_text(KEY)
        assert settings_of(vault, secret_key=KEY).secret_key.get_secret_value() == KEY
        assert settings_of(vault, secret_key_file=file).secret_key.get_secret_value() == KEY
        file.write_text("another0another1another2another3")
        assert "differ" in refused(vault, secret_key_file=file)
        assert "differ" in refused(vault, secret_key="another0another1another2another3")
        kept = settings_of(vault, model_key="sk-mine", vault_keys="secret_key")  # not asked of the vault
        assert kept.model_key.get_secret_value() == "sk-mine"


@pytest.mark.parametrize("name", SECRETS)
def test_every_secret_may_lie_in_a_file(tmp_path, name):
    file = tmp_path / "secret"
    file.write_text("postgresql://a:b@c/d\n")
    read = read_settings(_env_file=None, **{f"{name}_file": file})
    assert getattr(read, name).get_secret_value() == "postgresql://a:b@c/d" and "a:b" not in repr(read)
    file.unlink()
    with pytest.raises(BadInput, match=f"MONGARS_{name}_FILE".upper()):
        read_settings(_env_file=None, **{f"{name}_file": file})


def test_a_weak_key_in_the_vault_does_not_start_either(make_app, tmp_path, monkeypatch):
    monkeypatch.setitem(HELD, "secret_key", "changeme" * 8)
    with serving() as vault:
        where = {
            "vault_url": vault.url,
            "vault_token": TOKEN,
            "vault_mount": "team/kv",
            "vault_path": "house/mongars",
        }
        with make_app(home=tmp_path / "home", **where) as client:
            told = client.get("/ready")
        assert told.status_code == 503 and "published" in told.text and "changeme" not in told.text


def test_a_server_that_points_elsewhere_is_not_followed():
    with serving() as elsewhere, serving("elsewhere") as vault:
        vault.elsewhere = elsewhere.url
        told = refused(vault)
        assert "points elsewhere" in told and len(vault.asked) == 1
        assert elsewhere.asked == [], "the token went there"


@pytest.mark.parametrize("mode", ["slow", "dripping"])
def test_a_server_that_takes_too_long_is_left(mode):
    with serving(mode) as vault:
        began = time.monotonic()
        with pytest.raises(NotReady, match="too long"):
            read_secret(vault.url, TOKEN, "team/kv", "house/mongars", seconds=0.3)
        assert time.monotonic() - began < 1.5


@pytest.mark.parametrize(
    "mode, why", [("sealed", "is sealed"), ("endless", "does not answer"), ("a page", "version 2")]
)
def test_a_server_that_answers_something_else_is_no_vault(mode, why):
    with serving(mode) as vault:
        assert why in refused(vault)


def test_nobody_there_is_said_at_once():
    with serving() as vault:
        pass
    assert "does not answer" in refused(vault)


def test_the_token_goes_unencrypted_to_this_machine_only(tmp_path):
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "vault")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now - datetime.timedelta(1)).not_valid_after(now + datetime.timedelta(1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    authority = tmp_path / "ca.pem"
    authority.write_bytes(certificate.public_bytes(Encoding.PEM))
    both = tmp_path / "both.pem"
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    both.write_bytes(private + authority.read_bytes())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(both)
    with serving(context=context) as vault:
        assert settings_of(vault, vault_ca_file=authority).secret_key.get_secret_value() == KEY
        assert "does not answer" in refused(vault), "a certificate that nobody vouches for was taken"
        assert "MONGARS_VAULT_CA_FILE" in refused(vault, vault_ca_file=tmp_path / "none.pem")
        assert len(vault.asked) == 1
    with pytest.raises(BadInput, match="https"):
        read_settings(_env_file=None, vault_url="http://vault.example:8200", vault_token=TOKEN)
