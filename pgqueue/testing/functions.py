"""The kit's verbs as functions: in the sandbox that an application is in, or without one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pgqueue.errors import PgqueueError
from pgqueue.task import Task
from pgqueue.testing.sandbox import MOST_RUNS, AsyncSandbox, Sandbox, active

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pgqueue.app import App
    from pgqueue.job import JobRecord
    from pgqueue.testing.engine import Ran


def run_pending(
    app: App,
    connection: Any = None,
    queues: Sequence[str] | None = None,
    *,
    raise_errors: bool = False,
    limit: int = MOST_RUNS,
) -> list[Ran]:
    """Run what is due now, here, until nothing is; see :meth:`Sandbox.run_pending`.

    Args:
        app: the application.
        connection: a sync connection or session of the test to do it on, inside its transaction. None: the connection
            of the sandbox that the application is in, else its own ones.
        queues: only these.
        raise_errors: raise what a handler raises.
        limit: give up after so many runs.

    Example:
        >>> [ran] = run_pending(app, session)  # doctest: +SKIP
        >>> assert ran.state == "completed"
    """
    sandbox = _sync(app, connection)
    if app in active:
        return sandbox.run_pending(queues, raise_errors=raise_errors, limit=limit)
    with sandbox:
        return sandbox.run_pending(queues, raise_errors=raise_errors, limit=limit)


async def run_pending_async(
    app: App,
    connection: Any = None,
    queues: Sequence[str] | None = None,
    *,
    raise_errors: bool = False,
    limit: int = MOST_RUNS,
) -> list[Ran]:
    """The same in an async test; ``connection`` is an async one."""
    sandbox = _any(app, connection)
    if isinstance(sandbox, Sandbox):
        return await sandbox.run_pending_async(queues, raise_errors=raise_errors, limit=limit)
    if app in active:
        return await sandbox.run_pending(queues, raise_errors=raise_errors, limit=limit)
    async with sandbox:
        return await sandbox.run_pending(queues, raise_errors=raise_errors, limit=limit)


def enqueued(
    task: Task[Any, Any],
    *,
    connection: Any = None,
    queue: str | None = None,
    payload: dict[str, Any] | None = None,
    **arguments: Any,
) -> list[JobRecord]:
    """The jobs of a task that wait, with at least these arguments; see :meth:`Sandbox.enqueued`."""
    return _sync(_app_of(task), connection).enqueued(task, queue=queue, payload=payload, **arguments)


def assert_enqueued(
    task: Task[Any, Any],
    *,
    connection: Any = None,
    count: int | None = None,
    queue: str | None = None,
    payload: dict[str, Any] | None = None,
    **arguments: Any,
) -> list[JobRecord]:
    """Assert that such a job waits, or exactly ``count``; answers them. See :meth:`Sandbox.enqueued`.

    Example:
        >>> assert_enqueued(send_email, to="ann@example.com", count=1)  # doctest: +SKIP
    """
    sandbox = _sync(_app_of(task), connection)
    return sandbox.assert_enqueued(task, count=count, queue=queue, payload=payload, **arguments)


def assert_not_enqueued(
    task: Task[Any, Any],
    *,
    connection: Any = None,
    queue: str | None = None,
    payload: dict[str, Any] | None = None,
    **arguments: Any,
) -> None:
    """Assert that no such job waits. See :meth:`Sandbox.enqueued`."""
    sandbox = _sync(_app_of(task), connection)
    sandbox.assert_not_enqueued(task, queue=queue, payload=payload, **arguments)


async def enqueued_async(
    task: Task[Any, Any],
    *,
    connection: Any = None,
    queue: str | None = None,
    payload: dict[str, Any] | None = None,
    **arguments: Any,
) -> list[JobRecord]:
    """See :func:`enqueued`; for async connections."""
    sandbox = _any(_app_of(task), connection)
    if isinstance(sandbox, Sandbox):
        return sandbox.enqueued(task, queue=queue, payload=payload, **arguments)
    return await sandbox.enqueued(task, queue=queue, payload=payload, **arguments)


async def assert_enqueued_async(
    task: Task[Any, Any],
    *,
    connection: Any = None,
    count: int | None = None,
    queue: str | None = None,
    payload: dict[str, Any] | None = None,
    **arguments: Any,
) -> list[JobRecord]:
    """See :func:`assert_enqueued`; for async connections."""
    sandbox = _any(_app_of(task), connection)
    if isinstance(sandbox, Sandbox):
        return sandbox.assert_enqueued(task, count=count, queue=queue, payload=payload, **arguments)
    return await sandbox.assert_enqueued(task, count=count, queue=queue, payload=payload, **arguments)


async def assert_not_enqueued_async(
    task: Task[Any, Any],
    *,
    connection: Any = None,
    queue: str | None = None,
    payload: dict[str, Any] | None = None,
    **arguments: Any,
) -> None:
    """See :func:`assert_not_enqueued`; for async connections."""
    await assert_enqueued_async(task, connection=connection, count=0, queue=queue, payload=payload, **arguments)


def _sync(app: App, connection: Any) -> Sandbox:
    sandbox = _any(app, connection, make=Sandbox)
    if isinstance(sandbox, AsyncSandbox):
        raise PgqueueError("the application is in an AsyncSandbox: await the …_async function, or the sandbox's own")
    return sandbox


def _any(app: App, connection: Any, make: type[Sandbox | AsyncSandbox] = AsyncSandbox) -> Sandbox | AsyncSandbox:
    sandbox = active.get(app)
    if sandbox is None:
        return make(app, connection)
    if connection is not None and connection is not sandbox.connection:
        raise PgqueueError("the application is in a sandbox on another connection; leave out connection=")
    return sandbox


def _app_of(task: Any) -> App:
    if not isinstance(task, Task):
        raise TypeError(f"give a task, not {task!r}; by name: the sandbox's own methods")
    app: App = task.app
    return app
