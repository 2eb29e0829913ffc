"""Jobs by the clock."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Path, Request, Response

from pgqueue.errors import ScheduleNotFoundError
from pgqueue.http import models
from pgqueue.http.auth import Caller, needs
from pgqueue.http.problems import responses
from pgqueue.job import MAX_NAME_LENGTH, check_text
from pgqueue.schedule import ScheduleSpec

if TYPE_CHECKING:
    from pgqueue.client import AsyncClient
    from pgqueue.schedule import ScheduleRecord

router = APIRouter(tags=["schedules"])

Name = Annotated[str, Path(min_length=1, max_length=128)]


@router.get("/schedules", responses=responses())
async def list_schedules(request: Request, caller: Annotated[Caller, needs("read")]) -> models.ScheduleViews:
    """Every schedule whose queue the token allows, by name."""
    client: AsyncClient = request.app.state.client
    return models.ScheduleViews(
        schedules=[_view(request, one) for one in await client.schedules() if caller.may(one.queue)]
    )


@router.put("/schedules/{name}", responses={201: {"model": models.ScheduleView}, **responses()})
async def put_schedule(
    request: Request,
    response: Response,
    name: Name,
    body: models.NewSchedule,
    caller: Annotated[Caller, needs("admin")],
) -> models.ScheduleView:
    """Add it (201), or make the one of this name this."""
    caller.check(body.queue)
    client: AsyncClient = request.app.state.client
    spec = ScheduleSpec.make(name, **body.model_dump(exclude_none=True))
    try:
        caller.check((await client.get_schedule(name)).queue)
    except ScheduleNotFoundError:
        response.status_code = 201
    return _view(request, await client.add_schedule(spec, replace=True))


@router.get("/schedules/{name}", responses=responses(404))
async def get_schedule(request: Request, name: Name, caller: Annotated[Caller, needs("read")]) -> models.ScheduleView:
    """One schedule, and when it ticks next."""
    return _view(request, await _find(request, name, caller))


@router.delete("/schedules/{name}", status_code=204, responses=responses(404))
async def remove_schedule(request: Request, name: Name, caller: Annotated[Caller, needs("admin")]) -> None:
    """It ticks no more; the jobs that it made stay."""
    await _find(request, name, caller)
    await request.app.state.client.remove_schedule(name)


@router.post("/schedules/{name}/pause", responses=responses(404))
async def pause_schedule(
    request: Request, name: Name, caller: Annotated[Caller, needs("admin")]
) -> models.ScheduleState:
    """It does not tick until it is resumed."""
    await _find(request, name, caller)
    return models.ScheduleState(name=name, changed=await request.app.state.client.pause_schedule(name))


@router.post("/schedules/{name}/resume", responses=responses(404))
async def resume_schedule(
    request: Request, name: Name, caller: Annotated[Caller, needs("admin")]
) -> models.ScheduleState:
    """It ticks again."""
    await _find(request, name, caller)
    return models.ScheduleState(name=name, changed=await request.app.state.client.resume_schedule(name))


async def _find(request: Request, name: str, caller: Caller) -> ScheduleRecord:
    """Somebody else's looks like none."""
    check_text(name, "schedule's name", MAX_NAME_LENGTH)
    record: ScheduleRecord = await request.app.state.client.get_schedule(name)
    if not caller.may(record.queue):
        raise ScheduleNotFoundError(name)
    return record


def _view(request: Request, record: ScheduleRecord) -> models.ScheduleView:
    facts: dict[str, Any] = record.as_dict()
    upcoming: list[datetime] = [] if record.problem or record.paused else record.upcoming(5)
    return models.ScheduleView(**{**facts, "payload": request.app.state.redact(record.payload), "upcoming": upcoming})
