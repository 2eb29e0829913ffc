from __future__ import annotations

import threading

import pytest

from pgqueue import JobSpec


def fails(payload=None, **options):
    return JobSpec.make("fail", payload, max_attempts=1, **options)


def test_show_prints_a_waiting_job(queue, pgq):
    job = queue.enqueue(JobSpec.make("mail", {"to": "a@b.c"}, delay="1h", timeout="90s", meta={"tag": 1}))
    answer = pgq("job", "show", job)
    assert answer.code == 0
    lines = dict(line.split(maxsplit=1) for line in answer.out.splitlines())
    assert (lines["id"], lines["state"], lines["task"]) == (str(job), "scheduled", "mail")
    assert (lines["payload"], lines["timeout"], lines["meta"]) == ('{"to":"a@b.c"}', "1m30s", '{"tag":1}')
    assert "result" not in lines
    machine = pgq("job", "show", job, "--json").json
    assert (machine["id"], machine["payload"], machine["state"]) == (job, {"to": "a@b.c"}, "scheduled")


def test_show_prints_every_error_of_a_dead_job(queue, pgq, work_off):
    job = queue.enqueue(fails({"message": "no\x1b[2J luck"}))
    work_off()
    answer = pgq("job", "show", job)
    assert "attempt 1 failed at " in answer.out
    assert "FailedOnPurposeError: no\\x1b[2J luck" in answer.out
    assert "Traceback" in answer.out
    assert "\x1b" not in answer.out
    assert pgq("job", "show", job, "--json").json["errors"][0]["type"] == "FailedOnPurposeError"


@pytest.mark.parametrize("verb", ["show", "cancel", "retry", "wait"])
def test_a_job_that_is_not_there_is_exit_1_and_one_line(verb, queue, pgq):
    answer = pgq("job", verb, 4711)
    assert answer.code == 1
    assert "no job 4711" in answer.error


def test_list_filters_and_pages(queue, pgq):
    ids = [queue.enqueue(JobSpec.make(task, queue=name)) for task, name in (("a", "x"), ("b", "x"), ("a", "y"))]
    queue.cancel(ids[2])

    def listed(*argv):
        return [job["id"] for job in pgq("job", "list", "--json", *argv).json]

    assert listed() == ids[::-1]
    assert listed("--queue", "x") == [ids[1], ids[0]]
    assert listed("-q", "x", "--task", "a") == [ids[0]]
    assert listed("--state", "cancelled") == [ids[2]]
    assert listed("--limit", 1, "--before", ids[2]) == [ids[1]]
    queue.enqueue(JobSpec.make("a", meta={"tags": ["spring"]}))
    assert listed("--tag", "spring", "--since", "1h") == listed("--limit", 1)
    assert listed("--tag", "x") == listed("--since", "0s") == []
    assert "since must be a time" in pgq("job", "list", "--since", "soon").error
    table = pgq("job", "list").out
    assert all(str(job) in table for job in ids)
    assert "cancelled" in table
    assert pgq("job", "list", "--state", "dead").out == "no such jobs\n"


def test_a_state_that_is_none_is_wrong_usage(queue, pgq):
    answer = pgq("job", "list", "--state", "asleep")
    assert answer.code == 2
    assert "available" in answer.error


def test_a_list_in_a_pipe_is_not_cut(queue, pgq):
    key = "k" * 300
    queue.enqueue(JobSpec.make("t" * 128, queue="q" * 128, unique_key=key))
    out = pgq("job", "list").out
    assert "t" * 128 in out
    assert "q" * 128 in out


def test_a_list_is_readable_in_100_columns(queue, pgq, work_off, terminal):
    for name in ("mail.send_welcome", "echo"):
        queue.enqueue(JobSpec.make(name, {"text": "x" * 500}, queue="notifications", delay="90m"))
    queue.enqueue(fails({"message": "the bank did not answer\n" * 20}))
    queue.enqueue(JobSpec.make("echo"))
    work_off()
    piped = pgq("job", "list").out
    terminal("stdout", columns=100)
    out = pgq("job", "list").out
    lines = [line.replace("\x1b[1m", "").replace("\x1b[0m", "") for line in out.splitlines()]
    assert len(lines) == 5, out
    assert max(map(len, lines)) <= 100
    assert max(map(len, piped.splitlines())) <= 130
    echo, dead, _, later = (line.split() for line in lines[1:])
    assert (echo[1:4], echo[5]) == (["default", "echo", "completed"], "ago")
    assert "FailedOnPurposeError:" in dead
    assert "…" in lines[2]
    assert later[3:6] in (["scheduled", "in", "1h30m"], ["scheduled", "in", "1h29m"])


def test_wide_shows_priority_times_worker_payload_and_last_error(queue, pgq, work_off):
    queue.enqueue(fails({"message": "no luck"}, priority=3))
    work_off()
    for argv in (["job", "list", "--wide"], ["dead", "list", "-w"]):
        header, row = pgq(*argv).out.splitlines()
        for column in ("priority", "created", "run at", "started", "finished", "worker", "payload", "last error"):
            assert column in header
        assert '{"message":"no luck"}' in row
        assert "FailedOnPurposeError: no luck" in row
        assert row.count("Z  ") == 4


def test_cancel_takes_several_jobs_back(queue, pgq):
    first, second = (queue.enqueue(JobSpec.make("t")) for _ in range(2))
    assert pgq("job", "cancel", first, second).out == f"{first} cancelled\n{second} cancelled\n"
    assert queue.get(first).state == "cancelled"


def test_one_job_that_can_not_be_cancelled_does_not_spoil_the_others(queue, pgq, work_off):
    done = queue.enqueue(JobSpec.make("echo"))
    work_off()
    waiting = queue.enqueue(JobSpec.make("t"))
    answer = pgq("job", "cancel", done, waiting, 4711, "--json")
    assert answer.code == 1
    assert [item["state"] for item in answer.json] == ["completed", "cancelled", None]
    assert f"job {done} is completed" in answer.err
    assert len(answer.err.splitlines()) == 2


def test_retry_runs_a_dead_job_again(queue, pgq, work_off):
    job = queue.enqueue(fails())
    work_off()
    assert queue.get(job).state == "dead"
    assert pgq("job", "retry", job).out == f"{job} available\n"
    assert queue.get(job).state == "available"
    assert pgq("job", "retry", job, "--json").json == [{"job_id": job, "state": "available"}]


def test_wait_prints_the_result(queue, pgq, work_off):
    job, text, nothing = (queue.enqueue(JobSpec.make("echo", payload)) for payload in ({"a": [1]}, "plain text", []))
    work_off()
    assert pgq("job", "wait", job).out == '{"a":[1]}\n'
    assert pgq("job", "wait", text).out == "plain text\n"
    assert pgq("job", "wait", nothing, "--json").json == {
        "job_id": nothing,
        "state": "completed",
        "result": [],
        "errors": [],
    }


def test_wait_waits(queue, pgq, work_off):
    job = queue.enqueue(JobSpec.make("sleep", {"seconds": 0.3}))
    worker = threading.Thread(target=work_off)
    worker.start()
    answer = pgq("job", "wait", job, "--timeout", "20s")
    worker.join()
    assert (answer.code, answer.out) == (0, "0.3\n")


def test_wait_gives_up_after_its_timeout(queue, pgq):
    job = queue.enqueue(JobSpec.make("nobody"))
    answer = pgq("job", "wait", job, "--timeout", "100ms")
    assert answer.code == 1
    assert "not finished" in answer.error
    assert pgq("job", "wait", job, "--timeout", "-1s").code == 2


def test_wait_for_a_job_that_died_is_exit_1(queue, pgq, work_off):
    job = queue.enqueue(fails({"message": "no luck"}))
    work_off()
    answer = pgq("job", "wait", job)
    assert answer.code == 1
    assert "no luck" in answer.error
    machine = pgq("job", "wait", job, "--json")
    assert machine.code == 1
    assert (machine.json["state"], machine.json["errors"][0]["message"]) == ("dead", "no luck")


# -- dead ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def dead(queue, work_off):
    ids = [queue.enqueue(fails()), queue.enqueue(fails())]
    queue.enqueue(JobSpec.make("echo"))
    work_off()
    return ids


def test_dead_list_shows_dead_letters_only(dead, pgq):
    assert [job["id"] for job in pgq("dead", "list", "--json").json] == dead[::-1]
    assert "FailedOnPurposeError" in pgq("dead", "list").out
    assert pgq("dead", "list", "--queue", "other").out == "no dead letters\n"
    assert pgq("dead", "list", "--task", "echo", "--json").json == []


def test_redrive_retries_the_oldest_first(dead, queue, pgq):
    assert pgq("dead", "redrive", "--queue", "other").out == "0 redriven\n"
    assert pgq("dead", "redrive", "--task", "fail", "--limit", 1).out == "1 redriven\n"
    assert sorted(queue.get(job).state for job in dead) == ["available", "dead"]
    assert pgq("dead", "redrive", "--json").json == {"redriven": 1}


def test_dead_purge_deletes_dead_letters_only(dead, queue, pgq):
    assert pgq("dead", "purge", "--queue", "other", "--json").json == {"purged": 0}
    assert pgq("dead", "purge").out == "2 purged\n"
    assert [job.task for job in queue.jobs()] == ["echo"]


# -- queue, stats, workers -------------------------------------------------------------------------------------------


def test_pause_and_resume_say_whether_it_was_a_change(queue, pgq):
    assert pgq("queue", "pause", "emails").out == "emails paused\n"
    assert pgq("queue", "pause", "emails", "--json").json == {"queue": "emails", "paused": True, "changed": False}
    assert pgq("queue", "list", "--json").json[0]["paused"] is True
    assert pgq("queue", "resume", "emails").out == "emails resumed\n"
    assert pgq("queue", "resume", "emails").out == "emails resumed already\n"
    assert pgq("queue", "resume", "emails", "--json").json["paused"] is False


@pytest.mark.parametrize("verb", ["pause", "resume", "purge"])
@pytest.mark.parametrize("name", ["q" * 1024, "", "a\0b"])
def test_a_queue_name_that_is_none_is_wrong_usage(verb, name, queue, pgq):
    answer = pgq("queue", verb, name)
    assert answer.code == 2
    assert "queue must" in answer.error


def test_queue_purge_deletes_what_waits_in_it(queue, pgq):
    queue.enqueue_many(
        [JobSpec.make("t", queue="a"), JobSpec.make("t", queue="a", delay="1h"), JobSpec.make("t", queue="b")]
    )
    assert pgq("queue", "purge", "a").out == "2 purged\n"
    assert pgq("queue", "purge", "a", "--json").json == {"queue": "a", "purged": 0}
    assert [job.queue for job in queue.jobs()] == ["b"]


@pytest.mark.parametrize("argv", [["queue", "purge", "a"], ["dead", "purge"]])
def test_a_purge_asks_a_person_first(argv, queue, pgq, monkeypatch):
    queue.enqueue(JobSpec.make("t", queue="a"))

    class Terminal:
        def isatty(self):
            return True

    monkeypatch.setattr("pgqueue.cli.person.stdin", Terminal)
    asked = []
    answers = iter((False, True))
    monkeypatch.setattr("typer.confirm", lambda question, **_options: asked.append(question) or next(answers))
    job = queue.jobs()[0].id
    declined = pgq(*argv)
    assert (declined.code, declined.error) == (1, "nothing was deleted")
    assert queue.get(job).state == "available"
    assert pgq(*argv).code == 0
    assert len(asked) == 2
    assert pgq(*argv, "--yes").code == 0
    assert len(asked) == 2


def test_retention_is_shown_and_set(queue, pgq):
    before = pgq("queue", "retention", "--json").json
    assert set(before) == {"completed", "dead", "cancelled"}
    assert pgq("queue", "retention", "dead", "30d", "--json").json == {**before, "dead": "30d"}
    assert "30d" in pgq("queue", "retention").out


@pytest.mark.parametrize("argv", [["dead"], ["dead", "soon"], ["asleep", "7d"], ["dead", "-1d"]])
def test_a_retention_without_meaning_is_wrong_usage(argv, queue, pgq):
    before = queue.retention()
    answer = pgq("queue", "retention", *argv)
    assert answer.code == 2, answer
    assert queue.retention() == before


def test_queue_list_and_stats_count(queue, pgq, work_off):
    queue.enqueue_many([JobSpec.make("echo"), fails(), JobSpec.make("echo", delay="1h")])
    work_off()
    waits_for = queue.enqueue(JobSpec.make("nobody", queue="other"))
    queue.enqueue(JobSpec.make("nobody", queue="other", depends_on=[waits_for]))
    table = pgq("queue", "list").out
    assert "default" in table
    assert "other" in table
    assert "blocked" in table
    facts = pgq("stats", "--json").json
    assert facts["totals"] == {
        "available": 1, "scheduled": 1, "retrying": 0, "blocked": 1, "running": 0, "completed": 1, "dead": 1,
        "cancelled": 0,
    }  # fmt: skip
    assert facts["workers"] == {"alive": 0, "slots": 0, "running": 0}
    assert [stats["queue"] for stats in facts["queues"]] == ["default", "other"]
    assert "1 blocked, 0 running, 1 completed" in pgq("stats").out


def test_an_empty_queue_says_so(queue, pgq):
    assert pgq("queue", "list").out == "no queues yet\n"
    assert pgq("workers").out == "no workers\n"
    assert pgq("workers", "--json").json == []
    assert "0 alive" in pgq("stats").out
