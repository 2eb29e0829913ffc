"""Concurrent enqueues of one event loop share transactions, as concurrent commits share a flush in PostgreSQL.

An enqueue that comes alone goes at once. Those that come while two are under way are gathered, and go together with
the next one that may go: nobody waits for company, and a busy process pays one round trip and one commit for many.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final

from pgqueue.errors import DatabaseUnreachableError, PgqueueError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from pgqueue.job import JobSpec
    from pgqueue.statements import Submitted

_UNDER_WAY: Final = 2  # while one commits, the next is on its way
_MOST: Final = 500
_MOST_CHARACTERS: Final = 1024 * 1024


class Gathering:
    """The enqueues of one event loop that name no connection of their own.

    Args:
        send: submits some jobs in a transaction of its own, all or none, and answers them in their order.
    """

    def __init__(self, send: Callable[[Sequence[JobSpec]], Awaitable[list[Submitted]]]) -> None:
        self._send = send
        self._under_way = 0
        self._waiting: deque[tuple[JobSpec, asyncio.Future[Submitted]]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()

    async def submit(self, spec: JobSpec) -> Submitted:
        """Submit a job, perhaps with others; returns when it is committed.

        Raises:
            PgqueueError: what sending it alone would raise. The others are not affected.
        """
        if self._under_way < _UNDER_WAY:
            self._under_way += 1
            try:
                return (await self._send([spec]))[0]
            finally:
                self._next()
        future: asyncio.Future[Submitted] = asyncio.get_running_loop().create_future()
        self._waiting.append((spec, future))
        return await future

    def _next(self) -> None:
        """One is back: in its place go those that have gathered."""
        some: list[tuple[JobSpec, asyncio.Future[Submitted]]] = []
        size = 0
        while self._waiting and len(some) < _MOST and size < _MOST_CHARACTERS:
            spec, future = self._waiting.popleft()
            if not future.done():  # else its caller has been cancelled
                some.append((spec, future))
                size += len(spec.payload)
        if not some:
            self._under_way -= 1
            return
        task = asyncio.get_running_loop().create_task(self._send_together(some))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _send_together(self, some: list[tuple[JobSpec, asyncio.Future[Submitted]]]) -> None:
        try:
            answers = await self._send([spec for spec, _ in some])
        except DatabaseUnreachableError as error:
            for _, future in some:
                _fail(future, DatabaseUnreachableError(*error.args))
        except PgqueueError as error:
            await self._send_apart(some, error)
        except BaseException as error:
            for _, future in some:
                _fail(future, error)
            raise
        else:
            for (_, future), answer in zip(some, answers, strict=True):
                if not future.done():
                    future.set_result(answer)
        finally:
            self._next()

    async def _send_apart(self, some: list[tuple[JobSpec, asyncio.Future[Submitted]]], error: PgqueueError) -> None:
        """One of them was refused, so none was written; whose fault it is shows when each goes alone."""
        if len(some) == 1:
            _fail(some[0][1], error)
            return
        for spec, future in some:
            if not future.done():
                await self._send_alone(spec, future)

    async def _send_alone(self, spec: JobSpec, future: asyncio.Future[Submitted]) -> None:
        try:
            answer = (await self._send([spec]))[0]
        except Exception as error:  # noqa: BLE001 - it is the caller's
            _fail(future, error)
        else:
            if not future.done():
                future.set_result(answer)


def _fail(future: asyncio.Future[Submitted], error: BaseException) -> None:
    """Its caller gets the error, if he still waits."""
    if future.done():
        return
    if isinstance(error, Exception):
        future.set_exception(error)
    else:
        future.cancel()
