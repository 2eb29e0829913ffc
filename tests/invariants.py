"""The invariants of guarantees.md that the tables alone can prove (I1, I2): to be called at the end of every story.

`check(dsn, enqueued)` runs them all on one snapshot, so it may also be called while workers run.
`enqueued` are the ids of every job whose transaction is known to have committed (and that nobody purged); None
when the test does not know them. An id that is found and was not given is as wrong as one that is missing.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg

from pgqueue.sql import qualify

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

_IDS = "SELECT id FROM pgqueue.jobs UNION ALL SELECT id FROM pgqueue.history"
_TWICE = f"SELECT id FROM ({_IDS}) a GROUP BY id HAVING count(*) > 1 ORDER BY id"
_NOT_HELD = """
    SELECT j.id, j.lease_token FROM pgqueue.jobs j
    WHERE j.state = 'running' AND NOT EXISTS (
        SELECT FROM pgqueue.leases l WHERE l.token = j.lease_token AND j.id = ANY (l.job_ids))
    ORDER BY j.id
"""
_HELD_TWICE = """
    SELECT j.id, array_agg(l.token) FROM pgqueue.jobs j JOIN pgqueue.leases l ON j.id = ANY (l.job_ids)
    WHERE j.lease_token = l.token GROUP BY j.id HAVING count(*) > 1
"""
_HELD_AFTER_ITS_END = """
    SELECT j.id FROM pgqueue.jobs j
    WHERE (j.state = 'running') <> (j.lease_token IS NOT NULL AND j.lease_until IS NOT NULL AND j.worker IS NOT NULL)
    ORDER BY j.id
"""
_OVERRUN = "SELECT id, attempt, max_attempts FROM pgqueue.jobs WHERE attempt > max_attempts ORDER BY id"

# The rules of a row of jobs that span columns. The schema leaves them to its statements, as each would parse them anew
# (docs/decisions/0017); the tests' databases have them, so that every test would notice a statement that breaks one.
STRICT = """
    ALTER TABLE pgqueue.jobs
        ADD CONSTRAINT strict_jobs_are_live CHECK (state IN ('available', 'blocked', 'running')),
        ADD CONSTRAINT strict_blocked_are_never_due CHECK ((state = 'blocked') = (run_at = 'infinity')),
        ADD CONSTRAINT strict_running_hold_a_lease CHECK ((state = 'running') = (lease_token IS NOT NULL))
"""


def check(dsn: str, enqueued: Collection[int] | None = None, schema: str = "pgqueue") -> None:
    """All invariants; raises AssertionError that names the jobs which break one."""
    with _snapshot(dsn) as connection:
        _check_no_id_in_two_places(connection, schema)
        _check_one_live_lease(connection, schema)
        if enqueued is not None:
            _check_conservation(connection, enqueued, schema)


def check_conservation(dsn: str, enqueued: Collection[int], schema: str = "pgqueue") -> None:
    """I1: every committed enqueue is completed, dead, cancelled or live; and nothing else is."""
    with _snapshot(dsn) as connection:
        _check_conservation(connection, enqueued, schema)


def check_no_id_in_two_places(dsn: str, schema: str = "pgqueue") -> None:
    """I1: a job is live or finished, once."""
    with _snapshot(dsn) as connection:
        _check_no_id_in_two_places(connection, schema)


def check_one_live_lease(dsn: str, schema: str = "pgqueue") -> None:
    """I2: a running job is held by exactly one lease row, or no sweep would ever find it; a waiting one by none."""
    with _snapshot(dsn) as connection:
        _check_one_live_lease(connection, schema)


def _check_conservation(connection: psycopg.Connection[Any], enqueued: Collection[int], schema: str) -> None:
    present = {job_id for (job_id,) in connection.execute(qualify(_IDS, schema))}
    given = set(enqueued)
    assert len(given) == len(enqueued), f"the caller names {len(enqueued) - len(given)} ids twice"
    assert not given - present, f"lost: {_some(given - present)}"
    assert not present - given, f"in the tables, but never enqueued: {_some(present - given)}"


def _check_no_id_in_two_places(connection: psycopg.Connection[Any], schema: str) -> None:
    twice = [job_id for (job_id,) in connection.execute(qualify(_TWICE, schema))]
    assert not twice, f"in two places: {_some(twice)}"


def _check_one_live_lease(connection: psycopg.Connection[Any], schema: str) -> None:
    for query, complaint in (
        (_NOT_HELD, "running (id, token) without a lease row: no sweep will ever find them"),
        (_HELD_TWICE, "held by two live leases (id, tokens)"),
        (_HELD_AFTER_ITS_END, "lease columns that do not fit the state"),
        (_OVERRUN, "more attempts than allowed (id, attempt, max_attempts)"),
    ):
        bad = connection.execute(qualify(query, schema)).fetchall()
        assert not bad, f"{complaint}: {_some(bad)}"


@contextmanager
def _snapshot(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(dsn) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.read_only = True
        yield connection


def _some(items: Collection[Any]) -> str:
    shown = sorted(items)[:20]
    return f"{shown}{f' … {len(items)} in all' if len(items) > len(shown) else ''}"
