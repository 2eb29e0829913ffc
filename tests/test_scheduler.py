"""The scheduler: what one look does, many at once, and the client's verbs for schedules."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from pgqueue import (
    AsyncClient,
    Client,
    InvalidJobError,
    InvalidScheduleError,
    ScheduleExistsError,
    ScheduleNotFoundError,
    ScheduleSpec,
    scheduler,
)
from pgqueue.connection import Database
from pgqueue.scheduler import HORIZON, Scheduler, declare, forget_ticks, tick

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
HOURLY = "0 * * * *"


def sql(dsn: str, query: str, *params: Any) -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(query, params or None)
        return cursor.fetchall() if cursor.description else []


def ticks(dsn: str) -> Counter[tuple[str, datetime]]:
    """How many jobs each (schedule, tick) has."""
    rows = sql(
        dsn, "SELECT meta ->> 'schedule', (meta ->> 'tick')::timestamptz FROM pgqueue.all_jobs WHERE meta ? 'tick'"
    )
    return Counter((name, moment.astimezone(UTC)) for name, moment in rows)


def overdue(dsn: str, by: str, where: str = "true") -> None:
    sql(dsn, f"UPDATE pgqueue.schedules SET next_tick = date_trunc('hour', now()) - %s::interval WHERE {where}", by)


@pytest.fixture(autouse=True)
def not_at_the_turn_of_the_hour() -> None:
    """A tick of its own accord is not what these tests are about."""
    while not 3 < time.time() % 3600 < 3600 - 15:
        time.sleep(0.1)


@pytest.fixture
async def database(dsn: str) -> AsyncIterator[Database]:
    database = Database(lambda: dsn)
    yield database
    await database.aclose()


# -- one look --------------------------------------------------------------------------------------------------------


async def test_with_no_schedules_a_look_does_nothing(database: Database):
    looked = await tick(database, "pgqueue")
    assert (looked.fired, looked.wait) == ([], None)


async def test_a_look_fires_what_is_due_and_says_when_to_look_again(dsn: str, database: Database):
    client = AsyncClient(database)
    await client.add_schedule(ScheduleSpec.make("a", HOURLY, "t"))
    await client.add_schedule(ScheduleSpec.make("b", "@yearly", "t"))
    overdue(dsn, "0", "name = 'a'")
    looked = await tick(database, "pgqueue")
    assert [name for name, *_ in looked.fired] == ["a"]
    sql(dsn, "UPDATE pgqueue.schedules SET next_tick = now() + interval '3 seconds' WHERE name = 'b'")
    looked = await tick(database, "pgqueue")
    assert looked.fired == []
    assert looked.wait is not None
    assert 2 < looked.wait <= 3


async def test_a_schedule_that_ticks_beyond_the_horizon_is_nothing_to_wait_for(dsn: str, database: Database):
    await AsyncClient(database).add_schedule(ScheduleSpec.make("b", "@yearly", "t"))
    await tick(database, "pgqueue")
    assert (await tick(database, "pgqueue")).wait is None


async def test_a_schedule_that_this_worker_can_not_read_stops_no_other(
    dsn: str, database: Database, caplog: pytest.LogCaptureFixture
):
    for name, expression, zone in (
        ("a", "0 0 30 2 *", "UTC"),
        ("b", HOURLY, "Mars/Olympus"),
        ("c", HOURLY, "UTC"),
    ):
        sql(
            dsn, "INSERT INTO pgqueue.schedules (name, expression, time_zone, task) VALUES (%s, %s, %s, 't')",
            name, expression, zone,
        )  # fmt: skip
    overdue(dsn, "0", "name <> 'a'")
    troubled: dict[tuple[str, str, str], float] = {}
    with caplog.at_level(logging.WARNING):
        looked = await tick(database, "pgqueue", troubled)
        again = await tick(database, "pgqueue", troubled)
    assert [name for name, *_ in looked.fired] == ["c"]
    assert again.wait is None or again.wait > 0
    said = [record.getMessage().split(" can't")[0] for record in caplog.records if "can't" in record.getMessage()]
    assert said == ["schedule a", "schedule b"], "once"
    listed = {record.name: record for record in await AsyncClient(database).schedules()}
    assert "never ticks" in (listed["a"].problem or "")
    assert "Mars/Olympus" in (listed["b"].problem or "")
    assert listed["c"].problem is None


async def test_a_tick_that_the_database_refuses_stops_no_other(dsn: str, database: Database, caplog: Any):
    for name in ("a", "b", "c"):
        await AsyncClient(database).add_schedule(ScheduleSpec.make(name, HOURLY, "t"))
    overdue(dsn, "0")
    sql(dsn, "ALTER TABLE pgqueue.schedules DROP CONSTRAINT schedules_priority_is_0_to_9")
    sql(dsn, "UPDATE pgqueue.schedules SET priority = 77 WHERE name = 'b'")
    troubled: dict[tuple[str, str, str], float] = {}
    looked = await tick(database, "pgqueue", troubled)
    assert [name for name, *_ in looked.fired] == ["a", "c"]
    assert "priority must be 0" in caplog.text
    assert [key[0] for key in troubled] == ["b"]
    assert (await tick(database, "pgqueue", troubled)).fired == []  # left alone for a while, no hot loop


async def test_many_schedules_tick_in_batches(dsn: str, database: Database):
    sql(dsn, """INSERT INTO pgqueue.schedules (name, expression, task, next_tick)
        SELECT 's' || n, '@hourly', 't', date_trunc('hour', now()) FROM generate_series(1, 250) n""")  # fmt: skip
    sql(dsn, "UPDATE pgqueue.schedules SET grace = '2 hours'")
    looked = await tick(database, "pgqueue")
    assert len(looked.fired) == len(ticks(dsn)) == 250


async def test_a_long_downtime_is_made_up_in_portions(dsn: str, database: Database):
    await AsyncClient(database).add_schedule(ScheduleSpec.make("s", HOURLY, "t", misfire="all"))
    overdue(dsn, "2499 hours")
    counts = []
    while (looked := await tick(database, "pgqueue")).fired:
        counts.append(len(looked.fired))
    assert counts == [1000, 1000, 500]
    assert set(ticks(dsn).values()) == {1}


@pytest.mark.parametrize(("misfire", "fired"), [("skip", None), ("latest", 1), ("all", 61)])
async def test_the_misfire_policy_after_a_downtime(dsn: str, database: Database, misfire: str, fired: int | None):
    await AsyncClient(database).add_schedule(
        ScheduleSpec.make("s", HOURLY, "t", misfire=misfire, grace="119m")
    )  # fmt: skip
    overdue(dsn, "60 hours")
    looked = await tick(database, "pgqueue")
    fired = fired or 1 + (datetime.now(UTC).minute < 59)  # the hour before is within the grace for so long
    assert len(looked.fired) == fired
    assert set(ticks(dsn).values()) == {1}
    assert (await tick(database, "pgqueue")).fired == []


async def test_the_application_s_clock_decides_nothing(dsn: str, database: Database, monkeypatch: Any):
    """Fault 11: a machine whose clock is an hour ahead fires nothing early."""

    class Ahead(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(tz) + timedelta(hours=1)

    monkeypatch.setattr("pgqueue.schedule.datetime", Ahead)
    monkeypatch.setattr("pgqueue.timetable.datetime", Ahead)
    await AsyncClient(database).add_schedule(ScheduleSpec.make("s", HOURLY, "t"))
    sql(dsn, "UPDATE pgqueue.schedules SET next_tick = date_trunc('hour', now()) + interval '1 hour'")
    assert (await tick(database, "pgqueue")).fired == []


# -- many at once ----------------------------------------------------------------------------------------------------


async def test_twelve_workers_that_compete_fire_every_tick_once(
    dsn: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """Three schedules, 101 ticks of each, one at a time: every one of them is raced for."""
    monkeypatch.setattr("pgqueue.schedule.MOST_AT_ONCE", 1)
    databases = [Database(lambda: dsn) for _ in range(12)]
    for name in ("a", "b", "c"):
        await AsyncClient(databases[0]).add_schedule(ScheduleSpec.make(name, HOURLY, "t", misfire="all"))
    overdue(dsn, "100 hours")

    async def compete(database: Database) -> int:
        fired = 0
        while (looked := await tick(database, "pgqueue")).lost or (looked.wait is not None and looked.wait < 0.1):
            fired += len(looked.fired)
        return fired + len(looked.fired)

    with caplog.at_level(logging.INFO, "pgqueue.scheduler"):
        fired = await asyncio.gather(*(compete(database) for database in databases))
    found = ticks(dsn)
    assert sum(fired) == len(found) == 3 * 101
    assert set(found.values()) == {1}
    assert sum(1 for count in fired if count) > 1, "they did compete"
    assert "dropped" not in caplog.text, "the row decides who is first; the memory of ticks is for other cases"
    for database in databases:
        await database.aclose()


# -- the loop's body -------------------------------------------------------------------------------------------------


class Recorder:
    """A runner that counts the statements."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.count = 0

    async def arun(self, statement: Any) -> Any:
        self.count += 1
        return await self.database.arun(statement)


@pytest.fixture
def looker(database: Database) -> Callable[..., tuple[Scheduler, Recorder, Recorder]]:
    def make(*declared: ScheduleSpec, hears: bool = True) -> tuple[Scheduler, Recorder, Recorder]:
        quiet, own = Recorder(database), Recorder(database)
        return Scheduler(quiet, own, "pgqueue", declared, lambda: hears), quiet, own

    return make


async def test_without_schedules_a_worker_asks_once_in_ten_seconds(looker: Any):
    own, quiet, _ = looker()
    assert await own.look() == HORIZON.total_seconds()
    assert quiet.count == 1


async def test_a_worker_that_can_not_hear_looks_each_second(looker: Any):
    own, _, _ = looker(hears=False)
    assert await own.look() == 1.0


async def test_a_connection_of_its_own_is_used_once_a_tick_is_near(dsn: str, looker: Any):
    own, quiet, near = looker(ScheduleSpec.make("s", "* * * * * *", "t"))
    assert await own.look() <= 1.0
    assert (quiet.count, near.count) == (3, 0)  # declared, looked, worked out
    await own.look()
    assert quiet.count == 3
    assert near.count >= 1


async def test_what_the_code_declares_is_written_once(looker: Any, database: Database):
    own, quiet, _ = looker(ScheduleSpec.make("s", "@yearly", "t"))
    await own.look()
    await own.look()
    assert [record.declared for record in await AsyncClient(database).schedules()] == [True]
    assert await declare(database, "pgqueue", []) == []
    assert quiet.count == 4  # declared, looked, worked out; looked


async def test_old_ticks_are_forgotten(database: Database):
    assert await forget_ticks(database, "pgqueue") == 0


async def test_a_look_ends_before_its_plans_are_too_old(dsn: str, database: Database, monkeypatch: Any):
    monkeypatch.setattr(scheduler, "_LONG", -1.0)
    await AsyncClient(database).add_schedule(ScheduleSpec.make("s", HOURLY, "t"))
    overdue(dsn, "0")
    looked = await tick(database, "pgqueue")
    assert (looked.fired, looked.wait) == ([], 0.0)


async def test_a_worker_that_loses_a_race_comes_behind_the_winner_the_next_time(dsn: str, looker: Any):
    """So that of many workers one asks and fires, and the others find it done."""
    own, _, _ = looker(ScheduleSpec.make("s", "* * * * * *", "t"))
    await own.look()
    with psycopg.connect(dsn) as other:
        sql(dsn, "UPDATE pgqueue.schedules SET next_tick = now()")
        other.execute("SELECT FROM pgqueue.schedules FOR UPDATE")
        waits = [await own.look() for _ in range(8)]
    assert own._behind > 0
    assert all(0 <= wait <= 1 for wait in waits)
    assert own._losses == scheduler._MOST_LOSSES, "and does not ask a hundred times a second"
    sql(dsn, "UPDATE pgqueue.schedules SET next_tick = now()")
    await own.look()
    assert (own._behind, own._losses) == (0.0, 0)


# -- the clients' verbs ----------------------------------------------------------------------------------------------


class AsSync:
    def __init__(self, client: AsyncClient, run: Callable[[Any], Any]) -> None:
        self._client = client
        self._wait = run

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *args, **kwargs: self._wait(getattr(self._client, name)(*args, **kwargs))


@pytest.fixture(params=["sync", "async"])
def client(request: pytest.FixtureRequest, dsn: str) -> Iterator[Any]:
    """Both clients in turn, called the same way."""
    database = Database(lambda: dsn)
    if request.param == "sync":
        yield Client(database)
        database.close()
        return
    with asyncio.Runner() as runner:
        yield AsSync(AsyncClient(database), runner.run)
        runner.run(database.aclose())


def test_a_schedule_is_added_listed_paused_resumed_and_removed(client: Any):
    spec = ScheduleSpec.make(
        "s", "0 9 * * *", "t", {"a": [1, None]}, tz="Europe/Berlin", queue="q", priority=1, max_attempts=2,
        timeout="1m", misfire="all", grace="1h", overlap="skip", unique_key="u", group_key="g",
    )  # fmt: skip
    record = client.add_schedule(spec)
    assert record == client.get_schedule("s").__class__(
        "s", "0 9 * * *", "Europe/Berlin", "t", {"a": [1, None]}, "q", 1, 2, MINUTE, "all", HOUR, "skip", "u", "g",
        False, False, record.next_tick, None, None, record.created_at, record.updated_at, record.seen_at,
    )  # fmt: skip
    assert record.next_tick is not None
    assert (record.next_tick.tzinfo, record.timetable.local(record.next_tick).hour) == (UTC, 9)
    assert record.next_tick > record.created_at
    assert [listed.name for listed in client.schedules()] == ["s"]
    assert client.pause_schedule("s") is True
    assert client.pause_schedule("s") is False
    assert (client.get_schedule("s").paused, client.get_schedule("s").next_tick) == (True, None)
    assert len(client.get_schedule("s").upcoming(3)) == 3
    assert client.resume_schedule("s") is True
    assert client.resume_schedule("s") is False
    assert client.get_schedule("s").upcoming(2) == [record.next_tick, record.timetable.after(record.next_tick)]
    assert client.remove_schedule("s") is None
    assert client.schedules() == []


def test_a_name_that_is_taken_is_refused_unless_it_is_to_be_replaced(client: Any):
    client.add_schedule(ScheduleSpec.make("s", "@daily", "t"))
    client.pause_schedule("s")
    with pytest.raises(ScheduleExistsError, match="schedule 's' already") as caught:
        client.add_schedule(ScheduleSpec.make("s", "@hourly", "other"))
    assert caught.value.name == "s"
    assert client.get_schedule("s").task == "t"
    record = client.add_schedule(ScheduleSpec.make("s", "@hourly", "other"), replace=True)
    assert (record.expression, record.task, record.paused) == ("@hourly", "other", True)


def test_a_schedule_that_is_not_there_is_not_found(client: Any):
    now = datetime.now(UTC)
    for verb in (
        client.get_schedule, client.pause_schedule, client.resume_schedule, client.remove_schedule,
        lambda name: client.backfill(name, now - MINUTE, now),
    ):  # fmt: skip
        with pytest.raises(ScheduleNotFoundError, match="no schedule 'x'") as caught:
            verb("x")
        assert caught.value.name == "x"


def test_a_backfill_of_a_window_has_its_beginning_and_not_its_end(client: Any, dsn: str):
    client.add_schedule(ScheduleSpec.make("s", HOURLY, "t"))
    (end,) = sql(dsn, "SELECT date_trunc('hour', now())")[0]
    ids = client.backfill("s", end - 5 * HOUR, end)
    assert len(ids) == 5
    assert ticks(dsn) == {("s", end.astimezone(UTC) - nth * HOUR): 1 for nth in range(1, 6)}
    assert client.backfill("s", end - 6 * HOUR, end - 4 * HOUR) != []
    assert client.backfill("s", end - 6 * HOUR, end) == []
    assert len(client.backfill("s", end - 6 * HOUR)) == 1  # up to now


def test_a_backfill_is_bounded_and_of_the_past(client: Any):
    client.add_schedule(ScheduleSpec.make("s", "* * * * * *", "t"))
    now = datetime.now(UTC)
    with pytest.raises(InvalidScheduleError, match="more than 1000 ticks"):
        client.backfill("s", now - timedelta(days=3650), now)
    with pytest.raises(InvalidScheduleError, match="more than 10 ticks"):
        client.backfill("s", now - MINUTE, now, limit=10)
    with pytest.raises(InvalidJobError, match="past"):
        client.backfill("s", now - MINUTE, now + MINUTE)
    with pytest.raises(InvalidScheduleError, match="time zone"):
        client.backfill("s", now.replace(tzinfo=None), now)
    assert client.jobs() == []


def test_schedules_take_part_in_the_callers_transaction(dsn: str):
    database = Database(lambda: dsn)
    with psycopg.connect(dsn) as connection:
        Client(database).add_schedule(ScheduleSpec.make("s", "@daily", "t"), connection=connection)
        assert len(Client(database).schedules(connection=connection)) == 1
        connection.rollback()
    assert Client(database).schedules() == []
    database.close()


def test_a_record_as_json(client: Any):
    facts = client.add_schedule(ScheduleSpec.make("s", "@daily", "t", timeout="90s")).as_dict()
    assert (facts["timeout"], facts["grace"], facts["payload"]) == ("1m30s", "1m", {})
    assert datetime.fromisoformat(facts["next_tick"]) > datetime.fromisoformat(facts["created_at"])
