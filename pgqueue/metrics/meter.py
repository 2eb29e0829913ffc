"""What a worker counts: per claim and per flush of outcomes, not per job. Light: needs no library.

Whoever listens is an :class:`Observer`: numbers for Prometheus, OpenTelemetry's instruments, both, or nobody; then the
worker calls nothing.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Protocol

from pgqueue.metrics import catalogue, otel
from pgqueue.metrics.catalogue import OTHER

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from pgqueue.app import App
    from pgqueue.metrics.numbers import Numbers
    from pgqueue.outcome import Outcome
    from pgqueue.run import Run


class Ended:
    """The runs of one queue and task whose ends were written together.

    Attributes:
        outcomes: how each ended.
        ran, waited: the seconds of those that had begun.
    """

    __slots__ = ("outcomes", "queue", "ran", "task", "waited")

    def __init__(self, queue: str, task: str) -> None:
        self.queue = queue
        self.task = task
        self.outcomes: list[str] = []
        self.ran: list[float] = []
        self.waited: list[float] = []

    def counts(self) -> Counter[str]:
        """How many ended in each way."""
        counts = Counter(self.outcomes)
        if "pass" in counts:  # the same as retry, at the end of its line
            counts["retry"] += counts.pop("pass")
        return counts


class Observer(Protocol):
    """Who is told what a worker does, on its event loop."""

    def claimed(self, seconds: float, found: int) -> None:
        """A claim has come back."""

    def flushed(self, seconds: float, ended: Sequence[Ended]) -> None:
        """A batch of outcomes was written."""

    def swept(self, jobs: int) -> None:
        """Jobs were taken from expired leases."""

    def lost(self, runs: int) -> None:
        """Runs have lost their lease."""

    def enqueued(self, jobs: int) -> None:
        """This process has enqueued so many more."""


class Numbering:
    """An observer that counts into numbers."""

    def __init__(self, numbers: Numbers) -> None:
        self._numbers = numbers
        self._claim = numbers.place(catalogue.CLAIM)
        self._claim_size = numbers.place(catalogue.CLAIM_SIZE)
        self._flush = numbers.place(catalogue.FLUSH)
        for metric in (catalogue.SWEPT, catalogue.LEASE_LOST, catalogue.ENQUEUED):
            numbers.place(metric)  # 0 is a value, too

    def claimed(self, seconds: float, found: int) -> None:
        """See :class:`Observer`."""
        self._numbers.observe_at(self._claim, catalogue.CLAIM.buckets, seconds)
        if found:
            self._numbers.observe_at(self._claim_size, catalogue.CLAIM_SIZE.buckets, found)

    def flushed(self, seconds: float, ended: Sequence[Ended]) -> None:
        """See :class:`Observer`."""
        numbers = self._numbers
        for group in ended:
            queue, task = group.queue, group.task
            for outcome, count in group.counts().items():
                numbers.add(catalogue.FINISHED, count, queue, task, outcome)
            if group.ran:
                numbers.observe_many(numbers.place(catalogue.RUN, queue, task), catalogue.RUN.buckets, group.ran)
                numbers.observe_many(numbers.place(catalogue.WAIT, queue), catalogue.WAIT.buckets, group.waited)
        numbers.observe_at(self._flush, catalogue.FLUSH.buckets, seconds)

    def swept(self, jobs: int) -> None:
        """See :class:`Observer`."""
        self._numbers.add(catalogue.SWEPT, jobs)

    def lost(self, runs: int) -> None:
        """See :class:`Observer`."""
        self._numbers.add(catalogue.LEASE_LOST, runs)

    def enqueued(self, jobs: int) -> None:
        """See :class:`Observer`."""
        self._numbers.add(catalogue.ENQUEUED, jobs)


class Meter:
    """The worker's side: takes what happens, and tells every observer.

    Args:
        observers: who is told.
        tasks: the names that are registered here; every other is ``other``, so that labels stay few.
        clock: the server's clock less ours (``time.monotonic``), None while it is not known.
        enqueued: how many jobs this process has enqueued so far.
    """

    def __init__(
        self,
        observers: Sequence[Observer],
        tasks: Collection[str],
        clock: Callable[[], float | None],
        enqueued: Callable[[], int],
    ) -> None:
        self._observers = observers
        self._tasks = frozenset(tasks)
        self._clock = clock
        self._enqueued = enqueued
        self._told = enqueued()

    def claimed(self, seconds: float, found: int) -> None:
        """A claim has come back with so many jobs."""
        for observer in self._observers:
            observer.claimed(seconds, found)

    def landed(self, batch: Sequence[tuple[Run, Outcome]], lost: Collection[tuple[int, int]], seconds: float) -> None:
        """A batch of outcomes was written, but for those that had lost their lease."""
        self.flushed(self._ended(batch, lost), seconds)
        if lost:
            self.lost(sum((run.id, run.token) in lost and not run.lost for run, _ in batch))

    def flushed(self, ended: Sequence[Ended], seconds: float) -> None:
        """A batch of outcomes was written; grouped."""
        for observer in self._observers:
            observer.flushed(seconds, ended)

    def swept(self, jobs: int) -> None:
        """Jobs were taken from expired leases."""
        for observer in self._observers:
            observer.swept(jobs)

    def lost(self, runs: int) -> None:
        """Runs have lost their lease; each is told once."""
        for observer in self._observers:
            observer.lost(runs)

    def beat(self) -> None:
        """Once a second: what is counted elsewhere."""
        total = self._enqueued()
        if total != self._told:
            for observer in self._observers:
                observer.enqueued(total - self._told)
            self._told = total

    def _ended(self, batch: Sequence[tuple[Run, Outcome]], lost: Collection[tuple[int, int]]) -> list[Ended]:
        """By queue and task. Here a job costs half a microsecond; each line counts."""
        clock = self._clock()
        if clock is None:
            clock = time.time() - time.monotonic()
        groups: dict[tuple[str, str], Ended] = {}
        for run, outcome in batch:
            if run.lost or (lost and (run.id, run.token) in lost):
                continue
            key = run.queue, run.task
            group = groups.get(key)
            if group is None:
                group = groups[key] = Ended(run.queue, run.task if run.task in self._tasks else OTHER)
            group.outcomes.append(outcome.verdict)
            started = run.started
            if started:
                group.ran.append(run.finished - started)
                group.waited.append(started + clock - run.run_at)
        return list(groups.values())


def make_meter(app: App, numbers: Numbers | None, clock: Callable[[], float | None]) -> Meter | None:
    """The meter of a worker that begins now; None when nobody listens."""
    observers: list[Observer] = [] if numbers is None else [Numbering(numbers)]
    if otel.active():
        observers.append(otel.Instruments())
    if not observers:
        return None
    return Meter(observers, app.tasks, clock, lambda: enqueued(app))


def enqueued(app: App) -> int:
    """How many jobs this process has enqueued with this application."""
    return app.client.enqueued.total + app.aclient.enqueued.total
