"""Behind every background loop: when to look, when to stop, what to do about errors."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from typing import TYPE_CHECKING, Final

import psycopg

from pgqueue.errors import DatabaseError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

log = logging.getLogger(__name__)

_AFTER_FAILURE: Final = 30.0


async def every(
    seconds: float, body: Callable[[], Awaitable[object]], name: str, wake: asyncio.Event | None = None
) -> None:
    """Call ``body`` now and then every ``seconds`` (± 10 %), until cancelled; an error is logged, not fatal.

    A body that answers a float says itself when it is next; ``wake`` calls it sooner.
    """
    while True:
        pause = seconds
        try:
            answer = await body()
            if isinstance(answer, float):
                await _sleep(answer, wake)
                continue
        except (DatabaseError, psycopg.Error, OSError) as error:
            pause = min(seconds, _AFTER_FAILURE)
            log.warning("%s failed, again in %.3gs: %s", name, pause, str(error).strip().split("\n")[0])
        except Exception:
            pause = min(seconds, _AFTER_FAILURE)
            log.exception("%s failed, again in %.3gs", name, pause)
        await _sleep(pause * random.uniform(0.9, 1.1), wake)  # noqa: S311


async def until_set(event: asyncio.Event, seconds: float) -> bool:
    """Until the event is set (True) or the time is over (False).

    Not by ``asyncio.wait_for``: up to Python 3.11 it loses a cancellation that comes as the event is being set.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            return await event.wait()
    return False


async def _sleep(seconds: float, wake: asyncio.Event | None) -> None:
    if wake is None:
        await asyncio.sleep(seconds)
    else:
        await until_set(wake, seconds)
