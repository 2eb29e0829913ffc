"""The Job in a user's hand: outside its handler (verbs, result), inside (facts, progress), and job.transaction()."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import invariants
import pytest
from peers import Peer

from pgqueue import App, Job, JobSpec, current_job
from pgqueue.errors import (
    InvalidJobError,
    JobFailedError,
    JobNotFoundError,
    JobStateError,
    LeaseLostError,
    PgqueueError,
    ResultTimeoutError,
)
from pgqueue.run import Run, current_run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BOOM = '{"attempt": 1, "type": "ValueError", "message": "boom"}'


@pytest.fixture
def app(dsn: str) -> Iterator[App]:
    app = App(dsn)
    app.task(name="t")(lambda: None)
    yield app
    app.close()


@pytest.fixture
def peer(dsn: str) -> Iterator[Peer]:
    with Peer(dsn) as peer:
        yield peer


def running(app: App, peer: Peer, **options: Any) -> Job:
    """A job as its handler sees it, claimed by the peer."""
    peer.enqueue(**options)
    claim = peer.claim(1)
    return Job(claim.ids[0], app, Run(claim.rows[0], claim.token, app))


# -- outside ---------------------------------------------------------------------------------------------------------


def test_a_handle_is_its_id(app: App):
    assert app.job(3) == Job(3, app)
    assert len({app.job(3), app.job(3), app.job(4)}) == 2
    assert app.job(3) != 3
    assert repr(app.job(3)) == "<Job 3>"


@pytest.mark.parametrize("copy", [False, True], ids=["sql", "copy"])
def test_what_enqueue_many_answers_is_a_sequence_of_handles(app: App, copy: bool):
    jobs = app.enqueue_many_sync([JobSpec.make("t", n) for n in range(5)], copy=copy)
    assert list(jobs) == [app.job(each) for each in jobs.ids]
    assert [job.refresh_sync().payload for job in (jobs[0], jobs[-1], *jobs[1:4:2], *jobs[::-1][:1])] == [0, 4, 1, 3, 4]
    assert all(job.created for job in jobs)
    assert len(jobs) == 5
    assert jobs[2] in jobs
    assert repr(jobs) == "<5 enqueued jobs>"
    with pytest.raises(IndexError):
        _ = jobs[5]
    assert not app.enqueue_many_sync([], copy=copy)


def test_the_handle_of_a_job_that_was_there_says_so(app: App):
    held = app.client.enqueue(JobSpec.make("t", unique_key="b"))
    jobs = app.enqueue_many_sync([JobSpec.make("t", unique_key=key) for key in "abc"])
    assert [job.created for job in jobs] == [True, False, True]
    assert jobs[1].id == jobs.ids[1] == held


def test_the_verbs_of_a_handle_for_sync_code(app: App, peer: Peer):
    job = app.job(peer.enqueue(delay=60))
    assert job.refresh_sync().state == "scheduled"
    assert job.retry_sync() == "available"
    assert job.cancel_sync() == "cancelled"
    with pytest.raises(JobFailedError, match=r"job \d+ is cancelled"):
        job.result_sync()
    with pytest.raises(JobNotFoundError):
        app.job(4711).result_sync()


async def test_the_verbs_of_a_handle_for_async_code(app: App, peer: Peer):
    job = app.job(peer.enqueue(delay=60))
    assert (await job.refresh()).state == "scheduled"
    assert await job.retry() == "available"
    peer.claim()
    assert await job.cancel() == "running"
    with pytest.raises(JobStateError):
        await job.retry()
    with pytest.raises(JobNotFoundError):
        await app.job(4711).result()
    await app.aclose()


@pytest.mark.parametrize("value", ['{"sum": 3}', "null", "0", None])
async def test_result_waits_for_the_completion(app: App, peer: Peer, value: str | None):
    job = app.job(peer.enqueue())
    claim = peer.claim()
    waiting = asyncio.create_task(job.result(timeout="10s"))
    await job.refresh()
    assert not waiting.done()
    peer.end(claim, result=value)
    assert await waiting == {'{"sum": 3}': {"sum": 3}, "0": 0}.get(value or "")
    assert await job.result() == waiting.result()
    await app.aclose()


def test_result_sync_waits_for_the_completion(app: App, peer: Peer):
    job = app.job(peer.enqueue())
    claim = peer.claim()
    timer = threading.Timer(0.1, lambda: peer.end(claim, result="7"))
    timer.start()
    assert job.result_sync(timeout=10) == 7
    timer.join()


async def test_result_of_a_dead_job_raises_with_its_errors(app: App, peer: Peer):
    job = app.job(peer.enqueue())
    peer.end(peer.claim(), "dead", error=BOOM)
    with pytest.raises(JobFailedError, match=rf"job {job.id} is dead: ValueError: boom") as caught:
        await job.result()
    assert (caught.value.state, [error["type"] for error in caught.value.errors]) == ("dead", ["ValueError"])
    await app.aclose()


@pytest.mark.parametrize("patience", [0, 0.05, "50ms"])
async def test_result_gives_up_in_time_and_the_job_goes_on(app: App, peer: Peer, patience: Any):
    job = app.job(peer.enqueue())
    with pytest.raises(ResultTimeoutError, match="has not finished within"):
        await job.result(patience)
    with pytest.raises(ResultTimeoutError):
        job.result_sync(patience)
    assert peer.state(job.id) == "available"
    await app.aclose()


def test_a_timeout_without_meaning_is_refused(app: App, peer: Peer):
    job = app.job(peer.enqueue())
    with pytest.raises(InvalidJobError):
        job.result_sync(timeout="soon")


# -- inside ----------------------------------------------------------------------------------------------------------


def test_inside_its_handler_a_job_knows_what_this_run_is(app: App, peer: Peer):
    job = running(app, peer, task="t", payload={"a": [1]}, max_attempts=4, meta={"m": 1})
    assert (job.task, job.queue, job.attempt, job.max_attempts) == ("t", "default", 1, 4)
    assert (job.payload, job.meta, job.cancelled) == ({"a": [1]}, {"m": 1}, False)
    assert running(app, peer).meta == {}


@pytest.mark.parametrize(
    "look",
    [
        lambda job: job.task, lambda job: job.queue, lambda job: job.attempt, lambda job: job.max_attempts,
        lambda job: job.payload, lambda job: job.meta, lambda job: job.cancelled, lambda job: job.progress(0.5),
        lambda job: job.transaction(), lambda job: job.set_result(1),
    ],
    ids=range(10),
)  # fmt: skip
def test_outside_its_handler_it_says_so(app: App, look: Callable[[Job], Any]):
    with pytest.raises(PgqueueError, match=r"only known inside the job's handler; outside, ask refresh\(\)"):
        look(app.job(1))


def test_progress_is_told_to_the_run(app: App, peer: Peer):
    job = running(app, peer)
    job.progress(0.25, "a quarter")
    assert job._run.report == '{"value":0.25,"note":"a quarter"}'
    job.progress(1)
    assert job._run.report == '{"value":1}'
    for bad in (-0.1, 1.1, float("nan")):
        with pytest.raises(InvalidJobError, match=r"progress must be 0\.0 to 1\.0"):
            job.progress(bad)


def test_current_job_is_the_one_whose_handler_runs_here(app: App, peer: Peer):
    with pytest.raises(PgqueueError, match="no job is running here"):
        current_job()
    job = running(app, peer)
    token = current_run.set(job._run)
    try:
        assert current_job() == job
        assert current_job().attempt == 1
    finally:
        current_run.reset(token)


# -- job.transaction() -----------------------------------------------------------------------------------------------


@pytest.fixture
def writes(peer: Peer) -> None:
    peer.sql("CREATE TABLE writes (n integer)")


def written(peer: Peer) -> list[int]:
    return [n for (n,) in peer.sql("SELECT n FROM writes")]


@pytest.mark.usefixtures("writes")
def test_the_handlers_writes_and_the_completion_are_one_commit(app: App, peer: Peer, dsn: str):
    job = running(app, peer)
    with job.transaction() as connection:
        connection.execute("INSERT INTO writes VALUES (1)")
        job.set_result({"ok": 1})
        assert written(peer) == []
        assert peer.state(job.id) == "running"
    assert (written(peer), peer.state(job.id), job._run.landed) == ([1], "completed", True)
    assert peer.job(job.id).result == {"ok": 1}
    invariants.check(dsn, [job.id])


@pytest.mark.usefixtures("writes")
async def test_the_same_for_an_async_handler(app: App, peer: Peer, dsn: str):
    job = running(app, peer)
    async with job.transaction() as connection:
        await connection.execute("INSERT INTO writes VALUES (1)")
    assert (written(peer), peer.state(job.id), job._run.landed) == ([1], "completed", True)
    invariants.check(dsn, [job.id])
    await app.aclose()


@pytest.mark.usefixtures("writes")
async def test_an_exception_rolls_everything_back_and_the_job_still_runs(app: App, peer: Peer, dsn: str):
    job = running(app, peer)
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the block is what is tested
        async with job.transaction() as connection:
            await connection.execute("INSERT INTO writes VALUES (1)")
            raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), job.transaction() as connection:  # noqa: PT012
        connection.execute("INSERT INTO writes VALUES (1)")
        raise ZeroDivisionError
    assert (written(peer), peer.state(job.id), job._run.landed) == ([], "running", False)
    invariants.check(dsn, [job.id])
    await app.aclose()


@pytest.mark.usefixtures("writes")
@pytest.mark.parametrize("reclaimed", [True, False])
async def test_a_run_whose_lease_is_lost_writes_nothing(app: App, peer: Peer, dsn: str, *, reclaimed: bool):
    job = running(app, peer)
    peer.sql("UPDATE pgqueue.leases SET lease_until = now()")
    peer.sweep()
    if reclaimed:
        peer.claim()
    with pytest.raises(LeaseLostError, match="the lease is lost") as caught, job.transaction() as connection:
        connection.execute("INSERT INTO writes VALUES (1)")
    assert caught.value.job_id == job.id
    with pytest.raises(LeaseLostError):
        async with job.transaction() as connection:
            await connection.execute("INSERT INTO writes VALUES (1)")
    assert (written(peer), job._run.landed) == ([], False)
    assert peer.state(job.id) == ("running" if reclaimed else "available")
    invariants.check(dsn, [job.id])
    await app.aclose()


@pytest.mark.usefixtures("writes")
def test_while_the_transaction_is_open_a_sweep_may_win_and_then_nothing_is_written(app: App, peer: Peer, dsn: str):
    job = running(app, peer)
    with pytest.raises(LeaseLostError), job.transaction() as connection:  # noqa: PT012
        connection.execute("INSERT INTO writes VALUES (1)")
        peer.sql("UPDATE pgqueue.leases SET lease_until = now()")
        assert [swept.id for swept in peer.sweep()] == [job.id]
    assert written(peer) == []
    invariants.check(dsn, [job.id])


@pytest.mark.usefixtures("writes")
def test_the_handler_may_enqueue_in_the_same_commit(app: App, peer: Peer, dsn: str):
    job = running(app, peer)
    with job.transaction() as connection:
        following = app.get_task("t").using(connection).enqueue_sync()
    assert peer.state(following.id) == "available"
    invariants.check(dsn, [job.id, following.id])


def test_a_transaction_that_leaves_other_jobs_of_its_lease_alone(app: App, peer: Peer, dsn: str):
    ids = [peer.enqueue() for _ in range(2)]
    claim = peer.claim()
    job = Job(ids[0], app, Run(claim.rows[0], claim.token, app))
    with job.transaction():
        pass
    assert [peer.state(i) for i in ids] == ["completed", "running"]
    invariants.check(dsn, ids)
