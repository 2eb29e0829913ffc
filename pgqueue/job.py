"""What a job is: a specification on the way in, a record on the way out. No I/O."""

from __future__ import annotations

import contextlib
import json
import math
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

import orjson

from pgqueue.durations import Duration, format_duration, parse_duration
from pgqueue.errors import InvalidJobError, InvalidPayloadError, PayloadTooLargeError

if TYPE_CHECKING:
    from collections.abc import Iterable

DEFAULT_QUEUE: Final = "default"
DEFAULT_PRIORITY: Final = 5
DEFAULT_MAX_ATTEMPTS: Final = 10
MAX_PAYLOAD_BYTES: Final = 1024 * 1024
MAX_META_BYTES: Final = 32 * 1024  # as text; the database takes 64 KiB as jsonb, which may be larger than its text
MAX_NAME_LENGTH: Final = 128
MAX_KEY_LENGTH: Final = 512
MOST_ATTEMPTS: Final = 32_767
PRIORITIES: Final = {"high": 2, "normal": 5, "low": 8}
_FIRST_YEAR: Final = datetime(1970, 1, 1, tzinfo=UTC)  # to 9998: what every client can read back
_LAST_YEAR: Final = datetime(9999, 1, 1, tzinfo=UTC)
FINISHED: Final = frozenset({"completed", "dead", "cancelled"})
ON_CONFLICT: Final = ("skip", "replace", "raise")
ON_DEAD: Final = ("cancel", "continue", "hold")
MOST_UPSTREAMS: Final = 10_000
STATES: Final = ("available", "scheduled", "retrying", "blocked", "running", "completed", "dead", "cancelled")


class JobSpec(NamedTuple):
    """A job that may be enqueued: everything was checked when this was made. A value: it can't be changed.

    Attributes:
        task: name of the registered function, 1 to 128 characters.
        payload: any JSON value, as text; at most 1 MiB.
        queue: 1 to 128 characters.
        priority: 0 (runs first) to 9, or ``high`` (2), ``normal`` (5), ``low`` (8).
        delay: start this much after the transaction began; not together with ``run_at``.
        run_at: start at this time; must carry a time zone.
        max_attempts: 1 to 32767, the first run included.
        timeout: longest run of one attempt; None: the task's own.
        unique_key: at most one live job has it.
        unique_for: the key is held for this long from now, even when the job ends before.
        on_conflict: what to do when the key is held: ``skip`` (answer the job that holds it), ``replace`` (give that
            job the newer payload, run_at, priority and meta; if it runs already, a new job takes over its key), or
            ``raise`` (JobExistsError).
        group_key: jobs of one queue with the same key run one at a time, in the order in which they were enqueued;
            or as the queue's limits per key say.
        depends_on: ids of jobs or batches that have to end first, at most 10,000.
        on_dead: what it means that one of them ends as dead or cancelled: ``cancel`` this job, too; ``continue`` as if
            it had completed; ``hold`` until an operator has retried it and it completes.
        meta: a small JSON object that travels with the job (tags, trace context).
    """

    task: str
    payload: str = "{}"
    queue: str = DEFAULT_QUEUE
    priority: int = DEFAULT_PRIORITY
    delay: timedelta | None = None
    run_at: datetime | None = None
    max_attempts: int = DEFAULT_MAX_ATTEMPTS
    timeout: timedelta | None = None
    unique_key: str | None = None
    meta: str | None = None
    group_key: str | None = None
    unique_for: timedelta | None = None
    on_conflict: str = "skip"
    depends_on: tuple[int, ...] = ()
    on_dead: str = "cancel"

    @property
    def plain(self) -> bool:
        """Whether it is inserted and no more: no key, no dependency."""
        return self.unique_key is None and self.group_key is None and not self.depends_on

    @classmethod
    def make(
        cls,
        task: str,
        payload: Any = None,
        *,
        queue: str = DEFAULT_QUEUE,
        priority: int | str = DEFAULT_PRIORITY,
        delay: Duration | None = None,
        run_at: datetime | None = None,
        max_attempts: int = DEFAULT_MAX_ATTEMPTS,
        timeout: Duration | None = None,
        unique_key: str | None = None,
        meta: dict[str, Any] | None = None,
        group_key: str | None = None,
        unique_for: Duration | None = None,
        on_conflict: str = "skip",
        depends_on: Iterable[Any] = (),
        on_dead: str = "cancel",
    ) -> Self:
        """Check and convert what a person wrote. ``payload`` is any JSON value; None means ``{}``.

        Raises:
            InvalidJobError: an option has no meaning; the message names it.
            InvalidPayloadError: the payload is not JSON or is over 1 MiB.
        """
        if delay is not None and run_at is not None:
            raise InvalidJobError("say delay or run_at, not both")
        if unique_for is not None and unique_key is None:
            raise InvalidJobError("unique_for needs a unique_key")
        return cls(
            task=check_text(task, "task", MAX_NAME_LENGTH),
            payload="{}" if payload is None else dump_payload(payload),
            queue=check_text(queue, "queue", MAX_NAME_LENGTH),
            priority=parse_priority(priority),
            delay=None if delay is None else parse_duration(delay, "delay"),
            run_at=_check_time(run_at),
            max_attempts=_check_attempts(max_attempts),
            timeout=parse_timeout(timeout),
            unique_key=None if unique_key is None else check_text(unique_key, "unique_key", MAX_KEY_LENGTH),
            meta=None if meta is None else _dump_meta(meta),
            group_key=None if group_key is None else check_text(group_key, "group_key", MAX_KEY_LENGTH),
            unique_for=None if unique_for is None else _check_period(unique_for),
            on_conflict=_check_word(on_conflict, "on_conflict", ON_CONFLICT),
            depends_on=_check_upstreams(depends_on),
            on_dead=_check_word(on_dead, "on_dead", ON_DEAD),
        )

    def changed(self, **options: Any) -> Self:
        """The same job with other options; checks as :meth:`make` does."""
        if not options:
            return self
        if "unique_for" in options and "unique_key" not in options:
            options = {**options, "unique_key": self.unique_key}
        checked = type(self).make(self.task, **options)
        spec = self._replace(**{name: getattr(checked, name) for name in options})
        if spec.delay is not None and spec.run_at is not None:
            raise InvalidJobError("say delay or run_at, not both")
        if spec.unique_for is not None and spec.unique_key is None:
            raise InvalidJobError("unique_for needs a unique_key")
        return spec

    def with_meta(self, **more: Any) -> Self:
        """The same job with more in its ``meta``; what is there under another name stays."""
        return self.changed(meta={**orjson.loads(self.meta or "{}"), **more})


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A job as the database holds it. ``state`` is one of :data:`STATES`; times are in UTC or NULL."""

    id: int
    queue: str
    task: str
    state: str
    payload: Any
    priority: int
    attempt: int
    max_attempts: int
    run_at: datetime
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    lease_until: datetime | None = None
    worker: str | None = None
    cancel_requested: bool = False
    timeout: timedelta | None = None
    unique_key: str | None = None
    progress: dict[str, Any] | None = None
    result: Any = None
    errors: list[dict[str, Any]] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)
    group_key: str | None = None
    batch_id: int | None = None
    depends_on: list[int] = field(default_factory=list)
    pending: int = 0

    @classmethod
    def from_row(cls, row: tuple[Any, ...]) -> Self:
        """From the columns of get_job.sql, in their order."""
        facts = dict(zip(cls.__slots__, row, strict=True))
        for name in ("payload", "progress", "result"):
            facts[name] = _load_json(facts[name])
        return cls(**{**facts, "errors": _load_json(facts["errors"]) or [], "meta": _load_json(facts["meta"]) or {},
                      "depends_on": facts["depends_on"] or []})  # fmt: skip

    @property
    def finished(self) -> bool:
        """Whether it has ended: completed, dead or cancelled."""
        return self.state in FINISHED

    def as_dict(self) -> dict[str, Any]:
        """For JSON: times in ISO 8601, the timeout as text."""
        facts = {name: getattr(self, name) for name in self.__slots__}
        facts["timeout"] = None if self.timeout is None else format_duration(self.timeout)
        return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in facts.items()}


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Which jobs a list shows; None: any. Not both of ``since`` and ``age`` are set."""

    queue: str | None = None
    task: str | None = None
    state: str | None = None
    tag: str | None = None
    since: datetime | None = None
    age: timedelta | None = None

    @classmethod
    def make(
        cls,
        *,
        queue: str | None = None,
        task: str | None = None,
        state: str | None = None,
        tag: str | None = None,
        since: datetime | Duration | None = None,
    ) -> Self:
        """Check what was given.

        Args:
            queue: its name.
            task: its name.
            state: one of :data:`STATES`.
            tag: one of the texts in the list ``tags`` of the job's meta.
            since: created at or after this time, which has a zone; or no longer ago than this duration.

        Raises:
            InvalidJobError: a value has no meaning.
        """
        for what, name in (("queue", queue), ("task", task), ("tag", tag)):
            if name is not None:
                check_text(name, what, MAX_NAME_LENGTH)
        if state is not None and state not in STATES:
            raise InvalidJobError(f"state must be one of {', '.join(STATES)}; not {state!r}")
        at, age = _parse_since(since)
        return cls(queue, task, state, tag, at, age)


def check_text(value: Any, what: str, longest: int) -> str:
    """A name or key that PostgreSQL can store; raises InvalidJobError, naming ``what``."""
    if not isinstance(value, str):
        raise InvalidJobError(f"{what} must be text, not {type(value).__name__}")
    if not 1 <= len(value) <= longest:
        raise InvalidJobError(f"{what} must have 1 to {longest} characters, not {len(value)}")
    if "\0" in value:
        raise InvalidJobError(f"{what} must not contain a NUL character")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidJobError(f"{what} must be valid Unicode; it holds a lone surrogate") from None
    return value


def parse_priority(value: int | str) -> int:
    """0 (first) to 9 (last), or ``high``, ``normal``, ``low``; raises InvalidJobError."""
    number = PRIORITIES.get(value.lower(), value) if isinstance(value, str) else value
    try:
        priority = int(number)
    except (TypeError, ValueError, OverflowError):
        priority = -1
    if isinstance(value, bool | float) or not 0 <= priority <= 9:  # noqa: PLR2004
        raise InvalidJobError(f"priority must be 0 (first) to 9 (last), or high, normal, low; not {value!r}")
    return priority


def dump_payload(value: Any, what: str = "payload") -> str:
    """JSON text that PostgreSQL takes as jsonb; raises InvalidPayloadError."""
    try:
        data = orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidPayloadError(f"{what} is not JSON: {error}") from None
    if b"null" in data:  # orjson writes NaN and the infinities so
        refuse_non_finite(value, what)
    return check_json(data, what)


def parse_payload(text: str | bytes, what: str = "payload") -> str:
    """Check JSON text that came from outside (a flag, a file, a request); raises InvalidPayloadError."""
    try:
        orjson.loads(text)
        data = text if isinstance(text, bytes) else text.encode()
    except ValueError as error:
        raise InvalidPayloadError(f"{what} is not JSON: {error}") from None
    return check_json(data, what)


def check_json(data: bytes, what: str = "payload") -> str:
    """The two things that are JSON and yet no jsonb: too large, and the NUL character."""
    if len(data) > MAX_PAYLOAD_BYTES:
        raise PayloadTooLargeError(
            f"{what} of {len(data)} bytes is over the limit of {MAX_PAYLOAD_BYTES}; "
            "store it in a table of your own and enqueue its key"
        )
    if b"\\u0000" in data.replace(b"\\\\", b""):
        raise InvalidPayloadError(f"{what} holds a NUL character (\\u0000), which PostgreSQL can't store")
    return data.decode()


def _load_json(text: str | None) -> Any:
    """What jsonb holds. A value that Python can't (a number of 100,000 digits, a thousand levels) stays text."""
    if text is None:
        return None
    try:
        return orjson.loads(text)
    except ValueError:
        pass
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def refuse_non_finite(value: Any, what: str = "payload") -> None:
    """NaN and the infinities are no JSON; raises InvalidPayloadError where they would silently become null."""
    if _has_non_finite(value):
        raise InvalidPayloadError(f"{what} holds NaN or an infinity, which JSON does not have")


def _has_non_finite(value: Any) -> bool:
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, dict):
        return any(_has_non_finite(item) for pair in value.items() for item in pair)
    return isinstance(value, list | tuple) and any(_has_non_finite(item) for item in value)


def _dump_meta(meta: Any) -> str:
    if not isinstance(meta, dict):
        raise InvalidJobError(f"meta must be a dict, not {type(meta).__name__}")
    text = dump_payload(meta, "meta")
    if len(text.encode()) > MAX_META_BYTES:
        raise InvalidJobError(f"meta must be at most {MAX_META_BYTES} bytes")
    return text


def _check_time(value: datetime | None, what: str = "run_at") -> datetime | None:
    if value is None:
        return None
    if not isinstance(value, datetime):
        raise InvalidJobError(f"{what} must be a datetime, not {value!r}")
    if value.tzinfo is None or value.utcoffset() is None:
        raise InvalidJobError(f"{what} must carry a time zone, for example datetime.now(UTC)")
    try:
        moment = value.astimezone(UTC)
    except OverflowError:
        moment = _LAST_YEAR.replace(year=9999)
    if not _FIRST_YEAR <= moment < _LAST_YEAR:
        raise InvalidJobError(f"{what} must be from 1970 to 9998, not {value.isoformat()}")
    return moment


def _parse_since(value: datetime | Duration | None) -> tuple[datetime | None, timedelta | None]:
    """A time, or how long ago; as text, too."""
    if value is None or isinstance(value, datetime):
        return _check_time(value, "since"), None
    with contextlib.suppress(InvalidJobError):
        return None, parse_duration(value, "since")
    try:
        time = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        time = None
    if time is None or time.tzinfo is None:
        raise InvalidJobError(
            "since must be a time with its zone, such as 2030-01-31T09:00:00+01:00 or …Z, or a duration such as 1h; "
            f"not {value!r}"
        )
    return _check_time(time, "since"), None


def _check_attempts(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MOST_ATTEMPTS:
        raise InvalidJobError(f"max_attempts must be 1 to {MOST_ATTEMPTS}, not {value!r}")
    return value


def _check_period(value: Duration) -> timedelta:
    period = parse_duration(value, "unique_for")
    if not period:
        raise InvalidJobError("unique_for must be positive")
    return period


def _check_word(value: Any, what: str, words: tuple[str, ...]) -> str:
    if value not in words:
        raise InvalidJobError(f"{what} must be {', '.join(words[:-1])} or {words[-1]}; not {value!r}")
    return str(value)


def _check_upstreams(values: Iterable[Any]) -> tuple[int, ...]:
    """Ids, or handles that have an ``id``."""
    ids = []
    for value in values:
        upstream = getattr(value, "id", value)
        if not isinstance(upstream, int) or isinstance(upstream, bool) or not 0 < upstream < 2**63:
            raise InvalidJobError(f"depends_on must name jobs or batches by their ids, not {value!r}")
        ids.append(upstream)
    if len(ids) > MOST_UPSTREAMS:
        raise InvalidJobError(f"depends_on must name at most {MOST_UPSTREAMS} jobs; let a batch stand for more")
    return tuple(dict.fromkeys(ids))


def parse_timeout(value: Duration | None) -> timedelta | None:
    """A positive duration, or None for none; raises InvalidJobError."""
    if value is None:
        return None
    timeout = parse_duration(value, "timeout")
    if not timeout:
        raise InvalidJobError("timeout must be positive")
    return timeout
