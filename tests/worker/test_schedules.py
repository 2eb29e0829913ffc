"""A worker and its schedules: declared in code, edited while it runs, and the job that knows its tick."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from pgqueue import Job, ScheduleSpec
from pgqueue.scheduler import HORIZON, Scheduler
from pgqueue.service import every
from worker.support import execute, query, until, working

if TYPE_CHECKING:
    from pgqueue import App

SECOND = timedelta(seconds=1)


async def test_a_declared_schedule_runs_its_task_and_the_job_knows_its_tick(app: App) -> None:
    seen: list[tuple[datetime | None, str, dict[str, Any]]] = []

    @app.schedule("* * * * * *", tz="Europe/Berlin", payload={"kind": "x"})
    @app.task(name="report")
    async def report(job: Job, kind: str) -> None:
        seen.append((job.tick, kind, job.meta))

    async with working(app):
        await until(lambda: len(seen) >= 2, "two ticks")
    for tick, kind, meta in seen:
        assert tick is not None
        assert (tick.tzinfo, tick.microsecond, kind, meta["schedule"]) == (UTC, 0, "x", "report")
    assert seen[1][0] - seen[0][0] == SECOND  # type: ignore[operator]


async def test_a_job_of_no_schedule_has_no_tick(app: App) -> None:
    seen: list[Any] = []

    @app.task
    async def look(job: Job) -> None:
        seen.append(job.tick)

    for meta in (
        None,
        {"tick": "2030-01-01T00:00:00Z"},
        {"schedule": "s"},
        {"schedule": "s", "tick": "soon"},
        {"schedule": "s", "tick": 5},
    ):
        await look.options(meta=meta).enqueue()
    async with working(app):
        await until(lambda: len(seen) == 5, "all have run")
    assert seen == [None] * 5


async def test_a_schedule_that_is_added_while_workers_are_idle_ticks_on_time(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They look only every ten seconds; the edit makes them look at once."""
    starts: list[datetime] = []
    pauses: list[float] = []
    look = Scheduler.look

    async def watched(scheduler: Scheduler) -> float:
        pauses.append(await look(scheduler))
        return pauses[-1]

    monkeypatch.setattr(Scheduler, "look", watched)

    @app.task(name="t")
    async def t() -> None:
        starts.append(datetime.now(UTC))

    async with working(app):
        await until(lambda: pauses and pauses[-1] == HORIZON.total_seconds(), "it hears, and sleeps")
        looks = len(pauses)
        await app.aclient.add_schedule(ScheduleSpec.make("s", "* * * * * *", "t"))
        await until(lambda: len(pauses) > looks, "it has looked again", within=5)
        await until(lambda: len(starts) >= 3, "three ticks")
    ticks = await query(app.settings.dsn, "SELECT tick FROM pgqueue.ticks ORDER BY 1")
    lateness = [(start - tick.astimezone(UTC)).total_seconds() for start, (tick,) in zip(starts, ticks, strict=False)]
    print(f"MEASURED start after the tick: {', '.join(f'{late * 1000:.0f} ms' for late in lateness)}")
    assert all(late >= 0 for late in lateness), lateness
    assert min(lateness) < 1


async def test_a_worker_without_a_bell_sees_edits_within_a_second_or_so(app: App) -> None:
    ran = asyncio.Event()

    @app.task(name="t")
    async def t() -> None:
        ran.set()

    async with working(app, bell=False):
        await asyncio.sleep(0)
        await app.aclient.add_schedule(ScheduleSpec.make("s", "* * * * * *", "t"))
        await asyncio.wait_for(ran.wait(), 5)


async def test_a_schedule_whose_code_is_gone_goes_on_until_it_is_removed(app: App) -> None:
    @app.schedule("@yearly")
    @app.task(name="old")
    async def old() -> None: ...

    async with working(app):
        await until(app.aclient.schedules, "it is declared")
    app.schedules.clear()
    async with working(app) as worker:
        await until(lambda: worker.bell.up, "it is at work")
        assert [record.name for record in await app.aclient.schedules()] == ["old"]


async def test_a_worker_does_not_fire_what_is_paused(app: App) -> None:
    @app.task(name="t")
    async def t() -> None: ...

    await app.aclient.add_schedule(ScheduleSpec.make("s", "* * * * * *", "t"))
    await app.aclient.add_schedule(ScheduleSpec.make("other", "* * * * * *", "t"))
    await app.aclient.pause_schedule("s")
    await execute(app.settings.dsn, "UPDATE pgqueue.schedules SET next_tick = now()")
    async with working(app):
        await until(
            lambda: query(app.settings.dsn, "SELECT 1 FROM pgqueue.ticks WHERE schedule = 'other'"), "one fires"
        )
    assert await query(app.settings.dsn, "SELECT 1 FROM pgqueue.ticks WHERE schedule = 's'") == []


@pytest.mark.parametrize("answer", [0.01, None])
async def test_a_loops_body_may_say_itself_when_it_is_next(answer: float | None) -> None:
    calls = 0
    third = asyncio.Event()

    async def body() -> float | None:
        nonlocal calls
        calls += 1
        if calls == 3:
            third.set()
        return answer

    loop = asyncio.create_task(every(0.01 if answer is None else 600.0, body, "it"))
    await asyncio.wait_for(third.wait(), 5)
    loop.cancel()


async def test_a_loop_is_woken() -> None:
    event, calls = asyncio.Event(), asyncio.Queue[int]()

    async def body() -> None:
        event.clear()
        await calls.put(1)

    loop = asyncio.create_task(every(600.0, body, "it", event))
    await calls.get()
    event.set()
    await asyncio.wait_for(calls.get(), 5)
    loop.cancel()
