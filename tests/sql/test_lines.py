"""The lines of jobs with a group_key: in order, one at a time, none stuck; and fairness between them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from invariants import check
from managed import drain, limit, line, managed, running
from peers import SCHEMA, Claim, Peer

from pgqueue import App, Settings, statements
from pgqueue.job import JobSpec
from pgqueue.outcome import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(autouse=True)
def invariants_hold(dsn: str) -> Iterator[None]:
    yield
    check(dsn)


# -- the order of one line -------------------------------------------------------------------------------------------


def test_only_the_head_of_a_line_starts_and_the_next_when_it_has_ended(one: Peer):
    ids = line(one, count=3)
    first = managed(one)
    assert first.ids == ids[:1]
    assert managed(one).ids == []
    one.end(first)
    second = managed(one)
    assert second.ids == ids[1:2]
    one.end(second, "dead", error="{}")
    third = managed(one)
    assert third.ids == ids[2:]
    one.end(third, "cancelled")
    assert managed(one).ids == []


def test_lines_of_different_keys_run_side_by_side_and_the_same_key_in_another_queue_is_another_line(one: Peer):
    heads = [line(one, key, 3)[0] for key in ("a", "b", "c")]
    other = line(one, "a", 2, queue="other")
    assert sorted(managed(one).ids) == heads
    assert managed(one, queue="other").ids == other[:1]


def test_the_plain_claim_leaves_jobs_with_a_key_alone(one: Peer):
    line(one, count=3)
    plain = one.enqueue(queue="q")
    assert one.claim(queues=["q"]).ids == [plain]


def test_a_queue_without_limits_leaves_plain_jobs_to_the_plain_claim(one: Peer):
    one.enqueue(queue="q")
    assert managed(one).ids == []


def test_a_head_that_waits_for_its_retry_holds_its_line(one: Peer):
    head, second = line(one, count=2)
    other = line(one, "other")
    one.end(managed(one, tasks=["t"]), "retry", error="{}", delay=60.0)
    one.make_due(other[0])
    assert managed(one).ids == other
    one.make_due(head)
    assert managed(one).ids == [head]
    assert second not in running(one)


def test_a_head_that_passes_goes_behind_all_that_were_enqueued_before_and_before_all_that_come_after(one: Peer):
    a, b, c = line(one, count=3)
    for _ in range(5):  # a line of two that pass again and again is not overtaken by a newcomer
        one.end(managed(one), "pass", error="{}")
    (d,) = line(one)
    order = drain(one)
    assert sorted(order[:3]) == [a, b, c]
    assert order[3] == d


def test_with_pass_the_next_one_runs_while_the_first_waits_for_its_retry(one: Peer):
    a, b = line(one, count=2)
    one.end(managed(one), "pass", error="{}", delay=60.0)
    second = managed(one)
    assert second.ids == [b]
    one.end(second)
    one.make_due(a)
    assert managed(one).ids == [a]


@pytest.mark.parametrize("verdict", ["snooze", "release"])
def test_a_head_that_is_given_back_keeps_its_place(one: Peer, verdict: str):
    a, _ = line(one, count=2)
    one.end(managed(one), verdict)
    again = managed(one)
    assert again.ids == [a]
    assert again.attempts == {a: 1}


def test_a_head_whose_worker_died_is_the_head_again_after_the_sweep_and_nothing_runs_before(one: Peer):
    a, _ = line(one, count=2)
    first = managed(one)
    one.expire(first)
    assert managed(one).ids == [], "expired, but not swept: it may still run"
    one.sweep()
    assert managed(one).ids == [a]


def test_a_head_that_was_killed_for_good_by_the_sweep_frees_its_line(one: Peer):
    _, b = line(one, count=2, max_attempts=1)
    one.expire(managed(one))
    one.sweep()
    assert managed(one).ids == [b]


def test_a_cancelled_head_frees_its_line_at_once_and_so_does_a_deleted_one(one: Peer):
    a, b, c = line(one, count=3, delay=60)
    assert managed(one).ids == []
    one.cancel(a)
    one.sql("DELETE FROM pgqueue.jobs WHERE id = %s", b)
    one.make_due(c)
    assert managed(one).ids == [c]


def test_a_head_scheduled_for_later_holds_its_line_until_it_is_due(one: Peer):
    a, _ = [one.enqueue(queue="q", group_key="k", delay=delay) for delay in (60, 0)]
    assert managed(one).ids == []
    one.retry(a)
    assert managed(one).ids == [a]


def test_a_head_of_a_task_that_this_worker_does_not_know_holds_its_line_for_one_that_does(one: Peer):
    a, _ = one.enqueue("x", queue="q", group_key="k"), one.enqueue("y", queue="q", group_key="k")
    assert managed(one, tasks=["y"]).ids == []
    assert managed(one, tasks=["x"]).ids == [a]


def test_a_blocked_job_is_in_no_line_until_its_upstream_has_ended(one: Peer):
    upstream = one.enqueue(queue="up")
    blocked = one.enqueue(queue="q", group_key="k", depends_on=[upstream])
    (second,) = line(one)
    first = managed(one)
    assert first.ids == [second]
    one.end(first)
    one.end(one.claim(queues=["up"]))
    assert managed(one).ids == [blocked]


def test_a_dead_job_that_is_redriven_is_at_its_old_place_and_waits_for_what_runs(one: Peer):
    a, b = line(one, count=2)
    one.end(managed(one), "dead", error="{}")
    second = managed(one)
    assert second.ids == [b]
    one.retry(a)
    (c,) = line(one)
    assert managed(one).ids == [], "a is the head now, and b still runs"
    one.end(second)
    assert drain(one) == [a, c]


def test_a_job_of_a_slow_transaction_does_not_run_beside_a_later_one_that_has_started(one: Peer, two: Peer):
    two.begin()
    (slow,) = line(two)
    (fast,) = line(one)
    first = managed(one)
    assert first.ids == [fast]
    two.commit()
    assert managed(one).ids == [], "the head of the line is another now; one runs, all the same"
    one.end(first)
    assert managed(one).ids == [slow]


def test_jobs_that_came_by_copy_stand_in_line(dsn: str, one: Peer):
    app = App(settings=Settings(dsn=dsn))
    ids = app.client.enqueue_many([JobSpec.make("t", queue="q", group_key="k") for _ in range(3)], copy=True)
    app.close()
    assert drain(one) == ids


def test_a_paused_queue_starts_no_line_and_a_purged_one_has_none(one: Peer):
    ids = line(one, count=2)
    one.run(statements.pause("q", schema=SCHEMA))
    assert managed(one).ids == []
    one.run(statements.resume("q", schema=SCHEMA))
    first = managed(one)
    assert first.ids == ids[:1]
    assert one.run(statements.purge("q", schema=SCHEMA)) == 1
    one.end(first)
    assert managed(one).ids == []


def test_a_job_that_is_put_off_while_it_is_being_claimed_is_not_started_before_its_time(one: Peer, two: Peer):
    """The pick sees it due; the newer order arrives before it is locked."""
    one.enqueue(queue="q", group_key="k", unique_key="u")
    two.begin()
    two.run(statements.submit(JobSpec.make("t", {"n": 2}, queue="q", group_key="k", unique_key="u", delay=60,
                                           on_conflict="replace"), schema=SCHEMA))  # fmt: skip
    assert managed(one).ids == [], "somebody holds it: passed over, not waited for"
    two.commit()
    assert managed(one).ids == []


# -- several of a key at once ----------------------------------------------------------------------------------------


def test_per_key_n_runs_so_many_of_each_key_those_that_are_due_longest_first(one: Peer):
    limit(one, per_key=2)
    a, b = line(one, "a", 5), line(one, "b", 5)
    one.sql("UPDATE pgqueue.jobs SET run_at = now() - interval '1 hour' WHERE id = %s", a[4])
    claim = managed(one, 100)
    assert set(claim.ids) == {a[4], a[0], b[0], b[1]}
    assert managed(one).ids == []
    one.finish((a[4], claim.token, Outcome("completed")))
    assert managed(one).ids == [a[1]]


def test_per_key_0_sets_no_bound_and_shares_what_there_is_among_the_keys(one: Peer):
    limit(one, per_key=0)
    hot = line(one, "hot", 50)
    rare = [line(one, f"rare{n}")[0] for n in range(5)]
    claim = managed(one, 10)
    assert len(claim.ids) == 10
    assert set(rare) <= set(claim.ids)
    assert set(claim.ids) - set(rare) == set(hot[:5])


def test_jobs_that_wait_for_their_time_in_front_of_a_line_hide_nothing_when_it_is_no_fifo(one: Peer):
    limit(one, per_key=3)
    line(one, count=300, delay=3600)
    (due,) = line(one)
    assert managed(one).ids == [due]


# -- fairness and very many keys -------------------------------------------------------------------------------------


def test_one_key_with_very_many_jobs_does_not_starve_the_others(one: Peer):
    one.sql("INSERT INTO pgqueue.jobs (task, queue, group_key) SELECT 't', 'q', 'hot' FROM generate_series(1, 5000)")
    rare = [line(one, f"rare{n}")[0] for n in range(10)]
    for per_key in (1, 0):
        limit(one, per_key=per_key)
        order: list[int] = []
        while not set(rare) <= set(order):  # a worker with one slot
            claim = managed(one, 1)
            order += claim.ids
            one.end(claim)
            assert len(order) <= 25, f"after {len(order)} starts, with per_key={per_key}"
        rare = [line(one, f"rare{n}")[0] for n in range(10)]


def many_held(peer: Peer, count: int = 3000) -> None:
    """Very many lines whose heads wait for their retries, with due jobs behind them."""
    for sign in ("+", "-"):
        peer.sql(f"""INSERT INTO pgqueue.jobs (task, queue, group_key, run_at)
                     SELECT 't', 'q', 'k' || n, now() {sign} interval '1 hour' FROM generate_series(1, {count}) n""")


def rested(peer: Peer) -> Peer:
    """The pause between two looks in vain is over."""
    peer.sql("UPDATE pgqueue.buckets SET barren_at = barren_at - interval '1 second'")
    return peer


def test_a_line_that_can_start_is_found_among_very_many_that_can_not(one: Peer):
    many_held(one)
    (due,) = line(one, "k15x")
    one.sql("UPDATE pgqueue.jobs SET run_at = now() - interval '2 hours' WHERE id = %s", due)
    looks = 1
    while not (claim := managed(rested(one), 50)).ids:
        looks += 1
        assert looks <= 3000 / 200 + 2
    assert claim.ids == [due]
    assert looks > 1, "else this test proves nothing"


def test_a_line_whose_job_has_just_ended_or_become_due_is_found_at_once_among_very_many(one: Peer):
    many_held(one)
    a, b = line(one, "zz", 2)
    first = managed(one, 50)
    assert first.ids == [a], "just enqueued"
    one.end(first)
    one.sql("UPDATE pgqueue.jobs SET run_at = now() - interval '2 hours' WHERE id = %s", b)
    second = managed(one, 50, hints=["zz", "no longer"])
    assert second.ids == [b], "a job of its line has just ended here"
    assert managed(one, 50, hints=["k7"]).ids == [], "a hint does not let a line pass its head"
    one.sql("UPDATE pgqueue.jobs SET run_at = now() WHERE group_key = 'k7' AND run_at < now()")
    assert managed(one, 50).ids == [], "nor does what has just become due behind it"


def test_very_many_lines_that_can_not_start_are_looked_through_little_by_little(one: Peer):
    many_held(one)
    quick = False
    while not quick:  # on a machine under load two claims in a row may be far apart
        began = time.monotonic()
        managed(rested(one), 50)
        before = one.sql("SELECT after_key, barren_at FROM pgqueue.buckets")
        assert managed(one, 50).ids == []
        after = one.sql("SELECT after_key, barren_at FROM pgqueue.buckets")
        quick = time.monotonic() - began < 0.09
    assert after == before, "not again at once"
    assert one.ahead(queues=["q"]).seconds <= 0.11
    managed(rested(one), 50)
    assert one.sql("SELECT after_key, barren_at FROM pgqueue.buckets") != before


def test_heads_that_somebody_holds_in_an_open_transaction_do_not_stop_the_others(one: Peer, two: Peer):
    keys = [f"k{n:02}" for n in range(30)]
    heads = [line(one, key)[0] for key in keys]
    two.begin()
    for head in heads[:25]:
        two.cancel(head)
    found: set[int] = set()
    for _ in range(10):
        found |= set(managed(one, 5).ids)
    assert found == set(heads[25:])
    two.rollback()


# -- two connections, statement by statement -------------------------------------------------------------------------

STEPS: dict[str, Callable[[Peer, str, Claim, list[int]], Any]] = {
    "claim": lambda peer, queue, _c, _i: managed(peer, queue=queue),
    "enqueue": lambda peer, queue, _c, _i: line(peer, queue=queue),
    "complete": lambda peer, _q, claim, _i: peer.end(claim),
    "retry": lambda peer, _q, claim, _i: peer.end(claim, "retry", error="{}"),
    "pass": lambda peer, _q, claim, _i: peer.end(claim, "pass", error="{}"),
    "bury": lambda peer, _q, claim, _i: peer.end(claim, "dead", error="{}"),
    "sweep": lambda peer, _q, claim, _i: (peer.expire(claim), peer.sweep()),
    "cancel the running": lambda peer, _q, _c, ids: peer.cancel(ids[0]),
    "cancel the next": lambda peer, _q, _c, ids: peer.cancel(ids[1]),
    "purge": lambda peer, queue, _c, _i: peer.run(statements.purge(queue, schema=SCHEMA)),
}


@pytest.mark.parametrize("second", STEPS)
@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
def test_whatever_two_connections_do_to_a_line_one_runs_in_order_and_none_is_stuck(
    one: Peer, two: Peer, connect: Callable[[], Peer], second: str, end: str
):
    """I7: after each pair of steps, the first in an open transaction that then commits or rolls back."""
    three = connect()
    for nth, first in enumerate(STEPS):
        queue = f"q{nth}"
        ids = line(three, count=3, queue=queue)
        held = managed(three, queue=queue)
        one.begin()
        STEPS[first](one, queue, held, ids)
        two.begin()
        waiting = two.start(lambda: STEPS[second](two, queue, held, ids))  # noqa: B023
        one.sql(end)
        try:
            waiting.result(30)
        except psycopg.errors.LockNotAvailable:
            two.rollback()
        else:
            two.commit()
        assert len(running(three, queue)) <= 1, (first, second)
        one.expire(held)  # whoever has died by now is swept
        three.sql("UPDATE pgqueue.leases SET lease_until = now() - interval '1 s' WHERE queue = %s", queue)
        three.sweep()
        order = drain(three, queue)
        assert order == sorted(order) or "pass" in {first, second}, (first, second)
        assert three.value("SELECT count(*) FROM pgqueue.jobs WHERE queue = %s", queue) == 0, (first, second)
