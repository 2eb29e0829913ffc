"""The tasks that the benchmark's workers run: no-ops that say in shared memory that they ran.

Each job has a number ``n``; its handler adds one to byte ``n`` of the tally (so a job that ran twice shows), or writes
the time at which it started to slot ``n``. No database, no lock, no system call in the handler.
The one that naps writes how often and when it started to two slots of job ``n``.
"""

from __future__ import annotations

import asyncio
import functools
import mmap
import os
import time
from pathlib import Path

from pgqueue import App

QUEUE = "bench"
TALLY = "BENCHMARKS_TALLY"
TEXT = "x" * 76  # with the rest of the payload about 100 bytes of JSON

app = App()


@functools.cache
def tally() -> memoryview:
    """The shared file: a byte per job."""
    return map_file(Path(os.environ[TALLY]))


@functools.cache
def starts() -> memoryview:
    """The same file as times: eight bytes per job."""
    return tally().cast("q")


def map_file(path: Path) -> memoryview:
    """A file as shared memory."""
    with path.open("r+b") as file:
        return memoryview(mmap.mmap(file.fileno(), 0))


@app.task(name="bench.noop", queue=QUEUE)
async def noop(n: int, text: str) -> None:  # noqa: ARG001
    """Nothing, on the event loop."""
    tally()[n] += 1


@app.task(name="bench.sync", queue=QUEUE)
def noop_sync(n: int, text: str) -> None:  # noqa: ARG001
    """Nothing, in a thread."""
    tally()[n] += 1


@app.task(name="bench.isolated", queue=QUEUE, isolation="process")
def noop_isolated(n: int, text: str) -> None:  # noqa: ARG001
    """Nothing, in a child process."""
    tally()[n] += 1


@app.task(name="bench.stamp", queue=QUEUE)
async def stamp(n: int, text: str) -> None:  # noqa: ARG001
    """Write down when it started."""
    starts()[n] = time.monotonic_ns()


NAP = 0.02


@app.task(name="bench.nap", queue=QUEUE)
async def nap(n: int, text: str) -> None:  # noqa: ARG001
    """Write down that it started, and when; then take its time, so that there is always something in flight."""
    starts()[2 * n] += 1
    starts()[2 * n + 1] = time.monotonic_ns()
    await asyncio.sleep(NAP)
