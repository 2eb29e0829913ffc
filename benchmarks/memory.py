"""Memory: what one worker process holds when it has started, and after many jobs."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from benchmarks import floors
from benchmarks.harness import Bench, Case, Column, Measures, Regime, app_on, specs, wait_until, workers

if TYPE_CHECKING:
    from collections.abc import Callable

_CHUNK = 50_000


def memory(task: str, share: float = 1) -> Callable[[Bench], Measures]:
    """One worker; a tenth of the jobs, then the rest, enqueued in chunks so that the queue is never far from empty."""

    def run(bench: Bench) -> Measures:
        jobs = int(bench.size.memory * share)
        warm_up = min(floors.WARM_UP, jobs)
        tally = bench.tally(warm_up + jobs)
        with contextlib.ExitStack() as stack:
            database = stack.enter_context(bench.server.database())
            crew = stack.enter_context(workers(1, database, tally))
            app = stack.enter_context(contextlib.closing(app_on(database)))

            def run_up_to(count: int) -> float:
                for first in range(tally.ran(), count, _CHUNK):
                    app.enqueue_many_sync(specs(min(_CHUNK, count - first), task, first), copy=True)
                    tally.wait_for(min(first + _CHUNK, count))
                wait_until(
                    lambda: not database.value("SELECT count(*) FROM pgqueue.leases"), lambda: "outcomes are missing"
                )
                return crew.memory()

            figures: dict[str, float | None] = {"idle_mib": crew.memory(), "warm_mib": run_up_to(warm_up)}
            figures["tenth_mib"] = run_up_to(warm_up + jobs // 10)
            figures["all_mib"] = run_up_to(warm_up + jobs)
            figures["jobs"] = float(jobs)
        return figures

    return run


REGIME = Regime(
    "memory",
    "Memory of one worker process: resident, without what it shares with files; no-op handlers",
    (
        Column("idle_mib", "idle MiB", ".1f"),
        Column("warm_mib", "after 1,000 jobs", ".1f"),
        Column("tenth_mib", "after a tenth", ".1f", spread=True),
        Column("all_mib", "after all", ".1f", spread=True),
        Column("jobs", "jobs"),
    ),
    (
        Case("async", memory("bench.noop")),
        Case("sync (threads)", memory("bench.sync")),
    ),
)
