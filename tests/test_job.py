"""A job as a value: everything is checked when it is made; Python and PostgreSQL agree on what can be stored."""

from __future__ import annotations

import contextlib
import json
import math
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pgqueue import JobRecord, JobSpec, statements
from pgqueue.connection import run, translated
from pgqueue.errors import InvalidJobError, InvalidPayloadError
from pgqueue.job import MAX_PAYLOAD_BYTES, check_json, dump_payload, parse_payload, parse_priority

ANY_TEXT = st.text(st.characters(codec=None, exclude_categories=()), max_size=20)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), ANY_TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(ANY_TEXT, inner, max_size=4)),
)


def test_a_task_alone_makes_a_job_with_the_documented_defaults():
    spec = JobSpec.make("t")
    assert spec == JobSpec("t", "{}", "default", 5, None, None, 10, None, None, None)
    with pytest.raises(AttributeError):
        spec.queue = "other"  # type: ignore[misc]


def test_everything_is_converted_once():
    spec = JobSpec.make(
        "t", [1, {"a": None}], queue="q", priority="High", delay="1m", max_attempts=3, timeout=9, unique_key="k",
        meta={"a": 1},
    )  # fmt: skip
    assert (spec.payload, spec.priority, spec.delay, spec.timeout) == (
        '[1,{"a":null}]', 2, timedelta(minutes=1), timedelta(seconds=9),
    )  # fmt: skip
    assert spec.meta == '{"a":1}'


def test_a_time_is_turned_into_utc():
    when = datetime(2030, 1, 1, 12, tzinfo=timezone(timedelta(hours=5)))
    assert JobSpec.make("t", run_at=when).run_at == datetime(2030, 1, 1, 7, tzinfo=UTC)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"task": ""}, "task must have 1 to 128"),
    ({"task": "x" * 129}, "task must have 1 to 128"),
    ({"task": None}, "task must be text"),
    ({"task": "a\0"}, "task must not contain a NUL"),
    ({"task": "\ud800"}, "lone surrogate"),
    ({"queue": "x" * 1024}, "queue must have 1 to 128"),
    ({"queue": 5}, "queue must be text"),
    ({"priority": 10}, "priority must be 0"),
    ({"priority": -1}, "priority must be 0"),
    ({"priority": True}, "priority must be 0"),
    ({"priority": 2.0}, "priority must be 0"),
    ({"priority": math.nan}, "priority must be 0"),
    ({"priority": "urgent"}, "priority must be 0"),
    ({"priority": None}, "priority must be 0"),
    ({"delay": 5, "run_at": datetime.now(UTC)}, "say delay or run_at, not both"),
    ({"delay": -1}, "delay must be 0 to 100 years"),
    ({"delay": "soon"}, "is not a duration"),
    ({"run_at": datetime(2030, 1, 1)}, "run_at must carry a time zone"),  # noqa: DTZ001
    ({"run_at": "2030-01-01"}, "run_at must be a datetime"),
    ({"run_at": datetime.max.replace(tzinfo=UTC)}, "run_at must be from 1970"),
    ({"run_at": datetime.max.replace(tzinfo=timezone(-timedelta(hours=9)))}, "run_at must be from 1970"),
    ({"run_at": datetime.min.replace(tzinfo=timezone(timedelta(hours=9)))}, "run_at must be from 1970"),
    ({"max_attempts": 0}, "max_attempts must be 1 to 32767"),
    ({"max_attempts": 32_768}, "max_attempts must be 1 to 32767"),
    ({"max_attempts": True}, "max_attempts must be 1 to 32767"),
    ({"max_attempts": "3"}, "max_attempts must be 1 to 32767"),
    ({"timeout": 0}, "timeout must be positive"),
    ({"timeout": -1}, "timeout must be 0 to 100 years"),
    ({"unique_key": ""}, "unique_key must have 1 to 512"),
    ({"unique_key": "k" * 513}, "unique_key must have 1 to 512"),
    ({"meta": [1]}, "meta must be a dict"),
    ({"meta": {"a": "x" * 40_000}}, "meta must be at most"),
    ({"payload": object()}, "payload is not JSON"),
    ({"payload": {"a": {1, 2}}}, "payload is not JSON"),
    ({"payload": "\ud800"}, "payload is not JSON"),
    ({"payload": 2**64}, "payload is not JSON"),
    ({"payload": "a\0b"}, "payload holds a NUL"),
    ({"payload": {"a\0": 1}}, "payload holds a NUL"),
    ({"payload": "x" * MAX_PAYLOAD_BYTES}, "is over the limit of 1048576; store it in a table"),
]


@pytest.mark.parametrize(
    ("options", "message"), BAD, ids=[f"{n}-{'-'.join(options)}" for n, (options, _) in enumerate(BAD)]
)
def test_a_bad_option_is_refused_by_name_before_any_sql(options: dict[str, Any], message: str):
    with pytest.raises(InvalidJobError, match=message):
        JobSpec.make(**{"task": "t", **options})


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_an_infinite_priority_is_refused_too(value: float):
    with pytest.raises(InvalidJobError):
        parse_priority(value)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [math.nan, {"x": [math.inf]}, {"a": -math.inf}])
def test_a_number_that_json_does_not_have_is_refused_not_turned_into_null(value: Any):
    with pytest.raises(InvalidPayloadError):
        dump_payload(value)


@pytest.mark.parametrize(("value", "number"), [("high", 2), ("NORMAL", 5), ("low", 8), (0, 0), (9, 9), ("7", 7)])
def test_priorities_have_names(value: int | str, number: int):
    assert parse_priority(value) == number


def test_changed_checks_what_it_changes_and_keeps_the_rest():
    spec = JobSpec.make("t", {"a": 1}, queue="q", priority=1)
    assert spec.changed() is spec
    assert spec.changed(queue="p", delay="5s") == JobSpec.make("t", {"a": 1}, queue="p", priority=1, delay=5)
    assert spec.changed(payload=[2]).payload == "[2]"
    with pytest.raises(InvalidJobError, match="priority"):
        spec.changed(priority=99)


def test_changed_can_not_make_a_job_with_both_a_delay_and_a_time():
    spec = JobSpec.make("t", delay=5)
    with pytest.raises(InvalidJobError, match="not both"):
        spec.changed(run_at=datetime.now(UTC))


@pytest.mark.parametrize(
    "text", ["", "{", "nul", "{'a': 1}", "[1,]", '"\ud800"', "NaN", "[Infinity]", '"\\ud800"', '"\0"']
)
def test_text_that_is_not_json_is_refused(text: str):
    with pytest.raises(InvalidPayloadError, match="payload is not JSON"):
        parse_payload(text)


@pytest.mark.parametrize("text", [b"\xff", b'"\xed\xa0\x80"'])
def test_bytes_that_are_not_json_are_refused(text: bytes):
    with pytest.raises(InvalidPayloadError, match="payload is not JSON"):
        parse_payload(text)


@pytest.mark.parametrize("text", ['"\\u0000"', '{"\\u0000": 1}', '"\\\\\\u0000"', "[" * 2000 + "]" * 2000])
def test_json_that_postgresql_can_not_store_is_refused(text: str):
    with pytest.raises(InvalidPayloadError):
        parse_payload(text)


@pytest.mark.parametrize("text", ['"\\\\u0000"', '"\\\\\\\\u0000"', " [1] ", "null", '"\\u0001"', '"\\ud83d\\ude00"'])
def test_json_that_only_looks_strange_is_taken_as_it_is(text: str):
    assert parse_payload(text) == text


def test_a_mebibyte_of_utf_8_is_the_limit():
    assert len(check_json(b'"' + b"x" * (MAX_PAYLOAD_BYTES - 2) + b'"')) == MAX_PAYLOAD_BYTES
    with pytest.raises(InvalidPayloadError, match="payload of 1048577 bytes"):
        check_json(b'"' + b"x" * (MAX_PAYLOAD_BYTES - 1) + b'"')


def storable(connection: psycopg.Connection[Any], text: str) -> bool:
    try:
        with connection.transaction():
            connection.execute("SELECT %s::jsonb", [text])
    except (psycopg.DataError, psycopg.errors.ProgramLimitExceeded, UnicodeEncodeError):
        return False
    return True


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
@given(value=JSON)
def test_whatever_python_accepts_postgresql_stores_and_gives_back(connection: psycopg.Connection[Any], value: Any):
    try:
        text = dump_payload(value)
    except InvalidPayloadError:
        return
    (stored,) = connection.execute("SELECT %s::jsonb::text", [text]).fetchone()
    assert exactly(stored) == exactly(text)


def exactly(text: str) -> Any:
    return json.loads(text, parse_float=Decimal, parse_int=Decimal)


PIECES = st.sampled_from(
    ["{", "}", "[", "]", ":", ",", '"', "\\", "u0000", "\\u0000", "\\u0001", "\\ud800", "\\udc00", "\\n", "a", "0", "1",
     "-", ".", "e", "E5", "null", "true", "NaN", " ", "\t", "ä", "\N{GRINNING FACE}", '"a"', "9" * 30]
)  # fmt: skip


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None)
@given(
    text=st.one_of(
        st.lists(PIECES, max_size=12).map("".join), st.lists(PIECES, max_size=8).map(lambda p: f'"{"".join(p)}"')
    )
)
def test_python_and_postgresql_agree_on_which_text_is_a_payload(connection: psycopg.Connection[Any], text: str):
    try:
        accepted = bool(parse_payload(text))
    except InvalidPayloadError:
        accepted = False
    assert accepted == storable(connection, text), text


@pytest.mark.parametrize("text", ["1e400", "[1e131071]", "1e131072", "-1e999999", "1e-20000", "9" * 5000], ids=range(6))
def test_a_number_of_any_size_is_stored_or_refused_by_a_typed_error(dsn: str, text: str):
    with psycopg.connect(dsn) as connection, contextlib.suppress(InvalidJobError), translated():
        run(connection, statements.enqueue(JobSpec("t", parse_payload(text)), schema="pgqueue"))


@pytest.mark.parametrize(
    "when",
    [
        datetime(1970, 1, 1, tzinfo=timezone(timedelta(hours=14))),
        datetime(9998, 12, 31, 23, tzinfo=timezone(-timedelta(hours=12))),
    ],
    ids=["first", "last"],
)
def test_python_and_postgresql_agree_on_the_first_and_the_last_time(
    connection: psycopg.Connection[Any], when: datetime
):
    try:
        spec = JobSpec.make("t", run_at=when)
    except InvalidJobError:
        return
    run(connection, statements.enqueue(spec, schema="pgqueue"))


@pytest.fixture
def connection(dsn: str) -> Any:
    with psycopg.connect(dsn, autocommit=True) as connection:
        yield connection


def test_a_record_for_json_has_iso_times_and_a_readable_timeout():
    when = datetime(2026, 1, 1, tzinfo=UTC)
    record = JobRecord(1, "q", "t", "dead", {}, 5, 1, 3, when, when, finished_at=when, timeout=timedelta(seconds=90))
    facts = record.as_dict()
    assert (facts["run_at"], facts["timeout"], facts["started_at"]) == ("2026-01-01T00:00:00+00:00", "1m30s", None)
    assert record.finished
    assert json.loads(json.dumps(facts)) == facts
