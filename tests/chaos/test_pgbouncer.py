"""Fault 23: everything but LISTEN goes through PgBouncer in transaction mode; nothing of a session leaks."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
from scenarios.harness import TESTS, Story, until
from servers import free_port

from chaos.chaos_tasks import EFFECTS
from chaos.tools import LEASE, audit_effects, skip, start, wait_for
from pgqueue import JobSpec
from pgqueue.embedded.binaries import server_user

if TYPE_CHECKING:
    from collections.abc import Iterator

    from servers import PrivateServers

    from pgqueue.embedded import PostgresServer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SERVER_CONNECTIONS = 4  # for all clients together: each statement meets a session that somebody else has used


class Bouncer:
    """One PgBouncer before one server."""

    def __init__(self, server: PostgresServer) -> None:
        program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
        if program is None:
            skip("PgBouncer is not installed (apt-get install pgbouncer)")
            raise AssertionError
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="bouncer-", dir=server.data_dir.parent))
        self.folder.chmod(0o777)
        (self.folder / "users.txt").write_text('"postgres" ""\n')
        (self.folder / "pgbouncer.ini").write_text(f"""
[databases]
* = host=127.0.0.1 port={server.port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {self.port}
unix_socket_dir =
auth_type = trust
auth_file = {self.folder}/users.txt
admin_users = postgres
pool_mode = transaction
default_pool_size = {SERVER_CONNECTIONS}
max_client_conn = 500
logfile = {self.folder}/pgbouncer.log
""")
        user = server_user(server.data_dir)
        self.process = subprocess.Popen(
            [program, self.folder / "pgbouncer.ini"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True, cwd="/",
            **({"user": user.uid, "group": user.gid, "extra_groups": []} if user else {}),
        )  # fmt: skip
        self.dsn = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        until(lambda: psycopg.connect(self.dsn).close() is None, "PgBouncer answers", self.log)

    def log(self) -> str:
        path = self.folder / "pgbouncer.log"
        return path.read_text()[-2000:] if path.exists() else f"no log; exit code {self.process.poll()}"

    def close(self) -> None:
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def server(private_server: PrivateServers) -> PostgresServer:
    return private_server(migrated=True)


@pytest.fixture
def bouncer(server: PostgresServer) -> Iterator[Bouncer]:
    bouncer = Bouncer(server)
    yield bouncer
    bouncer.close()


@pytest.fixture
def story(bouncer: Bouncer, tmp_path: Path) -> Iterator[Story]:
    """Everybody goes through the pooler, the story itself, too."""
    told = Story(bouncer.dsn, tmp_path, lease=LEASE)
    told.query(EFFECTS)
    yield told
    told.end()


def pgq(dsn: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "pgqueue", *arguments, "--dsn", dsn], capture_output=True, text=True, check=False,
        timeout=60, env={**os.environ, "PYTHONPATH": str(TESTS)},
    )  # fmt: skip
    assert done.returncode == 0, f"pgq {arguments}: {done.returncode}\n{done.stderr[-2000:]}"
    return done.stdout


def leaks(bouncer: Bouncer) -> dict[str, list[tuple[object, ...]]]:
    """What is left in the sessions that PgBouncer shares out: all of them, held at once."""
    found: dict[str, list[tuple[object, ...]]] = {"settings": [], "prepared": [], "locks": [], "listening": []}
    sessions = [psycopg.connect(bouncer.dsn, prepare_threshold=None) for _ in range(SERVER_CONNECTIONS)]
    try:
        pids = set()
        for session in sessions:  # each has a transaction open, so each has a server connection of its own
            pids.add(session.execute("SELECT pg_backend_pid()").fetchone())
            found["settings"] += session.execute(
                "SELECT name, setting FROM pg_settings WHERE source = 'session' AND setting <> reset_val "
                "AND name NOT IN ('application_name', 'client_encoding', 'DateStyle', 'TimeZone', "
                "'standard_conforming_strings')"  # those PgBouncer itself keeps per client
            ).fetchall()
            found["prepared"] += session.execute(
                "SELECT name, left(statement, 80) FROM pg_prepared_statements"
            ).fetchall()
            found["listening"] += session.execute("SELECT pg_listening_channels()").fetchall()
        found["locks"] += (
            sessions[0].execute("SELECT pid, mode FROM pg_locks WHERE locktype = 'advisory' AND granted").fetchall()
        )
        assert len(pids) == SERVER_CONNECTIONS
    finally:
        for session in sessions:
            session.close()
    return found


def test_everything_works_through_pgbouncer_in_transaction_mode_and_nothing_leaks(
    story: Story, bouncer: Bouncer, server: PostgresServer
) -> None:
    workers = [start(story, "--slots", "10", ready=False) for _ in range(2)]
    for worker in workers:
        worker.wait_until_ready()
        wait_for(lambda worker=worker: "PGQUEUE_LISTEN_DSN" in worker.log.read_text(), "it says that it polls", story)

    running = story.enqueue("hold")
    long = story.enqueue("reporting", {"seconds": 3.5})  # more than two leases
    one = story.enqueue("nap")
    many = story.enqueue_many("nap", [{"seconds": 0.01}] * 100)
    copied = story.client.enqueue_many([JobSpec.make("toil", {"seconds": 0.01}) for _ in range(100)], copy=True)
    effects = story.enqueue_many("transact", [{}] * 30) + story.enqueue_many("transact_thread", [{}] * 10)
    flaky = story.enqueue_many("flaky", [{"failures": 2}] * 10)
    dead = story.enqueue("fail", {"message": "no luck"}, max_attempts=2)
    family = story.enqueue("parent", {"children": 5})
    story.enqueued += copied

    story.until_completed(one, *many, *copied, *effects, *flaky, family)
    children = story.get(family).result
    story.enqueued += children
    story.until_completed(*children)
    story.until_started(running)
    assert story.client.cancel(running) == "running"
    story.until_state(running, "cancelled")
    record = story.until_completed(long)[0]
    assert record.attempt == 1, "it was renewed"
    assert record.progress is not None
    assert story.until_state(dead, "dead").attempt == 2
    assert story.client.retry(dead) == "available"
    until(lambda: (r := story.get(dead)).state == "dead" and len(r.errors) == 4, "it is dead again", story.logs)
    assert story.client.redrive(task="fail") == 1
    until(lambda: (r := story.get(dead)).state == "dead" and len(r.errors) == 6, "and once more", story.logs)

    before = len(story.ledger.entries("start"))
    lost = story.enqueue("nap", {"seconds": 3}, max_attempts=5)
    story.until_started(lost)
    ((holder,),) = {(entry.pid,) for entry in story.ledger.entries("start", lost)}
    next(worker for worker in workers if worker.pid == holder).kill()
    story.until_completed(lost)
    assert len(story.ledger.entries("start")) == before + 2, "swept, and run by the other one"

    stats = json.loads(pgq(bouncer.dsn, "stats", "--json"))
    assert stats, "pgq stats"
    story.until_finished()
    assert [worker.stop() for worker in workers if worker.alive] == [0]
    audit_effects(story)
    story.audit()
    found = leaks(bouncer)
    assert not any(found.values()), found


def test_pgq_migrate_through_the_pooler_leaves_nothing_behind(private_server: PrivateServers) -> None:
    """It may refuse; what it may not do is leave a lock or a setting in a session that others are given."""
    server = private_server()
    bouncer = Bouncer(server)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pgqueue", "migrate", "--dsn", bouncer.dsn],
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode in {0, 4}, done.stderr[-2000:]
        found = leaks(bouncer)
        assert not any(found.values()), found
        pgq(server.dsn, "migrate")  # waits for two minutes, and fails, if the lock is still held
    finally:
        bouncer.close()


def test_with_a_listen_dsn_the_bell_rings_past_the_pooler(
    story: Story, bouncer: Bouncer, server: PostgresServer
) -> None:
    worker = start(story, "--slots", "2", "--poll", "20s", PGQUEUE_LISTEN_DSN=server.dsn)
    story.until_completed(story.enqueue("nap"))
    armed = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ShareLock' AND granted"
    for _ in range(3):
        until(lambda: story.query(armed), "it is idle, and listens", story.logs)
        job = story.enqueue("nap")
        story.until_completed(job, within=15)  # polling alone would take 20 s, less a fifth
    job = story.enqueue("hold")
    story.until_started(job)
    story.client.cancel(job)
    story.until_state(job, "cancelled")
    assert "polling" not in worker.log.read_text()
    assert worker.stop() == 0
    story.audit()
    assert not any(leaks(bouncer).values())
