"""From the command line's side: one worker under signals, or several processes under a supervisor."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import os
import signal
import subprocess
import sys
import time
from functools import cache
from typing import TYPE_CHECKING, Any, Final, cast

if TYPE_CHECKING:
    from collections.abc import Callable

    from pgqueue.metrics.watch import Watch
    from pgqueue.worker.worker import Worker

log = logging.getLogger(__name__)

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
_LIVED: Final = 10.0  # a child that lived this long is restarted at once
_LONGEST_PAUSE: Final = 30.0
_PR_SET_PDEATHSIG: Final = 1
_SUPERVISED: Final = "PGQUEUE_SUPERVISED"
_ECHO: Final = 0.5  # the same signal from the system and from the supervisor comes within this time


def run_worker(worker: Worker) -> int:
    """Run a worker until SIGTERM or Ctrl-C; a second signal gives running jobs back at once.

    Uses uvloop where it is installed. Answers the exit code: 0 when all running jobs were finished in order, 1 when
    some had to be given back.
    """
    calm_collector()
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        loop = runner.get_loop()
        main = loop.create_task(_under_signals(worker))
        while True:
            try:
                return loop.run_until_complete(main)
            except (SystemExit, KeyboardInterrupt) as error:
                # A handler's own task raised it (the signals are ours): asyncio stops the loop for it; it goes on.
                if main.done():
                    raise
                log.error("a task of a handler raised %r; the worker goes on", error)  # noqa: TRY400


def calm_collector() -> None:
    """Make Python's garbage collector look less often, and never again at what is there now: the imported modules.

    A worker makes some objects per job and lets them go without cycles, so a look finds nothing. By default they took
    a tenth of its CPU.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 10, 10)


def supervise(commands: list[list[str]], watch: Watch | None = None) -> int:
    """Run these copies of a worker, restart those that die, pass SIGTERM and Ctrl-C on to all.

    ``watch`` shows how they are. Answers the worst exit code of the copies that were told to stop.
    """
    return _Supervisor(commands, watch).run()


async def _under_signals(worker: Worker) -> int:
    loop = asyncio.get_running_loop()
    count, heard = 0, 0.0

    def on_signal() -> None:
        nonlocal count, heard
        now = time.monotonic()
        if count and now - heard < _ECHO and os.environ.get(_SUPERVISED):
            return  # systemd signals everybody, and our supervisor passes its own on
        count, heard = count + 1, now
        worker.stop(now=count > 1)

    for number in _SIGNALS:
        loop.add_signal_handler(number, on_signal)
    try:
        code = 0 if await worker.run() else 1
    finally:
        await worker.app.aclose()
    if worker.stuck:  # a coroutine that ignores its cancellation would hold up the loop's end for ever
        logging.shutdown()
        sys.stdout.flush()
        os._exit(code)
    return code


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415 - the extra `speed`
    except ImportError:
        return None
    return cast("Callable[[], asyncio.AbstractEventLoop]", uvloop.new_event_loop)


class _Supervisor:
    def __init__(self, commands: list[list[str]], watch: Watch | None) -> None:
        self._children = [
            _Copy(command, nth, {} if watch is None else watch.environment(nth - 1))
            for nth, command in enumerate(commands, 1)
        ]
        if watch is not None:
            watch.follow([child.pid for child in self._children])
        self._stopping = False
        self._last = 0

    def run(self) -> int:
        for number in _SIGNALS:
            signal.signal(number, self._on_signal)
        for child in self._children:
            child.start()
        while any(child.alive for child in self._children) or not self._stopping:
            for child in self._children:
                if not child.alive and not self._stopping:
                    child.restart()
                elif self._last and not child.told:  # it was being started while the signal came
                    child.send(self._last)
            time.sleep(0.1)
        return max(child.answer for child in self._children)

    def _on_signal(self, number: int, _frame: Any) -> None:
        self._stopping = True
        self._last = number
        for child in self._children:
            child.send(number)


class _Copy:
    """One copy of the command, in a session of its own, so that a terminal's Ctrl-C reaches it once: through us."""

    def __init__(self, command: list[str], nth: int, environment: dict[str, str]) -> None:
        self._command = command
        self._environment = environment
        self._nth = nth
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._pause = 0.0
        self._start_at = 0.0
        self._sent = 0

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def pid(self) -> int | None:
        """Which process it is now; None: it has ended, or has not been started. For any thread."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    @property
    def told(self) -> bool:
        return self._sent != 0

    @property
    def answer(self) -> int:
        """Its part in our exit code. A copy that was dead when the stop came, or died of it before it had begun: 0."""
        code = self._process.returncode if self._process is not None else 0
        return 0 if code in (-self._sent, 128 + self._sent) or not self._sent else self.exit_code

    @property
    def exit_code(self) -> int:
        code = self._process.returncode if self._process is not None else 0
        return 128 - code if code < 0 else code

    def start(self) -> None:
        self._started = time.monotonic()
        if sys.platform == "linux":
            _load_prctl()
        self._process = subprocess.Popen(  # noqa: S603 - our own command line
            self._command,
            env={**os.environ, _SUPERVISED: "1", **self._environment},
            start_new_session=True,
            preexec_fn=die_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509 - it takes no lock
        )
        self._start_at = 0.0

    def restart(self) -> None:
        """Again at once if it had lived a while, else after 1, 2, 4 … 30 s."""
        now = time.monotonic()
        if not self._start_at:
            lived = now - self._started
            self._pause = 0.0 if lived >= _LIVED else min(max(1.0, self._pause * 2), _LONGEST_PAUSE)
            self._start_at = now + self._pause
            log.warning("worker process %d ended with status %d; again in %gs", self._nth, self.exit_code, self._pause)
        if now >= self._start_at:
            self.start()

    def send(self, number: int) -> None:
        if self._process is not None and self.alive:
            self._sent = number
            self._process.send_signal(number)


def die_with_parent() -> None:
    """In the child before exec, on Linux: SIGTERM when the supervisor is gone, however it went (prctl(2))."""
    _load_prctl()(_PR_SET_PDEATHSIG, signal.SIGTERM)


@cache
def _load_prctl() -> Any:
    """Before the fork: a thread of ours may hold the lock of the dynamic loader while we fork, and take it along."""
    return ctypes.CDLL(None).prctl
