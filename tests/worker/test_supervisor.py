"""The supervisor: as many copies as asked, restarted with growing pauses, told to stop together."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Protocol

import pytest

from pgqueue.worker import supervisor as module

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SUPERVISE = """
import sys
from pgqueue.worker import supervise
sys.exit(supervise([[sys.executable, *sys.argv[2:]]] * int(sys.argv[1])))
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


class Supervise(Protocol):
    """Start a supervisor of so many copies; each marks its start in the folder."""

    def __call__(self, processes: int, code: str = COPY, exit_code: int = 0) -> subprocess.Popen[bytes]: ...


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "copies"
    folder.mkdir()
    return folder


@pytest.fixture
def supervise(folder: Path) -> Iterator[Supervise]:
    """Supervisors that end with the test, however it ends; with them their copies."""
    started: list[subprocess.Popen[bytes]] = []

    def start(processes: int, code: str = COPY, exit_code: int = 0) -> subprocess.Popen[bytes]:
        script = folder.parent / "copy.py"
        script.write_text(code)
        words = [sys.executable, "-c", SUPERVISE, str(processes), str(script), str(folder), str(exit_code)]
        started.append(subprocess.Popen(words))
        return started[-1]

    yield start
    for supervisor in started:
        supervisor.kill()
        supervisor.wait()
    for pid in [int(path.name.split()[-1]) for path in folder.iterdir()]:
        if is_copy(pid, folder):  # on Linux they have ended already: their parent's death is a signal
            os.kill(pid, signal.SIGKILL)


def is_copy(pid: int, folder: Path) -> bool:
    """Whether this process is one of ours, and not a stranger that got its number."""
    with contextlib.suppress(FileNotFoundError):
        return str(folder).encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return False


def until(look: Callable[[], object], what: str, within: float = 60) -> None:
    end = time.monotonic() + within
    while not look():
        assert time.monotonic() < end, what
        time.sleep(0.02)


@pytest.mark.parametrize("exit_code", [0, 1])
def test_the_exit_code_is_the_worst_of_the_copies(folder: Path, supervise: Supervise, exit_code: int) -> None:
    supervisor = supervise(3, exit_code=exit_code)
    until(lambda: len(list(folder.iterdir())) == 3, "three copies run")
    supervisor.send_signal(signal.SIGTERM)
    assert supervisor.wait(60) == exit_code


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_copy_that_dies_is_restarted_with_growing_pauses(folder: Path, supervise: Supervise) -> None:
    mark = "(pathlib.Path(sys.argv[1]) / f'{time.monotonic()} {os.getpid()}').touch()"
    dying = f"import os, pathlib, sys, time; {mark}; os._exit(3)"
    supervisor = supervise(1, dying)
    until(lambda: len(list(folder.iterdir())) >= 3, "it was started three times")
    marks = sorted((float(moment), int(pid)) for moment, pid in (path.name.split() for path in folder.iterdir()))
    times = [moment for moment, _ in marks]
    assert times[1] - times[0] >= 1
    assert times[2] - times[1] >= 2
    until(lambda: not is_running(marks[-1][1]), "the last one is dead")
    supervisor.send_signal(signal.SIGTERM)
    code = supervisor.wait(60)
    assert code == 0 or len(list(folder.iterdir())) > 3, "the copy was dead when the stop came"


def test_a_killed_copy_is_replaced_and_the_others_are_left_alone(folder: Path, supervise: Supervise) -> None:
    supervisor = supervise(2)
    until(lambda: len(list(folder.iterdir())) == 2, "two copies run")
    first, second = [int(path.name) for path in folder.iterdir()]
    os.kill(first, signal.SIGKILL)
    until(lambda: len(list(folder.iterdir())) == 3, "a third was started")
    assert is_running(second)
    supervisor.send_signal(signal.SIGTERM)
    assert supervisor.wait(60) == 0


def test_a_copy_started_while_the_stop_comes_is_stopped_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The signal arrives between the fork and the moment that the supervisor knows the process."""
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
    rescued = threading.Event()

    def save_the_test() -> None:
        rescued.set()
        for process in started:
            process.kill()

    rescue = threading.Timer(60, save_the_test)
    rescue.start()
    try:
        assert module.supervise([[sys.executable, str(script), str(tmp_path), "0"]]) == 0
        assert not rescued.is_set(), "it was told"
    finally:
        rescue.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)
        for process in started:
            process.kill()
            process.wait()


class Told:
    """Stands for a worker: remembers how it was told to stop, and goes on until the test lets it end."""

    def __init__(self) -> None:
        self.stops: list[bool] = []
        self.heard = asyncio.Event()
        self.end = asyncio.Event()
        self.stuck = False
        self.app = SimpleNamespace(aclose=self._nothing)

    async def _nothing(self) -> None: ...

    def stop(self, *, now: bool = False) -> None:
        self.stops.append(now)
        self.heard.set()

    async def run(self) -> bool:
        await self.end.wait()
        return True


@pytest.mark.parametrize(
    ("supervised", "moments", "stops"),
    [
        (True, [100.0, 100.3], [False]),
        (True, [100.0, 100.3, 103.0], [False, True]),
        (False, [100.0, 100.3], [False, True]),
    ],
    ids=["an echo", "an echo and a second one", "no supervisor"],
)
async def test_a_signal_to_everybody_that_the_supervisor_passes_on_too_counts_once(
    monkeypatch: pytest.MonkeyPatch, supervised: bool, moments: list[float], stops: list[bool]
) -> None:
    if supervised:
        monkeypatch.setenv("PGQUEUE_SUPERVISED", "1")
    looks = asyncio.Queue[None]()
    coming = iter(moments)

    def clock() -> float:
        looks.put_nowait(None)
        return next(coming)

    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=clock))
    worker = Told()
    running = asyncio.create_task(module._under_signals(worker))  # type: ignore[arg-type]
    await asyncio.sleep(0)  # its handlers are set before it first waits
    for _ in moments:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(looks.get(), 30)
    worker.end.set()
    assert await asyncio.wait_for(running, 30) == 0
    assert worker.stops == stops
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().remove_signal_handler(number)
