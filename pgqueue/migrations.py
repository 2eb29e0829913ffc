"""Bring the schema up, down, or out as SQL: alembic's machinery under an advisory lock and a lock_timeout."""

from __future__ import annotations

import io
import logging
import random
import time
from typing import TYPE_CHECKING, Any, cast

import psycopg
from alembic import command, context
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, create_engine
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.pool import NullPool

from pgqueue.connection import is_pooled, translate
from pgqueue.errors import DatabaseUnreachableError, SchemaError
from pgqueue.revision import scripts
from pgqueue.sql import qualify

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger(__name__)

_LOCK_KEY = 0x70677175657565  # "pgqueue" in ASCII: one migration at a time in a cluster
_LOCK_TIMEOUT = "1s"
_LOCK_PATIENCE = 120.0  # seconds
_LOCK_NOT_AVAILABLE = "55P03"


def migrate(dsn: str, *, schema: str = "pgqueue", to: str = "head") -> None:
    """Bring ``schema`` to the revision ``to``, creating it when it is missing. Running it twice is harmless.

    Two at once wait for each other. A lock that a running transaction holds is waited for in
    steps of a second, so that live traffic never queues behind the migration for longer.

    Args:
        dsn: a role that may create the schema (and roles, the first time).
        schema: its name.
        to: ``head``, a revision, ``base`` for nothing left, or ``-1`` for one step down.

    Raises:
        DatabaseUnreachableError: no connection.
        SchemaError: the revision is unknown, or a lock was not to be had within two minutes.
    """
    engine = engine_for(dsn)
    config = _config(schema)
    down = to == "base" or to.startswith("-") or _is_older(config, engine, schema, to)
    deadline = time.monotonic() + _LOCK_PATIENCE
    while True:
        try:
            with _connect(engine) as connection:
                _take_lock(connection, deadline)
                config.attributes["connection"] = connection
                (command.downgrade if down else command.upgrade)(config, to)
        except CommandError as error:
            if to == "head":
                raise SchemaError("the schema is at a revision that is unknown here; upgrade the package") from error
            raise SchemaError(f"there is no revision {to!r}") from error
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) != _LOCK_NOT_AVAILABLE:
                raise translate(error.orig if isinstance(error.orig, Exception) else error) from error
            if time.monotonic() > deadline:
                raise SchemaError("the migration could not lock a table for two minutes; see pg_locks") from error
            log.warning("a transaction holds a table that the migration needs; trying again")
            time.sleep(random.uniform(0.2, 1))  # noqa: S311
        else:
            return


def migration_sql(schema: str = "pgqueue", to: str = "head") -> str:
    """The SQL that brings an empty database to the revision ``to``, for people who apply it by hand."""
    out = io.StringIO()
    command.upgrade(_config(schema, out), to, sql=True)
    return out.getvalue()


def engine_for(dsn: str) -> Engine:
    """A SQLAlchemy engine for a libpq DSN or URI, without a pool."""
    return create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(dsn, connect_timeout=10), poolclass=NullPool
    )


def create_schema_sql(schema: str) -> str:
    """The one statement that the version table needs before the first migration."""
    return f'CREATE SCHEMA IF NOT EXISTS "{schema}"'


def execute_file(path: Path) -> None:
    """Run a migration's .sql file, with the prefix ``pgqueue.`` put for the schema's real name."""
    execute_sql(path.read_text(encoding="utf-8"))


def execute_sql(sql: str) -> None:
    """Run a migration's statements, with the prefix ``pgqueue.`` put for the schema's real name."""
    schema = context.config.attributes["schema"]
    sql = qualify(sql, schema).replace("SCHEMA pgqueue ", f'SCHEMA "{schema}" ')
    migration = context.get_context()
    if context.is_offline_mode():
        migration.impl.static_output(sql)
    else:
        assert migration.connection is not None  # noqa: S101 - online has one
        migration.connection.exec_driver_sql(sql, execution_options={"no_parameters": True})


def _config(schema: str, out: io.StringIO | None = None) -> Config:
    config = Config(output_buffer=out) if out else Config()
    config.set_main_option("script_location", str(scripts()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["schema"] = schema
    return config


def _connect(engine: Engine) -> Connection:
    try:
        return engine.connect()
    except OperationalError as error:
        raise DatabaseUnreachableError(f"PostgreSQL can't be reached: {str(error.orig).strip()}") from error


def _take_lock(connection: Connection, deadline: float) -> None:
    """Session-level, so that it spans the migrations' transactions; gone with the connection."""
    if is_pooled(cast("psycopg.Connection[Any]", connection.connection.driver_connection)):
        raise SchemaError(
            "a pooler stands before PostgreSQL, where the migration's lock would stay behind; "
            "run pgq migrate with a direct address: --dsn"
        )
    waiting = False
    while not connection.exec_driver_sql(f"SELECT pg_try_advisory_lock({_LOCK_KEY})").scalar():
        if time.monotonic() > deadline:
            raise SchemaError("another migration has been running for two minutes")
        if not waiting:
            log.info("another migration is running; waiting for it")
            waiting = True
        time.sleep(0.2)
    connection.exec_driver_sql(f"SET lock_timeout = '{_LOCK_TIMEOUT}'")
    connection.commit()


def _is_older(config: Config, engine: Engine, schema: str, to: str) -> bool:
    """Whether ``to`` lies behind the database's revision."""
    if to in {"head", "heads"} or to.startswith("+"):
        return False
    with _connect(engine) as connection:
        current = MigrationContext.configure(connection, opts={"version_table_schema": schema}).get_current_revision()
    script = ScriptDirectory.from_config(config)
    try:
        behind = {revision.revision for revision in script.iterate_revisions(current or "base", "base")}
        script.get_revision(to)
    except Exception as error:
        raise SchemaError(f"there is no revision {to!r}") from error
    return to in behind and to != current
