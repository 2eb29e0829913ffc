"""`pgq worker` as people start it: real processes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import threading
from pathlib import Path

import pytest

import pgqueue
from pgqueue import JobSpec
from pgqueue.cli.worker import _served

FAST = ("--poll", "50ms")

APP = """
import pgqueue
app = pgqueue.App({dsn})
other = object()
empty = pgqueue.App()

@app.task(name="mail", queue="emails")
def mail(to: str) -> str:
    return "sent to " + to
"""


@pytest.fixture
def finished(queue, until):
    """The record of a job, once it has ended."""
    return lambda job: until(lambda: (record := queue.get(job)).finished and record, f"job {job}")


@pytest.fixture
def running(queue, until):
    return lambda job: until(lambda: (record := queue.get(job)).state == "running" and record, f"job {job} to run")


def test_a_worker_runs_the_built_in_tasks_and_stops_in_order(queue, spawn, end, finished, pgq, until):
    echo, sleep = queue.enqueue(JobSpec.make("echo", {"a": 1})), queue.enqueue(JobSpec.make("sleep", {"seconds": 0.01}))
    fail = queue.enqueue(JobSpec.make("fail", max_attempts=1))
    worker = spawn("worker", *FAST, "--slots", 3, "--lease", "5s", "--shutdown-timeout", "10s", "--name", "anna")
    assert finished(echo).result == {"a": 1}
    assert finished(sleep).result == 0.01
    assert finished(fail).errors[0]["type"] == "FailedOnPurposeError"
    (record,) = until(lambda: pgq("workers", "--json").json)
    assert (record["name"], record["slots"], record["queues"], record["alive"]) == ("anna", 3, ["default"], True)
    assert "anna" in pgq("workers").out
    assert pgq("stats", "--json").json["workers"]["alive"] == 1
    answer = end(worker)
    assert answer.code == 0, answer.err
    assert answer.out == ""
    assert "3 tasks: echo, fail, sleep" in answer.err
    assert pgq("workers", "--json").json == []


def test_a_worker_takes_only_the_queues_it_was_given(queue, spawn, finished):
    jobs = {name: queue.enqueue(JobSpec.make("echo", queue=name)) for name in ("a", "b", "default")}
    spawn("worker", *FAST, "--queues", "a, b,,a")
    assert finished(jobs["a"]).state == finished(jobs["b"]).state == "completed"
    assert queue.get(jobs["default"]).state == "available"


@pytest.mark.parametrize("given", ["flag", "environment", "app"])
def test_an_app_is_imported_from_the_current_folder_and_its_dsn_comes_last(
    given, dsn, queue, spawn, finished, tmp_path, monkeypatch
):
    monkeypatch.delenv("PGQUEUE_DSN")
    nowhere = "postgresql://postgres@127.0.0.1:1/nowhere"
    (tmp_path / "shop.py").write_text(APP.format(dsn=repr(dsn if given == "app" else nowhere)))
    job = queue.enqueue(JobSpec.make("mail", {"to": "a@b.c"}, queue="emails"))
    environment = {"flag": {"PGQUEUE_DSN": nowhere}, "environment": {"PGQUEUE_DSN": dsn}, "app": {}}[given]
    flags = ["--dsn", dsn] if given == "flag" else []
    spawn("worker", *FAST, "--app", "shop", *flags, cwd=tmp_path, **environment)
    assert finished(job).result == "sent to a@b.c"


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("no_such_module:app", "there is no module 'no_such_module'"),
        ("shop_worker:nothing", "has no 'nothing'; there is: app, empty"),
        ("shop_worker:other", "is a object, not a pgqueue.App"),
        ("shop_worker:empty", "it has no tasks"),
        ("broken_worker", "importing 'broken_worker' failed: ZeroDivisionError"),
        ("needy_worker:app", "importing 'needy_worker' failed: No module named 'not_installed'"),
        ("leaving_worker:app", "importing 'leaving_worker' failed: SystemExit"),
        ("jobs.py:app", "there is no module 'jobs'"),
        ("my-jobs:app", "is not a module's name"),
        (":app", "is not a module's name"),
    ],
)
def test_an_app_that_is_not_there_is_wrong_usage_and_says_what_is_missing(
    where, said, queue, pgq, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "shop_worker.py").write_text(APP.format(dsn=""))
    (tmp_path / "broken_worker.py").write_text("1 / 0")
    (tmp_path / "needy_worker.py").write_text("import not_installed")
    (tmp_path / "leaving_worker.py").write_text("raise SystemExit(0)")
    answer = pgq("worker", "--app", where)
    sys.modules.pop("shop_worker", None)
    assert answer.code == 2
    assert said in answer.error


@pytest.mark.parametrize(
    "argv",
    [
        ["--slots", "0"],
        ["--lease", "0s"],
        ["--lease", "soon"],
        ["--poll", "-1s"],
        ["--shutdown-timeout", "never"],
        ["--log-format", "xml"],
        ["--queues", ","],
        ["--queues", "q" * 1024],
        ["--app", "x:y", "--exec", "cat"],
        ["--exec", "  "],
    ],
)
def test_settings_without_meaning_are_wrong_usage(argv, queue, pgq):
    answer = pgq("worker", *argv)
    assert answer.code == 2
    assert answer.error


def test_a_setting_of_the_environment_without_meaning_is_named(queue, pgq, monkeypatch):
    monkeypatch.setenv("PGQUEUE_SLOTS", "many")
    answer = pgq("worker")
    assert answer.code == 2
    assert "PGQUEUE_SLOTS" in answer.error


@pytest.mark.parametrize("flag", [("--log-format", "json"), ("--json",)])
def test_logs_are_json_on_stderr_when_asked_for(flag, queue, spawn, end, finished):
    worker = spawn("worker", *FAST, *flag)
    job = queue.enqueue(JobSpec.make("fail", max_attempts=1))
    finished(job)
    events = [json.loads(line) for line in end(worker).err.splitlines()]
    assert all(event["timestamp"] and event["level"] and event["logger"] and event["event"] for event in events)
    (event,) = [event for event in events if event.get("job_id") == job]
    assert (event["task"], event["queue"], event["attempt"]) == ("fail", "default", 1)


def test_several_processes_share_the_work_and_stop_together(queue, spawn, end, until, pgq):
    supervisor = spawn("worker", "--processes", 2, *FAST)
    pids = until(lambda: len(found := {worker["pid"] for worker in pgq("workers", "--json").json}) == 2 and found)
    assert supervisor.pid not in pids
    os.kill(min(pids), signal.SIGKILL)
    until(lambda: len({w["pid"] for w in pgq("workers", "--json").json} - pids) == 1, "the dead one to be replaced")
    assert end(supervisor).code == 0


def test_each_of_several_processes_has_a_name_of_its_own(queue, spawn, end, until, pgq):
    supervisor = spawn("worker", "--processes", 2, "--name", "w", *FAST)
    names = until(lambda: len(found := [worker["name"] for worker in pgq("workers", "--json").json]) == 2 and found)
    assert sorted(names) == ["w-1", "w-2"]
    assert end(supervisor).code == 0


def test_a_worker_waits_for_a_database_that_is_not_there_yet(dsn, queue, spawn, finished, until):
    """Behind a door that opens late: connections to it are refused at first."""
    job = queue.enqueue(JobSpec.make("echo"))
    target = queue.database.dsn
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        port = door.getsockname()[1]
        worker = spawn("worker", *FAST, "--dsn", f"{target} host=127.0.0.1 port={port} hostaddr=127.0.0.1")
        assert "can't be reached" in worker.stderr.readline()
        door.listen()
        with queue.database.connection() as connection:
            host, real = connection.info.host, connection.info.port
        threading.Thread(target=_forward, args=(door, host, real), daemon=True).start()
        assert finished(job).state == "completed"
        assert worker.poll() is None


def _forward(door, host, port):
    while True:
        try:
            client, _ = door.accept()
        except OSError:
            return
        if host.startswith("/"):
            server = socket.socket(socket.AF_UNIX)
            server.connect(f"{host}/.s.PGSQL.{port}")
        else:
            server = socket.create_connection((host, port))
        for one, other in ((client, server), (server, client)):
            threading.Thread(target=_pump, args=(one, other), daemon=True).start()


def _pump(source, target):
    try:
        while data := source.recv(65536):
            target.sendall(data)
    except OSError:
        pass
    finally:
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


# -- --exec ----------------------------------------------------------------------------------------------------------


def test_exec_runs_a_command_for_every_task(queue, spawn, end, finished):
    known, unknown = queue.enqueue(JobSpec.make("echo", {"n": 1})), queue.enqueue(JobSpec.make("anything", {"n": 2}))
    bad = queue.enqueue(JobSpec.make("bad", max_attempts=1))
    command = 'if [ "$PGQUEUE_TASK" = bad ]; then echo sorry >&2; exit 3; fi; echo "$PGQUEUE_TASK $(cat)"'
    worker = spawn("worker", *FAST, "--exec", command)
    assert finished(known).result == 'echo {"n": 1}'
    assert finished(unknown).result == 'anything {"n": 2}'
    assert finished(bad).state == "dead"
    assert queue.get(bad).errors[0]["message"] == "the command ended with status 3: sorry"
    assert end(worker).code == 0


def test_exec_75_puts_the_job_back_without_blame(queue, spawn, until):
    job = queue.enqueue(JobSpec.make("t"))
    spawn("worker", *FAST, "--exec", "exit 75")
    record = until(lambda: (found := queue.get(job)).state in {"scheduled", "retrying"} and found)
    assert record.attempt == 0
    assert record.errors == []


def test_exec_is_killed_with_its_whole_group_at_the_timeout(queue, spawn, finished, until, tmp_path):
    pids = tmp_path / "pids"
    job = queue.enqueue(JobSpec.make("t", timeout="1s", max_attempts=1))
    spawn("worker", *FAST, "--exec", f"sleep 600 & echo $$ $! > {pids}; wait")
    until(lambda: pids.exists() and len(pids.read_text().split()) == 2)
    assert finished(job).errors[0]["type"] == "JobTimeoutError"
    for pid in pids.read_text().split():
        until(lambda pid=pid: not _lives(int(pid)), f"process {pid} to be gone")


def test_exec_is_ended_when_the_job_is_cancelled(queue, spawn, finished, until, tmp_path):
    pids = tmp_path / "pids"
    job = queue.enqueue(JobSpec.make("t"))
    spawn("worker", *FAST, "--exec", f"echo $$ > {pids}; exec sleep 600")
    until(lambda: pids.exists() and pids.read_text().strip())
    assert queue.cancel(job) == "running"
    assert finished(job).state == "cancelled"
    until(lambda: not _lives(int(pids.read_text())))


def test_a_second_signal_gives_the_job_back_and_leaves_no_command(queue, spawn, end, until, tmp_path):
    pids = tmp_path / "pids"
    job = queue.enqueue(JobSpec.make("t"))
    worker = spawn("worker", *FAST, "--exec", f"echo $$ > {pids}; exec sleep 600")
    until(lambda: pids.exists() and pids.read_text().strip())
    worker.send_signal(signal.SIGINT)
    until(lambda: "stopping" in worker.stderr.readline(), "the first signal to be heard")
    assert end(worker, signal.SIGINT).code == 1
    record = queue.get(job)
    assert (record.state, record.attempt) == ("available", 0)
    until(lambda: not _lives(int(pids.read_text())))


def _lives(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_the_log_names_the_tasks_that_are_served():
    app = pgqueue.App(dsn="dbname=nowhere")
    for letter in "hgfedcba":
        app.task(name=letter)(lambda: None)
    assert _served(app, None) == "8 tasks: a, b, c, d, e, f and 2 more"
    assert _served(app, "cat") == "every task runs the command: cat"
