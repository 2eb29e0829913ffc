"""The connections that leases go through: a few, set up as a worker's are, shared by all clients."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, TypeVar

from pgqueue.connection import translated
from pgqueue.errors import DatabaseUnreachableError
from pgqueue.worker.link import RETRYABLE, Link

if TYPE_CHECKING:
    from collections.abc import Callable

    from pgqueue.statements import Statement

T = TypeVar("T")

PATIENCE: Final = 5.0  # a request does not wait longer for a connection: its client may ask again
_MOST_TRIES: Final = 8


class Links:
    """Runs statements on whichever of its connections is free.

    Args:
        dsn: where to connect now.
        count: how many connections.
    """

    def __init__(self, dsn: Callable[[], str], count: int = 4) -> None:
        self._all = [Link(dsn, "leasing", lock_timeout="1s") for _ in range(count)]
        self._free: asyncio.LifoQueue[Link] = asyncio.LifoQueue()
        for link in self._all:
            self._free.put_nowait(link)

    async def arun(self, statement: Statement[T]) -> T:
        """Run one in a transaction of its own; again when it lost a deadlock.

        Raises:
            DatabaseUnreachableError: no connection within 5 s, or it was lost; whether it was done is unknown.
        """
        try:
            async with asyncio.timeout(PATIENCE):
                link = await self._free.get()
        except TimeoutError:
            raise DatabaseUnreachableError("all connections have been in use for 5 s") from None
        try:
            try:
                async with asyncio.timeout(PATIENCE):
                    await link.open()
            except TimeoutError:
                raise DatabaseUnreachableError("PostgreSQL can't be reached") from None
            with translated():
                return await self._insist(link, statement)
        except DatabaseUnreachableError:
            await self._forget_idle()
            raise
        finally:
            self._free.put_nowait(link)

    async def _forget_idle(self) -> None:
        """When one connection was lost, the others were, too, as a rule: one request learns it, not one for each."""
        idle = [self._free.get_nowait() for _ in range(self._free.qsize())]
        for link in idle:
            await link.close()
            self._free.put_nowait(link)

    async def _insist(self, link: Link, statement: Statement[T]) -> T:
        for attempt in range(_MOST_TRIES):
            try:
                return await link.arun(statement)
            except RETRYABLE:
                if attempt == _MOST_TRIES - 1:
                    raise
        raise AssertionError  # pragma: no cover - the loop returns or raises

    async def close(self) -> None:
        """Close them all."""
        for link in self._all:
            await link.close()
