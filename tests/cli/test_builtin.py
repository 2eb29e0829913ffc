from __future__ import annotations

import pytest

from pgqueue import InvalidPayloadError, Settings
from pgqueue.builtin import FailedOnPurposeError, make_builtin_app


@pytest.fixture
def tasks():
    return make_builtin_app(Settings(dsn="dbname=nowhere")).tasks


async def test_echo_returns_any_payload(tasks):
    for payload in ({"a": 1}, [1], "text", None, 5):
        assert await tasks["echo"](payload) == payload


async def test_sleep_waits_and_has_a_default(tasks):
    assert await tasks["sleep"](seconds=0.01) == 0.01
    assert await tasks["sleep"](seconds=-5) == 0
    assert tasks["sleep"].arguments.load("{}") == {}
    with pytest.raises(InvalidPayloadError):
        tasks["sleep"].arguments.load('{"sec": 1}')


async def test_fail_fails_with_the_message_given(tasks):
    with pytest.raises(FailedOnPurposeError, match="no luck"):
        await tasks["fail"]({"message": "no luck"})
    with pytest.raises(FailedOnPurposeError, match="always fails"):
        await tasks["fail"]([])
