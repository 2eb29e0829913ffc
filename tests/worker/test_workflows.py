"""Workflows from Python: how they are built, enqueued and run, and what handlers see of those before them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import flows
import psycopg
import pytest
from peers import Peer

import pgqueue
from pgqueue import InvalidJobError, Job, JobSpec, ResultTimeoutError
from pgqueue.errors import BatchNotFoundError
from worker.support import in_state, until, working

if TYPE_CHECKING:
    from collections.abc import Callable

    from pgqueue import App


@pytest.fixture(autouse=True)
async def whole(app: App, dsn: str):
    yield
    with Peer(dsn) as peer:
        flows.check(peer)


@pytest.fixture
def tasks(app: App) -> dict[str, Callable[..., Any]]:
    @app.task(name="double")
    async def double(n: int) -> int:
        return 2 * n

    @app.task(name="total")
    async def total(job: Job) -> int:
        return sum((await job.upstream_results()).values())

    @app.task(name="total_in_a_thread")
    def total_in_a_thread(job: Job) -> int:
        return sum(job.upstream_results_sync().values())

    @app.task(name="fail", max_attempts=1)
    async def fail() -> None:
        raise ValueError("no")

    @app.task(name="book")
    async def book(job: Job) -> None:
        async with job.transaction() as connection:
            await connection.execute("CREATE TABLE IF NOT EXISTS bookings (id bigint)")
            await connection.execute("INSERT INTO bookings VALUES (%s)", [job.id])
            job.set_result(1)

    @app.task(name="grow")
    async def grow(job: Job, n: int) -> None:
        batch_id = (await job.refresh()).batch_id
        if n:
            await app.aclient.submit_many([grow.job(n - 1), grow.job(n - 1)], batch_id=batch_id)

    return dict(app.tasks)


@pytest.mark.parametrize("name", ["total", "total_in_a_thread"])
async def test_a_job_after_a_batch_reads_the_results_of_all_of_it(app: App, tasks: dict[str, Any], name: str):
    batch = await app.batch([tasks["double"].job(n) for n in range(10)], name="b").then(tasks[name].job()).enqueue()
    async with working(app):
        assert await batch.followers[0].result(30) == 90
    record = await batch.wait(5)
    assert (record.name, record.total, record.completed, record.progress, record.pending) == ("b", 10, 10, 1.0, 0)
    assert record.finished_at is not None


async def test_a_chain_runs_in_its_order_and_sees_the_one_before(app: App, tasks: dict[str, Any]):
    batch = await app.chain(tasks["double"].job(21), tasks["total"].job(), tasks["total"].job()).enqueue()
    async with working(app):
        assert await batch.jobs[-1].result(30) == 42
    records = [await job.refresh() for job in batch.jobs]
    assert [record.depends_on for record in records] == [[], [batch.jobs[0].id], [batch.jobs[1].id]]
    assert records[0].finished_at <= records[1].started_at


async def test_a_workflow_of_any_shape(app: App, tasks: dict[str, Any]):
    outside = await tasks["double"].enqueue(1)
    flow = app.workflow("shape")
    a, b = flow.add(tasks["double"].job(2)), flow.add(tasks["double"].options(depends_on=[outside]).job(3))
    c = flow.add(tasks["total"].job(), after=[a, b])
    flow.add(tasks["total"].job(), after=iter([c, a]))
    batch = await flow.enqueue()
    async with working(app):
        assert await batch.jobs[-1].result(30) == 14


async def test_a_job_that_died_ends_those_that_wait_and_then_goes_on_if_it_is_told_to(app: App, tasks: dict[str, Any]):
    flow = app.workflow()
    bad = flow.add(tasks["fail"].job())
    flow.add(tasks["double"].job(1), after=[bad])
    flow.add(tasks["double"].job(2), after=[bad], on_dead="continue")
    batch = await flow.then(tasks["total"].job()).then(tasks["double"].job(4), on_dead="continue").enqueue()
    async with working(app):
        record = await batch.wait(30)
        assert (record.completed, record.dead, record.cancelled) == (1, 1, 1)
        assert (await in_state(batch.followers[0], "cancelled")).errors[-1]["type"] == "UpstreamFailed"
        assert await batch.followers[1].result(30) == 8


async def test_a_transaction_of_the_handler_frees_who_waits_in_the_same_commit(app: App, tasks: dict[str, Any]):
    batch = await app.batch([tasks["book"].job() for _ in range(5)]).then(tasks["total"].job()).enqueue()
    async with working(app):
        assert await batch.followers[0].result(30) == 5
    assert (await batch.refresh()).completed == 5


async def test_a_handler_may_add_to_its_own_batch(app: App, tasks: dict[str, Any]):
    batch = await app.batch([tasks["grow"].job(3)]).then(tasks["double"].job(1)).enqueue()
    async with working(app):
        assert await batch.followers[0].result(30) == 2
    record = await batch.refresh()
    assert (record.total, record.completed) == (15, 15)


async def test_a_batch_is_cancelled_with_all_of_it(app: App, tasks: dict[str, Any]):
    delayed = tasks["double"].options(delay="1h")
    batch = await app.batch([delayed.job(n) for n in range(3)]).then(tasks["total"].job()).enqueue()
    assert await app.get_batch(batch.id).cancel() == 3
    assert {(await job.refresh()).state for job in (*batch.jobs, *batch.followers)} == {"cancelled"}
    assert (await batch.wait(1)).cancelled == 3


async def test_an_empty_batch_is_complete_and_what_comes_after_it_runs(app: App, tasks: dict[str, Any]):
    batch = await app.batch([]).then(tasks["double"].job(1)).enqueue()
    assert batch.jobs == []
    assert (await batch.wait(1)).progress == 1.0
    async with working(app):
        assert await batch.followers[0].result(30) == 2


async def test_what_was_there_before_is_waited_for_and_not_counted(app: App, tasks: dict[str, Any]):
    double = tasks["double"]
    old = await double.options(unique_key="1", delay="1h").enqueue(1)
    jobs = [double.options(unique_key=str(n)).job(n) for n in (1, 2)]
    batch = await app.batch(jobs).then(tasks["total"].job()).enqueue()
    assert [(job.id == old.id, job.created) for job in batch.jobs] == [(True, False), (False, True)]
    async with working(app):
        assert (await batch.wait(30)).total == 1
        assert (await batch.followers[0].refresh()).state == "blocked"
        await old.retry()
        assert await batch.followers[0].result(30) == 6


def test_a_workflow_in_the_callers_transaction_is_there_when_that_commits(app: App, tasks: dict[str, Any], dsn: str):
    flow = app.batch([tasks["double"].job(1)]).then(tasks["total"].job())
    with psycopg.connect(dsn) as connection:
        batch = flow.enqueue_sync(connection=connection)
        connection.rollback()
        with pytest.raises(BatchNotFoundError):
            batch.refresh_sync()
        assert app.client.jobs() == []
        batch = flow.enqueue_sync(connection=connection)
        connection.commit()
    assert batch.refresh_sync().pending == 1
    assert [record.state for record in app.client.jobs()] == ["blocked", "available"]
    assert app.client.cancel_batch(batch.id) == 1
    assert batch.wait_sync(1).cancelled == 1


async def test_a_batch_of_many_chunks_is_one_transaction(app: App, tasks: dict[str, Any]):
    jobs = [tasks["double"].options(delay="1h").job(n) for n in range(12_000)]
    with pytest.raises(InvalidJobError, match="job 1999:"):
        await app.batch([*jobs, tasks["double"].options(depends_on=[10**15]).job(1)][1:]).enqueue()
    assert await app.aclient.jobs() == []
    assert await app.aclient.batches() == []
    batch = await app.batch(jobs).enqueue()
    assert (len({job.id for job in batch.jobs}), (await batch.refresh()).total) == (12_000, 12_000)
    assert await batch.cancel() == 12_000


async def test_what_has_no_meaning_is_refused_before_anything_is_written(app: App, tasks: dict[str, Any]):
    flow, other = app.workflow(), app.workflow()
    strange = other.add(tasks["double"].job(1))
    for after in ([strange], [1], ["x"]):
        with pytest.raises(InvalidJobError, match="after must name earlier steps of this workflow"):
            flow.add(tasks["double"].job(1), after=after)  # type: ignore[arg-type]
    for bad in ([0], [-1], [True], ["1"], [None], [1.5], [2**63], range(1, 10_002)):
        with pytest.raises(InvalidJobError, match="depends_on"):
            tasks["double"].options(depends_on=bad).job(1)
    with pytest.raises(InvalidJobError, match="on_dead must be"):
        flow.then(tasks["double"].job(1), on_dead="explode")
    with pytest.raises(InvalidJobError, match="the name of a workflow"):
        app.workflow("")
    with pytest.raises(InvalidJobError, match="there is no job or batch"):
        await tasks["double"].options(depends_on=[10**15]).enqueue(1)
    with pytest.raises(InvalidJobError, match="copy=True"):
        await app.enqueue_many([JobSpec.make("t", depends_on=[1])], copy=True)
    with pytest.raises(BatchNotFoundError):
        await app.get_batch(10**15).wait(1)
    assert await app.aclient.jobs() == []


async def test_a_wait_that_is_too_short_says_so_and_the_batch_goes_on(app: App, tasks: dict[str, Any]):
    batch = await app.batch([tasks["double"].job(1)]).enqueue()
    with pytest.raises(ResultTimeoutError, match=f"batch {batch.id} has not ended within 20ms"):
        await batch.wait("20ms")
    with pytest.raises(ResultTimeoutError):
        batch.wait_sync(0)
    async with working(app):
        assert (await batch.wait(30)).completed == 1


async def test_a_retry_of_what_was_cancelled_with_its_upstream_waits_for_it_again(app: App, tasks: dict[str, Any]):
    mended: list[bool] = []

    @app.task(name="fragile", max_attempts=1)
    async def fragile() -> int:
        if not mended:
            raise ValueError("not yet")
        return 7

    batch = await app.chain(fragile.job(), tasks["total"].job()).enqueue()
    async with working(app):
        await batch.wait(30)
        mended.append(True)
        assert await batch.jobs[1].retry() == "blocked"
        assert (await batch.refresh()).pending == 1
        await batch.jobs[0].retry()
        assert await batch.jobs[1].result(30) == 7
        await until(lambda: _completed(batch, 2), "the batch is complete again")


async def _completed(batch: pgqueue.Batch, count: int) -> bool:
    return (await batch.refresh()).completed == count
