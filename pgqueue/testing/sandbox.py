"""A queue to test with: an application on one connection of the test."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Self, TypeVar
from weakref import WeakKeyDictionary

import psycopg

from pgqueue.connection import Database, run_on, run_on_async
from pgqueue.errors import PgqueueError
from pgqueue.sql import qualify
from pgqueue.statements import Statement
from pgqueue.testing import bound, engine, matching
from pgqueue.testing.clock import AsyncClock, Clock
from pgqueue.testing.handlers import AsyncStage, Stage, loop_is_running

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import timedelta

    from pgqueue.app import App
    from pgqueue.job import JobRecord
    from pgqueue.task import Task
    from pgqueue.testing.engine import Ran
    from pgqueue.testing.steps import Handled, Handling, Steps

T = TypeVar("T")
MOST_RUNS: Final = 1000
_TABLES: Final = (
    "jobs", "leases", "history", "dependencies", "batches", "throttles", "buckets", "queues", "ticks", "schedules",
    "workers",
)  # fmt: skip
active: Final[WeakKeyDictionary[App, Sandbox | AsyncSandbox]] = WeakKeyDictionary()


class _Base:
    """What both sandboxes know."""

    def __init__(self, app: App, connection: Any, schema: str | None, dsn: str | None) -> None:
        if connection is not None and dsn is not None:
            raise TypeError("give a connection or a dsn, not both")
        self.app = app
        self.connection = connection
        self._schema = schema
        self._dsn = dsn
        self._binding: bound.Binding | None = None
        self._own: Database | None = None

    @property
    def schema(self) -> str:
        """The schema that holds the queue."""
        return self.app.schema

    def _bind(self, make: Callable[[Database, Any], bound.Bound]) -> None:
        if self.app in active:
            raise PgqueueError("the application is in a sandbox already")
        database: Database | None = None
        if self.connection is not None:
            database = make(self.app.database, self.connection)
        elif self._dsn is not None:
            dsn = self._dsn
            database = self._own = Database(lambda: dsn)
        self._binding = bound.Binding(self.app, database, self._schema)

    def _unbind(self) -> None:
        if self._binding is not None:
            self._binding.undo()
            self._binding = None
            del active[self.app]

    def _due(self, queues: Sequence[str] | None, raise_errors: bool, limit: int) -> Steps[list[Ran]]:
        if isinstance(queues, str):
            raise TypeError(f"queues must be a list of names, not {queues!r}")
        offset = self._offset()
        return engine.run_pending(self.app, queues, limit=limit, raise_errors=raise_errors, offset=offset)

    def _offset(self) -> timedelta:
        raise NotImplementedError

    def _clear(self) -> Steps[None]:
        for table in _TABLES:
            yield Statement(qualify(f"DELETE FROM pgqueue.{table}", self.schema), None, list)


class Sandbox(_Base):
    """An application's queue on one sync connection or session of the test: nothing is committed.

    Inside the ``with`` block the application, its tasks, clients and handlers use that connection for everything. It
    may be psycopg's, SQLAlchemy's or Django's; in autocommit mode everything is committed.

    Args:
        app: the application.
        connection: None: the application's own connections; then everything is committed.
        schema: the schema that holds the queue; default: the application's.
        dsn: without a connection, another database.

    Attributes:
        clock: moves time.

    Example:
        >>> with Sandbox(app, connection) as queue:  # doctest: +SKIP
        ...     sign_up("ann@example.com")
        ...     queue.assert_enqueued(send_welcome, email="ann@example.com")
        ...     [ran] = queue.run_pending(raise_errors=True)
    """

    def __init__(self, app: App, connection: Any = None, *, schema: str | None = None, dsn: str | None = None) -> None:
        if isinstance(connection, psycopg.AsyncConnection):
            raise TypeError("AsyncConnection is async: use AsyncSandbox")
        super().__init__(app, connection, schema, dsn)
        self.clock = Clock(self)

    def __enter__(self) -> Self:
        self._bind(bound.BoundSync)
        active[self.app] = self
        return self

    def __exit__(self, *_: object) -> None:
        self._unbind()
        if self._own is not None:
            self._own.close()

    def run_pending(
        self, queues: Sequence[str] | None = None, *, raise_errors: bool = False, limit: int = MOST_RUNS
    ) -> list[Ran]:
        """Run what is due now, here, one job after another, and what that enqueues, until nothing is due.

        Expired leases are swept and due schedules tick first. Isolated tasks run in this process.

        Args:
            queues: only these; default: all that hold jobs of the application's tasks.
            raise_errors: raise what a handler raises, once its job has landed.
            limit: give up after so many runs.

        Raises:
            PgqueueError: an event loop is running here (await :meth:`run_pending_async`), or the limit is reached.
        """
        if loop_is_running():
            raise PgqueueError("an event loop is running here: await run_pending_async(…) instead")
        steps = self._due(queues, raise_errors, limit)
        with Stage(self.app, self.connection) as stage:
            return self.perform(steps, stage.handle)

    async def run_pending_async(
        self, queues: Sequence[str] | None = None, *, raise_errors: bool = False, limit: int = MOST_RUNS
    ) -> list[Ran]:
        """The same in an async test: ``async def`` handlers run on the running loop, ``def`` ones in a thread."""
        steps = self._due(queues, raise_errors, limit)
        answer: Any = None
        async with AsyncStage(self.app) as stage:
            try:
                while True:
                    step = steps.send(answer)
                    if isinstance(step, Statement):
                        answer = self._run(step)
                    else:
                        point = self._save()
                        answer = await stage.handle(step)
                        self._keep(point)
            except StopIteration as stop:
                ran: list[Ran] = stop.value
                return ran

    def enqueued(
        self,
        task: Task[Any, Any] | str | None = None,
        *,
        queue: str | None = None,
        payload: dict[str, Any] | None = None,
        **arguments: Any,
    ) -> list[JobRecord]:
        """The jobs that wait, due or not, oldest first: of a task, in a queue, with at least these arguments.

        Args:
            task: a task or its name; default: any.
            queue: only in this one.
            payload: more arguments; for those that are called ``task``, ``queue``, ``count`` or ``payload``.
            **arguments: what the payload holds, as a call says it; a value may be ``unittest.mock.ANY``, a dict
                matches one that holds more.

        Raises:
            InvalidPayloadError: the task has no such parameter.
        """
        wanted = matching.Wanted(task, queue, {**(payload or {}), **arguments})
        return self.perform(matching.find(wanted, self.schema))

    def assert_enqueued(
        self,
        task: Task[Any, Any] | str | None = None,
        *,
        count: int | None = None,
        queue: str | None = None,
        payload: dict[str, Any] | None = None,
        **arguments: Any,
    ) -> list[JobRecord]:
        """Assert that such a job waits, or exactly ``count``; answers them. See :meth:`enqueued`."""
        wanted = matching.Wanted(task, queue, {**(payload or {}), **arguments})
        return self.perform(matching.check(wanted, count, self.schema))

    def assert_not_enqueued(
        self,
        task: Task[Any, Any] | str | None = None,
        *,
        queue: str | None = None,
        payload: dict[str, Any] | None = None,
        **arguments: Any,
    ) -> None:
        """Assert that no such job waits. See :meth:`enqueued`."""
        self.assert_enqueued(task, count=0, queue=queue, payload=payload, **arguments)

    def clear(self) -> None:
        """Delete every job, schedule and setting of this schema: between tests that commit."""
        self.perform(self._clear())

    def perform(self, steps: Steps[T], call: Callable[[Handling], Handled] | None = None) -> T:
        """Carry out steps; for the clock and the like."""
        answer: Any = None
        try:
            while True:
                step = steps.send(answer)
                if isinstance(step, Statement):
                    answer = self._run(step)
                else:
                    assert call is not None  # noqa: S101 - only run_pending has such steps
                    point = self._save()
                    answer = call(step)
                    self._keep(point)
        except StopIteration as stop:
            value: T = stop.value
            return value

    def _run(self, statement: Statement[T]) -> T:
        if self.connection is not None:
            return run_on(self.connection, statement)
        return self.app.database.run(statement)

    def _save(self) -> str | None:
        """A handler may leave the transaction failed; the sandbox must be able to go on."""
        return None if self.connection is None else bound.begin_savepoint(self.connection)

    def _keep(self, point: str | None) -> None:
        bound.end_savepoint(self.connection, point, keep=True)

    def _offset(self) -> timedelta:
        return self.clock.offset


class AsyncSandbox(_Base):
    """The same on one async connection or session: psycopg's, SQLAlchemy's or asyncpg's. See :class:`Sandbox`.

    Example:
        >>> async with AsyncSandbox(app, session) as queue:  # doctest: +SKIP
        ...     await sign_up(session, "ann@example.com")
        ...     await queue.assert_enqueued(send_welcome, email="ann@example.com")
        ...     [ran] = await queue.run_pending(raise_errors=True)
    """

    def __init__(self, app: App, connection: Any = None, *, schema: str | None = None, dsn: str | None = None) -> None:
        if isinstance(connection, psycopg.Connection):
            raise TypeError("Connection is sync: use Sandbox; its run_pending_async is for async tests")
        super().__init__(app, connection, schema, dsn)
        self.clock = AsyncClock(self)

    async def __aenter__(self) -> Self:
        self._bind(bound.BoundAsync)
        active[self.app] = self
        return self

    async def __aexit__(self, *_: object) -> None:
        self._unbind()
        if self._own is not None:
            await self._own.aclose()

    async def run_pending(
        self, queues: Sequence[str] | None = None, *, raise_errors: bool = False, limit: int = MOST_RUNS
    ) -> list[Ran]:
        """See :meth:`Sandbox.run_pending`. ``def`` handlers run in a thread."""
        async with AsyncStage(self.app) as stage:
            return await self.perform(self._due(queues, raise_errors, limit), stage)

    async def enqueued(
        self,
        task: Task[Any, Any] | str | None = None,
        *,
        queue: str | None = None,
        payload: dict[str, Any] | None = None,
        **arguments: Any,
    ) -> list[JobRecord]:
        """See :meth:`Sandbox.enqueued`."""
        wanted = matching.Wanted(task, queue, {**(payload or {}), **arguments})
        return await self.perform(matching.find(wanted, self.schema))

    async def assert_enqueued(
        self,
        task: Task[Any, Any] | str | None = None,
        *,
        count: int | None = None,
        queue: str | None = None,
        payload: dict[str, Any] | None = None,
        **arguments: Any,
    ) -> list[JobRecord]:
        """See :meth:`Sandbox.assert_enqueued`."""
        wanted = matching.Wanted(task, queue, {**(payload or {}), **arguments})
        return await self.perform(matching.check(wanted, count, self.schema))

    async def assert_not_enqueued(
        self,
        task: Task[Any, Any] | str | None = None,
        *,
        queue: str | None = None,
        payload: dict[str, Any] | None = None,
        **arguments: Any,
    ) -> None:
        """See :meth:`Sandbox.assert_not_enqueued`."""
        await self.assert_enqueued(task, count=0, queue=queue, payload=payload, **arguments)

    async def clear(self) -> None:
        """See :meth:`Sandbox.clear`."""
        await self.perform(self._clear())

    async def perform(self, steps: Steps[T], stage: AsyncStage | None = None) -> T:
        """Carry out steps; for the clock and the like."""
        answer: Any = None
        try:
            while True:
                step = steps.send(answer)
                if isinstance(step, Statement):
                    answer = await self._run(step)
                else:
                    assert stage is not None  # noqa: S101 - only run_pending has such steps
                    answer = await self._handle(stage, step)
        except StopIteration as stop:
            value: T = stop.value
            return value

    async def _run(self, statement: Statement[T]) -> T:
        if self.connection is not None:
            return await run_on_async(self.connection, statement)
        return await self.app.database.arun(statement)

    async def _handle(self, stage: AsyncStage, handling: Handling) -> Handled:
        if self.connection is None:
            return await stage.handle(handling)
        point = await bound.begin_savepoint_async(self.connection)
        handled = await stage.handle(handling)
        await bound.end_savepoint_async(self.connection, point, keep=True)
        return handled

    def _offset(self) -> timedelta:
        return self.clock.offset
