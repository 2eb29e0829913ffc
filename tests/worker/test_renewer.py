"""Leases are kept as long as their worker lives, whatever its event loop does, and are lost when it does not renew."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING

import psycopg
import pytest
from invariants import check

from pgqueue import Job  # noqa: TC001 - read at run time
from worker.support import LEASE, execute, in_state, make_app, query, until, working

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from pgqueue import App


@pytest.fixture
async def app(dsn: str) -> AsyncIterator[App]:
    """With a short lease."""
    app = make_app(dsn, lease_duration=LEASE)
    yield app
    await app.aclose()
    check(dsn)


async def test_a_blocked_event_loop_loses_no_lease(dsn: str, app: App) -> None:
    runs: list[int] = []

    @app.task(name="block")
    async def block(job: Job) -> str:
        runs.append(job.attempt)
        await asyncio.to_thread(time.sleep, 0.05)
        time.sleep(1.5 * LEASE)  # noqa: ASYNC251 - it is what users do
        return "once"

    job = await block.enqueue()
    sweeper = make_app(dsn, lease_duration=LEASE)
    swept: list[object] = []
    stop = threading.Event()

    def sweep_from_elsewhere() -> None:
        from pgqueue import statements

        while not stop.wait(0.1):
            swept.extend(sweeper.database.run(statements.sweep(schema="pgqueue")))

    thread = threading.Thread(target=sweep_from_elsewhere)
    thread.start()
    try:
        async with working(app):
            assert await job.result(30) == "once"
    finally:
        stop.set()
        thread.join()
        sweeper.close()
    assert (runs, swept) == ([1], [])


async def test_a_thread_that_runs_for_longer_than_its_lease_keeps_its_job(app: App) -> None:
    runs = 0

    @app.task
    def toil() -> None:
        nonlocal runs
        runs += 1
        time.sleep(1.5 * LEASE)

    async with working(app):
        await in_state(await toil.enqueue(), "completed")
    assert runs == 1


async def test_a_worker_that_does_not_renew_loses_its_job_to_another_and_is_refused(dsn: str, app: App) -> None:
    first_goes, second_goes = threading.Event(), threading.Event()
    told: list[bool] = []

    @app.task(name="t")
    def frozen(job: Job) -> str:
        first_goes.wait(30)
        told.append(job.cancelled)
        return "from the first"

    other = make_app(dsn, lease_duration=LEASE)

    @other.task(name="t")
    def lively() -> str:
        second_goes.wait(30)
        return "from the second"

    async with working(app, slots=1) as worker:
        job = await frozen.enqueue()
        await in_state(job, "running")
        worker.renewer.stop()
        first_token = await token_of(dsn)
        async with working(other, slots=1):
            await until(lambda: token_changed(dsn, first_token), "another has taken it")
            first_goes.set()
            await until(lambda: told, "the first one has ended")
            await worker.finisher.drained()
            assert (await job.refresh()).state == "running", "its write was refused"
            second_goes.set()
            assert await job.result(30) == "from the second"
        assert (await job.refresh()).attempt == 2


async def test_the_same_worker_may_reclaim_its_own_job_and_its_old_run_is_refused(app: App) -> None:
    go = [threading.Event(), threading.Event()]

    @app.task
    def work(job: Job) -> int:
        go[job.attempt - 1].wait(30)
        return job.attempt

    async with working(app, slots=2) as worker:
        job = await work.enqueue()
        await in_state(job, "running")
        worker.renewer.stop()
        await until(lambda: second_attempt(job), "it has claimed its own job again")
        go[0].set()
        await until(lambda: worker.executor._ended == 1, "the old run has ended")
        await worker.finisher.drained()
        assert (await job.refresh()).state == "running"
        go[1].set()
        assert await job.result(30) == 2


async def second_attempt(job: Job) -> bool:
    record = await job.refresh()
    return record.state == "running" and record.attempt == 2


@pytest.mark.parametrize("kind", ["async", "thread"])
async def test_a_handler_whose_lease_is_lost_is_told_to_stop(dsn: str, app: App, kind: str) -> None:
    ended: list[str] = []

    if kind == "async":

        @app.task(name="t")
        async def task() -> None:
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                ended.append("told")
                raise
    else:

        @app.task(name="t")
        def task(job: Job) -> None:
            while not job.cancelled:
                time.sleep(0.01)
            ended.append("told")

    async with working(app, queues=["default"]) as worker:
        job = await task.enqueue()
        await until(lambda: worker.executor.running == 1, "it runs")
        await in_state(job, "running")
        await app.aclient.pause("default")  # so that nobody takes it again
        await execute(dsn, "UPDATE pgqueue.leases SET lease_until = now() - interval '1 minute'; ")
        await until(lambda: ended, "it is told")
        record = await in_state(job, "available")
    assert [error["type"] for error in record.errors] == ["LeaseExpired"]


async def test_the_renewer_reconnects_when_its_connection_is_killed(dsn: str, app: App) -> None:
    runs = 0

    @app.task
    async def work() -> None:
        nonlocal runs
        runs += 1
        await asyncio.sleep(1.5 * LEASE)

    async with working(app, slots=1) as worker:
        job = await work.enqueue()
        await until(lambda: worker.renewer._connection is not None, "it has renewed")
        connection = worker.renewer._connection
        assert connection is not None
        await execute(dsn, "SELECT pg_terminate_backend(%s)", connection.info.backend_pid)
        await in_state(job, "completed")
        assert worker.renewer.alive
    assert runs == 1


async def test_any_error_leaves_the_renewer_alive(app: App) -> None:
    @app.task
    async def work() -> str:
        await asyncio.sleep(1.5 * LEASE)
        return "done"

    async with working(app) as worker:
        renew, failures = worker.renewer.renew, []

        def fail_twice() -> None:
            if len(failures) < 2:
                failures.append(1)
                raise (RuntimeError, psycopg.errors.SerializationFailure)[len(failures) - 1]("oops")
            renew()

        worker.renewer.renew = fail_twice  # type: ignore[method-assign]
        assert await (await work.enqueue()).result(30) == "done"
        assert worker.renewer.alive
        assert len(failures) == 2


async def token_of(dsn: str) -> int | None:
    rows = await query(dsn, "SELECT lease_token FROM pgqueue.jobs")
    return rows[0][0] if rows else None


async def token_changed(dsn: str, token: int | None) -> bool:
    return await token_of(dsn) not in (None, token)
