"""Django: enqueue in the transaction of ``django.db.connection``, so in that of ``transaction.atomic()``.

For ``django.tasks`` see :mod:`pgqueue.integrations.django_tasks`.
"""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, TypeVar
from zoneinfo import ZoneInfo

from asgiref.sync import async_to_sync, sync_to_async
from django.apps import AppConfig
from django.conf import settings
from django.db import DEFAULT_DB_ALIAS, connections
from django.db.models.signals import post_migrate
from django.db.utils import Error
from psycopg import conninfo, pq

from pgqueue.bigints import unpack_bigints
from pgqueue.connection import translate
from pgqueue.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from pgqueue.app import App
    from pgqueue.handle import Job
    from pgqueue.statements import Row, Statement

T = TypeVar("T")
_POSTGRESQL: Final = "postgresql"


def dsn_of(alias: str = DEFAULT_DB_ALIAS) -> str:
    """The connection string of one of ``settings.DATABASES``: ``app = pgqueue.App(dsn_of())``.

    Raises:
        SettingsError: that database is no PostgreSQL.
    """
    connection = connections[alias]
    if connection.vendor != _POSTGRESQL:
        raise SettingsError(f"the database {alias!r} of Django's settings is {connection.vendor}, not PostgreSQL")
    known = {option.keyword.decode() for option in pq.Conninfo.get_defaults()}
    params = connection.get_connection_params()
    return conninfo.make_conninfo("", **{name: value for name, value in params.items() if name in known})


def init_app(queue: App) -> None:
    """Have a worker treat Django's connections as a request does: those that are too old or broken are closed.

    For queues of your own; that of :mod:`pgqueue.integrations.django_tasks` does it already.
    """

    @queue.around_run
    def with_fresh_connections(job: Job) -> Iterator[None]:  # noqa: ARG001 - a middleware takes the job
        _close_old()
        try:
            yield
        finally:
            _close_old()


class PgqueueConfig(AppConfig):
    """In INSTALLED_APPS, as ``"pgqueue.integrations.django.PgqueueConfig"``: ``manage.py migrate`` makes the schema.

    And so do Django's tests, in their own database. Settings: ``PGQUEUE_DATABASE``, an alias of DATABASES (default
    ``default``); ``PGQUEUE_SCHEMA`` (default ``pgqueue``).
    """

    name = "pgqueue.integrations.django"
    label = "pgqueue"

    def ready(self) -> None:
        """Wait for Django's own migrations."""
        self.models_module = self.module  # Django tells only those that have models
        post_migrate.connect(self._migrate, sender=self)

    def _migrate(self, using: str, verbosity: int = 1, **_: Any) -> None:
        from pgqueue.migrations import migrate  # noqa: PLC0415 - alembic is for those who migrate

        if using == getattr(settings, "PGQUEUE_DATABASE", DEFAULT_DB_ALIAS):
            schema = getattr(settings, "PGQUEUE_SCHEMA", "pgqueue")
            migrate(dsn_of(using), schema=schema)
            if verbosity:
                print(f"  Schema of the job queue: {schema}")  # noqa: T201 - as manage.py migrate speaks


# -- statements on a connection -------------------------------------------------------------------------------------


def run(connection: Any, statement: Statement[T]) -> T:
    """Run a statement on a connection of Django, inside whatever transaction it is in."""
    if getattr(connection, "vendor", None) != _POSTGRESQL:
        raise TypeError("a job can only be enqueued on a PostgreSQL connection of Django, such as django.db.connection")
    params = statement.params and {name: unpack_bigints(value) for name, value in statement.params.items()}
    try:
        with connection.cursor() as cursor:
            cursor.execute(statement.sql, params)
            rows = cursor.fetchall() if cursor.description else []
    except Error as error:
        raise translate(error.__cause__ if isinstance(error.__cause__, Exception) else error) from error
    return statement.read(_with_zones(rows, connection))


async def run_async(connection: Any, statement: Statement[T]) -> T:  # noqa: ARG001 - every integration's
    """Not to be had: transactions of Django are sync."""
    raise TypeError(
        "Django's connections are sync: call enqueue_sync(…), from async code inside sync_to_async, "
        "instead of awaiting enqueue(…)"
    )


def driver_connection(connection: Any) -> Any:
    """The driver's own connection, in the same transaction."""
    connection.ensure_connection()
    return connection.connection


def drive(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine while this thread stays the one that Django's connections belong to."""

    async def apart() -> T:  # a task of its own, so that no ContextVar comes back
        return await asyncio.create_task(coroutine)

    driven: T = async_to_sync(apart)()
    return driven


async def hand_over(function: Callable[..., T], *args: Any) -> T:
    """Call a function in that thread."""
    answer: T = await sync_to_async(function, thread_sensitive=True)(*args)
    return answer


def _with_zones(rows: list[Row], connection: Any) -> list[Row]:
    """With USE_TZ off Django reads times without their zone, in that of the session."""
    if connection.timezone is not None:
        return rows
    zone = ZoneInfo(connection.timezone_name)

    def aware(value: Any) -> Any:
        naive = isinstance(value, datetime) and value.tzinfo is None
        return value.replace(tzinfo=zone) if naive else value

    return [tuple(aware(value) for value in row) for row in rows]


def _close_old() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        for connection in connections.all(initialized_only=True):
            if not connection.in_atomic_block:  # a test's, around this handler
                connection.close_if_unusable_or_obsolete()
