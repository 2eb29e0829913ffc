"""What every regime is made of: cases that measure, workers in processes of their own, what a stretch of work cost."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from benchmarks.server import Database, Server, tree_cpu
from benchmarks.tasks import QUEUE, TALLY, TEXT, map_file
from pgqueue import App, JobSpec
from pgqueue.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Measures = Mapping[str, float | None]
_ROOT = Path(__file__).parent.parent
_PATIENCE = 300.0


@dataclass(frozen=True)
class Size:
    """How much is measured: of each kind of work, the number of jobs or of seconds."""

    name: str
    drain: int
    isolated: int
    one_by_one: float
    bulk: int
    latency: int
    steady: float
    marks: int
    rest: float
    backlog: int
    memory: int


SIZES = {
    size.name: size
    for size in (
        Size("full", 100_000, 5_000, 4.0, 100_000, 200, 10.0, 100_000, 10.0, 1_000_000, 1_000_000),
        Size("quick", 40_000, 2_000, 1.5, 40_000, 60, 4.0, 40_000, 5.0, 200_000, 200_000),
        Size("smoke", 2_000, 0, 0.2, 2_000, 5, 0.5, 2_000, 0.5, 4_000, 4_000),
    )
}


@dataclass(frozen=True)
class Column:
    """A figure in a regime's table.

    Attributes:
        key: its name among a case's measures, and in the JSON.
        title: above the column.
        style: how it is written: a format spec.
        spread: show the least and the most of the rounds too.
        ratio: show it as a ratio to the floor: ``"more"`` when more is better, ``"less"`` when less is.
    """

    key: str
    title: str
    style: str = ",.0f"
    spread: bool = False
    ratio: Literal["more", "less"] | None = None


@dataclass(frozen=True)
class Case:
    """One line of a table. ``floor`` names the case that it is compared with; a floor has none."""

    name: str
    run: Callable[[Bench], Measures]
    floor: str | None = None
    when: Callable[[Size], bool] = lambda _size: True


@dataclass(frozen=True)
class Regime:
    """One table: its cases run in turn, round after round."""

    name: str
    title: str
    columns: Sequence[Column]
    cases: Sequence[Case]


@dataclass
class Bench:
    """What a case may use."""

    server: Server
    size: Size
    notes: list[str] = field(default_factory=list)

    def tally(self, length: int) -> Tally:
        """Shared memory of ``length`` bytes for handlers to write to."""
        return Tally(self.server.folder / f"tally-{os.urandom(4).hex()}", length)


class Tally:
    """A file of zero bytes that workers map: see :mod:`benchmarks.tasks`."""

    def __init__(self, path: Path, length: int) -> None:
        self.path = path
        path.write_bytes(bytes(length))
        path.chmod(0o666)
        self.view = map_file(path)

    def ran(self) -> int:
        """How many jobs have run at least once."""
        return len(self.view) - bytes(self.view).count(0)

    def wait_for(self, count: int) -> None:
        """Return when so many jobs have run."""
        wait_until(lambda: self.ran() >= count, lambda: f"{self.ran()} of {count} jobs have run")

    def times(self) -> memoryview:
        """The content as times."""
        return self.view.cast("q")


def wait_until(
    done: Callable[[], bool], story: Callable[[], str], pause: float = 0.005, patience: float = _PATIENCE
) -> None:
    """Look until it is so; raises TimeoutError with the story after minutes without."""
    deadline = time.monotonic() + patience
    while not done():
        if time.monotonic() > deadline:
            raise TimeoutError(story())
        time.sleep(pause)


def app_on(database: Database) -> App:
    """The benchmark's tasks, enqueueing into this database from this process."""
    from benchmarks.tasks import app  # noqa: PLC0415 - one module-wide app, pointed elsewhere for each case

    app.close()
    app.configure(Settings(dsn=database.dsn))
    return app


def specs(count: int, task: str = "bench.noop", first: int = 0) -> list[JobSpec]:
    """Jobs with payloads of about 100 bytes, numbered from ``first``."""
    return [JobSpec(task, f'{{"n": {n}, "text": "{TEXT}"}}', QUEUE) for n in range(first, first + count)]


class Workers:
    """Worker processes as a user starts them: ``pgq worker --app …``, default settings."""

    def __init__(self, processes: list[subprocess.Popen[bytes]]) -> None:
        self._processes = processes

    def cpu(self) -> float:
        """CPU seconds of all of them and their children so far."""
        return sum(tree_cpu(process.pid) for process in self._processes)

    def memory(self) -> float:
        """MiB of memory that they have resident, all but what they share with files. 0 off Linux."""
        return sum(_anonymous_kib(process.pid) for process in self._processes) / 1024

    def kill(self, pid: int) -> None:
        """``kill -9`` one of them, or a child of theirs."""
        os.kill(pid, signal.SIGKILL)
        for process in self._processes:
            if process.pid == pid:
                process.wait()
        self._processes = [process for process in self._processes if process.pid != pid]

    def stop(self) -> None:
        """Stop them in order and wait for it."""
        processes, self._processes = self._processes, []
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()
            process.wait()

    def check(self) -> None:
        """Raise if one has ended."""
        for process in self._processes:
            if process.poll() is not None:
                raise RuntimeError(f"a worker ended with status {process.returncode}")


WORKER = ("pgqueue", "worker", "--app", "benchmarks.tasks:app")


@contextlib.contextmanager
def workers(
    count: int,
    database: Database,
    tally: Tally,
    *words: str,
    module: Sequence[str] = WORKER,
    each: int = 1,
    dsn: str | None = None,
    settings: Mapping[str, str] | None = None,
) -> Iterator[Workers]:
    """Start worker processes, wait until all their workers have signed in; stop them in order.

    ``words`` follow on the command line; ``each``: how many workers a process has; ``dsn``: another way to the
    database; ``settings``: more of the environment.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PGQUEUE_", "PG"))}
    environment |= {"PGQUEUE_DSN": dsn or database.dsn, TALLY: str(tally.path)} | dict(settings or {})
    command = [sys.executable, "-m", *module, *words]
    log_file = database.server.folder / "workers.log"
    with log_file.open("ab") as log:
        processes = [
            subprocess.Popen(command, cwd=_ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)
            for _ in range(count)
        ]
    started = Workers(processes)
    try:
        wait_until(lambda: _signed_in(started, database) == count * each, lambda: _tail(log_file), pause=0.05)
        yield started
        started.check()
    except BaseException:
        print(_tail(log_file), file=sys.stderr)
        raise
    finally:
        started.stop()


class Cost:
    """What a stretch of work cost: seconds, CPU of workers and server, WAL."""

    def __init__(self, database: Database, cpu: Callable[[], float]) -> None:
        self._database = database
        self._cpu = cpu
        self._began = self._look()

    def per_job(self, jobs: int, seconds: float) -> dict[str, float | None]:
        """The figures that every table of throughput shows; call it when the work is done."""
        worker, server, wal = (
            None if now is None or then is None else now - then
            for now, then in zip(self._look(), self._began, strict=True)
        )
        return {
            "jobs_per_s": jobs / seconds,
            "worker_cpu_s_per_10k": None if worker is None else worker * 10_000 / jobs,
            "server_cpu_s_per_10k": None if server is None else server * 10_000 / jobs,
            "wal_bytes_per_job": None if wal is None else wal / jobs,
        }

    def _look(self) -> tuple[float | None, float | None, float | None]:
        wal = float(self._database.value("SELECT pg_current_wal_insert_lsn() - '0/0'"))
        return self._cpu(), self._database.server.cpu(), wal


def percentile(values: Sequence[float], share: float) -> float:
    """The value that ``share`` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _signed_in(started: Workers, database: Database) -> int:
    started.check()
    return int(database.value("SELECT count(*) FROM pgqueue.workers"))


def _anonymous_kib(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1])
    return 0


def _tail(log_file: Path) -> str:
    return "the workers' log ends with:\n" + log_file.read_text(errors="replace")[-2000:]
