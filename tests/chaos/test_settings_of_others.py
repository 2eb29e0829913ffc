"""Faults 11 and 18: a machine whose clock is wrong; a database whose defaults are not ours."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from scenarios.harness import TESTS, Story

from chaos.chaos_tasks import EFFECTS
from chaos.tools import LEASE, Producer, audit, start, start_many, wait_for
from pgqueue import App, JobSpec, Settings

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

LIBRARIES = (
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/faketime/libfaketimeMT.so.1",
)


def wrong_clock(seconds: int) -> dict[str, str]:
    """The environment of a process whose clock is wrong: by libfaketime; without it, by a patch of Python's clocks."""
    library = next((path for path in LIBRARIES if os.path.exists(path)), None)  # noqa: PTH110
    if library is None or shutil.which("faketime") is None:
        print("NOTE: libfaketime is not installed (apt-get install libfaketime): Python's clocks are patched instead")
        return {"CHAOS_CLOCK": str(seconds)}
    return {
        "LD_PRELOAD": library,
        "FAKETIME": f"{seconds:+d}s",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_NO_CACHE": "1",
    }


# -- 11 --------------------------------------------------------------------------------------------------------------


def test_leases_and_times_obey_the_databases_clock(dsn: str, tmp_path: Path) -> None:
    """One worker lives an hour ahead, the other an hour behind: nobody takes what is not due, or is held."""
    story = Story(dsn, tmp_path, lease=LEASE)
    clocks = {hours: wrong_clock(3600 * hours) for hours in (1, -1)}
    try:
        workers = {hours: start(story, "--slots", "4", ready=False, **clock) for hours, clock in clocks.items()}
        for worker in workers.values():
            worker.wait_until_ready()
        both = story.enqueue_many("what_time", [{}] * 2)
        wrong = [record.result - time.time() for record in story.until_completed(*both)]
        assert all(3300 < abs(seconds) < 3900 for seconds in wrong), "their clocks are wrong"

        delayed = [enqueue_delayed(dsn, clocks[1])]
        story.enqueued += delayed
        delayed += (copied := story.client.enqueue_many([JobSpec.make("nap", delay="2s")], copy=True))
        story.enqueued += copied
        far = story.enqueue("nap", delay="30m")
        for record in story.until_completed(*delayed):
            assert record.started_at is not None
            late = (record.started_at - record.run_at).total_seconds()
            assert 0 <= late < 5, "not before its time, and soon after it"
            assert (record.run_at - record.created_at).total_seconds() == pytest.approx(2, abs=0.5)
        assert story.get(far).state == "scheduled", "an hour ahead here is not half an hour ahead there"

        held = story.enqueue_many("hold", [{}] * 6)  # on both: renewed by both, swept by both
        wait_for(lambda: all(story.ledger.entries("start", job) for job in held), "all run", story)
        time.sleep(2.5 * story.lease)
        assert {story.ledger.runs()[job] for job in held} == {1}, "neither took them from the other"
        pids = {worker.pid for worker in workers.values()}
        assert {entry.pid for job in held for entry in story.ledger.entries("start", job)} == pids
        story.ledger.say_go()
        story.until_completed(*held)

        story.until_completed(story.enqueue("flaky", {"failures": 2}))
        story.client.cancel(far)
        lost = story.enqueue("nap", {"seconds": 1.5}, max_attempts=5)
        story.until_started(lost)
        holder = story.ledger.entries("start", lost)[0].pid
        next(worker for worker in workers.values() if worker.pid == holder).kill()
        story.until_completed(lost)
        assert story.ledger.runs()[lost] == 2, "swept, and run by the other one"
        story.until_finished()
        story.audit()
    finally:
        story.end()


def enqueue_delayed(dsn: str, clock: dict[str, str]) -> int:
    """By ``pgq enqueue`` on a machine whose clock is wrong."""
    command = [sys.executable, "-m", "pgqueue", "enqueue", "nap", "--dsn", dsn, "--payload", "{}", "--delay", "2s"]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(TESTS), **clock}, capture_output=True, text=True, check=False,
        timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-1000:]
    return int(done.stdout.split()[-1])


# -- 18 --------------------------------------------------------------------------------------------------------------

DEFAULTS = (
    "default_transaction_isolation = 'serializable'",
    "default_transaction_deferrable = on",
    "statement_timeout = '500ms'",
    "idle_in_transaction_session_timeout = '5s'",
    "enable_indexscan = off",
    "TimeZone = 'Asia/Kathmandu'",
    "DateStyle = 'SQL, DMY'",
    "IntervalStyle = 'iso_8601'",
    "bytea_output = 'escape'",
    "extra_float_digits = 0",
)


def test_a_database_with_other_defaults_serves_as_well(dsn: str, tmp_path: Path) -> None:
    """Serializable by default, statements cut at 500 ms: claims, finishes, renewals, sweeps, enqueues, transactions."""
    story = Story(dsn, tmp_path, lease=LEASE)
    ((name,),) = story.query("SELECT current_database()")
    story.query(EFFECTS)
    for default in DEFAULTS:
        story.query(f'ALTER DATABASE "{name}" SET {default}')
    try:
        assert story.query("SHOW default_transaction_isolation") == [("serializable",)]
        workers = start_many(story, 3, "--slots", "8")
        long = story.enqueue("reporting", {"seconds": 3.5})
        blocked = story.enqueue("block", {"seconds": 1.5})
        work = [("nap", {}), ("transact", {}), ("flaky", {"failures": 1}), ("toil", {}), ("transact_thread", {})]
        producers = [Producer(dsn, f"p{n}", work, rate=60, limit=120) for n in range(2)]
        canceller = App(settings=Settings(dsn=dsn))
        for _ in range(15):
            batch = story.enqueue_many("nap", [{"seconds": 0.05}] * 10)
            story.enqueued += (
                copied := canceller.client.enqueue_many([JobSpec.make("nap") for _ in range(10)], copy=True)
            )
            for job in [*batch[::3], *copied[::3]]:
                _cancel(canceller, job)
            canceller.client.queues()
            canceller.client.jobs(limit=20)
        canceller.close()
        running = story.enqueue("hold")
        story.until_started(running)
        assert story.client.cancel(running) == "running"
        story.until_state(running, "cancelled")
        assert story.until_completed(long)[0].attempt == 1, "renewed"
        lost = story.enqueue("nap", {"seconds": 2.5}, max_attempts=5)
        story.until_started(lost)
        ((holder,),) = {(entry.pid,) for entry in story.ledger.entries("start", lost)}
        next(worker for worker in workers if worker.pid == holder).kill()
        for producer in producers:
            wait_for(lambda producer=producer: not producer.is_alive(), "the producers are done", story)
            producer.finish()
            assert not producer.errors, producer.errors[:3]
        took = story.until_finished()
        print(f"MEASURED serializable, statement_timeout 500 ms: finished {took:.2f} s after all; {story.states()}")
        assert story.ledger.runs()[lost] == 2
        audit(story, *producers, effects=True)
        retries = story.query(
            "SELECT task, e ->> 'type', count(*) FROM pgqueue.all_jobs, jsonb_array_elements(errors) e "
            "WHERE errors IS NOT NULL AND e ->> 'type' NOT IN ('ValueError', 'LeaseExpired', 'Cancelled') GROUP BY 1, 2"
        )
        assert not retries, f"errors of the database reached handlers: {retries}"
        assert story.get(blocked).state == "completed"
        assert story.states()["completed"] + story.states()["cancelled"] == sum(story.states().values()), "none is dead"
        logs = "\n".join(worker.log.read_text() for worker in workers)
        for words in ("could not serialize", "deadlock", "statement timeout", "Traceback"):
            said = [line[:300] for line in logs.splitlines() if words in line]
            assert not said, f"{len(said)} lines: {said[:3]}"
        assert {worker.stop() for worker in workers if worker.alive} == {0}
    finally:
        story.end()


def _cancel(app: App, job: int) -> None:
    from pgqueue.errors import JobStateError

    try:
        app.client.cancel(job)
    except JobStateError:
        return  # it has completed before
