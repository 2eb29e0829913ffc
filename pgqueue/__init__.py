"""pgqueue: a job queue whose only server is PostgreSQL."""

from typing import TYPE_CHECKING, Any

from pgqueue.app import App
from pgqueue.backoff import Backoff, Exponential, Fixed, never
from pgqueue.batch import BatchTask, Jobs
from pgqueue.client import AsyncClient, Client
from pgqueue.errors import (
    BatchNotFoundError,
    BatchResultError,
    Cancel,
    CommandFailedError,
    DatabaseError,
    DatabaseUnreachableError,
    Dead,
    EmbeddedServerError,
    HandlerCrashedError,
    InvalidJobError,
    InvalidPayloadError,
    InvalidScheduleError,
    JobExistsError,
    JobFailedError,
    JobNotFoundError,
    JobStateError,
    JobTimeoutError,
    LeaseLostError,
    PayloadTooLargeError,
    PgqueueError,
    ResourceError,
    ResultTimeoutError,
    Retry,
    ScheduleExistsError,
    ScheduleNotFoundError,
    SchemaError,
    SettingsError,
    Snooze,
    TokenExistsError,
    TokenNotFoundError,
    UnknownTaskError,
)
from pgqueue.handle import EnqueuedJobs, Job, current_job
from pgqueue.job import JobRecord, JobSpec
from pgqueue.schedule import ScheduleRecord, ScheduleSpec
from pgqueue.settings import Settings
from pgqueue.signature import injected
from pgqueue.statements import BatchRecord, JobPage, QueueSettings, QueueStats, Submitted, WorkerRecord
from pgqueue.task import Task, all_arguments
from pgqueue.tokens import TokenRecord
from pgqueue.version import __version__ as __version__
from pgqueue.worker import Worker
from pgqueue.workflow import Batch, Step, Workflow

if TYPE_CHECKING:
    from pgqueue.migrations import migrate

__all__ = [
    "App", "AsyncClient", "Backoff", "Batch", "BatchNotFoundError", "BatchRecord", "BatchResultError", "BatchTask",
    "Cancel", "Client", "CommandFailedError", "DatabaseError", "DatabaseUnreachableError", "Dead",
    "EmbeddedServerError", "EnqueuedJobs", "Exponential", "Fixed", "HandlerCrashedError", "InvalidJobError",
    "InvalidPayloadError", "InvalidScheduleError", "Job", "JobExistsError", "JobFailedError", "JobNotFoundError",
    "JobPage", "JobRecord", "JobSpec", "JobStateError", "JobTimeoutError", "Jobs", "LeaseLostError",
    "PayloadTooLargeError", "PgqueueError",
    "QueueSettings", "QueueStats", "ResourceError", "ResultTimeoutError", "Retry", "ScheduleExistsError",
    "ScheduleNotFoundError", "ScheduleRecord", "ScheduleSpec", "SchemaError", "Settings", "SettingsError", "Snooze",
    "Step", "Submitted", "Task", "TokenExistsError", "TokenNotFoundError", "TokenRecord", "UnknownTaskError",
    "Worker", "WorkerRecord", "Workflow", "all_arguments", "current_job", "injected", "migrate", "never",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """``migrate`` brings alembic and SQLAlchemy along, so it is imported by who asks for it."""
    if name == "migrate":
        from pgqueue.migrations import migrate  # noqa: PLC0415

        return migrate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
