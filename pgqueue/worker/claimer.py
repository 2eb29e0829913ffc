"""Claims jobs ahead of the slots, and decides how long to sleep when there are none.

Three tempers. *Busy*: a claim came back full: claim again as soon as the executor is hungry. *Hot*: jobs come in
one by one, but fast: look every 2 ms, silently, so that enqueues pay for no NOTIFY. *Idle*: arm the bell, look once
more, then sleep until it rings, the next job is due, or the next poll.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

import psycopg

from pgqueue import statements
from pgqueue.statements import Lanes, Row
from pgqueue.worker.link import LOST, RETRYABLE, Link

if TYPE_CHECKING:
    from collections.abc import Callable

    from pgqueue.worker.bell import Bell
    from pgqueue.worker.executor import Executor
    from pgqueue.worker.hand import Hand

log = logging.getLogger(__name__)

_PRIORITIES: Final = tuple(range(10))
_LAG: Final = timedelta(milliseconds=250)  # producers whose transactions last this long are still seen by marked scans
_FULL_SCAN_SHARE: Final = 20  # a scan from the start takes at most 1/20 of the time …
_FULL_SCAN_EVERY: Final = 1.0  # … and while marked claims come back full, one a second is enough
_HOT_GAP: Final = 0.002
_HOT_FOR: Final = 0.02
_DENSE: Final = 0.01  # two finds within this time: hot
_LADDER: Final = (0.02, 0.05, 0.1, 0.2, 0.5)


class Marks:
    """The claim watermark: per lane the last (run_at, id) that was claimed, lagging behind the server's clock.

    Only where to begin to look. Lost with the process; wrong at worst means later.
    """

    def __init__(self, queues: list[str]) -> None:
        self._lanes = [(queue, priority) for priority in _PRIORITIES for queue in queues]
        self._marks: dict[tuple[str, int], tuple[datetime, int]] = {}
        self._clock_offset: float | None = None

    def set_clock(self, server: float) -> None:
        """The server's clock, in seconds since 1970, as it is now; ours may be wrong, so only its pace is used."""
        self._clock_offset = server - time.monotonic()

    def lanes(self, *, full: bool, turn: int) -> Lanes:
        """Where the next claim looks; queues of one priority take turns at being first."""
        lanes = self._lanes
        if (width := len(lanes) // len(_PRIORITIES)) > 1:
            lanes = [lanes[p * width + (i + turn) % width] for p in _PRIORITIES for i in range(width)]
        marks = [None if full else self._marks.get(lane) for lane in lanes]
        return Lanes(
            [queue for queue, _ in lanes],
            [priority for _, priority in lanes],
            [mark[0] if mark else None for mark in marks],
            [mark[1] if mark else 0 for mark in marks],
        )

    def advance(self, rows: list[Row]) -> None:
        """Remember what was claimed; rows are sorted by priority, run_at, id."""
        if self._clock_offset is None:
            return
        limit = datetime.fromtimestamp(time.monotonic() + self._clock_offset, UTC) - _LAG
        last = {(row[3], row[0]): (row[1], row[2]) for row in rows}
        for lane, mark in last.items():
            if mark[0] >= limit:
                mark = (limit, 0)  # noqa: PLW2901
            if lane not in self._marks or self._marks[lane] < mark:
                self._marks[lane] = mark


class Claimer:
    """The claiming loop of one worker."""

    def __init__(
        self,
        link: Link,
        hand: Hand,
        executor: Executor,
        bell: Bell,
        *,
        behind: Callable[[], bool],
        schema: str,
        worker: str,
        queues: list[str],
        tasks: list[str] | None,
        lease: timedelta,
        poll: timedelta,
        stopping: asyncio.Event,
    ) -> None:
        self._link = link
        self._hand = hand
        self._executor = executor
        self._bell = bell
        self._behind = behind
        self._schema = schema
        self._worker = worker
        self._queues = queues
        self._tasks = tasks
        self._lease = lease
        self._poll = poll.total_seconds()
        self._stopping = stopping
        self.marks = Marks(queues)
        self._turn = 0
        self._full_scan_at = 0.0
        self._full_scan_cost = 0.0
        self._found_at = 0.0
        self._hot = False
        self._rung = 0  # of the ladder

    async def loop(self) -> None:
        """Until the worker stops."""
        while not self._stopping.is_set():
            self._executor.hungry.clear()
            want = 0 if self._behind() else self._executor.wants()
            if not want:
                await self._wait_until_hungry()
                continue
            try:
                rows = await self.claim(want)
            except RETRYABLE:
                continue
            except LOST as error:
                log.warning("the claim failed, trying again: %s", str(error).strip().split("\n")[0])
                await self._sleep(1)
                continue
            except psycopg.Error as error:
                log.error("the claim was refused, trying again: %s", str(error).strip().split("\n")[0])  # noqa: TRY400
                await self._sleep(5)
                continue
            if len(rows) < want:
                await self._rest(found=bool(rows))

    async def claim(self, limit: int) -> list[Row]:
        """Claim up to ``limit`` jobs and hand them to the executor."""
        self._turn += 1
        began = time.monotonic()
        full = began >= self._full_scan_at
        token = secrets.randbits(62) + 1
        lanes = self.marks.lanes(full=full, turn=self._turn)
        claim = statements.claim(lanes, self._tasks, limit, token, self._lease, self._worker, schema=self._schema)
        rows = await self._link.arun(claim)
        ended = time.monotonic()
        if full:
            self._full_scan_cost = ended - began
        short = len(rows) < limit
        if full or short:
            least = 0.0 if short else _FULL_SCAN_EVERY
            at = (ended if full else began) + max(least, self._full_scan_cost * _FULL_SCAN_SHARE)
            self._full_scan_at = at if full else min(self._full_scan_at, at)
        if rows:
            self.marks.advance(rows)
            self._executor.put(self._hand.take(rows, token))
        return rows

    async def _rest(self, *, found: bool) -> None:
        """The claim came back short: nothing more is due. Sleep as the temper says."""
        now = time.monotonic()
        if found:
            self._hot = self._hot or now - self._found_at < _DENSE
            self._found_at = now
        elif self._hot and now - self._found_at > _HOT_FOR:
            self._hot = False
        if self._hot:
            if self._bell.armed:
                self._bell.disarm()
            await self._sleep(_HOT_GAP)
        elif self._bell.armed:
            await self._sleep_until_due(found=found)
        else:
            self._bell.rung.clear()
            self._rung = 0 if await self._bell.arm() else min(self._rung + 1, len(_LADDER) - 1)
            if not self._bell.armed:
                await self._sleep_until_due(found=found)

    async def _sleep_until_due(self, *, found: bool) -> None:
        """The next rung of the ladder, the poll interval at its end; less if a job is due before that."""
        if found:
            pause = self._poll if self._bell.armed else _LADDER[0]
        else:
            pause = min(_LADDER[self._rung] if self._rung < len(_LADDER) else self._poll, self._poll)
            self._rung += 1
        pause *= random.uniform(0.8, 1)  # noqa: S311 - so that workers do not look together
        lanes = self.marks.lanes(full=True, turn=0)
        try:
            due = await self._link.arun(
                statements.next_due(lanes.queues, lanes.priorities, self._tasks, schema=self._schema)
            )
        except (psycopg.Error, OSError):
            due = None
        if due is not None:
            pause = min(pause, max(due, 0.0) + 0.001)
        await self._sleep(pause)

    async def _sleep(self, seconds: float) -> None:
        """Until the bell rings, the worker stops, or the time is over."""
        try:
            await asyncio.wait_for(self._bell.rung.wait(), seconds)
        except TimeoutError:
            return
        self._bell.rung.clear()

    async def _wait_until_hungry(self) -> None:
        if self._bell.armed:
            self._bell.disarm()
        await self._executor.hungry.wait()
