"""Real workers as real processes, under real signals; waiting with deadlines; the audit at the end of a story."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg
from invariants import check

from pgqueue import App, JobSpec, Settings
from scenarios.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pgqueue import JobRecord

T = TypeVar("T")

TESTS = Path(__file__).parents[1]
PATIENCE = 45.0  # seconds: for machines under load; a wait ends with its event
LEASE = 2.0  # where leases run out
LONG_LEASE = 60.0  # where none must: so that noise does not make one
SWEEP, POLL = 0.3, 0.3
NEVER = "60s"  # the longest poll: no wait of a story is as long


class WorkerProcess:
    """One ``pgq worker``: its process, its log, and signals to it."""

    def __init__(self, command: list[str], environment: dict[str, str], log: Path) -> None:
        self.log = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                command, env=environment, stdout=output, stderr=output, start_new_session=True
            )
        self.pid = self.process.pid

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def wait_until_ready(self) -> WorkerProcess:
        until(lambda: "slots, queues" in self.log.read_text() or not self.alive, f"worker {self.pid} is ready")
        assert self.alive, self.log.read_text()
        return self

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def family(self) -> list[int]:
        """Its process and all that descend from it: what systemd calls a control group."""
        found = [self.pid]
        for parent in found:
            for path in Path(f"/proc/{parent}/task").glob("*/children"):
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    found += map(int, path.read_text().split())
        return found

    def send_to_everybody(self, number: int) -> None:
        """As systemd does: the same signal to every process of the group, in no order that we may choose."""
        for pid in reversed(self.family()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self) -> None:
        """-9, and gone."""
        self.process.kill()
        self.process.wait()

    def stop(self, number: int = signal.SIGTERM, within: float = PATIENCE) -> int:
        """Ask it to end; answers its exit code."""
        self.send(number)
        return self.process.wait(within)

    def end(self) -> None:
        if self.alive:
            self.process.send_signal(signal.SIGCONT)
            self.kill()


class Story:
    """A database, workers on it, a ledger beside it."""

    def __init__(self, dsn: str, folder: Path, *, worker_dsn: str | None = None, lease: float = LONG_LEASE) -> None:
        self.dsn = dsn
        self.worker_dsn = worker_dsn or dsn
        self.folder = folder
        self.lease = lease
        self.ledger = Ledger(folder / "ledger")
        self.app = App(settings=Settings(dsn=dsn))
        self.client = self.app.client
        self.workers: list[WorkerProcess] = []
        self.enqueued: list[int] = []

    # -- workers -----------------------------------------------------------------------------------------------------

    def start(self, *options: str, ready: bool = True, **environment: str) -> WorkerProcess:
        """One more worker."""
        command = [sys.executable, "-m", "pgqueue", "worker", "--app", "scenarios.scenario_tasks:app", *options]
        times = {"LEASE_DURATION": self.lease, "LEASE_CHECK_INTERVAL": SWEEP, "POLL_INTERVAL": POLL}
        settings = {f"PGQUEUE_{name}": f"{value}s" for name, value in times.items()}
        worker = WorkerProcess(
            command,
            {
                **os.environ, "PYTHONPATH": str(TESTS), "PGQUEUE_DSN": self.worker_dsn,
                "SCENARIO_LEDGER": str(self.ledger.path), **settings, **environment,
            },
            self.folder / f"worker-{len(self.workers) + 1}.log",
        )  # fmt: skip
        self.workers.append(worker)
        return worker.wait_until_ready() if ready else worker

    def start_many(self, count: int, *options: str) -> list[WorkerProcess]:
        """Several at once."""
        started = [self.start(*options, ready=False) for _ in range(count)]
        return [worker.wait_until_ready() for worker in started]

    def logs(self) -> str:
        return "\n".join(f"== {worker.log.name}\n{worker.log.read_text()[-4000:]}" for worker in self.workers)

    def end(self) -> None:
        for worker in self.workers:
            worker.end()
        self.app.close()

    # -- jobs --------------------------------------------------------------------------------------------------------

    def enqueue(self, task: str, payload: dict[str, Any] | None = None, **options: Any) -> int:
        job_id = self.client.enqueue(JobSpec.make(task, payload, **options))
        self.enqueued.append(job_id)
        return job_id

    def enqueue_many(self, task: str, payloads: Sequence[dict[str, Any]], **options: Any) -> list[int]:
        ids = self.client.enqueue_many([JobSpec.make(task, payload, **options) for payload in payloads])
        self.enqueued += ids
        return ids

    def get(self, job_id: int) -> JobRecord:
        return self.client.get(job_id)

    def states(self) -> dict[str, int]:
        """How many jobs are in each state."""
        return dict(self.query("SELECT state, count(*)::int FROM pgqueue.all_jobs GROUP BY 1"))  # type: ignore[arg-type]

    def query(self, sql: str, *params: Any) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            cursor = connection.execute(sql, params or None)  # type: ignore[call-overload]
            return cursor.fetchall() if cursor.description else []

    # -- events ------------------------------------------------------------------------------------------------------

    def until_started(self, job_id: int, times: int = 1) -> None:
        until(lambda: len(self.ledger.entries("start", job_id)) >= times, f"job {job_id} runs ({times}.)", self.logs)

    def until_state(self, job_id: int, *states: str, within: float = PATIENCE) -> JobRecord:
        until(
            lambda: self.get(job_id).state in states, f"job {job_id} is {' or '.join(states)}",
            lambda: f"{self.get(job_id)}\n{self.logs()}", within,
        )  # fmt: skip
        return self.get(job_id)

    def until_finished(self, within: float = PATIENCE) -> float:
        """Nothing live is left; answers how long it took."""
        began = time.monotonic()
        until(
            lambda: self.query("SELECT 1 FROM pgqueue.jobs LIMIT 1") == [], "everything is finished",
            lambda: f"{self.states()}\n{self.logs()}", within,
        )  # fmt: skip
        return time.monotonic() - began

    def until_completed(self, *job_ids: int, within: float = PATIENCE) -> list[JobRecord]:
        for job_id in job_ids:
            self.until_state(job_id, "completed", within=within)
        return [self.get(job_id) for job_id in job_ids]

    # -- the audit ---------------------------------------------------------------------------------------------------

    def audit(self, *, enqueued: Sequence[int] | None = None) -> None:
        """Conservation by id; what is completed has run to its end in the ledger, under the token that finished it;
        no job was started more often than its attempts and refunds allow."""
        check(self.dsn, self.enqueued if enqueued is None else enqueued)
        ends = {(entry.job, entry.token) for entry in self.ledger.entries("end")}
        finished = self.query("SELECT id, lease_token FROM pgqueue.history WHERE state = 'completed'")
        unproved = [row for row in finished if row not in ends]
        assert not unproved, f"completed, but no run under that token came to its end: {unproved}"
        known = set(self.enqueued if enqueued is None else enqueued)
        assert {entry.job for entry in self.ledger.entries()} <= known, "only what was committed has run"
        tokens = [(entry.job, entry.token) for entry in self.ledger.entries("start")]
        assert len(tokens) == len(set(tokens)), "one run per lease token"

    def executed_once(self) -> None:
        """No job was started twice."""
        assert set(self.ledger.runs().values()) == {1}
        assert self.ledger.runs().keys() == set(self.enqueued)


def until(look: Callable[[], T], what: str, facts: Callable[[], object] | None = None, within: float = PATIENCE) -> T:
    """Look until the answer is true; errors of a server that is away count as false."""
    end = time.monotonic() + within
    while True:
        try:
            answer = look()
        except psycopg.OperationalError:
            answer = None  # type: ignore[assignment]
        if answer:
            return answer
        if time.monotonic() > end:
            raise AssertionError(f"not within {within:g} s: {what}\n{facts() if facts else ''}")
        time.sleep(0.02)
