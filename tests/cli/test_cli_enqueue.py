from __future__ import annotations

import json
import sys
from datetime import UTC, datetime, timedelta

import pytest

from pgqueue import JobSpec
from pgqueue.cli import enqueue as module


def only(queue):
    (record,) = queue.jobs()
    return record


def test_a_payload_alone_is_enough(queue, pgq):
    answer = pgq("enqueue", "--payload", '{"a":1}')
    record = only(queue)
    assert answer.out == f"{record.id}\n"
    assert (record.task, record.queue, record.payload, record.priority) == ("echo", "default", {"a": 1}, 5)


def test_nothing_at_all_enqueues_an_empty_object(queue, pgq):
    assert pgq("enqueue").code == 0
    assert only(queue).payload == {}


def test_every_option_reaches_the_job(queue, pgq):
    answer = pgq(
        "enqueue", "mail.send", "--payload", "[1]", "--queue", "emails", "--priority", "high", "--delay", "5m",
        "--max-attempts", 3, "--timeout", "30s", "--unique-key", "k", "--json",
    )  # fmt: skip
    record = only(queue)
    assert answer.json == {"job_id": record.id}
    assert (record.task, record.queue, record.payload, record.priority) == ("mail.send", "emails", [1], 2)
    assert (record.max_attempts, record.timeout, record.unique_key) == (3, timedelta(seconds=30), "k")
    assert record.run_at - record.created_at == timedelta(minutes=5)


def test_a_job_can_be_enqueued_for_a_time(queue, pgq):
    assert pgq("enqueue", "--run-at", "2100-01-31T09:00:00+01:00").code == 0
    assert only(queue).run_at == datetime(2100, 1, 31, 8, tzinfo=UTC)


def test_a_live_unique_key_answers_the_id_of_its_job(queue, pgq):
    first, second = (pgq("enqueue", "--unique-key", "k").out for _ in range(2))
    assert first == second
    assert len(queue.jobs()) == 1


@pytest.mark.parametrize("argv", [["--payload", "-"], ["-"], ["echo", "--payload", "-"]])
def test_the_payload_can_come_from_stdin(argv, queue, pgq):
    assert pgq("enqueue", *argv, stdin='{"from": "ünïcode"}\n').code == 0
    assert only(queue).payload == {"from": "ünïcode"}


def test_count_enqueues_it_many_times_and_prints_every_id(queue, pgq):
    answer = pgq("enqueue", "--count", 2500)
    assert len(set(answer.out.split())) == 2500
    assert queue.queues()[0].available == 2500
    assert len(pgq("enqueue", "--count", 1, "--json").json["job_ids"]) == 1


def test_a_file_holds_a_job_per_line_and_flags_are_its_defaults(queue, pgq, tmp_path):
    file = tmp_path / "jobs.jsonl"
    file.write_text(
        '{"task": "a", "payload": {"n": 1}, "priority": 0, "meta": {"tag": "x"}}\n\n'
        '{"queue": "own", "delay": "1h", "max_attempts": 2}\n'
        '{"run_at": "2100-01-01T00:00:00Z", "timeout": 1.5, "unique_key": "u"}\n'
    )
    answer = pgq("enqueue", "--file", file, "--queue", "flagged", "--delay", "2h", "--json")
    jobs = [queue.get(job_id) for job_id in answer.json["job_ids"]]
    assert [(job.task, job.queue) for job in jobs] == [("a", "flagged"), ("echo", "own"), ("echo", "flagged")]
    assert (jobs[0].payload, jobs[0].priority, jobs[0].meta) == ({"n": 1}, 0, {"tag": "x"})
    assert jobs[0].run_at - jobs[0].created_at == timedelta(hours=2)
    assert jobs[1].run_at - jobs[1].created_at == timedelta(hours=1)
    assert jobs[2].run_at == datetime(2100, 1, 1, tzinfo=UTC)


def test_with_a_task_each_line_of_a_file_is_its_payload(queue, pgq):
    answer = pgq("enqueue", "mail", "--file", "-", stdin='{"a": 1}\n"text"\n12345678901234567890\n')
    jobs = [queue.get(int(job_id)) for job_id in answer.out.split()]
    assert [(job.task, job.payload) for job in jobs] == [
        ("mail", {"a": 1}),
        ("mail", "text"),
        ("mail", 12345678901234567890),
    ]


def test_an_empty_file_enqueues_nothing(queue, pgq):
    answer = pgq("enqueue", "--file", "-")
    assert (answer.code, answer.out) == (0, "")
    assert pgq("enqueue", "--file", "-", "--json").json == {"job_ids": []}


def test_a_large_file_goes_in_batches_in_one_transaction(queue, pgq, tmp_path):
    file = tmp_path / "jobs.jsonl"
    file.write_text("".join(f'{{"payload": {n}}}\n' for n in range(3000)) + '{"payload": NaN}\n')
    answer = pgq("enqueue", "--file", file)
    assert answer.code == 2
    assert "line 3001" in answer.error
    assert queue.queues() == []
    big = json.dumps("x" * 1_000_000)
    assert len(pgq("enqueue", "t", "--file", "-", stdin=f"{big}\n" * 6).out.split()) == 6


BAD = {
    "JSON": ["--payload", "{"],
    "no JSON on stdin": ["--payload", "-"],
    "NaN": ["--payload", "NaN"],
    "a NUL": ["--payload", '"\\u0000"'],
    "a lone surrogate": ["--payload", '"\\ud800"'],
    "bytes that are no UTF-8": ["--payload", '"\udcff"'],
    "too large": ["--payload", '"' + "x" * 1_100_000 + '"'],
    "a queue name of 1 kB": ["--queue", "q" * 1024],
    "an empty queue name": ["--queue", ""],
    "a NUL in the queue": ["--queue", "a\0b"],
    "a lone surrogate in the queue": ["--queue", "a\udcff"],
    "an empty task": [""],
    "a task name of 1 kB": ["t" * 1024],
    "a negative delay": ["--delay", "-5s"],
    "a delay that is none": ["--delay", "soon"],
    "priority 11": ["--priority", "11"],
    "priority -1": ["--priority", "-1"],
    "priority urgent": ["--priority", "urgent"],
    "no attempts": ["--max-attempts", "0"],
    "too many attempts": ["--max-attempts", "40000"],
    "a timeout of nothing": ["--timeout", "0s"],
    "a time without a zone": ["--run-at", "2100-01-01T00:00:00"],
    "a time that is none": ["--run-at", "tomorrow"],
    "delay and run_at": ["--delay", "1s", "--run-at", "2100-01-01T00:00:00Z"],
    "a unique key of 1 kB": ["--unique-key", "k" * 1024],
    "count 0": ["--count", "0"],
    "a negative count": ["--count", "-1"],
    "a file and a payload": ["--file", "-", "--payload", "1"],
    "a file and a count": ["--file", "-", "--count", "2"],
    "no such file": ["--file", "no/such.jsonl"],
    "a folder": ["--file", "/"],
}


@pytest.mark.parametrize("argv", BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_line_and_exit_2_and_nothing_is_written(argv, queue, pgq):
    answer = pgq("enqueue", *argv)
    assert answer.code == 2, answer
    assert answer.error
    assert answer.out == ""
    assert queue.jobs() == []


LINES = {
    "no object": "[1]",
    "no JSON": "{",
    "an unknown key": '{"prio": 1}',
    "a bad priority": '{"priority": 11}',
    "a bad type": '{"queue": 5}',
    "a task that is no text": '{"task": 5}',
    "a NUL": '{"payload": "\\u0000"}',
    "a bad time": '{"run_at": 5}',
    "delay and run_at": '{"delay": 5, "run_at": "2100-01-01T00:00:00Z"}',
    "a number out of range": '{"max_attempts": 1e9}',
    "an endless line": '{"payload": "' + "x" * 5_000_000 + '"}',
}


@pytest.mark.parametrize("line", LINES.values(), ids=LINES.keys())
def test_a_bad_line_is_named_and_nothing_of_the_file_is_written(line, queue, pgq):
    answer = pgq("enqueue", "--file", "-", stdin=f'{{"payload": 1}}\n{line}\n{{"payload": 3}}\n')
    assert answer.code == 2, answer
    assert answer.error.startswith("line 2: ")
    assert queue.jobs() == []


APP = """
import pgqueue
app = pgqueue.App()

@app.task(name="mail", queue="emails", priority=3, max_attempts=4)
def mail(to: str) -> None: ...
"""


@pytest.fixture
def shop(tmp_path, monkeypatch):
    (tmp_path / "shop_enqueue.py").write_text(APP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "shop_enqueue:app"
    sys.modules.pop("shop_enqueue", None)


def test_with_an_app_the_tasks_own_options_hold_and_flags_win(shop, queue, pgq):
    assert pgq("enqueue", "mail", "--app", shop, "--payload", '{"to": "a@b.c"}', "--max-attempts", 9).code == 0
    record = only(queue)
    assert (record.queue, record.priority, record.max_attempts) == ("emails", 3, 9)


@pytest.mark.parametrize("argv", [["mail", "--payload", '{"too": 1}'], ["unknown"]])
def test_with_an_app_the_task_and_its_payload_are_checked(argv, shop, queue, pgq):
    answer = pgq("enqueue", *argv, "--app", shop)
    assert answer.code == 2
    assert argv[0] in answer.error
    assert queue.jobs() == []


def test_with_an_app_a_misspelt_task_is_answered_with_what_was_meant(shop, queue, pgq):
    assert (
        "task 'mial' is not registered in this app; did you mean mail?" in pgq("enqueue", "mial", "--app", shop).error
    )
    assert "; there is: mail" in pgq("enqueue", "zzz", "--app", shop).error
    lines = '{"task": "mail", "payload": {"to": "a"}}\n{"task": "mial"}\n'
    assert "line 2: task 'mial'" in pgq("enqueue", "--file", "-", "--app", shop, stdin=lines).error


def test_long_input_shows_a_bar_on_a_terminal_only(queue, pgq, monkeypatch):
    assert pgq("enqueue", "--count", 6000).err == ""
    monkeypatch.setattr(module, "_LONG_COUNT", 10)
    steps = []
    monkeypatch.setattr("rich.progress.Progress.advance", lambda _self, _bar, step=1: steps.append(step))

    class Terminal:
        def __init__(self, stream):
            self._stream = stream

        def __getattr__(self, name):
            return getattr(self._stream, name)

        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal(sys.stderr))
    with module._bar(20, long=True) as advance:
        list(module._repeat(JobSpec.make("t"), 20, advance))
    assert sum(steps) == 20
