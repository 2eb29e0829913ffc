"""The bell: how an enqueue wakes an idle worker, and only an idle one.

While a worker is idle its listening connection holds a shared advisory lock for each of its queues. An enqueue that
finds the lock taken sends a NOTIFY. The bell is an optimisation: a worker that can't have it polls.

psycopg opens the connection; after that it is driven through libpq's non-blocking calls (PostgreSQL manual,
"Asynchronous Command Processing"), so that one socket can wait for notifications and answer commands at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from psycopg import pq

from pgqueue.connection import is_pooled
from pgqueue.worker.link import LOST, connect

if TYPE_CHECKING:
    from collections.abc import Callable

    import psycopg

log = logging.getLogger(__name__)

_PING_EVERY: Final = 15.0
_ANSWER_PATIENCE: Final = 5.0


class Bell:
    """Wakes the claimer. ``rung`` is set when a job may wait; ``cancelled`` is called with the id of a running job."""

    def __init__(
        self,
        dsn: Callable[[], str],
        schema: str,
        queues: list[str],
        cancelled: Callable[[int], None],
        *,
        silent: bool = False,
    ) -> None:
        self._dsn = dsn
        self._schema = schema
        self._queues = queues
        self._cancelled = cancelled
        self._silent = silent
        self._connection: psycopg.AsyncConnection[Any] | None = None
        self._answers: deque[asyncio.Future[list[bytes | None]]] = deque()
        self._broken = asyncio.Event()
        self._fd = -1
        self.rung = asyncio.Event()
        self.armed = False
        self.up = False

    async def loop(self) -> None:
        """For ever: keep a listening connection; ping it, since a silent partition shows itself in no other way."""
        while not self._silent:
            self._broken.clear()
            connection = await connect(self._dsn, "the bell")
            try:
                if not await asyncio.wait_for(self._listen(connection), 3 * _ANSWER_PATIENCE):
                    break
                while not self._broken.is_set():
                    try:
                        await asyncio.wait_for(self._broken.wait(), _PING_EVERY)
                    except TimeoutError:
                        await self._ask("SELECT 1")
            except (*LOST, TimeoutError) as error:
                log.warning("the bell is down, polling: %s", str(error).strip() or "no answer")
                await asyncio.sleep(1)
            finally:
                self._hang_up()
                await connection.close()
        await asyncio.Event().wait()  # no bell: polling is enough

    async def arm(self) -> bool:
        """Ask to be woken from now on; answers False when that can't be had now. Look once more after it."""
        if not self.up:
            return False
        try:
            taken = await self._ask(self._sql("pg_try_advisory_lock_shared"))
            self.armed = all(value == b"t" for value in taken)
            if not self.armed:  # an enqueue is testing one of the locks this very moment
                await self._ask("SELECT pg_advisory_unlock_all()")
        except (*LOST, TimeoutError):
            self._broken.set()
            self.armed = False
        return self.armed

    async def disarm(self) -> None:
        """Busy: enqueues need not ring."""
        if self.armed:
            self.armed = False
            try:
                await self._ask("SELECT pg_advisory_unlock_all()")
            except (*LOST, TimeoutError):
                self._broken.set()

    def _sql(self, function: str) -> str:
        keys = (f"{function}({self._schema}.bell_key({_literal(queue)}))" for queue in self._queues)
        return "SELECT " + ", ".join(keys)

    async def _listen(self, connection: psycopg.AsyncConnection[Any]) -> bool:
        cursor = await connection.execute("SELECT pg_backend_pid()")
        (pid,) = await cursor.fetchone() or (0,)
        if is_pooled(connection, pid):
            log.warning(
                "a pooler stands before PostgreSQL: no NOTIFY, polling; set PGQUEUE_LISTEN_DSN to a direct address"
            )
            return False
        connection.pgconn.nonblocking = 1
        self._connection = connection
        self._fd = connection.fileno()
        asyncio.get_running_loop().add_reader(self._fd, self._on_readable)
        await self._ask(f'LISTEN "{self._schema}.wake"; LISTEN "{self._schema}.cancel"')
        self.up = True
        self.rung.set()
        return True

    def _hang_up(self) -> None:
        connection, self._connection = self._connection, None
        self.up = self.armed = False
        if connection is not None:
            self._stop_reading()
        while self._answers:
            answer = self._answers.popleft()
            if not answer.done():
                answer.set_exception(ConnectionError("the connection of the bell was lost"))
                answer.exception()
        self.rung.set()

    async def _ask(self, sql: str) -> list[bytes | None]:
        """Send one query; answers the first row. One at a time: libpq takes no second before the first is answered."""
        while self._answers:
            await asyncio.wait([self._answers[-1]])
        if self._connection is None:
            raise ConnectionError("the bell has no connection")
        answer: asyncio.Future[list[bytes | None]] = asyncio.get_running_loop().create_future()
        self._row: list[bytes | None] = []
        self._answers.append(answer)
        pgconn = self._connection.pgconn
        pgconn.send_query(sql.encode())
        pgconn.flush()
        return await asyncio.wait_for(answer, _ANSWER_PATIENCE)

    def _on_readable(self) -> None:
        if self._connection is None:
            return
        pgconn = self._connection.pgconn
        try:
            pgconn.consume_input()
            while self._answers and not pgconn.is_busy():
                result = pgconn.get_result()
                if result is None:
                    answer = self._answers.popleft()
                    if not answer.done():
                        answer.set_result(self._row)
                elif result.status == pq.ExecStatus.TUPLES_OK and result.ntuples:
                    self._row = [result.get_value(0, column) for column in range(result.nfields)]
                elif result.status == pq.ExecStatus.FATAL_ERROR:
                    raise ConnectionError(result.error_message.decode(errors="replace"))
            while (notification := pgconn.notifies()) is not None:
                self._hear(notification.relname, notification.extra)
        except LOST as error:
            log.debug("the bell's connection broke: %s", error)
            self._broken.set()
            self._stop_reading()

    def _stop_reading(self) -> None:
        """Libpq may have closed the socket already, and then asyncio or uvloop may not like its number any more."""
        with contextlib.suppress(*LOST, RuntimeError, ValueError):
            asyncio.get_running_loop().remove_reader(self._fd)

    def _hear(self, channel: bytes, payload: bytes) -> None:
        text = payload.decode(errors="replace")
        if channel.endswith(b".cancel"):
            if text.isdigit():
                self._cancelled(int(text))
        elif text in self._queues:
            self.rung.set()


def _literal(text: str) -> str:
    """A quoted SQL literal (standard_conforming_strings is on in every server since 9.1)."""
    return "'" + text.replace("'", "''") + "'"
