"""A soak: workers killed, frozen, thawed and stopped at random, connections terminated; the ledger is the judge."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING

import psycopg
import pytest
from invariants import check
from scenarios.harness import Story

from chaos.chaos_tasks import EFFECTS
from chaos.tools import LEASE, LONG, Producer, audit, start
from pgqueue import App, Settings
from pgqueue.errors import DatabaseError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from scenarios.harness import WorkerProcess

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

SECONDS = 240.0 if LONG else 10.0
WORKERS = 4 if LONG else 2
# A worker costs a second of CPU to start: the short soak ends few of them.
FAULTS = ["kill", "stop", "cont", "term", "terminate", "cancel", "retry"]
FAULTS += ["terminate"] if LONG else ["stop", "cont", "terminate", "terminate", "cancel"]
WORK = [
    ("nap", {"seconds": 0.01}),
    ("transact", {"seconds": 0.01}),
    ("toil", {"seconds": 0.02}),
    ("flaky", {"failures": 1}),
    ("nap", {"seconds": 0.3}),
    ("transact_thread", {"seconds": 0.02}),
    ("reporting", {"seconds": 1.4}),
    ("nap", {}),
]


@pytest.fixture
def story(dsn: str, tmp_path: Path) -> Iterator[Story]:
    told = Story(dsn, tmp_path, lease=LEASE)
    told.query(EFFECTS)
    yield told
    told.end()


class Chaos:
    """One fault after another, and always a worker that lives."""

    def __init__(self, story: Story, seed: int) -> None:
        self.story = story
        self.chance = random.Random(seed)
        self.alive: list[WorkerProcess] = [start(story, "--slots", "8", ready=False) for _ in range(WORKERS)]
        for worker in self.alive:
            worker.wait_until_ready()
        self.frozen: list[WorkerProcess] = []
        self.stopped: list[WorkerProcess] = []
        self.ended: dict[int, float] = {}
        self.count: Counter[str] = Counter()
        self.canceller = App(settings=Settings(dsn=story.dsn))

    def strike(self, producers: list[Producer]) -> None:
        fault = self.chance.choice(FAULTS)
        self.count[fault] += 1
        match fault:
            case "kill" if len(self.alive) > 1:
                worker = self._take(self.alive + self.frozen)
                worker.kill()
            case "stop" if len(self.alive) > 1:
                worker = self._take(self.alive)
                worker.send(signal.SIGSTOP)
                self.frozen.append(worker)
            case "cont" if self.frozen:
                worker = self._take(self.frozen)
                worker.send(signal.SIGCONT)
                self.alive.append(worker)
            case "term" if len(self.alive) > 1:
                worker = self._take(self.alive)
                worker.send(signal.SIGTERM)
                self.stopped.append(worker)
            case "terminate":
                self._terminate_some()
            case "cancel" | "retry":
                self._meddle(fault, producers)
        while len(self.alive) < WORKERS - len(self.frozen) // 2:
            self.alive.append(start(self.story, "--slots", "8", ready=False))

    def _take(self, workers: list[WorkerProcess]) -> WorkerProcess:
        worker = self.chance.choice(workers)
        for some in (self.alive, self.frozen):
            if worker in some:
                some.remove(worker)
        return worker

    def _terminate_some(self) -> None:
        sql = (
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() ORDER BY 1"
        )
        pids = [pid for (pid,) in self.story.query(sql)]
        for pid in self.chance.sample(pids, k=min(len(pids), 3)):
            self.story.query("SELECT pg_terminate_backend(%s)", pid)

    def _meddle(self, verb: str, producers: list[Producer]) -> None:
        ids = [job for producer in producers for job in producer.acknowledged[-20:]]
        for job in self.chance.sample(ids, k=min(len(ids), 3)):
            try:
                getattr(self.canceller.client, verb)(job)
            except (DatabaseError, psycopg.Error):
                self.count["meddling that met a broken connection"] += 1
            except Exception as error:
                if type(error).__name__ != "JobStateError":
                    raise

    def calm(self) -> None:
        """The faults stop: what is frozen wakes, what was told to stop ends in order."""
        for worker in self.frozen:
            worker.send(signal.SIGCONT)
        self.alive += self.frozen
        self.canceller.close()
        for worker in self.stopped:
            code = worker.process.wait(60)
            assert code in {0, 1, 143, -signal.SIGTERM}, (code, worker.log.read_text()[-2000:])


def test_soak(story: Story) -> None:
    seed = int(time.time()) if LONG else 11
    print(f"seed {seed}")
    chaos = Chaos(story, seed)
    producers = [Producer(story.dsn, f"p{n}", WORK[n:] + WORK[:n], rate=40 if LONG else 25) for n in range(2)]
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        chaos.strike(producers)
        check(story.dsn)  # I1, I2 at this instant
        time.sleep(chaos.chance.uniform(0.05, 0.5) if LONG else chaos.chance.uniform(0.2, 0.6))
    for producer in producers:
        producer.finish()
    chaos.calm()
    took = story.until_finished(within=120)
    if took > 10:
        print("SLOWEST", *slowest(story), sep="\n")
    ids = audit(story, *producers, effects=True)
    states = story.states()
    runs = story.ledger.runs()
    print(
        f"MEASURED soak of {SECONDS:g} s: {dict(chaos.count)}; {len(story.workers)} workers; "
        f"{len(ids)} jobs, {sum(runs.values())} runs, {states}; "
        f"{sum(p.unsure for p in producers)} enqueues said again; finished {took:.2f} s after the faults"
    )
    assert set(states) <= {"completed", "cancelled"}, "none is dead: each had attempts enough"
    assert all(worker.alive for worker in chaos.alive), "no worker ended by itself"
    no_overlap_of_completed_runs(story)
    for worker in story.workers:
        text = worker.log.read_text()
        assert "Traceback" not in text, text[text.index("Traceback") - 500 :][:3000]


def no_overlap_of_completed_runs(story: Story) -> None:
    """A finished job is never started again: no start lies after the run that completed it has ended and landed."""
    done = dict(story.query("SELECT id, lease_token FROM pgqueue.history WHERE state = 'completed'"))
    starts = sorted(story.ledger.entries("start"), key=lambda entry: (entry.job, entry.time))
    for earlier, later in pairwise(starts):
        if earlier.job == later.job:
            assert done.get(earlier.job) != earlier.token or later.attempt < earlier.attempt, (
                f"job {earlier.job} was completed under token {earlier.token} and started again"
            )


def slowest(story: Story) -> list[object]:
    """What came last, for whoever wonders why it took so long."""
    return story.query(
        "SELECT id, task, attempt, created_at::text, started_at::text, finished_at::text, run_at::text, worker, "
        "jsonb_path_query_array(errors, '$[*].type')::text FROM pgqueue.history ORDER BY finished_at DESC LIMIT 4"
    )  # type: ignore[return-value]
