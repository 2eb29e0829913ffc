"""Claims jobs ahead of the slots, and decides how long to sleep when there are none.

Three tempers. *Busy*: a claim came back full: claim again as soon as the executor is hungry. *Hot*: jobs come in
one by one, but fast: look every 2 ms, silently, so that enqueues pay for no NOTIFY. *Idle*: arm the bell, look once
more, then sleep until it rings, the next job is due, or the next poll.
"""

from __future__ import annotations

import logging
import math
import random
import secrets
import time
from typing import TYPE_CHECKING, Final, TypeVar

import psycopg

from pgqueue import statements
from pgqueue.metrics.vitals import CLAIMER, patience
from pgqueue.service import until_set
from pgqueue.worker.link import LOST, RETRYABLE, Link
from pgqueue.worker.marks import FullScans, Managed, Marks

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from datetime import timedelta

    from pgqueue.metrics.meter import Meter
    from pgqueue.metrics.vitals import Vitals
    from pgqueue.statements import Row, Statement
    from pgqueue.worker.bell import Bell
    from pgqueue.worker.executor import Executor
    from pgqueue.worker.hand import Hand

T = TypeVar("T")
log = logging.getLogger(__name__)

_MANAGED_EVERY: Final = 1.0  # a limit or a first key takes effect within this time
_MANAGED_FOR: Final = 60.0  # a queue with keys or limits is looked into for this long after it was seen to have them
_LEFT_ALONE: Final = 0.5  # seconds for a queue whose lock somebody holds …
_REFUSED: Final = 5.0  # … or whose claim was refused
_HOT_GAP: Final = 0.002
_HOT_FOR: Final = 0.02
_DENSE: Final = 0.01  # two finds, or two bells and a find, within this time: hot
_YIELD_PACE: Final = 0.1  # what a look has found counts so much …
_YIELD_LEAST: Final = 0.25  # … in the share of looks that find something, which is to be at least this
_LOT: Final = 16  # bells after which it is asked who got the jobs …
_LOT_WITHIN: Final = 5.0  # … if they came within this time
_AWAKE: Final = 2.5  # so many stay awake, on average
_MOST_DEAF: Final = 5.0
_DEAF_LOOK: Final = 0.1
_HELP: Final = 8  # a deaf worker that finds so many jobs at once is needed
_FIRST_LOOK: Final = 0.02
_ARMED_POLLS: Final = 5  # who has the bell sleeps so many poll intervals


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
        vitals: Vitals,
        meter: Meter | None,
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
        self._vitals = vitals
        self._meter = meter
        self._patience = 2 * patience(lease.total_seconds())  # when the event loop is blocked, that is to be said
        self.marks = Marks(queues)
        self._turn = 0
        self._full_scans = FullScans()
        self._found_at = 0.0
        self._hot = False
        self._yield = 0.0
        self._got = 0  # jobs since lots were drawn
        self._lots_at = self._deaf_until = -math.inf
        self._managed: dict[str, Managed] = {}  # queues with keys or limits
        self._more = False  # one of them gave as much as it was asked for
        self._managed_at = -math.inf

    async def loop(self) -> None:
        """Until the worker stops."""
        while not self._stopping.is_set():
            self._vitals.expect(CLAIMER, self._patience)
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
            self._got += len(rows)
            if len(rows) < want and not self._more:
                await self._rest(len(rows))

    @property
    def managed(self) -> list[str]:
        """The queues with keys or limits."""
        return list(self._managed)

    async def claim(self, limit: int) -> list[Row]:
        """Claim up to ``limit`` jobs and hand them to the executor.

        Queues with keys or limits and those without take turns at being first, so that neither starves the other.
        """
        self._turn += 1
        self._more = False
        rows = await self._claim_managed(limit) if self._turn % 2 else []
        if len(rows) < limit:
            rows += await self._claim_plain(limit - len(rows))
        if time.monotonic() - self._managed_at > _MANAGED_EVERY:
            self._know_managed(await self._ask(statements.managed_queues(self._queues, schema=self._schema)))
        if not self._turn % 2 and len(rows) < limit:
            rows += await self._claim_managed(limit - len(rows))
        return rows

    def _know_managed(self, queues: list[str]) -> None:
        """A queue in which jobs with keys come and go is not forgotten at once."""
        self._managed_at = now = time.monotonic()
        for queue in queues:
            self._managed.setdefault(queue, Managed()).seen_at = now
        for queue in [queue for queue, known in self._managed.items() if now - known.seen_at > _MANAGED_FOR]:
            del self._managed[queue]

    async def _claim_managed(self, limit: int) -> list[Row]:
        """From each queue with keys or limits, in turns; not far ahead: what only waits here holds a place or a key."""
        rows: list[Row] = []
        queues = list(self._managed)
        for nth in range(len(queues)):
            queue = queues[(nth + self._turn // 2) % len(queues)]
            want = min(limit - len(rows), self._executor.soon)
            if want <= 0:
                break
            known = self._managed[queue]
            if known.later <= time.monotonic():
                rows += await self._claim_from(queue, known, want)
        return rows

    async def _claim_from(self, queue: str, known: Managed, limit: int) -> list[Row]:
        """A queue whose claim fails is left alone for a while; the others have nothing to do with it."""
        began = time.monotonic()
        full = known.full_scans.due
        marks = self.marks.of(queue, full=full)
        hints = known.look({run.id for run in self._hand.runs()} if known.keys else set())
        token = secrets.randbits(62) + 1
        try:
            rows = await self._ask(
                statements.claim_managed(
                    queue, marks, self._tasks, limit, token, self._lease, self._worker, hints, schema=self._schema
                )
            )
            if statements.lacks_payloads(rows):
                ids = [row[2] for row in rows]
                payloads = await self._ask(statements.payloads(ids, token, schema=self._schema))
                rows = statements.filled(rows, payloads)
        except psycopg.errors.LockNotAvailable:
            log.debug("somebody holds the lock of queue %s; trying again", queue)
            known.later = time.monotonic() + _LEFT_ALONE * random.uniform(0.5, 1)  # noqa: S311
            return []
        except (*RETRYABLE, *LOST):
            raise
        except psycopg.Error as error:
            reason = str(error).strip().split("\n")[0]
            log.error("the claim from queue %s was refused, trying again: %s", queue, reason)  # noqa: TRY400
            known.later = time.monotonic() + _REFUSED
            return []
        self._more = self._more or len(rows) == limit
        known.looked(began, full=full, short=len(rows) < limit)
        if self._meter is not None:
            self._meter.claimed(time.monotonic() - began, len(rows))
        if rows:
            known.took(rows)
            self.marks.advance([row for row in rows if row[statements.COLUMNS] is None])
            self._executor.put(self._hand.take([row[: statements.COLUMNS] for row in rows], token), first=True)
        return rows

    async def _claim_plain(self, limit: int) -> list[Row]:
        began = time.monotonic()
        full = self._full_scans.due
        token = secrets.randbits(62) + 1
        lanes = self.marks.lanes(full=full, turn=self._turn)
        claim = statements.claim(lanes, self._tasks, limit, token, self._lease, self._worker, schema=self._schema)
        rows = await self._ask(claim)
        if self._meter is not None:
            self._meter.claimed(time.monotonic() - began, len(rows))
        self._full_scans.made(began, full=full, short=len(rows) < limit)
        if rows:
            self.marks.advance(rows)
            self._executor.put(self._hand.take(rows, token))
        return rows

    async def _rest(self, found: int) -> None:
        """The claim came back short: nothing more is due. Sleep as the temper says."""
        now = time.monotonic()
        self._draw_lots(now, found)
        self._take_heat(now, found=found > 0)
        if self._hot:
            if self._bell.armed:
                self._bell.disarm()
            await self._sleep(_HOT_GAP)
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
        elif self._bell.heard >= _LOT or self._managed:  # their bells also tell of keys and places that are free again
            took = now - self._lots_at
            if not self._managed and took < _LOT_WITHIN and random.random() > _AWAKE * self._got / self._bell.heard:  # noqa: S311
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
            pause = self._pause(patient=not (ahead.ready or self._managed))
            due = math.inf if ahead.seconds is None else max(ahead.seconds, 0.0) + 0.001
            if await self._sleep(min(pause, due)) or due < pause or self._managed or not self._bell.armed:
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
        began = time.monotonic()
        full = self._full_scans.due
        lanes = self.marks.lanes(full=full, turn=0)
        try:
            ahead = await self._ask(statements.next_due(lanes, self._tasks, schema=self._schema))
        except (psycopg.Error, OSError):
            await self._sleep(self._poll)
            return None
        if full and not ahead.ready:  # else the claim has to look from the start, too
            self._full_scans.made(began, full=True, short=True)
        known = set(self._managed)
        self._know_managed(ahead.managed)
        return ahead if known.issuperset(ahead.managed) else None

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

    async def _ask(self, statement: Statement[T]) -> T:
        """Run a statement. The link breaks off one that is not answered, but connecting takes what it takes."""
        if self._link.connected:
            self._vitals.expect(CLAIMER, self._patience)
        else:
            self._vitals.release(CLAIMER)
        return await self._link.arun(statement)
