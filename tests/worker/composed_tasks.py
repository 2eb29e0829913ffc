"""An app of whose tasks child processes need more than the function: resources, and batches run one by one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Iterator  # noqa: TC003 - read at run time
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict

from pgqueue import App, Settings, injected

app = App(settings=Settings(dsn="dbname=nowhere"))


def log_file() -> Path:
    """One for each test, whose database has a name of its own."""
    return Path(tempfile.gettempdir(), f"{conninfo_to_dict(app.settings.dsn or '')['dbname']}.log")


class Log:
    """Where resources and handlers say what they do, here and in child processes."""

    def __init__(self, name: str) -> None:
        self.name = name

    def say(self, what: str) -> None:
        with log_file().open("a") as file:
            file.write(f"{os.getpid()} {self.name} {what}\n")


class AsyncLog(Log):
    pass


@app.resource
def sync_log() -> Iterator[Log]:
    log = Log("sync")
    log.say("start")
    yield log
    log.say("close")


@app.resource
async def async_log(log: Log) -> AsyncIterator[AsyncLog]:
    made = AsyncLog("async")
    made.say("start")
    yield made
    log.say("still open")
    made.say("close")


@app.task(name="isolated", isolation="process")
def isolated(n: int, log: AsyncLog = injected) -> int:
    log.say(f"run {n}")
    return os.getpid()


@app.task(name="isolated async", isolation="process")
async def isolated_async(n: int, *, log: AsyncLog = injected) -> int:
    log.say(f"run {n}")
    return os.getpid()


@app.task(name="batched", batch=100, linger="1m")
def batched(items: list[int], log: Log = injected) -> list[int]:
    log.say(f"batch {items}")
    if 13 in items:
        os._exit(1)
    return [os.getpid() for _ in items]
