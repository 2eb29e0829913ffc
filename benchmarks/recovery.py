"""Recovery: a worker is killed or the server restarts under load. How long until the rate is back? What ran twice?

Jobs fall due at a steady pace (so that no producer has to be recovered, too), or a queue is full and the slots are what
limits; each takes 20 ms, so that there is always something in flight. Default lease and sweep, but for the smoke size.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.harness import Bench, Case, Column, Measures, Regime, wait_until, workers
from benchmarks.server import open_server
from benchmarks.tasks import NAP, QUEUE, TEXT
from pgqueue.errors import EmbeddedServerError
from pgqueue.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.harness import Tally, Workers
    from benchmarks.server import Database, Server

Event = Literal["kill", "fast", "immediate"]
_RESTORED = 0.95
_WINDOW, _STEP = 0.5, 0.05
_FILL = """
    INSERT INTO pgqueue.jobs (task, queue, payload, run_at)
    SELECT 'bench.nap', %(queue)s, jsonb_build_object('n', n, 'text', %(text)s::text),
        now() + n * %(apart)s * interval '1 second'
    FROM generate_series(0, %(count)s - 1) n
"""


@dataclass(frozen=True)
class Plan:
    """How much load, and for how long before and after the event."""

    rate: float
    before: float
    after: float
    lived: float
    settings: Settings

    @property
    def environment(self) -> dict[str, str]:
        """The settings for workers."""
        return {
            "PGQUEUE_LEASE_DURATION": f"{self.settings.lease_duration.total_seconds():g}s",
            "PGQUEUE_LEASE_CHECK_INTERVAL": f"{self.settings.lease_check_interval.total_seconds():g}s",
        }


def _plan(bench: Bench) -> Plan:
    if bench.size.name == "smoke":
        return Plan(200, 1, 2, 0, Settings.load({}, lease_duration="2s", lease_check_interval="0.5s"))
    return Plan(1_000, 4, 12, 11, Settings())  # lived: a supervisor starts what lived for ten seconds again at once


def kill_one_of_two(bench: Bench) -> Measures:
    """Two workers; the load is one that one of them can carry; one is killed."""
    return _measure(bench, bench.server, "kill", _due_at_a_pace(_plan(bench)))


def kill_under_a_supervisor(bench: Bench) -> Measures:
    """``--processes 2`` on a full queue, as fast as a hundred slots go; one process is killed and started again."""
    return _measure(bench, bench.server, "kill", _all_due(_plan(bench)), supervised=True)


def restart(mode: Literal["fast", "immediate"]) -> Callable[[Bench], Measures]:
    """Two workers; the server, one of this case's own, is stopped and started again."""

    def run(bench: Bench) -> Measures:
        with contextlib.ExitStack() as stack:
            try:
                server = stack.enter_context(open_server(None))
            except EmbeddedServerError:  # nothing but the server of --dsn, which is not ours to stop
                return {}
            return _measure(bench, server, mode, _due_at_a_pace(_plan(bench)))

    return run


@dataclass(frozen=True)
class _Load:
    """So many jobs, due this many seconds apart."""

    count: int
    apart: float


def _due_at_a_pace(plan: Plan) -> _Load:
    return _Load(int(plan.rate * (plan.before + plan.after)), 1 / plan.rate)


def _all_due(plan: Plan) -> _Load:
    return _Load(int(2 * 50 / NAP * (plan.before + plan.after / 2)), 0)


def _measure(bench: Bench, server: Server, event: Event, load: _Load, *, supervised: bool = False) -> Measures:
    plan = _plan(bench)
    tally = bench.tally(16 * load.count)
    with server.database() as database, _crew(database, tally, plan, supervised=supervised) as crew:
        time.sleep(plan.lived if supervised else 0.5)
        with database.connect() as connection:
            connection.execute(_FILL, {"queue": QUEUE, "text": TEXT, "count": load.count, "apart": load.apart})
        wait_until(lambda: any(tally.times()[1::2]), lambda: "no job has started")
        time.sleep(plan.before)
        at = time.monotonic_ns()
        held = _strike(event, database, crew)
        down: float | None = (time.monotonic_ns() - at) / 1e9
        wait_until(lambda: not database.value("SELECT count(*) FROM pgqueue.jobs"), lambda: "jobs are left", pause=0.1)
        figures = _figures(tally, at, plan, held)
        figures["lost"] = load.count - float(
            database.value("SELECT count(DISTINCT id) FROM pgqueue.history WHERE state = 'completed'")
        )
    assert not figures["lost"], f"{figures['lost']:.0f} jobs are lost"
    if event == "kill":
        down = None
    else:
        figures["again_s"] = None  # nobody lost a lease
    return figures | {
        "down_s": down,
        "lease_s": plan.settings.lease_duration.total_seconds(),
        "sweep_s": plan.settings.lease_check_interval.total_seconds(),
    }


@contextlib.contextmanager
def _crew(database: Database, tally: Tally, plan: Plan, *, supervised: bool) -> Iterator[Workers]:
    count, words = (1, ["--processes", "2"]) if supervised else (2, [])
    with workers(count, database, tally, *words, each=2 // count, settings=plan.environment) as crew:
        yield crew


def _strike(event: Event, database: Database, crew: Workers) -> set[int]:
    """Do it; answers the jobs that were in flight: of the worker that was killed, or of all."""
    if event == "kill":
        with database.connect() as connection:
            row = connection.execute("SELECT name, pid FROM pgqueue.workers ORDER BY name LIMIT 1").fetchone()
            assert row is not None
            crew.kill(row[1])
        return _running(database, row[0])
    held = _running(database, None)
    assert database.server.restart is not None
    database.server.restart(event)
    return held


def _running(database: Database, worker: str | None) -> set[int]:
    with database.connect() as connection:
        rows: list[Any] = connection.execute(
            "SELECT (payload ->> 'n')::integer FROM pgqueue.jobs"
            " WHERE state = 'running' AND (%(worker)s::text IS NULL OR worker = %(worker)s)",
            {"worker": worker},
        ).fetchall()
    return {row[0] for row in rows}


def _figures(tally: Tally, at: int, plan: Plan, held: set[int]) -> dict[str, float | None]:
    counts, last = tally.times()[0::2].tolist(), tally.times()[1::2].tolist()
    twice = {n for n, count in enumerate(counts) if count > 1}
    starts = sorted((start - at) / 1e9 for start in last)
    seconds = min(plan.before / 2, 2.0)
    rate = _between(starts, -seconds, 0) / seconds
    again = [(last[n] - at) / 1e9 for n in held if last[n] > at]
    soon = [start for start in starts if 0 <= start < plan.after / 2]
    return {
        "rate": rate,
        "restored_s": _restored(starts, rate),
        "pause_s": max((later - earlier for earlier, later in itertools.pairwise([0.0, *soon])), default=None),
        "held": float(len(held)),
        "again_s": max(again, default=None),
        "twice": float(len(twice)),
        "twice_not_held": float(len(twice - held)),
    }


def _restored(starts: list[float], rate: float) -> float | None:
    """From the event to the first half second of 95 % of the rate, once it has fallen below that; 0: it never did.

    Its first tenth of a second has that, too: what catches up after a pause does not make up for the pause.
    """
    low = False
    for step in range(int(max(0.0, starts[-1]) / _STEP) + 1):
        since = step * _STEP
        parts = [_between(starts, since, since + part) >= _RESTORED * rate * part for part in (_WINDOW, _WINDOW / 5)]
        enough = all(parts) if low else parts[0]
        if enough and (low or since >= 2 * _WINDOW):
            return since if low else 0.0
        low = low or not enough
    return None


def _between(starts: list[float], since: float, until: float) -> int:
    return bisect.bisect_left(starts, until) - bisect.bisect_left(starts, since)


REGIME = Regime(
    "recovery",
    "Recovery of two workers under load, handlers of 20 ms; restored: half a second at 95 % of the earlier rate",
    (
        Column("rate", "starts/s before"),
        Column("restored_s", "restored after s", ".2f", spread=True),
        Column("pause_s", "longest pause s", ".2f"),
        Column("down_s", "server away s", ".2f"),
        Column("held", "in flight"),
        Column("again_s", "again after s", ".1f"),
        Column("twice", "jobs run twice", spread=True),
        Column("twice_not_held", "not in flight"),
        Column("lost", "jobs lost"),
        Column("lease_s", "lease s", "g"),
        Column("sweep_s", "sweep s", "g"),
    ),
    (
        Case("kill -9, 1,000 jobs/s", kill_one_of_two),
        Case("kill -9, supervised, full queue", kill_under_a_supervisor),
        Case("fast restart, 1,000 jobs/s", restart("fast")),
        Case("immediate restart, 1,000 jobs/s", restart("immediate")),
    ),
)
