"""Runs handlers the way a worker would, with middleware and resources, in this thread or on the running event loop."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack, ExitStack
from contextvars import Context
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from pgqueue.batch import BatchTask, Jobs
from pgqueue.errors import JobTimeoutError
from pgqueue.handle import Job
from pgqueue.outcome import completed
from pgqueue.resources import Lifespan
from pgqueue.run import BatchRun, Run, current_run
from pgqueue.testing.bound import integration_of
from pgqueue.testing.steps import Handled, Handling
from pgqueue.worker.compose import around_thread, call_alone
from pgqueue.worker.judge import failed

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from contextlib import AbstractContextManager
    from types import TracebackType

    from pgqueue.app import App
    from pgqueue.middleware import Around
    from pgqueue.task import Task

T = TypeVar("T")
# What a handler may raise; anything else (KeyboardInterrupt, pytest.fail) is meant for the test.
_FAILURES: Final = (Exception, asyncio.CancelledError, SystemExit)


class Stage:
    """Where the handlers of a sync test run: this thread; what is async runs on an event loop made for it."""

    def __init__(self, app: App, connection: Any) -> None:
        self._app = app
        self._shared = connection is not None
        self._drive = getattr(integration_of(connection), "drive", None)
        self._runner: asyncio.Runner | None = None
        self._resources: Lifespan | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._resources is not None:
            self._run(self._resources.close())
        if self._runner is not None:
            if not self._shared:
                self._run(self._app.database.aclose())  # the pool that a handler has opened on this loop
            self._runner.close()

    def handle(self, handling: Handling) -> Handled:
        """Run a handler to its end, in a context of its own."""
        run, task, app = handling.run, handling.task, self._app
        if self._resources is None and (resources := app.resources.all_but(())):
            self._resources = Lifespan()
            self._run(self._resources.start(resources))
        values = {} if self._resources is None else self._resources.values
        if _is_async(task):
            return self._run(_await(run, task, values, app.middleware.around_runs()), context=Context())

        def around(job: Job | Jobs) -> AbstractContextManager[object]:
            return _Around(app.middleware.around_runs(), job, self._run)

        return Context().run(_call, run, task, values, around)

    def _run(self, coroutine: Coroutine[Any, Any, T], context: Context | None = None) -> T:
        if self._drive is not None:
            driven: T = self._drive(coroutine)
            return driven
        if self._runner is None:
            self._runner = asyncio.Runner()
        return self._runner.run(coroutine, context=context)


class AsyncStage:
    """Where those of an async test run: on its event loop, or in a thread if it is a ``def``."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._resources: Lifespan | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._resources is not None:
            await self._resources.close()

    async def handle(self, handling: Handling) -> Handled:
        """Run a handler to its end, in a context of its own."""
        run, task, loop = handling.run, handling.task, asyncio.get_running_loop()
        if self._resources is None:
            self._resources = Lifespan()
            await self._resources.start(self._app.resources.all_but(()))
        values, arounds = self._resources.values, self._app.middleware.around_runs()
        if _is_async(task):
            return await loop.create_task(_await(run, task, values, arounds), context=Context())
        around = around_thread(arounds, loop)
        return await loop.run_in_executor(None, Context().run, _call, run, task, values, around)


def loop_is_running() -> bool:
    """Whether this thread is an event loop's."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _is_async(task: Task[Any, Any]) -> bool:
    return asyncio.iscoroutinefunction(task.function)


def _call(
    run: Run,
    task: Task[Any, Any],
    values: dict[Any, Any],
    around: Callable[[Job | Jobs], AbstractContextManager[object]],
) -> Handled:
    """A ``def`` handler can't be stopped: whether it took too long is seen when it has returned."""
    _start(run, task)
    value = None
    try:
        with around(_handle_on(run, task)):
            value = call_alone(task, values, run)
    except _FAILURES as error:
        return _failed(run, task, error)
    if run.timeout is not None and time.monotonic() - run.started > run.timeout and not run.landed:
        run.timed_out = True
        return _failed(run, task, TimeoutError())
    return Handled(completed(value))


async def _await(run: Run, task: Task[Any, Any], values: dict[Any, Any], arounds: list[Around]) -> Handled:
    me = asyncio.current_task()
    assert me is not None  # noqa: S101
    _start(run, task)
    run.cancel_hook = me.cancel
    alarm = None
    if run.timeout is not None:
        alarm = asyncio.get_running_loop().call_later(run.timeout, _time_out, run)
    value = None
    try:
        async with AsyncExitStack() as stack:
            for around in arounds:
                manager = around.open(_handle_on(run, task))
                await stack.enter_async_context(manager) if around.is_async else stack.enter_context(manager)
            value = await call_alone(task, values, run)
    except _FAILURES as error:
        if isinstance(error, asyncio.CancelledError) and me.cancelling() and not run.cancelled:
            raise  # it is the test that is cancelled
        return _failed(run, task, error)
    else:
        return Handled(completed(value))
    finally:
        run.cancel_hook = None
        if alarm is not None:
            alarm.cancel()
        while run.cancelled and me.cancelling():
            me.uncancel()


class _Around:
    """Middleware around a handler in this thread; the async ones are entered and left on the loop."""

    def __init__(self, arounds: list[Around], job: Job | Jobs, run: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
        self._arounds = arounds
        self._job = job
        self._run = run
        self._stack = ExitStack()

    def __enter__(self) -> None:
        for around in self._arounds:
            manager = around.open(self._job)
            if around.is_async:
                self._run(manager.__aenter__())
                self._stack.push(lambda *error, left=manager: self._run(left.__aexit__(*error)))
            else:
                self._stack.enter_context(manager)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        return bool(self._stack.__exit__(kind, error, trace))


def _handle_on(run: Run, task: Task[Any, Any]) -> Job | Jobs:
    return Jobs(run.app, BatchRun(run)) if isinstance(task, BatchTask) else Job(run.id, run.app, run)


def _start(run: Run, task: Task[Any, Any]) -> None:
    current_run.set(run)
    run.started = time.monotonic()
    if run.timeout is None and task.timeout is not None:
        run.timeout = task.timeout.total_seconds()


def _time_out(run: Run) -> None:
    run.timed_out = run.cancelled = True
    run.interrupt()


def _failed(run: Run, task: Task[Any, Any], error: BaseException) -> Handled:
    outcome = failed(run, task, error)
    if run.timed_out:
        error = JobTimeoutError(f"the handler ran longer than its timeout of {run.timeout:g}s")
    return Handled(outcome, error)
