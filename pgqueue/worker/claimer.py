"""Claims jobs ahead of the slots, and decides how long to sleep when there are none.

Three tempers. *Busy*: a claim came back full: claim again as soon as the executor is hungry. *Hot*: jobs come in
one by one, but fast: look every 1 or 2 ms, silently, so that enqueues pay for no NOTIFY. *Idle*: arm the bell, look
once more, then sleep until it rings, the next job is due, or the next poll.
"""

from __future__ import annotations

import logging
import math
import random
import time
from typing import TYPE_CHECKING, Final, TypeVar

import psycopg

from pgqueue.metrics.vitals import CLAIMER, patience
from pgqueue.service import until_set
from pgqueue.worker.claims import Claims
from pgqueue.worker.link import LOST, RETRYABLE, Link

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from datetime import timedelta

    from pgqueue import statements
    from pgqueue.metrics.meter import Meter
    from pgqueue.metrics.vitals import Vitals
    from pgqueue.statements import Row, Statement
    from pgqueue.worker.bell import Bell
    from pgqueue.worker.executor import Executor
    from pgqueue.worker.hand import Hand

T = TypeVar("T")
log = logging.getLogger(__name__)

_HOT_GAP: Final = 0.002
_HOTTER_GAP: Final = 0.001  # while most looks find something
_HOT_FOR: Final = 0.02
_DENSE: Final = 0.01  # two finds, or two bells and a find, within this time: hot
_YIELD_PACE: Final = 0.1  # what a look has found counts so much …
_YIELD_LEAST: Final = 0.25  # … in the share of looks that find something, which is to be at least this
_MOST: Final = 0.5  # of the looks
_LOT: Final = 16  # bells after which it is asked who got the jobs …
_LOT_WITHIN: Final = 5.0  # … if they came within this time
_AWAKE: Final = 2.5  # so many stay awake, on average
_MOST_DEAF: Final = 5.0
_DEAF_LOOK: Final = 0.1
_HELP: Final = 8  # a deaf worker that finds so many jobs at once is needed
_FIRST_LOOK: Final = 0.005
_ARMED_POLLS: Final = 5  # who has the bell sleeps so many poll intervals


class Claimer:
    """The claiming loop of one worker."""

    def __init__(
        self,
        link: Link,
        beside: Link,
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
        vitals: Vitals,
        meter: Meter | None,
    ) -> None:
        self._link = link
        self._claims = Claims(
            self, queues, tasks, schema=schema, beside=beside, found=bell.rung.set,
            claimed=None if meter is None else meter.claimed,
        )  # fmt: skip
        self._hand = hand
        self._executor = executor
        self._bell = bell
        self._behind = behind
        self._worker = worker
        self._lease = lease
        self._poll = poll.total_seconds()
        self._stopping = stopping
        self._vitals = vitals
        self._patience = 2 * patience(lease.total_seconds())  # when the event loop is blocked, that is to be said
        self._found_at = 0.0
        self._hot = False
        self._yield = 0.0
        self._got = 0  # jobs since lots were drawn
        self._lots_at = self._deaf_until = -math.inf

    async def loop(self) -> None:
        """Until the worker stops."""
        try:
            await self._claim_on()
        finally:
            await self._claims.stop()

    async def _claim_on(self) -> None:
        while not self._stopping.is_set():
            self._vitals.expect(CLAIMER, self._patience)
            self._executor.hungry.clear()
            want = 0 if self._behind() else self._executor.wants()
            if not want:
                await self._wait_until_hungry()
                continue
            try:
                found = await self.claim(want)
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
            self._got += found
            if found < want and not self._claims.more:
                await self._rest(found)

    def want(self, queue: str) -> None:
        """A job of this queue is back at its old place."""
        self._claims.want(queue)

    @property
    def managed(self) -> list[str]:
        """The queues with keys or limits."""
        return list(self._claims.managed)

    @property
    def turns(self) -> int:
        """How many claims there have been."""
        return self._claims.turn

    def set_clock(self, server: float) -> None:
        """The server's clock, in seconds since 1970, as it is now."""
        self._claims.marks.set_clock(server)

    @property
    def clock_offset(self) -> float | None:
        """The server's clock less our monotonic one; None before it was asked."""
        return self._claims.marks.clock_offset

    async def claim(self, limit: int) -> int:
        """Claim up to ``limit`` jobs and hand them to the executor; answers how many there were."""
        return await self._claims.claim(
            limit, self._take, lease=self._lease, worker=self._worker, soon=lambda: self._executor.soon, held=self._held
        )

    def _take(self, rows: list[Row], token: int, first: bool) -> None:
        self._executor.put(self._hand.take(rows, token), first=first)

    def _held(self) -> set[int]:
        return {run.id for run in self._hand.runs()}

    async def _rest(self, found: int) -> None:
        """The claim came back short: nothing more is due. Sleep as the temper says."""
        now = time.monotonic()
        self._draw_lots(now, found)
        self._take_heat(now, found=found > 0)
        if self._hot:
            if self._bell.armed:
                self._bell.disarm()
            await self._sleep(_HOTTER_GAP if self._yield > _MOST else _HOT_GAP)
        elif now < self._deaf_until:
            await self._sleep_deaf()
        elif self._bell.armed:
            await self._sleep_until_due()
        else:
            self._bell.rung.clear()
            if not await self._bell.arm():
                await self._sleep_until_due()

    def _take_heat(self, now: float, *, found: bool) -> None:
        """Hot: jobs come fast, to this worker or by the bells to all; until too few of its looks find any."""
        if found and (now - self._found_at < _DENSE or self._bell.gap < _DENSE):
            self._yield = self._yield if self._hot else 1.0
            self._hot = True
        if found:
            self._found_at = now
        self._yield += (found - self._yield) * _YIELD_PACE
        if now - self._found_at > _HOT_FOR or self._yield < _YIELD_LEAST:
            self._hot = False

    def _draw_lots(self, now: float, found: int) -> None:
        """Every idle worker hears every bell. When others get most of the jobs, leave the bells to them for a while.

        Whose share is small leaves more probably. Else fifty workers would look fifty times for each job; and while
        those that are awake are hot, enqueues pay for no NOTIFY, which PostgreSQL lets commit only one at a time.
        """
        if now < self._deaf_until:
            if found >= _HELP:
                self._deaf_until = now
        elif self._bell.heard >= _LOT or self.managed:  # their bells also tell of keys and places that are free again
            took = now - self._lots_at
            if not self.managed and took < _LOT_WITHIN and random.random() > _AWAKE * self._got / self._bell.heard:  # noqa: S311
                self._deaf_until = now + min(_MOST_DEAF, max(0.5, 10 * took)) * random.uniform(0.5, 1)  # noqa: S311
            self._bell.heard = self._got = 0
            self._lots_at = now

    async def _sleep_deaf(self) -> None:
        """Ring or not; but a job that nobody takes is looked for."""
        if self._bell.armed:
            self._bell.disarm()
        due = math.inf
        while (left := self._deaf_until - time.monotonic()) > 0:
            pause = _DEAF_LOOK * random.uniform(0.5, 1)  # noqa: S311 - so that workers do not look together
            if await until_set(self._stopping, min(left, pause, due)) or due <= pause:
                return
            ahead = await self._look_ahead()
            if ahead is None or ahead.ready:
                return
            due = math.inf if ahead.seconds is None else max(ahead.seconds, 0.0) + 0.001

    async def _sleep_until_due(self) -> None:
        """Until there is something to claim: the bell rings, a job is due, or nobody knows.

        What is asked meanwhile is not a claim but one statement that writes nothing. A job that is due but was not to
        be had is claimed at that pace, too.
        """
        asked = False
        while not self._stopping.is_set():
            ahead = await self._look_ahead()
            if ahead is None or (ahead.ready and asked):
                return
            pause = self._pause(patient=not (ahead.ready or self._claims.managed))
            due = min(math.inf if ahead.seconds is None else ahead.seconds, self._claims.wanted_in)
            due = max(due, 0.0) + 0.001
            if await self._sleep(min(pause, due)) or due < pause or self._claims.managed or not self._bell.armed:
                return
            asked = True

    def _pause(self, *, patient: bool) -> float:
        """As long as the bell has been armed, or nothing been found without it; up to the poll interval, or some.

        Who enqueued before the bell was armed did not ring it, and may commit at any time: a job whose transaction was
        open for a second starts about as much later. Whoever came after rings.
        """
        armed = self._bell.armed
        quiet = time.monotonic() - (self._bell.armed_at if armed else self._found_at)
        longest = self._poll * (_ARMED_POLLS if armed and patient else 1)
        return min(max(quiet, _FIRST_LOOK), longest) * random.uniform(0.8, 1)  # noqa: S311 - so that workers do not look together

    async def _look_ahead(self) -> statements.Ahead | None:
        """What is to come; None when that can't be had, or it is something that was not looked into."""
        try:
            return await self._claims.ahead()
        except (psycopg.Error, OSError):
            await self._sleep(self._poll)
            return None

    async def _sleep(self, seconds: float) -> bool:
        """Until the bell rings (True), the worker stops, or the time is over."""
        self._vitals.expect(CLAIMER, seconds + self._patience)
        rang = await until_set(self._bell.rung, seconds)
        if rang:
            self._bell.rung.clear()
        return rang

    async def _wait_until_hungry(self) -> None:
        if self._bell.armed:
            self._bell.disarm()
        self._vitals.release(CLAIMER)  # handlers may take as long as they like
        await self._executor.hungry.wait()

    async def arun(self, statement: Statement[T]) -> T:
        """What the claims run on. The link breaks off one that is not answered, but connecting takes what it takes."""
        if self._link.connected:
            self._vitals.expect(CLAIMER, self._patience)
        else:
            self._vitals.release(CLAIMER)
        return await self._link.arun(statement)
