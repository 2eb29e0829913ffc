"""The supervisor: as many copies as asked, restarted with growing pauses, told to stop together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

SUPERVISE = """
import sys
from pgqueue.worker import supervise
sys.exit(supervise([sys.executable, *sys.argv[2:]], int(sys.argv[1])))
"""
COPY = """
import os, signal, sys, time, pathlib
folder = pathlib.Path(sys.argv[1])
stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(int(sys.argv[2])))
(folder / f"{os.getpid()}").touch()
while not stop:
    time.sleep(0.01)
sys.exit(stop[0])
"""


def supervise(folder: Path, processes: int, code: str = COPY, exit_code: int = 0) -> subprocess.Popen[bytes]:
    script = folder.parent / "copy.py"
    script.write_text(code)
    folder.mkdir(exist_ok=True)
    return subprocess.Popen([sys.executable, "-c", SUPERVISE, str(processes), str(script), str(folder), str(exit_code)])


def until(look: object, what: str, within: float = 30) -> None:
    end = time.monotonic() + within
    while not look():  # type: ignore[operator]
        assert time.monotonic() < end, what
        time.sleep(0.02)


@pytest.mark.parametrize("exit_code", [0, 1])
def test_the_exit_code_is_the_worst_of_the_copies(tmp_path: Path, exit_code: int) -> None:
    folder = tmp_path / "copies"
    supervisor = supervise(folder, 3, exit_code=exit_code)
    until(lambda: len(list(folder.iterdir())) == 3, "three copies run")
    supervisor.send_signal(signal.SIGTERM)
    assert supervisor.wait(20) == exit_code


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_copy_that_dies_is_restarted_with_growing_pauses(tmp_path: Path) -> None:
    folder = tmp_path / "copies"
    mark = "(pathlib.Path(sys.argv[1]) / f'{time.monotonic()} {os.getpid()}').touch()"
    dying = f"import os, pathlib, sys, time; {mark}; os._exit(3)"
    supervisor = supervise(folder, 1, dying)
    until(lambda: len(list(folder.iterdir())) >= 3, "it was started three times")
    marks = sorted((float(moment), int(pid)) for moment, pid in (path.name.split() for path in folder.iterdir()))
    times = [moment for moment, _ in marks]
    assert times[1] - times[0] >= 1
    assert times[2] - times[1] >= 2
    until(lambda: not is_running(marks[-1][1]), "the last one is dead")
    supervisor.send_signal(signal.SIGTERM)
    assert supervisor.wait(20) == 0, "the copy was dead when the stop came"


def test_a_killed_copy_is_replaced_and_the_others_are_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "copies"
    supervisor = supervise(folder, 2)
    until(lambda: len(list(folder.iterdir())) == 2, "two copies run")
    first, second = [int(path.name) for path in folder.iterdir()]
    os.kill(first, signal.SIGKILL)
    until(lambda: len(list(folder.iterdir())) == 3, "a third was started")
    os.kill(second, 0)
    supervisor.send_signal(signal.SIGTERM)
    assert supervisor.wait(20) == 0


def test_a_copy_started_while_the_stop_comes_is_stopped_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The signal arrives between the fork and the moment that the supervisor knows the process."""
    from pgqueue.worker import supervisor as module

    script = tmp_path / "copy.py"
    script.write_text(COPY)
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def popen_and_signal(*args: object, **kwargs: object) -> subprocess.Popen[bytes]:
        process = popen(*args, **kwargs)  # type: ignore[call-overload]
        started.append(process)
        until((tmp_path / str(process.pid)).exists, "it runs")
        os.kill(os.getpid(), signal.SIGTERM)
        return process  # type: ignore[no-any-return]

    monkeypatch.setattr(module.subprocess, "Popen", popen_and_signal)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    rescue = threading.Timer(10, lambda: [process.kill() for process in started])
    rescue.start()
    try:
        began = time.monotonic()
        assert module.supervise([sys.executable, str(script), str(tmp_path), "0"], 1) == 0
        assert time.monotonic() - began < 9, "it was told, not rescued"
    finally:
        rescue.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)
        for process in started:
            process.kill()
            process.wait()
