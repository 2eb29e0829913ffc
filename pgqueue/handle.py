"""The :class:`Job` that users hold: after enqueueing it, and inside a handler while it runs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, overload

import orjson

from pgqueue import statements
from pgqueue.connection import run, run_async
from pgqueue.errors import InvalidJobError, JobFailedError, LeaseLostError, PgqueueError, ResultTimeoutError
from pgqueue.outcome import completed, dump_result
from pgqueue.patience import length, looks
from pgqueue.run import BatchRun, Run, current_run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from types import TracebackType

    import psycopg

    from pgqueue.app import App
    from pgqueue.durations import Duration
    from pgqueue.job import JobRecord

_FIRST_LOOK: Final = 0.01
_SLOWEST_LOOK: Final = 0.5


class Job:
    """A job in the queue. Outside a handler: its id and verbs. Inside its handler: also what this run is.

    ``created``: False when the enqueue found another job that holds the unique_key, and this is that job.
    """

    __slots__ = ("_app", "_run", "created", "id")

    def __init__(self, job_id: int, app: App, run: Run | None = None, *, created: bool = True) -> None:
        self.id = job_id
        self.created = created
        self._app = app
        self._run = run

    def __repr__(self) -> str:
        return f"<Job {self.id}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Job) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    # -- outside: the verbs ------------------------------------------------------------------------------------------

    async def refresh(self) -> JobRecord:
        """The job as the database holds it now; raises JobNotFoundError."""
        return await self._app.aclient.get(self.id)

    async def cancel(self) -> str:
        """Take it back; answers ``cancelled``, or ``running`` when its handler has been asked to stop."""
        return await self._app.aclient.cancel(self.id)

    async def retry(self) -> str:
        """Run it again (dead, cancelled) or now (waiting)."""
        return await self._app.aclient.retry(self.id)

    async def result(self, timeout: Duration | None = None) -> Any:  # noqa: ASYNC109 - it is the wait's length
        """Wait until the job has completed and answer what its handler returned.

        Args:
            timeout: how long to wait; None: for ever.

        Raises:
            JobFailedError: it ended as dead or cancelled.
            ResultTimeoutError: it has not ended in time; it goes on.
            JobNotFoundError: there is no such job.
        """
        for pause in looks(timeout, _FIRST_LOOK, _SLOWEST_LOOK):
            record = await self.refresh()
            if record.finished:
                return _result_of(record)
            await asyncio.sleep(pause)
        raise ResultTimeoutError(f"job {self.id} has not finished within {length(timeout)}")

    def refresh_sync(self) -> JobRecord:
        """See :meth:`refresh`."""
        return self._app.client.get(self.id)

    def cancel_sync(self) -> str:
        """See :meth:`cancel`."""
        return self._app.client.cancel(self.id)

    def retry_sync(self) -> str:
        """See :meth:`retry`."""
        return self._app.client.retry(self.id)

    def result_sync(self, timeout: Duration | None = None) -> Any:
        """See :meth:`result`."""
        for pause in looks(timeout, _FIRST_LOOK, _SLOWEST_LOOK):
            record = self.refresh_sync()
            if record.finished:
                return _result_of(record)
            time.sleep(pause)
        raise ResultTimeoutError(f"job {self.id} has not finished within {length(timeout)}")

    # -- inside its handler ------------------------------------------------------------------------------------------

    @property
    def task(self) -> str:
        """Name of the task that runs."""
        task: str = self._running().task
        return task

    @property
    def queue(self) -> str:
        """The queue it came from."""
        queue: str = self._running().queue
        return queue

    @property
    def attempt(self) -> int:
        """1 for the first run."""
        attempt: int = self._running().attempt
        return attempt

    @property
    def max_attempts(self) -> int:
        """How many runs it may have in all."""
        max_attempts: int = self._running().max_attempts
        return max_attempts

    @property
    def payload(self) -> Any:
        """The whole payload, decoded."""
        return orjson.loads(self._running().payload)

    @property
    def meta(self) -> dict[str, Any]:
        """The object that was given as ``meta``; empty when none was."""
        meta = self._running().meta
        return orjson.loads(meta) if meta else {}

    @property
    def tick(self) -> datetime | None:
        """The time that a schedule made it for, in UTC; None for a job of no schedule."""
        meta = self.meta
        try:
            return datetime.fromisoformat(meta["tick"]).astimezone(UTC) if "schedule" in meta else None
        except (KeyError, TypeError, ValueError):  # somebody's own meta
            return None

    @property
    def cancelled(self) -> bool:
        """Somebody asked to cancel it, or its lease is lost: a long handler in a thread looks here and stops."""
        return self._running().cancelled

    def progress(self, value: float, note: str | None = None) -> None:
        """Say how far this run is: 0.0 to 1.0 and a word. Costs nothing here; written within half a second.

        Raises:
            InvalidJobError: the value is outside 0 to 1.
        """
        if not 0 <= value <= 1:
            raise InvalidJobError(f"progress must be 0.0 to 1.0, not {value!r}")
        self._running().tell(dump_result({"value": value} if note is None else {"value": value, "note": note}))

    async def upstream_results(self) -> dict[int, Any]:
        """What the jobs that this one depends on have returned, by id; those of a batch, too. None where nothing."""
        return _results(await self._app.aclient.upstream(self.id))

    def upstream_results_sync(self) -> dict[int, Any]:
        """See :meth:`upstream_results`."""
        return _results(self._app.client.upstream(self.id))

    def set_result(self, value: Any) -> None:
        """The result that :meth:`transaction` commits; without it the result of such a job is None."""
        self._running().result = value

    def transaction(self) -> Transaction:
        """The handler's own writes and the job's completion in one commit.

        ``async with job.transaction() as conn`` in an async handler, ``with …`` in a sync one; ``conn`` is a
        psycopg connection. After the block the job is completed, whatever the handler does next.

        Raises:
            LeaseLostError: at the end of the block, when this run's lease was lost; everything is rolled back.
        """
        return Transaction(self._app, [self._running()])

    def _running(self) -> Run:
        if self._run is None:
            raise PgqueueError("this is only known inside the job's handler; outside, ask refresh()")
        return self._run


class EnqueuedJobs(Sequence[Job]):
    """The jobs of one :meth:`pgqueue.App.enqueue_many`, in the order given. Each :class:`Job` is made when looked at.

    Attributes:
        ids: theirs; for a million jobs this is what you want.
    """

    __slots__ = ("_app", "_created", "ids")

    def __init__(self, app: App, ids: list[int], created: list[bool] | None = None) -> None:
        self.ids = ids
        self._created = created  # None: all of them
        self._app = app

    def __repr__(self) -> str:
        return f"<{len(self.ids)} enqueued jobs>"

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> Job: ...
    @overload
    def __getitem__(self, index: slice) -> list[Job]: ...
    def __getitem__(self, index: int | slice) -> Job | list[Job]:
        if isinstance(index, slice):
            return [self[nth] for nth in range(*index.indices(len(self.ids)))]
        return Job(self.ids[index], self._app, created=self._created is None or self._created[index])


class Transaction:
    """What :meth:`Job.transaction` answers: a context for async and for sync handlers."""

    def __init__(self, app: App, runs: Sequence[Run]) -> None:
        self._app = app
        self._runs = runs

    async def __aenter__(self) -> psycopg.AsyncConnection[Any]:
        self._async = self._open_async()
        return await self._async.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return await self._async.__aexit__(kind, error, trace)

    def __enter__(self) -> psycopg.Connection[Any]:
        self._sync = self._open_sync()
        return self._sync.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return self._sync.__exit__(kind, error, trace)

    @asynccontextmanager
    async def _open_async(self) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        async with self._app.database.aconnection() as connection:
            async with connection.transaction():
                yield connection
                self._check(await run_async(connection, self._completion()))
            self._land()

    @contextmanager
    def _open_sync(self) -> Iterator[psycopg.Connection[Any]]:
        with self._app.database.connection() as connection:
            with connection.transaction():
                yield connection
                self._check(run(connection, self._completion()))
            self._land()

    def _completion(self) -> statements.Statement[list[tuple[int, int]]]:
        landings = [(run.id, run.token, completed(run.result)) for run in self._runs]
        return statements.finish(landings, [], schema=self._app.schema)

    def _check(self, lost: list[tuple[int, int]]) -> None:
        if lost:
            raise LeaseLostError(lost[0][0])

    def _land(self) -> None:
        for one in self._runs:
            one.land()


def current_job() -> Job:
    """The job whose handler is running here.

    Raises:
        PgqueueError: no handler is running in this task or thread, or one that runs a batch of jobs.
    """
    run = current_run.get()
    if run is None:
        raise PgqueueError("no job is running here; current_job() is for handlers")
    if isinstance(run, BatchRun):
        raise PgqueueError(f"{run.task!r} runs a batch of jobs; give its function a parameter annotated pgqueue.Jobs")
    return Job(run.id, run.app, run)


def _results(records: list[JobRecord]) -> dict[int, Any]:
    return {record.id: record.result for record in records}


def _result_of(record: JobRecord) -> Any:
    if record.state != "completed":
        raise JobFailedError(record.id, record.state, record.errors)
    return record.result
