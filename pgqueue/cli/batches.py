"""``pgq batch``: jobs that were enqueued together: how far they are, wait for them, take them back."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pgqueue.cli.errors import FAILED
from pgqueue.cli.options import BeforeOption, Context, LimitOption, command, make_group
from pgqueue.cli.text import ago, print_json, print_table, show

if TYPE_CHECKING:
    from pgqueue.statements import BatchRecord

app = make_group("batch", "Jobs that were enqueued together: look at them, wait for them, take them back.")

BatchIdArgument = Annotated[int, typer.Argument(metavar="ID", min=1, max=2**63 - 1, help="The batch's id.")]
_COLUMNS = ("id", "name", "total", "pending", "completed", "dead", "cancelled", "done", "created", "finished")


@command(app, "show")
def show_batch(context: Context, batch_id: BatchIdArgument) -> None:
    """Print one batch: how many jobs it has, and how they ended."""
    with context.client() as client:
        record = client.batch(batch_id)
    _tell(context, record)


@command(app, "list")
def list_batches(
    context: Context,
    unfinished: Annotated[
        bool, typer.Option("--unfinished", help="Only batches with jobs that have not ended.")
    ] = False,
    limit: LimitOption = 50,
    before: BeforeOption = None,
) -> None:
    """Print batches, the newest first."""
    with context.client() as client:
        records = client.batches(unfinished=unfinished, limit=limit, before=before)
    if context.json:
        print_json([facts(record) for record in records])
        return
    rows = [
        (
            record.id, record.name, record.total, record.pending, record.completed, record.dead, record.cancelled,
            percent(record), ago(record.created_at), None if record.finished_at is None else ago(record.finished_at),
        )
        for record in records
    ]  # fmt: skip
    print_table(_COLUMNS, rows, empty="no such batches")


@command(app)
def cancel(context: Context, batch_id: BatchIdArgument) -> None:
    """Take a batch's jobs back: those that wait end as cancelled at once, those that run are asked to stop."""
    with context.client() as client:
        ended = client.cancel_batch(batch_id)
        record = client.batch(batch_id)
    if context.json:
        print_json({"batch_id": batch_id, "cancelled": ended, "pending": record.pending})
        return
    asked = f", {record.pending} running asked to stop" if record.pending else ""
    typer.echo(f"{ended} cancelled{asked}")


@command(app)
def wait(
    context: Context,
    batch_id: BatchIdArgument,
    timeout: Annotated[
        str | None,
        typer.Option(metavar="DURATION", help="Give up after this long; the jobs go on. Default: wait for ever."),
    ] = None,
) -> None:
    """Wait until every job of a batch has ended; exits with 1 if one of them did not complete, or not in time."""
    from pgqueue.durations import parse_duration  # noqa: PLC0415

    patience = None if timeout is None else parse_duration(timeout, "timeout")
    with context.app() as own:
        record = own.get_batch(batch_id).wait_sync(patience)
    _tell(context, record)
    if record.completed < record.total:
        raise typer.Exit(FAILED)


def facts(record: BatchRecord) -> dict[str, Any]:
    """A batch for JSON."""
    return {**dataclasses.asdict(record), "pending": record.pending, "progress": record.progress}


def percent(record: BatchRecord) -> str:
    """How much of it has ended, rounded down: 100% is all."""
    return f"{int(record.progress * 100)}%"


def _tell(context: Context, record: BatchRecord) -> None:
    if context.json:
        print_json(facts(record))
        return
    for name, value in facts(record).items():
        if value is not None:
            typer.echo(f"{name:<16} {percent(record) if name == 'progress' else show(value)}")
