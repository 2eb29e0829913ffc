"""Resources: started before the first claim, injected by type, closed after the last handler."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator  # noqa: TC003 - read at run time
from typing import TYPE_CHECKING, Annotated, Any, NewType

import pytest

from pgqueue import (
    App,
    InvalidJobError,
    InvalidPayloadError,
    Job,
    PgqueueError,
    ResourceError,
    Settings,
    SettingsError,
    Worker,
)
from pgqueue import injected as left_out
from pgqueue.resources import Lifespan
from worker import composed_tasks, handlers
from worker.support import in_state, query, until, working

if TYPE_CHECKING:
    from pathlib import Path


class Pool:
    def __init__(self, name: str = "pool") -> None:
        self.name = name
        self.open = True


class Client:
    def __init__(self, pool: Pool) -> None:
        self.pool = pool


Primary = Annotated[Pool, "primary"]
Replica = NewType("Replica", Pool)


def bare() -> App:
    return App("host=nowhere")


async def test_a_resource_lives_from_before_the_first_claim_to_after_the_last_handler(app: App, dsn: str) -> None:
    said: list[str] = []
    begun, go = asyncio.Event(), asyncio.Event()

    @app.resource
    async def pool() -> AsyncIterator[Pool]:
        said.append(f"start, {(await query(dsn, 'SELECT max(attempt) FROM pgqueue.jobs'))[0][0]} attempts")
        made = Pool()
        yield made
        made.open = False
        said.append(f"close, {(await query(dsn, 'SELECT count(*) FROM pgqueue.history'))[0][0]} completed")

    @app.task(name="t")
    async def task(n: int, pool: Pool) -> str:
        begun.set()
        await go.wait()
        said.append(f"run {n}, {pool.open}")
        return pool.name

    (job,) = await app.enqueue_many([task.job(1)])  # type: ignore[call-arg]
    assert (await job.refresh()).payload == {"n": 1}
    async with working(app) as worker:
        await begun.wait()
        worker.stop()
        go.set()
        await until(lambda: len(said) == 3, "it has stopped")
    assert said == ["start, 0 attempts", "run 1, True", "close, 1 completed"]
    assert (await job.refresh()).result == "pool"


@pytest.mark.parametrize("kind", ["async", "thread"])
async def test_every_handler_gets_the_same_one_by_its_type(app: App, kind: str) -> None:
    got: list[Any] = []

    @app.resource
    def pool() -> Iterator[Pool]:
        yield Pool()

    @app.resource
    async def primary() -> AsyncIterator[Primary]:
        yield Pool("primary")

    @app.resource
    def replica() -> Iterator[Replica]:
        yield Replica(Pool("replica"))

    @app.resource
    async def client(pool: Primary) -> AsyncIterator[Client]:
        yield Client(pool)

    def take(
        job: Job, n: int, *, client: Client = left_out, pool: Pool | None = left_out, primary: Primary = left_out,
        replica: Replica = left_out
    ) -> None:  # fmt: skip
        got.append((job.id, n, client, pool, primary, replica))

    if kind == "async":

        @app.task(name="t")
        async def task(
            job: Job, n: int, *, client: Client = left_out, pool: Pool | None = left_out, primary: Primary = left_out,
            replica: Replica = left_out
        ) -> None:  # fmt: skip
            take(job, n, client=client, pool=pool, primary=primary, replica=replica)
    else:
        task = app.task(name="t")(take)  # type: ignore[assignment]

    async with working(app):
        jobs = [await task.enqueue(n=n) for n in range(2)]  # type: ignore[call-arg]
        for job in jobs:
            await in_state(job, "completed")
    first, second = sorted(got, key=lambda one: one[0])
    assert first[2:] == second[2:]
    assert [one.name for one in first[3:]] == ["pool", "primary", "replica"]
    assert first[2].pool is first[4]


@pytest.mark.parametrize("kind", ["async", "thread"])
async def test_a_batch_handler_gets_it_too(app: App, kind: str) -> None:
    @app.resource
    def pool() -> Iterator[Pool]:
        yield Pool()

    def numbers(items: list[int], pool: Pool) -> list[str]:
        return [f"{pool.name} {item}" for item in items]

    async def numbers_async(pool: Pool, items: list[int]) -> list[str]:
        return numbers(items, pool)

    handler: Any = numbers if kind == "thread" else numbers_async
    task = app.task(name="t", batch=2, linger="1m")(handler)
    async with working(app):
        jobs = await app.enqueue_many([task.job(1), task.job(2)])
        assert [await job.result(10) for job in jobs] == ["pool 1", "pool 2"]


async def test_a_resource_that_does_not_start_keeps_the_worker_from_starting_and_says_why(app: App) -> None:
    said: list[str] = []

    @app.resource
    def first() -> Iterator[Pool]:
        yield Pool()
        said.append("the first is closed")

    @app.resource
    async def second(pool: Pool) -> AsyncIterator[Client]:
        raise ConnectionError("no route")
        yield Client(pool)

    @app.task(name="t")
    async def task(client: Client) -> None: ...

    (job,) = await app.enqueue_many([task.job()])  # type: ignore[call-arg]
    with pytest.raises(ResourceError, match=r"resource \S+second did not start: ConnectionError: no route"):
        await Worker(app).run()
    assert said == ["the first is closed"]
    record = await job.refresh()
    assert (record.state, record.attempt) == ("available", 0)


async def test_what_fails_to_close_is_said_and_the_others_are_closed(
    app: App, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pgqueue.resources._CLOSING", 0.1)
    said: list[str] = []

    @app.resource
    async def lifespan() -> AsyncIterator[None]:
        yield
        said.append("closed")

    @app.resource
    async def slow() -> AsyncIterator[Pool]:
        yield Pool()
        await asyncio.sleep(60)

    @app.resource
    def broken() -> Iterator[Client]:
        yield Client(Pool())
        raise OSError("cannot close")

    app.task(name="t")(lambda: None)
    async with working(app):
        pass
    assert said == ["closed"]
    assert [record.message.rpartition(".")[2] for record in caplog.records if "did not close" in record.message] == [
        "broken did not close in order", "slow did not close in order",
    ]  # fmt: skip


# -- in child processes ----------------------------------------------------------------------------------------------


@pytest.fixture
def composed(app: App) -> Iterator[tuple[App, Path]]:
    composed_tasks.app.configure(app.settings)
    log = composed_tasks.log_file()
    log.touch()
    yield composed_tasks.app, log
    log.unlink()
    composed_tasks.app.configure(Settings(dsn="dbname=nowhere"))


async def test_a_child_starts_what_its_jobs_need_once_and_closes_it_with_the_worker(composed: tuple[App, Path]) -> None:
    app, log = composed
    async with working(app, slots=1):
        pids = [await (await composed_tasks.isolated.enqueue(1)).result(60)]
        pids.append(await (await composed_tasks.isolated_async.enqueue(2)).result(60))
        pids.append(await (await composed_tasks.isolated.enqueue(3)).result(60))
    (child,) = set(pids)
    lines = [line.split(" ", 1) for line in log.read_text().splitlines()]
    assert [said for pid, said in lines if pid == str(child)] == [
        "sync start", "async start", "async run 1", "async run 2", "async run 3", "sync still open", "async close",
        "sync close",
    ]  # fmt: skip
    assert [said for pid, said in lines if pid == str(os.getpid())] == ["sync start", "sync close"], "a batch takes it"
    await app.aclose()


async def test_a_child_that_is_replaced_closes_what_it_holds(
    composed: tuple[App, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgqueue.worker.process._JOBS_PER_CHILD", 1)
    app, log = composed
    async with working(app, slots=1):
        pids = [await (await composed_tasks.isolated.enqueue(n)).result(60) for n in range(2)]
        for pid in pids:
            await until(lambda pid=pid: f"{pid} sync close" in log.read_text(), "it is closed")  # type: ignore[misc]
    await app.aclose()


async def test_a_resource_that_a_child_could_not_find_is_refused_at_the_start(app: App) -> None:
    @app.resource
    def pool() -> Iterator[handlers.Point]:
        yield handlers.Point(x=1, name="p")

    def isolated(point: handlers.Point) -> None: ...

    app.task(name="t", isolation="process")(isolated)
    with pytest.raises(SettingsError, match=r"task 't' is isolated and takes a resource: .*top of its module"):
        await Worker(app).run()


# -- registering -----------------------------------------------------------------------------------------------------


async def test_outside_a_worker_arguments_are_simply_passed() -> None:
    app = bare()

    @app.resource
    async def pool() -> AsyncIterator[Pool]:
        yield Pool()

    @app.task(name="t")
    async def task(n: int, pool: Pool = left_out) -> str:
        return f"{pool.name} {n}"

    assert await task(1, pool=Pool("mine")) == "mine 1"
    with pytest.raises(PgqueueError, match="nothing was injected here"):
        await task(1)
    async for one in pool():
        assert one.name == "pool"
    with pytest.raises(InvalidPayloadError, match="unexpected keyword argument 'pool'"):
        task.job(1, pool=Pool())


def test_a_resource_must_be_a_generator_that_says_what_it_yields() -> None:
    app = bare()

    def plain() -> Pool:
        return Pool()

    def silent():
        yield Pool()

    def odd() -> Pool:
        yield Pool()

    def common() -> Iterator[str]:
        yield "x"

    def commoner() -> Iterator[dict[str, int]]:
        yield {}

    def needy(pool: Pool) -> Iterator[Client]:
        yield Client(pool)

    for function, words in (
        (plain, "must be a generator function"), (silent, "say what it yields"), (odd, "say what it yields"),
        (common, "annotated str would get it"), (commoner, "would get it"),
        (needy, "no earlier resource has the type of its parameter 'pool'"),
    ):  # fmt: skip
        with pytest.raises(ResourceError, match=words):
            app.resource(function)
    assert app.resources.keys == []


def test_a_type_has_one_resource() -> None:
    app = bare()

    def pool() -> Iterator[Pool]:
        yield Pool()

    app.resource(pool)
    with pytest.raises(ResourceError, match="already one of Pool; tell them apart with Annotated or NewType"):
        app.resource(pool)


def test_a_missing_resource_is_an_error_where_the_task_is_registered() -> None:
    app = bare()

    def marked(n: int, pool: Pool = left_out) -> None: ...
    def unmarked(n: int, pool: Pool) -> None: ...

    with pytest.raises(ResourceError, match="no resource for the parameter 'pool'; register one of its type"):
        app.task(marked)
    with pytest.raises(InvalidJobError, match=r"if it is a resource, register it with @app\.resource before the task"):
        app.task(unmarked)


def test_a_resource_that_comes_after_a_task_which_takes_its_type_is_refused() -> None:
    app = bare()

    @app.task(name="t")
    def task(point: handlers.Point) -> None: ...

    def late() -> Iterator[handlers.Point]:
        yield handlers.Point(x=1, name="p")

    with pytest.raises(ResourceError, match="came too late: task 't' takes its type as payload"):
        app.resource(late)


async def test_a_worker_starts_what_its_own_handlers_need_and_a_child_only_what_its_job_needs() -> None:
    app = bare()

    @app.resource
    def pool() -> Iterator[Pool]:
        yield Pool()

    @app.resource
    def client(pool: Pool) -> Iterator[Client]:
        yield Client(pool)

    @app.resource
    def hook() -> Iterator[None]:
        yield

    names = lambda resources: [resource.name.rpartition(".")[2] for resource in resources]  # noqa: E731
    assert names(app.resources.all_but([])) == ["pool", "client", "hook"]
    assert names(app.resources.all_but([Pool])) == ["pool", "client", "hook"], "the client needs it"
    assert names(app.resources.all_but([Client])) == ["pool", "hook"]
    assert names(app.resources.needed_for([Client])) == ["pool", "client"]
    assert names(app.resources.needed_for([Pool])) == ["pool"]
    lifespan = Lifespan()
    await lifespan.start(app.resources.needed_for([Pool]))
    held = lifespan.values[Pool]
    await lifespan.start(app.resources.needed_for([Client]))
    assert lifespan.values[Client].pool is held
    await lifespan.close()
