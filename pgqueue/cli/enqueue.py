"""``pgq enqueue``: one job, the same job many times, or a file of jobs; all of them or none."""

from __future__ import annotations

import json
import os
import sys
from contextlib import contextmanager
from datetime import datetime
from difflib import get_close_matches
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Final

import typer

from pgqueue.cli.help import Command, did_you_mean
from pgqueue.cli.options import AppOption, Context, command
from pgqueue.cli.person import note
from pgqueue.cli.serving import nobody_serves
from pgqueue.cli.text import print_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pgqueue.app import App
    from pgqueue.job import JobSpec

DEFAULT_TASK: Final = "echo"
_EXAMPLE: Final = """--payload '{"a": 1}'"""
_BATCH_JOBS: Final = 1_000
_BATCH_BYTES: Final = 4 * 1024 * 1024
_LONGEST_LINE: Final = 4 * 1024 * 1024
_LONG_COUNT: Final = 5_000
_LONG_FILE: Final = 512 * 1024
_FIELDS: Final = frozenset(
    (
        *("task", "payload", "queue", "priority", "delay", "run_at", "max_attempts", "timeout", "meta"),
        *("unique_key", "unique_for", "on_conflict", "group_key", "depends_on", "on_dead"),
    )
)


class EnqueueCommand(Command):
    """Knows what people write when they mean ``--payload``."""

    def refuse(self, ctx: Any, words: list[str]) -> None:
        """Most often: the payload without its option, or JSON that the shell took apart."""
        task, payload = ctx.params.get("task"), ctx.params.get("payload")
        if payload is not None:
            ctx.fail(f"unexpected {' '.join(words)!r} after --payload; quote the JSON as one word: {_EXAMPLE}")
        if task is not None and (len(words) == 1 or words[0].startswith(("{", "["))):
            ctx.fail(f"a payload goes with its option: pgq enqueue {quote(task)} --payload {quote(' '.join(words))}")
        super().refuse(ctx, words)


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, kind=EnqueueCommand)(enqueue)


def enqueue(
    context: Context,
    task: Annotated[
        str | None,
        typer.Argument(metavar="TASK", help="The task's name. Default: echo, which a worker without --app runs."),
    ] = None,
    payload: Annotated[
        str | None,
        typer.Option("--payload", "-p", metavar="JSON", help="Any JSON value; - reads it from stdin. Default: {}."),
    ] = None,
    file: Annotated[
        str | None,
        typer.Option(
            "--file",
            metavar="FILE",
            help="Enqueue each line of this file, all or none; - reads stdin. A line is a JSON object with the keys "
            "task, payload, queue, priority, delay, run_at, max_attempts, timeout, unique_key, unique_for, "
            "on_conflict, group_key, depends_on, on_dead, meta, each optional; if TASK is given, a line is that task's "
            "payload.",
        ),
    ] = None,
    queue: Annotated[
        str | None,
        typer.Option("--queue", "-q", metavar="NAME", help="Let the job wait in this queue. Default: default."),
    ] = None,
    priority: Annotated[
        str | None,
        typer.Option(metavar="0-9", help="0 runs first, 9 last; or high (2), normal (5), low (8). Default: normal."),
    ] = None,
    delay: Annotated[
        str | None, typer.Option(metavar="DURATION", help="Start this much later: 30s, 5m, 1h30m, 2d.")
    ] = None,
    run_at: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Start at this time, which says its zone: 2030-01-31T09:00:00+01:00."),
    ] = None,
    max_attempts: Annotated[
        int | None,
        typer.Option(metavar="N", help="Runs before a failing job is dead, the first included. Default: 10."),
    ] = None,
    timeout: Annotated[
        str | None, typer.Option(metavar="DURATION", help="Longest run of one attempt: 30s, 5m.")
    ] = None,
    unique_key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY", help="At most one live job has this key; the id of that one is printed if there is one."
        ),
    ] = None,
    unique_for: Annotated[
        str | None,
        typer.Option(metavar="DURATION", help="Hold the unique key for this long, even when the job ends before."),
    ] = None,
    on_conflict: Annotated[
        str | None,
        typer.Option(
            metavar="POLICY",
            help="When a job holds the unique key: skip (print its id), replace (make this of it), or raise (fail). "
            "Default: skip.",
        ),
    ] = None,
    group_key: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="Jobs of a queue with the same key run one at a time, in order."),
    ] = None,
    depends_on: Annotated[
        list[int] | None,
        typer.Option(metavar="ID", min=1, max=2**63 - 1, help="Wait for this job or batch; give it once for each."),
    ] = None,
    on_dead: Annotated[
        str | None,
        typer.Option(
            metavar="POLICY",
            help="When one it waits for ends otherwise than completed: cancel this one, too, continue, or hold it. "
            "Default: cancel.",
        ),
    ] = None,
    count: Annotated[int | None, typer.Option(min=1, metavar="N", help="Enqueue it N times, all or none.")] = None,
    app: AppOption = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="On a terminal, show no progress bar and no note about a queue unserved.")
    ] = False,
) -> None:
    """Enqueue a job and print its id, or several and print an id per line.

    With --app the task's own queue and options hold, and the payload is checked against its signature.
    """
    from pgqueue.cli.load import load_configured  # noqa: PLC0415
    from pgqueue.errors import InvalidJobError  # noqa: PLC0415

    if task is not None and task.lstrip().startswith(("{", "[")):
        raise InvalidJobError(
            f"TASK {task!r} looks like a payload, which goes with its option: pgq enqueue --payload {quote(task)}"
        )
    if task == "-" and payload is None:  # `… | pgq enqueue -`
        task, payload = None, "-"
    if file is not None and (payload is not None or count is not None):
        raise InvalidJobError("--file goes with neither --payload nor --count")
    options = {
        "queue": queue, "priority": priority, "delay": delay, "run_at": _parse_time(run_at),
        "max_attempts": max_attempts, "timeout": timeout, "unique_key": unique_key, "unique_for": unique_for,
        "on_conflict": on_conflict, "group_key": group_key, "depends_on": depends_on or None, "on_dead": on_dead,
    }  # fmt: skip
    own = None if app is None else load_configured(context, app)
    make = _maker(own, {name: value for name, value in options.items() if value is not None})
    quiet = quiet or context.json
    if file is None:
        with _quoting_explained(payload):
            spec = make(DEFAULT_TASK if task is None else task, _stdin() if payload == "-" else payload, {})
        total = count or 1
        with _bar(total, long=total >= _LONG_COUNT and not quiet) as advance:
            ids, hint = _enqueue(context, own, _repeat(spec, total, advance), quiet=quiet)
    else:
        with (
            _opened(file) as lines,
            _bar(_size(lines), long=not quiet and (_size(lines) or _LONG_FILE) >= _LONG_FILE) as advance,
        ):
            ids, hint = _enqueue(context, own, _read(lines, task, make, advance), quiet=quiet)
    if context.json:
        print_json({"job_id": ids[0]} if file is None and count is None else {"job_ids": ids})
    elif ids:
        typer.echo("\n".join(map(str, ids)))
    if hint is not None:
        note(hint)


def _maker(own: App | None, defaults: dict[str, Any]) -> Callable[[str, str | bytes | None, dict[str, Any]], JobSpec]:
    """How a job is made of a task's name, a payload as text, and a line's own options."""
    from pgqueue.errors import InvalidJobError, UnknownTaskError  # noqa: PLC0415
    from pgqueue.job import JobSpec, parse_payload  # noqa: PLC0415

    def make(task: str, payload: str | bytes | None, options: dict[str, Any]) -> JobSpec:
        options = {**defaults, **options}
        if "delay" in options and "run_at" in options and len({"delay", "run_at"} & defaults.keys()) == 1:
            del options[next(iter({"delay", "run_at"} & defaults.keys()))]  # the line's own wins
        text = "{}" if payload is None else parse_payload(payload)
        if own is None:
            return JobSpec.make(task, **options)._replace(payload=text)
        try:
            known = own.get_task(task)
        except UnknownTaskError:
            close = did_you_mean(get_close_matches(task, own.tasks, n=1))
            there = "" if close else f"; there is: {', '.join(sorted(own.tasks)) or 'no task'}"
            raise InvalidJobError(f"task {task!r} is not registered in this app{close or there}") from None
        arguments = known.arguments.load(text)
        return known.spec._replace(payload=text).changed(**{**known.keys.options(text, (), arguments), **options})

    return make


@contextmanager
def _quoting_explained(payload: str | None) -> Iterator[None]:
    """JSON on a command line is broken by the shell more often than by its author."""
    from pgqueue.errors import InvalidPayloadError  # noqa: PLC0415

    try:
        yield
    except InvalidPayloadError as error:
        if payload in {None, "-"} or "is not JSON" not in str(error):
            raise
        text = str(payload).strip()
        if text.startswith(("{", "[", "'", '"')):
            raise InvalidPayloadError(f"{error}; in the shell, put it in single quotes: {_EXAMPLE}") from None
        raise InvalidPayloadError(f"{error}; for a text, write: --payload {quote(json.dumps(text))}") from None


def _enqueue(
    context: Context, own: App | None, specs: Iterator[JobSpec], *, quiet: bool
) -> tuple[list[int], str | None]:
    """In one transaction, so that a bad line leaves nothing. The first job is made before any server is asked.

    Answers the ids, and what a person should know about their queues.
    """
    first = next(specs, None)
    if first is None:
        return [], None
    ids: list[int] = []
    queues: dict[str, None] = {}
    with context.app(own) as app:
        with app.database.connection() as connection, connection.transaction():
            for batch in _batches(first, specs):
                ids += app.client.enqueue_many(batch, connection=connection)
                queues |= dict.fromkeys(spec.queue for spec in batch)
        return ids, None if quiet or not sys.stderr.isatty() else _unserved(app, queues)


def _unserved(app: App, queues: Iterable[str]) -> str | None:
    """A hint and no more: whatever goes wrong here, the jobs are committed."""
    from pgqueue.errors import PgqueueError  # noqa: PLC0415

    try:
        return nobody_serves(queues, app.client.workers())
    except PgqueueError:  # a role that may enqueue and no more
        return None


def _batches(first: JobSpec, rest: Iterable[JobSpec]) -> Iterator[list[JobSpec]]:
    batch, size = [first], len(first.payload)
    for spec in rest:
        if len(batch) >= _BATCH_JOBS or size + len(spec.payload) > _BATCH_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(spec)
        size += len(spec.payload)
    yield batch


def _repeat(spec: JobSpec, total: int, advance: Callable[[int], object]) -> Iterator[JobSpec]:
    for _ in range(total):
        yield spec
        advance(1)


def _read(
    lines: BinaryIO,
    task: str | None,
    make: Callable[[str, str | bytes | None, dict[str, Any]], JobSpec],
    advance: Callable[[int], object],
) -> Iterator[JobSpec]:
    """A job per line; an error names the line."""
    from pgqueue.errors import InvalidJobError, PgqueueError  # noqa: PLC0415

    for number, line in enumerate(iter(lambda: lines.readline(_LONGEST_LINE), b""), 1):
        if line.strip():
            try:
                if len(line) == _LONGEST_LINE:
                    raise InvalidJobError(f"longer than {_LONGEST_LINE} bytes")
                yield make(task, line, {}) if task is not None else _make_from_object(line, make)
            except PgqueueError as error:
                raise InvalidJobError(f"line {number}: {error}") from error
        advance(len(line))


def _make_from_object(line: bytes, make: Callable[[str, str | bytes | None, dict[str, Any]], JobSpec]) -> JobSpec:
    import orjson  # noqa: PLC0415

    from pgqueue.errors import InvalidJobError  # noqa: PLC0415

    try:
        job = orjson.loads(line)
    except ValueError as error:
        raise InvalidJobError(f"not JSON: {error}") from None
    if not isinstance(job, dict):
        raise InvalidJobError("must be a JSON object of enqueue's arguments; to give payloads alone, name their TASK")
    if unknown := sorted(job.keys() - _FIELDS):
        raise InvalidJobError(f"{unknown[0]!r} is not an option; there are: {', '.join(sorted(_FIELDS))}")
    payload = orjson.dumps(job.pop("payload")) if "payload" in job else None
    given = {name: value for name, value in job.items() if value is not None}
    if "run_at" in given:
        given["run_at"] = _parse_time(given["run_at"])
    return make(given.pop("task", DEFAULT_TASK), payload, given)


def _parse_time(text: Any) -> datetime | None:
    from pgqueue.errors import InvalidJobError  # noqa: PLC0415

    if text is None:
        return None
    try:
        time = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        time = None
    if time is None or time.tzinfo is None:
        raise InvalidJobError(
            f"run_at must be a time with its zone, such as 2030-01-31T09:00:00+01:00 or …Z; not {text!r}"
        )
    return time


# -- input and progress ----------------------------------------------------------------------------------------------


def _stdin() -> bytes:
    from pgqueue.errors import InvalidPayloadError  # noqa: PLC0415
    from pgqueue.job import MAX_PAYLOAD_BYTES  # noqa: PLC0415

    data = sys.stdin.buffer.read(2 * MAX_PAYLOAD_BYTES)  # enough to see that it is too much
    if not data.strip():
        raise InvalidPayloadError("payload is not JSON: nothing came in on stdin")
    return data


@contextmanager
def _opened(name: str) -> Iterator[BinaryIO]:
    from pgqueue.errors import InvalidJobError  # noqa: PLC0415

    if name == "-":
        yield sys.stdin.buffer
        return
    try:
        lines = open(name, "rb")  # noqa: SIM115, PTH123 - closed below; only this line may raise
    except OSError as error:
        raise InvalidJobError(f"can't read {name}: {error.strerror}") from None
    with lines:
        yield lines


def _size(lines: BinaryIO) -> int | None:
    """Bytes to come, when that is known."""
    try:
        return os.fstat(lines.fileno()).st_size or None
    except (OSError, ValueError):
        return None


@contextmanager
def _bar(total: int | None, *, long: bool) -> Iterator[Callable[[int], object]]:
    """A progress bar on stderr, for long input and when somebody is looking."""
    if not (long and sys.stderr.isatty()):
        yield lambda _step: None
        return
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    columns = TextColumn("enqueueing"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("enqueueing", total=total)
        yield lambda step: progress.advance(bar, step)
