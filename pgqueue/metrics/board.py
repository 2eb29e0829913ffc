"""What one or several worker processes say of themselves, put together. Needs no library."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Final, Protocol

from pgqueue.errors import PgqueueError
from pgqueue.metrics import numbers, vitals
from pgqueue.metrics.numbers import Numbers, Series
from pgqueue.metrics.vitals import Vitals
from pgqueue.revision import check_schema

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from pgqueue.settings import Settings

log = logging.getLogger(__name__)

_SHARED_FOR: Final = 1.0  # seconds: however many ask, the database is asked once


class Monitor:
    """What a worker writes: its vitals, and its numbers if anybody wants them.

    Args:
        counting: whether there are numbers.
        path: files that a supervisor reads; None: in memory.
    """

    def __init__(self, *, counting: bool = False, path: Path | None = None) -> None:
        if path is None:
            self.vitals = Vitals()
            self.numbers = Numbers() if counting else None
        else:
            self.vitals = Vitals(vitals_of(path))
            self.numbers = Numbers(path) if path.exists() else None
        self.vitals.begin()

    def look(self) -> Vitals:
        """For a :class:`Board`."""
        return self.vitals

    def series(self) -> list[Series]:
        """For a :class:`Board`."""
        return [] if self.numbers is None else self.numbers.series()


class Copy:
    """What a supervisor reads of one copy of the worker: the copy may be started again and goes on in the same files.

    Args:
        path: its files; they are made here.
        counting: whether it is to count.
        pid: the process that is it now; None: there is none.
    """

    def __init__(self, path: Path, *, counting: bool, pid: Callable[[], int | None]) -> None:
        if counting:
            numbers.create(path)
        vitals.create(vitals_of(path))
        self._path = path
        self._counting = counting
        self._pid = pid
        self._vitals = Vitals(vitals_of(path))

    def look(self) -> Vitals | None:
        """Its vitals; None while it has none: it is being started, or waits for that."""
        pid = self._pid()
        return self._vitals if pid is not None and pid == self._vitals.pid else None

    def series(self) -> list[Series]:
        """What it and those before it have counted."""
        return numbers.read(self._path) if self._counting else []


class Source(Protocol):
    """One process, as a board sees it."""

    def look(self) -> Vitals | None:
        """Its vitals; None: it is not there yet, or not any more."""

    def series(self) -> list[Series]:
        """What it has counted."""


class Board:
    """The processes of one worker command."""

    def __init__(self, sources: Sequence[Source], database: Callable[[], str | None]) -> None:
        self._sources = sources
        self._database = database

    def trouble(self) -> list[str]:
        """What only a restart would mend; nothing of that is the database's."""
        return [
            f"process {seen.pid}: {what}"
            for source in self._sources
            if (seen := source.look()) is not None
            for what in seen.overdue()
        ]

    def unready(self) -> list[str]:
        """Why jobs are not taken now, or late."""
        reasons = self.trouble()
        for source in self._sources:
            seen = source.look()
            if seen is None:
                reasons.append("a process is being started")
            elif seen.readiness:
                reasons.append(f"process {seen.pid}: {seen.readiness}")
        problem = self._database()
        return reasons if problem is None else [*reasons, problem]

    def series(self) -> list[Series]:
        """What they have counted in all, those that have died since included."""
        return numbers.total(source.series() for source in self._sources)

    @property
    def slots(self) -> dict[tuple[str, ...], float]:
        """Busy and free ones of those that live."""
        alive = self._alive()
        busy, free = sum(one.busy for one in alive), sum(one.free for one in alive)
        return {("busy",): busy, ("free",): free}

    @property
    def bell_up(self) -> bool:
        """Whether all that live hear NOTIFY."""
        alive = self._alive()
        return bool(alive) and all(one.bell_up for one in alive)

    def _alive(self) -> list[Vitals]:
        return [seen for source in self._sources if (seen := source.look()) is not None]


class Reachability:
    """Whether the database can be reached and fits: asked at most once a second, on a connection of its own."""

    def __init__(self, settings: Callable[[], Settings]) -> None:
        self._settings = settings
        self._guard = threading.Lock()
        self._asked_at = -_SHARED_FOR
        self._answer: str | None = None

    def __call__(self) -> str | None:
        """What is wrong; None: nothing."""
        with self._guard:
            if time.monotonic() - self._asked_at >= _SHARED_FOR:
                self._answer = database_problem(self._settings())
                self._asked_at = time.monotonic()
            return self._answer


def database_problem(settings: Settings) -> str | None:
    """Why nothing can be done with this database: not reachable, or its schema does not fit; None: it can."""
    try:
        check_schema(settings.resolve_dsn(), schema=settings.schema)
    except PgqueueError as error:
        return " ".join(str(error).split())
    return None


class HealthFile:
    """A file that is touched every second while nothing is stuck, and taken away when something is.

    From a thread of its own: a blocked event loop can't keep it up. When the whole process stands still, it grows old.
    """

    def __init__(self, path: Path, trouble: Callable[[], list[str]]) -> None:
        self._path = path
        self._trouble = trouble
        self._stop = threading.Event()
        self._red = False
        self._thread = threading.Thread(target=self._loop, name="pgqueue-health", daemon=True)

    def start(self) -> None:
        """Touch it, and go on with that. Raises OSError when it can't be written."""
        self._path.touch()
        self._thread.start()

    def stop(self) -> None:
        """Take it away."""
        self._stop.set()
        self._thread.join(5)
        self._path.unlink(missing_ok=True)

    def _loop(self) -> None:
        while not self._stop.wait(_SHARED_FOR):
            try:
                self._look()
            except OSError as error:
                log.warning("the health file can't be written: %s", error)

    def _look(self) -> None:
        trouble = self._trouble()
        if not trouble:
            self._path.touch()
        else:
            self._path.unlink(missing_ok=True)
        if bool(trouble) != self._red:
            self._red = bool(trouble)
            log.log(logging.ERROR if trouble else logging.INFO, "%s", "; ".join(trouble) or "nothing is stuck any more")


def vitals_of(path: Path) -> Path:
    """Where the vitals lie beside the numbers."""
    return path.with_name(path.name + ".vitals")
