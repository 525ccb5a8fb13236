"""Every route of the application: who may call it, and how to call it aiming at what is somebody else's."""

from collections.abc import Callable
from typing import NamedTuple

CANARY = "zebrafinch"  # Bo's word; nobody else must ever meet it


class Route(NamedTuple):
    """The least role that may call a route (`open`: anybody), and the call; `bo` names what is Bo's."""

    rule: str
    call: Callable[[dict], dict]


ROUTES = {
    "POST /api/v1/user/register": Route(
        "open", lambda bo: {"json": {"username": "Bo", "password": "12345678"}}
    ),
    "POST /token": Route("open", lambda bo: {"data": {"username": "Bo", "password": "wrong horse"}}),
    "POST /api/v1/conversation/chat": Route(
        "user",
        lambda bo: {
            "json": {
                "message": f"What did I say about {CANARY[:5]}?",
                "conversation_id": bo["conversation_id"],
            },
            "headers": {"Idempotency-Key": "bos-key"},
        },
    ),
    "GET /api/v1/conversation/history": Route(
        "user", lambda bo: {"params": {"conversation_id": bo["conversation_id"], "before": bo["cursor"]}}
    ),
    "GET /api/v1/memories": Route(
        "user",
        lambda bo: {
            "params": {
                "conversation_id": bo["conversation_id"],
                "text": CANARY[1:5],
                "before": bo["memory_cursor"],
            }
        },
    ),
    "POST /api/v1/memories": Route("user", lambda bo: {"json": {"text": "I have a dog."}}),
    "DELETE /api/v1/memories": Route("user", lambda bo: {"params": {"confirm": "nothing"}}),
    "GET /api/v1/memories/search": Route(
        "user", lambda bo: {"params": {"q": f"My {CANARY[:5]} sings in the morning"}}
    ),
    "GET /api/v1/memories/{id}": Route("user", lambda bo: {"path": f"/api/v1/memories/{bo['memory_id']}"}),
    "GET /api/v1/memories/{id}/history": Route(
        "user", lambda bo: {"path": f"/api/v1/memories/{bo['memory_id']}/history"}
    ),
    "POST /api/v1/memories/{id}/correction": Route(
        "user",
        lambda bo: {
            "path": f"/api/v1/memories/{bo['memory_id']}/correction",
            "json": {"text": "It is silent."},
        },
    ),
    "PATCH /api/v1/memories/{id}": Route(
        "user",
        lambda bo: {
            "path": f"/api/v1/memories/{bo['memory_id']}",
            "json": {"expires_at": "2020-01-01T00:00:00Z"},
        },
    ),
    "DELETE /api/v1/memories/{id}": Route("user", lambda bo: {"path": f"/api/v1/memories/{bo['memory_id']}"}),
    "GET /api/v1/conversations": Route("user", lambda bo: {}),
    "POST /api/v1/conversations": Route("user", lambda bo: {"json": {"paused": True}}),
    "GET /api/v1/conversations/{id}": Route(
        "user", lambda bo: {"path": f"/api/v1/conversations/{bo['conversation_id']}"}
    ),
    "PATCH /api/v1/conversations/{id}": Route(
        "user",
        lambda bo: {
            "path": f"/api/v1/conversations/{bo['conversation_id']}",
            "json": {"paused": True},
        },
    ),
    "DELETE /api/v1/conversations/{id}": Route(
        "user", lambda bo: {"path": f"/api/v1/conversations/{bo['conversation_id']}"}
    ),
    "GET /api/v1/conversation/turns/{id}/memories": Route(
        "user", lambda bo: {"path": f"/api/v1/conversation/turns/{bo['turn_id']}/memories"}
    ),
    "POST /api/v1/feedback": Route("user", lambda bo: {"json": {"references": [bo["turn_id"]], "score": -1}}),
    "GET /api/v1/feedback": Route("user", lambda bo: {"params": {"before": bo["cursor"]}}),
    "GET /api/v1/feedback/{id}": Route("user", lambda bo: {"path": f"/api/v1/feedback/{bo['turn_id']}"}),
    "DELETE /api/v1/feedback/{id}": Route("user", lambda bo: {"path": f"/api/v1/feedback/{bo['turn_id']}"}),
    "GET /api/v1/me/consent": Route("user", lambda bo: {}),
    "PUT /api/v1/me/consent": Route("user", lambda bo: {"json": {"training_consent": False}}),
    "GET /api/v1/me/export": Route("user", lambda bo: {}),
    "DELETE /api/v1/me": Route("user", lambda bo: {"json": {"confirm": "delete Bo"}}),
    "GET /api/v1/runs": Route("operator", lambda bo: {}),
    "GET /api/v1/runs/{id}": Route("operator", lambda bo: {"path": f"/api/v1/runs/{'0' * 32}"}),
    "POST /v1/chat/completions": Route(
        "user",
        lambda bo: {
            "json": {
                "model": "tiny-chat",
                "messages": [{"role": "user", "content": "What did I say?"}],
                "max_tokens": 8,
            },
            "headers": {"X-Conversation-Id": bo["conversation_id"]},
        },
    ),
    "GET /v1/models": Route("user", lambda bo: {}),
    "GET /v1/models/{name}": Route("user", lambda bo: {"path": "/v1/models/tiny-chat"}),
    "POST /v1/embeddings": Route(
        "user", lambda bo: {"json": {"model": "tiny-encoder", "input": "What did Bo say?"}}
    ),
    "GET /healthz": Route("open", lambda bo: {}),
    "GET /ready": Route("open", lambda bo: {}),
    "GET /metrics": Route("open", lambda bo: {}),
    "POST /api/v1/auth/refresh": Route(
        "open", lambda bo: {"json": {"refresh_token": "x.y.z"}}
    ),  # itself a credential
    "POST /api/v1/auth/logout": Route("user", lambda bo: {}),
    "POST /api/v1/auth/logout-all": Route("user", lambda bo: {}),
    "POST /api/v1/auth/password": Route(
        "user", lambda bo: {"json": {"current": "wrong horse", "new": "another horse"}}
    ),
    "POST /api/v1/auth/ws/ticket": Route("user", lambda bo: {}),
    "GET /api/v1/user/me": Route("user", lambda bo: {}),
    "GET /api/v1/users": Route("operator", lambda bo: {}),
    "PATCH /api/v1/users/{id}": Route(
        "admin", lambda bo: {"path": f"/api/v1/users/{bo['person_id']}", "json": {"role": "user"}}
    ),
    "POST /api/v1/users/{id}/logout": Route(
        "admin", lambda bo: {"path": f"/api/v1/users/{bo['person_id']}/logout"}
    ),
}

# The pages for operators stand in no OpenAPI document (tests/test_operators.py).
PAGES = {
    "GET /operators": Route("operator", lambda bo: {}),
    "GET /operators/runs/{run}": Route("operator", lambda bo: {"path": f"/operators/runs/{bo['run']}"}),
    "GET /operators/rollback/{person}": Route(
        "operator", lambda bo: {"path": f"/operators/rollback/{bo['person_id']}"}
    ),
    "POST /operators/rollback/{person}": Route(
        "operator", lambda bo: {"path": f"/operators/rollback/{bo['person_id']}", "data": {"adapter": ""}}
    ),
    "GET /operators/approve/{adapter}": Route(
        "operator", lambda bo: {"path": f"/operators/approve/{bo['adapter']}"}
    ),
    "POST /operators/approve/{adapter}": Route(
        "operator", lambda bo: {"path": f"/operators/approve/{bo['adapter']}", "data": {"sha": "0" * 64}}
    ),
}
