"""Counters and histograms of a process as plain numbers side by side: in memory, or in a file that outlives it.

prometheus_client shows them; it does not count them. Its own observe costs some microseconds per job in a file that
several processes share, a store here 50 ns; see docs/decisions/0016-metrics-are-counted-per-flush.md.
"""

from __future__ import annotations

import json
import logging
import mmap
import os
from array import array
from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING, Final

from pgqueue.metrics.catalogue import COUNTED, Metric

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

log = logging.getLogger(__name__)

_ROOM: Final = 1 << 18  # numbers in a file, 2 MiB: some 12,000 pairs of queue and task
_WIDEST: Final = max(metric.width for metric in COUNTED.values())
Series = tuple[str, tuple[str, ...], list[float]]


class Numbers:
    """The series of one process. Only its event loop adds to them; any thread may read.

    Args:
        path: a file to keep them in; one that is there already is gone on with, so that a process that is started
            again neither loses nor doubles what the one before it has counted.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._places: dict[tuple[str, ...], int] = {}
        self._end = _WIDEST  # what comes before it takes the series for which there is no room; it is never shown
        self._names: Path | None = None
        self._values: array[float] | memoryview[float]
        if path is None:
            self._room = 0
            self._values = array("d", bytes(8 * self._end))
        else:
            self._room = _ROOM
            self._values = _mapped(path, _ROOM)
            self._names = _names_of(path)
            _mend_names(self._names)
            for key in _read_names(self._names):
                self._put(key)

    def add(self, metric: Metric, count: float = 1, *labels: str) -> None:
        """Count."""
        self._values[self.place(metric, *labels)] += count

    def observe(self, metric: Metric, value: float, *labels: str) -> None:
        """One value into a histogram."""
        self.observe_at(self.place(metric, *labels), metric.buckets, value)

    def place(self, metric: Metric, *labels: str) -> int:
        """Where a series is, for who adds to it often."""
        key = (metric.name, *labels)
        place = self._places.get(key)
        return self._new(key) if place is None else place

    def add_at(self, place: int, count: float = 1) -> None:
        """Count, at a known place."""
        self._values[place] += count

    def observe_at(self, place: int, buckets: tuple[float, ...], value: float) -> None:
        """One value into the histogram at a known place."""
        values = self._values
        values[place + bisect_left(buckets, value)] += 1
        values[place + len(buckets) + 1] += value

    def observe_many(self, place: int, buckets: tuple[float, ...], observed: list[float]) -> None:
        """Many values at once: sorted, they cost a tenth."""
        observed.sort()
        values = self._values
        below = 0
        for nth, bound in enumerate(buckets):
            if below == len(observed):
                break
            upto = bisect_right(observed, bound, below)
            if upto > below:
                values[place + nth] += upto - below
                below = upto
        values[place + len(buckets)] += len(observed) - below
        values[place + len(buckets) + 1] += max(sum(observed), 0.0)  # clocks may differ by a little

    def series(self) -> list[Series]:
        """Everything, as it is now."""
        return _series(list(self._places.items()), self._values)

    def _new(self, key: tuple[str, ...]) -> int:
        if self._room and self._end + COUNTED[key[0]].width > self._room:
            log.error("no room for the metric %s; it is not counted", ", ".join(key))
            return self._places.setdefault(key, 0)
        if self._names is not None:  # before the first number, so that a file never holds numbers without a name
            try:
                _append(self._names, json.dumps(key) + "\n")
            except OSError as error:  # the disk is full, say: no reason to stop working
                log.error("the metric %s is not counted, nor any other new one: %s", ", ".join(key), error)  # noqa: TRY400
                self._room = self._end  # half a line may stand there: nothing must come after it
                return self._places.setdefault(key, 0)
        return self._put(key)

    def _put(self, key: tuple[str, ...]) -> int:
        place = self._end
        self._end += COUNTED[key[0]].width
        if isinstance(self._values, array) and self._end > len(self._values):
            self._values.extend([0.0] * (self._end - len(self._values)))
        self._places[key] = place  # at last: another thread may read at any time
        return place


def create(path: Path) -> None:
    """A file for the numbers of a process that is yet to be started.

    It is written, not sparse: a store for which the disk has no room later would kill the process (SIGBUS).
    """
    path.write_bytes(bytes(8 * _ROOM))
    _names_of(path).touch()


def read(path: Path) -> list[Series]:
    """What another process has counted so far, dead or alive."""
    places: list[tuple[tuple[str, ...], int]] = []
    end = _WIDEST
    for key in _read_names(_names_of(path)):
        places.append((key, end))
        end += COUNTED[key[0]].width
    values = array("d")
    with path.open("rb") as file:
        values.frombytes(file.read(8 * end))
    return _series(places, values)


def total(parts: Iterable[Iterable[Series]]) -> list[Series]:
    """The series of several processes as one."""
    sums: dict[tuple[str, tuple[str, ...]], list[float]] = {}
    for part in parts:
        for name, labels, values in part:
            known = sums.get((name, labels))
            sums[name, labels] = values if known is None else [a + b for a, b in zip(known, values, strict=True)]
    return [(name, labels, values) for (name, labels), values in sums.items()]


def _series(places: list[tuple[tuple[str, ...], int]], values: array[float] | memoryview[float]) -> list[Series]:
    return [(key[0], key[1:], list(values[place : place + COUNTED[key[0]].width])) for key, place in places if place]


def _names_of(path: Path) -> Path:
    return path.with_name(path.name + ".names")


def _read_names(path: Path) -> list[tuple[str, ...]]:
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [tuple(json.loads(line)) for line in lines if line.endswith("\n")]


def _append(path: Path, line: str) -> None:
    """To a file that is there: in a new one the line would name the wrong numbers."""
    with path.open("r+", encoding="utf-8") as names:
        names.seek(0, os.SEEK_END)
        names.write(line)


def _mend_names(path: Path) -> None:
    """Take away half a line that a kill has left."""
    text = path.read_bytes()
    if not text.endswith(b"\n"):
        with path.open("r+b") as names:
            names.truncate(text.rfind(b"\n") + 1)


def _mapped(path: Path, room: int) -> memoryview[float]:
    with path.open("r+b") as file:
        return memoryview(mmap.mmap(file.fileno(), 8 * room)).cast("d")
