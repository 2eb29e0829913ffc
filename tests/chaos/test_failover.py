"""Fault 7: the primary is killed under load and its synchronous standby is promoted; clients know both addresses."""

from __future__ import annotations

import subprocess
import time
from typing import TYPE_CHECKING

import psycopg
import pytest
from scenarios.harness import Story, until
from servers import free_port

from chaos.chaos_tasks import EFFECTS
from chaos.tools import LEASE, LONG, Observer, Producer, audit, kill_whole_server, long_only, skip, start_many, wait_for
from pgqueue.embedded import PostgresServer
from pgqueue.embedded.binaries import server_environment

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from servers import PrivateServers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

OUTAGE = 0.5
IMPATIENT = ("could not be written", "wait for a lock", "the claim failed")
ROUNDS = 6 if LONG else 1


class Pair:
    """A primary and its synchronous standby."""

    def __init__(self, primary: PostgresServer) -> None:
        self.primary = primary
        self.standby = follow(primary)
        self.standby.start()
        with psycopg.connect(primary.dsn, autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
            connection.execute("SELECT pg_reload_conf()")
            until(
                lambda: connection.execute("SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync'").fetchone(),
                "the standby is synchronous",
            )

    @property
    def dsn(self) -> str:
        ports = f"{self.primary.port},{self.standby.port}"
        return f"postgresql://postgres@/postgres?host=127.0.0.1,127.0.0.1&port={ports}&target_session_attrs=read-write"

    def fail_over(self) -> None:
        kill_whole_server(self.primary)
        time.sleep(OUTAGE)  # nobody is primary: the clients meet a refusal, and a server that is read-only
        with psycopg.connect(self.standby.dsn, autocommit=True) as connection:
            assert connection.execute("SELECT pg_promote()").fetchone() == (True,)


def follow(primary: PostgresServer) -> PostgresServer:
    """A standby of this server, by pg_basebackup, not started yet."""
    program = primary.bin_dir / "pg_basebackup"
    if not program.exists():
        skip(f"no pg_basebackup beside the server's binaries in {primary.bin_dir}: no standby can be made")
    data_dir = primary.data_dir.with_name("standby")
    subprocess.run(
        [program, "-D", data_dir, "-d", primary.dsn, "-R", "-X", "stream", "--checkpoint=fast", "--no-sync"],
        env=server_environment(primary.bin_dir), check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    owner = primary.data_dir.stat()
    subprocess.run(["chown", "-R", f"{owner.st_uid}:{owner.st_gid}", data_dir], check=True)
    data_dir.chmod(0o700)
    return PostgresServer(data_dir, primary.bin_dir, settings=primary.settings, port=free_port())


@pytest.fixture
def pair(private_server: PrivateServers) -> Iterator[Pair]:
    primary = private_server(migrated=True, settings={"synchronous_commit": "on"})
    with psycopg.connect(primary.dsn, autocommit=True) as connection:
        connection.execute(EFFECTS)
    pair = Pair(primary)
    yield pair
    pair.standby.stop("immediate")
    primary.start()  # one that was killed left its shared memory behind: its next start and stop remove that


@pytest.mark.parametrize("round_", range(ROUNDS))
def test_nothing_acknowledged_is_lost_in_a_failover(pair: Pair, tmp_path: Path, round_: int) -> None:
    story = Story(pair.dsn, tmp_path, lease=LEASE)
    work = [("nap", {"seconds": 0.01}), ("transact", {}), ("toil", {"seconds": 0.02}), ("transact_thread", {})]
    try:
        workers = start_many(story, 2, "--slots", "5")
        producers = [Producer(pair.dsn, f"p{n}", work, rate=100) for n in range(2)]
        observer = Observer(pair.primary.dsn)
        wait_for(lambda: len(observer.seen) > 100, "it is under load", story)

        killed = time.monotonic()
        pair.fail_over()
        seen = observer.finish()
        before = [len(producer.acknowledged) for producer in producers]
        wait_for(
            lambda: all(len(p.acknowledged) > n + 50 for p, n in zip(producers, before, strict=True)),
            "enqueues go on at the new primary", story,
        )  # fmt: skip
        ends = len(story.ledger.entries("end"))
        wait_for(lambda: len(story.ledger.entries("end")) > ends + 50, "work goes on at the new primary", story)
        for producer in producers:
            producer.finish()
        story.until_finished()

        gap = max(gap for producer in producers for gap in producer.gaps)
        first = min(e.time for e in story.ledger.entries("start") if e.time > killed + OUTAGE) - killed
        ids = audit(story, *producers, effects=True)
        print(
            f"MEASURED failover: {sum(len(p.acknowledged) for p in producers)} acknowledged enqueues and {len(seen)} "
            f"finishes seen on the old primary, 0 lost; longest enqueue {gap:.2f} s, first start {first:.2f} s after "
            f"the kill; {sum(p.unsure for p in producers)} enqueues said again; {len(ids)} jobs"
        )
        assert all(worker.alive for worker in workers), "no worker ended"
        assert {entry.pid for entry in story.ledger.entries()} == {worker.pid for worker in workers}
        assert story.states() == {"completed": len(ids)}
        now = dict(story.query("SELECT id, lease_token FROM pgqueue.history"))
        missing = {job: token for job, token in seen.items() if now.get(job) != token}
        assert not missing, f"finishes that had been seen, and are gone: {missing}"
        again = {e.job for e in story.ledger.entries("start") if e.time > killed + OUTAGE} & seen.keys()
        assert not again, f"finished before the failover, and run again after it: {again}"
    finally:
        story.end()


@long_only
def test_commits_that_wait_for_a_lost_standby_are_neither_lost_nor_doubled(pair: Pair, tmp_path: Path) -> None:
    """The standby is away for longer than anybody's patience: every commit waits, and lands unheard."""
    story = Story(pair.dsn, tmp_path, lease=LEASE)
    work = [("nap", {"seconds": 0.01}), ("transact", {}), ("flaky", {"failures": 1}), ("transact_thread", {})]
    try:
        workers = start_many(story, 2, "--slots", "5")
        producer = Producer(pair.dsn, "p", work, rate=100)
        wait_for(lambda: len(story.ledger.entries("end")) > 50, "it is under load", story)
        running = story.enqueue_many("nap", [{"seconds": 3}] * 6)  # their outcomes are due while nobody answers
        story.until_started(running[0])
        pair.standby.stop("immediate")
        wait_for(
            lambda: any(words in worker.log.read_text() for worker in workers for words in IMPATIENT),
            "one of them has lost its patience with a commit", story,
        )  # fmt: skip
        pair.standby.start()
        acknowledged = len(producer.acknowledged)
        wait_for(lambda: len(producer.acknowledged) > acknowledged + 50, "enqueues go on", story)
        producer.finish()
        took = story.until_finished()
        ids = audit(story, producer, effects=True)
        print(f"MEASURED standby away: {len(ids)} jobs, {producer.unsure} said again, finished {took:.2f} s after all")
        assert all(worker.alive for worker in workers)
        assert story.states() == {"completed": len(ids)}
    finally:
        story.end()
