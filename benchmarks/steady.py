"""Steady load: 1,000 jobs a second, with and without a held snapshot, and 5,000; the claim as dead rows pile up."""

from __future__ import annotations

import contextlib
import multiprocessing
import statistics
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.cycles import CLAIM, Cycles, ServerTime
from benchmarks.harness import Bench, Case, Column, Measures, Regime, app_on, percentile, specs, wait_until, workers
from benchmarks.tasks import QUEUE, TEXT, stamp
from pgqueue.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from multiprocessing.connection import Connection

    from benchmarks.harness import Tally, Workers
    from benchmarks.server import Database

RATE = 1_000
CLEAN = f"{RATE:,} jobs/s"
MARKED = "claims with marks"
THREADS = 4
_CLAIM = 100
_SPAWN = multiprocessing.get_context("spawn")


def one(database: Database, tally: Tally) -> AbstractContextManager[Workers]:
    """One worker."""
    return workers(1, database, tally)


@contextlib.contextmanager
def held_snapshot(database: Database) -> Iterator[None]:
    """An idle repeatable-read transaction that has a snapshot: vacuum can remove nothing that dies after this."""
    with database.connect() as connection:
        connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        connection.execute("SELECT count(*) FROM pgqueue.jobs")
        yield


# -- a worker under steady load --------------------------------------------------------------------------------------


def steady(
    rate: int = RATE,
    *,
    each: int = 1,
    snapshot: bool = False,
    crew: Callable[[Database, Tally], AbstractContextManager[Workers]] = one,
) -> Callable[[Bench], Measures]:
    """Four clients of one process enqueue on schedule, ``each`` jobs in a transaction; other processes work."""

    def run(bench: Bench) -> Measures:
        count = int(rate * bench.size.steady)
        tally = bench.tally(8 * (count + THREADS * each))
        with contextlib.ExitStack() as stack:
            database = stack.enter_context(bench.server.database())
            if snapshot:
                stack.enter_context(held_snapshot(database))
            team = stack.enter_context(crew(database, tally))
            stack.enter_context(contextlib.closing(app_on(database)))
            producer = stack.enter_context(Producer.ready(database, count, rate, each))
            worker_cpu, server_cpu = team.cpu(), bench.server.cpu()
            claims = _ClaimTimes(database)
            producer.start()
            while not producer.done(1.0):
                claims.look()
            calls = sorted(producer.calls(), key=lambda call: call.first)
            times = tally.times()
            wait_until(lambda: all(times[n] for n in range(count)), lambda: "jobs are missing")
            seconds = (max(call.ended for call in calls) - min(call.ended for call in calls)) / 1e9
            waits = [(times[n] - call.ended) / 1e6 for call in calls for n in range(call.first, call.first + each)]
            figures: dict[str, float | None] = {
                "p50_ms": percentile(waits, 0.5),
                "p99_ms": percentile(waits, 0.99),
                "p999_ms": percentile(waits, 0.999),
                "p50_end_ms": percentile(waits[-len(waits) // 10 :], 0.5),
                "jobs_per_s": count / seconds,
                "worker_cpu": (team.cpu() - worker_cpu) / seconds * 100,
                "server_cpu": percent(server_cpu, bench.server.cpu(), seconds),
            }
            return figures | claims.first_and_last()

    return run


@dataclass(frozen=True)
class Call:
    """One call of enqueue: the first job's number, when it began and when it came back (the commit), in ns."""

    first: int
    began: int
    ended: int


class Producer:
    """Enqueues on schedule, in a process of its own; nobody's fault but the engine's when it falls behind."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    @classmethod
    @contextlib.contextmanager
    def ready(cls, database: Database, count: int, rate: int, each: int = 1) -> Iterator[Producer]:
        """Connected; ``count`` jobs will come, ``rate`` a second."""
        ours, theirs = _SPAWN.Pipe()
        process = _SPAWN.Process(target=_produce, args=(theirs, database.dsn, count, rate, each), daemon=True)
        process.start()
        theirs.close()
        try:
            ours.recv()
            yield cls(ours)
        finally:
            process.kill()
            process.join()

    def start(self) -> None:
        """Go."""
        self._pipe.send("go")

    def done(self, seconds: float) -> bool:
        """Whether it has enqueued all, waiting up to this long for it."""
        return self._pipe.poll(seconds)

    def calls(self) -> list[Call]:
        """Every call, when it is done."""
        return [Call(*call) for call in self._pipe.recv()]


def _produce(pipe: Connection, dsn: str, count: int, rate: int, each: int) -> None:
    """Enqueue number n when its time has come; answers of each call the first number, its begin and its end."""
    stamp.app.configure(Settings(dsn=dsn))
    calls: list[list[tuple[int, int, int]]] = [[] for _ in range(THREADS)]
    ready, go = threading.Barrier(THREADS + 1), threading.Barrier(THREADS + 1)
    began = 0.0

    def enqueue(first: int) -> None:
        if each == 1:
            stamp.enqueue_sync(n=first, text=TEXT)
        else:
            stamp.app.enqueue_many_sync(specs(each, stamp.name, first))

    def client(nth: int) -> None:
        enqueue(count + nth * each)
        ready.wait(60)
        go.wait(60)
        for first in range(nth * each, count, THREADS * each):
            pause = began + first / rate - time.monotonic()
            if pause > 0:
                time.sleep(pause)
            called = time.monotonic_ns()
            enqueue(first)
            calls[nth].append((first, called, time.monotonic_ns()))

    threads = [threading.Thread(target=client, args=(nth,), daemon=True) for nth in range(THREADS)]
    for thread in threads:
        thread.start()
    ready.wait(60)
    pipe.send("ready")
    pipe.recv()
    began = time.monotonic() + 0.1
    go.wait(60)
    for thread in threads:
        thread.join()
    pipe.send([one for part in calls for one in part])
    stamp.app.close()


def percent(then: float | None, now: float | None, seconds: float) -> float | None:
    """Of a core, between two looks at a CPU."""
    return None if then is None or now is None else (now - then) / seconds * 100


class _ClaimTimes:
    """What the server says that claims took, second by second (needs pg_stat_statements)."""

    def __init__(self, database: Database) -> None:
        self._claims = ServerTime(database, CLAIM)
        self._means: list[float] = []

    def look(self) -> None:
        mean, _ = self._claims.per_call()
        if mean is not None:
            self._means.append(mean)

    def first_and_last(self) -> dict[str, float | None]:
        self.look()
        means = self._means or [None]
        return {"claim_first_ms": means[0], "claim_last_ms": means[-1]}


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
            cycles = Cycles(stack.enter_context(database.connect()), [QUEUE])
            took, done = [], 0
            while done < bench.size.marks:
                milliseconds, rows = cycles.claim(_CLAIM, full=not marks)
                took.append(milliseconds)
                done += len(rows)
            share = max(1, len(took) // 10)
            return {
                "claim_first_ms": statistics.median(took[:share]),
                "claim_last_ms": statistics.median(took[-share:]),
                "dead_rows": float(bench.size.marks),
            }

    return run


REGIME = Regime(
    "steady",
    "Steady load: from the commit of enqueue to the start of the handler (claims: of 100, until all rows are dead)",
    (
        Column("p50_ms", "p50 ms", ".2f", spread=True, ratio="less"),
        Column("p99_ms", "p99 ms", ".1f", spread=True, ratio="less"),
        Column("p999_ms", "p99.9 ms", ".1f"),
        Column("p50_end_ms", "p50 of the last tenth", ".2f"),
        Column("jobs_per_s", "jobs/s"),
        Column("worker_cpu", "worker CPU %", ".0f"),
        Column("server_cpu", "server CPU %", ".0f"),
        Column("claim_first_ms", "first claim ms", ".2f"),
        Column("claim_last_ms", "last claim ms", ".2f"),
        Column("dead_rows", "dead rows"),
    ),
    (
        Case(CLEAN, steady()),
        Case(f"{CLEAN}, held snapshot", steady(snapshot=True), CLEAN),
        Case("5,000 jobs/s, 25 a transaction", steady(5_000, each=25), CLEAN, when=lambda size: size.name != "smoke"),
        Case(f"{MARKED}, held snapshot", pile(marks=True)),
        Case("claims without, held snapshot", pile(marks=False)),
    ),
)
