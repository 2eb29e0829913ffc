"""One PostgreSQL server of our own: init, start, stop, kill; alive means that it answers, never a pid."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import signal
import socket
import stat
import struct
import subprocess
import tempfile
import time
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

import psycopg

from pgqueue.embedded.binaries import ServerUser, server_environment, server_user
from pgqueue.errors import EmbeddedServerError

if TYPE_CHECKING:
    from collections.abc import Mapping

START_TIMEOUT = 60.0  # seconds, for each of: init, start with recovery, waiting for another process's start
STOP_TIMEOUT = 30.0  # seconds, before a fast stop becomes an immediate one

_SOCKET_PATH_LIMIT = 90  # bytes; the kernel's limit is 104 to 108
_ANSWER_TIMEOUT = 5  # seconds
_POLL = 0.01
_SIGNALS = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT}
_LOCKED_BY_PID = re.compile(r"lock file .* already exists.*?\(PID (\d+)\)", re.DOTALL)
_STILL_IN_USE = "pre-existing shared memory block"
_NOT_YET = ("starting up", "shutting down", "not yet accepting", "in recovery mode")


class _State(Enum):
    DEAD = "nobody answers"
    BUSY = "starting, recovering, stopping, or too slow to answer"
    READY = "takes connections, or refuses them for a reason of its own"


class PostgresServer:
    """A PostgreSQL on one data folder, shared with nobody: what :class:`EmbeddedServer` and tests stand on.

    Args:
        data_dir: The data folder; made by :meth:`init` or the first :meth:`start`. Beside it appear a log
            (``NAME.log``) and the socket folder (``NAME.run``). Its owner runs the server if we are root.
        bin_dir: The folder that holds ``postgres`` and ``initdb``.
        settings: Server settings, given on its command line.
        port: A TCP port on 127.0.0.1, open to every local user. Default: Unix socket only.
    """

    def __init__(
        self,
        data_dir: Path,
        bin_dir: Path,
        *,
        settings: Mapping[str, str | int] | None = None,
        port: int | None = None,
    ) -> None:
        self.data_dir = Path(os.path.realpath(data_dir))
        self.bin_dir = bin_dir
        self.settings = dict(settings or {})
        self.port = port
        self.log_file = self.data_dir.with_name(f"{self.data_dir.name}.log")
        self.socket_dir = _socket_dir(self.data_dir)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def dsn(self) -> str:
        """The DSN of database ``postgres``: over TCP if there is a port, else over the socket."""
        return self.dsn_of("postgres")

    @property
    def socket_dsn(self) -> str:
        """The DSN of database ``postgres`` over the Unix socket."""
        host = quote(str(self.socket_dir), safe="")
        return f"postgresql://postgres@/postgres?host={host}&port={self.port or 5432}"

    def dsn_of(self, dbname: str) -> str:
        """The DSN of another database of this server."""
        name = quote(dbname, safe="")
        if self.port is not None:
            return f"postgresql://postgres@127.0.0.1:{self.port}/{name}"
        return self.socket_dsn.replace("@/postgres?", f"@/{name}?", 1)

    def init(self, *, sync: bool = True) -> None:
        """Make the data folder unless it is there: under another name first, so it is whole or absent.

        Raises:
            EmbeddedServerError: initdb failed; nothing is left behind.
        """
        if (self.data_dir / "PG_VERSION").exists():
            return
        user = server_user(self.data_dir)
        temporary = Path(tempfile.mkdtemp(prefix=f"{self.data_dir.name}.tmp-", dir=self.data_dir.parent))
        try:
            _hand_over(temporary, user)
            options = [
                "-D",
                str(temporary),
                "-U",
                "postgres",
                "--auth=trust",
                "--encoding=UTF8",
                "--locale=C",
            ]
            mark = self._log_size()
            if self._spawn("initdb", *options, *([] if sync else ["--no-sync"])).wait(START_TIMEOUT) != 0:
                raise EmbeddedServerError(f"initdb failed: {self._log_since(mark)}")  # noqa: TRY301
            temporary.rename(self.data_dir)
            if sync:
                _sync_folder(self.data_dir.parent)
        except BaseException:
            self._end_child()
            shutil.rmtree(temporary, ignore_errors=True)
            raise

    def start(self) -> str:
        """Start the server, or find it running; returns the DSN once it takes connections.

        It runs in its own session, so a Ctrl-C meant for this process does not reach it.

        Raises:
            EmbeddedServerError: It did not start; the message ends with its log.
        """
        self.init()
        _make_private(self.socket_dir, server_user(self.data_dir))
        deadline = time.monotonic() + START_TIMEOUT
        mark: int | None = None
        stale_pid = ""
        while (state := self._probe()) is not _State.READY:
            if time.monotonic() > deadline:
                raise EmbeddedServerError(f"PostgreSQL did not start in time: {self._log_since(mark or 0)}")
            if state is _State.DEAD and not self._child_lives():
                said = "" if mark is None else self._log_since(mark)
                locked = _LOCKED_BY_PID.search(said)
                if not (mark is None or locked or _STILL_IN_USE in said):
                    raise EmbeddedServerError(f"PostgreSQL did not start: {said}")
                # Nobody answers, so the pid in the lock file is stale and its number belongs to a stranger;
                # PostgreSQL ignores a lock file that names its grandparent. Should it be a server after all,
                # the shared memory refuses the second one (that, too, passes when old backends have gone).
                stale_pid = locked[1] if locked else stale_pid
                mark = self._log_size()
                self._process = self._spawn("postgres", *self._options(), stale_pid=stale_pid)
            time.sleep(_POLL)
        return self.dsn

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stop the server if it runs: ``fast`` checkpoints first, ``immediate`` leaves a recovery to do.

        Raises:
            EmbeddedServerError: It is still there after an immediate stop, or is not ours to signal.
        """
        pid = self._postmaster()
        if pid is None:
            return
        self._signal(pid, _SIGNALS[mode])
        if self._wait_gone():
            return
        if mode == "immediate":
            raise EmbeddedServerError(f"PostgreSQL (pid {pid}) in {self.data_dir} does not stop")
        self.stop("immediate")

    def restart(self, mode: Literal["fast", "immediate"] = "fast") -> str:
        """Stop, then start on the same port. Returns the DSN."""
        self.stop(mode)
        return self.start()

    def kill(self) -> None:
        """``kill -9`` the postmaster, as a crash would; returns once it is gone."""
        pid = self._postmaster()
        if pid is not None:
            self._signal(pid, signal.SIGKILL)
            self._wait_gone()

    def is_running(self) -> bool:
        """Whether a server answers for this data folder, if only to say that it is starting or stopping."""
        return self._probe() is not _State.DEAD

    def erase(self) -> None:
        """Delete the data folder, the socket folder and the log of a server that is stopped."""
        if self.data_dir.exists():
            doomed = tempfile.mkdtemp(prefix=f"{self.data_dir.name}.tmp-", dir=self.data_dir.parent)
            self.data_dir.rename(Path(doomed) / "data")  # at once: never half a data folder
            shutil.rmtree(doomed, ignore_errors=True)
        shutil.rmtree(self.socket_dir, ignore_errors=True)
        self.log_file.unlink(missing_ok=True)

    def detach(self) -> None:
        """Let the server outlive this object, without a warning that its process still runs."""
        if self._child_lives() and self._process is not None:
            self._process.returncode = 0
        self._process = None

    def _options(self) -> list[str]:
        settings = {
            "listen_addresses": "" if self.port is None else "127.0.0.1",
            "port": self.port or 5432,
            "unix_socket_directories": f'"{self.socket_dir}"',
            "lc_messages": "C",  # we read them
            **self.settings,
        }
        return ["-D", str(self.data_dir), *(f"--{name}={value}" for name, value in settings.items())]

    def _spawn(self, program: str, *options: str | Path, stale_pid: str = "") -> subprocess.Popen[bytes]:
        environment = server_environment(self.bin_dir)
        if stale_pid:
            environment["PG_GRANDPARENT_PID"] = stale_pid
        user = server_user(self.data_dir)
        dropped: dict[str, Any] = {"user": user.uid, "group": user.gid, "extra_groups": []} if user else {}
        with self.log_file.open("ab") as log:  # a file: a pipe would be inherited and never close
            self._process = subprocess.Popen(  # noqa: S603
                [self.bin_dir / program, *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",  # the server's user may not be able to enter ours
                env=environment,
                start_new_session=True,
                **dropped,
            )
        return self._process

    def _probe(self) -> _State:
        """Ask the socket. Any FATAL answer comes from a living server; silence, from one that hangs."""
        if not _is_private(self.socket_dir, server_user(self.data_dir)):
            return _State.DEAD
        try:
            with psycopg.connect(self.socket_dsn, connect_timeout=_ANSWER_TIMEOUT) as connection:
                row = connection.execute("SHOW data_directory").fetchone()
        except psycopg.errors.ConnectionTimeout:
            return _State.BUSY
        except psycopg.Error as error:
            if "FATAL:" not in str(error):
                return _State.DEAD
            return _State.BUSY if any(words in str(error) for words in _NOT_YET) else _State.READY
        same = row is not None and os.path.realpath(row[0]) == str(self.data_dir)
        return _State.READY if same else _State.DEAD

    def _postmaster(self) -> int | None:
        """The living server's pid: our own child's, or of whoever listens on the socket."""
        if self._child_lives() and self._process is not None:
            return self._process.pid
        if not self.is_running():
            return None
        return _listener_pid(self.socket_dir / f".s.PGSQL.{self.port or 5432}") or self._pid_in_file()

    def _pid_in_file(self) -> int | None:
        try:
            return int((self.data_dir / "postmaster.pid").read_text().split("\n", 1)[0])
        except (FileNotFoundError, ValueError):
            return None

    def _signal(self, pid: int, number: signal.Signals) -> None:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return
        except PermissionError as error:
            raise EmbeddedServerError(f"pid {pid} serves {self.data_dir} but is another user's") from error

    def _wait_gone(self) -> bool:
        deadline = time.monotonic() + STOP_TIMEOUT
        while time.monotonic() < deadline:
            if not self._child_lives() and (self._pid_in_file() is None or not self.is_running()):
                return True
            time.sleep(_POLL)
        return False

    def _child_lives(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _end_child(self) -> None:
        if self._child_lives() and self._process is not None:
            self._process.kill()
            self._process.wait()

    def _log_size(self) -> int:
        return self.log_file.stat().st_size if self.log_file.exists() else 0

    def _log_since(self, mark: int) -> str:
        if not self.log_file.exists():
            return "it left no log"
        with self.log_file.open("rb") as log:
            log.seek(max(mark, self._log_size() - 4000))
            return f"{log.read().decode(errors='replace').strip()} (log: {self.log_file})"


def _socket_dir(data_dir: Path) -> Path:
    folder = data_dir.with_name(f"{data_dir.name}.run")
    if len(os.fsencode(folder / ".s.PGSQL.65535")) <= _SOCKET_PATH_LIMIT:
        return folder
    digest = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:16]
    return Path("/tmp") / f"pgqueue-{digest}"  # noqa: S108 - not $TMPDIR: every process must find the same one


def _make_private(folder: Path, user: ServerUser | None) -> None:
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
        _hand_over(folder, user)
    if not _is_private(folder, user):
        raise EmbeddedServerError(f"{folder} is not a private folder of the server's user; remove it")


def _is_private(folder: Path, user: ServerUser | None) -> bool:
    """Whether only the server's user (and root) can have put a socket there."""
    try:
        info = folder.lstat()
    except OSError:
        return False
    owner = os.geteuid() if user is None else user.uid
    return stat.S_ISDIR(info.st_mode) and info.st_uid == owner and not info.st_mode & 0o077


def _hand_over(folder: Path, user: ServerUser | None) -> None:
    """Give a folder that we have just made to the server's user."""
    if user is not None:
        os.chown(folder, user.uid, user.gid, follow_symlinks=False)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _listener_pid(path: Path) -> int | None:
    """Who listens on a Unix socket, from the kernel (Linux only; None elsewhere or in another namespace)."""
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except OSError:
            return None
        size = struct.calcsize("3i")
        pid: int = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))[0]
        return pid or None
