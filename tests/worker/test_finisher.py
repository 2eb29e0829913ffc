"""Outcomes land: after lost replies, beside bad ones, through deadlocks and servers that refuse for a while."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from pgqueue import Fixed, Job, Snooze
from pgqueue.outcome import Outcome
from worker.support import TERMINATE_ALL, execute, in_state, query, until, working

if TYPE_CHECKING:
    from collections.abc import Callable

    from pgqueue import App, Worker


def before_the_reply(worker: Worker, fault: Callable[[], Any], times: int = 1) -> list[int]:
    """The finish reaches the server and commits; then this happens in place of the reply. Answers a count of faults."""
    link, faults = worker._links[1], []
    run = link.arun

    async def cut(statement: Any) -> Any:
        answer = await run(statement)
        if "verdicts" in (statement.params or {}) and statement.params["ids"] and len(faults) < times:
            faults.append(1)
            await link.close()
            raise fault()
        return answer

    link.arun = cut  # type: ignore[method-assign]
    return faults


def before_the_statement(worker: Worker, fault: Callable[[], Any], times: int = 1) -> list[int]:
    """The finish does not reach the server."""
    link, faults = worker._links[1], []
    run = link.arun

    async def fail(statement: Any) -> Any:
        if "verdicts" in (statement.params or {}) and statement.params["ids"] and len(faults) < times:
            faults.append(1)
            raise fault()
        return await run(statement)

    link.arun = fail  # type: ignore[method-assign]
    return faults


async def test_an_outcome_whose_reply_was_lost_is_found_in_history(app: App, caplog: pytest.LogCaptureFixture) -> None:
    ran = 0

    @app.task
    async def once() -> str:
        nonlocal ran
        ran += 1
        return "done"

    async with working(app) as worker:
        faults = before_the_reply(worker, lambda: psycopg.OperationalError("the reply is lost"))
        job = await once.enqueue()
        assert await job.result(30) == "done"
        await worker.finisher.drained()
        await until(lambda: len(worker.hand.runs()) == 0, "it lets go")
    assert (ran, len(faults)) == (1, 1)
    assert "the lease was lost" not in caplog.text


@pytest.mark.parametrize("verdict", ["retry", "snooze"])
async def test_a_job_put_back_whose_reply_was_lost_is_put_back_once(
    app: App, verdict: str, caplog: pytest.LogCaptureFixture
) -> None:
    runs = 0

    @app.task(retry=Fixed(0))
    async def twice(job: Job) -> int:
        nonlocal runs
        runs += 1
        if runs == 1:
            raise Snooze(0) if verdict == "snooze" else ValueError
        return job.attempt

    async with working(app) as worker:
        before_the_reply(worker, lambda: psycopg.OperationalError("the reply is lost"))
        assert await (await twice.enqueue()).result(30) == (1 if verdict == "snooze" else 2)
    assert runs == 2
    assert "the lease was lost" not in caplog.text


@pytest.mark.parametrize("error", [psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure])
async def test_a_deadlock_or_serialization_failure_is_said_again(app: App, error: type[psycopg.Error]) -> None:
    @app.task
    async def work() -> str:
        return "done"

    async with working(app) as worker:
        faults = before_the_statement(worker, lambda: error("again"), times=5)
        assert await (await work.enqueue()).result(30) == "done"
    assert len(faults) == 5


async def test_a_killed_finishing_connection_costs_nothing(dsn: str, app: App) -> None:
    @app.task
    async def work(number: int) -> int:
        if number % 20 == 0:
            await execute(
                dsn,
                f"{TERMINATE_ALL} AND query LIKE '%verdict%'",
            )
        return number

    jobs = await app.enqueue_many([work.job(number=n) for n in range(100)])
    async with working(app, slots=5):
        records = [await in_state(job, "completed", within=40) for job in jobs]
    assert [record.result for record in records] == list(range(100))


async def test_one_bad_outcome_in_a_batch_of_a_thousand_is_named_and_the_rest_land(
    app: App, caplog: pytest.LogCaptureFixture
) -> None:
    go = asyncio.Event()

    @app.task
    async def work(number: int) -> int:
        await go.wait()
        return number

    jobs = await app.enqueue_many([work.job(number=n) for n in range(1000)])
    bad = jobs[500].id
    async with working(app, slots=1000) as worker:
        add = worker.finisher.add
        worker.executor._emit = lambda run, outcome: add(
            run, Outcome("completed", result="{this is no JSON") if run.id == bad else outcome
        )
        await until(lambda: worker.executor.running == 1000, "all run")
        go.set()
        record = await in_state(jobs[500], "completed")
        await worker.finisher.drained()
    assert record.result is None
    assert "refused" in record.errors[0]["message"]
    assert "invalid input syntax for type json" in record.errors[0]["message"]
    assert bad in [getattr(record, "job_id", None) for record in caplog.records], "it is named"
    rows = await query(app.settings.dsn, "SELECT state::text, count(*) FROM pgqueue.history GROUP BY 1")
    assert rows == [("completed", 1000)]


class Held:
    """A task whose runs wait for the test's word."""

    def __init__(self, app: App) -> None:
        self.runs = 0
        self.go = asyncio.Event()
        self.task = app.task(name="held")(self._run)

    async def _run(self) -> str:
        self.runs += 1
        await self.go.wait()
        return "done"

    async def start(self) -> Job:
        """Enqueue one and wait until it runs."""
        job = await self.task.enqueue()
        await until(lambda: self.runs, "it runs")
        return job


@pytest.fixture
def held(app: App) -> Held:
    return Held(app)


@pytest.mark.parametrize("error", [psycopg.errors.ReadOnlySqlTransaction, psycopg.errors.UndefinedTable])
async def test_a_server_that_refuses_every_write_for_a_while_loses_no_outcome(
    app: App, held: Held, error: type[psycopg.Error]
) -> None:
    """After a failover, before the standby is promoted; while a schema is being restored: no outcome is to blame."""
    async with working(app) as worker:
        job = await held.start()
        refused = before_the_statement(worker, lambda: error("not now"), 6)
        held.go.set()
        record = await in_state(job, "completed")
    assert (record.result, record.attempt, record.errors, held.runs) == ("done", 1, [], 1)
    assert len(refused) == 6


async def test_an_outcome_whose_lease_is_lost_is_dropped_and_said(
    dsn: str, app: App, held: Held, caplog: pytest.LogCaptureFixture
) -> None:
    async with working(app) as worker:
        worker.renewer.renew = lambda: None  # type: ignore[method-assign]
        job = await held.start()
        await execute(dsn, "UPDATE pgqueue.jobs SET lease_token = 5")
        with caplog.at_level(logging.WARNING):
            held.go.set()
            await until(lambda: "the lease was lost" in caplog.text, "it says so")
        assert (await job.refresh()).state == "running", "another's job is untouched"
        await execute(
            dsn, "UPDATE pgqueue.jobs SET state = 'available', lease_token = NULL, lease_until = NULL, worker = NULL"
        )
        await in_state(job, "completed")


async def test_no_lease_row_is_left_when_all_has_landed(dsn: str, app: App) -> None:
    @app.task(retry=Fixed(0))
    async def work(job: Job, number: int) -> None:
        if number % 3 == 0 and job.attempt == 1:
            raise ValueError
        if number % 5 == 0:
            await asyncio.sleep(0.01)

    jobs = await app.enqueue_many([work.job(number=n) for n in range(200)])
    async with working(app, slots=7) as worker:
        for job in jobs:
            await in_state(job, "completed")
        await worker.finisher.drained()
        await until(lambda: no_leases(dsn), "no lease is left")


async def no_leases(dsn: str) -> bool:
    return await query(dsn, "SELECT count(*) FROM pgqueue.leases") == [(0,)]


async def test_a_caller_who_holds_a_cancel_open_does_not_hold_up_the_other_jobs(dsn: str, app: App, held: Held) -> None:
    """Its transaction has the row's lock: that one job's outcome must wait, and only that one's."""

    @app.task
    async def quick() -> str:
        return "quick"

    async with working(app) as worker:
        job = await held.start()
        async with await psycopg.AsyncConnection.connect(dsn) as caller:
            await app.aclient.cancel(job.id, connection=caller)
            held.go.set()
            await until(lambda: worker.executor.running == 0, "it has ended")
            assert await (await quick.enqueue()).result(30) == "quick"
            assert (await job.refresh()).state == "running", "the caller holds it still"
            await caller.rollback()
        assert await job.result(30) == "done"
