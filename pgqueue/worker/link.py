"""A worker's own connection: reconnects for ever, with plans pinned and statements prepared."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import socket
from typing import TYPE_CHECKING, Any, Final, TypeVar

import psycopg

from pgqueue.connection import is_pooled_async
from pgqueue.errors import EmbeddedServerError
from pgqueue.wire import AsyncWire

if TYPE_CHECKING:
    from collections.abc import Callable

    from pgqueue.statements import Statement

T = TypeVar("T")
log = logging.getLogger(__name__)

# The engine's statements have one good plan each. These keep the planner from another one while its statistics
# are those of an empty table, and from the caller's idea of a default isolation level.
PINNED: Final = """
    SET enable_seqscan = off; SET enable_bitmapscan = off; SET enable_mergejoin = off;
    SET enable_nestloop = off; -- an array of unknown length is taken for ten rows; a LATERAL has no other way anyhow
    SET plan_cache_mode = force_generic_plan; SET jit = off;
    SET default_transaction_isolation = 'read committed'; SET statement_timeout = 0
"""
_LONGEST_PAUSE: Final = 30.0
LOST: Final = (psycopg.OperationalError, psycopg.InterfaceError, OSError)
RETRYABLE: Final = (psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected)


async def connect(dsn: Callable[[], str], purpose: str) -> psycopg.AsyncConnection[Any]:
    """Connect, however long it takes: after a failure again in 1, 2, 4, 8, 16, 30, 30 … seconds."""
    pause = 1.0
    while True:
        try:
            return await psycopg.AsyncConnection.connect(await asyncio.to_thread(dsn), autocommit=True)
        except (*LOST, EmbeddedServerError) as error:
            reason = str(error).strip().split("\n")[0]
            log.warning("no connection for %s: %s; trying again in %gs", purpose, reason, pause)
        await asyncio.sleep(pause * random.uniform(0.8, 1))  # noqa: S311 - not all workers at once
        pause = min(pause * 2, _LONGEST_PAUSE)


def hang_up(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> None:
    """Break a connection whose peer has fallen silent; whoever waits for an answer gets an error at once."""
    with contextlib.suppress(*LOST), socket.socket(fileno=os.dup(connection.fileno())) as line:
        line.shutdown(socket.SHUT_RDWR)


class Link:
    """One connection for one purpose. A statement that meets a broken connection raises one of ``LOST``.

    So does one that is not answered for ``patience`` seconds: a peer behind a dead network can look alive for ever.
    """

    def __init__(
        self, dsn: Callable[[], str], purpose: str, patience: float = 30.0, *, lock_timeout: str = "0"
    ) -> None:
        self._patience = patience
        self._lock_timeout = lock_timeout
        self._dsn = dsn
        self._purpose = purpose
        self._connection: psycopg.AsyncConnection[Any] | None = None
        self._wire: AsyncWire | None = None
        self._lock = asyncio.Lock()
        self.down = False  # the connection was lost, and there is no other yet

    @property
    def connected(self) -> bool:
        """Whether a statement goes out at once; else it waits for a connection, for as long as it takes."""
        return self._connection is not None

    async def open(self) -> None:
        """Connect if there is no connection; returns only with one."""
        while self._connection is None:
            connection = await connect(self._dsn, self._purpose)
            alarm = asyncio.get_running_loop().call_later(self._patience, hang_up, connection)
            try:
                await self._set_up(connection)
            except LOST as error:
                log.warning("the connection for %s broke at once: %s", self._purpose, error)
                await connection.close()
                await asyncio.sleep(1)
            else:
                self.down = False
                self._connection = connection
                self._wire = AsyncWire(connection)
            finally:
                alarm.cancel()

    async def arun(self, statement: Statement[T]) -> T:
        """Run one statement in its own transaction, connecting first if needed."""
        async with self._lock:
            return await self._run(statement)

    async def _run(self, statement: Statement[T]) -> T:
        if self._wire is None:
            await self.open()
        wire, connection = self._wire, self._connection
        assert wire is not None and connection is not None  # noqa: S101, PT018
        alarm = asyncio.get_running_loop().call_later(self._patience, hang_up, connection)
        try:
            return await wire.run(statement)
        except asyncio.CancelledError:
            await self.close()
            raise
        except LOST:
            if self._connection is None or self._connection.broken or self._connection.closed:
                self.down = True
                await self.close()
            raise
        finally:
            alarm.cancel()

    async def close(self) -> None:
        """Drop the connection; the next statement opens another."""
        connection, self._connection, self._wire = self._connection, None, None
        if connection is not None:
            await connection.close()

    async def _set_up(self, connection: psycopg.AsyncConnection[Any]) -> None:
        if await is_pooled_async(connection):
            connection.prepare_threshold = None  # a session setting or prepared statement would belong to somebody else
        else:
            await connection.execute(PINNED)
            await connection.execute(f"SET lock_timeout = '{self._lock_timeout}'")
            connection.prepare_threshold = 0
