"""What happens, as server-sent events, for dashboards. However many listen, one look at the database is for all."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Final, Generic, TypeVar

import orjson
from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse

from pgqueue import statements
from pgqueue.errors import DatabaseError
from pgqueue.http import models
from pgqueue.http.auth import Caller, authenticate, needs
from pgqueue.http.desk import DrainingError
from pgqueue.http.problems import ProblemError, responses
from pgqueue.http.producers import find_job
from pgqueue.service import until_set

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from pgqueue.app import App
    from pgqueue.statements import JobGlance, QueueStats

log = logging.getLogger(__name__)
router = APIRouter(tags=["operations"])
T = TypeVar("T")

MOST_WATCHED: Final = 100  # jobs of one listener
_SHORTEST: Final = 0.2
_LONGEST: Final = 60.0
_HEARTBEAT: Final = 15.0  # of silence
_SHARE: Final = 10  # a look rests so many times as long as it took
_CHECKED_FOR: Final = 5.0  # a token that is revoked is heard no longer
_STREAM: Final = "text/event-stream"


@router.get(
    "/events",
    response_class=StreamingResponse,
    responses={200: {"content": {_STREAM: {"schema": {"type": "string"}}}}, **responses(404)},
)
async def events(
    request: Request,
    caller: Annotated[Caller, needs("read")],
    job_id: Annotated[
        list[Annotated[int, Query(ge=1, le=models.BIGGEST_ID)]] | None,
        Query(max_length=MOST_WATCHED, description="Watch this job, too; may be given several times."),
    ] = None,
    interval: Annotated[str, Query(description="Look this often, from 0.2s to 60s.")] = "1s",
) -> StreamingResponse:
    """A stream of server-sent events, until the client or the server stops.

    `queues`: what GET /queues answers, at first and when it has changed. `job`: where a job is that was asked for, at
    first and when its state or progress has changed, until it has ended.
    """
    hub: Events = request.app.state.events
    pause = models.seconds(interval, "interval", _LONGEST)
    if pause < _SHORTEST:
        raise ProblemError(422, "invalid_request", f"interval must be at least {_SHORTEST:g}s, not {interval!r}")
    for one in job_id or ():
        await find_job(request, one, caller)
    if hub.closing.is_set():
        raise DrainingError("this server is about to stop")
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    listener = Listener(pause, set(job_id or ()))
    return StreamingResponse(_stream(request, hub, listener, caller), media_type=_STREAM, headers=headers)


class Listener:
    """Who listens: how often, to which jobs. ``news`` is set after each look."""

    def __init__(self, interval: float, jobs: set[int]) -> None:
        self.interval = interval
        self.jobs = jobs
        self.news = asyncio.Event()


class Shared(Generic[T]):
    """A look at the database, again and again while somebody listens, as often as the most impatient wants it.

    One that takes long rests ten times as long, so that it is never the database's main work.
    """

    def __init__(self, look: Callable[[], Awaitable[T]], name: str) -> None:
        self.latest: T | None = None
        self.listeners: set[Listener] = set()
        self._look = look
        self._name = name
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def join(self, listener: Listener) -> None:
        """Be told; at once what was seen last."""
        self.listeners.add(listener)
        self._changed.set()
        if self.latest is not None:
            listener.news.set()
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._loop())

    def leave(self, listener: Listener) -> None:
        """Be told no more; after the last one nobody looks."""
        self.listeners.discard(listener)
        self._changed.set()

    async def stop(self) -> None:
        """After the last listener."""
        self.listeners.clear()
        self._changed.set()
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _loop(self) -> None:
        while self.listeners:
            began = time.monotonic()
            try:
                self.latest = await self._look()
            except DatabaseError as error:
                log.warning("no look at %s for those who listen: %s", self._name, error)
            except Exception:
                log.exception("no look at %s for those who listen", self._name)
            for listener in self.listeners:
                listener.news.set()
            await self._rest(began, time.monotonic() - began)
        self.latest = None

    async def _rest(self, began: float, took: float) -> None:
        """Who comes in meanwhile may want it sooner, or be the last one to go; a look it is not worth."""
        while self.listeners:
            pause = max(min(listener.interval for listener in self.listeners), _SHARE * took)
            self._changed.clear()
            left = began + pause - time.monotonic()
            if left <= 0 or not await until_set(self._changed, left):
                return


class Events:
    """What those who listen to one server hear."""

    def __init__(self, queue: App) -> None:
        self.closing = asyncio.Event()
        self.queues: Shared[list[QueueStats]] = Shared(queue.aclient.queues, "the queues")
        self.jobs: Shared[dict[int, JobGlance]] = Shared(self._look_at_jobs, "jobs")
        self._queue = queue

    def drain(self) -> None:
        """Every stream ends."""
        self.closing.set()
        for listener in self.queues.listeners:
            listener.news.set()

    async def close(self) -> None:
        """After the last client."""
        self.drain()
        await self.queues.stop()
        await self.jobs.stop()

    async def _look_at_jobs(self) -> dict[int, JobGlance]:
        wanted = sorted({job_id for listener in self.jobs.listeners for job_id in listener.jobs})
        found = await self._queue.database.arun(statements.watch_jobs(wanted, schema=self._queue.schema))
        gone = [job_id for job_id in wanted if job_id not in found]
        return {**found, **{job_id: statements.JobGlance(job_id, "", None) for job_id in gone}}


async def _stream(request: Request, hub: Events, listener: Listener, caller: Caller) -> AsyncIterator[bytes]:
    """The events of one listener."""
    teller = _Teller(request.app.state.redact, listener)
    checked = spoke = time.monotonic()
    hub.queues.join(listener)
    if listener.jobs:
        hub.jobs.join(listener)
    try:
        while not hub.closing.is_set():
            await until_set(listener.news, _HEARTBEAT)
            listener.news.clear()
            if hub.closing.is_set():
                return
            now, said = time.monotonic(), b""
            with contextlib.suppress(DatabaseError):  # as long as nobody knows whether it may listen, nothing is told
                if now - checked > _CHECKED_FOR:
                    caller, checked = await authenticate(request, "read"), now
                said = teller.tell(hub.queues.latest, hub.jobs.latest, caller)
            if not listener.jobs:
                hub.jobs.leave(listener)
            if said or now - spoke >= _HEARTBEAT:
                spoke = now
                yield said or b": nothing new\n\n"
            await until_set(hub.closing, 0.9 * listener.interval)  # the next look is a little later
    except ProblemError as error:
        log.info("a stream of events ends: %s", error)
    finally:
        hub.queues.leave(listener)
        hub.jobs.leave(listener)


class _Teller:
    """Remembers what was told, and tells what is new."""

    def __init__(self, hide: Callable[[Any], Any], listener: Listener) -> None:
        self._hide = hide
        self._listener = listener
        self._queues = b""
        self._jobs: dict[int, bytes] = {}

    def tell(self, queues: list[QueueStats] | None, jobs: dict[int, JobGlance] | None, caller: Caller) -> bytes:
        said = b""
        if queues is not None:
            page = orjson.dumps({"queues": [asdict(one) for one in queues if caller.may(one.queue)]})
            if page != self._queues:
                self._queues = page
                said += _event(b"queues", page)
        for job_id in sorted(self._listener.jobs.intersection(jobs or ())):
            said += self._tell_job((jobs or {})[job_id], caller)
        return said

    def _tell_job(self, job: JobGlance, caller: Caller) -> bytes:
        if job.ended or not caller.may(job.queue):
            self._listener.jobs.discard(job.id)
        if job.state is not None and not caller.may(job.queue):
            return b""
        fact = orjson.dumps({
            "job_id": job.id, "state": job.state, "attempts": job.attempt, "progress": self._hide(job.progress),
            "cancel_requested": job.cancel_requested, "finished_at": job.finished_at,
        })  # fmt: skip
        if fact == self._jobs.get(job.id):
            return b""
        self._jobs[job.id] = fact
        return _event(b"job", fact)


def _event(name: bytes, data: bytes) -> bytes:
    return b"event: " + name + b"\ndata: " + data + b"\n\n"
