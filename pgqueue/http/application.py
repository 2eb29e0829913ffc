"""The ASGI application: its routes, what it keeps open while it runs, and what it does beside answering."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from fastapi import FastAPI

from pgqueue.connection import connection_string
from pgqueue.http import batches, events, operations, producers, queues, schedules, workers
from pgqueue.http.auth import Tokens
from pgqueue.http.desk import Desk
from pgqueue.http.fast import Fast
from pgqueue.http.hosts import KnownHosts
from pgqueue.http.leases import Endings, Leases
from pgqueue.http.limits import Limited
from pgqueue.http.links import PATIENCE, Links
from pgqueue.http.problems import Problem, install
from pgqueue.http.redaction import Redact
from pgqueue.http.tally import Tally
from pgqueue.metrics.database import DatabaseMetrics
from pgqueue.pruner import prune, tidy
from pgqueue.scheduler import Scheduler, forget_ticks
from pgqueue.service import every
from pgqueue.sweeper import sweep
from pgqueue.version import __version__

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection

    from pgqueue.app import App

log = logging.getLogger(__name__)

MOST_BYTES: Final = 16 * 1024 * 1024  # of a request's body
MOST_REQUESTS: Final = 2_000  # under way at once, waiting clients included
_CLOCK: Final = 10.0
_BEAT: Final = 1.0
_PRUNE: Final = 60.0
_ABOUT: Final = """Enqueue jobs and work on them in any language. Errors are `application/problem+json` with a `code`
that does not change; with status 429 and 503 ask again after `Retry-After` seconds."""


def create_app(
    queue: App,
    *,
    redact: Collection[str] = (),
    hosts: Collection[str] | None = None,
    most_bytes: int = MOST_BYTES,
    most_requests: int = MOST_REQUESTS,
) -> FastAPI:
    """The queue over HTTP, to be served by itself or mounted into another application.

    While its lifespan runs it also sweeps expired leases, fires schedules and prunes history, as a worker does. A
    mounted application has its lifespan run by the one around it::

        api = create_app(queue)


        @asynccontextmanager
        async def lifespan(_app):
            async with api.router.lifespan_context(api):
                yield


        site = FastAPI(lifespan=lifespan)
        site.mount("/queue", api)

    Args:
        queue: whose database and settings to use; its tasks are not run here. From now on nobody waits longer than 5
            seconds for one of its connections: a client is told to ask again.
        redact: names of fields whose values reads do not show, at any depth, in payloads, results, progress, errors and
            meta; upper and lower case are the same.
        hosts: as long as there is no token, a request to another host than these (with any port) is answered with 403,
            so that no page in a browser gets here under a name of its own. ``pgq serve`` gives
            ``pgqueue.http.LOOPBACK`` and its own ``--host``. None: any host, for a site that sees to that itself.
        most_bytes: of a body; a larger one is answered with 413.
        most_requests: under way at once; one more is answered with 429.
    """
    api = FastAPI(
        title="pgqueue", version=__version__, description=_ABOUT, lifespan=_lifespan, docs_url=None, redoc_url=None,
        generate_unique_id_function=lambda route: route.name,
    )  # fmt: skip
    queue.database.patience = PATIENCE
    tokens = Tokens(queue.aclient)
    install(api)
    api.add_middleware(Fast)
    api.add_middleware(Limited, most_bytes=most_bytes, most_requests=most_requests)
    if hosts is not None:
        api.add_middleware(KnownHosts, tokens=tokens, hosts=hosts)
    for part in (workers, producers, batches, queues, schedules, operations, events):
        api.include_router(part.router)
    api.state.queue = queue
    api.state.client = queue.aclient
    api.state.tokens = tokens
    api.state.redact = Redact(redact)
    api.state.tally = Tally(queue)
    api.state.metrics = DatabaseMetrics(queue, own=api.state.tally.series)
    api.openapi = _schema_of(api, api.openapi)  # type: ignore[method-assign]
    _open(api)
    return api


def _open(api: FastAPI) -> None:
    """What is made anew for each run of the lifespan."""
    queue: App = api.state.queue
    settings = queue.settings

    def listen_dsn() -> str:
        return connection_string(settings.listen_dsn) if settings.listen_dsn else queue.database.address()

    api.state.links = Links(queue.database.address)
    api.state.upkeep = Links(queue.database.address, 1)
    api.state.scheduling = Links(queue.database.address, 1)  # opened when a tick is near; nothing makes it late
    api.state.lease = settings.lease_duration
    api.state.leases = Leases(api.state.links, queue.schema, api.state.tally)
    api.state.endings = Endings(api.state.leases)
    api.state.desk = Desk(
        api.state.links, api.state.leases, listen_dsn, queue.schema, settings.poll_interval, api.state.tally
    )
    api.state.events = events.Events(queue)
    api.state.running = False


@asynccontextmanager
async def _lifespan(api: FastAPI) -> AsyncIterator[None]:
    _open(api)
    queue: App = api.state.queue
    desk: Desk = api.state.desk
    upkeep: Links = api.state.upkeep
    schema, settings = queue.schema, queue.settings
    scheduler = Scheduler(upkeep, api.state.scheduling, schema, [], hears=lambda: desk.bell.up)

    async def sweep_up() -> None:
        api.state.tally.swept(len(await sweep(upkeep, schema)))

    async def clear_up() -> None:
        await prune(upkeep, schema)
        await tidy(upkeep, schema)
        await forget_ticks(upkeep, schema)

    background = [
        asyncio.create_task(coroutine)
        for coroutine in (
            desk.loop(),
            every(settings.lease_check_interval.total_seconds(), sweep_up, "the sweep"),
            every(_CLOCK, api.state.leases.look_at_clock, "the look at the clock"),
            every(_BEAT, api.state.tally.beat, "counting"),
            every(_PRUNE, clear_up, "pruning"),
            every(1.0, scheduler.look, "the scheduler", scheduler.edited),
        )
    ]
    api.state.running = True
    try:
        yield
    finally:
        api.state.running = False
        await desk.close()
        await api.state.events.close()
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        await api.state.links.close()
        await upkeep.close()
        await api.state.scheduling.close()
        await queue.aclose()


def _schema_of(api: FastAPI, make: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    """FastAPI's own, with our problems instead of its errors."""

    def openapi() -> dict[str, Any]:
        if api.openapi_schema is None:
            schema = make()
            parts = schema["components"]["schemas"]
            parts["Problem"] = Problem.model_json_schema()
            for name in ("HTTPValidationError", "ValidationError"):
                parts.pop(name, None)
            api.openapi_schema = schema
        return api.openapi_schema

    return openapi
