"""pgqueue: a job queue whose only server is PostgreSQL."""

from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

from pgqueue.app import App
from pgqueue.backoff import Backoff, Exponential, Fixed, never
from pgqueue.client import AsyncClient, Client
from pgqueue.errors import (
    Cancel,
    CommandFailedError,
    DatabaseError,
    DatabaseUnreachableError,
    Dead,
    EmbeddedServerError,
    HandlerCrashedError,
    InvalidJobError,
    InvalidPayloadError,
    JobFailedError,
    JobNotFoundError,
    JobStateError,
    JobTimeoutError,
    LeaseLostError,
    PgqueueError,
    ResultTimeoutError,
    Retry,
    SchemaError,
    SettingsError,
    Snooze,
    UnknownTaskError,
)
from pgqueue.handle import Job, current_job
from pgqueue.job import JobRecord, JobSpec
from pgqueue.settings import Settings
from pgqueue.task import Task
from pgqueue.worker import Worker

if TYPE_CHECKING:
    from pgqueue.migrations import migrate

__version__ = _version("pgqueue")

__all__ = [
    "App", "AsyncClient", "Backoff", "Cancel", "Client", "CommandFailedError", "DatabaseError",
    "DatabaseUnreachableError", "Dead", "EmbeddedServerError", "Exponential", "Fixed", "HandlerCrashedError",
    "InvalidJobError", "InvalidPayloadError", "Job", "JobFailedError", "JobNotFoundError", "JobRecord",
    "JobSpec", "JobStateError", "JobTimeoutError", "LeaseLostError", "PgqueueError", "ResultTimeoutError",
    "Retry", "SchemaError", "Settings", "SettingsError", "Snooze", "Task", "UnknownTaskError", "Worker",
    "current_job", "migrate", "never",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """``migrate`` brings alembic and SQLAlchemy along, so it is imported by who asks for it."""
    if name == "migrate":
        from pgqueue.migrations import migrate  # noqa: PLC0415

        return migrate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
