"""The pruner: partitions of history made ahead and dropped when old; no finish fails because a day is missing."""

from __future__ import annotations

from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import invariants
import pytest
from peers import SCHEMA, Peer

from pgqueue import App, JobSpec, statements
from pgqueue.errors import DatabaseError
from pgqueue.outcome import Outcome
from pgqueue.pruner import prune

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

OUTCOMES = ["completed", "dead", "cancelled"]


@pytest.fixture
def connect(dsn: str) -> Iterator[Callable[[], Peer]]:
    with ExitStack() as stack:
        yield lambda: stack.enter_context(Peer(dsn))


@pytest.fixture
def peer(connect: Callable[[], Peer]) -> Peer:
    peer = connect()
    peer.sql("SET timezone = 'UTC'")
    return peer


def day(offset: int) -> str:
    return (datetime.now(UTC) + timedelta(days=offset)).strftime("%Y%m%d")


def run_prune(peer: Peer) -> list[str]:
    return peer.run(statements.prune(schema=SCHEMA))


def partitions(peer: Peer, outcome: str) -> list[str]:
    """The dated partitions that hang below this outcome."""
    rows = peer.sql(
        """SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
           WHERE i.inhparent = to_regclass('pgqueue.history_' || %s) AND c.relname ~ '_[0-9]{8}$' ORDER BY 1""",
        outcome,
    )
    return [name.removeprefix(f"history_{outcome}_") for (name,) in rows]


def drop_all(peer: Peer) -> None:
    """The runway is used up: no dated partition is left."""
    for outcome in OUTCOMES:
        for name in partitions(peer, outcome):
            peer.sql(f"DROP TABLE pgqueue.history_{outcome}_{name}")


def make_day(peer: Peer, outcome: str, offset: int, *, rows: int = 0) -> None:
    """A partition of another day, with rows in it."""
    name = f"history_{outcome}_{day(offset)}"
    peer.sql(f"""CREATE TABLE pgqueue.{name} PARTITION OF pgqueue.history_{outcome}
                 FOR VALUES FROM (current_date + {offset}) TO (current_date + {offset + 1})""")
    add_rows(peer, outcome, offset, rows)


def add_rows(peer: Peer, outcome: str, offset: int, rows: int) -> None:
    peer.sql(f"""INSERT INTO pgqueue.history (id, run_at, created_at, finished_at, state, priority, attempt,
                     max_attempts, queue, task, payload)
                 SELECT nextval('pgqueue.jobs_id_seq'), now(), now(), current_date + {offset} + interval '1 hour',
                     '{outcome}', 5, 1, 10, 'q', 't', '{{}}'
                 FROM generate_series(1, {rows})""")


def ended(peer: Peer, verdict: str = "completed") -> int:
    job_id = peer.enqueue()
    peer.end(peer.claim(), verdict)
    return job_id


def where(peer: Peer, job_id: int) -> str:
    return peer.value("SELECT tableoid::regclass::text FROM pgqueue.history WHERE id = %s", job_id)


def test_a_new_schema_has_today_and_three_days_ahead(peer: Peer):
    for outcome in OUTCOMES:
        assert partitions(peer, outcome) == [day(n) for n in range(4)]
    assert run_prune(peer) == []


@pytest.mark.parametrize("verdict", OUTCOMES)
def test_an_outcome_lands_in_the_partition_of_its_day(peer: Peer, verdict: str):
    assert where(peer, ended(peer, verdict)) == f"pgqueue.history_{verdict}_{day(0)}"


def test_missing_days_are_made_again(peer: Peer):
    drop_all(peer)
    assert sorted(run_prune(peer)) == sorted(f"created history_{o}_{day(n)}" for o in OUTCOMES for n in range(4))
    assert partitions(peer, "dead") == [day(n) for n in range(4)]


def test_each_outcome_is_kept_for_its_own_retention(peer: Peer):
    peer.run(statements.set_retention("completed", timedelta(days=2), schema=SCHEMA))
    peer.run(statements.set_retention("dead", timedelta(days=4), schema=SCHEMA))
    for outcome in ("completed", "dead"):
        for offset in (-2, -3, -4, -5, -6):
            make_day(peer, outcome, offset, rows=2)
    done = run_prune(peer)
    assert sorted(done) == sorted(
        [f"dropped history_completed_{day(n)}" for n in (-6, -5, -4, -3)]
        + [f"dropped history_dead_{day(n)}" for n in (-6, -5)]
    )
    assert partitions(peer, "completed")[0] == day(-2), "its last row is not two days old yet"
    assert partitions(peer, "dead")[0] == day(-4)
    assert run_prune(peer) == []


def test_a_past_day_with_nothing_in_it_is_dropped_and_today_is_not(peer: Peer):
    make_day(peer, "dead", -1)
    make_day(peer, "dead", -2, rows=1)
    assert run_prune(peer) == [f"dropped history_dead_{day(-1)}"]
    assert partitions(peer, "dead") == [day(-2), *(day(n) for n in range(4))]


def test_a_finish_succeeds_when_no_day_is_there_at_all(peer: Peer, dsn: str):
    drop_all(peer)
    ids = [ended(peer, verdict) for verdict in OUTCOMES]
    ids += [peer.enqueue(max_attempts=1), peer.enqueue()]
    peer.expire(peer.claim(1))
    peer.sweep()
    peer.cancel(ids[-1])
    assert [where(peer, i) for i in ids[:3]] == [f"pgqueue.history_{o}_default" for o in OUTCOMES]
    assert [peer.state(i) for i in ids] == [*OUTCOMES, "dead", "cancelled"]
    invariants.check(dsn, ids)


def test_rows_in_a_default_partition_move_to_their_day_when_it_is_made(peer: Peer, dsn: str):
    drop_all(peer)
    ids = [ended(peer, verdict) for verdict in OUTCOMES]
    before = [peer.job(job_id) for job_id in ids]
    run_prune(peer)
    assert [where(peer, i) for i in ids] == [f"pgqueue.history_{o}_{day(0)}" for o in OUTCOMES]
    assert [peer.job(job_id) for job_id in ids] == before
    assert peer.retry(ids[1]) == "available"
    invariants.check(dsn, ids)


def test_rows_in_a_default_partition_go_when_they_are_too_old(peer: Peer):
    peer.run(statements.set_retention("completed", timedelta(days=2), schema=SCHEMA))
    for offset in (-1, -10):
        add_rows(peer, "completed", offset, 3)
    run_prune(peer)
    assert peer.value("SELECT count(*) FROM pgqueue.history_completed_default") == 3


def test_a_time_zone_of_the_session_does_not_matter(peer: Peer):
    drop_all(peer)
    peer.sql("SET timezone = 'Pacific/Kiritimati'")
    run_prune(peer)
    assert partitions(peer, "completed") == [day(n) for n in range(4)]
    bounds = peer.value(
        "SELECT pg_get_expr(relpartbound, oid) FROM pg_class WHERE relname = %s", f"history_completed_{day(0)}"
    )
    assert "+14" in bounds, "midnight UTC, as this session writes it"
    assert "14:00:00+14" in bounds


def test_the_second_of_two_prunes_returns_at_once(peer: Peer, connect: Callable[[], Peer]):
    drop_all(peer)
    other = connect()
    peer.begin()
    assert len(run_prune(peer)) == 12
    assert run_prune(other) == []
    peer.commit()
    assert run_prune(other) == []


async def test_a_lock_that_a_reader_holds_is_a_typed_error_and_the_next_prune_succeeds(
    peer: Peer, connect: Callable[[], Peer], dsn: str
):
    peer.sql(f"DROP TABLE pgqueue.history_dead_{day(3)}")
    reader = connect()
    reader.begin()
    reader.sql("SELECT count(*) FROM pgqueue.history")
    app = App(dsn)
    with pytest.raises(DatabaseError, match="lock timeout"):
        await prune(app.database, SCHEMA)
    assert ended(peer, "dead"), "nobody else waits"
    reader.rollback()
    assert await prune(app.database, SCHEMA) == [f"created history_dead_{day(3)}"]
    await app.aclose()


def test_a_day_that_somebody_still_reads_is_dropped_later_and_the_others_now(peer: Peer, connect: Callable[[], Peer]):
    for offset in (-40, -41, -42):
        make_day(peer, "cancelled", offset, rows=1)
    make_day(peer, "dead", -400, rows=1)
    reader = connect()
    reader.begin()
    reader.sql(f"SELECT count(*) FROM pgqueue.history_cancelled_{day(-41)}")
    peer.sql("SET lock_timeout = 0")
    peer.sql("SET statement_timeout = '60s'")  # a reader may stay for hours; this ends a test that waits for it
    assert sorted(run_prune(peer)) == sorted([
        f"dropped history_cancelled_{day(-40)}", f"in use: history_cancelled_{day(-41)}",
        f"dropped history_cancelled_{day(-42)}", f"dropped history_dead_{day(-400)}",
    ])  # fmt: skip
    assert partitions(peer, "cancelled") == [day(-41), *(day(n) for n in range(4))]
    reader.rollback()
    assert run_prune(peer) == [f"dropped history_cancelled_{day(-41)}"]
    assert partitions(peer, "cancelled") == [day(n) for n in range(4)]


def test_a_reader_of_old_history_does_not_keep_new_days_from_being_made(peer: Peer, connect: Callable[[], Peer]):
    make_day(peer, "cancelled", -40, rows=1)
    peer.sql(f"DROP TABLE pgqueue.history_completed_{day(3)}")
    reader = connect()
    reader.begin()
    reader.sql(f"SELECT count(*) FROM pgqueue.history_cancelled_{day(-40)}")
    run_prune(peer)
    assert day(3) in partitions(peer, "completed")


def test_finishes_go_on_while_a_prune_is_not_committed(peer: Peer, connect: Callable[[], Peer], dsn: str):
    """It has made tomorrow's partitions and holds its locks: what ends today does not wait for it."""
    for outcome in OUTCOMES:
        peer.sql(f"DROP TABLE pgqueue.history_{outcome}_{day(3)}")
    worker = connect()
    worker.sql("SET lock_timeout = '3s'")
    peer.begin()
    run_prune(peer)
    ids = [ended(worker, outcome) for outcome in OUTCOMES]
    peer.commit()
    invariants.check(dsn, ids)


def test_ids_beyond_two_billion_live_a_whole_life(peer: Peer, dsn: str):
    peer.sql("ALTER SEQUENCE pgqueue.jobs_id_seq RESTART WITH 3000000000")
    ids = [peer.enqueue(unique_key="k"), peer.enqueue(max_attempts=1), peer.enqueue(), peer.enqueue(), peer.enqueue()]
    assert min(ids) == 3_000_000_000
    assert peer.enqueue(unique_key="k") == ids[0]
    claim = peer.claim(4, token=2**63 - 1)
    assert peer.renew(claim) == dict.fromkeys(ids[:4], False)
    peer.progress((ids[0], claim.token, "{}"))
    assert peer.cancel(ids[2]) == "running"
    assert peer.cancel(ids[4]) == "cancelled"
    peer.sql("SELECT 1")
    assert peer.finish((ids[0], claim.token, Outcome("completed")), (ids[2], claim.token, Outcome("retry"))) == []
    peer.expire(claim)
    assert {(s.id, s.state) for s in peer.sweep()} == {(ids[1], "dead"), (ids[3], "available")}
    assert [peer.state(i) for i in ids] == ["completed", "dead", "cancelled", "available", "cancelled"]
    assert peer.retry(ids[1]) == "available"
    app = App(dsn)
    copied = app.client.enqueue_many([JobSpec.make("t")] * 2, copy=True)
    assert app.client.get(ids[0]).id == ids[0]
    app.close()
    invariants.check(dsn, [*ids, *copied])
