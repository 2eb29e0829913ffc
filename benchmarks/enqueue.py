"""Enqueue: one by one from one client and from many, and in bulk; beside INSERT + commit and COPY from psycopg."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import threading
import time
from typing import TYPE_CHECKING, Any, Literal

import psycopg

from benchmarks import floors
from benchmarks.harness import Bench, Case, Column, Cost, Measures, Regime, app_on, percentile, specs, workers
from benchmarks.tasks import QUEUE, TEXT, noop
from pgqueue import statements
from pgqueue.settings import Settings
from pgqueue.worker.supervisor import _loop_factory

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

    from benchmarks.server import Database
    from pgqueue import App

ONE = "INSERT + commit, psycopg"
BULK = "COPY in one transaction, psycopg"
_SPAWN = multiprocessing.get_context("spawn")
_PROCESSES = 4
Kind = Literal["insert", "client"]
Worker = Literal["none", "working", "idle"]


# -- one client ------------------------------------------------------------------------------------------------------


def insert_one_by_one(bench: Bench) -> Measures:
    """INSERT + commit from one psycopg connection."""
    with bench.server.database() as database, database.connect() as connection:
        return _measure(database, floors.insert_one(connection), bench.size.one_by_one)


def sync_client(bench: Bench) -> Measures:
    """``task.enqueue_sync`` one by one."""
    with bench.server.database() as database:
        app = app_on(database)
        with contextlib.closing(app):
            return _measure(database, lambda n: noop.enqueue_sync(n=n, text=TEXT), bench.size.one_by_one)


def async_client(bench: Bench) -> Measures:
    """``await task.enqueue`` one by one."""
    with bench.server.database() as database:
        app = app_on(database)
        cost = Cost(database, time.process_time)
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            took, seconds = runner.run(_enqueue_for(app, bench.size.one_by_one))
        return _figures(cost, took, seconds)


async def _enqueue_for(app: App, seconds: float) -> tuple[list[float], float]:
    took: list[float] = []
    await noop.enqueue(n=0, text=TEXT)
    began = before = time.perf_counter()
    while before - began < seconds:
        await noop.enqueue(n=0, text=TEXT)
        now = time.perf_counter()
        took.append(now - before)
        before = now
    await app.aclose()
    return took, before - began


def _measure(database: Database, enqueue: Callable[[int], object], seconds: float) -> Measures:
    for n in range(10):  # connected, prepared
        enqueue(n)
    cost = Cost(database, time.process_time)
    took, elapsed = repeat(enqueue, seconds)
    return _figures(cost, took, elapsed)


def repeat(enqueue: Callable[[int], object], seconds: float) -> tuple[list[float], float]:
    took: list[float] = []
    began = before = time.perf_counter()
    while before - began < seconds:
        enqueue(len(took))
        now = time.perf_counter()
        took.append(now - before)
        before = now
    return took, before - began


def _figures(cost: Cost, took: list[float], seconds: float) -> dict[str, float | None]:
    figures = cost.per_job(len(took), seconds)
    return figures | {"p50_ms": percentile(took, 0.5) * 1e3, "p99_ms": percentile(took, 0.99) * 1e3}


# -- many clients ----------------------------------------------------------------------------------------------------


def many(kind: Kind, clients: int, worker: Worker = "none") -> Callable[[Bench], Measures]:
    """``clients`` threads in four processes, each with a connection of its own, enqueue one by one."""

    def run(bench: Bench) -> Measures:
        with contextlib.ExitStack() as stack:
            database = stack.enter_context(bench.server.database())
            if worker != "none":
                stack.enter_context(workers(1, database, bench.tally(1)))
                app = app_on(database)
                stack.callback(app.close)
                if worker == "idle":  # its bell is armed all the time: every enqueue finds somebody to wake
                    app.client.pause(QUEUE)
                    time.sleep(0.3)
            return _many_clients(database, kind, clients, bench.size.one_by_one)

    return run


def _many_clients(database: Database, kind: Kind, clients: int, seconds: float) -> Measures:
    ready = _SPAWN.Barrier(_PROCESSES + 1)
    pipes: list[Connection] = []
    for _ in range(_PROCESSES):
        ours, theirs = _SPAWN.Pipe()
        arguments = (theirs, ready, database.dsn, kind, clients // _PROCESSES, seconds)
        _SPAWN.Process(target=_client_process, args=arguments, daemon=True).start()
        theirs.close()
        pipes.append(ours)
    ready.wait(60)
    cost = Cost(database, lambda: 0.0)
    answers = [pipe.recv() for pipe in pipes]
    took = [one for answer in answers for one in answer[0]]
    cpu = sum(answer[1] for answer in answers)
    return _figures(cost, took, seconds) | {"worker_cpu_s_per_10k": cpu * 10_000 / len(took)}


def _client_process(pipe: Connection, ready: Any, dsn: str, kind: Kind, threads: int, seconds: float) -> None:
    """A process of clients; answers how long each call took, and the CPU it used."""
    noop.app.configure(Settings(dsn=dsn))
    took: list[list[float]] = [[] for _ in range(threads)]
    go = threading.Barrier(threads + 1)

    def client(nth: int) -> None:
        with psycopg.connect(dsn, autocommit=True) as connection:
            insert = floors.insert_one(connection)
            enqueue = insert if kind == "insert" else lambda n: noop.enqueue_sync(n=n, text=TEXT)
            for n in range(10):
                enqueue(n)
            go.wait()
            took[nth], _ = repeat(enqueue, seconds)

    running = [threading.Thread(target=client, args=(nth,), daemon=True) for nth in range(threads)]
    for thread in running:
        thread.start()
    ready.wait(60)
    before = time.process_time()
    go.wait(60)
    for thread in running:
        thread.join()
    pipe.send(([one for part in took for one in part], time.process_time() - before))
    noop.app.close()


# -- in bulk ---------------------------------------------------------------------------------------------------------


def bulk(chunk: int | None, *, copy: bool) -> Callable[[Bench], Measures]:
    """``enqueue_many`` in chunks, or all at once; one transaction each."""

    def run(bench: Bench) -> Measures:
        jobs = specs(bench.size.bulk)
        size = chunk or len(jobs)
        with bench.server.database() as database:
            app = app_on(database)
            with contextlib.closing(app):
                app.enqueue_many_sync(specs(10), copy=copy)
                cost = Cost(database, time.process_time)
                began = time.perf_counter()
                for first in range(0, len(jobs), size):
                    app.enqueue_many_sync(jobs[first : first + size], copy=copy)
                figures = cost.per_job(len(jobs), time.perf_counter() - began)
            assert database.value("SELECT count(*) FROM pgqueue.jobs") == len(jobs) + 10
        return figures

    return run


def gathered(count: int) -> Callable[[Bench], Measures]:
    """What the async client sends for ``count`` callers that came together, lot after lot."""

    def run(bench: Bench) -> Measures:
        jobs = specs(bench.size.bulk)
        with bench.server.database() as database, contextlib.closing(app_on(database)) as app:
            app.enqueue_many_sync(specs(10))
            cost = Cost(database, time.process_time)
            began = time.perf_counter()
            for first in range(0, len(jobs), count):
                lot = jobs[first : first + count]
                app.client.database.run(statements.submit_together(lot, schema="pgqueue"))
            figures = cost.per_job(len(jobs), time.perf_counter() - began)
            assert database.value("SELECT count(*) FROM pgqueue.jobs") == len(jobs) + 10
        return figures

    return run


REGIME = Regime(
    "enqueue",
    "Enqueue jobs with a payload of about 100 bytes",
    (
        Column("jobs_per_s", "jobs/s", spread=True, ratio="more"),
        Column("p50_ms", "p50 ms", ".2f"),
        Column("p99_ms", "p99 ms", ".2f"),
        Column("worker_cpu_s_per_10k", "client CPU s / 10k", ".2f"),
        Column("server_cpu_s_per_10k", "server CPU s / 10k", ".2f"),
        Column("wal_bytes_per_job", "WAL B / job"),
    ),
    (
        Case(ONE, insert_one_by_one),
        Case("sync client", sync_client, ONE),
        Case("async client", async_client, ONE),
        Case(f"{ONE}, 8 clients", many("insert", 8)),
        Case("8 clients", many("client", 8), f"{ONE}, 8 clients"),
        Case(f"{ONE}, 32 clients", many("insert", 32)),
        Case("32 clients", many("client", 32), f"{ONE}, 32 clients"),
        Case("32 clients, a worker at work", many("client", 32, "working"), "32 clients"),
        Case("32 clients, a worker always idle", many("client", 32, "idle"), "32 clients"),
        Case(BULK, floors.copy_bare),
        Case("enqueue_many, 31 at a time", bulk(31, copy=False), BULK),
        Case("gathered, 4 at a time", gathered(4), BULK),
        Case("gathered, 31 at a time", gathered(31), BULK),
        Case("enqueue_many, 1,000 at a time", bulk(1_000, copy=False), BULK),
        Case("COPY, 1,000 at a time", bulk(1_000, copy=True), BULK),
        Case("COPY, all at once", bulk(None, copy=True), BULK),
    ),
)
