"""`pgq queue limit`, and the options of `pgq enqueue` for keys and dependencies."""

from __future__ import annotations

import json

import pytest

from pgqueue import JobSpec


def test_a_queue_without_limits_says_so(queue, pgq):
    assert pgq("queue", "limit", "mail", "--json").json == {
        "queue": "mail", "max_running": None, "per_key": 1, "rate": None, "burst": None, "key_rate": None,
        "key_burst": None, "ageing": None,
    }  # fmt: skip
    assert queue.queue_settings() == [], "looking writes nothing"


def test_limits_are_set_one_by_one_shown_and_taken_away(queue, pgq):
    pgq("queue", "limit", "mail", "--max-running", 3, "--rate", "600/m", "--burst", 20, "--ageing", "30s")
    answer = pgq("queue", "limit", "mail", "--per-key", 2, "--key-rate", "5/h", "--key-burst", 4)
    assert answer.code == 0
    shown = dict(line.split() for line in answer.out.splitlines())
    assert shown == {
        "limit": "value", "max_running": "3", "per_key": "2", "rate": "10/s", "burst": "20", "key_rate": "5/h",
        "key_burst": "4", "ageing": "30s",
    }  # fmt: skip
    (settings,) = queue.queue_settings()
    assert (settings.max_running, settings.rate, round(settings.key_rate * 3600, 9)) == (3, 10.0, 5.0)
    pgq("queue", "limit", "mail", "--max-running", "none", "--rate", "none", "--per-key", "none")
    assert pgq("queue", "limit", "mail", "--json").json["max_running"] is None
    assert queue.queue_settings()[0].per_key == 1


def test_the_list_of_queues_shows_limits_where_there_are_any(queue, pgq):
    queue.enqueue(JobSpec.make("t", queue="plain"))
    assert "limits" not in pgq("queue", "list").out
    pgq(
        "queue",
        "limit",
        "mail",
        "--max-running",
        3,
        "--rate",
        "10/s",
        "--per-key",
        0,
        "--ageing",
        "1m",
        "--key-rate",
        "1/d",
    )
    out = pgq("queue", "list").out
    assert "3 at once, any number per key, 10/s, 1/d per key, ages in 1m" in out
    limits = {row["queue"]: row["limits"] for row in pgq("queue", "list", "--json").json}
    assert (limits["mail"]["max_running"], limits["plain"]["max_running"]) == (3, None)


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [("--rate", "fast", "10/s, 600/m"), ("--rate", "1/0s", "no rate"), ("--rate", "-1/s", "positive"),
     ("--max-running", "x", "whole"), ("--per-key", "-1", "from 0"), ("--burst", "0", "from 1"),
     ("--ageing", "soon", "duration"), ("--ageing", "0", "positive")],
)  # fmt: skip
def test_a_limit_without_a_meaning_is_refused(queue, pgq, option: str, value: str, said: str):
    answer = pgq("queue", "limit", "mail", f"{option}={value}")
    assert answer.code == 2
    assert said in answer.error
    assert queue.queue_settings() == []


def test_enqueue_takes_every_option_of_keys_and_dependencies(queue, pgq):
    first = int(pgq("enqueue", "--delay", "1h").out)
    job_id = int(pgq("enqueue", "--group-key", "g", "--unique-key", "u", "--unique-for", "1h", "--depends-on", first,
                     "--on-dead", "continue").out)  # fmt: skip
    record = queue.get(job_id)
    assert (record.group_key, record.unique_key, record.state, record.depends_on) == ("g", "u", "blocked", [first])
    assert pgq("enqueue", "--unique-key", "u").out == f"{job_id}\n"
    refused = pgq("enqueue", "--unique-key", "u", "--on-conflict", "raise")
    assert refused.code != 0
    assert str(job_id) in refused.error
    assert pgq("enqueue", "--unique-key", "u", "--on-conflict", "replace", "--payload", "[1]").out == f"{job_id}\n"
    assert queue.get(job_id).payload == [1]


def test_the_lines_of_a_file_take_the_same_names(queue, pgq, tmp_path):
    first = int(pgq("enqueue", "--delay", "1h").out)
    rows = [
        {"group_key": "g", "unique_key": "u", "unique_for": "1h"},
        {"unique_key": "u", "on_conflict": "replace", "payload": 7},
        {"depends_on": [first], "on_dead": "hold"},
    ]
    file = tmp_path / "jobs.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    a, b, c = map(int, pgq("enqueue", "--file", file).out.split())
    assert a == b
    assert (queue.get(a).payload, queue.get(c).state) == (7, "blocked")


@pytest.mark.parametrize(
    ("options", "said"),
    [(["--unique-for", "1h"], "unique_key"),
     (["--unique-key", "u", "--on-conflict", "maybe"], "skip, replace or raise"),
     (["--depends-on", "999999"], "no job"), (["--group-key", ""], "group_key"), (["--on-dead", "cry"], "on_dead")],
)  # fmt: skip
def test_an_option_without_a_meaning_is_refused(queue, pgq, options: list[str], said: str):
    answer = pgq("enqueue", *options)
    assert answer.code == 2
    assert said in answer.error
    assert queue.jobs() == []


def test_with_an_app_the_keys_of_the_task_are_made_from_the_payload(queue, pgq, tmp_path, monkeypatch):
    (tmp_path / "keyed_app.py").write_text(
        "import pgqueue\n"
        "app = pgqueue.App()\n"
        "@app.task(name='sync', unique_key=pgqueue.all_arguments, group_key=lambda user, n: f'user:{user}')\n"
        "def sync(user: int, n: int) -> None: ...\n"
    )
    monkeypatch.chdir(tmp_path)
    first = pgq("enqueue", "sync", "--app", "keyed_app:app", "--payload", '{"user": 1, "n": 2}').out
    assert pgq("enqueue", "sync", "--app", "keyed_app:app", "--payload", '{"n":2,   "user":1}').out == first
    assert queue.get(int(first)).group_key == "user:1"
