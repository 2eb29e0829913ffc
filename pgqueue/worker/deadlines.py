"""One timer for all timeouts of a worker: a heap of deadlines, one alarm on the event loop."""

from __future__ import annotations

import asyncio
import heapq
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from pgqueue.run import Run

_FEW: Final = 1_000


class Deadlines:
    """Calls ``passed`` with each run that is not over at its deadline. Used on the event loop only.

    A timer per job would cost 8 µs each; most runs end long before their deadline and cost a push.
    """

    def __init__(self, passed: Callable[[Run], None]) -> None:
        self._passed = passed
        self._loop = asyncio.get_running_loop()
        self._heap: list[tuple[float, int, Run]] = []
        self._most = _FEW
        self._alarm: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._heap)

    def watch(self, run: Run) -> None:
        """Have a started run that has a timeout looked at when its time is over."""
        if run.ended or run.timeout is None:
            return
        if len(self._heap) > self._most:
            self._forget_ended()
        heapq.heappush(self._heap, (run.started + run.timeout, run.id, run))
        if self._heap[0][2] is run:
            self._set_alarm()

    def close(self) -> None:
        """Call nobody any more."""
        if self._alarm is not None:
            self._alarm.cancel()

    def _forget_ended(self) -> None:
        """Looked through whenever the heap has doubled."""
        self._heap = [entry for entry in self._heap if not entry[2].ended]
        heapq.heapify(self._heap)
        self._most = 2 * len(self._heap) + _FEW

    def _set_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = self._loop.call_later(max(0.0, self._heap[0][0] - time.monotonic()), self._ring)

    def _ring(self) -> None:
        self._alarm = None
        now = time.monotonic()
        while self._heap and (self._heap[0][0] <= now or self._heap[0][2].ended):
            run = heapq.heappop(self._heap)[2]
            if not run.ended:
                self._passed(run)
        if self._heap:
            self._set_alarm()
