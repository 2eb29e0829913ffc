"""The app whose tasks the scenarios' workers run. Handlers write to the ledger named in the environment."""

from __future__ import annotations

import asyncio
import os
import time

from pgqueue import App, Fixed, Job
from pgqueue.run import current_run
from scenarios.ledger import Ledger

app = App()
ledger = Ledger(os.environ.get("SCENARIO_LEDGER", "/dev/null"))


def write(event: str) -> None:
    run = current_run.get()
    assert run is not None
    ledger.write(event, run.id, run.attempt, run.token)


@app.task(name="nap")
async def nap(seconds: float = 0.0) -> float:
    """Async work of this length."""
    write("start")
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        write("cancelled")
        raise
    write("end")
    return seconds


@app.task(name="toil")
def toil(job: Job, seconds: float = 0.0) -> float:
    """The same in a thread; looks whether it is to stop."""
    write("start")
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if job.cancelled:
            write("cancelled")
            raise InterruptedError("told to stop")
        time.sleep(0.01)
    write("end")
    return seconds


@app.task(name="hold")
async def hold() -> None:
    """Waits until the story says go."""
    write("start")
    try:
        while not ledger.may_go():  # noqa: ASYNC110
            await asyncio.sleep(0.01)  # the word comes from another process, through a file
    except asyncio.CancelledError:
        write("cancelled")
        raise
    write("end")


@app.task(name="hold_thread")
def hold_thread(job: Job) -> None:
    """The same in a thread."""
    write("start")
    while not ledger.may_go():
        if job.cancelled:
            write("cancelled")
            raise InterruptedError("told to stop")
        time.sleep(0.01)
    write("end")


@app.task(name="block")
async def block(seconds: float) -> None:
    """Blocks the event loop."""
    write("start")
    time.sleep(seconds)  # noqa: ASYNC251 - it is what this one is for
    write("end")


@app.task(name="stubborn")
async def stubborn() -> None:
    """Does not listen."""
    write("start")
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            write("cancelled")


@app.task(name="fail", retry=Fixed("200ms"))
async def fail(message: str) -> None:
    """Always raises."""
    write("start")
    raise ValueError(message)


@app.task(name="doubling")
async def doubling() -> None:
    """Always raises, with the default backoff."""
    write("start")
    raise ValueError("again")


@app.task(name="die_async")
async def die_async() -> None:
    write("start")
    os._exit(9)


@app.task(name="die_isolated", retry=Fixed(0), isolation="process")
def die_isolated() -> None:
    write("start")
    os._exit(9)


@app.task(name="exit_in_a_subtask", retry=Fixed(0))
async def exit_in_a_subtask() -> None:
    write("start")

    async def leave() -> None:
        raise SystemExit(3)

    await asyncio.gather(leave())


@app.task(name="isolated_hold", isolation="process")
def isolated_hold() -> None:
    """Waits for the story's word, in a child."""
    write("start")
    while not ledger.may_go():
        time.sleep(0.01)
    write("end")


@app.task(name="isolated_nap", isolation="process")
def isolated_nap(seconds: float) -> int:
    write("start")
    time.sleep(seconds)
    write("end")
    return os.getpid()
