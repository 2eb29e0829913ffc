"""The sweeper: gives the jobs of expired leases to other workers. Leaderless; any number may run."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import psycopg

from pgqueue import statements
from pgqueue.errors import DatabaseError

if TYPE_CHECKING:
    from pgqueue.connection import Runner
    from pgqueue.statements import Swept

log = logging.getLogger(__name__)

_LEASES_PER_SWEEP: Final = 100


async def sweep(database: Runner, schema: str) -> list[Swept]:
    """Recover what expired leases held; answers the jobs that were moved."""
    swept: list[Swept] = []
    while True:
        moved = await _sweep_once(database, schema)
        for job in moved:
            log.warning(
                "its lease ran out at worker %s: now %s", job.worker, job.state,
                extra={"job_id": job.id, "task": job.task, "queue": job.queue, "attempt": job.attempt},
            )  # fmt: skip
        swept += moved
        if not moved:
            return swept


async def _sweep_once(database: Runner, schema: str) -> list[Swept]:
    """A transaction that stays open may hold who waits for one of these: then those are left, the others not."""
    try:
        return await database.arun(statements.sweep(_LEASES_PER_SWEEP, schema=schema))
    except (psycopg.Error, DatabaseError) as error:
        if not isinstance(error.__cause__ or error, psycopg.errors.LockNotAvailable):
            raise
        return await database.arun(statements.sweep(_LEASES_PER_SWEEP, settle=False, schema=schema))
