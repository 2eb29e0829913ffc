"""Drain: a queue is full, workers with default settings empty it. Verified: each job ran once and is in history."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from benchmarks import floors
from benchmarks.harness import Bench, Case, Column, Cost, Measures, Regime, Size, app_on, specs, wait_until, workers
from benchmarks.tasks import QUEUE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from benchmarks.server import Database
    from pgqueue import App, JobSpec

MANY = [f"bench-{nth}" for nth in range(100)]
FLOOR = "statements bare, 2 connections"


def _drain(task: str, processes: int, count: Callable[[Size], int], *, snapshot: bool = False) -> Case:
    kind = {"bench.noop": "async", "bench.sync": "sync (threads)", "bench.isolated": "isolated (child processes)"}[task]
    name = f"{processes} process{'es' * (processes > 1)}, {kind}{', held snapshot' * snapshot}"

    def run(bench: Bench) -> Measures:
        return drain(bench, task, processes, count(bench.size), snapshot=snapshot)

    return Case(name, run, FLOOR, when=lambda size: count(size) > 0 and (size.name != "smoke" or kind == "async"))


def _spread(name: str, queues: Sequence[str], priorities: int) -> Case:
    def make(count: int, task: str) -> list[JobSpec]:
        return [
            spec._replace(queue=queues[n % len(queues)], priority=n // len(queues) % priorities)
            for n, spec in enumerate(specs(count, task))
        ]

    def run(bench: Bench) -> Measures:
        return drain(bench, "bench.noop", 1, bench.size.drain, make=make, queues=queues)

    return Case(f"1 process, async, {name}", run, FLOOR, when=lambda size: size.name != "smoke")


def drain(
    bench: Bench,
    task: str,
    processes: int,
    jobs: int,
    *,
    snapshot: bool = False,
    make: Callable[..., list[JobSpec]] = specs,
    prepare: Callable[[App], object] = lambda _app: None,
    queues: Sequence[str] = (QUEUE,),
    reach: Callable[[Database], AbstractContextManager[str]] = lambda database: contextlib.nullcontext(database.dsn),
) -> Measures:
    """Fill the paused queues behind running workers, resume them, wait until the last outcome has landed.

    ``make`` makes the jobs, for ``queues``; ``reach`` prepares the database and answers the workers' way to it.
    """
    warm_up = min(floors.WARM_UP, jobs)
    tally = bench.tally(jobs + warm_up)
    with contextlib.ExitStack() as stack:
        database = stack.enter_context(bench.server.database())
        commits = _commits(database)
        dsn = stack.enter_context(reach(database))
        served = ",".join({QUEUE: None} | dict.fromkeys(queues))
        crew = stack.enter_context(workers(processes, database, tally, "--queues", served, dsn=dsn))
        app = app_on(database)
        stack.callback(app.close)
        prepare(app)
        if snapshot:
            holder = stack.enter_context(database.connect())
            holder.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
            holder.execute("SELECT count(*) FROM pgqueue.jobs")
        app.enqueue_many_sync(specs(warm_up, task, first=jobs), copy=True)
        tally.wait_for(warm_up)
        for queue in queues:
            app.client.pause(queue)
        app.enqueue_many_sync(make(jobs, task), copy=True)
        time.sleep(0.3)

        cost = Cost(database, crew.cpu)
        began = time.perf_counter()
        for queue in queues:
            app.client.resume(queue)
        tally.wait_for(jobs + warm_up)
        wait_until(lambda: not database.value("SELECT count(*) FROM pgqueue.leases"), lambda: "outcomes are missing")
        figures = cost.per_job(jobs, time.perf_counter() - began)
        figures["dead_tuples"] = float(_dead_tuples(database))
        _verify(database, tally.view, jobs + warm_up)
        crew.stop()
        figures["commits_per_1k"] = (_commits(database) - commits) * 1_000 / (jobs + warm_up)
    return figures


def _verify(database: Database, tally: memoryview, jobs: int) -> None:
    with database.connect() as connection:
        row = connection.execute(
            "SELECT (SELECT count(*) FROM pgqueue.jobs), count(DISTINCT id), count(*), sum(attempt)"
            " FROM pgqueue.history WHERE state = 'completed'"
        ).fetchone()
    assert row == (0, jobs, jobs, jobs), f"left, distinct, completed, attempts: {row}; expected {jobs}"
    again = len(tally) - bytes(tally).count(1)
    assert not again, f"{again} jobs did not run exactly once"


def _commits(database: Database) -> int:
    return int(database.value(f"SELECT xact_commit FROM pg_stat_database WHERE datname = '{database.name}'"))


def _dead_tuples(database: Database) -> int:
    """Index and heap entries that are still there although their jobs have left (0: vacuum has kept up)."""
    return int(database.value("SELECT n_dead_tup FROM pg_stat_user_tables WHERE relid = 'pgqueue.jobs'::regclass"))


REGIME = Regime(
    "drain",
    "Drain a full queue: no-op handlers, payload of about 100 bytes, default settings",
    (
        Column("jobs_per_s", "jobs/s", spread=True, ratio="more"),
        Column("worker_cpu_s_per_10k", "worker CPU s / 10k", ".2f"),
        Column("server_cpu_s_per_10k", "server CPU s / 10k", ".2f"),
        Column("wal_bytes_per_job", "WAL B / job"),
        Column("commits_per_1k", "commits / 1k", ".1f"),
        Column("dead_tuples", "dead tuples"),
    ),
    (
        Case(FLOOR, floors.statements_bare),
        _drain("bench.noop", 1, lambda size: size.drain),
        _drain("bench.noop", 2, lambda size: size.drain),
        _drain("bench.noop", 1, lambda size: size.drain, snapshot=True),
        _drain("bench.sync", 1, lambda size: size.drain // 2),
        _drain("bench.isolated", 1, lambda size: size.isolated),
        _spread("10 priorities", (QUEUE,), priorities=10),
        _spread("100 queues of 10 priorities", MANY, priorities=10),
    ),
)
