"""Isolated handlers: a crash or a kill costs one job; children are recycled, and none outlives its worker."""

from __future__ import annotations

import asyncio
import importlib
import os
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pgqueue import Fixed, never
from pgqueue.worker import process
from worker import handlers
from worker.support import in_state, until, working

if TYPE_CHECKING:
    from pgqueue import App


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("how", "words"),
    [("exit", "exited with status 7"), ("SIGKILL", "killed by SIGKILL"), ("SIGSEGV", "killed by SIGSEGV")],
)
async def test_a_child_that_dies_costs_only_its_own_job(app: App, tmp_path: Path, how: str, words: str) -> None:
    dying = app.task(isolation="process", max_attempts=2, retry=Fixed(0))(handlers.exit_process)
    living = app.task(isolation="process")(handlers.sleep_with_progress)
    flag = tmp_path / "go on"
    async with working(app, slots=2):
        neighbour = await living.enqueue(flag=str(flag))
        await until(lambda: has_progress(neighbour), "the neighbour runs", within=60)
        record = await in_state(await dying.enqueue(how=how), "dead", within=60)
        assert [error["type"] for error in record.errors] == ["HandlerCrashedError"] * 2
        assert all(words in error["message"] for error in record.errors)
        assert (await neighbour.refresh()).state == "running"
        flag.touch()
        assert await neighbour.result(30) == "done"
        assert (await neighbour.refresh()).attempt == 1


@pytest.mark.parametrize(
    "kind",
    [
        *("EOFError", "OSError", "FileNotFoundError", "BrokenPipeError", "ConnectionResetError"),
        *("TimeoutError", "ResultTimeoutError"),
    ],
)
async def test_a_handler_that_raises_what_a_broken_pipe_would_raise_is_no_crash(app: App, kind: str) -> None:
    task = app.task(isolation="process", max_attempts=2, retry=never, retry_on={EOFError: Fixed(0), OSError: Fixed(0)})(
        handlers.raise_one_of_the_pipe
    )
    pid = app.task(isolation="process")(handlers.my_pid)
    async with working(app, slots=1):
        child = await (await pid.enqueue()).result(60)
        record = await in_state(await task.enqueue(kind=kind), "dead", within=60)
        assert await (await pid.enqueue()).result(60) == child, "its child goes on"
    assert [error["type"] for error in record.errors] == [kind] * 2, "its own retry_on holds"
    assert {error["message"] for error in record.errors} == {f"in {child}"}
    assert all("raise_one_of_the_pipe" in error["traceback"] for error in record.errors)


async def has_progress(job: object) -> bool:
    return (await job.refresh()).progress is not None  # type: ignore[attr-defined]


async def test_a_child_serves_many_jobs_and_is_replaced_after_enough(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_JOBS_PER_CHILD", 3)
    task = app.task(isolation="process")(handlers.my_pid)
    async with working(app, slots=1):
        pids = [await (await task.enqueue()).result(60) for _ in range(7)]
        served = [pids.count(pid) for pid in dict.fromkeys(pids)]
        assert max(served) <= 3
        assert len(served) < 7, "a child serves more than one"
        await until(lambda: not is_running(pids[0]), "the first child has ended")
    await until(lambda: not any(map(is_running, pids)), "no child is left when the worker has stopped")


async def test_a_timeout_kills_the_child_and_everything_it_started(app: App, tmp_path: Path) -> None:
    task = app.task(isolation="process", max_attempts=1)(handlers.write_family_and_sleep)
    path = tmp_path / "pids"
    async with working(app, slots=1):
        job = await task.options(timeout=2).enqueue(path=str(path))
        record = await in_state(job, "dead", within=60)
        assert record.errors[0]["type"] == "JobTimeoutError"
        family = [int(pid) for pid in path.read_text().split()]
        assert len(family) == 2
        await until(lambda: not any(map(is_running, family)), "the whole family is dead")


async def test_a_crash_leaves_nothing_that_the_handler_started(app: App, tmp_path: Path) -> None:
    task = app.task(isolation="process", max_attempts=1)(handlers.write_family_and_exit)
    path = tmp_path / "pids"
    async with working(app, slots=1):
        await in_state(await task.enqueue(path=str(path)), "dead", within=60)
        family = [int(pid) for pid in path.read_text().split()]
        await until(lambda: not any(map(is_running, family)), "the whole family is dead")


async def test_a_cancel_kills_the_child_and_everything_it_started(app: App, tmp_path: Path) -> None:
    task = app.task(isolation="process")(handlers.write_family_and_sleep)
    path = tmp_path / "pids"
    async with working(app, slots=1):
        job = await task.enqueue(path=str(path))
        await until(path.exists, "it runs", within=60)
        await job.cancel()
        await in_state(job, "cancelled")
        family = [int(pid) for pid in path.read_text().split()]
        await until(lambda: not any(map(is_running, family)), "the whole family is dead")


async def test_a_stop_gives_an_isolated_job_back_and_kills_its_child(app: App, tmp_path: Path) -> None:
    task = app.task(isolation="process")(handlers.write_pid_and_sleep)
    path = tmp_path / "pid"
    async with working(app, slots=1) as worker:
        job = await task.enqueue(path=str(path))
        await until(path.exists, "it runs", within=60)
        worker.stop(now=True)
        record = await in_state(job, "available", "scheduled")
    assert (record.attempt, record.errors) == (0, [])
    await until(lambda: not is_running(int(path.read_text())), "its child is dead")


async def test_a_timeout_counts_from_when_the_child_has_imported_the_handler(
    app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"slow_to_import_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text("import time\ntime.sleep(2)\ndef run() -> int:\n    return 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module(name)
    task = app.task(isolation="process", timeout=1, max_attempts=1)(module.run)
    async with working(app, slots=1):
        assert await (await task.enqueue()).result(60) == 1


async def test_an_isolated_handler_may_start_processes_itself(app: App) -> None:
    task = app.task(isolation="process", max_attempts=1)(handlers.start_a_process)
    async with working(app, slots=1):
        assert await (await task.enqueue()).result(60) == 0


async def test_a_child_that_died_while_idle_is_replaced_and_costs_no_job_an_attempt(app: App) -> None:
    task = app.task(isolation="process", max_attempts=3, retry=Fixed(0))(handlers.my_pid)
    async with working(app, slots=1):
        first = await (await task.enqueue()).result(60)
        os.kill(first, signal.SIGKILL)
        await until(lambda: not is_running(first), "it is dead")
        job = await task.enqueue()
        assert await job.result(60) != first
        record = await job.refresh()
    assert (record.attempt, record.errors) == (1, [])


async def test_children_leave_the_event_loop_and_the_other_slots_alone(app: App, tmp_path: Path) -> None:
    isolated = app.task(isolation="process")(handlers.sleep_with_progress)

    @app.task
    async def quick() -> None:
        pass

    flag = tmp_path / "go on"
    async with working(app, slots=4):
        slow = await app.enqueue_many([isolated.job(flag=str(flag)) for _ in range(3)])
        await in_state(await quick.enqueue(), "completed")
        assert {(await job.refresh()).state for job in slow} == {"running"}
        flag.touch()
        for job in slow:
            await job.result(60)
    assert threading.active_count() < 50
    assert asyncio.get_running_loop().is_running()
