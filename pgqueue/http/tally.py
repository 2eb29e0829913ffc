"""What one server does for its clients, for ``/metrics``: counted per claim and per flush of ends, as workers do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pgqueue.metrics.catalogue import OTHER
from pgqueue.metrics.meter import Ended, make_meter
from pgqueue.metrics.numbers import Numbers, Series

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pgqueue.app import App
    from pgqueue.statements import Held

_MOST_PAIRS: Final = 500  # of queue and task: clients may name what they like, and each becomes a series


class Tally:
    """Numbers of one application, from its making on, whoever runs its lifespan."""

    def __init__(self, app: App) -> None:
        self._numbers = Numbers()
        meter = make_meter(app, self._numbers, lambda: None)
        assert meter is not None  # noqa: S101 - there are numbers
        self._meter = meter
        self._pairs: set[tuple[str, str]] = set()

    def claimed(self, seconds: float, found: int) -> None:
        """A claim has come back with so many jobs."""
        self._meter.claimed(seconds, found)

    def swept(self, jobs: int) -> None:
        """Jobs were taken from expired leases."""
        if jobs:
            self._meter.swept(jobs)

    def lost(self, runs: int) -> None:
        """Clients have said how runs ended whose leases they had lost."""
        if runs:
            self._meter.lost(runs)

    def ended(self, ends: Iterable[tuple[Held, str]], seconds: float) -> None:
        """These runs have ended, each with its verdict, in one statement. What was released did not run."""
        groups: dict[tuple[str, str], Ended] = {}
        for held, verdict in ends:
            pair = self._pair(held.queue, held.task)
            group = groups.get(pair)
            if group is None:
                group = groups[pair] = Ended(*pair)
            group.outcomes.append(verdict)
            if verdict != "release":
                group.ran.append(held.ran)
                group.waited.append(held.waited)
        self._meter.flushed(list(groups.values()), seconds)

    async def beat(self) -> None:
        """Once a second: what is counted elsewhere."""
        self._meter.beat()

    def series(self) -> list[Series]:
        """Everything, as it is now."""
        self._meter.beat()
        return self._numbers.series()

    def _pair(self, queue: str, task: str) -> tuple[str, str]:
        pair = queue, task
        if pair in self._pairs:
            return pair
        if len(self._pairs) >= _MOST_PAIRS:
            return OTHER, OTHER
        self._pairs.add(pair)
        return pair
