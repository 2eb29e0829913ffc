"""Schedules in the database: who is first, what an edit means, and that a tick has one job whatever happens."""

from __future__ import annotations

import json
import time
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from peers import SCHEMA, Peer
from psycopg import errors

from pgqueue import ScheduleSpec, statements
from pgqueue.schedule import Plan, plan

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

HORIZON = timedelta(seconds=10)


def add(peer: Peer, name: str = "s", expression: str = "0 * * * *", *, ago: str | None = "0", **options: Any) -> None:
    """A schedule whose next tick was the last whole hour, or one that many hours before it."""
    peer.run(statements.add_schedule(ScheduleSpec.make(name, expression, "t", **options), False, schema=SCHEMA))
    if ago is not None:
        peer.sql(
            "UPDATE pgqueue.schedules SET next_tick = date_trunc('hour', now()) - make_interval(hours => %s) "
            "WHERE name = %s", int(ago), name,
        )  # fmt: skip


def looked(peer: Peer) -> tuple[list[Plan], datetime]:
    waiting = peer.run(statements.due_schedules(HORIZON, schema=SCHEMA))
    return [plan(one) for one in waiting], waiting[0].now


def fire(peer: Peer, plans: list[Plan], looked_at: datetime) -> list[tuple[str, datetime | None, int | None]]:
    return peer.run(statements.tick(plans, looked_at, schema=SCHEMA))


def tick(peer: Peer) -> list[tuple[str, datetime | None, int | None]]:
    return fire(peer, *looked(peer))


def jobs(peer: Peer) -> list[tuple[str, str]]:
    return peer.sql("SELECT meta ->> 'schedule', meta ->> 'tick' FROM pgqueue.all_jobs ORDER BY id")


def row(peer: Peer, columns: str, name: str = "s") -> Any:
    return peer.sql(f"SELECT {columns} FROM pgqueue.schedules WHERE name = %s", name)[0]


@pytest.fixture(autouse=True)
def not_at_the_turn_of_the_hour() -> None:
    """A tick of its own accord is not what these tests are about."""
    while not 3 < time.time() % 3600 < 3600 - 15:
        time.sleep(0.1)


# -- one tick, one job -----------------------------------------------------------------------------------------------


def test_a_tick_is_one_job_with_the_ticks_time_and_the_schedules_options(one: Peer):
    add(one, payload={"a": 1}, queue="q", priority=2, max_attempts=3, timeout="5m", group_key="g")
    due = row(one, "next_tick")[0]
    ((name, moment, job_id),) = tick(one)
    assert (name, moment) == ("s", due)
    assert one.sql("SELECT id, task, payload, queue, priority, max_attempts, timeout, group_key FROM pgqueue.jobs") == [
        (job_id, "t", {"a": 1}, "q", 2, 3, timedelta(minutes=5), "g")
    ]
    meta = one.value("SELECT meta FROM pgqueue.jobs")
    assert (meta["schedule"], datetime.fromisoformat(meta["tick"])) == ("s", due)
    assert meta["tick"].endswith("+00:00")
    assert row(one, "next_tick, last_tick, last_job_id") == (due + timedelta(hours=1), due, job_id)


def test_of_two_workers_with_the_same_plan_the_second_does_nothing(one: Peer, two: Peer):
    add(one)
    first, second = looked(one), looked(two)
    assert len(fire(one, *first)) == 1
    after = row(one, "next_tick, last_tick, last_job_id, xmin::text")
    assert fire(two, *second) == []
    assert row(one, "next_tick, last_tick, last_job_id, xmin::text") == after
    assert len(jobs(one)) == 1


def test_a_worker_does_not_wait_for_the_one_that_is_first(one: Peer, two: Peer):
    add(one)
    add(one, "other")
    plans, at = looked(two)
    one.begin()
    fire(one, [p for p in plans if p.name == "s"], at)
    assert [name for name, *_ in fire(two, plans, at)] == ["other"]
    one.rollback()
    assert [name for name, *_ in fire(two, plans, at)] == ["s"]


def test_a_tick_that_fired_never_fires_again_even_if_somebody_sets_the_row_back(one: Peer):
    add(one)
    tick(one)
    one.sql("UPDATE pgqueue.schedules SET next_tick = last_tick")
    ((name, moment, job_id),) = tick(one)
    assert (name, moment is not None, job_id) == ("s", True, None)
    assert len(jobs(one)) == 1


def test_the_job_and_the_next_tick_commit_together(one: Peer):
    add(one)
    before = row(one, "next_tick, last_tick")
    one.begin()
    tick(one)
    one.rollback()
    assert (jobs(one), row(one, "next_tick, last_tick")) == ([], before)
    assert one.value("SELECT count(*) FROM pgqueue.ticks") == 0


def test_the_servers_clock_decides_whether_a_tick_has_come(one: Peer):
    add(one)
    (made,), at = looked(one)
    early = Plan(
        "s", made.expression, made.time_zone, made.due, [*made.fire, made.next], made.next + timedelta(hours=1)
    )
    assert fire(one, [early], at) == []
    assert jobs(one) == []


def test_a_plan_that_a_frozen_worker_comes_back_with_is_not_taken(one: Peer):
    add(one)
    plans, at = looked(one)
    assert fire(one, plans, at - timedelta(seconds=6)) == []
    assert jobs(one) == []
    assert len(fire(one, plans, at)) == 1


def test_what_has_become_too_late_since_the_plan_is_skipped_where_the_policy_says_so(one: Peer):
    add(one, misfire="skip", grace="1s")
    (made,), at = looked(one)
    late = Plan("s", made.expression, made.time_zone, made.due, [made.due], made.next)
    one.sql("UPDATE pgqueue.schedules SET grace = '2 hours'")
    assert [job_id is not None for *_, job_id in fire(one, [late], at)] == [True]
    one.sql("UPDATE pgqueue.schedules SET grace = '1 second', next_tick = next_tick - interval '3 hours'")
    (made,), at = looked(one)
    assert made.fire == []
    fire(one, [Plan("s", made.expression, made.time_zone, made.due, [made.due], made.next)], at)
    assert len(jobs(one)) == 1


def edited(peer: Peer) -> None:
    peer.sql("UPDATE pgqueue.schedules SET expression = '@yearly'")


def moved_abroad(peer: Peer) -> None:
    peer.sql("UPDATE pgqueue.schedules SET time_zone = 'Asia/Tokyo'")


def paused(peer: Peer) -> None:
    peer.run(statements.pause_schedule("s", schema=SCHEMA))


def paused_and_resumed(peer: Peer) -> None:
    paused(peer)
    peer.run(statements.resume_schedule("s", schema=SCHEMA))


def removed(peer: Peer) -> None:
    peer.run(statements.remove_schedule("s", schema=SCHEMA))


def made_anew(peer: Peer) -> None:
    removed(peer)
    add(peer, ago=None)


@pytest.mark.parametrize("edit", [edited, moved_abroad, paused, paused_and_resumed, removed, made_anew])
def test_an_edit_between_the_look_and_the_tick_wins(one: Peer, two: Peer, edit: Callable[[Peer], None]):
    add(one)
    plans, at = looked(one)
    edit(two)
    assert fire(one, plans, at) == []
    assert jobs(one) == []


@pytest.mark.parametrize("edit", [edited, moved_abroad])
def test_a_next_tick_that_was_worked_out_for_other_times_is_not_taken(
    one: Peer, two: Peer, edit: Callable[[Peer], None]
):
    add(one, ago=None)
    plans, at = looked(one)
    edit(two)
    assert fire(one, plans, at) == []
    assert row(one, "next_tick") == (None,)


@pytest.mark.parametrize("edit", [edited, paused, removed])
def test_an_edit_waits_for_a_tick_and_then_holds(one: Peer, two: Peer, edit: Callable[[Peer], None]):
    add(one)
    plans, at = looked(one)
    one.begin()
    fire(one, plans, at)
    later: Future[Any] = two.behind(lambda: edit(two))
    one.commit()
    later.result()
    assert len(jobs(one)) == 1
    assert [p for p in peer_plans(one) if p.fire] == []


def peer_plans(peer: Peer) -> list[Plan]:
    return [plan(one) for one in peer.run(statements.due_schedules(HORIZON, schema=SCHEMA))]


# -- edits -----------------------------------------------------------------------------------------------------------


def test_other_times_count_from_the_edit_on(one: Peer):
    add(one, ago="30")
    one.sql("UPDATE pgqueue.schedules SET expression = '@yearly'")
    assert row(one, "next_tick, since > created_at") == (None, True)
    (made,), _ = looked(one)
    assert made.fire == []


def test_what_was_missed_during_a_pause_stays_missed(one: Peer):
    add(one, ago="30", misfire="all")
    paused(one)
    assert one.run(statements.due_schedules(HORIZON, schema=SCHEMA)) == []
    one.run(statements.resume_schedule("s", schema=SCHEMA))
    (made,), _ = looked(one)
    assert made.fire == []


def test_an_edit_of_anything_else_leaves_the_times_alone(one: Peer):
    add(one)
    before = row(one, "next_tick, since")
    one.sql("UPDATE pgqueue.schedules SET payload = '{\"b\": 2}', queue = 'other', misfire = 'all'")
    assert row(one, "next_tick, since") == before
    tick(one)
    assert one.sql("SELECT payload, queue FROM pgqueue.jobs") == [({"b": 2}, "other")]


@pytest.mark.parametrize(
    ("statement", "heard"),
    [
        ("INSERT INTO pgqueue.schedules (name, expression, task) VALUES ('new', '@daily', 't')", True),
        ("UPDATE pgqueue.schedules SET expression = '5 * * * *'", True),
        ("UPDATE pgqueue.schedules SET next_tick = next_tick - interval '1 minute'", True),
        ("UPDATE pgqueue.schedules SET next_tick = NULL", True),
        ("SELECT pgqueue.pause_schedule('s')", False),
        ("UPDATE pgqueue.schedules SET payload = '[]'", False),
        ("SELECT pgqueue.forget_ticks()", False),
    ],
)
def test_workers_hear_of_an_edit_that_may_make_a_tick_come_sooner(one: Peer, two: Peer, statement: str, heard: bool):
    add(one)
    two.sql('LISTEN "pgqueue.schedules"')
    one.sql(statement)
    assert bool(list(two.connection.notifies(timeout=0.2))) is heard


def test_workers_do_not_hear_of_each_others_ticks(one: Peer, two: Peer):
    add(one)
    two.sql('LISTEN "pgqueue.schedules"')
    tick(one)
    one.sql("UPDATE pgqueue.schedules SET next_tick = NULL")
    list(two.connection.notifies(timeout=0.2))
    tick(one)  # works out the next tick
    assert list(two.connection.notifies(timeout=0.2)) == []


@pytest.mark.parametrize(
    "wrong",
    [
        "expression = 'whenever'", "expression = ''", "time_zone = ''", "name = ''", "task = ''", "priority = 10",
        "max_attempts = 0", "timeout = '0'", "misfire = 'maybe'", "grace = '0'", "overlap = 'queue'",
        "next_tick = 'infinity'", "since = '-infinity'", "next_tick = '0044-03-15 BC'", "unique_key = ''",
        "payload = to_jsonb(repeat('x', 1100000))",
    ],
)  # fmt: skip
def test_a_row_that_could_not_tick_is_refused(one: Peer, wrong: str):
    add(one)
    with pytest.raises(errors.CheckViolation):
        one.sql(f"UPDATE pgqueue.schedules SET {wrong}")


# -- overlap ---------------------------------------------------------------------------------------------------------


def finish_all(peer: Peer) -> None:
    peer.sql("DELETE FROM pgqueue.jobs")


def test_overlap_skip_drops_ticks_while_the_job_of_an_earlier_one_is_live(one: Peer):
    add(one, ago="2", overlap="skip", misfire="all")
    settled = tick(one)
    assert [job_id is not None for *_, job_id in settled] == [True, False, False]
    one.sql("UPDATE pgqueue.schedules SET next_tick = next_tick - interval '1 hour'")
    assert [job_id for *_, job_id in tick(one)] == [None]
    finish_all(one)
    one.sql("UPDATE pgqueue.schedules SET next_tick = next_tick - interval '1 hour'")
    assert [job_id is not None for *_, job_id in tick(one)] == [True]  # dropped before, it may fire now


def test_overlap_allow_does_not_look(one: Peer):
    add(one, ago="2", misfire="all")
    assert [job_id is not None for *_, job_id in tick(one)] == [True, True, True]


def test_a_unique_key_of_ones_own_is_held_against_every_other_job(one: Peer):
    add(one, unique_key="k")
    one.sql("SELECT pgqueue.enqueue('other', unique_key => 'k')")
    assert [job_id for *_, job_id in tick(one)] == [None]


# -- backfill --------------------------------------------------------------------------------------------------------


def hours_ago(peer: Peer, *hours: int) -> list[datetime]:
    (now,) = peer.sql("SELECT date_trunc('hour', now())")[0]
    return [now - timedelta(hours=hour) for hour in hours]


def test_a_backfill_enqueues_what_has_not_fired_once(one: Peer):
    add(one, overlap="skip")
    tick(one)
    wanted = hours_ago(one, 3, 2, 2, 1)
    fired = row(one, "last_tick")[0]
    ids = one.run(statements.backfill("s", [*wanted, fired], schema=SCHEMA))
    assert len(ids) == 3
    assert [datetime.fromisoformat(at) for _, at in jobs(one)] == [fired, *sorted(set(wanted))]
    assert one.sql("SELECT count(*) FROM pgqueue.jobs WHERE meta @> '{\"backfill\": true}'") == [(3,)]
    assert one.run(statements.backfill("s", wanted, schema=SCHEMA)) == []


def test_two_backfills_at_once_fire_each_tick_once(one: Peer, two: Peer):
    add(one, ago=None)
    wanted = hours_ago(one, 3, 2, 1)
    one.begin()
    assert len(one.run(statements.backfill("s", wanted, schema=SCHEMA))) == 3
    other = two.behind(lambda: two.run(statements.backfill("s", wanted, schema=SCHEMA)))
    one.commit()
    assert other.result() == []


def test_a_tick_that_was_backfilled_before_its_turn_does_not_fire_again(one: Peer):
    add(one, ago="2", misfire="all")
    one.run(statements.backfill("s", hours_ago(one, 2, 1), schema=SCHEMA))
    assert [job_id is not None for *_, job_id in tick(one)] == [False, False, True]
    assert len(set(jobs(one))) == len(jobs(one)) == 3


@pytest.mark.parametrize(
    "ticks", ["ARRAY[now() + interval '1 s']", "ARRAY['infinity'::timestamptz]", "ARRAY[NULL::timestamptz]"]
)
def test_only_the_past_can_be_backfilled(one: Peer, ticks: str):
    add(one)
    with pytest.raises(errors.InvalidParameterValue, match="past"):
        one.sql(f"SELECT pgqueue.backfill('s', {ticks})")
    with pytest.raises(errors.InvalidParameterValue, match="no schedule 'x'"):
        one.sql("SELECT pgqueue.backfill('x', '{}')")


def test_the_memory_of_ticks_is_kept_for_30_days_and_goes_with_the_schedule(one: Peer):
    add(one)
    tick(one)
    one.run(statements.backfill("s", hours_ago(one, 9), schema=SCHEMA))
    one.sql("UPDATE pgqueue.ticks SET fired_at = now() - interval '31 days' WHERE tick < now() - interval '5 hours'")
    assert one.run(statements.forget_ticks(schema=SCHEMA)) == 1
    assert one.value("SELECT count(*) FROM pgqueue.ticks") == 1
    assert one.run(statements.remove_schedule("s", schema=SCHEMA)) is True
    assert one.value("SELECT count(*) FROM pgqueue.ticks") == 0
    assert len(jobs(one)) == 2
    assert one.run(statements.remove_schedule("s", schema=SCHEMA)) is None


# -- what the code declares ------------------------------------------------------------------------------------------


def declare(peer: Peer, expression: str = "@daily", **options: Any) -> list[str]:
    return peer.run(statements.declare_schedules([ScheduleSpec.make("s", expression, "t", **options)], schema=SCHEMA))


def test_a_declaration_is_written_when_it_is_new_or_has_changed(one: Peer):
    assert declare(one) == ["s"]
    assert declare(one) == []
    assert declare(one, payload={"a": 1}, timeout="1m") == ["s"]
    assert row(one, "payload, timeout, grace") == ({"a": 1}, timedelta(minutes=1), timedelta(minutes=1))


def test_a_pause_and_an_edit_survive_until_the_declaration_changes(one: Peer):
    declare(one)
    paused(one)
    one.sql("UPDATE pgqueue.schedules SET expression = '@hourly'")
    assert declare(one) == []
    assert row(one, "paused, expression") == (True, "@hourly")
    assert declare(one, "@weekly") == ["s"]
    assert row(one, "paused, expression") == (True, "@weekly")


def test_a_declaration_that_changes_no_time_does_not_touch_the_next_tick(one: Peer):
    declare(one)
    tick(one)
    before = row(one, "next_tick, since")
    declare(one, queue="other")
    assert row(one, "next_tick, since, queue") == (*before, "other")


def test_workers_that_declare_at_once_lock_in_one_order(one: Peer, two: Peer, connect: Callable[[], Peer]):
    """Both wait for a third that holds the one in the middle: in two orders that would be a deadlock."""
    old, new = ([ScheduleSpec.make(name, times, "t") for name in ("a", "b", "c")] for times in ("@daily", "@weekly"))
    one.run(statements.declare_schedules(old, schema=SCHEMA))
    third = connect()
    third.begin()
    third.sql("SELECT FROM pgqueue.schedules WHERE name = 'b' FOR UPDATE")
    first = one.behind(lambda: one.run(statements.declare_schedules(new, schema=SCHEMA)))
    second = two.behind(lambda: two.run(statements.declare_schedules(new[::-1], schema=SCHEMA)))
    third.commit()
    assert sorted(first.result()) == ["a", "b", "c"]
    assert second.result() == []


def test_a_declaration_that_stands_takes_no_lock(one: Peer, two: Peer):
    declare(one)
    one.begin()
    one.sql("SELECT FROM pgqueue.schedules FOR UPDATE")
    two.sql("SET lock_timeout = '100ms'")
    assert declare(two) == []
    one.rollback()


# -- cost ------------------------------------------------------------------------------------------------------------


def test_a_look_at_many_schedules_reads_only_those_that_are_near(one: Peer):
    one.sql("""INSERT INTO pgqueue.schedules (name, expression, task, next_tick)
        SELECT 's' || n, '@yearly', 't', now() + n * interval '1 hour' FROM generate_series(1, 5000) n""")
    one.sql("UPDATE pgqueue.schedules SET next_tick = now() WHERE name = 's7'")
    one.sql("VACUUM ANALYZE pgqueue.schedules")
    statement = statements.due_schedules(HORIZON, schema=SCHEMA)
    (found,) = one.connection.execute(
        f"EXPLAIN (ANALYZE, BUFFERS, FORMAT json) {statement.sql}", statement.params
    ).fetchone()
    top = (json.loads(found) if isinstance(found, str) else found)[0]["Plan"]
    assert "schedules_next" in json.dumps(top)
    assert top["Shared Hit Blocks"] + top["Shared Read Blocks"] <= 10


def test_a_producer_may_not_tick(dsn: str):
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("SET SESSION AUTHORIZATION pgqueue_producer")
        with pytest.raises(errors.InsufficientPrivilege):
            connection.execute("SELECT pgqueue.tick('[]', now())")
