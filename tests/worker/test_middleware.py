"""Middleware: around every run and every enqueue, in the order of registration; and nothing where there is none."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import AsyncIterator, Iterator  # noqa: TC003 - of generator functions
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import pytest

from pgqueue import App, Fixed, Job, Jobs, JobSpec, PgqueueError, Snooze
from pgqueue.worker.executor import Executor
from worker import handlers
from worker.support import in_state, query, working
from worker.test_executor import KINDS, Kind, register, slots_for

if TYPE_CHECKING:
    from collections.abc import Callable

seen_by_handlers: ContextVar[str] = ContextVar("seen_by_handlers", default="nothing")


def recorder(said: list[str], name: str, *, is_async: bool) -> Callable[..., Any]:
    """A middleware that says what passes it."""

    def begin(job: Job | Jobs) -> None:
        said.append(f"{name} before {job.task.rpartition(' ')[2].rpartition('.')[2]}")

    def end(how: str) -> None:
        said.append(f"{name} after {how}")

    if is_async:

        async def around(job: Job) -> AsyncIterator[None]:
            begin(job)
            try:
                yield
            except BaseException as error:
                end(type(error).__name__)
                raise
            end("return")

        return around

    def around_sync(job: Job) -> Iterator[None]:
        begin(job)
        try:
            yield
        except BaseException as error:
            end(type(error).__name__)
            raise
        end("return")

    return around_sync


# -- around a run ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
async def test_the_first_to_be_registered_is_the_outermost(app: App, kind: Kind) -> None:
    said: list[str] = []
    app.around_run(recorder(said, "outer", is_async=True))
    app.around_run(recorder(said, "inner", is_async=False))
    task = register(app, kind, handlers.return_value)
    async with working(app, slots=slots_for(kind)):
        assert await (await task.enqueue(kind="set")).result(60) == ["one"]
    assert said == [
        "outer before return_value",
        "inner before return_value",
        "inner after return",
        "outer after return",
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_async", [True, False])
@pytest.mark.parametrize(("error", "name"), [("plain", "ValueError"), ("system exit", "SystemExit")])
async def test_an_exception_passes_through_and_is_the_handlers(
    app: App, kind: Kind, is_async: bool, error: str, name: str
) -> None:
    said: list[str] = []
    app.around_run(recorder(said, "it", is_async=is_async))
    task = register(app, kind, handlers.raise_error, max_attempts=1)
    neighbour = register(app, kind, handlers.return_value)
    async with working(app, slots=1):
        record = await in_state(await task.enqueue(kind=error), "dead", within=60)
        assert await (await neighbour.enqueue(kind="set")).result(60) == ["one"]
    assert record.errors[0]["type"] == name
    assert "raise_error" in record.errors[0]["traceback"]
    assert said[:2] == ["it before raise_error", f"it after {name}"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_async", [True, False])
async def test_what_swallows_the_exception_completes_the_job(app: App, kind: Kind, is_async: bool) -> None:
    if is_async:

        @app.around_run
        async def forgiving(job: Job) -> AsyncIterator[None]:
            with contextlib.suppress(ValueError):
                yield
    else:

        @app.around_run
        def forgiving(job: Job) -> Iterator[None]:
            with contextlib.suppress(ValueError):
                yield

    task = register(app, kind, handlers.raise_error)
    async with working(app, slots=1):
        assert await (await task.enqueue(kind="plain")).result(60) is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_async", [True, False])
async def test_what_a_middleware_raises_is_the_end_of_the_run(app: App, kind: Kind, is_async: bool) -> None:
    ran: list[str] = []

    def check(job: Job) -> None:
        if job.attempt == 1 and job.meta.get("late"):
            raise Snooze("1h")

    if is_async:

        @app.around_run
        async def checking(job: Job) -> AsyncIterator[None]:
            check(job)
            yield
    else:

        @app.around_run
        def checking(job: Job) -> Iterator[None]:
            check(job)
            yield

    app.around_run(recorder(ran, "inner", is_async=False))
    task = register(app, kind, handlers.return_value)
    async with working(app, slots=1):
        record = await in_state(await task.options(meta={"late": True}).enqueue(kind="set"), "scheduled", within=60)
    assert record.attempt == 0
    assert ran == []


@pytest.mark.parametrize("kind", ["async", "thread"])
async def test_a_context_variable_that_it_sets_is_seen_by_the_handler_and_by_no_other(app: App, kind: Kind) -> None:
    @app.around_run
    def setting(job: Job) -> Iterator[None]:
        if job.meta:
            seen_by_handlers.set(job.meta["value"])
        yield

    def look() -> str:
        return seen_by_handlers.get()

    task = register(app, kind, look)
    async with working(app, slots=1):
        assert await (await task.options(meta={"value": "mine"}).enqueue()).result(10) == "mine"
        assert await (await task.enqueue()).result(10) == "nothing"


async def test_a_payload_that_does_not_fit_passes_through_like_the_handlers_exception(app: App) -> None:
    said: list[str] = []
    app.around_run(recorder(said, "it", is_async=False))

    @app.task(name="t")
    async def task(n: int) -> None: ...

    async with working(app):
        (job,) = await app.enqueue_many([JobSpec.make("t", {"n": "no number"})])
        await in_state(job, "dead")
    assert said == ["it before t", "it after InvalidPayloadError"]


@pytest.mark.parametrize("kind", ["async", "thread"])
@pytest.mark.parametrize("is_async", [True, False])
async def test_around_a_batch_it_gets_the_batch_once(app: App, kind: Kind, is_async: bool) -> None:
    handles: list[Any] = []
    said: list[str] = []
    app.around_run(recorder(said, "it", is_async=is_async))

    @app.around_run
    def keeping(jobs: Jobs) -> Iterator[None]:
        handles.append((type(jobs), [job.payload for job in jobs]))
        yield

    def numbers(items: list[int]) -> list[int]:
        return items

    async def numbers_async(items: list[int]) -> list[int]:
        return items

    handler: Any = numbers if kind == "thread" else numbers_async
    task = app.task(name="numbers", batch=2, linger="1m")(handler)
    async with working(app):
        jobs = await app.enqueue_many([task.job(1), task.job(2)])
        assert [await job.result(10) for job in jobs] == [1, 2]
    assert handles == [(Jobs, [1, 2])]
    assert said == ["it before numbers", "it after return"]


async def test_an_async_one_around_a_thread_lives_in_one_task_of_the_loop(app: App) -> None:
    import asyncio

    tasks: list[Any] = []

    @app.around_run
    async def watching(job: Job) -> AsyncIterator[None]:
        tasks.append((threading.get_ident(), asyncio.current_task()))
        async with asyncio.timeout(60):  # it insists on being left in the task that entered it
            yield
        tasks.append((threading.get_ident(), asyncio.current_task()))

    @app.task(name="t")
    def task() -> int:
        return threading.get_ident()

    async with working(app):
        thread = await (await task.enqueue()).result(10)
    assert tasks[0] == tasks[1]
    assert tasks[0][0] == threading.get_ident() != thread


async def test_an_application_without_any_of_it_runs_what_it_always_ran(app: App) -> None:
    @app.task(name="t")
    async def task() -> None: ...

    async with working(app) as worker:
        assert type(worker.executor) is Executor
        assert worker.executor._tasks is app.tasks
        assert worker.executor._threads._children._around is None
        assert await (await task.enqueue()).result(10) is None


def test_only_a_generator_function_is_a_middleware(app: App) -> None:
    for register_one in (app.around_run, app.around_enqueue):
        with pytest.raises(TypeError, match="must be a generator function that yields once"):
            register_one(lambda job: None)


# -- around an enqueue -----------------------------------------------------------------------------------------------


async def test_an_enqueue_writes_what_the_middleware_yields(app: App) -> None:
    said: list[str] = []

    @app.around_enqueue
    def tagged(spec: JobSpec) -> Iterator[JobSpec]:
        said.append("outer before")
        yield spec.with_meta(tenant="a").changed(priority=spec.priority - 1)
        said.append("outer after")

    @app.around_enqueue
    async def stamped(spec: JobSpec) -> AsyncIterator[JobSpec]:
        said.append("inner before")
        yield spec.with_meta(by="b").changed(priority=spec.priority - 1)
        said.append("inner after")

    task = app.task(name="t", priority=5)(lambda: None)
    job = await task.options(meta={"own": 1}).enqueue()
    assert said == ["outer before", "inner before", "inner after", "outer after"]
    many = await app.enqueue_many([task.job(), task.job()])
    copied = await app.enqueue_many([task.job(), task.job()], copy=True)
    for record in [await one.refresh() for one in [job, *many, *copied]]:
        assert {k: v for k, v in record.meta.items() if k != "own"} == {"tenant": "a", "by": "b"}
        assert record.priority == 3
    assert (await job.refresh()).meta["own"] == 1


@pytest.mark.parametrize("is_async", [True, False])
async def test_a_workflow_goes_through_it_too(app: App, is_async: bool) -> None:
    @app.around_enqueue
    def tagged(spec: JobSpec) -> Iterator[JobSpec]:
        yield spec.with_meta(tenant="a")

    task = app.task(name="t")(lambda: None)
    flow = app.workflow("w")
    flow.add(task.job(), after=[flow.add(task.job())])
    flow.then(task.job())
    batch = await flow.enqueue() if is_async else flow.enqueue_sync()
    jobs = [*batch.jobs, *batch.followers]
    assert [(await job.refresh()).meta["tenant"] for job in jobs] == ["a"] * 3


async def test_a_sync_enqueue_has_sync_middleware_only(app: App, dsn: str) -> None:
    @app.around_enqueue
    def tagged(spec: JobSpec) -> Iterator[JobSpec]:
        yield spec.with_meta(tenant="a")

    task = app.task(name="t")(lambda: None)
    for job in [task.enqueue_sync(), *app.enqueue_many_sync([task.job()])]:
        assert job.refresh_sync().meta == {"tenant": "a"}

    @app.around_enqueue
    async def stamped(spec: JobSpec) -> AsyncIterator[JobSpec]:
        yield spec

    for enqueue in (task.enqueue_sync, lambda: app.enqueue_many_sync([task.job()])):
        with pytest.raises(PgqueueError, match=r"stamped is async: use `await enqueue\(…\)`, or make it a def"):
            enqueue()
    assert await query(dsn, "SELECT count(*) FROM pgqueue.jobs") == [(2,)]


async def test_the_error_of_an_enqueue_passes_through_and_cannot_be_swallowed(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgqueue.connection._POOL_PATIENCE", 1.0)
    said: list[str] = []

    @app.around_enqueue
    def swallowing(spec: JobSpec) -> Iterator[JobSpec]:
        try:
            yield spec
        except PgqueueError as error:
            said.append(type(error).__name__)

    task = app.task(name="t")(lambda: None)
    app.configure(app.settings.__class__(dsn="postgresql://nobody@127.0.0.1:1/none"))
    with pytest.raises(PgqueueError, match="swallowed the error of an enqueue"):
        await task.enqueue()
    with pytest.raises(PgqueueError, match="swallowed the error of an enqueue"):
        task.enqueue_sync()
    assert said == ["DatabaseUnreachableError"] * 2


async def test_what_it_yields_must_be_a_job(app: App, dsn: str) -> None:
    @app.around_enqueue
    def forgetful(spec: JobSpec) -> Iterator[Any]:
        yield None

    task = app.task(name="t", retry=Fixed(0))(lambda: None)
    with pytest.raises(TypeError, match="forgetful must yield the JobSpec to be enqueued, not NoneType"):
        await task.enqueue()
    with pytest.raises(TypeError, match="forgetful"):
        task.enqueue_sync()
    assert await query(dsn, "SELECT count(*) FROM pgqueue.jobs") == [(0,)]


async def test_sql_and_the_client_write_what_they_are_given(app: App) -> None:
    @app.around_enqueue
    def tagged(spec: JobSpec) -> Iterator[JobSpec]:
        yield spec.with_meta(tenant="a")

    job_id = await app.aclient.enqueue(JobSpec.make("t"))
    assert (await app.job(job_id).refresh()).meta == {}
