"""Ratings of answers, consent to learn from a person, and the side of the split on which an exchange stands.

Down, what was rated and consented is lost: the older version has no place for it.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

ID = sa.String(32)
MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "rating",
        sa.Column("exchange_id", ID, primary_key=True),
        sa.Column("person_id", ID, nullable=False),
        sa.Column("score", sa.Integer(), nullable=False),
        sa.Column("comment", sa.String()),
        sa.Column("edit", sa.String()),
        sa.Column("edited_at", MOMENT),
        sa.Column("rated_at", MOMENT, nullable=False),
        sa.ForeignKeyConstraint(
            ["exchange_id", "person_id"], ["exchange.id", "exchange.person_id"], ondelete="CASCADE"
        ),
    )
    op.create_index("ix_rating_person_rated", "rating", ["person_id", "rated_at", "exchange_id"])
    op.create_table(
        "consent",
        sa.Column("person_id", ID, sa.ForeignKey("person.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("training", sa.Boolean(), nullable=False),
        sa.Column("changed_at", MOMENT, nullable=False),
    )
    op.create_table(
        "placement",
        sa.Column("exchange_id", ID, sa.ForeignKey("exchange.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("split", sa.String(16), nullable=False),
        sa.Column("placed_at", MOMENT, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("placement")
    op.drop_table("consent")
    op.drop_table("rating")
