"""Whom `schemathesis` speaks as: accounts made in the home of the server that is tried."""

import itertools
import os

import requests
import schemathesis

from mongars.base.keys import signing_keys
from mongars.base.settings import read_settings
from mongars.base.store import Store
from mongars.serving.accounts import Accounts
from mongars.serving.sessions import Sessions
from mongars.serving.tokens import ACCESS, Tokens

URL = os.environ["CONTRACT_URL"]
settings = read_settings(_env_file=None)
store = Store(settings.store_url)
accounts = Accounts(store)
sessions = Sessions(store, accounts, Tokens(signing_keys(settings)))
numbers = itertools.count(1)
tokens: dict[str, str] = {}  # of each role, that of who is signed in
ended: dict[str, str] = {}  # and those that are worth nothing any more, with their role


def role_for(path: str) -> str:
    """The least role that gets beyond the door of a route."""
    if path.startswith("/api/v1/runs"):
        return "operator"
    return "admin" if path.startswith("/api/v1/users") else "user"


def token_of(role: str) -> str:
    """The token of somebody of a role: somebody new, if the last one was signed out, disabled or deleted."""
    if role not in tokens:
        person = accounts.register(f"contract.{os.getpid()}.{next(numbers)}", None, role)
        tokens[role] = sessions.begin(person).access
    return tokens[role]


@schemathesis.auth(refresh_interval=None)
class SignedIn:
    """A person of the role that a route asks for."""

    def get(self, case: schemathesis.Case, context: schemathesis.AuthContext) -> str:
        return token_of(role_for(case.operation.path))

    def set(self, case: schemathesis.Case, data: str, context: schemathesis.AuthContext) -> None:
        case.headers = case.headers or {}
        case.headers["Authorization"] = f"Bearer {data}"


@schemathesis.hook
def before_call(context, case, kwargs) -> None:
    """A case may wait for its turn longer than its session lives; and a good one asks for what is there."""
    headers = case.headers or {}
    role = ended.get(str(headers.get("Authorization", "")).removeprefix("Bearer "))
    if role is not None:
        headers["Authorization"] = f"Bearer {token_of(role)}"
    if not case.meta or not case.meta.generation.mode.is_positive:
        return
    if "idempotency-key" in headers:
        headers["idempotency-key"] = f"contract-{next(numbers)}"
    if headers.get("Authorization") and case.meta.phase.name != "stateful":  # there, links lead to things
        fill(case, headers["Authorization"])


def fill(case, credential: str) -> None:
    """Have a case name what its account really has."""
    kind = case.operation.path.removeprefix("/api/v1/").partition("/{")[0]
    if kind in MADE_BY:
        case.path_parameters["id"] = thing(credential, kind)
    elif case.operation.path == "/api/v1/feedback" and case.method == "POST":
        case.body["references"] = [thing(credential, "conversation/turns")]
    elif case.operation.path == "/v1/embeddings":
        case.body["model"] = "tiny-encoder"
    elif case.operation.path == "/v1/models/{name}":
        case.path_parameters["name"] = "tiny-chat"


CHAT = ("conversation/chat", {"message": "My sister keeps bees."}, "turn_id")
MADE_BY = {
    "memories": ("memories", {"text": "I keep bees."}, "id"),
    "conversations": ("conversations", {}, "id"),
    "conversation/turns": CHAT,
    "feedback": CHAT,
}


def thing(credential: str, kind: str) -> str:
    """The id of something of this kind, made just now."""
    path, body, field = MADE_BY[kind]
    sent = {"headers": {"Authorization": credential}, "timeout": 60}
    answer = requests.post(f"{URL}/api/v1/{path}", json=body, **sent)
    assert answer.ok, answer.text
    id = answer.json()[field]
    if kind == "feedback":
        rated = {"references": [id], "score": 1}
        assert requests.post(f"{URL}/api/v1/feedback", json=rated, **sent).ok
    return id


@schemathesis.hook
def after_call(context, case, response) -> None:
    """Note who is not signed in any more."""
    sent = str(response.request.headers.get("Authorization", "")).removeprefix("Bearer ")
    for role, token in list(tokens.items()):
        if token == sent and accounts.bearer_of(sessions.tokens.read(ACCESS, token).session) is None:
            ended[tokens.pop(role)] = role
