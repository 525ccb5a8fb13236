"""The official `openai` client against a server process, with each engine."""

import typing

import numpy as np
import openai
import pydantic
import pytest


@pytest.fixture(scope="module", params=["transformers", "llama"])
def server(request, make_server, tmp_path_factory):
    """A running server with tiny models and no page, whose answers one engine writes."""
    if request.param == "transformers":
        return request.getfixturevalue("session_server")
    pytest.importorskip("xllamacpp")
    models = tmp_path_factory.mktemp("forms")
    return make_server(max_new_tokens=40, engine="llama", precision="f32", models=models).start()


@pytest.fixture(scope="module")
def client(server) -> openai.OpenAI:
    server.person("Odile")
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.api_key("Odile"), max_retries=0) as client:
        yield client


def ask(client, *texts: str, **options):
    roles = ["user", "assistant"]
    messages = [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]
    return client.chat.completions.create(model="tiny-chat", messages=messages, **options)


def test_chat_at_once_and_as_a_stream_say_the_same(client):
    whole = ask(client, "What do bees do?", max_tokens=20)
    assert whole.choices[0].finish_reason == "length" and whole.usage.completion_tokens == 20
    chunks = list(
        ask(client, "What do bees do?", max_tokens=20, stream=True, stream_options={"include_usage": True})
    )
    assert (
        "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        == whole.choices[0].message.content
    )
    took = [dict(usage) for usage in (chunks[-1].usage, whole.usage)]
    energy = [used.pop("energy") for used in took]
    assert took[0] == took[1] and chunks[-2].choices[0].finish_reason == "length"
    assert all(used["joules"] > 0 and used["seconds"] > 0 for used in energy)


def test_a_seed_repeats_and_a_stop_string_stops(client):
    def said(**options):
        return (
            ask(client, "Roll the dice", max_tokens=30, temperature=1, **options).choices[0].message.content
        )

    first = said(seed=4)
    assert first == said(seed=4) != said(seed=5)
    stop = first[8:11]
    assert said(seed=4, stop=[stop]) == first[: first.index(stop)]


class Hive(pydantic.BaseModel):
    bees: int = pydantic.Field(ge=0, le=99)
    sort: typing.Literal["wild", "kept"]


def test_an_answer_has_the_form_that_was_asked_for(client):
    messages = [{"role": "user", "content": "How many bees?"}]
    for options in ({}, {"temperature": 1.5, "seed": 3}):
        made = client.chat.completions.parse(
            model="tiny-chat", messages=messages, response_format=Hive, **options
        )
        assert 0 <= made.choices[0].message.parsed.bees <= 99 and made.choices[0].finish_reason == "stop"
    chunks = ask(client, "Any object", response_format={"type": "json_object"}, max_tokens=7, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks).startswith("{")


def test_how_likely_each_token_was(client):
    options = {"max_tokens": 12, "logprobs": True, "top_logprobs": 2}
    whole = ask(client, "What do bees do?", **options).choices[0]
    tokens = whole.logprobs.content
    assert (
        b"".join(bytes(token.bytes) for token in tokens).decode() == whole.message.content
        and len(tokens) == 12
    )
    for token in tokens:
        assert token.logprob < 0 and len(token.top_logprobs) == 2
        assert token.logprob <= token.top_logprobs[0].logprob
    chunks = [chunk.choices[0] for chunk in ask(client, "What do bees do?", **options, stream=True)]
    streamed = [token for chunk in chunks if chunk.logprobs for token in chunk.logprobs.content]
    assert [t.token for t in streamed] == [t.token for t in tokens]
    assert np.allclose([t.logprob for t in streamed], [t.logprob for t in tokens], atol=0.02)
    assert ask(client, "What do bees do?", max_tokens=5).choices[0].logprobs is None


def test_what_is_resent_is_stored_once(client, server):
    first = ask(client, "I have a boat.", max_tokens=5).choices[0].message.content
    ask(client, "I have a boat.", first, "It is green.", max_tokens=5)
    items = server.person("Odile").get("/api/v1/conversation/history", params={"limit": 200}).json()["items"]
    boat = [t for t in items if t["message"] in ("I have a boat.", "It is green.")]
    assert [t["message"] for t in boat] == ["It is green.", "I have a boat."]
    assert boat[0]["conversation_id"] == boat[1]["conversation_id"]


def test_models_and_embeddings(client):
    assert [m.id for m in client.models.list()] == ["tiny-chat", "tiny-encoder"]
    found = client.models.retrieve("tiny-chat")
    assert found.owned_by == "mongars" and found.runtime in ("transformers, float32", "llama.cpp, f32")
    vectors = [
        np.array(e.embedding) for e in client.embeddings.create(model="tiny-encoder", input=["a", "b"]).data
    ]
    assert np.allclose([v @ v for v in vectors], 1, atol=1e-5) and len(vectors[0]) == 32
    plain = (
        client.embeddings.create(model="tiny-encoder", input="a", encoding_format="float").data[0].embedding
    )
    assert np.allclose(plain, vectors[0], atol=1e-6)


def test_mistakes_reach_the_client_as_its_own_errors(client, server):
    with pytest.raises(openai.NotFoundError, match="gpt-9"):
        client.chat.completions.create(model="gpt-9", messages=[{"role": "user", "content": "Hi"}])
    with pytest.raises(openai.BadRequestError, match="not supported"):
        ask(client, "Hi", n=2)
    unknown = {"type": "array", "uniqueItems": True}
    with pytest.raises(openai.BadRequestError, match="uniqueItems"):
        ask(
            client,
            "Hi",
            response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": unknown}},
        )
    with pytest.raises(openai.BadRequestError, match="logprobs=true"):
        ask(client, "Hi", top_logprobs=3)
    stored = server.person("Odile").get("/api/v1/conversation/history").json()["items"]
    assert "Hi" not in [turn["message"] for turn in stored]
    with pytest.raises(openai.APIStatusError, match="room for"):
        ask(client, "long " * 3000)
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="mg-wrong", max_retries=0).models.list()
