"""What the database knows, as metrics: exact where it is little, bounded where it is much, and one look for many."""

from __future__ import annotations

import asyncio
import re
import time
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from peers import SCHEMA, Peer
from prometheus_client.parser import text_string_to_metric_families
from worker.support import execute

from pgqueue import App, Settings, statements
from pgqueue.errors import DatabaseUnreachableError
from pgqueue.metrics import catalogue
from pgqueue.metrics import database as module
from pgqueue.metrics.database import BOUNDED, DatabaseMetrics
from pgqueue.metrics.estimates import ended_jobs, live_jobs
from pgqueue.outcome import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator

LARGE = 150_000


def samples(page: str) -> dict[tuple[str, ...], float]:
    """By name and label values."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


async def scrape(app: App, **options: Any) -> dict[tuple[str, ...], float]:
    return samples((await DatabaseMetrics(app, **options).read()).body.decode())


def fill_one_of_each(peer: Peer) -> dict[tuple[str, str], int]:
    """Jobs in every state, with and without a group_key; answers how many in each."""
    waiting = {"available": 2, "scheduled": 3}
    for key in (None, "k"):
        for _ in range(waiting["available"]):
            peer.enqueue(queue="a", group_key=key)
        for _ in range(waiting["scheduled"]):
            peer.enqueue(queue="a", group_key=key, delay=600)
        upstream = peer.enqueue(queue="b", priority=9, delay=600)
        peer.enqueue(queue="a", group_key=key, depends_on=[upstream])
    peer.enqueue(queue="c", delay=600)
    claims = {}
    for queue, verdict in (("d", "completed"), ("e", "dead"), ("f", "cancelled"), ("g", "retry"), ("h", None)):
        peer.enqueue(queue=queue)
        claims[queue] = peer.claim(queues=[queue])
        assert len(claims[queue].ids) == 1
        if verdict is not None:
            peer.finish(*[(i, claims[queue].token, Outcome(verdict, delay=600)) for i in claims[queue].ids],
                        done=[claims[queue].token])  # fmt: skip
    return {
        ("a", "available"): 4, ("a", "scheduled"): 6, ("a", "blocked"): 2, ("b", "scheduled"): 2, ("c", "scheduled"): 1,
        ("d", "completed"): 1, ("e", "dead"): 1, ("f", "cancelled"): 1, ("g", "retrying"): 1, ("h", "running"): 1,
    }  # fmt: skip


async def test_few_jobs_are_counted_exactly_in_every_state(app: App, dsn: str):
    with Peer(dsn) as peer:
        expected = fill_one_of_each(peer)
        peer.sql("UPDATE pgqueue.jobs SET run_at = now() - interval '1 hour' WHERE queue = 'a' AND run_at <= now()")
    found = await scrape(app)
    jobs = {key[1:]: value for key, value in found.items() if key[0] == "pgqueue_jobs"}
    assert {key: value for key, value in jobs.items() if value} == expected
    assert {queue for queue, _ in jobs} == set("abcdefgh")
    assert len(jobs) == 8 * 8, "each state of each queue is there"
    assert 3_600 <= found["pgqueue_oldest_ready_seconds", "a"] < 3_660 + 60
    assert found["pgqueue_oldest_ready_seconds", "b"] == 0


async def test_the_page_has_the_names_of_the_catalogue_and_no_other(app: App):
    page = (await DatabaseMetrics(app).read()).body.decode()
    assert set(re.findall(r"^# TYPE (\S+) ", page, re.MULTILINE)) == {metric.name for metric in catalogue.DATABASE}
    with_enqueued = (await DatabaseMetrics(app, with_enqueued=True).read()).body.decode()
    assert "pgqueue_enqueued_total 0.0" in with_enqueued


async def test_an_empty_queue_with_a_worker_or_a_setting_is_shown_as_empty(app: App, dsn: str):
    await app.aclient.pause("paused")
    await execute(dsn, """
        INSERT INTO pgqueue.workers (name, host, pid, queues, slots, running, version, heartbeat_at)
        VALUES ('w', 'h', 1, '{served}', 50, 20, 'v', now()), ('x', 'h', 2, '{served}', 10, 0, 'v', now()),
               ('gone', 'h', 3, '{unserved}', 50, 20, 'v', now() - interval '1 minute')""")  # fmt: skip
    found = await scrape(app)
    assert {key[1] for key in found if key[0] == "pgqueue_jobs"} == {"paused", "served"}
    assert found["pgqueue_workers",] == 2
    assert (found["pgqueue_slots", "busy"], found["pgqueue_slots", "free"]) == (20, 40)


async def test_enqueued_counts_what_this_process_made(app: App):
    task = app.task(name="t")(lambda: None)
    await task.enqueue()
    await task.options(unique_key="k").enqueue()
    await task.options(unique_key="k").enqueue()
    await asyncio.to_thread(task.enqueue_sync)
    await app.enqueue_many([task.job() for _ in range(5)])
    await asyncio.to_thread(lambda: app.enqueue_many_sync([task.job() for _ in range(7)], copy=True))
    assert (await scrape(app, with_enqueued=True))["pgqueue_enqueued_total",] == 15


async def test_the_oldest_transaction_is_seen_and_forgotten_when_it_ends(app: App, dsn: str):
    with psycopg.connect(dsn) as holder:
        holder.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        (began,) = holder.execute("SELECT now()").fetchone() or (None,)
        found = await scrape(app)
        (held,) = holder.execute("SELECT extract(epoch FROM clock_timestamp() - %s)::float8", [began]).fetchone() or (
            0,
        )
        assert 0 < found["pgqueue_oldest_xmin_seconds",] <= held


async def test_who_asks_within_a_second_gets_the_same_answer(app: App, monkeypatch: pytest.MonkeyPatch):
    looks = []
    original = statements.metrics_live
    monkeypatch.setattr(module.statements, "metrics_live", lambda **given: looks.append(1) or original(**given))
    monkeypatch.setattr(module, "SHARED_FOR", 3_600.0)
    metrics = DatabaseMetrics(app)
    metrics._seen_at = -3_600.0
    pages = await asyncio.gather(*(metrics.read() for _ in range(20)))
    assert len({page.body for page in pages}) == 1
    assert len(looks) == 1
    assert (await asyncio.to_thread(metrics.read_sync)).body == pages[0].body
    monkeypatch.setattr(module, "SHARED_FOR", 0.0)
    await asyncio.to_thread(metrics.read_sync)
    assert len(looks) == 2


async def test_a_count_that_is_given_up_is_absent_and_the_rest_is_there(app: App, monkeypatch: pytest.MonkeyPatch):
    await app.aclient.pause("q")
    slow = "SET LOCAL statement_timeout = '10ms'"
    monkeypatch.setattr(module, "BOUNDED", slow)
    original = statements.metrics_live

    def slowly(**given: Any) -> Any:
        statement = original(**given)
        return statements.Statement("SELECT pg_sleep(30)", None, statement.read)

    monkeypatch.setattr(module.statements, "metrics_live", slowly)
    metrics = DatabaseMetrics(app)
    await metrics.read()
    assert metrics._rest_until > time.monotonic()
    metrics._seen_at = -module.SHARED_FOR
    with monkeypatch.context() as patch:
        patch.delattr(module.statements, "metrics_live")  # it is not asked again at once
        await metrics.read()
    for page in (await DatabaseMetrics(app).read(), await asyncio.to_thread(DatabaseMetrics(app).read_sync)):
        names = {key[0] for key in samples(page.body.decode())}
        assert "pgqueue_oldest_ready_seconds" not in names
        assert {"pgqueue_workers", "pgqueue_dead_tuples", "pgqueue_oldest_xmin_seconds"} <= names


async def test_queues_of_the_past_are_as_few_as_those_of_today(app: App, dsn: str, monkeypatch: pytest.MonkeyPatch):
    """Whoever may enqueue may name queues: without an end they would fill a Prometheus."""
    monkeypatch.setattr(module, "_MOST_QUEUES", 5)
    with Peer(dsn) as peer:
        peer.sql("INSERT INTO pgqueue.jobs (task, queue) SELECT 't', 'z' || n FROM generate_series(1, 3) n")
        peer.sql("""
            INSERT INTO pgqueue.history
                (id, state, queue, run_at, created_at, priority, attempt, max_attempts, task, payload)
            SELECT 100 + n, 'completed', 'a' || n, now(), now(), 5, 1, 1, 't', '{}' FROM generate_series(1, 9) n""")
    found = await scrape(app)
    jobs = {key[1:]: value for key, value in found.items() if key[0] == "pgqueue_jobs"}
    assert {queue for queue, _ in jobs} == {"z1", "z2", "z3", "a1", "a2"}
    assert len(jobs) == 5 * 8
    assert (jobs["z1", "available"], jobs["a1", "completed"], jobs["a1", "available"]) == (1, 1, 0)


async def test_who_waits_while_the_database_can_not_be_had_learns_it_with_the_first(monkeypatch: pytest.MonkeyPatch):
    app = App(settings=Settings(dsn="host=127.0.0.1 port=1 connect_timeout=1"))
    app.database.patience = 0.2
    looks: list[str] = []
    for name in ("transact", "atransact"):
        original = getattr(app.database, name)
        monkeypatch.setattr(app.database, name, lambda work, look=original: looks.append("look") or look(work))
    monkeypatch.setattr(module, "SHARED_FOR", 3_600.0)
    metrics, other = DatabaseMetrics(app), DatabaseMetrics(app)
    answers = await asyncio.gather(*(metrics.read() for _ in range(5)), return_exceptions=True)
    threads = [asyncio.to_thread(other.read_sync) for _ in range(5)]
    answers += await asyncio.gather(*threads, return_exceptions=True)
    assert {type(answer) for answer in answers} == {DatabaseUnreachableError}
    assert looks == ["look"] * 2
    await app.aclose()


async def test_a_database_that_is_not_there_is_an_error():
    app = App(settings=Settings(dsn="host=127.0.0.1 port=1 connect_timeout=1"))
    app.database.patience = 0.1
    with pytest.raises(DatabaseUnreachableError):
        await DatabaseMetrics(app).read()
    with pytest.raises(DatabaseUnreachableError):
        await asyncio.to_thread(DatabaseMetrics(app).read_sync)
    await app.aclose()


async def test_openmetrics_is_spoken_when_it_is_asked_for(app: App):
    page = await DatabaseMetrics(app).read("application/openmetrics-text; version=1.0.0")
    assert page.content_type.startswith("application/openmetrics-text")
    assert page.body.endswith(b"# EOF\n")


# -- much ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def large(dsn: str) -> Iterator[Peer]:
    """Three large queues and a small one; much history. Statistics are as autovacuum would leave them."""
    with Peer(dsn) as peer:
        peer.sql("ALTER TABLE pgqueue.jobs SET (autovacuum_enabled = off)")
        peer.sql(f"""
            INSERT INTO pgqueue.jobs (task, queue, priority, run_at, attempt)
            SELECT 't', CASE WHEN n % 10 < 6 THEN 'big' WHEN n % 10 < 9 THEN 'middle' ELSE 'third' END, n % 7,
                now() + CASE WHEN n % 3 = 0 THEN interval '1 hour' ELSE interval '-1 hour' END + n * interval '1 ms',
                CASE WHEN n % 11 = 0 THEN 1 ELSE 0 END
            FROM generate_series(1, {LARGE}) n;
            INSERT INTO pgqueue.jobs (task, queue) SELECT 't', 'small' FROM generate_series(1, 17);
            INSERT INTO pgqueue.history
                (id, state, queue, run_at, created_at, priority, attempt, max_attempts, task, payload)
            SELECT n, CASE WHEN n > 60000 THEN 'dead' ELSE 'completed' END::pgqueue.job_state,
                CASE WHEN n % 4 = 0 OR n > 60000 THEN 'big' ELSE 'other' END, now(), now(), 5, 1, 1, 't', '{{}}'
            FROM generate_series(1, 60011) n""")
        peer.sql("SELECT pg_stat_force_next_flush()")  # else what was inserted may be counted after ANALYZE, and twice
        peer.sql("ANALYZE pgqueue.jobs, pgqueue.history")
        yield peer


def explain(peer: Peer, statement: statements.Statement[Any]) -> list[dict[str, Any]]:
    """The nodes of its plan, as the collector runs it."""
    cursor = psycopg.ClientCursor(peer.connection)
    with peer.connection.transaction():
        cursor.execute(BOUNDED if "history" not in statement.sql else "SELECT 1")
        cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement.sql}", statement.params)
        plan = cursor.fetchall()[0][0][0]["Plan"]

    def nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield node
        for child in node.get("Plans", []):
            yield from nodes(child)

    return list(nodes(plan))


def pages(node: dict[str, Any]) -> int:
    return int(node["Shared Hit Blocks"] + node["Shared Read Blocks"])


@pytest.mark.parametrize("stale", [False, True], ids=["fresh", "stale"])
def test_a_scrape_reads_a_bounded_number_of_pages_through_the_indexes_of_the_claim(large: Peer, stale: bool):
    if stale:
        large.sql("UPDATE pg_class SET reltuples = 0, relpages = 0 WHERE oid = 'pgqueue.jobs'::regclass")
    small = statements.metrics_live(budget=2_000, schema=SCHEMA)
    plan = explain(large, small)
    scans = [node for node in plan if node.get("Relation Name") == "jobs"]
    assert {node["Node Type"] for node in scans} <= {"Index Scan", "Index Only Scan"}
    assert {node["Index Name"] for node in scans} <= {"jobs_claim", "jobs_group_due", "jobs_pkey"}
    counted = 4 * 2 * 500  # queues, due and later
    assert pages(plan[0]) <= 2_000 + 2 * counted
    more = explain(large, statements.metrics_live(budget=20_000, most=5_000, schema=SCHEMA))
    assert pages(more[0]) > pages(plan[0]), "else the cap is none"


def test_history_is_not_scanned_when_it_is_large(large: Peer):
    def read(most: int) -> int:
        plan = explain(large, statements.metrics_ended(most=most, schema=SCHEMA))
        return sum(pages(node) for node in plan if str(node.get("Relation Name", "")).startswith("history_"))

    assert read(100) < 50
    assert read(1_000_000) > 500, "else the cap is none"


def test_large_numbers_are_estimated_and_small_ones_stay_exact(large: Peer):
    facts = large.run(statements.metrics_facts(schema=SCHEMA))
    counts = large.run(statements.metrics_live(budget=2_000, schema=SCHEMA))
    found = live_jobs(counts, facts)
    exact = {(queue, state): jobs for queue, state, jobs in large.sql("""
        SELECT queue, state, count(*) FROM pgqueue.all_jobs WHERE state NOT IN ('completed', 'dead') GROUP BY 1, 2
        """)}  # fmt: skip
    assert found["small", "available"] == 17
    assert all(one.more == {"due", "later"} for one in counts if one.queue != "small")
    for key, jobs in exact.items():
        if key[0] != "small":
            assert found[key] == pytest.approx(jobs, rel=0.3), key
    assert sum(found.values()) == pytest.approx(LARGE + 17, rel=0.01)
    ended = ended_jobs(large.run(statements.metrics_ended(most=1_000, schema=SCHEMA)))
    assert ended["big", "dead"] == 11
    assert ended["big", "completed"] == pytest.approx(15_000, rel=0.1)
    assert ended["other", "completed"] == pytest.approx(45_000, rel=0.1)


def test_what_runs_is_counted_by_the_leases(large: Peer):
    claim = large.claim(1_000, queues=["big"])
    assert len(claim.ids) == 1_000
    large.end(large.claim(50, queues=["middle"]))
    counts = {one.queue: one.running for one in large.run(statements.metrics_live(schema=SCHEMA))}
    assert counts == {"big": 1_000, "middle": 0, "small": 0, "third": 0}
    counts = {one.queue: one.running for one in large.run(statements.metrics_live(budget=100, schema=SCHEMA))}
    assert counts == {"big": 1_000, "middle": 0, "small": 0, "third": 0}, "from 100 of them and their number"


def test_more_queues_than_fit_are_left_out_empty_ones_first(dsn: str):
    with Peer(dsn) as peer:
        peer.sql("INSERT INTO pgqueue.jobs (task, queue) SELECT 't', 'q' || n FROM generate_series(1, 30) n")
        peer.sql("INSERT INTO pgqueue.queues (name) SELECT 'a' || n FROM generate_series(1, 30) n")
        shown = [one.queue for one in peer.run(statements.metrics_live(queues=30, schema=SCHEMA))]
    assert len(shown) == 30
    assert {name[0] for name in shown} == {"q"}


@pytest.mark.parametrize("role", ["pgqueue_reader", "pgqueue_worker"])
def test_a_reader_sees_the_statistics_of_every_day(large: Peer, role: str):
    large.sql(f"SET ROLE {role}")
    shares = large.run(statements.metrics_ended(most=1_000, schema=SCHEMA)).shares
    assert set(shares["completed"]) == {"big", "other"}
