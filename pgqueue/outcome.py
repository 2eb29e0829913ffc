"""How a run ended, as values; and how values of any kind become JSON that PostgreSQL takes."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import orjson

MAX_RESULT_BYTES: Final = 1024 * 1024
MAX_MESSAGE: Final = 2_000
MAX_TRACEBACK: Final = 8_000
REMOTE_TRACEBACK: Final = "__pgqueue_traceback__"  # of an exception that comes from a child process


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run's end: what finish.sql is told about it.

    Attributes:
        verdict: completed | dead | cancelled | retry | pass | snooze | release.
        result: JSON text of what the handler returned.
        error: JSON text of what went wrong.
        delay: seconds until it may run again; 0: its place is kept.
    """

    verdict: str
    result: str | None = None
    error: str | None = None
    delay: float = 0.0


COMPLETED: Final = Outcome("completed")
RELEASED: Final = Outcome("release")


def completed(value: Any) -> Outcome:
    """A handler returned ``value``; what is not JSON, too large, or unstorable is replaced with a note."""
    return COMPLETED if value is None else Outcome("completed", result=dump_result(value))


def describe_error(error: BaseException, attempt: int) -> str:
    """The JSON object that is kept in ``errors``: attempt, type, message, traceback, at."""
    try:
        message = str(error)
    except BaseException:  # noqa: BLE001 - a broken __str__ must not break the record
        message = "<its __str__ failed>"
    trace = getattr(error, REMOTE_TRACEBACK, "")
    if not trace and error.__traceback__:
        trace = "".join(traceback.format_exception(error))
    return error_json(attempt, type(error).__name__, message, trace)


def error_json(attempt: int, kind: str, message: str, trace: str = "") -> str:
    """The same from its parts."""
    facts: dict[str, Any] = {
        "attempt": attempt,
        "type": kind,
        "message": _cut(message, MAX_MESSAGE),
        "at": datetime.now(UTC),
    }
    if trace:
        facts["traceback"] = _cut_middle(trace, MAX_TRACEBACK)
    return _storable(orjson.dumps({k: _clean(v) if isinstance(v, str) else v for k, v in facts.items()}))


def dump_result(value: Any) -> str:
    """JSON text of a result. Never fails: completion must not depend on what a handler returns."""
    try:
        data = orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS, default=_default)
    except BaseException as error:  # noqa: BLE001 - whatever a user's class does when it is looked at
        text = _clean(_safe_repr(value))
        return _storable(orjson.dumps({"note": f"not JSON: {error}", "repr": _cut(text, MAX_MESSAGE)}))
    if len(data) > MAX_RESULT_BYTES:
        start = data[:MAX_MESSAGE].decode(errors="ignore")
        return _storable(
            orjson.dumps(
                {"note": f"result of {len(data)} bytes is over the limit of {MAX_RESULT_BYTES}", "start": start}
            )
        )
    return _storable(data)


def _default(value: Any) -> Any:
    dump = getattr(value, "model_dump", None)
    if callable(dump):
        return dump(mode="json")
    if isinstance(value, set | frozenset):
        return list(value)
    raise TypeError(f"{type(value).__name__} is not JSON")


def _storable(data: bytes) -> str:
    """Without the NUL character, which JSON can say and PostgreSQL can't store."""
    text = data.decode()
    if "\\u0000" in text:
        value = orjson.loads(data)
        text = orjson.dumps(_without_nul(value)).decode()
    return text


def _without_nul(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("\0", "\N{REPLACEMENT CHARACTER}")
    if isinstance(value, list):
        return [_without_nul(item) for item in value]
    if isinstance(value, dict):
        return {_without_nul(key): _without_nul(item) for key, item in value.items()}
    return value


def _clean(text: str) -> str:
    """Text without NUL and lone surrogates."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[:longest]}… ({len(text)} characters)"


def _cut_middle(text: str, longest: int) -> str:
    half = longest // 2
    return text if len(text) <= longest else f"{text[:half]}\n…\n{text[-half:]}"


def _safe_repr(value: Any) -> str:
    try:
        return repr(value)
    except BaseException:  # noqa: BLE001 - whatever a user's __repr__ does
        return f"<{type(value).__name__}>"
