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
import math
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from psycopg import pq

from pgqueue.connection import is_pooled_async
from pgqueue.service import until_set
from pgqueue.worker.link import LOST, connect

if TYPE_CHECKING:
    from collections.abc import Callable

    import psycopg

log = logging.getLogger(__name__)

_PING_EVERY: Final = 15.0
_ANSWER_PATIENCE: Final = 5.0
_ARM_PATIENCE: Final = 0.5  # of a claimer that has nothing to do; a due job may come meanwhile


class Bell:
    """Wakes the claimer. ``rung`` is set when a job may wait; ``cancelled`` is called with the id of a running job.

    ``up``: whether it listens; ``polls``: it is not to, or can't.

    ``armed_at``: since when enqueues ring it, if it is armed. ``gap``: seconds between the last two notifications,
    ``heard``: how many came since it was last set to 0. ``named``: the queues they were for, until somebody empties
    it; ``rung`` without any means that nobody knows. ``edited`` is called when somebody has added or changed a
    schedule, ``back`` with a queue of which a job is back at its old place.
    """

    def __init__(
        self,
        dsn: Callable[[], str],
        schema: str,
        queues: list[str],
        cancelled: Callable[[int], None],
        *,
        edited: Callable[[], object] = lambda: None,
        back: Callable[[str], object] = lambda _queue: None,
        silent: bool = False,
    ) -> None:
        self._dsn = dsn
        self._schema = schema
        self.queues = queues
        self.named: set[str] = set()
        self._cancelled = cancelled
        self._edited = edited
        self._back = back
        self._silent = silent
        self._connection: psycopg.AsyncConnection[Any] | None = None
        self._questions: deque[tuple[str, asyncio.Future[list[bytes | None]]]] = deque()  # the first one is under way
        self._doubt = asyncio.Event()  # whether the connection still answers
        self._fd = -1
        self._row: list[bytes | None] = []
        self.rung = asyncio.Event()
        self.armed = False
        self.armed_at = -math.inf
        self.up = False
        self.polls = silent
        self.gap = math.inf
        self.heard = 0
        self._heard_at = -math.inf

    async def loop(self) -> None:
        """For ever: keep a listening connection; ping it, since a silent partition shows itself in no other way."""
        while not self._silent:
            connection = await connect(self._dsn, "the bell")
            try:
                async with asyncio.timeout(3 * _ANSWER_PATIENCE):
                    if not await self._listen(connection):
                        self.polls = True
                        break
                while True:
                    await until_set(self._doubt, _PING_EVERY)
                    self._doubt.clear()
                    async with asyncio.timeout(_ANSWER_PATIENCE):
                        await self._ask("SELECT 1")
            except (*LOST, TimeoutError) as error:
                log.warning("the bell is down, polling: %s", str(error).strip() or "no answer")
            finally:
                self._hang_up()
                await connection.close()
            await asyncio.sleep(1)
        await asyncio.Event().wait()  # no bell: polling is enough

    def serve(self, queues: list[str]) -> None:
        """From the next arming on, be rung for these queues."""
        if set(queues) != set(self.queues):
            self.disarm()
            self.queues = queues

    async def arm(self) -> bool:
        """Ask to be woken from now on; answers False when that can't be had now. Look once more after it.

        Never waits long: a listener that does not answer must not keep due jobs from being claimed.
        """
        if not self.up or self._questions:
            return False
        try:
            async with asyncio.timeout(_ARM_PATIENCE):
                taken = await self._ask(self._sql("pg_try_advisory_lock_shared"))
        except (*LOST, TimeoutError):
            self._doubt.set()
            return False
        self.armed, self.armed_at = all(value == b"t" for value in taken), time.monotonic()
        if not self.armed:  # an enqueue is testing one of the locks this very moment
            self._tell("SELECT pg_advisory_unlock_all()")
        return self.armed

    def disarm(self) -> None:
        """Busy: enqueues need not ring. Does not wait for the answer."""
        if self.armed:
            self.armed = False
            self._tell("SELECT pg_advisory_unlock_all()")

    def _sql(self, function: str) -> str:
        keys = (f"{function}({self._schema}.bell_key({_literal(queue)}))" for queue in self.queues)
        return "SELECT " + ", ".join(keys)

    async def _listen(self, connection: psycopg.AsyncConnection[Any]) -> bool:
        if await is_pooled_async(connection):
            log.warning(
                "a pooler stands before PostgreSQL: no NOTIFY, polling; set PGQUEUE_LISTEN_DSN to a direct address"
            )
            return False
        connection.pgconn.nonblocking = 1
        self._connection = connection
        self._fd = connection.fileno()
        asyncio.get_running_loop().add_reader(self._fd, self._on_readable)
        channels = ("wake", "back", "cancel", "schedules")
        await self._ask("; ".join(f'LISTEN "{self._schema}.{channel}"' for channel in channels))
        self.up = True
        self.rung.set()
        self._edited()  # what was edited while it was down
        return True

    def _hang_up(self) -> None:
        if self._connection is not None:
            self._lose(ConnectionError("the connection of the bell was lost"))
        self.rung.set()

    def _lose(self, error: Exception) -> None:
        """The connection is of no more use: whoever waits for an answer gets the error."""
        self._connection = None
        self.up = self.armed = False
        with contextlib.suppress(*LOST, RuntimeError, ValueError):  # the socket may be closed, its number unknown
            asyncio.get_running_loop().remove_reader(self._fd)
        while self._questions:
            answer = self._questions.popleft()[1]
            if not answer.done():
                answer.set_exception(error)
                answer.exception()  # so that nobody complains when nobody waits
        self._doubt.set()

    def _tell(self, sql: str) -> None:
        """Ask without waiting; a connection that is lost needs no telling."""
        with contextlib.suppress(*LOST):
            self._ask(sql)

    def _ask(self, sql: str) -> asyncio.Future[list[bytes | None]]:
        """Have one query answered, with its first row; sent when those before it are, as libpq takes one at a time."""
        if self._connection is None:
            raise ConnectionError("the bell has no connection")
        answer: asyncio.Future[list[bytes | None]] = asyncio.get_running_loop().create_future()
        self._questions.append((sql, answer))
        if len(self._questions) == 1:
            self._send()
        return answer

    def _send(self) -> None:
        assert self._connection is not None  # noqa: S101
        self._row = []
        pgconn = self._connection.pgconn
        pgconn.send_query(self._questions[0][0].encode())
        pgconn.flush()

    def _on_readable(self) -> None:
        if self._connection is None:
            return
        pgconn = self._connection.pgconn
        try:
            pgconn.consume_input()
            while self._questions and not pgconn.is_busy():
                result = pgconn.get_result()
                if result is None:
                    self._take_answer()
                elif result.status == pq.ExecStatus.TUPLES_OK and result.ntuples:
                    self._row = [result.get_value(0, column) for column in range(result.nfields)]
                elif result.status == pq.ExecStatus.FATAL_ERROR:
                    raise ConnectionError(result.error_message.decode(errors="replace"))
            while (notification := pgconn.notifies()) is not None:
                self._hear(notification.relname, notification.extra)
        except LOST as error:
            log.debug("the bell's connection broke: %s", error)
            self._lose(error)

    def _take_answer(self) -> None:
        _, answer = self._questions.popleft()
        if not answer.done():  # else whoever asked has given up waiting
            answer.set_result(self._row)
        if self._questions:
            self._send()

    def _hear(self, channel: bytes, payload: bytes) -> None:
        text = payload.decode(errors="replace")
        if channel.endswith(b".cancel"):
            if text.isdigit():
                self._cancelled(int(text))
        elif channel.endswith(b".schedules"):
            self._edited()
        elif text not in self.queues:
            return
        elif channel.endswith(b".back"):
            self._back(text)
            self.named.add(text)
            self.rung.set()
        else:
            now = time.monotonic()
            self.gap, self._heard_at = now - self._heard_at, now
            self.heard += 1
            self.named.add(text)
            self.rung.set()


def _literal(text: str) -> str:
    """A quoted SQL literal (standard_conforming_strings is on in every server since 9.1)."""
    return "'" + text.replace("'", "''") + "'"
