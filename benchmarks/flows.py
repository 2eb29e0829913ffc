"""Workflows beside plain jobs: what an edge and a counter cost, and whether a large batch costs more per job."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from benchmarks import floors
from benchmarks.harness import Bench, Case, Column, Cost, Measures, Regime, app_on, specs, wait_until, workers
from benchmarks.tasks import QUEUE

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.server import Database
    from pgqueue import App
    from pgqueue.job import JobSpec

FLOOR = "plain jobs, 1 process"
CHAIN = 10


def _plain(app: App, jobs: list[JobSpec]) -> None:
    for start in range(0, len(jobs), 5_000):
        app.enqueue_many_sync(jobs[start : start + 5_000])


def _batch(app: App, jobs: list[JobSpec]) -> None:
    app.batch(jobs[:-1]).then(jobs[-1]).enqueue_sync()


def _fan_out(app: App, jobs: list[JobSpec]) -> None:
    flow = app.workflow()
    first = flow.add(jobs[0])
    for job in jobs[1:]:
        flow.add(job, after=[first])
    flow.enqueue_sync()


def _chains(app: App, jobs: list[JobSpec]) -> None:
    flow = app.workflow()
    for start in range(0, len(jobs), CHAIN):
        before = [flow.add(jobs[start])]
        for job in jobs[start + 1 : start + CHAIN]:
            before = [flow.add(job, after=before)]
    flow.enqueue_sync()


def _case(name: str, enqueue: Callable[[App, list[JobSpec]], None], processes: int, share: float = 1.0) -> Case:
    title = f"{name}, {processes} process{'es' * (processes > 1)}"
    return Case(
        title,
        lambda bench: flow(bench, enqueue, processes, int(bench.size.drain * share)),
        None if title == FLOOR else FLOOR,
        when=lambda size: size.name != "smoke" or processes == 1,
    )


def flow(bench: Bench, enqueue: Callable[[App, list[JobSpec]], None], processes: int, jobs: int) -> Measures:
    """Enqueue behind running workers into a paused queue; resume it, wait until the last outcome has landed."""
    warm_up = min(floors.WARM_UP, jobs)
    tally = bench.tally(jobs + warm_up)
    with contextlib.ExitStack() as stack:
        database = stack.enter_context(bench.server.database())
        crew = stack.enter_context(workers(processes, database, tally))
        app = app_on(database)
        stack.callback(app.close)
        app.enqueue_many_sync(specs(warm_up, first=jobs), copy=True)
        tally.wait_for(warm_up)
        app.client.pause(QUEUE)
        cost = Cost(database, crew.cpu)
        began = time.perf_counter()
        enqueue(app, specs(jobs))
        entering = cost.per_job(jobs, time.perf_counter() - began)
        time.sleep(0.3)

        cost = Cost(database, crew.cpu)
        began = time.perf_counter()
        app.client.resume(QUEUE)
        tally.wait_for(jobs + warm_up)
        wait_until(lambda: not database.value("SELECT count(*) FROM pgqueue.leases"), lambda: "outcomes are missing")
        figures = cost.per_job(jobs, time.perf_counter() - began)
        _verify(database, jobs + warm_up)
        figures["enqueue_cpu_s_per_10k"] = entering["server_cpu_s_per_10k"]
        figures["deadlocks"] = float(
            database.value(f"SELECT deadlocks FROM pg_stat_database WHERE datname = '{database.name}'")
        )
        figures["dead_tuples"] = float(
            database.value("SELECT n_dead_tup FROM pg_stat_user_tables WHERE relid = 'pgqueue.batches'::regclass")
        )
        crew.stop()
    return figures


def _verify(database: Database, jobs: int) -> None:
    with database.connect() as connection:
        row = connection.execute(
            "SELECT (SELECT count(*) FROM pgqueue.jobs), (SELECT count(*) FROM pgqueue.dependencies),"
            " count(DISTINCT id), sum(attempt),"
            " (SELECT coalesce(sum(total - completed), 0)::bigint FROM pgqueue.batches)"
            " FROM pgqueue.history WHERE state = 'completed'"
        ).fetchone()
    assert row == (0, 0, jobs, jobs, 0), f"live, edges, completed, attempts, uncounted: {row}; expected {jobs}"


REGIME = Regime(
    "flows",
    "Workflows beside plain jobs: no-op handlers, payload of about 100 bytes, default settings, jobs sent as JSON",
    (
        Column("enqueue_cpu_s_per_10k", "enqueue: server CPU s / 10k", ".2f", ratio="less"),
        Column("jobs_per_s", "drain: jobs/s", spread=True),
        Column("worker_cpu_s_per_10k", "worker CPU s / 10k", ".2f"),
        Column("server_cpu_s_per_10k", "server CPU s / 10k", ".2f", ratio="less"),
        Column("wal_bytes_per_job", "WAL B / job"),
        Column("deadlocks", "deadlocks"),
        Column("dead_tuples", "dead batch rows"),
    ),
    (
        _case("plain jobs", _plain, 1),
        _case("plain jobs", _plain, 4),
        _case("a batch of a tenth", _batch, 1, 0.1),
        _case("a batch", _batch, 1),
        _case("a batch", _batch, 2),
        _case("a batch", _batch, 4),
        _case(f"chains of {CHAIN}", _chains, 1),
        _case("all after one, a tenth", _fan_out, 1, 0.1),
        _case("all after one", _fan_out, 1),
    ),
)
