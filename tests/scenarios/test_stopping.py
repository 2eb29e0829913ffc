"""SIGTERM and Ctrl-C: finish within the grace period, or give back with the attempt refunded; the exit code tells."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from scenarios.harness import NEVER, PATIENCE, until

if TYPE_CHECKING:
    from scenarios.harness import Story

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_twenty_running_jobs_are_finished_within_the_grace_period(story: Story, number: int) -> None:
    worker = story.start("--slots", "20")
    running = story.enqueue_many("nap", [{"seconds": 1}] * 10) + story.enqueue_many("toil", [{"seconds": 1}] * 10)
    waiting = story.enqueue_many("nap", [{"seconds": 1}] * 20)
    until(lambda: len(story.ledger.entries("start")) == 20, "twenty run", story.logs)
    assert worker.stop(number) == 0
    assert {story.get(job).state for job in running} == {"completed"}
    records = [story.get(job) for job in waiting]
    assert {(record.state, record.attempt) for record in records} == {("available", 0)}, "none of the others was begun"
    story.start("--slots", "20")
    story.until_finished()
    story.executed_once()
    assert story.query("SELECT DISTINCT attempt FROM pgqueue.history") == [(1,)]
    story.audit()


@pytest.mark.parametrize("task", ["nap", "toil", "isolated_nap"])
def test_jobs_that_outlast_the_grace_period_are_given_back_without_blame(story: Story, task: str) -> None:
    count = 2 if task == "isolated_nap" else 20
    worker = story.start("--slots", str(count), "--shutdown-timeout", "500ms")
    ids = story.enqueue_many(task, [{"seconds": 300}] * count)
    until(lambda: len(story.ledger.entries("start")) == count, "all run", story.logs)
    began = time.monotonic()
    assert worker.stop() == 1
    print(f"MEASURED stop with {count} {task} jobs and a grace of 0.5 s: {time.monotonic() - began:.2f} s")
    records = [story.get(job) for job in ids]
    assert {record.state for record in records} <= {"available", "scheduled"}
    assert {(record.attempt, len(record.errors)) for record in records} == {(0, 0)}, "the attempt is refunded"
    assert story.query("SELECT count(*) FROM pgqueue.leases") == [(0,)], "no lease is left behind"
    story.audit()


@pytest.mark.measured
def test_a_second_signal_gives_running_jobs_back_at_once(story: Story) -> None:
    worker = story.start("--slots", "20")
    ids = story.enqueue_many("nap", [{"seconds": 300}] * 20)
    until(lambda: len(story.ledger.entries("start")) == 20, "twenty run", story.logs)
    worker.send(signal.SIGINT)
    until(lambda: "stopping" in worker.log.read_text(), "it has heard the first", story.logs)
    assert worker.stop(signal.SIGTERM) == 1
    assert {(story.get(job).state, story.get(job).attempt) for job in ids} == {("available", 0)}
    story.audit()


def test_jobs_of_a_stopped_worker_run_elsewhere_at_once(story: Story) -> None:
    first = story.start("--slots", "5", "--shutdown-timeout", "100ms", "--lease", "5m")
    ids = story.enqueue_many("hold", [{}] * 5)
    until(lambda: len(story.ledger.entries("start")) == 5, "five run", story.logs)
    story.start("--slots", "5")
    assert first.stop() == 1
    until(lambda: len(story.ledger.entries("start")) == 10, "they run again", story.logs)  # long before the lease
    story.ledger.say_go()
    story.until_completed(*ids)
    assert story.query("SELECT DISTINCT attempt FROM pgqueue.history") == [(1,)]
    story.audit()


def test_an_idle_worker_stops_at_once(story: Story) -> None:
    worker = story.start("--poll", NEVER)
    assert worker.stop() == 0
    assert story.query("SELECT count(*) FROM pgqueue.workers") == [(0,)]


def test_a_handler_that_does_not_listen_cannot_hold_up_the_stop(story: Story) -> None:
    worker = story.start("--shutdown-timeout", "200ms")
    job = story.enqueue("stubborn")
    story.until_started(job)
    assert worker.stop() == 1
    record = story.get(job)
    assert (record.attempt, len(record.errors)) == (0, 0)
    assert record.state in {"available", "scheduled"}
    story.audit()


def test_a_supervisor_passes_the_signal_on_and_waits_for_all(story: Story) -> None:
    supervisor = story.start("--processes", "2", "--slots", "4")
    ids = story.enqueue_many("nap", [{"seconds": 1}] * 8)
    until(lambda: len(story.ledger.entries("start")) == 8, "all run", story.logs)
    assert supervisor.stop() == 0
    assert {story.get(job).state for job in ids} == {"completed"}
    story.executed_once()
    story.audit()


@pytest.mark.parametrize("to", ["the process group", "everybody"])
def test_a_signal_to_the_whole_group_lets_isolated_jobs_finish(story: Story, to: str) -> None:
    """A terminal signals the worker's process group, systemd all its descendants: children do not end of that."""
    worker = story.start("--slots", "2")
    ids = story.enqueue_many("isolated_hold", [{}] * 2)
    until(lambda: len(story.ledger.entries("start")) == 2, "both run", story.logs)
    if to == "everybody":
        worker.send_to_everybody(signal.SIGTERM)
    else:
        os.killpg(worker.pid, signal.SIGTERM)
    until(lambda: "stopping" in worker.log.read_text() or not worker.alive, "it has heard", story.logs)
    story.ledger.say_go()
    assert worker.process.wait(PATIENCE) == 0
    assert {(story.get(job).state, story.get(job).attempt) for job in ids} == {("completed", 1)}, story.logs()
    story.executed_once()
    story.audit()


@pytest.mark.parametrize("grace", ["60s", "100ms"])
def test_a_signal_to_a_supervisor_and_all_its_copies_costs_no_job_an_attempt(story: Story, grace: str) -> None:
    supervisor = story.start("--processes", "2", "--slots", "2", "--shutdown-timeout", grace)
    ids = story.enqueue_many("hold", [{}] * 4)
    until(lambda: len(story.ledger.entries("start")) == 4, "all run", story.logs)
    supervisor.send_to_everybody(signal.SIGTERM)
    until(lambda: "stopping" in supervisor.log.read_text(), "they have heard", story.logs)
    if grace == "60s":
        story.ledger.say_go()
    code = supervisor.process.wait(PATIENCE)
    found = {(record.state, record.attempt, len(record.errors)) for record in map(story.get, ids)}
    # on a machine that keeps the supervisor's echo back for long, the echo is a second signal: then they are given back
    assert found <= {("completed", 1, 0), ("available", 0, 0)}
    assert code == (1 if ("available", 0, 0) in found else 0)
    assert grace == "60s" or code == 1
    assert story.query("SELECT count(*) FROM pgqueue.leases") == [(0,)]
    story.audit()
