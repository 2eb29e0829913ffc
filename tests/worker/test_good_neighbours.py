"""What one job, caller or stranger does costs no other job anything."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from pgqueue import current_job, statements
from pgqueue.connection import run
from pgqueue.errors import DatabaseError
from pgqueue.job import JobSpec
from worker import handlers
from worker.support import LEASE, execute, in_state, query, until, working

if TYPE_CHECKING:
    from pathlib import Path

    from pgqueue import App, Job

tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="nobody")


@dataclass(frozen=True)
class Absurd:
    """A backoff of a user who has not thought of the end of time."""

    days: int

    def delay(self, attempt: int) -> timedelta:
        return timedelta(days=self.days)


@pytest.mark.parametrize("days", [999_999_999, 4_000_000, -5])
async def test_an_absurd_backoff_loses_no_job_and_hides_none(app: App, days: int) -> None:
    @app.task(retry=Absurd(days))
    async def fail() -> None:
        raise LookupError

    async with working(app):
        jobs = [await fail.enqueue() for _ in range(3)]
        for job in jobs:
            await until(lambda job=job: failed_once(job), "it failed and went back")
        if days > 0:
            assert {record.state for record in await app.aclient.jobs()} == {"retrying"}


async def failed_once(job: Job) -> bool:
    record = await job.refresh()
    return bool(record.errors) and record.state != "running"


async def test_a_forged_notification_cancels_nothing(app: App) -> None:
    """Anybody may NOTIFY: the worker asks the row, which says that nobody has cancelled."""
    started, go = asyncio.Event(), asyncio.Event()
    heard: list[int] = []
    looked = threading.Event()

    @app.task
    async def wait() -> str:
        started.set()
        await go.wait()
        return "done"

    async with working(app, lease=timedelta(minutes=5)) as worker:  # so that nothing but the NOTIFY makes it look
        look_again, renew = worker.hand.look_again, worker.renewer.renew

        def hear(job_id: int) -> None:
            look_again(job_id)
            heard.append(job_id)

        def look() -> None:
            before = list(heard)
            due = [run.id for batch in worker.hand.older_than(worker.renewer._third) for run in batch.runs.values()]
            renew()
            if set(before) & set(due):
                looked.set()

        worker.hand.look_again = hear  # type: ignore[method-assign]
        worker.renewer.renew = look  # type: ignore[method-assign]
        job = await wait.enqueue()
        await asyncio.wait_for(started.wait(), 30)
        await until(lambda: worker.bell.up, "the bell is up")
        await execute(app.settings.dsn, f"SELECT pg_notify('pgqueue.cancel', '{job.id}')")
        await until(looked.is_set, "the renewer has asked for this job")
        assert heard == [job.id]
        await asyncio.sleep(0)  # what the renewer's thread had to say comes before this
        assert worker.executor.running == 1
        go.set()
        assert await job.result(30) == "done"
    assert (await job.refresh()).errors == []


async def test_a_cancel_that_comes_between_the_claim_and_its_reply_reaches_the_handler(app: App) -> None:
    """The row is running, so it can only be told; but the worker does not know yet that the job is its own."""
    began, told = asyncio.Event(), asyncio.Event()

    @app.task
    async def wait() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            told.set()
            raise

    async with working(app, lease=timedelta(minutes=5)) as worker:  # the ordinary renewal would come too late
        await until(lambda: worker.bell.up, "the bell is up")
        link, look_again, heard = worker._links[0], worker.hand.look_again, list[int]()
        send = link.arun

        def hear(job_id: int) -> None:
            look_again(job_id)
            heard.append(job_id)

        async def claim(statement: Any) -> Any:
            reply = await send(statement)
            if job_ids := [row[2] for row in reply] if isinstance(reply, list) else []:
                assert await app.aclient.cancel(job_ids[0]) == "running"
                await until(lambda: heard == job_ids, "the worker has heard of the cancel")
                assert worker.hand.runs() == [], "and does not hold the job yet"
            return reply

        worker.hand.look_again = hear  # type: ignore[method-assign]
        async with link._lock:  # no claim is under way that would find the job without us
            link.arun = claim  # type: ignore[method-assign]
        job = await wait.enqueue()
        record = await in_state(job, "cancelled")
    assert told.is_set() == began.is_set(), "a renewal may even be quicker than the slot"
    assert record.attempt == 1


async def test_what_one_async_job_sets_in_its_context_the_next_does_not_see(app: App) -> None:
    @app.task
    async def spy(name: str) -> str:
        before = tenant.get()
        tenant.set(name)
        return before

    async with working(app, slots=1) as worker:
        seen = [await (await spy.enqueue(name)).result(30) for name in ("ann", "bob", "eve")]
        assert len(worker.executor._coroutines) <= 1
    assert seen == ["nobody"] * 3


async def test_what_one_thread_job_sets_in_its_context_the_next_does_not_see(app: App) -> None:
    @app.task
    def spy(name: str) -> list[str]:
        before = tenant.get()
        tenant.set(name)
        return [before, threading.current_thread().name]

    async with working(app, slots=1):
        seen = [await (await spy.enqueue(name)).result(30) for name in ("ann", "bob", "eve")]
    assert [before for before, _ in seen] == ["nobody"] * 3
    assert len({thread for _, thread in seen}) == 1


async def test_the_last_progress_goes_into_history(app: App) -> None:
    @app.task
    async def hurry() -> None:
        current_job().progress(0.1)
        current_job().progress(1.0, "all of it")

    async with working(app):
        record = await in_state(await hurry.enqueue(), "completed")
    assert record.progress == {"value": 1.0, "note": "all of it"}


async def test_a_caller_who_holds_one_job_does_not_keep_the_others_from_being_swept(app: App) -> None:
    dsn: str = app.settings.dsn  # type: ignore[assignment]
    ids = [await app.aclient.enqueue(JobSpec.make("t")) for _ in range(3)]
    lanes = statements.Lanes(["default"], [5], [None], [0])
    with psycopg.connect(dsn, autocommit=True) as engine, psycopg.connect(dsn) as stranger:
        for token in (1, 2, 3):
            run(engine, statements.claim(lanes, None, 1, token, timedelta(seconds=30), "gone", schema="pgqueue"))
        engine.execute("UPDATE pgqueue.leases SET lease_until = now()")
        stranger.execute("SELECT pgqueue.cancel(%s)", (ids[0],))
        engine.execute("SET lock_timeout = '1s'")
        assert {swept.id for swept in run(engine, statements.sweep(schema="pgqueue"))} == set(ids[1:])
        assert run(engine, statements.sweep(schema="pgqueue")) == []
        stranger.commit()
        assert [(swept.id, swept.state) for swept in run(engine, statements.sweep(schema="pgqueue"))] == [
            (ids[0], "cancelled")
        ]
    assert await query(dsn, "SELECT count(*) FROM pgqueue.leases") == [(0,)]


async def test_ids_that_are_taken_already_are_an_error_and_not_a_loss(app: App) -> None:
    for _ in range(3):
        await app.aclient.enqueue(JobSpec.make("t"))
    await execute(app.settings.dsn, "ALTER SEQUENCE pgqueue.jobs_id_seq RESTART WITH 1")
    with pytest.raises(DatabaseError):
        await app.aclient.enqueue_many([JobSpec.make("t")] * 2)
    assert len(await app.aclient.jobs()) == 3
    await execute(app.settings.dsn, "ALTER SEQUENCE pgqueue.jobs_id_seq RESTART WITH 100")


async def test_an_isolated_handler_may_go_on_after_its_transaction(app: App, tmp_path: Path) -> None:
    """Longer than a lease: the renewer must not take the job, which has gone to history, for lost."""
    task = app.task(isolation="process")(handlers.complete_and_go_on)
    after = tmp_path / "after"
    async with working(app, slots=1, lease=timedelta(seconds=LEASE)):
        job = await task.enqueue(seconds=1.5 * LEASE, flag=str(after))
        record = await in_state(job, "completed", within=60)
        await until(after.exists, "the handler went on to its end")
    assert (record.result, record.attempt) == ("early", 1)


async def test_more_handlers_in_transactions_than_the_pool_had_connections_can_enqueue(app: App) -> None:
    all_in = asyncio.Barrier(15)

    @app.task
    async def child() -> None: ...

    @app.task
    async def parent() -> None:
        async with current_job().transaction():
            await all_in.wait()
            await child.enqueue()

    async with working(app, slots=20):
        jobs = [await parent.enqueue() for _ in range(15)]
        for job in jobs:
            await job.result(30)


async def test_a_coroutine_that_ignores_its_timeout_gives_its_slot_back(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgqueue.worker.executor._DEAF_AFTER", 0.2)
    go = asyncio.Event()

    @app.task(timeout=0.2, max_attempts=1)
    async def deaf() -> None:
        while not go.is_set():
            try:
                await go.wait()
            except asyncio.CancelledError:
                continue

    @app.task
    async def other() -> str:
        return "ran"

    async with working(app, slots=1) as worker:
        record = await in_state(await deaf.enqueue(), "dead")
        assert record.errors[0]["type"] == "JobTimeoutError"
        assert await (await other.enqueue()).result(30) == "ran"
        go.set()
        await until(lambda: not worker.executor._coroutines.deaf, "the deaf one has ended")
