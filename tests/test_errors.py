"""Every error survives the way from a child process, with its facts."""

from __future__ import annotations

import inspect
import pickle
from typing import Any

import pytest

from pgqueue import errors

FACTS: dict[str, tuple[Any, ...]] = {
    "JobExistsError": ("job 7 holds the unique_key 'k'", 7),
    "JobNotFoundError": (7,),
    "BatchNotFoundError": (7,),
    "LeaseLostError": (7,),
    "JobStateError": (7, "dead", "cancelled"),
    "JobFailedError": (7, "dead", [{"type": "ValueError", "message": "no"}]),
    "Snooze": (5,),
    "Retry": ("1h", "not yet"),
}
CLASSES = [found for _, found in inspect.getmembers(errors, inspect.isclass) if issubclass(found, Exception)]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_an_error_is_the_same_after_pickling(kind: type[Exception]):
    error = kind(*FACTS.get(kind.__name__, ("what happened",)))
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (kind, str(error), vars(error))


def test_what_is_not_there_is_a_lookup_error():
    for kind in (
        errors.JobNotFoundError, errors.BatchNotFoundError, errors.ScheduleNotFoundError, errors.TokenNotFoundError,
    ):  # fmt: skip
        assert issubclass(kind, LookupError)
