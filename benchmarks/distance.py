"""Distance: the same work with commits that do not wait for the disk, and with a server some milliseconds away."""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from psycopg import sql

from benchmarks.drain import drain
from benchmarks.enqueue import repeat
from benchmarks.harness import Bench, Case, Column, Measures, Regime, app_on, percentile, specs, workers
from benchmarks.latency import sample
from benchmarks.tasks import TEXT, noop, stamp
from benchmarks.wire import delayed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from benchmarks.server import Database

HERE = "here"
PROXY = "through the proxy at once"
_BULK = 1_000


def near(database: Database) -> AbstractContextManager[str]:
    """As it is."""
    return contextlib.nullcontext(database.dsn)


@contextlib.contextmanager
def unsafe(database: Database) -> Iterator[str]:
    """``synchronous_commit = off`` for all sessions: a crash of the server may lose the last commits."""
    with database.connect() as connection:
        name = sql.Identifier(database.name)
        connection.execute(sql.SQL("ALTER DATABASE {} SET synchronous_commit = off").format(name))
    yield database.dsn


def away(round_trip: float) -> Callable[[Database], AbstractContextManager[str]]:
    """So many seconds there and back."""
    return lambda database: delayed(database.dsn, round_trip)


def throughput(reach: Callable[[Database], AbstractContextManager[str]]) -> Callable[[Bench], Measures]:
    """Clients and workers on this way: one by one, in bulk, idle latency; then a full queue is drained."""

    def run(bench: Bench) -> Measures:
        with bench.server.database() as database, reach(database) as dsn:
            figures = _clients(bench, replace(database, dsn=dsn)) | _latency(bench, replace(database, dsn=dsn))
        drained = drain(bench, "bench.noop", 1, bench.size.drain // 2, reach=reach)
        return figures | drained

    return run


def _clients(bench: Bench, database: Database) -> dict[str, float | None]:
    with database.connect() as connection:
        trips, _ = repeat(lambda _n: connection.execute("SELECT 1"), bench.size.one_by_one / 4)
    with contextlib.closing(app_on(database)) as app:
        for n in range(10):  # connected, prepared
            noop.enqueue_sync(n=n, text=TEXT)
        took, seconds = repeat(lambda n: noop.enqueue_sync(n=n, text=TEXT), bench.size.one_by_one)
        chunks, bulk_seconds = repeat(lambda _n: app.enqueue_many_sync(specs(_BULK)), bench.size.one_by_one)
    return {
        "round_trip_ms": percentile(trips, 0.5) * 1e3,
        "enqueue_per_s": len(took) / seconds,
        "enqueue_p50_ms": percentile(took, 0.5) * 1e3,
        "bulk_per_s": len(chunks) * _BULK / bulk_seconds,
    }


def _latency(bench: Bench, database: Database) -> dict[str, float | None]:
    """From the call of enqueue to the start of the handler; both are away."""
    with database.connect() as connection:
        connection.execute("TRUNCATE pgqueue.jobs CASCADE")
    count = bench.size.latency // 2
    tally = bench.tally(8 * (count + 10))
    with workers(1, database, tally), contextlib.closing(app_on(database)):
        time.sleep(0.3)
        figures = sample(count, lambda n: stamp.enqueue_sync(n=n, text=TEXT), tally.times())
    return {"start_p50_ms": figures["p50_ms"], "start_p99_ms": figures["p99_ms"]}


REGIME = Regime(
    "distance",
    "Commits that do not wait for the disk, and a server that is away from clients and workers",
    (
        Column("round_trip_ms", "round trip ms", ".2f"),
        Column("enqueue_per_s", "enqueue one by one: jobs/s", spread=True, ratio="more"),
        Column("enqueue_p50_ms", "p50 ms", ".2f"),
        Column("bulk_per_s", "1,000 at a time: jobs/s", spread=True, ratio="more"),
        Column("start_p50_ms", "idle → start p50 ms", ".1f"),
        Column("start_p99_ms", "p99 ms", ".1f"),
        Column("jobs_per_s", "drain: jobs/s", spread=True, ratio="more"),
        Column("server_cpu_s_per_10k", "server CPU s / 10k", ".2f"),
    ),
    (
        Case(HERE, throughput(near)),
        Case("synchronous_commit off", throughput(unsafe), HERE),
        Case(PROXY, throughput(away(0))),
        Case("1 ms away", throughput(away(0.001)), PROXY),
        Case("10 ms away", throughput(away(0.01)), PROXY),
    ),
)
