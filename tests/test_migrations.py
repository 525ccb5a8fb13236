"""The tables come up and go down on SQLite and on PostgreSQL, and are the ones the code declares."""

import asyncio

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect, text
from sqlalchemy.exc import IntegrityError
from sqlmodel import SQLModel, select

from mongars.base.errors import NotFound, NotReady
from mongars.base.settings import read_settings
from mongars.base.store import Store
from mongars.base.tables import Conversation, Exchange, Remembered
from mongars.mind.cortex import Answered, Ask
from mongars.neurons.sampling import Sampling
from mongars.serving.wiring import assemble


def test_up_is_what_the_code_declares_and_down_leaves_nothing(url):
    store = Store(url)
    for _ in range(2):
        store.migrate()
        with store.engine.connect() as connection:
            context = MigrationContext.configure(connection, opts={"compare_type": False})
            assert compare_metadata(context, SQLModel.metadata) == []
        store.migrate("base")
        assert set(inspect(store.engine).get_table_names()) == {"alembic_version"}
    store.close()


def test_a_migration_that_fails_leaves_the_tables_as_they_were(url, monkeypatch):
    store = Store(url)
    store.migrate()
    import alembic.op

    dropped, drop_table = [], alembic.op.drop_table

    def drop_three_and_fail(name, **options):
        if len(dropped) == 3:
            raise RuntimeError("power cut")
        dropped.append(name)
        drop_table(name, **options)

    before, version = set(inspect(store.engine).get_table_names()), store.version()
    monkeypatch.setattr(alembic.op, "drop_table", drop_three_and_fail)
    with pytest.raises(RuntimeError, match="power cut"):
        store.migrate("base")
    monkeypatch.undo()
    assert dropped and set(inspect(store.engine).get_table_names()) == before and store.version() == version
    store.close()


def test_a_newer_database_is_refused_and_left_alone(url):
    store = Store(url)
    store.migrate()
    with store.writing() as session:
        session.exec(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(NotReady, match="newer version"):
        store.migrate()
    assert store.version() == "9999"
    store.close()


def test_a_conversation_is_kept_and_recalled(url, tmp_path, tiny_models):
    settings = read_settings(
        _env_file=None,
        home=tmp_path / "home",
        database_url=url,
        model=str(tiny_models[0]),
        embedder=str(tiny_models[1]),
    )

    async def ask(house, person, words) -> Answered:
        turn = house.cortex.turn(Ask(person, words, sampling=Sampling(max_new_tokens=8)))
        return [event async for event in turn][-1]

    async def told() -> str:
        house = assemble(settings)
        ana, bo = house.accounts.register("Ana", "correct horse"), house.accounts.register("Bo", None)
        await ask(house, ana.id, "My sister Odile keeps bees in Annecy. 🐝")
        with pytest.raises(IntegrityError):
            with house.store.writing() as session:
                hers = Conversation(person_id=ana.id)
                session.add(hers)
                session.flush()
                session.add(Exchange(person_id=bo.id, conversation_id=hers.id))
        with pytest.raises(NotFound):
            theirs = house.conversations.history(ana.id)[0][0].conversation_id
            house.conversations.history(bo.id, conversation_id=theirs)
        await house.close()
        return ana.id

    async def asked(person: str) -> None:
        house = assemble(settings)
        answered = await ask(house, person, "My sister Odile keeps bees in Annecy. 🐝 Is that so?")
        assert [m.text for m in answered.memories] == ["My sister Odile keeps bees in Annecy. 🐝"]
        assert answered.memories[0].said_at.tzinfo is not None
        page, cursor = house.conversations.history(person, 1)
        rest, end = house.conversations.history(person, 1, cursor)
        assert [page[0].id, rest[0].id, end] == [answered.turn.id, rest[0].id, None] and rest[0].id < page[
            0
        ].id
        assert house.accounts.authenticate("ANA", "correct horse").id == person
        with house.store.reading() as session:  # what was typed and answered, and nothing of any template
            remembered = set(session.exec(select(Remembered.text)))
        turns = house.conversations.history(person)[0]
        assert remembered == {t.message for t in turns} | {t.response for t in turns}
        await house.close()

    asyncio.run(asked(asyncio.run(told())))


def test_twenty_at_once_make_one_account(url):
    from concurrent.futures import ThreadPoolExecutor

    from mongars.base.errors import Conflict
    from mongars.serving.accounts import Accounts

    store = Store(url)
    store.migrate()

    def register(n: int) -> bool:
        try:
            Accounts(store).register("ANA" if n % 2 else "ana", None)
            return True
        except Conflict:
            return False

    with ThreadPoolExecutor(20) as crowd:
        assert sum(crowd.map(register, range(20))) == 1
    store.close()
