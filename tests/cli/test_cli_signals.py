"""A stop while the database can't be reached: heard at once, also by process 1, which no signal ends by itself."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from cli.conftest import Answer

NAMESPACE = ("unshare", "--pid", "--fork", "--kill-child")
SLOW_NAMES = """
import ctypes, os, socket
look_up = socket.getaddrinfo
def stuck(host, *more, **options):
    if host != "db.example":
        return look_up(host, *more, **options)
    print("looking up", file=__import__("sys").stderr, flush=True)
    libc, lock = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    libc.pthread_mutex_lock(lock)
    libc.pthread_mutex_lock(lock)  # as the C library's resolver, it does not come back for a signal
socket.getaddrinfo = stuck
"""


def can_be_process_1() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False).returncode == 0


@pytest.fixture(params=["ordinary", "process 1"])
def start(request: pytest.FixtureRequest, spawn: Callable[..., subprocess.Popen[str]], tmp_path: Path):
    """`start("worker", dsn=…)`: the process, and the id to send signals to."""
    outer: list[subprocess.Popen[str]] = []

    def begin(*words: str, **environment: str) -> tuple[subprocess.Popen[str], int]:
        if request.param == "ordinary":
            process = spawn(*words, **environment)
            return process, process.pid
        process = subprocess.Popen(
            [*NAMESPACE, sys.executable, "-m", "pgqueue", *words], cwd=tmp_path, env={**os.environ, **environment},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        outer.append(process)
        return process, only_child(process.pid)

    if request.param == "process 1" and not can_be_process_1():
        pytest.skip("NOT TESTED as process 1: unshare --pid needs root")
    yield begin
    for process in outer:
        process.kill()
        process.communicate()


def only_child(pid: int) -> int:
    deadline = time.monotonic() + 20
    while not (children := Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return int(children[0])


def said(process: subprocess.Popen[str], what: str) -> None:
    assert process.stderr is not None
    while what not in (line := process.stderr.readline()):
        assert line, f"it ended and never said: {what}"


def stopped(process: subprocess.Popen[str], pid: int, number: int) -> tuple[int, str]:
    """Its exit code and its last words; it takes less than a look-up or a pause would."""
    began = time.monotonic()
    os.kill(pid, number)
    _, words = process.communicate(timeout=20)
    assert time.monotonic() - began < 5
    return process.returncode, words


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_worker_that_waits_for_its_database_stops_in_order(start, number: int, processes: str):
    process, pid = start("worker", "--processes", processes, PGQUEUE_DSN="postgresql://postgres@127.0.0.1:1/nowhere")
    said(process, "next try in 2 s")
    code, words = stopped(process, pid, number)
    assert code == 0, words
    assert "told to stop" in words


@pytest.mark.parametrize(("command", "code"), [("worker", 0), ("serve", 128 + signal.SIGTERM)])
def test_a_look_up_of_the_databases_name_holds_no_stop_up(start, tmp_path: Path, command: str, code: int):
    (tmp_path / "sitecustomize.py").write_text(SLOW_NAMES)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", ""), *filter(None, sys.path)])
    words = (command, "--port", "0") if command == "serve" else (command,)
    process, pid = start(*words, PGQUEUE_DSN="postgresql://postgres@db.example/q", PYTHONPATH=path)
    said(process, "looking up")
    assert stopped(process, pid, signal.SIGTERM)[0] == code


def test_a_server_that_says_nothing_holds_no_stop_up(start):
    """It takes the connection and is silent; libpq waits ten seconds."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"postgresql://postgres@127.0.0.1:{silent.getsockname()[1]}/q"
        process, pid = start("serve", "--port", "0", PGQUEUE_DSN=address)
        silent.settimeout(30)
        line, _ = silent.accept()
        with line:
            line.recv(1)
            assert stopped(process, pid, signal.SIGTERM)[0] == 128 + signal.SIGTERM


def test_a_stop_is_heard_by_process_1_when_it_works_too(start, queue, dsn: str, end: Callable[..., Answer]):
    process, pid = start("worker", PGQUEUE_DSN=dsn)
    said(process, "slots")
    code, words = stopped(process, pid, signal.SIGTERM)
    assert (code, "stopped" in words) == (0, True)
