"""Whether the server works: for people, load balancers and Kubernetes. Needs no token and tells no secrets."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from fastapi import APIRouter, Request, Response

from pgqueue.errors import PgqueueError, SchemaError
from pgqueue.http import models
from pgqueue.http.problems import responses
from pgqueue.revision import check_schema

if TYPE_CHECKING:
    from pgqueue.app import App
    from pgqueue.http.desk import Desk

router = APIRouter(tags=["operations"])

_PATIENCE: Final = 3.0
_FAILING: Final[dict[int | str, dict[str, Any]]] = {503: {"model": models.Health}}


@router.get("/livez")
async def livez() -> models.Health:
    """The process answers. It says nothing about the database: a restart would not bring that back."""
    return models.Health(status="ok", checks={"process": "ok"})


@router.get("/readyz", responses=_FAILING)
async def readyz(request: Request, response: Response) -> models.Health:
    """It can serve: the database answers and is migrated, and it is not about to stop."""
    queue: App = request.app.state.queue
    desk: Desk = request.app.state.desk
    checks = {"database": await _database(queue), "server": _server(request, desk)}
    checks["listener"] = "ok" if desk.bell.up else "down: waiting clients are served by polling"
    failing = any(checks[name] != "ok" for name in ("database", "server"))
    response.status_code = 503 if failing else 200
    return models.Health(status="failing" if failing else "ok", checks=checks)


@router.get("/health", responses=_FAILING)
async def health(request: Request, response: Response) -> models.Health:
    """The same as /readyz."""
    return await readyz(request, response)


@router.get(
    "/metrics",
    response_class=Response,
    responses={
        200: {
            "content": {kind: {"schema": {"type": "string"}} for kind in ("text/plain", "application/openmetrics-text")}
        },
        **responses(),
    },
)
async def metrics(request: Request) -> Response:
    """What the database knows, and what this server has done for its clients, for Prometheus.

    Scrapes within a second of each other share one look at the database.
    """
    page = await request.app.state.metrics.read(request.headers.get("Accept", ""))
    return Response(page.body, media_type=page.content_type)


async def _database(queue: App) -> str:
    try:
        async with asyncio.timeout(_PATIENCE):
            await asyncio.to_thread(lambda: check_schema(queue.database.address(), schema=queue.schema))
    except TimeoutError:
        return f"no answer within {_PATIENCE:g} s"
    except SchemaError as error:
        return str(error)
    except PgqueueError:
        return "can't be reached"
    return "ok"


def _server(request: Request, desk: Desk) -> str:
    if desk.draining:
        return "about to stop"
    return "ok" if request.app.state.running else "its lifespan does not run"
