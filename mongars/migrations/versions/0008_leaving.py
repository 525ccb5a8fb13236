"""Accounts whose deletion has begun, and how fast somebody may ask.

Down, a deletion that was broken off is not ended by the version before, and the account stays closed.
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.add_column("person", sa.Column("leaving_at", MOMENT))
    op.create_table(
        "pace",
        sa.Column("key", sa.String(64), primary_key=True),
        sa.Column("due", sa.Float(), nullable=False, index=True),
    )


def downgrade() -> None:
    op.drop_table("pace")
    with op.batch_alter_table("person") as batch:
        batch.drop_column("leaving_at")
