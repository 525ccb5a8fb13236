"""Memories that repeat others; the encoder whose vectors a person's recall compares.

Up, nothing is merged yet, and each person keeps the encoder that made most of their vectors. Down, what was merged
falls apart into the memories it was made of.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("memory_counter", sa.Column("fingerprint", sa.String(128)))
    op.add_column(
        "memory_counter", sa.Column("consolidated", sa.Integer(), nullable=False, server_default="0")
    )
    with op.batch_alter_table("memory") as batch:
        batch.add_column(sa.Column("gist", sa.String(64)))
        batch.add_column(sa.Column("repeats", sa.String(32)))
        batch.create_foreign_key("memory_repeats_fkey", "memory", ["repeats"], ["id"], ondelete="SET NULL")
    op.create_index("ix_memory_repeats", "memory", ["repeats"])
    op.create_index("ix_memory_person_gist", "memory", ["person_id", "gist"])
    op.execute(
        "UPDATE memory_counter SET fingerprint = (SELECT e.fingerprint FROM embedding e "
        "JOIN memory m ON m.id = e.memory_id WHERE m.person_id = memory_counter.person_id "
        "GROUP BY e.fingerprint ORDER BY count(*) DESC, e.fingerprint LIMIT 1)"
    )


def downgrade() -> None:
    op.drop_index("ix_memory_person_gist", "memory")
    op.drop_index("ix_memory_repeats", "memory")
    with op.batch_alter_table("memory") as batch:
        batch.drop_column("repeats")
        batch.drop_column("gist")
    with op.batch_alter_table("memory_counter") as batch:
        batch.drop_column("consolidated")
        batch.drop_column("fingerprint")
