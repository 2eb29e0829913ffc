"""The PostgreSQL under test: a private one on a real disk, or that of ``--dsn``; databases on it; its CPU."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import psycopg
from psycopg import conninfo, sql

from pgqueue import embedded
from pgqueue.errors import EmbeddedServerError
from pgqueue.migrations import migrate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SETTINGS: dict[str, str | int] = {
    "shared_buffers": "1GB", "max_wal_size": "16GB", "checkpoint_timeout": "1h", "fsync": "on",
    "synchronous_commit": "on", "max_connections": 300,
}  # fmt: skip
_PREFIX = "pgqueue-bench-"
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Server:
    """A server, and the folder for what the run shares with its workers.

    Attributes:
        dsn: of the database to administrate from.
        folder: scratch files of this run.
        pid: of the postmaster, None when it is not on this machine.
        statements: whether pg_stat_statements is there.
        version: as the server says it.
        settings: those that a reader of figures must know.
        template: what a fresh database is copied from.
        restart: stop it (``fast`` or ``immediate``) and start it again; None when it is not ours.
    """

    dsn: str
    folder: Path
    pid: int | None
    statements: bool
    version: str
    settings: dict[str, str]
    template: str = "template0"
    restart: Callable[[Literal["fast", "immediate"]], object] | None = None

    @contextlib.contextmanager
    def database(self, template: str | None = None) -> Iterator[Database]:
        """A fresh database with pgqueue's schema, or a copy of ``template``; dropped afterwards."""
        with self._own_database(template or self.template) as database:
            yield database

    @contextlib.contextmanager
    def _own_database(self, template: str) -> Iterator[Database]:
        name = f"pgqueue_bench_{os.getpid()}_{os.urandom(4).hex()}"
        names = [sql.Identifier(name), sql.Identifier(template)]
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(*names))
        try:
            yield Database(conninfo.make_conninfo(self.dsn, dbname=name), name, self)
        finally:
            with psycopg.connect(self.dsn, autocommit=True) as connection:
                connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))

    @contextlib.contextmanager
    def migrated(self) -> Iterator[Server]:
        """This server with a template that has pgqueue's schema, so that a fresh database costs nothing."""
        with self._own_database("template0") as database:
            migrate(database.dsn)
            if self.statements:
                with database.connect() as connection:
                    connection.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
            yield replace(self, template=database.name)

    def cpu(self) -> float | None:
        """CPU seconds of the postmaster and all its children so far, ended ones too."""
        return None if self.pid is None else tree_cpu(self.pid)


@dataclass(frozen=True)
class Database:
    """One case's database."""

    dsn: str
    name: str
    server: Server

    def connect(self) -> psycopg.Connection[Any]:
        """An autocommit connection of the benchmark's own."""
        return psycopg.connect(self.dsn, autocommit=True)

    def value(self, query: str) -> Any:
        """The one value that a query answers."""
        with self.connect() as connection:
            row = connection.execute(query).fetchone()
        assert row is not None
        return row[0]


@contextlib.contextmanager
def open_server(dsn: str | None, *, tcp: bool = False) -> Iterator[Server]:
    """The server of ``dsn``, else a private one for the length of this block, on a Unix socket or on TCP."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(_run_folder())
        restart = None
        if dsn is None:
            binaries = embedded.find_binaries()
            bin_dir = embedded.reachable_binaries(binaries, beside=folder)
            preload: dict[str, str | int] = {"shared_preload_libraries": "pg_stat_statements"}
            preload = preload if _has_statements(bin_dir) else {}
            port = _free_port() if tcp else None
            private = embedded.PostgresServer(folder / "data", bin_dir, settings=SETTINGS | preload, port=port)
            stack.callback(private.stop, "immediate")
            dsn, restart = private.start(), private.restart
        yield stack.enter_context(replace(_describe(dsn, folder), restart=restart).migrated())


def tree_cpu(pid: int) -> float:
    """CPU seconds of a process and its descendants, those included that have ended and been waited for. 0 off Linux.

    A child that is reaped between the reading of its parent and its own is missed, so the larger of two looks counts.
    """
    return max(_look_at_tree(pid), _look_at_tree(pid))


def _look_at_tree(pid: int) -> float:
    parents: dict[int, list[int]] = {}
    spent: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            number = int(path.parent.name)
            parents.setdefault(int(fields[1]), []).append(number)
            spent[number] = sum(int(field) for field in fields[11:15])  # utime stime cutime cstime, see proc(5)
    family = [pid]
    for member in family:
        family += parents.get(member, ())
    return sum(spent.get(member, 0) for member in family) / _TICKS


def _describe(dsn: str, folder: Path) -> Server:
    with psycopg.connect(dsn, autocommit=True) as connection:
        row = connection.execute(
            "SELECT pg_backend_pid(), current_setting('shared_preload_libraries'), current_setting('server_version')"
        ).fetchone()
        assert row is not None
        backend, preloaded, version = row
        shown = {name: connection.execute(f"SHOW {name}").fetchone()[0] for name in SETTINGS}  # type: ignore[index]
        return Server(dsn, folder, _parent_of(backend), "pg_stat_statements" in preloaded, version, shown)


def _parent_of(backend: int) -> int | None:
    """The postmaster, if that backend is a process of this machine."""
    with contextlib.suppress(OSError):
        name, _, rest = Path(f"/proc/{backend}/stat").read_text().rpartition(")")
        if "postgres" in name:
            return int(rest.split()[1])
    return None


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _has_statements(bin_dir: Path) -> bool:
    return any((bin_dir.parent / "lib").rglob("pg_stat_statements.so"))


@contextlib.contextmanager
def _run_folder() -> Iterator[Path]:
    """A folder on a real disk that the server's user can enter; leftovers of runs that were killed are removed."""
    parent = Path("/var/tmp") if Path("/var/tmp").is_dir() else Path(tempfile.gettempdir())
    for leftover in parent.glob(f"{_PREFIX}*"):
        _remove_if_dead(leftover)
    folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=parent))
    folder.chmod(0o711)
    before = signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    try:
        with (folder / "owner.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield folder
    finally:
        signal.signal(signal.SIGTERM, before)
        shutil.rmtree(folder, ignore_errors=True)


def _remove_if_dead(folder: Path) -> None:
    with contextlib.suppress(OSError, EmbeddedServerError), (folder / "owner.lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        embedded.PostgresServer(folder / "data", Path("/")).stop("immediate")
        shutil.rmtree(folder, ignore_errors=True)
