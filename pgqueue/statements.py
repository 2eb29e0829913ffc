"""One typed function per .sql file: arguments in, :class:`Statement` out. No I/O.

The logic that the sync and the async client share lives here, so that neither repeats the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import orjson

from pgqueue.bigints import pack_bigints
from pgqueue.job import JobRecord, JobSpec
from pgqueue.sql import load

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime, timedelta

    from pgqueue.outcome import Outcome

T = TypeVar("T")
Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Statement(Generic[T]):
    """SQL, its parameters, and how its rows are read."""

    sql: str
    params: dict[str, Any] | None
    read: Callable[[list[Row]], T]


@dataclass(frozen=True, slots=True)
class QueueStats:
    """What waits, runs and has ended in one queue. ``oldest_ready_seconds``: age of the oldest due job, 0 if none."""

    queue: str
    paused: bool
    available: int
    scheduled: int
    retrying: int
    running: int
    completed: int
    dead: int
    cancelled: int
    oldest_ready_seconds: float


@dataclass(frozen=True, slots=True)
class WorkerRecord:
    """A worker that has been heard of within a day. ``alive``: within the last 30 seconds."""

    name: str
    host: str
    pid: int
    queues: list[str]
    slots: int
    running: int
    version: str
    stopping: bool
    started_at: datetime
    heartbeat_at: datetime
    alive: bool


@dataclass(frozen=True, slots=True)
class Swept:
    """A job that a sweep took from an expired lease; ``state``: available, dead or cancelled."""

    id: int
    queue: str
    task: str
    attempt: int
    state: str
    worker: str | None


@dataclass(frozen=True, slots=True)
class Lanes:
    """Where a claim looks, in order: parallel lists of queue, priority, and the mark it begins behind."""

    queues: list[str]
    priorities: list[int]
    mark_ats: list[datetime | None]
    mark_ids: list[int]


# -- in the caller's transaction ------------------------------------------------------------------------------------


def enqueue(spec: JobSpec, *, schema: str) -> Statement[int]:
    """Insert one job; answers its id, or that of the live job which holds its unique_key."""
    params = {
        "task": spec.task, "payload": spec.payload, "queue": spec.queue, "priority": spec.priority,
        "delay": spec.delay, "run_at": spec.run_at, "max_attempts": spec.max_attempts, "timeout": spec.timeout,
        "unique_key": spec.unique_key, "meta": spec.meta,
    }  # fmt: skip
    return Statement(load("enqueue", schema), params, _scalar)


def enqueue_many(specs: Sequence[JobSpec], *, schema: str) -> Statement[list[int]]:
    """Insert many jobs, all or none; answers their ids in the order given."""
    jobs = orjson.dumps([_as_arguments(spec) for spec in specs]).decode()
    return Statement(load("enqueue_many", schema), {"jobs": jobs}, _column)


def reserve_ids(count: int, *, schema: str) -> Statement[list[int]]:
    """Draw ids for jobs that will come by COPY."""
    return Statement(load("reserve_ids", schema), {"count": count}, _column)


def ring(queues: Sequence[str], *, schema: str) -> Statement[None]:
    """Wake an idle worker of each queue when the transaction commits."""
    return Statement(load("ring", schema), {"queues": list(queues)}, _nothing)


# -- verbs ----------------------------------------------------------------------------------------------------------


def cancel(job_id: int, *, schema: str) -> Statement[str | None]:
    """Take a job back; answers the state it is in now."""
    return Statement(load("cancel", schema), {"job_id": job_id}, _scalar)


def retry(job_id: int, *, schema: str) -> Statement[str | None]:
    """Run a dead, cancelled or waiting job now; answers the state it is in now."""
    return Statement(load("retry", schema), {"job_id": job_id}, _scalar)


def redrive(queue: str | None, task: str | None, limit: int, *, schema: str) -> Statement[int]:
    """Retry many dead letters, oldest first; answers how many."""
    return Statement(load("redrive", schema), {"queue": queue, "task": task, "limit": limit}, _scalar)


def purge(queue: str, *, schema: str) -> Statement[int]:
    """Delete a queue's waiting jobs; answers how many."""
    return Statement(load("purge", schema), {"queue": queue}, _scalar)


def purge_dead(queue: str | None, *, schema: str) -> Statement[int]:
    """Delete dead letters; answers how many."""
    return Statement(load("purge_dead", schema), {"queue": queue}, _scalar)


def pause(queue: str, *, schema: str) -> Statement[bool]:
    """Take nothing more from a queue; answers whether that was a change."""
    return Statement(load("pause", schema), {"queue": queue}, _scalar)


def resume(queue: str, *, schema: str) -> Statement[bool]:
    """Take jobs from a queue again; answers whether that was a change."""
    return Statement(load("resume", schema), {"queue": queue}, _scalar)


def set_retention(state: str, keep: timedelta, *, schema: str) -> Statement[str | None]:
    """How long an outcome is kept in history."""
    return Statement(load("set_retention", schema), {"state": state, "keep": keep}, _scalar)


# -- reading --------------------------------------------------------------------------------------------------------


def get_job(job_id: int, *, schema: str) -> Statement[JobRecord | None]:
    """One job, live or finished."""
    return Statement(
        load("get_job", schema), {"job_id": job_id}, lambda rows: JobRecord.from_row(rows[0]) if rows else None
    )


def list_jobs(
    queue: str | None, task: str | None, state: str | None, before: int | None, limit: int, *, schema: str
) -> Statement[list[JobRecord]]:
    """Jobs, newest id first; ``before`` continues from a page's last id."""
    params = {"queue": queue, "task": task, "state": state, "before": before, "limit": limit}
    return Statement(load("list_jobs", schema), params, lambda rows: [JobRecord.from_row(row) for row in rows])


def queue_stats(*, schema: str) -> Statement[list[QueueStats]]:
    """What waits, runs and has ended, per queue."""
    return Statement(load("queue_stats", schema), None, lambda rows: [QueueStats(*row) for row in rows])


def list_workers(*, schema: str) -> Statement[list[WorkerRecord]]:
    """The workers that have been heard of within a day."""
    return Statement(load("list_workers", schema), None, lambda rows: [WorkerRecord(*row) for row in rows])


def retention(*, schema: str) -> Statement[dict[str, timedelta]]:
    """How long each outcome is kept."""
    return Statement(load("retention", schema), None, lambda rows: {state: keep for state, keep in rows})  # noqa: C416


# -- the engine -----------------------------------------------------------------------------------------------------


def claim(
    lanes: Lanes, tasks: list[str] | None, limit: int, token: int, lease: timedelta, worker: str, *, schema: str
) -> Statement[list[Row]]:
    """Claim due jobs under one new lease; answers them in the order they are to run (priority, run_at, id first)."""
    params = {
        "queues": lanes.queues, "priorities": lanes.priorities, "mark_ats": lanes.mark_ats, "mark_ids": lanes.mark_ids,
        "tasks": tasks, "limit": limit, "token": token, "lease": lease, "worker": worker,
    }  # fmt: skip
    return Statement(load("claim", schema), params, sorted)


def next_due(
    queues: list[str], priorities: list[int], tasks: list[str] | None, *, schema: str
) -> Statement[float | None]:
    """Seconds until the next waiting job of these lanes is due."""
    return Statement(load("next_due", schema), {"queues": queues, "priorities": priorities, "tasks": tasks}, _scalar)


def finish(
    outcomes: Sequence[tuple[int, int, Outcome]], done_tokens: Sequence[int], *, schema: str
) -> Statement[list[tuple[int, int]]]:
    """Land (id, token, outcome)s; answers the (id, token)s whose lease was lost."""
    outcomes = sorted(outcomes, key=_first)
    tokens = [token for _, token, _ in outcomes]
    params = {
        "ids": pack_bigints([job_id for job_id, _, _ in outcomes]),
        "tokens": pack_bigints(tokens),
        "verdicts": _unless_all("completed", [outcome.verdict for _, _, outcome in outcomes]),
        "results": _unless_all(None, [outcome.result for _, _, outcome in outcomes]),
        "errors": _unless_all(None, [outcome.error for _, _, outcome in outcomes]),
        "delays": _unless_all(0.0, [outcome.delay for _, _, outcome in outcomes]),
        "done_tokens": pack_bigints(done_tokens),
        "open_tokens": pack_bigints(list(set(tokens).difference(done_tokens))),
    }
    return Statement(load("finish", schema), params, lambda rows: [(row[0], row[1]) for row in rows])


def landed(outcomes: Sequence[tuple[int, int, Outcome]], *, schema: str) -> Statement[list[int]]:
    """Which of these had landed although the reply was lost."""
    params = {"ids": [job_id for job_id, _, _ in outcomes], "tokens": [token for _, token, _ in outcomes]}
    return Statement(load("landed", schema), params, _column)


def renew(
    leases: Sequence[int], held: Sequence[tuple[int, int]], lease: timedelta, *, schema: str
) -> Statement[dict[int, tuple[bool, bool]]]:
    """Prolong these leases and their running (id, token)s; answers those held: id → (cancel requested, prolonged)."""
    params = {
        "leases": list(leases), "lease": lease,
        "ids": [job_id for job_id, _ in held], "tokens": [token for _, token in held],
    }  # fmt: skip
    return Statement(load("renew", schema), params, _held)


def progress(reports: Sequence[tuple[int, int, str]], *, schema: str) -> Statement[None]:
    """Write (id, token, progress as JSON text)s of running jobs."""
    ids, tokens, texts = (list(column) for column in zip(*reports, strict=True))
    return Statement(load("progress", schema), {"ids": ids, "tokens": tokens, "progress": texts}, _nothing)


def sweep(limit: int = 100, *, schema: str) -> Statement[list[Swept]]:
    """Recover the jobs of up to ``limit`` expired leases."""
    return Statement(load("sweep", schema), {"limit": limit}, lambda rows: [Swept(*row) for row in rows])


def prune(*, schema: str) -> Statement[list[str]]:
    """Create the coming partitions of history, drop the old ones; answers what was done."""
    return Statement(load("prune", schema), None, _column)


def heartbeat(
    name: str,
    host: str,
    pid: int,
    queues: list[str],
    slots: int,
    running: int,
    version: str,
    stopping: bool,
    *,
    schema: str,
) -> Statement[float]:
    """Say that this worker is alive; answers the server's clock, in seconds since 1970."""
    params = {
        "name": name, "host": host, "pid": pid, "queues": queues, "slots": slots, "running": running,
        "version": version, "stopping": stopping,
    }  # fmt: skip
    return Statement(load("heartbeat", schema), params, _scalar)


def sign_off(name: str, *, schema: str) -> Statement[None]:
    """Forget a worker that stopped in order."""
    return Statement(load("sign_off", schema), {"name": name}, _nothing)


def _as_arguments(spec: JobSpec) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "task": spec.task, "payload": orjson.Fragment(spec.payload), "queue": spec.queue, "priority": spec.priority,
        "max_attempts": spec.max_attempts,
    }  # fmt: skip
    if spec.delay is not None:
        arguments["delay"] = f"{spec.delay.total_seconds():.6f} seconds"
    if spec.run_at is not None:
        arguments["run_at"] = spec.run_at
    if spec.timeout is not None:
        arguments["timeout"] = f"{spec.timeout.total_seconds():.6f} seconds"
    if spec.unique_key is not None:
        arguments["unique_key"] = spec.unique_key
    if spec.meta is not None:
        arguments["meta"] = orjson.Fragment(spec.meta)
    return arguments


def _unless_all(usual: Any, values: list[Any]) -> list[Any] | None:
    """None for a column that has nothing to say; finish.sql knows what is usual."""
    return None if values.count(usual) == len(values) else values


def _first(item: tuple[int, int, Outcome]) -> int:
    return item[0]


def _scalar(rows: list[Row]) -> Any:
    return rows[0][0] if rows else None


def _column(rows: list[Row]) -> list[Any]:
    return [row[0] for row in rows]


def _held(rows: list[Row]) -> dict[int, tuple[bool, bool]]:
    return {row[0]: (row[1], row[2]) for row in rows}


def _nothing(rows: list[Row]) -> None:  # noqa: ARG001
    return None
