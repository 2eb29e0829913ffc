"""The floors: what bare SQL does on this server with the same rows, without handlers, worker or client library."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg

from benchmarks.harness import Bench, Cost, Measures, app_on, specs
from benchmarks.tasks import QUEUE, TEXT
from pgqueue import statements
from pgqueue.outcome import COMPLETED
from pgqueue.statements import Lanes
from pgqueue.worker.link import PINNED
from pgqueue.worker.supervisor import _loop_factory

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.server import Database
    from pgqueue.statements import Statement

T = TypeVar("T")

LEASE = timedelta(seconds=30)
INSERT = "INSERT INTO pgqueue.jobs (task, payload, queue) VALUES (%s, %s, %s) RETURNING id"
COPY = "COPY pgqueue.jobs (task, payload, queue) FROM STDIN"
WARM_UP = 1_000
_BATCH = 1_000
_AHEAD = 2


def insert_one(connection: psycopg.Connection) -> Callable[[int], object]:
    """What one INSERT and its commit takes, as a function of the job's number."""

    def insert(n: int) -> object:
        payload = f'{{"n": {n}, "text": "{TEXT}"}}'
        return connection.execute(INSERT, ("bench.noop", payload, QUEUE)).fetchone()

    return insert


def copy_bare(bench: Bench) -> Measures:
    """COPY of all rows as text in one transaction, from psycopg."""
    rows = "".join(f'bench.noop\t{{"n": {n}, "text": "{TEXT}"}}\t{QUEUE}\n' for n in range(bench.size.bulk))
    data = rows.encode()
    with bench.server.database() as database, database.connect() as connection:
        cost = Cost(database, time.process_time)
        began = time.perf_counter()
        with connection.cursor() as cursor, cursor.copy(COPY) as copy:
            copy.write(data)
        return cost.per_job(bench.size.bulk, time.perf_counter() - began)


def statements_bare(bench: Bench) -> Measures:
    """The worker's two statements, claim and finish, on two overlapped connections, as fast as they go."""
    jobs = bench.size.drain
    with bench.server.database() as database:
        app = app_on(database)
        with contextlib.closing(app), asyncio.Runner(loop_factory=_loop_factory()) as runner:
            claiming, finishing = runner.run(_connect(database)), runner.run(_connect(database))
            app.enqueue_many_sync(specs(WARM_UP), copy=True)
            runner.run(_drive(claiming, finishing, WARM_UP))
            app.enqueue_many_sync(specs(jobs), copy=True)
            cost = Cost(database, time.process_time)
            figures = cost.per_job(jobs, runner.run(_drive(claiming, finishing, jobs)))
            runner.run(claiming.close())
            runner.run(finishing.close())
        left = database.value("SELECT count(*) FROM pgqueue.jobs")
        landed = database.value("SELECT count(*) FROM pgqueue.history WHERE state = 'completed'")
        assert (left, landed) == (0, jobs + WARM_UP), f"{left} jobs left, {landed} in history"
    return figures


def whole_queue() -> Lanes:
    """Where a claim without marks looks: each priority of the benchmark's queue, from the start."""
    return Lanes([QUEUE] * 10, list(range(10)), [None] * 10, [0] * 10)


async def _drive(claiming: psycopg.AsyncConnection[Any], finishing: psycopg.AsyncConnection[Any], jobs: int) -> float:
    claimed: asyncio.Queue[tuple[int, list[int]]] = asyncio.Queue(_AHEAD)

    async def claim() -> None:
        taken, mark = 0, None
        while taken < jobs:
            token = secrets.randbits(62) + 1
            lanes = whole_queue()
            if mark is not None:  # the rows all have one priority: begin behind the last one
                lanes.mark_ats[5], lanes.mark_ids[5] = mark
            rows = await _run(
                claiming, statements.claim(lanes, ["bench.noop"], _BATCH, token, LEASE, "bare", schema="pgqueue")
            )
            mark = rows[-1][1], rows[-1][2]
            taken += len(rows)
            await claimed.put((token, [row[2] for row in rows]))

    async def finish() -> None:
        landed = 0
        while landed < jobs:
            token, ids = await claimed.get()
            landings = [(job_id, token, COMPLETED) for job_id in ids]
            lost = await _run(finishing, statements.finish(landings, [token], schema="pgqueue"))
            assert not lost
            landed += len(ids)

    began = time.perf_counter()
    await asyncio.gather(claim(), finish())
    return time.perf_counter() - began


async def _connect(database: Database) -> psycopg.AsyncConnection[Any]:
    connection = await psycopg.AsyncConnection.connect(database.dsn, autocommit=True, prepare_threshold=0)
    await connection.execute(PINNED, prepare=False)
    return connection


async def _run(connection: psycopg.AsyncConnection[Any], statement: Statement[T]) -> T:
    async with connection.cursor(binary=True) as cursor:
        await cursor.execute(statement.sql, statement.params)
        return statement.read(await cursor.fetchall())
