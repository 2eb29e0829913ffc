"""What the tests of the worker share: apps with short times, workers that end with the test, waiting for events."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg

from pgqueue import App, Settings, Worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from pgqueue import Job, JobRecord

T = TypeVar("T")

LEASE = 2.0  # where a lease must run out; elsewhere it is so long that no noise makes it
PATIENCE = 30.0  # for machines under load; a wait ends with its event
TERMINATE_ALL = """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()"""


def make_app(dsn: str, **settings: Any) -> App:
    """An app whose workers look often."""
    times = {"lease_duration": 30.0, "lease_check_interval": 0.2, "poll_interval": 0.2, "shutdown_timeout": 10.0}
    values = {name: timedelta(seconds=settings.pop(name, default)) for name, default in times.items()}
    return App(settings=Settings(dsn=dsn, **values, **settings))


@asynccontextmanager
async def working(app: App, **options: Any) -> AsyncIterator[Worker]:
    """A worker at work; stopped at the end, its own errors raised."""
    worker = Worker(app, **options)
    running = asyncio.create_task(worker.run())
    started = asyncio.create_task(worker.started.wait())
    await asyncio.wait([running, started], return_when=asyncio.FIRST_COMPLETED)
    try:
        yield worker
    finally:
        started.cancel()
        worker.stop(now=True)
        await asyncio.wait_for(running, 60)


async def until(look: Callable[[], Awaitable[T] | T], what: str, within: float = PATIENCE) -> T:
    """Look every 10 ms until the answer is true, and return it."""
    end = time.monotonic() + within
    while True:
        answer: Any = look()
        if asyncio.iscoroutine(answer):
            answer = await answer
        if answer:
            return answer  # type: ignore[no-any-return]
        assert time.monotonic() < end, f"not within {within} s: {what}"
        await asyncio.sleep(0.01)


async def in_state(job: Job, *states: str, within: float = PATIENCE) -> JobRecord:
    """Wait until the job is in one of these states."""
    record: JobRecord | None = None

    async def look() -> JobRecord | None:
        nonlocal record
        record = await job.refresh()
        return record if record.state in states else None

    try:
        return await until(look, "", within)
    except AssertionError:
        raise AssertionError(f"{job} is not {' or '.join(states)} within {within} s but: {record}") from None


async def query(dsn: str, sql: str, *params: Any) -> list[tuple[Any, ...]]:
    """Rows of one statement on a connection of its own."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        cursor = await connection.execute(sql, params or None)  # type: ignore[call-overload]
        return await cursor.fetchall() if cursor.description else []


async def execute(dsn: str, sql: str, *params: Any) -> None:
    """One statement on a connection of its own."""
    await query(dsn, sql, *params)
