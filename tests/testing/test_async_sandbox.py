"""Async tests: an async connection, or a sync one and the running loop; and other libraries' connections."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import asyncpg
import invariants
import psycopg
import pytest
from sqlalchemy import create_engine
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

import pgqueue
from pgqueue.testing import (
    AsyncSandbox,
    Sandbox,
    assert_enqueued_async,
    assert_not_enqueued_async,
    enqueued_async,
    run_pending,
    run_pending_async,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def app(dsn: str) -> AsyncIterator[pgqueue.App]:
    app = pgqueue.App(dsn)

    @app.task(name="parent", max_attempts=1)
    async def parent(n: int) -> str:
        await asyncio.gather(*(child.enqueue(i) for i in range(n)))
        if n == 13:
            raise ValueError(n)
        return threading.current_thread().name

    @app.task(name="child")
    def child(i: int) -> str:
        if i == 0:
            leaf.enqueue_sync(7)
            app.client.get(1_000_000) if i else None
        return threading.current_thread().name

    @app.task(name="leaf")
    def leaf(n: int) -> int:
        return n

    yield app
    await app.aclose()


@pytest.fixture(params=["psycopg", "asyncpg", "session", "session over asyncpg"])
async def connection(request: pytest.FixtureRequest, dsn: str) -> AsyncIterator[Any]:
    """Async, and in a transaction that is rolled back."""
    kind = request.param
    if kind == "psycopg":
        async with await psycopg.AsyncConnection.connect(dsn) as connection:
            yield connection
            await connection.rollback()
    elif kind == "asyncpg":
        connection = await asyncpg.connect(dsn)
        transaction = connection.transaction()
        await transaction.start()
        yield connection
        await transaction.rollback()
        await connection.close()
    else:
        driver = "asyncpg" if "asyncpg" in kind else "psycopg"
        url = make_url(dsn).set(drivername=f"postgresql+{driver}")
        if driver == "asyncpg" and "host" in url.query:
            url = url.update_query_dict({"port": str(url.query.get("port", "5432"))})
        engine = create_async_engine(url, poolclass=NullPool)
        async with AsyncSession(engine) as session:
            yield session
            await session.rollback()
        await engine.dispose()


async def test_everything_happens_on_the_tests_async_connection(app, connection, dsn):
    parent, child = app.tasks["parent"], app.tasks["child"]
    async with AsyncSandbox(app, connection) as queue:
        await parent.enqueue(2)
        (job,) = await assert_enqueued_async(parent, n=2)
        assert [r.id for r in await enqueued_async(parent)] == [job.id]
        await assert_not_enqueued_async(child)
        ran = await queue.run_pending(raise_errors=True)
        assert [r.task for r in ran] == ["parent", "child", "child", "leaf"]
        assert ran[0].result == "MainThread" != ran[1].result
        await child.options(delay="1h").enqueue(5)
        assert await run_pending_async(app) == []
        before = await queue.clock.now()
        assert (await queue.clock.advance("1h") - before).total_seconds() == 3600
        await queue.clock.move_to(await queue.clock.now())
        assert [r.payload for r in await run_pending_async(app)] == [{"i": 5}]
        with pytest.raises(AssertionError, match="Nothing is enqueued"):
            await queue.assert_enqueued("leaf")
        await queue.assert_not_enqueued()
        assert await queue.enqueued() == []
        await parent.enqueue(13)
        with pytest.raises(ValueError, match="13"):
            await queue.run_pending(raise_errors=True)
        await queue.clear()
    invariants.check(dsn, [])


async def test_a_refused_enqueue_leaves_the_async_transaction_usable(app, connection, dsn):
    leaf = app.tasks["leaf"]
    async with AsyncSandbox(app, connection) as queue:
        first = await leaf.options(unique_key="k").enqueue(1)
        with pytest.raises(pgqueue.JobExistsError) as caught:
            await leaf.options(unique_key="k", on_conflict="raise").enqueue(1)
        assert caught.value.job_id == first.id
        batch = await app.batch([leaf.job(1), leaf.job(2)]).enqueue()
        assert len(await queue.run_pending()) == 3
        assert (await batch.refresh()).finished
        await app.enqueue_many([leaf.job(3)], copy=True)
        assert [ran.result for ran in await queue.run_pending()] == [3]
    invariants.check(dsn, [])


async def test_a_jobs_async_transaction_is_a_savepoint_of_the_tests(app, connection, dsn, request):
    @app.task(name="book", max_attempts=1)
    async def book(job: pgqueue.Job) -> None:
        async with job.transaction() as own:
            await own.execute("CREATE TABLE bookings (room int PRIMARY KEY)")
            job.set_result("booked")

    async with AsyncSandbox(app, connection) as queue:
        await book.enqueue()
        (ran,) = await queue.run_pending()
        if "asyncpg" in request.node.name:
            assert "driver is psycopg 3" in str(ran.error)
        else:
            assert (ran.state, ran.result) == ("completed", "booked")
    with psycopg.connect(dsn) as outside:
        assert outside.execute("SELECT to_regclass('bookings')").fetchone() == (None,)


async def test_a_sync_connection_serves_async_tests(app, dsn):
    with psycopg.connect(dsn) as connection, Sandbox(app, connection) as queue:
        await app.tasks["parent"].enqueue(2)
        ran = await queue.run_pending_async()
        assert [r.task for r in ran] == ["parent", "child", "child", "leaf"]
        await app.tasks["leaf"].enqueue(1)
        await assert_enqueued_async(app.tasks["leaf"], n=1)
        assert [r.task for r in await run_pending_async(app)] == ["leaf"]
        connection.rollback()
    invariants.check(dsn, [])


async def test_without_a_connection_everything_is_committed(app, dsn):
    async with AsyncSandbox(app) as queue:
        job = await app.tasks["leaf"].enqueue(1)
        assert len(await queue.run_pending()) == 1
    async with AsyncSandbox(app, dsn=dsn, schema="pgqueue"):
        assert (await job.refresh()).state == "completed"
        with pytest.raises(pgqueue.PgqueueError, match="in an AsyncSandbox: await"):
            run_pending(app)
    invariants.check(dsn, [job.id])
    assert await run_pending_async(app) == []


async def test_sync_code_on_the_sandboxs_loop_is_a_clear_error(app, dsn):
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        async with AsyncSandbox(app, connection):
            with pytest.raises(pgqueue.PgqueueError, match="sync code on its event loop"):
                app.tasks["leaf"].enqueue_sync(1)
        with pytest.raises(TypeError, match="use AsyncSandbox"):
            Sandbox(app, connection)
    with psycopg.connect(dsn) as sync, pytest.raises(TypeError, match="is sync: use Sandbox"):
        AsyncSandbox(app, sync)


async def test_a_test_that_is_cancelled_is_not_a_failed_handler(app, dsn):
    started = asyncio.Event()

    @app.task(name="hang")
    async def hang() -> None:
        started.set()
        await asyncio.sleep(60)

    async def story() -> None:
        async with await psycopg.AsyncConnection.connect(dsn) as connection, AsyncSandbox(app, connection) as queue:
            await hang.enqueue()
            await queue.run_pending()

    running = asyncio.create_task(story())
    await started.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    invariants.check(dsn, [])


@pytest.mark.parametrize("kind", ["session", "connection"])
def test_sqlalchemys_sync_connections_are_as_good(dsn, kind):
    app = pgqueue.App(dsn)

    @app.task(name="a")
    async def a(job: pgqueue.Job) -> int:
        await b.enqueue()
        return job.attempt

    @app.task(name="b")
    def b(job: pgqueue.Job) -> None:
        with job.transaction() as own:
            own.execute("SELECT 1")
            job.set_result("b")

    engine = create_engine(make_url(dsn).set(drivername="postgresql+psycopg"), poolclass=NullPool)
    with (
        engine.connect() as connection,
        connection.begin() as outer,
        Session(bind=connection, join_transaction_mode="create_savepoint") as session,
    ):
        given = session if kind == "session" else connection
        with Sandbox(app, given) as queue:
            a.using(session).enqueue_sync()
            session.commit()  # as code under test does: a savepoint
            queue.assert_enqueued(a, count=1)
            assert [r.result for r in queue.run_pending(raise_errors=True)] == [1, "b"]
            a.options(delay="1h").enqueue_sync()
            queue.clock.advance("1h")
            assert len(queue.run_pending()) == 2
        outer.rollback()
    engine.dispose()
    invariants.check(dsn, [])
    app.close()
