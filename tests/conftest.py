"""Fixtures for every test: a fresh migrated database, an empty one, private servers, a clean environment."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from servers import Address, Host, PrivateServers, Server, local_binaries

from pgqueue import embedded
from pgqueue.errors import EmbeddedServerError

if TYPE_CHECKING:
    from collections.abc import Iterator

HOST = pytest.StashKey[Host]()


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a shell's background job: what we start would be deaf, too
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not hasattr(config, "workerinput"):
        config.stash[HOST] = Host()


def pytest_report_header(config: pytest.Config) -> list[str]:
    return [f"PostgreSQL: {config.stash[HOST].description}"] if HOST in config.stash else []  # else an xdist worker


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Runs in pytest-xdist's controller, before each worker starts."""
    node.workerinput["server"] = node.config.stash[HOST].start().as_dict()


def pytest_unconfigure(config: pytest.Config) -> None:
    if HOST in config.stash:
        config.stash[HOST].stop()


@pytest.fixture(scope="session")
def run_folder(request: pytest.FixtureRequest) -> Path:
    """A folder of this run that every user can enter; gone when the run ends."""
    config = request.config
    return config.stash[HOST].folder if HOST in config.stash else Path(config.workerinput["server"]["folder"])


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest) -> Server:
    """The server that the whole run shares: `.dsn(dbname)`, `.admin_dsn`, `.description`."""
    config = request.config
    if HOST in config.stash:
        return Server(config.stash[HOST].start())
    return Server(Address.of(config.workerinput["server"]))


@pytest.fixture
def dsn(server: Server) -> Iterator[str]:
    """A fresh database with pgqueue's schema."""
    name = server.create()
    yield server.dsn(name)
    server.drop(name)


@pytest.fixture
def empty_dsn(server: Server) -> Iterator[str]:
    """A fresh database without any schema."""
    name = server.create(migrated=False)
    yield server.dsn(name)
    server.drop(name)


@pytest.fixture
def private_server(run_folder: Path) -> Iterator[PrivateServers]:
    """A factory of servers that the test may restart and kill: `private_server(migrated=True)`."""
    try:
        local_binaries(run_folder)
    except EmbeddedServerError as error:
        pytest.skip(str(error))
    servers = PrivateServers(run_folder)
    yield servers
    servers.close()


@pytest.fixture(autouse=True)
def clean_environment(
    request: pytest.FixtureRequest, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """No setting of the outer environment reaches a test, and no test reaches a user's own server.

    `PGQUEUE_PG_BIN` stays: it says which PostgreSQL the run is about. Coverage follows a test into the processes that
    it starts, which makes each of them half as dear again; into those of a `slow` test only if it is `measured`, too.
    """
    node = request.node
    if node.get_closest_marker("slow") is not None and node.get_closest_marker("measured") is None:
        monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)
    for name in list(os.environ):
        if name == "DATABASE_URL" or (name.startswith("PGQUEUE_") and name != "PGQUEUE_PG_BIN"):
            monkeypatch.delenv(name)
    if os.environ.get("PYTHONDONTWRITEBYTECODE"):  # or every process that a test starts compiles everything
        monkeypatch.delenv("PYTHONDONTWRITEBYTECODE")
        monkeypatch.setenv("PYTHONPYCACHEPREFIX", str(run_folder / "pycache"))
    home = Path(tempfile.mkdtemp(prefix="home-", dir=run_folder))
    home.chmod(0o711)
    monkeypatch.setenv("PGQUEUE_HOME", str(home))
    yield home
    monkeypatch.undo()
    if any(home.iterdir()):
        embedded.stop(home, force=True)
    shutil.rmtree(home, ignore_errors=True)
