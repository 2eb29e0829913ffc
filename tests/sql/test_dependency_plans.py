"""What edges and counters cost on large tables, as a worker runs the statements (pinned settings) and as a client does.

Pages per job, whatever else waits. The functions inside are not in a plan, but their pages are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from peers import SCHEMA, Peer
from test_plans import Explainer

from pgqueue import statements
from pgqueue.job import JobSpec
from pgqueue.outcome import COMPLETED, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator

    from servers import Server

EDGES = 300_000
ROWS = 60_000
FILL = f"""
    INSERT INTO pgqueue.jobs (task, queue, state, run_at, due_at, pending, depends_on, batch_id)
    SELECT 'waits', 'full', 'blocked', 'infinity', now(), 5, ARRAY[-n], -n % 1000 FROM generate_series(1, {ROWS}) n;
    INSERT INTO pgqueue.dependencies SELECT -n, n % {ROWS}, 'cancel' FROM generate_series(1, {EDGES}) n;
    INSERT INTO pgqueue.batches (id, total) SELECT -n, 1 FROM generate_series(1, {ROWS // 10}) n;
    INSERT INTO pgqueue.history (id, run_at, created_at, state, priority, attempt, max_attempts, queue, task, payload,
        depends_on, batch_id)
    SELECT -n, now(), now(), (ARRAY['completed', 'dead', 'cancelled'])[1 + n % 3]::pgqueue.job_state, 5, 1, 10, 'full',
        't', '{{}}',
        CASE WHEN n % 2 = 0 THEN ARRAY[-n - 1] END, CASE WHEN n % 2 = 0 THEN -n % 1000 END
    FROM generate_series(1, {ROWS}) n;
"""
COUNT = 50


@pytest.fixture(scope="module", params=[True, False], ids=["fresh", "stale"])
def full(server: Server, request: pytest.FixtureRequest) -> Iterator[str]:
    """Large tables; the planner's statistics are fresh, or those of empty ones."""
    name = server.create()
    with Peer(server.dsn(name)) as peer:
        for table in ("jobs", "dependencies", "batches"):
            peer.sql(f"ALTER TABLE pgqueue.{table} SET (autovacuum_enabled = off)")
        peer.sql("ANALYZE pgqueue.jobs, pgqueue.dependencies, pgqueue.batches, pgqueue.history")
        peer.sql(FILL)
        if request.param:
            peer.sql("ANALYZE pgqueue.jobs, pgqueue.dependencies, pgqueue.batches, pgqueue.history")
    yield server.dsn(name)
    server.drop(name)


@pytest.fixture
def worker(full: str) -> Iterator[Explainer]:
    with Explainer(full) as peer:
        peer.begin()
        yield peer
        peer.rollback()


@pytest.fixture
def client(full: str) -> Iterator[Explainer]:
    with Explainer(full) as peer:
        peer.sql("RESET ALL")
        peer.begin()
        yield peer
        peer.rollback()


def flows(peer: Peer, count: int = COUNT) -> tuple[int, list[int], list[int], list[int]]:
    """A batch whose members have a follower each, and those one, too."""
    batch_id = peer.run(statements.create_batch(None, schema=SCHEMA))
    members = [JobSpec.make("m", max_attempts=1) for _ in range(count)]
    ups = [job.id for job in peer.run(statements.submit_many(members, batch_id=batch_id, schema=SCHEMA))]
    followers = [peer.enqueue("f", depends_on=[job]) for job in ups]
    last = [peer.enqueue("l", depends_on=[job]) for job in followers]
    return batch_id, ups, followers, last


@pytest.mark.parametrize("verdict", ["completed", "dead", "cancelled"])
def test_an_end_touches_a_bounded_number_of_pages_per_job_and_follower(worker: Explainer, verdict: str):
    batch_id, ups, followers, last = flows(worker)
    claim = worker.claim(COUNT)
    assert claim.ids == ups
    warm_up = worker.enqueue("warm")  # loads the catalog
    worker.enqueue("f", depends_on=[warm_up])
    first = worker.claim(1)
    worker.end(first, verdict)
    plan = worker.explain(
        statements.finish([(job, claim.token, Outcome(verdict)) for job in ups], [claim.token], schema=SCHEMA)
    )
    state = "available" if verdict == "completed" else "cancelled"
    assert {worker.state(job) for job in followers} == {state}
    assert {worker.state(job) for job in last} == {"blocked" if verdict == "completed" else "cancelled"}
    assert worker.run(statements.get_batch(batch_id, schema=SCHEMA)).finished
    print(f"MEASURED {verdict}: {plan.buffers / COUNT:.0f} pages per job")
    assert plan.buffers <= 200 + 250 * COUNT


def test_a_sweep_touches_a_bounded_number_of_pages_per_job_and_follower(worker: Explainer):
    _, ups, followers, _ = flows(worker)
    worker.expire(worker.claim(COUNT), by="1 hour")
    plan = worker.explain(statements.sweep(100, schema=SCHEMA))
    assert {worker.state(job) for job in (*ups, *followers)} == {"dead", "cancelled"}
    print(f"MEASURED sweep: {plan.buffers / COUNT:.0f} pages per job")
    assert plan.buffers <= 1000 + 250 * COUNT


def test_verbs_on_workflows_touch_a_bounded_number_of_pages(client: Explainer):
    """The least of three: the catalog is read at the first, and again when autovacuum has changed something in it."""
    measured: dict[str, list[int]] = {}

    def measure(name: str, statement: statements.Statement[Any]) -> None:
        measured.setdefault(name, []).append(client.explain(statement).buffers)

    for _ in range(3):
        batch_id, ups, followers, last = flows(client, 2)
        upstream = [ups[0], batch_id, last[1]]
        measure("follow", statements.submit(JobSpec.make("t", depends_on=upstream), schema=SCHEMA))
        measure("cancel", statements.cancel(followers[0], schema=SCHEMA))
        measure("retry", statements.retry(followers[0], schema=SCHEMA))
        measure("upstream", statements.list_upstream(followers[0], schema=SCHEMA))
        measure("tree", statements.tree(followers[0], schema=SCHEMA))
        measure("cancel a batch", statements.cancel_batch(batch_id, schema=SCHEMA))
        measure("many", statements.submit_many([JobSpec.make("t")] * 2, after={1: [0]}, schema=SCHEMA))
    print("MEASURED", measured)
    for name, pages in measured.items():
        assert min(pages) <= (3_000 if name == "tree" else 700), name


def test_an_end_under_a_million_edges_of_others_costs_what_it_costs_alone(worker: Explainer, dsn: str):
    pages = []
    with Explainer(dsn) as alone:
        for peer in (alone, worker):
            found = []
            for _ in range(3):
                up = peer.enqueue("u")
                for policy in ("cancel", "continue", "hold"):
                    peer.enqueue("f", depends_on=[up], on_dead=policy)
                claim = peer.claim(1, tasks=["u"])
                assert claim.ids == [up]
                statement = statements.finish([(up, claim.token, COMPLETED)], [claim.token], schema=SCHEMA)
                found.append(peer.explain(statement).buffers)
            pages.append(min(found))
    print(f"MEASURED {pages}")
    assert pages[1] <= 2 * pages[0] + 100
