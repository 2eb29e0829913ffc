"""The PostgreSQL that the tests run on: which one, its databases, and private servers for crash tests.

The choice, in this order: `PGQUEUE_TEST_DSN`; Docker, if it answers; local binaries, through `embedded`.
One process (pytest's own, or the controller of pytest-xdist) starts and stops it; workers get its `Address`.
Every database and folder of a run carries the run's name, so that a run leaves nothing behind; folders of
a run that was killed are swept by the next.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from pgqueue import embedded
from pgqueue.errors import EmbeddedServerError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

SHM = Path("/dev/shm")
ENOUGH_SHM = 1 << 30
IMAGE = "postgres:18"
NO_FSYNC = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "max_connections": 300}
FOLDER_PREFIX = "pgqueue-tests-"
TEMPLATE_LOCK = 7_467_001


@dataclass(frozen=True)
class Address:
    """What an xdist worker needs to know; travels as a dict of strings."""

    run: str
    description: str
    admin_dsn: str
    folder: str

    @classmethod
    def of(cls, values: Mapping[str, str]) -> Address:
        return cls(**values)

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


class Host:
    """Chooses the server, starts it once on demand, and stops it; lives in the controlling process."""

    def __init__(self) -> None:
        self.run = uuid.uuid4().hex[:8]
        self._cleanup = contextlib.ExitStack()
        self._folder: Path | None = None
        self._address: Address | None = None
        self.kind, self.description = _choose()

    @property
    def folder(self) -> Path:
        """The run's folder, made on demand: a run of unit tests alone starts no server."""
        if self._folder is None:
            self._folder = self._cleanup.enter_context(run_folder(self.run))
        return self._folder

    def start(self) -> Address:
        if self._address is None:
            start = {"given": self._given, "docker": self._docker, "local": self._local}[self.kind]
            self._address = Address(self.run, self.description, start(self.folder), str(self.folder))
        return self._address

    def stop(self) -> None:
        self._cleanup.close()

    def _given(self, _folder: Path) -> str:
        dsn = os.environ["PGQUEUE_TEST_DSN"]
        self._cleanup.callback(_drop_all, dsn, self.run)
        return dsn

    def _docker(self, _folder: Path) -> str:
        from testcontainers.community.postgres import PostgresContainer

        options = " ".join(f"-c {name}={value}" for name, value in NO_FSYNC.items())
        container = PostgresContainer(IMAGE, driver=None).with_command(f"postgres {options}")
        dsn: str = self._cleanup.enter_context(container).get_connection_url()
        return dsn

    def _local(self, folder: Path) -> str:
        data_dir = copy_blank(folder, folder / "data")
        server = embedded.PostgresServer(data_dir, local_binaries(folder), settings=NO_FSYNC)
        self._cleanup.callback(server.stop, "immediate")
        return server.start()


class Server:
    """The tests' server as a test sees it: databases made from the migrated template, and dropped again."""

    def __init__(self, address: Address) -> None:
        self.description = address.description
        self.admin_dsn = address.admin_dsn
        self.folder = Path(address.folder)
        self._prefix = database_prefix(address.run)
        self._template_is_ready = False
        self._strategy: sql.SQL | None = None

    def dsn(self, dbname: str) -> str:
        return with_database(self.admin_dsn, dbname)

    def create(self, *, migrated: bool = True) -> str:
        """Make a fresh database, by default a clone of the migrated template; returns its name."""
        if migrated and not self._template_is_ready:
            self._make_template()
        name = f"{self._prefix}{uuid.uuid4().hex[:12]}"
        template = sql.Identifier(self._template if migrated else "template0")
        with psycopg.connect(self.admin_dsn, autocommit=True) as connection:
            if self._strategy is None:  # a copy of files ends with a checkpoint, which is cheap only without fsync
                durable = connection.execute("SELECT current_setting('fsync')::boolean").fetchone() != (False,)
                self._strategy = sql.SQL("wal_log" if durable else "file_copy")
            statement = sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY {}")
            connection.execute(statement.format(sql.Identifier(name), template, self._strategy))
        return name

    def drop(self, name: str) -> None:
        self.admin(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def admin(self, statement: sql.Composed) -> None:
        with psycopg.connect(self.admin_dsn, autocommit=True) as connection:
            connection.execute(statement)

    @property
    def _template(self) -> str:
        return f"{self._prefix}template"

    def _make_template(self) -> None:
        """Migrate the template, once for all workers; it has its name only when it is whole."""
        from invariants import STRICT

        from pgqueue.migrations import migrate

        half_made = f"{self._prefix}half_made"
        with psycopg.connect(self.admin_dsn, autocommit=True) as connection:
            connection.execute("SELECT pg_advisory_lock(%s)", [TEMPLATE_LOCK])
            known = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [self._template])
            if known.fetchone() is None:
                self.drop(half_made)
                connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(half_made)))
                migrate(self.dsn(half_made))
                with psycopg.connect(self.dsn(half_made)) as made:
                    made.execute(STRICT)
                names = [sql.Identifier(half_made), sql.Identifier(self._template)]
                connection.execute(sql.SQL("ALTER DATABASE {} RENAME TO {}").format(*names))
                # Not even autovacuum connects now, so cloning never waits for it.
                connection.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(names[1]))
        self._template_is_ready = True


class PrivateServers:
    """Makes servers that a test may restart and kill: own data folder, own TCP port, durable by default."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._cleanup = contextlib.ExitStack()

    def __call__(
        self,
        *,
        migrated: bool = False,
        on_disk: bool = False,
        settings: Mapping[str, str | int] | None = None,
    ) -> embedded.PostgresServer:
        """Start one and return it; ``on_disk`` puts its data where an fsync reaches a disk."""
        folder = Path(tempfile.mkdtemp(prefix="private-", dir=self._folder))
        folder.chmod(0o711)
        if on_disk:
            folder = self._cleanup.enter_context(run_folder(folder.name, parent=Path("/var/tmp")))
        data_dir = copy_blank(self._folder, folder / "data")
        server = embedded.PostgresServer(data_dir, local_binaries(self._folder), settings=settings, port=free_port())
        self._cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
        self._cleanup.callback(server.stop, "immediate")
        server.start()
        if migrated:
            from pgqueue.migrations import migrate

            migrate(server.dsn)
        return server

    def close(self) -> None:
        self._cleanup.close()


def local_binaries(folder: Path) -> Path:
    """The folder of PostgreSQL's binaries, copied into ``folder`` if the server's user can't run them."""
    with _locked(folder / "binaries.lock"):
        return embedded.reachable_binaries(embedded.find_binaries(), beside=folder)


def copy_blank(folder: Path, data_dir: Path) -> Path:
    """A data folder as initdb leaves it, copied from the one that the run's first caller made."""
    blank = embedded.PostgresServer(folder / "blank", local_binaries(folder))
    with _locked(folder / "blank.lock"):
        blank.init(sync=False)
    subprocess.run(["cp", "-Rp", blank.data_dir, data_dir], check=True)
    return data_dir


@contextlib.contextmanager
def run_folder(name: str, parent: Path | None = None) -> Iterator[Path]:
    """A folder that a server's user can enter, even if we are root; swept by a later run if we are killed."""
    parent = parent or _roomy_parent()
    _sweep(parent)
    folder = parent / f"{FOLDER_PREFIX}{os.geteuid()}-{name}"
    folder.mkdir(mode=0o711)
    try:
        with (folder / "owner.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield folder
    finally:
        _stop_servers_in(folder)
        shutil.rmtree(folder, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def with_database(dsn: str, dbname: str) -> str:
    """The same server's DSN, as a URI, for another database."""
    parts = {name: str(value) for name, value in conninfo_to_dict(dsn).items() if value is not None}
    parts.pop("dbname", None)
    user, password = parts.pop("user", ""), parts.pop("password", "")
    login = quote(user, safe="") + (f":{quote(password, safe='')}" if password else "")
    host, port = parts.pop("host", ""), parts.pop("port", "")
    if "/" in host or "," in host:  # a socket folder, or several hosts: only parameters can say it
        parts |= {"host": host} | ({"port": port} if port else {})
        host = port = ""
    place = (f"[{host}]" if ":" in host else host) + (f":{port}" if port else "")
    query = f"?{urlencode(parts)}" if parts else ""
    return f"postgresql://{login}{'@' if login else ''}{place}/{quote(dbname, safe='')}{query}"


def database_prefix(run: str) -> str:
    return f"pgqueue_test_{run}_"


def _choose() -> tuple[str, str]:
    if dsn := os.environ.get("PGQUEUE_TEST_DSN"):
        parts = conninfo_to_dict(dsn)
        return "given", f"PGQUEUE_TEST_DSN ({parts.get('host', 'local socket')}:{parts.get('port', 5432)})"
    if _docker_answers():
        return "docker", f"Docker, image {IMAGE}"
    try:
        binaries = embedded.find_binaries()
    except EmbeddedServerError as error:
        return "local", f"none: {error}"
    return "local", f"local PostgreSQL {binaries.version}, data in {_roomy_parent()}"


def _docker_answers() -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # its client leaks a socket when nobody answers
        try:
            import docker

            with contextlib.closing(docker.from_env(timeout=2)) as client:
                return bool(client.ping())
        except Exception:  # noqa: BLE001 - not installed, no daemon, no permission: whatever it is, no Docker
            return False
        finally:
            gc.collect()


def _roomy_parent() -> Path:
    """Where data folders go: memory if there is enough, else the disk. (Not tmp_path: closed to others.)."""
    with contextlib.suppress(OSError):
        if shutil.disk_usage(SHM).free >= ENOUGH_SHM and os.access(SHM, os.W_OK):
            return SHM
    return Path(tempfile.gettempdir())


def _sweep(parent: Path) -> None:
    """End what runs that were killed left: their folders' locks are free."""
    for folder in parent.glob(f"{FOLDER_PREFIX}{os.geteuid()}-*"):
        with contextlib.suppress(OSError), (folder / "owner.lock").open("r+") as lock:
            if time.time() - folder.stat().st_mtime < 60:
                continue  # perhaps just being made
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _stop_servers_in(folder)
            shutil.rmtree(folder, ignore_errors=True)


def _stop_servers_in(folder: Path) -> None:
    for pid_file in [*folder.glob("*/postmaster.pid"), *folder.glob("*/*/postmaster.pid")]:
        with contextlib.suppress(EmbeddedServerError):
            port = int(pid_file.read_text().split("\n")[3])
            embedded.PostgresServer(pid_file.parent, Path("/"), port=port).stop("immediate")


def _drop_all(dsn: str, run: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        pattern = database_prefix(run).replace("_", r"\_") + "%"
        for (name,) in connection.execute("SELECT datname FROM pg_database WHERE datname LIKE %s", [pattern]):
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
