"""The plans of the hot statements, as a worker runs them (pinned settings, generic plans): which index, how many pages.

The tables are empty, skewed and large; the planner's statistics are those of an empty table, or fresh.
"""

from __future__ import annotations

import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from peers import LANES, LEASE, SCHEMA, Peer, whole

from pgqueue import statements
from pgqueue.bigints import Bigints
from pgqueue.job import JobFilter, JobSpec
from pgqueue.outcome import Outcome
from pgqueue.sql import numbered
from pgqueue.statements import Lanes
from pgqueue.worker.link import PINNED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from servers import Server

    from pgqueue.statements import Statement

LARGE = 200_000
BATCH = 100
FILLS = {
    "empty": "SELECT 1",
    "skewed": f"""
        INSERT INTO pgqueue.jobs (task, queue, priority, run_at)
        SELECT 't', 'hot', 0, now() + interval '1 hour' + n * interval '1 ms' FROM generate_series(1, {LARGE}) n;
        INSERT INTO pgqueue.jobs (task, queue, priority, run_at)
        SELECT 't', 'hot', 9, now() - interval '1 hour' + n * interval '1 ms' FROM generate_series(1, 2000) n;
        INSERT INTO pgqueue.jobs (task, queue) SELECT 't', 'q' || n FROM generate_series(1, 50) n""",
    "large": f"""
        INSERT INTO pgqueue.jobs (task, queue, priority, run_at, unique_key)
        SELECT 't', 'hot', n % 10, now() - interval '1 hour' + n * interval '1 ms', CASE n % 10 WHEN 0 THEN 'k' || n END
        FROM generate_series(1, {LARGE}) n""",
}


@dataclass(frozen=True)
class Plan:
    """What EXPLAIN (ANALYZE, BUFFERS) said."""

    root: dict[str, Any]

    def nodes(self, node: dict[str, Any] | None = None) -> Iterator[dict[str, Any]]:
        node = node or self.root
        yield node
        for child in node.get("Plans", []):
            yield from self.nodes(child)

    @property
    def buffers(self) -> int:
        """What the statement touched, but for CTEs that write and are not read: see :meth:`walks`."""
        return int(self.root["Shared Hit Blocks"] + self.root["Shared Read Blocks"])

    def scans(self, relation: str) -> set[tuple[str, str | None]]:
        return {
            (node["Node Type"], node.get("Index Name"))
            for node in self.nodes()
            if node.get("Relation Name") == relation and node["Node Type"] != "ModifyTable"
        }

    def indexes(self, relation: str) -> set[str | None]:
        """The indexes by which a table was read; a scan of the whole table is None."""
        return {index for _, index in self.scans(relation)}

    def walks(self, relation: str) -> list[dict[str, Any]]:
        """The scans that go through a whole table or index: they grow with what nobody may remove."""
        scans = [node for node in self.nodes() if node.get("Relation Name") == relation and "Scan" in node["Node Type"]]
        return [node for node in scans if "Index Cond" not in node]


def plain(value: Any) -> Any:
    """A packed array as the list it was: EXECUTE takes text."""
    if not isinstance(value, Bigints):
        return value
    return [struct.unpack_from("!q", value, at)[0] for at in range(24, len(value), 12)]


class Explainer(Peer):
    """A peer with a worker's settings that explains what it runs."""

    def __init__(self, dsn: str) -> None:
        super().__init__(dsn)
        self.sql(PINNED)
        self._clients = psycopg.ClientCursor(self.connection)
        self._count = 0

    def explain(self, statement: Statement[Any]) -> Plan:
        """Run it as a prepared statement with a generic plan, like a worker's link."""
        return self.execute(self.prepare(statement), statement)

    def prepare(self, statement: Statement[Any]) -> str:
        """Prepare it under a name of its own; the names of its parameters come along, in their order."""
        sql, names = numbered(statement.sql)
        self._count += 1
        self.sql(f"PREPARE s{self._count} AS {sql}")
        return f"s{self._count}" + (f"({', '.join(f'%({name})s' for name in names)})" if names else "")

    def execute(self, call: str, statement: Statement[Any]) -> Plan:
        """Explain what was prepared, with this statement's parameters."""
        params = {name: plain(value) for name, value in (statement.params or {}).items()}
        self._clients.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE {call}", params)
        ((answer,),) = self._clients.fetchall()
        return Plan(answer[0]["Plan"])

    def claim_statement(
        self, limit: int = BATCH, queues: Sequence[str] = ("hot",), mark: tuple[float, int] | None = None
    ) -> Statement[Any]:
        lanes = [(queue, priority) for priority in LANES for queue in queues]
        where = Lanes(
            [queue for queue, _ in lanes],
            [priority for _, priority in lanes],
            [mark and mark[0] for _ in lanes],
            [mark[1] if mark else 0 for _ in lanes],
        )
        return statements.claim(where, ["t", "u"], limit, self._next_token(), LEASE, "w", schema=SCHEMA)

    def next_due_statement(self, queues: Sequence[str] = ("hot",)) -> Statement[Any]:
        return statements.next_due(whole(queues), ["t"], schema=SCHEMA)

    def _next_token(self) -> int:
        return 5_000_000 + self.value("SELECT nextval('pgqueue.jobs_id_seq')")


@pytest.fixture(scope="module")
def filled(server: Server) -> Iterator[Callable[[str, bool], str]]:
    """Databases by fill and freshness of statistics, made once: `filled("large", True)`. Tests roll back."""
    names: dict[tuple[str, bool], str] = {}

    def make(fill: str, analyzed: bool) -> str:
        if (fill, analyzed) not in names:
            names[fill, analyzed] = server.create()
            with Peer(server.dsn(names[fill, analyzed])) as peer:
                peer.sql("ALTER TABLE pgqueue.jobs SET (autovacuum_enabled = off)")
                peer.sql("ANALYZE pgqueue.jobs, pgqueue.leases, pgqueue.history")
                peer.sql(FILLS[fill])
                peer.sql("VACUUM (ANALYZE) pgqueue.jobs" if analyzed else "VACUUM pgqueue.jobs")
                if not analyzed:
                    peer.sql("UPDATE pg_class SET reltuples = 0, relpages = 0 WHERE oid = 'pgqueue.jobs'::regclass")
        return server.dsn(names[fill, analyzed])

    yield make
    for name in names.values():
        server.drop(name)


CASES = [(fill, analyzed) for fill in FILLS for analyzed in (False, True)]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{'fresh' if case[1] else 'stale'}")
def peer(request: pytest.FixtureRequest, filled: Callable[[str, bool], str]) -> Iterator[Explainer]:
    """A worker on each kind of table; whatever it does is rolled back."""
    with Explainer(filled(*request.param)) as explainer:
        explainer.begin()
        yield explainer
        explainer.rollback()


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{'fresh' if case[1] else 'stale'}")
def client(request: pytest.FixtureRequest, filled: Callable[[str, bool], str]) -> Iterator[Explainer]:
    """A client on each kind of table, with the server's own settings."""
    with Explainer(filled(*request.param)) as explainer:
        explainer.sql("RESET ALL")
        explainer.begin()
        yield explainer
        explainer.rollback()


def test_a_claim_reads_an_ordered_range_per_lane_and_updates_by_id(peer: Explainer):
    plan = peer.explain(peer.claim_statement())
    claimed = peer.value("SELECT count(*) FROM pgqueue.jobs WHERE state = 'running'")
    assert plan.indexes("jobs") >= {"jobs_claim"}
    assert plan.indexes("jobs") <= {"jobs_claim", "jobs_pkey"}
    assert claimed in {0, BATCH}
    assert plan.buffers <= 60 + 30 * claimed
    marked = peer.explain(peer.claim_statement(mark=(time.time() - 86_400, 0)))
    assert marked.indexes("jobs") == plan.indexes("jobs")


def test_a_claim_over_many_queues_touches_a_few_pages_per_lane(peer: Explainer):
    plan = peer.explain(peer.claim_statement(10, queues=[f"q{n}" for n in range(20)]))
    claimed = peer.value("SELECT count(*) FROM pgqueue.jobs WHERE state = 'running'")
    assert plan.indexes("jobs") <= {"jobs_claim", "jobs_pkey"}
    assert plan.buffers <= 60 + 6 * 20 * len(LANES) + 30 * claimed


def test_next_due_probes_each_lane_twice(peer: Explainer):
    plan = peer.explain(peer.next_due_statement())
    assert {"jobs_claim"} <= plan.indexes("jobs") <= {"jobs_claim", "jobs_group_due"}
    assert plan.buffers <= 20 + 14 * len(LANES)


@pytest.mark.parametrize("since", [None, 0.0])
def test_a_look_behind_the_marks_goes_by_lane_and_ends_at_the_first(peer: Explainer, since: float | None):
    lanes = whole(["hot"])
    lanes.mark_ats[:], lanes.mark_ids[:] = [4e9] * len(lanes.queues), [0] * len(lanes.queues)
    plan = peer.explain(statements.look_behind(lanes, ["t"], since, schema=SCHEMA))
    assert plan.indexes("jobs") == {"jobs_claim"}
    assert plan.walks("jobs") == []
    assert plan.buffers <= 20 + 7 * len(LANES)


def test_finish_goes_by_id(peer: Explainer):
    claim = peer.claim(BATCH, queues=["hot"])
    verdicts = ["completed", "dead", "cancelled", "retry", "snooze", "release"]
    landings = [
        (job_id, claim.token, Outcome(verdicts[nth % 6], error='{"a": 1}')) for nth, job_id in enumerate(claim.ids)
    ]
    plan = peer.explain(statements.finish(landings, [claim.token], schema=SCHEMA))
    assert plan.indexes("jobs") <= {"jobs_pkey", "jobs_group"}, "the latter for who lets others of its key pass"
    assert plan.indexes("leases") <= {"leases_pkey"}
    assert plan.buffers <= 100 + 60 * len(landings)
    assert not [job_id for job_id in claim.ids if peer.state(job_id) == "running"]


def test_a_renewal_goes_by_id(peer: Explainer):
    claim = peer.claim(BATCH, queues=["hot"])
    held = [(job_id, claim.token) for job_id in claim.ids]
    plan = peer.explain(statements.renew([claim.token], held, LEASE, schema=SCHEMA))
    assert plan.indexes("jobs") == {"jobs_pkey"}
    assert plan.indexes("leases") <= {"leases_pkey"}
    assert plan.buffers <= 60 + 30 * len(held)


def test_a_sweep_goes_by_the_ids_in_the_lease(peer: Explainer):
    claim = peer.claim(BATCH, queues=["hot"])
    peer.expire(claim, by="1 hour")
    plan = peer.explain(statements.sweep(100, schema=SCHEMA))
    assert plan.indexes("jobs") == {"jobs_pkey"}
    assert plan.buffers <= 100 + 60 * len(claim.ids)
    assert not [job_id for job_id in claim.ids if peer.state(job_id) == "running"]


def test_what_is_held_is_found_by_id_and_looked_into_once_for_each_lease(peer: Explainer):
    claim = peer.claim(BATCH, queues=["hot"])
    plan = peer.explain(statements.held(claim.ids, schema=SCHEMA))
    assert plan.indexes("jobs") == {"jobs_pkey"}
    assert plan.indexes("leases") <= {"leases_pkey"}
    assert plan.buffers <= 60 + 10 * len(claim.ids)


def test_a_lease_is_split_by_id(peer: Explainer):
    claim = peer.claim(BATCH, queues=["hot"])
    parts = [(job_id, nth + 1, "w") for nth, job_id in enumerate(claim.ids)] or [(1, 1, "w")]
    plan = peer.explain(statements.split_lease(claim.token, parts, schema=SCHEMA))
    assert plan.indexes("jobs") == {"jobs_pkey"}
    assert plan.indexes("leases") <= {"leases_pkey"}
    assert plan.buffers <= 60 + 40 * len(parts)


def test_progress_goes_by_id(peer: Explainer):
    claim = peer.claim(BATCH, queues=["hot"])
    reports = [(job_id, claim.token, '{"value": 1}') for job_id in claim.ids] or [(1, 1, "{}")]
    plan = peer.explain(statements.progress(reports, schema=SCHEMA))
    assert plan.indexes("jobs") == {"jobs_pkey"}


def test_landed_goes_by_id(peer: Explainer):
    plan = peer.explain(statements.landed([(1, 1)], schema=SCHEMA))
    scans = {node.get("Index Name") or node["Node Type"] for node in plan.nodes() if "Scan" in node["Node Type"]}
    assert not [scan for scan in scans if scan == "Seq Scan"]


def test_one_job_is_read_by_id(peer: Explainer):
    job_id = peer.enqueue()
    plan = peer.explain(statements.get_job(job_id, schema=SCHEMA))
    assert plan.indexes("jobs") == {"jobs_pkey"}
    assert plan.buffers <= 60


@pytest.mark.parametrize("wanted", [JobFilter(), JobFilter(queue="none"), JobFilter(tag="none")], ids=str)
def test_a_page_of_a_list_looks_at_a_bounded_number_of_jobs(peer: Explainer, wanted: JobFilter):
    plan = peer.explain(statements.list_jobs(wanted, None, 50, most=100, schema=SCHEMA))
    assert plan.indexes("jobs") <= {"jobs_pkey"}
    assert plan.buffers <= 800


def least(explain: Callable[[int], Plan]) -> int:
    """The fewest pages of three tries: in another, somebody's DDL may have made this session load its catalog anew."""
    return min(explain(nth).buffers for nth in range(3))


def test_an_enqueue_touches_a_bounded_number_of_pages_with_and_without_a_key(client: Explainer):
    cases: dict[str, Callable[[int], dict[str, str]]] = {
        "no key": lambda _nth: {},
        "a new key": lambda nth: {"unique_key": f"new{nth}"},
        "a known key": lambda _nth: {"unique_key": "k10"},
    }
    client.explain(statements.enqueue(JobSpec.make("t", unique_key="k10"), schema=SCHEMA))  # not every table has it
    for name, options in cases.items():
        pages = least(lambda nth: client.explain(statements.enqueue(JobSpec.make("t", **options(nth)), schema=SCHEMA)))  # noqa: B023
        assert pages <= 100, name


@pytest.mark.parametrize("count", [1, 1000])
@pytest.mark.parametrize("keyed", [False, True], ids=["plain", "keyed"])
def test_an_enqueue_of_many_touches_a_bounded_number_of_pages_per_job(client: Explainer, count: int, *, keyed: bool):
    def explain(nth: int) -> Plan:
        specs = [JobSpec.make("t", unique_key=f"new{nth}.{n}" if keyed else None) for n in range(count)]
        return client.explain(statements.enqueue_many(specs, schema=SCHEMA))

    client.explain(statements.enqueue_many([JobSpec.make("t"), JobSpec.make("t", unique_key="x")], schema=SCHEMA))
    assert least(explain) <= 100 + 25 * count


@pytest.mark.parametrize("verb", [statements.cancel, statements.retry], ids=lambda verb: verb.__name__)
def test_a_verb_on_one_job_touches_a_bounded_number_of_pages(client: Explainer, verb: Callable[..., Statement[Any]]):
    ids = [client.enqueue(delay=60) for _ in range(4)]
    for job_id in (0, ids[3], ids[3]):  # load the catalog on every path
        client.explain(verb(job_id, schema=SCHEMA))
    for job_ids in ([0] * 3, [ids[3]] * 3, ids):  # none, one that the verb has changed already, one that it changes
        assert least(lambda nth: client.explain(verb(job_ids[nth], schema=SCHEMA))) <= 100  # noqa: B023


def test_a_claim_that_was_planned_on_an_empty_table_is_as_good_on_a_large_one(dsn: str):
    """Nothing tells a worker's prepared statement that the table has grown."""
    with Explainer(dsn) as peer:
        peer.sql("ALTER TABLE pgqueue.jobs SET (autovacuum_enabled = off)")
        peer.sql("ANALYZE pgqueue.jobs")
        claim = peer.prepare(peer.claim_statement())
        peer.execute(claim, peer.claim_statement())
        peer.sql(FILLS["large"].replace("'t', 'hot'", "'t', 'other'"))
        peer.sql("INSERT INTO pgqueue.jobs (task, queue) SELECT 't', 'hot' FROM generate_series(1, 500)")
        plan = peer.execute(claim, peer.claim_statement())
        assert peer.value("SELECT count(*) FROM pgqueue.jobs WHERE state = 'running'") == BATCH
        assert plan.indexes("jobs") == {"jobs_claim", "jobs_pkey"}
        assert plan.buffers <= 60 + 30 * BATCH


ENGINE: dict[str, Callable[[Explainer], Statement[Any]]] = {
    "finish": lambda peer: statements.finish([(1, 1, Outcome("retry")), (2, 1, Outcome("dead"))], [1], schema=SCHEMA),
    "renew": lambda peer: statements.renew([1], [(1, 1)], LEASE, schema=SCHEMA),
    "progress": lambda peer: statements.progress([(1, 1, "{}")], schema=SCHEMA),
    "sweep": lambda peer: statements.sweep(10, schema=SCHEMA),
    "held": lambda _peer: statements.held([1, 2], schema=SCHEMA),
    "split_lease": lambda _peer: statements.split_lease(1, [(1, 2, "w")], schema=SCHEMA),
    "next_due": lambda peer: peer.next_due_statement(),
}


def test_what_else_was_planned_on_an_empty_table_is_as_good_on_a_large_one(dsn: str):
    with Explainer(dsn) as peer:
        peer.sql("ALTER TABLE pgqueue.jobs SET (autovacuum_enabled = off)")
        peer.sql("ANALYZE pgqueue.jobs")
        calls = {name: peer.prepare(make(peer)) for name, make in ENGINE.items()}
        for name, make in ENGINE.items():
            peer.execute(calls[name], make(peer))
        peer.sql(FILLS["large"])
        peer.expire(peer.claim(BATCH, queues=["hot"]))
        for name, make in ENGINE.items():
            plan = peer.execute(calls[name], make(peer))
            known = {"jobs_claim", "jobs_group_due"} if name == "next_due" else {"jobs_pkey"}
            assert plan.indexes("jobs") == known, name
            assert plan.walks("jobs") == [], name
            assert plan.buffers <= (100 + 60 * BATCH if name == "sweep" else 150), name


@pytest.mark.parametrize(
    "name", ["enqueue", "enqueue_together", "submit", "submit_many", "submit_many with keys", "submit_many in a line"]
)
def test_a_session_that_enqueued_into_an_empty_table_does_not_walk_a_large_one(dsn: str, name: str):
    """The callers' sessions plan as they like, and keep their plans for as long as nobody analyzes the table."""
    specs = [JobSpec.make("t", unique_key=f"new{n}" if name.endswith("keys") else None) for n in range(4)]
    makers: dict[str, Statement[Any]] = {
        "enqueue": statements.enqueue(JobSpec.make("t", unique_key="new"), schema=SCHEMA),
        "enqueue_together": statements.submit_together(specs, schema=SCHEMA),
        "submit": statements.submit(JobSpec.make("t", unique_key="new", unique_for="1h", group_key="g"), schema=SCHEMA),
        "submit_many in a line": statements.submit_many(specs, after={1: [0], 2: [1]}, schema=SCHEMA),
    }
    call = makers.get(name) or statements.submit_many(specs, schema=SCHEMA)
    with Peer(dsn) as peer, Peer(dsn) as other:
        peer.sql("ALTER TABLE pgqueue.jobs SET (autovacuum_enabled = off)")
        for _ in range(8):
            peer.run(call)
        other.sql(FILLS["large"])
        peer.run(call)
        explain = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {call.sql}"
        ((plan,),) = peer.connection.execute(explain, call.params).fetchall()
        assert Plan(plan[0]["Plan"]).buffers <= 250


# -- how rows are written --------------------------------------------------------------------------------------------


def test_claims_are_hot_updates(dsn: str):
    with Peer(dsn) as peer:
        peer.sql("INSERT INTO pgqueue.jobs (task) SELECT 't' FROM generate_series(1, 5000)")
        while peer.claim(100).ids:
            pass
        peer.sql("SELECT pg_stat_force_next_flush()")
        peer.sql("SELECT 1")
        ((updated, hot),) = peer.sql(
            "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relid = 'pgqueue.jobs'::regclass"
        )
    assert updated == 5000
    assert hot == updated


@pytest.mark.parametrize("what", ["finish", "renew", "split_lease", "held"])
def test_no_statement_walks_all_leases(dsn: str, what: str):
    """Under a held snapshot each lease there ever was is still there.

    Planned while the table was small, a hash join over all of them took a finish from 36 pages to 10,000 in a minute.
    """
    with Explainer(dsn) as peer:
        peer.sql("INSERT INTO pgqueue.jobs (task, queue) SELECT 't', 'hot' FROM generate_series(1, 10)")
        claim = peer.claim(10, queues=["hot"])
        landings = [(job_id, claim.token, Outcome("completed")) for job_id in claim.ids]
        statement: Statement[Any] = {
            "finish": statements.finish(landings, [claim.token], schema=SCHEMA),
            "renew": statements.renew([claim.token], [(j, claim.token) for j in claim.ids], LEASE, schema=SCHEMA),
            "split_lease": statements.split_lease(claim.token, [(j, j + 5, "w") for j in claim.ids], schema=SCHEMA),
            "held": statements.held(claim.ids, schema=SCHEMA),
        }[what]
        plan = peer.explain(statement)
        assert plan.indexes("leases") == {"leases_pkey"}
        assert plan.walks("leases") == plan.walks("jobs") == []


def test_a_mark_keeps_a_claim_flat_under_a_held_snapshot(dsn: str):
    """I10: 20,000 dead versions that nobody may remove lie at the front of the queue."""
    with Peer(dsn) as holder, Explainer(dsn) as peer:
        peer.sql("ALTER TABLE pgqueue.jobs SET (autovacuum_enabled = off)")
        peer.sql("""INSERT INTO pgqueue.jobs (task, queue, run_at)
                    SELECT 't', 'hot', now() - interval '1 hour' + n * interval '1 ms'
                    FROM generate_series(1, 21000) n""")
        holder.begin("REPEATABLE READ")
        holder.sql("SELECT count(*) FROM pgqueue.jobs")
        mark = None
        for _ in range(20):
            claim = peer.claim(1000, queues=["hot"])
            mark = max((row[1], row[2]) for row in claim.rows)
            peer.end(claim)
        peer.begin()
        marked = peer.explain(peer.claim_statement(mark=mark)).buffers
        claimed = peer.value("SELECT count(*) FROM pgqueue.jobs WHERE state = 'running'")
        peer.rollback()
        peer.begin()
        unmarked = peer.explain(peer.claim_statement()).buffers
        peer.rollback()
        assert claimed == BATCH
        assert marked <= 60 + 30 * BATCH
        assert unmarked > 3 * marked, "else this test proves nothing"
