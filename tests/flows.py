"""What must hold of workflows at any moment, whatever happened before: edges, counters and batches fit the tables.

`check(peer)` looks at one snapshot, so it may be called while workers run. `stuck(peer)` names the jobs that nothing
will ever free; `drain(peer)` runs everything that can run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pgqueue import statements
from pgqueue.outcome import Outcome

if TYPE_CHECKING:
    from peers import Peer

_RULES = {
    "pending is not the number of edges": """
        SELECT j.id, j.state, j.pending, count(d.*)
        FROM pgqueue.jobs j LEFT JOIN pgqueue.dependencies d ON d.job_id = j.id
        GROUP BY j.id HAVING coalesce(j.pending, 0) <> count(d.*)""",
    "blocked, and waits for nothing; or not blocked, and waits": """
        SELECT j.id, j.state, j.pending FROM pgqueue.jobs j WHERE (j.state = 'blocked') <> (j.pending IS NOT NULL)""",
    "an edge of a job that is not live": """
        SELECT d.* FROM pgqueue.dependencies d WHERE NOT EXISTS (SELECT FROM pgqueue.jobs j WHERE j.id = d.job_id)""",
    "a live upstream that does not know of its followers": """
        SELECT j.id FROM pgqueue.jobs j
        WHERE NOT j.has_followers AND EXISTS (SELECT FROM pgqueue.dependencies d WHERE d.upstream_id = j.id)""",
    "an edge to what has ended, and nobody will settle it": """
        SELECT d.*, h.state, b.total, b.completed, b.dead, b.cancelled FROM pgqueue.dependencies d
        LEFT JOIN pgqueue.history h ON h.id = d.upstream_id LEFT JOIN pgqueue.batches b ON b.id = d.upstream_id
        WHERE NOT EXISTS (SELECT FROM pgqueue.jobs j WHERE j.id = d.upstream_id)
          AND NOT coalesce(b.completed + b.dead + b.cancelled < b.total, false)
          AND NOT (d.on_dead = 'hold' AND (coalesce(h.state IN ('dead', 'cancelled'), false)
                                           OR coalesce(b.dead + b.cancelled > 0, false)))""",
}
_COUNTS = """
    SELECT b.id, b.total, b.completed, b.dead, b.cancelled, b.finished_at IS NOT NULL, n.*
    FROM pgqueue.batches b CROSS JOIN LATERAL (
        SELECT count(*) AS total, count(*) FILTER (WHERE state = 'completed') AS completed,
            count(*) FILTER (WHERE state = 'dead') AS dead, count(*) FILTER (WHERE state = 'cancelled') AS cancelled
        FROM (SELECT state FROM pgqueue.jobs j WHERE j.batch_id = b.id
              UNION ALL SELECT state FROM pgqueue.history h WHERE h.batch_id = b.id) m
    ) n
    WHERE (b.total, b.completed, b.dead, b.cancelled) <> (n.total, n.completed, n.dead, n.cancelled)
       OR (b.finished_at IS NOT NULL) <> (b.total > 0 AND b.completed + b.dead + b.cancelled = b.total)
"""
_ENDED = """
    SELECT b.id, b.total, b.completed, b.dead, b.cancelled, b.finished_at FROM pgqueue.batches b
    WHERE b.completed + b.dead + b.cancelled > b.total OR least(b.total, b.completed, b.dead, b.cancelled) < 0
       OR (b.finished_at IS NOT NULL) <> (b.total > 0 AND b.completed + b.dead + b.cancelled = b.total)
"""


def check(peer: Peer, *, purged: bool = False) -> None:
    """All rules; raises AssertionError. ``purged``: jobs were deleted for good, so that no count can be made again."""
    peer.begin("REPEATABLE READ")
    try:
        for complaint, query in {**_RULES, "counts of a batch": _ENDED if purged else _COUNTS}.items():
            bad = peer.sql(query)
            assert not bad, f"{complaint}: {bad[:10]}"
    finally:
        peer.rollback()


def stuck(peer: Peer) -> set[int]:
    """Blocked jobs that wait, in the end, for nothing but a retry of something dead: nobody else is to be left."""
    rows = peer.sql("SELECT d.job_id, d.upstream_id FROM pgqueue.dependencies d")
    waits: dict[int, set[int]] = {}
    for job_id, upstream in rows:
        waits.setdefault(job_id, set()).add(upstream)
    members: dict[int, set[int]] = {}
    for job_id, batch in peer.sql("SELECT id, batch_id FROM pgqueue.jobs WHERE batch_id IS NOT NULL"):
        members.setdefault(batch, set()).add(job_id)

    def is_held(upstream: int, seen: frozenset[int] = frozenset()) -> bool:
        if upstream in seen:
            return False
        below = waits.get(upstream, set()) | members.get(upstream, set())
        if below:
            return any(is_held(other, seen | {upstream}) for other in below)
        bad = peer.value(
            """SELECT coalesce((SELECT h.state <> 'completed' FROM pgqueue.history h WHERE h.id = %s),
                   (SELECT b.dead + b.cancelled > 0 FROM pgqueue.batches b WHERE b.id = %s), false)""",
            upstream, upstream,
        )  # fmt: skip
        return bool(bad)

    return {job_id for job_id in waits if not is_held(job_id)}


def drain(peer: Peer, most: int = 100) -> list[int]:
    """Run all that can run, one claim after the other; answers the ids in their order."""
    ran: list[int] = []
    for _ in range(most):
        peer.sql("UPDATE pgqueue.leases SET lease_until = now()")
        peer.sql("UPDATE pgqueue.jobs SET run_at = now() WHERE state = 'available'")
        peer.sweep()
        claim = peer.claim(1000)
        if not claim.ids:
            return ran
        ran += claim.ids
        landings = [(job_id, claim.token, Outcome("completed")) for job_id in claim.ids]
        assert peer.run(statements.finish(landings, [claim.token], schema="pgqueue")) == []
    raise AssertionError("it never ends")


def facts(peer: Peer) -> list[tuple[Any, ...]]:
    """For a failure's message."""
    return peer.sql("SELECT id, task, state, pending, batch_id, depends_on FROM pgqueue.all_jobs ORDER BY id")
