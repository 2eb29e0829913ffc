"""What a worker process says of itself: until when each of its loops may be silent, whether it is ready, its slots.

A loop notes a time by which it will have come round; whoever looks compares that with the clock. So who looks need not
be in the same thread, nor in the same process: the numbers may lie in a file that a supervisor reads, and
``time.monotonic`` is one clock for the whole machine.
"""

from __future__ import annotations

import math
import mmap
import os
import time
from array import array
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from pathlib import Path

LOOP: Final = 1
CLAIMER: Final = 2
RENEWER: Final = 3
PARTS: Final = {LOOP: "the event loop", CLAIMER: "the claimer", RENEWER: "the renewer"}
LEAST_PATIENCE: Final = 5.0  # seconds: a shorter silence means nothing, however short the lease is
READINESS: Final = ("", "starting", "the bell is down", "stopping")
Readiness = Literal["", "starting", "the bell is down", "stopping"]

_PID: Final = 0
_READY: Final = 4
_BELL: Final = 5
_BUSY: Final = 6
_FREE: Final = 7
_SIZE: Final = 8


class Vitals:
    """The facts of one process. Writing one costs a store."""

    def __init__(self, path: Path | None = None) -> None:
        self._facts: array[float] | memoryview[float]
        if path is None:
            self._facts = array("d", bytes(8 * _SIZE))
        else:
            with path.open("r+b") as file:
                self._facts = memoryview(mmap.mmap(file.fileno(), 8 * _SIZE)).cast("d")

    def begin(self) -> None:
        """This process writes here from now on; its loops have not begun yet."""
        self._facts[_PID] = 0
        for part in PARTS:
            self.release(part)
        self.show("starting", bell=False, busy=0, free=0)
        self._facts[_PID] = os.getpid()

    @property
    def pid(self) -> int:
        """Whose facts these are; 0: nobody's yet."""
        return int(self._facts[_PID])

    def expect(self, part: int, seconds: float) -> None:
        """This part will have come round by then."""
        self._facts[part] = time.monotonic() + seconds

    def release(self, part: int) -> None:
        """This part may be silent for any time: it waits for something that need not happen, or it has ended."""
        self._facts[part] = math.inf

    def overdue(self) -> list[str]:
        """The parts that should have come round and have not, and for how long."""
        now = time.monotonic()
        late = [(name, now - self._facts[part]) for part, name in PARTS.items()]
        return [f"{name} is stuck ({seconds:.0f}s overdue)" for name, seconds in late if seconds > 0]

    def show(self, readiness: Readiness, *, bell: bool, busy: int, free: int) -> None:
        """How the worker is, once a second."""
        facts = self._facts
        facts[_READY] = READINESS.index(readiness)
        facts[_BELL], facts[_BUSY], facts[_FREE] = bell, busy, free

    @property
    def readiness(self) -> str:
        """Why it takes no jobs now, or takes them late; empty: it is ready."""
        return READINESS[int(self._facts[_READY])]

    @property
    def bell_up(self) -> bool:
        """Whether NOTIFY reaches it."""
        return bool(self._facts[_BELL])

    @property
    def busy(self) -> int:
        """Slots in which something runs."""
        return int(self._facts[_BUSY])

    @property
    def free(self) -> int:
        """The other slots."""
        return int(self._facts[_FREE])


def create(path: Path) -> None:
    """A file for the vitals of a process that is yet to be started."""
    path.write_bytes(bytes(8 * _SIZE))


def patience(lease: float) -> float:
    """How long a part may be late before it counts as stuck: as long as its jobs are safe from being run twice."""
    return max(lease, LEAST_PATIENCE)
