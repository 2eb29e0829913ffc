"""Connections to PostgreSQL: how they are opened, pooled, and how a Statement is run on one.

psycopg is the interface: there is no driver layer. Other libraries' connections are taken by
:mod:`pgqueue.integrations`; see :func:`run_on`.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import logging
import random
import re
import select
import threading
import weakref
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar, cast

import psycopg
from psycopg import conninfo
from psycopg.pq import Format, TransactionStatus
from psycopg.rows import tuple_row
from psycopg_pool import AsyncConnectionPool, ConnectionPool, PoolTimeout

from pgqueue.bigints import Bigints, BigintsDumper
from pgqueue.errors import (
    DatabaseError,
    DatabaseUnreachableError,
    InvalidJobError,
    JobExistsError,
    PayloadTooLargeError,
    PgqueueError,
    SchemaError,
)
from pgqueue.wire import AsyncWire, Wire

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from contextlib import AbstractContextManager

    from pgqueue.statements import Statement

psycopg.adapters.register_dumper(Bigints, BigintsDumper)

T = TypeVar("T")
log = logging.getLogger(__name__)

# A silent peer is noticed in seconds, not in the hours of the system's defaults.
_DEFAULTS: Final = {
    "connect_timeout": "10",
    "keepalives": "1",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
    "application_name": "pgqueue",
}
_WHO_ANSWERS: Final = "SELECT pg_backend_pid()"
_POOL_SIZE: Final = 10
_MOST_KEPT: Final = 2  # of the pool's connections, for single statements
_POOL_PATIENCE: Final = 30.0  # of who waits for a connection, and of the attempt to make one for them
_RETRYABLE: Final = {"40001", "40P01"}  # serialization failure, deadlock: the statement did nothing, say it again
_MOST_RETRIES: Final = 8


def connection_string(dsn: str, **extra: str) -> str:
    """``dsn`` with the keepalives and timeouts that it does not set itself.

    Raises:
        DatabaseError: it is not a connection string.
    """
    try:
        given = conninfo.conninfo_to_dict(dsn)
    except psycopg.ProgrammingError as error:
        raise DatabaseError(f"not a PostgreSQL connection string: {_without_secrets(str(error))}") from None
    return conninfo.make_conninfo("", **{**_DEFAULTS, **extra, **given})


def _without_secrets(words: str) -> str:
    """What libpq says, without what it quotes of the string: a password may be in it. The name of an option is none."""
    if words.startswith(("invalid connection option", "invalid URI query parameter")):
        return words.strip()
    return re.sub('".*"', '"…"', re.sub(r'"(=|])"', r"'\1'", words), flags=re.DOTALL).strip()


class OwnConnection(psycopg.Connection[Any]):
    """One of our pool, with a wire for the single statements of who has it to himself."""

    _wire: Wire | None = None

    @property
    def wire(self) -> Wire:
        """For :meth:`Database.run`."""
        if self._wire is None:
            self._wire = Wire(self)
        return self._wire


class OwnAsyncConnection(psycopg.AsyncConnection[Any]):
    """The same for async code."""

    _wire: AsyncWire | None = None

    @property
    def wire(self) -> AsyncWire:
        """For :meth:`Database.arun`."""
        if self._wire is None:
            self._wire = AsyncWire(self)
        return self._wire


def run(connection: psycopg.Connection[Any], statement: Statement[T]) -> T:
    """Run a statement on a psycopg connection, inside whatever transaction it is in."""
    cursor = psycopg.Cursor(connection, row_factory=tuple_row)  # plain rows, whatever the connection makes
    cursor.format = Format.BINARY
    cursor.execute(statement.sql, statement.params)
    return statement.read(cursor.fetchall() if cursor.rownumber is not None else [])


async def run_async(connection: psycopg.AsyncConnection[Any], statement: Statement[T]) -> T:
    """Run a statement on a psycopg async connection, inside whatever transaction it is in."""
    cursor = psycopg.AsyncCursor(connection, row_factory=tuple_row)
    cursor.format = Format.BINARY
    await cursor.execute(statement.sql, statement.params)
    return statement.read(await cursor.fetchall() if cursor.rownumber is not None else [])


def run_on(connection: Any, statement: Statement[T]) -> T:
    """Run a statement on the caller's own connection or session: psycopg, or one of :mod:`pgqueue.integrations`.

    Raises:
        TypeError: the connection is of an unknown kind, or async.
    """
    if isinstance(connection, psycopg.Connection):
        with translated():
            return run(connection, statement)
    return cast("T", _integration(connection).run(connection, statement))


async def run_on_async(connection: Any, statement: Statement[T]) -> T:
    """The same for async connections and sessions.

    Raises:
        TypeError: the connection is of an unknown kind, or sync.
    """
    if isinstance(connection, psycopg.AsyncConnection):
        with translated():
            return await run_async(connection, statement)
    return cast("T", await _integration(connection).run_async(connection, statement))


def _integration(connection: Any) -> Any:
    """``pgqueue.integrations.<package>``, by the package that the connection's class comes from."""
    for cls in type(connection).__mro__:
        package = cls.__module__.partition(".")[0]
        if importlib.util.find_spec(f"pgqueue.integrations.{package}"):
            return importlib.import_module(f"pgqueue.integrations.{package}")
    raise TypeError(
        f"{type(connection).__name__} is no connection that pgqueue knows; give it a psycopg connection "
        "(sync for enqueue_sync, async for enqueue), a SQLAlchemy Session, AsyncSession or Connection, "
        "an asyncpg Connection or django.db.connection"
    )


class Runner(Protocol):
    """Whatever runs a statement in a transaction of its own."""

    async def arun(self, statement: Statement[T]) -> T:
        """Run it; answers what the statement reads."""


class Database:
    """The sync pool, and one async pool per event loop, of one DSN; opened when first used.

    Args:
        resolve_dsn: answers the DSN; for an embedded server it also starts or joins it.
        embedded: ask again for each new connection, so that a server that was killed is started again.

    Attributes:
        patience: seconds that somebody waits for a connection; default 30.
    """

    def __init__(self, resolve_dsn: Callable[[], str], *, embedded: bool = False) -> None:
        self.patience = _POOL_PATIENCE
        self._resolve_dsn = resolve_dsn
        self._embedded = embedded
        self._size = _POOL_SIZE
        self._dsn: str | None = None
        self._sync: ConnectionPool[OwnConnection] | None = None
        self._async: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncConnectionPool[Any]] = (
            weakref.WeakKeyDictionary()
        )
        self._kept_sync: list[tuple[OwnConnection, ConnectionPool[OwnConnection]]] = []
        self._kept: weakref.WeakKeyDictionary[
            asyncio.AbstractEventLoop, list[tuple[OwnAsyncConnection, AsyncConnectionPool[OwnAsyncConnection]]]
        ] = weakref.WeakKeyDictionary()
        self._guard = threading.Lock()

    @property
    def dsn(self) -> str:
        """The full connection string; starts the embedded server when no DSN is set."""
        if self._dsn is None:
            with self._guard:
                if self._dsn is None:
                    self._dsn = connection_string(self._resolve_dsn())
        return self._dsn

    def address(self) -> str:
        """Where to connect now. May block for as long as an embedded server takes to start.

        Raises:
            EmbeddedServerError: the embedded server could not be started.
        """
        return connection_string(self._resolve_dsn()) if self._embedded else self.dsn

    async def _aaddress(self) -> str:
        return await asyncio.to_thread(self.address)

    @contextmanager
    def connection(self) -> Iterator[psycopg.Connection[Any]]:
        """A pooled autocommit connection. Raises DatabaseUnreachableError when none is to be had in time."""
        with translated():
            connection, pool = self._take_sync()
        try:
            yield connection
        finally:
            self._put_back_sync(connection, pool)

    def _take_sync(self) -> tuple[OwnConnection, ConnectionPool[OwnConnection]]:
        """One that was kept, or one of the pool, which takes six times as long."""
        while True:
            try:
                connection, pool = self._kept_sync.pop()
            except IndexError:
                pool = self._sync_pool()
                return pool.getconn(timeout=self.patience), pool
            if not _has_input(connection.fileno()):
                return connection, pool
            pool.putconn(connection)  # most likely the server has closed it

    def _put_back_sync(self, connection: OwnConnection, pool: ConnectionPool[OwnConnection]) -> None:
        if pool is self._sync and len(self._kept_sync) < _MOST_KEPT and _at_rest(connection):
            self._kept_sync.append((connection, pool))
        else:
            pool.putconn(connection)

    @asynccontextmanager
    async def aconnection(self) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        """The same for async code, from the running loop's pool."""
        with translated():
            connection, pool = await self._take()
        try:
            yield connection
        finally:
            await self._put_back(connection, pool)

    async def _take(self) -> tuple[OwnAsyncConnection, AsyncConnectionPool[OwnAsyncConnection]]:
        """As :meth:`_take_sync`."""
        kept = self._kept.get(asyncio.get_running_loop())
        while kept:
            connection, pool = kept.pop()
            if not _has_input(connection.fileno()):
                return connection, pool
            await pool.putconn(connection)
        pool = await self._async_pool()
        return await pool.getconn(timeout=self.patience), pool

    async def _put_back(self, connection: OwnAsyncConnection, pool: AsyncConnectionPool[OwnAsyncConnection]) -> None:
        loop = asyncio.get_running_loop()
        kept = self._kept.setdefault(loop, [])
        if pool is self._async.get(loop) and len(kept) < _MOST_KEPT and _at_rest(connection):
            kept.append((connection, pool))
        else:
            await pool.putconn(connection)

    def run(self, statement: Statement[T]) -> T:
        """Run one statement in a transaction of its own; a deadlock or serialization failure is said again."""
        return self._again(lambda own: own.wire.run(statement))

    async def arun(self, statement: Statement[T]) -> T:
        """The same for async code."""
        return await self._aagain(lambda own: own.wire.run(statement))

    def transact(self, work: Callable[[psycopg.Connection[Any]], T]) -> T:
        """Do work of several statements in a transaction of its own; it is done again as :meth:`run` does."""

        def attempt(own: psycopg.Connection[Any]) -> T:
            with own.transaction():
                return work(own)

        return self._again(attempt)

    async def atransact(self, work: Callable[[psycopg.AsyncConnection[Any]], Awaitable[T]]) -> T:
        """The same for async code."""

        async def attempt(own: psycopg.AsyncConnection[Any]) -> T:
            async with own.transaction():
                return await work(own)

        return await self._aagain(attempt)

    def _again(self, work: Callable[[OwnConnection], T]) -> T:
        for attempt in range(_MOST_RETRIES):
            try:
                with translated():
                    connection, pool = self._take_sync()  # not connection(): see below
                    try:
                        return work(connection)
                    finally:
                        self._put_back_sync(connection, pool)
            except DatabaseError as error:
                if not _retryable(error) or attempt == _MOST_RETRIES - 1:
                    raise
                threading.Event().wait(_pause(attempt))
        raise AssertionError  # pragma: no cover - the loop returns or raises

    async def _aagain(self, work: Callable[[OwnAsyncConnection], Awaitable[T]]) -> T:
        for attempt in range(_MOST_RETRIES):
            try:
                with translated():
                    connection, pool = await self._take()  # not aconnection(): a tenth of an enqueue
                    try:
                        return await work(connection)
                    finally:
                        await self._put_back(connection, pool)
            except DatabaseError as error:
                if not _retryable(error) or attempt == _MOST_RETRIES - 1:
                    raise
                await asyncio.sleep(_pause(attempt))
        raise AssertionError  # pragma: no cover

    async def grow(self, size: int) -> None:
        """Let the pools hold up to ``size`` connections, if that is more than now; they are opened when needed."""
        if size > self._size:
            self._size = size
            if self._sync is not None:
                self._sync.resize(0, size)
            pool = self._async.get(asyncio.get_running_loop())
            if pool is not None:
                await pool.resize(0, size)

    def close(self) -> None:
        """Close the sync pool; used again, it opens again."""
        with self._guard:
            pool, self._sync = self._sync, None
            kept, self._kept_sync = self._kept_sync, []
        for connection, its_pool in kept:
            its_pool.putconn(connection)
        if pool is not None:
            pool.close()

    async def aclose(self) -> None:
        """Close the running loop's pool, and the sync pool."""
        loop = asyncio.get_running_loop()
        pool = self._async.pop(loop, None)
        if pool is not None:
            for connection, its_pool in self._kept.pop(loop, ()):
                await its_pool.putconn(connection)
            await pool.close()
        self.close()

    def _sync_pool(self) -> ConnectionPool[OwnConnection]:
        dsn = self.dsn  # outside the guard, which it takes itself; its error reaches the caller, the pool's would not
        with self._guard:
            if self._sync is None:
                self._sync = ConnectionPool(
                    self.address if self._embedded else dsn, connection_class=OwnConnection,
                    min_size=0, max_size=self._size, kwargs={"autocommit": True}, configure=_configure,
                    check=_check, reconnect_timeout=self.patience, open=True, name="pgqueue",
                )  # fmt: skip
            return self._sync

    async def _async_pool(self) -> AsyncConnectionPool[OwnAsyncConnection]:
        loop = asyncio.get_running_loop()
        pool = self._async.get(loop)
        if pool is None:
            dsn = await asyncio.to_thread(lambda: self.dsn)
            pool = self._async.setdefault(loop, AsyncConnectionPool(
                self._aaddress if self._embedded else dsn, connection_class=OwnAsyncConnection,
                min_size=0, max_size=self._size, kwargs={"autocommit": True}, configure=_aconfigure,
                check=_acheck, reconnect_timeout=self.patience, open=False, name="pgqueue",
            ))  # fmt: skip
            await pool.open()
        return pool


class _Translated:
    """A class, because it is entered with every statement: a generator's frame costs ten times as much."""

    __slots__ = ()

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, psycopg.Error | PoolTimeout):
            raise translate(error) from error


def translated() -> AbstractContextManager[None, None]:
    """Psycopg's errors come out as pgqueue's, with the original as their cause."""
    return _TRANSLATED


_TRANSLATED: Final = _Translated()


def translate(error: Exception) -> PgqueueError:
    """The typed error for what psycopg (or a DBAPI behind SQLAlchemy) raised."""
    state = getattr(error, "sqlstate", None) or ""
    message = str(error).strip().split("\n")[0]
    if state == "54000":
        return PayloadTooLargeError(message)
    if state.startswith("22"):
        return InvalidJobError(message)
    if state == "23505" and (holder := _detail(error)).isdigit():
        return JobExistsError(message, int(holder))
    if state in {"42P01", "3F000", "42883"}:
        return SchemaError(f"{message}; run: pgq migrate")
    if state.startswith(("08", "57P")) or (isinstance(error, PoolTimeout | psycopg.OperationalError) and not state):
        return DatabaseUnreachableError(f"PostgreSQL can't be reached: {message}")
    return DatabaseError(message)


def _detail(error: Exception) -> str:
    """As psycopg says it; or asyncpg, perhaps behind SQLAlchemy's error for it."""
    asked = (getattr(error, "diag", None), "message_detail"), (error, "detail"), (error.__cause__, "detail")
    return next((str(detail) for source, name in asked if (detail := getattr(source, name, None))), "")


def is_pooled(connection: psycopg.Connection[Any]) -> bool:
    """Whether a pooler stands between: the process that answers is not the one that was connected to."""
    (pid,) = connection.execute(_WHO_ANSWERS).fetchone() or (0,)
    return bool(connection.info.backend_pid != pid)


async def is_pooled_async(connection: psycopg.AsyncConnection[Any]) -> bool:
    """The same for async connections."""
    (pid,) = await (await connection.execute(_WHO_ANSWERS)).fetchone() or (0,)
    return bool(connection.info.backend_pid != pid)


def _check(connection: psycopg.Connection[Any]) -> None:
    """An idle connection that has something to read has most likely been closed; ask only then."""
    if _has_input(connection.fileno()):
        connection.execute("SELECT 1")


async def _acheck(connection: psycopg.AsyncConnection[Any]) -> None:
    if _has_input(connection.fileno()):
        await connection.execute("SELECT 1")


def _at_rest(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> bool:
    return connection.pgconn.transaction_status == TransactionStatus.IDLE


def _has_input(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


def _configure(connection: psycopg.Connection[Any]) -> None:
    connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED  # whatever the database's default is
    if is_pooled(connection):
        connection.prepare_threshold = None


async def _aconfigure(connection: psycopg.AsyncConnection[Any]) -> None:
    await connection.set_isolation_level(psycopg.IsolationLevel.READ_COMMITTED)
    if await is_pooled_async(connection):
        connection.prepare_threshold = None


def _retryable(error: DatabaseError) -> bool:
    return getattr(error.__cause__, "sqlstate", None) in _RETRYABLE


def _pause(attempt: int) -> float:
    return random.uniform(0, 0.01 * 2**attempt)  # noqa: S311
