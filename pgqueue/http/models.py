"""What goes over the wire: requests and answers, as pydantic models; the OpenAPI schema is made of these."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from pgqueue.durations import format_duration, parse_duration
from pgqueue.errors import InvalidJobError
from pgqueue.job import MAX_KEY_LENGTH, MAX_NAME_LENGTH, MOST_ATTEMPTS, JobRecord, JobSpec

MOST_JOBS = 10_000  # of one batch call
MOST_LEASED = 1_000  # of one lease call
LONGEST_WAIT = 60.0
LONGEST_LEASE = 86_400.0
MOST_QUEUES = 100
BIGGEST_ID = 2**63 - 1
_MOST_LEVELS: Final = 200  # of a value in an answer; pydantic writes no more than 255

Text = Annotated[str, Field(min_length=1, max_length=MAX_NAME_LENGTH)]
Key = Annotated[str, Field(min_length=1, max_length=MAX_KEY_LENGTH)]
JobId = Annotated[int, Field(ge=1, le=BIGGEST_ID)]
LengthOfTime = Annotated[
    float | str, Field(description="Seconds, or text such as 30s, 5m, 1h30m, 2d.", examples=["30s", 2.5])
]
Token = Annotated[str, Field(pattern=r"^[0-7]?[0-9a-f]{1,15}$", description="As the lease said it.")]


class Request(BaseModel):
    """A body; what it does not know it refuses."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class NewJob(Request):
    """A job to be enqueued; the same words as in Python, in SQL and on the command line."""

    payload: Any = Field(default_factory=dict, description="Any JSON value, at most 1 MiB.")
    task: Text = Field("echo", description="The task's name; workers over HTTP get jobs of any task.")
    queue: Text = "default"
    priority: int | Literal["high", "normal", "low"] = Field(
        5, description="0 runs first, 9 last; or high (2), normal (5), low (8)."
    )
    delay: LengthOfTime | None = Field(None, description="Start this much later.")
    run_at: datetime | None = Field(None, description="Start at this time, which says its zone.")
    max_retries: int | None = Field(
        None, ge=0, lt=MOST_ATTEMPTS, description="Runs after the first one, before the job is dead. Default: 9."
    )
    max_attempts: int | None = Field(None, ge=1, le=MOST_ATTEMPTS, description="The same with the first run counted.")
    timeout: LengthOfTime | None = Field(None, description="Longest run of one attempt, for pgqueue's own workers.")
    unique_key: Key | None = Field(None, description="At most one live job has it.")
    unique_for: LengthOfTime | None = Field(None, description="Hold the unique key this long, whatever happens.")
    on_conflict: Literal["skip", "replace", "raise"] = "skip"
    group_key: Key | None = Field(None, description="Jobs of a queue with the same key run one at a time, in order.")
    depends_on: list[JobId] = Field(default_factory=list, max_length=10_000)
    on_dead: Literal["cancel", "continue", "hold"] = "cancel"
    meta: dict[str, Any] | None = Field(None, description="A small object that travels with the job.")

    def spec(self, **changed: Any) -> JobSpec:
        """As a value that may be enqueued; raises InvalidJobError."""
        options: dict[str, Any] = {name: getattr(self, name) for name in type(self).model_fields}
        payload, task, retries = options.pop("payload"), options.pop("task"), options.pop("max_retries")
        attempts = options.pop("max_attempts")
        if retries is not None and attempts is not None:
            raise InvalidJobError("say max_retries or max_attempts, not both")
        if retries is not None:
            attempts = retries + 1
        if attempts is not None:
            options["max_attempts"] = attempts
        spec = JobSpec.make(task, payload, **{**options, **changed})
        return spec._replace(payload="null") if payload is None else spec  # make() takes None for "nothing given"


class Submission(BaseModel):
    """The job that is there now."""

    job_id: int
    state: str | None = Field(description="null when its history is gone.")
    created: bool = Field(description="false: there was one with this key before.")


class NewJobs(Request):
    """Jobs to be enqueued together, all or none."""

    jobs: list[NewJob] = Field(min_length=1, max_length=MOST_JOBS)


class Submissions(BaseModel):
    """What has become of each, in the order given."""

    jobs: list[Submission]


class BatchJob(NewJob):
    """A job of a batch."""

    after: list[Annotated[int, Field(ge=0, lt=MOST_JOBS)]] = Field(
        default_factory=list,
        max_length=MOST_JOBS,
        description="Indexes, from 0, of earlier jobs that have to end first.",
    )

    def spec(self, **changed: Any) -> JobSpec:
        """Without ``after``, which is about the others."""
        return NewJob.model_construct(**{name: getattr(self, name) for name in NewJob.model_fields}).spec(**changed)


class NewBatch(Request):
    """Jobs that are counted together."""

    name: Text | None = None
    jobs: list[BatchJob] = Field(min_length=1, max_length=MOST_JOBS)


class CreatedBatch(BaseModel):
    """The batch, and its jobs in the order given."""

    batch_id: int
    job_ids: list[int]


class BatchView(BaseModel):
    """A batch and how far it is."""

    batch_id: int
    name: str | None
    total: int
    completed: int
    dead: int
    cancelled: int
    pending: int
    progress: float = Field(description="The share that has ended, 0 to 1.")
    finished: bool
    created_at: datetime
    finished_at: datetime | None


class WantedLease(Request):
    """What a worker asks for."""

    queues: list[Text] = Field(default_factory=lambda: ["default"], min_length=1, max_length=MOST_QUEUES)
    max: int | None = Field(None, ge=1, le=MOST_LEASED, description="Up to so many jobs, as a list.")
    lease: LengthOfTime | None = Field(None, description="Hold them this long. Default: LEASE_DURATION, else 30s.")
    wait: LengthOfTime = Field(0, description="Wait for a job up to this long, at most 60s.")
    worker: Text | None = Field(None, description="What to call the worker in lists. Default: its address.")


class LeasedJob(BaseModel):
    """A job to work on. Until ``lease_until`` nobody else gets it."""

    job_id: int
    queue: str
    task: str
    payload: Any
    priority: int
    attempt: int = Field(description="1 for the first run.")
    attempts_left: int = Field(description="After this one.")
    lease_until: datetime
    lease_token: Token
    timeout: float | None = Field(description="Seconds that the run should take at most.")
    run_at: datetime
    meta: dict[str, Any]


class LeasedJobs(BaseModel):
    """As many as there were, and no more than were asked for."""

    jobs: list[LeasedJob]


class Ack(Request):
    """The job is done."""

    lease_token: Token | None = Field(None, description="Left out: the lease that the job has now.")
    result: Any = Field(None, description="Any JSON value, at most 1 MiB; kept with the job.")


class Failure(Request):
    """What went wrong."""

    type: Text = Field("Failed", description="A name for this kind of error.")
    message: str = "the worker reported a failure"
    traceback: str = ""


class Fail(Request):
    """The attempt failed: again after 2, 4, 8, 16 … s, or dead when that was the last."""

    lease_token: Token | None = Field(None, description="Left out: the lease that the job has now.")
    error: Failure | str = Field(default_factory=lambda: Failure(), description="A message, or an object.")  # noqa: PLW0108
    retry_in: LengthOfTime | None = Field(None, description="Instead of 2, 4, 8, 16 … s.")
    final: bool = Field(False, description="No other attempt: the job is dead.")


class Release(Request):
    """Give it back, the attempt refunded."""

    lease_token: Token | None = Field(None, description="Left out: the lease that the job has now.")
    retry_in: LengthOfTime | None = Field(None, description="Nobody gets it before. Default: at once.")


class OneEnd(Request):
    """How one of many jobs ended."""

    job_id: JobId
    lease_token: Token
    outcome: Literal["ack", "fail", "release"] = "ack"
    result: Any = None
    error: Failure | str = Field(default_factory=lambda: Failure())  # noqa: PLW0108
    retry_in: LengthOfTime | None = None
    final: bool = False


class Ends(Request):
    """How many jobs ended."""

    jobs: list[OneEnd] = Field(min_length=1, max_length=MOST_LEASED)


class Landed(BaseModel):
    """Which have landed, and which leases were lost."""

    landed: list[int]
    lost: list[int]


class JobState(BaseModel):
    """Where the job is now."""

    job_id: int
    state: str


class Progress(Request):
    """How far a run is."""

    value: float = Field(ge=0, le=1)
    note: str | None = Field(None, max_length=2_000)


class HeldLease(Request):
    """A lease to be held on to."""

    job_id: JobId
    lease_token: Token
    progress: Progress | None = None


class Heartbeat(Request):
    """What a worker still works on."""

    leases: list[HeldLease] = Field(max_length=MOST_LEASED)
    lease: LengthOfTime | None = Field(None, description="From now on this long. Default: LEASE_DURATION, else 30s.")


class Pulse(BaseModel):
    """What has become of the leases, and what the worker is to do."""

    extended: list[int] = Field(description="Held on.")
    lost: list[int] = Field(description="Somebody else may work on these: stop, and throw the result away.")
    cancel: list[int] = Field(description="Held on, but somebody asked to cancel them: stop, and fail or ack.")
    directive: Literal["run", "quiet"] = Field(description="quiet: this server is about to stop; lease from another.")


class JobView(BaseModel):
    """A job, live or finished."""

    job_id: int
    queue: str
    task: str
    state: str
    payload: Any
    priority: int
    attempts: int = Field(description="Runs so far.")
    max_retries: int
    max_attempts: int
    run_at: datetime | None = Field(description="null while it waits for others.")
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    lease_until: datetime | None
    worker: str | None
    cancel_requested: bool
    timeout: str | None
    unique_key: str | None
    group_key: str | None
    batch_id: int | None
    depends_on: list[int]
    pending: int = Field(description="How many of those it waits for.")
    progress: Any
    result: Any
    errors: list[dict[str, Any]]
    meta: dict[str, Any]

    @classmethod
    def of(cls, record: JobRecord, hide: Any) -> JobView:
        """From the database's view; ``hide`` redacts a value."""
        facts = {name: getattr(record, name) for name in cls.model_fields if hasattr(record, name)}
        for name in ("payload", "result", "progress", "errors", "meta"):
            facts[name] = _shallow(hide(facts[name]))
        return cls(
            **{
                **facts,
                "job_id": record.id,
                "attempts": record.attempt,
                "max_retries": record.max_attempts - 1,
                "run_at": _finite(record.run_at),
                "timeout": None if record.timeout is None else format_duration(record.timeout),
            }
        )


class JobPage(BaseModel):
    """Jobs, newest first, and where the next page begins."""

    jobs: list[JobView]
    cursor: int | None = Field(
        description="Give it as ?cursor= to go on, also after a page without jobs; null: this was the last one."
    )


class JobTree(BaseModel):
    """Jobs that depend on each other."""

    jobs: list[JobView]


class QueueView(BaseModel):
    """What waits, runs and has ended in a queue."""

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


class QueueViews(BaseModel):
    """Every queue that has or had jobs."""

    queues: list[QueueView]


class Limits(Request):
    """Limits of a queue; what is left out stays, null takes one away."""

    max_running: int | None = Field(None, ge=1, le=1_000_000)
    per_key: int | None = Field(None, ge=1, le=1_000_000)
    rate: float | None = Field(None, gt=0, le=1_000_000)
    burst: int | None = Field(None, ge=1, le=1_000_000)
    key_rate: float | None = Field(None, gt=0, le=1_000_000)
    key_burst: int | None = Field(None, ge=1, le=1_000_000)
    ageing: LengthOfTime | None = None


class QueueState(BaseModel):
    """A queue after a change."""

    queue: str
    changed: bool


class Bulk(Request):
    """One verb for many jobs."""

    action: Literal["redrive", "purge", "purge_dead"] = Field(
        description="redrive: dead letters run again; purge: what waits is deleted; purge_dead: dead ones are deleted."
    )
    queue: Text | None = Field(None, description="Of this queue; purge needs it.")
    task: Text | None = Field(None, description="Of this task; for redrive.")
    limit: int = Field(1_000, ge=1, le=100_000, description="At most so many; for redrive.")
    dry_run: bool = Field(False, description="Change nothing; answer how many it would be.")


class Counted(BaseModel):
    """How many jobs it was."""

    count: int


class Touched(BaseModel):
    """How many jobs it was, or with ``dry_run`` would be."""

    count: int
    more: bool = Field(description="limit was reached, so there may be others: say it again until this is false.")


class NewSchedule(Request):
    """When to make which job; the words are those of `pgq schedule add`."""

    expression: Annotated[str, Field(min_length=1, max_length=1_000)] = Field(
        description="Five cron fields, six with seconds first, @hourly and the like, or 'every 90s'."
    )
    task: Text
    payload: Any = Field(default_factory=dict)
    tz: Text = Field("UTC", description="Where the times are meant: Europe/Berlin.")
    queue: Text = "default"
    priority: int | Literal["high", "normal", "low"] = 5
    max_attempts: int = Field(10, ge=1, le=MOST_ATTEMPTS)
    timeout: LengthOfTime | None = None
    misfire: Literal["skip", "latest", "all"] = "latest"
    grace: LengthOfTime = "1m"
    overlap: Literal["allow", "skip"] = "allow"
    unique_key: Key | None = None
    group_key: Key | None = None


class ScheduleView(BaseModel):
    """A schedule."""

    name: str
    expression: str
    time_zone: str
    task: str
    payload: Any
    queue: str
    priority: int
    max_attempts: int
    timeout: str | None
    misfire: str
    grace: str
    overlap: str
    unique_key: str | None
    group_key: str | None
    paused: bool
    declared: bool = Field(description="It comes from an application's code.")
    next_tick: datetime | None
    upcoming: list[datetime] = Field(description="The next five ticks.")
    last_tick: datetime | None
    last_job_id: int | None
    created_at: datetime
    updated_at: datetime
    problem: str | None = Field(description="Why it can't tick.")


class ScheduleViews(BaseModel):
    """Schedules by name."""

    schedules: list[ScheduleView]


class ScheduleState(BaseModel):
    """A schedule after a change."""

    name: str
    changed: bool


class Health(BaseModel):
    """Whether it works, and what does not."""

    status: Literal["ok", "failing"]
    checks: dict[str, str]


def seconds(value: float | str | None, what: str, most: float, default: float = 0.0) -> float:
    """A length of time as given; raises InvalidJobError."""
    if value is None:
        return default
    length = parse_duration(value, what)
    if length > timedelta(seconds=most):
        raise InvalidJobError(f"{what} must be at most {most:g} seconds, not {value!r}")
    return length.total_seconds()


def _shallow(value: Any, levels: int = _MOST_LEVELS) -> Any:
    """What stands deeper than that, as JSON text: SQL takes any depth, but an answer can't be written with more."""
    if isinstance(value, dict):
        return {key: _shallow(one, levels - 1) for key, one in value.items()} if levels else _as_text(value)
    if isinstance(value, list):
        return [_shallow(one, levels - 1) for one in value] if levels else _as_text(value)
    return value


def _as_text(value: Any) -> str:
    try:
        return json.dumps(value)
    except RecursionError:
        return "…"


def _finite(moment: Any) -> datetime | None:
    """``infinity``, of a job that waits for others, is no time."""
    return moment if isinstance(moment, datetime) and moment.year < 9999 else None  # noqa: PLR2004
