"""FastAPI: the lifespan that opens and closes a queue, and works it."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient

import pgqueue
from pgqueue.errors import SchemaError
from pgqueue.integrations.fastapi import pgqueue_lifespan
from pgqueue.testing import Sandbox

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


def make(dsn: str, **options: Any) -> tuple[FastAPI, pgqueue.App]:
    queue = pgqueue.App(dsn)

    @queue.task(name="double")
    async def double(n: int) -> int:
        return 2 * n

    api = FastAPI(lifespan=pgqueue_lifespan(queue, **options))

    @api.post("/double/{n}")
    async def enqueue(n: int, request: Request) -> dict[str, int]:
        assert request.state.pgqueue is queue
        return {"job_id": (await double.enqueue(n)).id}

    @api.post("/sync/{n}")
    def enqueue_sync(n: int) -> dict[str, int]:
        return {"job_id": double.enqueue_sync(n).id}

    return api, queue


def test_a_worker_inside_the_application_runs_its_jobs_and_stops_with_it(dsn):
    api, queue = make(dsn, worker=True, slots=2)
    with TestClient(api) as client:
        job_id = client.post("/double/4").json()["job_id"]
        with psycopg.connect(dsn, autocommit=True) as outside:
            assert queue.job(job_id).result_sync(timeout=60) == 8
            assert len(queue.client.workers()) == 1
    with psycopg.connect(dsn, autocommit=True) as outside:
        assert outside.execute("SELECT count(*) FROM pgqueue.workers").fetchone() == (0,)
        assert outside.execute("SELECT count(*) FROM pgqueue.leases").fetchone() == (0,)
    queue.close()


def test_a_producer_works_without_a_worker_and_beside_another_lifespan(dsn):
    told = []

    @asynccontextmanager
    async def own(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
        told.append("begun")
        yield {"mine": 1}
        told.append("ended")

    api, queue = make(dsn, lifespan=own)

    @api.get("/mine")
    def mine(request: Request) -> int:
        return request.state.mine

    with TestClient(api) as client:
        assert client.get("/mine").json() == 1
        first = client.post("/double/1").json()["job_id"]
        again = client.post("/sync/1").json()["job_id"]
    assert told == ["begun", "ended"]
    assert [record.state for record in map(queue.client.get, (first, again))] == ["available"] * 2
    queue.close()


def test_in_a_sandbox_no_worker_is_started_and_nothing_is_committed(dsn, monkeypatch):
    monkeypatch.setattr(pgqueue.Worker, "run", None)
    api, queue = make(dsn, worker=True)
    with psycopg.connect(dsn) as connection, Sandbox(queue, connection) as sandbox, TestClient(api) as client:
        client.post("/double/4")
        client.post("/sync/5")
        sandbox.assert_enqueued("double", count=2)
        assert [ran.result for ran in sandbox.run_pending()] == [8, 10]
        connection.rollback()
    assert queue.client.jobs() == []
    queue.close()


def test_an_application_whose_worker_cant_start_does_not_start(empty_dsn):
    api, queue = make(empty_dsn, worker=True)
    with pytest.raises(SchemaError, match="run: pgq migrate"), TestClient(api):
        pass
    queue.close()


async def test_a_worker_that_breaks_is_logged_and_the_application_goes_on(dsn, caplog, monkeypatch):
    async def broken(self: pgqueue.Worker) -> bool:
        self.started.set()
        await asyncio.sleep(0)
        raise RuntimeError("broken")

    monkeypatch.setattr(pgqueue.Worker, "run", broken)
    api, _ = make(dsn, worker=True)
    with caplog.at_level(logging.ERROR), pytest.raises(RuntimeError, match="broken"):  # noqa: PT012
        async with api.router.lifespan_context(api):
            while "jobs wait for another one" not in caplog.text:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


def test_options_of_a_worker_without_one_are_refused(dsn):
    with pytest.raises(TypeError, match="slots: options of a worker"):
        pgqueue_lifespan(pgqueue.App(dsn), slots=3)
