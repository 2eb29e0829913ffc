"""Alembic's entry: runs the migrations of one pgqueue schema, online or as a script of SQL.

``pgq migrate`` is the usual way in; ``alembic upgrade head`` with PGQUEUE_DSN set does the same.
The advisory lock, the lock_timeout and its retries live in :mod:`pgqueue.migrations`.
"""

from __future__ import annotations

from alembic import context

from pgqueue.migrations import create_schema_sql, engine_for
from pgqueue.settings import Settings

attributes = context.config.attributes
schema: str = attributes.setdefault("schema", None) or Settings.load().schema
attributes["schema"] = schema

if context.is_offline_mode():
    context.configure(dialect_name="postgresql", version_table_schema=schema, transactional_ddl=True)
    with context.begin_transaction():
        context.execute(create_schema_sql(schema))
        context.run_migrations()
else:
    connection = attributes.get("connection") or engine_for(Settings.load().resolve_dsn()).connect()
    with connection:
        connection.exec_driver_sql(create_schema_sql(schema))
        context.configure(connection=connection, version_table_schema=schema)
        with context.begin_transaction():
            context.run_migrations()
        connection.commit()
