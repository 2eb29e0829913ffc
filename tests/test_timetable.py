"""When a schedule ticks: expressions, intervals, time zones, and every change of every clock from 2000 to 2040."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from itertools import islice, pairwise
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgqueue import InvalidScheduleError
from pgqueue.timetable import Timetable

if TYPE_CHECKING:
    from collections.abc import Iterator

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
MINUTE = timedelta(minutes=1)


def local(expression: str, zone: str, start: str, count: int) -> list[str]:
    """The ticks after a local time, as the clock there shows them."""
    table = Timetable(expression, zone)
    moment = datetime.fromisoformat(start).replace(tzinfo=ZoneInfo(zone))
    return [f"{table.local(tick):%d %H:%M:%S %Z}" for tick in islice(table.all_after(moment), count)]


# -- expressions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "ticks"),
    [
        ("30 9 * * *", ["01 09:30:00 UTC", "02 09:30:00 UTC"]),
        ("0 9 * * MON-FRI", ["02 09:00:00 UTC", "03 09:00:00 UTC"]),
        ("*/20 * * * *", ["01 00:20:00 UTC", "01 00:40:00 UTC"]),
        ("15 30 9 * * *", ["01 09:30:15 UTC", "02 09:30:15 UTC"]),
        ("*/30 * * * * *", ["01 00:00:30 UTC", "01 00:01:00 UTC"]),
        ("0 0 L * *", ["28 00:00:00 UTC", "31 00:00:00 UTC"]),
        ("0 0 * * SUN#2", ["08 00:00:00 UTC", "08 00:00:00 UTC"]),
        ("  0   12 * * * ", ["01 12:00:00 UTC", "02 12:00:00 UTC"]),
        ("@hourly", ["01 01:00:00 UTC", "01 02:00:00 UTC"]),
        ("@Daily", ["02 00:00:00 UTC", "03 00:00:00 UTC"]),
        ("@midnight", ["02 00:00:00 UTC", "03 00:00:00 UTC"]),
        ("@weekly", ["08 00:00:00 UTC", "15 00:00:00 UTC"]),
        ("@monthly", ["01 00:00:00 UTC", "01 00:00:00 UTC"]),
        ("@yearly", ["01 00:00:00 UTC", "01 00:00:00 UTC"]),
        ("every 90s", ["01 00:01:30 UTC", "01 00:03:00 UTC"]),
        ("@every 1h30m", ["01 01:30:00 UTC", "01 03:00:00 UTC"]),
        ("EVERY 1.5 s", ["01 00:00:01 UTC", "01 00:00:03 UTC"]),
    ],
)
def test_an_expression_ticks_when_it_says(expression, ticks):
    assert local(expression, "UTC", "2026-02-01T00:00:00", 2) == ticks  # a Sunday


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("", "1 to 256 characters"),
        ("x" * 257, "1 to 256 characters"),
        ("* * * *", "4 fields"),
        ("* * * * * * *", "7 fields"),
        ("61 * * * *", "'61' is no minute, which is 0-59"),
        ("0 24 * * *", "'24' is no hour"),
        ("61 0 0 * * *", "'61' is no second"),
        ("0 0 32 * *", "'32' is no day-of-month"),
        ("0 0 * 13 *", "'13' is no month"),
        ("0 0 * * FUN", "'FUN' is no day-of-week"),
        ("5-1 * * * *", "'5-1' is no minute"),
        ("*/0 * * * *", "'*/0' is no minute"),
        ("@reboot", "there are @yearly"),
        ("@fortnightly", "there are @yearly"),
        ("every", "1 fields"),
        ("every day", "is not a duration"),
        ("every 0s", "at least a second"),
        ("every 999ms", "at least a second"),
        ("every -5s", "'-5s'"),
        ("0 0 * * *\0", "NUL"),
    ],
)
def test_an_expression_without_meaning_is_refused_and_says_which_part(expression, said):
    with pytest.raises(InvalidScheduleError) as caught:
        Timetable(expression)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "never", ["0 0 30 2 *", "0 0 31 4,6,9,11 *", "0 0 30,31 2 *", "0 0 0 30 2 *", "0 0 */30 2 MON#5"]
)
def test_a_date_that_never_comes_is_refused(never):
    with pytest.raises(InvalidScheduleError, match="never ticks"):
        Timetable(never)


def test_a_rare_date_is_found():
    assert Timetable("0 0 29 2 *").after(datetime(2097, 1, 1, tzinfo=UTC)) == datetime(2104, 2, 29, tzinfo=UTC)
    assert Timetable("0 0 * 2 MON#5").after(datetime(2073, 1, 1, tzinfo=UTC)) == datetime(2112, 2, 29, tzinfo=UTC)


@pytest.mark.parametrize(
    ("zone", "said"),
    [
        ("Europe/Berln", "did you mean 'Europe/Berlin'"),
        ("europe/berlin", "did you mean 'Europe/Berlin'"),
        ("New York", "did you mean 'America/New_York'"),
        ("../../etc/passwd", "no time zone"),
        ("/etc/localtime", "no time zone"),
        ("localtime", "no time zone"),
        ("right/UTC", "no time zone"),
        ("Europe", "no time zone"),
        ("", "1 to 64"),
        ("X" * 65, "1 to 64"),
        ("U\0TC", "NUL"),
    ],
)
def test_a_time_zone_that_is_none_is_refused_with_the_one_that_was_meant(zone, said):
    with pytest.raises(InvalidScheduleError) as caught:
        Timetable("@daily", zone)
    assert said in str(caught.value)


@pytest.mark.parametrize("wrong", [None, 5, b"* * * * *", ["*"]])
def test_what_is_not_text_is_refused(wrong):
    with pytest.raises(InvalidScheduleError, match="must be text"):
        Timetable(wrong)
    with pytest.raises(InvalidScheduleError, match="must be text"):
        Timetable("@daily", wrong)


FIELD = st.text(alphabet="0123456789*/,-#LW JANMOSUN@every?²", max_size=9)


@given(st.one_of(st.text(max_size=40), st.lists(FIELD, min_size=1, max_size=7).map(" ".join)))
@settings(max_examples=400, deadline=None)
def test_whatever_is_written_either_ticks_or_is_refused(expression):
    try:
        table = Timetable(expression, "America/New_York")
    except InvalidScheduleError:
        return
    start = datetime(2026, 10, 31, 12, tzinfo=UTC)
    first, second = islice(table.all_after(start), 2)
    assert start < first < second


@given(
    st.sampled_from(
        ["30 2 * * *", "*/7 * * * *", "0 0 29 2 *", "15 45 1-3 * * SUN", "every 97s", "every 1.5s", "@hourly"]
    ),
    st.sampled_from(["Europe/Berlin", "Australia/Lord_Howe", "UTC", "America/Havana"]),
    st.datetimes(datetime(2000, 1, 1), datetime(2040, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
    st.timedeltas(timedelta(0), timedelta(days=900)),
)
@settings(max_examples=300, deadline=None)
def test_the_latest_tick_is_the_one_before_the_next(expression, zone, first, ahead):
    table = Timetable(expression, zone)
    begin = table.after(first)
    until = begin + ahead
    latest = table.latest(begin, until)
    assert begin <= latest <= until < table.after(latest)


# -- the two days of the year ----------------------------------------------------------------------------------------


def test_a_time_that_the_clock_shows_twice_ticks_once_at_the_first():
    assert local("30 2 * * *", "Europe/Berlin", "2026-10-24T03:00", 2) == ["25 02:30:00 CEST", "26 02:30:00 CET"]
    assert local("0 30 2 * * *", "Europe/Berlin", "2026-10-24T03:00", 2) == ["25 02:30:00 CEST", "26 02:30:00 CET"]


def test_a_time_that_the_clock_skips_ticks_when_it_has_been_put_forward():
    assert local("30 2 * * *", "Europe/Berlin", "2026-03-28T03:00", 2) == ["29 03:00:00 CEST", "30 02:30:00 CEST"]
    assert local("0 30 2 * * *", "Europe/Berlin", "2026-03-28T03:00", 2) == ["29 03:00:00 CEST", "30 02:30:00 CEST"]


def test_two_skipped_times_are_one_tick_since_they_are_one_moment():
    assert local("0,30 2 * * *", "Europe/Berlin", "2026-03-29T00:00", 2) == ["29 03:00:00 CEST", "30 02:00:00 CEST"]


def test_minutes_of_named_hours_tick_once_each():
    assert local("*/30 1-3 * * *", "Europe/Berlin", "2026-10-25T00:00", 7) == [
        "25 01:00:00 CEST", "25 01:30:00 CEST", "25 02:00:00 CEST", "25 02:30:00 CEST", "25 03:00:00 CET",
        "25 03:30:00 CET", "26 01:00:00 CET",
    ]  # fmt: skip


def test_what_ticks_each_hour_follows_the_time_that_passes():
    assert local("*/30 * * * *", "Europe/Berlin", "2026-10-25T01:30", 5) == [
        "25 02:00:00 CEST", "25 02:30:00 CEST", "25 02:00:00 CET", "25 02:30:00 CET", "25 03:00:00 CET",
    ]  # fmt: skip
    assert local("@hourly", "Europe/Berlin", "2026-03-29T00:30", 3) == [
        "29 01:00:00 CET", "29 03:00:00 CEST", "29 04:00:00 CEST",
    ]  # fmt: skip


def test_half_an_hour_on_lord_howe():
    assert local("35 * * * *", "Australia/Lord_Howe", "2026-04-05T01:00", 3) == [
        "05 01:35:00 +11", "05 01:35:00 +1030", "05 02:35:00 +1030",
    ]  # fmt: skip
    assert local("35 * * * *", "Australia/Lord_Howe", "2026-10-04T01:00", 2) == ["04 01:35:00 +1030", "04 02:35:00 +11"]


def test_the_day_that_samoa_left_out():
    assert local("0 9 * * *", "Pacific/Apia", "2011-12-29T00:00", 3) == [
        "29 09:00:00 -10", "31 00:00:00 +14", "31 09:00:00 +14",
    ]  # fmt: skip


def test_an_interval_knows_no_time_zone():
    ticks = list(islice(Timetable("every 45m", "Europe/Berlin").all_after(datetime(2026, 10, 24, tzinfo=UTC)), 100))
    assert {later - earlier for earlier, later in pairwise(ticks)} == {timedelta(minutes=45)}


def test_a_second_pass_of_the_clock_goes_on_where_it_is():
    """Asked in the middle of the repeated hour, as a worker that starts then asks."""
    table = Timetable("30 2 * * *", "Europe/Berlin")
    second = datetime(2026, 10, 25, 2, 10, tzinfo=ZoneInfo("Europe/Berlin"), fold=1)
    assert f"{table.local(table.after(second)):%d %H:%M}" == "26 02:30"
    half = Timetable("*/30 * * * *", "Europe/Berlin")
    assert half.after(second) == datetime(2026, 10, 25, 1, 30, tzinfo=UTC)


# -- all of them -----------------------------------------------------------------------------------------------------


def changes(zone: ZoneInfo) -> Iterator[datetime]:
    """The moments from 2000 to 2040 at which the clock is put forward or back: day by day, then by bisection."""
    noon = datetime(2000, 1, 1, 12)  # noqa: DTZ001
    offset = zone.utcoffset(noon)
    while noon.year <= 2040:
        noon += DAY
        if (changed := zone.utcoffset(noon)) != offset:
            high = noon.replace(tzinfo=zone).astimezone(UTC)
            low = high - 3 * DAY  # a day was left out, or shown twice
            while high - low > MINUTE:
                middle = low + max((high - low) // (2 * MINUTE), 1) * MINUTE
                low, high = (low, middle) if middle.astimezone(zone).utcoffset() == changed else (middle, high)
            yield high
            offset = changed


def wall(moment: datetime, zone: ZoneInfo) -> datetime:
    return moment.astimezone(zone).replace(tzinfo=None, fold=0)


class Clock:
    """What the clocks of a zone show around a change, minute by minute: counted, not computed."""

    def __init__(self, change: datetime, zone: ZoneInfo, around: timedelta) -> None:
        moments = [change - around + nth * MINUTE for nth in range(2 * around // MINUTE)]
        self.shown = [(moment, wall(moment, zone)) for moment in moments]
        self.first: dict[datetime, datetime] = {}  # of each time, when the clock first shows it or a later one
        latest = self.shown[0][1] - MINUTE
        for moment, time in self.shown:
            while latest < time:
                latest += MINUTE
                self.first[latest] = moment

    def named(self, minutes: set[int], hours: set[int]) -> list[datetime]:
        """The moments of named times: once each."""
        chosen = {at for time, at in self.first.items() if time.minute in minutes and time.hour in hours}
        return sorted(chosen - {self.shown[0][0]})

    def at(self, minutes: set[int]) -> list[datetime]:
        """Whenever the clock shows one of these minutes."""
        return [moment for moment, time in self.shown[1:] if time.minute in minutes]


def found(expression: str, zone: str, change: datetime, around: timedelta) -> list[datetime]:
    ticks = []
    for tick in Timetable(expression, zone).all_after(change - around):
        if tick >= change + around:
            return ticks
        ticks.append(tick)
    raise AssertionError


def every_change() -> list[tuple[str, datetime]]:
    """Of every zone; zones that change alike are counted once."""
    seen: dict[tuple[object, ...], tuple[str, datetime]] = {}
    names = sorted(available_timezones() - {"localtime", "Factory"})
    own = {files("tzdata").joinpath("zoneinfo", *name.split("/")).read_bytes(): name for name in names}
    for name in own.values():
        zone = ZoneInfo(name)
        for change in changes(zone):
            before, after = wall(change - MINUTE, zone) + MINUTE, wall(change, zone)
            seen.setdefault((change, before, after), (name, change))
    return list(seen.values())


@pytest.fixture
def no_coverage():
    """A trace function makes millions of small steps twice as slow."""
    tracer = sys.gettrace()
    sys.settrace(None)
    yield
    sys.settrace(tracer)


@pytest.mark.slow
@pytest.mark.usefixtures("no_coverage")
def test_every_change_of_every_clock_from_2000_to_2040():
    """Named times tick once each, and never out of order; what ticks each hour ticks whenever the clock shows it."""
    all_changes = every_change()
    assert len(all_changes) > 3000
    for nth, (name, change) in enumerate(all_changes):
        zone = ZoneInfo(name)
        before, after = wall(change - MINUTE, zone) + MINUTE, wall(change, zone)
        jump = abs(after - before)
        middle = min(before, after) + jump / 2
        reach = jump + HOUR
        clock = Clock(change, zone, reach)
        hours = {(before + nth * HOUR).hour for nth in range(-2, 3)}
        many = nth % 4 == 0  # often around the change: of a quarter of them, once exactly then: of all
        named = [({middle.minute}, {middle.hour})] + [({0, 10, 20, 30, 40, 50}, hours)] * many
        for minutes, of_hours in named:
            expression = f"{','.join(map(str, minutes))} {','.join(map(str, of_hours))} * * *"
            assert found(expression, name, change, reach) == clock.named(minutes, of_hours), (name, expression, change)
        for minutes in [{middle.minute}] + [{0, 15, 30, 45}] * many:
            expression = f"{','.join(map(str, minutes))} * * * *"
            assert found(expression, name, change, reach) == clock.at(minutes), (name, expression, change)
