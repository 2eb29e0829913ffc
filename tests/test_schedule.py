"""A schedule as a value: what is refused, and what its misfire policy makes of the ticks that are due."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from pgqueue import App, InvalidJobError, InvalidPayloadError, InvalidScheduleError, JobSpec, ScheduleSpec, Settings
from pgqueue.schedule import MOST_AT_ONCE, Waiting, plan

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def waiting(
    expression="* * * * *", *, due=NOON, now=NOON, misfire="latest", grace=MINUTE, since=None, last=None
) -> Waiting:
    return Waiting("s", expression, "UTC", misfire, grace, since or NOON - timedelta(days=1), due, last, now)


# -- what is due -----------------------------------------------------------------------------------------------------


def test_a_tick_that_is_due_is_fired_and_the_next_comes_after_it():
    made = plan(waiting(now=NOON + timedelta(milliseconds=3)))
    assert (made.fire, made.next, made.missed) == ([NOON], NOON + MINUTE, False)


def test_the_first_tick_is_the_one_after_the_schedule_was_made():
    made = plan(waiting(due=None, since=NOON + timedelta(seconds=1), now=NOON + timedelta(seconds=2)))
    assert (made.due, made.fire, made.next) == (None, [], NOON + MINUTE)


@pytest.mark.parametrize(
    "option",
    [{"delay": 5}, {"run_at": NOON}, {"meta": {"a": 1}}, {"depends_on": [7]}],
    ids=lambda option: next(iter(option)),
)
def test_what_the_jobs_of_a_schedule_can_not_have_is_refused(option):
    name = next(iter(option))
    with pytest.raises(InvalidScheduleError, match=f"schedule 's': its jobs can't have {name}"):
        ScheduleSpec.of_job("s", "@daily", JobSpec.make("t", **option))


def test_an_option_that_is_none_of_a_schedules_is_refused():
    app = App(settings=Settings())

    @app.task(name="t", unique_key="k", unique_for="1h", on_conflict="replace")
    def t() -> None: ...

    assert t.schedule("@daily").unique_key == "k"
    with pytest.raises(InvalidScheduleError, match="schedule 'other': unique_for is not an option of a schedule"):
        t.schedule("@daily", name="other", unique_for="1h")


def test_a_first_tick_that_has_come_before_anybody_looked_is_fired():
    made = plan(waiting(due=None, since=NOON - timedelta(seconds=1), now=NOON + timedelta(seconds=2)))
    assert (made.due, made.fire, made.next) == (None, [NOON], NOON + MINUTE)


def test_a_clock_that_was_set_back_fires_nothing_again():
    made = plan(waiting(due=None, since=NOON - MINUTE, last=NOON + 5 * MINUTE, now=NOON))
    assert (made.fire, made.next) == ([], NOON + 6 * MINUTE)


@pytest.mark.parametrize(
    ("misfire", "fired"),
    [
        ("skip", [NOON + 9 * MINUTE, NOON + 10 * MINUTE]),
        ("latest", [NOON + 10 * MINUTE]),
        ("all", [NOON + nth * MINUTE for nth in range(11)]),
    ],
)
def test_after_a_downtime_the_misfire_policy_says_what_fires(misfire, fired):
    made = plan(waiting(misfire=misfire, now=NOON + 10 * MINUTE + timedelta(seconds=0)))
    assert (made.fire, made.next, made.missed) == (fired, NOON + 11 * MINUTE, True)


@pytest.mark.parametrize("misfire", ["skip", "latest", "all"])
def test_within_the_grace_every_tick_is_on_time(misfire):
    made = plan(waiting("*/20 * * * * *", misfire=misfire, now=NOON + MINUTE))
    assert [tick.second for tick in made.fire] == [0, 20, 40, 0]
    assert made.missed is False


def test_a_missed_daily_tick_is_skipped_altogether():
    made = plan(waiting("@daily", due=NOON.replace(hour=0), misfire="skip", now=NOON))
    assert (made.fire, made.next, made.missed) == ([], NOON.replace(day=2, hour=0), True)


def test_all_missed_ticks_fire_in_bounded_portions():
    long_ago = NOON - timedelta(days=2)
    made = plan(waiting(misfire="all", due=long_ago, now=NOON))
    assert made.fire == [long_ago + nth * MINUTE for nth in range(MOST_AT_ONCE)]
    assert made.next == long_ago + MOST_AT_ONCE * MINUTE


def test_the_latest_of_a_year_of_seconds_is_found_without_counting_them():
    made = plan(waiting("* * * * * *", due=NOON - timedelta(days=365), now=NOON + timedelta(milliseconds=500)))
    assert (made.fire, made.next) == ([NOON], NOON + timedelta(seconds=1))


# -- what may be added -----------------------------------------------------------------------------------------------


def test_a_specification_keeps_what_was_said():
    spec = ScheduleSpec.make(
        "report", " 0  9 * * MON-FRI", "reports.daily", {"a": 1}, tz="Europe/Berlin", queue="q", priority="high",
        max_attempts=3, timeout="5m", misfire="all", grace="2h", overlap="skip", group_key="g",
    )  # fmt: skip
    assert spec == ScheduleSpec(
        "report", "0 9 * * MON-FRI", "reports.daily", '{"a":1}', "Europe/Berlin", "q", 2, 3, timedelta(minutes=5),
        "all", timedelta(hours=2), "skip", None, "g",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("wrong", "error", "said"),
    [
        ({"name": ""}, InvalidScheduleError, "schedule's name must have 1 to 128"),
        ({"name": "n" * 129}, InvalidScheduleError, "schedule's name must have 1 to 128"),
        ({"name": None}, InvalidScheduleError, "schedule's name must be text"),
        ({"expression": "0 0 30 2 *"}, InvalidScheduleError, "never ticks"),
        ({"expression": ["*"]}, InvalidScheduleError, "must be text"),
        ({"tz": "Mars/Olympus"}, InvalidScheduleError, "no time zone 'Mars/Olympus'"),
        ({"tz": ["UTC"]}, InvalidScheduleError, "must be text"),
        ({"misfire": "maybe"}, InvalidScheduleError, "misfire must be skip, latest or all"),
        ({"overlap": "queue"}, InvalidScheduleError, "overlap must be allow or skip"),
        ({"grace": "500ms"}, InvalidScheduleError, "grace must be at least a second"),
        ({"grace": "soon"}, InvalidJobError, "grace 'soon' is not a duration"),
        ({"task": ""}, InvalidJobError, "task must have 1 to 128"),
        ({"priority": 10}, InvalidJobError, "priority"),
        ({"payload": {"x": float("nan")}}, InvalidPayloadError, "NaN"),
        ({"payload": "x" * 1_100_000}, InvalidPayloadError, "over the limit"),
    ],
)
def test_what_has_no_meaning_is_refused_before_any_sql(wrong, error, said):
    with pytest.raises(error) as caught:
        ScheduleSpec.make(**{"name": "n", "expression": "@daily", "task": "t", **wrong})
    assert said in str(caught.value)


# -- in code ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def app() -> App:
    return App(settings=Settings(dsn="postgresql://nobody@localhost:1/nothing"))


def test_a_schedule_is_declared_above_the_task_with_the_tasks_own_options(app):
    @app.schedule("0 9 * * *", tz="Europe/Berlin", payload={"kind": "daily"}, misfire="skip", priority=1)
    @app.task(name="report", queue="reports", max_attempts=3, group_key=lambda kind: f"g:{kind}")
    def report(kind: str) -> str:
        return kind

    assert report("x") == "x"
    assert app.schedules == {
        "report": ScheduleSpec.make(
            "report", "0 9 * * *", "report", {"kind": "daily"}, tz="Europe/Berlin", queue="reports", priority=1,
            max_attempts=3, misfire="skip", group_key="g:daily",
        )
    }  # fmt: skip


def test_a_task_has_several_schedules_if_they_have_names(app):
    @app.task(name="report")
    def report(kind: str = "a") -> None: ...

    report.schedule("@daily")
    with pytest.raises(InvalidScheduleError, match="already a schedule 'report'"):
        report.schedule("@hourly")
    assert report.schedule("@hourly", name="hourly", payload={"kind": "b"}).payload == '{"kind":"b"}'
    assert sorted(app.schedules) == ["hourly", "report"]


def test_a_raw_task_gets_any_payload(app):
    @app.task(name="anything", raw=True)
    def anything(payload: object) -> None: ...

    assert anything.schedule("@daily", payload=[1, 2]).payload == "[1,2]"


def test_a_declaration_is_checked_where_it_is_written(app):
    @app.task(name="report")
    def report(kind: str) -> None: ...

    for wrong, error, said in (
        ({"expression": "every blue moon"}, InvalidScheduleError, "not a duration"),
        ({"tz": "Berlin"}, InvalidScheduleError, "no time zone"),
        ({"payload": {}}, InvalidPayloadError, "kind"),
        ({"payload": {"kind": 5}}, InvalidPayloadError, "kind"),
        ({"payload": "text"}, InvalidPayloadError, "must be a dict"),
        ({"priority": 77}, InvalidJobError, "priority"),
    ):
        with pytest.raises(error, match=said):
            report.schedule(**{"expression": "@daily", "payload": {"kind": "x"}, **wrong})
    with pytest.raises(InvalidScheduleError, match=r"above @app\.task"):
        app.schedule("@daily")(lambda: None)
    assert app.schedules == {}
