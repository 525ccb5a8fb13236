"""Alembic's entry: the store hands over the open connection, so that checks and changes share one transaction."""

from alembic import context
from sqlmodel import SQLModel

import mongars.base.tables  # noqa: F401  (declares the tables)

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=SQLModel.metadata,
    transactional_ddl=True,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
