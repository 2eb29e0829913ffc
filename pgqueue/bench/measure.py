"""What ``pgq bench`` measures. A regime and its floor take turns on one connection: both meet the same noise."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from pgqueue.bench.scratch import connect, scratch_queue
from pgqueue.bench.tasks import IN_BULK, ONE_BY_ONE, TEXT, WORKED, app, noop, stamp
from pgqueue.connection import translated
from pgqueue.durations import format_duration
from pgqueue.errors import PgqueueError
from pgqueue.settings import Settings
from pgqueue.sql import qualify
from pgqueue.worker.supervisor import die_with_parent

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import psycopg

    from pgqueue.handle import Job
    from pgqueue.job import JobRecord

# The floors: a plain table with a key, as an application would have one. What the queue adds is the queue's.
_TABLE: Final = (
    "CREATE TABLE pgqueue.floor (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, payload jsonb NOT NULL)"
)
_INSERT: Final = "INSERT INTO pgqueue.floor (payload) VALUES (%s)"
_COPY: Final = "COPY pgqueue.floor (payload) FROM STDIN"
_LISTEN: Final = 'LISTEN "pgqueue.floor"'
_NOTIFY: Final = (
    "WITH row AS (INSERT INTO pgqueue.floor (payload) VALUES (%s) RETURNING id)"
    " SELECT pg_notify('pgqueue.floor', id::text) FROM row"
)
_COUNT: Final = """
    SELECT (SELECT count(*) FROM pgqueue.jobs WHERE queue = %(queue)s),
        count(*), count(DISTINCT id), coalesce(sum(attempt), 0)
    FROM pgqueue.history WHERE queue = %(queue)s AND state = 'completed'
"""
_SETTINGS: Final = (
    "SELECT current_setting(name) FROM unnest(%s::text[]) WITH ORDINALITY AS asked (name, nth) ORDER BY nth"
)

_BATCH: Final = 5_000  # jobs of one enqueue_many
_MOST: Final = 100_000  # jobs of a regime: it is somebody's own disk
_WARM_UP: Final = 10
_FIRST_DRAIN: Final = 1_000  # tells how many are drained in the time given
_PATIENCE: Final = 30.0  # seconds, beyond the time given
_LOOK: Final = 0.01
_TRIPS: Final = 50


class BenchError(PgqueueError):
    """The benchmark can't go on: its worker did not start, or stopped working."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What one way of doing it came to: jobs, and jobs per second or milliseconds for one, or both."""

    name: str
    jobs: int
    jobs_per_second: float | None = None
    p50_ms: float | None = None
    p99_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Measure:
    """A regime's figures beside those of its floor. ``ratio``: theirs in jobs per second, else in median times."""

    regime: str
    queue: Figures
    floor: Figures | None = None
    ratio: float | None = None


@dataclass
class Report:
    """What a run has found. ``problems``: what did not add up in the database; none when every job ran exactly once."""

    server: dict[str, Any]
    measures: list[Measure] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def measure(settings: Settings, regimes: Sequence[str], seconds: float, say: Callable[[str], object]) -> Report:
    """Measure these regimes, each for about so many seconds, in a scratch queue on the database of the settings.

    Raises:
        BenchError: the worker did not start, or stopped working.
        DatabaseError: see :func:`~pgqueue.bench.scratch.scratch_queue`.
    """
    say("a scratch schema")
    with translated(), contextlib.ExitStack() as end:
        own, connection = end.enter_context(scratch_queue(settings))
        site = _Site(own, connection, seconds, end)
        report = Report(_facts(site))
        for regime in regimes:
            say(f"{regime}: {REGIMES[regime].__doc__}")
            report.measures.append(REGIMES[regime](site))
        report.problems += site.problems()
    return report


@dataclass
class _Site:
    """Where a run happens, and how many jobs it has enqueued in which queue. ``end``: what is to be cleared up."""

    settings: Settings
    connection: psycopg.Connection[Any]
    seconds: float
    end: contextlib.ExitStack
    enqueued: dict[str, int] = field(default_factory=dict)
    worker: _Worker | None = None

    def __post_init__(self) -> None:
        app.configure(self.settings)
        self.sql(_TABLE)

    def sql(self, text: str, *params: Any) -> psycopg.Cursor[Any]:
        """Run SQL in the scratch schema, in a transaction of its own."""
        return self.connection.execute(qualify(text, self.settings.schema), params or None)

    def add(self, queue: str, count: int) -> None:
        """Note that so many more jobs are in this queue."""
        self.enqueued[queue] = self.enqueued.get(queue, 0) + count

    def count(self, queue: str) -> tuple[int, int, int, int]:
        """Jobs of a queue in the database: those that wait, completed, distinct among these, and their attempts."""
        text = qualify(_COUNT, self.settings.schema)
        (row,) = self.connection.execute(text, {"queue": queue})
        return tuple(int(value) for value in row)  # type: ignore[return-value]

    def problems(self) -> list[str]:
        """What the database says otherwise: jobs that are missing, left, or were run twice."""
        wrong = []
        for queue, count in self.enqueued.items():
            expected = (0, count, count, count) if queue == WORKED else (count, 0, 0, 0)
            if (found := self.count(queue)) != expected:
                words = "waiting, completed, distinct, attempts"
                wrong.append(f"of {count} jobs in queue {queue!r} the database has {found} ({words}), not {expected}")
        return wrong

    def start_worker(self) -> None:
        """Start the worker, if it is not there yet, and wait until it is idle."""
        if self.worker is None:
            self.worker = _Worker(self.settings)
            self.end.callback(self.worker.stop)
            self.wait(lambda: bool(app.client.workers(connection=self.connection)), "its worker to start")

    def wait(self, done: Callable[[], bool], what: str) -> None:
        """Look until it is so; raises BenchError when it takes too long, or the worker has ended."""
        deadline = time.monotonic() + _PATIENCE + self.seconds
        while not done():
            if self.worker and (self.worker.ended or time.monotonic() > deadline):
                raise BenchError(f"waited in vain for {what}; the worker's last words: {self.worker.said}")
            time.sleep(_LOOK)

    def wait_for(self, job: Job) -> JobRecord:
        """The job, once it has ended. By its key: to count all would disturb the worker."""
        self.wait(lambda: app.client.get(job.id, connection=self.connection).finished, f"job {job.id}")
        return app.client.get(job.id, connection=self.connection)


class _Worker:
    """A `pgq worker` with the default settings in a process of its own. The DSN travels in the environment."""

    def __init__(self, settings: Settings) -> None:
        usual = [f"--slots={Settings().slots}", f"--poll={format_duration(Settings().poll_interval)}"]
        self._log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - closed in stop
        self._process = subprocess.Popen(  # noqa: S603 - our own command line
            [sys.executable, "-m", "pgqueue", "worker", "--app=pgqueue.bench.tasks", f"--queues={WORKED}", *usual],
            env={**os.environ, "PGQUEUE_DSN": settings.dsn or "", "PGQUEUE_SCHEMA": settings.schema},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self._log,
            start_new_session=True,  # Ctrl-C reaches it through us
            preexec_fn=die_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509 - one prctl
        )  # fmt: skip

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    @property
    def said(self) -> str:
        self._log.seek(0)
        return " ".join(self._log.read()[-500:].split()) or "none"

    def stop(self) -> None:
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        self._process.kill()
        self._process.wait()
        self._log.close()


# -- the regimes -----------------------------------------------------------------------------------------------------


def _one_by_one(site: _Site) -> Measure:
    """Enqueue one job after another, each committed."""
    call = noop.options(queue=ONE_BY_ONE).using(site.connection)
    insert = qualify(_INSERT, site.settings.schema)
    floor, queue = _in_turn(
        lambda n: site.connection.execute(insert, (_payload(n),)),
        lambda n: call.enqueue_sync(n=n, text=TEXT),
        site.seconds,
        _MOST,
    )
    site.add(ONE_BY_ONE, len(queue) + _WARM_UP)
    return _compared("enqueue", ("enqueue, one by one", queue), ("INSERT, COMMIT", floor))


def _in_bulk(site: _Site) -> Measure:
    """Enqueue 5,000 jobs in each transaction, with COPY."""
    specs = [noop.options(queue=IN_BULK).job(n=n, text=TEXT) for n in range(_BATCH)]
    data = "".join(f"{_payload(n)}\n" for n in range(_BATCH)).encode()

    def copy(_n: int) -> None:
        with site.connection.cursor() as cursor, cursor.copy(qualify(_COPY, site.settings.schema)) as rows:
            rows.write(data)

    def enqueue(_n: int) -> None:
        with site.connection.transaction():
            app.enqueue_many_sync(specs, copy=True, connection=site.connection)

    floor, queue = _in_turn(copy, enqueue, site.seconds, _MOST // _BATCH, warm_up=1)
    site.add(IN_BULK, (len(queue) + 1) * _BATCH)
    return _compared("bulk", ("enqueue_many, copy=True", queue), ("COPY", floor), each=_BATCH)


def _drain(site: _Site) -> Measure:
    """Let one worker process with default settings empty a full queue."""
    site.start_worker()
    speed = _FIRST_DRAIN / _drain_once(site, _FIRST_DRAIN)
    count = min(max(int(speed * site.seconds), _FIRST_DRAIN), _MOST)
    return Measure("drain", Figures("drain, one worker process", count, count / _drain_once(site, count)))


def _drain_once(site: _Site, count: int) -> float:
    """Fill the paused queue behind the idle worker, resume it; the seconds until the last outcome has landed."""
    connection, before = site.connection, site.enqueued.get(WORKED, 0)
    specs = [noop.job(n=n, text=TEXT) for n in range(count)]
    app.client.pause(WORKED, connection=connection)
    with connection.transaction():
        jobs = app.enqueue_many_sync(specs, copy=True, connection=connection)
    site.add(WORKED, count)
    began = time.perf_counter()
    app.client.resume(WORKED, connection=connection)
    site.wait_for(jobs[-1])
    site.wait(lambda: site.count(WORKED)[1] >= before + count, f"{count} jobs")
    return time.perf_counter() - began


def _latency(site: _Site) -> Measure:
    """Enqueue a job now and then, until an idle worker starts its handler."""
    site.start_worker()
    floor: list[float] = []
    queue: list[float] = []
    with connect(site.settings) as listener:
        listener.execute(qualify(_LISTEN, site.settings.schema))
        end = time.monotonic() + 2 * site.seconds
        while not queue or time.monotonic() < end:
            floor.append(_wake_listener(site, listener))
            queue.append(_wake_worker(site))
    return _compared("latency", ("enqueue → start, idle worker", queue), ("INSERT, NOTIFY → LISTEN", floor), each=0)


def _wake_listener(site: _Site, listener: psycopg.Connection[Any]) -> float:
    began = time.monotonic_ns()
    site.sql(_NOTIFY, _payload(0))
    if not list(listener.notifies(timeout=_PATIENCE, stop_after=1)):
        raise BenchError("a NOTIFY did not arrive")
    return (time.monotonic_ns() - began) / 1e9


def _wake_worker(site: _Site) -> float:
    began = time.monotonic_ns()
    job = stamp.using(site.connection).enqueue_sync(n=0, text=TEXT)
    site.add(WORKED, 1)
    time.sleep(random.uniform(0.02, 0.06))  # noqa: S311 - by then it has ended, and nobody has looked meanwhile
    started: int = site.wait_for(job).result
    return (started - began) / 1e9


REGIMES: Final = {"enqueue": _one_by_one, "bulk": _in_bulk, "drain": _drain, "latency": _latency}


# -- what they use ---------------------------------------------------------------------------------------------------


def _in_turn(
    floor: Callable[[int], object], queue: Callable[[int], object], seconds: float, most: int, warm_up: int = _WARM_UP
) -> tuple[list[float], list[float]]:
    """The seconds of each call, one of this and one of that, so that both meet the same noise."""
    took: tuple[list[float], list[float]] = [], []
    end = time.perf_counter() + 2 * seconds
    for n in range(most + warm_up):
        for call, times in zip((floor, queue), took, strict=True):
            began = time.perf_counter()
            call(n)
            times.append(time.perf_counter() - began)
        if n >= warm_up and time.perf_counter() > end:
            break
    return took[0][warm_up:], took[1][warm_up:]


def _compared(regime: str, queue: tuple[str, list[float]], floor: tuple[str, list[float]], each: int = 1) -> Measure:
    """Calls in which ``each`` jobs were done; 0: one, whose rate says nothing, because somebody rested between them."""
    ours, bare = _figures(*queue, each), _figures(*floor, each)
    if ours.jobs_per_second and bare.jobs_per_second:
        return Measure(regime, ours, bare, ours.jobs_per_second / bare.jobs_per_second)
    return Measure(regime, ours, bare, (ours.p50_ms or 0) / (bare.p50_ms or 1))


def _figures(name: str, took: list[float], each: int) -> Figures:
    rate = each * len(took) / sum(took) if each else None
    if each > 1:
        return Figures(name, each * len(took), rate)
    return Figures(name, len(took), rate, _percentile(took, 0.5) * 1000, _percentile(took, 0.99) * 1000)


def _percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def _payload(n: int) -> str:
    return f'{{"n": {n}, "text": "{TEXT}"}}'


def _facts(site: _Site) -> dict[str, Any]:
    """What a reader of the figures must know about the server, the way to it and this machine."""
    names = "server_version", "fsync", "synchronous_commit"
    values = [value for (value,) in site.sql(_SETTINGS, list(names))]
    trips = []
    for _ in range(_TRIPS):
        began = time.perf_counter()
        site.sql("")
        trips.append(time.perf_counter() - began)
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return dict(zip(names, values, strict=True)) | {
        "round_trip_ms": _percentile(trips, 0.5) * 1000, "client_cpus": cpus,
    }  # fmt: skip
