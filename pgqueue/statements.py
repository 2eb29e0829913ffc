"""One typed function per .sql file: arguments in, :class:`Statement` out. No I/O.

The logic that the sync and the async client share lives here, so that neither repeats the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import orjson

from pgqueue.bigints import pack_bigints
from pgqueue.job import JobRecord, JobSpec
from pgqueue.schedule import ScheduleRecord, Waiting
from pgqueue.sql import load
from pgqueue.tokens import TokenRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime, timedelta

    from pgqueue.job import JobFilter
    from pgqueue.outcome import Outcome
    from pgqueue.schedule import Plan, ScheduleSpec
    from pgqueue.tokens import TokenSpec

T = TypeVar("T")
Row = tuple[Any, ...]
MOST_LOOKED_AT: Final = 10_000  # jobs that one statement of a list reads, whatever it finds among them
COLUMNS: Final = 11  # of a claimed job; claim_managed.sql answers its group_key, too


@dataclass(frozen=True, slots=True)
class Statement(Generic[T]):
    """SQL, its parameters, and how its rows are read."""

    sql: str
    params: dict[str, Any] | None
    read: Callable[[list[Row]], T]


@dataclass(frozen=True, slots=True)
class Submitted:
    """What an enqueue answers: the job that is there now. ``created`` is false when another one held the unique_key."""

    id: int
    created: bool


@dataclass(frozen=True, slots=True)
class JobPage:
    """Jobs, newest id first. ``before``: others may follow below this id, even if ``jobs`` is empty; None: none do."""

    jobs: list[JobRecord]
    before: int | None


@dataclass(frozen=True, slots=True)
class JobGlance:
    """Where a job is. ``state``: None: it is not there any more."""

    id: int
    queue: str
    state: str | None
    attempt: int = 0
    progress: Any = None
    cancel_requested: bool = False
    finished_at: datetime | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing will change any more."""
        return self.state is None or self.finished_at is not None


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """A batch and how far it is: ``total`` jobs, of which so many have ended, and how."""

    id: int
    name: str | None
    total: int
    completed: int
    dead: int
    cancelled: int
    created_at: datetime
    finished_at: datetime | None

    @property
    def pending(self) -> int:
        """Jobs that have not ended."""
        return self.total - self.completed - self.dead - self.cancelled

    @property
    def finished(self) -> bool:
        """Whether every job has ended."""
        return self.pending <= 0

    @property
    def progress(self) -> float:
        """The share of jobs that have ended, 0.0 to 1.0."""
        return 1.0 if self.total <= 0 else 1 - self.pending / self.total


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """What is set for a queue; see :meth:`pgqueue.Client.limit_queue` for the limits. None: no such limit."""

    name: str
    paused: bool
    max_running: int | None
    per_key: int
    rate: float | None
    burst: int | None
    key_rate: float | None
    key_burst: int | None
    ageing: timedelta | None


@dataclass(frozen=True, slots=True)
class QueueStats:
    """What waits, runs and has ended in one queue. ``oldest_ready_seconds``: age of the oldest due job, 0 if none."""

    queue: str
    paused: bool
    available: int
    scheduled: int
    retrying: int
    blocked: int
    running: int
    completed: int
    dead: int
    cancelled: int
    oldest_ready_seconds: float


@dataclass(frozen=True, slots=True)
class LiveCount:
    """What was counted of one queue; ``more``: of which of due, later, blocked it was not all."""

    queue: str
    available: int
    scheduled: int
    retrying: int
    blocked: int
    running: int
    oldest_ready_seconds: float
    more: frozenset[str]


@dataclass(frozen=True, slots=True)
class EndedCounts:
    """What history holds, by outcome: totals and shares of queues by statistics, samples as counted, which are cut."""

    totals: dict[str, float]
    shares: dict[str, dict[str, float]]
    samples: dict[str, dict[str, int]]
    cut: frozenset[str]


@dataclass(frozen=True, slots=True)
class TableFacts:
    """What PostgreSQL's statistics know of the hot table, and who is alive."""

    live: float
    dead_tuples: int
    queues: list[str]
    queue_shares: list[float]
    blocked_share: float
    future_share: float
    oldest_xmin_seconds: float
    workers: int
    slots: int
    busy: int


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
class Held:
    """A running job as who finishes it for somebody else sees it.

    Attributes:
        token: of the lease that it runs under.
        live: the lease has not run out.
        last: no other job runs under the lease than those that were asked for.
        ran, waited: seconds since it was claimed, and from ``run_at`` until then.
    """

    id: int
    queue: str
    token: int
    live: bool
    attempt: int
    max_attempts: int
    last: bool
    task: str
    ran: float
    waited: float


@dataclass(frozen=True, slots=True)
class Lanes:
    """Where a claim looks, in order: parallel lists of queue, priority, and the mark it begins behind.

    A mark is what a claim has answered of its last job: run_at in seconds since 1970, and the id.
    """

    queues: list[str]
    priorities: list[int]
    mark_ats: list[float | None]
    mark_ids: list[int]


# -- in the caller's transaction ------------------------------------------------------------------------------------


def submit(spec: JobSpec, *, schema: str) -> Statement[Submitted]:
    """Insert one job; answers it, or the job which holds its unique_key."""
    params = {
        "task": spec.task, "payload": spec.payload, "queue": spec.queue, "priority": spec.priority,
        "delay": spec.delay, "run_at": spec.run_at, "max_attempts": spec.max_attempts, "timeout": spec.timeout,
        "unique_key": spec.unique_key, "meta": spec.meta,
    }  # fmt: skip
    if spec.plain:
        return Statement(load("enqueue", schema), params, lambda rows: Submitted(rows[0][0], created=True))
    params |= {
        "group_key": spec.group_key, "unique_for": spec.unique_for, "on_conflict": spec.on_conflict,
        "depends_on": list(spec.depends_on) or None, "on_dead": spec.on_dead,
    }  # fmt: skip
    return Statement(load("submit", schema), params, lambda rows: Submitted(*rows[0]))


def enqueue(spec: JobSpec, *, schema: str) -> Statement[int]:
    """The same, for who needs no more than the id."""
    full = submit(spec, schema=schema)
    return Statement(full.sql, full.params, _scalar)


def submit_many(
    specs: Sequence[JobSpec],
    *,
    batch_id: int | None = None,
    after: Mapping[int, Sequence[int]] | None = None,
    schema: str,
) -> Statement[list[Submitted]]:
    """Insert many jobs, all or none; answers them in the order given.

    ``after``: for a job's index the indexes of earlier ones that it depends on, besides its ``depends_on``.
    """
    after = after or {}
    jobs = orjson.dumps([_as_arguments(spec, after.get(nth)) for nth, spec in enumerate(specs)]).decode()
    params = {"jobs": jobs, "batch_id": batch_id}
    return Statement(load("submit_many", schema), params, lambda rows: [Submitted(*row) for row in rows])


def submit_together(specs: Sequence[JobSpec], *, schema: str) -> Statement[list[Submitted]]:
    """Insert plain jobs of several callers, all or none; an error does not say which one it is about."""
    jobs = orjson.dumps([_as_arguments(spec) for spec in specs]).decode()
    return Statement(
        load("enqueue_together", schema), {"jobs": jobs}, lambda rows: [Submitted(row[0], created=True) for row in rows]
    )


def enqueue_many(specs: Sequence[JobSpec], *, schema: str) -> Statement[list[int]]:
    """The same, for who needs no more than the ids."""
    full = submit_many(specs, schema=schema)
    return Statement(full.sql, full.params, _column)


def create_batch(name: str | None, *, schema: str) -> Statement[int]:
    """A new batch, to be filled in the same transaction; answers its id."""
    return Statement(load("create_batch", schema), {"name": name}, _scalar)


def reserve_ids(count: int, *, schema: str) -> Statement[list[int]]:
    """Draw ids for jobs that will come by COPY."""
    return Statement(load("reserve_ids", schema), {"count": count}, _scalar)


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


def would_touch(
    action: str, queue: str | None, task: str | None = None, limit: int | None = None, *, schema: str
) -> Statement[int]:
    """How many jobs redrive, purge or purge_dead would touch now."""
    params = {"action": action, "queue": queue, "task": task, "limit": limit}
    return Statement(load("would_touch", schema), params, _scalar)


def pause(queue: str, *, schema: str) -> Statement[bool]:
    """Take nothing more from a queue; answers whether that was a change."""
    return Statement(load("pause", schema), {"queue": queue}, _scalar)


def resume(queue: str, *, schema: str) -> Statement[bool]:
    """Take jobs from a queue again; answers whether that was a change."""
    return Statement(load("resume", schema), {"queue": queue}, _scalar)


def limit_queue(queue: str, limits: dict[str, Any], *, schema: str) -> Statement[dict[str, Any]]:
    """Change a queue's limits; answers them all."""
    params = {"queue": queue, "limits": orjson.dumps(limits).decode()}
    return Statement(load("limit_queue", schema), params, lambda rows: orjson.loads(rows[0][0]))


def cancel_batch(batch_id: int, *, schema: str) -> Statement[int | None]:
    """Cancel a batch's live jobs; answers how many ended at once, None: no such batch."""
    return Statement(load("cancel_batch", schema), {"batch_id": batch_id}, _scalar)


def set_retention(state: str, keep: timedelta, *, schema: str) -> Statement[str | None]:
    """How long an outcome is kept in history."""
    return Statement(load("set_retention", schema), {"state": state, "keep": keep}, _scalar)


# -- reading --------------------------------------------------------------------------------------------------------


def get_job(job_id: int, *, schema: str) -> Statement[JobRecord | None]:
    """One job, live or finished."""
    return Statement(
        load("get_job", schema), {"job_id": job_id}, lambda rows: JobRecord.from_row(rows[0]) if rows else None
    )


def watch_jobs(ids: Sequence[int], *, schema: str) -> Statement[dict[int, JobGlance]]:
    """Where these jobs are, by id."""
    return Statement(
        load("watch_jobs", schema), {"ids": list(ids)}, lambda rows: {row[0]: _glance(row) for row in rows}
    )


def list_jobs(
    wanted: JobFilter, before: int | None, limit: int, *, most: int | None = MOST_LOOKED_AT, schema: str
) -> Statement[JobPage]:
    """Jobs, newest id first; looks at no more than ``most``. ``before`` continues from a page's own."""
    params = {
        "queue": wanted.queue, "task": wanted.task, "state": wanted.state, "tag": wanted.tag, "since": wanted.since,
        "age": wanted.age, "before": before, "most": most, "limit": limit,
    }  # fmt: skip
    return Statement(load("list_jobs", schema), params, lambda rows: _page(rows, limit))


def list_upstream(job_id: int, *, schema: str) -> Statement[list[JobRecord]]:
    """The jobs that this one depends on, members of batches included."""
    return Statement(load("list_upstream", schema), {"job_id": job_id}, _records)


def tree(job_id: int, *, schema: str) -> Statement[list[JobRecord]]:
    """A job with all that it depends on and all that depend on it."""
    return Statement(load("tree", schema), {"job_id": job_id}, _records)


def queue_stats(*, schema: str) -> Statement[list[QueueStats]]:
    """What waits, runs and has ended, per queue."""
    return Statement(load("queue_stats", schema), None, lambda rows: [QueueStats(*row) for row in rows])


def metrics_live(
    *, queues: int = 200, most: int = 5_000, budget: int = 10_000, schema: str
) -> Statement[list[LiveCount]]:
    """What waits and runs, per queue, counted up to a cap."""
    params = {"queues": queues, "most": most, "budget": budget}
    return Statement(load("metrics_live", schema), params, lambda rows: [_live_count(row) for row in rows])


def metrics_ended(*, most: int = 5_000, schema: str) -> Statement[EndedCounts]:
    """What history holds, by statistics, or counted where it is little."""
    return Statement(load("metrics_ended", schema), {"most": most}, _ended_counts)


def metrics_facts(*, schema: str) -> Statement[TableFacts]:
    """What PostgreSQL's statistics know of the hot table, and who is alive."""
    return Statement(load("metrics_facts", schema), None, lambda rows: TableFacts(*rows[0]))


def get_batch(batch_id: int, *, schema: str) -> Statement[BatchRecord | None]:
    """One batch and its counts."""
    return Statement(
        load("get_batch", schema), {"batch_id": batch_id}, lambda rows: BatchRecord(*rows[0]) if rows else None
    )


def list_batches(unfinished: bool, before: int | None, limit: int, *, schema: str) -> Statement[list[BatchRecord]]:
    """Batches, newest id first; ``before`` continues from a page's last id."""
    params = {"unfinished": unfinished, "before": before, "limit": limit}
    return Statement(load("list_batches", schema), params, lambda rows: [BatchRecord(*row) for row in rows])


def list_queues(*, schema: str) -> Statement[list[QueueSettings]]:
    """The settings of the queues that have any."""
    return Statement(load("list_queues", schema), None, lambda rows: [QueueSettings(*row) for row in rows])


def list_workers(*, schema: str) -> Statement[list[WorkerRecord]]:
    """The workers that have been heard of within a day."""
    return Statement(load("list_workers", schema), None, lambda rows: [WorkerRecord(*row) for row in rows])


def retention(*, schema: str) -> Statement[dict[str, timedelta]]:
    """How long each outcome is kept."""
    return Statement(load("retention", schema), None, lambda rows: {state: keep for state, keep in rows})  # noqa: C416


# -- schedules ------------------------------------------------------------------------------------------------------


def add_schedule(spec: ScheduleSpec, replace: bool, *, schema: str) -> Statement[ScheduleRecord | None]:
    """Add a schedule, or with ``replace`` change the one of this name; None: there is one, and it stays."""
    params = {name: getattr(spec, name) for name in spec.__slots__}
    return Statement(load("add_schedule", schema), {**params, "replace": replace}, _schedule)


def get_schedule(name: str, *, schema: str) -> Statement[ScheduleRecord | None]:
    """One schedule."""
    return Statement(load("list_schedules", schema), {"name": name}, _schedule)


def list_schedules(*, schema: str) -> Statement[list[ScheduleRecord]]:
    """Every schedule, by name."""
    return Statement(
        load("list_schedules", schema), {"name": None}, lambda rows: [ScheduleRecord.from_row(row) for row in rows]
    )


def pause_schedule(name: str, *, schema: str) -> Statement[bool | None]:
    """Let a schedule not tick; answers whether that was a change, None: no such schedule."""
    return Statement(load("pause_schedule", schema), {"name": name}, _scalar)


def resume_schedule(name: str, *, schema: str) -> Statement[bool | None]:
    """Let a schedule tick again; answers whether that was a change, None: no such schedule."""
    return Statement(load("resume_schedule", schema), {"name": name}, _scalar)


def remove_schedule(name: str, *, schema: str) -> Statement[bool | None]:
    """Delete a schedule; answers True, None: no such schedule."""
    return Statement(load("remove_schedule", schema), {"name": name}, lambda rows: rows[0][0] or None)


def backfill(name: str, ticks: Sequence[datetime], *, schema: str) -> Statement[list[int]]:
    """Enqueue a job for each of these past ticks that has not fired; answers their ids."""
    return Statement(load("backfill", schema), {"name": name, "ticks": list(ticks)}, _column)


def declare_schedules(specs: Sequence[ScheduleSpec], *, schema: str) -> Statement[list[str]]:
    """Write what the code declares, where that has changed; answers the names written."""
    schedules = orjson.dumps([spec.as_dict() for spec in specs]).decode()
    return Statement(load("declare_schedules", schema), {"schedules": schedules}, _column)


def due_schedules(horizon: timedelta, *, schema: str) -> Statement[list[Waiting]]:
    """The schedules that tick within the horizon."""
    return Statement(load("due_schedules", schema), {"horizon": horizon}, lambda rows: [Waiting(*row) for row in rows])


def tick(
    plans: Sequence[Plan], looked_at: datetime, *, schema: str
) -> Statement[list[tuple[str, datetime | None, int | None]]]:
    """Fire what is due; answers (schedule, tick, job id) of what was worked off here and not by another worker."""
    params = {"plans": orjson.dumps([plan.as_dict() for plan in plans]).decode(), "looked_at": looked_at}
    return Statement(load("tick", schema), params, lambda rows: [(row[0], row[1], row[2]) for row in rows])


def forget_ticks(*, schema: str) -> Statement[int]:
    """Forget which ticks fired more than 30 days ago; answers how many."""
    return Statement(load("forget_ticks", schema), None, _scalar)


# -- tokens ---------------------------------------------------------------------------------------------------------


def create_token(spec: TokenSpec, secret_hash: bytes, *, schema: str) -> Statement[TokenRecord | None]:
    """Add a token; None: there is one of this name."""
    params = {
        "name": spec.name, "hash": secret_hash, "scopes": list(spec.scopes), "queues": list(spec.queues),
        "expires_in": spec.expires_in,
    }  # fmt: skip
    return Statement(load("create_token", schema), params, _token)


def find_token(secret_hash: bytes, *, schema: str) -> Statement[TokenRecord | None]:
    """The token of a secret, None: unknown, expired or revoked; notes that it was used, once a minute."""
    return Statement(load("find_token", schema), {"hash": secret_hash}, _token)


def has_tokens(*, schema: str) -> Statement[bool]:
    """Whether there ever was a token; revoked ones count."""
    return Statement(load("has_tokens", schema), None, _scalar)


def list_tokens(revoked: bool, *, schema: str) -> Statement[list[TokenRecord]]:
    """The tokens by name, with ``revoked`` also those that were revoked."""
    return Statement(
        load("list_tokens", schema), {"revoked": revoked}, lambda rows: [TokenRecord.from_row(row) for row in rows]
    )


def revoke_token(name: str, *, schema: str) -> Statement[bool | None]:
    """Have nobody let in with a token any more; answers True, None: no such token."""
    return Statement(load("revoke_token", schema), {"name": name}, _scalar)


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


def claim_managed(
    queue: str, marks: Lanes, tasks: list[str] | None, limit: int, token: int, lease: timedelta, worker: str,
    hints: Sequence[str] = (), *, schema: str,
) -> Statement[list[Row]]:  # fmt: skip
    """Claim from one queue with keys or limits; ``marks``: its ten lanes, by priority; ``hints``: keys to look at.

    Answers what claim answers, each row with its group_key at the end; large payloads are None: see :func:`payloads`.
    """
    params = {
        "queue": queue, "mark_ats": marks.mark_ats, "mark_ids": marks.mark_ids, "hints": list(hints),
        "tasks": tasks, "limit": limit, "token": token, "lease": lease, "worker": worker,
    }  # fmt: skip
    return Statement(load("claim_managed", schema), params, sorted)


def payloads(ids: Sequence[int], token: int, *, schema: str) -> Statement[dict[int, str]]:
    """The payloads of jobs that run under this lease."""
    return Statement(load("payloads", schema), {"ids": list(ids), "token": token}, dict)


def lacks_payloads(rows: Sequence[Row]) -> bool:
    """Whether claim_managed left the payloads out."""
    return any(row[5] is None for row in rows)


def filled(rows: Sequence[Row], payloads: Mapping[int, str]) -> list[Row]:
    """The rows with these payloads; without those that are no longer held."""
    return [(*row[:5], payloads[row[2]], *row[6:]) for row in rows if row[2] in payloads]


def managed_queues(queues: list[str], *, schema: str) -> Statement[list[str]]:
    """Which of these queues are served by claim_managed."""
    return Statement(load("managed_queues", schema), {"queues": queues}, _column)


@dataclass(frozen=True, slots=True)
class Ahead:
    """What waits in some lanes.

    Attributes:
        ready: a job is due now.
        seconds: until the next one is; None when none waits.
        managed: the queues that are served by claim_managed.
    """

    ready: bool
    seconds: float | None
    managed: list[str]


def next_due(lanes: Lanes, tasks: list[str] | None, *, schema: str) -> Statement[Ahead]:
    """Whether to claim, and how long to sleep if not."""
    params = {
        "queues": lanes.queues, "priorities": lanes.priorities, "mark_ats": lanes.mark_ats, "mark_ids": lanes.mark_ids,
        "tasks": tasks,
    }  # fmt: skip
    return Statement(load("next_due", schema), params, lambda rows: Ahead(*rows[0]))


def look_behind(
    lanes: Lanes, tasks: list[str] | None, since: float | None = None, *, schema: str
) -> Statement[list[tuple[str, int, float, int]]]:
    """What lies before the lanes' marks and could be claimed: queue, priority, run_at and id of the first of each.

    ``since``: in seconds since 1970; not what was due before that.
    """
    params = {
        "queues": lanes.queues, "priorities": lanes.priorities, "mark_ats": lanes.mark_ats, "mark_ids": lanes.mark_ids,
        "tasks": tasks, "since": since,
    }  # fmt: skip
    return Statement(load("look_behind", schema), params, list)


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


def landed(ends: Sequence[tuple[int, int]], *, schema: str) -> Statement[dict[int, str]]:
    """Which of these (id, token)s had landed although the reply was lost.

    Answers how: id → completed, dead, cancelled; or back: it waits again, or the next run has not ended.
    """
    ids, tokens = (list(column) for column in zip(*ends, strict=True))
    return Statement(load("landed", schema), {"ids": ids, "tokens": tokens}, dict)


def renew(
    leases: Sequence[int], held: Sequence[tuple[int, int]], lease: timedelta, *, schema: str
) -> Statement[dict[int, tuple[bool, bool]]]:
    """Prolong these leases and their running (id, token)s; answers those held: id → (cancel requested, prolonged)."""
    params = {
        "leases": list(leases), "lease": lease,
        "ids": [job_id for job_id, _ in held], "tokens": [token for _, token in held],
    }  # fmt: skip
    return Statement(load("renew", schema), params, _held)


def held(ids: Sequence[int], *, schema: str) -> Statement[dict[int, Held]]:
    """Which of these jobs run, and under which leases."""
    return Statement(load("held", schema), {"ids": list(ids)}, lambda rows: {row[0]: Held(*row) for row in rows})


def split_lease(token: int, parts: Sequence[tuple[int, int, str]], *, schema: str) -> Statement[set[int]]:
    """Give the jobs of a claim other leases: (id, token, worker) each; answers the ids that were still held."""
    ids, tokens, workers = (list(column) for column in zip(*parts, strict=True))
    params = {"token": token, "ids": ids, "tokens": tokens, "workers": workers}
    return Statement(load("split_lease", schema), params, lambda rows: {row[0] for row in rows})


def clock(*, schema: str) -> Statement[float]:
    """The server's clock, in seconds since 1970."""
    return Statement(load("clock", schema), None, _scalar)


def progress(reports: Sequence[tuple[int, int, str]], *, schema: str) -> Statement[None]:
    """Write (id, token, progress as JSON text)s of running jobs."""
    ids, tokens, texts = (list(column) for column in zip(*reports, strict=True))
    return Statement(load("progress", schema), {"ids": ids, "tokens": tokens, "progress": texts}, _nothing)


def sweep(limit: int = 100, *, settle: bool = True, schema: str) -> Statement[list[Swept]]:
    """Recover the jobs of up to ``limit`` expired leases; without ``settle`` not those that end and are waited for."""
    params = {"limit": limit, "settle": settle}
    return Statement(load("sweep", schema), params, lambda rows: [Swept(*row) for row in rows])


def prune(*, schema: str) -> Statement[list[str]]:
    """Create the coming partitions of history, drop the old ones; answers what was done."""
    return Statement(load("prune", schema), None, _column)


def tidy(*, schema: str) -> Statement[None]:
    """Forget what has run out: throttles, full buckets, old tokens, batches without history, edges to jobs now gone."""
    return Statement(load("tidy", schema), None, _nothing)


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


def _as_arguments(spec: JobSpec, after: Sequence[int] | None = None) -> dict[str, Any]:
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
    if not spec.plain:
        arguments |= _linking_arguments(spec)
    if after:
        arguments |= {"after": list(after), "on_dead": spec.on_dead}
    if spec.meta is not None:
        arguments["meta"] = orjson.Fragment(spec.meta)
    return arguments


def _linking_arguments(spec: JobSpec) -> dict[str, Any]:
    """Only what is said: an element with other options than a key is inserted by itself."""
    arguments: dict[str, Any] = {}
    if spec.unique_key is not None:
        arguments["unique_key"] = spec.unique_key
    if spec.group_key is not None:
        arguments["group_key"] = spec.group_key
    if spec.unique_for is not None:
        arguments["unique_for"] = f"{spec.unique_for.total_seconds():.6f} seconds"
    if spec.on_conflict != "skip":
        arguments["on_conflict"] = spec.on_conflict
    if spec.depends_on:
        arguments |= {"depends_on": list(spec.depends_on), "on_dead": spec.on_dead}
    return arguments


def _live_count(row: Row) -> LiveCount:
    queue, available, due, scheduled, retrying, later, blocked, never, running, oldest = row
    more = frozenset(kind for kind, cut in (("due", due), ("later", later), ("blocked", never)) if cut)
    return LiveCount(queue, available, scheduled, retrying, blocked, running, oldest, more)


def _ended_counts(rows: list[Row]) -> EndedCounts:
    counts = EndedCounts({}, {}, {}, frozenset(state for what, state, _, _ in rows if what == "cut"))
    for what, state, queue, jobs in rows:
        if what == "total":
            counts.totals[state] = jobs
        elif what == "share":
            counts.shares.setdefault(state, {})[queue] = jobs
        elif what == "sample":
            counts.samples.setdefault(state, {})[queue] = int(jobs)
    return counts


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


def _schedule(rows: list[Row]) -> ScheduleRecord | None:
    return ScheduleRecord.from_row(rows[0]) if rows else None


def _token(rows: list[Row]) -> TokenRecord | None:
    return TokenRecord.from_row(rows[0]) if rows else None


def _glance(row: Row) -> JobGlance:
    job_id, queue, state, attempt, progress, cancel_requested, finished_at = row
    known = None if progress is None else orjson.loads(progress)
    return JobGlance(job_id, queue, state, attempt, known, cancel_requested, finished_at)


def _page(rows: list[Row], limit: int) -> JobPage:
    """From jobs with two more columns, found and more; see list_jobs.sql."""
    jobs = [JobRecord.from_row(row[:-2]) for row in rows if row[-2]]
    return JobPage(jobs, rows[-1][0] if rows and (len(jobs) == limit or rows[-1][-1]) else None)


def _records(rows: list[Row]) -> list[JobRecord]:
    return [JobRecord.from_row(row) for row in rows]


def _nothing(rows: list[Row]) -> None:  # noqa: ARG001
    return None
