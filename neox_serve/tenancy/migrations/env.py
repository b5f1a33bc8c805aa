"""Runs the migrations on the connection that `neox_serve.tenancy.database` passes in."""

from alembic import context

from neox_serve.tenancy.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
