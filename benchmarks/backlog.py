"""A backlog: does what waits, now or for later or in lines, cost those who claim beside it?

The same jobs are claimed from an empty queue and from the front of a full one. First by the worker's own statements on
one bare connection, then by a worker. A queue with keys is claimed from in another way, so it has a floor of its own.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.cycles import CLAIM, CLAIM_KEYED, Cycles, ServerTime
from benchmarks.harness import Bench, Case, Column, Cost, Measures, Regime, app_on, workers
from benchmarks.tasks import QUEUE, TEXT

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.server import Database

EMPTY = "empty"
EMPTY_KEYED = "empty, with keys"
_CLAIM = 100
_FILL = """
    INSERT INTO pgqueue.jobs (task, queue, payload, run_at, group_key)
    SELECT 'bench.noop', %(queue)s, jsonb_build_object('n', %(first)s + n, 'text', %(text)s::text),
        now() + %(start)s::interval + n * interval '1 ms', CASE WHEN %(keyed)s THEN 'key' || %(first)s + n END
    FROM generate_series(0, %(count)s - 1) n
"""


@dataclass(frozen=True)
class Waiting:
    """What waits in the queue, as shares of the size's backlog. ``keyed``: what is claimed has keys, too."""

    available: float = 0
    scheduled: float = 0
    keys: float = 0
    keyed: bool = False


def backlog(waiting: Waiting) -> Callable[[Bench], Measures]:
    """Claims of one and of a hundred, idle looks, then a worker; all beside what waits."""

    def run(bench: Bench) -> Measures:
        with bench.server.database() as database:
            numbers = _fill_behind(database, waiting, bench.size.backlog)
            figures = _claims(database, waiting, numbers, _rounds(bench))
            return figures | _worker(bench, database, waiting, numbers)

    return run


def _rounds(bench: Bench) -> int:
    return 10 if bench.size.name == "smoke" else 100


def _fill_behind(database: Database, waiting: Waiting, size: int) -> int:
    """The backlog, all due after the jobs that will be claimed; answers how many of it may run."""
    due, keys = int(waiting.available * size), int(waiting.keys * size)
    _fill(database, 0, due, "-1 h")
    _fill(database, due, keys, "-1 h", keyed=True)
    _fill(database, 0, int(waiting.scheduled * size), "1 day")
    return due + keys


def _fill(database: Database, first: int, count: int, start: str, *, keyed: bool = False) -> None:
    parameters = {"queue": QUEUE, "first": first, "count": count, "text": TEXT, "start": start, "keyed": keyed}
    with database.connect() as connection:
        connection.execute(_FILL, parameters)


def _claims(database: Database, waiting: Waiting, first: int, rounds: int) -> dict[str, float | None]:
    """The statements alone. Claims of one are what a lightly loaded worker sends, claims of a hundred a busy one."""
    _fill(database, first, rounds * (_CLAIM + 1), "-3 h", keyed=waiting.keyed)
    with database.connect() as connection:
        connection.execute("VACUUM (ANALYZE) pgqueue.jobs")  # the filling's own garbage is not what is measured
        connection.execute("CHECKPOINT")
        cycles = Cycles(connection, [QUEUE], ["bench.noop"])
        claim = cycles.claim_keyed if waiting.keyed else cycles.claim
        server = ServerTime(database, CLAIM_KEYED if waiting.keyed else CLAIM)
        hundreds = [claim(_CLAIM)[0] for _ in range(rounds)]
        _, buffers = server.per_call()
        singles = [claim(1)[0] for _ in range(rounds)]
        single_server, single_buffers = server.per_call()
        looks = [cycles.look(full=True) for _ in range(rounds)]
    return {
        "claim_100_ms": statistics.median(hundreds),
        "buffers_100": buffers,
        "claim_1_ms": statistics.median(singles),
        "claim_1_server_ms": single_server,
        "buffers_1": single_buffers,
        "look_ms": statistics.median(looks),
    }


def _worker(bench: Bench, database: Database, waiting: Waiting, behind: int) -> dict[str, float | None]:
    """A warm worker takes a fixed number of jobs from the front."""
    jobs = bench.size.drain // 2
    warm = jobs // 10
    tally = bench.tally(behind + warm + jobs)
    with contextlib.closing(app_on(database)) as app:
        app.client.pause(QUEUE)
        _fill(database, behind, warm, "-3 h", keyed=waiting.keyed)
        with workers(1, database, tally) as crew:
            app.client.resume(QUEUE)
            tally.wait_for(warm)
            app.client.pause(QUEUE)
            _fill(database, behind + warm, jobs, "-2 h", keyed=waiting.keyed)
            time.sleep(0.3)
            cost, before = Cost(database, crew.cpu), tally.ran()
            began = time.perf_counter()
            app.client.resume(QUEUE)
            tally.wait_for(before + jobs)
            return cost.per_job(tally.ran() - before, time.perf_counter() - began)


def _case(name: str, waiting: Waiting) -> Case:
    floor = EMPTY_KEYED if waiting.keyed else EMPTY
    return Case(name, backlog(waiting), None if name == floor else floor)


REGIME = Regime(
    "backlog",
    "Claims from the front of a backlog; full size: 1,000,000 due, 1,000,000 for later, 100,000 keys",
    (
        Column("claim_1_ms", "claim of 1, ms", ".3f", spread=True, ratio="less"),
        Column("claim_1_server_ms", "on the server", ".3f"),
        Column("buffers_1", "buffers", ".0f"),
        Column("claim_100_ms", "of 100, ms", ".2f", spread=True, ratio="less"),
        Column("buffers_100", "buffers", ".0f"),
        Column("look_ms", "idle look, ms", ".3f", ratio="less"),
        Column("jobs_per_s", "a worker: jobs/s", spread=True, ratio="more"),
        Column("server_cpu_s_per_10k", "server CPU s / 10k", ".2f", ratio="less"),
    ),
    (
        _case(EMPTY, Waiting()),
        _case("many due", Waiting(1)),
        _case("… and for later", Waiting(1, 1)),
        _case("… and keys", Waiting(1, 1, 0.1)),
        _case(EMPTY_KEYED, Waiting(keyed=True)),
        _case("all of it, with keys", Waiting(1, 1, 0.1, keyed=True)),
    ),
)
