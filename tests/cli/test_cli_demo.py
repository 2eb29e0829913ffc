"""`pgq demo`: the story holds, and nothing is left of it."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import psycopg
import pytest

from pgqueue.cli import demo as module
from pgqueue.cli.demo import StoryError, Teller


def schemas(dsn):
    with psycopg.connect(dsn) as connection:
        return [
            name for (name,) in connection.execute("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'pgqueue%'")
        ]


def family(marker):
    """The processes whose environment names this server."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if marker.encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_the_story_holds_and_leaves_nothing(empty_dsn, spawn, end):
    answer = end(spawn("demo", "--dsn", empty_dsn, "--json"), None)
    assert answer.code == 0, answer.err
    told = answer.json
    assert told["ok"] is True
    assert len(told["checks"]) >= 12
    assert told["seconds"] < 60
    assert 0 <= told["measured"]["scheduled_job_late_ms"] < 1000
    assert told["measured"]["drained_per_second"] > 0
    assert "ROLLBACK" in answer.err
    assert "kill -9" in answer.err
    assert "clerk started 12 high, then 12 normal, then 12 low" in answer.err
    assert "\x1b" not in answer.err
    assert schemas(empty_dsn) == []
    assert family("PGQUEUE_SCHEMA=pgqueue_demo_") == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_middle_leaves_nothing(number, empty_dsn, spawn, end, until):
    demo = spawn("demo", "--dsn", empty_dsn)
    said = []
    until(lambda: said.append(demo.stdout.readline()) or "BEGIN" in said[-1], "the workers to be started")
    (schema,) = schemas(empty_dsn)
    assert family(f"PGQUEUE_SCHEMA={schema}")
    answer = end(demo, number)
    assert answer.code in {128 + number, -number}
    assert "Traceback" not in answer.err
    assert schemas(empty_dsn) == []
    assert family(f"PGQUEUE_SCHEMA={schema}") == []


def test_the_demo_does_not_take_a_schema(dsn, pgq):
    answer = pgq("demo", "--dsn", dsn, "--schema", "pgqueue")
    assert answer.code == 2
    assert "--schema" in answer.error


def test_a_check_that_does_not_hold_is_exit_1(dsn, pgq, monkeypatch):
    monkeypatch.setattr(module, "_tell", lambda teller, *_args, **_options: teller.check("water flows uphill", False))
    answer = pgq("demo", "--dsn", dsn)
    assert answer.code == 1
    assert "NOT SO: water flows uphill" in answer.out
    assert "1 of 1 checks failed" in answer.out
    assert pgq("demo", "--dsn", dsn, "--json").json["checks"] == [{"check": "water flows uphill", "ok": False}]


def test_a_story_that_stops_shows_the_workers_last_words(empty_dsn, pgq, monkeypatch):
    monkeypatch.setattr(module, "_PATIENCE", 0.1)
    monkeypatch.setattr(module, "_enqueue", lambda *_args: [])

    def in_vain(_teller, _app, staff, _ids):
        staff.said.append("worker-1 │ I am not well")
        raise StoryError("waited in vain")

    monkeypatch.setattr(module, "_work", in_vain)
    answer = pgq("demo", "--dsn", empty_dsn)
    assert answer.code == 1
    assert "I am not well" in answer.out
    assert answer.error == "waited in vain"
    assert schemas(empty_dsn) == []


def test_hostile_text_is_shown_not_obeyed(capsys):
    teller = Teller(to_stderr=False)
    teller.aside("[bold]\x1b[2J")
    assert "[bold]\\x1b[2J" in capsys.readouterr().out


def test_the_demo_on_the_embedded_server_stops_it(spawn, end, until, pgq):
    demo = spawn("demo")
    said = []
    until(lambda: said.append(demo.stdout.readline()) or "BEGIN" in said[-1] or demo.poll() is not None, "the server")
    if demo.poll() is not None:
        pytest.skip(f"no embedded server: {demo.stderr.read()}")
    answer = end(demo, signal.SIGINT)
    assert answer.code in {128 + signal.SIGINT, -signal.SIGINT}
    assert pgq("db", "--json").json["status"] == "stopped"
    assert json.dumps(os.environ["PGQUEUE_HOME"]) not in json.dumps(family("PGQUEUE_SCHEMA=pgqueue_demo_"))
