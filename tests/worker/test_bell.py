"""The bell wakes idle workers, is silent for busy ones, and nothing depends on it."""

from __future__ import annotations

import asyncio
import math
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from worker.support import execute, in_state, query, until, working

if TYPE_CHECKING:
    from pgqueue import App

NEVER = timedelta(minutes=5)  # a poll that no test waits for: what starts is what the bell woke


async def test_an_idle_worker_is_woken_at_once(app: App) -> None:
    @app.task
    async def note() -> None:
        pass

    async with working(app, poll=NEVER) as worker:
        for _ in range(5):
            await until(lambda: worker.bell.armed, "the bell is armed")
            await in_state(await note.enqueue(), "completed")


async def test_without_the_bell_jobs_start_with_the_next_poll(app: App) -> None:
    @app.task
    async def note() -> None:
        pass

    async with working(app, bell=False, poll=timedelta(seconds=0.5)):
        for _ in range(4):
            await in_state(await note.enqueue(), "completed")


async def notices(dsn: str, app: App, work: Any) -> list[str]:
    """The queue names that were rung while this was done."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        await connection.execute('LISTEN "pgqueue.wake"')
        await work()
        await execute(dsn, "SELECT pg_notify('pgqueue.wake', 'end of the test')")
        heard: list[str] = []
        async for notice in connection.notifies(timeout=10):
            if notice.payload == "end of the test":
                return heard
            heard.append(notice.payload)
    raise AssertionError("the last notice did not come")


async def test_an_enqueue_rings_only_when_somebody_is_idle(dsn: str, app: App) -> None:
    go = asyncio.Event()

    @app.task(queue="here")
    async def hold() -> None:
        await go.wait()

    async def enqueue() -> None:
        await hold.enqueue()

    async def enqueue_elsewhere() -> None:
        await hold.options(queue="nobody is there").enqueue()

    assert await notices(dsn, app, enqueue) == [], "no worker: nobody to wake"
    async with working(app, slots=2) as worker:
        await until(lambda: worker.executor.running == 1 and worker.bell.armed, "it is idle, with a slot free")
        assert await notices(dsn, app, enqueue_elsewhere) == []
        assert await notices(dsn, app, enqueue) == ["here"]
        await until(lambda: worker.executor.running == 2 and not worker.bell.armed, "its slots are full")
        assert await notices(dsn, app, enqueue) == [], "it is busy: it will look by itself"
        go.set()
        await until(lambda: worker.executor._ended == 3, "all have run")


async def test_a_rollback_rings_no_bell(dsn: str, app: App) -> None:
    @app.task
    async def note() -> None:
        pass

    async def enqueue_and_roll_back() -> None:
        async with await psycopg.AsyncConnection.connect(dsn) as connection:
            await note.using(connection).enqueue()
            await connection.rollback()

    async with working(app) as worker:
        await until(lambda: worker.bell.armed, "it is idle")
        assert await notices(dsn, app, enqueue_and_roll_back) == []
    assert await query(dsn, "SELECT count(*) FROM pgqueue.all_jobs") == [(0,)]


async def test_a_listener_that_was_cut_off_listens_again(dsn: str, app: App) -> None:
    @app.task
    async def note() -> None:
        pass

    async with working(app, poll=timedelta(seconds=0.5)) as worker:
        await until(lambda: worker.bell.armed, "the bell is armed")
        for _ in range(2):
            connection = worker.bell._connection
            assert connection is not None
            await execute(dsn, "SELECT pg_terminate_backend(%s)", connection.info.backend_pid)
            await until(lambda old=connection: worker.bell._connection is not old, "it has noticed")
            await in_state(await note.enqueue(), "completed")  # polling goes on meanwhile
            await until(lambda: worker.bell.armed, "it is armed again")
        worker.claimer._poll = NEVER.total_seconds()
        for _ in range(3):  # the second is not the last poll's any more
            await in_state(await note.enqueue(), "completed")
            await until(lambda: worker.bell.armed, "it is armed")


async def test_a_held_lock_in_a_strangers_session_costs_no_more_than_a_poll(dsn: str, app: App) -> None:
    """The known edge: an enqueue that was cancelled at a bad moment leaves the exclusive lock in a pooled session."""

    @app.task
    async def note() -> None:
        pass

    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as stranger:
        await stranger.execute("SELECT pg_advisory_lock(pgqueue.bell_key('default'))")
        async with working(app, poll=timedelta(seconds=0.5)) as worker:
            await until(lambda: worker.bell.up, "the bell is up")
            for _ in range(3):
                await in_state(await note.enqueue(), "completed")
            assert not worker.bell.armed
            await stranger.execute("SELECT pg_advisory_unlock_all()")
            await until(lambda: worker.bell.armed, "it is armed as soon as it can be")


async def test_a_bell_that_does_not_answer_is_given_up(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    from pgqueue.worker import bell as module

    monkeypatch.setattr(module, "_ANSWER_PATIENCE", 0.2)
    monkeypatch.setattr(module, "_PING_EVERY", 0.2)

    @app.task
    async def note() -> None:
        pass

    async with working(app) as worker:
        await until(lambda: worker.bell.armed, "the bell is armed")
        connection = worker.bell._connection
        assert connection is not None
        asyncio.get_running_loop().remove_reader(connection.fileno())  # deaf from now on
        await until(lambda: worker.bell._connection is not connection, "it is given up")
        await until(lambda: worker.bell.armed, "there is a new one")
        await in_state(await note.enqueue(), "completed")


async def test_an_idle_worker_asks_more_and_more_rarely(dsn: str, app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks, it does not claim; and as long as the bell has been armed it sleeps, up to five polls."""
    asked: list[float] = []

    @app.task
    async def note() -> None:
        pass

    async with working(app, poll=timedelta(seconds=0.2)) as worker:
        await until(lambda: worker.bell.armed, "it is idle")
        look = worker.claimer._look_ahead

        async def counted() -> Any:
            asked.append(time.monotonic())
            return await look()

        monkeypatch.setattr(worker.claimer, "_look_ahead", counted)
        turns = worker.claimer.turns
        await until(lambda: time.monotonic() - worker.bell.armed_at > 2.5, "it has calmed down")
        seen = len(asked)
        await until(lambda: len(asked) >= seen + 2, "two more looks")
        assert asked[-1] - asked[-2] > 0.7
        assert len(asked) < 14
        assert worker.claimer.turns == turns


async def test_a_job_of_a_transaction_that_began_before_the_bell_was_armed_is_found_soon(dsn: str, app: App) -> None:
    """Its enqueue found nobody to wake, and its commit comes when everybody sleeps."""

    @app.task
    async def note() -> None:
        pass

    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        job = await note.using(connection).enqueue()
        async with working(app, poll=timedelta(seconds=20)) as worker:
            await until(lambda: worker.bell.armed, "it is idle")
            await asyncio.sleep(0.5)
            await connection.commit()
            await in_state(job, "completed", within=10)


async def test_a_worker_that_is_woken_in_vain_leaves_the_bell_to_others_for_a_while(dsn: str, app: App) -> None:
    @app.task
    async def noop() -> None:
        pass

    def deaf() -> bool:
        return worker.claimer._deaf_until > time.monotonic() + 0.2 and not worker.bell.armed

    async with working(app) as worker:
        await until(lambda: worker.bell.armed, "it is idle")
        while not deaf():  # as when others are always faster
            await execute(dsn, "SELECT pgqueue.ring('default')")
        job = await noop.enqueue()
        await in_state(job, "completed")
        await until(lambda: worker.bell.armed, "it listens again")


@pytest.mark.parametrize("slots", [1, 50])
async def test_the_only_worker_hears_every_bell(app: App, slots: int) -> None:
    """With one slot, and jobs too slow to claim ahead, each find is as much as was asked for."""

    @app.task
    async def slow() -> None:
        await asyncio.sleep(0.06)

    async with working(app, slots=slots) as worker:
        for _ in range(40):
            await until(lambda: worker.bell.armed, "it is idle")
            await in_state(await slow.enqueue(), "completed")
        assert worker.claimer._deaf_until == -math.inf


async def test_a_worker_of_a_queue_with_limits_hears_every_bell(dsn: str, app: App) -> None:
    @app.task
    async def noop() -> None:
        pass

    await app.aclient.limit_queue("default", max_running=5)
    async with working(app) as worker:
        await until(lambda: worker.bell.armed and worker.claimer.managed, "it is idle")
        for _ in range(60):
            await execute(dsn, "SELECT pgqueue.ring('default')")
        assert worker.claimer._deaf_until == -math.inf
