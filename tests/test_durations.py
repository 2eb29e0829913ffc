"""Durations as people write them."""

from __future__ import annotations

import contextlib
import math
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgqueue.durations import format_duration, parse_duration
from pgqueue.errors import InvalidJobError

CENTURY = timedelta(days=36500)


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("30s", 30), ("5m", 300), ("1h30m", 5400), ("250ms", 0.25), ("2 days", 172_800), ("1 week", 604_800),
        ("1d 2h 3m 4s", 93_784), ("1.5h", 5400), (" 10 Seconds ", 10), ("7", 7), ("0.5", 0.5), ("0", 0), ("1e3", 1000),
        (90, 90), (1.5, 1.5), (0, 0), (timedelta(minutes=3), 180), ("100ms 1 min", 60.1),
    ],
)  # fmt: skip
def test_people_write_durations_in_many_ways(written: Any, seconds: float):
    assert parse_duration(written) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "written",
    ["", " ", "s", "5x", "5 m x", "-5s", "-1", "1h-30m", "nan", "inf", "-inf", "5mm", "1:30", "PT5M", "٣s", "9" * 400],
)
def test_what_is_no_duration_is_refused_by_name(written: str):
    with pytest.raises(InvalidJobError, match="the wait"):
        parse_duration(written, "the wait")


@pytest.mark.parametrize(
    "value", [-1, -0.001, math.nan, math.inf, CENTURY + timedelta(seconds=1), 1e300, -timedelta(1)]
)
def test_a_duration_is_from_nothing_to_a_hundred_years(value: Any):
    with pytest.raises(InvalidJobError, match="must be 0 to 100 years"):
        parse_duration(value)


@pytest.mark.parametrize("value", [10**400, -(10**400)], ids=["huge", "negative"])
def test_a_number_that_no_float_holds_is_refused_too(value: int):
    with pytest.raises(InvalidJobError):
        parse_duration(value)


@pytest.mark.parametrize("value", [True, None, [], {}, b"5s", object()])
def test_what_is_neither_text_nor_number_is_refused(value: Any):
    with pytest.raises(InvalidJobError, match="must be a timedelta, seconds, or text"):
        parse_duration(value)


@given(st.timedeltas(min_value=timedelta(0), max_value=CENTURY))
def test_a_timedelta_stays_what_it_is(value: timedelta):
    assert abs(parse_duration(value) - value) <= timedelta(microseconds=1 + value.total_seconds() * 1e-9)


@given(st.text(max_size=30))
def test_any_text_is_a_duration_or_a_typed_error(text: str):
    with contextlib.suppress(InvalidJobError):
        assert timedelta(0) <= parse_duration(text) <= CENTURY


@given(st.integers(0, 10**9).map(lambda n: timedelta(milliseconds=n)))
def test_what_is_formatted_can_be_read_again_to_the_precision_people_see(value: timedelta):
    again = parse_duration(format_duration(value))
    error = abs(again - value)
    if value < timedelta(seconds=1):
        assert not error
    elif value < timedelta(minutes=1):
        assert error <= timedelta(milliseconds=1)
    else:
        assert error <= max(timedelta(seconds=0.5), value / 24)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0ms"), (0.25, "250ms"), (1, "1s"), (1.5, "1.5s"), (59, "59s"), (60, "1m"), (5400, "1h30m"), (172_800, "2d"),
     (90_061, "1d1h"), (604_800, "7d")],
)  # fmt: skip
def test_a_duration_is_written_the_way_people_read_it(seconds: float, text: str):
    assert format_duration(timedelta(seconds=seconds)) == text
