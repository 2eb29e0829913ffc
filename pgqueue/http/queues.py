"""Look at queues, pause them, limit them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request

from pgqueue.http import models
from pgqueue.http.auth import Caller, needs
from pgqueue.http.problems import responses

router = APIRouter(tags=["queues"])

QueueName = Annotated[str, Path(min_length=1, max_length=128)]


@router.get("/queues", responses=responses())
async def list_queues(request: Request, caller: Annotated[Caller, needs("read")]) -> models.QueueViews:
    """What waits, runs and has ended, in every queue that the token allows."""
    stats = await request.app.state.client.queues()
    return models.QueueViews(queues=[models.QueueView(**asdict(one)) for one in stats if caller.may(one.queue)])


@router.patch("/queues/{queue}", responses=responses())
async def limit(
    request: Request, queue: QueueName, body: models.Limits, caller: Annotated[Caller, needs("admin")]
) -> dict[str, Any]:
    """Change its limits; answers all of them. They hold within a second."""
    caller.check(queue)
    settings: dict[str, Any] = await request.app.state.client.limit_queue(queue, **body.model_dump(exclude_unset=True))
    return settings


@router.post("/queues/{queue}/pause", responses=responses())
async def pause(request: Request, queue: QueueName, caller: Annotated[Caller, needs("admin")]) -> models.QueueState:
    """Start no more of its jobs."""
    caller.check(queue)
    return models.QueueState(queue=queue, changed=await request.app.state.client.pause(queue))


@router.post("/queues/{queue}/resume", responses=responses())
async def resume(request: Request, queue: QueueName, caller: Annotated[Caller, needs("admin")]) -> models.QueueState:
    """Start its jobs again."""
    caller.check(queue)
    return models.QueueState(queue=queue, changed=await request.app.state.client.resume(queue))
