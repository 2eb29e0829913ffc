"""What a schedule is: a specification on the way in, a record on the way out, and what is to fire now. No I/O."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import islice, takewhile
from typing import TYPE_CHECKING, Any, Final, Self, TypedDict

import orjson

from pgqueue.durations import Duration, format_duration, parse_duration
from pgqueue.errors import InvalidJobError, InvalidScheduleError
from pgqueue.job import (
    DEFAULT_MAX_ATTEMPTS,
    DEFAULT_PRIORITY,
    DEFAULT_QUEUE,
    MAX_NAME_LENGTH,
    JobSpec,
    check_text,
)
from pgqueue.timetable import DEFAULT_TIME_ZONE, Timetable

if TYPE_CHECKING:
    from collections.abc import Sequence

MISFIRE: Final = ("skip", "latest", "all")
OVERLAP: Final = ("allow", "skip")
DEFAULT_GRACE: Final = timedelta(minutes=1)
MOST_AT_ONCE: Final = 1000  # ticks of one schedule that are fired in one transaction

_LEAST_GRACE: Final = timedelta(seconds=1)
_BEFORE: Final = timedelta(microseconds=1)

timetable = lru_cache(4096)(Timetable)


class ScheduleOptions(TypedDict, total=False):
    """What :meth:`pgqueue.App.schedule` takes."""

    name: str
    tz: str
    payload: Any
    misfire: str
    grace: Duration
    overlap: str
    queue: str
    priority: int | str
    max_attempts: int
    timeout: Duration | None
    unique_key: str | None
    group_key: str | None


@dataclass(frozen=True, slots=True)
class ScheduleSpec:
    """A schedule that may be added: everything was checked when this was made.

    Attributes:
        name: 1 to 128 characters, unique.
        expression: five or six cron fields (six begin with seconds), ``@hourly`` and the like, or ``every 90s``.
        task: what its jobs run.
        payload: any JSON value, as text.
        time_zone: where the expression's times are meant; a name of the IANA data base.
        queue, priority, max_attempts, timeout: as of :class:`pgqueue.JobSpec`.
        misfire: what is done about ticks that are later than ``grace`` (no worker was there): ``skip`` fires none of
            them, ``latest`` only the newest, ``all`` each.
        grace: how late a tick may be and still count as on time; at least a second.
        overlap: ``skip`` drops a tick while the job of an earlier one is live; ``allow`` does not look.
        unique_key: of its jobs; a tick is dropped while a live job holds it.
        group_key: of its jobs.
    """

    name: str
    expression: str
    task: str
    payload: str = "{}"
    time_zone: str = DEFAULT_TIME_ZONE
    queue: str = DEFAULT_QUEUE
    priority: int = DEFAULT_PRIORITY
    max_attempts: int = DEFAULT_MAX_ATTEMPTS
    timeout: timedelta | None = None
    misfire: str = "latest"
    grace: timedelta = DEFAULT_GRACE
    overlap: str = "allow"
    unique_key: str | None = None
    group_key: str | None = None

    @classmethod
    def make(
        cls,
        name: str,
        expression: str,
        task: str,
        payload: Any = None,
        *,
        tz: str = DEFAULT_TIME_ZONE,
        queue: str = DEFAULT_QUEUE,
        priority: int | str = DEFAULT_PRIORITY,
        max_attempts: int = DEFAULT_MAX_ATTEMPTS,
        timeout: Duration | None = None,
        misfire: str = "latest",
        grace: Duration = DEFAULT_GRACE,
        overlap: str = "allow",
        unique_key: str | None = None,
        group_key: str | None = None,
    ) -> Self:
        """Check and convert what a person wrote. ``payload`` is any JSON value; None means ``{}``.

        Raises:
            InvalidScheduleError: the expression has no meaning or never ticks, there is no such time zone, or a
                policy is none.
            InvalidJobError: its jobs would be refused.
        """
        job = JobSpec.make(
            task, payload, queue=queue, priority=priority, max_attempts=max_attempts, timeout=timeout,
            unique_key=unique_key, group_key=group_key,
        )  # fmt: skip
        return cls.of_job(name, expression, job, tz=tz, misfire=misfire, grace=grace, overlap=overlap)

    @classmethod
    def of_job(
        cls,
        name: str,
        expression: str,
        job: JobSpec,
        *,
        tz: str = DEFAULT_TIME_ZONE,
        misfire: str = "latest",
        grace: Duration = DEFAULT_GRACE,
        overlap: str = "allow",
    ) -> Self:
        """The schedule of a job that was checked already; raises as :meth:`make` does.

        Its ``unique_for`` and ``on_conflict`` are left out: a tick is dropped while a live job holds the key.
        """
        try:
            check_text(name, "schedule's name", MAX_NAME_LENGTH)
        except InvalidJobError as error:
            raise InvalidScheduleError(str(error)) from None
        for option in ("delay", "run_at", "meta", "depends_on"):
            if getattr(job, option):
                raise InvalidScheduleError(f"schedule {name!r}: its jobs can't have {option}")
        known = isinstance(expression, str) and isinstance(tz, str)
        times = (timetable if known else Timetable)(expression, tz)  # which says what is wrong
        return cls(
            name, times.expression, job.task, job.payload, times.time_zone, job.queue, job.priority, job.max_attempts,
            job.timeout, _check_word(misfire, "misfire", MISFIRE), _check_grace(grace),
            _check_word(overlap, "overlap", OVERLAP), job.unique_key, job.group_key,
        )  # fmt: skip

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the payload as it is, durations as PostgreSQL reads them."""
        facts = {name: getattr(self, name) for name in self.__slots__}
        timeout = None if self.timeout is None else f"{self.timeout.total_seconds():.6f} seconds"
        return facts | {
            "payload": orjson.Fragment(self.payload),
            "timeout": timeout,
            "grace": f"{self.grace.total_seconds():.6f} seconds",
        }


@dataclass(frozen=True, slots=True)
class ScheduleRecord:
    """A schedule as the database holds it. Times are in UTC.

    Attributes:
        paused: it does not tick; ``next_tick`` is None then.
        declared: it comes from an application's code.
        problem: why it can't tick: a row that was written by hand, or a time zone that is unknown here.
        last_tick, last_job_id: the last tick that fired, and its job.
        seen_at: the server's clock when this was read.
    """

    name: str
    expression: str
    time_zone: str
    task: str
    payload: Any
    queue: str
    priority: int
    max_attempts: int
    timeout: timedelta | None
    misfire: str
    grace: timedelta
    overlap: str
    unique_key: str | None
    group_key: str | None
    paused: bool
    declared: bool
    next_tick: datetime | None
    last_tick: datetime | None
    last_job_id: int | None
    created_at: datetime
    updated_at: datetime
    seen_at: datetime
    problem: str | None = None

    @classmethod
    def from_row(cls, row: tuple[Any, ...]) -> Self:
        """From the columns of list_schedules.sql, in their order; among them since when it may tick."""
        *columns, since, seen_at = row
        facts = dict(zip(cls.__slots__, (*columns, seen_at), strict=False))
        with contextlib.suppress(ValueError):  # what Python can't hold (a number of 100,000 digits) stays text
            facts["payload"] = orjson.loads(facts["payload"])
        for name in ("next_tick", "last_tick", "created_at", "updated_at", "seen_at"):
            facts[name] = facts[name] and facts[name].astimezone(UTC)
        try:
            times = timetable(facts["expression"], facts["time_zone"])
        except InvalidScheduleError as error:
            return cls(**{**facts, "next_tick": None, "problem": str(error)})
        if facts["paused"]:
            facts["next_tick"] = None
        elif facts["next_tick"] is None:
            facts["next_tick"] = times.after(_begin(since, facts["last_tick"]))
        return cls(**facts)

    @property
    def timetable(self) -> Timetable:
        """When it ticks; raises InvalidScheduleError for a row that has a problem."""
        return timetable(self.expression, self.time_zone)

    def upcoming(self, count: int) -> list[datetime]:
        """The next ticks, in UTC; of a paused one: those if it were resumed now."""
        begin = self.seen_at if self.next_tick is None else self.next_tick - _BEFORE
        return list(islice(self.timetable.all_after(begin), count))

    def ticks_between(self, start: datetime, end: datetime | None, most: int) -> list[datetime]:
        """The ticks from ``start`` up to but not including ``end`` (None: now), in UTC.

        Raises:
            InvalidScheduleError: the times say no zone, or there are more than ``most`` ticks.
        """
        end = self.seen_at if end is None else end
        for moment in (start, end):
            if not isinstance(moment, datetime) or moment.utcoffset() is None:
                raise InvalidScheduleError(f"{moment!r} must be a datetime with a time zone")
        ticks = list(islice(takewhile(lambda tick: tick < end, self.timetable.all_after(start - _BEFORE)), most + 1))
        if len(ticks) > most:
            raise InvalidScheduleError(
                f"schedule {self.name!r} has more than {most} ticks from {start.isoformat()} to {end.isoformat()}"
            )
        return ticks

    def as_dict(self) -> dict[str, Any]:
        """For JSON: times in ISO 8601, durations as text."""
        facts: dict[str, Any] = {}
        for name in self.__slots__:
            value = getattr(self, name)
            if isinstance(value, timedelta):
                value = format_duration(value)
            facts[name] = value.isoformat() if isinstance(value, datetime) else value
        return facts


@dataclass(frozen=True, slots=True)
class Waiting:
    """What a worker sees of a schedule whose tick is near or not worked out; ``now`` is the server's clock."""

    name: str
    expression: str
    time_zone: str
    misfire: str
    grace: timedelta
    since: datetime
    next_tick: datetime | None
    last_tick: datetime | None
    now: datetime


@dataclass(frozen=True, slots=True)
class Plan:
    """What to fire now, oldest first, and what comes then. ``missed``: some of it is later than the grace."""

    name: str
    expression: str
    time_zone: str
    due: datetime | None
    fire: Sequence[datetime]
    next: datetime
    missed: bool = False

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {name: getattr(self, name) for name in self.__slots__ if name != "missed"}


def plan(waiting: Waiting) -> Plan:
    """What its misfire policy says about the ticks that are due; raises InvalidScheduleError for what can't tick."""
    times, now = timetable(waiting.expression, waiting.time_zone), waiting.now
    due = waiting.next_tick or times.after(_begin(waiting.since, waiting.last_tick))
    missed = now - due > waiting.grace
    if missed and waiting.misfire == "latest":
        first = times.latest(due, now)
    elif missed and waiting.misfire == "skip":
        first = times.after(now - waiting.grace - _BEFORE)
    else:
        first = due
    fire: list[datetime] = []
    while first <= now and len(fire) < MOST_AT_ONCE:
        fire.append(first)
        first = times.after(first)
    return Plan(waiting.name, waiting.expression, waiting.time_zone, waiting.next_tick, fire, first, missed)


def _begin(since: datetime, last_tick: datetime | None) -> datetime:
    """No tick before this counts: neither from before an edit, nor again after the clock was set back."""
    return since if last_tick is None else max(since, last_tick)


def _check_word(value: Any, what: str, words: tuple[str, ...]) -> str:
    if value not in words:
        raise InvalidScheduleError(f"{what} must be {', '.join(words[:-1])} or {words[-1]}; not {value!r}")
    return str(value)


def _check_grace(value: Duration) -> timedelta:
    grace = parse_duration(value, "grace")
    if grace < _LEAST_GRACE:
        raise InvalidScheduleError(f"grace must be at least a second, not {value!r}")
    return grace
