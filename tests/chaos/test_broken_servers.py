"""The server goes away, connections break, replies are lost: workers stay up and nothing is lost."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from typing import TYPE_CHECKING

import psycopg
import pytest
from scenarios.harness import LEASE, Story, until
from scenarios.proxy import Proxy

from pgqueue import App, DatabaseError, JobSpec, Settings
from pgqueue.errors import DatabaseUnreachableError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from servers import PrivateServers

    from pgqueue.embedded import PostgresServer

pytestmark = pytest.mark.slow


@pytest.fixture
def proxy(dsn: str) -> Iterator[Proxy]:
    proxy = Proxy(dsn)
    yield proxy
    proxy.close()


@pytest.fixture
def story(dsn: str, proxy: Proxy, tmp_path: Path) -> Iterator[Story]:
    """Its workers reach the server through the proxy; the test itself does not."""
    told = Story(dsn, tmp_path, worker_dsn=proxy.dsn, lease=LEASE)
    yield told
    told.end()


class Producer:
    """Enqueues through faults: what was acknowledged is certain, what broke is known to be uncertain."""

    def __init__(self, story: Story) -> None:
        self.story = story
        self.uncertain = 0

    def enqueue(self, task: str = "nap", seconds: float = 0.01) -> None:
        key = f"{task}-{len(self.story.enqueued)}-{self.uncertain}"
        while True:
            try:
                self.story.enqueue(task, {"seconds": seconds}, max_attempts=100, unique_key=key)
            except DatabaseError:
                self.uncertain += 1
                time.sleep(0.05)  # the server is away: its return has no event
            else:
                return


def restart(server: PostgresServer, how: str, times: int, story: Story) -> None:
    """Again and again, each time when some jobs have got through."""
    for _ in range(times):
        done = len(story.ledger.entries("end"))
        until(lambda done=done: len(story.ledger.entries("end")) > done + 5, "work goes on", story.logs)
        server.stop(how)
        server.start()


@pytest.mark.parametrize("how", ["fast", "immediate"])
def test_workers_live_through_restarts_of_the_server(private_server: PrivateServers, tmp_path: Path, how: str) -> None:
    server = private_server(migrated=True)
    story = Story(server.dsn, tmp_path, lease=LEASE)
    try:
        workers = story.start_many(2, "--slots", "5")
        producer = Producer(story)
        faults = threading.Thread(target=restart, args=(server, how, 3, story))
        faults.start()
        while faults.is_alive() or len(story.enqueued) < 60:
            producer.enqueue("toil" if len(story.enqueued) % 3 else "nap", 0.02)
        faults.join()
        took = story.until_finished()
        print(f"MEASURED finished {took:.1f} s after the last {how} restart; {producer.uncertain} enqueues said again")
        assert all(worker.alive for worker in workers), "no worker ended"
        assert {entry.pid for entry in story.ledger.entries()} == {worker.pid for worker in workers}
        # a retried enqueue whose first try had committed finds the live job by its key, or makes another when it
        # has finished by then: so ids beyond the acknowledged ones are those of lost replies
        ids = [job for (job,) in story.query("SELECT id FROM pgqueue.all_jobs")]
        assert set(story.enqueued) <= set(ids)
        assert len(ids) - len(set(story.enqueued)) <= producer.uncertain
        assert story.states() == {"completed": len(ids)}
        story.audit(enqueued=ids)
    finally:
        story.end()


def test_connections_terminated_at_random_cost_nothing(story: Story) -> None:
    chance = random.Random(7)
    workers = story.start_many(2, "--slots", "5")
    for _ in range(12):
        story.enqueue_many("nap", [{"seconds": 0.02}] * 30, max_attempts=100)
        done = len(story.ledger.entries("end"))
        pids = [pid for (pid,) in story.query(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() ORDER BY 1"
        )]  # fmt: skip
        for pid in chance.sample(pids, k=min(len(pids), 4)):
            story.query("SELECT pg_terminate_backend(%s, 10000)", pid)  # and wait: it may be the enqueuer's
        until(lambda done=done: len(story.ledger.entries("end")) > done, "work goes on", story.logs)
    took = story.until_finished()
    print(f"MEASURED finished {took:.1f} s after the last termination")
    assert all(worker.alive for worker in workers)
    assert {entry.pid for entry in story.ledger.entries()} == {worker.pid for worker in workers}
    assert story.states() == {"completed": 360}
    story.audit()


def test_a_reset_of_every_connection_under_load_costs_nothing(story: Story, proxy: Proxy) -> None:
    worker = story.start("--slots", "5")
    story.enqueue_many("nap", [{"seconds": 0.02}] * 200, max_attempts=100)
    for _ in range(4):
        done = len(story.ledger.entries("end"))
        until(lambda done=done: len(story.ledger.entries("end")) > done + 5, "work goes on", story.logs)
        proxy.reset()
    story.until_finished()
    assert worker.alive
    assert story.states() == {"completed": 200}
    story.audit()


def test_a_worker_waits_for_a_server_that_cannot_be_reached_and_then_works(story: Story, proxy: Proxy) -> None:
    proxy.mode = "refuse"
    worker = story.start(ready=False)
    until(lambda: "reached" in worker.log.read_text(), "it says what it waits for", story.logs)
    job = story.enqueue("nap")
    proxy.mode = "pass"
    story.until_completed(job)
    story.audit()


def test_the_reply_to_a_finish_may_be_lost(story: Story, proxy: Proxy) -> None:
    worker = story.start()
    proxy.cut_reply_after("completed")  # a verdict: the parameters of a finish
    job = story.enqueue("nap", {"seconds": 0.1})
    story.until_completed(job)
    until(lambda: proxy.cut == 1, "the reply was cut")
    next_job = story.enqueue("nap")
    story.until_completed(next_job)
    story.executed_once()
    assert "lease was lost" not in worker.log.read_text(), "it found its outcome in history"
    assert worker.stop() == 0
    story.audit()


def test_the_reply_to_a_claim_may_be_lost(story: Story, proxy: Proxy) -> None:
    worker = story.start()
    job = story.enqueue("nap", delay=1)  # silence on the wire until it is due
    proxy.cut_reply_after("lane AS MATERIALIZED")
    proxy.reset()  # so that the statement is sent in full again
    record = story.until_completed(job)[0]
    assert worker.alive
    assert proxy.cut == 1
    assert record.attempt in {1, 2}
    story.executed_once()
    story.audit()


def test_the_reply_to_an_enqueue_may_be_lost_and_a_unique_key_finds_the_job(story: Story, proxy: Proxy) -> None:
    producer = App(settings=Settings(dsn=proxy.dsn))
    spec = JobSpec.make("nap", unique_key="only once", delay=2)
    try:
        proxy.cut_reply_after("pgqueue.submit(")
        with pytest.raises(DatabaseUnreachableError):
            producer.client.enqueue(spec)
        ((job,),) = story.query("SELECT id FROM pgqueue.jobs")
        assert producer.client.enqueue(spec) == job
    finally:
        producer.close()
    story.enqueued.append(job)
    story.start()
    story.until_completed(job)
    story.executed_once()
    story.audit()


def test_a_network_that_falls_silent_is_noticed_and_work_goes_on_after_it(story: Story, proxy: Proxy) -> None:
    """Nobody hears a FIN or RST; packets are still acknowledged (by a pooler or balancer), and nothing comes back."""
    worker = story.start("--slots", "5")
    story.until_completed(story.enqueue("nap"))
    running = story.enqueue("nap", {"seconds": 0.5}, max_attempts=100)
    story.until_started(running)
    proxy.mode = "silent"
    story.enqueue_many("nap", [{"seconds": 0.01}] * 20, max_attempts=100)
    until(lambda: len(story.ledger.entries("end", running)) == 1, "its outcome goes into the void", story.logs)
    proxy.mode = "pass"  # for new connections; what was swallowed never comes
    took = story.until_finished(within=60)
    print(f"MEASURED finished {took:.1f} s after the silence")
    assert worker.alive
    assert story.states() == {"completed": 22}
    story.audit()


@pytest.mark.parametrize("mode", ["refuse", "silent"])
@pytest.mark.parametrize("busy", [True, False], ids=["busy", "idle"])
def test_a_stop_ends_though_the_server_is_gone(story: Story, proxy: Proxy, mode: str, busy: bool) -> None:
    """Whatever the worker still has to say to the database, it says it for a bounded time."""
    worker = story.start("--shutdown-timeout", "200ms")
    job = story.enqueue("hold" if busy else "nap", max_attempts=5)
    story.until_started(job) if busy else story.until_completed(job)
    proxy.mode = mode
    if mode == "refuse":
        proxy.reset()
    code = worker.stop(within=60)
    assert code == 1 if busy else code in {0, 1}
    proxy.mode = "pass"
    if busy:
        story.ledger.say_go()
        story.start()
        assert story.until_completed(job)[0].attempt == 2, "its lease expired"
    story.audit()


def test_a_slow_network_changes_nothing_but_the_pace(story: Story, proxy: Proxy) -> None:
    proxy.delay = 0.02
    story.start("--slots", "5")
    story.enqueue_many("nap", [{"seconds": 0.01}] * 50)
    story.until_finished()
    assert story.states() == {"completed": 50}
    story.executed_once()
    story.audit()


def test_connections_used_up_by_others_are_waited_for(private_server: PrivateServers, tmp_path: Path) -> None:
    server = private_server(migrated=True, settings={"max_connections": 12, "superuser_reserved_connections": 0})
    story = Story(server.dsn, tmp_path)
    hoard: list[psycopg.Connection[tuple[object, ...]]] = []
    try:
        job = story.enqueue("nap")
        story.app.close()
        with contextlib.suppress(psycopg.OperationalError):
            hoard.extend(psycopg.connect(server.dsn) for _ in range(13))
        assert 0 < len(hoard) < 13, "no connection is left"
        worker = story.start(ready=False)
        until(
            lambda: "connection" in worker.log.read_text() or "reached" in worker.log.read_text(),
            "it waits",
            story.logs,
        )
        for connection in hoard:
            connection.close()
        story.until_completed(job)
        assert worker.alive
        story.audit()
    finally:
        for connection in hoard:
            connection.close()
        story.end()
