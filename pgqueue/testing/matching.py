"""Which jobs wait, and what to say when the one that is wanted does not."""

from __future__ import annotations

import inspect
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import orjson

from pgqueue import statements
from pgqueue.durations import format_duration
from pgqueue.errors import InvalidJobError, InvalidPayloadError
from pgqueue.job import JobFilter
from pgqueue.outcome import dump_result
from pgqueue.task import Task

if TYPE_CHECKING:
    from pgqueue.job import JobRecord
    from pgqueue.statements import JobPage
    from pgqueue.testing.steps import Steps

_PAGE: Final = 1000
_WAITING: Final = frozenset({"available", "scheduled", "retrying", "blocked"})
_SHOWN: Final = 20
_LONGEST: Final = 200


class Wanted:
    """What a test looks for: a task, a queue, and some of the arguments."""

    def __init__(self, task: Task[Any, Any] | str | None, queue: str | None, arguments: dict[str, Any]) -> None:
        if not (task is None or isinstance(task, Task | str)):
            raise TypeError(f"give a task or the name of one, not {task!r}; write @app.task above the function")
        self.name = task.name if isinstance(task, Task) else task
        self.queue = queue
        self._arguments = arguments
        self._task = task if isinstance(task, Task) else None
        self._defaults = _defaults(task, arguments) if isinstance(task, Task) else {}

    def __str__(self) -> str:
        what = self.name or "job"
        if self._arguments:
            what += f" with {_short(self._arguments)}"
        return what if self.queue is None else f"{what} in queue {self.queue}"

    def fits(self, record: JobRecord) -> bool:
        """Whether this job is one of them."""
        if self.name not in {None, record.task} or self.queue not in {None, record.queue}:
            return False
        if not self._arguments:
            return True
        if not isinstance(record.payload, dict):
            return False
        held = {**self._defaults, **record.payload}
        as_python = None
        for name, value in self._arguments.items():
            if name in held and _covers(value, held[name]):
                continue
            as_python = self._load(record.payload) if as_python is None else as_python
            if name not in as_python or value != as_python[name]:
                return False
        return True

    def _load(self, payload: dict[str, Any]) -> dict[str, Any]:
        """What the handler would get: a datetime, a model."""
        if self._task is None:
            return {}
        try:
            return self._task.arguments.load(orjson.dumps(payload).decode())
        except InvalidPayloadError:
            return {}


def find(wanted: Wanted, schema: str) -> Steps[list[JobRecord]]:
    """The jobs that wait and fit, oldest first."""
    records = yield from _live(schema)
    return [record for record in records if wanted.fits(record)]


def check(wanted: Wanted, count: int | None, schema: str) -> Steps[list[JobRecord]]:
    """The same; raises AssertionError when there are not ``count`` of them (None: at least one)."""
    if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 0):
        raise InvalidJobError(f"count must be a whole number from 0, not {count!r}")
    records = yield from _live(schema)
    found = [record for record in records if wanted.fits(record)]
    if len(found) == count or (count is None and found):
        return found
    now: datetime = yield statements.Statement("SELECT now()", None, lambda rows: rows[0][0])
    page: JobPage = yield statements.list_jobs(JobFilter(task=wanted.name), None, _PAGE, most=None, schema=schema)
    ended = [record for record in page.jobs if record.state not in _WAITING and wanted.fits(record)]
    raise AssertionError(_complaint(wanted, count, found, records, ended, now))


def _live(schema: str) -> Steps[list[JobRecord]]:
    records: list[JobRecord] = []
    before = None
    while True:
        page: JobPage = yield statements.list_jobs(JobFilter(), before, _PAGE, schema=schema)
        records += [record for record in page.jobs if record.state in _WAITING]
        if page.before is None:
            return records[::-1]
        before = page.before


# -- matching -------------------------------------------------------------------------------------------------------


def _defaults(task: Task[Any, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """What the payload leaves out because the signature says it; raises for a parameter that there is not."""
    parameters = inspect.signature(task.function).parameters
    if task.arguments.raw:
        return {}
    own = {name: p for name, p in parameters.items() if name != task.arguments.job_parameter}
    unknown = [name for name in arguments if name not in own]
    if unknown and not any(p.kind is p.VAR_KEYWORD for p in own.values()):
        names = ", ".join(own) or "none"
        raise InvalidPayloadError(f"task {task.name!r} has no parameter {unknown[0]!r}; it has: {names}")
    return {name: _as_json(p.default) for name, p in own.items() if p.default is not p.empty}


def _covers(wanted: Any, actual: Any) -> bool:
    """A dict fits one that holds more; anything else must be equal, as it is or as JSON."""
    if isinstance(wanted, dict) and isinstance(actual, dict):
        return all(key in actual and _covers(value, actual[key]) for key, value in wanted.items())
    return bool(wanted == actual) or (type(wanted) is not type(actual) and bool(_as_json(wanted) == actual))


def _as_json(value: Any) -> Any:
    return orjson.loads(dump_result(value))


# -- words ----------------------------------------------------------------------------------------------------------


def _complaint(
    wanted: Wanted, count: int | None, found: list[JobRecord], waiting: list[JobRecord], ended: list[JobRecord],
    now: datetime,
) -> str:  # fmt: skip
    expected = "is enqueued" if count is None else f"was expected {count} times, and is enqueued {len(found)} times"
    lines = [f"{wanted}: {'nothing like it ' if count is None else ''}{expected}."]
    lines += _listed("Enqueued is:", waiting, now) if waiting else ["Nothing is enqueued."]
    lines += _listed("What fits has been run or taken already:", ended, now) if ended else []
    return "\n".join(lines)


def _listed(title: str, records: list[JobRecord], now: datetime) -> list[str]:
    lines = [title, *(f"  {_line(record, now)}" for record in records[:_SHOWN])]
    return lines if len(records) <= _SHOWN else [*lines, f"  … {len(records)} in all"]


def _line(record: JobRecord, now: datetime) -> str:
    facts = f"{record.id} {record.task} {_short(record.payload)} queue {record.queue}, {record.state}"
    if record.state in {"scheduled", "retrying"} and record.run_at < datetime.max.replace(tzinfo=UTC):
        facts += f" for {format_duration(record.run_at - now)}"
    return facts


def _short(value: Any) -> str:
    try:
        text = orjson.dumps(value).decode()
    except TypeError:
        text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
