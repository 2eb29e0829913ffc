"""The ledger outside the database: a file to which handlers append what they do, one JSON line each."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Entry:
    """A handler's run started or ended. ``time`` is the machine's monotonic clock, the same for all processes."""

    job: int
    attempt: int
    token: int
    event: str
    pid: int
    time: float


class Ledger:
    """Append-only; one write is one line, so that processes may share the file and a kill leaves no half line."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def write(self, event: str, job: int, attempt: int, token: int) -> None:
        entry = {
            "job": job,
            "attempt": attempt,
            "token": token,
            "event": event,
            "pid": os.getpid(),
            "time": time.monotonic(),
        }
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(file, json.dumps(entry).encode() + b"\n")
        finally:
            os.close(file)

    def entries(self, event: str | None = None, job: int | None = None) -> list[Entry]:
        """What was written so far, in order."""
        if not self.path.exists():
            return []
        entries = [Entry(**json.loads(line)) for line in self._whole_lines()]
        return [e for e in entries if event in (None, e.event) and job in (None, e.job)]

    def _whole_lines(self) -> list[str]:
        """A reader may see a write half done."""
        return self.path.read_text().rpartition("\n")[0].splitlines()

    def runs(self) -> Counter[int]:
        """How often each job was started."""
        return Counter(entry.job for entry in self.entries("start"))

    def may_go(self) -> bool:
        """Whether the handlers that wait for the story's word may end."""
        return self.path.with_name("go").exists()

    def say_go(self) -> None:
        self.path.with_name("go").touch()
