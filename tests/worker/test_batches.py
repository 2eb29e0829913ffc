"""Batch handlers: how batches fill, how each job of one ends, and that every job has exactly one outcome."""

from __future__ import annotations

import asyncio
import os
import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

import pytest
from pydantic import BaseModel

from pgqueue import (
    App,
    Cancel,
    Dead,
    Fixed,
    InvalidJobError,
    InvalidPayloadError,
    Job,
    Jobs,
    JobSpec,
    PgqueueError,
    Retry,
    Settings,
    Snooze,
    current_job,
)
from pgqueue.run import BatchRun, Run
from pgqueue.worker.batches import BatchExecutor
from worker import composed_tasks
from worker.support import execute, in_state, query, until, working

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pgqueue import BatchTask

Kind = Literal["async", "thread"]
KINDS: tuple[Kind, ...] = ("async", "thread")


class Doc(BaseModel):
    id: int
    text: str = ""


class Calls:
    """A batch handler of either kind, the calls that were made of it, and a gate that holds them."""

    def __init__(
        self, app: App, kind: Kind, answer: Callable[[list[int]], Any] = lambda _: None, **options: Any
    ) -> None:
        self.made: list[list[int]] = []
        self.batches: list[Jobs] = []
        self.gate = threading.Event()
        self.gate.set()

        def begin(items: list[int], jobs: Jobs) -> None:
            self.made.append(items)
            self.batches.append(jobs)

        if kind == "async":

            async def handler(items: list[int], jobs: Jobs) -> Any:
                begin(items, jobs)
                while not self.gate.is_set():  # noqa: ASYNC110 - threads wait for it too
                    await asyncio.sleep(0.01)
                return answer(items)
        else:

            def handler(items: list[int], jobs: Jobs) -> Any:  # type: ignore[misc]
                begin(items, jobs)
                self.gate.wait(30)
                return answer(items)

        self.task: BatchTask[int, Any] = app.task(name="numbers", **options)(handler)

    async def enqueue(self, *items: int) -> list[Job]:
        return await self.task.app.enqueue_many([self.task.job(item) for item in items])


async def states(dsn: str) -> list[tuple[Any, ...]]:
    return await query(dsn, "SELECT state, attempt FROM pgqueue.all_jobs ORDER BY id")


# -- filling ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slots", [1, 10])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_backlog_is_run_in_full_batches(app: App, kind: Kind, slots: int) -> None:
    calls = Calls(app, kind, batch=100, linger="100ms")
    await calls.enqueue(*range(1_000))
    async with working(app, slots=slots):
        await until(lambda: sum(map(len, calls.made)) == 1_000, "all have run", within=30)
        assert sorted(item for items in calls.made for item in items) == list(range(1_000))
        assert len(calls.made) <= 12
        assert max(map(len, calls.made)) == 100


async def test_among_other_tasks_batches_fill_too(app: App) -> None:
    calls = Calls(app, "async", batch=100, linger="50ms")
    seen = []

    @app.task(name="one")
    async def one(n: int) -> None:
        seen.append(n)

    await app.enqueue_many([spec for n in range(500) for spec in (calls.task.job(n), one.job(n))])
    async with working(app, slots=2):
        await until(lambda: sum(map(len, calls.made)) == len(seen) == 500, "all have run", within=30)
    assert len(calls.made) <= 25


async def test_one_call_takes_one_slot_and_no_more_is_claimed_than_calls_could_take(app: App, dsn: str) -> None:
    calls = Calls(app, "async", batch=10, linger="1m")
    calls.gate.clear()
    await calls.enqueue(*range(200))
    async with working(app, slots=2) as worker:
        await until(lambda: len(calls.made) == 2, "two calls run")
        assert worker.executor.running == 2
        for _ in range(5):  # it looks again, and wants no more
            worker.executor.hungry.set()
            await asyncio.sleep(0)
        assert worker.executor.wants() == 0
        assert await query(dsn, "SELECT count(*) FROM pgqueue.jobs WHERE state = 'running'") == [(20,)]
        calls.gate.set()


async def test_a_batch_waits_for_more_and_begins_at_once_when_it_is_full(app: App) -> None:
    calls = Calls(app, "async", batch=3, linger="1m")
    async with working(app):
        first = await calls.enqueue(1, 2)
        for job in first:
            await in_state(job, "running")
        assert calls.made == []
        (last,) = await calls.enqueue(3)
        await in_state(last, "completed")
        assert [sorted(items) for items in calls.made] == [[1, 2, 3]]


async def test_a_batch_that_does_not_fill_begins_when_its_first_job_has_lingered(app: App) -> None:
    calls = Calls(app, "async", batch=3, linger="200ms")
    async with working(app):
        loop = asyncio.get_running_loop()
        began = loop.time()
        jobs = await calls.enqueue(1, 2)
        assert [await job.result(10) for job in jobs] == [None, None]
        assert loop.time() - began >= 0.2
        assert [sorted(items) for items in calls.made] == [[1, 2]]


async def test_a_batch_that_waits_for_a_slot_takes_what_comes_meanwhile(app: App) -> None:
    calls = Calls(app, "async", batch=2)
    run = await running_executor(app, calls, slots=1)
    run.put(*jobs_of(calls, run, 1, 2))
    run.put(*jobs_of(calls, run, 3))
    run.put(*jobs_of(calls, run, 4, 5))
    await run.over(5)
    assert calls.made == [[1, 2], [3, 4], [5]]


# -- how each job ends -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
async def test_a_list_gives_each_job_its_result_or_its_failure(app: App, kind: Kind) -> None:
    ends = {
        0: "fine", 1: None, 2: ValueError("two"), 3: Snooze("1h"), 4: Cancel("no need"), 5: Dead("never"),
        6: Retry("1h", "later"), 7: {"a": 1},
    }  # fmt: skip
    calls = Calls(app, kind, lambda items: [ends[item] for item in items], batch=8, linger="1m", retry=Fixed("1h"))
    async with working(app):
        jobs = await calls.enqueue(*ends)
        records = [await in_state(job, "completed", "retrying", "scheduled", "cancelled", "dead") for job in jobs]
    assert len(calls.made) == 1
    assert [record.state for record in records] == [
        "completed", "completed", "retrying", "scheduled", "cancelled", "dead", "retrying", "completed",
    ]  # fmt: skip
    assert [record.result for record in records if record.state == "completed"] == ["fine", None, {"a": 1}]
    assert [(e["type"], e["message"]) for e in records[2].errors] == [("ValueError", "two")]
    assert [record.attempt for record in records] == [1, 1, 1, 0, 1, 1, 1, 1]


@pytest.mark.parametrize("kind", KINDS)
async def test_an_exception_fails_every_job_by_its_own_attempts(app: App, kind: Kind) -> None:
    def answer(items: list[int]) -> None:
        raise LookupError(f"all {len(items)}")

    calls = Calls(app, kind, answer, batch=3, linger="1m", retry=Fixed("1h"), max_attempts=3)
    specs = [calls.task.job(1), calls.task.options(max_attempts=1).job(2), calls.task.job(3)]
    async with working(app):
        jobs = await app.enqueue_many(specs)
        records = [await in_state(job, "retrying", "dead") for job in jobs]
    assert [record.state for record in records] == ["retrying", "dead", "retrying"]
    for record in records:
        (error,) = record.errors
        assert (error["type"], error["message"], error["attempt"]) == ("LookupError", "all 3", 1)
        assert "answer" in error["traceback"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("answer", "words"), [([1], "1 results for 2 jobs"), ({"a": 1}, "not dict"), ("ab", "not str")]
)
async def test_an_answer_that_says_nothing_of_each_job_fails_them(
    app: App, kind: Kind, answer: Any, words: str
) -> None:
    calls = Calls(app, kind, lambda _: answer, batch=2, linger="1m", max_attempts=1)
    async with working(app):
        for job in await calls.enqueue(1, 2):
            (error,) = (await in_state(job, "dead")).errors
            assert error["type"] == "BatchResultError"
            assert words in error["message"]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_payload_that_does_not_fit_is_dead_and_the_others_run(app: App, kind: Kind) -> None:
    calls = Calls(app, kind, lambda items: [item * 10 for item in items], batch=3, linger="1m")
    async with working(app):
        jobs = await app.enqueue_many([
            calls.task.job(1), JobSpec.make("numbers", {"not": "a number"}), calls.task.job(3),
        ])  # fmt: skip
        assert [await jobs[0].result(10), await jobs[2].result(10)] == [10, 30]
        record = await in_state(jobs[1], "dead")
    assert record.errors[0]["type"] == "InvalidPayloadError"
    assert calls.made == [[1, 3]]


async def test_payloads_that_all_do_not_fit_call_nothing(app: App) -> None:
    calls = Calls(app, "async", batch=2)
    async with working(app):
        for job in await app.enqueue_many([JobSpec.make("numbers", "x"), JobSpec.make("numbers", "y")]):
            await in_state(job, "dead")
    assert calls.made == []


@pytest.mark.parametrize("kind", KINDS)
async def test_the_timeout_is_that_of_the_whole_call(app: App, kind: Kind) -> None:
    calls = Calls(app, kind, batch=2, linger="1m", timeout="1h", retry=Fixed("1h"))
    calls.gate.clear()
    async with working(app) as worker:
        jobs = await app.enqueue_many([calls.task.options(timeout=0.1).job(1), calls.task.job(2)])
        for job in jobs:
            (error,) = (await in_state(job, "retrying")).errors
            assert error["type"] == "JobTimeoutError"
        assert worker.executor.running == 0
        calls.gate.set()  # a thread goes on, and what it answers now is dropped
        await until(lambda: worker.executor._threads.busy == 0, "the thread has ended")
        await worker.finisher.drained()
        assert await states(app.settings.dsn) == [("retrying", 1)] * 2


# -- cancelling, leases, stopping ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
async def test_a_cancel_of_one_job_marks_it_and_the_others_go_on(app: App, kind: Kind) -> None:
    def answer(items: list[int]) -> list[Any]:
        (jobs,) = calls.batches
        return [Cancel("seen") if job.cancelled else item for job, item in zip(jobs, items, strict=True)]

    calls = Calls(app, kind, answer, batch=3, linger="1m")
    calls.gate.clear()
    async with working(app):
        jobs = await calls.enqueue(1, 2, 3)
        await until(lambda: calls.made, "it runs")
        assert await jobs[1].cancel() == "running"
        await until(lambda: calls.batches[0][1].cancelled, "it is marked")
        assert [job.cancelled for job in calls.batches[0]] == [False, True, False]
        calls.gate.set()
        assert [(await in_state(job, "completed", "cancelled")).result for job in jobs] == [1, None, 3]
        assert (await jobs[1].refresh()).state == "cancelled"


async def test_a_call_whose_jobs_are_all_cancelled_is_interrupted(app: App) -> None:
    calls = Calls(app, "async", batch=2, linger="1m")
    calls.gate.clear()
    async with working(app):
        jobs = await calls.enqueue(1, 2)
        await until(lambda: calls.made, "it runs")
        for job in jobs:
            await job.cancel()
        for job in jobs:
            assert (await in_state(job, "cancelled")).errors[0]["type"] == "Cancelled"


async def test_a_job_that_is_cancelled_while_its_batch_fills_does_not_run(app: App) -> None:
    calls = Calls(app, "async", batch=2, linger="1m")
    async with working(app):
        (first,) = await calls.enqueue(1)
        await in_state(first, "running")
        await first.cancel()
        await in_state(first, "cancelled")
        await asyncio.gather(*(in_state(job, "completed") for job in await calls.enqueue(2, 3)))
    assert [sorted(items) for items in calls.made] == [[2, 3]]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_lost_lease_marks_its_job_and_the_others_land(
    app: App, dsn: str, kind: Kind, caplog: pytest.LogCaptureFixture
) -> None:
    calls = Calls(app, kind, batch=2, linger="1m")
    calls.gate.clear()
    async with working(app) as worker:
        worker._sweep = nothing  # type: ignore[method-assign]
        jobs = await calls.enqueue(1, 2)
        await until(lambda: calls.made, "it runs")
        await execute(dsn, f"UPDATE pgqueue.jobs SET lease_token = 7 WHERE id = {jobs[0].id}")
        worker.hand.look_again(jobs[0].id)
        worker.renewer.wake()
        await until(lambda: calls.batches[0][0].cancelled, "it is marked")
        assert not calls.batches[0][1].cancelled
        calls.gate.set()
        await in_state(jobs[1], "completed")
        assert (await jobs[0].refresh()).state == "running", "the stale run has changed nothing"
        assert "before the outcome landed" not in caplog.text, "its outcome is not even sent"
        await execute(dsn, "UPDATE pgqueue.jobs SET state = 'available', lease_token = NULL, lease_until = NULL,"
                           " worker = NULL")  # fmt: skip


async def nothing() -> None:
    pass


async def test_a_stop_gives_back_what_has_gathered_at_once(app: App, dsn: str) -> None:
    calls = Calls(app, "async", batch=3, linger="1m")
    async with working(app) as worker:
        for job in await calls.enqueue(1, 2):
            await in_state(job, "running")
        worker.stop()
        await asyncio.wait_for(worker.executor.idle.wait(), 2)
    assert await states(dsn) == [("available", 0)] * 2
    assert calls.made == []


@pytest.mark.parametrize("kind", KINDS)
async def test_a_stop_lets_a_running_call_end(app: App, dsn: str, kind: Kind) -> None:
    calls = Calls(app, kind, batch=2)
    calls.gate.clear()
    async with working(app) as worker:
        await calls.enqueue(1, 2)
        await until(lambda: sum(map(len, calls.made)) == 2, "they run")
        worker.stop()
        calls.gate.set()
        await asyncio.wait_for(worker.executor.idle.wait(), 5)
        await worker.finisher.drained()
    assert await states(dsn) == [("completed", 1)] * 2


@pytest.mark.parametrize("kind", KINDS)
async def test_a_stop_in_a_hurry_gives_the_jobs_of_a_running_call_back(app: App, dsn: str, kind: Kind) -> None:
    calls = Calls(app, kind, batch=2, linger="1m")
    calls.gate.clear()
    async with working(app) as worker:
        await calls.enqueue(1, 2)
        await until(lambda: calls.made, "it runs")
        worker.stop(now=True)
        await asyncio.wait_for(worker.executor.idle.wait(), 10)
    assert worker._gave_back == 2
    assert all(job.cancelled for job in calls.batches[0]), "a thread can see it"
    assert await states(dsn) == [("available" if kind == "async" else "scheduled", 0)] * 2
    calls.gate.set()


# -- those that end their worker ------------------------------------------------------------------------------------


@pytest.fixture
def composed(app: App) -> Iterator[tuple[App, Path]]:
    composed_tasks.app.configure(app.settings)
    log = composed_tasks.log_file()
    log.touch()
    yield composed_tasks.app, log
    log.unlink()
    composed_tasks.app.configure(Settings(dsn="dbname=nowhere"))


async def test_a_job_that_has_ended_workers_runs_alone_in_a_child_process(composed: tuple[App, Path], dsn: str) -> None:
    app, log = composed
    jobs = await app.enqueue_many([composed_tasks.batched.options(max_attempts=1).job(n) for n in (12, 13)])
    await execute(dsn, """UPDATE pgqueue.jobs SET errors = '[{"type": "HandlerCrashedError"}]'""")
    async with working(app, slots=2):
        assert await jobs[0].result(60) != os.getpid()
        record = await in_state(jobs[1], "dead", within=60)
        assert record.errors[-1]["type"] == "HandlerCrashedError"
    lines = [line.split(" ", 2)[2] for line in log.read_text().splitlines()]
    assert {"batch [12]", "batch [13]"} <= set(lines)
    await app.aclose()


# -- the jobs of a batch ---------------------------------------------------------------------------------------------


async def test_a_handler_has_its_jobs_but_no_single_one(app: App) -> None:
    seen: list[Any] = []

    @app.task(name="t", batch=2, linger="1m", queue="q")
    async def task(jobs: Jobs, items: list[int]) -> None:
        seen.append((jobs.task, jobs.queue, len(jobs), [job.payload for job in jobs], items))
        seen.append([job.attempt for job in jobs])
        jobs[0].progress(0.5, "half")
        with pytest.raises(PgqueueError, match=r"batch of jobs.*pgqueue\.Jobs"):
            current_job()

    async with working(app):
        jobs = await app.enqueue_many([task.job(1), task.job(2)])
        assert [await job.result(10) for job in jobs] == [None, None]
        assert (await jobs[0].refresh()).progress == {"value": 0.5, "note": "half"}
    assert seen == [("t", "q", 2, [1, 2], [1, 2]), [1, 1]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("then", ["return", "raise"])
async def test_the_handlers_writes_and_all_completions_commit_together(
    app: App, dsn: str, kind: Kind, then: str
) -> None:
    await execute(dsn, "CREATE TABLE effects (value int)")

    def end() -> None:
        if then == "raise":
            raise RuntimeError("after")

    if kind == "async":

        @app.task(name="t", batch=2, linger="1m")
        async def task(items: list[int], jobs: Jobs) -> None:
            async with jobs.transaction() as connection:
                for item in items:
                    await connection.execute("INSERT INTO effects VALUES (%s)", [item])
                jobs[0].set_result("first")
            end()
    else:

        @app.task(name="t", batch=2, linger="1m")
        def task(items: list[int], jobs: Jobs) -> None:
            with jobs.transaction() as connection:
                for item in items:
                    connection.execute("INSERT INTO effects VALUES (%s)", [item])
                jobs[0].set_result("first")
            end()

    async with working(app):
        jobs = await app.enqueue_many([task.job(1), task.job(2)])
        assert [await job.result(10) for job in jobs] == ["first", None]
    assert await query(dsn, "SELECT value FROM effects ORDER BY 1") == [(1,), (2,)]
    assert await states(dsn) == [("completed", 1)] * 2


async def test_one_lost_lease_rolls_the_transaction_of_all_back(app: App, dsn: str) -> None:
    await execute(dsn, "CREATE TABLE effects (value int)")
    inside, go = asyncio.Event(), asyncio.Event()

    @app.task(name="t", batch=2, linger="1m", retry=Fixed("1h"))
    async def task(items: list[int], jobs: Jobs) -> None:
        async with jobs.transaction() as connection:
            await connection.execute("INSERT INTO effects VALUES (%s)", [len(items)])
            inside.set()
            await go.wait()

    async with working(app, lease=timedelta(seconds=30)) as worker:
        worker._sweep = nothing  # type: ignore[method-assign]
        jobs = await app.enqueue_many([task.job(1), task.job(2)])
        await asyncio.wait_for(inside.wait(), 10)
        await execute(dsn, f"UPDATE pgqueue.jobs SET lease_token = 7 WHERE id = {jobs[0].id}")
        go.set()
        assert (await in_state(jobs[1], "retrying")).errors[0]["type"] == "LeaseLostError"
    assert await query(dsn, "SELECT value FROM effects") == []
    await execute(dsn, "UPDATE pgqueue.jobs SET state = 'available', lease_token = NULL, lease_until = NULL,"
                       " worker = NULL WHERE lease_token = 7")  # fmt: skip


# -- the task --------------------------------------------------------------------------------------------------------


def test_a_call_enqueues_one_item_and_is_checked() -> None:
    app = App("host=nowhere")

    @app.task(name="index", batch=10)
    def index(docs: list[Doc]) -> int:
        return len(docs)

    assert index.job(Doc(id=1)).payload == '{"id":1,"text":""}'
    assert index([Doc(id=1), Doc(id=2)]) == 2
    for bad in ((), (Doc(id=1), Doc(id=2)), ("x",)):
        with pytest.raises(InvalidPayloadError):
            index.job(*bad)  # type: ignore[arg-type]
    with pytest.raises(InvalidPayloadError):
        index.job(docs=[Doc(id=1)])  # type: ignore[call-arg]


def a(items: list[int]) -> None: ...
def b(items: int) -> None: ...
def c(items: list[int], more: list[int]) -> None: ...
def d(items: list[int], job: Job) -> None: ...
def e() -> None: ...
def f(*items: int) -> None: ...


@pytest.mark.parametrize(
    ("function", "options", "words"),
    [
        (a, {"batch": 0}, "1 to 10000"), (a, {"batch": True}, "1 to 10000"), (a, {"batch": 10_001}, "1 to 10000"),
        (a, {"batch": 2, "linger": -1}, "linger"), (a, {"batch": 2, "isolation": "process"}, "do not go together"),
        (a, {"batch": 2, "raw": True}, "annotate list"), (b, {"batch": 2}, "annotated list"),
        (c, {"batch": 2}, "exactly one parameter"), (d, {"batch": 2}, "annotate pgqueue.Jobs"),
        (e, {"batch": 2}, "exactly one parameter"), (f, {"batch": 2}, "annotated list"),
        (a, {"linger": 1}, "linger is for tasks with batch"), (a, {"batch": None}, "1 to 10000"),
    ],
)  # fmt: skip
def test_an_option_or_signature_without_meaning_is_refused(
    function: Callable[..., Any], options: dict[str, Any], words: str
) -> None:
    app = App("host=nowhere")
    with pytest.raises(InvalidJobError, match=words):
        app.task(**options)(function)
    assert app.tasks == {}


# -- the executor alone ----------------------------------------------------------------------------------------------


class Running:
    """A BatchExecutor whose outcomes are kept here."""

    def __init__(self, executor: BatchExecutor, ended: list[int]) -> None:
        self.executor = executor
        self.ended = ended
        self.put = lambda *runs: executor.put(list(runs))

    async def over(self, count: int) -> None:
        await until(lambda: len(self.ended) == count, "all have ended")
        await self.executor.shut_down()


async def running_executor(app: App, calls: Calls, slots: int) -> Running:
    from pgqueue.worker.compose import compose

    ended: list[int] = []
    tasks = {"numbers": compose(calls.task, [], {})}
    return Running(BatchExecutor(app, slots, lambda run, _: ended.append(run.id), tasks=tasks), ended)


def jobs_of(calls: Calls, run: Running, *items: int) -> list[Run]:
    app = calls.task.app
    return [Run((5, None, n, "default", "numbers", str(n), 1, 10, None, None, False), 1, app) for n in items]


async def test_how_much_is_claimed_follows_from_the_mix_and_at_most_doubles(app: App) -> None:
    calls = Calls(app, "async", batch=100, linger="1m")
    app.task(name="one")(lambda: None)
    run = await running_executor(app, calls, slots=4)
    assert run.executor.wants() == 4, "of what sort the first ones are, nobody knows"
    run.put(*jobs_of(calls, run, *range(4)))
    assert run.executor.wants() == 8
    run.put(*jobs_of(calls, run, *range(4, 12)))
    assert run.executor.wants() == 16
    run.executor.close()
    assert len(run.ended) == 12, "given back"
    assert run.executor.wants() == 0
    await run.executor.shut_down()


async def test_what_has_gathered_is_not_claimed_once_more(app: App) -> None:
    calls = Calls(app, "async", batch=10, linger="1m")
    run = await running_executor(app, calls, slots=2)
    assert (run.executor.wants(), run.executor.soon) == (20, 20)
    run.put(*jobs_of(calls, run, *range(5)))
    assert (run.executor.wants(), run.executor.soon) == (15, 15)
    run.executor.close()
    await run.executor.shut_down()


def test_a_batch_says_what_it_is() -> None:
    app = App("host=nowhere")
    batch = BatchRun(Run((5, None, 7, "q", "t", "1", 1, 10, None, None, False), 1, app))
    assert repr(batch) == "<BatchRun of 1 jobs (t)>"
    assert batch.facts() == {"task": "t", "queue": "q", "jobs": 1}
    assert repr(Jobs(app, batch)) == "<Jobs 7>"
