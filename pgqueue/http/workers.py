"""Lease jobs, hold on to them, say how they ended."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any

import orjson
from fastapi import APIRouter, Request, Response

from pgqueue.errors import JobNotFoundError
from pgqueue.http import models
from pgqueue.http.auth import Caller, needs
from pgqueue.http.leases import End, Leased
from pgqueue.http.problems import ProblemError, responses
from pgqueue.http.producers import JobId
from pgqueue.job import MAX_NAME_LENGTH, check_text, dump_payload

if TYPE_CHECKING:
    from pgqueue.http.desk import Desk
    from pgqueue.http.leases import Leases
    from pgqueue.statements import Held

router = APIRouter(tags=["workers"])


@router.post(
    "/jobs/lease",
    response_model=models.LeasedJob | models.LeasedJobs,
    responses={204: {"description": "Nothing was due within ``wait``."}, **responses()},
)
async def lease(request: Request, body: models.WantedLease, caller: Annotated[Caller, needs("work")]) -> Any:
    """Get a job to work on, or with ``max`` several; with ``wait`` as soon as there is one."""
    queues = tuple(sorted({check_text(queue, "queue", MAX_NAME_LENGTH) for queue in body.queues}))
    caller.check(*queues)
    desk: Desk = request.app.state.desk
    length = timedelta(seconds=_lease(request, body.lease))
    wait = models.seconds(body.wait, "wait", models.LONGEST_WAIT)
    worker = f"http {request.client.host}" if request.client else "http"
    if body.worker is not None:
        worker = check_text(body.worker, "worker", MAX_NAME_LENGTH)
    gone = asyncio.create_task(_gone(request))
    try:
        jobs = await desk.lease(queues, body.max or 1, wait, length, worker, gone)
        if jobs and gone.done():
            desk.give_back(jobs)
            jobs = []
    finally:
        gone.cancel()
    if not jobs:
        return Response(status_code=204)
    return _delivery(jobs, single=body.max is None)


@router.post("/jobs/{job_id}/ack", responses=responses(404, 409))
async def ack(
    request: Request, job_id: JobId, caller: Annotated[Caller, needs("work")], body: models.Ack | None = None
) -> models.JobState:
    """The job is done. The same again is answered in the same way."""
    body = body or models.Ack()
    return await _end_one(request, caller, End(job_id, "ack", _number(body.lease_token), result=_result(body.result)))


@router.post("/jobs/{job_id}/fail", responses=responses(404, 409))
async def fail(
    request: Request, job_id: JobId, caller: Annotated[Caller, needs("work")], body: models.Fail | None = None
) -> models.JobState:
    """The attempt failed: again later, or dead when that was the last. The same again has no second effect."""
    body = body or models.Fail()
    retry_in = None if body.retry_in is None else models.seconds(body.retry_in, "retry_in", _CENTURY)
    return await _end_one(
        request, caller, End(job_id, "fail", _number(body.lease_token), None, _error(body.error), retry_in, body.final)
    )


@router.post("/jobs/{job_id}/release", responses=responses(404, 409))
async def release(
    request: Request, job_id: JobId, caller: Annotated[Caller, needs("work")], body: models.Release | None = None
) -> models.JobState:
    """Give it back, the attempt refunded. The same again has no second effect."""
    body = body or models.Release()
    retry_in = None if body.retry_in is None else models.seconds(body.retry_in, "retry_in", _CENTURY)
    return await _end_one(request, caller, End(job_id, "release", _number(body.lease_token), retry_in=retry_in))


@router.post("/jobs:finish", responses=responses())
async def finish(request: Request, body: models.Ends, caller: Annotated[Caller, needs("work")]) -> models.Landed:
    """Say of many jobs at once how they ended."""
    ends = [
        End(
            one.job_id, one.outcome, _number(one.lease_token), _result(one.result), _error(one.error),
            None if one.retry_in is None else models.seconds(one.retry_in, "retry_in", _CENTURY), one.final,
        )
        for one in body.jobs
    ]  # fmt: skip
    leases: Leases = request.app.state.leases
    held = await leases.held([end.job_id for end in ends])
    _check(caller, held)
    lost = await leases.end(ends, held)
    return models.Landed(landed=[end.job_id for end in ends if end.job_id not in lost], lost=sorted(lost))


@router.post("/heartbeats", responses=responses())
async def heartbeat(request: Request, body: models.Heartbeat, caller: Annotated[Caller, needs("work")]) -> models.Pulse:
    """Hold on to leases, and tell how far the runs are."""
    leases: Leases = request.app.state.leases
    length = timedelta(seconds=_lease(request, body.lease))
    pairs = [(one.job_id, int(one.lease_token, 16)) for one in body.leases]
    if not caller.unlimited:
        _check(caller, await leases.held([job_id for job_id, _ in pairs]))
    held = await leases.prolong(pairs, length) if pairs else {}
    reports = [
        (one.job_id, int(one.lease_token, 16), dump_payload(one.progress.model_dump(exclude_none=True), "progress"))
        for one in body.leases
        if one.progress is not None and one.job_id in held
    ]
    if reports:
        await leases.report(reports)
    return models.Pulse(
        extended=[job_id for job_id, _ in pairs if job_id in held],
        lost=[job_id for job_id, _ in pairs if job_id not in held],
        cancel=[job_id for job_id, _ in pairs if held.get(job_id)],
        directive="quiet" if request.app.state.desk.draining else "run",
    )


_CENTURY = timedelta(days=36_500).total_seconds()


async def _gone(request: Request) -> None:
    """Until the client has hung up."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _delivery(jobs: list[Leased], *, single: bool) -> Response:
    """Written by hand: the payload is JSON already."""
    views = [
        {
            "job_id": job.id, "queue": job.queue, "task": job.task, "payload": orjson.Fragment(job.payload),
            "priority": job.priority, "attempt": job.attempt, "attempts_left": job.max_attempts - job.attempt,
            "lease_until": job.lease_until, "lease_token": f"{job.token:x}", "timeout": job.timeout,
            "run_at": job.run_at, "meta": orjson.Fragment(job.meta or "{}"),
        }
        for job in jobs
    ]  # fmt: skip
    return Response(orjson.dumps(views[0] if single else {"jobs": views}), media_type="application/json")


async def _end_one(request: Request, caller: Caller, end: End) -> models.JobState:
    if not caller.unlimited:
        leases: Leases = request.app.state.leases
        _check(caller, await leases.held([end.job_id]))
    landed = await request.app.state.endings.end(end)
    if landed and end.verb == "ack":
        return models.JobState(job_id=end.job_id, state="completed")
    record = await request.app.state.client.get(end.job_id)
    if not caller.may(record.queue):
        raise JobNotFoundError(end.job_id)
    if not landed:
        raise ProblemError(
            409, "lease_lost", f"job {end.job_id} is not held under this lease; it is {record.state}",
            job_id=end.job_id, state=record.state,
        )  # fmt: skip
    return models.JobState(job_id=end.job_id, state=record.state)


def _check(caller: Caller, held: dict[int, Held]) -> None:
    """Somebody else's job looks like none."""
    if not caller.unlimited:
        for one in held.values():
            if not caller.may(one.queue):
                raise JobNotFoundError(one.id)


def _lease(request: Request, given: float | str | None) -> float:
    default: float = request.app.state.lease.total_seconds()
    length = models.seconds(given, "lease", models.LONGEST_LEASE, default)
    if length < 1:
        raise ProblemError(422, "invalid_request", f"lease must be at least a second, not {given!r}")
    return length


def _number(token: str | None) -> int | None:
    return None if token is None else int(token, 16)


def _result(value: Any) -> str | None:
    return None if value is None else dump_payload(value, "result")


def _error(error: models.Failure | str) -> tuple[str, str, str]:
    return ("Failed", error, "") if isinstance(error, str) else (error.type, error.message, error.traceback)
