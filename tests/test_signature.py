"""A function's parameters as JSON: checked when a job is enqueued, and again when it runs."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, Literal
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from pgqueue import Job
from pgqueue.errors import InvalidJobError, InvalidPayloadError
from pgqueue.signature import Arguments

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import PurePath


class Colour(Enum):
    RED = "red"


class Address(BaseModel):
    street: str
    zip: str = "0000"


@dataclass
class Point:
    x: int
    y: int = 0


def arguments(function: Callable[..., Any], *, raw: bool = False) -> Arguments:
    return Arguments(function, "the.task", raw=raw, job_type=Job)


def round_trip(function: Callable[..., Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
    """What the handler gets for a call."""
    found = arguments(function)
    return found.load(found.dump(args, kwargs))


def plain(a: int, b: str = "x", *, c: float = 1.5) -> None: ...


def test_positional_and_named_arguments_are_the_same_call():
    assert round_trip(plain, 1, "y", c=2.0) == round_trip(plain, a=1, b="y", c=2.0) == {"a": 1, "b": "y", "c": 2.0}


def test_what_was_not_given_is_not_in_the_payload_so_that_the_default_may_change():
    assert arguments(plain).dump((1,), {}) == '{"a":1}'
    assert round_trip(plain, 1) == {"a": 1}


def test_a_function_without_parameters_takes_the_empty_object():
    found = arguments(lambda: None)
    assert found.dump((), {}) == "{}"
    assert found.load("{}") == {}
    with pytest.raises(InvalidPayloadError, match="a: Extra inputs are not permitted"):
        found.load('{"a": 1}')


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((), {}, "missing a required argument: 'a'"),
        ((1, "x", 3), {}, "too many positional arguments"),
        ((1,), {"a": 2}, "multiple values for argument 'a'"),
        ((1,), {"d": 2}, "unexpected keyword argument 'd'"),
        (("one",), {}, "a: Input should be a valid integer"),
        ((None,), {}, "a: Input should be a valid integer"),
        (("one",), {"b": 3}, "and 1 more"),
    ],
)  # fmt: skip
def test_a_call_that_does_not_fit_is_refused_by_name(args: Any, kwargs: dict[str, Any], message: str):
    with pytest.raises(InvalidPayloadError, match=f"task 'the.task': .*{message}"):
        arguments(plain).dump(args, kwargs)


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ("{}", "a: Field required"), ('{"a": "one"}', "a: Input should be a valid integer"),
        ("[1]", "payload: Input should be an object"), ("null", "payload: Input should be an object"),
        ('{"a": 1, "zz": 2}', "zz: Extra inputs"), ('{"a": 1, "b": null}', "b: Input should"),
        ("{", "payload: Invalid JSON"),
    ],
)  # fmt: skip
def test_a_payload_that_does_not_fit_is_refused_when_it_runs(payload: str, message: str):
    with pytest.raises(InvalidPayloadError, match=message):
        arguments(plain).load(payload)


def test_rich_types_arrive_as_what_they_were():
    def rich(
        when: datetime, day: date, wait: timedelta, key: UUID, price: Decimal, colour: Colour, address: Address,
        point: Point, kind: Literal["a", "b"], ids: list[int], pair: tuple[int, str], names: set[str],
        more: dict[str, Point] | None, level: Annotated[int, Field(ge=0, le=9)],
    ) -> None: ...  # fmt: skip

    given = {
        "when": datetime(2026, 1, 1, tzinfo=UTC), "day": date(2026, 1, 2), "wait": timedelta(hours=1, microseconds=1),
        "key": UUID(int=7), "price": Decimal("1.10"), "colour": Colour.RED, "address": Address(street="s"),
        "point": Point(1, 2), "kind": "a", "ids": [1, 2], "pair": (1, "x"), "names": {"n"}, "more": {"p": Point(3)},
        "level": 9,
    }  # fmt: skip
    assert round_trip(rich, **given) == given
    with pytest.raises(InvalidPayloadError, match="level: Input should be less than or equal to 9"):
        round_trip(rich, **{**given, "level": 10})
    with pytest.raises(InvalidPayloadError, match=r"point\.x: Input should be"):
        round_trip(rich, **{**given, "point": {"x": "?"}})


def test_the_running_job_is_no_argument():
    def handler(a: int, job: Job, b: int = 2) -> None: ...

    def optional(a: int, *, me: Job | None = None) -> None: ...

    found = arguments(handler)
    assert found.job_parameter == "job"
    assert found.dump((1, 3), {}) == '{"a":1,"b":3}'
    assert arguments(optional).job_parameter == "me"
    assert arguments(plain).job_parameter is None


def test_further_named_arguments_lie_beside_the_named_ones():
    def open_ended(a: int, **rest: Any) -> None: ...

    assert round_trip(open_ended, 1, x=2, y=[3]) == {"a": 1, "x": 2, "y": [3]}
    assert round_trip(open_ended, a=1) == {"a": 1}


def test_a_further_argument_may_be_named_like_the_rest():
    def open_ended(a: int, **rest: Any) -> None: ...

    assert round_trip(open_ended, 1, rest=5) == {"a": 1, "rest": 5}
    assert round_trip(open_ended, 1, rest=5, x=6) == {"a": 1, "rest": 5, "x": 6}


def test_an_argument_without_annotation_takes_any_json():
    assert round_trip(lambda a: None, {"x": [1, None]}) == {"a": {"x": [1, None]}}


def test_a_raw_task_takes_the_whole_payload():
    found = arguments(lambda payload: None, raw=True)
    for value in (None, 3, "x", [1], {"a": 1}):
        assert found.load(found.dump((value,), {})) == {"payload": value}
    with pytest.raises(InvalidPayloadError):
        found.dump((), {})
    with pytest.raises(InvalidJobError, match="exactly one parameter"):
        arguments(lambda a, b: None, raw=True)
    with pytest.raises(InvalidJobError, match="exactly one parameter"):
        arguments(lambda: None, raw=True)


def test_what_json_can_not_name_is_refused_when_the_task_is_made():
    def positional(a: int, /) -> None: ...

    def many(*rest: int) -> None: ...

    def unknown(path: PurePath) -> None: ...

    def strange(a: Callable[[], int], thing: Arguments) -> None: ...

    for function, message in ((positional, "'a' can't be named in JSON"), (many, "'rest' can't be named in JSON")):
        with pytest.raises(InvalidJobError, match=message):
            arguments(function)
    with pytest.raises(InvalidJobError, match="'PurePath', which does not exist at run time; import it outside"):
        arguments(unknown)
    strange.__annotations__ = {"thing": Arguments}
    with pytest.raises(InvalidJobError, match="can't travel as JSON"):
        arguments(strange)


@pytest.mark.parametrize("value", ["a\0b", {"k\0": 1}, ["\ud800"], b"\xff", object(), "x" * 1_048_577, {1: object()}])
def test_what_postgresql_can_not_store_is_refused_before_any_sql(value: Any):
    with pytest.raises(InvalidPayloadError):
        arguments(lambda a: None).dump((value,), {})


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_that_json_does_not_have_is_refused_or_arrives(value: float):
    def handler(x: float) -> None: ...

    try:
        payload = arguments(handler).dump((value,), {})
    except InvalidPayloadError:
        return
    assert str(arguments(handler).load(payload)["x"]) == str(value)


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=5), st.one_of(st.integers(-(2**63), 2**63), st.text(), st.none(), st.booleans())
    )
)
def test_whatever_is_accepted_comes_back_the_same(value: dict[str, Any]):
    def handler(value: dict[str, Any]) -> None: ...

    try:
        payload = arguments(handler).dump((value,), {})
    except InvalidPayloadError:
        return
    assert arguments(handler).load(payload) == {"value": value}
    assert json.loads(payload) == {"value": value}
