"""pgqueue.autoscale: what it counts, what it leaves out, and that it reads no more than it counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from managed import limit, line, managed
from peers import Peer
from psycopg import errors
from test_plans import FILLS, LARGE, Explainer, Plan

if TYPE_CHECKING:
    from collections.abc import Iterator

    from servers import Server

CAP = 10_000
DUE = {"empty": 0, "skewed": 2_000, "large": LARGE}


def wanted(peer: Peer, queue: str = "q", *most: int) -> int:
    return int(peer.value(f"SELECT pgqueue.autoscale(%s{', %s' * len(most)})", queue, *most))


# -- what is counted -------------------------------------------------------------------------------------------------


def test_a_queue_in_which_nothing_is_and_one_that_nobody_knows_want_nothing(one: Peer):
    assert wanted(one) == 0
    assert wanted(one, "default") == 0


def test_due_and_running_jobs_of_every_priority_with_and_without_a_key_are_counted(one: Peer):
    for priority in range(10):
        one.enqueue(queue="q", priority=priority)
        one.enqueue(queue="q", priority=priority, group_key=f"k{priority}")
    one.enqueue(queue="other")
    assert wanted(one) == 20
    plain, keyed = one.claim(3, queues=["q"]), managed(one, 4)
    assert len(plain.ids) + len(keyed.ids) == 7
    assert wanted(one) == 20
    one.end(plain)
    assert wanted(one) == 17


def test_what_no_worker_could_start_is_not_counted(one: Peer):
    (upstream,) = line(one, "k", queue="other")
    for key in (None, "k"):
        one.enqueue(queue="q", delay=60, group_key=key)
        one.enqueue(queue="q", depends_on=[upstream], group_key=key)
    assert one.value("SELECT count(*) FROM pgqueue.jobs WHERE queue = 'q'") == 4
    assert wanted(one) == 0


def test_it_counts_up_to_most_over_all_priorities_and_keys(one: Peer):
    for priority in (0, 5, 9):
        for _ in range(4):
            one.enqueue(queue="q", priority=priority)
    line(one, "k", 4)
    assert [wanted(one, "q", most) for most in (0, 3, 6, 14, 100)] == [0, 3, 6, 14, 16]
    assert wanted(one, "q", -1) == 0


def test_a_line_of_one_key_counts_in_full_although_it_runs_one_at_a_time(one: Peer):
    line(one, "k", 5)
    assert wanted(one) == 5


def test_never_more_than_max_running_are_wanted(one: Peer):
    line(one, "k", 5)
    limit(one, max_running=2)
    assert (wanted(one), wanted(one, "q", 1)) == (2, 1)
    limit(one, max_running=0)
    assert wanted(one) == 0


@pytest.mark.parametrize("key", [None, "k"], ids=["plain", "keyed"])
def test_of_a_paused_queue_only_what_runs_is_counted_until_it_is_resumed(one: Peer, key: str | None):
    for _ in range(5):
        one.enqueue(queue="q", group_key=key)
    limit(one, per_key=2)
    claim = managed(one, 2) if key else one.claim(2, queues=["q"])
    one.enqueue(queue="other")
    elsewhere = one.claim(1, queues=["other"])
    one.sql("SELECT pgqueue.pause('q')")
    assert (wanted(one), wanted(one, "q", 1)) == (2, 1)
    one.end(claim)
    assert wanted(one) == 0
    one.sql("SELECT pgqueue.resume('q')")
    assert wanted(one) == 3
    assert len(elsewhere.ids) == wanted(one, "other") == 1


# -- who may ask -----------------------------------------------------------------------------------------------------


def test_a_role_that_may_call_it_and_nothing_else_can_count_and_read_no_job(dsn: str, one: Peer):
    one.enqueue(queue="q")
    with psycopg.connect(dsn, autocommit=True) as owner:
        owner.execute(
            "DO $$ BEGIN CREATE ROLE pgqueue_test_scaler; "
            "EXCEPTION WHEN duplicate_object OR unique_violation THEN END $$"
        )
        owner.execute("GRANT USAGE ON SCHEMA pgqueue TO pgqueue_test_scaler")
        owner.execute("GRANT EXECUTE ON FUNCTION pgqueue.autoscale TO pgqueue_test_scaler")
        owner.execute("SET SESSION AUTHORIZATION pgqueue_test_scaler")
        assert owner.execute("SELECT pgqueue.autoscale('q')").fetchone() == (1,)
        with pytest.raises(errors.InsufficientPrivilege):
            owner.execute("SELECT FROM pgqueue.jobs")


# -- what is read ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=FILLS)
def fill(request: pytest.FixtureRequest, server: Server) -> Iterator[tuple[str, str]]:
    """A database for each fill, its statistics those of an empty table."""
    name = server.create()
    with Peer(server.dsn(name)) as peer:
        peer.sql("ALTER TABLE pgqueue.jobs SET (autovacuum_enabled = off)")
        peer.sql("ANALYZE pgqueue.jobs")
        peer.sql(FILLS[request.param])
        peer.sql("VACUUM pgqueue.jobs")
    yield server.dsn(name), request.param
    server.drop(name)


@pytest.fixture(params=["stale", "fresh"])
def client(request: pytest.FixtureRequest, fill: tuple[str, str]) -> Iterator[Explainer]:
    """With the server's own settings, as a scaler has; what it did to the statistics is rolled back."""
    with Explainer(fill[0]) as explainer:
        explainer.sql("RESET ALL")
        explainer.begin()
        if request.param == "fresh":
            explainer.sql("ANALYZE pgqueue.jobs")
        yield explainer
        explainer.rollback()


def inside(peer: Explainer, queue: str, most: int) -> Plan:
    """The plan of the statement in the function, under the settings of the function."""
    ((body, settings),) = peer.sql("SELECT prosrc, proconfig FROM pg_proc WHERE oid = 'pgqueue.autoscale'::regproc")
    for setting in (*settings, "plan_cache_mode=force_generic_plan"):
        name, _, value = setting.partition("=")
        peer.sql("SELECT set_config(%s, %s, false)", name, value)
    body = body.replace("autoscale.queue", "$1").replace("autoscale.most", "$2")
    peer.sql(f"PREPARE inside (text, integer) AS {body}")
    answer: Any = peer.value(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE inside('{queue}', {most})")
    peer.sql("DEALLOCATE inside")
    return Plan(answer[0]["Plan"])


def test_it_reads_the_indexes_of_the_claims_and_stops_at_most(client: Explainer, fill: tuple[str, str]):
    assert wanted(client, "hot") == min(CAP, DUE[fill[1]])
    for most in (100, CAP):
        plan = inside(client, "hot", most)
        assert plan.scans("jobs") <= {
            (kind, index)
            for kind in ("Index Scan", "Index Only Scan")
            for index in ("jobs_claim", "jobs_group_due", "jobs_pkey")
        }
        assert plan.indexes("jobs") >= {"jobs_claim", "jobs_group_due"}
        assert not [node for node in plan.nodes() if node["Node Type"] in {"Sort", "Incremental Sort"}]
        read = sum(
            node["Actual Rows"] * node["Actual Loops"] for node in plan.nodes() if node.get("Relation Name") == "jobs"
        )
        assert read <= most
        counted = wanted(client, "hot", most)
        assert counted == min(most, DUE[fill[1]])
        assert plan.buffers <= 60 + 2 * counted + 4 * 11


def test_the_leavings_of_a_held_snapshot_are_not_walked(dsn: str):
    with Explainer(dsn) as holder, Explainer(dsn) as peer:
        peer.sql("ALTER TABLE pgqueue.jobs SET (autovacuum_enabled = off)")
        peer.sql("""INSERT INTO pgqueue.jobs (task, queue, run_at)
                    SELECT 't', 'hot', now() - interval '1 hour' + n * interval '1 ms'
                    FROM generate_series(1, 21000) n""")
        holder.begin("REPEATABLE READ")
        holder.sql("SELECT count(*) FROM pgqueue.jobs")
        for _ in range(20):
            peer.end(peer.claim(1000, queues=["hot"]))
        plan, everything = inside(peer, "hot", 500), inside(peer, "hot", CAP)
        assert (wanted(peer, "hot", 500), wanted(peer, "hot")) == (500, 1000)
        assert everything.buffers > 10 * plan.buffers, "else this test proves nothing: there are leavings"
