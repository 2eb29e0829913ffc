"""Idle latency: nothing to do; one job is enqueued; when does its handler start? Both on this machine's one clock."""

from __future__ import annotations

import contextlib
import random
import secrets
import threading
import time
from typing import TYPE_CHECKING

from benchmarks import floors
from benchmarks.harness import Bench, Case, Column, Measures, Regime, app_on, percentile, wait_until, workers
from benchmarks.tasks import QUEUE, TEXT, stamp
from pgqueue import statements
from pgqueue.connection import run as run_statement

if TYPE_CHECKING:
    from benchmarks.server import Database

FLOOR = "INSERT + NOTIFY, LISTEN, claim, psycopg"
_WARM_UP = 5


def wake_bare(bench: Bench) -> Measures:
    """The least a woken listener needs: NOTIFY in the commit, LISTEN, one claim; two threads of this process."""
    woken: list[int] = []
    with bench.server.database() as database, database.connect() as connection:
        stopping = threading.Event()
        listener = threading.Thread(target=_listen, args=(database, woken, stopping), daemon=True)
        listener.start()
        insert = floors.insert_one(connection)

        def enqueue(n: int) -> None:
            with connection.transaction():
                insert(n)
                connection.execute("SELECT pg_notify('bench', '')")

        time.sleep(0.5)
        figures = sample(bench.size.latency, enqueue, woken)
        stopping.set()
        listener.join()
    return figures


def idle_latency(bench: Bench) -> Measures:
    """A worker in another process; the sync client here."""
    count = bench.size.latency + _WARM_UP
    tally = bench.tally(8 * count)
    with contextlib.ExitStack() as stack:
        database = stack.enter_context(bench.server.database())
        stack.enter_context(workers(1, database, tally))
        stack.enter_context(contextlib.closing(app_on(database)))
        return sample(bench.size.latency, lambda n: stamp.enqueue_sync(n=n, text=TEXT), tally.times())


def sample(count: int, enqueue: object, started: list[int] | memoryview) -> Measures:
    """Enqueue now and then; how long until each job has started?"""
    waits, calls = [], []
    for n in range(count + _WARM_UP):
        time.sleep(random.uniform(0.04, 0.12))
        called = time.monotonic_ns()
        enqueue(n)  # type: ignore[operator]
        calls.append((time.monotonic_ns() - called) / 1e6)
        wait_until(lambda n=n: len(started) > n and started[n] > 0, lambda n=n: f"job {n} did not start", 0.001)  # type: ignore[misc]
        waits.append((started[n] - called) / 1e6)
    waits, calls = waits[_WARM_UP:], calls[_WARM_UP:]
    return {
        "p50_ms": percentile(waits, 0.5),
        "p90_ms": percentile(waits, 0.9),
        "p99_ms": percentile(waits, 0.99),
        "max_ms": max(waits),
        "call_p50_ms": percentile(calls, 0.5),
        "samples": float(count),
    }


def _listen(database: Database, woken: list[int], stopping: threading.Event) -> None:
    lanes = floors.whole_queue()
    with database.connect() as listening, database.connect() as claiming:
        listening.execute("LISTEN bench")
        claiming.execute("SET plan_cache_mode = force_generic_plan")
        while not stopping.is_set():
            for _ in listening.notifies(timeout=0.5, stop_after=1):
                claim = statements.claim(
                    lanes, None, 50, secrets.randbits(62) + 1, floors.LEASE, "bare", schema="pgqueue"
                )
                rows = run_statement(claiming, claim)
                woken.extend(time.monotonic_ns() for _ in rows)


REGIME = Regime(
    "latency",
    "Idle latency: from the call of enqueue to the start of the handler in another process",
    (
        Column("p50_ms", "p50 ms", ".2f", spread=True, ratio="less"),
        Column("p90_ms", "p90 ms", ".2f"),
        Column("p99_ms", "p99 ms", ".2f", spread=True),
        Column("max_ms", "max ms", ".1f"),
        Column("call_p50_ms", "enqueue call, p50 ms", ".2f"),
        Column("samples", "samples a round"),
    ),
    (Case(FLOOR, wake_bare), Case(f"pgqueue, a worker on queue {QUEUE!r}", idle_latency, FLOOR)),
)
