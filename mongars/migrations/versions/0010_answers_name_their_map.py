"""Each exchange notes the query map that its question went through.

Down, that is forgotten; up again, it is not known of the exchanges before.
"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.add_column("exchange", sa.Column("map_id", sa.String(32)))
    op.add_column("exchange", sa.Column("map_generation", sa.Integer()))
    op.add_column("exchange", sa.Column("map_unused", sa.String()))


def downgrade() -> None:
    with op.batch_alter_table("exchange") as batch:
        for name in ("map_unused", "map_generation", "map_id"):
            batch.drop_column(name)
