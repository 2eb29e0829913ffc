"""``pgq stats`` and ``pgq workers``: the whole queue, and who works on it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from pgqueue.cli.options import Context, command
from pgqueue.cli.queues import COUNTED, print_queues
from pgqueue.cli.serving import count_servers, nobody_serves
from pgqueue.cli.text import ago, print_json, print_table

if TYPE_CHECKING:
    from pgqueue.statements import WorkerRecord


def register(app: typer.Typer) -> None:
    """Add the commands."""
    command(app)(workers)
    command(app)(stats)


def workers(context: Context) -> None:
    """Print the workers that were seen within a day; alive: within the last 30 seconds.

    A worker reports every 10 seconds; its busy slots are those of the time when it was last seen.
    """
    with context.client() as client:
        records = client.workers()
    if context.json:
        print_json([asdict(record) for record in records])
        return
    columns = ("worker", "host", "pid", "queues", "busy", "status", "seen", "started", "version")
    print_table(columns, [_row(record) for record in records], empty="no workers")


def stats(context: Context) -> None:
    """Print what waits, runs and has ended in every queue, in all, and how many workers are alive."""
    with context.client() as client:
        queues, records = client.queues(), client.workers()
    totals = {state: sum(getattr(queue, state) for queue in queues) for state in COUNTED}
    served = count_servers(records)
    alive = [record for record in records if record.alive]
    slots, running = sum(record.slots for record in alive), sum(record.running for record in alive)
    if context.json:
        print_json(
            {
                "queues": [{**asdict(queue), "workers": served.get(queue.queue, 0)} for queue in queues],
                "totals": totals,
                "workers": {"alive": len(alive), "slots": slots, "running": running},
            }
        )
        return
    print_queues(queues, records)
    typer.echo("jobs: " + ", ".join(f"{count} {state}" for state, count in totals.items()))
    typer.echo(f"workers: {len(alive)} alive, {running} of {slots} slots busy")
    waiting = [queue.queue for queue in queues if queue.available or queue.scheduled or queue.retrying]
    if (alone := nobody_serves(waiting, records)) is not None:
        typer.echo(f"jobs wait: {alone}")


def _row(record: WorkerRecord) -> tuple[object, ...]:
    status = "stopping" if record.stopping else "alive"
    return (
        record.name, record.host, record.pid, record.queues, f"{record.running} of {record.slots}",
        status if record.alive else "silent", ago(record.heartbeat_at), ago(record.started_at), record.version,
    )  # fmt: skip
