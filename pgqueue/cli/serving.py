"""Who serves which queue, and why a job still waits: what a person asks when nothing happens."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from shlex import quote
from typing import TYPE_CHECKING, Final

from pgqueue.cli.text import span

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pgqueue.client import Client
    from pgqueue.job import JobRecord
    from pgqueue.statements import WorkerRecord

_MOST_NAMED: Final = 5
_MOST_LOOKED_AT: Final = 50


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
    if record.state == "blocked":
        return f"for {_names(list(_unmet(record, client))) or 'what it depends on'}; see: pgq job tree {record.id}"
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


def _unmet(record: JobRecord, client: Client) -> Iterator[str]:
    """What it depends on and has not completed, of the first few."""
    from pgqueue.errors import BatchNotFoundError, JobNotFoundError  # noqa: PLC0415

    for upstream in record.depends_on[:_MOST_LOOKED_AT]:
        with contextlib.suppress(BatchNotFoundError):
            try:
                state = client.get(upstream).state
            except JobNotFoundError:
                batch = client.batch(upstream)
                if batch.completed < batch.total:
                    yield f"batch {upstream} ({batch.total - batch.pending} of {batch.total} ended)"
            else:
                if state != "completed":
                    yield f"job {upstream} ({state})"


def _names(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
