"""Workflows under real workers that are killed: every edge is met, every batch is counted, no order is broken."""

from __future__ import annotations

import random
import threading
from typing import TYPE_CHECKING

import flows
import psycopg
import pytest
from peers import Peer

from pgqueue import JobSpec
from pgqueue.errors import InvalidJobError, JobNotFoundError, JobStateError
from scenarios.harness import LEASE, LONG_LEASE, until

if TYPE_CHECKING:
    from scenarios.harness import Story

pytestmark = pytest.mark.slow


@pytest.fixture
def lease() -> float:
    return LEASE


def orders_broken(story: Story) -> list[tuple[int, int]]:
    """Jobs that started before one that they depend on had ended, by the outside ledger."""
    ends = {entry.job: entry.time for entry in story.ledger.entries("end")}
    starts = {}
    for entry in story.ledger.entries("start"):
        starts.setdefault(entry.job, entry.time)
    rows = story.query("SELECT id, unnest(depends_on) FROM pgqueue.all_jobs WHERE state = 'completed'")
    return [(job, up) for job, up in rows if job in starts and up in ends and starts[job] < ends[up]]


def verdict(story: Story, *, retried: bool = False) -> None:
    with Peer(story.dsn) as peer:
        flows.check(peer)
        assert not flows.stuck(peer)
    if not retried:
        assert orders_broken(story) == []
    ((deadlocks,),) = story.query("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    print(f"MEASURED deadlocks: {deadlocks}")


def test_workflows_survive_workers_that_are_killed(story: Story) -> None:
    """Layers of jobs that depend on random earlier ones, in batches, with a job after each batch."""
    chance = random.Random(7)
    alive = story.start_many(2, "--slots", "8")
    for nth in range(12):
        flow = story.app.workflow(f"w{nth}")
        steps = []
        for _ in range(25):
            task = chance.choice(["nap", "nap", "nap", "toil"])
            after = chance.sample(steps, min(len(steps), chance.choice([0, 1, 2, 5])))
            payload = {"seconds": chance.choice([0, 0, 0.02])}
            steps.append(flow.add(JobSpec.make(task, payload, max_attempts=50), after=after))
        flow.then(JobSpec.make("nap", {}, max_attempts=50))
        batch = flow.enqueue_sync()
        story.enqueued += [job.id for job in (*batch.jobs, *batch.followers)]
        if nth % 3 == 2:
            alive.pop(0).kill()
            alive.append(story.start("--slots", "8", ready=False))
    story.until_finished()
    assert story.states() == {"completed": 12 * 26}
    done = "SELECT count(*) FROM pgqueue.batches WHERE completed = 25 AND finished_at IS NOT NULL"
    assert story.query(done) == [(12,)]
    verdict(story)
    story.audit()


class Operators:
    """Several threads that enqueue, cancel, retry and redrive at random."""

    def __init__(self, story: Story) -> None:
        self.story = story
        self.made: list[int] = []
        self.batches: list[int] = []
        self.errors: list[BaseException] = []
        self._guard = threading.Lock()
        self._threads = [threading.Thread(target=self._work, args=[random.Random(300 + n)]) for n in range(4)]
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()
        assert not self.errors, self.errors

    def _work(self, chance: random.Random) -> None:
        acts = [self._job] * 3 + [self._retry] * 2
        acts += [self._flow, self._cancel, self._redrive, self._cancel_batch, self._grow]
        try:
            for _ in range(60):
                try:
                    chance.choice(acts)(chance)
                except (JobStateError, JobNotFoundError, IndexError):  # it has ended, or there is none yet
                    pass
                except InvalidJobError as error:
                    assert "no unfinished batch" in str(error) or "wait for itself" in str(error)  # noqa: PT017
        except BaseException as error:  # noqa: BLE001 - raised by join
            self.errors.append(error)

    def _job(self, chance: random.Random) -> None:
        self._remember([self.story.client.enqueue(self._spec(chance))])

    def _flow(self, chance: random.Random) -> None:
        flow = self.story.app.workflow()
        steps = [flow.add(self._spec(chance))]
        for _ in range(6):
            steps.append(flow.add(self._spec(chance, 0), after=chance.sample(steps, chance.choice([0, 1]))))
        batch = flow.then(self._spec(chance, 0)).enqueue_sync()
        self._remember([job.id for job in (*batch.jobs, *batch.followers)], batch.id)

    def _grow(self, chance: random.Random) -> None:
        specs = [self._spec(chance), self._spec(chance, 0)]
        batch = chance.choice(self.batches)
        self._remember([job.id for job in self.story.client.submit_many(specs, batch_id=batch)])

    def _cancel(self, chance: random.Random) -> None:
        self.story.client.cancel(chance.choice(self.made))

    def _retry(self, chance: random.Random) -> None:
        self.story.client.retry(chance.choice(self.made))

    def _redrive(self, _chance: random.Random) -> None:
        self.story.client.redrive(limit=5)

    def _cancel_batch(self, chance: random.Random) -> None:
        self.story.client.cancel_batch(chance.choice(self.batches))

    def _spec(self, chance: random.Random, most: int = 3) -> JobSpec:
        with self._guard:
            known = self.made + self.batches
        upstream = chance.sample(known, min(len(known), chance.randint(0, most)))
        task, payload = chance.choice([("nap", {}), ("nap", {"seconds": 0.01}), ("fail", {"message": "m"})])
        policy = chance.choice(["cancel", "continue", "hold"])
        return JobSpec.make(task, payload, max_attempts=1, depends_on=upstream, on_dead=policy)

    def _remember(self, jobs: list[int], *batches: int) -> None:
        with self._guard:
            self.made += jobs
            self.batches += batches


def test_whatever_operators_do_meanwhile_nobody_is_left_waiting(story: Story) -> None:
    """Failures, cancels, retries and redrives at random, from threads, while workers run and one is killed."""
    workers = story.start_many(2, "--slots", "8")
    operators = Operators(story)
    until(lambda: len(operators.made) > 100, "there is work", story.logs)
    workers[0].kill()
    story.start("--slots", "8")
    operators.join()
    live = "SELECT 1 FROM pgqueue.jobs WHERE state <> 'blocked' LIMIT 1"
    until(lambda: story.query(live) == [], "all that can has run", story.logs)
    story.enqueued += operators.made
    verdict(story, retried=True)
    with Peer(story.dsn) as peer:
        peer.sql("UPDATE pgqueue.dependencies SET on_dead = 'continue'")
        for upstream in peer.sql("SELECT DISTINCT upstream_id FROM pgqueue.dependencies"):
            peer.sql("SELECT pgqueue.settle(ARRAY[%s::bigint])", *upstream)
    until(lambda: story.query("SELECT 1 FROM pgqueue.jobs LIMIT 1") == [], "what was held runs when it may", story.logs)
    verdict(story, retried=True)
    assert story.query("SELECT count(*) FROM pgqueue.dependencies") == [(0,)]
    story.audit()


@pytest.mark.parametrize("lease", [LONG_LEASE])
def test_outcomes_land_while_somebody_holds_a_follower(story: Story) -> None:
    """The upstream of the locked one waits for the lock, its neighbours do not; then it lands, and once."""
    story.start("--slots", "8")
    first = story.enqueue("hold")
    follower = story.enqueue("nap", {}, depends_on=[first])
    story.until_started(first)
    with psycopg.connect(story.dsn) as holder:
        holder.execute("SELECT pgqueue.cancel(%s)", [follower])
        story.ledger.say_go()
        until(lambda: story.ledger.entries("end", first), "its handler has returned")
        story.until_completed(*story.enqueue_many("nap", [{}] * 20))
        assert story.get(first).state == "running"
        holder.rollback()
    story.until_completed(first, follower)
    assert story.ledger.runs()[first] == 1
    verdict(story)
    story.audit()
