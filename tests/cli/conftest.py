"""Running `pgq` here, in this process, and as a process of its own."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from pgqueue import Client, Settings, Worker
from pgqueue.builtin import make_builtin_app
from pgqueue.cli import main
from pgqueue.connection import Database

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PATIENCE = 30


@dataclass
class Answer:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The one line on stderr."""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("error: ")
        return lines[0].removeprefix("error: ")


@pytest.fixture
def pgq(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Answer]:
    """`pgq("enqueue", "--count", 3, stdin="…")`, in this process."""

    def run(*argv: object, stdin: str | bytes = b"") -> Answer:
        data = stdin if isinstance(stdin, bytes) else stdin.encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        capsys.readouterr()
        code = main([str(word) for word in argv])
        said = capsys.readouterr()
        return Answer(code, said.out, said.err)

    return run


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`terminal("stderr", columns=100)`: what is written there seems to go to a terminal."""

    def pretend(stream: str, columns: int = 100) -> None:
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setattr(getattr(sys, stream), "isatty", lambda: True, raising=False)

    return pretend


@pytest.fixture
def queue(dsn: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """A client of a fresh queue, which PGQUEUE_DSN names, too."""
    monkeypatch.setenv("PGQUEUE_DSN", dsn)
    database = Database(lambda: dsn)
    yield Client(database)
    database.close()


@pytest.fixture
def work_off(queue: Client, dsn: str) -> Callable[[], None]:
    """Run the built-in tasks in this process until nothing is due."""
    app = make_builtin_app(Settings(dsn=dsn, poll_interval=timedelta(milliseconds=20)))

    async def go() -> None:
        worker = Worker(app)
        running = asyncio.create_task(worker.run())
        deadline = time.monotonic() + PATIENCE
        while any(stats.available or stats.running for stats in await app.aclient.queues()):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        worker.stop()
        assert await running

    return lambda: asyncio.run(go())


@pytest.fixture
def spawn(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start `pgq …` as a process; whatever is left of its session at the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(*argv: object, cwd: Path | None = None, **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "pgqueue", *map(str, argv)],
            cwd=cwd or tmp_path,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


@pytest.fixture
def end() -> Callable[..., Answer]:
    """Send SIGTERM (or nothing: `signal=None`) and wait for the process to end."""

    def stop(process: subprocess.Popen[str], number: int | None = signal.SIGTERM) -> Answer:
        if number is not None:
            process.send_signal(number)
        out, err = process.communicate(timeout=PATIENCE)
        return Answer(process.returncode, out, err)

    return stop


@pytest.fixture
def until() -> Callable[..., Any]:
    """`until(lambda: …)`: look until it answers something true, and answer that."""

    def look(answer: Callable[[], Any], what: str = "it") -> Any:
        deadline = time.monotonic() + PATIENCE
        while not (found := answer()):
            assert time.monotonic() < deadline, f"waited in vain for {what}"
            time.sleep(0.02)
        return found

    return look
