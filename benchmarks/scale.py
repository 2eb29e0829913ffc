"""Scale: what more workers, more listeners and more queues cost the server."""

from __future__ import annotations

import contextlib
import multiprocessing
import selectors
import statistics
import time
from typing import TYPE_CHECKING

import psycopg

from benchmarks.cycles import CLAIM, Cycles, ServerTime
from benchmarks.harness import Bench, Case, Column, Measures, Regime, Tally, app_on, percentile, specs, workers
from benchmarks.rest import idle_cost
from benchmarks.rest import queries as statements_so_far
from benchmarks.steady import RATE, Producer, percent, steady
from benchmarks.tasks import QUEUE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from multiprocessing.connection import Connection

    from benchmarks.harness import Workers
    from benchmarks.server import Database

_SPAWN = multiprocessing.get_context("spawn")
_CLAIM = 100


# -- more workers ----------------------------------------------------------------------------------------------------


def crowd(count: int) -> Callable[[Database, Tally], AbstractContextManager[Workers]]:
    """``count`` workers, ten in a process: see :mod:`benchmarks.crowd`."""
    each = min(count, 10)

    def start(database: Database, tally: Tally) -> AbstractContextManager[Workers]:
        return workers(count // each, database, tally, str(each), module=("benchmarks.crowd",), each=each)

    return start


def idle(count: int) -> Callable[[Bench], Measures]:
    """Nothing to do."""

    def run(bench: Bench) -> Measures:
        with bench.server.database() as database, crowd(count)(database, bench.tally(1)) as crew:
            figures = idle_cost(bench, database, crew)
            return figures | {"connections": _connections(database)}

    return run


def _connections(database: Database) -> float:
    return float(database.value(
        "SELECT count(*) - 1 FROM pg_stat_activity"
        " WHERE datname = current_database() AND backend_type = 'client backend'"
    ))  # fmt: skip


# -- more listeners --------------------------------------------------------------------------------------------------


def listeners(count: int) -> Callable[[Bench], Measures]:
    """1,000 enqueues a second, each rings for a worker that is always idle; so many others hear it and do nothing."""

    def run(bench: Bench) -> Measures:
        jobs = int(RATE * bench.size.steady)
        with contextlib.ExitStack() as stack:
            database = stack.enter_context(bench.server.database())
            app = stack.enter_context(contextlib.closing(app_on(database)))
            app.client.pause(QUEUE)
            stack.enter_context(workers(1, database, bench.tally(1)))
            stack.enter_context(_listening(database, count))
            producer = stack.enter_context(Producer.ready(database, jobs, RATE))
            time.sleep(0.3)
            counted, server = statements_so_far(database), bench.server.cpu()
            producer.start()
            while not producer.done(60):
                pass
            calls = producer.calls()
            seconds = (max(call.ended for call in calls) - min(call.began for call in calls)) / 1e9
            took = [(call.ended - call.began) / 1e6 for call in calls]
            return {
                "enqueue_p50_ms": percentile(took, 0.5),
                "enqueue_p99_ms": percentile(took, 0.99),
                "jobs_per_s": jobs / seconds,
                "server_cpu": percent(server, bench.server.cpu(), seconds),
                "queries_per_s": (statements_so_far(database) - counted) / seconds,
            }

    return run


@contextlib.contextmanager
def _listening(database: Database, count: int) -> Iterator[None]:
    ours, theirs = _SPAWN.Pipe()
    process = _SPAWN.Process(target=_listen, args=(theirs, database.dsn, count), daemon=True)
    process.start()
    theirs.close()
    try:
        ours.recv()
        yield
    finally:
        process.kill()
        process.join()


def _listen(pipe: Connection, dsn: str, count: int) -> None:
    """Connections that hear what the workers' bells hear, and take it off the socket."""
    with selectors.DefaultSelector() as selector:
        for _ in range(count):
            connection = psycopg.connect(dsn, autocommit=True)
            connection.execute('LISTEN "pgqueue.wake"')
            selector.register(connection.fileno(), selectors.EVENT_READ, connection.pgconn)
        pipe.send("ready")
        while True:
            for key, _ in selector.select(None if count else 60):
                key.data.consume_input()
                while key.data.notifies() is not None:
                    pass


# -- more queues -----------------------------------------------------------------------------------------------------


def queues(count: int) -> Callable[[Bench], Measures]:
    """One worker's claims and idle looks, then its cost at rest, with so many queues; jobs lie in all of them."""
    names = [QUEUE, *(f"bench-{nth}" for nth in range(1, count))]

    def run(bench: Bench) -> Measures:
        rounds = 10 if bench.size.name == "smoke" else 50
        with bench.server.database() as database:
            _fill(database, names, 2 * rounds * (_CLAIM + 1))
            with database.connect() as connection:
                connection.execute("VACUUM (ANALYZE) pgqueue.jobs")
                cycles = Cycles(connection, names, ["bench.noop"])
                hundreds = [cycles.claim(_CLAIM)[0] for _ in range(rounds)]
                server = ServerTime(database, CLAIM)
                singles = [cycles.claim(1)[0] for _ in range(rounds)]
                on_server, _ = server.per_call()
                connection.execute("TRUNCATE pgqueue.jobs CASCADE")
                empty = [cycles.claim(1)[0] for _ in range(rounds)]
                looks = [cycles.look() for _ in range(rounds)]
            with workers(1, database, bench.tally(1), "--queues", ",".join(names)) as crew:
                figures = idle_cost(bench, database, crew)
        return figures | {
            "claim_100_ms": statistics.median(hundreds),
            "claim_1_ms": statistics.median(singles),
            "claim_1_server_ms": on_server,
            "claim_0_ms": statistics.median(empty),
            "look_ms": statistics.median(looks),
        }

    return run


def _fill(database: Database, names: list[str], jobs: int) -> None:
    with contextlib.closing(app_on(database)) as app:
        spread = [spec._replace(queue=names[n % len(names)]) for n, spec in enumerate(specs(jobs))]
        app.enqueue_many_sync(spread, copy=True)
    time.sleep(0.3)  # older than the marks' lag


WORKERS = "1 idle worker"
LISTENERS = "bells heard by 1 worker"
QUEUES = "1 worker, 1 queue"

REGIME = Regime(
    "scale",
    "Scale: workers at rest and at 1,000 jobs/s, others that hear 1,000 bells/s, queues of one worker",
    (
        Column("server_cpu", "server % of a core", ".1f", spread=True),
        Column("queries_per_s", "queries/s", ".0f"),
        Column("worker_cpu", "workers % of a core", ".1f"),
        Column("connections", "connections"),
        Column("p50_ms", "start p50 ms", ".1f"),
        Column("p99_ms", "p99 ms", ".1f"),
        Column("jobs_per_s", "jobs/s"),
        Column("enqueue_p50_ms", "enqueue p50 ms", ".2f"),
        Column("enqueue_p99_ms", "p99 ms", ".1f"),
        Column("claim_0_ms", "claim of none, ms", ".2f"),
        Column("claim_1_ms", "of 1", ".2f", ratio="less"),
        Column("claim_1_server_ms", "on the server", ".2f"),
        Column("claim_100_ms", "of 100", ".2f"),
        Column("look_ms", "idle look ms", ".2f"),
    ),
    (
        Case(WORKERS, idle(1)),
        Case("10 idle workers", idle(10), WORKERS),
        Case("50 idle workers", idle(50), WORKERS, when=lambda size: size.name != "smoke"),
        Case(f"{RATE:,} jobs/s, 1 worker", steady(crew=crowd(1))),
        Case(f"{RATE:,} jobs/s, 10 workers", steady(crew=crowd(10))),
        Case(f"{RATE:,} jobs/s, 50 workers", steady(crew=crowd(50)), when=lambda size: size.name != "smoke"),
        Case(LISTENERS, listeners(0)),
        Case("and by 10 others", listeners(10), LISTENERS),
        Case("and by 100 others", listeners(100), LISTENERS),
        Case(QUEUES, queues(1)),
        Case("10 queues", queues(10), QUEUES),
        Case("100 queues", queues(100), QUEUES),
        Case("1,000 queues", queues(1_000), QUEUES),
    ),
)
