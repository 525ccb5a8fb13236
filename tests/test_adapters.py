"""An adapter in a server process, and what every adapter in the package must be."""

import openai
import pytest

from mongars.base.settings import read_settings
from mongars.neurons import adapters, model_store
from mongars.neurons.model_folder import fingerprint
from mongars.neurons.prompt import FORMAT
from mongars.neurons.tiny_model import make_adapter
from mongars.serving.doctor import adapter_rows


@pytest.fixture(scope="module")
def taught(make_server, tiny_models, tmp_path_factory):
    """A server whose settings name an adapter by a folder beside it."""
    server = make_server(max_new_tokens=40, adapter="./learnt")
    make_adapter(tiny_models[0], server.folder / "learnt", joules=2.5, energy_method="guess")
    return server.start()


def chat(server) -> dict:
    return server.person("Ana").post("/api/v1/conversation/chat", json={"message": "What do bees do?"}).json()


def test_it_answers_and_every_answer_says_so(taught, server):
    with_it, without = chat(taught), chat(server)
    assert (with_it["model"], with_it["adapter"]) == ("tiny-chat", "learnt") and without["adapter"] is None
    assert with_it["response"] != without["response"]
    history = taught.person("Ana").get("/api/v1/conversation/history").json()["items"]
    assert history[0]["response"] == with_it["response"]


def test_an_openai_client_sees_it_and_may_name_it(taught):
    client = openai.OpenAI(base_url=f"{taught.url}/v1", api_key=taught.api_key("Ana"), max_retries=0)
    with client:
        listed = {m.id: m for m in client.models.list()}
        assert listed["learnt"].parent == listed["learnt"].root == "tiny-chat"
        assert listed["tiny-chat"].parent is None
        said = [
            client.chat.completions.create(
                model=name, messages=[{"role": "user", "content": "Hello"}], max_tokens=20
            )
            for name in ("learnt", "tiny-chat")
        ]
        assert [s.model for s in said] == ["learnt", "tiny-chat"]
        assert said[0].choices[0].message.content == said[1].choices[0].message.content


def test_an_adapter_of_another_model_ends_the_start_with_a_sentence(make_server, tiny_models, tmp_path):
    make_adapter(tiny_models[0], tmp_path / "strange", base_fingerprint="f" * 64)
    broken = make_server(adapter=tmp_path / "strange")
    with pytest.raises(AssertionError, match="was made for tiny-chat"):
        broken.start()


@pytest.mark.parametrize("folder", adapters.folders(adapters.SHIPPED), ids=lambda folder: folder.name)
def test_a_shipped_adapter_fits_the_default_model_and_prompt(folder):
    settings = read_settings(_env_file=None, model="SmolLM2-135M-Instruct")
    card = adapters.read(folder, fingerprint(model_store.locate(settings.model, settings.models)))
    assert card.name == folder.name and card.prompt_format == FORMAT
    assert card.limits and card.licence and card.energy_method
    assert sum(path.stat().st_size for path in folder.iterdir()) < 12e6
    assert "/" not in (folder / adapters.CONFIG).read_text(), "a path of the machine it was made on"


def test_the_shipped_reader_serves_when_nothing_is_set():
    settings = read_settings(_env_file=None, model="SmolLM2-135M-Instruct", adapter=None)
    serving = [row["adapter"] for row in adapter_rows(settings) if row["serves"]]
    assert serving == [
        folder.name for folder in adapters.folders(adapters.SHIPPED) if folder.name == "reader"
    ]
