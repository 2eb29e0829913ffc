"""Lands outcomes, in batches: what gathers while one batch is on its way is the next batch."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from typing import TYPE_CHECKING, Final

import psycopg

from pgqueue import statements
from pgqueue.outcome import Outcome, error_json
from pgqueue.service import until_set
from pgqueue.worker.link import LOST, RETRYABLE, Link

if TYPE_CHECKING:
    from collections.abc import Callable

    from pgqueue.metrics.meter import Meter
    from pgqueue.run import Run
    from pgqueue.worker.hand import Hand

log = logging.getLogger(__name__)

_MOST: Final = 1_000
_PATIENCE: Final = 10.0
_HURRY: Final = 2.0
_LONGEST_PAUSE: Final = 5.0
_LOCKED_PAUSE: Final = 1.0
_MOST_LOCKED: Final = 3
_REFUSED: Final = "PostgreSQL refused the outcome"
_NOT_ACCEPTABLE: Final = (psycopg.DataError, psycopg.IntegrityError, psycopg.errors.ProgramLimitExceeded, UnicodeError)
Landing = tuple[int, int, Outcome]


class Finisher:
    """Takes outcomes from the executor and writes them. Nothing is dropped until the database has answered."""

    def __init__(self, link: Link, hand: Hand, schema: str) -> None:
        self.on_landed: Callable[[], None] = lambda: None
        self.meter: Meter | None = None
        self._link = link
        self._hand = hand
        self._schema = schema
        self._waiting: list[tuple[Run, Outcome]] = []
        self._locked = 0
        self._uncertain: set[int] = set()  # tokens of writes whose reply was lost
        self._some = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def behind(self) -> bool:
        """Whether handlers end faster than outcomes land: claim nothing more for now."""
        return len(self._waiting) > 2 * _MOST

    def add(self, run: Run, outcome: Outcome) -> None:
        """Have an outcome written; returns at once."""
        self._waiting.append((run, outcome))
        if len(self._waiting) == 1:
            self._some.set()
            self._empty.clear()

    async def loop(self) -> None:
        """For ever: take what has gathered, land it."""
        while True:
            await self._some.wait()
            batch, self._waiting = self._waiting[:_MOST], self._waiting[_MOST:]
            if not self._waiting:
                self._some.clear()
            await self._flush(batch)
            self.on_landed()
            if not self._waiting and not self._locked:
                self._empty.set()

    async def drained(self, *, hurry: bool = False) -> bool:
        """Wait until everything has landed, at most ten seconds (in a hurry: two); answers whether it has."""
        if await until_set(self._empty, _HURRY if hurry else _PATIENCE):
            return True
        log.error("the database did not take %d outcomes in time; their leases will expire", len(self._waiting))
        return False

    async def _flush(self, batch: list[tuple[Run, Outcome]]) -> None:
        began = time.monotonic()
        runs = [run for run, _ in batch]
        done = self._hand.closing(runs)
        landings = [(run.id, run.token, outcome) for run, outcome in batch if not (run.landed or run.lost)]
        await self._report(runs)
        try:
            lost = set(await self._land(landings, done)) if landings or done else set()
        except psycopg.errors.LockNotAvailable:
            await self._go_around_locks(batch)
            return
        self._hand.drop(runs)
        if self.meter is not None:
            self.meter.landed(batch, lost, time.monotonic() - began)
        for run in runs if lost else ():
            if (run.id, run.token) in lost:
                log.warning("the lease was lost before the outcome landed; it is dropped", extra=run.facts())

    async def _report(self, runs: list[Run]) -> None:
        """The last progress of a run goes with it; most runs have none that is not written yet."""
        reports = [(run.id, run.token, run.report) for run in runs if run.report is not None and not run.lost]
        if reports:
            with contextlib.suppress(psycopg.Error, OSError):
                await self._link.arun(statements.progress(sorted(reports), schema=self._schema))

    async def _go_around_locks(self, batch: list[tuple[Run, Outcome]]) -> None:
        """Somebody holds a job of this batch, or the table: the others land, that one waits; its lease is renewed."""
        refused = 0
        for run, outcome in batch:
            try:
                if refused > _MOST_LOCKED:
                    raise psycopg.errors.LockNotAvailable  # noqa: TRY301 - it is the table, then
                await self._flush_one(run, outcome)
            except psycopg.errors.LockNotAvailable:
                refused += 1
                self._locked += 1
                asyncio.get_running_loop().call_later(_LOCKED_PAUSE, self._add_again, run, outcome)
        log.warning("%d outcomes wait for a lock that a transaction holds", refused)

    async def _flush_one(self, run: Run, outcome: Outcome) -> None:
        began = time.monotonic()
        done = self._hand.closing([run])
        landings = [] if run.landed or run.lost else [(run.id, run.token, outcome)]
        lost = await self._land(landings, done)
        if lost:
            log.warning("the lease was lost before the outcome landed; it is dropped", extra=run.facts())
        self._hand.drop([run])
        if self.meter is not None:
            self.meter.landed([(run, outcome)], lost, time.monotonic() - began)

    def _add_again(self, run: Run, outcome: Outcome) -> None:
        self._locked -= 1
        self.add(run, outcome)

    async def _land(self, landings: list[Landing], done: list[int]) -> list[tuple[int, int]]:
        """Answers the (id, token)s that were refused."""
        pause = 0.05
        while True:
            try:
                lost = await self._link.arun(statements.finish(landings, done, schema=self._schema))
            except psycopg.errors.LockNotAvailable:
                raise
            except RETRYABLE:
                await asyncio.sleep(random.uniform(0, pause))  # noqa: S311
            except LOST as error:
                log.warning("%d outcomes could not be written, trying again: %s", len(landings), str(error).strip())
                self._uncertain.update(token for _, token, _ in landings)
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
            except _NOT_ACCEPTABLE as error:
                return await self._land_one_by_one(landings, done, error)
            except psycopg.Error as error:  # read-only after a failover, a schema that is being restored, …
                log.warning("%d outcomes were refused, trying again: %s", len(landings), str(error).strip())
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
            else:
                if lost and not self._uncertain.isdisjoint(token for _, token in lost):
                    lost = await self._really_lost(lost)
                self._uncertain.difference_update(done)
                return lost

    async def _really_lost(self, lost: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """The reply was lost, not necessarily the write: what ended under our token has landed."""
        try:
            found = await self._link.arun(statements.landed(lost, schema=self._schema))
        except (psycopg.Error, OSError):
            return []  # nobody can tell now; the rows can
        return [(job_id, token) for job_id, token in lost if job_id not in found]

    async def _land_one_by_one(
        self, landings: list[Landing], done: list[int], error: Exception
    ) -> list[tuple[int, int]]:
        """One of them is not acceptable: the rest must land, and that one must say why."""
        if len(landings) > 1:
            # Their leases stay: what can't be landed at all is recovered by a sweep, not forgotten.
            return [pair for landing in landings for pair in await self._land([landing], [])]
        if not landings or _REFUSED in (landings[0][2].error or ""):
            return []
        job_id, token, outcome = landings[0]
        run = self._hand.find(job_id)
        reason = f"{_REFUSED}: {str(error).splitlines()[0]}"
        log.error("%s", reason, extra=run.facts() if run else {"job_id": job_id})
        why = error_json(run.attempt if run else 0, type(error).__name__, reason)
        return await self._land([(job_id, token, Outcome(outcome.verdict, None, why, outcome.delay))], done)
