"""The scenarios' tasks and some more: handlers whose own writes commit with the job; a worker whose clock is wrong."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from datetime import datetime, timedelta
from typing import Any

from scenarios.scenario_tasks import app, write

from pgqueue import Fixed, Job

EFFECTS = "CREATE TABLE IF NOT EXISTS effects (job bigint NOT NULL, token bigint NOT NULL, attempt int NOT NULL)"


def _token(job: Job) -> int:
    assert job._run is not None
    return job._run.token


@app.task(name="transact", retry=Fixed("50ms"))
async def transact(job: Job, seconds: float = 0.0) -> None:
    """Its effect is a row, committed with the completion. The ledger's ``end`` comes before the commit."""
    write("start")
    async with job.transaction() as connection:
        await connection.execute("INSERT INTO effects VALUES (%s, %s, %s)", [job.id, _token(job), job.attempt])
        await asyncio.sleep(seconds)
        write("end")


@app.task(name="transact_thread", retry=Fixed("50ms"))
def transact_thread(job: Job, seconds: float = 0.0) -> None:
    write("start")
    with job.transaction() as connection:
        connection.execute("INSERT INTO effects VALUES (%s, %s, %s)", [job.id, _token(job), job.attempt])
        time.sleep(seconds)
        write("end")


@app.task(name="flaky", retry=Fixed("20ms"))
async def flaky(job: Job, failures: int = 1) -> int:
    """Fails so many times, then completes."""
    write("start")
    if job.attempt <= failures:
        raise ValueError(f"attempt {job.attempt}")
    write("end")
    return job.attempt


@app.task(name="parent")
async def parent(children: int = 1) -> list[int]:
    """Enqueues from inside a handler, through the worker's own pool."""
    write("start")
    jobs = await app.enqueue_many([nap_job(n) for n in range(children)])
    write("end")
    return [job.id for job in jobs]


def nap_job(_nth: int) -> Any:
    return app.get_task("nap").job(seconds=0)


@app.task(name="what_time")
def what_time() -> float:
    """The clock of this process, so that a story can be sure that it is wrong."""
    write("start")
    write("end")
    return time.time()


@app.task(name="reporting")
async def reporting(job: Job, seconds: float) -> None:
    """Reports its progress, and is renewed, while it runs."""
    write("start")
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        job.progress(min(1.0, 1 - left / seconds), "on its way")
        await asyncio.sleep(0.05)
    write("end")


class _Wrong(type):
    def __instancecheck__(cls, other: object) -> bool:
        return isinstance(other, datetime)


def _set_clock_wrong(seconds: float) -> None:
    """Where libfaketime is not installed: the clocks that Python code reads are moved in this process."""
    real = time.time
    time.time = lambda: real() + seconds

    class Wrong(datetime, metaclass=_Wrong):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) + timedelta(seconds=seconds)

    for name, module in list(sys.modules.items()):
        if name.split(".")[0] == "pgqueue" and getattr(module, "datetime", None) is datetime:
            module.datetime = Wrong  # type: ignore[attr-defined]


if offset := os.environ.get("CHAOS_CLOCK"):
    _set_clock_wrong(float(offset))
