"""The tasks of ``pgq bench``; its worker imports this with ``--app pgqueue.bench.tasks``."""

from __future__ import annotations

import time
from typing import Final

from pgqueue.app import App

ONE_BY_ONE: Final = "one-by-one"  # the queues of what is only enqueued
IN_BULK: Final = "in-bulk"
WORKED: Final = "worked"  # the queue that the worker serves
TEXT: Final = "x" * 76  # with the rest of the payload about 100 bytes of JSON

app = App()


@app.task(name="bench.noop", queue=WORKED)
async def noop(n: int, text: str) -> None:
    """Do nothing."""


@app.task(name="bench.stamp", queue=WORKED)
async def stamp(n: int, text: str) -> int:  # noqa: ARG001 - a payload as others have one
    """Answer when it started, by the clock that all processes of this machine share."""
    return time.monotonic_ns()
