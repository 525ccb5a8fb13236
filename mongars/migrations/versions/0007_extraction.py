"""Which model has read which turn to draw facts from it.

Down, the facts stay, marked as extracted; up again, the turns are read again, which adds no fact twice.
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

ID = sa.String(32)


def upgrade() -> None:
    op.create_table(
        "read_turn",
        sa.Column("memory_id", ID, sa.ForeignKey("memory.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("reader", sa.String(255), primary_key=True),
        sa.Column("facts", sa.Integer(), nullable=False),
    )
    op.add_column("memory_counter", sa.Column("reader", sa.String(255)))


def downgrade() -> None:
    with op.batch_alter_table("memory_counter") as batch:
        batch.drop_column("reader")
    op.drop_table("read_turn")
