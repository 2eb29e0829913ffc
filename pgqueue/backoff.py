"""How long to wait before a failed job is tried again."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Protocol

from pgqueue.durations import Duration, parse_duration
from pgqueue.errors import InvalidJobError


class Backoff(Protocol):
    """Anything that turns an attempt into a delay; ``None`` means never again."""

    def delay(self, attempt: int) -> timedelta | None:
        """The wait after attempt number ``attempt`` (from 1) has failed."""


@dataclass(frozen=True, slots=True)
class Exponential:
    """``base``, ``base²``, ``base³`` … seconds: 2, 4, 8, 16 s by default, up to ``cap``.

    ``jitter`` spreads each delay evenly over ± that share, so that jobs which failed together do not come back
    together. The default of 0.1 keeps 2, 4, 8, 16 s recognisable.

    Raises:
        InvalidJobError: base below 1, or jitter outside 0 to 1.
    """

    base: float = 2
    cap: Duration = timedelta(hours=1)
    jitter: float = 0.1

    def __post_init__(self) -> None:
        if self.base < 1 or not 0 <= self.jitter <= 1:
            raise InvalidJobError("Exponential needs base >= 1 and jitter from 0 to 1")
        parse_duration(self.cap, "cap")

    def delay(self, attempt: int) -> timedelta:
        """The wait after attempt number ``attempt`` (from 1) has failed."""
        cap = parse_duration(self.cap, "cap").total_seconds()
        try:
            seconds = min(float(self.base) ** attempt, cap)
        except OverflowError:
            seconds = cap
        spread = random.uniform(1 - self.jitter, 1 + self.jitter)  # noqa: S311 - not a secret
        return timedelta(seconds=min(seconds * spread, cap))


@dataclass(frozen=True, slots=True)
class Fixed:
    """The same wait after every failure."""

    every: Duration

    def __post_init__(self) -> None:
        parse_duration(self.every, "Fixed")

    def delay(self, attempt: int) -> timedelta:  # noqa: ARG002 - the same for every attempt
        """The wait after any attempt has failed."""
        return parse_duration(self.every, "Fixed")


@dataclass(frozen=True, slots=True)
class _Never:
    def delay(self, attempt: int) -> None:  # noqa: ARG002
        return None


never: Final = _Never()
"""No second try: the job is dead at once."""
