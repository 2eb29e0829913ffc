"""The one helper behind every background loop: when to look, when to stop, what to do about errors."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING, Final

import psycopg

from pgqueue.errors import DatabaseError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

log = logging.getLogger(__name__)

_AFTER_FAILURE: Final = 30.0


async def every(seconds: float, body: Callable[[], Awaitable[object]], name: str) -> None:
    """Call ``body`` now and then every ``seconds`` (± 10 %), until cancelled; an error is logged, not fatal."""
    while True:
        pause = seconds
        try:
            await body()
        except (DatabaseError, psycopg.Error, OSError) as error:
            pause = min(seconds, _AFTER_FAILURE)
            log.warning("%s failed, again in %.3gs: %s", name, pause, str(error).strip().split("\n")[0])
        except Exception:
            pause = min(seconds, _AFTER_FAILURE)
            log.exception("%s failed, again in %.3gs", name, pause)
        await asyncio.sleep(pause * random.uniform(0.9, 1.1))  # noqa: S311
