"""The pruner: keeps tomorrow's partitions of history, drops those past their retention, forgets what has run out."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from pgqueue import statements

if TYPE_CHECKING:
    from pgqueue.connection import Runner

log = logging.getLogger(__name__)


async def prune(database: Runner, schema: str) -> list[str]:
    """Create and drop partitions; answers what was done, empty when another worker is at it."""
    done = await database.arun(statements.prune(schema=schema))
    for line in done:
        log.info("history: %s", line)
    return done


async def tidy(database: Runner, schema: str) -> None:
    """Forget what has run out: throttles, full buckets, old tokens, batches without history, edges to jobs now gone."""
    await database.arun(statements.tidy(schema=schema))
