"""What the chaos tests share: producers that go on through faults, an observer of what was acknowledged, the audit."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from scenarios.harness import PATIENCE, Story, WorkerProcess, until

from pgqueue import App, DatabaseError, JobSpec, Settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from pgqueue.embedded import PostgresServer

LONG = os.environ.get("PGQUEUE_CHAOS") == "long"  # read at import: the fixtures clean the environment
LEASE = 1.5  # seconds: leases are meant to run out here
TASKS = "chaos.chaos_tasks:app"
long_only = pytest.mark.skipif(not LONG, reason="minutes long; PGQUEUE_CHAOS=long pytest tests/chaos -s runs it")


def start(story: Story, *options: str, ready: bool = True, **environment: str) -> WorkerProcess:
    """One more worker, with the chaos tasks."""
    return story.start("--app", TASKS, *options, ready=ready, **environment)


def start_many(story: Story, count: int, *options: str, **environment: str) -> list[WorkerProcess]:
    started = [start(story, *options, ready=False, **environment) for _ in range(count)]
    return [worker.wait_until_ready() for worker in started]


class Producer(threading.Thread):
    """Enqueues one job after another through faults, until told to stop.

    Each job has a key, and is said again until it is acknowledged: ``acknowledged`` is certain; a reply that was
    lost makes at most one job more (when the first one had finished before it was said again), so ``unsure`` of them.
    """

    def __init__(
        self, dsn: str, name: str, tasks: list[tuple[str, dict[str, Any]]], *, rate: float = 200.0, limit: int = 100_000
    ) -> None:
        super().__init__(daemon=True)
        self.app = App(settings=Settings(dsn=dsn))
        self.key = name
        self.tasks = tasks
        self.pause = 1 / rate
        self.limit = limit
        self.acknowledged: list[int] = []
        self.gaps: list[float] = []
        self.unsure = 0
        self.errors: list[str] = []
        self.broken: BaseException | None = None
        self._stop_now = threading.Event()
        self.start()

    def run(self) -> None:
        try:
            while not self._stop_now.is_set() and len(self.acknowledged) < self.limit:
                nth = len(self.acknowledged)
                task, payload = self.tasks[nth % len(self.tasks)]
                spec = JobSpec.make(task, payload, max_attempts=1000, unique_key=f"{self.key}-{nth}")
                self._enqueue(spec)
                time.sleep(self.pause)
        except BaseException as error:  # noqa: BLE001 - the story asks for it at its end
            self.broken = error
        finally:
            self.app.close()

    def _enqueue(self, spec: JobSpec) -> None:
        began = time.monotonic()
        while True:
            try:
                self.acknowledged.append(self.app.client.enqueue(spec))
            except DatabaseError as error:
                self.unsure += 1
                self.errors.append(str(error))
                if self._stop_now.wait(0.1):
                    return
            else:
                self.gaps.append(time.monotonic() - began)
                return

    def finish(self) -> None:
        self._stop_now.set()
        self.join(PATIENCE)
        assert not self.is_alive(), "the producer hangs"
        if self.broken:
            raise AssertionError(f"the producer broke: {self.broken!r}") from self.broken


class Observer(threading.Thread):
    """Reads, all the time, what one server says is completed: a finish that was seen was acknowledged."""

    def __init__(self, dsn: str) -> None:
        super().__init__(daemon=True)
        self.dsn = dsn
        self.seen: dict[int, int] = {}
        self._stop_now = threading.Event()
        self.start()

    def run(self) -> None:
        try:
            with psycopg.connect(self.dsn, autocommit=True) as connection:
                while not self._stop_now.wait(0.02):
                    rows = connection.execute("SELECT id, lease_token FROM pgqueue.history WHERE state = 'completed'")
                    self.seen.update(rows.fetchall())
        except psycopg.Error:
            return  # the server is gone; what was seen was seen

    def finish(self) -> dict[int, int]:
        self._stop_now.set()
        self.join(PATIENCE)
        return self.seen


def audit(story: Story, *producers: Producer, effects: bool = False) -> list[int]:
    """Conservation by id: what was acknowledged is there; what is there beyond it is explained by a lost reply.

    Answers all ids.
    """
    ids = [job for (job,) in story.query("SELECT id FROM pgqueue.all_jobs ORDER BY id")]
    acknowledged = {job for producer in producers for job in producer.acknowledged} | set(story.enqueued)
    missing = acknowledged - set(ids)
    assert not missing, f"acknowledged, and gone: {sorted(missing)}"
    surplus = set(ids) - acknowledged
    unsure = sum(producer.unsure for producer in producers)
    assert len(surplus) <= unsure, f"{len(surplus)} jobs that nobody enqueued; {unsure} replies were lost"
    story.audit(enqueued=ids)
    if effects:
        audit_effects(story)
    return ids


def audit_effects(story: Story) -> None:
    """Promise 5: one effect per completed job of those tasks, under the token that completed it, and no other."""
    done = story.query(
        "SELECT id, lease_token FROM pgqueue.history WHERE state = 'completed' AND task ~ '^transact' ORDER BY 1"
    )
    assert story.query("SELECT job, token FROM effects ORDER BY 1") == done


def no_user_saw(story: Story, *words: str) -> None:
    """No log and no job's errors hold these."""
    errors = str(story.query("SELECT errors FROM pgqueue.all_jobs WHERE errors IS NOT NULL"))
    for word in words:
        assert word not in errors, errors[:2000]


def kill_whole_server(server: PostgresServer) -> None:
    """-9 to the postmaster and everything that it has started: as a machine that loses its power."""
    postmaster = server._postmaster()
    assert postmaster is not None
    children = children_of(postmaster)
    for pid in [postmaster, *children]:
        _kill(pid)
    server._wait_gone()


def children_of(parent: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(status.read_text().rsplit(")", 1)[1].split()[1]) == parent:
                found.append(int(status.parent.name))
        except (OSError, IndexError):
            continue
    return found


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def wait_for(look: Callable[[], Any], what: str, story: Story, within: float = PATIENCE) -> Any:
    return until(look, what, story.logs, within)


def skip(reason: str) -> None:
    """Never silently: the reason is printed, too."""
    print(f"SKIPPED: {reason}")
    pytest.skip(reason)
