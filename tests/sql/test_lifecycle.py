"""The life of a job, statement by statement: claim, finish, renew, sweep, progress, next_due, landed."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import permutations
from typing import TYPE_CHECKING, Any

import invariants
import psycopg
import pytest
from peers import LEASE, SCHEMA, Claim, Peer

from pgqueue import statements
from pgqueue.bigints import pack_bigints
from pgqueue.outcome import COMPLETED, RELEASED, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable

RETRY = Outcome("retry", error='{"attempt": 1, "type": "E", "message": "m"}', delay=10)
FIRST_OF_ALL = datetime(2000, 1, 1, tzinfo=UTC)
ENDS = ["completed", "dead", "cancelled"]
BACK = ["retry", "snooze", "release"]


# -- claim -----------------------------------------------------------------------------------------------------------


def test_a_claim_takes_the_job_under_one_lease_and_says_all_that_a_worker_needs(one: Peer):
    job_id = one.enqueue("mail", {"to": "a"}, queue="default", timeout=90, max_attempts=3, meta={"tag": "x"})
    claim = one.claim(lease=timedelta(seconds=60), worker="host-1")
    ((priority, run_at, found, queue, task, payload, attempt, most, timeout, meta, suspect),) = claim.rows
    assert not suspect
    assert (priority, found, queue, task, attempt, most, timeout) == (5, job_id, "default", "mail", 1, 3, 90.0)
    assert json.loads(payload) == {"to": "a"}
    assert json.loads(meta) == {"tag": "x"}
    record = one.job(job_id)
    assert record.state == "running"
    assert record.run_at.timestamp() == run_at
    assert record.worker == "host-1"
    assert record.started_at is not None
    assert record.lease_until - record.started_at == timedelta(seconds=60)
    lease = one.sql("SELECT token, worker, job_ids, lease_until FROM pgqueue.leases")
    assert lease == [(claim.token, "host-1", [job_id], record.lease_until)]


def test_an_empty_claim_writes_no_lease_row(one: Peer):
    one.enqueue(delay=60)
    one.begin()
    assert one.claim().ids == []
    assert one.value("SELECT pg_current_xact_id_if_assigned()") is None
    one.commit()
    assert one.leases() == []


def test_a_claim_of_zero_takes_nothing(one: Peer):
    one.enqueue()
    assert one.claim(0).ids == []
    assert one.leases() == []


def test_high_priority_comes_first_and_age_decides_within_one(one: Peer):
    low, normal, high = (one.enqueue(priority=p) for p in ("low", "normal", "high"))
    second = one.enqueue(priority="high")
    earlier = one.enqueue(run_at=FIRST_OF_ALL)
    assert one.claim(10).ids == [high, second, earlier, normal, low]


def test_the_limit_takes_the_most_urgent(one: Peer):
    ids = [one.enqueue(priority=p) for p in (9, 0, 5, 3)]
    assert one.claim(2).ids == [ids[1], ids[3]]
    assert one.claim(2).ids == [ids[2], ids[0]]


def test_future_jobs_of_a_higher_priority_do_not_hide_due_ones(one: Peer):
    one.sql("""INSERT INTO pgqueue.jobs (task, priority, run_at)
               SELECT 'later', 0, now() + interval '1 hour' FROM generate_series(1, 3000)""")
    due = one.enqueue(priority=9)
    assert one.claim(5).ids == [due]


def test_a_job_is_claimed_at_its_time_and_not_before(one: Peer):
    job_id = one.enqueue(delay=3600)
    assert one.claim().ids == []
    one.make_due(job_id)
    assert one.claim().ids == [job_id]


def test_only_the_lanes_asked_for_are_served_in_the_order_given(one: Peer):
    here, there = one.enqueue(queue="here"), one.enqueue(queue="there")
    one.enqueue(queue="elsewhere")
    where = statements.Lanes(["there", "here"], [5, 5], [None, None], [0, 0])
    first = statements.claim(where, None, 1, 77, timedelta(seconds=30), "w", schema=SCHEMA)
    assert [row[2] for row in one.run(first)] == [there]
    assert one.claim(queues=["here", "there"]).ids == [here]


def test_a_paused_queue_is_passed_over_and_served_again_when_resumed(one: Peer):
    paused, other = one.enqueue(queue="a"), one.enqueue(queue="b")
    one.run(statements.pause("a", schema=SCHEMA))
    assert one.claim(queues=["a", "b"]).ids == [other]
    assert one.next_due(queues=["a"]) is None
    one.run(statements.resume("a", schema=SCHEMA))
    assert one.claim(queues=["a", "b"]).ids == [paused]


def test_a_worker_claims_only_the_tasks_it_knows(one: Peer):
    unknown, known = one.enqueue("unknown"), one.enqueue("known")
    assert one.claim(tasks=["known", "other"]).ids == [known]
    assert one.claim(tasks=[]).ids == []
    assert one.claim(tasks=None).ids == [unknown]


def test_a_claim_begins_behind_its_mark(one: Peer):
    ids = [one.enqueue(run_at=FIRST_OF_ALL + timedelta(seconds=n)) for n in range(4)]
    mark = (FIRST_OF_ALL + timedelta(seconds=1), ids[1])
    assert one.claim(1, marks={("default", 5): mark}).ids == [ids[2]]


def test_the_mark_compares_ids_when_the_times_are_equal(one: Peer):
    ids = [one.enqueue(run_at=FIRST_OF_ALL) for _ in range(3)]
    assert one.claim(marks={("default", 5): (FIRST_OF_ALL, ids[1])}).ids == [ids[2]]


def test_a_wrong_mark_only_delays(one: Peer):
    job_id = one.enqueue()
    far = datetime.now(UTC) + timedelta(days=1)
    assert one.claim(marks={("default", 5): (far, 0)}).ids == []
    assert one.claim(marks={("default", 4): (far, 0)}).ids == [job_id], "a mark is of one lane"


def test_a_claim_starts_progress_anew_and_counts_the_attempt(one: Peer):
    job_id = one.enqueue()
    first = one.claim()
    one.progress((job_id, first.token, '{"value": 0.5}'))
    one.end(first, "retry")
    second = one.claim()
    assert second.attempts == {job_id: 2}
    assert one.job(job_id).progress is None


# -- two claimers ----------------------------------------------------------------------------------------------------


def test_two_claimers_never_take_the_same_job_and_never_wait(one: Peer, two: Peer, dsn: str):
    ids = [one.enqueue() for _ in range(10)]
    one.begin()
    first = one.claim(4)
    second = two.claim(4)
    one.commit()
    assert (first.ids, second.ids) == (ids[:4], ids[4:8])
    invariants.check(dsn, ids)


def test_a_claim_that_is_rolled_back_leaves_no_trace(one: Peer, two: Peer, dsn: str):
    ids = [one.enqueue() for _ in range(3)]
    one.begin()
    one.claim(3)
    assert two.claim(3).ids == []
    one.rollback()
    assert two.claim(3).attempts == dict.fromkeys(ids, 1)
    invariants.check(dsn, ids)


@pytest.mark.parametrize("order", ["aAbB", "abAB", "abBA", "baAB", "baBA", "bBaA"])
def test_two_claims_take_exactly_their_limit_in_every_order(order: str, one: Peer, two: Peer, dsn: str):
    """a, b: the statements; A, B: their commits."""
    ids = [one.enqueue() for _ in range(7)]
    peers = {"a": one, "b": two}
    claims: dict[str, Claim] = {}
    for step in order:
        peer = peers[step.lower()]
        if step.islower():
            peer.begin()
            claims[step] = peer.claim(3)
        else:
            peer.commit()
    first, second = claims[order[0]], claims["b" if order[0] == "a" else "a"]
    assert (first.ids, second.ids) == (ids[:3], ids[3:6])
    invariants.check(dsn, ids)


def test_a_claim_locks_no_more_rows_than_its_limit(one: Peer, two: Peer):
    for priority in (1, 1, 5, 5):
        one.enqueue(priority=priority)
    one.begin()
    assert len(one.claim(3).ids) == 3
    assert len(two.claim(10).ids) == 1


# -- finish ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verdict", ENDS)
def test_a_finished_job_leaves_for_history_with_everything_it_was(one: Peer, verdict: str, dsn: str):
    job_id = one.enqueue("t", {"a": 1}, priority=3, timeout=7, unique_key="k", meta={"m": 1}, queue="q")
    claim = one.claim(queues=["q"])
    running = one.job(job_id)
    error = '{"attempt": 1, "type": "E"}'
    assert one.end(claim, verdict, result='{"ok": true}', error=error) == []
    record = one.job(job_id)
    assert (record.state, record.result, record.errors) == (verdict, {"ok": True}, [json.loads(error)])
    assert record.finished_at >= running.started_at
    for name in ("queue", "task", "payload", "priority", "attempt", "run_at", "created_at", "started_at", "worker",
                 "timeout", "unique_key", "meta", "max_attempts"):  # fmt: skip
        assert getattr(record, name) == getattr(running, name), name
    assert one.leases() == []
    assert one.value("SELECT lease_token FROM pgqueue.history") == claim.token
    invariants.check(dsn, [job_id])


def test_a_finished_job_is_never_claimed_again(one: Peer):
    one.enqueue()
    one.end(one.claim())
    assert one.claim().ids == []
    assert one.sweep() == []


def test_a_retry_waits_for_its_delay_and_keeps_the_error(one: Peer):
    job_id = one.enqueue()
    claim = one.claim()
    assert one.finish((job_id, claim.token, RETRY), done=[claim.token]) == []
    record = one.job(job_id)
    wait = one.value("SELECT run_at - now() FROM pgqueue.jobs")
    assert timedelta(seconds=5) < wait <= timedelta(seconds=10)
    assert (record.state, record.attempt, record.worker, record.lease_until) == ("retrying", 1, None, None)
    assert [error["type"] for error in record.errors] == ["E"]
    assert one.leases() == []
    assert one.claim().ids == []
    one.make_due(job_id)
    assert one.claim().attempts == {job_id: 2}


@pytest.mark.parametrize("verdict", ["snooze", "release"])
def test_snooze_and_release_refund_the_attempt(one: Peer, verdict: str):
    job_id = one.enqueue()
    one.end(one.claim(), verdict, delay=60)
    assert (one.job(job_id).attempt, one.state(job_id)) == (0, "scheduled")
    one.make_due(job_id)
    assert one.claim().attempts == {job_id: 1}


def test_without_a_delay_a_job_gets_its_old_place_back(one: Peer):
    first, second = one.enqueue(), one.enqueue()
    claim = one.claim(1)
    one.finish((first, claim.token, RELEASED), done=[claim.token])
    assert one.claim().ids == [first, second]


def test_errors_gather_and_the_oldest_go_when_there_are_fifty(one: Peer):
    job_id = one.enqueue(max_attempts=100)
    for nth in range(60):
        claim = one.claim()
        one.finish((job_id, claim.token, Outcome("retry", error=f'{{"attempt": {nth}}}')), done=[claim.token])
    errors = one.job(job_id).errors
    assert [error["attempt"] for error in errors] == list(range(10, 60))
    one.end(one.claim(), "dead", error='{"attempt": 60}')
    errors = one.job(job_id).errors
    assert errors[-1] == {"attempt": 60}
    assert len(errors) <= 51


def test_a_cancel_request_turns_a_retry_into_cancelled(one: Peer, dsn: str):
    job_id = one.enqueue()
    claim = one.claim()
    assert one.cancel(job_id) == "running"
    assert one.finish((job_id, claim.token, RETRY), done=[claim.token]) == []
    record = one.job(job_id)
    assert (record.state, len(record.errors)) == ("cancelled", 1)
    invariants.check(dsn, [job_id])


def test_a_completion_wins_over_a_cancel_request(one: Peer):
    job_id = one.enqueue()
    claim = one.claim()
    one.cancel(job_id)
    assert one.end(claim) == []
    assert one.state(job_id) == "completed"


@pytest.mark.parametrize("verdict", [*BACK])
def test_a_cancel_request_outlives_a_snooze_and_a_release(one: Peer, verdict: str):
    job_id = one.enqueue()
    claim = one.claim()
    assert one.cancel(job_id) == "running"
    one.end(claim, verdict)
    assert one.state(job_id) == "cancelled"


def test_a_batch_of_all_verdicts_lands_at_once(one: Peer, dsn: str):
    verdicts = [*ENDS, *BACK]
    ids = [one.enqueue() for _ in verdicts]
    claim = one.claim()
    landings = [(i, claim.token, Outcome(v, delay=60)) for i, v in zip(ids, verdicts, strict=True)]
    random.shuffle(landings)
    assert one.finish(*landings, done=[claim.token]) == []
    assert [one.state(i) for i in ids] == [*ENDS, "retrying", "scheduled", "scheduled"]
    invariants.check(dsn, ids)


def test_outcomes_of_two_leases_land_together_and_only_the_done_lease_goes(one: Peer, dsn: str):
    ids = [one.enqueue() for _ in range(4)]
    first, second = one.claim(2), one.claim(2)
    landings = [(i, c.token, COMPLETED) for c in (second, first) for i in c.ids][:3]
    assert one.finish(*landings, done=[second.token]) == []
    assert one.leases() == [first.token]
    invariants.check(dsn, ids)


def test_one_stale_outcome_in_a_batch_does_not_stop_the_others(one: Peer, dsn: str):
    ids = [one.enqueue() for _ in range(3)]
    claim = one.claim()
    landings = [(i, claim.token + (i == ids[1]), COMPLETED) for i in ids]
    assert one.finish(*landings) == [(ids[1], claim.token + 1)]
    assert [one.state(i) for i in ids] == ["completed", "running", "completed"]
    invariants.check(dsn, ids)


def test_an_outcome_says_so_when_its_job_does_not_exist(one: Peer):
    assert one.finish((999, 1, COMPLETED)) == [(999, 1)]


def test_the_same_outcome_lands_once(one: Peer, dsn: str):
    job_id = one.enqueue()
    claim = one.claim()
    assert one.end(claim) == []
    assert one.end(claim) == [(job_id, claim.token)]
    assert one.run(statements.landed([(job_id, claim.token)], schema=SCHEMA)) == {job_id: "completed"}
    invariants.check(dsn, [job_id])


def test_landed_tells_whose_token_finished_a_job(one: Peer):
    ids = [one.enqueue() for _ in range(3)]
    claim = one.claim(2)
    one.end(claim)
    asked = [(i, claim.token) for i in ids]
    assert one.run(statements.landed(asked, schema=SCHEMA)) == dict.fromkeys(ids[:2], "completed")
    assert one.run(statements.landed([(ids[0], 42)], schema=SCHEMA)) == {}


@pytest.mark.parametrize("verdict", [*BACK, "pass"])
def test_landed_tells_whose_token_put_a_job_back_until_its_next_run_has_ended(one: Peer, verdict: str):
    job_id = one.enqueue()
    first = one.claim()

    def how(token: int) -> Any:
        return one.run(statements.landed([(job_id, token)], schema=SCHEMA)).get(job_id)

    assert how(first.token) is None
    one.end(first, verdict)
    assert (how(first.token), how(first.token + 1)) == ("back", None)
    second = one.claim()
    assert (how(first.token), how(second.token)) == ("back", None)
    one.end(second, "dead")
    assert (how(first.token), how(second.token)) == (None, "dead")


def test_a_sweep_is_not_taken_for_an_end_that_has_landed(one: Peer):
    one.enqueue()
    claim = one.claim()
    one.expire(claim)
    one.sweep()
    assert one.run(statements.landed([(claim.ids[0], claim.token)], schema=SCHEMA)) == {}


def test_an_empty_batch_may_close_leases(one: Peer):
    one.enqueue()
    claim = one.claim()
    assert one.finish(done=[claim.token]) == []
    assert one.leases() == []


@pytest.mark.parametrize("values", [[], [0], [-(2**63), 2**63 - 1, -1, 1], list(range(5000))], ids=len)
def test_a_packed_array_is_the_array(one: Peer, values: list[int]):
    assert one.value("SELECT %s", pack_bigints(values)) == values
    assert one.value("SELECT pg_typeof(%s)::text", pack_bigints(values)) == "bigint[]"


# -- the stale run ---------------------------------------------------------------------------------------------------

ZOMBIE: dict[str, Callable[[Peer, int, Claim], Any]] = {
    "finish": lambda peer, job_id, claim: peer.finish((job_id, claim.token, COMPLETED), done=[claim.token]),
    "fail": lambda peer, job_id, claim: peer.finish((job_id, claim.token, RETRY), done=[claim.token]),
    "release": lambda peer, job_id, claim: peer.finish((job_id, claim.token, RELEASED), done=[claim.token]),
    "renew": lambda peer, job_id, claim: peer.renew(claim),
    "progress": lambda peer, job_id, claim: peer.progress((job_id, claim.token, '{"value": 1}')),
}
REFUSED = {"renew": {}, "progress": None}


@pytest.mark.parametrize("reclaimed", [True, False], ids=["reclaimed", "swept"])
def test_a_stale_run_changes_nothing_whatever_it_tries_in_whatever_order(one: Peer, dsn: str, *, reclaimed: bool):
    job_id = one.enqueue()
    stale = one.claim()
    one.expire(stale)
    assert [swept.id for swept in one.sweep()] == [job_id]
    live = one.claim(worker="w1") if reclaimed else None
    before = one.sql("SELECT * FROM pgqueue.jobs"), one.sql("SELECT * FROM pgqueue.leases")
    for order in permutations(ZOMBIE):
        for name in order:
            assert ZOMBIE[name](one, job_id, stale) == REFUSED.get(name, [(job_id, stale.token)]), order
        assert (one.sql("SELECT * FROM pgqueue.jobs"), one.sql("SELECT * FROM pgqueue.leases")) == before, order
    invariants.check(dsn, [job_id])
    if live:
        assert one.end(live) == []


@pytest.mark.parametrize("name", ZOMBIE)
def test_a_stale_run_changes_nothing_after_the_job_has_ended_elsewhere(one: Peer, name: str):
    job_id = one.enqueue()
    stale = one.claim()
    one.expire(stale)
    one.sweep()
    one.end(one.claim())
    before = one.sql("SELECT * FROM pgqueue.history")
    assert ZOMBIE[name](one, job_id, stale) == REFUSED.get(name, [(job_id, stale.token)])
    assert one.sql("SELECT * FROM pgqueue.history") == before


# -- renew and progress ----------------------------------------------------------------------------------------------


def test_a_renewal_prolongs_the_lease_row_and_its_running_jobs(one: Peer):
    ids = [one.enqueue() for _ in range(3)]
    claim = one.claim(lease=timedelta(seconds=5))
    one.finish((ids[0], claim.token, COMPLETED))
    held = one.renew(claim, timedelta(hours=1))
    assert held == {ids[1]: False, ids[2]: False}
    left = one.sql(
        "SELECT lease_until - now() FROM pgqueue.jobs UNION ALL SELECT lease_until - now() FROM pgqueue.leases"
    )
    assert len(left) == 3
    assert all(timedelta(minutes=59) < wait <= timedelta(hours=1) for (wait,) in left)


def test_a_renewal_tells_that_a_cancel_was_asked_for(one: Peer):
    job_id = one.enqueue()
    claim = one.claim()
    one.cancel(job_id)
    assert one.renew(claim) == {job_id: True}


def test_an_expired_lease_that_nobody_has_swept_is_still_held(one: Peer):
    job_id = one.enqueue()
    claim = one.claim()
    one.expire(claim)
    assert one.renew(claim) == {job_id: False}
    assert one.sweep() == []
    assert one.end(claim) == []


def test_a_renewal_whose_commit_is_stalled_does_not_look_like_a_lost_lease(one: Peer, two: Peer):
    job_id = one.enqueue()
    claim = one.claim()
    one.begin()
    one.renew(claim)
    again = two.run(statements.renew([claim.token], [(job_id, claim.token)], LEASE, schema=SCHEMA))
    assert again == {job_id: (False, False)}, "held, but not prolonged: to be asked again soon"
    one.commit()
    again = two.run(statements.renew([claim.token], [(job_id, claim.token)], LEASE, schema=SCHEMA))
    assert again == {job_id: (False, True)}


def test_a_lease_without_a_row_is_lost(one: Peer):
    one.enqueue()
    claim = one.claim()
    one.sql("DELETE FROM pgqueue.leases")
    assert one.renew(claim) == {}


def test_progress_is_written_under_the_token(one: Peer):
    job_id = one.enqueue()
    claim = one.claim()
    one.progress((job_id, claim.token, '{"value": 0.25, "note": "quarter"}'))
    assert one.job(job_id).progress == {"value": 0.25, "note": "quarter"}
    one.end(claim)
    assert one.job(job_id).progress == {"value": 0.25, "note": "quarter"}


# -- sweep -----------------------------------------------------------------------------------------------------------


def test_a_lease_is_not_swept_before_it_expires_and_is_at_that_moment(one: Peer, dsn: str):
    job_id = one.enqueue()
    claim = one.claim()
    assert one.sweep() == []
    one.expire(claim, by="-1 second")
    assert one.sweep() == []
    one.begin()
    one.expire(claim, by="0")  # exactly now(): the transaction's clock stands still
    (swept,) = one.sweep()
    one.commit()
    assert (swept.id, swept.state, swept.attempt, swept.worker) == (job_id, "available", 1, "w1")
    record = one.job(job_id)
    assert (record.state, record.attempt, record.worker, record.lease_until) == ("available", 1, None, None)
    assert [(e["type"], e["attempt"]) for e in record.errors] == [("LeaseExpired", 1)]
    assert "w1" in record.errors[0]["message"]
    assert one.leases() == []
    invariants.check(dsn, [job_id])


def test_a_job_whose_lease_expired_is_claimed_by_another_worker(one: Peer, two: Peer):
    job_id = one.enqueue()
    claim = one.claim()
    assert two.claim(worker="w2").ids == []
    one.expire(claim)
    two.sweep()
    assert two.claim(worker="w2").attempts == {job_id: 2}


def test_a_job_that_used_up_its_attempts_is_buried_by_the_sweep(one: Peer, dsn: str):
    ids = [one.enqueue(max_attempts=1), one.enqueue(max_attempts=2)]
    one.expire(one.claim())
    assert {(s.id, s.state) for s in one.sweep()} == {(ids[0], "dead"), (ids[1], "available")}
    record = one.job(ids[0])
    assert (record.state, record.attempt, record.errors[-1]["type"]) == ("dead", 1, "LeaseExpired")
    one.expire(one.claim())
    assert [(s.id, s.state) for s in one.sweep()] == [(ids[1], "dead")]
    invariants.check(dsn, ids)


def test_a_job_that_was_to_be_cancelled_is_cancelled_by_the_sweep(one: Peer, dsn: str):
    job_id = one.enqueue()
    claim = one.claim()
    one.cancel(job_id)
    one.expire(claim)
    assert [(s.id, s.state) for s in one.sweep()] == [(job_id, "cancelled")]
    assert one.state(job_id) == "cancelled"
    invariants.check(dsn, [job_id])


def test_a_sweep_takes_a_bounded_number_of_leases_the_oldest_first(one: Peer):
    claims = []
    for nth in range(3):
        one.enqueue()
        claims.append(one.claim())
        one.expire(claims[-1], by=f"{10 - nth} seconds")
    assert [s.id for s in one.sweep(2)] == [*claims[0].ids, *claims[1].ids]
    assert one.leases() == [claims[2].token]


def test_a_sweep_passes_over_jobs_that_have_moved_on(one: Peer, dsn: str):
    ids = [one.enqueue() for _ in range(3)]
    claim = one.claim()
    one.finish((ids[0], claim.token, COMPLETED), (ids[1], claim.token, RELEASED))
    other = one.claim()
    one.expire(claim)
    assert [s.id for s in one.sweep()] == [ids[2]]
    assert one.leases() == [other.token]
    assert [one.state(i) for i in ids] == ["completed", "running", "available"]
    invariants.check(dsn, ids)


def test_a_sweep_keeps_at_most_fifty_errors(one: Peer):
    job_id = one.enqueue(max_attempts=100)
    for _ in range(53):
        one.expire(one.claim())
        one.sweep()
    errors = one.job(job_id).errors
    assert [error["attempt"] for error in errors] == list(range(4, 54))


# -- two peers, statement by statement -------------------------------------------------------------------------------


def test_a_finish_that_is_just_landing_wins_over_the_sweep(one: Peer, two: Peer, dsn: str):
    job_id = one.enqueue()
    claim = one.claim()
    one.expire(claim)
    one.begin()
    assert one.end(claim) == []
    assert two.sweep() == []
    one.commit()
    assert two.sweep() == []
    assert one.state(job_id) == "completed"
    invariants.check(dsn, [job_id])


def test_a_finish_that_leaves_its_lease_open_wins_over_the_sweep_too(one: Peer, two: Peer, dsn: str):
    ids = [one.enqueue(), one.enqueue()]
    claim = one.claim()
    one.expire(claim)
    one.begin()
    assert one.finish((ids[0], claim.token, COMPLETED)) == []
    assert two.sweep() == []
    one.commit()
    assert [s.id for s in two.sweep()] == [ids[1]]
    assert [one.state(i) for i in ids] == ["completed", "available"]
    invariants.check(dsn, ids)


@pytest.mark.parametrize("done", [True, False], ids=["closing", "open"])
@pytest.mark.parametrize("ends", ["commit", "rollback"])
def test_a_finish_behind_a_sweep_waits_and_learns_the_truth(one: Peer, two: Peer, ends: str, dsn: str, *, done: bool):
    job_id = one.enqueue()
    claim = one.claim()
    one.expire(claim)
    one.begin()
    assert [s.id for s in one.sweep()] == [job_id]
    landing = two.behind(lambda: two.finish((job_id, claim.token, COMPLETED), done=[claim.token] if done else []))
    getattr(one, ends)()
    swept = ends == "commit"
    assert landing.result(30) == ([(job_id, claim.token)] if swept else [])
    assert one.state(job_id) == ("available" if swept else "completed")
    invariants.check(dsn, [job_id])


def test_a_renewal_that_is_just_landing_wins_over_the_sweep(one: Peer, two: Peer, dsn: str):
    job_id = one.enqueue()
    claim = one.claim()
    one.expire(claim)
    one.begin()
    assert one.renew(claim) == {job_id: False}
    assert two.sweep() == []
    one.commit()
    assert two.sweep() == []
    assert one.end(claim) == []
    invariants.check(dsn, [job_id])


def test_a_renewal_does_not_wait_for_a_sweep_and_learns_afterwards_that_its_lease_is_lost(
    one: Peer, two: Peer, dsn: str
):
    job_id = one.enqueue()
    claim = one.claim()
    one.expire(claim)
    one.begin()
    one.sweep()
    assert two.renew(claim) == {job_id: False}, "a sweep may roll back; what is locked is not lost yet"
    one.commit()
    assert two.renew(claim) == {}
    assert two.end(claim) == [(job_id, claim.token)]
    invariants.check(dsn, [job_id])


def test_a_renewal_and_a_finish_of_the_same_lease_go_together(one: Peer, two: Peer, dsn: str):
    ids = [one.enqueue(), one.enqueue()]
    claim = one.claim()
    one.begin()
    assert one.finish((ids[0], claim.token, COMPLETED)) == []
    held = two.run(statements.renew([claim.token], [(ids[1], claim.token)], timedelta(seconds=60), schema=SCHEMA))
    assert held == {ids[1]: (False, True)}
    one.commit()
    invariants.check(dsn, ids)


def test_two_sweeps_share_the_work(one: Peer, two: Peer, dsn: str):
    ids = [one.enqueue() for _ in range(2)]
    for _ in ids:
        one.expire(one.claim(1))
    one.begin()
    first = one.sweep(1)
    second = two.sweep(1)
    one.commit()
    assert {s.id for s in first + second} == set(ids)
    invariants.check(dsn, ids)


def test_a_cancel_behind_a_claim_asks_the_running_job(one: Peer, two: Peer, dsn: str):
    job_id = one.enqueue()
    one.begin()
    one.claim()
    answer = two.behind(lambda: two.cancel(job_id))
    one.commit()
    assert answer.result(30) == "running"
    assert one.job(job_id).cancel_requested
    invariants.check(dsn, [job_id])


def test_a_claim_passes_over_a_job_that_is_being_cancelled(one: Peer, two: Peer, dsn: str):
    job_id = one.enqueue()
    one.begin()
    assert one.cancel(job_id) == "cancelled"
    assert two.claim().ids == []
    one.commit()
    assert two.claim().ids == []
    invariants.check(dsn, [job_id])


@pytest.mark.parametrize("verdict", ENDS)
def test_a_cancel_behind_the_end_of_a_job_says_how_it_ended(one: Peer, two: Peer, verdict: str, dsn: str):
    job_id = one.enqueue()
    claim = one.claim()
    one.begin()
    assert one.end(claim, verdict) == []
    answer = two.behind(lambda: two.cancel(job_id))
    one.commit()
    assert answer.result(30) == verdict
    invariants.check(dsn, [job_id])


def test_a_look_behind_the_marks_finds_what_a_claim_would_take_from_the_start(one: Peer):
    def look(
        at: datetime, job: int, tasks: list[str] | None = None, since: float | None = None
    ) -> list[tuple[str, int, float, int]]:
        lanes = statements.Lanes(["default", "other", "default"], [5, 5, 4], [at.timestamp()] * 2 + [None], [job, 0, 0])
        return one.run(statements.look_behind(lanes, tasks, since, schema=SCHEMA))

    first, second, third = one.enqueue("t"), one.enqueue("t"), one.enqueue("t", priority=4)
    times = dict(one.sql("SELECT id, run_at FROM pgqueue.jobs"))
    assert look(times[second], second) == [("default", 5, times[first].timestamp(), first)]
    assert look(times[first], first) == [("default", 5, times[first].timestamp(), first)], "its own place is behind it"
    assert look(times[first], first - 1) == []
    assert look(times[second], second, tasks=["unknown"]) == []
    assert look(times[second], second, since=times[first].timestamp())[0][3] == first
    assert look(times[second], second, since=times[second].timestamp())[0][3] == second
    assert look(times[second], second, since=times[second].timestamp() + 1) == []
    assert one.claim(2).ids == [third, first]
    assert look(times[second], second) == [("default", 5, times[second].timestamp(), second)]
    assert look(times[second], second - 1) == [], "a running job is not to be had"
    one.run(statements.pause("default", schema=SCHEMA))
    assert look(times[second], second) == []


@pytest.mark.parametrize("verdict", BACK)
def test_a_cancel_behind_a_return_takes_the_job_back(one: Peer, two: Peer, verdict: str, dsn: str):
    job_id = one.enqueue()
    claim = one.claim()
    one.begin()
    assert one.end(claim, verdict) == []
    answer = two.behind(lambda: two.cancel(job_id))
    one.commit()
    assert answer.result(30) == "cancelled"
    assert one.state(job_id) == "cancelled"
    invariants.check(dsn, [job_id])


def test_a_cancel_behind_a_sweep_takes_the_job_back(one: Peer, two: Peer, dsn: str):
    job_id = one.enqueue()
    claim = one.claim()
    one.expire(claim)
    one.begin()
    one.sweep()
    answer = two.behind(lambda: two.cancel(job_id))
    one.commit()
    assert answer.result(30) == "cancelled"
    assert one.state(job_id) == "cancelled"
    invariants.check(dsn, [job_id])


@pytest.mark.parametrize("verdict", ENDS)
def test_a_finish_behind_a_cancel_request_lands(one: Peer, two: Peer, verdict: str, dsn: str):
    job_id = one.enqueue()
    claim = one.claim()
    one.begin()
    assert one.cancel(job_id) == "running"
    landing = two.behind(lambda: two.end(claim, verdict))
    one.commit()
    assert landing.result(30) == []
    invariants.check(dsn, [job_id])


@pytest.mark.parametrize("verdict", BACK)
def test_a_return_behind_a_cancel_request_ends_as_cancelled(one: Peer, two: Peer, verdict: str, dsn: str):
    job_id = one.enqueue()
    claim = one.claim()
    one.begin()
    assert one.cancel(job_id) == "running"
    landing = two.behind(lambda: two.end(claim, verdict))
    one.commit()
    landing.result(30)
    invariants.check(dsn, [job_id])  # it may be left to the sweep, but the sweep must be able to find it
    if one.leases():
        one.expire(claim)
        one.sweep()
    assert one.state(job_id) == "cancelled"


def test_an_operators_retry_behind_a_burial_runs_the_job_again(one: Peer, two: Peer, dsn: str):
    job_id = one.enqueue()
    claim = one.claim()
    one.begin()
    one.end(claim, "dead")
    assert two.retry(job_id) == "running", "it has not ended yet"
    one.commit()
    assert two.retry(job_id) == "available"
    invariants.check(dsn, [job_id])


def test_two_retries_of_one_dead_job_bring_back_one(one: Peer, two: Peer, dsn: str):
    job_id = one.enqueue()
    one.end(one.claim(), "dead")
    one.begin()
    assert one.retry(job_id) == "available"
    answer = two.behind(lambda: two.retry(job_id))
    one.commit()
    assert answer.result(30) == "available"
    assert one.claim().ids == [job_id]
    invariants.check(dsn, [job_id])


@pytest.mark.parametrize("ends", ["commit", "rollback"])
def test_a_unique_enqueue_behind_the_end_of_its_holder_gets_the_key(one: Peer, two: Peer, ends: str, dsn: str):
    holder = one.enqueue(unique_key="k")
    claim = one.claim()
    one.begin()
    assert one.end(claim) == []
    answer = two.behind(lambda: two.enqueue(unique_key="k"))
    getattr(one, ends)()
    job_id = answer.result(30)
    assert (job_id != holder) == (ends == "commit")
    invariants.check(dsn, {holder, job_id})


# -- next_due --------------------------------------------------------------------------------------------------------


def test_next_due_is_the_wait_for_the_first_future_job_of_the_lanes(one: Peer):
    assert one.next_due() is None
    one.enqueue(delay=500)
    one.enqueue(delay=100, priority=9)
    one.enqueue(delay=5, queue="other")
    assert one.next_due() == pytest.approx(100, abs=5)
    assert one.next_due(queues=["default", "other"]) == pytest.approx(5, abs=5)


def test_next_due_passes_over_due_running_unknown_and_paused_jobs(one: Peer):
    one.enqueue("known")
    assert one.next_due() is None
    one.claim()
    assert one.next_due() is None
    one.enqueue("unknown", delay=10)
    assert one.next_due(tasks=["known"]) is None
    one.enqueue("known", delay=100)
    assert one.next_due(tasks=["known"]) == pytest.approx(100, abs=5)
    one.run(statements.pause("default", schema=SCHEMA))
    assert one.next_due() is None


def test_a_job_is_ready_that_a_claim_would_take(one: Peer):
    assert not one.ahead().ready
    job = one.enqueue("known", delay=100)
    assert not one.ahead().ready
    one.run(statements.retry(job, schema=SCHEMA))
    assert one.ahead().ready
    assert one.ahead(tasks=["known"]).ready
    assert not one.ahead(tasks=["unknown"]).ready
    assert not one.ahead(queues=["other"]).ready
    ((run_at,),) = one.sql("SELECT run_at FROM pgqueue.jobs")
    behind = statements.Lanes(["default"], [5], [run_at.timestamp()], [job])
    assert not one.run(statements.next_due(behind, None, schema=SCHEMA)).ready, "it is not behind the mark"
    one.run(statements.pause("default", schema=SCHEMA))
    assert not one.ahead().ready
    one.run(statements.resume("default", schema=SCHEMA))
    one.run(statements.limit_queue("default", {"max_running": 1}, schema=SCHEMA))
    assert not one.ahead().ready, "claim_managed has to look"
    one.run(statements.limit_queue("default", {"max_running": None}, schema=SCHEMA))
    one.claim()
    assert not one.ahead().ready


@pytest.mark.parametrize("verdict", BACK)
def test_what_goes_back_to_wait_rings_for_those_who_sleep_once_per_queue(one: Peer, two: Peer, verdict: str):
    """They look ahead for when it is due; nobody else would tell them."""
    for queue in "aab":
        one.enqueue(queue=queue)
    claim = one.claim(queues=["a", "b"])
    two.sql('LISTEN "pgqueue.wake"')
    for queue in "ab":
        assert two.value("SELECT pg_try_advisory_lock_shared(pgqueue.bell_key(%s))", queue)
    assert one.end(claim, verdict, delay=0.5) == []
    one.sql("SELECT pg_notify('pgqueue.wake', 'the end')")
    notes = two.connection.notifies(timeout=30, stop_after=3)
    assert sorted(note.payload for note in notes) == ["a", "b", "the end"]


def test_what_a_sweep_recovers_rings_for_those_who_sleep_and_what_ends_does_not(one: Peer, two: Peer):
    one.enqueue(queue="a")
    one.enqueue(queue="b", max_attempts=1)
    one.claim(queues=["a", "b"], lease=timedelta(seconds=-1))
    two.sql('LISTEN "pgqueue.wake"')
    for queue in "ab":
        assert two.value("SELECT pg_try_advisory_lock_shared(pgqueue.bell_key(%s))", queue)
    assert {row.state for row in one.sweep()} == {"available", "dead"}
    one.sql("SELECT pg_notify('pgqueue.wake', 'the end')")
    assert [note.payload for note in two.connection.notifies(timeout=30, stop_after=2)] == ["a", "the end"]


@pytest.mark.parametrize("verdict", BACK)
def test_what_is_back_at_its_old_place_is_told_to_those_who_are_awake(one: Peer, two: Peer, verdict: str):
    """Their claims begin behind it; what is due later lies where they will look."""
    for queue in "aabcd":
        one.enqueue(queue=queue)
    at_once, later = one.claim(queues=["a", "b"]), one.claim(queues=["c"])
    one.claim(queues=["d"], lease=timedelta(seconds=-1))
    two.sql('LISTEN "pgqueue.back"')
    assert one.end(at_once, verdict) == []
    assert one.end(later, verdict, delay=0.5) == []
    assert [row.queue for row in one.sweep()] == ["d"]
    one.sql("SELECT pg_notify('pgqueue.back', 'the end')")
    notes = two.connection.notifies(timeout=30, stop_after=4)
    assert sorted(note.payload for note in notes) == ["a", "b", "d", "the end"]


# -- everything at once ----------------------------------------------------------------------------------------------


def test_overlapping_claims_finishes_sweeps_and_cancels_never_deadlock_and_lose_nothing(dsn: str):
    """Eight peers do what they like for a while; conservation is checked by id."""
    with Peer(dsn) as peer:
        ids = [peer.enqueue(max_attempts=1000, priority=n % 3) for n in range(300)]
    began = time.monotonic()
    done: Counter[str] = Counter()

    def enough() -> bool:
        seconds = time.monotonic() - began
        return seconds > 60 or (seconds > 1.5 and min(done[name] for name in ("claim", "sweep", "cancel")) > 5)

    errors: list[BaseException] = []

    def work(seed: int) -> None:
        chance = random.Random(seed)
        try:
            with Peer(dsn) as peer:
                while not enough() and not errors:
                    done[chaos(peer, chance, ids)] += 1
        except psycopg.Error as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors
    assert min(done[name] for name in ("claim", "sweep", "cancel")) > 5, done
    invariants.check(dsn, ids)


def chaos(peer: Peer, chance: random.Random, ids: list[int]) -> str:
    match chance.choices(["claim", "sweep", "cancel", "retry"], [6, 2, 2, 2])[0]:
        case "sweep":
            peer.sweep()
            return "sweep"
        case "cancel":
            for job_id in chance.sample(ids, 3):
                peer.cancel(job_id)
            return "cancel"
        case "retry":
            for job_id in chance.sample(ids, 3):
                peer.retry(job_id)
            return "retry"
    first, second = peer.claim(20), peer.claim(20)
    landings = []
    for claim in (first, second):
        if chance.random() < 0.4:
            peer.expire(claim)
        if chance.random() < 0.5:
            peer.renew(claim, timedelta(seconds=chance.choice([-1, 30])))
        landings += [(i, claim.token, chance.choice([COMPLETED, RELEASED, RETRY_NOW])) for i in claim.ids]
    chance.shuffle(landings)
    cut = len(landings) // 2
    peer.finish(*landings[:cut])
    peer.finish(*landings[cut:], done=[first.token, second.token])
    return "claim"


RETRY_NOW = Outcome("retry", error='{"attempt": 1}')
