"""The verbs of the queue, sync and async: each method is one statement. A test holds the two classes equal."""

from __future__ import annotations

import asyncio
import math
import threading
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, cast
from weakref import WeakKeyDictionary

import psycopg

from pgqueue import statements
from pgqueue.connection import Database, run, run_async, run_on, run_on_async, translated
from pgqueue.copying import Replayed, Rows, check_connection, check_copyable
from pgqueue.durations import Duration, parse_duration
from pgqueue.errors import (
    BatchNotFoundError,
    InvalidJobError,
    JobNotFoundError,
    JobStateError,
    ScheduleExistsError,
    ScheduleNotFoundError,
    TokenExistsError,
    TokenNotFoundError,
)
from pgqueue.gathering import Gathering
from pgqueue.job import FINISHED, MAX_NAME_LENGTH, JobFilter, JobRecord, JobSpec, check_text
from pgqueue.sql import load
from pgqueue.tokens import EVERY_QUEUE, TokenSpec, hash_secret, is_secret, make_secret

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime, timedelta
    from typing import Unpack

    from pgqueue.schedule import ScheduleRecord, ScheduleSpec
    from pgqueue.statements import BatchRecord, JobPage, QueueSettings, QueueStats, Statement, Submitted, WorkerRecord
    from pgqueue.tokens import TokenRecord

T = TypeVar("T")


class Tally:
    """How many jobs a client has enqueued; it may be used from many threads."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self.total = 0

    def add(self, jobs: int) -> None:
        """So many more."""
        with self._guard:
            self.total += jobs


class Client:
    """The queue's verbs for sync code. Every verb takes the caller's ``connection`` to join its transaction."""

    def __init__(self, database: Database, schema: str = "pgqueue") -> None:
        self.database = database
        self.schema = schema
        self.enqueued = Tally()

    def submit(self, spec: JobSpec, *, connection: Any = None) -> Submitted:
        """Insert one job; answers its id and True, or the id of the job which holds its unique_key and False.

        Raises:
            JobExistsError: the unique_key is held, and ``on_conflict`` is ``raise``.
            InvalidJobError: ``depends_on`` names a job that does not exist.
        """
        answer = self._run(statements.submit(spec, schema=self.schema), connection)
        self.enqueued.add(answer.created)
        return answer

    def enqueue(self, spec: JobSpec, *, connection: Any = None) -> int:
        """The same, for who needs no more than the id."""
        return self.submit(spec, connection=connection).id

    def enqueue_many(self, specs: Iterable[JobSpec], *, copy: bool = False, connection: Any = None) -> list[int]:
        """Insert many jobs, all or none; answers their ids in the order given.

        ``copy`` streams them with COPY: the fastest way in; needs the right to insert into ``jobs`` (not
        pgqueue_producer), a psycopg connection, and jobs without unique_key. Without ``connection``, ``specs`` are
        asked for one by one while the server takes in the ones before, in a transaction that is open as long: if they
        are slow to come by, make a list of them first.
        """
        if copy:
            ids = self._copy(specs, connection)
            self.enqueued.add(len(ids))
            return ids
        return [job.id for job in self.submit_many(list(specs), connection=connection)]

    def submit_many(
        self,
        specs: Sequence[JobSpec],
        *,
        batch_id: int | None = None,
        after: Mapping[int, Sequence[int]] | None = None,
        connection: Any = None,
    ) -> list[Submitted]:
        """Insert many jobs, all or none; answers each as :meth:`submit` does, in the order given.

        Args:
            specs: the jobs.
            batch_id: an unfinished batch that they belong to.
            after: for a job's index the indexes of earlier ones that it depends on, besides its ``depends_on``.
            connection: the caller's, to join its transaction.
        """
        if not specs:
            return []
        statement = statements.submit_many(specs, batch_id=batch_id, after=after, schema=self.schema)
        answers = self._run(statement, connection)
        self.enqueued.add(sum(answer.created for answer in answers))
        return answers

    def create_batch(self, name: str | None = None, *, connection: Any = None) -> int:
        """A new batch; give its id to :meth:`submit_many` in the same transaction. Answers the id."""
        if name is not None:
            check_text(name, "the name of a batch", MAX_NAME_LENGTH)
        return self._run(statements.create_batch(name, schema=self.schema), connection)

    def batch(self, batch_id: int, *, connection: Any = None) -> BatchRecord:
        """A batch and how far it is; raises BatchNotFoundError."""
        return check_batch(batch_id, self._run(statements.get_batch(batch_id, schema=self.schema), connection))

    def batches(
        self, *, unfinished: bool = False, before: int | None = None, limit: int = 50, connection: Any = None
    ) -> list[BatchRecord]:
        """Batches, newest id first; give the last id of a page as ``before`` for the next. ``limit``: 1 to 1000."""
        check_limit(limit)
        return self._run(statements.list_batches(unfinished, before, limit, schema=self.schema), connection)

    def cancel_batch(self, batch_id: int, *, connection: Any = None) -> int:
        """Cancel every live job of a batch, running ones are told; answers how many ended at once.

        Raises:
            BatchNotFoundError: there is no such batch.
        """
        return check_batch(batch_id, self._run(statements.cancel_batch(batch_id, schema=self.schema), connection))

    def limit_queue(self, queue: str, *, connection: Any = None, **limits: Unpack[Limits]) -> dict[str, Any]:
        """Change a queue's limits, effective at once; what is not given stays, None takes it away. Answers them all.

        Args:
            queue: its name.
            connection: the caller's, to join its transaction.
            **limits: ``max_running``: jobs of the queue running at once, on all workers. ``per_key``: the same for
                each group_key (1: in order, the default; 0: any number). ``rate``: starts per second, ``burst``:
                how many at once after a pause (default: a second's worth). ``key_rate``, ``key_burst``: the same
                for each group_key. ``ageing``: this much waiting is worth one step of priority.

        Raises:
            InvalidJobError: a limit is out of range.
        """
        check_text(queue, "queue", MAX_NAME_LENGTH)
        return self._run(statements.limit_queue(queue, check_limits(limits), schema=self.schema), connection)

    def queue_settings(self, *, connection: Any = None) -> list[QueueSettings]:
        """What is set for the queues that have any setting."""
        return self._run(statements.list_queues(schema=self.schema), connection)

    def cancel(self, job_id: int, *, connection: Any = None) -> str:
        """Take a job back: a waiting one ends as cancelled, a running one is told; answers its state now.

        Raises:
            JobNotFoundError: there is no such job.
            JobStateError: it is completed or dead already.
        """
        return check_cancelled(job_id, self._run(statements.cancel(job_id, schema=self.schema), connection))

    def retry(self, job_id: int, *, connection: Any = None) -> str:
        """Run a dead or cancelled job again with all its attempts, or a waiting one now; answers its state now.

        A blocked one runs whatever it waits for. One that was cancelled before it ever ran waits again (``blocked``)
        for what it depends on and has not completed.

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
        tag: str | None = None,
        since: datetime | Duration | None = None,
        before: int | None = None,
        limit: int = 50,
        connection: Any = None,
    ) -> list[JobRecord]:
        """Jobs, newest id first; give the last id of a page as ``before`` for the next. ``limit``: 1 to 1000.

        ``tag``: that have this text in ``meta["tags"]``; ``since``: created at or after a time (with its zone), or no
        longer ago than a duration. For rare ones it looks through all jobs, 10,000 at a time: see :meth:`jobs_page`.
        """
        found: list[JobRecord] = []
        while True:
            page = self.jobs_page(
                queue=queue, task=task, state=state, tag=tag, since=since, before=before, limit=limit - len(found),
                connection=connection,
            )  # fmt: skip
            found += page.jobs
            before = page.before
            if before is None or len(found) == limit:
                return found

    def jobs_page(
        self,
        *,
        queue: str | None = None,
        task: str | None = None,
        state: str | None = None,
        tag: str | None = None,
        since: datetime | Duration | None = None,
        before: int | None = None,
        limit: int = 50,
        connection: Any = None,
    ) -> JobPage:
        """The same at a bounded cost: looks at 10,000 jobs at most, and says below which id to go on.

        So a page may hold fewer jobs than ``limit``, or none, and not be the last one. With ``since`` the last one is
        that of which none is young enough.
        """
        wanted = JobFilter.make(queue=queue, task=task, state=state, tag=tag, since=since)
        check_limit(limit)
        return self._run(statements.list_jobs(wanted, before, limit, schema=self.schema), connection)

    def upstream(self, job_id: int, *, connection: Any = None) -> list[JobRecord]:
        """The jobs that this one depends on, with their results, by id; of a batch, all its jobs."""
        return self._run(statements.list_upstream(job_id, schema=self.schema), connection)

    def tree(self, job_id: int, *, connection: Any = None) -> list[JobRecord]:
        """A job, all it depends on and all that depend on it, directly or not: at most 1,000 jobs, by id."""
        return self._run(statements.tree(job_id, schema=self.schema), connection)

    def redrive(
        self,
        *,
        queue: str | None = None,
        task: str | None = None,
        limit: int = 1000,
        dry_run: bool = False,
        connection: Any = None,
    ) -> int:
        """Retry many dead letters, oldest first; answers how many will run again. ``dry_run``: how many would."""
        if dry_run:
            would = statements.would_touch("redrive", queue, task, limit, schema=self.schema)
            return self._run(would, connection)
        return self._run(statements.redrive(queue, task, limit, schema=self.schema), connection)

    def purge_dead(self, *, queue: str | None = None, dry_run: bool = False, connection: Any = None) -> int:
        """Delete dead letters for good; answers how many. ``dry_run``: how many it would be."""
        if dry_run:
            return self._run(statements.would_touch("purge_dead", queue, schema=self.schema), connection)
        return self._run(statements.purge_dead(queue, schema=self.schema), connection)

    def pause(self, queue: str, *, connection: Any = None) -> bool:
        """Workers take nothing more from this queue, what runs goes on; answers whether that was a change."""
        check_text(queue, "queue", MAX_NAME_LENGTH)
        return self._run(statements.pause(queue, schema=self.schema), connection)

    def resume(self, queue: str, *, connection: Any = None) -> bool:
        """Workers take jobs from this queue again; answers whether that was a change."""
        check_text(queue, "queue", MAX_NAME_LENGTH)
        return self._run(statements.resume(queue, schema=self.schema), connection)

    def purge(self, queue: str, *, dry_run: bool = False, connection: Any = None) -> int:
        """Delete the waiting jobs of a queue for good; answers how many. Running jobs and history stay."""
        check_text(queue, "queue", MAX_NAME_LENGTH)
        if dry_run:
            return self._run(statements.would_touch("purge", queue, schema=self.schema), connection)
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

    def add_schedule(self, spec: ScheduleSpec, *, replace: bool = False, connection: Any = None) -> ScheduleRecord:
        """Add a schedule; it ticks for the first time after now. ``replace``: change the one of this name.

        Raises:
            ScheduleExistsError: there is one of this name, and ``replace`` is not said.
        """
        statement = statements.add_schedule(spec, replace, schema=self.schema)
        return check_added(spec.name, self._run(statement, connection))

    def pause_schedule(self, name: str, *, connection: Any = None) -> bool:
        """Let it not tick, until it is resumed; answers whether that was a change. Raises ScheduleNotFoundError."""
        return check_schedule(name, self._run(statements.pause_schedule(name, schema=self.schema), connection))

    def resume_schedule(self, name: str, *, connection: Any = None) -> bool:
        """Let it tick again, from now on; answers whether that was a change. Raises ScheduleNotFoundError."""
        return check_schedule(name, self._run(statements.resume_schedule(name, schema=self.schema), connection))

    def remove_schedule(self, name: str, *, connection: Any = None) -> None:
        """Delete a schedule; its jobs stay. Raises ScheduleNotFoundError.

        One that the code declares comes back when the next worker starts: pause it instead.
        """
        check_schedule(name, self._run(statements.remove_schedule(name, schema=self.schema), connection))

    def get_schedule(self, name: str, *, connection: Any = None) -> ScheduleRecord:
        """One schedule; raises ScheduleNotFoundError."""
        return check_schedule(name, self._run(statements.get_schedule(name, schema=self.schema), connection))

    def schedules(self, *, connection: Any = None) -> list[ScheduleRecord]:
        """Every schedule, by name."""
        return self._run(statements.list_schedules(schema=self.schema), connection)

    def backfill(
        self, name: str, start: datetime, end: datetime | None = None, *, limit: int = 1000, connection: Any = None
    ) -> list[int]:
        """Enqueue a job for each past tick from ``start`` up to ``end`` (None: now) that has not fired.

        Answers their ids. It asks no policy, nor whether the schedule is paused. What has fired is known for 30 days;
        a tick that fired before that is enqueued again.

        Raises:
            ScheduleNotFoundError: there is no such schedule.
            InvalidScheduleError: there are more than ``limit`` such ticks, or a time says no zone.
            InvalidJobError: ``end`` is in the future.
        """
        ticks = self.get_schedule(name, connection=connection).ticks_between(start, end, limit)
        return self._run(statements.backfill(name, ticks, schema=self.schema), connection)

    def create_token(
        self,
        name: str,
        scopes: Iterable[str],
        queues: Iterable[str] = EVERY_QUEUE,
        expires_in: Duration | None = None,
        *,
        connection: Any = None,
    ) -> tuple[TokenRecord, str]:
        """Create a token of the HTTP API; answers it and its secret, which nobody can be told again.

        Args:
            name: 1 to 128 characters; no two tokens have it at a time.
            scopes: what it may do: some of ``enqueue``, ``work``, ``read``, ``admin``; admin implies the others.
            queues: where: globs, ``*`` stands for any characters, ``?`` for one; default: everywhere.
            expires_in: how long it is valid; None: until it is revoked.
            connection: the caller's, to join its transaction.

        Raises:
            TokenExistsError: there is one of this name, perhaps expired, that was not revoked.
            InvalidJobError: an argument has no meaning.
        """
        spec, secret = TokenSpec.make(name, scopes, queues, expires_in), make_secret()
        statement = statements.create_token(spec, hash_secret(secret), schema=self.schema)
        return check_created(name, self._run(statement, connection)), secret

    def tokens(self, *, revoked: bool = False, connection: Any = None) -> list[TokenRecord]:
        """The tokens by name, expired ones, too; with ``revoked`` also those that were revoked."""
        return self._run(statements.list_tokens(revoked, schema=self.schema), connection)

    def has_tokens(self, *, connection: Any = None) -> bool:
        """Whether there ever was a token, also if all have expired or were revoked: then a server asks for one.

        pgqueue_worker may call it.
        """
        return self._run(statements.has_tokens(schema=self.schema), connection)

    def revoke_token(self, name: str, *, connection: Any = None) -> None:
        """Let nobody in with this token any more; its name is free again. Raises TokenNotFoundError."""
        check_token(name, self._run(statements.revoke_token(name, schema=self.schema), connection))

    def find_token(self, secret: str, *, connection: Any = None) -> TokenRecord | None:
        """The token of a secret, for a server to ask with each request; None: it is unknown, expired or revoked.

        Notes in ``last_used_at`` that it was used, once a minute at most. pgqueue_worker may call it.
        """
        if not is_secret(secret):
            return None
        return self._run(statements.find_token(hash_secret(secret), schema=self.schema), connection)

    def _run(self, statement: Statement[T], connection: Any) -> T:
        return self.database.run(statement) if connection is None else run_on(connection, statement)

    def _copy(self, specs: Iterable[JobSpec], connection: Any) -> list[int]:
        if connection is None:
            again = Replayed(specs)
            return self.database.transact(lambda own: self._stream(again, own))
        check_connection(connection, psycopg.Connection)
        checked = check_copyable(specs)
        with translated():
            return self._stream(checked, connection)

    def _stream(self, specs: Iterable[JobSpec], connection: psycopg.Connection[Any]) -> list[int]:
        with connection.cursor(binary=True) as cursor:
            rows = Rows(specs, cursor.execute("SELECT now()").fetchone()[0])  # type: ignore[index]
            for count in rows.parts():
                ids = run(connection, statements.reserve_ids(count, schema=self.schema))
                with cursor.copy(load("copy_jobs", self.schema)) as copy:
                    for block in rows.encoded(ids):
                        copy.write(block)
            run(connection, statements.ring(sorted(rows.queues), schema=self.schema))
        return rows.ids


class AsyncClient:
    """The queue's verbs for async code; see :class:`Client` for what each means."""

    def __init__(self, database: Database, schema: str = "pgqueue") -> None:
        self.database = database
        self.schema = schema
        self.enqueued = Tally()
        self._gatherings: WeakKeyDictionary[AbstractEventLoop, Gathering] = WeakKeyDictionary()

    async def submit(self, spec: JobSpec, *, connection: Any = None) -> Submitted:
        """See :meth:`Client.submit`. Concurrent calls share transactions, if they name no connection."""
        if connection is not None or not spec.plain:
            answer = await self._run(statements.submit(spec, schema=self.schema), connection)
        else:
            loop = asyncio.get_running_loop()
            gathering = self._gatherings.get(loop)
            if gathering is None:
                gathering = self._gatherings[loop] = Gathering(self._submit_together)
            answer = await gathering.submit(spec)
        self.enqueued.add(answer.created)
        return answer

    async def enqueue(self, spec: JobSpec, *, connection: Any = None) -> int:
        """See :meth:`Client.enqueue`."""
        return (await self.submit(spec, connection=connection)).id

    async def enqueue_many(self, specs: Iterable[JobSpec], *, copy: bool = False, connection: Any = None) -> list[int]:
        """See :meth:`Client.enqueue_many`."""
        if copy:
            ids = await self._copy(specs, connection)
            self.enqueued.add(len(ids))
            return ids
        return [job.id for job in await self.submit_many(list(specs), connection=connection)]

    async def submit_many(
        self,
        specs: Sequence[JobSpec],
        *,
        batch_id: int | None = None,
        after: Mapping[int, Sequence[int]] | None = None,
        connection: Any = None,
    ) -> list[Submitted]:
        """See :meth:`Client.submit_many`."""
        if not specs:
            return []
        statement = statements.submit_many(specs, batch_id=batch_id, after=after, schema=self.schema)
        answers = await self._run(statement, connection)
        self.enqueued.add(sum(answer.created for answer in answers))
        return answers

    async def create_batch(self, name: str | None = None, *, connection: Any = None) -> int:
        """See :meth:`Client.create_batch`."""
        if name is not None:
            check_text(name, "the name of a batch", MAX_NAME_LENGTH)
        return await self._run(statements.create_batch(name, schema=self.schema), connection)

    async def batch(self, batch_id: int, *, connection: Any = None) -> BatchRecord:
        """See :meth:`Client.batch`."""
        return check_batch(batch_id, await self._run(statements.get_batch(batch_id, schema=self.schema), connection))

    async def batches(
        self, *, unfinished: bool = False, before: int | None = None, limit: int = 50, connection: Any = None
    ) -> list[BatchRecord]:
        """See :meth:`Client.batches`."""
        check_limit(limit)
        return await self._run(statements.list_batches(unfinished, before, limit, schema=self.schema), connection)

    async def cancel_batch(self, batch_id: int, *, connection: Any = None) -> int:
        """See :meth:`Client.cancel_batch`."""
        return check_batch(batch_id, await self._run(statements.cancel_batch(batch_id, schema=self.schema), connection))

    async def limit_queue(self, queue: str, *, connection: Any = None, **limits: Unpack[Limits]) -> dict[str, Any]:
        """See :meth:`Client.limit_queue`."""
        check_text(queue, "queue", MAX_NAME_LENGTH)
        return await self._run(statements.limit_queue(queue, check_limits(limits), schema=self.schema), connection)

    async def queue_settings(self, *, connection: Any = None) -> list[QueueSettings]:
        """See :meth:`Client.queue_settings`."""
        return await self._run(statements.list_queues(schema=self.schema), connection)

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
        tag: str | None = None,
        since: datetime | Duration | None = None,
        before: int | None = None,
        limit: int = 50,
        connection: Any = None,
    ) -> list[JobRecord]:
        """See :meth:`Client.jobs`."""
        found: list[JobRecord] = []
        while True:
            page = await self.jobs_page(
                queue=queue, task=task, state=state, tag=tag, since=since, before=before, limit=limit - len(found),
                connection=connection,
            )  # fmt: skip
            found += page.jobs
            before = page.before
            if before is None or len(found) == limit:
                return found

    async def jobs_page(
        self,
        *,
        queue: str | None = None,
        task: str | None = None,
        state: str | None = None,
        tag: str | None = None,
        since: datetime | Duration | None = None,
        before: int | None = None,
        limit: int = 50,
        connection: Any = None,
    ) -> JobPage:
        """See :meth:`Client.jobs_page`."""
        wanted = JobFilter.make(queue=queue, task=task, state=state, tag=tag, since=since)
        check_limit(limit)
        return await self._run(statements.list_jobs(wanted, before, limit, schema=self.schema), connection)

    async def upstream(self, job_id: int, *, connection: Any = None) -> list[JobRecord]:
        """See :meth:`Client.upstream`."""
        return await self._run(statements.list_upstream(job_id, schema=self.schema), connection)

    async def tree(self, job_id: int, *, connection: Any = None) -> list[JobRecord]:
        """See :meth:`Client.tree`."""
        return await self._run(statements.tree(job_id, schema=self.schema), connection)

    async def redrive(
        self,
        *,
        queue: str | None = None,
        task: str | None = None,
        limit: int = 1000,
        dry_run: bool = False,
        connection: Any = None,
    ) -> int:
        """See :meth:`Client.redrive`."""
        if dry_run:
            would = statements.would_touch("redrive", queue, task, limit, schema=self.schema)
            return await self._run(would, connection)
        return await self._run(statements.redrive(queue, task, limit, schema=self.schema), connection)

    async def purge_dead(self, *, queue: str | None = None, dry_run: bool = False, connection: Any = None) -> int:
        """See :meth:`Client.purge_dead`."""
        if dry_run:
            return await self._run(statements.would_touch("purge_dead", queue, schema=self.schema), connection)
        return await self._run(statements.purge_dead(queue, schema=self.schema), connection)

    async def pause(self, queue: str, *, connection: Any = None) -> bool:
        """See :meth:`Client.pause`."""
        check_text(queue, "queue", MAX_NAME_LENGTH)
        return await self._run(statements.pause(queue, schema=self.schema), connection)

    async def resume(self, queue: str, *, connection: Any = None) -> bool:
        """See :meth:`Client.resume`."""
        check_text(queue, "queue", MAX_NAME_LENGTH)
        return await self._run(statements.resume(queue, schema=self.schema), connection)

    async def purge(self, queue: str, *, dry_run: bool = False, connection: Any = None) -> int:
        """See :meth:`Client.purge`."""
        check_text(queue, "queue", MAX_NAME_LENGTH)
        if dry_run:
            return await self._run(statements.would_touch("purge", queue, schema=self.schema), connection)
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

    async def add_schedule(
        self, spec: ScheduleSpec, *, replace: bool = False, connection: Any = None
    ) -> ScheduleRecord:
        """See :meth:`Client.add_schedule`."""
        statement = statements.add_schedule(spec, replace, schema=self.schema)
        return check_added(spec.name, await self._run(statement, connection))

    async def pause_schedule(self, name: str, *, connection: Any = None) -> bool:
        """See :meth:`Client.pause_schedule`."""
        return check_schedule(name, await self._run(statements.pause_schedule(name, schema=self.schema), connection))

    async def resume_schedule(self, name: str, *, connection: Any = None) -> bool:
        """See :meth:`Client.resume_schedule`."""
        return check_schedule(name, await self._run(statements.resume_schedule(name, schema=self.schema), connection))

    async def remove_schedule(self, name: str, *, connection: Any = None) -> None:
        """See :meth:`Client.remove_schedule`."""
        check_schedule(name, await self._run(statements.remove_schedule(name, schema=self.schema), connection))

    async def get_schedule(self, name: str, *, connection: Any = None) -> ScheduleRecord:
        """See :meth:`Client.get_schedule`."""
        return check_schedule(name, await self._run(statements.get_schedule(name, schema=self.schema), connection))

    async def schedules(self, *, connection: Any = None) -> list[ScheduleRecord]:
        """See :meth:`Client.schedules`."""
        return await self._run(statements.list_schedules(schema=self.schema), connection)

    async def backfill(
        self, name: str, start: datetime, end: datetime | None = None, *, limit: int = 1000, connection: Any = None
    ) -> list[int]:
        """See :meth:`Client.backfill`."""
        ticks = (await self.get_schedule(name, connection=connection)).ticks_between(start, end, limit)
        return await self._run(statements.backfill(name, ticks, schema=self.schema), connection)

    async def create_token(
        self,
        name: str,
        scopes: Iterable[str],
        queues: Iterable[str] = EVERY_QUEUE,
        expires_in: Duration | None = None,
        *,
        connection: Any = None,
    ) -> tuple[TokenRecord, str]:
        """See :meth:`Client.create_token`."""
        spec, secret = TokenSpec.make(name, scopes, queues, expires_in), make_secret()
        statement = statements.create_token(spec, hash_secret(secret), schema=self.schema)
        return check_created(name, await self._run(statement, connection)), secret

    async def tokens(self, *, revoked: bool = False, connection: Any = None) -> list[TokenRecord]:
        """See :meth:`Client.tokens`."""
        return await self._run(statements.list_tokens(revoked, schema=self.schema), connection)

    async def has_tokens(self, *, connection: Any = None) -> bool:
        """See :meth:`Client.has_tokens`."""
        return await self._run(statements.has_tokens(schema=self.schema), connection)

    async def revoke_token(self, name: str, *, connection: Any = None) -> None:
        """See :meth:`Client.revoke_token`."""
        check_token(name, await self._run(statements.revoke_token(name, schema=self.schema), connection))

    async def find_token(self, secret: str, *, connection: Any = None) -> TokenRecord | None:
        """See :meth:`Client.find_token`."""
        if not is_secret(secret):
            return None
        return await self._run(statements.find_token(hash_secret(secret), schema=self.schema), connection)

    async def _run(self, statement: Statement[T], connection: Any) -> T:
        if connection is None:
            return await self.database.arun(statement)
        return await run_on_async(connection, statement)

    async def _submit_together(self, specs: Sequence[JobSpec]) -> list[Submitted]:
        if len(specs) == 1:
            return [await self._run(statements.submit(specs[0], schema=self.schema), None)]
        return await self._run(statements.submit_together(specs, schema=self.schema), None)

    async def _copy(self, specs: Iterable[JobSpec], connection: Any) -> list[int]:
        if connection is None:
            again = Replayed(specs)
            return await self.database.atransact(lambda own: self._stream(again, own))
        check_connection(connection, psycopg.AsyncConnection)
        checked = check_copyable(specs)
        with translated():
            return await self._stream(checked, connection)

    async def _stream(self, specs: Iterable[JobSpec], connection: psycopg.AsyncConnection[Any]) -> list[int]:
        async with connection.cursor(binary=True) as cursor:
            rows = Rows(specs, (await (await cursor.execute("SELECT now()")).fetchone())[0])  # type: ignore[index]
            for count in rows.parts():
                ids = await run_async(connection, statements.reserve_ids(count, schema=self.schema))
                async with cursor.copy(load("copy_jobs", self.schema)) as copy:
                    for block in rows.encoded(ids):
                        await copy.write(block)
            await run_async(connection, statements.ring(sorted(rows.queues), schema=self.schema))
        return rows.ids


# -- what both clients check -----------------------------------------------------------------------------------------


def check_added(name: str, record: ScheduleRecord | None) -> ScheduleRecord:
    """Raises ScheduleExistsError for None."""
    if record is None:
        raise ScheduleExistsError(name)
    return record


def check_schedule(name: str, answer: T | None) -> T:
    """Raises ScheduleNotFoundError for None."""
    if answer is None:
        raise ScheduleNotFoundError(name)
    return answer


def check_created(name: str, record: TokenRecord | None) -> TokenRecord:
    """Raises TokenExistsError for None."""
    if record is None:
        raise TokenExistsError(name)
    return record


def check_token(name: str, answer: bool | None) -> None:
    """Raises TokenNotFoundError for None."""
    if answer is None:
        raise TokenNotFoundError(name)


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
    """The answer of pgqueue.retry: available is good, and blocked: it waits again for what it depends on."""
    if state is None:
        raise JobNotFoundError(job_id)
    if state not in {"available", "blocked"}:
        raise JobStateError(job_id, state, "retried")
    return state


def check_outcome(state: str) -> str:
    """An outcome that history keeps."""
    if state not in FINISHED:
        raise InvalidJobError(f"{state!r} is no outcome; say completed, dead or cancelled")
    return state


def check_limit(limit: int) -> None:
    """How long a page may be."""
    if not 1 <= limit <= 1000:  # noqa: PLR2004
        raise InvalidJobError(f"limit must be 1 to 1000, not {limit}")


class Limits(TypedDict, total=False):
    """What :meth:`Client.limit_queue` can change; None takes a limit away."""

    max_running: int | None
    per_key: int | None
    rate: float | None
    burst: int | None
    key_rate: float | None
    key_burst: int | None
    ageing: Duration | None


def check_limits(limits: Limits) -> dict[str, Any]:
    """The limits as JSON; raises InvalidJobError."""
    checked: dict[str, Any] = dict(limits)
    for name, value in limits.items():
        if value is None:
            continue
        if name == "ageing":
            ageing = parse_duration(cast("Duration", value), name)
            if not ageing:
                raise InvalidJobError("ageing must be positive")
            checked[name] = f"{ageing.total_seconds():.6f} seconds"
        elif name in {"rate", "key_rate"}:
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise InvalidJobError(f"{name} must be a positive number of starts per second, not {value!r}")
        elif name in {"max_running", "per_key", "burst", "key_burst"}:
            least = 1 if name.endswith("burst") else 0
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**31:
                raise InvalidJobError(f"{name} must be a whole number from {least}, not {value!r}")
        else:
            raise InvalidJobError(f"{name!r} is not a limit; there are {', '.join(Limits.__annotations__)}")
    return checked


def check_batch(batch_id: int, answer: T | None) -> T:
    """Raises BatchNotFoundError for None."""
    if answer is None:
        raise BatchNotFoundError(batch_id)
    return answer
