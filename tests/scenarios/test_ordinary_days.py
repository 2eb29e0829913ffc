"""Days on which nothing breaks: jobs of several lengths, many at once, scheduled, prioritised, failing."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from scenarios.harness import NEVER, until

if TYPE_CHECKING:
    from scenarios.harness import Story

SCALE = 0.2  # the seconds are told five times as fast, in the same ratios

pytestmark = pytest.mark.slow


def test_three_jobs_of_5_2_and_7_seconds_are_shared_by_two_workers(story: Story) -> None:
    story.start_many(2, "--slots", "2")
    ids = [story.enqueue("nap", {"seconds": SCALE * seconds}) for seconds in (5, 2, 7)]
    records = story.until_completed(*ids)
    assert [record.result for record in records] == [SCALE * 5, SCALE * 2, SCALE * 7]
    story.executed_once()
    ends = [entry.job for entry in story.ledger.entries("end")]
    assert ends == [ids[1], ids[0], ids[2]], "they ran side by side: the shortest ended first"
    story.audit()


def test_5_at_once_then_50_in_a_loop_then_1000_all_complete_once(story: Story) -> None:
    story.start_many(2, "--slots", "20")
    story.enqueue_many("toil", [{"seconds": 0.01}] * 5)
    for n in range(50):
        story.enqueue(("nap", "toil")[n % 2], {"seconds": 0.01})
    for task in ("nap", "toil"):
        story.enqueue_many(task, [{"seconds": 0}] * 500)
    story.until_finished()
    assert story.states() == {"completed": 1055}
    story.executed_once()
    assert len({entry.pid for entry in story.ledger.entries()}) == 2, "both workers took part"
    story.audit()


def test_a_hundred_threads_may_enqueue_at_once(story: Story) -> None:
    story.start("--slots", "20")
    with ThreadPoolExecutor(100) as threads:
        ids = list(threads.map(lambda n: story.enqueue("nap", {"seconds": 0}), range(300)))
    assert len(set(ids)) == 300
    story.until_finished()
    assert story.states() == {"completed": 300}
    story.executed_once()
    story.audit()


def test_a_job_scheduled_3_seconds_ahead_starts_within_a_second_of_its_time(story: Story) -> None:
    worker = story.start()
    at = datetime.now(UTC) + timedelta(seconds=3)
    ids = [story.enqueue("nap", run_at=at), story.enqueue("nap", delay=3.2)]
    story.until_completed(*ids)
    late = [(record.started_at - record.run_at).total_seconds() for record in map(story.get, ids) if record.started_at]
    print(f"MEASURED scheduled start: {late[0] * 1000:.1f} ms and {late[1] * 1000:.1f} ms after its time")
    assert all(seconds >= 0 for seconds in late), "none before its time"
    assert worker.alive
    story.audit()


def test_high_runs_before_normal_before_low(story: Story) -> None:
    ids = {priority: story.enqueue("nap", priority=priority) for priority in ("low", "normal", "high")}
    story.start("--slots", "1")
    story.until_finished()
    assert [entry.job for entry in story.ledger.entries("start")] == [ids["high"], ids["normal"], ids["low"]]
    story.audit()


def test_a_handler_that_always_fails_is_dead_after_its_attempts_and_can_be_redriven(story: Story) -> None:
    story.start()
    job = story.enqueue("fail", {"message": "no luck"}, max_attempts=3)
    record = story.until_state(job, "dead")
    assert (record.attempt, [error["attempt"] for error in record.errors]) == (3, [1, 2, 3])
    assert {error["message"] for error in record.errors} == {"no luck"}
    times = [entry.time for entry in story.ledger.entries("start", job)]
    assert all(later - earlier >= 0.2 for earlier, later in pairwise(times)), "it waited its 200 ms"
    assert story.client.redrive(task="fail") == 1
    record = until(lambda: (r := story.get(job)).state == "dead" and len(r.errors) == 6 and r, "it is dead again")
    assert record
    assert len(story.ledger.entries("start", job)) == 6
    story.audit()


def test_the_default_wait_is_two_seconds_then_four(story: Story) -> None:
    story.start()
    job = story.enqueue("doubling", max_attempts=3)
    story.until_state(job, "dead")
    first, second, third = [entry.time for entry in story.ledger.entries("start", job)]
    assert second - first >= 1.8, "less a tenth of jitter"
    assert third - second >= 3.6
    story.audit()


def test_a_job_of_an_unknown_task_waits_and_holds_nobody_up(story: Story) -> None:
    story.start("--slots", "1")
    strange = story.enqueue("from_another_planet", priority="high")
    story.until_completed(story.enqueue("nap"))
    record = story.get(strange)
    assert (record.state, record.attempt) == ("available", 0)
    story.audit()


def test_an_idle_worker_starts_a_job_at_once(story: Story) -> None:
    story.start("--poll", NEVER)  # so it is the bell that wakes it
    waits = []
    for _ in range(20):
        story.until_finished()
        began = time.monotonic()
        job = story.enqueue("nap")
        story.until_started(job)
        waits.append(story.ledger.entries("start", job)[0].time - began)
    waits.sort()
    print(f"MEASURED enqueue to start, idle: p50 {waits[10] * 1000:.1f} ms, worst {waits[-1] * 1000:.1f} ms")
    story.audit()
