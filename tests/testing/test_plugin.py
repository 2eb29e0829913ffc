"""pytest's fixtures, as a project without a conftest gets them; those of projects with one: the examples."""

from __future__ import annotations

import psycopg
import pytest

import pgqueue
from pgqueue.testing import Sandbox, plugin
from pgqueue.testing.plugin import pgqueue_app, pgqueue_connection, pgqueue_queue, pgqueue_schema

__all__ = ["pgqueue_app", "pgqueue_connection", "pgqueue_queue", "pgqueue_schema"]


@pytest.fixture(scope="session")
def pgqueue_dsn(server):
    name = server.create(migrated=False)
    yield server.dsn(name)
    server.drop(name)


@pytest.mark.parametrize("again", [False, True])
def test_a_queue_is_there_and_rolled_back(pgqueue_queue, pgqueue_app, pgqueue_schema, pgqueue_dsn, again):
    assert pgqueue_app.client.jobs() == []
    assert isinstance(pgqueue_queue, Sandbox)
    job = pgqueue_app.task(name="t")(lambda: "ran").enqueue_sync()
    assert [ran.result for ran in pgqueue_queue.run_pending()] == ["ran"]
    assert pgqueue_app.schema == pgqueue_schema == pgqueue_queue.schema
    with psycopg.connect(pgqueue_dsn) as outside, pytest.raises(pgqueue.JobNotFoundError):
        pgqueue.Client(pgqueue_app.database, pgqueue_schema).get(job.id, connection=outside)


class TestThatCommits:
    @pytest.fixture
    def pgqueue_connection(self):
        return None

    @pytest.mark.parametrize("again", [False, True])
    def test_finds_an_empty_queue(self, pgqueue_queue, pgqueue_app, pgqueue_schema, pgqueue_dsn, again):
        assert pgqueue_queue.enqueued() == []
        job = pgqueue_app.task(name="t")(lambda: None).enqueue_sync()
        with psycopg.connect(pgqueue_dsn) as outside:
            assert pgqueue.Client(pgqueue_app.database, pgqueue_schema).get(job.id, connection=outside).id == job.id


def test_the_schemas_of_killed_runs_are_swept_after_a_day(pgqueue_dsn):
    keep = [f"pgqueue_test_{int(plugin.time.time()) - 3600:x}_abcdef", "pgqueue_test_mine", "mine"]
    with psycopg.connect(pgqueue_dsn) as connection:
        for name in [*keep, "pgqueue_test_5f000000_abcdef"]:
            connection.execute(f"CREATE SCHEMA {name}")
        plugin._sweep(connection)
        left = {name for (name,) in connection.execute("SELECT nspname FROM pg_namespace")}
        assert set(keep) <= left
        assert "pgqueue_test_5f000000_abcdef" not in left
        connection.rollback()


def test_the_database_is_that_of_the_environment(monkeypatch):
    monkeypatch.setenv("DATABASE_URL", "postgresql+psycopg://somewhere/db")
    assert plugin.pgqueue_dsn.__wrapped__() == "postgresql://somewhere/db"
