"""People, credentials, conversations, exchanges, utterances with their vectors, recollections."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

ID = sa.String(32)
MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "person",
        sa.Column("id", ID, primary_key=True),
        sa.Column("username", sa.String(64), nullable=False),
        sa.Column("username_key", sa.String(256), nullable=False, unique=True),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("password_hash", sa.String()),
        sa.Column("created_at", MOMENT, nullable=False),
    )
    op.create_table(
        "credential",
        sa.Column("id", ID, primary_key=True),
        sa.Column(
            "person_id", ID, sa.ForeignKey("person.id", ondelete="CASCADE"), nullable=False, index=True
        ),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False, unique=True),
        sa.Column("label", sa.String(128), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("expires_at", MOMENT),
    )
    op.create_table(
        "conversation",
        sa.Column("id", ID, primary_key=True),
        sa.Column(
            "person_id", ID, sa.ForeignKey("person.id", ondelete="CASCADE"), nullable=False, index=True
        ),
        sa.Column("title", sa.String(128), nullable=False),
        sa.Column("client_name", sa.String(256), index=True),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.UniqueConstraint("id", "person_id"),
    )
    op.create_table(
        "exchange",
        sa.Column("id", ID, primary_key=True),
        sa.Column("person_id", ID, nullable=False),
        sa.Column("conversation_id", ID, nullable=False),
        sa.Column("idempotency_key", sa.String(255)),
        sa.Column("request_digest", sa.String(64)),
        sa.Column("asked_at", MOMENT, nullable=False),
        sa.Column("answered_at", MOMENT),
        sa.Column("finish_reason", sa.String(16)),
        sa.Column("model", sa.String(255)),
        sa.Column("adapter", sa.String(255)),
        sa.Column("prompt_tokens", sa.Integer()),
        sa.Column("completion_tokens", sa.Integer()),
        sa.UniqueConstraint("id", "person_id"),
        sa.UniqueConstraint("person_id", "idempotency_key"),
        sa.ForeignKeyConstraint(
            ["conversation_id", "person_id"],
            ["conversation.id", "conversation.person_id"],
            ondelete="CASCADE",
        ),
    )
    op.create_index("ix_exchange_person_asked", "exchange", ["person_id", "asked_at", "id"])
    op.create_index("ix_exchange_conversation_asked", "exchange", ["conversation_id", "asked_at", "id"])
    op.create_table(
        "utterance",
        sa.Column("id", ID, primary_key=True),
        sa.Column("person_id", ID, sa.ForeignKey("person.id", ondelete="CASCADE"), nullable=False),
        sa.Column("exchange_id", ID),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("speaker", sa.String(64), nullable=False),
        sa.Column("text", sa.String(), nullable=False),
        sa.Column("said_at", MOMENT, nullable=False),
        sa.UniqueConstraint("exchange_id", "role"),
        sa.ForeignKeyConstraint(
            ["exchange_id", "person_id"], ["exchange.id", "exchange.person_id"], ondelete="CASCADE"
        ),
    )
    op.create_index("ix_utterance_person_said", "utterance", ["person_id", "said_at", "id"])
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


def downgrade() -> None:
    for table in (
        "recollection",
        "embedding",
        "utterance",
        "exchange",
        "conversation",
        "credential",
        "person",
    ):
        op.drop_table(table)
