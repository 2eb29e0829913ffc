"""Enqueue jobs, look at them, take them back."""

from __future__ import annotations

import asyncio
import hashlib
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Final, Literal

import orjson
from fastapi import APIRouter, Header, Path, Query, Request, Response

from pgqueue.errors import InvalidJobError, JobNotFoundError
from pgqueue.http import models
from pgqueue.http.auth import Caller, needs
from pgqueue.http.problems import ProblemError, of_error, responses
from pgqueue.job import MAX_NAME_LENGTH, STATES, check_text
from pgqueue.patience import looks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pgqueue.client import AsyncClient
    from pgqueue.job import JobRecord, JobSpec
    from pgqueue.statements import Submitted

router = APIRouter(tags=["jobs"])

REPLAYED_FOR: Final = timedelta(days=1)
_SOON: Final = timedelta(0)
_FIRST_LOOK: Final = 0.02
_SLOWEST_LOOK: Final = 0.5

JobId = Annotated[int, Path(ge=1, le=models.BIGGEST_ID)]
IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1, max_length=255, pattern=r"^[\x21-\x7e]+$",
        description="The same call with the same key and queue is answered with the same job, for a day.",
    ),
]  # fmt: skip


@router.post("/jobs", status_code=201, responses={200: {"model": models.Submission}, **responses(409)})
async def submit(
    request: Request,
    response: Response,
    body: models.NewJob,
    caller: Annotated[Caller, needs("enqueue")],
    idempotency_key: IdempotencyKey = None,
) -> models.Submission:
    """Enqueue one job. 201: it is durable; 200: there was one with this key before."""
    caller.check(body.queue)
    client: AsyncClient = request.app.state.client
    spec, mark = body.spec(), ""
    if idempotency_key is not None:
        spec, mark = _idempotent(spec, body, idempotency_key)
    answer = await client.submit(spec)
    if not answer.created:
        response.status_code = 200
        return await _existing(client, answer, mark)
    return models.Submission(job_id=answer.id, state=await _state_of_new(client, answer.id, spec), created=True)


@router.post("/jobs:batch", status_code=201, responses=responses(409))
async def submit_many(
    request: Request, body: models.NewJobs, caller: Annotated[Caller, needs("enqueue")]
) -> models.Submissions:
    """Enqueue many jobs, all or none, in the order given."""
    caller.check(*{job.queue for job in body.jobs})
    specs = checked(body.jobs)
    answers = await request.app.state.client.submit_many(specs)
    return models.Submissions(
        jobs=[
            models.Submission(
                job_id=answer.id, state=_state_by_spec(spec) if answer.created else None, created=answer.created
            )
            for answer, spec in zip(answers, specs, strict=True)
        ]
    )


@router.get("/jobs/{job_id}", responses=responses(404))
async def get(
    request: Request,
    job_id: JobId,
    caller: Annotated[Caller, needs("read")],
    wait: Annotated[str, Query(description="Wait up to this long, at most 60s, for the job to end.")] = "0",
) -> models.JobView:
    """One job, live or finished."""
    limit = models.seconds(wait, "wait", models.LONGEST_WAIT)
    record = await find_job(request, job_id, caller)
    for pause in looks(limit, _FIRST_LOOK, _SLOWEST_LOOK):
        if record.finished or pause <= 0 or await request.is_disconnected() or request.app.state.desk.draining:
            break
        await asyncio.sleep(pause)
        record = await find_job(request, job_id, caller)
    return _view(request, record)


@router.get("/jobs", responses=responses())
async def list_jobs(
    request: Request,
    caller: Annotated[Caller, needs("read")],
    queue: Annotated[models.Text | None, Query()] = None,
    task: Annotated[models.Text | None, Query()] = None,
    state: Annotated[Literal[STATES] | None, Query()] = None,  # type: ignore[valid-type]
    tag: Annotated[
        models.Text | None, Query(description='One of the texts in the list "tags" of the job\'s meta.')
    ] = None,
    since: Annotated[
        models.Text | None,
        Query(description="Created at this time (ISO 8601 with its zone) or later; or no longer ago than 30s, 5m, 2d."),
    ] = None,
    cursor: Annotated[int | None, Query(ge=1, le=models.BIGGEST_ID, description="From the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=1_000)] = 50,
) -> models.JobPage:
    """Jobs, newest first, a page at a time. A token for some queues only needs ``queue``.

    One request looks at 10,000 jobs at most: a page may hold fewer than ``limit``, or none, and have a cursor.
    """
    if queue is not None:
        caller.check(check_text(queue, "queue", MAX_NAME_LENGTH))
    elif not caller.unlimited:
        raise ProblemError(403, "forbidden", "the token allows some queues only: say ?queue=")
    client: AsyncClient = request.app.state.client
    page = await client.jobs_page(
        queue=queue, task=task, state=state, tag=tag, since=since, before=cursor, limit=limit
    )  # fmt: skip
    return models.JobPage(jobs=[_view(request, record) for record in page.jobs], cursor=page.before)


@router.post("/jobs/{job_id}/cancel", responses={202: {"model": models.JobState}, **responses(404, 409)})
async def cancel(
    request: Request, response: Response, job_id: JobId, caller: Annotated[Caller, needs("enqueue")]
) -> models.JobState:
    """Take it back. 202: it runs, and its worker is asked to stop."""
    await _check_queue(request, job_id, caller)
    state = await request.app.state.client.cancel(job_id)
    if state == "running":
        response.status_code = 202
    return models.JobState(job_id=job_id, state=state)


@router.post("/jobs/{job_id}/retry", responses=responses(404, 409))
async def retry(request: Request, job_id: JobId, caller: Annotated[Caller, needs("enqueue")]) -> models.JobState:
    """Run it again (dead, cancelled) or now (waiting)."""
    await _check_queue(request, job_id, caller)
    return models.JobState(job_id=job_id, state=await request.app.state.client.retry(job_id))


@router.post("/jobs:bulk", responses=responses())
async def bulk(request: Request, body: models.Bulk, caller: Annotated[Caller, needs("admin")]) -> models.Touched:
    """One verb for many jobs: all or none, or with ``dry_run`` none. It goes on when the client hangs up."""
    client: AsyncClient = request.app.state.client
    for what, name in (("queue", body.queue), ("task", body.task)):
        if name is not None:
            check_text(name, what, MAX_NAME_LENGTH)
    if body.queue is not None:
        caller.check(body.queue)
    elif not caller.unlimited:
        raise ProblemError(403, "forbidden", "the token allows some queues only: say queue")
    if body.action == "redrive":
        count = await client.redrive(queue=body.queue, task=body.task, limit=body.limit, dry_run=body.dry_run)
        return models.Touched(count=count, more=count == body.limit)
    if body.task is not None:
        raise InvalidJobError(f"{body.action} takes no task")
    if body.action == "purge_dead":
        count = await client.purge_dead(queue=body.queue, dry_run=body.dry_run)
    elif body.queue is None:
        raise InvalidJobError("purge needs a queue")
    else:
        count = await client.purge(body.queue, dry_run=body.dry_run)
    return models.Touched(count=count, more=False)


def checked(jobs: Sequence[models.NewJob]) -> list[JobSpec]:
    """As values that may be enqueued; the problem says which one is not."""
    specs = []
    for nth, job in enumerate(jobs):
        try:
            specs.append(job.spec())
        except InvalidJobError as error:
            problem = of_error(error)
            raise ProblemError(problem.status, problem.code, f"job {nth}: {error}", index=nth) from None
    return specs


def may_see(caller: Caller) -> None:
    """What is of any queue; raises ProblemError (403)."""
    if not caller.unlimited:
        raise ProblemError(403, "forbidden", "the token allows some queues only")


async def find_job(request: Request, job_id: int, caller: Caller) -> JobRecord:
    """Somebody else's job looks like none."""
    record: JobRecord = await request.app.state.client.get(job_id)
    if not caller.may(record.queue):
        raise JobNotFoundError(job_id)
    return record


async def _check_queue(request: Request, job_id: int, caller: Caller) -> None:
    if not caller.unlimited:
        await find_job(request, job_id, caller)


def _view(request: Request, record: JobRecord) -> models.JobView:
    return models.JobView.of(record, request.app.state.redact)


def _idempotent(spec: JobSpec, body: models.NewJob, key: str) -> tuple[JobSpec, str]:
    """The job holds the key for a day, whatever becomes of it; its meta says what the call was about."""
    if spec.unique_key is not None:
        raise InvalidJobError("say Idempotency-Key or unique_key, not both")
    asked = orjson.dumps(body.model_dump(mode="json"), option=orjson.OPT_SORT_KEYS)
    mark = hashlib.sha256(asked).hexdigest()[:32]
    marked = spec.with_meta(idempotency=mark)
    return marked._replace(unique_key=f"idempotency:{spec.queue}:{key}", unique_for=REPLAYED_FOR), mark


async def _existing(client: AsyncClient, answer: Submitted, mark: str) -> models.Submission:
    try:
        record = await client.get(answer.id)
    except JobNotFoundError:  # its history is gone
        return models.Submission(job_id=answer.id, state=None, created=False)
    if mark and record.meta.get("idempotency") != mark:
        raise ProblemError(
            409, "idempotency_conflict", "this Idempotency-Key came with another body before", job_id=answer.id
        )
    return models.Submission(job_id=answer.id, state=record.state, created=False)


async def _state_of_new(client: AsyncClient, job_id: int, spec: JobSpec) -> str | None:
    if not spec.depends_on:
        return _state_by_spec(spec)
    try:
        return (await client.get(job_id)).state
    except JobNotFoundError:
        return None


def _state_by_spec(spec: JobSpec) -> str | None:
    """Of a job that has just been made: what depends on others may wait for them, or not."""
    if spec.depends_on:
        return None
    later = spec.delay or (spec.run_at - datetime.now(UTC) if spec.run_at is not None else _SOON)
    return "scheduled" if later > _SOON else "available"
