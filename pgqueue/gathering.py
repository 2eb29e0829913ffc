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
        except PgqueueError as error:
            await self._send_apart(some, error)
        except BaseException as error:
            for _, future in some:
                if not future.done():
                    future.set_exception(error if isinstance(error, Exception) else asyncio.CancelledError())
            raise
        else:
            for (_, future), answer in zip(some, answers, strict=True):
                if not future.done():
                    future.set_result(answer)
        finally:
            self._next()

    async def _send_apart(self, some: list[tuple[JobSpec, asyncio.Future[Submitted]]], error: PgqueueError) -> None:
        """One of them was refused, so none was written; whose fault it is shows when each goes alone."""
        for spec, future in some:
            if future.done():
                continue
            try:
                if isinstance(error, DatabaseUnreachableError) or len(some) == 1:
                    raise type(error)(*error.args) from error
                answer = (await self._send([spec]))[0]
            except PgqueueError as own:
                future.set_exception(own)
            else:
                future.set_result(answer)
