"""What a worker counts: every end once, with how long it ran and waited; for Prometheus and for OpenTelemetry."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry import metrics as otel_metrics
from opentelemetry.metrics import _internal as otel_internal
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from worker.support import execute, in_state, make_app, until, working

import pgqueue
from pgqueue import Cancel, Dead, JobSpec, Snooze, Worker
from pgqueue.metrics import catalogue
from pgqueue.metrics.board import Monitor
from pgqueue.metrics.otel import name_of
from pgqueue.metrics.vitals import PARTS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pgqueue import App


def counts(monitor: Monitor, metric: catalogue.Metric) -> dict[tuple[str, ...], Any]:
    """Counters by labels; histograms as (count, sum)."""
    found = {labels: values for name, labels, values in monitor.series() if name == metric.name}
    if metric.kind == "histogram":
        return {labels: (sum(values[:-1]), values[-1]) for labels, values in found.items()}
    return {labels: values[0] for labels, values in found.items()}


@pytest.fixture
def monitor() -> Monitor:
    return Monitor(counting=True)


async def test_every_end_is_counted_once_by_queue_task_and_outcome(app: App, monitor: Monitor):
    @app.task(name="ends", queue="q", max_attempts=3, retry=pgqueue.Fixed("1h"))
    async def ends(how: str) -> None:
        if how != "completed":
            raise {"dead": Dead("no"), "cancelled": Cancel("no"), "retry": ValueError("no"), "snooze": Snooze("1h")}[
                how
            ]

    @app.task(name="passes", queue="q", group_retry="pass", retry=pgqueue.Fixed("1h"))
    def passes() -> None:
        raise ValueError

    @app.task(name="isolated", queue="q", isolation="process")
    def isolated() -> None: ...

    hows = {"completed": 5, "dead": 1, "cancelled": 2, "retry": 3, "snooze": 4}
    await app.enqueue_many([ends.job(how) for how, times in hows.items() for _ in range(times)])
    await passes.options(group_key="k").enqueue()
    expected = {("q", "ends", how): times for how, times in hows.items()} | {("q", "passes", "retry"): 1}
    async with working(app, monitor=monitor):
        await until(lambda: counts(monitor, catalogue.FINISHED) == expected, "every end was counted")
    assert counts(monitor, catalogue.FINISHED) == expected
    ran, waited = counts(monitor, catalogue.RUN), counts(monitor, catalogue.WAIT)
    assert {labels: count for labels, (count, _) in ran.items()} == {("q", "ends"): 15, ("q", "passes"): 1}
    assert waited["q",][0] == 16
    claims, sizes = counts(monitor, catalogue.CLAIM)[()], counts(monitor, catalogue.CLAIM_SIZE)[()]
    assert sizes[1] == 16, "every job came with a claim"
    assert claims[0] >= sizes[0] >= 1
    assert counts(monitor, catalogue.FLUSH)[()][0] >= 1


async def test_a_run_is_at_least_as_long_as_its_handler(app: App, monitor: Monitor):
    @app.task(name="slow", queue="q")
    async def slow() -> None:
        await asyncio.sleep(0.3)

    await slow.enqueue()
    async with working(app, monitor=monitor):
        await until(lambda: counts(monitor, catalogue.RUN), "it was counted")
    (count, seconds) = counts(monitor, catalogue.RUN)["q", "slow"]
    assert count == 1
    assert seconds >= 0.3


async def test_a_wait_is_counted_from_run_at(app: App, monitor: Monitor):
    task = app.task(name="t", queue="q")(lambda: None)
    job = await task.enqueue()
    await execute(app.database.dsn, "UPDATE pgqueue.jobs SET run_at = now() - interval '1 hour' WHERE id = %s", job.id)
    async with working(app, monitor=monitor):
        await until(lambda: counts(monitor, catalogue.WAIT), "it was counted")
    (count, seconds) = counts(monitor, catalogue.WAIT)["q",]
    assert count == 1
    assert 3_590 < seconds < 3_900


async def test_a_task_that_is_not_registered_is_other(app: App, monitor: Monitor):
    catch_all = pgqueue.App(settings=app.settings).task(name="any", raw=True)(_take)
    for name in ("one", "two", "three"):
        await app.aclient.enqueue(JobSpec.make(name))
    async with working(app, monitor=monitor, catch_all=catch_all, queues=["default"]):
        await until(lambda: sum(counts(monitor, catalogue.FINISHED).values()) == 3, "three ended")
    assert counts(monitor, catalogue.FINISHED) == {("default", "other", "completed"): 3}


def _take(payload: Any) -> None:
    """A handler."""


async def test_each_job_of_a_batch_handler_is_counted(app: App, monitor: Monitor):
    @app.task(name="many", batch=10)
    async def many(items: list[int]) -> list[Any]:
        return [ValueError("odd") if item % 2 else None for item in items]

    await app.enqueue_many([many.job(n) for n in range(10)])
    async with working(app, monitor=monitor):
        await until(lambda: sum(counts(monitor, catalogue.FINISHED).values()) >= 10, "all ended")
    found = counts(monitor, catalogue.FINISHED)
    assert found["default", "many", "completed"] == 5
    assert counts(monitor, catalogue.RUN)["default", "many"][0] == 10


async def test_what_is_given_back_unstarted_is_released_and_has_not_run(app: App, monitor: Monitor):
    gate = asyncio.Event()

    @app.task(name="waits")
    async def waits() -> None:
        await gate.wait()

    await app.enqueue_many([waits.job() for _ in range(3)])
    async with working(app, monitor=monitor, slots=3) as worker:
        await until(lambda: worker.executor.running == 3, "they run")
    assert counts(monitor, catalogue.FINISHED) == {("default", "waits", "release"): 3}


async def test_a_lost_lease_is_counted_once_and_its_end_is_not(dsn: str, monitor: Monitor):
    app = make_app(dsn, lease_duration=3.0)
    gate = asyncio.Event()

    @app.task(name="long")
    async def long() -> None:
        await gate.wait()

    job = await long.enqueue()
    async with working(app, monitor=monitor):
        await in_state(job, "running")
        await execute(dsn, "UPDATE pgqueue.jobs SET lease_token = 1 WHERE id = %s", job.id)  # another worker's now
        await until(lambda: counts(monitor, catalogue.LEASE_LOST)[()] == 1, "the renewal noticed it")
        gate.set()
    assert counts(monitor, catalogue.LEASE_LOST) == {(): 1}
    assert counts(monitor, catalogue.FINISHED) == {}
    await app.aclose()


async def test_a_lease_that_is_lost_when_the_outcome_comes_is_counted_too(app: App, monitor: Monitor):
    gate = asyncio.Event()

    @app.task(name="long")
    async def long() -> None:
        await gate.wait()

    jobs = [await long.enqueue() for _ in range(2)]
    async with working(app, monitor=monitor):
        for job in jobs:
            await in_state(job, "running")
        await execute(app.database.dsn, "UPDATE pgqueue.jobs SET lease_token = 1 WHERE id = %s", jobs[0].id)
        gate.set()
        await in_state(jobs[1], "completed")
        await until(lambda: counts(monitor, catalogue.LEASE_LOST)[()] == 1, "the finish noticed it")
    assert counts(monitor, catalogue.FINISHED) == {("default", "long", "completed"): 1}
    assert counts(monitor, catalogue.LEASE_LOST) == {(): 1}
    await execute(
        app.database.dsn, "DELETE FROM pgqueue.jobs; DELETE FROM pgqueue.leases"
    )  # nobody's, so that the invariants hold


async def test_what_was_swept_is_counted(app: App, monitor: Monitor):
    task = app.task(name="t")(lambda: None)
    await app.enqueue_many([task.job() for _ in range(4)])
    await execute(app.database.dsn, """
        WITH lease AS (INSERT INTO pgqueue.leases (token, lease_until, worker, job_ids)
            SELECT 7, now() - interval '1 s', 'dead', array_agg(id) FROM pgqueue.jobs)
        UPDATE pgqueue.jobs SET state = 'running', lease_token = 7, attempt = 1, started_at = now(),
            lease_until = now() - interval '1 s', worker = 'dead'""")  # fmt: skip
    async with working(app, monitor=monitor):
        await until(lambda: counts(monitor, catalogue.SWEPT)[()] == 4, "they were swept")
        await until(lambda: counts(monitor, catalogue.FINISHED), "and run")


async def test_what_handlers_enqueue_is_counted_by_the_worker(app: App, monitor: Monitor):
    leaf = app.task(name="leaf")(lambda: None)

    @app.task(name="root")
    async def root() -> None:
        await app.enqueue_many([leaf.job() for _ in range(3)])
        await asyncio.to_thread(leaf.enqueue_sync)

    await root.enqueue()  # before the worker: it counts what comes from now on
    async with working(app, monitor=monitor):
        await until(lambda: counts(monitor, catalogue.ENQUEUED)[()] == 4, "four")


async def test_slots_bell_and_readiness_are_shown(app: App, monitor: Monitor):
    gate = asyncio.Event()

    @app.task(name="waits")
    async def waits() -> None:
        await gate.wait()

    vitals = monitor.vitals
    assert vitals.readiness == "starting"
    async with working(app, monitor=monitor, slots=5):
        await waits.enqueue()
        await until(lambda: (vitals.busy, vitals.free) == (1, 4), "a slot is busy")
        await until(lambda: vitals.bell_up and not vitals.readiness, "it is ready")
        gate.set()
        await until(lambda: vitals.free == 5, "it is free")
        assert vitals.overdue() == []
    assert vitals.overdue() == []


async def test_an_idle_worker_shows_at_once_what_begins(
    app: App, monitor: Monitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks at its slots so rarely here that only what comes can have made it look."""
    monkeypatch.setattr("pgqueue.worker.worker._IDLE_TICK", 3600.0)
    gate = asyncio.Event()

    @app.task(name="waits")
    async def waits() -> None:
        await gate.wait()

    vitals = monitor.vitals
    async with working(app, monitor=monitor, slots=5) as worker:
        for _ in range(2):
            await until(lambda: worker.executor._dozing and not vitals.readiness, "it is idle")
            job = await waits.enqueue()
            await until(lambda: vitals.busy == 1, "a slot is busy")
            gate.set()
            await until(lambda: vitals.busy == 0, "it is free")
            await in_state(job, "completed")
            gate.clear()
        await until(lambda: worker.executor._dozing, "it is idle")
        worker.stop()
    assert vitals.readiness == "stopping"


async def test_a_worker_that_is_to_poll_is_ready_without_a_bell(app: App, monitor: Monitor):
    app.task(name="t")(lambda: None)
    async with working(app, monitor=monitor, bell=False):
        await until(lambda: not monitor.vitals.readiness, "it is ready")
        assert not monitor.vitals.bell_up


async def test_nobody_listens_and_nothing_is_counted(app: App):
    task = app.task(name="t")(lambda: None)
    job = await task.enqueue()
    async with working(app) as worker:
        await in_state(job, "completed")
        assert worker.meter is None
        assert worker.executor._emit == worker.finisher.add


# -- what is stuck ---------------------------------------------------------------------------------------------------


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """The patience is that of the lease, however short."""
    monkeypatch.setattr("pgqueue.metrics.vitals.LEAST_PATIENCE", 0.1)


async def stuck(monitor: Monitor, part: str) -> None:
    await until(lambda: any(part in trouble for trouble in monitor.vitals.overdue()), f"{part} is stuck")


async def stays_well(monitor: Monitor, seconds: float) -> None:
    """No part is late by more than what a machine under load may do to it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        late = [time.monotonic() - monitor.vitals._facts[part] for part in PARTS]
        assert max(late) < 2, monitor.vitals.overdue()
        await asyncio.sleep(0.02)


async def test_a_claimer_that_does_not_come_back_is_stuck(dsn: str, monitor: Monitor, hasty: None):
    app = make_app(dsn, lease_duration=1.0)
    app.task(name="t")(lambda: None)
    async with working(app, monitor=monitor) as worker:
        hang = asyncio.Event()

        async def never(_limit: int) -> int:
            await hang.wait()
            return 0

        worker.claimer.claim = never  # type: ignore[method-assign]
        await stuck(monitor, "the claimer")
        hang.set()
        await until(lambda: not monitor.vitals.overdue(), "it has come back")
    await app.aclose()


async def test_an_idle_worker_and_one_with_full_slots_are_not_stuck(dsn: str, monitor: Monitor, hasty: None):
    app = make_app(dsn, lease_duration=1.0, poll_interval=1.0)
    gate = asyncio.Event()

    @app.task(name="waits")
    async def waits() -> None:
        await gate.wait()

    async with working(app, monitor=monitor, slots=1):
        await stays_well(monitor, 9)  # sleeps grow up to 5 s
        await app.enqueue_many([waits.job() for _ in range(3)])
        await stays_well(monitor, 4)
        gate.set()
    await app.aclose()


async def test_a_worker_whose_database_is_gone_is_not_stuck(private_server: Any, monitor: Monitor, hasty: None):
    server = private_server(migrated=True)
    app = make_app(server.dsn, lease_duration=1.0)
    gate = asyncio.Event()

    @app.task(name="waits")
    async def waits() -> None:
        await gate.wait()

    await waits.enqueue()
    async with working(app, monitor=monitor) as worker:
        await until(lambda: worker.executor.running == 1, "it runs")
        server.stop()
        await until(lambda: monitor.vitals.readiness == "the bell is down", "the bell is down")
        await stays_well(monitor, 5)
        gate.set()
        server.start()
        await until(lambda: not monitor.vitals.readiness, "it is back")
    await app.aclose()


# -- OpenTelemetry ---------------------------------------------------------------------------------------------------


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemoryMetricReader]:
    reader = InMemoryMetricReader()
    provider = MeterProvider(metric_readers=[reader])
    monkeypatch.setattr(otel_internal, "_METER_PROVIDER", provider)
    assert otel_metrics.get_meter_provider() is provider
    yield reader
    provider.shutdown()


async def test_opentelemetry_gets_the_same_when_a_provider_is_set(app: App, reader: InMemoryMetricReader):
    @app.task(name="t", queue="q", retry=pgqueue.Fixed("1h"))
    async def t(n: int) -> None:
        if n == 0:
            raise ValueError
        if n == 1:
            await t.enqueue(7)

    await app.enqueue_many([t.job(n) for n in range(3)])
    monitor = Monitor(counting=True)
    async with working(app, monitor=monitor) as worker:
        assert worker.meter is not None
        await until(lambda: sum(counts(monitor, catalogue.FINISHED).values()) == 4, "all ended")
        await until(lambda: counts(monitor, catalogue.ENQUEUED)[()] == 1, "the enqueue was counted")
        worker.meter.swept(2)
        worker.meter.lost(1)
    points: dict[str, dict[tuple[Any, ...], Any]] = {}
    data = reader.get_metrics_data()
    assert data is not None
    for metric in data.resource_metrics[0].scope_metrics[0].metrics:
        points[metric.name] = {tuple(point.attributes.values()): point for point in metric.data.data_points}
    assert set(points) == {name_of(metric) for metric in catalogue.COUNTED.values()}
    finished = {labels: point.value for labels, point in points["pgqueue.finished"].items()}
    assert finished == {("q", "t", "completed"): 3, ("q", "t", "retry"): 1}
    assert points["pgqueue.run"]["q", "t"].count == 4
    assert points["pgqueue.wait"]["q",].count == 4
    assert points["pgqueue.claim_batch_size"][()].sum == 4
    assert points["pgqueue.swept"][()].value == 2
    assert points["pgqueue.lease_lost"][()].value == 1
    assert points["pgqueue.enqueued"][()].value == 1
    assert tuple(points["pgqueue.run"]["q", "t"].explicit_bounds) == catalogue.RUN.buckets


async def test_opentelemetry_is_told_without_a_port_and_nobody_without_a_provider(
    app: App, reader: InMemoryMetricReader, monkeypatch: pytest.MonkeyPatch
):
    app.task(name="t")(lambda: None)
    async with working(app) as worker:
        assert worker.meter is not None
    monkeypatch.undo()
    async with working(app) as worker:
        assert worker.meter is None


def test_a_worker_takes_a_monitor_or_none(app: App):
    app.task(name="t")(lambda: None)
    assert Worker(app).vitals.readiness == "starting"
    assert Worker(app, lease=timedelta(seconds=5)).vitals is not Worker(app).vitals
