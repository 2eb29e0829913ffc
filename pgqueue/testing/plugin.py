"""pytest's fixtures: a queue to test with, on a schema that the run makes for itself.

Override in a ``conftest.py`` what differs: ``pgqueue_dsn``, ``pgqueue_schema``, ``pgqueue_app``,
``pgqueue_connection``.
"""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Any, Final

import psycopg
import pytest

from pgqueue.app import App
from pgqueue.settings import Settings
from pgqueue.testing.sandbox import Sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator

_PREFIX: Final = "pgqueue_test_"
_LEFT_BEHIND: Final = 86_400  # seconds: a run that was killed does not clean up
_OLD: Final = "SELECT nspname FROM pg_catalog.pg_namespace WHERE nspname ~ %s"


@pytest.fixture(scope="session")
def pgqueue_dsn() -> str:
    """The database to test on. Default: ``PGQUEUE_DSN``, else ``DATABASE_URL``, else the embedded server."""
    return Settings.load().resolve_dsn()


@pytest.fixture(scope="session")
def pgqueue_schema(pgqueue_dsn: str) -> Iterator[str]:
    """The schema that holds the queue. Default: a fresh one for this run (this worker of pytest-xdist), then dropped.

    Override it with the name of one that is there.
    """
    from pgqueue.migrations import migrate  # noqa: PLC0415 - alembic is for those who need it

    schema = f"{_PREFIX}{int(time.time()):x}_{secrets.token_hex(3)}"
    dsn = Settings.load({}, dsn=pgqueue_dsn).resolve_dsn()  # as SQLAlchemy writes it, too
    with psycopg.connect(dsn, autocommit=True) as connection:
        _sweep(connection)
        migrate(dsn, schema=schema)
        yield schema
        connection.execute(f"DROP SCHEMA {schema} CASCADE")


@pytest.fixture
def pgqueue_app(pgqueue_dsn: str) -> Iterator[App]:
    """The application to test. Override it with yours; default: a new one, for tests with tasks of their own."""
    app = App(pgqueue_dsn)
    yield app
    app.close()


@pytest.fixture
def pgqueue_connection(pgqueue_dsn: str) -> Iterator[Any]:
    """What the queue is used through. Default: a psycopg connection, rolled back after the test.

    Override it with the connection or session of your own tests; or with None, for tests that commit: then the queue is
    emptied after each test.
    """
    dsn = Settings.load({}, dsn=pgqueue_dsn).resolve_dsn()
    with psycopg.connect(dsn) as connection:
        yield connection
        connection.rollback()


@pytest.fixture
def pgqueue_queue(
    pgqueue_app: App, pgqueue_connection: Any, pgqueue_dsn: str, pgqueue_schema: str
) -> Iterator[Sandbox]:
    """The application in a :class:`pgqueue.testing.Sandbox`: ``run_pending()``, ``assert_enqueued()``, ``clock``."""
    commits = pgqueue_connection is None
    dsn = Settings.load({}, dsn=pgqueue_dsn).resolve_dsn() if commits else None
    with Sandbox(pgqueue_app, pgqueue_connection, schema=pgqueue_schema, dsn=dsn) as sandbox:
        yield sandbox
        if commits and pgqueue_schema.startswith(_PREFIX):
            sandbox.clear()


def _sweep(connection: psycopg.Connection[Any]) -> None:
    """Drop the schemas of runs that were killed more than a day ago."""
    for (name,) in connection.execute(_OLD, [f"^{_PREFIX}[0-9a-f]+_[0-9a-f]{{6}}$"]).fetchall():
        if time.time() - int(name.split("_")[-2], 16) > _LEFT_BEHIND:
            connection.execute(f"DROP SCHEMA IF EXISTS {name} CASCADE")
