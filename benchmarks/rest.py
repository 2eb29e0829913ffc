"""Cost at rest: what workers cost that have nothing to do."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from benchmarks.harness import Bench, Case, Column, Measures, Regime, workers
from benchmarks.steady import percent

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.harness import Workers
    from benchmarks.server import Database

_SETTLE = 2.0


def at_rest(count: int) -> Callable[[Bench], Measures]:
    """``count`` workers without any job; CPU of all, CPU of the server, statements per second."""

    def run(bench: Bench) -> Measures:
        with contextlib.ExitStack() as stack:
            database = stack.enter_context(bench.server.database())
            crew = stack.enter_context(workers(count, database, bench.tally(1)))
            return idle_cost(bench, database, crew)

    return run


def idle_cost(bench: Bench, database: Database, crew: Workers) -> dict[str, float | None]:
    """What workers and server use from here on, as nothing goes on."""
    time.sleep(_SETTLE if bench.size.rest > 1 else 0)
    counted, worker, server = queries(database), crew.cpu(), bench.server.cpu()
    began = time.monotonic()
    time.sleep(bench.size.rest)
    seconds = time.monotonic() - began
    worker, server_now = crew.cpu() - worker, bench.server.cpu()
    return {
        "worker_cpu": worker / seconds * 100,
        "server_cpu": percent(server, server_now, seconds),
        "queries_per_s": max(0, queries(database) - counted - 1) / seconds,
    }


def queries(database: Database) -> int:
    """Statements so far: from pg_stat_statements where it is; else commits, which the server tells up to 10 s late."""
    if database.server.statements:
        return int(database.value(
            "SELECT coalesce(sum(calls), 0)::bigint FROM pg_stat_statements"
            f" WHERE dbid = (SELECT oid FROM pg_database WHERE datname = '{database.name}')"
        ))  # fmt: skip
    return int(database.value(f"SELECT xact_commit FROM pg_stat_database WHERE datname = '{database.name}'"))


REGIME = Regime(
    "rest",
    "Cost at rest: idle workers",
    (
        Column("worker_cpu", "workers % of a core", ".2f", spread=True),
        Column("server_cpu", "server % of a core", ".2f", spread=True),
        Column("queries_per_s", "queries/s", ".1f", spread=True),
    ),
    (Case("nobody", at_rest(0)), Case("1 worker", at_rest(1)), Case("10 workers", at_rest(10))),
)
