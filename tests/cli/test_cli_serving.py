"""Nobody waits without being told what for."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest

from pgqueue import JobSpec
from pgqueue.cli.text import ago, span


@pytest.fixture
def report(queue):
    """A worker has reported that it serves these queues, so many seconds ago."""

    def write(*queues, name="anna", seconds=4, stopping=False, running=2):
        with queue.database.connection() as connection:
            connection.execute(
                "INSERT INTO pgqueue.workers (name, host, pid, queues, slots, running, version, stopping, heartbeat_at)"
                " VALUES (%s, 'h', 1, %s, 50, %s, '1', %s, now() - make_interval(secs => %s))",
                [name, list(queues), running, stopping, seconds],
            )

    return write


def test_on_a_terminal_enqueue_says_that_no_worker_is_alive(queue, pgq, terminal):
    terminal("stderr")
    answer = pgq("enqueue")
    assert answer.code == 0
    assert answer.out.strip().isdigit()
    assert "note: no worker is alive; start one: pgq worker" in answer.err
    assert len(answer.err.splitlines()) == 1


def test_on_a_terminal_enqueue_says_that_nobody_serves_the_queue(queue, pgq, terminal, report):
    report("default", "emails")
    report("old", name="silent", seconds=60)
    report("emials", name="leaving", stopping=True)
    terminal("stderr")
    note = "note: no worker serves queue 'emials' now (served: default, emails)"
    assert note in pgq("enqueue", "--queue", "emials").err
    assert "queue 'old'" in pgq("enqueue", "--queue", "old").err
    assert "'emials', 'old'" in pgq("enqueue", "--file", "-", stdin='{"queue":"emials"}\n{"queue":"old"}\n{}\n').err
    assert pgq("enqueue").err == ""


def test_scripts_hear_nothing_of_it(queue, pgq, terminal):
    assert pgq("enqueue").err == ""
    terminal("stderr")
    assert pgq("enqueue", "--quiet").err == ""
    assert pgq("enqueue", "--json").err == ""


def test_a_role_that_may_only_enqueue_is_told_nothing_and_has_enqueued(dsn, pgq, terminal):
    terminal("stderr")
    answer = pgq("enqueue", "--dsn", f"{dsn}{'&' if '?' in dsn else '?'}options=-c%20role%3Dpgqueue_producer")
    assert (answer.code, answer.err) == (0, "")


def test_job_show_says_what_a_waiting_job_waits_for(queue, pgq, report):
    later, due = queue.enqueue(JobSpec.make("echo", delay="1h", queue="a")), queue.enqueue(JobSpec.make("echo"))

    def waits(job):
        lines = dict(line.split(maxsplit=1) for line in pgq("job", "show", job).out.splitlines())
        return lines.get("waits")

    assert waits(due) == "for a worker: no worker is alive; start one: pgq worker"
    report("default")
    assert waits(due) == "for a free slot, or for a worker that has task 'echo'; see: pgq workers"
    assert waits(later).startswith(("for its time, in 1h", "for its time, in 59m"))
    assert waits(later).endswith("and for a worker: no worker serves queue 'a' now (served: default)")
    queue.pause("default")
    assert waits(due) == "for its queue, which is paused (pgq queue resume default)"
    assert "waits" not in pgq("job", "show", due, "--json").json
    queue.cancel(due)
    assert waits(due) is None


def test_wait_in_vain_says_what_the_job_waits_for(queue, pgq, report):
    report("default")
    job = queue.enqueue(JobSpec.make("echo", queue="other"))
    answer = pgq("job", "wait", job, "--timeout", "10ms")
    assert answer.code == 1
    assert "within 10ms: it is available, and waits for a worker: no worker serves queue 'other'" in answer.error


def test_stats_and_queue_list_mark_the_queues_without_a_worker(queue, pgq, report):
    report("default", "paused")
    report("default", name="otto")
    queue.enqueue_many([JobSpec.make("t"), JobSpec.make("t", queue="alone"), JobSpec.make("t", queue="paused")])
    queue.pause("paused")
    for argv in (["stats"], ["queue", "list"]):
        lines = [line.split() for line in pgq(*argv).out.splitlines()]
        assert {line[0]: line[-1] for line in lines[:4]} == {
            "queue": "workers", "alone": "none", "default": "2", "paused": "paused",
        }  # fmt: skip
    assert "jobs wait: no worker serves queue 'alone' now (served: default, paused)\n" in pgq("stats").out
    assert {found["queue"]: found["workers"] for found in pgq("stats", "--json").json["queues"]} == {
        "alone": 0, "default": 2, "paused": 1,
    }  # fmt: skip


def test_workers_are_listed_with_the_age_of_what_they_said(queue, pgq, report):
    report("default", seconds=7)
    report("default", name="silent", seconds=3000)
    silent, anna = sorted(pgq("workers").out.splitlines()[1:], reverse=True)
    assert "2 of 50" in anna
    assert "alive" in anna
    assert any(f"{age}s ago" in anna for age in range(7, 12))
    assert re.search(r"silent  50m(\d+s)? ago", silent)


def test_spans_are_rough():
    assert [span(seconds) for seconds in (-3, 0.2, 0.6, 4.4, 59.6, 3_725, 93_784)] == [
        "0s", "0s", "1s", "4s", "1m", "1h2m", "1d2h",
    ]  # fmt: skip
    assert ago(datetime.now(UTC) - timedelta(days=2, seconds=3)) == "2d ago"


def test_on_a_narrow_terminal_queues_show_only_the_states_that_there_are(queue, pgq, terminal):
    queue.enqueue(JobSpec.make("t"))
    terminal("stdout", columns=80)
    header, row = pgq("queue", "list").out.splitlines()
    assert "available" in header
    assert "cancelled" not in header
    assert row.split()[:2] == ["default", "1"]
    terminal("stdout", columns=110)
    header, _ = pgq("queue", "list").out.splitlines()
    assert "cancelled" in header
