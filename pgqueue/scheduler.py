"""The scheduler: fires the ticks of schedules. Leaderless: every worker runs it, and the row decides who was first."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import psycopg

from pgqueue import statements
from pgqueue.errors import DatabaseError, DatabaseUnreachableError, InvalidJobError, InvalidScheduleError
from pgqueue.schedule import MOST_AT_ONCE, plan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from datetime import datetime

    from pgqueue.connection import Runner
    from pgqueue.schedule import Plan, ScheduleSpec, Waiting

log = logging.getLogger(__name__)

HORIZON: Final = timedelta(seconds=10)  # a worker looks at least so often; an edit is heard of sooner, by NOTIFY
_DEAF: Final = 1.0  # how often it looks while it can't hear
_BATCH: Final = 100  # schedules that tick in one transaction
_AGAIN: Final = 0.05  # after a look that lost: twice as long each time, up to a second
_MOST_LOSSES: Final = 4
_BEHIND: Final = (0.01, 0.04)  # how far the others come behind the worker that was first the last time: to find it done
_AFTER_FAILURE: Final = 10.0
_LONG: Final = 1.0  # seconds of one look; the database does not take plans that are 5 s old
_NOT_ITS_FAULT: Final = (psycopg.OperationalError, psycopg.InterfaceError, DatabaseUnreachableError)
_LATE: Final = timedelta(seconds=5)  # a plan for so much later may be long: not on the event loop


@dataclass(slots=True)
class Looked:
    """What one look did.

    Attributes:
        fired: the ticks, with their jobs.
        wait: seconds until something is due, None: nothing within the horizon.
        moved: how many schedules got their next tick here.
        lost: one that was due did not: another worker is at it, or somebody edits it.
    """

    fired: list[tuple[str, datetime, int]] = field(default_factory=list)
    wait: float | None = None
    moved: int = 0
    lost: bool = False


async def tick(database: Runner, schema: str, troubled: dict[tuple[str, str, str], float] | None = None) -> Looked:
    """Fire what is due now, each tick as one job.

    Args:
        database: runs the statements.
        schema: the queue's.
        troubled: what this worker can't fire (name, expression, time zone), and until when it is left alone.
    """
    troubled = {} if troubled is None else troubled
    waiting = await database.arun(statements.due_schedules(HORIZON, schema=schema))
    looked_at = time.monotonic()
    looked = Looked()
    due: Sequence[Waiting] = _due(waiting, troubled, looked)
    first = random.randrange(0, len(due), _BATCH) if due else 0  # noqa: S311 - workers begin at different ends
    due = [*due[first:], *due[:first]]
    while due and not looked.lost:
        if time.monotonic() - looked_at > _LONG:
            looked.wait = 0.0
            return looked
        plans, due = await _plans(due, troubled, looked)
        if plans:
            await _fire(database, schema, plans, waiting[0].now, looked, troubled)
    if looked.wait is not None:
        looked.wait = max(looked.wait - (time.monotonic() - looked_at), 0.0)
    return looked


async def forget_ticks(database: Runner, schema: str) -> int:
    """Forget which ticks fired more than 30 days ago; answers how many."""
    return await database.arun(statements.forget_ticks(schema=schema))


async def declare(database: Runner, schema: str, specs: Iterable[ScheduleSpec]) -> list[str]:
    """Write the schedules of an application's code; answers those that were new or had changed there."""
    specs = list(specs)
    written = await database.arun(statements.declare_schedules(specs, schema=schema)) if specs else []
    for name in written:
        log.info("schedule %s: written as the code declares it", name)
    return written


class Scheduler:
    """A worker's scheduler: :meth:`look` is its loop's body, and ``edited`` makes the loop look sooner.

    Every worker would come to a tick at the same moment, and all but one for nothing. So who was first the last time
    comes on time again, and who was not comes a little later (``_BEHIND``) and finds it done; if it is not done, the
    first one is gone, and one of the others takes its place. Who found a row held by another looks again after a
    random pause that doubles (``_AGAIN``), since that other may fail. Nothing of this is needed for a tick to fire
    once: that the row decides. While a tick is near, the looks go through a connection of their own (``own``), where
    no sweep of this worker can make them late.

    Args:
        quiet: the connection to look through while nothing is near.
        own: one that nobody else makes wait, for when something is.
        schema: the queue's.
        declared: the schedules of the application's code.
        hears: whether NOTIFY reaches this worker.
    """

    def __init__(
        self, quiet: Runner, own: Runner, schema: str, declared: Sequence[ScheduleSpec], hears: Callable[[], bool]
    ) -> None:
        self._quiet = quiet
        self._own = own
        self._near = False
        self._behind = 0.0
        self._losses = 0
        self._schema = schema
        self._undeclared = list(declared)
        self._hears = hears
        self._troubled: dict[tuple[str, str, str], float] = {}
        self.edited = asyncio.Event()

    async def look(self) -> float:
        """Fire what is due; answers in how many seconds to look again."""
        self.edited.clear()
        if self._undeclared:
            await declare(self._quiet, self._schema, self._undeclared)
            self._undeclared = []
        looked = await tick(self._own if self._near else self._quiet, self._schema, self._troubled)
        self._near = looked.wait is not None
        if looked.lost or looked.moved:
            self._behind = random.uniform(*_BEHIND) if looked.lost else 0.0  # noqa: S311
        longest = HORIZON.total_seconds() if self._hears() else _DEAF
        if looked.lost:
            self._losses = 0 if looked.moved else min(self._losses + 1, _MOST_LOSSES)
            return random.uniform(0, _AGAIN * 2**self._losses)  # noqa: S311 - not all at once again
        self._losses = 0
        return longest if looked.wait is None else min(looked.wait + self._behind, longest)


def _due(waiting: Sequence[Waiting], troubled: dict[tuple[str, str, str], float], looked: Looked) -> list[Waiting]:
    """Those whose next tick is to be worked out or fired now; sets when the next of the others is due."""
    due = []
    for one in waiting:
        if one.next_tick is not None and one.next_tick > one.now:
            _wait(looked, (one.next_tick - one.now).total_seconds())
        elif troubled.get((one.name, one.expression, one.time_zone), 0.0) <= time.monotonic():
            due.append(one)
    return due


async def _plans(
    due: Sequence[Waiting], troubled: dict[tuple[str, str, str], float], looked: Looked
) -> tuple[list[Plan], Sequence[Waiting]]:
    """What is to be done now, bounded in schedules and in ticks; and the rest."""
    plans: list[Plan] = []
    ticks = 0
    for nth, one in enumerate(due):
        if len(plans) == _BATCH or ticks >= MOST_AT_ONCE:
            return plans, due[nth:]
        late = one.next_tick is None or one.now - one.next_tick > _LATE
        try:
            made = await asyncio.to_thread(plan, one) if late else plan(one)
        except (InvalidScheduleError, OverflowError) as error:
            log.warning("schedule %s can't tick at this worker: %s", one.name, error)
            troubled[one.name, one.expression, one.time_zone] = float("inf")
            continue
        if made.missed:
            log.warning("schedule %s: a tick was missed at %s; misfire: %s", one.name, one.next_tick, one.misfire)
        _wait(looked, max((made.next - one.now).total_seconds(), 0.0))
        plans.append(made)
        ticks += len(made.fire)
    return plans, []


async def _fire(
    database: Runner, schema: str, plans: Sequence[Plan], looked_at: datetime, looked: Looked,
    troubled: dict[tuple[str, str, str], float],
) -> None:  # fmt: skip
    """In one transaction; when it is refused, one for each schedule, so that a broken one does not stop the others."""
    try:
        landed = await database.arun(statements.tick(plans, looked_at, schema=schema))
    except (psycopg.Error, DatabaseError, InvalidJobError) as error:
        if isinstance(error, _NOT_ITS_FAULT):
            raise
        if len(plans) > 1:
            for one in plans:
                await _fire(database, schema, [one], looked_at, looked, troubled)
            return
        broken = plans[0]
        log.warning("schedule %s: its tick was refused: %s", broken.name, str(error).strip().split("\n")[0])
        troubled[broken.name, broken.expression, broken.time_zone] = time.monotonic() + _AFTER_FAILURE
        _wait(looked, _AFTER_FAILURE)
        return
    names = {name for name, _, _ in landed}
    looked.moved += len(names)
    looked.lost = looked.lost or len(names) < len(plans)
    for name, moment, job_id in landed:
        if moment is not None and job_id is not None:
            looked.fired.append((name, moment, job_id))
            log.info("schedule %s: tick of %s", name, moment, extra={"job_id": job_id})
        elif moment is not None:
            log.info("schedule %s: tick of %s dropped: its job is still live, or it has fired", name, moment)


def _wait(looked: Looked, seconds: float) -> None:
    if seconds <= HORIZON.total_seconds():
        looked.wait = seconds if looked.wait is None else min(looked.wait, seconds)
