from __future__ import annotations

import pytest

from pgqueue.revision import current_revision, head_revision


def test_migrate_creates_the_schema_and_doing_it_again_changes_nothing(empty_dsn, pgq):
    assert pgq("migrate", "--dsn", empty_dsn).out == f"schema pgqueue: nothing → {head_revision()}\n"
    assert current_revision(empty_dsn) == head_revision()
    assert "already" in pgq("migrate", "--dsn", empty_dsn).out
    assert pgq("enqueue", "--dsn", empty_dsn).code == 0


def test_migrate_goes_down_and_up_again(dsn, pgq):
    assert pgq("migrate", "--dsn", dsn, "--to", "base").code == 0
    assert current_revision(dsn) is None
    answer = pgq("migrate", "--dsn", dsn, "--to", "0001", "--json")
    assert answer.json == {"schema": "pgqueue", "before": None, "revision": "0001"}


def test_migrate_takes_the_schema_option(empty_dsn, pgq):
    assert pgq("--schema", "other", "migrate", "--dsn", empty_dsn).code == 0
    assert current_revision(empty_dsn, schema="other") == head_revision()
    assert current_revision(empty_dsn) is None
    assert pgq("enqueue", "--schema", "other", "--dsn", empty_dsn).code == 0


def test_check_tells_by_its_exit_code_whether_the_schema_fits(empty_dsn, pgq):
    answer = pgq("migrate", "--check", "--dsn", empty_dsn)
    assert answer.code == 4
    assert "run: pgq migrate" in answer.error
    machine = pgq("migrate", "--check", "--json", "--dsn", empty_dsn)
    assert machine.code == 4
    assert machine.json == {"schema": "pgqueue", "revision": None, "needed": head_revision(), "fits": False}
    pgq("migrate", "--dsn", empty_dsn)
    assert pgq("migrate", "--check", "--dsn", empty_dsn).code == 0
    assert pgq("migrate", "--check", "--json", "--dsn", empty_dsn).json["fits"] is True


def test_sql_prints_what_would_be_run_and_needs_no_server(pgq):
    answer = pgq("migrate", "--sql", "--dsn", "postgresql://127.0.0.1:1/nowhere")
    assert answer.code == 0
    assert "CREATE TABLE pgqueue.jobs" in answer.out
    assert "CREATE TABLE pgqueue.jobs" in pgq("migrate", "--sql", "--json").json["sql"]


@pytest.mark.parametrize(
    "argv",
    [
        ["--to", "no-such"],
        ["--to", "4711"],
        ["--to", "-7"],
        ["--sql", "--to", "4711"],
        ["--sql", "--to", "base"],
        ["--sql", "--check"],
        ["--check", "--to", "0001"],
    ],
)
def test_a_revision_that_there_is_not_is_wrong_usage_and_changes_nothing(argv, dsn, pgq):
    answer = pgq("migrate", "--dsn", dsn, *argv)
    assert answer.code == 2, answer
    assert "--" in answer.error
    assert current_revision(dsn) == head_revision()
