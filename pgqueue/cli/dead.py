"""``pgq dead``: the dead letters, jobs whose attempts are used up."""

from __future__ import annotations

from typing import Annotated

import typer

from pgqueue.cli.jobs import print_records
from pgqueue.cli.options import (
    BeforeOption,
    Context,
    LimitOption,
    QueueFilter,
    TaskFilter,
    WideOption,
    command,
    make_group,
)
from pgqueue.cli.person import confirm
from pgqueue.cli.text import print_json

app = make_group(
    "dead", "Dead letters: jobs whose attempts are used up. They stay until they are pruned, redriven or purged."
)


@command(app, "list")
def list_dead(
    context: Context,
    queue: QueueFilter = None,
    task: TaskFilter = None,
    limit: LimitOption = 50,
    before: BeforeOption = None,
    wide: WideOption = False,
) -> None:
    """Print the dead letters, the newest id first."""
    with context.client() as client:
        records = client.jobs(queue=queue, task=task, state="dead", before=before, limit=limit)
    print_records(context, records, empty="no dead letters", wide=wide)


@command(app)
def redrive(
    context: Context,
    queue: QueueFilter = None,
    task: TaskFilter = None,
    limit: Annotated[
        int, typer.Option(min=1, max=1_000_000, metavar="N", help="Retry at most N, those that died first.")
    ] = 1000,
) -> None:
    """Retry dead letters with all their attempts, the oldest first."""
    with context.client() as client:
        count = client.redrive(queue=queue, task=task, limit=limit)
    if context.json:
        print_json({"redriven": count})
    else:
        typer.echo(f"{count} redriven")


@command(app)
def purge(
    context: Context,
    queue: QueueFilter = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask, even on a terminal.")] = False,
) -> None:
    """Delete dead letters for good. Asks first, but only on a terminal."""
    confirm(f"Delete the dead letters of {f'queue {queue}' if queue else 'every queue'} for good?", yes=yes)
    with context.client() as client:
        count = client.purge_dead(queue=queue)
    if context.json:
        print_json({"purged": count})
    else:
        typer.echo(f"{count} purged")
