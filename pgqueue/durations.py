"""Durations as people write them: a timedelta, seconds, or ``"30s"``, ``"5m"``, ``"1h30m"``, ``"2 days"``."""

from __future__ import annotations

import math
import re
from datetime import timedelta

from pgqueue.errors import InvalidJobError

Duration = timedelta | float | int | str

_UNITS = {
    "ms": 0.001, "millisecond": 0.001, "milliseconds": 0.001,
    "s": 1, "sec": 1, "second": 1, "seconds": 1,
    "m": 60, "min": 60, "minute": 60, "minutes": 60,
    "h": 3600, "hour": 3600, "hours": 3600,
    "d": 86400, "day": 86400, "days": 86400,
    "w": 604800, "week": 604800, "weeks": 604800,
}  # fmt: skip
_PART = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*", re.ASCII)
_LONGEST = timedelta(days=36500)


def parse_duration(value: Duration, what: str = "duration") -> timedelta:
    """Turn ``value`` into a timedelta of 0 to 100 years.

    Args:
        value: a timedelta, a number of seconds, or text such as ``30s``, ``5m``, ``1h30m``, ``250ms``, ``2 days``.
        what: how the error names the value.

    Raises:
        InvalidJobError: it is none of these, negative, or longer than 100 years.
    """
    if isinstance(value, int) and abs(value) > _LONGEST.total_seconds():
        value = math.inf  # too large for a float, perhaps
    if isinstance(value, str):
        seconds = _parse_text(value.strip().lower(), what)
    elif isinstance(value, timedelta):
        seconds = value.total_seconds()
    elif isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    else:
        raise InvalidJobError(f"{what} must be a timedelta, seconds, or text such as '30s', not {value!r}")
    if not math.isfinite(seconds) or not 0 <= seconds <= _LONGEST.total_seconds():
        raise InvalidJobError(f"{what} must be 0 to 100 years, not {value!r}")
    return timedelta(seconds=seconds)


def _parse_text(text: str, what: str) -> float:
    try:
        return float(text)
    except ValueError:
        pass
    seconds, position = 0.0, 0
    while match := _PART.match(text, position):
        unit = _UNITS.get(match[2])
        if unit is None:
            break
        seconds += float(match[1]) * unit
        position = match.end()
    if position == 0 or position != len(text):
        raise InvalidJobError(f"{what} {text!r} is not a duration; write 30s, 5m, 1h30m or 2d")
    return seconds


def format_duration(value: timedelta) -> str:
    """Write a duration the way people read it: ``250ms``, ``30s``, ``1h30m``, ``2d``."""
    seconds = value.total_seconds()
    if seconds < 1:
        return f"{round(seconds * 1000)}ms"
    if seconds < 60:  # noqa: PLR2004
        return f"{seconds:g}s"
    parts, rest = [], round(seconds)
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts[:2])
