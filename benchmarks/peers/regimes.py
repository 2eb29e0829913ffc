"""What is measured of each peer. All that is known of a peer is what its adapter process answers."""

from __future__ import annotations

import bisect
import contextlib
import json
import os
import random
import signal
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psycopg import conninfo

from benchmarks import enqueue, floors, latency
from benchmarks import harness as base
from benchmarks.harness import Bench, Column, Cost, Measures, Tally, percentile, wait_until
from benchmarks.peers.install import HOME, ROOT, Peer
from benchmarks.server import Database, tree_cpu

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

RATE = 1_000
BEHIND = "not_started"
UNSENT = "not_enqueued"
_CLIENTS = 4
_PATIENCE = 90.0
_READERS = 4
_HOLD = 2.0
_WARM_UP = 5


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        one: seconds of enqueueing one by one.
        bulk: jobs to enqueue in bulk.
        drain: seconds that a drain is to take.
        latency: samples.
        steady: seconds of steady load.
        rest: seconds of rest.
        idle: worker processes at rest.
        floor: the sizes for the floors, which are measured as ``python -m benchmarks`` does.
    """

    name: str
    one: float
    bulk: int
    drain: float
    latency: int
    steady: float
    rest: float
    idle: int
    floor: base.Size


SIZES = {
    size.name: size
    for size in (
        Size("full", 3.0, 50_000, 5.0, 100, 8.0, 10.0, 10, base.SIZES["full"]),
        Size("quick", 1.0, 5_000, 2.0, 20, 2.0, 2.0, 10, base.SIZES["quick"]),
        Size("smoke", 0.2, 200, 0.05, 3, 0.3, 0.3, 2, base.SIZES["smoke"]),
    )
}


@dataclass(frozen=True)
class Case:
    """One table: every peer in turn does the same."""

    name: str
    run: Callable[[PeersBench, Size, Peer], Measures]
    floors: Sequence[tuple[str, Callable[[Bench], Measures]]] = ()
    quick: bool = True  # whether --quick measures it too


@dataclass(frozen=True)
class Regime:
    """Some tables with the same columns. ``Column.ratio`` says which get a ratio pgqueue / peer."""

    name: str
    title: str
    columns: Sequence[Column]
    cases: Sequence[Case]


# -- a peer's processes ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """A fresh database of one peer, with its schema, and its adapter's commands on it."""

    peer: Peer
    database: Database
    starts: Tally
    counts: Tally
    commits: Tally
    log: Path

    def run(self, command: str, **options: object) -> Any:
        """Run a command to its end; answers the JSON of its last line."""
        with self.start(command, **options) as process:
            try:
                out, _ = process.communicate(timeout=_PATIENCE)
            except subprocess.TimeoutExpired:
                raise TimeoutError(f"{command} took more than {_PATIENCE:g} s") from None
        self._check(command, process)
        lines = out.strip().splitlines()
        return json.loads(lines[-1]) if lines else None

    @contextlib.contextmanager
    def start(self, command: str, **options: object) -> Iterator[subprocess.Popen[str]]:
        """Run a command beside this block; it is ended with it."""
        words = [word for name, value in options.items() for word in (f"--{name.rstrip('_')}", str(value))]
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("PG", "BENCH_", "PYTHON"))
        }
        environment |= {
            "BENCH_DSN": _url(self.database),
            "BENCH_STARTS": str(self.starts.path),
            "BENCH_COUNTS": str(self.counts.path),
            "BENCH_COMMITS": str(self.commits.path),
            "PYTHONPATH": str(ROOT),
            "PYTHONPYCACHEPREFIX": str(HOME / "pycache"),
        }
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [*self.peer.command, command, *words],
                cwd=self.peer.folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                text=True, start_new_session=True,
            )  # fmt: skip
        try:
            yield process
        finally:
            _end(process)

    @contextlib.contextmanager
    def started(self, command: str, **options: object) -> Iterator[subprocess.Popen[str]]:
        """The same, from the moment when it says that it is ready."""
        with self.start(command, **options) as process:
            self._await_ready(command, process)
            yield process

    @contextlib.contextmanager
    def workers(self, count: int, purpose: str) -> Iterator[Crew]:
        """So many worker processes; they are told to stop at the end of this block."""
        with contextlib.ExitStack() as stack:
            starting = [stack.enter_context(self.start("work", for_=purpose)) for _ in range(count)]
            for process in starting:
                self._await_ready("work", process)
            crew = Crew(starting)
            yield crew
            for process in crew.processes:
                if process.poll() is not None:
                    raise RuntimeError(f"a worker ended with status {process.returncode}: {self._tail()}")
                process.send_signal(signal.SIGTERM)
            for process in crew.processes:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(20)
                self._check("work", process)

    def left(self) -> int:
        """What the peer says is not yet finished."""
        return int(self.run("left"))

    def dead_tuples(self) -> float:
        """Of all tables."""
        return float(self.database.value("SELECT coalesce(sum(n_dead_tup), 0)::bigint FROM pg_stat_user_tables"))

    def _await_ready(self, command: str, process: subprocess.Popen[str]) -> None:
        if _line(process, _PATIENCE) != "ready":
            raise RuntimeError(f"{command} did not get ready: {self._tail()}")

    def _check(self, command: str, process: subprocess.Popen[str]) -> None:
        if process.poll() != 0:
            raise RuntimeError(f"{command} ended with status {process.returncode}: {self._tail()}")

    def _tail(self) -> str:
        return self.log.read_text(errors="replace")[-1500:].strip()


@dataclass(frozen=True)
class Crew:
    """Worker processes."""

    processes: list[subprocess.Popen[str]]

    def cpu(self) -> float:
        """CPU seconds of all and their children so far."""
        return sum(tree_cpu(process.pid) for process in self.processes)

    def memory(self) -> float:
        """The most memory that a worker with its children has had, in MiB; the mean of the workers."""
        return sum(_peak_memory(process.pid) for process in self.processes) / len(self.processes) / 1024


@dataclass
class PeersBench(Bench):
    """What a case may use: for each peer a database with its schema too, made once, to be copied."""

    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    templates: dict[str, str] = field(default_factory=dict)

    def template(self, peer: Peer) -> str:
        """The name of the peer's database; its adapter's `setup` has run there."""
        if peer.name not in self.templates:
            database = self.stack.enter_context(self.server.database("template0"))
            none = self.tally(1)
            Stage(peer, database, none, none, none, self.server.folder / "setup.log").run("setup")
            self.templates[peer.name] = database.name
        return self.templates[peer.name]


@contextlib.contextmanager
def stage(bench: PeersBench, peer: Peer, jobs: int) -> Iterator[Stage]:
    """Room for jobs with numbers up to ``jobs``."""
    with bench.server.database(bench.template(peer)) as database:
        tallies = [bench.tally(8 * jobs), bench.tally(jobs), bench.tally(8 * jobs)]
        yield Stage(peer, database, *tallies, log=bench.server.folder / f"{database.name}.log")
        for tally in tallies:
            tally.path.unlink()


def _url(database: Database) -> str:
    """A URL with host and port, which every driver reads."""
    parts = conninfo.conninfo_to_dict(database.dsn)
    login = f"{parts.get('user') or ''}:{parts['password']}" if parts.get("password") else parts.get("user") or ""
    where, rest = f"{parts.get('host') or '127.0.0.1'}:{parts.get('port') or 5432}", ""
    if where.startswith("/"):
        where, rest = "", f"?host={parts['host']}&port={parts.get('port') or 5432}"
    return f"postgresql://{login}@{where}/{database.name}{rest}"


def _line(process: subprocess.Popen[str], patience: float) -> str:
    """Its next line; empty when it ends or is too slow (it is killed then)."""
    assert process.stdout is not None
    killer = threading.Timer(patience, process.kill)
    killer.start()
    try:
        return process.stdout.readline().strip()
    finally:
        killer.cancel()


def _say(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{text}\n")
    process.stdin.flush()


def _end(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


def _peak_memory(pid: int) -> int:
    """VmHWM of a process and its children, in KiB; 0 off Linux."""
    total = 0
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        total = sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            total += sum(_peak_memory(int(child)) for child in children.read_text().split())
    return total


# -- enqueue ---------------------------------------------------------------------------------------------------------


def one_by_one(clients: int) -> Callable[[PeersBench, Size, Peer], Measures]:
    """Each client enqueues one job after another."""

    def run(bench: PeersBench, size: Size, peer: Peer) -> Measures:
        return _enqueue(bench, peer, "one", seconds=size.one, clients=clients, first=0)

    return run


def bulk(bench: PeersBench, size: Size, peer: Peer) -> Measures:
    """The peer's fastest call for many."""
    return _enqueue(bench, peer, "load", jobs=size.bulk, first=0)


def _enqueue(bench: PeersBench, peer: Peer, command: str, **options: object) -> Measures:
    with stage(bench, peer, 1) as one:
        cost = Cost(one.database, lambda: 0.0)
        answer = one.run(command, **options)
        figures = cost.per_job(answer["jobs"], answer["seconds"])
        there = one.left()
    assert there >= answer["jobs"], f"{answer['jobs']} were enqueued, {there} are there"
    for key in ("server_cpu_s_per_10k", "wal_bytes_per_job"):  # the warm-up's jobs are in these too
        figures[key] = figures[key] and figures[key] * answer["jobs"] / there
    figures["worker_cpu_s_per_10k"] = answer["cpu"] * 10_000 / answer["jobs"]
    return figures | {key: answer[key] for key in ("p50_ms", "p99_ms") if key in answer}


# -- drain -----------------------------------------------------------------------------------------------------------


def drain(processes: int) -> Callable[[PeersBench, Size, Peer], Measures]:
    """Workers start on a full queue; measured from the moment when all serve and a tenth has run."""

    def run(bench: PeersBench, size: Size, peer: Peer) -> Measures:
        jobs = max(100, round(peer.per_second * size.drain))
        with stage(bench, peer, jobs) as one:
            one.run("load", jobs=jobs, first=0)
            with one.workers(processes, "drain") as crew:
                serving = time.monotonic_ns()
                _wait_for(one, jobs // 10)
                before, cost = one.counts.ran(), Cost(one.database, crew.cpu)
                _wait_for(one, jobs)
                wait_until(lambda: one.left() == 0, lambda: "outcomes are missing", 0.1, _PATIENCE)
                figures = cost.per_job(max(1, jobs - before), 1.0)
                if before > jobs * 0.8:  # it was over too soon to say what it cost
                    figures = dict.fromkeys(figures)
                figures["jobs_per_s"] = _rate(one, jobs, serving)
                figures["memory_mib"] = crew.memory()
            figures["dead_tuples"] = one.dead_tuples()
            again = jobs - bytes(one.counts.view).count(1)
            assert not again, f"{again} jobs did not run exactly once"
        return figures | {"jobs": float(jobs)}

    return run


def _rate(one: Stage, jobs: int, serving: int) -> float:
    """Jobs per second from a tenth, or the moment when all workers served, but at the latest half, to the end."""
    starts = sorted(one.starts.times())
    first = min(max(jobs // 10, bisect.bisect(starts, serving)), jobs // 2)
    return (jobs - first) / max(1, starts[-1] - starts[first]) * 1e9


def _wait_for(one: Stage, jobs: int) -> None:
    wait_until(lambda: one.counts.ran() >= jobs, lambda: f"{one.counts.ran()} of {jobs} ran", 0.005, _PATIENCE)


# -- idle latency ----------------------------------------------------------------------------------------------------


def idle_latency(bench: PeersBench, size: Size, peer: Peer) -> Measures:
    """One worker, one client, one job at a time."""
    count = size.latency + _WARM_UP
    waits, calls = [], []
    with (
        stage(bench, peer, count) as one,
        one.workers(1, "latency"),
        one.started("ping") as client,
    ):
        started = one.starts.times()
        for n in range(count):
            time.sleep(random.uniform(0.04, 0.12))
            _say(client, str(n))
            before, after = map(int, _line(client, _PATIENCE).split())
            wait_until(lambda n=n: started[n] > 0, lambda n=n: f"job {n} did not start", 0.001, _PATIENCE)  # type: ignore[misc]
            waits.append((started[n] - before) / 1e6)
            calls.append((after - before) / 1e6)
        started.release()
    waits, calls = waits[_WARM_UP:], calls[_WARM_UP:]
    return {
        "p50_ms": percentile(waits, 0.5),
        "p99_ms": percentile(waits, 0.99),
        "max_ms": max(waits),
        "call_p50_ms": percentile(calls, 0.5),
    }


# -- steady load -----------------------------------------------------------------------------------------------------


def steady(trouble: Callable[[Database], contextlib.AbstractContextManager[None]] | None) -> Callable[..., Measures]:
    """Four clients enqueue on schedule, a worker runs; perhaps beside transactions that hold snapshots."""

    def run(bench: PeersBench, size: Size, peer: Peer) -> Measures:
        jobs = int(RATE * size.steady)
        with contextlib.ExitStack() as stack:
            one = stack.enter_context(stage(bench, peer, jobs))
            if trouble:
                stack.enter_context(trouble(one.database))
            crew = stack.enter_context(one.workers(1, "latency"))
            client = stack.enter_context(one.started("pace", jobs=jobs, rate=RATE, clients=_CLIENTS))
            worker, server, began = crew.cpu(), bench.server.cpu(), time.monotonic()
            _say(client, "go")
            answer = _line(client, 3 * size.steady)
            while one.counts.ran() < jobs and time.monotonic() - began < 3 * size.steady:
                time.sleep(0.005)
            seconds = time.monotonic() - began
            starts, commits = one.starts.times(), one.commits.times()
            waits = [(starts[n] - commits[n]) / 1e6 for n in range(jobs) if starts[n] and commits[n]]
            return {
                "p50_ms": percentile(waits, 0.5),
                "p99_ms": percentile(waits, 0.99),
                "jobs_per_s": len(waits) / seconds,
                BEHIND: float(jobs - len(waits)),
                UNSENT: float(list(commits).count(0)),
                "worker_cpu": (crew.cpu() - worker) / seconds * 100,
                "server_cpu": _percent(server, bench.server.cpu(), seconds),
                "client_cpu": json.loads(answer)["cpu"] / seconds * 100 if answer else None,
            }

    return run


@contextlib.contextmanager
def held_snapshot(database: Database) -> Iterator[None]:
    """A transaction that has read, and stays: vacuum can remove nothing that dies after this."""
    with database.connect() as connection:
        connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        connection.execute("SELECT count(*) FROM pg_class")
        yield


@contextlib.contextmanager
def readers(database: Database) -> Iterator[None]:
    """Four clients that read in transactions of two seconds, one after another: the oldest snapshot moves on."""
    ending = threading.Event()

    def read(nth: int) -> None:
        with database.connect() as connection:
            ending.wait(nth * _HOLD / _READERS)
            while not ending.is_set():
                connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
                connection.execute("SELECT count(*) FROM pg_class")
                ending.wait(_HOLD)
                connection.execute("COMMIT")

    threads = [threading.Thread(target=read, args=(nth,)) for nth in range(_READERS)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ending.set()
        for thread in threads:
            thread.join()


def _percent(then: float | None, now: float | None, seconds: float) -> float | None:
    return None if then is None or now is None else (now - then) / seconds * 100


# -- at rest ---------------------------------------------------------------------------------------------------------


def at_rest(bench: PeersBench, size: Size, peer: Peer) -> Measures:
    """Workers without a job."""
    with stage(bench, peer, 1) as one, one.workers(size.idle, "latency") as crew:
        time.sleep(min(2.0, size.rest))
        worker, server, began = crew.cpu(), bench.server.cpu(), time.monotonic()
        queries = _queries(one.database)
        time.sleep(size.rest)
        seconds = time.monotonic() - began
        return {
            "worker_cpu": (crew.cpu() - worker) / seconds * 100,
            "server_cpu": _percent(server, bench.server.cpu(), seconds),
            "queries_per_s": None if queries is None else ((_queries(one.database) or 0) - queries) / seconds,
            "memory_mib": crew.memory(),
        }


def _queries(database: Database) -> int | None:
    """Statements so far in the peer's database, asked for in another one."""
    server = database.server
    if not server.statements:
        return None
    elsewhere = Database(conninfo.make_conninfo(server.dsn, dbname=server.template), server.template, server)
    return int(elsewhere.value(
        "SELECT coalesce(sum(calls), 0)::bigint FROM pg_stat_statements"
        f" WHERE dbid = (SELECT oid FROM pg_database WHERE datname = '{database.name}')"
    ))  # fmt: skip


_COSTS = (
    Column("worker_cpu_s_per_10k", "client CPU s / 10k", ".2f"),
    Column("server_cpu_s_per_10k", "server CPU s / 10k", ".2f"),
    Column("wal_bytes_per_job", "WAL B / job"),
)
_ONE = (enqueue.ONE, enqueue.insert_one_by_one)
_BARE = ("claim and finish bare, 2 connections", floors.statements_bare)
_CPU = (Column("worker_cpu", "worker CPU %", ".1f", spread=True), Column("server_cpu", "server CPU %", ".1f"))

REGIMES = {
    regime.name: regime
    for regime in (
        Regime(
            "enqueue",
            "Enqueue jobs with a payload of about 100 bytes, each committed before the next",
            (
                Column("jobs_per_s", "jobs/s", spread=True, ratio="more"),
                Column("p50_ms", "p50 ms", ".2f"),
                Column("p99_ms", "p99 ms", ".2f"),
                *_COSTS,
            ),
            (
                Case("1 client", one_by_one(1), (_ONE, ("pgqueue, its async client", enqueue.async_client))),
                Case("8 clients", one_by_one(8), ((enqueue.ONE, enqueue.many("insert", 8)),), quick=False),
                Case("32 clients", one_by_one(32), ((enqueue.ONE, enqueue.many("insert", 32)),)),
                Case("in bulk", bulk, ((enqueue.BULK, floors.copy_bare),)),
            ),
        ),
        Regime(
            "drain",
            "Drain a full queue: no-op handlers; from when all workers serve and a tenth has run, to the end",
            (
                Column("jobs_per_s", "jobs/s", spread=True, ratio="more"),
                Column("worker_cpu_s_per_10k", "worker CPU s / 10k", ".2f"),
                *_COSTS[1:],
                Column("dead_tuples", "dead tuples"),
                Column("memory_mib", "memory MiB"),
                Column("jobs", "jobs"),
            ),
            (
                Case("1 process", drain(1), (_BARE,)),
                Case("2 processes", drain(2), (_BARE,), quick=False),
            ),
        ),
        Regime(
            "latency",
            "Idle latency: from the call of enqueue to the start of the handler in another process",
            (
                Column("p50_ms", "p50 ms", ".2f", spread=True, ratio="less"),
                Column("p99_ms", "p99 ms", ".2f", spread=True),
                Column("max_ms", "max ms", ".1f"),
                Column("call_p50_ms", "enqueue call, p50 ms", ".2f"),
            ),
            (Case("one worker", idle_latency, ((latency.FLOOR, latency.wake_bare),)),),
        ),
        Regime(
            "steady",
            f"Steady load, {RATE:,} jobs/s: from the commit of enqueue to the start of the handler",
            (
                Column("p50_ms", "p50 ms", ".2f", spread=True, ratio="less"),
                Column("p99_ms", "p99 ms", ".1f", spread=True, ratio="less"),
                Column("jobs_per_s", "jobs/s"),
                *_CPU,
                Column("client_cpu", "client CPU %", ".1f"),
            ),
            (
                Case("clean", steady(None)),
                Case("a held snapshot", steady(held_snapshot)),
                Case("four readers of 2 s each", steady(readers), quick=False),
            ),
        ),
        Regime(
            "rest",
            "Cost at rest: ten idle worker processes (two when smoke), all together",
            (*_CPU, Column("queries_per_s", "queries/s", ".1f", spread=True), Column("memory_mib", "memory MiB, each")),
            (Case("idle workers", at_rest),),
        ),
    )
}
