"""Queues with keys and limits, as a worker serves them."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from typing import TYPE_CHECKING

import psycopg
import pytest

from pgqueue import Fixed, Snooze
from worker.support import execute, in_state, make_app, query, until, working

if TYPE_CHECKING:
    from pgqueue import App

LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('pgqueue.claim ' || 'lim', 0))"


async def test_each_key_runs_in_order_one_at_a_time_and_many_keys_side_by_side(app: App) -> None:
    order: dict[str, list[int]] = defaultdict(list)
    inside: dict[str, int] = defaultdict(int)
    most = 0

    @app.task(group_key=lambda key, n: key)
    async def step(key: str, n: int) -> None:
        nonlocal most
        inside[key] += 1
        assert inside[key] == 1
        most = max(most, sum(inside.values()))
        order[key].append(n)
        await asyncio.sleep(0.005)
        inside[key] -= 1

    await app.enqueue_many([step.job(f"k{n % 20}", n) for n in range(400)])
    async with working(app), working(app):
        await until(lambda: sum(map(len, order.values())) == 400, "all have run")
    assert all(numbers == sorted(numbers) for numbers in order.values())
    assert most > 5


async def test_the_next_of_a_line_starts_when_the_one_before_has_landed_not_at_the_next_poll(dsn: str) -> None:
    app = make_app(dsn, poll_interval=20.0)
    done = 0

    @app.task(group_key="k")
    async def step() -> None:
        nonlocal done
        await asyncio.sleep(0.1)
        done += 1

    await app.enqueue_many([step.job() for _ in range(10)])
    async with working(app):
        began = time.monotonic()
        await until(lambda: done == 10, "all have run")
    assert time.monotonic() - began < 15
    await app.aclose()


@pytest.mark.parametrize("policy", ["hold", "pass"])
async def test_a_failing_head_holds_its_line_or_lets_the_others_pass(app: App, policy: str) -> None:
    order: list[str] = []

    @app.task(group_key="k", group_retry=policy, retry=Fixed("300ms"))
    async def step(name: str) -> None:
        order.append(name)
        if order == ["a"]:
            raise ValueError("not yet")

    await app.enqueue_many([step.job(name) for name in "abc"])
    async with working(app):
        await until(lambda: len(order) == 4, "all have run")
    assert order == (["a", "a", "b", "c"] if policy == "hold" else ["a", "b", "c", "a"])


async def test_a_snoozing_head_holds_its_line(app: App) -> None:
    order: list[str] = []

    @app.task(group_key="k")
    async def step(name: str) -> None:
        order.append(name)
        if order == ["a"]:
            raise Snooze("200ms")

    await app.enqueue_many([step.job(name) for name in "ab"])
    async with working(app):
        await until(lambda: len(order) == 3, "all have run")
    assert order == ["a", "a", "b"]


async def test_a_limit_holds_for_two_workers_and_a_change_of_it_works_within_a_second(app: App) -> None:
    now = most = 0
    gate = asyncio.Event()

    @app.task(queue="lim")
    async def hold() -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        try:
            await gate.wait()
        finally:
            now -= 1

    app.client.limit_queue("lim", max_running=3)
    await app.enqueue_many([hold.job() for _ in range(60)])
    async with working(app, slots=10, poll=app.settings.poll_interval * 50), working(app, slots=10):
        await until(lambda: now == 3, "three run")
        await asyncio.sleep(0.5)
        assert most == 3
        began = time.monotonic()
        app.client.limit_queue("lim", max_running=7)
        await until(lambda: now == 7, "seven run")
        print(f"MEASURED a limit takes effect after {time.monotonic() - began:.3f} s")
        await asyncio.sleep(0.3)
        assert most == 7
        app.client.limit_queue("lim", max_running=2)
        gate.set()
        await until(lambda: now <= 2, "what ran has ended")
        gate.clear()
        most = now
        await asyncio.sleep(0.5)
        assert most <= 2
        gate.set()


async def test_a_first_limit_on_a_busy_plain_queue_takes_effect(app: App) -> None:
    now = most = 0

    @app.task(queue="lim")
    async def nap() -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.05)
        now -= 1

    await app.enqueue_many([nap.job() for _ in range(3000)])
    async with working(app, slots=20):
        await until(lambda: most == 20, "all slots are in use")
        app.client.limit_queue("lim", max_running=2)
        await asyncio.sleep(1.5)
        most = now
        await asyncio.sleep(1)
        assert 1 <= most <= 2


async def test_a_rate_is_kept(app: App) -> None:
    starts: list[float] = []

    @app.task(queue="lim")
    async def note() -> None:
        starts.append(time.monotonic())

    app.client.limit_queue("lim", rate=50, burst=5)
    await app.enqueue_many([note.job() for _ in range(500)])
    async with working(app):
        await until(lambda: len(starts) >= 150, "three seconds' worth")
    took = starts[149] - starts[0]
    assert 2.7 <= took <= 15, f"145 starts at 50/s took {took:.2f} s"


async def test_plain_and_limited_queues_of_one_worker_do_not_starve_each_other(app: App) -> None:
    done: dict[str, int] = defaultdict(int)

    async def work(queue: str) -> None:
        done[queue] += 1
        await asyncio.sleep(0.01)

    tasks = {name: app.task(name=name, queue=name)(work) for name in ("plain", "lim", "keyed")}
    app.client.limit_queue("lim", max_running=100)
    for name, task in tasks.items():
        keys = [f"k{n}" for n in range(10)] if name == "keyed" else [None]
        await app.enqueue_many([task.options(group_key=keys[n % len(keys)]).job(name) for n in range(3000)])
    async with working(app, slots=4):
        await until(lambda: sum(done.values()) >= 600, "work goes on")
    assert done["lim"] > 50, done
    assert done["plain"] > 50, done
    assert done["keyed"] > 20, done


async def test_somebody_who_sits_on_the_lock_of_a_queue_does_not_hold_up_the_others(app: App, dsn: str) -> None:
    @app.task(queue="lim")
    async def limited() -> str:
        return "ran"

    @app.task(queue="plain")
    async def plain() -> str:
        return "ran"

    app.client.limit_queue("lim", max_running=5)
    async with working(app):
        assert await (await limited.enqueue()).result(10) == "ran"
        async with await psycopg.AsyncConnection.connect(dsn) as holder:
            await holder.execute(LOCK)
            stuck = await limited.enqueue()
            waits = []
            for _ in range(10):
                began = time.monotonic()
                await (await plain.enqueue()).result(30)
                waits.append(time.monotonic() - began)
            assert (await stuck.refresh()).state == "available"
            await holder.rollback()
        await in_state(stuck, "completed")
    print(f"MEASURED beside a stuck queue: {max(waits):.3f} s at most, {sorted(waits)[5]:.3f} s median")
    assert max(waits) < 2
    assert sorted(waits)[5] < 0.5


async def test_a_worker_whose_limit_is_reached_rests(app: App) -> None:
    """A backlog that may not start is no reason to look again and again."""

    @app.task(queue="lim")
    async def hold() -> None:
        await asyncio.sleep(60)

    app.client.limit_queue("lim", max_running=1, rate=1000)
    await app.enqueue_many([hold.job() for _ in range(100)])
    await app.enqueue_many([hold.options(group_key=f"k{n % 3}").job() for n in range(100)])
    async with working(app) as worker:
        await until(lambda: worker.executor.running == 1, "one runs")
        await asyncio.sleep(1.5)
        link, count = worker._links[0], 0
        original = link.arun

        async def arun(statement: object) -> object:
            nonlocal count
            count += 1
            return await original(statement)

        link.arun = arun
        await asyncio.sleep(2)
        assert count <= 2 / 0.16 * 5, f"{count} statements in 2 s with a poll of 0.2 s"


async def test_what_a_stopping_worker_gives_back_keeps_its_place_in_line(app: App) -> None:
    order: list[str] = []
    gate = asyncio.Event()

    @app.task(group_key="k")
    async def step(name: str) -> None:
        order.append(name)
        await gate.wait()

    await app.enqueue_many([step.job(name) for name in "abc"])
    async with working(app) as worker:
        await until(lambda: order == ["a"], "the first one runs")
        worker.stop(now=True)
    gate.set()
    async with working(app):
        await until(lambda: len(order) == 4, "all have run")
    assert order == ["a", "a", "b", "c"]


async def test_the_lease_of_a_long_job_in_a_line_is_renewed(dsn: str) -> None:
    app = make_app(dsn, lease_duration=1.0)
    runs = 0

    @app.task(group_key="k")
    async def long() -> None:
        nonlocal runs
        runs += 1
        await asyncio.sleep(3)

    job = await long.enqueue()
    async with working(app), working(app):
        await in_state(job, "completed")
    assert runs == 1
    await app.aclose()


async def test_large_payloads_reach_their_handlers(app: App, dsn: str) -> None:
    sizes: list[int] = []

    @app.task(group_key=lambda text, n: str(n))
    async def take(text: str, n: int) -> None:
        sizes.append(len(text))

    await app.enqueue_many([take.job("x" * 300_000, n) for n in range(5)])
    async with working(app):
        await until(lambda: len(sizes) == 5, "all have run")
    assert sizes == [300_000] * 5
    assert await query(dsn, "SELECT DISTINCT attempt FROM pgqueue.history") == [(1,)]


async def test_a_job_in_a_line_may_complete_in_its_own_transaction(app: App, dsn: str) -> None:
    await execute(dsn, "CREATE TABLE effects (n int)")

    @app.task(group_key="k")
    async def step(n: int) -> None:
        from pgqueue import current_job

        async with current_job().transaction() as connection:
            await connection.execute("INSERT INTO effects VALUES (%s)", (n,))

    await app.enqueue_many([step.job(n) for n in range(20)])
    async with working(app):
        await until(lambda: _done(dsn, 20), "all have run")
    assert await query(dsn, "SELECT array_agg(n ORDER BY ctid) FROM effects") == [(list(range(20)),)]


async def _done(dsn: str, count: int) -> bool:
    return await query(dsn, "SELECT count(*) FROM pgqueue.history WHERE state = 'completed'") == [(count,)]
