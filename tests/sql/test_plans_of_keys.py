"""What keys and limits cost, in pages: the plain claim nothing, their own claim a bounded number, however many keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from managed import limit, line, managed
from peers import LANES, LEASE, SCHEMA, Peer
from test_plans import BATCH, Explainer

from pgqueue import statements
from pgqueue.statements import Lanes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from servers import Server

    from pgqueue.statements import Statement

KEYS = 50_000
HOT = 50_000
FILLS = {
    "many keys and a hot one": f"""
        INSERT INTO pgqueue.jobs (task, queue, group_key) SELECT 't', 'q', 'k' || n FROM generate_series(1, {KEYS}) n;
        INSERT INTO pgqueue.jobs (task, queue, group_key) SELECT 't', 'q', 'hot' FROM generate_series(1, {HOT}) n""",
    "held by retrying heads": f"""
        INSERT INTO pgqueue.jobs (task, queue, group_key, run_at)
        SELECT 't', 'q', 'k' || n, now() + interval '1 hour' FROM generate_series(1, {KEYS}) n;
        INSERT INTO pgqueue.jobs (task, queue, group_key, run_at)
        SELECT 't', 'q', 'k' || n, now() - interval '1 hour' FROM generate_series(1, {KEYS}) n""",
    "scheduled for later": f"""
        INSERT INTO pgqueue.jobs (task, queue, group_key, run_at)
        SELECT 't', 'q', 'k' || n, now() + interval '1 hour' FROM generate_series(1, {KEYS}) n""",
}
PER_KEY = 12  # pages for a look at one line that can't start
PER_JOB = 60  # and for one that is started


@pytest.fixture(scope="module", params=FILLS)
def fill(request: pytest.FixtureRequest, server: Server) -> Iterator[tuple[str, str]]:
    """A large database for each fill, its statistics those of an empty table."""
    name = server.create()
    with Peer(server.dsn(name)) as peer:
        peer.sql("ALTER TABLE pgqueue.jobs SET (autovacuum_enabled = off)")
        peer.sql("ANALYZE pgqueue.jobs")
        peer.sql("INSERT INTO pgqueue.jobs (task, queue) SELECT 't', 'q' FROM generate_series(1, 2000) n")
        peer.sql(FILLS[request.param])
    yield server.dsn(name), request.param
    server.drop(name)


@pytest.fixture
def peer(fill: tuple[str, str]) -> Iterator[Explainer]:
    with Explainer(fill[0]) as explainer:
        explainer.begin()
        yield explainer
        explainer.rollback()


def claim_statement(peer: Explainer, most: int = 50, marks: Lanes | None = None) -> Statement[Any]:
    where = marks or Lanes(["q"] * 10, list(LANES), [None] * 10, [0] * 10)
    return statements.claim_managed("q", where, ["t"], most, peer._next_token(), LEASE, "w", schema=SCHEMA)


def started(peer: Peer) -> int:
    return int(peer.value("SELECT count(*) FROM pgqueue.jobs WHERE state = 'running'"))


def test_the_plain_claim_reads_the_same_pages_as_without_any_key(peer: Explainer, server: Server):
    pages = peer.explain(peer.claim_statement(queues=["q"])).buffers
    assert started(peer) == BATCH
    name = server.create()
    with Explainer(server.dsn(name)) as bare:
        bare.sql("INSERT INTO pgqueue.jobs (task, queue) SELECT 't', 'q' FROM generate_series(1, 2000) n")
        plan = bare.explain(bare.claim_statement(queues=["q"]))
    server.drop(name)
    assert plan.indexes("jobs") == {"jobs_claim", "jobs_pkey"}
    assert abs(pages - plan.buffers) <= 0.1 * plan.buffers


@pytest.mark.parametrize("per_key", [1, 2, 0])
@pytest.mark.parametrize(
    "limits", [{}, {"max_running": 1000, "rate": 1e6, "key_rate": 1e6}], ids=["unlimited", "limited"]
)
def test_a_managed_claim_reads_a_bounded_number_of_pages_whatever_the_number_of_keys(
    peer: Explainer, fill: tuple[str, str], per_key: int, limits: dict[str, Any]
):
    limit(peer, per_key=per_key, **limits)
    call = peer.prepare(claim_statement(peer))
    for _ in range(3):  # the first ones load the catalog
        before = started(peer)
        peer.sql("UPDATE pgqueue.buckets SET barren_at = NULL")
        plan = peer.execute(call, claim_statement(peer))
        now = started(peer) - before
    assert plan.buffers <= 300 + 250 * PER_KEY * 2 + PER_JOB * now + 8 * before, (now, plan.buffers)
    if fill[1] == "many keys and a hot one" or limits:
        assert now == 50


def test_what_an_idle_worker_asks_reads_a_few_pages(peer: Explainer):
    limit(peer, rate=10, key_rate=10)
    for statement in (
        statements.managed_queues(["q", "other"], schema=SCHEMA),
        peer.next_due_statement(["q", "other"]),
    ):
        plan = [peer.explain(statement) for _ in range(2)][1]
        assert plan.buffers <= 40 + 16 * len(LANES)
        assert plan.indexes("jobs") <= {"jobs_claim", "jobs_group_due"}
        assert plan.indexes("buckets") <= {"buckets_pkey"}


def test_the_last_job_of_very_many_keys_is_found_after_a_look_at_each(server: Server):
    """Which line can start is found by asking each in turn; so this bound is linear, but it is one."""
    name = server.create()
    with Peer(server.dsn(name)) as peer:
        peer.sql(FILLS["held by retrying heads"].replace(str(KEYS), "5000"))
        (due,) = line(peer, "zzz")
        peer.sql("UPDATE pgqueue.jobs SET run_at = now() - interval '1 day' WHERE id = %s", due)
        looks = 1
        while not managed(peer).ids:
            looks += 1
            peer.sql("UPDATE pgqueue.buckets SET barren_at = NULL")
    server.drop(name)
    assert looks <= 5000 / 200 + 1


def test_a_limited_queue_has_marks_too_and_its_claim_stays_flat_under_a_held_snapshot(dsn: str):
    with Peer(dsn) as holder, Explainer(dsn) as peer:
        peer.sql("ALTER TABLE pgqueue.jobs SET (autovacuum_enabled = off)")
        limit(peer, max_running=1000)
        peer.sql("""INSERT INTO pgqueue.jobs (task, queue, run_at)
                    SELECT 't', 'q', now() - interval '1 hour' + n * interval '1 ms'
                    FROM generate_series(1, 11000) n""")
        holder.begin("REPEATABLE READ")
        holder.sql("SELECT count(*) FROM pgqueue.jobs")
        for _ in range(10):
            claim = managed(peer, 1000)
            peer.end(claim)
        mark = max((row[1], row[2]) for row in claim.rows)
        marks = Lanes(["q"] * 10, list(LANES), [mark[0]] * 10, [mark[1]] * 10)
        pages = {}
        for name, where in (("marked", marks), ("unmarked", None)):
            peer.begin()
            pages[name] = peer.explain(claim_statement(peer, 50, where)).buffers
            assert started(peer) == 50
            peer.rollback()
        assert pages["marked"] <= 300 + PER_JOB * 50
        assert pages["unmarked"] > 2 * pages["marked"], "else this test proves nothing"
