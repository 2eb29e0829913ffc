"""The tasks of ``pgq demo``; its workers import this with ``--app pgqueue.cli.demo_tasks``."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from pgqueue.app import App
from pgqueue.handle import current_job

COUNTER: Final = "counter"
QUEUES: Final = "default,reports,fast"  # all but the counter, which has a worker of its own

app = App()


@app.task(name="greet")
async def greet(name: str) -> str:
    """Answer something that can be checked."""
    return f"hello {name}"


@app.task(name="serve", queue=COUNTER)
async def serve(guest: str) -> tuple[str, int]:
    """Take a moment; answer when it began, by this machine's clock."""
    begin = time.monotonic_ns()
    await asyncio.sleep(0.02)
    return guest, begin


@app.task(name="charge_card")
async def charge_card(amount: int) -> int:
    """Fail the first time, as networks do."""
    if current_job().attempt == 1:
        raise ConnectionError("the bank did not answer")
    return amount


@app.task(name="remind")
async def remind(text: str) -> str:
    """Be scheduled."""
    return text


@app.task(name="report", queue="reports")
async def report(seconds: float) -> str:
    """Take long, and say how far it is."""
    for step in range(20):
        current_job().progress(step / 20)
        await asyncio.sleep(seconds / 20)
    return "the report"


@app.task(name="noop", queue="fast")
async def noop() -> None:
    """Do nothing, quickly."""
