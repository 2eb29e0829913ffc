"""What a claimer remembers of where to look. Only hints: lost with the process, and wrong at worst means later."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Final

from pgqueue import statements
from pgqueue.statements import Lanes

if TYPE_CHECKING:
    from pgqueue.statements import Row

_PRIORITIES: Final = tuple(range(10))
_LAG: Final = 0.25  # seconds: producers whose transactions last this long are still seen by marked scans
_NEAR_LAG: Final = 0.02  # the same of the scans in between, when the dead before the marks make those dear
_RECENT: Final = 8.0  # seconds: few transactions are open for longer
MOST_RECENT_COST: Final = 0.02  # seconds that a look into these counts at most: it is made every two seconds at least
_FULL_SCAN_SHARE: Final = 100  # a scan from the start takes at most a hundredth of the time …
_FULL_SCAN_EVERY: Final = 1.0  # … and while marked claims come back full, one a second is enough
_DEAR: Final = 0.005  # seconds: when one takes longer, as under a held snapshot, the next are made beside the claims …
_DEAR_SHARE: Final = 400  # … and take less of the time, as long as nobody says that a job is back …
_DEAR_EVERY: Final = 30.0  # … but one in so many seconds may take its hundredth …
_FEW: Final = 16  # … unless it was a claim of more jobs than this, which takes its time for them
_MOST_HINTS: Final = 500


class Marks:
    """The claim watermark: per lane the last (run_at, id) that was claimed, 250 or 20 ms behind the server's clock."""

    def __init__(self, queues: list[str]) -> None:
        self._queues = len(queues)
        self._lanes = [(queue, priority) for priority in _PRIORITIES for queue in queues]
        self._marks: dict[tuple[str, int], tuple[float, int]] = {}
        self._near: dict[tuple[str, int], tuple[float, int]] = {}
        self._back: dict[tuple[str, int], tuple[float, int]] = {}
        self._clock_offset: float | None = None

    def set_clock(self, server: float) -> None:
        """The server's clock, in seconds since 1970, as it is now; ours may be wrong, so only its pace is used."""
        self._clock_offset = server - time.monotonic()

    @property
    def clock_offset(self) -> float | None:
        """The server's clock less ours; None until it is known."""
        return self._clock_offset

    def lanes(self, *, full: bool, turn: int, near: bool = False) -> Lanes:
        """Where the next claim looks; queues of one priority take turns at being first."""
        self._marks.update(self._back)
        self._near.update(self._back)
        self._back.clear()
        lanes = self._lanes
        if (width := len(lanes) // len(_PRIORITIES)) > 1:
            lanes = [lanes[p * width + (i + turn) % width] for p in _PRIORITIES for i in range(width)]
        known = self._near if near else self._marks
        marks = [None if full else known.get(lane) for lane in lanes]
        return Lanes(
            [queue for queue, _ in lanes],
            [priority for _, priority in lanes],
            [mark[0] if mark else None for mark in marks],
            [mark[1] if mark else 0 for mark in marks],
        )

    def of(self, queue: str, *, full: bool) -> Lanes:
        """The lanes of one queue, by priority."""
        marks = [None if full else self._marks.get((queue, priority)) for priority in _PRIORITIES]
        return Lanes(
            [queue] * len(marks),
            list(_PRIORITIES),
            [mark[0] if mark else None for mark in marks],
            [mark[1] if mark else 0 for mark in marks],
        )

    def advance(self, rows: list[Row]) -> None:
        """Remember what was claimed; rows are sorted by priority, run_at, id."""
        if self._clock_offset is None or not rows:
            return
        now = time.monotonic() + self._clock_offset
        if self._queues == 1 and rows[0][0] == rows[-1][0]:  # of one lane, as most are
            rows = rows[-1:]
        last = {(row[3], row[0]): (row[1], row[2]) for row in rows}
        for lane, mark in last.items():
            for marks, limit in ((self._marks, now - _LAG), (self._near, now - _NEAR_LAG)):
                lagging = mark if mark[0] < limit else (limit, 0)
                if lane not in marks or marks[lane] < lagging:
                    marks[lane] = lagging

    @property
    def recently(self) -> float | None:
        """From when on a job is to be expected whose transaction was open for long; None when the clock is unknown."""
        return None if self._clock_offset is None else time.monotonic() + self._clock_offset - _RECENT

    @property
    def some(self) -> bool:
        """Whether any lane has a mark."""
        return bool(self._marks)

    def take_back(self, found: list[tuple[str, int, float, int]]) -> None:
        """Something lies before a mark: the next claim begins there. One that is under way began elsewhere."""
        for queue, priority, run_at, job_id in found:
            self._back[queue, priority] = (run_at, job_id - 1)


class FullScans:
    """When to look through the lanes from their start: what that costs, claims and looks alike, sets how often.

    ``most``: no scan counts as longer than this, and none is made less often because it is dear.
    """

    def __init__(self, most: float = math.inf) -> None:
        self._most = most
        self._at = self._began = self._ended = self._wanted_at = -math.inf
        self._cost = 0.0
        self.dear = False  # the last one took so long that no claim should wait for the next

    @property
    def due(self) -> bool:
        """Whether the next scan may be a full one."""
        return time.monotonic() >= self._at

    @property
    def wanted_in(self) -> float:
        """Seconds until the one that somebody asked for may be made; infinite when nobody did."""
        return self._at - time.monotonic() if self._wanted_at > self._began else math.inf

    def want(self) -> None:
        """Something is back that no marked scan will find: the next is due as soon as its cost allows."""
        self._wanted_at = time.monotonic()
        self._at = min(self._at, self._ended + self._cost * _FULL_SCAN_SHARE)

    def begins(self) -> None:
        """A scan begins that goes on beside others: it is the one that was asked for, nobody need wake for it."""
        self._began = time.monotonic()

    def made(self, began: float, *, full: bool, short: bool, claimed: int = 0) -> None:
        """A scan that began then has ended; ``short``: it has found less than it was to find."""
        now = time.monotonic()
        if full:
            self._began, self._ended = began, now
            self._cost = min(now - began, self._most)
            if claimed <= _FEW:
                self.dear = self._cost > _DEAR
        if full or short:
            pause = self._cost * _FULL_SCAN_SHARE
            if self.dear and self._most == math.inf and self._wanted_at <= self._began:
                pause = max(pause, min(self._cost * _DEAR_SHARE, _DEAR_EVERY))
            at = now + max(0.0 if short else _FULL_SCAN_EVERY, pause)
            self._at = at if full else min(self._at, at)


class Managed:
    """What the claimer remembers of a queue with keys or limits. Only hints: lost with the process."""

    def __init__(self) -> None:
        self.seen_at = self.later = -math.inf
        self.full_scans = FullScans(most=_FULL_SCAN_EVERY / _FULL_SCAN_SHARE)  # a wait for the lock is no cost
        self.keys: dict[int, str] = {}  # of the jobs that are held here
        self.hints: dict[str, None] = {}  # keys of which jobs have ended here: another may start

    def took(self, rows: list[Row]) -> None:
        """Remember the keys of what was claimed."""
        self.keys.update((row[2], row[statements.COLUMNS]) for row in rows if row[statements.COLUMNS] is not None)

    def look(self, held: set[int]) -> list[str]:
        """The keys to look at now."""
        for job_id in self.keys.keys() - held:
            self.hints[self.keys.pop(job_id)] = None
        while len(self.hints) > _MOST_HINTS:
            del self.hints[next(iter(self.hints))]
        return list(self.hints)

    def looked(self, began: float, *, full: bool, short: bool) -> None:
        """A claim has come back."""
        self.full_scans.made(began, full=full, short=short)
        if short:
            self.hints.clear()
