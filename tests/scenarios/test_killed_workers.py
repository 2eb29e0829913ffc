"""Workers that are killed, frozen, started and stopped at random: nothing is lost, nothing finishes twice."""

from __future__ import annotations

import os
import random
import signal
import time
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from scenarios.harness import LEASE, PATIENCE, SWEEP, until

if TYPE_CHECKING:
    from scenarios.harness import Story

pytestmark = pytest.mark.slow


@pytest.fixture
def lease() -> float:
    return LEASE


def test_a_job_whose_worker_was_killed_is_completed_by_another_after_the_lease_and_not_before(story: Story) -> None:
    first = story.start()
    done = story.enqueue("nap")
    story.until_completed(done)
    job = story.enqueue("hold")
    story.until_started(job)
    second = story.start()
    first.kill()
    killed = time.monotonic()
    ((now, expires),) = story.query("SELECT clock_timestamp(), lease_until FROM pgqueue.leases")
    assert (expires - now).total_seconds() <= LEASE
    story.until_started(job, 2)
    before, after = story.ledger.entries("start", job)
    print(f"MEASURED recovery after kill -9: {after.time - killed:.2f} s (lease {LEASE:g} s, sweep {SWEEP:g} s)")
    assert story.get(job).started_at >= expires, "by the server's clock"
    assert (before.pid, after.pid) == (first.pid, second.pid)
    story.ledger.say_go()
    record = story.until_completed(job)[0]
    assert (record.attempt, [error["type"] for error in record.errors]) == (2, ["LeaseExpired"])
    assert story.ledger.runs()[done] == 1, "a completed job is never claimed again"
    story.audit()


def test_a_job_is_never_taken_from_a_worker_that_lives(story: Story) -> None:
    story.start_many(2)
    ids = [story.enqueue(task, {"seconds": 2 * LEASE}) for task in ("nap", "toil", "block")]
    story.until_finished()
    assert story.states() == {"completed": len(ids)}
    story.executed_once()
    story.audit()


@pytest.mark.parametrize("task", ["hold", "hold_thread"])
def test_a_frozen_worker_that_wakes_after_its_lease_changes_nothing_and_learns_it(story: Story, task: str) -> None:
    first = story.start()
    job = story.enqueue(task)
    story.until_started(job)
    first.send(signal.SIGSTOP)
    second = story.start()
    story.until_started(job, 2)
    first.send(signal.SIGCONT)
    until(lambda: story.ledger.entries("cancelled", job), "the stale run is told to stop", story.logs)
    assert story.get(job).state == "running", "the other one still has it"
    story.ledger.say_go()
    story.until_completed(job)
    assert [entry.pid for entry in story.ledger.entries("cancelled", job)] == [first.pid]
    assert [entry.pid for entry in story.ledger.entries("end", job)] == [second.pid]
    assert first.stop() == 0
    story.audit()


def test_a_frozen_worker_that_wakes_after_another_has_completed_its_job_is_refused(story: Story) -> None:
    first = story.start()
    job = story.enqueue("hold_thread")
    story.until_started(job)
    first.send(signal.SIGSTOP)
    second = story.start()
    story.until_started(job, 2)
    story.ledger.say_go()  # both will end, one of them too late
    record = story.until_completed(job)[0]
    second.kill()
    first.send(signal.SIGCONT)
    story.until_completed(story.enqueue("nap"))  # by the one that was frozen
    assert first.stop() == 0
    assert len(story.ledger.entries("end", job)) == 2
    assert "lease" in first.log.read_text(), "it was refused, and says so"
    assert (story.get(job).finished_at, story.get(job).attempt) == (record.finished_at, 2)
    story.audit()


def test_jobs_survive_workers_that_start_and_stop_at_random(story: Story) -> None:
    chance = random.Random(1)
    alive = story.start_many(2, "--slots", "5")
    for _ in range(8):
        story.enqueue_many("nap", [{"seconds": chance.choice([0, 0.01, 0.1, 0.3])} for _ in range(40)], max_attempts=50)
        story.enqueue_many("toil", [{"seconds": chance.choice([0, 0.05])} for _ in range(10)], max_attempts=50)
        match chance.choice(["start", "kill", "term", "wait"]):
            case "start":
                alive.append(story.start("--slots", "5", ready=False))
            case "kill" if len(alive) > 1:
                alive.pop(chance.randrange(len(alive))).kill()
            case "term" if len(alive) > 1:
                assert alive.pop(chance.randrange(len(alive))).stop() in {0, -signal.SIGTERM}
        before = len(story.ledger.entries("end"))
        until(lambda before=before: len(story.ledger.entries("end")) > before + 10, "work goes on", story.logs)
    alive.append(story.start("--slots", "20"))
    took = story.until_finished()
    print(f"MEASURED finished {took:.1f} s after the last fault")
    assert story.states() == {"completed": 400}
    assert story.ledger.runs().keys() == set(story.enqueued)
    story.audit()


def test_scaling_from_1_to_5_to_2_workers_under_load_loses_nothing(story: Story) -> None:
    story.start("--slots", "4")
    story.enqueue_many("nap", [{"seconds": 0.02}] * 600)
    story.start_many(4, "--slots", "4")
    story.enqueue_many("toil", [{"seconds": 0.01}] * 200)
    until(lambda: len({e.pid for e in story.ledger.entries("start")}) == 5, "all five work", story.logs)
    for worker in story.workers[:3]:
        worker.send(signal.SIGTERM)
    story.enqueue_many("nap", [{"seconds": 0.02}] * 200)
    assert [worker.process.wait(PATIENCE) for worker in story.workers[:3]] == [0, 0, 0]
    story.until_finished()
    assert story.states() == {"completed": 1000}
    story.executed_once()
    story.audit()


def test_a_handler_that_ends_its_worker_is_buried_and_its_neighbours_lose_nothing(story: Story) -> None:
    """Neighbours have no more attempts than it has: after two dead workers it runs in a child process, alone."""
    supervisor = story.start("--processes", "2", "--slots", "12")
    neighbours = story.enqueue_many("nap", [{"seconds": 0.6}] * 10, max_attempts=3)
    killer = story.enqueue("die_async", max_attempts=3)
    record = story.until_state(killer, "dead")
    assert record.attempt == 3
    assert [error["type"] for error in record.errors] == ["LeaseExpired", "LeaseExpired", "HandlerCrashedError"]
    assert len(story.ledger.entries("start", killer)) == 3
    story.until_completed(*neighbours)
    assert supervisor.alive
    story.until_completed(story.enqueue("nap"))
    assert supervisor.stop() == 0
    story.audit()


@pytest.mark.measured
def test_an_isolated_handler_that_ends_its_process_costs_only_itself(story: Story) -> None:
    worker = story.start("--slots", "3")
    neighbours = story.enqueue_many("nap", [{"seconds": 1}] * 2)
    killer = story.enqueue("die_isolated", max_attempts=2)
    record = story.until_state(killer, "dead")
    assert [error["type"] for error in record.errors] == ["HandlerCrashedError"] * 2
    assert "status 9" in record.errors[0]["message"]
    story.until_completed(*neighbours)
    assert [story.ledger.runs()[job] for job in neighbours] == [1, 1]
    assert worker.stop() == 0
    story.audit()


def test_a_system_exit_in_a_task_that_the_handler_started_fails_only_that_job(story: Story) -> None:
    worker = story.start("--slots", "3")
    neighbour = story.enqueue("nap", {"seconds": 2})
    story.until_started(neighbour)
    bad = story.enqueue("exit_in_a_subtask", max_attempts=2)
    record = story.until_state(bad, "dead")
    story.until_completed(neighbour)
    assert story.ledger.runs()[neighbour] == 1, "the neighbour was not disturbed"
    assert [error["type"] for error in record.errors] == ["SystemExit"] * 2
    assert worker.alive
    story.audit()


def test_children_end_with_their_worker(story: Story) -> None:
    worker = story.start()
    job = story.enqueue("isolated_nap", {"seconds": 60})
    story.until_started(job)
    child = story.ledger.entries("start", job)[0].pid
    worker.kill()
    until(lambda: not is_running(child), "the child has ended with its parent")
    story.client.cancel(job)


def is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.measured
def test_the_supervisor_restarts_a_process_that_was_killed(story: Story) -> None:
    supervisor = story.start("--processes", "2", "--slots", "1")
    story.enqueue_many("nap", [{"seconds": 0.5}] * 4, max_attempts=20)
    first = until(lambda: story.ledger.entries("start"), "they run")[0]
    os.kill(first.pid, signal.SIGKILL)
    story.until_finished()
    until(lambda: story.enqueue("nap", {"seconds": 0.2}) and len({e.pid for e in story.ledger.entries()}) >= 3,
          "a third process works", story.logs)  # fmt: skip
    story.until_finished()
    assert supervisor.stop() == 0
    assert all(not is_running(entry.pid) for entry in story.ledger.entries()), "nothing is left running"
    story.audit()


def test_workers_end_when_their_supervisor_is_killed(story: Story) -> None:
    supervisor = story.start("--processes", "2", "--slots", "1")
    story.enqueue_many("nap", [{"seconds": 0.3}] * 4)
    story.until_finished()
    pids = {entry.pid for entry in story.ledger.entries()}
    supervisor.kill()
    until(lambda: not any(map(is_running, pids)), "the workers have ended in order", story.logs)
    story.audit()


def test_runs_of_one_job_do_not_overlap_but_after_an_expired_lease(story: Story) -> None:
    first, _ = story.start_many(2, "--slots", "2")
    ids = story.enqueue_many("nap", [{"seconds": 0.5}] * 6, max_attempts=5)
    story.until_started(ids[0])
    first.kill()
    killed = time.monotonic()
    story.until_finished()
    for earlier, later in pairwise(sorted(story.ledger.entries("start"), key=lambda e: (e.job, e.time))):
        if earlier.job == later.job:
            assert earlier.pid == first.pid
            assert later.time > killed
    story.audit()
