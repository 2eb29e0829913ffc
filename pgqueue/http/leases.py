"""Leases for workers in other processes and languages: what they hold is known by job id and lease token alone."""

from __future__ import annotations

import asyncio
import secrets
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, Literal

from pgqueue import statements
from pgqueue.backoff import Exponential
from pgqueue.errors import DatabaseUnreachableError
from pgqueue.outcome import RELEASED, Outcome, error_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pgqueue.connection import Runner
    from pgqueue.http.tally import Tally
    from pgqueue.statements import Held, Row

_BACKOFF: Final = Exponential()
_TOGETHER: Final = 2
_MOST_TOGETHER: Final = 500
_LEAVES: Final = {  # what a job is after each; a failure or a release cancels it when somebody had asked for that
    "ack": {"completed"},
    "fail": {"back", "dead", "cancelled"},
    "release": {"back", "cancelled"},
}


@dataclass(frozen=True, slots=True)
class Leased:
    """A job in a client's hand. ``payload`` and ``meta`` are JSON text; ``lease_until`` is by the server's clock."""

    id: int
    token: int
    queue: str
    task: str
    payload: str
    meta: str | None
    priority: int
    attempt: int
    max_attempts: int
    timeout: float | None
    run_at: datetime
    lease_until: datetime

    @classmethod
    def from_row(cls, row: Row, token: int, lease_until: datetime) -> Leased:
        """From what a claim answers."""
        priority, run_at, job_id, queue, task, payload, attempt, max_attempts, timeout, meta, _suspect = row
        return cls(
            job_id, token, queue, task, payload, meta, priority, attempt, max_attempts, timeout,
            datetime.fromtimestamp(run_at, UTC), lease_until,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class End:
    """How a client says that a job ended.

    Attributes:
        job_id: which.
        verb: ``ack``: completed; ``fail``: again later, or dead when its attempts are used up; ``release``: given
            back, the attempt refunded.
        token: of its lease; None: of the one that it has now, if that has not run out.
        result: JSON text.
        error: (type, message, traceback).
        retry_in: seconds until the next attempt; None: 2, 4, 8, 16 … s.
        final: a failure after which there is no other attempt.
    """

    job_id: int
    verb: Literal["ack", "fail", "release"]
    token: int | None = None
    result: str | None = None
    error: tuple[str, str, str] = ("Failed", "the worker reported a failure", "")
    retry_in: float | None = None
    final: bool = False


class Leases:
    """The verbs of a lease, on connections of their own."""

    def __init__(self, link: Runner, schema: str, tally: Tally) -> None:
        self._link = link
        self._schema = schema
        self._tally = tally
        self._clock_offset = time.time() - time.monotonic()  # until the server has been asked

    async def look_at_clock(self) -> None:
        """Ask the server what time it is: leases run by its clock."""
        self._clock_offset = await self._link.arun(statements.clock(schema=self._schema)) - time.monotonic()

    def clock(self) -> float:
        """The server's, in seconds since 1970, as it is now."""
        return time.monotonic() + self._clock_offset

    def until(self, began: float, lease: timedelta) -> datetime:
        """When a lease ends that was asked for at that monotonic time: never later than it really does."""
        return datetime.fromtimestamp(began + self._clock_offset, UTC) + lease

    async def held(self, ids: Sequence[int]) -> dict[int, Held]:
        """Which of these jobs run, and under which leases."""
        return await self._link.arun(statements.held(ids, schema=self._schema))

    async def split(self, token: int, parts: Sequence[tuple[list[Leased], str]]) -> list[list[Leased]]:
        """Give each part of a claimed batch, for a worker of that name, a lease of its own."""
        tokens = [secrets.randbits(62) + 1 for _ in parts]
        moves = [
            (job.id, new, worker) for (jobs, worker), new in zip(parts, tokens, strict=True) for job in jobs
        ]  # fmt: skip
        moved = await self._link.arun(statements.split_lease(token, moves, schema=self._schema))
        return [
            [_under(job, new) for job in jobs if job.id in moved] for (jobs, _), new in zip(parts, tokens, strict=True)
        ]

    async def give_back(self, jobs: Sequence[Leased]) -> None:
        """Release what could not be delivered; the attempts are refunded."""
        await self.end([End(job.id, "release", job.token) for job in jobs])

    async def end(self, ends: Sequence[End], held: Mapping[int, Held] | None = None) -> set[int]:
        """Finish jobs; answers the ids of those that did not land, as somebody else holds them, or nobody.

        The same that had landed before counts as landed.
        """
        held = await self.held([end.job_id for end in ends]) if held is None else held
        mine = {end.job_id: end for end in ends if _holds(end, held.get(end.job_id))}
        landings = [
            (end.job_id, held[end.job_id].token, _outcome(end, held[end.job_id])) for end in mine.values()
        ]  # fmt: skip
        lost = {end.job_id for end in ends} - mine.keys()
        if landings:
            lost |= await self._land(landings, _closing(mine, held), held)
        lost -= await self._landed_before([end for end in ends if end.job_id in lost])
        self._tally.lost(sum(end.job_id in lost and end.token is not None for end in ends))
        return lost

    async def _land(
        self, landings: Sequence[tuple[int, int, Outcome]], done: Sequence[int], held: Mapping[int, Held]
    ) -> set[int]:
        """Answers the ids of those that were refused."""
        began = time.monotonic()
        missed = await self._link.arun(statements.finish(landings, done, schema=self._schema))
        refused = {job_id for job_id, _ in missed}
        ended = [(held[job_id], outcome.verdict) for job_id, _, outcome in landings if job_id not in refused]
        self._tally.ended(ended, time.monotonic() - began)
        return refused

    async def _landed_before(self, ends: Sequence[End]) -> set[int]:
        """Those of which the same was said before, under the same lease, and was done."""
        said = {end.job_id: (end.token, end.verb) for end in ends if end.token is not None}
        if not said:
            return set()
        pairs = [(job_id, token) for job_id, (token, _) in said.items()]
        how = await self._link.arun(statements.landed(pairs, schema=self._schema))
        return {job_id for job_id, found in how.items() if found in _LEAVES[said[job_id][1]]}

    async def prolong(self, pairs: Sequence[tuple[int, int]], lease: timedelta) -> dict[int, bool]:
        """Hold on to these (id, token)s; answers those that are held, and whether somebody asked to cancel each."""
        tokens = sorted({token for _, token in pairs})
        held = await self._link.arun(statements.renew(tokens, pairs, lease, schema=self._schema))
        return {job_id: cancel for job_id, (cancel, _) in held.items()}

    async def report(self, reports: Sequence[tuple[int, int, str]]) -> None:
        """Write (id, token, progress as JSON text)s."""
        await self._link.arun(statements.progress(sorted(reports), schema=self._schema))


class Endings:
    """Ends that come at the same time go together, as enqueues do: see :class:`pgqueue.gathering.Gathering`.

    One goes at once when fewer than two batches are under way; else with all that have come until one of them is back.
    """

    def __init__(self, leases: Leases) -> None:
        self._leases = leases
        self._waiting: dict[int, tuple[End, asyncio.Future[bool]]] = {}
        self._under_way: set[asyncio.Task[None]] = set()

    async def end(self, end: End) -> bool:
        """Whether it landed.

        Raises:
            DatabaseUnreachableError: that is unknown; with its token it may be said again.
        """
        if end.job_id in self._waiting:  # twice at once: one after the other
            return end.job_id not in await self._leases.end([end])
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting[end.job_id] = (end, answer)
        self._send()
        return await answer

    def _send(self) -> None:
        while self._waiting and len(self._under_way) < _TOGETHER:
            batch = list(self._waiting.values())[:_MOST_TOGETHER]
            for end, _ in batch:
                del self._waiting[end.job_id]
            task = asyncio.get_running_loop().create_task(self._flush(batch))
            self._under_way.add(task)
            task.add_done_callback(self._sent)

    def _sent(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        self._send()

    async def _flush(self, batch: list[tuple[End, asyncio.Future[bool]]]) -> None:
        try:
            lost = await self._leases.end([end for end, _ in batch])
        except Exception as error:  # noqa: BLE001 - whatever it is, those who wait are told
            if len(batch) > 1 and not isinstance(error, DatabaseUnreachableError):
                for one in batch:  # the others have nothing to do with what is wrong with one
                    await self._flush([one])
                return
            for _, answer in batch:
                if not answer.done():
                    answer.set_exception(error)
            return
        for end, answer in batch:
            if not answer.done():
                answer.set_result(end.job_id not in lost)


def _under(job: Leased, token: int) -> Leased:
    return Leased(
        job.id, token, job.queue, job.task, job.payload, job.meta, job.priority, job.attempt, job.max_attempts,
        job.timeout, job.run_at, job.lease_until,
    )  # fmt: skip


def _holds(end: End, held: Held | None) -> bool:
    """A client that names no token means the lease that the job has now; once that has run out, it may be another's."""
    if held is None:
        return False
    return held.live if end.token is None else held.token == end.token


def _closing(mine: Mapping[int, End], held: Mapping[int, Held]) -> list[int]:
    """The leases that have no other job left: all of theirs that were asked for end here, too."""
    last = {one.token for one in held.values() if one.last}
    return sorted(last - {one.token for one in held.values() if one.id not in mine})


def _outcome(end: End, held: Held) -> Outcome:
    if end.verb == "ack":
        return Outcome("completed", result=end.result)
    if end.verb == "release":
        return RELEASED if end.retry_in is None else Outcome("release", delay=end.retry_in)
    kind, message, trace = end.error
    error = error_json(held.attempt, kind, message, trace)
    if end.final or held.attempt >= held.max_attempts:
        return Outcome("dead", error=error)
    delay = _BACKOFF.delay(held.attempt).total_seconds() if end.retry_in is None else end.retry_in
    return Outcome("retry", error=error, delay=delay)
