"""What each answer cost.

Down, that is forgotten; up again, the answers before have no figure, and count as unknown.
"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"

ID = sa.String(32)


def upgrade() -> None:
    op.create_table(
        "answer_cost",
        sa.Column("id", ID, primary_key=True),
        sa.Column("exchange_id", ID, sa.ForeignKey("exchange.id", ondelete="CASCADE"), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("model", sa.String(255), nullable=False),
        sa.Column("adapter", sa.String(255)),
        sa.Column("seconds", sa.Float(), nullable=False),
        sa.Column("cpu_seconds", sa.Float(), nullable=False),
        sa.Column("joules", sa.Float()),
        sa.Column("gco2", sa.Float()),
        sa.Column("method", sa.String(16), nullable=False),
    )
    op.create_index("ix_answer_cost_exchange_id", "answer_cost", ["exchange_id"])


def downgrade() -> None:
    op.drop_table("answer_cost")
