"""Dependencies and batches, statement by statement: who waits, who is freed, who ends, and what is counted."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import flows
import invariants
import psycopg
import pytest
from peers import SCHEMA, Claim, Peer

from pgqueue import App, statements
from pgqueue.job import JobSpec
from pgqueue.outcome import COMPLETED, Outcome
from pgqueue.sweeper import sweep

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

POLICIES = ["cancel", "continue", "hold"]
BAD = psycopg.errors.InvalidParameterValue


@pytest.fixture(autouse=True)
def whole(one: Peer, dsn: str):
    """Every story ends whole."""
    yield
    if one.connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE:
        flows.check(one, purged=True)
        invariants.check(dsn)


def take(peer: Peer, *job_ids: int) -> Claim:
    claim = peer.claim(100)
    assert sorted(claim.ids) == sorted(job_ids)
    return claim


def run(peer: Peer, *job_ids: int, verdict: str = "completed") -> None:
    """They are all that can run, and they end so."""
    assert peer.end(take(peer, *job_ids), verdict) == []


def batch(peer: Peer, *specs: JobSpec, name: str | None = None, **after: Any) -> tuple[int, list[int]]:
    batch_id = peer.run(statements.create_batch(name, schema=SCHEMA))
    return batch_id, add(peer, batch_id, *specs, **after)


def add(peer: Peer, batch_id: int, *specs: JobSpec, after: dict[int, Sequence[int]] | None = None) -> list[int]:
    return [job.id for job in peer.run(statements.submit_many(specs, batch_id=batch_id, after=after, schema=SCHEMA))]


def counts(peer: Peer, batch_id: int) -> tuple[int, int, int, int, bool]:
    record = peer.run(statements.get_batch(batch_id, schema=SCHEMA))
    return record.total, record.completed, record.dead, record.cancelled, record.finished_at is not None


def edges(peer: Peer) -> int:
    return int(peer.value("SELECT count(*) FROM pgqueue.dependencies"))


# -- waiting and being freed -----------------------------------------------------------------------------------------


def test_a_job_waits_until_all_it_depends_on_have_completed(one: Peer):
    a, b = one.enqueue("a"), one.enqueue("b")
    job = one.enqueue("c", depends_on=[a, b, a])
    assert (one.state(job), one.job(job).pending, one.job(job).depends_on) == ("blocked", 2, [a, b])
    claim = take(one, a, b)
    one.finish((a, claim.token, COMPLETED))
    assert (one.state(job), one.job(job).pending) == ("blocked", 1)
    one.finish((b, claim.token, COMPLETED), done=[claim.token])
    assert (one.state(job), one.job(job).pending, edges(one)) == ("available", 0, 0)
    run(one, job)


def test_a_retry_of_the_upstream_frees_nobody(one: Peer):
    a = one.enqueue("a")
    job = one.enqueue("b", depends_on=[a])
    one.end(take(one, a), "retry", error='{"type": "E"}', delay=0)
    assert one.state(job) == "blocked"
    run(one, a)
    run(one, job)


def test_all_its_upstreams_may_end_in_one_statement(one: Peer):
    ups = [one.enqueue("up") for _ in range(50)]
    job = one.enqueue("down", depends_on=ups)
    run(one, *ups)
    run(one, job)


def test_a_job_freed_keeps_its_delay_and_shows_it_while_it_is_blocked(one: Peer):
    a = one.enqueue("a")
    job = one.enqueue("b", depends_on=[a], delay=3600)
    due = one.job(job).run_at
    assert one.value("SELECT run_at = 'infinity' FROM pgqueue.jobs WHERE id = %s", job)
    run(one, a)
    assert (one.state(job), one.job(job).run_at) == ("scheduled", due)


def test_a_job_freed_rings_its_queue(one: Peer, two: Peer):
    two.sql('LISTEN "pgqueue.wake"')
    two.value("SELECT pg_advisory_lock_shared(pgqueue.bell_key('q'))")
    a = one.enqueue("a")
    one.enqueue("b", depends_on=[a], queue="q")
    assert list(two.connection.notifies(timeout=0.1)) == []
    run(one, a)
    assert [note.payload for note in two.connection.notifies(timeout=5, stop_after=1)] == ["q"]


def test_what_has_completed_already_is_not_waited_for(one: Peer):
    a = one.enqueue()
    run(one, a)
    job = one.enqueue("b", depends_on=[a])
    assert (one.state(job), one.job(job).depends_on) == ("available", [a])


def test_no_upstream_is_no_dependency(one: Peer):
    assert one.value("SELECT state FROM pgqueue.all_jobs WHERE id = pgqueue.enqueue('t', depends_on => '{}')") is None
    job = one.value("SELECT pgqueue.enqueue('t', depends_on => '{}')")
    assert (one.state(job), one.value("SELECT depends_on FROM pgqueue.jobs WHERE id = %s", job)) == ("available", None)


@pytest.mark.parametrize("ups", [[10**12], [0], [-1], [None], [1, None], list(range(1, 10_002))], ids=str)
def test_what_can_not_be_depended_on_is_refused_and_nothing_is_written(one: Peer, ups: list[int | None]):
    with pytest.raises(BAD, match="depends_on"):
        one.sql("SELECT pgqueue.enqueue('t', depends_on => %s::bigint[])", ups)
    with pytest.raises(BAD, match="job 1: "):
        one.sql(
            "SELECT * FROM pgqueue.submit_many(%s::jsonb)",
            json.dumps([{"task": "t"}, {"task": "t", "depends_on": ups}]),
        )
    assert one.value("SELECT count(*) FROM pgqueue.jobs") == 0


def test_a_job_can_not_depend_on_itself(one: Peer):
    following = one.enqueue() + 1
    with pytest.raises(BAD, match=f"there is no job or batch {following}"):
        one.enqueue(depends_on=[following])


def test_the_next_to_come_can_not_be_named(one: Peer):
    with pytest.raises(BAD, match="job 0: after must name earlier elements"):
        one.sql("""SELECT * FROM pgqueue.submit_many('[{"task": "a", "after": [0]}, {"task": "b"}]')""")
    with pytest.raises(BAD, match="job 1: after"):
        one.sql("""SELECT * FROM pgqueue.submit_many('[{"task": "a"}, {"task": "b", "after": ["0"]}]')""")
    with pytest.raises(BAD, match="job 1: "):
        one.sql("""SELECT * FROM pgqueue.submit_many('[{"task": "a"}, {"task": "b", "after": 0}]')""")


@pytest.mark.parametrize("bad", ["true", '"x"', "{}", "1", '["x"]', "[1.5]", "[[1]]", "[1e30]"])
def test_a_depends_on_of_the_wrong_kind_is_refused_with_its_index(one: Peer, bad: str):
    with pytest.raises((BAD, psycopg.DataError), match="job 1: "):
        one.sql(f"""SELECT * FROM pgqueue.submit_many('[{{"task": "a"}}, {{"task": "b", "depends_on": {bad}}}]')""")
    assert one.value("SELECT count(*) FROM pgqueue.jobs") == 0


def test_null_as_depends_on_of_an_element_is_none(one: Peer):
    one.sql("""SELECT * FROM pgqueue.submit_many('[{"task": "a", "depends_on": null}]')""")
    assert one.value("SELECT state::text FROM pgqueue.jobs") == "available"


def test_a_workflow_in_a_transaction_that_is_rolled_back_never_was(one: Peer):
    a = one.enqueue("a")
    one.begin()
    job = one.enqueue("b", depends_on=[a])
    batch(one, JobSpec.make("c", depends_on=[job]), JobSpec.make("d"))
    one.rollback()
    assert (edges(one), one.value("SELECT count(*) FROM pgqueue.batches")) == (0, 0)
    run(one, a)


def test_who_ends_an_upstream_waits_for_the_commit_of_who_begins_to_follow_it(one: Peer, two: Peer):
    a = one.enqueue("a")
    claim = take(one, a)
    one.begin()
    job = one.enqueue("b", depends_on=[a])
    ending = two.behind(lambda: two.end(claim))
    one.commit()
    assert ending.result() == []
    assert one.state(job) == "available"


def test_who_begins_to_follow_waits_for_the_commit_of_who_ends_the_upstream(one: Peer, two: Peer):
    a = one.enqueue("a")
    claim = take(one, a)
    one.begin()
    one.end(claim)
    enqueue = two.behind(lambda: two.enqueue("b", depends_on=[a]))
    one.commit()
    assert one.state(enqueue.result()) == "available"


def test_who_retries_an_upstream_waits_for_who_begins_to_hold_for_it(one: Peer, two: Peer):
    a = one.enqueue("a")
    run(one, a, verdict="dead")
    one.begin()
    job = one.enqueue("b", depends_on=[a], on_dead="hold")
    retry = two.behind(lambda: two.retry(a))
    one.commit()
    assert retry.result() == "available"
    run(one, a)
    run(one, job)


def test_who_begins_to_hold_for_an_upstream_waits_for_who_retries_it(one: Peer, two: Peer):
    a = one.enqueue("a")
    run(one, a, verdict="dead")
    one.begin()
    one.retry(a)
    enqueue = two.behind(lambda: two.enqueue("b", depends_on=[a]))
    one.commit()
    job = enqueue.result()
    run(one, a)
    run(one, job)


def test_who_ends_the_last_of_a_batch_waits_for_who_begins_to_follow_the_batch(one: Peer, two: Peer):
    batch_id, ids = batch(one, JobSpec.make("t"))
    claim = take(one, *ids)
    one.begin()
    job = one.enqueue("b", depends_on=[batch_id])
    ending = two.behind(lambda: two.end(claim))
    one.commit()
    assert ending.result() == []
    run(one, job)


def test_who_begins_to_follow_a_batch_waits_for_who_ends_the_last_of_it(one: Peer, two: Peer):
    batch_id, ids = batch(one, JobSpec.make("t"))
    claim = take(one, *ids)
    one.begin()
    one.end(claim)
    enqueue = two.behind(lambda: two.enqueue("b", depends_on=[batch_id]))
    one.commit()
    run(one, enqueue.result())


def test_who_begins_to_hold_for_a_dead_batch_keeps_it_from_being_opened_until_the_commit(one: Peer, two: Peer):
    batch_id, ids = batch(one, JobSpec.make("t"))
    run(one, *ids, verdict="dead")
    one.begin()
    job = one.enqueue("b", depends_on=[batch_id], on_dead="hold")
    retry = two.behind(lambda: two.retry(ids[0]))
    one.commit()
    assert retry.result() == "available"
    run(one, *ids)
    run(one, job)


def test_one_who_begins_to_follow_a_doomed_job_ends_with_it(one: Peer, two: Peer):
    a = one.enqueue("a")
    b = one.enqueue("b", depends_on=[a])
    claim = take(one, a)
    one.begin()
    c = one.enqueue("c", depends_on=[b])
    ending = two.behind(lambda: two.end(claim, "dead"))
    one.commit()
    assert ending.result() == []
    assert [one.state(job) for job in (b, c)] == ["cancelled", "cancelled"]


# -- an upstream dies ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verdict", ["dead", "cancelled"])
def test_cancel_ends_all_who_wait_directly_or_not(one: Peer, verdict: str):
    a = one.enqueue("a")
    b = one.enqueue("b", depends_on=[a])
    c = one.enqueue("c", depends_on=[b])
    d = one.enqueue("d", depends_on=[a, c])
    other = one.enqueue("other", depends_on=[c], on_dead="continue")
    held = one.enqueue("held", depends_on=[c], on_dead="hold")
    one.end(take(one, a), verdict)
    assert [one.state(job) for job in (b, c, d, other, held)] == ["cancelled"] * 3 + ["available", "blocked"]
    error = one.job(d).errors[-1]
    assert (error["type"], error["message"]) == (
        "UpstreamFailed", f"job {a}, on which it depends, did not complete",
    )  # fmt: skip
    assert edges(one) == 1


def test_continue_goes_on_as_if_it_had_completed(one: Peer):
    a, b = one.enqueue("a"), one.enqueue("b")
    job = one.enqueue("c", depends_on=[a, b], on_dead="continue")
    claim = take(one, a, b)
    one.finish((a, claim.token, Outcome("dead")))
    assert one.state(job) == "blocked"
    one.finish((b, claim.token, COMPLETED), done=[claim.token])
    run(one, job)


@pytest.mark.parametrize("how", ["retry", "redrive"])
def test_hold_waits_until_an_operator_has_retried_it_and_it_completes(one: Peer, how: str):
    a = one.enqueue("a")
    job = one.enqueue("b", depends_on=[a], on_dead="hold")
    for _ in range(2):
        run(one, a, verdict="dead")
        assert (one.state(job), edges(one)) == ("blocked", 1)
        assert one.retry(a) == "available" if how == "retry" else one.value("SELECT pgqueue.redrive()") == 1
    run(one, a)
    run(one, job)


@pytest.mark.parametrize("verdict", ["dead", "cancelled"])
@pytest.mark.parametrize(("policy", "state"), list(zip(POLICIES, ["cancelled", "available", "blocked"], strict=True)))
def test_one_that_is_dead_already_decides_at_once(one: Peer, verdict: str, policy: str, state: str):
    a, b = one.enqueue("a"), one.enqueue("b", delay=60)
    run(one, a, verdict=verdict)
    assert one.state(one.enqueue("c", depends_on=[a], on_dead=policy)) == state
    both = one.enqueue("d", depends_on=[a, b], on_dead=policy)
    assert one.state(both) == ("cancelled" if policy == "cancel" else "blocked")


def test_a_sweep_that_buries_a_job_tells_who_waited(one: Peer):
    a = one.enqueue("a", max_attempts=1)
    b, c = one.enqueue("b", depends_on=[a]), one.enqueue("c", depends_on=[a], on_dead="continue")
    one.expire(take(one, a))
    one.sweep()
    assert [one.state(job) for job in (a, b, c)] == ["dead", "cancelled", "available"]


def test_a_follower_that_is_cancelled_is_no_longer_waited_for(one: Peer):
    a = one.enqueue("a")
    b = one.enqueue("b", depends_on=[a])
    c = one.enqueue("c", depends_on=[b], on_dead="continue")
    assert one.cancel(b) == "cancelled"
    assert one.state(c) == "available"
    run(one, a, c)


def test_a_freed_job_with_an_expired_upstream_runs_after_a_purge(one: Peer):
    a, b = one.enqueue("a", queue="bad"), one.enqueue("b")
    jobs = [one.enqueue("c", depends_on=[a, b], on_dead=policy) for policy in POLICIES]
    assert one.run(statements.purge("bad", schema=SCHEMA)) == 1
    assert [one.state(job) for job in jobs] == ["cancelled", "blocked", "cancelled"], "a purged job is never retried"
    run(one, b)
    run(one, jobs[1])


def test_dead_letters_that_are_purged_end_those_they_held(one: Peer):
    a = one.enqueue("a")
    job = one.enqueue("b", depends_on=[a], on_dead="hold")
    run(one, a, verdict="dead")
    assert one.run(statements.purge_dead(None, schema=SCHEMA)) == 1
    assert (one.state(job), edges(one)) == ("cancelled", 0)


def test_dead_letters_that_are_pruned_end_those_they_held_when_somebody_tidies(one: Peer):
    a = one.enqueue("a")
    job = one.enqueue("b", depends_on=[a], on_dead="hold")
    run(one, a, verdict="dead")
    one.sql("DELETE FROM pgqueue.history")  # as the drop of a partition does
    one.run(statements.tidy(schema=SCHEMA))
    assert (one.state(job), edges(one)) == ("cancelled", 0)


# -- an operator's retry ---------------------------------------------------------------------------------------------


def test_a_job_that_was_cancelled_before_it_ran_waits_again_when_it_is_retried(one: Peer):
    a = one.enqueue("a")
    b = one.enqueue("b", depends_on=[a])
    c = one.enqueue("c", depends_on=[b])
    run(one, a, verdict="dead")
    assert [one.retry(job) for job in (c, b, a)] == ["blocked", "blocked", "available"]
    for job in (a, b, c):
        run(one, job)


def test_a_retried_follower_is_held_when_its_upstream_dies_again(one: Peer):
    a = one.enqueue("a")
    b = one.enqueue("b", depends_on=[a])
    run(one, a, verdict="dead")
    assert [one.retry(a), one.retry(b)] == ["available", "blocked"]
    run(one, a, verdict="dead")
    assert one.state(b) == "blocked"


def test_a_blocked_job_that_is_retried_runs_now_whatever_it_waits_for(one: Peer):
    a = one.enqueue("a", delay=60)
    job = one.enqueue("b", depends_on=[a], delay=60)
    assert one.retry(job) == "available"
    assert (one.job(job).pending, edges(one)) == (0, 0)
    run(one, job)


def test_one_that_has_run_once_does_not_wait_again(one: Peer):
    a = one.enqueue("a")
    job = one.enqueue("b", depends_on=[a], on_dead="continue")
    run(one, a, verdict="dead")
    run(one, job, verdict="dead")
    assert one.retry(job) == "available"
    run(one, job)


# -- batches ---------------------------------------------------------------------------------------------------------


def test_a_batch_counts_its_jobs_as_they_end_and_frees_who_waits_for_it(one: Peer):
    batch_id, ids = batch(one, *(JobSpec.make("t") for _ in range(3)), name="import")
    then = one.enqueue("then", depends_on=[batch_id], on_dead="continue")
    claim = take(one, *ids)
    for nth, verdict in enumerate(["completed", "dead", "cancelled"]):
        assert one.state(then) == "blocked"
        assert counts(one, batch_id)[0:4] == (3, int(nth > 0), int(nth > 1), 0)
        one.finish((ids[nth], claim.token, Outcome(verdict)))
    assert counts(one, batch_id) == (3, 1, 1, 1, True)
    run(one, then)


@pytest.mark.parametrize(("policy", "state"), list(zip(POLICIES, ["cancelled", "available", "blocked"], strict=True)))
def test_a_batch_with_a_dead_job_is_a_dead_upstream_but_not_before_all_have_ended(one: Peer, policy: str, state: str):
    batch_id, ids = batch(one, JobSpec.make("t"), JobSpec.make("t"))
    then = one.enqueue("then", depends_on=[batch_id], on_dead=policy)
    claim = take(one, *ids)
    one.finish((ids[0], claim.token, Outcome("dead")))
    assert one.state(then) == "blocked"
    one.finish((ids[1], claim.token, COMPLETED), done=[claim.token])
    assert one.state(then) == state
    if state == "cancelled":
        assert f"batch {batch_id}" in one.job(then).errors[-1]["message"]


def test_a_dead_job_that_is_retried_opens_its_batch_again(one: Peer):
    batch_id, ids = batch(one, JobSpec.make("t"), JobSpec.make("t"))
    then = one.enqueue("then", depends_on=[batch_id], on_dead="hold")
    run(one, *ids, verdict="dead")
    assert counts(one, batch_id) == (2, 0, 2, 0, True)
    assert one.retry(ids[0]) == "available"
    assert counts(one, batch_id) == (2, 0, 1, 0, False)
    run(one, ids[0])
    assert (counts(one, batch_id), one.state(then)) == ((2, 1, 1, 0, True), "blocked")
    assert one.value("SELECT pgqueue.redrive()") == 1
    run(one, ids[1])
    run(one, then)


def test_an_empty_batch_is_complete(one: Peer):
    batch_id, _ = batch(one)
    assert one.run(statements.get_batch(batch_id, schema=SCHEMA)).finished
    run(one, one.enqueue("then", depends_on=[batch_id]))


def test_jobs_that_were_there_before_belong_to_no_new_batch(one: Peer):
    old = one.enqueue("t", unique_key="k", delay=60)
    specs = [JobSpec.make("t", unique_key=key) for key in ("k", "l", "l")]
    batch_id, (first, second, third) = batch(one, *specs)
    assert (first, second) == (old, third)
    assert counts(one, batch_id) == (1, 0, 0, 0, False)
    run(one, second)
    assert counts(one, batch_id) == (1, 1, 0, 0, True)


def test_a_submit_into_a_batch_is_counted_and_a_finished_batch_takes_no_more(one: Peer):
    batch_id, (job,) = batch(one, JobSpec.make("t"))
    more = one.value("SELECT id FROM pgqueue.submit('t', batch_id => %s)", batch_id)
    assert one.value("SELECT id FROM pgqueue.submit('t', unique_key => 'k', batch_id => %s)", batch_id)
    assert not one.value("SELECT created FROM pgqueue.submit('t', unique_key => 'k', batch_id => %s)", batch_id)
    assert counts(one, batch_id)[0] == 3
    run(one, job, more, more + 1)
    for batch_ in (batch_id, job):
        with pytest.raises(BAD, match="there is no unfinished batch"):
            one.sql("SELECT pgqueue.submit('t', batch_id => %s)", batch_)
        with pytest.raises(BAD, match="there is no unfinished batch"):
            add(one, batch_, JobSpec.make("t"))


def test_steps_of_a_batch_depend_on_each_other_and_on_jobs_outside(one: Peer):
    outside = one.enqueue("outside")
    batch_id, (a, b, c) = batch(
        one, JobSpec.make("a"), JobSpec.make("b", depends_on=[outside]), JobSpec.make("c"), after={1: [0], 2: [0, 1]}
    )
    assert [one.job(job).depends_on for job in (a, b, c)] == [[], [outside, a], [b, a]]
    run(one, outside, a)
    run(one, b)
    run(one, c)
    assert counts(one, batch_id) == (3, 3, 0, 0, True)


def test_a_batch_that_would_wait_for_itself_is_refused(one: Peer):
    batch_id, (member,) = batch(one, JobSpec.make("t"))
    then = one.enqueue("then", depends_on=[batch_id])
    other, _ = batch(one, JobSpec.make("t", depends_on=[then]))
    after_other = one.enqueue("last", depends_on=[other])
    for bad in (batch_id, then, other, after_other):
        with pytest.raises(BAD, match=f"batch {batch_id} would wait for itself"):
            add(one, batch_id, JobSpec.make("t", depends_on=[bad]))
        with pytest.raises(BAD, match="would wait for itself"):
            one.sql("SELECT pgqueue.submit('t', batch_id => %s, depends_on => %s)", batch_id, [bad])
    assert counts(one, batch_id)[0] == 1
    late = add(one, batch_id, JobSpec.make("t", depends_on=[member]), JobSpec.make("t"), after={1: [0]})
    run(one, member)
    for job in (*late, then):
        run(one, job)


def test_two_batches_that_would_wait_for_each_other_are_not_made_by_two_at_once(one: Peer, two: Peer):
    first, (a,) = batch(one, JobSpec.make("a"))
    second, (b,) = batch(one, JobSpec.make("b"))
    after_first = one.enqueue("after first", depends_on=[first])
    after_second = one.enqueue("after second", depends_on=[second])
    one.begin()
    (late,) = add(one, first, JobSpec.make("late", depends_on=[after_second]))
    other = two.behind(lambda: add(two, second, JobSpec.make("late", depends_on=[after_first])))
    one.commit()
    with pytest.raises(BAD, match=f"batch {second} would wait for itself"):
        other.result()
    run(one, a, b)
    run(one, after_second)
    run(one, late)
    run(one, after_first)


def test_two_ends_in_one_transaction_are_counted_once_each(one: Peer):
    batch_id, (a, b, c) = batch(one, *(JobSpec.make("t") for _ in range(3)))
    then = one.enqueue("then", depends_on=[batch_id], on_dead="continue")
    claim = one.claim(1)
    one.begin()
    one.cancel(b)
    one.end(claim)
    one.cancel(c)
    assert counts(one, batch_id) == (3, 1, 0, 2, True)
    assert one.retry(b) == "available"
    assert counts(one, batch_id) == (3, 1, 0, 1, False)
    one.cancel(b)
    one.commit()
    assert (counts(one, batch_id), one.state(a)) == ((3, 1, 0, 2, True), "completed")
    run(one, then)


def test_a_batch_that_is_cancelled_ends_who_waits_and_asks_who_runs(one: Peer):
    batch_id, (a, b, c) = batch(one, JobSpec.make("a"), JobSpec.make("b", delay=60), JobSpec.make("c"), after={2: [0]})
    then, anyway = (
        one.enqueue("then", depends_on=[batch_id]),
        one.enqueue("t", depends_on=[batch_id], on_dead="continue"),
    )
    claim = take(one, a)
    assert one.run(statements.cancel_batch(batch_id, schema=SCHEMA)) == 2
    assert [one.state(job) for job in (a, b, c, then)] == ["running", "cancelled", "cancelled", "blocked"]
    assert one.job(a).cancel_requested
    one.end(claim, "cancelled")
    assert counts(one, batch_id) == (3, 0, 0, 3, True)
    assert [one.state(then), one.state(anyway)] == ["cancelled", "available"]
    assert one.run(statements.cancel_batch(batch_id, schema=SCHEMA)) == 0
    assert one.run(statements.cancel_batch(a, schema=SCHEMA)) is None


def test_a_batch_of_which_nothing_is_left_to_run_is_finished_from_the_start(one: Peer):
    dead, held = one.enqueue(max_attempts=1), one.enqueue("other", unique_key="k", delay=60)
    run(one, dead, verdict="dead")
    duplicate, doomed = JobSpec.make("t", unique_key="k"), JobSpec.make("t", depends_on=[dead])
    batch_id, ids = batch(one, duplicate, doomed)
    assert ids[0] == held
    assert counts(one, batch_id) == (1, 0, 0, 1, True)
    follower = one.enqueue(depends_on=[batch_id], on_dead="continue")
    assert one.state(follower) == "available"


def test_a_batch_may_be_filled_in_several_calls_also_when_all_of_the_first_has_ended(one: Peer):
    dead = one.enqueue(max_attempts=1)
    run(one, dead, verdict="dead")
    one.begin()
    batch_id, _ = batch(one, JobSpec.make("t", depends_on=[dead]))
    assert counts(one, batch_id) == (1, 0, 0, 1, True)
    (job,) = add(one, batch_id, JobSpec.make("t"))
    one.commit()
    assert counts(one, batch_id) == (2, 0, 0, 1, False)
    run(one, job)
    assert counts(one, batch_id) == (2, 1, 0, 1, True)
    with pytest.raises(BAD, match="there is no unfinished batch"):
        add(one, batch_id, JobSpec.make("t"))


def test_what_is_named_by_id_and_by_index_counts_together(one: Peer):
    ids = [i for (i,) in one.sql("SELECT pgqueue.enqueue('t') FROM generate_series(1, 9990)")]
    siblings = [{"task": "t"}] * 20
    jobs = json.dumps([*siblings, {"task": "t", "depends_on": ids, "after": list(range(20))}])
    with pytest.raises(BAD, match="job 20: depends_on must name at most 10000 jobs"):
        one.sql("SELECT pgqueue.submit_many(%s)", jobs)


def test_a_purge_takes_its_locks_in_the_order_of_everybody(one: Peer, two: Peer):
    first, second = one.enqueue(), one.enqueue()
    one.sql("UPDATE pgqueue.jobs SET meta = '{}' WHERE id = %s", first)  # so that it lies behind the second
    one.begin()
    one.sql("SELECT FROM pgqueue.jobs WHERE id = %s FOR UPDATE", first)
    purging = two.behind(lambda: two.run(statements.purge("default", schema=SCHEMA)))
    one.sql("SELECT FROM pgqueue.jobs WHERE id = %s FOR UPDATE", second)
    one.commit()
    assert purging.result(30) == 2


def test_a_purge_counts_in_the_batches_and_frees_who_may_go_on(one: Peer):
    batch_id, (a, _) = batch(one, JobSpec.make("a"), JobSpec.make("b", queue="bad"))
    then = one.enqueue("then", depends_on=[batch_id], on_dead="continue")
    run(one, a)
    one.run(statements.purge("bad", schema=SCHEMA))
    assert counts(one, batch_id) == (2, 1, 0, 1, True)
    run(one, then)


def test_old_batches_are_forgotten_with_their_jobs(one: Peer):
    old, ids = batch(one, JobSpec.make("t"))
    empty, _ = batch(one)
    live, _ = batch(one, JobSpec.make("t", delay=60))
    run(one, *ids)
    one.sql("""UPDATE pgqueue.batches SET created_at = created_at - interval '90 days',
               finished_at = finished_at - interval '90 days'""")
    one.run(statements.tidy(schema=SCHEMA))
    assert one.value("SELECT count(*) FROM pgqueue.batches") == 3, "its dead jobs may still be retried"
    one.sql("""UPDATE pgqueue.batches SET created_at = created_at - interval '2 days',
               finished_at = finished_at - interval '2 days'""")
    one.run(statements.tidy(schema=SCHEMA))
    assert one.sql("SELECT id FROM pgqueue.batches") == [(live,)]
    assert live not in {old, empty}


# -- locks -----------------------------------------------------------------------------------------------------------


async def test_a_sweep_is_not_held_up_by_who_holds_a_follower(
    one: Peer, two: Peer, connect: Callable[[], Peer], dsn: str
):
    """Its own batch or follower is locked: that job waits for a later sweep, the others are recovered now."""
    a, plain = one.enqueue("a", max_attempts=1), one.enqueue("plain")
    job = one.enqueue("b", depends_on=[a])
    one.expire(take(one, a, plain))
    two.begin()
    two.cancel(job)
    app = App(psycopg.conninfo.make_conninfo(dsn, options="-c lock_timeout=100ms"))
    assert [swept.id for swept in await sweep(app.database, SCHEMA)] == [plain]
    assert (one.state(a), one.state(plain), len(one.leases())) == ("running", "available", 1)
    two.rollback()
    assert [swept.id for swept in await sweep(app.database, SCHEMA)] == [a]
    assert (one.state(job), one.leases()) == ("cancelled", [])
    await app.aclose()


@pytest.mark.parametrize("verdict", ["completed", "dead"])
def test_ends_and_verbs_at_the_same_moment_do_not_deadlock(
    one: Peer, two: Peer, connect: Callable[[], Peer], verdict: str
):
    """Locks are taken in one order: a hundred times three statements that meet on the same batch and the same jobs."""
    three = connect()
    before = one.value("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    with ThreadPoolExecutor(3) as pool:
        for nth in range(100):
            specs = [JobSpec.make("t", max_attempts=1) for _ in range(8)]
            batch_id, ids = batch(one, *specs, after={n: [0, n - 1] for n in range(1, 8)})
            then = one.enqueue("t", depends_on=[batch_id, ids[4]])
            claim = take(one, ids[0])
            acts = [
                lambda: two.cancel(ids[7 - nth % 7]),  # noqa: B023
                lambda: two.run(statements.cancel_batch(batch_id, schema=SCHEMA)),  # noqa: B023
                lambda: two.run(statements.purge("default", schema=SCHEMA)),
                lambda: two.enqueue("t", depends_on=[ids[7], batch_id, ids[0]], on_dead="continue"),  # noqa: B023
                lambda: two.retry(ids[7]),  # noqa: B023
            ]
            done = [pool.submit(one.end, claim, verdict), pool.submit(acts[nth % 5])]  # type: ignore[arg-type]
            done.append(pool.submit(three.cancel, then))
            assert [future.exception() for future in done] == [None] * 3
            one.run(statements.purge("default", schema=SCHEMA))
    one.sql("SELECT pg_stat_force_next_flush()")
    assert one.value("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") == before


def test_an_end_from_an_old_snapshot_is_refused(one: Peer):
    a = one.enqueue("a")
    one.enqueue("b", depends_on=[a])
    plain = one.enqueue("plain")
    one.begin("REPEATABLE READ")
    assert one.cancel(plain) == "cancelled"
    with pytest.raises(psycopg.errors.FeatureNotSupported, match="READ COMMITTED"):
        one.cancel(a)
    one.rollback()
    assert one.state(a) == "available"


def test_the_tree_and_the_upstream_are_found_from_both_ends(one: Peer):
    batch_id, members = batch(one, JobSpec.make("t"), JobSpec.make("t"))
    then = one.enqueue("then", depends_on=[batch_id, members[0]])
    last = one.enqueue("last", depends_on=[then])
    stranger = one.enqueue("stranger")
    for _ in range(3):
        for job in (*members, then, last, batch_id):
            assert [r.id for r in one.run(statements.tree(job, schema=SCHEMA))] == [*members, then, last]
        assert [r.id for r in one.run(statements.list_upstream(then, schema=SCHEMA))] == members
        one.end(one.claim(100))
    assert [r.id for r in one.run(statements.tree(stranger, schema=SCHEMA))] == [stranger]
    assert one.run(statements.list_upstream(stranger, schema=SCHEMA)) == []
