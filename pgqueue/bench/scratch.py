"""A queue in a schema of its own: nobody's workers serve it, nobody's jobs are near it, and it is gone at the end.

A schema rather than a queue's name among the user's own: no worker of theirs can see it; its tables are new, so the
figures do not hang on what is in the others; and dropping it leaves no history and no dead rows behind.
"""

from __future__ import annotations

import contextlib
import secrets
import signal
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import psycopg

from pgqueue.connection import connection_string, is_pooled, translate, translated
from pgqueue.errors import DatabaseError
from pgqueue.migrations import migrate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pgqueue.settings import Settings

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_LOCK: Final = "SELECT pg_advisory_lock(hashtextextended(%s, 0))"  # held by a schema's owner for as long as it lives
_COMMENT: Final = "scratch of pgq bench: the next pgq bench drops it"
# Both the name and the comment must be ours, and the role must own it; a schema whose owner lives is locked.
_LEFT: Final = """
    WITH ours AS MATERIALIZED (
        SELECT n.nspname FROM pg_namespace n
        WHERE n.nspname ~ '^pgqueue_bench_[0-9a-f]{8}$' AND obj_description(n.oid, 'pg_namespace') = %s
            AND pg_has_role(n.nspowner, 'USAGE')
    )
    SELECT nspname FROM (SELECT nspname, pg_try_advisory_lock(hashtextextended(nspname, 0)) AS left_behind FROM ours) o
    WHERE left_behind
"""
_ROLES: Final = """
    SELECT rolname FROM pg_roles
    WHERE rolname IN ('pgqueue_producer', 'pgqueue_worker', 'pgqueue_reader', 'pgqueue_admin')
"""
_NOT_ALLOWED: Final = "42501"


@contextlib.contextmanager
def scratch_queue(settings: Settings) -> Iterator[tuple[Settings, psycopg.Connection[Any]]]:
    """The settings of a migrated queue in a schema of its own, and a connection to it; dropped in the end.

    What an earlier run had to leave, because it was killed, is dropped first. Signals that come while the schema is
    dropped are not heeded.

    Raises:
        DatabaseError: the role may not create a schema there (or roles, the first time), or a pooler stands between.
        DatabaseUnreachableError: no connection.
    """
    settings = replace(settings, dsn=settings.resolve_dsn(), schema=f"pgqueue_bench_{secrets.token_hex(4)}")
    with contextlib.ExitStack() as end:
        owner, connection = end.enter_context(connect(settings)), end.enter_context(connect(settings))
        if is_pooled(owner):
            raise DatabaseError(
                "a pooler stands before PostgreSQL, where the benchmark's lock would stay behind; "
                "run pgq bench with a direct address: --dsn"
            )
        drop_leftovers(settings)
        roles = _roles(connection)
        end.callback(_clear, settings, roles)
        _create(owner, settings)
        yield settings, connection


def connect(settings: Settings) -> psycopg.Connection[Any]:
    """An autocommit connection to where the settings say."""
    with translated():
        connection = psycopg.connect(connection_string(settings.dsn or ""), autocommit=True)
        connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
        return connection


def drop_leftovers(settings: Settings) -> list[str]:
    """Drop the schemas of runs that were killed; answers their names."""
    with translated(), connect(settings) as connection:
        names = [name for (name,) in connection.execute(_LEFT, (_COMMENT,))]
        for name in names:
            with contextlib.suppress(psycopg.errors.LockNotAvailable):  # left to the next run
                _drop(connection, name)
    return names


def _create(owner: psycopg.Connection[Any], settings: Settings) -> None:
    """The lock before the schema: who sees the schema sees the lock, too."""
    try:
        owner.execute("SET idle_session_timeout = 0")
        owner.execute(_LOCK, (settings.schema,))
        with owner.transaction():
            owner.execute(f"CREATE SCHEMA {settings.schema}")
            owner.execute(f"COMMENT ON SCHEMA {settings.schema} IS '{_COMMENT}'")
    except psycopg.errors.InsufficientPrivilege as error:
        role, database = owner.info.user, owner.info.dbname
        raise DatabaseError(
            f"role {role!r} may not create the benchmark's scratch schema in database {database!r}; run as its owner: "
            f'GRANT CREATE ON DATABASE "{database}" TO "{role}"; or name another role or database with --dsn'
        ) from error
    except psycopg.Error as error:
        raise translate(error) from error
    try:
        migrate(settings.dsn or "", schema=settings.schema)
    except DatabaseError as error:
        if getattr(error.__cause__, "sqlstate", None) != _NOT_ALLOWED:
            raise
        raise DatabaseError(f"{error}: run pgq migrate once as a role that may create roles") from error


def _clear(settings: Settings, roles: set[str]) -> None:
    """On a connection of its own: the one that was interrupted may be in any state."""
    with _deaf(), translated(), connect(settings) as connection:
        _drop(connection, settings.schema)
        for role in _roles(connection) - roles:  # this server had never seen pgqueue
            with contextlib.suppress(psycopg.errors.DependentObjectsStillExist):  # somebody has migrated meanwhile
                connection.execute(f"DROP ROLE IF EXISTS {role}")


def _drop(connection: psycopg.Connection[Any], schema: str) -> None:
    connection.execute("SET lock_timeout = '10s'; SET statement_timeout = 0")  # a backup may be reading it
    connection.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE")


def _roles(connection: psycopg.Connection[Any]) -> set[str]:
    return {name for (name,) in connection.execute(_ROLES)}


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """Whoever presses Ctrl-C twice means what they said the first time."""
    here = SIGNALS if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, signal.SIG_IGN) for number in here}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
