"""How runs start and end: results, errors, verdicts, retries, timeouts, cancels, progress, transactions."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

import pytest

from pgqueue import (
    App,
    Cancel,
    Dead,
    Exponential,
    Fixed,
    InvalidPayloadError,
    Job,
    JobFailedError,
    JobSpec,
    LeaseLostError,
    PgqueueError,
    Retry,
    Snooze,
    current_job,
    never,
)
from pgqueue.outcome import describe_error, dump_result
from worker import handlers
from worker.handlers import FarFromException, WorseError, make_error, make_value
from worker.support import LEASE, execute, in_state, make_app, query, until, working

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pgqueue import Task

Kind = Literal["async", "thread", "process"]
KINDS: tuple[Kind, ...] = ("async", "thread", "process")
VALUES = (
    "none", "plain", "nul", "escaped nul", "surrogate", "nan", "huge", "set", "model", "opaque", "unspeakable",
    "big number", "bytes", "deep", "odd keys",
)  # fmt: skip
ERRORS = {
    "plain": ("ValueError", "wrong value"),
    "system exit": ("SystemExit", "3"),
    "keyboard interrupt": ("KeyboardInterrupt", ""),
    "base exception": ("FarFromException", "far"),
    "broken str": ("BrokenStrError", "<its __str__ failed>"),
    "nul": ("ValueError", "a\N{REPLACEMENT CHARACTER}b?c"),
    "long": ("ValueError", "x" * 2000 + "… (10000000 characters)"),
    "group": ("ExceptionGroup", "several (2 sub-exceptions)"),
    "unpicklable": ("OddError", "1 and 2"),
}


def slots_for(kind: Kind) -> int:
    """A child process takes its time to start: one is enough."""
    return 1 if kind == "process" else 10


def register(app: App, kind: Kind, function: Callable[..., Any], **options: Any) -> Task[..., Any]:
    """The same function as a task of each kind."""
    if kind == "process":
        return app.task(isolation="process", **options)(function)
    if kind == "thread":
        return app.task(**options)(function)

    async def handler(**kwargs: Any) -> Any:
        return function(**kwargs)

    return app.task(name=f"async {function.__name__}", **options)(handler)


# -- results ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
async def test_a_result_of_any_sort_completes_the_job(app: App, kind: Kind) -> None:
    task = register(app, kind, handlers.return_value)
    async with working(app, slots=slots_for(kind)):
        jobs = await app.enqueue_many([task.job(kind=value) for value in VALUES])
        results = {
            value: (await in_state(job, "completed", within=60)).result for value, job in zip(VALUES, jobs, strict=True)
        }
    assert results["none"] is None
    assert results["plain"] == make_value("plain")
    assert results["nul"] == {
        "a\N{REPLACEMENT CHARACTER}b": "c\N{REPLACEMENT CHARACTER}d",
        "deep": [{"x": "\N{REPLACEMENT CHARACTER}"}],
    }
    assert results["escaped nul"] == r"\u0000 is only text"
    assert "surrogates" in results["surrogate"]["note"]
    assert results["nan"] == [None, None, 1.0]
    assert results["huge"]["note"] == "result of 100000002 bytes is over the limit of 1048576"
    assert results["huge"]["start"].startswith('"xxx')
    assert results["set"] == ["one"]
    assert results["model"] == {"x": 1, "name": "p"}
    assert results["opaque"]["repr"] == "<an opaque thing>"
    assert results["unspeakable"]["repr"] == "<list>"
    assert results["big number"]["repr"] == str(10**40)
    assert "bytes" in results["bytes"]["note"]
    assert results["deep"]["note"].startswith("not JSON")
    assert results["odd keys"]["note"].startswith("not JSON")


# -- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
async def test_an_exception_of_any_sort_fails_its_job_and_nothing_else(app: App, kind: Kind) -> None:
    task = register(app, kind, handlers.raise_error, max_attempts=1)
    neighbour = register(app, kind, handlers.return_value)
    async with working(app, slots=1 if kind == "process" else 3):
        jobs = {error: await task.enqueue(kind=error) for error in ERRORS}
        for error, (name, message) in ERRORS.items():
            record = await in_state(jobs[error], "dead", within=60)
            (kept,) = record.errors
            assert (kept["type"], kept["message"]) == (name, message)
            assert kept["attempt"] == 1
            assert "raise_error" in kept["traceback"], "the traceback tells where in the handler it was raised"
        assert await (await neighbour.enqueue(kind="plain")).result(30) == make_value("plain")


@pytest.mark.parametrize("kind", ["async", "thread"])
@pytest.mark.parametrize("error", [asyncio.CancelledError, GeneratorExit, StopIteration, MemoryError])
async def test_an_exception_with_a_meaning_for_python_is_a_failure_like_any_other(
    app: App, kind: Kind, error: type[BaseException]
) -> None:
    def handler() -> None:
        raise error("mine")

    task = register(app, kind, handler, max_attempts=1)
    async with working(app, slots=1):
        record = await in_state(await task.enqueue(), "dead")
        again = await in_state(await task.enqueue(), "dead")
    # PEP 479 turns a StopIteration that leaves a coroutine into a RuntimeError
    expected = "RuntimeError" if (kind, error) == ("async", StopIteration) else error.__name__
    assert record.errors[0]["type"] == again.errors[0]["type"] == expected


def test_an_error_or_result_whose_text_ends_the_process_ends_nothing() -> None:
    class Hostile(Exception):  # noqa: N818
        def __str__(self) -> str:
            raise SystemExit(5)

        __repr__ = __str__

    described = dumped = ""
    with contextlib.suppress(BaseException):  # in a handler's slot it would end the worker; here, pytest
        described = describe_error(Hostile(), 1)
        dumped = dump_result([Hostile()])
    assert "Hostile" in described
    assert "not JSON" in dumped


async def test_a_cancel_that_the_handler_raised_itself_is_a_failed_attempt(app: App) -> None:
    @app.task(retry=Fixed(0))
    async def gives_up_once(job: Job) -> int:
        if job.attempt == 1:
            raise asyncio.CancelledError
        return job.attempt

    async with working(app):
        job = await gives_up_once.enqueue()
        assert await job.result(30) == 2
        assert (await job.refresh()).errors[0]["type"] == "CancelledError"


async def test_every_attempt_is_used_then_the_job_is_dead_with_every_error_kept(app: App) -> None:
    @app.task(retry=Fixed(0.01), max_attempts=4)
    async def fail(job: Job) -> None:
        raise ValueError(f"attempt {job.attempt}")

    async with working(app):
        record = await in_state(await fail.enqueue(), "dead")
    assert record.attempt == 4
    assert [error["attempt"] for error in record.errors] == [1, 2, 3, 4]
    assert [error["message"] for error in record.errors] == [f"attempt {n}" for n in (1, 2, 3, 4)]
    assert all("ValueError" in error["traceback"] and error["at"] for error in record.errors)


@pytest.mark.parametrize(("attempt", "seconds"), [(1, 2), (2, 4), (3, 8), (4, 16), (5, 32), (11, 2048)])
async def test_the_wait_doubles_with_every_attempt_within_its_jitter(app: App, attempt: int, seconds: float) -> None:
    @app.task(max_attempts=20)
    async def fail() -> None:
        raise ValueError

    jobs = await app.enqueue_many([fail.job() for _ in range(30)])
    await execute(app.settings.dsn, "UPDATE pgqueue.jobs SET attempt = %s", attempt - 1)
    async with working(app):
        for job in jobs:
            await in_state(job, "retrying")
    waits = await query(
        app.settings.dsn,
        "SELECT extract(epoch FROM run_at - now())::float8, (errors->-1->>'at')::timestamptz FROM pgqueue.jobs",
    )
    delays = [wait for wait, _ in waits]
    assert all(0.9 * seconds - 10 <= delay <= 1.1 * seconds for delay in delays)
    delays = [retry_delay(attempt) for _ in range(1000)]
    assert all(0.9 * seconds <= delay <= 1.1 * seconds for delay in delays)
    assert max(delays) - min(delays) > 0.1 * seconds, "they are spread"


def retry_delay(attempt: int) -> float:
    return Exponential().delay(attempt).total_seconds()


async def test_the_wait_has_a_cap_even_at_the_highest_attempt(app: App) -> None:
    @app.task(max_attempts=32_767, retry=Exponential(cap="1m"))
    async def fail() -> None:
        raise ValueError

    job = await fail.enqueue()
    await execute(app.settings.dsn, "UPDATE pgqueue.jobs SET attempt = 32765")
    async with working(app):
        record = await in_state(job, "retrying")
        assert record.attempt == 32_766
        assert record.run_at - record.started_at <= timedelta(seconds=61)
        await job.retry()
        assert (await in_state(job, "dead")).attempt == 32_767


@pytest.mark.parametrize("kind", KINDS)
async def test_the_policy_follows_the_most_specific_class_of_the_exception(app: App, kind: Kind) -> None:
    task = register(
        app,
        kind,
        handlers.raise_lookup_error,
        retry=Fixed("1h"),
        retry_on={LookupError: Fixed("2h"), WorseError: never},
    )
    async with working(app, slots=slots_for(kind)):
        worse, key, other = [await task.enqueue(kind=error) for error in ("worse", "key", "other")]
        await in_state(worse, "dead", within=60)
        hours = [await hours_until(job) for job in (key, other)]
    assert hours == [pytest.approx(2, abs=0.02), pytest.approx(1, abs=0.02)]


async def hours_until(job: Job) -> float:
    record = await in_state(job, "retrying")
    assert record.started_at is not None
    return (record.run_at - record.started_at) / timedelta(hours=1)


@pytest.mark.parametrize("kind", ["async", "thread"])
async def test_a_backoff_or_delay_without_meaning_still_ends_the_run(app: App, kind: Kind) -> None:
    class Backwards:
        def delay(self, attempt: int) -> timedelta:
            raise ZeroDivisionError(attempt)

    def handler(how: str) -> None:
        raise {"policy": ValueError("x"), "snooze": Snooze(-1), "retry": Retry("soon")}[how]

    task = register(app, kind, handler, retry=Backwards())
    async with working(app, slots=1) as worker:
        jobs = [await task.enqueue(how=how) for how in ("policy", "snooze", "retry")]
        for job in jobs:
            await in_state(job, "dead", "retrying", "available")
        await until(lambda: worker.executor.running == 0, "the slot is free")


# -- what does not fit ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
async def test_a_payload_that_does_not_fit_buries_the_job_at_once(app: App, kind: Kind) -> None:
    task = register(app, kind, handlers.my_pid) if kind == "process" else None
    if kind == "async":

        @app.task(name="t")
        async def typed(number: int) -> int:
            return number

        task = typed
    elif kind == "thread":
        task = app.task(name="t")(lambda number: number)
    assert task is not None
    async with working(app, slots=slots_for(kind)):
        job = app.job(await app.aclient.enqueue(JobSpec.make(task.name, {"no such": "parameter"})))
        record = await in_state(job, "dead", within=60)
    assert record.attempt == 1
    assert record.errors[0]["type"] == "InvalidPayloadError"


async def test_an_unknown_task_waits_while_others_go_on_for_a_worker_that_knows_it(dsn: str, app: App) -> None:
    @app.task(name="known")
    async def known() -> str:
        return "known"

    strange = app.job(await app.aclient.enqueue(JobSpec.make("strange", priority=0)))
    async with working(app, slots=1):
        assert await (await known.enqueue()).result(30) == "known"
        assert (await strange.refresh()).state == "available"
        assert (await strange.refresh()).attempt == 0
        other = make_app(dsn)
        other.task(name="strange")(lambda: "strange")
        async with working(other):
            assert await strange.result(30) == "strange"


# -- verdicts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
async def test_a_handler_may_say_how_its_run_ends(app: App, kind: Kind) -> None:
    task = register(app, kind, handlers.say)
    async with working(app, slots=slots_for(kind)):
        snoozed, retried, cancelled, dead = [
            await task.enqueue(verb=verb) for verb in ("snooze", "retry", "cancel", "dead")
        ]
        record = await in_state(snoozed, "scheduled", within=60)
        assert (record.attempt, record.errors) == (0, []), "a snooze costs no attempt"
        assert record.run_at - record.started_at >= timedelta(seconds=59)
        record = await in_state(retried, "retrying", within=60)
        assert (record.attempt, record.errors[0]["message"]) == (1, "not yet")
        assert record.run_at - record.started_at >= timedelta(minutes=59)
        record = await in_state(cancelled, "cancelled", within=60)
        assert record.errors[0]["message"] == "no need"
        record = await in_state(dead, "dead", within=60)
        assert (record.attempt, record.errors[0]["message"]) == (1, "never again")


async def test_a_job_may_snooze_more_often_than_it_has_attempts(app: App) -> None:
    runs = 0

    @app.task(max_attempts=1)
    async def patient(job: Job) -> int:
        nonlocal runs
        runs += 1
        if runs < 6:
            raise Snooze(0)
        return job.attempt

    async with working(app):
        assert await (await patient.enqueue()).result(30) == 1


async def test_a_retry_asked_for_on_the_last_attempt_is_the_end(app: App) -> None:
    @app.task(max_attempts=1)
    async def again() -> None:
        raise Retry(0)

    async with working(app):
        assert (await in_state(await again.enqueue(), "dead")).errors[0]["type"] == "Retry"


@pytest.mark.parametrize("verdict", [Dead, Cancel])
async def test_the_one_who_waits_for_a_result_learns_how_the_job_ended(app: App, verdict: type[Exception]) -> None:
    @app.task
    async def end() -> None:
        raise verdict("for good")

    async with working(app):
        job = await end.enqueue()
        with pytest.raises(JobFailedError, match=r"(dead|cancelled).*for good"):
            await job.result(30)


# -- timeouts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["task", "job"])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_timeout_fails_the_attempt_and_frees_the_slot(
    app: App, tmp_path: Path, kind: Kind, source: str
) -> None:
    end = threading.Event()
    options: dict[str, Any] = {"max_attempts": 1} | ({"timeout": 0.4} if source == "task" else {})
    if kind == "process":
        task = app.task(isolation="process", **options)(handlers.write_pid_and_sleep)
        warm = app.task(isolation="process")(handlers.my_pid)
    elif kind == "thread":
        task = app.task(name="t", **options)(lambda path: end.wait(30))
    else:

        @app.task(name="t", **options)
        async def task(path: str) -> None:
            await asyncio.sleep(30)

    async with working(app, slots=1) as worker:
        if kind == "process":  # a child takes longer to start than the timeout
            await (await warm.enqueue()).result(60)
        call = task.options(timeout=0.4) if source == "job" else task.options()
        record = await in_state(await call.enqueue(path=str(tmp_path / "pid")), "dead")
        assert record.errors[0]["type"] == "JobTimeoutError"
        assert "0.4s" in record.errors[0]["message"]
        assert record.finished_at - record.started_at < timedelta(seconds=25), "it would have gone on for 30"
        await until(lambda: worker.executor.running == 0, "the slot is free")
        end.set()


async def test_the_jobs_own_timeout_wins_over_that_of_its_task(app: App) -> None:
    @app.task(timeout=0.1, max_attempts=1)
    async def nap() -> str:
        await asyncio.sleep(0.5)
        return "slept"

    async with working(app):
        assert await (await nap.options(timeout=60).enqueue()).result(30) == "slept"
        await in_state(await nap.enqueue(), "dead")


async def test_a_timeout_is_retried_like_any_failure(app: App) -> None:
    @app.task(timeout=0.2, retry=Fixed(0))
    async def slow_once(job: Job) -> int:
        if job.attempt == 1:
            await asyncio.sleep(30)
        return job.attempt

    async with working(app):
        assert await (await slow_once.enqueue()).result(30) == 2


async def test_a_handler_that_cleans_up_after_its_timeout_does_not_disturb_the_next_job(app: App) -> None:
    @app.task(timeout=0.2, max_attempts=1)
    async def untidy() -> None:
        try:
            await asyncio.sleep(30)
        finally:
            await asyncio.sleep(0.2)

    @app.task
    async def tidy() -> str:
        await asyncio.sleep(0.2)
        return "undisturbed"

    async with working(app, slots=1):
        first, second = await untidy.enqueue(), await tidy.enqueue()
        await in_state(first, "dead")
        assert await second.result(30) == "undisturbed"


async def test_a_thread_that_hangs_is_abandoned_and_its_late_result_dropped(app: App) -> None:
    end = threading.Event()

    @app.task(timeout=0.2, retry=Fixed(0))
    def hang_once(job: Job) -> int:
        if job.attempt == 1:
            end.wait(30)
        return job.attempt

    async with working(app, slots=1) as worker:
        job = await hang_once.enqueue()
        assert await job.result(30) == 2
        end.set()
        await until(lambda: worker.executor._threads.busy == 0, "the thread is of use again")
        record = await job.refresh()
    assert (record.result, len(record.errors)) == (2, 1)


async def test_timeouts_of_ended_jobs_are_forgotten(app: App) -> None:
    @app.task(timeout="1h")
    async def quick() -> None:
        pass

    async with working(app) as worker:
        jobs = await app.enqueue_many([quick.job() for _ in range(5000)])
        await until(lambda: worker.executor._ended == len(jobs), "all have run")
        await until(lambda: len(worker.executor._deadlines) < 2000, "they are forgotten")
        await worker.finisher.drained()


# -- cancel ----------------------------------------------------------------------------------------------------------


async def test_a_waiting_job_is_cancelled_at_once(app: App) -> None:
    ran = False

    @app.task
    async def later() -> None:
        nonlocal ran
        ran = True

    job = await later.options(delay=0.3).enqueue()
    assert await job.cancel() == "cancelled"
    async with working(app):
        await asyncio.sleep(0.5)  # past its time: nothing to wait for, as nothing must happen
    assert not ran
    assert (await job.refresh()).state == "cancelled"


@pytest.mark.parametrize("kind", KINDS)
async def test_a_running_job_is_cancelled_long_before_the_next_renewal(app: App, tmp_path: Path, kind: Kind) -> None:
    if kind == "process":
        task = app.task(isolation="process")(handlers.write_pid_and_sleep)
    elif kind == "async":

        @app.task(name="t")
        async def task(path: str) -> None:
            tmp_path.joinpath("pid").touch()
            await asyncio.sleep(30)
    else:

        @app.task(name="t")
        def task(job: Job, path: str) -> None:
            tmp_path.joinpath("pid").touch()
            while not job.cancelled:
                time.sleep(0.005)
            raise InterruptedError

    async with working(app, lease=timedelta(minutes=5), slots=slots_for(kind)):  # so it is the bell that tells
        job = await task.enqueue(path=str(tmp_path / "pid"))
        await until(tmp_path.joinpath("pid").exists, "it runs", within=60)
        assert await job.cancel() == "running"
        record = await in_state(job, "cancelled")
    assert record.attempt == 1


async def test_without_the_bell_a_cancel_comes_with_the_next_renewal(app: App) -> None:
    @app.task
    async def wait() -> None:
        await asyncio.sleep(30)

    async with working(app, bell=False, lease=timedelta(seconds=LEASE)):
        job = await wait.enqueue()
        await in_state(job, "running")
        await job.cancel()
        await in_state(job, "cancelled")


async def test_a_job_that_is_claimed_but_waits_for_a_slot_is_cancelled_without_running(app: App) -> None:
    ran: list[str] = []
    go = asyncio.Event()

    @app.task(name="t")
    async def task(name: str) -> None:
        ran.append(name)
        await go.wait()

    async with working(app, slots=1) as worker:
        worker.executor._set_rate(1000)  # so it claims ahead
        worker.executor.tick = lambda: None  # type: ignore[method-assign]
        first, second = await app.enqueue_many([task.job(name="first"), task.job(name="second")])
        await in_state(second, "running")
        await until(lambda: ran == ["first"], "the first one runs")
        assert await second.cancel() == "running"
        await in_state(second, "cancelled")
        go.set()
        await in_state(first, "completed")
    assert ran == ["first"]


async def test_a_run_cancelled_on_its_way_to_a_slot_never_starts(app: App) -> None:
    ran = False

    @app.task
    async def never_runs() -> None:
        nonlocal ran
        ran = True

    async with working(app) as worker:
        put = worker.executor.put

        def put_and_cancel(runs: list[Any], *, first: bool) -> None:
            put(runs, first=first)
            for run in runs:
                worker.executor.cancel(run)

        worker.executor.put = put_and_cancel  # type: ignore[method-assign]
        await in_state(await never_runs.enqueue(), "cancelled")
    assert not ran


class Held:
    """A thread's handler that has started and waits until it is let go."""

    def __init__(self, verdict: BaseException | None = None) -> None:
        self.started, self.go = threading.Event(), threading.Event()
        self.verdict = verdict

    def run(self) -> str:
        self.started.set()
        self.go.wait(20)
        if self.verdict is not None:
            raise self.verdict
        return "finished"

    async def cancelled_in(self, app: App) -> Job:
        """Enqueue it, wait for its start, ask to cancel it."""
        job = app.job(await app.aclient.enqueue(JobSpec.make("held")))
        await until(self.started.is_set, "it runs")
        assert await job.cancel() == "running"
        return job


async def test_a_handler_that_finishes_in_spite_of_a_cancel_has_completed(app: App) -> None:
    held = Held()
    app.task(name="held")(held.run)
    async with working(app):
        job = await held.cancelled_in(app)
        held.go.set()
        assert await job.result(30) == "finished"


@pytest.mark.parametrize("verdict", [ValueError("x"), Retry(0), Snooze(0)])
async def test_a_cancelled_job_does_not_come_back(app: App, verdict: Exception) -> None:
    held = Held(verdict)
    app.task(name="held")(held.run)
    async with working(app):
        job = await held.cancelled_in(app)
        held.go.set()
        record = await in_state(job, "cancelled")
    assert record.attempt == 1


async def test_a_cancelled_job_that_is_given_back_is_cancelled(app: App) -> None:
    held = Held()
    app.task(name="held")(held.run)
    async with working(app) as worker:
        job = await held.cancelled_in(app)
        worker.stop(now=True)
        await in_state(job, "cancelled")
        held.go.set()


# -- inside a handler --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [handlers.facts, handlers.facts_async])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_handler_knows_its_job(app: App, kind: Kind, function: Callable[..., Any]) -> None:
    if (kind == "thread") == asyncio.iscoroutinefunction(function) and kind != "process":
        pytest.skip("this pair is another kind")
    task = app.task(name="facts", queue="q", max_attempts=7, isolation="process" if kind == "process" else None)(
        function
    )
    async with working(app, slots=slots_for(kind)):
        job = await task.options(meta={"trace": "abc"}).enqueue()
        assert await job.result(60) == [True, 1, 7, "facts", "q", {"trace": "abc"}, {}, False]


async def test_outside_a_handler_there_is_no_current_job(app: App) -> None:
    with pytest.raises(PgqueueError, match="no job is running here"):
        current_job()


async def test_the_slot_forgets_the_job_that_it_ran(app: App) -> None:
    seen: list[int] = []

    @app.task
    async def look() -> None:
        seen.append(current_job().id)
        await asyncio.sleep(0.01)
        seen.append(current_job().id)

    async with working(app, slots=2):
        jobs = await app.enqueue_many([look.job() for _ in range(6)])
        for job in jobs:
            await in_state(job, "completed")
    assert sorted(seen) == sorted(2 * [job.id for job in jobs])


@pytest.mark.parametrize("kind", KINDS)
async def test_progress_is_visible_while_the_handler_runs(app: App, tmp_path: Path, kind: Kind) -> None:
    flag = tmp_path / "go on"
    if kind == "async":

        @app.task
        async def task(job: Job, flag: str) -> str:
            job.progress(0.5, "half")
            while not flag_path.exists():  # noqa: ASYNC110 - the word comes through a file
                await asyncio.sleep(0.01)
            return "done"

        flag_path = flag
    else:
        task = app.task(isolation="process" if kind == "process" else None)(handlers.sleep_with_progress)
    async with working(app, slots=slots_for(kind)):
        job = await task.enqueue(flag=str(flag))
        record = await until(lambda: with_progress(job), "the progress is written", within=60)
        assert (record.state, record.progress) == ("running", {"value": 0.5, "note": "half"})
        flag.touch()
        assert await job.result(30) == "done"


async def with_progress(job: Job) -> Any:
    record = await job.refresh()
    return record if record.progress else None


async def test_progress_outside_its_range_is_refused(app: App) -> None:
    @app.task(max_attempts=1)
    async def overdo(job: Job) -> None:
        job.progress(1.5)

    async with working(app):
        assert "0.0 to 1.0" in (await in_state(await overdo.enqueue(), "dead")).errors[0]["message"]


# -- job.transaction() ------------------------------------------------------------------------------------------------


@pytest.fixture
async def effects(app: App) -> App:
    await execute(app.settings.dsn, "CREATE TABLE effects (value int)")
    return app


def transactional(app: App, kind: Kind) -> Task[..., Any]:
    if kind != "async":
        isolation: Any = "process" if kind == "process" else None
        return app.task(isolation=isolation, retry=Fixed(0), max_attempts=2)(handlers.insert_and_complete)

    @app.task(retry=Fixed(0), max_attempts=2)
    async def insert_and_complete(job: Job, value: int, then: str) -> str:
        job.set_result("from the transaction")
        async with job.transaction() as connection:
            await connection.execute("INSERT INTO effects VALUES (%s)", [value])
            if then == "raise inside":
                raise RuntimeError("inside")
        if then == "raise after":
            raise RuntimeError("after")
        return "from the handler"

    return insert_and_complete


@pytest.mark.parametrize("then", ["return", "raise after", "exit after"])
@pytest.mark.parametrize("kind", KINDS)
async def test_the_handlers_writes_and_the_completion_commit_together(effects: App, kind: Kind, then: str) -> None:
    if then == "exit after" and kind != "process":
        pytest.skip("it would end the tests")
    task = transactional(effects, kind)
    async with working(effects, slots=slots_for(kind)) as worker:
        record = await in_state(await task.enqueue(value=1, then=then), "completed", within=60)
        await until(lambda: worker.executor.running == 0, "the handler has ended")
        await worker.finisher.drained()
    assert (record.result, record.attempt) == ("from the transaction", 1)
    assert await query(effects.settings.dsn, "SELECT value FROM effects") == [(1,)]
    assert await query(effects.settings.dsn, "SELECT count(*) FROM pgqueue.all_jobs") == [(1,)]
    assert await query(effects.settings.dsn, "SELECT count(*) FROM pgqueue.leases") == [(0,)]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_handler_that_raises_in_its_transaction_leaves_nothing(effects: App, kind: Kind) -> None:
    task = transactional(effects, kind)
    async with working(effects, slots=slots_for(kind)):
        record = await in_state(await task.enqueue(value=1, then="raise inside"), "dead", within=60)
    assert [error["message"] for error in record.errors] == ["inside", "inside"]
    assert await query(effects.settings.dsn, "SELECT value FROM effects") == []


@pytest.mark.parametrize("kind", ["async", "thread"])
async def test_a_lease_lost_inside_the_transaction_rolls_everything_back(effects: App, kind: Kind) -> None:
    dsn = effects.settings.dsn
    seen: list[BaseException] = []
    inside, go = threading.Event(), threading.Event()

    if kind == "async":

        @effects.task(name="t")
        async def task(job: Job) -> None:
            try:
                async with job.transaction() as connection:
                    await connection.execute("INSERT INTO effects VALUES (%s)", [job.attempt])
                    inside.set()
                    await asyncio.to_thread(go.wait, 10)
            except LeaseLostError as error:
                seen.append(error)
                raise
    else:

        @effects.task(name="t")
        def task(job: Job) -> None:
            try:
                with job.transaction() as connection:
                    connection.execute("INSERT INTO effects VALUES (%s)", [job.attempt])
                    inside.set()
                    go.wait(10)
            except LeaseLostError as error:
                seen.append(error)
                raise

    async with working(effects, lease=timedelta(seconds=30)) as worker:  # long, so that the renewer does not tell first
        worker._sweep = nothing  # type: ignore[method-assign]
        job = await task.enqueue()
        await asyncio.to_thread(inside.wait, 10)
        token = (await query(dsn, "SELECT lease_token FROM pgqueue.jobs"))[0][0]
        await execute(dsn, "UPDATE pgqueue.jobs SET lease_token = 7 WHERE lease_token = %s", token)
        go.set()
        await until(lambda: len(seen) == 1, "it learns that its lease is lost")
        await until(lambda: worker.executor.running == 0, "it has ended")
        assert await query(dsn, "SELECT value FROM effects") == []
        assert (await job.refresh()).state == "running", "the stale run has changed nothing"
        await execute(dsn, "UPDATE pgqueue.jobs SET state = 'available', lease_token = NULL, lease_until = NULL")
        assert await job.result(30) is None
    assert await query(dsn, "SELECT value FROM effects") == [(2,)]


async def nothing() -> None:
    pass


async def test_an_isolated_handler_may_enqueue_and_wait_for_nothing_of_the_parent(app: App) -> None:
    task = app.task(isolation="process")(handlers.return_value)
    async with working(app, slots=2):
        jobs = await app.enqueue_many([task.job(kind="plain") for _ in range(6)])
        assert [await job.result(60) for job in jobs] == [make_value("plain")] * 6


def test_errors_and_values_of_every_sort_exist() -> None:
    assert isinstance(make_error("base exception"), FarFromException)
    assert InvalidPayloadError.__mro__
