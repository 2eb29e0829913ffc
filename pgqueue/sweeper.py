"""The sweeper: gives the jobs of expired leases to other workers. Leaderless; any number may run."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from pgqueue import statements

if TYPE_CHECKING:
    from pgqueue.connection import Runner
    from pgqueue.statements import Swept

log = logging.getLogger(__name__)

_LEASES_PER_SWEEP: Final = 100


async def sweep(database: Runner, schema: str) -> list[Swept]:
    """Recover what expired leases held; answers the jobs that were moved."""
    swept: list[Swept] = []
    while True:
        moved = await database.arun(statements.sweep(_LEASES_PER_SWEEP, schema=schema))
        for job in moved:
            log.warning(
                "its lease ran out at worker %s: now %s", job.worker, job.state,
                extra={"job_id": job.id, "task": job.task, "queue": job.queue, "attempt": job.attempt},
            )  # fmt: skip
        swept += moved
        if not moved:
            return swept
