"""How Alembic reaches the store: over the connection and in the transaction of ``ControlStore.open``."""

from __future__ import annotations

from alembic import context

from flopwatch_collector.control.schema import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    transactional_ddl=False,
)
context.run_migrations()
