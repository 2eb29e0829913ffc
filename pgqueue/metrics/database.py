"""What the database knows, as metrics: for ``pgq serve`` and a worker's ``/metrics/database``.

Bounded, whatever the tables hold: rows are counted through an index up to a cap, and what lies beyond is taken from
the statistics that PostgreSQL keeps anyhow; see docs/metrics.md.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from typing import TYPE_CHECKING, Any, Final

import psycopg

from pgqueue import statements
from pgqueue.connection import run, run_async
from pgqueue.errors import DatabaseError, PgqueueError
from pgqueue.metrics import catalogue
from pgqueue.metrics.estimates import ended_jobs, live_jobs
from pgqueue.metrics.exposition import counted, gauge, render
from pgqueue.metrics.meter import enqueued

if TYPE_CHECKING:
    from collections.abc import Callable

    from prometheus_client.metrics_core import Metric as Family

    from pgqueue.app import App
    from pgqueue.metrics.exposition import Page
    from pgqueue.metrics.numbers import Series
    from pgqueue.statements import EndedCounts, LiveCount, TableFacts

log = logging.getLogger(__name__)

SHARED_FOR: Final = 1.0  # seconds: many scrapers cost one look
_REST: Final = 30.0  # after a count that was given up
_MOST_QUEUES: Final = 200  # whoever may enqueue may name queues; each is eight series
# The plan is bound to the indexes, and a look through the leavings of a held snapshot ends.
BOUNDED: Final = """
    SET LOCAL statement_timeout = '1s'; SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off;
    SET LOCAL jit = off; SET LOCAL max_parallel_workers_per_gather = 0
"""
_LIVE_STATES: Final = ("available", "scheduled", "retrying", "blocked", "running")
_ENDED_STATES: Final = ("completed", "dead", "cancelled")


class DatabaseMetrics:
    """The page of one application's queue. Whoever asks within a second of another gets the same answer, or error.

    Args:
        app: where the queue is.
        with_enqueued: also how many jobs this process has enqueued with ``app``, if it shows that on no other page.
        own: what else this process has counted and shows on no other page, as it is when it is called.
    """

    def __init__(self, app: App, *, with_enqueued: bool = False, own: Callable[[], list[Series]] | None = None) -> None:
        self._app = app
        self._with_enqueued = with_enqueued
        self._own = own
        self._alock = asyncio.Lock()
        self._lock = threading.Lock()
        self._seen: list[Family] = []
        self._failed: PgqueueError | None = None
        self._seen_at = -SHARED_FOR
        self._rest_until = 0.0

    async def read(self, accept: str = "") -> Page:
        """The page, in the format that the Accept header asks for.

        Raises:
            DatabaseError: no answer; DatabaseUnreachableError: no connection.
        """
        async with self._alock:
            if self._stale:
                try:
                    facts, ended = await self._app.database.atransact(self._look_around)
                    self._keep(await self._live(), facts, ended)
                except PgqueueError as error:
                    self._fail(error)
        return self._page(accept)

    def read_sync(self, accept: str = "") -> Page:
        """The same for sync code, from any thread."""
        with self._lock:
            if self._stale:
                try:
                    facts, ended = self._app.database.transact(self._look_around_sync)
                    self._keep(self._live_sync(), facts, ended)
                except PgqueueError as error:
                    self._fail(error)
        return self._page(accept)

    @property
    def _stale(self) -> bool:
        return time.monotonic() - self._seen_at >= SHARED_FOR

    async def _look_around(self, own: psycopg.AsyncConnection[Any]) -> tuple[TableFacts, EndedCounts]:
        schema = self._app.schema
        return (
            await run_async(own, statements.metrics_facts(schema=schema)),
            await run_async(own, statements.metrics_ended(schema=schema)),
        )

    def _look_around_sync(self, own: psycopg.Connection[Any]) -> tuple[TableFacts, EndedCounts]:
        schema = self._app.schema
        return run(own, statements.metrics_facts(schema=schema)), run(own, statements.metrics_ended(schema=schema))

    async def _live(self) -> list[LiveCount] | None:
        async def look(own: psycopg.AsyncConnection[Any]) -> list[LiveCount]:
            await own.execute(BOUNDED)
            return await run_async(own, statements.metrics_live(queues=_MOST_QUEUES, schema=self._app.schema))

        if time.monotonic() < self._rest_until:
            return None
        try:
            return await self._app.database.atransact(look)
        except DatabaseError as error:
            self._give_up(error)
            return None

    def _live_sync(self) -> list[LiveCount] | None:
        def look(own: psycopg.Connection[Any]) -> list[LiveCount]:
            own.execute(BOUNDED)
            return run(own, statements.metrics_live(queues=_MOST_QUEUES, schema=self._app.schema))

        if time.monotonic() < self._rest_until:
            return None
        try:
            return self._app.database.transact(look)
        except DatabaseError as error:
            self._give_up(error)
            return None

    def _give_up(self, error: DatabaseError) -> None:
        """What can't be had in time is not shown: a wrong number would be worse. It is not asked for again at once."""
        if not isinstance(error.__cause__, psycopg.errors.QueryCanceled):
            raise error
        self._rest_until = time.monotonic() + _REST
        log.warning("the waiting jobs could not be counted within a second: is an old transaction open?")

    def _keep(self, live: list[LiveCount] | None, facts: TableFacts, ended: EndedCounts) -> None:
        self._seen, self._failed = list(_families(live, facts, ended)), None
        self._seen_at = time.monotonic()

    def _fail(self, error: PgqueueError) -> None:
        """Whoever waits meanwhile learns it, too: one after the other, each with its own patience, would pile up."""
        self._failed = error
        self._seen_at = time.monotonic()

    def _page(self, accept: str) -> Page:
        if self._failed is not None:
            raise self._failed.with_traceback(None)
        if self._own is not None:
            return render([*self._seen, *counted(catalogue.COUNTED.values(), self._own())], accept)
        if not self._with_enqueued:
            return render(self._seen, accept)
        total = (catalogue.ENQUEUED.name, (), [float(enqueued(self._app))])
        return render([*self._seen, *counted([catalogue.ENQUEUED], [total])], accept)


def _families(live: list[LiveCount] | None, facts: TableFacts, ended: EndedCounts) -> list[Family]:
    jobs = {**(live_jobs(live, facts) if live is not None else {}), **ended_jobs(ended)}
    states = _ENDED_STATES if live is None else _LIVE_STATES + _ENDED_STATES
    first = [one.queue for one in live or ()]
    shown = [*first, *sorted({queue for queue, _ in jobs}.difference(first))][:_MOST_QUEUES]
    jobs = {(queue, state): jobs.get((queue, state), 0) for queue in shown for state in states}
    families = [gauge(catalogue.JOBS, dict(sorted(jobs.items())))]
    if live is not None:
        families.append(gauge(catalogue.OLDEST_READY, {(one.queue,): one.oldest_ready_seconds for one in live}))
    return [
        *families,
        gauge(catalogue.WORKERS, {(): facts.workers}),
        gauge(catalogue.ALL_SLOTS, {("busy",): facts.busy, ("free",): max(facts.slots - facts.busy, 0)}),
        gauge(catalogue.DEAD_TUPLES, {(): facts.dead_tuples}),
        gauge(catalogue.OLDEST_XMIN, {(): facts.oldest_xmin_seconds}),
    ]
