"""The peers, each in an environment of its own under ``.bench-peers/``, with the versions that its lock names."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
HOME = ROOT / ".bench-peers"


class InstallError(Exception):
    """A peer can't be installed here; the others can still be measured."""


@dataclass(frozen=True)
class Peer:
    """One queue.

    Attributes:
        name: of its folder beside this file, and on the command line.
        title: as it calls itself.
        package: whose version is shown.
        per_second: jobs per second that it drains, roughly, with one process: so a drain is given a number of jobs
            that takes seconds, not minutes, whoever runs it.
        python: the least Python that it needs, if that is more than pgqueue's.
    """

    name: str
    title: str
    package: str
    per_second: int
    python: tuple[int, int] = (3, 11)

    @property
    def folder(self) -> Path:
        """Where its adapter is."""
        return HERE / self.name

    @property
    def is_node(self) -> bool:
        """Whether it runs on Node."""
        return (self.folder / "package.json").exists()

    @cached_property
    def command(self) -> list[str]:
        """What runs its adapter."""
        if self.is_node:
            return ["node", str(self.folder / "adapter.mjs")]
        return [str(self._python), str(self.folder / "adapter.py")]

    @cached_property
    def version(self) -> str:
        """Of its package, and of what runs it."""
        if self.is_node:
            manifest = json.loads((self.folder / "node_modules" / self.package / "package.json").read_text())
            return f"{manifest['version']}, Node {_output(['node', '--version']).lstrip('v')}"
        if self._own:
            return importlib.metadata.version(self.package)
        code = (
            f"import importlib.metadata as m, platform; print(m.version('{self.package}') + ', Python '"
            " + platform.python_version())"
        )
        return _output([str(self._python), "-c", code])

    def install(self) -> None:
        """Make its environment, unless it is there.

        Raises:
            InstallError: the message says why not.
        """
        if self._own:
            return
        stamp = HOME / self.name / ".installed"
        lock = self.folder / ("package-lock.json" if self.is_node else "requirements.txt")
        digest = hashlib.sha256(lock.read_bytes()).hexdigest()
        if stamp.exists() and stamp.read_text() == digest:
            return
        shutil.rmtree(HOME / self.name, ignore_errors=True)
        (HOME / self.name).mkdir(parents=True)
        if self.is_node:
            self._install_node()
        else:
            self._install_python(lock)
        stamp.write_text(digest)

    @property
    def _own(self) -> bool:
        return self.name == "pgqueue"

    @property
    def _python(self) -> Path:
        return Path(sys.executable) if self._own else HOME / self.name / "bin" / "python"

    def _install_python(self, lock: Path) -> None:
        interpreter = _find_python(self.python)
        uv = _find_uv()
        if uv:
            _run([uv, "venv", "--quiet", "--clear", "--python", interpreter, str(HOME / self.name)])
            _run([uv, "pip", "install", "--quiet", "--python", str(self._python), "-r", str(lock)])
        else:
            _run([interpreter, "-m", "venv", str(HOME / self.name)])
            _run([str(self._python), "-m", "pip", "install", "--quiet", "-r", str(lock)])

    def _install_node(self) -> None:
        """Node looks for packages beside the adapter, so a link there leads to them."""
        if not shutil.which("npm"):
            raise InstallError("npm is not installed")
        home = HOME / self.name
        for name in ("package.json", "package-lock.json"):
            shutil.copy(self.folder / name, home / name)
        _run(["npm", "ci", "--no-audit", "--no-fund", "--prefix", str(home)])
        link = self.folder / "node_modules"
        if link.is_dir() and not link.is_symlink():
            shutil.rmtree(link)
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(home / "node_modules", self.folder))


PEERS = {
    peer.name: peer
    for peer in (
        Peer("pgqueue", "pgqueue", "pgqueue", 25_000),
        Peer("procrastinate", "Procrastinate", "procrastinate", 300),
        Peer("pgqueuer", "PgQueuer", "pgqueuer", 6_000),
        Peer("oban", "Oban for Python", "oban", 3_000, python=(3, 12)),
        Peer("awa", "Awa", "awa-pg", 2_000),
        Peer("chancy", "Chancy", "chancy", 4_000),
        Peer("graphile_worker", "Graphile Worker", "graphile-worker", 15_000),
        Peer("pg_boss", "pg-boss", "pg-boss", 10_000),
    )
}


def _find_uv() -> str | None:
    beside = Path(sys.executable).parent / "uv"
    return str(beside) if beside.exists() else shutil.which("uv")


def _find_python(least: tuple[int, int]) -> str:
    """This Python if it will do, so that the peers run on the same one; else the oldest newer one that is there."""
    if sys.version_info[:2] >= least:
        return sys.executable
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    for name in (f"{least[0]}.{minor}" for minor in range(least[1], least[1] + 4)):
        places = [f"python{name}", *(str(path) for path in pyenv.glob(f"{name}*/bin/python{name}"))]
        for place in places:
            with contextlib.suppress(InstallError):
                return _output([place, "-c", "import sys; print(sys.executable)"])
    raise InstallError(f"it needs Python {least[0]}.{least[1]}, which is not on this machine")


def _run(command: list[str]) -> None:
    _output(command)


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    except subprocess.CalledProcessError as error:
        raise InstallError(_short(error.stderr or error.stdout)) from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InstallError(f"{Path(command[0]).name}: {type(error).__name__}") from error
    return done.stdout.strip()


def _short(text: str) -> str:
    """The end of what an installer said, without addresses."""
    return re.sub(r"https?://\S+", "(address)", text).strip()[-500:]
