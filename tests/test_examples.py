"""The examples do what their pages say, with real worker processes."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import psycopg
import pytest

import pgqueue

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

EXAMPLES = Path(__file__).parent.parent / "examples"


@contextlib.contextmanager
def worker(folder: Path, dsn: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A worker as the page starts it; at the end it must stop in order."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pgqueue", "worker", *arguments],
        cwd=folder, env={**os.environ, "PGQUEUE_DSN": dsn}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield process
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=40)
        assert process.returncode == 0, log
    finally:
        process.kill()
        process.communicate()


def load(path: Path) -> ModuleType:
    """Import a file under its own name, as a worker in its folder does."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
async def test_a_sign_up_of_the_fastapi_application_commits_the_user_and_the_job_together(dsn, monkeypatch):
    monkeypatch.setenv("PGQUEUE_DSN", dsn)
    monkeypatch.delitem(sys.modules, "app", raising=False)
    folder = EXAMPLES / "fastapi_app"
    module = load(folder / "app.py")
    monkeypatch.setitem(sys.modules, "app", module)
    transport = httpx.ASGITransport(module.api, raise_app_exceptions=False)
    with worker(folder, dsn, "--app", "app:queue"):
        async with (
            module.api.router.lifespan_context(module.api),
            httpx.AsyncClient(transport=transport, base_url="http://test") as client,
        ):
            first = await client.post("/users", params={"email": "ann@example.com"})
            again = await client.post("/users", params={"email": "ann@example.com"})
        assert (first.status_code, again.status_code) == (201, 500)
        job = module.queue.job(first.json()["job_id"])
        assert await job.result(timeout=60) == "welcome, ann@example.com"
        assert [record.id for record in await module.queue.aclient.jobs()] == [job.id]
    module.engine.dispose()
    await module.queue.aclose()


@pytest.mark.slow
def test_the_complete_workflow_ends_with_every_job_completed(dsn):
    """The jobs are there before the worker, which has one slot: so the order is the queue's own."""
    folder = EXAMPLES / "complete_workflow"
    command = [sys.executable, "run.py"]
    environment = {**os.environ, "PGQUEUE_DSN": dsn}
    run = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        _wait_for_jobs(dsn, 6, run)
        with worker(folder, dsn, "--app", "app:app", "--slots", "1"):
            output, _ = run.communicate(timeout=100)
    finally:
        run.kill()
        run.communicate()
    assert run.returncode == 0, output
    for line in (
        "data, high priority .*running, ",
        "fails once .*retrying",
        "in 2 s .*scheduled",
        "sent to ann@example.com",
    ):
        assert re.search(line, output), output

    app = pgqueue.App(dsn)
    records = app.client.jobs()
    app.close()
    assert len(records) == 8  # six, and the welcome e-mails of two sign-ups
    assert {record.state for record in records} == {"completed"}
    data = {record.payload["rows"]: record for record in records if record.task == "process_data"}
    assert data[100_000].finished_at < data[10_000].finished_at  # high before low
    (later,) = [record for record in records if record.payload.get("name") == "Eve"]
    assert (later.started_at - later.created_at).total_seconds() >= 2
    (unlucky,) = [record for record in records if record.payload.get("name") == "Unlucky"]
    assert (unlucky.attempt, [error["type"] for error in unlucky.errors]) == (2, ["Retry"])
    with psycopg.connect(dsn) as connection:
        assert connection.execute("SELECT count(*) FROM accounts").fetchone() == (2,)


def _wait_for_jobs(dsn: str, count: int, run: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    with psycopg.connect(dsn, autocommit=True) as connection:
        while connection.execute("SELECT count(*) FROM pgqueue.jobs").fetchone() != (count,):
            assert run.poll() is None, "run.py ended early"
            assert time.monotonic() < deadline
            time.sleep(0.05)
