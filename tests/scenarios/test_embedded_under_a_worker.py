"""The embedded server dies, or is stopped by hand, while a worker is its only client."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import psycopg
import pytest

from pgqueue import Client, JobSpec, embedded
from pgqueue.connection import Database

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

T = TypeVar("T")
pytestmark = pytest.mark.slow


@contextmanager
def a_worker(home: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`pgq worker` without any DSN; it starts the server and makes the schema."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pgqueue", "worker"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        until(lambda: workers(home), "the worker has signed on")
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def test_a_worker_starts_the_server_again_that_was_killed_under_it(clean_environment: Path) -> None:
    with a_worker(clean_environment):
        embedded.EmbeddedServer(clean_environment).server.kill()
        until(lambda: workers(clean_environment), "the server runs again, though nobody else asked for it")
        assert until(lambda: finished(clean_environment), "a job runs on it") == "completed"


def test_a_worker_does_not_start_a_server_that_was_stopped_by_hand(clean_environment: Path) -> None:
    with a_worker(clean_environment) as worker:
        log = embedded.status(clean_environment).log_file
        assert embedded.stop(clean_environment, force=True)
        starts = log.read_text().count("ready to accept connections")
        time.sleep(3)  # long enough for several of its tries
        assert log.read_text().count("ready to accept connections") == starts
        assert worker.poll() is None
        embedded.embedded_dsn(clean_environment)  # a new client may
        try:
            assert until(lambda: finished(clean_environment), "the worker has found it") == "completed"
        finally:
            embedded.stop(clean_environment, force=True)


def workers(home: Path) -> int:
    dsn = embedded.status(home).dsn
    try:
        with psycopg.connect(dsn, connect_timeout=2) as connection:
            row = connection.execute("SELECT count(*) FROM pgqueue.workers").fetchone()
            return row[0] if row else 0
    except psycopg.Error:
        return 0


def finished(home: Path) -> str | None:
    """Enqueue a job and answer how it ended."""
    dsn = embedded.status(home).dsn
    database = Database(lambda: dsn)
    try:
        client = Client(database)
        job_id = client.enqueue(JobSpec.make("echo"))
        until(lambda: client.get(job_id).finished, "it has ended")
        return client.get(job_id).state
    finally:
        database.close()


def until(look: Callable[[], T], what: str, within: float = 60) -> T:
    end = time.monotonic() + within
    while not (answer := look()):
        assert time.monotonic() < end, f"not in {within} s: {what}"
        time.sleep(0.05)
    return answer
