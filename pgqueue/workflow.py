"""Workflows: jobs that wait for each other, built as values and enqueued all at once."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final, Self

from pgqueue.errors import InvalidJobError, ResultTimeoutError
from pgqueue.handle import Job
from pgqueue.job import MAX_NAME_LENGTH, check_text
from pgqueue.patience import length, looks

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pgqueue.app import App
    from pgqueue.durations import Duration
    from pgqueue.job import JobSpec
    from pgqueue.statements import BatchRecord, Submitted

_CHUNK: Final = 5_000
_FIRST_LOOK: Final = 0.02
_SLOWEST_LOOK: Final = 1.0


class Step:
    """A job of a workflow that is being built; name it in ``after`` of later ones."""

    __slots__ = ("_workflow", "index")

    def __init__(self, workflow: Workflow, index: int) -> None:
        self._workflow = workflow
        self.index = index

    def belongs_to(self, workflow: Workflow) -> bool:
        """Whether it is a step of this workflow."""
        return self._workflow is workflow


class Workflow:
    """Jobs that belong together: counted together, cancelled together, each after those it depends on.

    Made by :meth:`pgqueue.App.workflow`, :meth:`pgqueue.App.batch` or :meth:`pgqueue.App.chain`. Nothing is written
    before :meth:`enqueue`, and then all in one transaction. A step comes after earlier ones only: there are no cycles.
    A step whose unique_key is held by a job that is there already is that job: it is waited for, not counted.

    Example:
        >>> flow = app.workflow("import")  # doctest: +SKIP
        >>> parts = [flow.add(fetch.job(page)) for page in range(10)]
        >>> flow.add(merge.job(), after=parts)
        >>> batch = await flow.enqueue()
    """

    def __init__(self, app: App, jobs: Iterable[JobSpec] = (), name: str | None = None) -> None:
        self._app = app
        self._name = None if name is None else check_text(name, "the name of a workflow", MAX_NAME_LENGTH)
        self._specs: list[JobSpec] = list(jobs)
        self._after: dict[int, list[int]] = {}
        self._then: list[JobSpec] = []

    def add(self, job: JobSpec, *, after: Iterable[Step] = (), on_dead: str | None = None) -> Step:
        """One more job, to run when those in ``after`` have ended.

        Args:
            job: what :meth:`pgqueue.Task.job` answers.
            after: earlier steps of this workflow. Jobs and batches outside of it: ``depends_on`` of the job itself.
            on_dead: ``cancel`` it, too, when one of them ends as dead or cancelled (the default); ``continue`` as if
                that one had completed; ``hold`` until an operator has retried it.

        Raises:
            InvalidJobError: a step is not of this workflow, or the job has a meaningless option.
        """
        steps = list(after)
        for step in steps:
            if not isinstance(step, Step) or not step.belongs_to(self):
                raise InvalidJobError(f"after must name earlier steps of this workflow, not {step!r}")
        if on_dead is not None:
            job = job.changed(on_dead=on_dead)
        self._specs.append(job)
        index = len(self._specs) - 1
        if steps:
            self._after[index] = [step.index for step in steps]
        return Step(self, index)

    def then(self, job: JobSpec, *, on_dead: str | None = None) -> Self:
        """Also this job, when all the others have ended; it is not one of those that are counted.

        ``on_dead`` says what it means that one of them did not complete; see :meth:`add`.
        """
        self._then.append(job if on_dead is None else job.changed(on_dead=on_dead))
        return self

    async def enqueue(self, *, connection: Any = None) -> Batch:
        """Write it all, in one transaction, the caller's if there is a ``connection``; answers the batch.

        Raises:
            InvalidJobError: a job is refused; nothing is written.
        """
        if connection is None:
            return await self._app.database.atransact(lambda own: self.enqueue(connection=own))
        middleware = self._app.middleware
        if not middleware.wraps_enqueues:
            return await self._write(self._specs, self._then, connection)
        async with middleware.around_enqueue_async([*self._specs, *self._then]) as sending:
            steps = len(self._specs)
            batch = await self._write(sending.specs[:steps], sending.specs[steps:], connection)
            sending.ids = [job.id for job in (*batch.jobs, *batch.followers)]
        return batch

    async def _write(self, steps: list[JobSpec], then: list[JobSpec], connection: Any) -> Batch:
        client = self._app.aclient
        batch_id = await client.create_batch(self._name, connection=connection)
        jobs: list[Submitted] = []
        for chunk in self._chunks(steps):
            jobs += await client.submit_many(chunk, batch_id=batch_id, after=self._after, connection=connection)
        thens = [await client.submit(spec, connection=connection) for spec in _followers(then, batch_id, jobs)]
        return self._batch(batch_id, jobs, thens)

    def enqueue_sync(self, *, connection: Any = None) -> Batch:
        """The same for sync code."""
        if connection is None:
            return self._app.database.transact(lambda own: self.enqueue_sync(connection=own))
        middleware = self._app.middleware
        if not middleware.wraps_enqueues:
            return self._write_sync(self._specs, self._then, connection)
        with middleware.around_enqueue([*self._specs, *self._then]) as sending:
            steps = len(self._specs)
            batch = self._write_sync(sending.specs[:steps], sending.specs[steps:], connection)
            sending.ids = [job.id for job in (*batch.jobs, *batch.followers)]
        return batch

    def _write_sync(self, steps: list[JobSpec], then: list[JobSpec], connection: Any) -> Batch:
        client = self._app.client
        batch_id = client.create_batch(self._name, connection=connection)
        jobs: list[Submitted] = []
        for chunk in self._chunks(steps):
            jobs += client.submit_many(chunk, batch_id=batch_id, after=self._after, connection=connection)
        thens = [client.submit(spec, connection=connection) for spec in _followers(then, batch_id, jobs)]
        return self._batch(batch_id, jobs, thens)

    def _chunks(self, steps: list[JobSpec]) -> Iterator[list[JobSpec]]:
        """Steps name each other by index, so those go together; jobs that do not go some thousands at a time."""
        size = max(1, len(steps)) if self._after else _CHUNK
        for start in range(0, len(steps), size):
            yield steps[start : start + size]

    def _batch(self, batch_id: int, jobs: list[Submitted], thens: list[Submitted]) -> Batch:
        app = self._app
        return Batch(
            batch_id, app,
            jobs=[Job(job.id, app, created=job.created) for job in jobs],
            followers=[Job(job.id, app, created=job.created) for job in thens],
        )  # fmt: skip


class Batch:
    """Jobs that were enqueued as one workflow, by their common id.

    Attributes:
        id: can be named in ``depends_on``, like a job's.
        jobs: its jobs, in the order in which they were added; empty when made by :meth:`pgqueue.App.get_batch`.
        followers: the jobs of :meth:`Workflow.then`.
    """

    __slots__ = ("_app", "followers", "id", "jobs")

    def __init__(
        self, batch_id: int, app: App, *, jobs: list[Job] | None = None, followers: list[Job] | None = None
    ) -> None:
        self.id = batch_id
        self.jobs = jobs or []
        self.followers = followers or []
        self._app = app

    def __repr__(self) -> str:
        return f"<Batch {self.id}>"

    async def refresh(self) -> BatchRecord:
        """Its counts now; raises BatchNotFoundError."""
        return await self._app.aclient.batch(self.id)

    async def cancel(self) -> int:
        """Cancel its live jobs, running ones are told; answers how many ended at once."""
        return await self._app.aclient.cancel_batch(self.id)

    async def wait(self, timeout: Duration | None = None) -> BatchRecord:  # noqa: ASYNC109 - it is the wait's length
        """Wait until every job has ended, well or not; raises ResultTimeoutError."""
        for pause in looks(timeout, _FIRST_LOOK, _SLOWEST_LOOK):
            record = await self.refresh()
            if record.finished:
                return record
            await asyncio.sleep(pause)
        raise ResultTimeoutError(f"batch {self.id} has not ended within {length(timeout)}")

    def refresh_sync(self) -> BatchRecord:
        """See :meth:`refresh`."""
        return self._app.client.batch(self.id)

    def cancel_sync(self) -> int:
        """See :meth:`cancel`."""
        return self._app.client.cancel_batch(self.id)

    def wait_sync(self, timeout: Duration | None = None) -> BatchRecord:
        """See :meth:`wait`."""
        for pause in looks(timeout, _FIRST_LOOK, _SLOWEST_LOOK):
            record = self.refresh_sync()
            if record.finished:
                return record
            time.sleep(pause)
        raise ResultTimeoutError(f"batch {self.id} has not ended within {length(timeout)}")


def chain(app: App, jobs: Iterable[JobSpec], name: str | None = None) -> Workflow:
    """Each job after the one before it."""
    flow = Workflow(app, name=name)
    before: list[Step] = []
    for job in jobs:
        before = [flow.add(job, after=before)]
    return flow


def _followers(then: list[JobSpec], batch_id: int, jobs: list[Submitted]) -> list[JobSpec]:
    """After the batch, and after those of its jobs that were there before: they belong to no new batch."""
    before = [job.id for job in jobs if not job.created]
    return [spec.changed(depends_on=(*spec.depends_on, batch_id, *before)) for spec in then]
