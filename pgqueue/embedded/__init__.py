"""The PostgreSQL that starts by itself when no DSN is given, shared by every process of one user.

The binaries come from `pgqueue[embedded]` (or from a system PostgreSQL); the life cycle is ours:

- *Alive* means: something answers on the socket and says it serves our data folder. A pid proves nothing.
- Two files are flocked. `lock` is held exclusively around init, start and stop. `pg18.clients` is held
  shared by each client for its life; at exit, the client that gets it exclusively was the last and stops
  the server. The kernel drops both on `kill -9`, so the worst case is a server that runs until the next
  client ends.
- Nobody gets in from outside: no TCP, and `trust` only behind a socket folder of mode 0700.
- PostgreSQL refuses to run as root; then it runs as `postgres`, else `nobody`, in `/var/lib/pgqueue`.

Importing this module does nothing. Needs POSIX (flock, Unix sockets).
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import os
import shutil
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Self

from pgqueue.embedded.binaries import Binaries, ServerUser, can_enter, find_binaries, reachable_binaries, server_user
from pgqueue.embedded.server import START_TIMEOUT, PostgresServer
from pgqueue.errors import EmbeddedServerError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = [
    "Binaries",
    "EmbeddedServer",
    "PostgresServer",
    "Status",
    "embedded_dsn",
    "find_binaries",
    "reachable_binaries",
    "reset",
    "status",
    "stop",
]

ROOT_HOME = Path("/var/lib/pgqueue")
SETTINGS: Mapping[str, str | int] = {"shared_buffers": "128MB", "max_connections": 200}
_POLL = 0.01


def embedded_dsn(data_home: Path | None = None) -> str:
    """Start or join the shared server and return its DSN; it stays up until this process ends.

    Idempotent and thread-safe: later calls return the same DSN (and restart a server that was killed). At
    exit the last client stops the server. A child process that uses the server calls this too.

    Args:
        data_home: The folder that holds data, socket and log. Default: `PGQUEUE_HOME`, else
            `/var/lib/pgqueue` for root, else `$XDG_DATA_HOME/pgqueue`, else `~/.local/share/pgqueue`.

    Raises:
        EmbeddedServerError: No PostgreSQL was found, or it did not start; the message says what to do.

    Example:
        >>> psycopg.connect(embedded_dsn())  # doctest: +SKIP
    """
    _install_exit_hooks()
    home = _home(data_home)
    with _guard:
        if home not in _servers:
            _servers[home] = EmbeddedServer(home)
        return _servers[home].start()


def stop(data_home: Path | None = None, *, force: bool = False) -> bool:
    """Stop the shared server; this process gives up its own use of it.

    Args:
        data_home: As for :func:`embedded_dsn`.
        force: Also stop it under other processes that use it (their connections break).

    Returns:
        True if a server was stopped, False if none was running.

    Raises:
        EmbeddedServerError: Other processes use it and ``force`` is false, or it did not stop.
    """
    return _take(data_home).shut_down(force=force)


def reset(data_home: Path | None = None, *, force: bool = False) -> None:
    """Stop the shared server and delete its data, all of it.

    Raises:
        EmbeddedServerError: As for :func:`stop`; nothing is deleted then.
    """
    _take(data_home).shut_down(force=force, erase=True)


def status(data_home: Path | None = None) -> Status:
    """Tell whether the shared server runs, and where its parts are; starts nothing.

    Raises:
        EmbeddedServerError: No PostgreSQL was found.
    """
    embedded = EmbeddedServer(data_home)
    server = embedded.server
    return Status(
        running=embedded.is_running(),
        dsn=embedded.dsn,
        data_dir=server.data_dir,
        bin_dir=server.bin_dir,
        version=embedded.binaries.version,
        log_file=server.log_file,
    )


@dataclass(frozen=True)
class Status:
    """What :func:`status` found. ``dsn`` is where the server is, or would be once started."""

    running: bool
    dsn: str
    data_dir: Path
    bin_dir: Path
    version: str
    log_file: Path


class EmbeddedServer:
    """One client's hold on the shared server of ``data_home``.

    Use as a context manager, or call :meth:`start` and :meth:`close`. The hold belongs to the process that
    called :meth:`start`: in a forked child it is void, and closing it there changes nothing.

    Raises:
        EmbeddedServerError: No PostgreSQL was found.
    """

    def __init__(self, data_home: Path | None = None) -> None:
        self.home = _home(data_home)
        self.binaries = find_binaries()
        data_dir = self.home / f"pg{self.binaries.major}"
        self.server = PostgresServer(data_dir, self.binaries.bin_dir, settings=SETTINGS)
        self._client: IO[bytes] | None = None
        self._owner = 0

    @property
    def dsn(self) -> str:
        """The server's DSN (database ``postgres``), whether it runs or not."""
        return self.server.dsn

    @property
    def data_dir(self) -> Path:
        """The data folder; its name carries the major version."""
        return self.server.data_dir

    def is_running(self) -> bool:
        """Whether a server answers for this data folder."""
        return self.server.is_running()

    def start(self) -> str:
        """Start the server or join the one that runs; hold it until :meth:`close`. Returns the DSN.

        Raises:
            EmbeddedServerError: It did not start within :data:`START_TIMEOUT` seconds, with the log's end.
        """
        with _typed_errors(self.home), self._lifecycle():
            joined = self._client is not None and self._owner == os.getpid()
            if not joined:
                self._stopped_file.unlink(missing_ok=True)
            elif self._stopped_file.exists():
                raise EmbeddedServerError(f"the server in {self.home} was stopped by hand; a new process may start it")
            if not joined:
                self._client = _open_lock(self._clients_file)
                self._owner = os.getpid()
                fcntl.flock(self._client, fcntl.LOCK_SH)
            try:
                _remove_leftovers(self.home)
                self.server.bin_dir = reachable_binaries(self.binaries, beside=self.home)
                return self.server.start()
            except BaseException:
                self._leave()
                raise

    def close(self) -> None:
        """Give the server up; if no other client holds it, stop it. Without a hold this does nothing."""
        if self._client is None:
            return
        if self._owner != os.getpid():
            self._forget()
            return
        with _typed_errors(self.home), self._lifecycle():
            self._leave()

    stop = close

    def shut_down(self, *, force: bool = False, erase: bool = False) -> bool:
        """Stop the server as an operator: see :func:`stop` and :func:`reset`. Returns whether one ran."""
        if not self.home.exists():
            return False
        with _typed_errors(self.home), self._lifecycle():
            self._forget()
            with _open_lock(self._clients_file) as clients:
                if not (_try_exclusive(clients) or force):
                    raise EmbeddedServerError(
                        f"other processes use the server in {self.home}; end them first, or force the stop"
                    )
            was_running = self.is_running()
            self._stopped_file.touch()  # so that those who still use it do not start it again
            self.server.stop()
            if erase:
                self.server.erase()
        return was_running

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    @property
    def _clients_file(self) -> Path:
        return self.data_dir.with_name(f"{self.data_dir.name}.clients")

    @property
    def _stopped_file(self) -> Path:
        return self.data_dir.with_name(f"{self.data_dir.name}.stopped")

    @contextlib.contextmanager
    def _lifecycle(self) -> Iterator[None]:
        """Hold the lock around init, start and stop."""
        _make_home(self.home, server_user(self.data_dir))
        deadline = time.monotonic() + 2 * START_TIMEOUT
        path = self.home / "lock"
        with _open_lock(path) as lock:
            while not _try_exclusive(lock):
                if time.monotonic() > deadline:
                    raise EmbeddedServerError(f"another process has held {path} for too long; end it")
                time.sleep(_POLL)
            try:
                yield
            finally:  # said aloud: a child forked meanwhile by another thread still has the file open
                fcntl.flock(lock, fcntl.LOCK_UN)

    def _leave(self) -> None:
        """Drop the client lock, and stop the server if it was the last one."""
        if self._client is None:
            return
        if _try_exclusive(self._client):
            self.server.stop()
        fcntl.flock(self._client, fcntl.LOCK_UN)
        self._forget()

    def _forget(self) -> None:
        """Close the lock file and let the server be. A forked child closes only its copy."""
        if self._client is not None:
            self._client.close()
            self._client = None
        self.server.detach()


def _home(data_home: Path | None) -> Path:
    if data_home is None and (override := os.environ.get("PGQUEUE_HOME")):
        data_home = Path(override)
    if data_home is None and os.geteuid() == 0:
        data_home = ROOT_HOME  # root's own home is usually closed to the user that the server runs as
    if data_home is None:
        base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
        data_home = Path(base) / "pgqueue"
    return Path(os.path.realpath(data_home))


def _make_home(home: Path, user: ServerUser | None) -> None:
    """Make the folder that holds everything; one that is there keeps its mode and owner."""
    try:
        home.mkdir(parents=True)
    except FileExistsError:
        pass
    else:
        home.chmod(0o700 if user is None else 0o711)
    if user is not None and not can_enter(home, user):
        raise EmbeddedServerError(
            f"PostgreSQL does not run as root, and user {user.name} can't enter {home}; "
            f"set PGQUEUE_HOME to a folder that it can, such as {ROOT_HOME}"
        )


def _remove_leftovers(home: Path) -> None:
    """Delete what processes killed in the middle of something left; called under the lock."""
    for leftover in home.glob("*.tmp-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _open_lock(path: Path) -> IO[bytes]:
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "rb+", buffering=0)


def _try_exclusive(lock: IO[bytes]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def _typed_errors(home: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, subprocess.SubprocessError) as error:
        raise EmbeddedServerError(f"the embedded server in {home}: {error}") from error


_servers: dict[Path, EmbeddedServer] = {}
_guard = threading.Lock()


def _take(data_home: Path | None) -> EmbeddedServer:
    """This process's own client of that home, no longer kept; else a new one."""
    home = _home(data_home)
    with _guard:
        return _servers.pop(home, None) or EmbeddedServer(home)


@functools.cache
def _install_exit_hooks() -> None:
    atexit.register(_close_all)
    os.register_at_fork(after_in_child=_forget_all)


def _close_all() -> None:
    with _guard:
        while _servers:
            _servers.popitem()[1].close()


def _forget_all() -> None:
    """In a forked child: the parent's holds are not ours, and its guard may be held by a thread of its."""
    global _guard  # noqa: PLW0603
    _guard = threading.Lock()
    for server in _servers.values():
        server._forget()  # noqa: SLF001
    _servers.clear()
