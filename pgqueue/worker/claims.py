"""Claims from some queues: which statement, in which order, from where on. What is done with the jobs is another's."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import secrets
import time
from typing import TYPE_CHECKING, Final

import psycopg

from pgqueue import statements
from pgqueue.errors import PgqueueError
from pgqueue.worker.link import LOST, RETRYABLE
from pgqueue.worker.marks import MOST_RECENT_COST, FullScans, Managed, Marks

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta

    from pgqueue.connection import Runner
    from pgqueue.statements import Row

    # What takes the rows of one lease: rows, its token, whether they go before what was taken earlier.
    Take = Callable[[list[Row], int, bool], object]

log = logging.getLogger(__name__)

_MANAGED_EVERY: Final = 1.0  # a limit or a first key takes effect within this time
_MANAGED_FOR: Final = 60.0  # a queue with keys or limits is looked into for this long after it was seen to have them
_FAR_EVERY: Final = 0.01  # seconds: so much later may a job start whose transaction was open for longer than others
_LEFT_ALONE: Final = 0.5  # seconds for a queue whose lock somebody holds …
_REFUSED: Final = 5.0  # … or whose claim was refused


class Claims:
    """Claims from these queues, for whoever asks; remembers where to look.

    Args:
        link: what runs the statements.
        queues: where to look.
        tasks: the names that may be claimed; None: all.
        schema: the queue's.
        beside: what runs a long look while claims go on.
        found: is called when such a look has found something to claim.
        claimed: is told of each claim how long it took, in seconds, and how many jobs it got.
    """

    def __init__(
        self,
        link: Runner,
        queues: list[str],
        tasks: list[str] | None,
        *,
        schema: str,
        beside: Runner,
        found: Callable[[], object],
        claimed: Callable[[float, int], object] | None = None,
    ) -> None:
        self._link = link
        self._beside = beside
        self._found = found
        self._queues = queues
        self._tasks = tasks
        self._schema = schema
        self._claimed = claimed
        self.marks = Marks(queues)
        self.turn = 0
        self.managed: dict[str, Managed] = {}  # queues with keys or limits
        self.more = False  # one of them gave as much as it was asked for
        self._managed_at = -math.inf
        self._full_scans = FullScans()
        self._recent_scans = FullScans(most=MOST_RECENT_COST)
        self._far_at = -math.inf
        self._looking: asyncio.Task[None] | None = None

    async def claim(
        self,
        limit: int,
        take: Take,
        *,
        lease: timedelta,
        worker: str,
        soon: Callable[[], int] | None = None,
        held: Callable[[], set[int]] = set,
    ) -> int:
        """Claim up to ``limit`` jobs, each batch under a lease of its own; answers how many.

        Queues with keys or limits and those without take turns at being first, so that neither starves the other.

        Args:
            limit: at most so many.
            take: gets the rows of each lease as soon as they are here.
            lease: how long they are held.
            worker: by whom.
            soon: how many of a queue with keys or limits will be begun at once: what only waits holds a place or a
                key. Default: all.
            held: the ids of the jobs that are still held; the keys of others may be free again.
        """
        self.turn += 1
        self.more = False
        found = 0

        async def managed() -> int:
            count = 0
            queues = list(self.managed)
            for nth in range(len(queues)):
                queue = queues[(nth + self.turn // 2) % len(queues)]
                want = min(limit - found - count, limit if soon is None else soon())
                if want <= 0:
                    break
                known = self.managed[queue]
                if known.later <= time.monotonic():
                    count += await self._claim_from(queue, known, want, take, lease, worker, held)
            return count

        if self.turn % 2:
            found += await managed()
        if found < limit:
            found += await self._claim_plain(limit - found, take, lease, worker)
        if time.monotonic() - self._managed_at > _MANAGED_EVERY:
            self._know_managed(await self._link.arun(statements.managed_queues(self._queues, schema=self._schema)))
        if not self.turn % 2 and found < limit:
            found += await managed()
        return found

    async def ahead(self) -> statements.Ahead | None:
        """What is to come; None when it is something that was not looked into."""
        began = time.monotonic()
        full = self._from_the_start()
        lanes = self.marks.lanes(full=full, turn=0)
        ahead = await self._link.arun(statements.next_due(lanes, self._tasks, schema=self._schema))
        if full and not ahead.ready:  # else the claim has to look from the start, too
            self._full_scans.made(began, full=True, short=True)
        known = set(self.managed)
        self._know_managed(ahead.managed)
        return ahead if known.issuperset(ahead.managed) else None

    def want(self, queue: str) -> None:
        """A job of this queue is back at its old place, which may lie before the marks."""
        self._full_scans.want()
        if queue in self.managed:
            self.managed[queue].full_scans.want()

    @property
    def wanted_in(self) -> float:
        """Seconds until what is back may be looked for; infinite when nothing is."""
        return self._full_scans.wanted_in

    def _from_the_start(self) -> bool:
        """Whether the next look is to be one from the start of the lanes, in which the marks play no part.

        When that takes long, as when a held snapshot keeps the dead, it is made beside the others, and nobody waits;
        and between two such looks, there are some into the last seconds.
        """
        if not (self._full_scans.dear and self.marks.some):
            return self._full_scans.due
        if self._looking is None or self._looking.done():
            if self._full_scans.due:
                self._full_scans.begins()
                self._looking = asyncio.create_task(self._look_behind(self._full_scans, None))
            elif self._recent_scans.due:
                self._looking = asyncio.create_task(self._look_behind(self._recent_scans, self.marks.recently))
        return False

    async def _look_behind(self, scans: FullScans, since: float | None) -> None:
        began = time.monotonic()
        lanes = self.marks.lanes(full=False, turn=0)
        try:
            behind = await self._beside.arun(statements.look_behind(lanes, self._tasks, since, schema=self._schema))
        except (psycopg.Error, PgqueueError, OSError) as error:
            log.debug("the look behind the marks failed, it will be made again: %s", error)
            behind = []
        scans.made(began, full=True, short=since is None)
        if behind:
            self.marks.take_back(behind)
            self._found()

    async def stop(self) -> None:
        """End a look that is under way."""
        if self._looking is not None:
            self._looking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._looking

    def _know_managed(self, queues: list[str]) -> None:
        """A queue in which jobs with keys come and go is not forgotten at once."""
        self._managed_at = now = time.monotonic()
        for queue in queues:
            self.managed.setdefault(queue, Managed()).seen_at = now
        for queue in [queue for queue, known in self.managed.items() if now - known.seen_at > _MANAGED_FOR]:
            del self.managed[queue]

    async def _claim_from(
        self, queue: str, known: Managed, limit: int, take: Take, lease: timedelta, worker: str,
        held: Callable[[], set[int]],
    ) -> int:  # fmt: skip
        """A queue whose claim fails is left alone for a while; the others have nothing to do with it."""
        began = time.monotonic()
        full = known.full_scans.due
        marks = self.marks.of(queue, full=full)
        hints = known.look(held() if known.keys else set())
        token = secrets.randbits(62) + 1
        try:
            rows = await self._link.arun(
                statements.claim_managed(
                    queue, marks, self._tasks, limit, token, lease, worker, hints, schema=self._schema
                )
            )
            if statements.lacks_payloads(rows):
                ids = [row[2] for row in rows]
                payloads = await self._link.arun(statements.payloads(ids, token, schema=self._schema))
                rows = statements.filled(rows, payloads)
        except psycopg.errors.LockNotAvailable:
            log.debug("somebody holds the lock of queue %s; trying again", queue)
            known.later = time.monotonic() + _LEFT_ALONE * random.uniform(0.5, 1)  # noqa: S311
            return 0
        except (*RETRYABLE, *LOST):
            raise
        except psycopg.Error as error:
            reason = str(error).strip().split("\n")[0]
            log.error("the claim from queue %s was refused, trying again: %s", queue, reason)  # noqa: TRY400
            known.later = time.monotonic() + _REFUSED
            return 0
        self.more = self.more or len(rows) == limit
        known.looked(began, full=full, short=len(rows) < limit)
        if self._claimed is not None:
            self._claimed(time.monotonic() - began, len(rows))
        if rows:
            known.took(rows)
            self.marks.advance([row for row in rows if row[statements.COLUMNS] is None])
            take([row[: statements.COLUMNS] for row in rows], token, True)
        return len(rows)

    async def _claim_plain(self, limit: int, take: Take, lease: timedelta, worker: str) -> int:
        began = time.monotonic()
        full = self._from_the_start()
        token = secrets.randbits(62) + 1
        near = self._full_scans.dear and began < self._far_at
        if not near:
            self._far_at = began + _FAR_EVERY
        lanes = self.marks.lanes(full=full, turn=self.turn, near=near)
        claim = statements.claim(lanes, self._tasks, limit, token, lease, worker, schema=self._schema)
        rows = await self._link.arun(claim)
        if self._claimed is not None:
            self._claimed(time.monotonic() - began, len(rows))
        self._full_scans.made(began, full=full, short=len(rows) < limit, claimed=len(rows))
        if rows:
            self.marks.advance(rows)
            take(rows, token, False)
        return len(rows)
