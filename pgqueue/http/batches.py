"""Jobs that are counted together, and that wait for each other."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Path, Request

from pgqueue.errors import InvalidJobError
from pgqueue.http import models
from pgqueue.http.auth import Caller, needs
from pgqueue.http.problems import responses
from pgqueue.http.producers import JobId, checked, may_see

if TYPE_CHECKING:
    import psycopg

    from pgqueue.app import App
    from pgqueue.client import AsyncClient
    from pgqueue.statements import BatchRecord, Submitted

router = APIRouter(tags=["batches"])

BatchId = Annotated[int, Path(ge=1, le=models.BIGGEST_ID)]


@router.post("/batches", status_code=201, responses=responses(409))
async def create_batch(
    request: Request, body: models.NewBatch, caller: Annotated[Caller, needs("enqueue")]
) -> models.CreatedBatch:
    """A batch with its jobs, all or none; ``after`` makes one wait for earlier ones."""
    queue: App = request.app.state.queue
    client: AsyncClient = request.app.state.client
    caller.check(*{job.queue for job in body.jobs})
    specs = checked(body.jobs)
    after = {nth: list(job.after) for nth, job in enumerate(body.jobs) if job.after}
    for nth, earlier in after.items():
        if any(index >= nth for index in earlier):
            raise InvalidJobError(f"job {nth}: after must name earlier jobs by their index, from 0")

    async def fill(connection: psycopg.AsyncConnection[Any]) -> tuple[int, list[Submitted]]:
        batch_id = await client.create_batch(body.name, connection=connection)
        return batch_id, await client.submit_many(specs, batch_id=batch_id, after=after, connection=connection)

    batch_id, answers = await queue.database.atransact(fill)
    return models.CreatedBatch(batch_id=batch_id, job_ids=[answer.id for answer in answers])


@router.get("/batches/{batch_id}", responses=responses(404))
async def get_batch(request: Request, batch_id: BatchId, caller: Annotated[Caller, needs("read")]) -> models.BatchView:
    """A batch, and how far it is. Needs a token for every queue: a batch may be of several."""
    may_see(caller)
    return _view(await request.app.state.client.batch(batch_id))


@router.post("/batches/{batch_id}/cancel", responses=responses(404))
async def cancel_batch(
    request: Request, batch_id: BatchId, caller: Annotated[Caller, needs("admin")]
) -> models.Counted:
    """Take back all its jobs that have not ended; answers how many."""
    may_see(caller)
    return models.Counted(count=await request.app.state.client.cancel_batch(batch_id))


@router.get("/jobs/{job_id}/tree", responses=responses(404))
async def tree(request: Request, job_id: JobId, caller: Annotated[Caller, needs("read")]) -> models.JobTree:
    """The job, all that it depends on and all that depend on it. Needs a token for every queue."""
    may_see(caller)
    client: AsyncClient = request.app.state.client
    await client.get(job_id)
    return models.JobTree(jobs=[models.JobView.of(one, request.app.state.redact) for one in await client.tree(job_id)])


def _view(record: BatchRecord) -> models.BatchView:
    facts = asdict(record)
    return models.BatchView(
        batch_id=facts.pop("id"), pending=record.pending, progress=record.progress, finished=record.finished, **facts
    )
