"""How a run ended, as values; whatever a handler returns or raises becomes JSON that PostgreSQL takes."""

from __future__ import annotations

import dataclasses
import json
import math
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from pgqueue.outcome import MAX_MESSAGE, MAX_RESULT_BYTES, completed, describe_error, dump_result, error_json

ANY_TEXT = st.text(st.characters(codec=None, exclude_categories=()))
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), ANY_TEXT, st.binary(), st.datetimes(), st.decimals(),
    st.uuids(), st.complex_numbers(), st.just(object()), st.sets(st.integers()), st.timedeltas(),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.one_of(ANY_TEXT, st.integers()), inner, max_size=3)
    ),
    max_leaves=6,
)


class Point(BaseModel):
    x: int
    when: datetime


@dataclasses.dataclass
class Pair:
    a: int
    b: str


class Nasty:
    def __repr__(self) -> str:
        raise RuntimeError("no")

    def __str__(self) -> str:
        raise RuntimeError("no")

    def model_dump(self, **_: object) -> None:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        ({"a": 1}, {"a": 1}), ("text", "text"), ([1, (2, 3)], [1, [2, 3]]), ({1: 2}, {"1": 2}), (True, True),
        (Pair(1, "b"), {"a": 1, "b": "b"}), (frozenset({1}), [1]), (math.nan, None), (math.inf, None),
        (Point(x=1, when=datetime(2026, 1, 1, tzinfo=UTC)), {"x": 1, "when": "2026-01-01T00:00:00Z"}),
        ("a\0b", "a\N{REPLACEMENT CHARACTER}b"), ({"k\0": ["\0"]}, {"k\ufffd": ["\ufffd"]}),
        ("a\\u0000b", "a\\u0000b"), ("\\\0", "\\\N{REPLACEMENT CHARACTER}"),
    ],
)  # fmt: skip
def test_what_a_handler_returns_is_kept_as_json(value: Any, stored: Any):
    assert json.loads(dump_result(value)) == stored


def test_none_is_no_result():
    assert completed(None).result is None
    assert completed(0).result == "0"


@pytest.mark.parametrize("value", [object(), Nasty(), "\ud800", {"a": {"b": b"bytes"}}, 2**70, lambda: None])
def test_what_is_not_json_is_replaced_by_a_note(value: Any):
    kept = json.loads(dump_result(value))
    assert kept["note"].startswith("not JSON: ")
    assert isinstance(kept["repr"], str)


def test_deep_nesting_is_replaced_by_a_note():
    deep: list[Any] = []
    for _ in range(2000):
        deep = [deep]
    assert json.loads(dump_result(deep))["note"].startswith("not JSON: ")


def test_a_result_that_is_too_large_is_replaced_by_its_beginning():
    kept = json.loads(dump_result("ä" * MAX_RESULT_BYTES))
    assert kept["note"] == f"result of {2 * MAX_RESULT_BYTES + 2} bytes is over the limit of {MAX_RESULT_BYTES}"
    assert kept["start"].startswith('"ää')
    assert len(dump_result("x" * (MAX_RESULT_BYTES - 2))) == MAX_RESULT_BYTES


def test_an_error_is_described_with_everything_a_person_needs():
    try:
        raise ValueError("boom")  # noqa: TRY301
    except ValueError as error:
        facts = json.loads(describe_error(error, 3))
    assert (facts["attempt"], facts["type"], facts["message"]) == (3, "ValueError", "boom")
    assert "test_an_error_is_described" in facts["traceback"]
    assert datetime.fromisoformat(facts["at"]).tzinfo is not None


def test_an_error_that_was_never_raised_has_no_traceback():
    assert "traceback" not in json.loads(describe_error(ValueError("x"), 1))


def test_long_messages_and_tracebacks_are_cut():
    facts = json.loads(error_json(1, "E", "m" * 100_000, "t" * 100_000))
    assert len(facts["message"]) < MAX_MESSAGE + 50
    assert facts["message"].endswith("… (100000 characters)")
    assert len(facts["traceback"]) < 8_100


class BrokenError(Exception):
    def __str__(self) -> str:
        raise SystemExit


@pytest.mark.parametrize("error", [BrokenError(), ValueError("\ud800\0"), KeyError(), SystemExit(3), BaseException()])
def test_every_exception_can_be_described(error: BaseException):
    try:
        raise error  # noqa: TRY301
    except BaseException as caught:  # noqa: BLE001
        facts = json.loads(describe_error(caught, 1))
    assert facts["type"] == type(error).__name__


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=25, deadline=None
)
@given(values=st.lists(VALUES, min_size=3, max_size=6), messages=st.lists(ANY_TEXT, min_size=3, max_size=3))
def test_postgresql_takes_whatever_becomes_of_results_and_errors(dsn: str, values: list[Any], messages: list[str]):
    texts = [dump_result(value) for value in values] + [describe_error(ValueError(text), 1) for text in messages]
    with psycopg.connect(dsn) as connection:
        (count,) = connection.execute("SELECT count(x::jsonb) FROM unnest(%s::text[]) x", [texts]).fetchone()
    assert count == len(texts)
