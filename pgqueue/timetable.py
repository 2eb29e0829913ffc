"""When a schedule ticks: a cron expression in a time zone, or an interval. The calendar is cronsim's. No I/O."""

from __future__ import annotations

import re
from copy import copy
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from functools import cache
from typing import TYPE_CHECKING, Final
from zoneinfo import ZoneInfo, available_timezones

from cronsim import CronSim, CronSimError

from pgqueue.durations import parse_duration
from pgqueue.errors import InvalidJobError, InvalidScheduleError
from pgqueue.job import check_text

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_EXPRESSION_LENGTH: Final = 256
DEFAULT_TIME_ZONE: Final = "UTC"

_ALIASES: Final = {
    "@yearly": "0 0 1 1 *", "@annually": "0 0 1 1 *", "@monthly": "0 0 1 * *", "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *", "@midnight": "0 0 * * *", "@hourly": "0 * * * *",
}  # fmt: skip
_INTERVAL: Final = re.compile(r"@?every\s+(.+)", re.IGNORECASE)
_EXAMPLES: Final = "write five fields ('30 9 * * MON-FRI'), six with seconds first, @daily, or 'every 90s'"
_PLACES: Final = {
    "second": "0-59", "minute": "0-59", "hour": "0-23", "day-of-month": "1-31", "month": "1-12 or JAN-DEC",
    "day-of-week": "0-7 or SUN-SAT",
}  # fmt: skip
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SOME_DAY: Final = datetime(2000, 1, 1)  # noqa: DTZ001 - a time on a wall
_SECOND: Final = timedelta(seconds=1)
_MINUTE: Final = timedelta(minutes=1)
_NO_TIME: Final = timedelta(0)
_OF_THIS_MACHINE: Final = ("posix/", "right/", "localtime", "posixrules", "Factory")


class Timetable:
    """The ticks of an expression in a time zone, each a moment in UTC.

    An expression that names hours ticks once for each time that it names: where the clock is put back, at the
    first of the two; where it is put forward over it, at the moment when that is done. One whose hour is ``*`` ticks
    whenever the clock shows its minute. An interval counts from 1970 in UTC.

    Args:
        expression: five or six cron fields (six begin with seconds), ``@hourly`` and the like, or ``every 90s``.
        time_zone: a name of the IANA data base, such as ``Europe/Berlin``.

    Raises:
        InvalidScheduleError: the expression has no meaning or never ticks, or there is no such time zone.
    """

    __slots__ = ("_cron", "_every", "_every_hour", "_zone", "expression", "time_zone")

    def __init__(self, expression: str, time_zone: str = DEFAULT_TIME_ZONE) -> None:
        self.expression = _tidy(expression)
        self.time_zone = _checked_name(time_zone)
        self._zone = _zone(self.time_zone)
        self._every = _interval(self.expression)
        self._cron = None if self._every else _cron(self.expression)
        self._every_hour = self._cron is not None and len(self._cron.hours) == 24  # noqa: PLR2004

    def __repr__(self) -> str:
        return f"<Timetable {self.expression!r} in {self.time_zone}>"

    def after(self, moment: datetime) -> datetime:
        """The first tick that is later than this moment."""
        moment = moment.astimezone(UTC)
        if self._every:
            return _EPOCH + ((moment - _EPOCH) // self._every + 1) * self._every
        return self._shown_after(moment) if self._every_hour else self._named_after(moment)

    def all_after(self, moment: datetime) -> Iterator[datetime]:
        """The ticks that are later than this moment, for ever."""
        while True:
            moment = self.after(moment)
            yield moment

    def latest(self, first: datetime, until: datetime) -> datetime:
        """The last tick up to and including ``until``, given one that is not later: it is found by bisection."""
        low, high = first - timedelta(microseconds=1), until
        while high - low >= _SECOND:  # ticks are at least so far apart
            middle = low + (high - low) / 2
            if self.after(middle) <= until:
                low = middle
            else:
                high = middle
        return self.after(low)

    def local(self, moment: datetime) -> datetime:
        """The moment as the clock of its time zone shows it."""
        return moment.astimezone(self._zone)

    def meant(self, wall: datetime) -> datetime:
        """The moment that is meant by a time without a zone."""
        return wall.replace(tzinfo=self._zone).astimezone(UTC)

    def _named_after(self, moment: datetime) -> datetime:
        for named in self._times_after(self._wall(moment)):
            while not self._exists(named):  # the clock is put forward over it: when that is done
                named = named.replace(second=0) + _MINUTE  # noqa: PLW2901
            tick = named.replace(tzinfo=self._zone).astimezone(UTC)
            if tick > moment:
                return tick
        raise InvalidScheduleError(f"schedule {self.expression!r} does not tick after {moment.isoformat()}")

    def _shown_after(self, moment: datetime) -> datetime:
        here, wall = moment.astimezone(self._zone), self._wall(moment)
        shown = next(time for time in self._times_after(wall) if self._exists(time))
        tick = next(reading for reading in self._readings(shown) if reading > moment)
        repeated = (here.utcoffset() or _NO_TIME) - (here.replace(fold=1).utcoffset() or _NO_TIME)
        if not repeated or (tick - moment <= repeated and len(self._readings(shown)) > 1):
            return tick
        for again in self._times_after(wall - repeated):  # before that, the clock is put back and shows some again
            second = self._readings(again)[-1]
            if again > wall or second > moment:
                return min(tick, second) if again <= wall else tick
        return tick  # pragma: no cover - cronsim goes on for fifty years

    def _times_after(self, wall: datetime) -> CronSim:
        """The times on the wall that the expression names. Parsing it again would cost as much as the answer."""
        times = copy(self._cron)
        assert times is not None  # noqa: S101
        times.dt = wall.replace(microsecond=0)
        return times

    def _wall(self, moment: datetime) -> datetime:
        return moment.astimezone(self._zone).replace(tzinfo=None, fold=0)

    def _exists(self, wall: datetime) -> bool:
        return self._wall(wall.replace(tzinfo=self._zone).astimezone(UTC)) == wall

    def _readings(self, wall: datetime) -> list[datetime]:
        """The one or two moments at which the clock shows this, in their order."""
        return sorted({wall.replace(tzinfo=self._zone, fold=fold).astimezone(UTC) for fold in (0, 1)})


def _tidy(expression: str) -> str:
    try:
        return " ".join(check_text(expression, "schedule", MAX_EXPRESSION_LENGTH).split())
    except InvalidJobError as error:
        raise InvalidScheduleError(f"{error}; {_EXAMPLES}") from None


def _interval(expression: str) -> timedelta | None:
    match = _INTERVAL.fullmatch(expression)
    if match is None:
        return None
    try:
        every = parse_duration(match[1])
    except InvalidJobError as error:
        raise InvalidScheduleError(f"schedule {expression!r}: {error}") from None
    if every < _SECOND:
        raise InvalidScheduleError(f"schedule {expression!r}: an interval is at least a second")
    return every


def _cron(expression: str) -> CronSim:
    """The expression, if it has a meaning and ticks at all."""
    cron = _ALIASES.get(expression.lower(), expression)
    if cron.startswith("@"):
        known = ", ".join(_ALIASES)
        raise InvalidScheduleError(f"schedule {expression!r}: there are {known}, and 'every 90s'")
    try:
        parsed = CronSim(cron, _SOME_DAY)
        first = next(copy(parsed), None)
    except (CronSimError, ValueError, AssertionError, TypeError) as error:
        raise InvalidScheduleError(f"schedule {expression!r}: {_reason(cron, str(error))}") from None
    if first is None:
        raise InvalidScheduleError(f"schedule {expression!r} never ticks: no date is like that")
    return parsed


def _reason(cron: str, said: str) -> str:
    fields = cron.split()
    place = said.removeprefix("Bad ")
    if len(fields) not in (5, 6):
        return f"{len(fields)} fields; {_EXAMPLES}"
    if place not in _PLACES:
        return _EXAMPLES
    field = fields[list(_PLACES).index(place) - 6]
    if place == "day-of-month" and re.fullmatch(r"[\d,/*-]+", field) and _ticks_in_some_month(fields):
        return f"it never ticks: no such month has a day {field}"
    return f"{field!r} is no {place}, which is {_PLACES[place]}, * or */5"


def _ticks_in_some_month(fields: list[str]) -> bool:
    try:
        CronSim(" ".join([*fields[:-2], "*", fields[-1]]), _SOME_DAY)
    except (CronSimError, ValueError, AssertionError, TypeError):
        return False
    return True


def _checked_name(name: str) -> str:
    try:
        return check_text(name, "time zone", 64)
    except InvalidJobError as error:
        raise InvalidScheduleError(str(error)) from None


@cache
def _zone(name: str) -> ZoneInfo:
    try:
        if name.startswith(_OF_THIS_MACHINE):
            raise ValueError(name)  # noqa: TRY301
        return ZoneInfo(name)
    except (LookupError, ValueError, OSError):
        names = {zone.lower(): zone for zone in available_timezones() if not zone.startswith(_OF_THIS_MACHINE)}
        close = get_close_matches(name.lower().replace(" ", "_"), names, n=1)
        hint = f"; did you mean {names[close[0]]!r}?" if close else "; write one such as 'Europe/Berlin' or 'UTC'"
        raise InvalidScheduleError(f"there is no time zone {name!r}{hint}") from None
