"""How long to wait before a failed job is tried again."""

from __future__ import annotations

from datetime import timedelta
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgqueue import Exponential, Fixed, never
from pgqueue.errors import InvalidJobError


def test_the_default_is_two_four_eight_sixteen_seconds_give_or_take_a_tenth():
    for attempt, expected in enumerate((2, 4, 8, 16), 1):
        waits = [Exponential().delay(attempt).total_seconds() for _ in range(500)]
        assert all(0.9 * expected <= wait <= 1.1 * expected for wait in waits)
        assert mean(waits) == pytest.approx(expected, rel=0.02)
        assert max(waits) - min(waits) > 0.1 * expected, "jobs that failed together come back apart"


def test_without_jitter_it_is_exact():
    assert [Exponential(jitter=0).delay(n).total_seconds() for n in (1, 2, 3)] == [2, 4, 8]
    assert Exponential(base=1, jitter=0).delay(30) == timedelta(seconds=1)


@given(st.integers(1, 32_767), st.floats(1, 1e6), st.floats(0, 1), st.floats(0, 1e6))
def test_no_attempt_overflows_and_none_waits_longer_than_the_cap(attempt: int, base: float, jitter: float, cap: float):
    wait = Exponential(base=base, cap=cap, jitter=jitter).delay(attempt)
    assert timedelta(0) <= wait <= timedelta(seconds=cap) + timedelta(microseconds=1)


def test_the_last_attempt_of_all_waits_the_cap():
    assert Exponential(cap="5m", jitter=0).delay(32_767) == timedelta(minutes=5)
    assert Exponential().delay(32_767) <= timedelta(hours=1)


def test_fixed_is_the_same_after_every_failure_and_never_is_never():
    assert [Fixed("90s").delay(n) for n in (1, 2, 50)] == [timedelta(seconds=90)] * 3
    assert never.delay(1) is None


@pytest.mark.parametrize("bad", [{"base": 0.5}, {"base": -1}, {"jitter": -0.1}, {"jitter": 1.1}, {"cap": "soon"}])
def test_a_policy_without_meaning_is_refused_when_it_is_made(bad: dict[str, object]):
    with pytest.raises(InvalidJobError):
        Exponential(**bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [-1, "soon", None, float("nan")])
def test_a_fixed_wait_without_meaning_is_refused_when_it_is_made(bad: object):
    with pytest.raises(InvalidJobError):
        Fixed(bad)  # type: ignore[arg-type]
