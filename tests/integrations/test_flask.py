"""Flask: settings from its configuration, handlers inside its context, commands."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import invariants
import psycopg
import pytest

import pgqueue
from pgqueue.errors import PgqueueError, SettingsError
from pgqueue.testing import Sandbox

flask = pytest.importorskip("flask")

from pgqueue.integrations.flask import current_queue, init_app  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def queue() -> Iterator[pgqueue.App]:
    queue = pgqueue.App()
    yield queue
    queue.close()


@pytest.fixture
def api(queue: pgqueue.App, dsn: str) -> Any:
    api = flask.Flask("shop")
    api.config["SQLALCHEMY_DATABASE_URI"] = dsn.replace("postgresql://", "postgresql+psycopg://")
    init_app(api, queue)

    @queue.task(name="name")
    def name(job: pgqueue.Job) -> str:
        return flask.current_app.name

    @queue.task(name="aname")
    async def aname() -> str:
        await asyncio.sleep(0)
        return flask.current_app.name

    @api.post("/names")
    def enqueue() -> dict[str, int]:
        with psycopg.connect(current_queue().database.dsn) as connection:
            job = name.using(connection).enqueue_sync()
            if flask.request.args.get("fail"):
                connection.rollback()
        return {"job_id": job.id}

    return api


def test_a_job_is_enqueued_in_the_requests_transaction(api, dsn):
    client = api.test_client()
    kept = client.post("/names").get_json()["job_id"]
    client.post("/names?fail=1")
    invariants.check(dsn, [kept])


def test_handlers_run_in_the_applications_context_in_a_worker_and_in_a_sandbox(api, queue, dsn):
    jobs = [queue.tasks[task].enqueue_sync() for task in ("name", "aname")]

    async def work() -> list[Any]:
        worker = pgqueue.Worker(queue)
        running = asyncio.create_task(worker.run())
        results = [await job.result(timeout=60) for job in jobs]
        worker.stop()
        await running
        await queue.aclose()
        return results

    assert asyncio.run(work()) == ["shop", "shop"]
    assert not flask.has_app_context()
    with psycopg.connect(dsn) as connection, Sandbox(queue, connection) as sandbox:
        queue.tasks["name"].enqueue_sync()
        queue.tasks["aname"].enqueue_sync()
        assert [ran.result for ran in sandbox.run_pending(raise_errors=True)] == ["shop", "shop"]
        connection.rollback()


def test_the_queues_own_dsn_and_schema_win(dsn, empty_dsn):
    queue = pgqueue.App(empty_dsn)
    api = flask.Flask("shop")
    api.config.update(PGQUEUE_DSN=dsn, PGQUEUE_SCHEMA="other")
    init_app(api, queue)
    init_app(api, queue)
    assert (queue.settings.dsn, queue.schema) == (empty_dsn, "other")
    with pytest.raises(SettingsError, match="another queue already"):
        init_app(api, pgqueue.App(dsn))
    other = flask.Flask("other")
    other.config["PGQUEUE_SCHEMA"] = "No Name"
    with pytest.raises(SettingsError, match="schema"):
        init_app(other, queue)
    with pytest.raises(PgqueueError, match="has no queue"), flask.Flask("other").app_context():
        current_queue()


def test_the_commands_migrate_and_work(empty_dsn, monkeypatch):
    monkeypatch.setenv("PGQUEUE_DSN", empty_dsn)
    queue = pgqueue.App()
    api = flask.Flask("shop")
    init_app(api, queue)
    runner = api.test_cli_runner()
    assert runner.invoke(args=["pgqueue", "migrate"]).exit_code == 0
    invariants.check(empty_dsn, [])
    started = []
    monkeypatch.setattr("pgqueue.worker.run_worker", lambda worker: started.append(worker) or 1)
    queue.task(name="t")(lambda: None)
    monkeypatch.setattr("pgqueue.logs.configure_logging", lambda *_: None)
    result = runner.invoke(args=["pgqueue", "worker", "--queues", "a, b", "--slots", "3"])
    assert (result.exit_code, started[0].queues, started[0].slots) == (1, ["a", "b"], 3)
    queue.close()
