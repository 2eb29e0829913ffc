"""An application whose own connections are replaced by one of the test's: all that it writes is rolled back with it."""

from __future__ import annotations

import asyncio
import importlib
import threading
from contextlib import asynccontextmanager, contextmanager
from itertools import count
from typing import TYPE_CHECKING, Any, Final, TypeVar

import psycopg

from pgqueue.bigints import Bigints, BigintsDumper
from pgqueue.client import AsyncClient, Client
from pgqueue.connection import Database, run_on, run_on_async
from pgqueue.copying import check_copyable
from pgqueue.errors import DatabaseError, PgqueueError
from pgqueue.statements import Statement

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
    from types import ModuleType

    from pgqueue.app import App
    from pgqueue.job import JobSpec

T = TypeVar("T")
_names = count(1)
_OUTSIDE: Final = "25P01"  # no transaction is open: the connection is in autocommit, each statement its own
_ABORTED: Final = "25P02"
_NO_SAVEPOINT: Final = "3B001"


class Bound(Database):
    """Stands in for an application's :class:`Database`: everything runs on one connection that is not ours.

    What would be a transaction of its own is a savepoint, so that an enqueue which fails leaves nothing behind and
    the test's transaction goes on.
    """

    borrowed = True  # pgqueue.integrations.fastapi starts no worker then

    def __init__(self, original: Database, connection: Any) -> None:
        super().__init__(lambda: original.dsn)
        self.connection_given = connection

    def close(self) -> None:
        """Nothing: the connection is the test's."""

    async def aclose(self) -> None:
        """Nothing."""

    async def grow(self, size: int) -> None:
        """Nothing."""


class BoundSync(Bound):
    """On a sync connection. Async code waits for it like sync code does: one statement after another."""

    def __init__(self, original: Database, connection: Any) -> None:
        super().__init__(original, connection)
        self._turn = threading.RLock()  # a test client's threads take turns

    def run(self, statement: Statement[T]) -> T:
        """Run it on the test's connection."""
        with self._turn, savepoint(self.connection_given):
            return run_on(self.connection_given, statement)

    async def arun(self, statement: Statement[T]) -> T:
        """The same for async code."""
        hand_over = getattr(integration_of(self.connection_given), "hand_over", None)
        return await hand_over(self.run, statement) if hand_over else self.run(statement)

    def transact(self, work: Callable[[Any], T]) -> T:
        """Do work of several statements in a savepoint."""
        with self._turn, savepoint(self.connection_given):
            return work(self)

    async def atransact(self, work: Callable[[Any], Awaitable[T]]) -> T:
        """The same for async code: each statement in its own, because other code may come in between."""
        return await work(self)

    @contextmanager
    def connection(self) -> Iterator[psycopg.Connection[Any]]:
        """For ``job.transaction()``: psycopg's own connection behind the test's."""
        driver = _driver(self.connection_given, "driver_connection")
        if not isinstance(driver, psycopg.Connection):
            raise PgqueueError("job.transaction() in a sandbox needs a connection whose driver is psycopg 3")
        driver.adapters.register_dumper(Bigints, BigintsDumper)  # Django's has adapters of its own
        yield driver

    @asynccontextmanager
    async def aconnection(self) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        """Not to be had."""
        raise PgqueueError(
            "job.transaction() of an async handler needs an async connection; test it in an AsyncSandbox, "
            "or in a Sandbox without a connection"
        )
        yield  # pragma: no cover


class BoundAsync(Bound):
    """On an async connection that belongs to one event loop. Handlers in threads hand their statements to that loop."""

    def __init__(self, original: Database, connection: Any) -> None:
        super().__init__(original, connection)
        self._loop = asyncio.get_running_loop()
        self._turn = asyncio.Lock()

    async def arun(self, statement: Statement[T]) -> T:
        """Run it on the test's connection."""
        if asyncio.get_running_loop() is not self._loop:
            return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._arun(statement), self._loop))
        return await self._arun(statement)

    async def _arun(self, statement: Statement[T]) -> T:
        async with self._turn, savepoint_async(self.connection_given):
            return await run_on_async(self.connection_given, statement)

    def run(self, statement: Statement[T]) -> T:
        """The same for a handler in a thread."""
        try:
            here: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            here = None
        if here is self._loop:
            raise PgqueueError(
                "the sandbox holds an async connection, and sync code on its event loop can't wait for it: "
                "await enqueue(…), or use a Sandbox with a sync connection"
            )
        return asyncio.run_coroutine_threadsafe(self._arun(statement), self._loop).result()

    def transact(self, work: Callable[[Any], T]) -> T:
        """Do work of several statements, each in its own savepoint: other code may come in between."""
        return work(self)

    async def atransact(self, work: Callable[[Any], Awaitable[T]]) -> T:
        """The same for async code."""
        return await work(self)

    @contextmanager
    def connection(self) -> Iterator[psycopg.Connection[Any]]:
        """Not to be had."""
        raise PgqueueError(
            "job.transaction() of a def handler needs a sync connection; test it in a Sandbox with one, "
            "or in a Sandbox without a connection"
        )
        yield  # pragma: no cover

    @asynccontextmanager
    async def aconnection(self) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        """For ``job.transaction()``: psycopg's own connection behind the test's."""
        driver = _driver(self.connection_given, "driver_connection_async")
        driver = await driver if asyncio.iscoroutine(driver) else driver
        if not isinstance(driver, psycopg.AsyncConnection):
            raise PgqueueError("job.transaction() in a sandbox needs a connection whose driver is psycopg 3")
        yield driver


class _BoundClient(Client):
    """Its own database may be named as the connection: what :meth:`Database.transact` passes on."""

    def _run(self, statement: Statement[T], connection: Any) -> T:
        return super()._run(statement, None if connection is self.database else connection)

    def _copy(self, specs: Iterable[JobSpec], connection: Any) -> list[int]:
        """COPY needs psycopg's own connection, which the test's may not be: INSERT does the same."""
        if connection is not None or not isinstance(self.database, Bound):
            return super()._copy(specs, connection)
        return [job.id for job in self.submit_many(check_copyable(specs))]


class _BoundAsyncClient(AsyncClient):
    async def _run(self, statement: Statement[T], connection: Any) -> T:
        return await super()._run(statement, None if connection is self.database else connection)

    async def _copy(self, specs: Iterable[JobSpec], connection: Any) -> list[int]:
        """As in the sync one."""
        if connection is not None or not isinstance(self.database, Bound):
            return await super()._copy(specs, connection)
        return [job.id for job in await self.submit_many(check_copyable(specs))]


class Binding:
    """An application in a sandbox; :meth:`undo` sets it free again."""

    def __init__(self, app: App, database: Database | None, schema: str | None) -> None:
        self._app = app
        self._before = (app.settings, app.schema, app.database, app.client, app.aclient)
        if schema is not None:
            app.schema = schema
        if database is not None:
            app.database = database
        app.client = _BoundClient(app.database, app.schema)
        app.aclient = _BoundAsyncClient(app.database, app.schema)

    def undo(self) -> None:
        """As it was."""
        app = self._app
        app.settings, app.schema, app.database, app.client, app.aclient = self._before


# -- savepoints -----------------------------------------------------------------------------------------------------


@contextmanager
def savepoint(connection: Any) -> Iterator[None]:
    """What happens inside is undone when it fails, and the transaction around it goes on."""
    point = begin_savepoint(connection)
    try:
        yield
    except BaseException:
        end_savepoint(connection, point, keep=False)
        raise
    end_savepoint(connection, point, keep=True)


@asynccontextmanager
async def savepoint_async(connection: Any) -> AsyncIterator[None]:
    """The same on an async connection."""
    point = await begin_savepoint_async(connection)
    try:
        yield
    except BaseException:
        await end_savepoint_async(connection, point, keep=False)
        raise
    await end_savepoint_async(connection, point, keep=True)


def begin_savepoint(connection: Any) -> str | None:
    """Answers its name; None when no transaction is open, and so nothing to save."""
    name = f"pgqueue_{next(_names)}"
    try:
        run_on(connection, _say(f"SAVEPOINT {name}"))
    except DatabaseError as error:
        _no_savepoint(error)
        return None
    return name


async def begin_savepoint_async(connection: Any) -> str | None:
    """The same on an async connection."""
    name = f"pgqueue_{next(_names)}"
    try:
        await run_on_async(connection, _say(f"SAVEPOINT {name}"))
    except DatabaseError as error:
        _no_savepoint(error)
        return None
    return name


def end_savepoint(connection: Any, name: str | None, *, keep: bool) -> None:
    """Keep or undo what came after it. A transaction that has failed inside is mended by undoing."""
    if name is None:
        return
    try:
        if not keep:
            run_on(connection, _say(f"ROLLBACK TO SAVEPOINT {name}"))
        run_on(connection, _say(f"RELEASE SAVEPOINT {name}"))
    except DatabaseError as error:
        if not (keep and _state(error) == _ABORTED):
            raise _gone(error) from error
        end_savepoint(connection, name, keep=False)


async def end_savepoint_async(connection: Any, name: str | None, *, keep: bool) -> None:
    """The same on an async connection."""
    if name is None:
        return
    try:
        if not keep:
            await run_on_async(connection, _say(f"ROLLBACK TO SAVEPOINT {name}"))
        await run_on_async(connection, _say(f"RELEASE SAVEPOINT {name}"))
    except DatabaseError as error:
        if not (keep and _state(error) == _ABORTED):
            raise _gone(error) from error
        await end_savepoint_async(connection, name, keep=False)


def _say(sql: str) -> Statement[None]:
    return Statement(sql, None, lambda _: None)


def _no_savepoint(error: DatabaseError) -> None:
    if _state(error) != _OUTSIDE:
        raise error


def _gone(error: DatabaseError) -> PgqueueError:
    if _state(error) not in {_NO_SAVEPOINT, _OUTSIDE}:
        return error
    return PgqueueError(
        "the transaction of the test was committed or rolled back under its sandbox: code under test must end only "
        "transactions (or sessions) that it has begun itself"
    )


def _state(error: BaseException | None) -> str | None:
    """The SQLSTATE, from whichever of the errors behind this one knows it."""
    while error is not None:
        for source in (error, getattr(error, "orig", None)):
            state = getattr(source, "sqlstate", None)
            if state:
                return str(state)
        error = error.__cause__
    return None


# -- other libraries ------------------------------------------------------------------------------------------------


def integration_of(connection: Any) -> ModuleType | None:
    """The module of pgqueue.integrations that a connection belongs to; None for psycopg's own."""
    for cls in type(connection).__mro__:
        package = cls.__module__.partition(".")[0]
        if package != "psycopg" and importlib.util.find_spec(f"pgqueue.integrations.{package}"):
            return importlib.import_module(f"pgqueue.integrations.{package}")
    return None


def _driver(connection: Any, finder: str) -> Any:
    find = getattr(integration_of(connection), finder, None)
    return find(connection) if find else connection
