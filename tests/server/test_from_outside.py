"""`pgq serve` as people run it: processes, signals, restarts of the database."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import invariants
import pytest

from server.conftest import check_problem, until

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.conftest import Process

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


def test_with_nothing_configured_a_killed_server_loses_nothing(serve: Callable[..., Process]):
    """The embedded server; kill -9; again: every job is still there and goes on."""
    first = serve("--port", 0)
    waiting = first.api.submit("process this data", max_retries=3)
    held = first.api.submit("held", priority="high")
    job = first.api.lease(lease="2s")
    assert job["job_id"] == held
    first.end(signal.SIGKILL)
    second = serve("--port", 0, LEASE_CHECK_INTERVAL="0.2s")
    assert second.api.job(waiting)["state"] == "available"
    assert second.api.job(waiting)["payload"] == "process this data"
    states = {one["job_id"]: one for one in (second.api.lease(wait=20) for _ in range(2))}
    assert states.keys() == {waiting, held}
    assert (states[held]["attempt"], states[waiting]["attempt"]) == (2, 1)
    check_problem(second.api.end("ack", job), 409, "lease_lost")
    for one in states.values():
        assert second.api.end("ack", one).status_code == 200
    assert second.end() == 0


def test_settings_are_obeyed(serve: Callable[..., Process], dsn: str):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    one = serve(PGQUEUE_DSN=dsn, PORT=str(port), LEASE_DURATION="1s", LEASE_CHECK_INTERVAL="0.1s")
    assert one.url == f"http://127.0.0.1:{port}"
    job_id = one.api.submit(1)
    began = time.time()
    job = one.api.lease()
    assert datetime.fromisoformat(job["lease_until"]).timestamp() - began < 3
    again = one.api.lease(wait=20)
    assert (again["job_id"], again["attempt"]) == (job_id, 2)


def test_wrong_settings_are_told(dsn: str, tmp_path: Path):
    def run(*words: str, **environment: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "pgqueue", "serve", *words], cwd=tmp_path, capture_output=True, text=True,
            timeout=60, env={**os.environ, "PGQUEUE_DSN": dsn, **environment}, check=False,
        )  # fmt: skip
        return done.returncode, done.stderr

    code, said = run(PORT="http")
    assert (code, "PORT must be" in said) == (2, True)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, said = run("--port", str(taken.getsockname()[1]))
    assert (code, "can't listen" in said) == (2, True), said
    code, said = run("--host", "0.0.0.0", "--port", "0")
    assert (code, "pgq token create" in said) == (2, True), said


def test_a_stop_answers_who_waits_and_ends_in_order(serve: Callable[..., Process], dsn: str):
    one = serve("--port", 0, PGQUEUE_DSN=dsn)
    with ThreadPoolExecutor(5) as pool:
        waiting = [pool.submit(one.api.post, "/jobs/lease", json={"wait": 30}) for _ in range(5)]
        time.sleep(0.5)
        one.process.send_signal(signal.SIGTERM)
        for answer in waiting:
            check_problem(answer.result(), 503, "draining")
    assert one.process.wait(20) == 0
    assert not [line for line in one.said if "Traceback" in line]


@pytest.mark.slow
def test_clients_survive_a_restart_of_the_database_and_nothing_is_lost(  # noqa: C901 - one story
    serve: Callable[..., Process], private_server: Any
):
    database = private_server(migrated=True)
    one = serve("--port", 0, PGQUEUE_DSN=database.dsn, LEASE_CHECK_INTERVAL="0.5s")
    accepted: list[int] = []
    done: set[int] = set()
    stop, sent = threading.Event(), threading.Event()

    def patient(method: str, path: str, body: Any) -> httpx.Response:
        while True:
            answer = one.api.request(method, path, json=body)
            if answer.status_code not in {429, 500, 503}:
                return answer
            assert answer.status_code != 500, answer.text
            time.sleep(0.2)

    def produce(name: int) -> None:
        nth = 0
        while not stop.is_set():
            nth += 1
            key = {"Idempotency-Key": f"{name}-{nth}"}
            while (answer := one.api.post("/jobs", json={"max_attempts": 100}, headers=key)).status_code == 503:
                time.sleep(0.2)
            assert answer.status_code in {200, 201}, answer.text
            accepted.append(answer.json()["job_id"])
            time.sleep(0.01)

    def work(_name: int) -> None:
        while not (sent.is_set() and done >= set(accepted)):
            answer = patient("POST", "/jobs/lease", {"wait": 0.5, "lease": "2s"})
            if answer.status_code == 204:
                continue
            job = answer.json()
            ended = patient("POST", f"/jobs/{job['job_id']}/ack", {"lease_token": job["lease_token"]})
            assert ended.status_code in {200, 409}, ended.text
            if ended.status_code == 200:
                done.add(job["job_id"])

    with ThreadPoolExecutor(6) as pool:
        producers, workers = [pool.submit(produce, n) for n in range(2)], [pool.submit(work, n) for n in range(4)]
        for how in ("fast", "immediate"):
            time.sleep(1.5)
            database.restart(how)
        time.sleep(1.5)
        stop.set()
        for future in producers:
            future.result(60)
        sent.set()
        for future in workers:
            future.result(60)
    assert len(accepted) > 50
    assert set(accepted) <= done
    invariants.check(database.dsn, sorted(set(accepted)))
    assert one.end() == 0


@pytest.mark.slow
def test_the_worker_in_shell(serve: Callable[..., Process], dsn: str, tmp_path: Path):
    one = serve("--port", 0, PGQUEUE_DSN=dsn)
    good = [one.api.submit(text, queue="shell", max_retries=0) for text in ("hello", {"a": 1})]
    bad = one.api.submit("fail", queue="shell", max_retries=0)
    script = subprocess.Popen(
        [EXAMPLES / "http_worker" / "worker.sh", 'read -r x; [ "$x" != fail ] && echo "got $x"'],
        env={**os.environ, "PGQUEUE_URL": one.url}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        until(lambda: one.api.job(bad)["state"] == "dead", "the last one has failed")
        results = [one.api.job(job_id) for job_id in good]
        assert [(job["state"], job["result"]) for job in results] == [
            ("completed", "got hello"), ("completed", 'got {"a":1}'),
        ]  # fmt: skip
    finally:
        os.killpg(script.pid, signal.SIGKILL)
        script.communicate()


@pytest.mark.slow
def test_the_ingest_example(dsn: str, tmp_path: Path):
    """202 at once, progress meanwhile, the result at the end; both or none of upload and job."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "app:api", "--port", str(port), "--log-level", "warning"],
        cwd=EXAMPLES / "ingest_api", env={**os.environ, "PGQUEUE_DSN": dsn}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as site:
            until(lambda: _answers(site), "it serves")
            accepted = site.post("/api/v1/ingest", content="a,b,c\n" * 300_000)
            assert accepted.status_code == 202
            where = accepted.headers["location"]
            seen = set()

            def ended() -> Any:
                status = site.get(where).json()
                seen.add(status["progress"])
                return status if status["state"] in {"completed", "dead"} else None

            status = until(ended, "it has ended")
            assert (status["state"], status["result"]) == ("completed", {"rows": 300_000, "cells": 900_000})
            assert status["progress"] == 1.0
            assert site.get("/api/v1/ingest/999/status").status_code == 404
        process.terminate()
        assert process.wait(30) in {0, -signal.SIGTERM}
    finally:
        process.kill()
        process.communicate()


def _answers(site: httpx.Client) -> bool:
    try:
        return site.get("/api/v1/ingest/1/status").status_code == 404
    except httpx.TransportError:
        return False
