"""Run by Alembic. The connection comes from migrate.py, which holds the lock and owns the transaction."""

from alembic import context

context.configure(connection=context.config.attributes["connection"], transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
