"""Adapters with their lineage, and which one serves whom.

Down, it is forgotten which adapter serves: nobody's questions are mapped by the older version.
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

ID = sa.String(32)
MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "adapter",
        sa.Column("id", ID, primary_key=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("owner_id", ID, sa.ForeignKey("person.id", ondelete="CASCADE")),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("base", sa.String(128), nullable=False),
        sa.Column("weights_sha256", sa.String(64), nullable=False),
        sa.Column("parent_id", ID, sa.ForeignKey("adapter.id", ondelete="SET NULL")),
        sa.Column("run", sa.String(64), nullable=False, unique=True),
        sa.Column("data_hash", sa.String(64), nullable=False),
        sa.Column("outcome", sa.String(32), nullable=False),
        sa.Column("joules", sa.Float()),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("changed_at", MOMENT, nullable=False),
    )
    op.create_index("ix_adapter_kind_owner", "adapter", ["kind", "owner_id"])
    op.create_index("ix_adapter_owner_id", "adapter", ["owner_id"])
    op.create_index("ix_adapter_parent_id", "adapter", ["parent_id"])
    op.create_table(
        "serving",
        sa.Column("person_id", ID, sa.ForeignKey("person.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("kind", sa.String(16), primary_key=True),
        sa.Column("adapter_id", ID, sa.ForeignKey("adapter.id", ondelete="SET NULL")),
        sa.Column("generation", sa.Integer(), nullable=False),
    )
    op.create_index("ix_serving_adapter_id", "serving", ["adapter_id"])


def downgrade() -> None:
    op.drop_table("serving")
    op.drop_table("adapter")
