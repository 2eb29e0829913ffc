"""``pgq job``: look at jobs, take them back, run them again, wait for them."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from pgqueue.cli.errors import FAILED
from pgqueue.cli.options import (
    BeforeOption,
    Context,
    JobIdArgument,
    LimitOption,
    QueueFilter,
    SinceFilter,
    TagFilter,
    TaskFilter,
    WideOption,
    command,
    make_group,
)
from pgqueue.cli.serving import why_waiting
from pgqueue.cli.text import age, clean, compact, one_line, print_json, print_table, show

if TYPE_CHECKING:
    from pgqueue.job import JobRecord

app = make_group("job", "Look at jobs, take them back, run them again, wait for them.")

JobIds = Annotated[
    list[int], typer.Argument(metavar="ID...", min=1, max=2**63 - 1, help="The ids of one or more jobs.")
]
_NARROW: Final = ("id", "queue", "task", "state", "when", "attempt", "payload or error")
_WIDE: Final = (
    "id", "queue", "task", "state", "attempt", "priority", "created", "run at", "started", "finished", "worker",
    "payload", "last error",
)  # fmt: skip


@command(app, "show")
def show_job(context: Context, job_id: JobIdArgument) -> None:
    """Print everything about one job: state, times, progress, result, and the errors of its attempts."""
    with context.client() as client:
        record = client.get(job_id)
        waits = None if context.json else why_waiting(record, client)
    if context.json:
        print_json(record.as_dict())
        return
    facts = record.as_dict()
    errors = facts.pop("errors")
    for name, value in facts.items():
        if value is not None and value not in ({}, []) and (name, value) != ("pending", 0):
            shown = (
                compact(value, 10_000)
                if name in {"payload", "result", "progress", "meta"}
                else show(getattr(record, name))
            )
            typer.echo(f"{name:<16} {shown}")
            if name == "state" and waits is not None:
                typer.echo(f"{'waits':<16} {one_line(waits)}")
    for error in errors:
        typer.echo(f"attempt {show(error.get('attempt'))} failed at {show(error.get('at'))}: {_told(error)}")
        if error.get("traceback"):
            typer.echo(clean("".join(f"    {line}\n" for line in error["traceback"].splitlines())), nl=False)


@command(app, "list")
def list_jobs(
    context: Context,
    queue: QueueFilter = None,
    task: TaskFilter = None,
    state: Annotated[
        str | None,
        typer.Option(
            metavar="STATE",
            help="Only in this state: available, scheduled, retrying, blocked, running, completed, dead, cancelled.",
        ),
    ] = None,
    tag: TagFilter = None,
    since: SinceFilter = None,
    limit: LimitOption = 50,
    before: BeforeOption = None,
    wide: WideOption = False,
) -> None:
    """Print jobs, the newest first."""
    with context.client() as client:
        records = client.jobs(
            queue=queue, task=task, state=state, tag=tag, since=since, before=before, limit=limit
        )  # fmt: skip
    print_records(context, records, empty="no such jobs", wide=wide)


@command(app, "tree")
def tree_of_job(context: Context, job_id: JobIdArgument) -> None:
    """Print who waits for whom: a job (or a batch) with all that it depends on and all that depend on it."""
    from pgqueue.cli.batches import facts as batch_facts  # noqa: PLC0415
    from pgqueue.cli.tree import Tree  # noqa: PLC0415
    from pgqueue.errors import BatchNotFoundError, JobNotFoundError  # noqa: PLC0415

    with context.client() as client:
        records = client.tree(job_id)
        ids = {node for record in records for node in (*record.depends_on, record.batch_id) if node is not None}
        batches = {}
        for batch_id in sorted({*ids, job_id} - {record.id for record in records}):
            with contextlib.suppress(BatchNotFoundError):  # a job whose history is gone
                batches[batch_id] = client.batch(batch_id)
    if not records and not batches:
        raise JobNotFoundError(job_id)
    if context.json:
        print_json({
            "asked": job_id, "jobs": [record.as_dict() for record in records],
            "batches": [batch_facts(batch) for batch in batches.values()],
        })  # fmt: skip
        return
    for line in Tree(job_id, records, batches).lines():
        typer.echo(line)


@command(app)
def cancel(context: Context, job_ids: JobIds) -> None:
    """Take jobs back: a waiting one ends as cancelled at once, a running one is asked to stop."""
    _each(context, job_ids, "cancel")


@command(app)
def retry(context: Context, job_ids: JobIds) -> None:
    """Run dead or cancelled jobs again with all their attempts, and waiting ones now, whatever they wait for."""
    _each(context, job_ids, "retry")


@command(app)
def wait(
    context: Context,
    job_id: JobIdArgument,
    timeout: Annotated[
        str | None,
        typer.Option(metavar="DURATION", help="Give up after this long; the job goes on. Default: wait for ever."),
    ] = None,
) -> None:
    """Wait until a job has ended and print its result; exits with 1 if it is dead, cancelled, or not done in time."""
    from pgqueue.durations import parse_duration  # noqa: PLC0415
    from pgqueue.errors import JobFailedError, ResultTimeoutError  # noqa: PLC0415

    patience = None if timeout is None else parse_duration(timeout, "timeout")
    with context.app() as own:
        try:
            own.job(job_id).result_sync(patience)
        except JobFailedError:
            if not context.json:
                raise
        except ResultTimeoutError as error:
            record = own.client.get(job_id)
            waits = why_waiting(record, own.client)
            raise ResultTimeoutError(
                f"job {job_id} has not finished within {show(patience)}: it is {record.state}"
                f"{'' if waits is None else f', and waits {waits}'}"
            ) from error
        record = own.client.get(job_id)
    if context.json:
        print_json({"job_id": record.id, "state": record.state, "result": record.result, "errors": record.errors})
    else:
        typer.echo(clean(record.result) if isinstance(record.result, str) else compact(record.result, 1_000_000_000))
    if record.state != "completed":
        raise typer.Exit(FAILED)


def print_records(context: Context, records: list[JobRecord], *, empty: str, wide: bool) -> None:
    """Jobs as a table, or as a JSON list."""
    if context.json:
        print_json([record.as_dict() for record in records])
    elif wide:
        print_table(_WIDE, [_wide_row(record) for record in records], empty=empty)
    else:
        print_table(_NARROW, [_row(record) for record in records], empty=empty, cut_last=True)


def _row(record: JobRecord) -> tuple[Any, ...]:
    return (
        record.id, record.queue, record.task, record.state, age(record), f"{record.attempt}/{record.max_attempts}",
        _told(record.errors[-1], 60) if record.errors and record.state != "completed" else compact(record.payload),
    )  # fmt: skip


def _wide_row(record: JobRecord) -> tuple[Any, ...]:
    return (
        record.id, record.queue, record.task, record.state, f"{record.attempt}/{record.max_attempts}", record.priority,
        record.created_at, record.run_at, record.started_at, record.finished_at, record.worker,
        compact(record.payload), _told(record.errors[-1]) if record.errors else None,
    )  # fmt: skip


def _told(error: dict[str, Any], longest: int = 200) -> str:
    text = show(f"{error.get('type')}: {error.get('message')}")
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def _each(context: Context, job_ids: list[int], verb: str) -> None:
    """The verb on every job; one that it does not apply to spoils the exit code, not the others."""
    from pgqueue.cli.errors import say  # noqa: PLC0415
    from pgqueue.errors import JobNotFoundError, JobStateError  # noqa: PLC0415

    answers: list[dict[str, Any]] = []
    with context.client() as client:
        for job_id in job_ids:
            try:
                answers.append({"job_id": job_id, "state": getattr(client, verb)(job_id)})
            except (JobNotFoundError, JobStateError) as error:
                say(str(error))
                answers.append({"job_id": job_id, "state": getattr(error, "state", None), "error": str(error)})
    if context.json:
        print_json(answers)
    else:
        for answer in answers:
            if "error" not in answer:
                asked = " (asked to stop)" if verb == "cancel" and answer["state"] == "running" else ""
                typer.echo(f"{answer['job_id']} {answer['state']}{asked}")
    if any("error" in answer for answer in answers):
        raise typer.Exit(FAILED)
