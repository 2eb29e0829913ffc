"""``python -m benchmarks.crowd COUNT``: so many workers in one process, as coroutines of one event loop.

For what a crowd costs the server; a user starts one worker per process.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys

from benchmarks.tasks import app
from pgqueue.settings import Settings
from pgqueue.worker import Worker
from pgqueue.worker.supervisor import _loop_factory


async def crowd(count: int) -> None:
    """Run them until SIGTERM."""
    app.configure(Settings(dsn=os.environ["PGQUEUE_DSN"]))
    workers = [Worker(app, name=f"{os.getpid()}-{nth}") for nth in range(count)]
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: [worker.stop() for worker in workers])
    await asyncio.gather(*(worker.run() for worker in workers))
    await app.aclose()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(crowd(int(sys.argv[1])))
