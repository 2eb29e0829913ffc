"""What is claimed, when, and in which order."""

from __future__ import annotations

import asyncio
import math
import time
from datetime import timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from peers import Peer

from pgqueue.worker.marks import FullScans, Marks
from worker.support import TERMINATE_ALL, execute, in_state, make_app, query, until, working

if TYPE_CHECKING:
    from pgqueue import App, Job


async def test_long_handlers_do_not_hoard_jobs(app: App) -> None:
    @app.task
    async def long() -> None:
        await asyncio.sleep(60)

    await app.enqueue_many([long.job() for _ in range(50)])
    async with working(app, slots=5) as worker:
        await until(lambda: worker.executor.running == 5, "the slots are full")
        await asyncio.sleep(0.5)  # more than two polls: nothing else may be taken
        assert len(worker.hand.runs()) == 5
        assert await query(app.settings.dsn, "SELECT count(*) FROM pgqueue.jobs WHERE state = 'running'") == [(5,)]


async def test_quick_handlers_are_claimed_ahead_of_their_slots(app: App) -> None:
    most = 0

    @app.task
    async def quick() -> None:
        nonlocal most
        most = max(most, len(worker.hand.runs()))

    await app.enqueue_many([quick.job() for _ in range(5000)])
    async with working(app, slots=5) as worker:
        await until(lambda: worker.executor._ended == 5000, "all have run", within=60)
        await worker.finisher.drained()
    assert 5 < most <= 5 + 1000 + 2000, "many at once, but bounded"


async def test_jobs_claimed_ahead_that_would_wait_too_long_are_given_back(dsn: str, app: App) -> None:
    @app.task(name="quick")
    async def quick() -> None:
        pass

    @app.task(name="long")
    async def long() -> None:
        await asyncio.sleep(60)

    await app.enqueue_many([quick.job() for _ in range(3000)] + [long.job() for _ in range(200)])
    async with working(app, slots=2) as worker:
        await until(
            lambda: worker.executor.running == 2 and len(worker.hand.runs()) <= 2, "only what runs is held", within=60
        )
        attempts = await query(dsn, "SELECT DISTINCT attempt FROM pgqueue.jobs WHERE state = 'available'")
        assert attempts == [(0,)], "without blame"


async def test_high_runs_before_normal_before_low(app: App) -> None:
    order: list[str] = []

    @app.task
    async def note(name: str) -> None:
        order.append(name)

    jobs = [note.options(priority=p).job(name=p) for p in ("low", "normal", "high") for _ in range(3)]
    handles = await app.enqueue_many(jobs)
    async with working(app, slots=1):
        for job in handles:
            await in_state(job, "completed")
    assert order == 3 * ["high"] + 3 * ["normal"] + 3 * ["low"]


async def test_a_later_job_of_high_priority_overtakes_those_that_wait(app: App) -> None:
    order: list[str] = []
    gate = asyncio.Semaphore(0)

    @app.task
    async def note(name: str) -> None:
        order.append(name)
        await gate.acquire()

    await app.enqueue_many([note.job(name="normal") for _ in range(3)])
    async with working(app, slots=1):
        await until(lambda: order == ["normal"], "the first one runs")
        urgent = await note.options(priority="high").enqueue(name="high")
        for _ in range(4):
            gate.release()
        await in_state(urgent, "completed")
        await until(lambda: len(order) == 4, "all have run")
    assert order == ["normal", "high", "normal", "normal"]


async def test_far_future_jobs_of_high_priority_hide_nothing(app: App) -> None:
    @app.task
    async def note() -> str:
        return "ran"

    await app.enqueue_many([note.options(priority=0, delay="1d").job() for _ in range(500)])
    async with working(app):
        assert await (await note.options(priority=9).enqueue()).result(30) == "ran"


async def test_several_queues_take_turns(app: App) -> None:
    order: list[str] = []

    @app.task(name="a", queue="a")
    async def a() -> None:
        order.append("a")

    @app.task(name="b", queue="b")
    async def b() -> None:
        order.append("b")

    jobs = await app.enqueue_many([task.job() for task in (a, b) for _ in range(20)])
    async with working(app, slots=1) as worker:
        worker.executor._set_rate = lambda _rate: None  # type: ignore[method-assign] - one claim, one job
        for job in jobs:
            await in_state(job, "completed")
    assert "a" in order[:4] and "b" in order[:4], "neither waits for the other to run dry"  # noqa: PT018


async def test_a_worker_serves_only_its_queues(app: App) -> None:
    @app.task
    async def note() -> str:
        return "ran"

    async with working(app, queues=["mine"]):
        other = await note.options(queue="other").enqueue()
        assert await (await note.options(queue="mine").enqueue()).result(30) == "ran"
        assert (await other.refresh()).state == "available"


async def test_a_queue_name_may_hold_anything(app: App) -> None:
    name = 'it\'s a "queue"; DROP TABLE jobs; -- ü \N{SNOWMAN} %s {0}'

    @app.task(queue=name)
    async def note() -> str:
        return "ran"

    async with working(app) as worker:
        await until(lambda: worker.bell.armed, "the bell is armed")
        assert await (await note.enqueue()).result(30) == "ran"


async def test_a_paused_queue_waits_and_goes_on_when_it_is_resumed(app: App) -> None:
    ran: list[int] = []

    @app.task
    async def note(number: int) -> None:
        ran.append(number)

    async with working(app) as worker:
        await in_state(await note.enqueue(number=1), "completed")
        assert await app.aclient.pause("default")
        turns = worker.claimer.turns
        job = await note.enqueue(number=2)
        await until(lambda: worker.claimer.turns > turns, "it has looked")
        assert (await job.refresh()).state == "available"
        assert await app.aclient.resume("default")
        await in_state(job, "completed")
    assert ran == [1, 2]


async def test_what_runs_goes_on_when_its_queue_is_paused(app: App) -> None:
    go = asyncio.Event()

    @app.task
    async def hold() -> None:
        await go.wait()

    async with working(app):
        job = await hold.enqueue()
        await in_state(job, "running")
        await app.aclient.pause("default")
        go.set()
        await in_state(job, "completed")


@pytest.mark.parametrize("bell", [True, False])
async def test_delayed_jobs_start_on_time_while_the_worker_is_idle(app: App, bell: bool) -> None:
    @app.task
    async def note() -> None:
        pass

    jobs = [await note.options(delay=delay).enqueue() for delay in (0.5, 1.0, 1.37)]
    async with working(app, bell=bell, poll=timedelta(minutes=5)):  # so it is their time that it waits for
        records = [await in_state(job, "completed") for job in jobs]
    late = [(record.started_at - record.run_at).total_seconds() for record in records]
    print(f"MEASURED delayed start (bell={bell}): {[f'{seconds * 1000:.1f} ms' for seconds in late]}")
    assert all(seconds >= 0 for seconds in late), "none before its time"


async def test_jobs_that_commit_late_with_an_early_time_are_found(dsn: str, app: App) -> None:
    """Their run_at lies before the worker's mark."""

    @app.task
    async def note() -> str:
        return "ran"

    async with working(app) as worker:
        await until(lambda: worker.claimer._claims.marks._clock_offset is not None, "it knows the clock")
        for _ in range(5):
            await (await note.enqueue()).result(30)
        old = await note.enqueue()
        await execute(dsn, "UPDATE pgqueue.jobs SET run_at = now() - interval '1 hour' WHERE state = 'available'")
        assert await old.result(30) == "ran"


async def test_the_claim_goes_on_after_its_connection_was_terminated(dsn: str, app: App) -> None:
    @app.task
    async def note() -> str:
        return "ran"

    async with working(app):
        await (await note.enqueue()).result(30)
        await execute(
            dsn,
            TERMINATE_ALL,
        )
        assert await until(lambda: enqueued_and_ran(note), "it works again")


async def enqueued_and_ran(task: object) -> bool:
    from pgqueue import DatabaseError

    try:
        job: Job = await task.enqueue()  # type: ignore[attr-defined]
        return bool(await job.result(30) == "ran")
    except DatabaseError:
        return False


async def test_two_workers_share_and_run_nothing_twice(dsn: str, app: App) -> None:
    ran: list[int] = []

    async def note(number: int) -> None:
        ran.append(number)
        await asyncio.sleep(0.001)

    task = app.task(name="note")(note)
    other = make_app(dsn)
    other.task(name="note")(note)
    jobs = await app.enqueue_many([task.job(number=n) for n in range(500)])
    async with working(app, slots=10), working(other, slots=10):
        for job in jobs:
            await in_state(job, "completed")
    assert sorted(ran) == list(range(500))


def test_a_mark_lags_behind_the_servers_clock_and_never_goes_back() -> None:
    marks = Marks(["q"])
    row = (5, time.time() - 10, 1, "q")
    marks.advance([row])
    assert marks.lanes(full=False, turn=0).mark_ats == [None] * 10, "without the server's clock there is no mark"
    marks.set_clock(time.time())
    marks.advance([row])
    early = marks.lanes(full=False, turn=0)
    assert (early.mark_ats[5], early.mark_ids[5]) == (row[1], 1)
    marks.advance([(5, time.time(), 2, "q")])
    late = marks.lanes(full=False, turn=0)
    assert late.mark_ats[5] is not None
    assert late.mark_ats[5] <= time.time() - 0.25
    marks.advance([row])
    assert marks.lanes(full=False, turn=0).mark_ats[5] == late.mark_ats[5]
    assert marks.lanes(full=True, turn=0).mark_ats == [None] * 10


def test_a_near_mark_lags_less_and_both_are_taken_back() -> None:
    marks = Marks(["q"])
    marks.set_clock(time.time())
    marks.advance([(5, time.time(), 2, "q")])
    far, near = (marks.lanes(full=False, turn=0, near=near).mark_ats[5] for near in (False, True))
    assert far is not None
    assert near is not None
    assert near - far == pytest.approx(0.23)
    marks.take_back([("q", 5, far - 1, 1)])
    for near in (True, False):
        assert marks.lanes(full=False, turn=0, near=near).mark_ats[5] == far - 1
    marks.advance([(5, far + 0.1, 3, "q")])
    far_now, near_now = (marks.lanes(full=False, turn=0, near=near) for near in (False, True))
    assert far <= (far_now.mark_ats[5] or 0) <= far + 0.1
    assert (near_now.mark_ats[5], near_now.mark_ids[5]) == (far + 0.1, 3)


def test_queues_of_one_priority_take_turns_at_being_first() -> None:
    marks = Marks(["a", "b", "c"])
    assert [marks.lanes(full=True, turn=turn).queues[:3] for turn in range(3)] == [
        ["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"],
    ]  # fmt: skip
    assert marks.lanes(full=True, turn=1).priorities == sorted(3 * list(range(10)))


async def test_looks_from_the_start_that_take_long_are_made_beside_the_others(app: App) -> None:
    """A held snapshot makes them dear: nobody waits for one, and they are few."""
    looks: list[float | None] = []  # the marks they began behind
    beside: list[float | None] = []

    @app.task
    async def note() -> None:
        pass

    async with working(app, poll=timedelta(milliseconds=20)) as worker:
        await until(lambda: worker.claimer._claims.marks._clock_offset is not None, "it can set marks")
        await in_state(await note.enqueue(), "completed")
        claiming, looking = worker._links[0], worker._links[4]
        send, send_beside = claiming.arun, looking.arun

        async def dear(statement: Any) -> Any:
            if "ready AS" in statement.sql:
                looks.append(statement.params["mark_ats"][5])
                await asyncio.sleep(0 if looks[-1] else 0.05)
            return await send(statement)

        async def dear_beside(statement: Any) -> Any:
            beside.append(statement.params["mark_ats"][5])
            await asyncio.sleep(0.05)
            return await send_beside(statement)

        claiming.arun, looking.arun = dear, dear_beside  # type: ignore[method-assign]
        await until(lambda: beside, "it has looked from the start beside the others")
        here = len(looks)
        await until(lambda: len(looks) > here + 20, "it has looked on")
    assert looks.count(None) <= 1, "once it was dear, it is made beside"
    assert None not in beside
    assert len(beside) <= 3


async def test_what_a_look_beside_the_claims_finds_is_claimed(
    dsn: str, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No claim begins at the start here, once there is a mark: only the look behind the marks can find these jobs."""
    monkeypatch.setattr(FullScans, "dear", property(lambda _self: True, lambda _self, _value: None), raising=False)
    ran: list[int] = []

    @app.task
    async def note(number: int) -> None:
        ran.append(number)

    async with working(app, slots=2) as worker:
        marks = worker.claimer._claims.marks
        await until(lambda: marks.clock_offset is not None, "it can set marks")
        async with await psycopg.AsyncConnection.connect(dsn) as late:
            jobs = [await note.using(late).enqueue(number=number) for number in range(1, 31)]
            await asyncio.sleep(0.4)
            await in_state(await note.enqueue(number=0), "completed")
            assert marks.some
        for job in jobs:
            await in_state(job, "completed")
    assert sorted(ran) == list(range(31))


async def test_between_long_looks_there_are_some_into_the_last_seconds(dsn: str, app: App) -> None:
    looks: list[float | None] = []

    @app.task
    async def note() -> None:
        pass

    async with working(app, slots=2, poll=timedelta(milliseconds=20)) as worker:
        claims, beside = worker.claimer._claims, worker._links[4]
        await until(lambda: claims.marks.clock_offset is not None, "it can set marks")
        send = beside.arun

        async def blind_if_long(statement: Any) -> Any:
            since = statement.params["since"]
            looks.append(since)
            if since is None:
                return []  # so that only the others can find the job
            assert -9 < since - time.time() < -7
            return await send(statement)

        beside.arun = blind_if_long  # type: ignore[method-assign]
        async with await psycopg.AsyncConnection.connect(dsn) as late:
            job = await note.using(late).enqueue()
            await asyncio.sleep(0.4)
            claims._full_scans.made(time.monotonic() - 0.01, full=True, short=True)  # dear
            await in_state(await note.enqueue(), "completed")
            await until(lambda: None in looks and len(looks) > 1, "it has looked")
        await in_state(job, "completed")


def test_looks_that_take_long_are_few_unless_something_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_000.0
    monkeypatch.setattr("pgqueue.worker.marks.time", SimpleNamespace(monotonic=lambda: now))
    scans = FullScans()
    for took, between in (0.001, 0.1), (0.05, 20), (0.2, 30), (1, 100):  # seconds
        scans.made(now - took, full=True, short=True)
        assert scans._at == pytest.approx(now + between)
    assert scans.wanted_in == math.inf

    scans.made(now - 0.05, full=True, short=True)
    scans.want()
    assert scans.wanted_in == pytest.approx(5)
    now += 6
    assert scans.due
    scans.begins()
    assert scans.wanted_in == math.inf, "an idle worker would turn in circles until it has ended"
    now += 1
    scans.want()  # behind its back
    assert scans.wanted_in <= 0
    scans.made(now - 10, full=True, short=True)  # it may have passed the place before the job was back
    assert scans.wanted_in == pytest.approx(1_000)
    now += 2_000
    scans.made(now - 0.05, full=True, short=True)
    assert scans.wanted_in == math.inf
    assert scans._at == pytest.approx(now + 20)

    scans = FullScans(most=0.02)
    scans.made(now - 1, full=True, short=True)
    assert scans._at == pytest.approx(now + 2)


@pytest.mark.parametrize("how", ["released by another", "swept"])
async def test_what_is_back_before_the_marks_is_found_however_rare_the_looks_are(
    dsn: str, app: App, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Looks from the start come never by themselves here, and those into the last seconds reach less far."""
    monkeypatch.setattr("pgqueue.worker.marks._DEAR_SHARE", 10**9)
    monkeypatch.setattr("pgqueue.worker.marks._DEAR_EVERY", 10**9)

    @app.task(name="note")
    async def note() -> None:
        pass

    with Peer(dsn) as peer:
        job_id = peer.value("SELECT pgqueue.enqueue('note', run_at => now() - interval '1 minute')")
        claim = peer.claim(lease=timedelta(seconds=30))
        assert claim.ids == [job_id]
        async with working(app) as worker:
            claims = worker.claimer._claims
            await until(lambda: claims.marks.clock_offset is not None and worker.bell.up, "it can set marks, and hear")
            await in_state(await note.enqueue(), "completed")
            claims._full_scans.made(time.monotonic() - 0.01, full=True, short=True)  # dear
            if how == "swept":
                peer.sql("UPDATE pgqueue.leases SET lease_until = now() - interval '1 s'")
            else:
                assert peer.end(claim, "release") == []
            state = "SELECT state FROM pgqueue.all_jobs WHERE id = %s"
            await until(lambda: peer.value(state, job_id) == "completed", "it has run")


async def test_claims_begin_near_the_last_one_while_the_dead_are_dear(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FullScans, "dear", property(lambda _self: True, lambda _self, _value: None), raising=False)
    lags: list[float] = []

    @app.task
    async def note() -> None:
        pass

    async with working(app, slots=2) as worker:
        marks, claiming = worker.claimer._claims.marks, worker._links[0]
        await until(lambda: marks.clock_offset is not None, "it can set marks")
        send = claiming.arun

        async def watched(statement: Any) -> Any:
            if "pick AS" in statement.sql and statement.params["mark_ats"][5] is not None:
                lags.append(time.time() - statement.params["mark_ats"][5])
            return await send(statement)

        claiming.arun = watched  # type: ignore[method-assign]
        jobs = []
        while not (any(lag < 0.2 for lag in lags) and any(lag >= 0.25 for lag in lags)) and len(jobs) < 5000:
            jobs.append(await note.enqueue())
        for job in jobs:
            await in_state(job, "completed")
    assert len(jobs) < 5000, "both marks are used"
    assert min(lags) >= 0.02
