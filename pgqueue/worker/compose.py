"""What lies around a handler (middleware, resources, unpacking a batch), put together once, when a worker starts.

A task that has nothing of it stays what it is, and its runs pay nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import sys
import traceback
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import TYPE_CHECKING, Any

from pgqueue.batch import BatchTask, Jobs
from pgqueue.errors import BatchResultError, InvalidPayloadError, SettingsError
from pgqueue.handle import Job
from pgqueue.outcome import REMOTE_TRACEBACK, Outcome, completed
from pgqueue.run import BatchRun, Run
from pgqueue.task import Task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pgqueue.middleware import Around


class Composed(Task[Any, Any]):
    """A task as a worker runs it: its function takes the run and does everything."""

    def __init__(self, task: Task[Any, Any], function: Callable[[Any], Any]) -> None:
        vars(self).update(vars(task))
        self.function = functools.update_wrapper(function, task.function)
        # a child process that is to inject resources or to unpack a batch needs the task, not only its function
        self._importable = task.importable if is_plain(task) else is_found(task)

    def bind(self, run: Run) -> dict[str, Any]:
        """The run itself; its payload is looked at inside the middleware."""
        return {"run": run}

    @property
    def importable(self) -> bool:
        """Whether a child process can find what it needs."""
        return self._importable


def compose(task: Task[Any, Any], arounds: Sequence[Around], values: Mapping[Any, Any]) -> Task[Any, Any]:
    """The task as a worker on the running loop runs it; the task itself, if there is nothing around its handler.

    Raises:
        SettingsError: it is isolated and needs what only the task knows, and a child process could not find that.
    """
    if task.kind == "process":
        if not is_plain(task) and not is_found(task):
            raise SettingsError(
                f"task {task.name!r} is isolated and takes a resource: a child process must find the task itself; "
                "decorate the function at the top of its module"
            )
        return task  # its middleware is around the child: see ChildPool
    if is_plain(task) and not arounds:
        return task
    wrap = _async_call if task.kind == "async" else _sync_call
    return Composed(task, wrap(task, arounds, _injection(task, values)))


def is_plain(task: Task[Any, Any]) -> bool:
    """Whether its function can be called with its payload and its job alone."""
    return not task.arguments.resources and not isinstance(task, BatchTask)


def is_found(task: Task[Any, Any]) -> bool:
    """Whether the name of the function, where a child process looks, is that of this task."""
    found: Any = sys.modules.get(task.__module__)
    for part in task.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is task


def around_thread(arounds: Sequence[Around], loop: asyncio.AbstractEventLoop) -> Callable[[Any], Any]:
    """All of these as one context manager, for use in a thread."""

    @contextlib.contextmanager
    def opened(handle: Job | Jobs) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for around in arounds:
                manager = around.open(handle)
                stack.enter_context(_on_loop(manager, loop) if around.is_async else manager)
            yield

    return opened


def call_alone(task: Task[Any, Any], values: Mapping[Any, Any], run: Run) -> Any:
    """Call a task's handler with one job, without a worker around it; a coroutine is the caller's to await.

    ``values``: its resources by type. A batch handler gets a batch of one.
    """
    function: Callable[..., Any] = task.function
    value = function(**task.bind(run), **_injection(task, values))
    if not isinstance(task, BatchTask):
        return value
    batch = BatchRun(run)
    return _only(batch, value) if task.kind == "async" else _first_result(_per_job(batch, value))


# -- in a slot -------------------------------------------------------------------------------------------------------


def _async_call(task: Task[Any, Any], arounds: Sequence[Around], injection: dict[str, Any]) -> Callable[[Any], Any]:
    function = task.function

    async def call(handle: Job | Jobs, run: Run) -> Any:  # noqa: ARG001 - what is around it takes the handle
        return await function(**task.bind(run), **injection)

    async def call_batch(handle: Jobs, run: BatchRun, items: dict[str, Any]) -> Any:  # noqa: ARG001
        return _per_job(run, await function(**items, **injection))

    if isinstance(task, BatchTask):
        inner = _wrapped_async(call_batch, arounds)

        async def whole_batch(run: BatchRun) -> None:
            items = _unpack(task, run)
            if run.accepted:
                with _blamed(run):
                    run.results = _sealed(run, await inner(Jobs(run.app, run), run, items))

        return whole_batch

    around = _wrapped_async(call, arounds)

    async def whole(run: Run) -> Any:
        return await around(Job(run.id, run.app, run), run)

    return whole


def _sync_call(task: Task[Any, Any], arounds: Sequence[Around], injection: dict[str, Any]) -> Callable[[Any], Any]:
    function = task.function

    def call(handle: Job | Jobs, run: Run) -> Any:  # noqa: ARG001 - what is around it takes the handle
        return function(**task.bind(run), **injection)

    def call_batch(handle: Jobs, run: BatchRun, items: dict[str, Any]) -> Any:  # noqa: ARG001
        return _per_job(run, function(**items, **injection))

    if isinstance(task, BatchTask):
        inner = _wrapped_sync(call_batch, arounds)

        def whole_batch(run: BatchRun) -> None:
            items = _unpack(task, run)
            if run.accepted:
                with _blamed(run):
                    run.results = _sealed(run, inner(Jobs(run.app, run), run, items))

        return whole_batch

    around = _wrapped_sync(call, arounds)

    def whole(run: Run) -> Any:
        return around(Job(run.id, run.app, run), run)

    return whole


def _wrapped_async(inner: Callable[..., Any], arounds: Sequence[Around]) -> Callable[..., Any]:
    for around in reversed(arounds):
        inner = (_in_async if around.is_async else _in_sync)(around, inner)
    return inner


def _wrapped_sync(inner: Callable[..., Any], arounds: Sequence[Around]) -> Callable[..., Any]:
    loop = asyncio.get_running_loop()
    for around in reversed(arounds):
        inner = _in_thread(around, inner, loop)
    return inner


def _in_thread(around: Around, inner: Callable[..., Any], loop: asyncio.AbstractEventLoop) -> Callable[..., Any]:
    def call(handle: Any, *args: Any) -> Any:
        with _on_loop(around.open(handle), loop) if around.is_async else around.open(handle):
            return inner(handle, *args)

    return call


def _in_async(around: Around, inner: Callable[..., Any]) -> Callable[..., Any]:
    async def call(handle: Any, *args: Any) -> Any:
        async with around.open(handle):
            return await inner(handle, *args)

    return call


def _in_sync(around: Around, inner: Callable[..., Any]) -> Callable[..., Any]:
    async def call(handle: Any, *args: Any) -> Any:
        with around.open(handle):
            return await inner(handle, *args)

    return call


@contextlib.contextmanager
def _on_loop(manager: Any, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """An async middleware around a handler in a thread: one task of the loop enters it, waits, and leaves it."""
    entered: Future[None] = Future()
    left: Future[BaseException | None] = Future()

    async def hold() -> Any:
        await manager.__aenter__()
        entered.set_result(None)
        error = await asyncio.wrap_future(left)
        return await manager.__aexit__(type(error) if error else None, error, error.__traceback__ if error else None)

    held = asyncio.run_coroutine_threadsafe(hold(), loop)
    wait([entered, held], return_when=FIRST_COMPLETED)
    if not entered.done():
        held.result()
    try:
        yield
    except BaseException as error:
        left.set_result(error)
        if not held.result():
            raise
    else:
        left.set_result(None)
        held.result()


def _injection(task: Task[Any, Any], values: Mapping[Any, Any]) -> dict[str, Any]:
    return {name: values[key] for name, key in task.arguments.resources.items()}


# -- batches ---------------------------------------------------------------------------------------------------------


def _unpack(task: BatchTask[Any, Any], batch: BatchRun) -> dict[str, Any]:
    """The arguments of the call; a job whose payload does not fit is set aside with its error."""
    items: list[Any] = []
    accepted: list[Run] = []
    rejected: list[tuple[Run, Exception]] = []
    for run in batch.members:
        try:
            items.append(task.arguments.load(run.payload))
        except InvalidPayloadError as error:
            rejected.append((run, error))
        else:
            accepted.append(run)
    batch.rejected = rejected  # before the other: a timeout may look at them in between
    batch.accepted = accepted
    return task.bind_batch(batch, items)


def _per_job(batch: BatchRun, value: Any) -> list[Any]:
    """What the handler answered, for each job."""
    count = len(batch.accepted)
    if value is None:
        return [None] * count
    if not isinstance(value, list | tuple):
        raise BatchResultError(
            f"a batch handler must return None, or a list with a result or an exception for each job; "
            f"not {type(value).__name__}"
        )
    if len(value) != count:
        raise BatchResultError(f"the handler returned {len(value)} results for {count} jobs")
    return list(value)


def _sealed(batch: BatchRun, results: list[Any] | None) -> list[Outcome | BaseException]:
    """The results as JSON, which is made where the handler ran. None: a middleware swallowed what it raised."""
    return [
        result if isinstance(result, BaseException) else completed(result)
        for result in results or [None] * len(batch.accepted)
    ]


@contextlib.contextmanager
def _blamed(batch: BatchRun) -> Iterator[None]:
    """What is raised here fails every job of the batch. Its traceback is written out once, not once for each."""
    try:
        yield
    except BaseException as error:
        with contextlib.suppress(Exception):
            setattr(error, REMOTE_TRACEBACK, "".join(traceback.format_exception(error)))
        batch.error = error
        raise


async def _only(batch: BatchRun, coroutine: Any) -> Any:
    return _first_result(_per_job(batch, await coroutine))


def _first_result(results: list[Any]) -> Any:
    if isinstance(results[0], BaseException):
        raise results[0]
    return results[0]
