"""The tasks that a worker runs when it is not given an app: enough to try a queue with."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from pgqueue.app import App
from pgqueue.errors import PgqueueError

if TYPE_CHECKING:
    from pgqueue.settings import Settings

LONGEST_SLEEP: Final = 86_400.0


class FailedOnPurposeError(PgqueueError):
    """What the task ``fail`` raises."""


def make_builtin_app(settings: Settings) -> App:
    """An app with the tasks ``echo``, ``sleep`` and ``fail``."""
    app = App(settings=settings)
    app.task(name="echo", raw=True)(echo)
    app.task(name="sleep")(sleep)
    app.task(name="fail", raw=True)(fail)
    return app


async def echo(payload: Any) -> Any:
    """Return the payload, whatever JSON it is."""
    return payload


async def sleep(seconds: float = 1.0) -> float:
    """Wait this long (at most a day) and return it."""
    seconds = min(max(seconds, 0.0), LONGEST_SLEEP)
    await asyncio.sleep(seconds)
    return seconds


async def fail(payload: Any) -> None:
    """Always raise: for looking at retries and dead letters."""
    message = payload.get("message") if isinstance(payload, dict) else None
    raise FailedOnPurposeError(str(message or "this task always fails"))
