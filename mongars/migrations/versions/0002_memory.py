"""Memories with validity, provenance and tombstones; vectors by part; conversations that can be paused.

Up, every utterance becomes a memory under its own id; one told outside of a chat is a memory only. Down, memories
without an utterance become utterances again, and only what holds at that moment keeps its vector: the older version
knows no other way to leave a memory out of recall. Tombstones, provenance, dates and the pause cannot be carried down.
"""

import hashlib
import hmac
import json
import secrets
from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

ID = sa.String(32)
MOMENT = sa.DateTime(timezone=True)
BATCH = 500


def upgrade() -> None:
    op.add_column(
        "conversation", sa.Column("paused", sa.Boolean(), nullable=False, server_default=sa.false())
    )
    make_tables()
    old_embedding, old_recollection = aside("embedding"), aside("recollection")
    make_embedding()
    make_recollection()
    carry_up(old_embedding, old_recollection)
    op.drop_table(old_embedding)
    op.drop_table(old_recollection)
    op.execute("DELETE FROM utterance WHERE exchange_id IS NULL")  # last: what named them would have gone too


def aside(table: str) -> str:
    """Give a table another name while its successor takes its own; the new name."""
    if op.get_bind().dialect.name == "postgresql":  # its index keeps its name
        op.execute(f"ALTER INDEX {table}_pkey RENAME TO {table}_before_pkey")
    op.rename_table(table, f"{table}_before")
    return f"{table}_before"


def make_tables() -> None:
    op.create_table(
        "memory_counter",
        sa.Column("person_id", ID, sa.ForeignKey("person.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("key", sa.String(64), nullable=False),
    )
    op.create_table(
        "memory",
        sa.Column("id", ID, primary_key=True),
        sa.Column("person_id", ID, sa.ForeignKey("person.id", ondelete="CASCADE"), nullable=False),
        sa.Column("exchange_id", ID, index=True),
        sa.Column("conversation", sa.String(128)),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("speaker", sa.String(64), nullable=False),
        sa.Column("text", sa.String(), nullable=False),
        sa.Column("said_at", MOMENT, nullable=False),
        sa.Column("valid_from", MOMENT, nullable=False),
        sa.Column("valid_until", MOMENT),
        sa.Column("superseded_by", ID, sa.ForeignKey("memory.id", ondelete="SET NULL"), index=True),
        sa.Column("revises", ID, sa.ForeignKey("memory.id", ondelete="SET NULL"), index=True),
        sa.Column("importance", sa.Float()),
        sa.Column("pinned", sa.Boolean(), nullable=False),
        sa.Column("expires_at", MOMENT, index=True),
        sa.Column("origin", sa.String(16), nullable=False),
        sa.Column("source", sa.String(256)),
        sa.Column("language", sa.String(8), nullable=False),
        sa.Column("days", sa.JSON(), nullable=False),
        sa.Column("identity", sa.String(64), nullable=False),
        sa.Column("born", sa.Integer(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.UniqueConstraint("person_id", "identity"),
        sa.ForeignKeyConstraint(
            ["exchange_id", "person_id"], ["exchange.id", "exchange.person_id"], ondelete="CASCADE"
        ),
    )
    op.create_index("ix_memory_person_generation", "memory", ["person_id", "generation"])
    op.create_index("ix_memory_person_said", "memory", ["person_id", "said_at", "id"])
    op.create_index("ix_memory_person_conversation", "memory", ["person_id", "conversation"])
    op.create_table(
        "provenance",
        sa.Column("memory_id", ID, sa.ForeignKey("memory.id", ondelete="CASCADE"), primary_key=True),
        sa.Column(
            "source_id", ID, sa.ForeignKey("memory.id", ondelete="CASCADE"), primary_key=True, index=True
        ),
    )
    op.create_table(
        "tombstone",
        sa.Column("person_id", ID, sa.ForeignKey("person.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("identity", sa.String(64), primary_key=True),
        sa.Column("memory_id", ID, nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
    )
    op.create_index("ix_tombstone_person_generation", "tombstone", ["person_id", "generation"])


def make_embedding() -> None:
    op.create_table(
        "embedding",
        sa.Column("memory_id", ID, sa.ForeignKey("memory.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("fingerprint", sa.String(128), primary_key=True),
        sa.Column("part", sa.Integer(), primary_key=True),
        sa.Column("start", sa.Integer(), nullable=False),
        sa.Column("stop", sa.Integer(), nullable=False),
        sa.Column("vector", sa.LargeBinary(), nullable=False),
    )


def make_recollection() -> None:
    op.create_table(
        "recollection",
        sa.Column("exchange_id", ID, sa.ForeignKey("exchange.id", ondelete="CASCADE"), primary_key=True),
        sa.Column(
            "memory_id", ID, sa.ForeignKey("memory.id", ondelete="CASCADE"), primary_key=True, index=True
        ),
        sa.Column("rank", sa.Integer(), nullable=False),
        sa.Column("score", sa.Float(), nullable=False),
        sa.Column("reasons", sa.JSON(), nullable=False),
    )


def carry_up(old_embedding: str, old_recollection: str) -> None:
    connection = op.get_bind()
    memory, counter = reflected("memory"), reflected("memory_counter")
    people = [row[0] for row in connection.execute(sa.text("SELECT id FROM person"))]
    keys = {person: secrets.token_bytes(32) for person in people}
    counters = [{"person_id": person, "generation": 1, "key": key.hex()} for person, key in keys.items()]
    if counters:
        connection.execute(counter.insert(), counters)
    utterance, exchange = reflected("utterance"), reflected("exchange")
    last = ""
    while True:  # in pages, since both databases must be able to write meanwhile
        page = connection.execute(
            sa.select(utterance, exchange.c.conversation_id)
            .join(exchange, exchange.c.id == utterance.c.exchange_id, isouter=True)
            .where(utterance.c.id > last)
            .order_by(utterance.c.id)
            .limit(BATCH)
        ).all()
        if not page:
            break
        connection.execute(memory.insert(), [memory_row(said, keys[said.person_id]) for said in page])
        last = page[-1].id
    op.execute(
        "INSERT INTO embedding (memory_id, fingerprint, part, start, stop, vector) "
        "SELECT e.utterance_id, e.fingerprint, 0, 0, length(m.text), e.vector "
        f"FROM {old_embedding} e JOIN memory m ON m.id = e.utterance_id"
    )
    op.execute(
        "INSERT INTO recollection (exchange_id, memory_id, rank, score, reasons) "
        f"SELECT exchange_id, utterance_id, rank, score, '{{}}' FROM {old_recollection}"
    )


def reflected(table: str) -> sa.Table:
    return sa.Table(table, sa.MetaData(), autoload_with=op.get_bind())


def memory_row(said, key: bytes) -> dict:
    """An utterance of version 0001 as a memory."""
    moment = said.said_at if said.said_at.tzinfo else said.said_at.replace(tzinfo=UTC)
    told = [
        f"mongars:{said.id}",
        moment.astimezone(UTC).isoformat(),
        said.role,
        said.speaker,
        "turn",
        said.text,
    ]
    identity = hmac.new(key, json.dumps(told, ensure_ascii=False).encode(), hashlib.sha256).hexdigest()
    return {
        "id": said.id, "person_id": said.person_id, "exchange_id": said.exchange_id,
        "conversation": said.conversation_id, "kind": "turn", "role": said.role, "speaker": said.speaker,
        "text": said.text, "said_at": said.said_at, "valid_from": said.said_at, "pinned": False,
        "origin": "typed", "language": "", "days": [], "identity": identity, "born": 1, "generation": 1,
        "created_at": said.said_at,
    }  # fmt: skip


def downgrade() -> None:
    embedding, recollection = aside("embedding"), aside("recollection")
    connection = op.get_bind()
    if connection.dialect.name == "postgresql":
        op.execute("ALTER INDEX ix_recollection_memory_id RENAME TO ix_recollection_before")
    op.create_table(
        "embedding",
        sa.Column("utterance_id", ID, sa.ForeignKey("utterance.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("fingerprint", sa.String(128), primary_key=True),
        sa.Column("vector", sa.LargeBinary(), nullable=False),
    )
    op.create_table(
        "recollection",
        sa.Column("exchange_id", ID, sa.ForeignKey("exchange.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("utterance_id", ID, sa.ForeignKey("utterance.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("rank", sa.Integer(), nullable=False),
        sa.Column("score", sa.Float(), nullable=False),
    )
    op.execute(
        "INSERT INTO utterance (id, person_id, exchange_id, role, speaker, text, said_at) "
        "SELECT id, person_id, NULL, role, speaker, text, said_at FROM memory WHERE exchange_id IS NULL"
    )
    memory, before, after = reflected("memory"), reflected(embedding), reflected("embedding")
    now = datetime.now(UTC)
    now = now.replace(tzinfo=None) if connection.dialect.name == "sqlite" else now
    holds = (
        sa.or_(memory.c.valid_until.is_(None), memory.c.valid_until > now)
        & sa.or_(memory.c.expires_at.is_(None), memory.c.expires_at > now)
        & (memory.c.valid_from <= now)
    )
    connection.execute(
        after.insert().from_select(
            ["utterance_id", "fingerprint", "vector"],
            sa.select(before.c.memory_id, before.c.fingerprint, before.c.vector)
            .join(memory, memory.c.id == before.c.memory_id)
            .where(before.c.part == 0, holds),
        )
    )
    op.execute(
        "INSERT INTO recollection (exchange_id, utterance_id, rank, score) "
        f"SELECT exchange_id, memory_id, rank, score FROM {recollection}"
    )
    for table in (embedding, recollection, "provenance", "tombstone", "memory", "memory_counter"):
        op.drop_table(table)
    with op.batch_alter_table("conversation") as batch:
        batch.drop_column("paused")
