"""psycopg connections that are not as psycopg makes them; and who imports what."""

from __future__ import annotations

import subprocess
import sys

import invariants
import psycopg
import pytest
from psycopg.rows import dict_row, scalar_row

import pgqueue


@pytest.fixture
async def app(dsn):
    app = pgqueue.App(dsn)
    app.task(name="t")(lambda: None)
    yield app
    await app.aclose()


@pytest.mark.parametrize("rows", [dict_row, scalar_row])
async def test_a_connection_may_have_rows_and_cursors_of_its_own(app, dsn, rows):
    task = app.tasks["t"]
    with psycopg.connect(dsn, row_factory=rows, cursor_factory=psycopg.ClientCursor) as connection:
        job = task.using(connection).enqueue_sync()
        assert app.client.get(job.id, connection=connection).state == "available"
        assert connection.row_factory is rows
    connect = psycopg.AsyncConnection.connect
    async with await connect(dsn, row_factory=rows, cursor_factory=psycopg.AsyncClientCursor) as connection:
        other = await task.using(connection).enqueue()
        assert (await app.aclient.get(other.id, connection=connection)).state == "available"
    invariants.check(dsn, [job.id, other.id])


def test_neither_the_package_nor_the_worker_imports_a_framework():
    code = "import sys, pgqueue, pgqueue.worker, pgqueue.testing; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    known = {name.partition(".")[0] for name in modules}
    assert not known & {"asyncpg", "django", "django_tasks", "fastapi", "flask", "starlette", "sqlalchemy", "pytest"}
