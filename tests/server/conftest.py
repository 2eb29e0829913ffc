"""The HTTP server, in a thread of this process or as a process of its own, and what talks to it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import httpx
import psycopg
import pytest

from pgqueue import App, Settings
from pgqueue.http import LOOPBACK, create_app
from pgqueue.http.server import Server, listen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PATIENCE = 30.0


def until(look: Callable[[], Any], what: str, patience: float = PATIENCE) -> Any:
    deadline = time.monotonic() + patience
    while not (answer := look()):
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.01)
    return answer


class Api(httpx.Client):
    """A client of one server, which says what it did not expect."""

    def lease(self, **wanted: Any) -> Any:
        """The job, the list of jobs with `max`, or None."""
        answer = self.post("/jobs/lease", json=wanted)
        assert answer.status_code in {200, 204}, answer.text
        return None if answer.status_code == 204 else answer.json()

    def submit(self, payload: Any = None, **options: Any) -> int:
        """The new job's id."""
        answer = self.post("/jobs", json={"payload": payload, **options})
        assert answer.status_code == 201, answer.text
        return answer.json()["job_id"]

    def end(self, verb: str, job: dict[str, Any], **more: Any) -> httpx.Response:
        return self.post(f"/jobs/{job['job_id']}/{verb}", json={"lease_token": job["lease_token"], **more})

    def job(self, job_id: int) -> Any:
        answer = self.get(f"/jobs/{job_id}")
        assert answer.status_code == 200, answer.text
        return answer.json()


def check_problem(answer: httpx.Response, status: int, code: str) -> Any:
    """An error that is a problem with this code."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert (problem["status"], problem["code"]) == (status, code), problem
    assert problem["detail"]
    assert ("retry-after" in answer.headers) is (status in {429, 503})
    return problem


class Running:
    """`with Running(dsn) as api`: the application under uvicorn, in a thread."""

    def __init__(self, dsn: str, *, settings: dict[str, Any] | None = None, **options: Any) -> None:
        self.queue = App(settings=Settings(dsn=dsn, **(settings or {})))
        self.app = create_app(self.queue, **options)
        self._bound = listen("127.0.0.1", 0)
        self.address = self._bound.getsockname()
        import uvicorn

        config = uvicorn.Config(self.app, log_config=None, access_log=False, timeout_graceful_shutdown=5)
        self.server = Server(self.app, config)
        self._thread = threading.Thread(target=lambda: self.server.run(sockets=[self._bound]), daemon=True)

    def __enter__(self) -> Api:
        self._thread.start()
        until(lambda: self.server.started, "the server has started")
        self.api = Api(base_url=f"http://127.0.0.1:{self.address[1]}", timeout=PATIENCE)
        return self.api

    def __exit__(self, *_error: object) -> None:
        self.api.close()
        self.server.handle_exit(signal.SIGTERM, None)
        self._thread.join(PATIENCE)
        self._bound.close()
        assert not self._thread.is_alive()


@pytest.fixture
def running(dsn: str) -> Iterator[Callable[..., Api]]:
    """`running(settings={…}, redact=[…])`: a server on the test's database; each call starts another one."""
    with contextlib.ExitStack() as stack:
        yield lambda **options: stack.enter_context(Running(dsn, **options))


@pytest.fixture
def api(running: Callable[..., Api]) -> Api:
    """A server whose leases are swept fast."""
    return running(settings={"lease_check_interval": timedelta(seconds=0.1)}, hosts=LOOPBACK)


@pytest.fixture
def database(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        yield connection


class Process:
    """`pgq serve` as a process of its own; `api` talks to it."""

    def __init__(self, *words: object, cwd: Any, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pgqueue", "serve", *map(str, words)],
            cwd=cwd, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        self.said: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        line = until(lambda: self._line() or self.process.poll() is not None, "it says where it serves")
        assert isinstance(line, str), "".join(self.said)
        self.url = line.split()[-1]
        self.api = Api(base_url=self.url, timeout=PATIENCE)
        until(self._ready, "it answers")

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line)

    def _line(self) -> str | None:
        return next((line for line in self.said if line.startswith("pgqueue serves on ")), None)

    def _ready(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return self.api.get("/livez").status_code == 200
        return False

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        code = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        self.api.close()
        return code


@pytest.fixture
def serve(tmp_path: Any) -> Iterator[Callable[..., Process]]:
    """`serve("--port", 0, PGQUEUE_DSN=dsn)`; what is left at the end is killed."""
    started: list[Process] = []

    def start(*words: object, **environment: str) -> Process:
        started.append(Process(*words, cwd=tmp_path, **environment))
        return started[-1]

    yield start
    for one in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(one.process.pid, signal.SIGKILL)
        one.process.wait(PATIENCE)
        one.api.close()
