"""Where clients wait for jobs. All that ask for the same are served by one loop, in the order in which they came.

One claim serves as many of them as there are jobs; a job goes to one client under a lease of its own. One listening
connection wakes all loops. A client that has gone gets nothing, and what was claimed for it is given back.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from pgqueue.errors import DatabaseError, DatabaseUnreachableError, PgqueueError
from pgqueue.http.leases import Leased
from pgqueue.service import until_set
from pgqueue.worker.bell import Bell
from pgqueue.worker.claims import Claims

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta

    from pgqueue.connection import Runner
    from pgqueue.http.leases import Leases
    from pgqueue.http.tally import Tally
    from pgqueue.statements import Row

log = logging.getLogger(__name__)

_MOST_AT_ONCE: Final = 1_000  # jobs that one claim takes
_FIRST_LOOK: Final = 0.02
_ARMED_POLLS: Final = 5  # as a worker that has the bell
_IN_VAIN: Final = 0.05  # seconds until a job that is due but was not to be had is looked for again
_MOST_COUNTERS: Final = 1_000


class DrainingError(PgqueueError):
    """The server is about to stop; ask again, there may be another one."""


class Waiter:
    """A client that waits for up to ``want`` jobs.

    ``jobs`` is set to what it gets: an empty list when it is not ``patient`` any more and a claim has found nothing.
    """

    __slots__ = ("jobs", "patient", "want", "worker")

    def __init__(self, want: int, worker: str) -> None:
        self.want = want
        self.worker = worker
        self.patient = True
        self.jobs: asyncio.Future[list[Leased]] = asyncio.get_running_loop().create_future()


class Desk:
    """Everything about leasing to clients of one server.

    Args:
        link: what claims run on.
        leases: the verbs of a lease.
        listen_dsn: where to LISTEN.
        schema: the queue's.
        poll: how often to look for jobs that nobody rings for, where NOTIFY does not reach us.
        tally: what counts the claims.
    """

    def __init__(
        self, link: Runner, leases: Leases, listen_dsn: Callable[[], str], schema: str, poll: timedelta, tally: Tally
    ) -> None:
        self.tally = tally
        self._link = link
        self._leases = leases
        self._schema = schema
        self._poll = poll.total_seconds()
        self._counters: dict[tuple[tuple[str, ...], timedelta], Counter] = {}
        self._arming = asyncio.Lock()
        self._giving_back: set[asyncio.Task[None]] = set()
        self.draining = False
        self.bell = Bell(listen_dsn, schema, [], lambda _job_id: None, back=self._want)

    @property
    def waiting(self) -> int:
        """How many clients wait."""
        return sum(len(counter.waiters) for counter in self._counters.values())

    async def lease(
        self, queues: tuple[str, ...], want: int, wait: float, lease: timedelta, worker: str,
        gone: asyncio.Future[None],
    ) -> list[Leased]:  # fmt: skip
        """Up to ``want`` jobs, as soon as one is there; an empty list after ``wait`` seconds, or when ``gone`` is done.

        Raises:
            DrainingError: the server stops.
            DatabaseUnreachableError: nothing could be claimed; whether something was is unknown.
        """
        if self.draining:
            raise DrainingError("this server is about to stop")
        waiter = Waiter(want, worker)
        counter = self._counter(queues, lease)
        counter.join(waiter)
        try:
            either: set[asyncio.Future[Any]] = {waiter.jobs, gone}
            if wait:
                await asyncio.wait(either, timeout=wait, return_when=asyncio.FIRST_COMPLETED)
            if not waiter.jobs.done() and not gone.done():
                counter.look_once_for(waiter)
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if waiter.jobs.done() and not gone.done():
                return waiter.jobs.result()
        except asyncio.CancelledError:
            self._abandon(counter, waiter)
            raise
        self._abandon(counter, waiter)
        return []

    def give_back(self, jobs: list[Leased]) -> None:
        """Release what could not be delivered, in the background."""
        if not jobs:
            return
        task = asyncio.get_running_loop().create_task(self._give_back(jobs))
        self._giving_back.add(task)
        task.add_done_callback(self._giving_back.discard)

    def drain(self) -> None:
        """Who waits is told to ask another server; nobody else may wait."""
        self.draining = True
        for counter in self._counters.values():
            counter.fail(DrainingError("this server is about to stop"))

    async def loop(self) -> None:
        """Pass on what the bell says, for ever."""
        listening = asyncio.create_task(self.bell.loop())
        try:
            while True:
                await self.bell.rung.wait()
                self.bell.rung.clear()
                names, self.bell.named = self.bell.named, set()
                waiting = [one for one in self._counters.values() if one.waiters]
                called = [one for one in waiting if not names.isdisjoint(one.queues)]
                if names and not called:  # nobody waits for these: be rung for what somebody waits for
                    self.bell.disarm()
                for one in called or waiting:
                    one.kick.set()
        finally:
            listening.cancel()

    def _want(self, queue: str) -> None:
        for counter in self._counters.values():
            counter.want(queue)

    async def close(self) -> None:
        """After the last client: end the loops, wait for what is given back."""
        self.drain()
        await asyncio.gather(*(counter.stop() for counter in self._counters.values()))
        await asyncio.gather(*self._giving_back)

    async def arm(self) -> bool:
        """Be rung for all queues that somebody waits for; answers whether that is new."""
        async with self._arming:
            wanted = {queue for one in self._counters.values() if one.waiters for queue in one.queues}
            if self.bell.armed and wanted.issubset(self.bell.queues):
                return False
            self.bell.serve(sorted(wanted))
            return await self.bell.arm()

    def _abandon(self, counter: Counter, waiter: Waiter) -> None:
        counter.leave(waiter)
        if not waiter.jobs.done():
            waiter.jobs.cancel()  # what is on its way to it comes back
        elif not waiter.jobs.cancelled() and waiter.jobs.exception() is None:
            self.give_back(waiter.jobs.result())

    async def _give_back(self, jobs: list[Leased]) -> None:
        try:
            await self._leases.give_back(jobs)
        except DatabaseError as error:
            log.warning("%d jobs that nobody took are left to their leases: %s", len(jobs), error)

    def _counter(self, queues: tuple[str, ...], lease: timedelta) -> Counter:
        key = (queues, lease)
        found = self._counters.pop(key, None) or Counter(
            self, self._link, self._leases, self._schema, queues, lease, self._poll
        )
        self._counters[key] = found  # the last one is the latest used
        if len(self._counters) > _MOST_COUNTERS:
            for old in [key for key, one in self._counters.items() if not one.busy][: _MOST_COUNTERS // 10]:
                del self._counters[old]
        return found


class Counter:
    """The clients that wait for jobs of the same queues and the same length of lease; and the loop that serves them."""

    def __init__(
        self, desk: Desk, link: Runner, leases: Leases, schema: str, queues: tuple[str, ...], lease: timedelta,
        poll: float,
    ) -> None:  # fmt: skip
        self.queues = queues
        self.waiters: deque[Waiter] = deque()
        self.kick = asyncio.Event()
        self._desk = desk
        self._claims = Claims(link, list(queues), None, schema=schema, beside=link, found=self.kick.set)
        self._leases = leases
        self._lease = lease
        self._poll = poll
        self._task: asyncio.Task[None] | None = None

    @property
    def busy(self) -> bool:
        """Whether its loop runs."""
        return self._task is not None and not self._task.done()

    def join(self, waiter: Waiter) -> None:
        """Wait here; the loop runs while somebody does."""
        self.waiters.append(waiter)
        self.kick.set()
        if not self.busy:
            self._task = asyncio.get_running_loop().create_task(self._serve())

    def want(self, queue: str) -> None:
        """A job of this queue is back at its old place."""
        self._claims.want(queue)

    def look_once_for(self, waiter: Waiter) -> None:
        """Its time is over: it gets what the next claim finds, or nothing. So no claim is ever cut short."""
        waiter.patient = False
        self.kick.set()

    def leave(self, waiter: Waiter) -> None:
        """Wait no longer."""
        if waiter in self.waiters:
            self.waiters.remove(waiter)
            self.kick.set()

    def fail(self, error: Exception) -> None:
        """Everybody gets this error."""
        while self.waiters:
            jobs = self.waiters.popleft().jobs
            if not jobs.done():
                jobs.set_exception(error)
        self.kick.set()

    async def stop(self) -> None:
        """Wait for the loop's end; nobody waits here any more."""
        self.kick.set()
        if self._task is not None:
            await asyncio.wait([self._task])
        await self._claims.stop()

    async def _serve(self) -> None:
        """While somebody waits: claim, hand out, sleep until there may be more."""
        while self.waiters:
            self.kick.clear()
            self._claims.marks.set_clock(self._leases.clock())
            here = list(self.waiters)
            want = min(sum(waiter.want for waiter in here), _MOST_AT_ONCE)
            try:
                found = await self._claim(here, want)
                if found < want and not self._claims.more:
                    self._answer_the_impatient(here)
                    if self.waiters and not self.kick.is_set() and not await self._desk.arm():
                        await self._sleep()
            except DatabaseError as error:
                self.fail(error)
            except Exception:
                log.exception("a claim for waiting clients failed")
                self.fail(DatabaseUnreachableError("the claim failed"))

    async def _claim(self, here: list[Waiter], want: int) -> int:
        """Claim for these; hand out under one lease what goes to one client, else under a lease for each."""
        took: list[tuple[int, list[Row]]] = []
        began = time.monotonic()
        try:
            found = await self._claims.claim(
                want, lambda rows, token, _first: took.append((token, rows)), lease=self._lease, worker=here[0].worker
            )
            self._desk.tally.claimed(time.monotonic() - began, found)
            return found
        finally:
            until = self._leases.until(began, self._lease)
            for token, rows in took:
                await self._hand_out(token, [Leased.from_row(row, token, until) for row in rows])

    async def _hand_out(self, token: int, jobs: list[Leased]) -> None:
        parts: list[tuple[Waiter, list[Leased]]] = []
        rest = jobs
        while rest and self.waiters:
            waiter = self.waiters.popleft()
            if not waiter.jobs.done():
                parts.append((waiter, rest[: waiter.want]))
                rest = rest[waiter.want :]
        if len(parts) == 1 and not rest:
            self._deliver(parts[0][0], jobs)
            return
        named = [(part, waiter.worker) for waiter, part in parts]
        try:
            split = await self._leases.split(token, [*named, (rest, "http")] if rest else named)
        except DatabaseError:
            for waiter, _ in parts:  # whether they hold them is unknown: the leases will tell
                self._deliver(waiter, [])
            raise
        for (waiter, _), part in zip(parts, split, strict=False):
            self._deliver(waiter, part)
        if rest:  # who it was claimed for has gone
            self._desk.give_back(split[-1])

    def _deliver(self, waiter: Waiter, jobs: list[Leased]) -> None:
        if waiter.jobs.done():
            self._desk.give_back(jobs)
        else:
            waiter.jobs.set_result(jobs)

    def _answer_the_impatient(self, here: list[Waiter]) -> None:
        """Nothing is left for those who were here before the claim began."""
        for waiter in here:
            if not waiter.patient and waiter in self.waiters:
                self.waiters.remove(waiter)
                if not waiter.jobs.done():
                    waiter.jobs.set_result([])

    async def _sleep(self) -> None:
        """Until the bell rings, somebody comes or goes, or the next job is due; see the worker's claimer."""
        ahead = await self._claims.ahead()
        if ahead is None:
            return
        bell = self._desk.bell
        patient = bell.armed and not self._claims.managed
        quiet = time.monotonic() - bell.armed_at if bell.armed else math.inf
        pause = min(max(quiet, _FIRST_LOOK), self._poll * (_ARMED_POLLS if patient else 1))
        if ahead.ready:
            pause = min(pause, _IN_VAIN)
        due = min(math.inf if ahead.seconds is None else ahead.seconds, self._claims.wanted_in)
        due = max(due, 0.0) + 0.001
        await until_set(self.kick, min(pause * random.uniform(0.8, 1), due))  # noqa: S311 - not all servers together
