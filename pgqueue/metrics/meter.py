"""What a worker counts: per claim and per flush of outcomes, not per job. Light: needs no library.

Whoever listens is an :class:`Observer`: numbers for Prometheus, OpenTelemetry's instruments, both, or nobody; then the
worker calls nothing.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, Protocol

from pgqueue.metrics import catalogue, otel
from pgqueue.metrics.catalogue import OTHER

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from pgqueue.app import App
    from pgqueue.metrics.numbers import Numbers
    from pgqueue.outcome import Outcome
    from pgqueue.run import Run

_OUTCOMES: Final = {"pass": "retry"}  # the one is the other, at the end of its line


# One run whose end was written: queue, task, outcome, seconds that it ran (None: it never began) and that it had
# waited. A bare tuple, because there is one per job.
Ended = tuple[str, str, str, float | None, float]


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


class Counter:
    """An observer that counts into numbers."""

    def __init__(self, numbers: Numbers) -> None:
        self._numbers = numbers
        self._claim = numbers.place(catalogue.CLAIM)
        self._claim_size = numbers.place(catalogue.CLAIM_SIZE)
        self._flush = numbers.place(catalogue.FLUSH)
        for metric in (catalogue.SWEPT, catalogue.LEASE_LOST, catalogue.ENQUEUED):
            numbers.place(metric)  # 0 is a value, too
        self._places: dict[tuple[str, str], tuple[int, int]] = {}

    def claimed(self, seconds: float, found: int) -> None:
        """See :class:`Observer`."""
        self._numbers.observe_at(self._claim, catalogue.CLAIM.buckets, seconds)
        if found:
            self._numbers.observe_at(self._claim_size, catalogue.CLAIM_SIZE.buckets, found)

    def flushed(self, seconds: float, ended: Sequence[Ended]) -> None:
        """See :class:`Observer`."""
        numbers = self._numbers
        observe = numbers.observe_at
        counts: dict[tuple[str, str, str], int] = {}
        for queue, task, outcome, ran, waited in ended:
            key = (queue, task, outcome)
            counts[key] = counts.get(key, 0) + 1
            if ran is not None:
                run, wait = self._places.get((queue, task)) or self._place(queue, task)
                observe(run, catalogue.RUN.buckets, ran)
                observe(wait, catalogue.WAIT.buckets, waited)
        for key, count in counts.items():
            numbers.add(catalogue.FINISHED, count, *key)
        observe(self._flush, catalogue.FLUSH.buckets, seconds)

    def swept(self, jobs: int) -> None:
        """See :class:`Observer`."""
        self._numbers.add(catalogue.SWEPT, jobs)

    def lost(self, runs: int) -> None:
        """See :class:`Observer`."""
        self._numbers.add(catalogue.LEASE_LOST, runs)

    def enqueued(self, jobs: int) -> None:
        """See :class:`Observer`."""
        self._numbers.add(catalogue.ENQUEUED, jobs)

    def _place(self, queue: str, task: str) -> tuple[int, int]:
        places = self._numbers.place(catalogue.RUN, queue, task), self._numbers.place(catalogue.WAIT, queue)
        self._places[queue, task] = places
        return places


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
        ended = list(self._ended(batch, lost))
        for observer in self._observers:
            observer.flushed(seconds, ended)
        if lost:
            self.lost(sum((run.id, run.token) in lost and not run.lost for run, _ in batch))

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

    def _ended(self, batch: Sequence[tuple[Run, Outcome]], lost: Collection[tuple[int, int]]) -> Iterator[Ended]:
        clock = self._clock()
        if clock is None:
            clock = time.time() - time.monotonic()
        tasks = self._tasks
        for run, outcome in batch:
            if run.lost or (lost and (run.id, run.token) in lost):
                continue
            task = run.task if run.task in tasks else OTHER
            verdict = _OUTCOMES.get(outcome.verdict, outcome.verdict)
            if run.started:
                ran, waited = run.finished - run.started, run.started + clock - run.run_at
                yield run.queue, task, verdict, max(ran, 0.0), max(waited, 0.0)
            else:
                yield run.queue, task, verdict, None, 0.0


def make_meter(app: App, numbers: Numbers | None, clock: Callable[[], float | None]) -> Meter | None:
    """The meter of a worker that begins now; None when nobody listens."""
    observers: list[Observer] = [] if numbers is None else [Counter(numbers)]
    if otel.active():
        observers.append(otel.Instruments())
    if not observers:
        return None
    return Meter(observers, app.tasks, clock, lambda: enqueued(app))


def enqueued(app: App) -> int:
    """How many jobs this process has enqueued with this application."""
    return app.client.enqueued.total + app.aclient.enqueued.total
