"""What reads do not show."""

from __future__ import annotations

from typing import Any

import pytest

from pgqueue.http.redaction import HIDDEN, Redact


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ({"password": "x", "user": "u"}, {"password": HIDDEN, "user": "u"}),
        ({"PassWord": {"a": 1}}, {"PassWord": HIDDEN}),
        ([{"a": [{"password": 1}]}], [{"a": [{"password": HIDDEN}]}]),
        ({"a": "password"}, {"a": "password"}),
        ('{"password": "x", "n": 1e9}', HIDDEN),
        ('[{"Password": "x"}]', HIDDEN),
        ({"body": ' {"password": "x"}'}, {"body": HIDDEN}),
        ('{"user": "u"}', '{"user": "u"}'),
        ("the password", "the password"),
        (None, None),
    ],
    ids=str,
)
def test_what_stands_under_a_name_is_hidden_also_in_json_that_is_text(value: Any, shown: Any):
    assert Redact(["password"])(value) == shown


def test_what_is_nested_deeper_than_it_can_look_is_hidden():
    value: Any = {"password": "x"}
    for _ in range(1_000):
        value = [value]
    assert Redact(["password"])(value) == HIDDEN


def test_without_names_nothing_is_hidden():
    value = {"password": "x"}
    assert Redact([])(value) is value
