"""FastAPI, and any other application of Starlette: the queue opens and closes with it, and may be worked inside it."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

from pgqueue.revision import check_schema
from pgqueue.worker import Worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from contextlib import AbstractAsyncContextManager

    from fastapi import FastAPI

    from pgqueue.app import App

log = logging.getLogger(__name__)


def pgqueue_lifespan(
    queue: App,
    *,
    worker: bool = False,
    lifespan: Callable[[Any], AbstractAsyncContextManager[Mapping[str, Any] | None]] | None = None,
    **options: Any,
) -> Callable[[FastAPI], AbstractAsyncContextManager[dict[str, Any]]]:
    """A lifespan for ``FastAPI(lifespan=…)``: closes the queue's connections at the end; with ``worker`` runs jobs.

    A worker inside a web process shares its event loop and its restarts: for development and small sites. Under a
    sandbox of :mod:`pgqueue.testing` none is started.

    Args:
        queue: the application's tasks and its database.
        worker: run jobs in this process, too.
        lifespan: another lifespan, begun before the worker starts and ended after it has stopped.
        **options: the worker's: ``queues``, ``slots``, ``shutdown_timeout``; see :class:`pgqueue.Worker`.

    Raises:
        TypeError: options without ``worker=True``.
        SchemaError: at startup, when there is nothing to work on; the web application does not start then.

    Example:
        >>> api = FastAPI(lifespan=pgqueue_lifespan(queue, worker=True, slots=4))  # doctest: +SKIP
    """
    if options and not worker:
        raise TypeError(f"{', '.join(options)}: options of a worker, so say worker=True")

    @asynccontextmanager
    async def run(api: FastAPI) -> AsyncIterator[dict[str, Any]]:
        async with AsyncExitStack() as stack:
            state: dict[str, Any] = {"pgqueue": queue}
            stack.push_async_callback(queue.aclose)
            if lifespan is not None:
                inner: Mapping[str, Any] | None = await stack.enter_async_context(lifespan(api))
                state.update(inner or {})
            if worker and not getattr(queue.database, "borrowed", False):
                await asyncio.to_thread(lambda: check_schema(queue.database.dsn, schema=queue.schema))
                await stack.enter_async_context(_working(Worker(queue, **options)))
            yield state

    return run


@asynccontextmanager
async def _working(worker: Worker) -> AsyncIterator[None]:
    """Jobs run inside the block; at its end the worker stops in order."""
    running = asyncio.create_task(worker.run(), name="pgqueue worker")
    started = asyncio.create_task(worker.started.wait())
    await asyncio.wait([running, started], return_when=asyncio.FIRST_COMPLETED)
    started.cancel()
    if running.done():
        running.result()
    running.add_done_callback(_complain)
    try:
        yield
    finally:
        running.remove_done_callback(_complain)
        worker.stop()
        await running


def _complain(running: asyncio.Task[bool]) -> None:
    """The web application goes on without its worker; whoever reads the log must know."""
    error = None if running.cancelled() else running.exception()
    log.error("the worker inside this application has ended; jobs wait for another one", exc_info=error)
