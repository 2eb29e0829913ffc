"""Who serves which queue, and why a job still waits: what a person asks when nothing happens."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from shlex import quote
from typing import TYPE_CHECKING, Final

import typer

from pgqueue.cli.text import one_line, span, styled

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pgqueue.client import Client
    from pgqueue.job import JobRecord
    from pgqueue.statements import WorkerRecord

_MOST_NAMED: Final = 5


def count_servers(workers: Iterable[WorkerRecord]) -> dict[str, int]:
    """How many live workers serve each queue; one that is stopping takes nothing more."""
    counts: dict[str, int] = {}
    for worker in workers:
        if worker.alive and not worker.stopping:
            for queue in worker.queues:
                counts[queue] = counts.get(queue, 0) + 1
    return counts


def nobody_serves(queues: Iterable[str], workers: Iterable[WorkerRecord]) -> str | None:
    """The sentence about queues without a live worker; None if each has one."""
    served = count_servers(workers)
    alone = [queue for queue in dict.fromkeys(queues) if queue not in served]
    if not alone:
        return None
    if not served:
        return "no worker is alive; start one: pgq worker"
    return f"no worker serves queue {_names([repr(queue) for queue in alone])} now (served: {_names(sorted(served))})"


def why_waiting(record: JobRecord, client: Client) -> str | None:
    """What a waiting job waits for; None for one that runs or has ended. Counts the queue, if the job is due."""
    if record.finished or record.state == "running":
        return None
    reasons = []
    ahead = (record.run_at - datetime.now(UTC)).total_seconds()
    if record.state != "available" and ahead > 0:
        reasons.append(f"for its time, in {span(ahead)}")
    elif any(stats.paused for stats in client.queues() if stats.queue == record.queue):
        reasons.append(f"for its queue, which is paused (pgq queue resume {quote(record.queue)})")
    workers = client.workers()
    if (alone := nobody_serves([record.queue], workers)) is not None:
        reasons.append(f"for a worker: {alone}")
    if not reasons:
        reasons.append(f"for a free slot, or for a worker that has task {record.task!r}; see: pgq workers")
    return "; and ".join(reasons)


def note(message: str) -> None:
    """A hint on stderr for a person; nothing where none is looking."""
    if sys.stderr.isatty():
        typer.echo(styled(f"note: {one_line(message)}", dim=True), err=True)


def _names(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
