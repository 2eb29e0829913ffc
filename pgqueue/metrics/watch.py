"""``pgq worker --metrics-port`` and ``--health-file``: shows a worker, or the copies that a supervisor runs."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import logging
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from pgqueue.errors import SettingsError
from pgqueue.metrics.board import Board, Copy, HealthFile, Monitor, Reachability

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pgqueue.app import App
    from pgqueue.metrics.board import Source

log = logging.getLogger(__name__)

_FILES: Final = "PGQUEUE_MONITOR"  # tells a copy of a worker where its supervisor looks for its numbers and vitals


class Watch:
    """Shows what is asked for, from before the worker waits for its database until it has ended; or nothing.

    Args:
        app: where the database is.
        port: serve pages here; None: do not.
        host: on this address.
        health_file: touch this file while nothing is stuck; None: do not.
        processes: how many copies of the worker a supervisor here will run; 1: the worker is this process.

    Raises:
        SettingsError: it can't be shown as asked.
    """

    def __init__(self, app: App, *, port: int | None, host: str, health_file: str | None, processes: int = 1) -> None:
        if port is not None and importlib.util.find_spec("prometheus_client") is None:
            raise SettingsError("--metrics-port needs prometheus_client; run: pip install 'pgqueue[server]'")
        self._app = app
        self._port = port
        self._host = host
        self._health_file = None if health_file is None else Path(health_file)
        self._processes = processes
        self._stack = contextlib.ExitStack()
        self._folder: Path | None = None
        self._pids: list[Callable[[], int | None]] = [lambda: None] * processes
        self.monitor: Monitor | None = None
        self.port: int | None = None

    def __enter__(self) -> Self:
        if self._port is None and self._health_file is None:
            self.monitor = _supervised()
            return self
        with contextlib.ExitStack() as stack:
            board = Board(self._sources(stack), Reachability(lambda: self._app.settings))
            if self._port is not None:
                self._serve(board, stack)
            if self._health_file is not None:
                self._keep(HealthFile(self._health_file, board.trouble), stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def environment(self, nth: int) -> dict[str, str]:
        """What the ``nth`` copy, from 0, is to find in its environment."""
        return {} if self._folder is None else {_FILES: str(self._folder / str(nth))}

    def follow(self, pids: Sequence[Callable[[], int | None]]) -> None:
        """Tell which process each copy is now; None: none."""
        self._pids[:] = pids

    def _sources(self, stack: contextlib.ExitStack) -> list[Source]:
        counting = self._port is not None
        if self._processes == 1:
            self.monitor = Monitor(counting=counting)
            return [self.monitor]
        self._folder = folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pgqueue-monitor-")))
        stack.callback(os.close, _locked(folder))
        return [
            Copy(folder / str(nth), counting=counting, pid=lambda nth=nth: self._pids[nth]())  # type: ignore[misc]
            for nth in range(self._processes)
        ]

    def _serve(self, board: Board, stack: contextlib.ExitStack) -> None:
        from pgqueue.metrics.pages import worker_pages  # noqa: PLC0415 - needs the extra
        from pgqueue.metrics.server import PageServer  # noqa: PLC0415 - only who serves pays for it

        assert self._port is not None  # noqa: S101
        server = PageServer(self._host, self._port, worker_pages(board, self._app))
        self.port = server.port
        server.start()
        stack.callback(server.stop)
        log.info(
            "metrics and probes on http://%s:%d", f"[{self._host}]" if ":" in self._host else self._host, self.port
        )

    def _keep(self, file: HealthFile, stack: contextlib.ExitStack) -> None:
        try:
            file.start()
        except OSError as error:
            raise SettingsError(f"--health-file {self._health_file}: {error.strerror or error}") from None
        stack.callback(file.stop)


def _locked(folder: Path) -> int:
    """A lock that systemd-tmpfiles heeds. It removes what nobody has opened for ten days; these files are mapped."""
    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


def _supervised() -> Monitor | None:
    """The monitor of a copy whose supervisor is watched."""
    files = os.environ.get(_FILES)
    return None if files is None else Monitor(path=Path(files))
