"""The verbs of the queue, sync and async: each method is one statement. A test holds the two classes equal."""

from __future__ import annotations

import struct
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, TypeVar

import psycopg

from pgqueue import statements
from pgqueue.connection import Database, run, run_async, run_on, run_on_async, translated
from pgqueue.durations import Duration, parse_duration
from pgqueue.errors import InvalidJobError, JobNotFoundError, JobStateError
from pgqueue.job import FINISHED, MAX_NAME_LENGTH, STATES, JobRecord, JobSpec, check_text
from pgqueue.sql import load

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pgqueue.statements import QueueStats, Statement, WorkerRecord

T = TypeVar("T")
_CHUNK: Final = 5_000
_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)


class Client:
    """The queue's verbs for sync code. Every verb takes the caller's ``connection`` to join its transaction."""

    def __init__(self, database: Database, schema: str = "pgqueue") -> None:
        self.database = database
        self.schema = schema

    def enqueue(self, spec: JobSpec, *, connection: Any = None) -> int:
        """Insert one job; answers its id, or that of the live job which holds its unique_key."""
        return self._run(statements.enqueue(spec, schema=self.schema), connection)

    def enqueue_many(self, specs: Iterable[JobSpec], *, copy: bool = False, connection: Any = None) -> list[int]:
        """Insert many jobs, all or none; answers their ids in the order given.

        ``copy`` streams them with COPY: the fastest way in; needs the right to insert into ``jobs`` (not
        pgqueue_producer), a psycopg connection, and jobs without unique_key.
        """
        specs = list(specs)
        if copy:
            return self._copy(specs, connection)
        return self._run(statements.enqueue_many(specs, schema=self.schema), connection) if specs else []

    def cancel(self, job_id: int, *, connection: Any = None) -> str:
        """Take a job back: a waiting one ends as cancelled, a running one is told; answers its state now.

        Raises:
            JobNotFoundError: there is no such job.
            JobStateError: it has already ended.
        """
        return check_cancelled(job_id, self._run(statements.cancel(job_id, schema=self.schema), connection))

    def retry(self, job_id: int, *, connection: Any = None) -> str:
        """Run a dead or cancelled job again with all its attempts, or a waiting one now.

        Raises:
            JobNotFoundError: there is no such job.
            JobStateError: it is running or completed, or a live job holds its unique_key.
        """
        return check_retried(job_id, self._run(statements.retry(job_id, schema=self.schema), connection))

    def get(self, job_id: int, *, connection: Any = None) -> JobRecord:
        """One job, live or finished; raises JobNotFoundError."""
        return check_found(job_id, self._run(statements.get_job(job_id, schema=self.schema), connection))

    def jobs(
        self,
        *,
        queue: str | None = None,
        task: str | None = None,
        state: str | None = None,
        before: int | None = None,
        limit: int = 50,
        connection: Any = None,
    ) -> list[JobRecord]:
        """Jobs, newest id first; give the last id of a page as ``before`` for the next. ``limit``: 1 to 1000."""
        check_page(state, limit)
        return self._run(statements.list_jobs(queue, task, state, before, limit, schema=self.schema), connection)

    def redrive(
        self, *, queue: str | None = None, task: str | None = None, limit: int = 1000, connection: Any = None
    ) -> int:
        """Retry many dead letters, oldest first; answers how many will run again."""
        return self._run(statements.redrive(queue, task, limit, schema=self.schema), connection)

    def purge_dead(self, *, queue: str | None = None, connection: Any = None) -> int:
        """Delete dead letters for good; answers how many."""
        return self._run(statements.purge_dead(queue, schema=self.schema), connection)

    def pause(self, queue: str, *, connection: Any = None) -> bool:
        """Workers take nothing more from this queue, what runs goes on; answers whether that was a change."""
        check_text(queue, "queue", MAX_NAME_LENGTH)
        return self._run(statements.pause(queue, schema=self.schema), connection)

    def resume(self, queue: str, *, connection: Any = None) -> bool:
        """Workers take jobs from this queue again; answers whether that was a change."""
        check_text(queue, "queue", MAX_NAME_LENGTH)
        return self._run(statements.resume(queue, schema=self.schema), connection)

    def purge(self, queue: str, *, connection: Any = None) -> int:
        """Delete the waiting jobs of a queue for good; answers how many. Running jobs and history stay."""
        check_text(queue, "queue", MAX_NAME_LENGTH)
        return self._run(statements.purge(queue, schema=self.schema), connection)

    def queues(self, *, connection: Any = None) -> list[QueueStats]:
        """What waits, runs and has ended, per queue."""
        return self._run(statements.queue_stats(schema=self.schema), connection)

    def workers(self, *, connection: Any = None) -> list[WorkerRecord]:
        """The workers that have been heard of within a day."""
        return self._run(statements.list_workers(schema=self.schema), connection)

    def retention(self, *, connection: Any = None) -> dict[str, timedelta]:
        """How long each outcome is kept in history."""
        return self._run(statements.retention(schema=self.schema), connection)

    def set_retention(self, state: str, keep: Duration, *, connection: Any = None) -> None:
        """Keep an outcome (completed, dead, cancelled) this long; at least a day is kept, partitions are days."""
        statement = statements.set_retention(
            check_outcome(state), parse_duration(keep, "retention"), schema=self.schema
        )
        self._run(statement, connection)

    def _run(self, statement: Statement[T], connection: Any) -> T:
        return self.database.run(statement) if connection is None else run_on(connection, statement)

    def _copy(self, specs: Sequence[JobSpec], connection: Any) -> list[int]:
        check_copyable(specs, connection, psycopg.Connection)
        if connection is None:
            return self.database.transact(lambda own: self._copy(specs, own))
        with translated(), connection.cursor(binary=True) as cursor:
            now: datetime = cursor.execute("SELECT now()").fetchone()[0]
            ids = run(connection, statements.reserve_ids(len(specs), schema=self.schema))
            with cursor.copy(load("copy_jobs", self.schema)) as copy:
                for block in copy_blocks(specs, ids, now):
                    copy.write(block)
            run(connection, statements.ring(due_queues(specs), schema=self.schema))
        return ids


class AsyncClient:
    """The queue's verbs for async code; see :class:`Client` for what each means."""

    def __init__(self, database: Database, schema: str = "pgqueue") -> None:
        self.database = database
        self.schema = schema

    async def enqueue(self, spec: JobSpec, *, connection: Any = None) -> int:
        """See :meth:`Client.enqueue`."""
        return await self._run(statements.enqueue(spec, schema=self.schema), connection)

    async def enqueue_many(self, specs: Iterable[JobSpec], *, copy: bool = False, connection: Any = None) -> list[int]:
        """See :meth:`Client.enqueue_many`."""
        specs = list(specs)
        if copy:
            return await self._copy(specs, connection)
        return await self._run(statements.enqueue_many(specs, schema=self.schema), connection) if specs else []

    async def cancel(self, job_id: int, *, connection: Any = None) -> str:
        """See :meth:`Client.cancel`."""
        return check_cancelled(job_id, await self._run(statements.cancel(job_id, schema=self.schema), connection))

    async def retry(self, job_id: int, *, connection: Any = None) -> str:
        """See :meth:`Client.retry`."""
        return check_retried(job_id, await self._run(statements.retry(job_id, schema=self.schema), connection))

    async def get(self, job_id: int, *, connection: Any = None) -> JobRecord:
        """See :meth:`Client.get`."""
        return check_found(job_id, await self._run(statements.get_job(job_id, schema=self.schema), connection))

    async def jobs(
        self,
        *,
        queue: str | None = None,
        task: str | None = None,
        state: str | None = None,
        before: int | None = None,
        limit: int = 50,
        connection: Any = None,
    ) -> list[JobRecord]:
        """See :meth:`Client.jobs`."""
        check_page(state, limit)
        return await self._run(statements.list_jobs(queue, task, state, before, limit, schema=self.schema), connection)

    async def redrive(
        self, *, queue: str | None = None, task: str | None = None, limit: int = 1000, connection: Any = None
    ) -> int:
        """See :meth:`Client.redrive`."""
        return await self._run(statements.redrive(queue, task, limit, schema=self.schema), connection)

    async def purge_dead(self, *, queue: str | None = None, connection: Any = None) -> int:
        """See :meth:`Client.purge_dead`."""
        return await self._run(statements.purge_dead(queue, schema=self.schema), connection)

    async def pause(self, queue: str, *, connection: Any = None) -> bool:
        """See :meth:`Client.pause`."""
        check_text(queue, "queue", MAX_NAME_LENGTH)
        return await self._run(statements.pause(queue, schema=self.schema), connection)

    async def resume(self, queue: str, *, connection: Any = None) -> bool:
        """See :meth:`Client.resume`."""
        check_text(queue, "queue", MAX_NAME_LENGTH)
        return await self._run(statements.resume(queue, schema=self.schema), connection)

    async def purge(self, queue: str, *, connection: Any = None) -> int:
        """See :meth:`Client.purge`."""
        check_text(queue, "queue", MAX_NAME_LENGTH)
        return await self._run(statements.purge(queue, schema=self.schema), connection)

    async def queues(self, *, connection: Any = None) -> list[QueueStats]:
        """See :meth:`Client.queues`."""
        return await self._run(statements.queue_stats(schema=self.schema), connection)

    async def workers(self, *, connection: Any = None) -> list[WorkerRecord]:
        """See :meth:`Client.workers`."""
        return await self._run(statements.list_workers(schema=self.schema), connection)

    async def retention(self, *, connection: Any = None) -> dict[str, timedelta]:
        """See :meth:`Client.retention`."""
        return await self._run(statements.retention(schema=self.schema), connection)

    async def set_retention(self, state: str, keep: Duration, *, connection: Any = None) -> None:
        """See :meth:`Client.set_retention`."""
        statement = statements.set_retention(
            check_outcome(state), parse_duration(keep, "retention"), schema=self.schema
        )
        await self._run(statement, connection)

    async def _run(self, statement: Statement[T], connection: Any) -> T:
        if connection is None:
            return await self.database.arun(statement)
        return await run_on_async(connection, statement)

    async def _copy(self, specs: Sequence[JobSpec], connection: Any) -> list[int]:
        check_copyable(specs, connection, psycopg.AsyncConnection)
        if connection is None:
            return await self.database.atransact(lambda own: self._copy(specs, own))
        with translated():
            async with connection.cursor(binary=True) as cursor:
                now: datetime = (await (await cursor.execute("SELECT now()")).fetchone())[0]
                ids = await run_async(connection, statements.reserve_ids(len(specs), schema=self.schema))
                async with cursor.copy(load("copy_jobs", self.schema)) as copy:
                    for block in copy_blocks(specs, ids, now):
                        await copy.write(block)
                await run_async(connection, statements.ring(due_queues(specs), schema=self.schema))
        return ids


# -- what both clients check -----------------------------------------------------------------------------------------


def check_found(job_id: int, record: JobRecord | None) -> JobRecord:
    """Raises JobNotFoundError for None."""
    if record is None:
        raise JobNotFoundError(job_id)
    return record


def check_cancelled(job_id: int, state: str | None) -> str:
    """The answer of pgqueue.cancel: cancelled and running (asked) are good."""
    if state is None:
        raise JobNotFoundError(job_id)
    if state in FINISHED - {"cancelled"}:
        raise JobStateError(job_id, state, "cancelled")
    return state


def check_retried(job_id: int, state: str | None) -> str:
    """The answer of pgqueue.retry: only available is good."""
    if state is None:
        raise JobNotFoundError(job_id)
    if state != "available":
        raise JobStateError(job_id, state, "retried")
    return state


def check_outcome(state: str) -> str:
    """An outcome that history keeps."""
    if state not in FINISHED:
        raise InvalidJobError(f"{state!r} is no outcome; say completed, dead or cancelled")
    return state


def check_page(state: str | None, limit: int) -> None:
    """The arguments of jobs."""
    if state is not None and state not in STATES:
        raise InvalidJobError(f"state must be one of {', '.join(STATES)}; not {state!r}")
    if not 1 <= limit <= 1000:  # noqa: PLR2004
        raise InvalidJobError(f"limit must be 1 to 1000, not {limit}")


# -- COPY ------------------------------------------------------------------------------------------------------------


def check_copyable(specs: Sequence[JobSpec], connection: Any, kind: type) -> None:
    """COPY needs psycopg's own connection, and can't answer a conflict with the existing id."""
    if connection is not None and not isinstance(connection, kind):
        raise TypeError(f"copy=True needs a psycopg {kind.__name__}, not a {type(connection).__name__}")
    for nth, spec in enumerate(specs):
        if spec.unique_key is not None:
            raise InvalidJobError(f"job {nth}: unique_key and copy=True do not go together")


def due_queues(specs: Sequence[JobSpec]) -> list[str]:
    """The queues whose workers a batch is to wake."""
    return list({spec.queue for spec in specs})


def copy_blocks(specs: Sequence[JobSpec], ids: Sequence[int], now: datetime) -> Iterator[bytes]:
    """The rows in COPY's binary format (PostgreSQL manual, COPY, Binary Format), a block at a time.

    Written by hand because it costs a third of building each row from adapted values.
    """
    yield b"PGCOPY\n\xff\r\n\0" + struct.pack("!ii", 0, 0)
    block = bytearray()
    for nth, (spec, job_id) in enumerate(zip(specs, ids, strict=True), 1):
        run_at = spec.run_at or (now if spec.delay is None else now + spec.delay)
        task, queue, payload = spec.task.encode(), spec.queue.encode(), spec.payload.encode()
        block += struct.pack("!hiqi", 10, 8, job_id, len(task)) + task
        block += struct.pack("!ib", len(payload) + 1, 1) + payload
        block += struct.pack("!i", len(queue)) + queue
        block += struct.pack("!ihiqih", 2, spec.priority, 8, _microseconds(run_at - _EPOCH), 2, spec.max_attempts)
        block += _NULL if spec.timeout is None else struct.pack("!iqii", 16, _microseconds(spec.timeout), 0, 0)
        block += _NULL
        if spec.meta is None:
            block += _NULL
        else:
            meta = spec.meta.encode()
            block += struct.pack("!ib", len(meta) + 1, 1) + meta
        if nth % _CHUNK == 0:
            yield bytes(block)
            block.clear()
    block += struct.pack("!h", -1)
    yield bytes(block)


_NULL: Final = struct.pack("!i", -1)


def _microseconds(delta: timedelta) -> int:
    return delta // timedelta(microseconds=1)
