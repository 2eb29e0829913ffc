"""Every error that pgqueue raises, and the four that a handler may raise to end its run another way.

All derive from :class:`PgqueueError`. A message says what happened and names the remedy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datetime import timedelta


class PgqueueError(Exception):
    """The root of every error raised by pgqueue."""


class InvalidJobError(PgqueueError, ValueError):
    """A job, queue or option that no database would accept; raised before any SQL, nothing is written."""


class InvalidPayloadError(InvalidJobError):
    """The payload is not JSON, too large, or does not fit the task's signature."""


class PayloadTooLargeError(InvalidPayloadError):
    """The payload is over 1 MiB, or the numbers and texts in it are too large for PostgreSQL."""


class InvalidScheduleError(InvalidJobError):
    """A schedule whose expression, time zone or policy has no meaning, or that would never tick; nothing is written."""


class UnknownTaskError(PgqueueError, LookupError):
    """The task is not registered here."""

    def __init__(self, task: str) -> None:
        super().__init__(f"task {task!r} is not registered here; import its module with --app")
        self.task = task

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.task,)


class SettingsError(PgqueueError, ValueError):
    """A setting from the environment or the command line has no meaning."""


class JobNotFoundError(PgqueueError, LookupError):
    """No job with this id: it never existed, its transaction rolled back, or its history was pruned."""

    def __init__(self, job_id: int) -> None:
        super().__init__(f"no job {job_id}: never committed, or pruned from history after its retention")
        self.job_id = job_id

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.job_id,)


class JobExistsError(PgqueueError):
    """A job holds this unique_key, and ``on_conflict`` is ``raise``; ``job_id`` is that job's id."""

    def __init__(self, message: str, job_id: int) -> None:
        super().__init__(message)
        self.job_id = job_id

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.job_id)


class BatchNotFoundError(PgqueueError, LookupError):
    """There is no such batch."""

    def __init__(self, batch_id: int) -> None:
        super().__init__(f"there is no batch {batch_id}")
        self.batch_id = batch_id

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.batch_id,)


class JobStateError(PgqueueError):
    """The verb does not apply to the state that the job is in."""

    def __init__(self, job_id: int, state: str, verb: str) -> None:
        super().__init__(f"job {job_id} is {state}: it can't be {verb}")
        self.job_id = job_id
        self.state = state
        self.verb = verb

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.job_id, self.state, self.verb)


class JobFailedError(PgqueueError):
    """:meth:`pgqueue.Job.result` of a job that ended as dead or cancelled.

    ``errors`` holds what each attempt raised, oldest first.
    """

    def __init__(self, job_id: int, state: str, errors: list[dict[str, object]]) -> None:
        last = f": {errors[-1].get('type')}: {errors[-1].get('message')}" if errors else ""
        super().__init__(f"job {job_id} is {state}{last}")
        self.job_id = job_id
        self.state = state
        self.errors = errors

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.job_id, self.state, self.errors)


class ResultTimeoutError(PgqueueError, TimeoutError):
    """The job had not finished within the time given; it goes on."""


class LeaseLostError(PgqueueError):
    """This run no longer holds the job's lease: it expired or the job was cancelled. Nothing was written."""

    def __init__(self, job_id: int) -> None:
        super().__init__(f"job {job_id}: the lease is lost; another worker may be running it")
        self.job_id = job_id

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.job_id,)


class JobTimeoutError(PgqueueError, TimeoutError):
    """The handler ran longer than the job's timeout; counts as a failed attempt."""


class HandlerCrashedError(PgqueueError):
    """The child process of an isolated handler ended without an answer; counts as a failed attempt."""


class BatchResultError(PgqueueError):
    """A batch handler returned something that does not say how each of its jobs ended; all of them failed."""


class ResourceError(PgqueueError):
    """A resource could not be registered or found, or it did not start; the message holds the reason."""


class CommandFailedError(PgqueueError):
    """A command run by ``pgq worker --exec`` ended with a status other than 0 or 75."""


class ScheduleExistsError(PgqueueError):
    """There is a schedule of this name already."""

    def __init__(self, name: str) -> None:
        super().__init__(f"there is a schedule {name!r} already; replace it, or give the new one another name")
        self.name = name

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.name,)


class ScheduleNotFoundError(PgqueueError, LookupError):
    """There is no schedule of this name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no schedule {name!r}; see: pgq schedule list")
        self.name = name

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.name,)


class TokenExistsError(PgqueueError):
    """There is a token of this name already that was not revoked, perhaps one that has expired."""

    def __init__(self, name: str) -> None:
        super().__init__(f"there is a token {name!r} already; revoke it, or give the new one another name")
        self.name = name

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.name,)


class TokenNotFoundError(PgqueueError, LookupError):
    """There is no token of this name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no token {name!r}; see: pgq token list")
        self.name = name

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.name,)


class DatabaseError(PgqueueError):
    """PostgreSQL refused the statement."""


class DatabaseUnreachableError(DatabaseError):
    """PostgreSQL could not be reached, or the connection was lost: a write's outcome is unknown."""


class SchemaError(DatabaseError):
    """The schema is missing, or of another version than this pgqueue."""


class EmbeddedServerError(PgqueueError):
    """The embedded PostgreSQL could not be found, started or stopped."""


class Interruption(Exception):  # noqa: N818 - these are verbs a handler says, not errors
    """What a handler raises to end its run in another way than return or failure."""


class Snooze(Interruption):
    """Put the job back for ``delay``, without blame: the attempt is refunded."""

    def __init__(self, delay: timedelta | float | str) -> None:
        super().__init__(f"snooze {delay}")
        self.delay = delay

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.delay,)


class Retry(Interruption):
    """Fail this attempt and try again after ``delay`` instead of the task's backoff."""

    def __init__(self, delay: timedelta | float | str, reason: str = "the handler asked for a retry") -> None:
        super().__init__(reason)
        self.delay = delay

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.delay, str(self))


class Cancel(Interruption):
    """End the job as cancelled."""

    def __init__(self, reason: str = "the handler cancelled the job") -> None:
        super().__init__(reason)


class Dead(Interruption):
    """End the job as dead now, whatever attempts are left."""

    def __init__(self, reason: str = "the handler gave the job up") -> None:
        super().__init__(reason)
