"""Faults 4, 8, 9: replies that are lost, lines that fall silent one by one, a notification queue that is full."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import psycopg
import pytest
from scenarios.harness import Story, until
from scenarios.proxy import Proxy

from chaos.chaos_tasks import EFFECTS
from chaos.tools import LEASE, audit_effects, skip, start, wait_for
from pgqueue import App, JobSpec, Settings
from pgqueue.errors import DatabaseUnreachableError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from servers import PrivateServers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

COMMIT = "COMMIT\0"  # the whole command: READ COMMITTED is none


@pytest.fixture
def proxy(dsn: str) -> Iterator[Proxy]:
    proxy = Proxy(dsn)
    yield proxy
    proxy.close()


@pytest.fixture
def story(dsn: str, proxy: Proxy, tmp_path: Path) -> Iterator[Story]:
    """Its workers reach the server through the proxy; the test itself does not."""
    told = Story(dsn, tmp_path, worker_dsn=proxy.dsn, lease=LEASE)
    told.query(EFFECTS)
    yield told
    told.end()


# -- 4: the reply is lost --------------------------------------------------------------------------------------------


def test_the_replies_to_a_handlers_commit_a_retry_and_an_enqueue_of_its_own_may_be_lost(
    story: Story, proxy: Proxy
) -> None:
    """The commit that nobody heard of is the job's one completion; a failure that was written is written once."""
    worker = start(story, "--slots", "2", LEASE_DURATION="2s")
    for nth, task in enumerate(("transact", "transact_thread"), 1):
        job = story.enqueue(task, {"seconds": 0.3}, max_attempts=5)
        story.until_started(job)
        proxy.cut_reply_after(COMMIT)
        story.until_completed(job)
        wait_for(lambda nth=nth: proxy.cut == nth, "the reply was cut", story)
        until(lambda job=job: "after its transaction" in worker.log.read_text() or story.query(
            "SELECT 1 WHERE NOT EXISTS (SELECT FROM pgqueue.leases)"), "its lease is let go", story.logs)  # fmt: skip
        assert story.ledger.runs()[job] == 1, "it was not run again"
        assert len(story.query("SELECT 1 FROM effects WHERE job = %s", job)) == 1

    proxy.cut_reply_after("ValueError")  # the finish that brings the error
    job = story.enqueue("flaky", {"failures": 1}, max_attempts=3)
    record = story.until_completed(job)[0]
    assert proxy.cut == 3
    assert [error["attempt"] for error in record.errors] == [1], "the failure counts once"
    assert (record.attempt, story.ledger.runs()[job]) == (2, 2)
    assert worker.alive
    audit_effects(story)
    story.audit()


def test_the_replies_to_batches_may_be_lost(story: Story, proxy: Proxy) -> None:
    """All of a batch or nothing, by ``enqueue_many`` and by COPY; with keys it may be said again."""
    producer = App(settings=Settings(dsn=proxy.dsn))
    try:
        specs = [JobSpec.make("nap", unique_key=f"k{n}") for n in range(50)]
        proxy.cut_reply_after("pgqueue.submit_many(")
        with pytest.raises(DatabaseUnreachableError):
            producer.client.enqueue_many(specs)
        found = [job for (job,) in story.query("SELECT id FROM pgqueue.jobs ORDER BY id")]
        assert len(found) == 50, "the whole batch, although nobody heard of it"
        assert sorted(producer.client.enqueue_many(specs)) == found
        proxy.cut_reply_after(COMMIT)
        with pytest.raises((DatabaseUnreachableError, psycopg.OperationalError)) as caught:
            producer.client.enqueue_many([JobSpec.make("nap") for n in range(50)], copy=True)
        assert len(story.query("SELECT id FROM pgqueue.jobs")) == 100
        assert isinstance(caught.value, DatabaseUnreachableError), "a typed error, also from COPY's commit"
    finally:
        producer.close()


# -- 8: one line falls silent, the others live -----------------------------------------------------------------------


def test_a_listener_that_falls_silent_alone_costs_no_more_than_polling(dsn: str, proxy: Proxy, tmp_path: Path) -> None:
    """Half-open: the peer acknowledges and says nothing. Only the bell's line goes through the proxy."""
    story = Story(dsn, tmp_path, lease=LEASE)
    try:
        worker = start(story, "--slots", "5", PGQUEUE_LISTEN_DSN=proxy.dsn)
        story.until_completed(story.enqueue("nap"))
        wait_for(lambda: _armed(story), "it is idle, and its bell armed", story)
        proxy.mode = "silent"
        waits = []
        end = time.monotonic() + 6.5
        while time.monotonic() < end:
            began = time.monotonic()
            jobs = story.enqueue_many("nap", [{"seconds": 0.01}] * 12)  # more than slots: the bell is to be disarmed
            story.until_started(jobs[0])
            story.until_completed(*jobs)
            waits.append(time.monotonic() - began)
            time.sleep(0.3)
        print(f"MEASURED silent listener: {len(waits)} batches, worst {max(waits):.2f} s (poll 0.3 s)")
        proxy.mode = "pass"
        wait_for(lambda: "bell" in worker.log.read_text(), "it has noticed", story)
        wait_for(lambda: _armed(story), "the bell is back", story)
        story.until_finished()
        assert worker.alive
        story.audit()
        assert max(waits) < 3, "a job that is due does not wait for the bell's patience"
    finally:
        story.end()


def _armed(story: Story) -> bool:
    here = "database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    locks = f"SELECT 1 FROM pg_locks WHERE {here} AND locktype = 'advisory' AND mode = 'ShareLock' AND granted"
    return bool(story.query(locks))


def test_a_work_connection_that_falls_silent_alone_is_given_up(dsn: str, proxy: Proxy, tmp_path: Path) -> None:
    """The bell rings on, claims and outcomes go into the void: after the patience everything is said again."""
    story = Story(dsn, tmp_path, worker_dsn=proxy.dsn, lease=LEASE)
    try:
        worker = start(story, "--slots", "5", PGQUEUE_LISTEN_DSN=dsn)
        story.until_completed(story.enqueue("nap"))
        proxy.mode = "silent"
        jobs = [story.enqueue("nap", max_attempts=100) for _ in range(5)]
        time.sleep(1)
        proxy.mode = "pass"  # for new connections; those that were silenced have lost what was said
        began = time.monotonic()
        story.until_completed(*jobs)
        took = time.monotonic() - began
        print(f"MEASURED silent work connection: all done {took:.2f} s after the network was back")
        assert worker.alive
        story.audit()
    finally:
        story.end()


# -- 9: NOTIFY is an optimisation ------------------------------------------------------------------------------------


def test_a_full_notification_queue_stops_neither_enqueues_nor_workers(
    private_server: PrivateServers, tmp_path: Path
) -> None:
    """A listener elsewhere is stuck inside a transaction, and some application notifies until the queue is full."""
    server = private_server(migrated=True)
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        if connection.info.server_version < 170000:
            skip("the notification queue of this PostgreSQL is 8 GB (max_notify_queue_pages came with 17): not filled")
    server.settings["max_notify_queue_pages"] = 64
    server.restart()
    story = Story(server.dsn, tmp_path, lease=LEASE)
    try:
        worker = start(story, "--slots", "5")
        with psycopg.connect(server.dsn, autocommit=True) as stuck, psycopg.connect(server.dsn) as noisy:
            stuck.execute("LISTEN somewhere_else")
            stuck.execute("BEGIN")
            stuck.execute("SELECT 1")
            with pytest.raises(psycopg.errors.ProgramLimitExceeded):
                notify_for_ever(noisy)
            noisy.rollback()
            ((usage,),) = story.query("SELECT pg_notification_queue_usage()")
            assert usage > 0.9
            running = story.enqueue("hold")
            story.until_started(running)
            ids = [story.enqueue("nap") for _ in range(10)]
            ids += story.enqueue_many("nap", [{}] * 10)
            ids += story.client.enqueue_many([JobSpec.make("nap") for _ in range(10)], copy=True)
            story.enqueued += ids[20:]
            story.until_completed(*ids)
            assert story.client.cancel(running) == "running", "nor a cancel"
            record = story.until_state(running, "cancelled")
            assert record.finished_at is not None
            assert usage <= story.query("SELECT pg_notification_queue_usage()")[0][0], "it is full still"
        assert worker.alive
        assert worker.stop() == 0
        story.audit()
    finally:
        story.end()


def notify_for_ever(connection: psycopg.Connection[tuple[object, ...]]) -> None:
    while True:
        connection.execute("SELECT pg_notify('noise', n || repeat('x', 7000)) FROM generate_series(1, 5) n")
        connection.commit()
