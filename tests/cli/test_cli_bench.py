"""`pgq bench`: figures of a queue beside its floors, on the user's own database, of which nothing is left there."""

from __future__ import annotations

import os
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from pgqueue import Settings
from pgqueue.bench import measure, scratch

QUICK = ("--seconds", "0.05")


def value(dsn, query):
    with psycopg.connect(dsn, autocommit=True) as connection:
        return connection.execute(query).fetchone()[0]


def schemas(dsn):
    with psycopg.connect(dsn, autocommit=True) as connection:
        return found_by(connection)


def found_by(connection):
    query = "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'pgqueue%' ORDER BY nspname"
    return [name for (name,) in connection.execute(query)]


def workers_of(schema):
    """The processes whose environment names this schema."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"PGQUEUE_SCHEMA={schema}".encode() in (folder / "environ").read_bytes():
                found.append(folder.name)
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_every_regime_is_measured_beside_its_floor_and_the_users_jobs_are_left_alone(queue, dsn, pgq, monkeypatch):
    monkeypatch.setattr(measure, "_BATCH", 100)
    monkeypatch.setattr(measure, "_FIRST_DRAIN", 100)
    assert pgq("enqueue", "--count", 3).code == 0
    answer = pgq("bench", *QUICK, "--json")
    assert answer.code == 0, answer.err
    told = answer.json
    assert told["ok"] is True
    assert told["problems"] == []
    assert [one["regime"] for one in told["measures"]] == ["enqueue", "bulk", "drain", "latency"]
    enqueue, bulk, drain, latency = told["measures"]
    for one in (enqueue, bulk):
        assert one["ratio"] == one["queue"]["jobs_per_second"] / one["floor"]["jobs_per_second"]
    assert (drain["floor"], drain["ratio"]) == (None, None)
    assert drain["queue"]["jobs"] >= 100
    for one in (enqueue, latency):
        assert 0 < one["queue"]["p50_ms"] <= one["queue"]["p99_ms"]
    assert told["server"]["round_trip_ms"] > 0
    assert told["server"]["client_cpus"] >= 1
    assert schemas(dsn) == ["pgqueue"]
    assert {(job.queue, job.state) for job in queue.jobs()} == {("default", "available")}
    assert queue.workers() == []


def test_the_table_names_the_server_and_hints_when_nothing_is_durable(dsn, pgq, terminal):
    terminal("stderr")
    answer = pgq("bench", *QUICK, "--only", "enqueue", "--dsn", make_conninfo(dsn, options="-c synchronous_commit=off"))
    assert answer.code == 0, answer.err
    head, floor, ours, _, facts, *hint = answer.out.splitlines()
    assert head.split() == ["jobs/s", "p50", "ms", "p99", "ms", "of", "floor"]
    assert floor.startswith("INSERT, COMMIT ")
    assert ours.startswith("enqueue, one by one ")
    assert f"PostgreSQL {value(dsn, 'SHOW server_version')}" in facts
    assert "synchronous_commit off" in facts
    assert "CPUs here" in facts
    assert "synchronous_commit off no commit waits for the disk" in hint[0]
    assert "one job after another" in answer.err
    assert schemas(dsn) == ["pgqueue"]


@pytest.mark.slow
def test_the_next_run_drops_what_a_killed_one_left_and_ctrl_c_leaves_nothing(empty_dsn, spawn, end, until):
    with psycopg.connect(empty_dsn, autocommit=True) as watching:
        killed = spawn("bench", "--dsn", empty_dsn, "--only", "enqueue")
        (left,) = until(lambda: found_by(watching), "the scratch schema")
        end(killed, signal.SIGKILL)
        bench = spawn("bench", "--dsn", empty_dsn, "--only", "latency")
        until(lambda: left not in found_by(watching), "the next run")
        (own,) = until(lambda: found_by(watching), "its schema")
        floor = f"SELECT to_regclass('{own}.floor') IS NOT NULL"
        until(lambda: watching.execute(floor).fetchone()[0], "its tables")
        until(lambda: workers_of(own), "its worker")
    answer = end(bench, signal.SIGINT)
    assert answer.code == 130
    assert "Traceback" not in answer.err
    assert schemas(empty_dsn) == []
    assert workers_of(own) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_the_database_works_leaves_nothing(number, empty_dsn, pgq, monkeypatch):
    monkeypatch.setattr(scratch, "migrate", lambda *_args, **_options: None)

    def interrupted(site):
        threading.Timer(0.05, os.kill, (os.getpid(), number)).start()
        site.sql("SELECT pg_sleep(30)")

    monkeypatch.setitem(measure.REGIMES, "enqueue", interrupted)
    before = signal.signal(number, signal.SIG_DFL)  # under nohup it is ignored, and so it stays
    try:
        answer = pgq("bench", "--dsn", empty_dsn, "--only", "enqueue")
        assert answer.code == 128 + number
        assert answer.out == answer.err == ""
        assert schemas(empty_dsn) == []
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_a_signal_that_comes_in_a_destructor_is_not_lost(empty_dsn, pgq, monkeypatch):
    monkeypatch.setattr(scratch, "migrate", lambda *_args, **_options: None)

    class Leaving:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    def interrupted(site):
        Leaving()
        site.sql("SELECT pg_sleep(30)")

    monkeypatch.setitem(measure.REGIMES, "enqueue", interrupted)
    answer = pgq("bench", "--dsn", empty_dsn, "--only", "enqueue")
    assert (answer.code, answer.out, answer.err) == (130, "", "")
    assert schemas(empty_dsn) == []


def test_only_schemas_whose_owner_is_gone_are_dropped(empty_dsn, monkeypatch):
    monkeypatch.setattr(scratch, "migrate", lambda *_args, **_options: None)
    settings = Settings(dsn=empty_dsn)
    with psycopg.connect(empty_dsn, autocommit=True) as user:
        user.execute("CREATE SCHEMA pgqueue_bench_0123abcd")  # is called as ours are, but nothing says that it is ours
    with scratch.scratch_queue(settings) as (living, _):
        gone = replace(settings, schema="pgqueue_bench_0123abce")
        with scratch.connect(gone) as owner:
            scratch._create(owner, gone)
            assert scratch.drop_leftovers(settings) == []
            assert schemas(empty_dsn) == sorted(["pgqueue_bench_0123abcd", gone.schema, living.schema])
        with scratch.scratch_queue(settings) as (next_one, _):
            assert schemas(empty_dsn) == sorted(["pgqueue_bench_0123abcd", next_one.schema, living.schema])
    assert schemas(empty_dsn) == ["pgqueue_bench_0123abcd"]


def test_a_role_that_may_not_create_a_schema_is_told_the_remedy(dsn, server, pgq):
    name = f"no_create_{os.getpid()}"
    role = sql.Identifier(name)
    server.admin(sql.SQL("CREATE ROLE {} LOGIN").format(role))
    try:
        answer = pgq("bench", *QUICK, "--dsn", make_conninfo(dsn, options=f"-c role={name}"))
    finally:
        server.admin(sql.SQL("DROP ROLE {}").format(role))
    assert answer.code == 1
    assert "GRANT CREATE ON DATABASE" in answer.error
    assert schemas(dsn) == ["pgqueue"]


def test_a_server_that_has_never_seen_pgqueue_is_left_so(private_server, pgq):
    dsn = private_server().dsn
    answer = pgq("bench", "--dsn", dsn, *QUICK, "--only", "enqueue")
    assert answer.code == 0, answer.err
    assert "fsync on, synchronous_commit on" in answer.out
    assert "hint" not in answer.out
    assert schemas(dsn) == []
    assert value(dsn, "SELECT count(*) FROM pg_roles WHERE rolname LIKE 'pgqueue%'") == 0


def test_a_worker_that_does_not_start_is_exit_1(dsn, pgq, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    answer = pgq("bench", "--dsn", dsn, *QUICK, "--only", "drain")
    assert answer.code == 1
    assert answer.error == "waited in vain for its worker to start; the worker's last words: none"
    assert schemas(dsn) == ["pgqueue"]


def test_jobs_that_do_not_add_up_are_exit_1(dsn, pgq, monkeypatch):
    monkeypatch.setattr(measure._Site, "count", lambda _site, _queue: (7, 0, 0, 0))
    answer = pgq("bench", "--dsn", dsn, *QUICK, "--only", "enqueue", "--json")
    assert answer.code == 1
    assert answer.json["ok"] is False
    assert "in queue 'one-by-one' the database has (7, 0, 0, 0)" in answer.error
    assert schemas(dsn) == ["pgqueue"]


@pytest.mark.parametrize("words", [("--only", "enqueue,drian"), ("--only", ""), ("--schema", "pgqueue")])
def test_what_has_no_meaning_is_wrong_usage(words, pgq):
    answer = pgq("bench", *words)
    assert answer.code == 2
    assert words[0] in answer.error
