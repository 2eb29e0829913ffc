"""The worker as a whole: starting, stopping in order, what it refuses, and being seen."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from pgqueue import App, InvalidJobError, Settings, SettingsError, Worker
from worker.support import in_state, make_app, query, until, working

if TYPE_CHECKING:
    from pgqueue import Job


async def test_a_stop_waits_for_what_runs_and_gives_back_what_does_not(app: App) -> None:
    go = asyncio.Event()

    @app.task
    async def hold() -> str:
        await go.wait()
        return "finished"

    jobs = await app.enqueue_many([hold.job() for _ in range(5)])
    worker = Worker(app, slots=2)
    running = asyncio.create_task(worker.run())
    await until(lambda: getattr(worker, "executor", None) and worker.executor.running == 2, "two run")
    worker.stop()
    await until(lambda: worker.executor.wants() == 0, "it has heard")
    go.set()
    assert await asyncio.wait_for(running, 60) is True
    states = sorted([(await job.refresh()).state for job in jobs])
    assert states == ["available"] * 3 + ["completed"] * 2
    assert sorted([(await job.refresh()).attempt for job in jobs]) == [0, 0, 0, 1, 1]
    assert await query(app.settings.dsn, "SELECT count(*) FROM pgqueue.leases") == [(0,)]


async def test_jobs_claimed_ahead_are_given_back_at_the_stop_with_their_attempt(app: App) -> None:
    go = asyncio.Event()

    @app.task
    async def hold() -> None:
        await go.wait()

    async with working(app, slots=1) as worker:
        worker.executor._set_rate(400)
        worker.executor.tick = lambda: None  # type: ignore[method-assign]
        jobs = await app.enqueue_many([hold.job() for _ in range(10)])
        await until(lambda: len(worker.hand.runs()) == 10, "it holds them all")
        worker.stop()
        for job in jobs[1:]:
            record = await in_state(job, "available")
            assert (record.attempt, record.errors) == (0, [])
        go.set()


@pytest.mark.parametrize("stop", ["now", "grace over"])
async def test_what_outlasts_the_grace_period_is_given_back_without_blame(app: App, stop: str) -> None:
    ended: list[str] = []

    @app.task
    async def endless() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("cleaned up")

    worker = Worker(app, slots=3, shutdown_timeout=timedelta(seconds=0.2 if stop == "grace over" else 60))
    running = asyncio.create_task(worker.run())
    jobs = await app.enqueue_many([endless.job() for _ in range(3)])
    await until(lambda: getattr(worker, "executor", None) and worker.executor.running == 3, "they run")
    worker.stop()
    if stop == "now":
        worker.stop(now=True)
    assert await asyncio.wait_for(running, 40) is False, "it waited neither for the jobs nor for the grace to end"
    records = [await job.refresh() for job in jobs]
    assert {(record.state, record.attempt, len(record.errors)) for record in records} == {("available", 0, 0)}
    assert ended == ["cleaned up"] * 3


async def test_a_thread_that_never_ends_does_not_hold_up_the_stop(app: App) -> None:
    end = threading.Event()
    started = threading.Event()

    def endless() -> None:
        started.set()
        end.wait(60)

    task = app.task(name="endless")(endless)
    worker = Worker(app, shutdown_timeout=timedelta(seconds=0.1))
    running = asyncio.create_task(worker.run())
    job = await task.enqueue()
    await until(started.is_set, "it runs")
    worker.stop()
    try:
        assert await asyncio.wait_for(running, 60) is False
        record = await job.refresh()
        assert (record.attempt, record.errors) == (0, [])
        assert record.run_at > record.created_at, "not before this process will have ended"
    finally:
        end.set()


async def test_a_handler_that_swallows_its_cancellation_does_not_hold_up_the_stop(app: App) -> None:
    end = asyncio.Event()

    @app.task
    async def deaf() -> None:
        while not end.is_set():
            try:
                await end.wait()
            except asyncio.CancelledError:
                continue

    worker = Worker(app, shutdown_timeout=timedelta(seconds=0.1))
    running = asyncio.create_task(worker.run())
    job = await deaf.enqueue()
    await until(lambda: getattr(worker, "executor", None) and worker.executor.running == 1, "it runs")
    worker.stop()
    done, _ = await asyncio.wait([running], timeout=60)
    end.set()
    assert done
    assert running.result() is False
    assert ((await job.refresh()).attempt, worker.stuck) == (0, True)


async def test_a_worker_with_nothing_to_do_stops_at_once(app: App) -> None:
    app.task(name="t")(lambda: None)
    worker = Worker(app, poll=timedelta(minutes=5))
    running = asyncio.create_task(worker.run())
    await until(lambda: getattr(worker, "bell", None) and worker.bell.armed, "it is idle")
    worker.stop()
    assert await asyncio.wait_for(running, 60) is True, "it did not wait for its next look"


async def test_a_worker_that_is_stopped_before_it_begins_ends(app: App) -> None:
    app.task(name="t")(lambda: None)
    worker = Worker(app)
    worker.stop()
    assert await asyncio.wait_for(worker.run(), 30) is True


async def test_a_worker_can_be_seen_while_it_works_and_is_forgotten_when_it_stopped(app: App) -> None:
    app.task(name="t", queue="q")(lambda: None)
    async with working(app, slots=7, name="somebody") as worker:
        (record,) = await until(app.aclient.workers, "it is seen")
        assert (record.name, record.queues, record.slots, record.alive, record.stopping) == (
            "somebody",
            ["q"],
            7,
            True,
            False,
        )
        assert worker.name == "somebody"
    assert await app.aclient.workers() == []


async def test_a_worker_refuses_what_has_no_meaning(dsn: str) -> None:
    with pytest.raises(SettingsError, match="no tasks"):
        Worker(make_app(dsn))
    app = make_app(dsn)
    app.task(name="t")(lambda: None)
    with pytest.raises(SettingsError, match="slots"):
        Worker(app, slots=0)
    with pytest.raises(InvalidJobError, match="queue"):
        Worker(app, queues=["a\0b"])


async def test_expired_leases_of_others_are_swept(dsn: str, app: App) -> None:
    @app.task
    async def work() -> str:
        return "done"

    job = await work.enqueue()
    await query(
        dsn,
        "UPDATE pgqueue.jobs SET state = 'running', attempt = 1, lease_token = 9, worker = 'gone', lease_until = now()",
    )
    await query(
        dsn,
        "INSERT INTO pgqueue.leases (token, lease_until, worker, job_ids) "
        "SELECT 9, now(), 'gone', array_agg(id) FROM pgqueue.jobs",
    )
    async with working(app):
        assert await job.result(30) == "done"
    assert [error["type"] for error in (await job.refresh()).errors] == ["LeaseExpired"]


async def test_a_job_that_used_up_its_attempts_by_killing_workers_is_buried(dsn: str, app: App) -> None:
    @app.task
    async def work() -> None:
        raise AssertionError("must not run")

    job = await work.options(max_attempts=1).enqueue()
    await query(
        dsn,
        "UPDATE pgqueue.jobs SET state = 'running', attempt = 1, lease_token = 9, worker = 'gone', lease_until = now()",
    )
    await query(
        dsn,
        "INSERT INTO pgqueue.leases (token, lease_until, worker, job_ids) "
        "SELECT 9, now(), 'gone', array_agg(id) FROM pgqueue.jobs",
    )
    async with working(app):
        record = await in_state(job, "dead")
    assert record.errors[0]["type"] == "LeaseExpired"
    assert "gone" in record.errors[0]["message"]


async def test_serializable_as_the_default_isolation_changes_nothing(dsn: str) -> None:
    app = App(
        settings=Settings(
            dsn=f"{dsn}&options=-c%20default_transaction_isolation%3Dserializable", lease_duration=timedelta(seconds=1)
        )
    )

    @app.task
    async def work(number: int) -> int:
        await asyncio.sleep(0.5 if number % 10 == 0 else 0)
        return number

    jobs = await app.enqueue_many([work.job(number=n) for n in range(200)])
    async with working(app, slots=5):
        results = [await result_of(job) for job in jobs]
    await app.aclose()
    assert results == list(range(200))


async def result_of(job: Job) -> object:
    return await job.result(30)


async def test_a_broken_part_ends_the_worker_with_its_error_and_gives_its_jobs_back(app: App) -> None:
    @app.task
    async def hold() -> None:
        await asyncio.sleep(0.3)

    worker = Worker(app)
    running = asyncio.create_task(worker.run())
    job = await hold.enqueue()
    await until(lambda: getattr(worker, "executor", None) and worker.executor.running == 1, "it runs")

    def broken() -> int:
        raise ZeroDivisionError("a bug")

    worker.executor.wants = broken  # type: ignore[method-assign]
    worker.executor.hungry.set()
    worker.bell.rung.set()
    with pytest.raises(ZeroDivisionError):
        await asyncio.wait_for(running, 60)
    assert (await job.refresh()).state == "completed"
