"""Steady load: 1,000 jobs a second, with and without a held snapshot; and the claim as dead rows pile up."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import secrets
import statistics
import threading
import time
from typing import TYPE_CHECKING, Any

from benchmarks import floors
from benchmarks.harness import Bench, Case, Column, Measures, Regime, app_on, percentile, specs, wait_until, workers
from benchmarks.tasks import QUEUE, TEXT, stamp
from pgqueue import statements
from pgqueue.connection import run as run_statement
from pgqueue.outcome import COMPLETED
from pgqueue.settings import Settings
from pgqueue.worker.link import PINNED
from pgqueue.worker.marks import Marks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection

    import psycopg

    from benchmarks.server import Database
    from pgqueue.statements import Lanes

RATE = 1_000
CLEAN = f"{RATE:,} jobs/s"
MARKED = "claims with marks"
_THREADS = 4
_CLAIM = 100
_SPAWN = multiprocessing.get_context("spawn")


@contextlib.contextmanager
def held_snapshot(database: Database) -> Iterator[None]:
    """An idle repeatable-read transaction that has a snapshot: vacuum can remove nothing that dies after this."""
    with database.connect() as connection:
        connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        connection.execute("SELECT count(*) FROM pgqueue.jobs")
        yield


# -- a worker under steady load --------------------------------------------------------------------------------------


def steady(*, snapshot: bool) -> Callable[[Bench], Measures]:
    """Four clients of one process enqueue on schedule; a worker in another process runs."""

    def run(bench: Bench) -> Measures:
        count = int(RATE * bench.size.steady)
        tally = bench.tally(8 * (count + _THREADS))
        with contextlib.ExitStack() as stack:
            database = stack.enter_context(bench.server.database())
            if snapshot:
                stack.enter_context(held_snapshot(database))
            crew = stack.enter_context(workers(1, database, tally))
            stack.enter_context(contextlib.closing(app_on(database)))
            ours, theirs = _SPAWN.Pipe()
            producer = _SPAWN.Process(target=_produce, args=(theirs, database.dsn, count), daemon=True)
            producer.start()
            theirs.close()
            ours.recv()  # connected
            worker_cpu, server_cpu = crew.cpu(), bench.server.cpu()
            claims = _ClaimTimes(database)
            ours.send("go")
            while not ours.poll(1.0):
                claims.look()
            committed: list[tuple[int, int]] = ours.recv()
            times = tally.times()
            wait_until(lambda: all(times[n] for n, _ in committed), lambda: "jobs are missing")
            seconds = (max(at for _, at in committed) - min(at for _, at in committed)) / 1e9
            waits = [(times[n] - at) / 1e6 for n, at in committed]
            figures: dict[str, float | None] = {
                "p50_ms": percentile(waits, 0.5),
                "p99_ms": percentile(waits, 0.99),
                "p999_ms": percentile(waits, 0.999),
                "jobs_per_s": len(committed) / seconds,
                "worker_cpu": (crew.cpu() - worker_cpu) / seconds * 100,
                "server_cpu": _percent(server_cpu, bench.server.cpu(), seconds),
            }
            return figures | claims.first_and_last()

    return run


def _produce(pipe: Connection, dsn: str, count: int) -> None:
    """Enqueue number n at n milliseconds past the start; answers when each commit had come back."""
    stamp.app.configure(Settings(dsn=dsn))
    committed: list[list[tuple[int, int]]] = [[] for _ in range(_THREADS)]
    ready, go = threading.Barrier(_THREADS + 1), threading.Barrier(_THREADS + 1)
    began = 0.0

    def client(nth: int) -> None:
        stamp.enqueue_sync(n=count + nth, text=TEXT)
        ready.wait(60)
        go.wait(60)
        for n in range(nth, count, _THREADS):
            pause = began + n / RATE - time.monotonic()
            if pause > 0:
                time.sleep(pause)
            stamp.enqueue_sync(n=n, text=TEXT)
            committed[nth].append((n, time.monotonic_ns()))

    threads = [threading.Thread(target=client, args=(nth,), daemon=True) for nth in range(_THREADS)]
    for thread in threads:
        thread.start()
    ready.wait(60)
    pipe.send("ready")
    pipe.recv()
    began = time.monotonic() + 0.1
    go.wait(60)
    for thread in threads:
        thread.join()
    pipe.send([one for part in committed for one in part])
    stamp.app.close()


def _percent(then: float | None, now: float | None, seconds: float) -> float | None:
    return None if then is None or now is None else (now - then) / seconds * 100


class _ClaimTimes:
    """What the server says that claims took, second by second (needs pg_stat_statements)."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._looks: list[tuple[int, float]] = []
        self.look()

    def look(self) -> None:
        if self._database.server.statements:
            with self._database.connect() as connection:
                row: Any = connection.execute(
                    "SELECT coalesce(sum(calls), 0)::bigint, coalesce(sum(total_exec_time), 0) FROM pg_stat_statements"
                    " WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database())"
                    " AND query LIKE '%INSERT INTO pgqueue.leases%'"
                ).fetchone()
            self._looks.append((int(row[0]), float(row[1])))

    def first_and_last(self) -> dict[str, float | None]:
        self.look()
        looks = self._looks
        means = [
            (later[1] - earlier[1]) / (later[0] - earlier[0])
            for earlier, later in itertools.pairwise(looks)
            if later[0] > earlier[0]
        ]
        return {"claim_first_ms": means[0] if means else None, "claim_last_ms": means[-1] if means else None}


# -- the claim itself ------------------------------------------------------------------------------------------------


def pile(*, marks: bool) -> Callable[[Bench], Measures]:
    """Claim and finish in hundreds under a held snapshot until every row is dead; how long do claims take?"""

    def run(bench: Bench) -> Measures:
        with contextlib.ExitStack() as stack:
            database = stack.enter_context(bench.server.database())
            app = app_on(database)
            with contextlib.closing(app):
                app.enqueue_many_sync(specs(bench.size.marks), copy=True)
            time.sleep(0.3)  # older than the marks' lag
            stack.enter_context(held_snapshot(database))
            connection = stack.enter_context(database.connect())
            _pin_plans(connection)
            took = _claim_all(connection, bench.size.marks, marks=marks)
            share = max(1, len(took) // 10)
            return {
                "claim_first_ms": statistics.median(took[:share]),
                "claim_last_ms": statistics.median(took[-share:]),
                "dead_rows": float(bench.size.marks),
            }

    return run


def _claim_all(connection: psycopg.Connection[Any], jobs: int, *, marks: bool) -> list[float]:
    memory = Marks([QUEUE])
    row = connection.execute("SELECT extract(epoch FROM clock_timestamp())::float8").fetchone()
    assert row is not None
    memory.set_clock(row[0])
    took: list[float] = []
    done = 0
    while done < jobs:
        lanes: Lanes = memory.lanes(full=not marks, turn=0)
        token = secrets.randbits(62) + 1
        claim = statements.claim(lanes, None, _CLAIM, token, floors.LEASE, "bare", schema="pgqueue")
        began = time.perf_counter()
        rows = run_statement(connection, claim)
        took.append((time.perf_counter() - began) * 1e3)
        memory.advance(rows)
        landings = [(one[2], token, COMPLETED) for one in rows]
        run_statement(connection, statements.finish(landings, [token], schema="pgqueue"))
        done += len(rows)
    return took


def _pin_plans(connection: psycopg.Connection[Any]) -> None:
    connection.execute(PINNED, prepare=False)
    connection.prepare_threshold = 0


REGIME = Regime(
    "steady",
    "Steady load: from the commit of enqueue to the start of the handler (claims: of 100, until all rows are dead)",
    (
        Column("p50_ms", "p50 ms", ".2f", spread=True, ratio="less"),
        Column("p99_ms", "p99 ms", ".1f", spread=True, ratio="less"),
        Column("p999_ms", "p99.9 ms", ".1f"),
        Column("jobs_per_s", "jobs/s"),
        Column("worker_cpu", "worker CPU %", ".0f"),
        Column("server_cpu", "server CPU %", ".0f"),
        Column("claim_first_ms", "first claim ms", ".2f"),
        Column("claim_last_ms", "last claim ms", ".2f"),
        Column("dead_rows", "dead rows"),
    ),
    (
        Case(CLEAN, steady(snapshot=False)),
        Case(f"{CLEAN}, held snapshot", steady(snapshot=True), CLEAN),
        Case(f"{MARKED}, held snapshot", pile(marks=True)),
        Case("claims without, held snapshot", pile(marks=False)),
    ),
)
