"""``pgq queue``: what waits where; pause, resume, purge; how long ended jobs are kept."""

from __future__ import annotations

import sys
from dataclasses import asdict
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Annotated, Final

import typer

from pgqueue.cli.dead import confirm
from pgqueue.cli.help import LINE
from pgqueue.cli.options import Context, QueueArgument, command, make_group
from pgqueue.cli.serving import count_servers
from pgqueue.cli.text import print_json, print_table, show, span
from pgqueue.durations import format_duration

if TYPE_CHECKING:
    from pgqueue.statements import QueueStats, WorkerRecord

COUNTED: Final = ("available", "scheduled", "retrying", "running", "completed", "dead", "cancelled")

app = make_group("queue", "Queues: what waits in each; pause, resume and purge one; how long ended jobs are kept.")


@command(app, "list")
def list_queues(context: Context) -> None:
    """Print every queue with what waits, runs and has ended in it."""
    with context.client() as client:
        queues = client.queues()
        workers = [] if context.json else client.workers()
    if context.json:
        print_json([asdict(queue) for queue in queues])
    else:
        print_queues(queues, workers)


@command(app)
def pause(context: Context, queue: QueueArgument) -> None:
    """Have workers take nothing more from a queue; what runs goes on."""
    with context.client() as client:
        changed = client.pause(queue)
    _tell(context, queue, paused=True, changed=changed)


@command(app)
def resume(context: Context, queue: QueueArgument) -> None:
    """Have workers take jobs from a paused queue again."""
    with context.client() as client:
        changed = client.resume(queue)
    _tell(context, queue, paused=False, changed=changed)


@command(app)
def purge(
    context: Context,
    queue: QueueArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask, even on a terminal.")] = False,
) -> None:
    """Delete the waiting jobs of a queue for good; what runs goes on. Asks first, but only on a terminal."""
    confirm(f"Delete the waiting jobs of queue {queue} for good?", yes=yes)
    with context.client() as client:
        count = client.purge(queue)
    if context.json:
        print_json({"queue": queue, "purged": count})
    else:
        typer.echo(f"{count} purged")


@command(app)
def retention(
    context: Context,
    state: Annotated[str | None, typer.Argument(metavar="OUTCOME", help="completed, dead or cancelled.")] = None,
    keep: Annotated[str | None, typer.Argument(metavar="DURATION", help="Keep them this long: 12h, 7d.")] = None,
) -> None:
    """Print how long ended jobs are kept in history, or set it for one outcome; it holds for all queues."""
    from pgqueue.errors import InvalidJobError  # noqa: PLC0415

    if state is not None and keep is None:
        raise InvalidJobError(f"say how long, too: pgq queue retention {state} 7d")
    with context.client() as client:
        if state is not None and keep is not None:
            client.set_retention(state, keep)
        kept = client.retention()
    if context.json:
        print_json({outcome: format_duration(value) for outcome, value in kept.items()})
    else:
        print_table(("outcome", "kept"), list(kept.items()), empty="no outcomes")


def print_queues(queues: list[QueueStats], workers: list[WorkerRecord]) -> None:
    """The queues as a table, with how many workers serve each; ``due for``: age of the oldest job that could run.

    On a narrow terminal, a state that no queue has a job in is left out.
    """
    served = count_servers(workers)
    roomy = not sys.stdout.isatty() or get_terminal_size().columns >= LINE
    states = [state for state in COUNTED if roomy or any(getattr(queue, state) for queue in queues)]
    columns = (*states, "due for", "workers")
    rows = [
        (
            queue.queue,
            *(getattr(queue, state) for state in states),
            span(queue.oldest_ready_seconds) if queue.oldest_ready_seconds else "-",
            "paused" if queue.paused else show(served.get(queue.queue) or "none"),
        )
        for queue in queues
    ]
    print_table(("queue", *columns), rows, empty="no queues yet")


def _tell(context: Context, queue: str, *, paused: bool, changed: bool) -> None:
    if context.json:
        print_json({"queue": queue, "paused": paused, "changed": changed})
    else:
        typer.echo(f"{queue} {'paused' if paused else 'resumed'}{'' if changed else ' already'}")
