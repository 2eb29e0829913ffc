"""Waiting for what the database will show: how often to look, and for how long."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pgqueue.durations import Duration, format_duration, parse_duration

if TYPE_CHECKING:
    from collections.abc import Iterator


def looks(timeout: Duration | None, first: float, slowest: float) -> Iterator[float]:
    """The pauses between looks, in seconds: short at first, then longer; ends when the time is over, None: never."""
    end = None if timeout is None else time.monotonic() + parse_duration(timeout, "timeout").total_seconds()
    pause = first
    while end is None or time.monotonic() < end:
        yield pause if end is None else max(0.0, min(pause, end - time.monotonic()))
        pause = min(pause * 1.5, slowest)
    yield 0


def length(timeout: Duration | None) -> str:
    """As an error tells it."""
    return format_duration(parse_duration(timeout or 0, "timeout"))
