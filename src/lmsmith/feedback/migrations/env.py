"""How alembic comes to the connection that `lmsmith.feedback.database` has opened."""

from __future__ import annotations

from alembic import context

from lmsmith.feedback.tables import Table

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Table.metadata,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
