"""Unique jobs: who holds a key, for how long, and what a second job with the same key means."""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import orjson
import psycopg
import pytest
from invariants import check
from peers import SCHEMA, Claim, Peer

from pgqueue import App, JobExistsError, Settings, statements
from pgqueue.job import ON_CONFLICT, JobSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pgqueue import Job
    from pgqueue.statements import Submitted


@pytest.fixture(autouse=True)
def invariants_hold(dsn: str) -> Iterator[None]:
    yield
    check(dsn)


def submit(
    peer: Peer, policy: str = "skip", key: str = "u", *, task: str = "t", payload: Any = None, **options: Any
) -> Submitted:
    spec = JobSpec.make(task, payload, unique_key=key, on_conflict=policy, **options)
    return peer.run(statements.submit(spec, schema=SCHEMA))  # type: ignore[no-any-return]


def live(peer: Peer, key: str = "u") -> list[int]:
    return [i for (i,) in peer.sql("SELECT id FROM pgqueue.jobs WHERE unique_key = %s", key)]


def elapse(peer: Peer, seconds: float) -> None:
    """So much time has passed for the throttles and the jobs."""
    by = f"interval '{seconds} s'"
    peer.sql(f"UPDATE pgqueue.throttles SET since = since - {by}, until = until - {by}")
    peer.sql(f"UPDATE pgqueue.jobs SET run_at = run_at - {by} WHERE run_at < 'infinity'")


# -- the three policies ----------------------------------------------------------------------------------------------


def test_skip_answers_the_job_that_holds_the_key(one: Peer):
    first = submit(one, payload={"n": 1})
    again = submit(one, payload={"n": 2}, priority=0)
    assert (first.created, again.created, again.id) == (True, False, first.id)
    assert one.job(first.id).payload == {"n": 1}


def test_raise_refuses_and_names_the_job_that_holds_the_key(dsn: str):
    app = App(settings=Settings(dsn=dsn))
    held = app.client.submit(JobSpec.make("t", unique_key="u"))
    with pytest.raises(JobExistsError, match=str(held.id)) as caught:
        app.client.submit(JobSpec.make("t", unique_key="u", on_conflict="raise"))
    assert caught.value.job_id == held.id
    app.close()


def test_raise_names_the_holder_among_many_and_in_a_workflow_too(dsn: str):
    app = App(settings=Settings(dsn=dsn))
    held = app.client.submit(JobSpec.make("t", unique_key="u"))
    refused = JobSpec.make("t", unique_key="u", on_conflict="raise")
    with pytest.raises(JobExistsError, match=f"job 1: job {held.id}") as caught:
        app.enqueue_many_sync([JobSpec.make("t"), refused])
    assert caught.value.job_id == held.id
    with pytest.raises(JobExistsError) as caught:
        app.batch([JobSpec.make("t"), refused]).enqueue_sync()
    assert caught.value.job_id == held.id
    app.close()


@pytest.mark.parametrize("wrapped", [False, True])
def test_of_many_handles_each_says_whether_it_was_created(dsn: str, wrapped: bool):
    app = App(settings=Settings(dsn=dsn))
    if wrapped:

        @app.around_enqueue
        def around(spec: JobSpec) -> Iterator[JobSpec]:
            yield spec

    async def many_async() -> list[Job]:
        try:
            return await app.enqueue_many([JobSpec.make("t", unique_key=key) for key in "abc"])
        finally:
            await app.aclose()

    held = app.client.submit(JobSpec.make("t", unique_key="b"))
    jobs = app.enqueue_many_sync([JobSpec.make("t", unique_key=key) for key in "ab"])
    assert [job.created for job in jobs] == [True, False]
    assert jobs[1].id == held.id
    assert [job.created for job in asyncio.run(many_async())] == [False, False, True]


def test_an_element_that_is_refused_for_its_size_still_says_what_to_do(one: Peer):
    jobs = orjson.dumps([{"task": "t", "on_conflict": "replace", "payload": "x" * 1_100_000}]).decode()
    with pytest.raises(psycopg.errors.ProgramLimitExceeded, match="job 0: payload of") as caught:
        one.sql("SELECT pgqueue.submit_many(%s)", jobs)
    assert caught.value.diag.message_hint == "Store the data in a table of your own and enqueue its key."


def test_replace_makes_of_a_waiting_job_what_was_said_last_and_leaves_it_in_its_place(one: Peer):
    first = submit(one, payload={"n": 1}, queue="a", group_key="k", delay=60)
    behind = one.enqueue(queue="b", group_key="g")
    again = submit(one, "replace", task="other", payload={"n": 2}, queue="b", priority=2, group_key="g", max_attempts=3,
                   timeout=5, meta={"m": 1})  # fmt: skip
    assert (again.id, again.created) == (first.id, False)
    job = one.job(first.id)
    assert (job.task, job.payload, job.queue, job.priority, job.group_key, job.max_attempts, job.meta) == (
        "other", {"n": 2}, "b", 2, "g", 3, {"m": 1})  # fmt: skip
    assert job.timeout.total_seconds() == 5
    assert job.state == "available", "due as the last call says: now"
    assert first.id < behind


def test_replace_of_a_job_that_has_failed_keeps_its_attempts_and_leaves_it_one_at_least(one: Peer):
    first = submit(one, payload={"n": 1})
    for _ in range(2):
        one.end(one.claim(), "retry", error="{}")
    submit(one, "replace", payload={"n": 2}, max_attempts=1)
    claim = one.claim()
    assert (claim.ids, claim.attempts) == ([first.id], {first.id: 3})
    assert orjson.loads(claim.rows[0][5]) == {"n": 2}
    assert one.job(first.id).max_attempts == 3


def test_replace_of_a_blocked_job_leaves_it_blocked(one: Peer):
    upstream = one.enqueue(queue="up")
    first = submit(one, payload={"n": 1}, depends_on=[upstream])
    again = submit(one, "replace", payload={"n": 2}, delay=60)
    assert (again.id, one.state(first.id), one.job(first.id).payload) == (first.id, "blocked", {"n": 2})
    one.end(one.claim(queues=["up"]))
    assert one.state(first.id) == "scheduled", "the delay of the last call"


def test_replace_of_a_running_job_makes_a_new_one_that_has_the_key_from_then_on(one: Peer):
    first = submit(one, payload={"n": 1})
    claim = one.claim()
    second = submit(one, "replace", payload={"n": 2})
    assert second.created
    assert second.id != first.id
    assert live(one) == [second.id]
    third = submit(one, "replace", payload={"n": 3})
    assert (third.id, third.created) == (second.id, False)
    one.end(claim, "retry", error="{}")
    assert sorted(one.claim().ids) == [first.id, second.id]


def test_the_key_is_held_through_retry_snooze_release_and_sweep_and_free_when_the_job_has_ended(one: Peer):
    first = submit(one)
    for verdict in ("retry", "snooze", "release", "pass"):
        one.end(one.claim(), verdict, error="{}")
        assert submit(one).id == first.id
    one.expire(one.claim())
    assert submit(one).id == first.id
    one.sweep()
    assert submit(one).id == first.id
    one.end(one.claim())
    assert submit(one).created


def test_a_dead_job_is_not_redriven_while_another_holds_its_key(one: Peer):
    first = submit(one, max_attempts=1)
    one.end(one.claim(), "dead", error="{}")
    second = submit(one)
    assert second.created
    assert one.retry(first.id) == "dead"
    assert one.run(statements.redrive(None, None, 10, schema=SCHEMA)) == 0
    one.end(one.claim())
    assert one.retry(first.id) == "available"
    assert submit(one).id == first.id


def test_many_at_once_say_of_each_whether_it_was_created(one: Peer):
    held = submit(one, key="a", payload={"n": 0})
    specs = [JobSpec.make("t", {"n": 1}, unique_key=key, on_conflict="replace") for key in ("a", "b", "b")]
    answers = one.run(statements.submit_many(specs, schema=SCHEMA))
    assert [answer.created for answer in answers] == [False, True, False]
    assert answers[0].id == held.id
    assert answers[1].id == answers[2].id
    with pytest.raises(psycopg.errors.UniqueViolation, match="job 1: job"):
        one.run(statements.submit_many(
            [JobSpec.make("t"), JobSpec.make("t", unique_key="a", on_conflict="raise")], schema=SCHEMA))  # fmt: skip
    assert one.value("SELECT count(*) FROM pgqueue.jobs") == 2


# -- for a period ----------------------------------------------------------------------------------------------------


def test_unique_for_holds_the_key_for_its_time_whatever_becomes_of_the_job(one: Peer):
    first = submit(one, unique_for=100)
    one.end(one.claim(), "dead", error="{}")
    again = submit(one, unique_for=100)
    assert (again.id, again.created, live(one)) == (first.id, False, [])
    elapse(one, 99)
    assert not submit(one, unique_for=100).created
    elapse(one, 1.5)
    assert submit(one, unique_for=100).created


def test_unique_for_does_not_end_before_its_job_does(one: Peer):
    first = submit(one, unique_for=100, delay=500)
    elapse(one, 200)
    assert submit(one, unique_for=100).id == first.id


def test_a_job_that_was_rolled_back_holds_nothing(one: Peer):
    one.begin()
    submit(one, unique_for=100)
    one.rollback()
    assert submit(one, unique_for=100).created


def test_replace_with_unique_for_runs_once_per_period_with_the_newest_payload(one: Peer):
    first = submit(one, "replace", payload={"n": 1}, unique_for=100)
    one.end(one.claim())
    second = submit(one, "replace", payload={"n": 2}, unique_for=100)
    assert second.created
    assert one.state(second.id) == "scheduled"
    third = submit(one, "replace", payload={"n": 3}, unique_for=100)
    assert third.id == second.id
    assert one.claim().ids == [], "the period of the first is not over"
    elapse(one, 101)
    claim = one.claim()
    assert [orjson.loads(row[5]) for row in claim.rows] == [{"n": 3}]
    one.end(claim)
    fourth = submit(one, "replace", payload={"n": 4}, unique_for=100)
    assert one.state(fourth.id) == "scheduled", "the second period began when the first was over"
    assert first.id not in {second.id, fourth.id}
    elapse(one, 100)
    assert one.claim().ids == [fourth.id]


def test_raise_with_unique_for_refuses_for_the_whole_period(one: Peer):
    submit(one, unique_for=100)
    one.end(one.claim())
    with pytest.raises(psycopg.errors.UniqueViolation):
        submit(one, "raise", unique_for=100)
    elapse(one, 101)
    assert submit(one, "raise", unique_for=100).created


def test_a_period_is_counted_from_the_call_not_from_the_beginning_of_a_long_transaction(one: Peer):
    one.begin()
    one.sql("SELECT pg_sleep(0.3)")
    submit(one, unique_for=0.25)
    one.commit()
    assert one.value("SELECT until > clock_timestamp() - interval '0.1 s' FROM pgqueue.throttles")


def test_what_has_run_out_is_tidied(one: Peer):
    submit(one, unique_for=100)
    one.run(statements.tidy(schema=SCHEMA))
    assert one.value("SELECT count(*) FROM pgqueue.throttles") == 1
    elapse(one, 101)
    one.run(statements.tidy(schema=SCHEMA))
    assert one.value("SELECT count(*) FROM pgqueue.throttles") == 0


# -- at the same time ------------------------------------------------------------------------------------------------

ACTS: dict[str, Callable[[Peer, Claim, int], Any]] = {
    **{policy: lambda peer, _c, _i, policy=policy: submit(peer, policy) for policy in ON_CONFLICT},  # type: ignore[misc]
    **{f"{policy} for a time": lambda peer, _c, _i, policy=policy: submit(peer, policy, unique_for=100)  # type: ignore[misc]
       for policy in ON_CONFLICT},
    "many": lambda peer, _c, _i: peer.run(statements.submit_many([JobSpec.make("t", unique_key="u")], schema=SCHEMA)),
    "claim": lambda peer, _c, _i: peer.claim(),
    "complete": lambda peer, claim, _i: peer.end(claim),
    "retry": lambda peer, claim, _i: peer.end(claim, "retry", error="{}"),
    "sweep": lambda peer, claim, _i: (claim.ids and peer.expire(claim), peer.sweep()),
    "cancel": lambda peer, _c, job_id: peer.cancel(job_id),
    "redrive": lambda peer, _c, job_id: peer.retry(job_id),
}  # fmt: skip


@pytest.mark.parametrize("state", ["waiting", "running", "dead"])
@pytest.mark.parametrize("first", ACTS)
def test_whatever_two_connections_do_to_a_key_one_live_job_has_it_and_nobody_fails(
    one: Peer, two: Peer, connect: Callable[[], Peer], first: str, state: str
):
    """I8: every pair of acts, the first in an open transaction that then commits or rolls back."""
    three = connect()
    for second, end in itertools.product(ACTS, ("COMMIT", "ROLLBACK")):
        job_id = submit(three).id
        claim = Claim(1) if state == "waiting" else three.claim()
        if state == "dead":
            three.end(claim, "dead", error="{}")
        one.begin()
        _allowed(lambda: ACTS[first](one, claim, job_id))  # noqa: B023
        if one.connection.info.transaction_status.name == "INERROR":
            one.sql("ROLLBACK")
            one.begin()
        waiting = two.start(lambda: _allowed(lambda: ACTS[second](two, claim, job_id)))  # noqa: B023
        one.sql(end)
        waiting.result(30)
        assert len(live(three)) <= 1
        for table in ("jobs", "leases", "throttles", "history"):
            three.sql(f"DELETE FROM pgqueue.{table}")


def _allowed(act: Callable[[], Any]) -> Any:
    """Only a policy of ``raise`` may meet a violation, and says so in our words."""
    try:
        return act()
    except psycopg.errors.UniqueViolation as error:
        if "holds the unique_key" not in str(error):
            raise


@pytest.mark.parametrize("isolation", ["REPEATABLE READ", "SERIALIZABLE"])
@pytest.mark.parametrize("policy", ON_CONFLICT)
def test_in_a_transaction_whose_snapshot_stands_still_a_conflict_is_answered_or_may_be_tried_again(
    one: Peer, two: Peer, isolation: str, policy: str
):
    for ended in (False, True):
        one.begin(isolation)
        one.sql("SELECT 1 FROM pgqueue.jobs")
        held = submit(two, key=f"u{ended}")
        if ended:
            two.end(two.claim())
        try:
            answer = submit(one, policy, key=f"u{ended}")
        except psycopg.errors.SerializationFailure:
            one.rollback()
            continue
        except psycopg.errors.UniqueViolation:
            assert policy == "raise"
            one.rollback()
            continue
        one.commit()
        assert answer.created == ended
        assert (answer.id == held.id) != ended
        assert len(live(two, f"u{ended}")) == 1
        two.end(two.claim())


@pytest.mark.parametrize("period", [None, 0.02], ids=["while alive", "for a time"])
@pytest.mark.parametrize("policy", ON_CONFLICT)
def test_fifty_at_once_with_workers_beside_them(dsn: str, policy: str, period: float | None):  # noqa: C901
    """I8, and no newest payload is lost by replace: whatever was said last of a key is what runs last."""
    keys = [f"u{n}" for n in range(10)]
    last_said: dict[str, dict[int, int]] = defaultdict(dict)
    started: dict[str, list[list[int]]] = defaultdict(list)
    created: list[int] = []
    refused: list[tuple[str, bool]] = []
    stop = threading.Event()

    def produce(nth: int) -> None:
        key, chance = keys[nth % len(keys)], random.Random(nth)
        with Peer(dsn) as peer:
            for n in range(40):
                try:
                    answer = submit(peer, policy, key, payload=[nth, n], unique_for=period)
                except psycopg.errors.UniqueViolation as error:
                    refused.append((policy, "holds the unique_key" in str(error)))
                else:
                    last_said[key][nth] = n
                    if answer.created:
                        created.append(answer.id)
                time.sleep(chance.random() * 0.005)

    def work(nth: int) -> None:
        chance = random.Random(-nth)
        with Peer(dsn) as peer:
            while not stop.is_set() or peer.value("SELECT EXISTS (SELECT FROM pgqueue.jobs)"):
                claim = peer.claim(3, token=10_000_000 + chance.getrandbits(40) * 10 + nth)
                for row in claim.rows:
                    started[_key_of(row)].append(orjson.loads(row[5]))
                if claim.ids:
                    peer.end(claim, chance.choice(["completed"] * 5 + ["release"]))

    def _key_of(row: tuple[Any, ...]) -> str:
        return keys[orjson.loads(row[5])[0] % len(keys)]

    with ThreadPoolExecutor(4) as crew, ThreadPoolExecutor(50) as pool:
        working = [crew.submit(work, nth) for nth in range(4)]
        try:
            for _ in pool.map(produce, range(50)):
                pass
        finally:
            stop.set()
        for worker in working:
            worker.result(60)
    assert set(refused) <= {("raise", True)}
    assert len(created) == len(set(created)), "nobody was told that he has made another's job"
    assert started.keys() == set(keys)
    with Peer(dsn) as peer:  # of each key the job that was made last, as it ran
        made = peer.sql("SELECT payload FROM pgqueue.history ORDER BY id")
    last_made = {keys[nth % len(keys)]: (nth, n) for ((nth, n),) in made}
    if policy == "replace":
        for key in keys:
            newest = {(nth, n) for nth, n in last_said[key].items()}
            assert {tuple(payload) for payload in started[key]} & newest, key
            assert last_made[key] in newest, (key, started[key][-5:])
