"""What a worker holds: its leases and the runs under them."""

from __future__ import annotations

import math
import time
from collections import Counter
from typing import TYPE_CHECKING, Final

from pgqueue.run import Run

if TYPE_CHECKING:
    import threading

    from pgqueue.app import App
    from pgqueue.statements import Row

_MOST_EXPECTED: Final = 100


class Batch:
    """The jobs of one lease that have not landed yet."""

    __slots__ = ("renewed_at", "runs", "token")

    def __init__(self, token: int, runs: dict[int, Run]) -> None:
        self.token = token
        self.runs = runs
        self.renewed_at = time.monotonic()


class Hand:
    """All leases of this worker. Changed on the event loop; the renewer's thread reads copies of the lists.

    ``filled`` is set when something is taken, if somebody waits for that.
    """

    def __init__(self, app: App) -> None:
        self.filled: threading.Event | None = None
        self._app = app
        self._batches: dict[int, Batch] = {}
        self._expected: dict[int, None] = {}

    def take(self, rows: list[Row], token: int) -> list[Run]:
        """Hold a claimed batch."""
        app = self._app
        runs = [Run(row, token, app) for row in rows]
        batch = self._batches[token] = Batch(token, {run.id: run for run in runs})
        if self._expected and not batch.runs.keys().isdisjoint(self._expected):
            batch.renewed_at = -math.inf
        if self.filled is not None:
            self.filled.set()
        return runs

    @property
    def empty(self) -> bool:
        """Whether nothing is held."""
        return not self._batches

    def closing(self, runs: list[Run]) -> list[int]:
        """The leases that have no other job left but these."""
        counts = Counter(run.token for run in runs)
        return [
            token
            for token, count in counts.items()
            if token in self._batches and len(self._batches[token].runs) == count
        ]

    def drop(self, runs: list[Run]) -> None:
        """Let these go: they have landed, or their lease is lost."""
        for run in runs:
            batch = self._batches.get(run.token)
            if batch is not None:
                batch.runs.pop(run.id, None)
                if not batch.runs:
                    del self._batches[run.token]

    def look_again(self, job_id: int) -> None:
        """Have the renewer ask the database about this job soon; also when its claim has not come back yet."""
        for batch in self._batches.values():
            if job_id in batch.runs:
                batch.renewed_at = -math.inf
                return
        self._expected[job_id] = None
        if len(self._expected) > _MOST_EXPECTED:
            del self._expected[next(iter(self._expected))]

    def find(self, job_id: int) -> Run | None:
        """The run of this job, if it is held here."""
        for batch in self._batches.values():
            if job_id in batch.runs:
                return batch.runs[job_id]
        return None

    def older_than(self, seconds: float) -> list[Batch]:
        """The batches that were claimed or renewed longer ago than this."""
        limit = time.monotonic() - seconds
        return [batch for batch in list(self._batches.values()) if batch.renewed_at <= limit]

    def runs(self) -> list[Run]:
        """Everything held, in no order."""
        return [run for batch in list(self._batches.values()) for run in list(batch.runs.values())]
