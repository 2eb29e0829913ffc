"""The movable clock: everything behaves as if time had passed, and nothing waits."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import psycopg
import pytest

import pgqueue
from pgqueue import statements
from pgqueue.connection import run
from pgqueue.statements import Lanes
from pgqueue.testing import Sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def queue(app: pgqueue.App, connection: psycopg.Connection) -> Iterator[Sandbox]:
    with Sandbox(app, connection) as sandbox:
        yield sandbox


def test_a_delayed_job_runs_when_its_time_has_come(queue, app):
    @app.task(name="t")
    def t() -> None: ...

    t.options(delay="1h").enqueue_sync()
    t.options(run_at=datetime.now(UTC) + timedelta(hours=3)).enqueue_sync()
    assert queue.run_pending() == []
    before = queue.clock.now()
    assert queue.clock.advance("59m") == before + timedelta(minutes=59)
    assert queue.run_pending() == []
    queue.clock.advance(timedelta(minutes=1))
    assert len(queue.run_pending()) == 1
    queue.clock.advance("2h1s")
    assert len(queue.run_pending()) == 1


def test_retries_come_when_their_backoff_is_over_until_the_job_is_dead(queue, app):
    @app.task(name="fail", max_attempts=4, retry=pgqueue.Exponential(base=2, jitter=0))
    def fail() -> None:
        raise ValueError

    fail.enqueue_sync()
    states = [queue.run_pending()[0].state]
    for wait in (2, 4, 8):
        queue.clock.advance(wait - 0.001)
        assert queue.run_pending() == []
        queue.clock.advance(0.001)
        states += [ran.state for ran in queue.run_pending()]
    assert states == ["retrying", "retrying", "retrying", "dead"]
    queue.clock.advance("1d")
    assert queue.run_pending() == []


def test_the_lease_of_a_worker_that_died_expires_and_its_job_runs_here(queue, app, connection):
    @app.task(name="t", max_attempts=2)
    def t() -> None: ...

    job = t.enqueue_sync()
    lanes = Lanes(["default"], [5], [None], [0])
    lease = timedelta(seconds=30)
    claim = statements.claim(lanes, None, 1, secrets.randbits(62), lease, "dead worker", schema="pgqueue")
    assert len(run(connection, claim)) == 1
    queue.clock.advance(29)
    assert queue.run_pending() == []
    queue.clock.advance(1)
    (ran,) = queue.run_pending()
    assert (ran.id, ran.state, ran.job.attempt) == (job.id, "completed", 2)
    assert ran.job.errors[0]["type"] == "LeaseExpired"


def test_a_job_that_a_handler_outlives_is_lost_to_it(queue, app):
    @app.task(name="t", max_attempts=1)
    def t() -> None:
        queue.clock.advance("1h")
        queue.perform(iter_sweep())

    def iter_sweep():
        yield statements.sweep(schema="pgqueue")

    t.enqueue_sync()
    (ran,) = queue.run_pending()
    assert ran.state == "dead"


def test_a_key_that_is_held_for_a_period_is_free_after_it(queue, app):
    @app.task(name="t", unique_key="k", unique_for="10m")
    def t() -> None: ...

    assert t.enqueue_sync().created
    queue.run_pending()
    assert not t.enqueue_sync().created
    queue.clock.advance("10m")
    assert t.enqueue_sync().created


def test_a_rate_limits_bucket_fills(queue, app):
    @app.task(name="t")
    def t() -> None: ...

    app.client.limit_queue("default", rate=0.001, burst=1)
    t.enqueue_sync()
    t.enqueue_sync()
    assert len(queue.run_pending()) == 1
    queue.clock.advance("990s")
    assert queue.run_pending() == []
    queue.clock.advance("11s")
    assert len(queue.run_pending()) == 1


def test_history_ages_with_the_rest(queue, app):
    @app.task(name="t")
    def t() -> None: ...

    job = t.enqueue_sync()
    queue.run_pending()
    before = job.refresh_sync()
    queue.clock.advance("40d")
    after = job.refresh_sync()
    for name in ("created_at", "started_at", "finished_at", "run_at"):
        assert getattr(before, name) - getattr(after, name) == timedelta(days=40)


def test_every_time_in_the_schema_moves(app, dsn, connection):
    """A column that somebody adds moves, too; one that stood still would make a test lie."""
    tables = """
        SELECT table_name, column_name FROM information_schema.columns JOIN information_schema.tables USING (table_name)
        WHERE columns.table_schema = 'pgqueue' AND tables.table_schema = 'pgqueue'
          AND data_type = 'timestamp with time zone' AND table_type = 'BASE TABLE' AND table_name !~ '^history_'
    """
    connection.execute("SELECT pgqueue.enqueue('t', unique_key => 'k', unique_for => '1h', group_key => 'g')")
    connection.execute("INSERT INTO pgqueue.schedules (name, expression, task, next_tick, last_tick) "
                       "VALUES ('s', '* * * * *', 't', now(), now())")  # fmt: skip
    connection.execute(
        "INSERT INTO pgqueue.ticks SELECT 's', now() + n * interval '1 hour', n FROM generate_series(3, 1, -1) n"
    )
    connection.execute("INSERT INTO pgqueue.leases (token, lease_until, worker, job_ids) VALUES (1, now(), 'w', '{}')")
    connection.execute("INSERT INTO pgqueue.buckets (queue, group_key) VALUES ('q', '')")
    connection.execute("INSERT INTO pgqueue.batches (id, finished_at) VALUES (1, now())")
    connection.execute(
        "INSERT INTO pgqueue.workers (name, host, pid, queues, slots, version) VALUES ('w', '', 1, '{}', 1, '')"
    )
    connection.execute("UPDATE pgqueue.jobs SET started_at = now(), due_at = now()")
    connection.execute("INSERT INTO pgqueue.history SELECT (jsonb_populate_record(NULL::pgqueue.history, "
                       "to_jsonb(j) || '{\"state\": \"dead\", \"id\": 99}' || "
                       "jsonb_build_object('finished_at', now()))).* FROM pgqueue.jobs j")  # fmt: skip
    columns = connection.execute(tables).fetchall()
    assert len(columns) > 20

    def times(table: str, column: str) -> list[datetime]:
        rows = connection.execute(f"SELECT {column} FROM pgqueue.{table} WHERE isfinite({column}) ORDER BY 1")
        return [moment for (moment,) in rows]

    before = {column: times(*column) for column in columns}
    with Sandbox(app, connection) as queue:
        queue.clock.advance("1h")
    for column in columns:
        assert times(*column) == [moment - timedelta(hours=1) for moment in before[column]], column
    assert sum(map(bool, before.values())) > 20


# -- schedules -------------------------------------------------------------------------------------------------------


def test_a_schedule_ticks_at_its_own_hours_however_the_clock_is_moved(queue, app):
    ticks = []

    @app.schedule("0 9 * * *", tz="Europe/Berlin")
    @app.task(name="report")
    def report(job: pgqueue.Job) -> None:
        ticks.append(job.tick)

    queue.run_pending()
    queue.clock.move_to(datetime(2040, 3, 22, 12, tzinfo=UTC))
    assert len(queue.run_pending()) == 1  # of all that was missed the latest, late
    del ticks[:]
    for _ in range(6 * 24):
        queue.clock.advance("1h")
        queue.run_pending()
    nine = [tick.astimezone(ZoneInfo("Europe/Berlin")) for tick in ticks]
    assert [(t.hour, t.minute) for t in nine] == [(9, 0)] * 6
    assert [t.date() - nine[0].date() for t in nine] == [timedelta(days=n) for n in range(6)]
    assert len({tick.hour for tick in ticks}) == 2  # summer time began in between


@pytest.mark.parametrize(("misfire", "runs"), [("skip", 0), ("latest", 1), ("all", 3)])
def test_a_jump_over_ticks_is_a_misfire(queue, app, misfire, runs):
    app.schedule("0 * * * *", misfire=misfire)(app.task(name="t")(lambda: None))
    queue.run_pending()
    hour = queue.clock.now().replace(minute=0, second=0, microsecond=0)
    queue.clock.move_to(hour + timedelta(hours=3, minutes=30))
    assert len(queue.run_pending()) == runs
    queue.clock.move_to(hour + timedelta(hours=4))
    assert len(queue.run_pending()) == 1
    assert queue.run_pending() == []


# -- misuse ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", [-1, "soon", None, float("nan"), True])
def test_what_is_no_duration_moves_nothing(queue, by):
    with pytest.raises(pgqueue.InvalidJobError, match="advance"):
        queue.clock.advance(by)
    assert queue.clock.offset == timedelta(0)


def test_the_clock_is_never_turned_back(queue):
    with pytest.raises(pgqueue.InvalidJobError, match="forward only"):
        queue.clock.move_to(datetime(2020, 1, 1, tzinfo=UTC))
    for wrong in (datetime(2090, 1, 1), "tomorrow"):  # noqa: DTZ001
        with pytest.raises(pgqueue.InvalidJobError, match="time zone"):
            queue.clock.move_to(wrong)


def test_the_clock_is_rolled_back_with_the_test(app, connection, dsn):
    with psycopg.connect(dsn) as outside:
        outside.execute("SELECT pgqueue.enqueue('t', delay => '1h')")
    (before,) = app.client.jobs()
    with Sandbox(app, connection) as queue:
        queue.clock.advance("2h")
    connection.rollback()
    assert app.client.jobs() == [before]
