"""Every verb in every state of a job, and the queue's verbs: cancel, retry, redrive, purge, pause, set_retention."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import invariants
import psycopg
import pytest
from peers import SCHEMA, Peer

from pgqueue import statements
from pgqueue.outcome import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable

LAST = '{"attempt": 1, "type": "E", "message": "boom"}'


def scheduled(peer: Peer) -> int:
    return peer.enqueue(delay=3600, max_attempts=3)


def available(peer: Peer) -> int:
    return peer.enqueue(max_attempts=3)


def running(peer: Peer) -> int:
    job_id = peer.enqueue(max_attempts=3)
    peer.claim()
    return job_id


def retrying(peer: Peer) -> int:
    return ended(peer, "retry", delay=3600.0)


def completed(peer: Peer) -> int:
    return ended(peer, "completed")


def dead(peer: Peer) -> int:
    return ended(peer, "dead")


def cancelled(peer: Peer) -> int:
    return ended(peer, "cancelled")


def missing(_: Peer) -> int:
    return 4_000_000_000


def ended(peer: Peer, verdict: str, **facts: Any) -> int:
    job_id = peer.enqueue(max_attempts=3)
    peer.end(peer.claim(), verdict, error=LAST, **facts)
    return job_id


MAKE: dict[str, Callable[[Peer], int]] = {
    maker.__name__: maker
    for maker in (scheduled, available, running, retrying, completed, dead, cancelled, missing)
}  # fmt: skip


@pytest.mark.parametrize("state", MAKE)
def test_a_job_is_in_the_state_that_it_was_put_in(one: Peer, state: str):
    assert one.state(MAKE[state](one)) == (None if state == "missing" else state)


CANCEL = {
    "scheduled": "cancelled",
    "available": "cancelled",
    "running": "running",
    "retrying": "cancelled",
    "completed": "completed",
    "dead": "dead",
    "cancelled": "cancelled",
    "missing": None,
}


@pytest.mark.parametrize(("state", "answer"), CANCEL.items())
def test_cancel_answers_the_state_it_leaves_the_job_in(one: Peer, state: str, answer: str | None, dsn: str):
    job_id = MAKE[state](one)
    before = one.job(job_id)
    assert one.cancel(job_id) == answer
    after = one.job(job_id)
    if state == "missing":
        assert after is None
        return
    assert after.state == answer
    assert (after.attempt, after.errors, after.payload) == (before.attempt, before.errors, before.payload)
    assert after.cancel_requested == (state == "running")
    if state in {"completed", "dead", "cancelled"}:
        assert after == before
    assert one.cancel(job_id) == answer, "twice is as good as once"
    invariants.check(dsn, [job_id])


def test_only_the_cancel_of_a_running_job_tells_workers(one: Peer, two: Peer):
    two.sql('LISTEN "pgqueue.cancel"')
    for state in ("available", "dead", "missing"):
        one.cancel(MAKE[state](one))
    job_id = running(one)
    one.begin()
    one.cancel(job_id)
    one.rollback()
    one.cancel(job_id)
    heard = [note.payload for note in two.connection.notifies(timeout=30, stop_after=1)]
    assert heard == [str(job_id)]


RETRY = {
    "scheduled": "available",
    "available": "available",
    "running": "running",
    "retrying": "available",
    "completed": "completed",
    "dead": "available",
    "cancelled": "available",
    "missing": None,
}


@pytest.mark.parametrize(("state", "answer"), RETRY.items())
def test_retry_runs_what_waits_or_failed_and_leaves_the_rest_alone(one: Peer, state: str, answer: str | None, dsn: str):
    job_id = MAKE[state](one)
    before = one.job(job_id)
    assert one.retry(job_id) == answer
    after = one.job(job_id)
    if state == "missing":
        return
    assert after.state == answer
    if state in {"running", "completed"}:
        assert after == before
        return
    again = state in {"dead", "cancelled"}
    assert after.attempt == (0 if again else before.attempt), (
        "an ended job gets all its attempts, a waiting one its rest"
    )
    assert after.errors == before.errors
    assert (after.created_at, after.max_attempts, after.finished_at) == (before.created_at, 3, None)
    assert one.claim().ids == [job_id]
    invariants.check(dsn, [job_id])


def test_a_retried_job_keeps_everything_that_makes_it_what_it_is(one: Peer):
    job_id = one.enqueue("t", {"a": 1}, queue="q", priority=2, max_attempts=4, timeout=9, unique_key="k", meta={"m": 1})
    before = one.job(job_id)
    one.end(one.claim(queues=["q"]), "dead", error=LAST, result="3")
    one.retry(job_id)
    after = one.job(job_id)
    for name in ("task", "payload", "queue", "priority", "max_attempts", "timeout", "unique_key", "meta", "created_at"):
        assert getattr(after, name) == getattr(before, name), name
    assert (after.result, after.worker, after.started_at) == (None, None, None)


def test_a_dead_job_whose_key_is_held_by_a_live_one_stays_dead(one: Peer, dsn: str):
    first = one.enqueue(unique_key="k")
    one.end(one.claim(), "dead")
    second = one.enqueue(unique_key="k")
    assert one.retry(first) == "dead"
    assert one.run(statements.redrive(None, None, 10, schema=SCHEMA)) == 0
    one.end(one.claim())
    assert one.retry(first) == "available"
    invariants.check(dsn, [first, second])


def test_of_two_dead_jobs_with_one_key_one_comes_back(one: Peer, dsn: str):
    ids = []
    for _ in range(2):
        ids.append(one.enqueue(unique_key="k"))
        one.end(one.claim(), "dead")
    assert one.run(statements.redrive(None, None, 10, schema=SCHEMA)) == 1
    assert sorted(one.state(job_id) for job_id in ids) == ["available", "dead"]
    invariants.check(dsn, ids)


def test_a_verb_in_a_transaction_that_is_rolled_back_did_nothing(one: Peer, dsn: str):
    ids = [scheduled(one), dead(one), available(one)]
    one.begin()
    one.cancel(ids[0])
    one.retry(ids[1])
    one.run(statements.purge("default", schema=SCHEMA))
    one.run(statements.pause("default", schema=SCHEMA))
    one.rollback()
    assert [one.state(job_id) for job_id in ids] == ["scheduled", "dead", "available"]
    assert one.claim().ids == [ids[2]]
    invariants.check(dsn, ids)


# -- redrive ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [state for state in MAKE if state != "missing"])
def test_redrive_brings_back_the_dead_and_nobody_else(one: Peer, state: str, dsn: str):
    job_id = MAKE[state](one)
    assert one.run(statements.redrive(None, None, 10, schema=SCHEMA)) == (state == "dead")
    assert one.state(job_id) == ("available" if state == "dead" else state)
    invariants.check(dsn, [job_id])


def test_redrive_takes_the_oldest_of_a_queue_and_task_up_to_its_limit(one: Peer, dsn: str):
    ids = [one.enqueue(task, queue=queue) for task in "ab" for queue in ("p", "q") for _ in range(2)]
    for claim in iter(lambda: one.claim(1, queues=["p", "q"]), None):
        if not claim.ids:
            break
        one.end(claim, "dead")

    def redrive(queue: str | None, task: str | None, limit: int) -> int:
        return one.run(statements.redrive(queue, task, limit, schema=SCHEMA))

    assert redrive("nowhere", None, 10) == 0
    assert redrive("p", "a", 1) == 1
    assert [one.state(i) for i in ids[:2]] == ["available", "dead"]
    assert redrive("p", None, 10) == 3
    assert redrive(None, "b", 10) == 2
    assert redrive(None, None, 10) == 2
    assert redrive(None, None, 10) == 0
    invariants.check(dsn, ids)


def test_redrive_and_retry_ring_the_bell_of_their_queue(one: Peer, two: Peer):
    ids = []
    for _ in range(2):
        ids.append(one.enqueue(queue="q"))
        one.end(one.claim(queues=["q"]), "dead")
    two.sql('LISTEN "pgqueue.wake"')
    assert two.value("SELECT pg_try_advisory_lock_shared(pgqueue.bell_key('q'))")
    one.retry(ids[0])
    one.run(statements.redrive(None, None, 10, schema=SCHEMA))
    assert [note.payload for note in two.connection.notifies(timeout=30, stop_after=2)] == ["q", "q"]


# -- purge -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [state for state in MAKE if state != "missing"])
def test_purge_deletes_what_waits_and_nothing_else(one: Peer, state: str):
    job_id = MAKE[state](one)
    other = one.enqueue(queue="other")
    waits = state in {"scheduled", "available", "retrying"}
    assert one.run(statements.purge("default", schema=SCHEMA)) == int(waits)
    assert one.state(job_id) == (None if waits else state)
    assert one.state(other) == "available"


@pytest.mark.parametrize("state", [state for state in MAKE if state != "missing"])
def test_purge_dead_deletes_dead_letters_and_nothing_else(one: Peer, state: str):
    job_id = MAKE[state](one)
    assert one.run(statements.purge_dead(None, schema=SCHEMA)) == (state == "dead")
    assert one.state(job_id) == (None if state == "dead" else state)


def test_purge_dead_may_be_told_the_queue(one: Peer):
    dead(one)
    assert one.run(statements.purge_dead("other", schema=SCHEMA)) == 0
    assert one.run(statements.purge_dead("default", schema=SCHEMA)) == 1


# -- pause, resume, retention ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [state for state in MAKE if state != "missing"])
def test_a_pause_lets_every_job_be_what_it_is(one: Peer, state: str):
    job_id = MAKE[state](one)
    before = one.job(job_id)
    assert one.run(statements.pause("default", schema=SCHEMA)) is True
    assert one.job(job_id) == before
    assert one.claim().ids == []


def test_what_runs_in_a_paused_queue_goes_on(one: Peer):
    job_id = one.enqueue()
    claim = one.claim()
    one.run(statements.pause("default", schema=SCHEMA))
    assert one.renew(claim) == {job_id: False}
    assert one.finish((job_id, claim.token, Outcome("completed")), done=[claim.token]) == []


def test_pause_and_resume_answer_whether_that_was_a_change(one: Peer):
    def pause() -> bool:
        return one.run(statements.pause("q", schema=SCHEMA))

    def resume() -> bool:
        return one.run(statements.resume("q", schema=SCHEMA))

    assert [resume(), pause(), pause(), resume(), resume(), pause()] == [False, True, False, True, False, True]


def test_resume_rings_the_bell(one: Peer, two: Peer):
    one.run(statements.pause("q", schema=SCHEMA))
    two.sql('LISTEN "pgqueue.wake"')
    assert two.value("SELECT pg_try_advisory_lock_shared(pgqueue.bell_key('q'))")
    one.run(statements.resume("q", schema=SCHEMA))
    assert [note.payload for note in two.connection.notifies(timeout=30, stop_after=1)] == ["q"]


@pytest.mark.parametrize("queue", ["", "x" * 129, None])
def test_a_queue_that_no_job_could_be_in_is_not_paused(one: Peer, queue: str | None):
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="queue must have 1 to 128 characters"):
        one.sql("SELECT pgqueue.pause(%s)", queue)


def test_each_outcome_has_a_retention_of_its_own(one: Peer):
    assert one.run(statements.retention(schema=SCHEMA)) == {
        "completed": timedelta(days=7),
        "dead": timedelta(days=90),
        "cancelled": timedelta(days=30),
    }
    assert one.run(statements.set_retention("dead", timedelta(hours=36), schema=SCHEMA)) == "dead"
    assert one.run(statements.retention(schema=SCHEMA))["dead"] == timedelta(hours=36)


@pytest.mark.parametrize("state", ["available", "running"])
def test_what_is_no_outcome_has_no_retention(one: Peer, state: str):
    assert one.run(statements.set_retention(state, timedelta(days=1), schema=SCHEMA)) is None


def test_a_negative_retention_is_refused(one: Peer):
    with pytest.raises(psycopg.errors.CheckViolation, match="retention_is_positive"):
        one.run(statements.set_retention("dead", timedelta(days=-1), schema=SCHEMA))


def test_the_counts_of_a_queue_add_up(one: Peer):
    for maker in (completed, dead, cancelled, retrying, scheduled, running, available):
        maker(one)
    one.enqueue(queue="other")
    one.run(statements.pause("empty", schema=SCHEMA))
    stats = {stat.queue: stat for stat in one.run(statements.queue_stats(schema=SCHEMA))}
    default = stats["default"]
    assert (default.available, default.scheduled, default.retrying, default.running) == (1, 1, 1, 1)
    assert (default.completed, default.dead, default.cancelled, default.paused) == (1, 1, 1, False)
    assert default.oldest_ready_seconds >= 0
    assert stats["other"].available == 1
    assert (stats["empty"].paused, stats["empty"].available) == (True, 0)
