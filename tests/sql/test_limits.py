"""Limits of a queue: how many run, how fast they start, who comes first; and that a claim waits for nobody."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from invariants import check
from managed import limit, line, managed, running
from peers import SCHEMA, Peer

from pgqueue import App, InvalidJobError, Settings, statements
from pgqueue.job import JobSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(autouse=True)
def invariants_hold(dsn: str) -> Iterator[None]:
    yield
    check(dsn)


def plain(peer: Peer, count: int = 1, **options: Any) -> list[int]:
    return [peer.enqueue(queue="q", **options) for _ in range(count)]


def passed(peer: Peer, seconds: float) -> None:
    """So much time has passed for the buckets."""
    peer.sql("UPDATE pgqueue.buckets SET filled_at = filled_at - %s * interval '1 s'", seconds)


# -- how many run ----------------------------------------------------------------------------------------------------


def test_no_more_run_than_the_limit_says_whoever_claims(one: Peer, two: Peer):
    limit(one, max_running=3)
    plain(one, 10)
    first = managed(one, 2)
    second = managed(two, 10)
    assert (len(first.ids), len(second.ids)) == (2, 1)
    assert managed(one).ids == []
    one.end(first, "retry", error="{}")
    assert len(managed(two).ids) == 2


def test_jobs_under_an_expired_lease_count_until_they_are_swept(one: Peer):
    limit(one, max_running=1)
    plain(one, 2)
    first = managed(one)
    one.expire(first)
    assert managed(one).ids == []
    one.sweep()
    assert managed(one).ids == first.ids


def test_the_limit_of_zero_starts_nothing_and_none_is_no_limit(one: Peer):
    plain(one, 5)
    limit(one, max_running=0)
    assert managed(one).ids == []
    assert one.claim(queues=["q"]).ids == []
    limit(one, max_running=None)
    assert len(one.claim(queues=["q"]).ids) == 5


def test_what_plain_claims_started_before_the_limit_counts(one: Peer, two: Peer):
    plain(one, 10)
    before = one.claim(2, queues=["q"])
    two.begin()  # somebody sets a limit, and takes his time to commit
    limit(two, max_running=4)
    meanwhile = one.claim(1, queues=["q"])
    two.commit()
    assert one.claim(queues=["q"]).ids == [], "now it is claimed the other way only"
    assert len(managed(one).ids) == 1
    one.end(before)
    one.end(meanwhile)
    assert len(managed(one).ids) == 3


def test_what_plain_claims_started_between_two_limits_counts(one: Peer):
    plain(one, 10)
    limit(one, max_running=4)
    assert len(managed(one, 1).ids) == 1
    limit(one, max_running=None)
    assert len(one.claim(2, queues=["q"]).ids) == 2
    limit(one, max_running=4)
    assert len(managed(one).ids) == 1


def test_a_limit_is_exact_at_every_instant_with_fifty_claimers(dsn: str):
    """I9: probed continuously, on snapshots of their own."""
    with Peer(dsn) as peer:
        limit(peer, max_running=3, per_key=2)
        peer.sql("""INSERT INTO pgqueue.jobs (task, queue, group_key)
                    SELECT 't', 'q', CASE n % 3 WHEN 0 THEN 'k' || n % 5 END FROM generate_series(1, 1500) n""")
    stop = threading.Event()
    seen: list[tuple[int, int]] = []

    def probe() -> None:
        with Peer(dsn) as peer:
            while not stop.is_set():
                seen.append(peer.sql("""
                    SELECT coalesce(sum(n), 0)::int, coalesce(max(n) FILTER (WHERE group_key IS NOT NULL), 0)::int
                    FROM (SELECT group_key, count(*) AS n FROM pgqueue.jobs WHERE state = 'running' GROUP BY 1) k
                """)[0])  # fmt: skip

    def work(verdict: str) -> int:
        done = 0
        with Peer(dsn) as peer:
            until = time.monotonic() + 8
            while time.monotonic() < until:
                try:
                    claim = managed(peer, 5)
                except psycopg.errors.LockNotAvailable:
                    continue
                if claim.ids:
                    peer.end(claim, verdict, error=None if verdict == "completed" else "{}")
                    done += len(claim.ids)
        return done

    prober = threading.Thread(target=probe, daemon=True)
    prober.start()
    with ThreadPoolExecutor(50) as pool:
        done = sum(pool.map(work, ["completed"] * 45 + ["retry", "pass", "snooze", "release", "dead"]))
    stop.set()
    prober.join()
    assert done > 100
    assert len(seen) > 50
    assert max(total for total, _ in seen) == 3, "never more, and the limit is used"
    assert max(of_a_key for _, of_a_key in seen) <= 2


def test_a_worker_with_one_place_serves_lines_and_plain_jobs_of_the_queue(one: Peer):
    limit(one, max_running=1)
    plain(one, 100)
    line(one, count=100)
    keyed = 0
    for token in range(1, 41):
        claim = managed(one, 5, token=token)
        keyed += sum(row[11] is not None for row in claim.rows)
        assert len(claim.ids) == 1
        one.end(claim)
    assert keyed == 20, "half of the places, by the parity of the token"


# -- how fast they start ---------------------------------------------------------------------------------------------


def test_a_rate_lets_a_burst_start_then_so_many_per_second_and_saves_no_more_than_a_burst(one: Peer):
    limit(one, rate=0.001, burst=3)
    plain(one, 20)
    assert len(managed(one).ids) == 3
    assert managed(one).ids == []
    passed(one, 1500)
    assert len(managed(one).ids) == 1
    passed(one, 600)
    assert len(managed(one).ids) == 1, "the rest of the first was saved"
    passed(one, 1e9)
    assert len(managed(one).ids) == 3


def test_many_small_claims_start_as_many_as_the_rate_says(one: Peer):
    """No token is lost between the look at the clock and the end of a claim."""
    limit(one, rate=1000, burst=1)
    one.sql("INSERT INTO pgqueue.jobs (task, queue) SELECT 't', 'q' FROM generate_series(1, 3000)")
    started = 0
    one.sql("UPDATE pgqueue.queues SET burst = 1000")
    managed(one, 1000)
    began = one.value("SELECT filled_at FROM pgqueue.buckets")
    one.sql("UPDATE pgqueue.buckets SET tokens = 0")
    for _ in range(60):
        started += len(managed(one, 1000).ids)
    took = (one.value("SELECT filled_at FROM pgqueue.buckets") - began).total_seconds()
    assert abs(started - 1000 * took) <= 1


def test_a_key_has_a_rate_of_its_own(one: Peer):
    limit(one, key_rate=0.001, key_burst=2, per_key=0)
    a, b = line(one, "a", 5), line(one, "b", 5)
    assert set(managed(one, 100).ids) == {*a[:2], *b[:2]}
    assert managed(one).ids == []
    passed(one, 1001)
    assert set(managed(one, 100).ids) == {a[2], b[2]}
    assert managed(one).ids == []
    limit(one, key_rate=None)
    assert len(managed(one, 100).ids) == 4


def test_a_key_rate_and_fifo_go_together(one: Peer):
    limit(one, key_rate=0.001)
    a = line(one, "a", 3)
    first = managed(one)
    assert first.ids == a[:1]
    one.end(first)
    assert managed(one).ids == [], "the token is spent"
    passed(one, 1001)
    assert managed(one).ids == a[1:2]


def test_an_idle_worker_sleeps_until_the_next_token_of_the_queue_or_of_a_key(one: Peer):
    limit(one, rate=0.01)
    plain(one, 3)
    managed(one)
    ahead = one.ahead(queues=["q"])
    assert ahead.managed == ["q"]
    assert 90 < (ahead.seconds or 0) <= 100
    limit(one, rate=None, key_rate=0.5)
    line(one, "a", 2)
    managed(one)
    assert 1.5 < (one.next_due(queues=["q"]) or 0) <= 2


@pytest.mark.parametrize("rate", [1e-9, 1e9])
def test_the_least_and_the_greatest_rate_can_be_served(one: Peer, rate: float):
    limit(one, rate=rate, key_rate=rate)
    plain(one, 3)
    line(one, "a", 3)
    for token in (1, 2):
        managed(one, token=token)
        one.ahead(queues=["q"])
    assert len(running(one)) == (1 if rate < 1 else 4)


@pytest.mark.parametrize(
    "limits",
    [{"rate": 0}, {"rate": 1e300}, {"rate": 1e-300}, {"rate": float("nan")}, {"burst": 0}, {"max_running": -1},
     {"per_key": 2**31}, {"ageing": 0}, {"key_rate": -1}, {"per_key": True}, {"speed": 1}],
)  # fmt: skip
def test_a_limit_without_a_meaning_is_refused_by_name(dsn: str, limits: dict[str, Any]):
    app = App(settings=Settings(dsn=dsn))
    with pytest.raises(InvalidJobError, match=next(iter(limits))):
        app.client.limit_queue("q", **limits)
    assert app.client.queue_settings() == []
    app.close()


# -- who comes first -------------------------------------------------------------------------------------------------


def test_without_ageing_a_high_priority_always_wins_and_with_it_the_one_that_has_waited(one: Peer):
    limit(one, max_running=100)
    (old,) = plain(one, priority=9)
    one.sql("UPDATE pgqueue.jobs SET run_at = now() - interval '95 s' WHERE id = %s", old)
    high = plain(one, 5, priority=0)
    assert managed(one, 1).ids == high[:1]
    limit(one, ageing="20s")
    assert managed(one, 1).ids == high[1:2], "9 - 4 steps"
    limit(one, ageing="10s")
    assert managed(one, 1).ids == [old], "9 - 9 steps, and older"


# -- nobody is waited for --------------------------------------------------------------------------------------------


def test_open_transactions_of_others_do_not_hold_up_a_claim(one: Peer, two: Peer):
    """Whatever they have touched: jobs, settings, keys. A first key of a queue makes nobody wait, either."""
    limit(one, max_running=50, rate=1000, key_rate=1000)
    heads = [line(one, f"k{n}", 2)[0] for n in range(4)]
    jobs = plain(one, 4)
    two.begin()
    line(two, "new", queue="new")
    line(two, "k3")
    two.cancel(heads[0])
    two.cancel(jobs[0])
    limit(two, max_running=1)
    two.run(statements.pause("q", schema=SCHEMA))
    began = time.monotonic()
    claim = managed(one, 50)
    assert sorted(claim.ids) == [*heads[1:], *jobs[1:]]
    (other,) = line(one, "other", queue="new")
    assert managed(one, queue="new").ids == [other]
    assert time.monotonic() - began < 5, "nothing was waited for"
    two.rollback()


def test_jobs_that_somebody_holds_do_not_hide_those_behind_them(one: Peer, two: Peer):
    limit(one, max_running=50)
    jobs = plain(one, 120)
    two.begin()
    for job in jobs[:100]:
        two.cancel(job)
    assert managed(one, 10).ids == jobs[100:110]
    two.rollback()


def test_a_claim_gives_up_soon_when_somebody_sits_on_the_lock_of_the_queue(one: Peer, two: Peer):
    limit(one, max_running=5)
    plain(one, 1)
    line(one, "k", queue="other")
    two.begin()
    assert len(managed(two).ids) == 1
    began = time.monotonic()
    with pytest.raises(psycopg.errors.LockNotAvailable):
        managed(one)
    assert 0.2 < time.monotonic() - began < 10
    assert len(managed(one, queue="other").ids) == 1, "no other queue is concerned"
    two.rollback()
    assert len(managed(one).ids) == 1


@pytest.mark.parametrize("isolation", ["REPEATABLE READ", "SERIALIZABLE"])
def test_a_claim_under_a_snapshot_that_does_not_move_is_refused(one: Peer, isolation: str):
    limit(one, max_running=5)
    one.begin(isolation)
    with pytest.raises(psycopg.errors.FeatureNotSupported, match="READ COMMITTED"):
        managed(one)
    one.rollback()


def test_large_payloads_are_fetched_when_the_lock_is_free_again(one: Peer, two: Peer):
    """A worker that does not read would otherwise keep the queue's lock while its answer fills the line."""
    limit(one, max_running=10)
    ids = [one.enqueue("t", {"x": "y" * 40_000}, queue="q") for _ in range(3)]
    claim = managed(one)
    assert claim.ids == ids
    assert statements.lacks_payloads(claim.rows)
    payloads = two.run(statements.payloads(claim.ids, claim.token, schema=SCHEMA))
    rows = statements.filled(claim.rows, payloads)
    assert [len(row[5]) for row in rows] == [40_009 + 1] * 3 or all(len(row[5]) > 40_000 for row in rows)
    assert two.run(statements.payloads(claim.ids, claim.token + 1, schema=SCHEMA)) == {}
    one.enqueue("t", {"x": "y" * 60_000}, queue="q")
    assert not statements.lacks_payloads(managed(one).rows), "one of that size fits"


# -- between the statements of one claim ------------------------------------------------------------------------------

GATES = {
    "before what runs is counted": "-- What runs:",
    "before the pick": "-- Lines get half",
    "before the locks": "IF n > 0 AND room > 0",
    "before the start": "IF lanes || lines = '{}'",
}


@pytest.mark.parametrize("gate", GATES)
def test_whatever_happens_between_the_statements_of_a_claim_one_of_a_key_runs_in_order(
    one: Peer, two: Peer, connect: Callable[[], Peer], gate: str
):
    """The claim is stopped there, another connection acts and commits, the claim goes on."""
    source: str = one.value("SELECT pg_get_functiondef('pgqueue.claim_managed'::regproc)")
    assert source.count(GATES[gate]) == 1
    one.sql("CREATE TABLE public.gate (open boolean)")
    one.sql("""CREATE FUNCTION public.gate() RETURNS void LANGUAGE plpgsql AS $$
               BEGIN WHILE NOT EXISTS (SELECT FROM public.gate) LOOP PERFORM pg_sleep(0.002); END LOOP; END $$""")
    one.sql(source.replace(GATES[gate], f"PERFORM public.gate(); {GATES[gate]}").replace("%", "%%"))
    three, four = connect(), connect()
    acts: dict[str, Callable[[list[int], Any], Any]] = {
        "complete": lambda _ids, held: two.end(held),
        "retry": lambda _ids, held: two.end(held, "retry", error="{}"),
        "sweep": lambda _ids, held: (two.expire(held), two.sweep()),
        "cancel the next": lambda ids, _held: two.cancel(ids[1]),
        "put off the next": lambda _ids, _held: two.run(statements.submit(
            JobSpec.make("t", queue="q", group_key="k", unique_key="u", delay=60, on_conflict="replace"),
            schema=SCHEMA)),
        "commit an earlier one": lambda _ids, _held: three.commit(),
        "nothing": lambda _ids, _held: None,
    }  # fmt: skip
    for name, act in acts.items():
        for free in (True, False):  # whether the line runs already
            one.sql("TRUNCATE public.gate")
            three.begin()
            (early,) = line(three) if name == "commit an earlier one" else [0]
            first = line(two)
            one.sql("INSERT INTO public.gate VALUES (true)")
            held = None if free else managed(one)
            one.sql("TRUNCATE public.gate")
            ids = first + line(two, unique_key="u") + line(two)
            if free and name in {"complete", "retry", "sweep"}:
                three.rollback()
                two.sql("DELETE FROM pgqueue.jobs")
                continue
            if free:  # the one that is put off or cancelled is the head itself
                two.sql("DELETE FROM pgqueue.jobs WHERE id = %s", ids[0])
            with ThreadPoolExecutor(1) as pool:
                claim = pool.submit(managed, one)
                _until_it_sleeps(four, one.pid)
                acting = two.start(lambda: act(ids, held))  # noqa: B023
                acted = acting.done()
                four.sql("INSERT INTO public.gate VALUES (true)")
                started = claim.result(30).ids
                acting.result(30)
            three.commit()
            story = (name, "free" if free else "held", started, ids)
            now = running(two)
            assert len(now) <= 1, story
            if name == "put off the next":
                assert ids[2] not in now, "it would overtake the one that waits for its time"
            if acted and name in {"put off the next", "cancel the next"}:
                assert ids[1] not in now, story
            waiting = [i for (i,) in two.sql("SELECT id FROM pgqueue.jobs WHERE state = 'available'")]
            assert all(i < j for i in now for j in waiting if early not in {i, j}), story
            two.sql("DELETE FROM pgqueue.jobs")
            two.sql("DELETE FROM pgqueue.leases")


def _until_it_sleeps(peer: Peer, pid: int) -> None:
    deadline = time.monotonic() + 30
    while peer.value("SELECT wait_event FROM pg_stat_activity WHERE pid = %s", pid) != "PgSleep":
        assert time.monotonic() < deadline
        time.sleep(0.002)
