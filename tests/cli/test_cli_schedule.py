from __future__ import annotations

from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from pgqueue import ScheduleSpec

MINUTE = timedelta(minutes=1)


def add(queue, name="s", expression="0 9 * * *", **options):
    return queue.add_schedule(ScheduleSpec.make(name, expression, "t", **options))


def test_add_prints_when_it_ticks_next(queue, pgq):
    answer = pgq(
        "schedule", "add", "report", "--cron", "0 9 * * MON-FRI", "--task", "reports.daily", "--payload", '{"a": 1}',
        "--tz", "Europe/Berlin", "--queue", "reports", "--priority", "high", "--max-attempts", 3, "--timeout", "5m",
        "--misfire", "all", "--grace", "2h", "--overlap", "skip",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    assert answer.out.startswith("report added, next tick 20")
    assert " 09:00:00 CE" in answer.out
    record = queue.get_schedule("report")
    assert (record.expression, record.time_zone, record.task) == ("0 9 * * MON-FRI", "Europe/Berlin", "reports.daily")
    assert (record.payload, record.queue, record.priority, record.max_attempts) == ({"a": 1}, "reports", 2, 3)
    assert (record.timeout, record.misfire, record.grace, record.overlap) == (5 * MINUTE, "all", 120 * MINUTE, "skip")


def test_add_with_json_prints_the_schedule(queue, pgq):
    facts = pgq("schedule", "add", "s", "--cron", "every 90s", "--task", "t", "--json").json
    assert (facts["name"], facts["expression"], facts["time_zone"], facts["paused"]) == ("s", "every 90s", "UTC", False)
    assert facts["next_tick"] is not None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--cron", "0 0 30 2 *"], "never ticks"),
        (["--cron", "* * *"], "3 fields"),
        (["--cron", "@daily", "--tz", "Europe/Berln"], "did you mean 'Europe/Berlin'"),
        (["--cron", "@daily", "--misfire", "maybe"], "misfire must be skip, latest or all"),
        (["--cron", "@daily", "--grace", "0"], "grace must be at least a second"),
        (["--cron", "@daily", "--payload", "{"], "not JSON"),
    ],
)
def test_what_has_no_meaning_is_wrong_usage_and_asks_no_server(pgq, monkeypatch, words, said):
    monkeypatch.setenv("PGQUEUE_DSN", "host=127.0.0.1 port=1")
    answer = pgq("schedule", "add", "s", "--task", "t", *words)
    assert answer.code == 2
    assert said in answer.error


def test_a_name_that_is_taken_is_refused_unless_replace_is_said(queue, pgq):
    add(queue)
    answer = pgq("schedule", "add", "s", "--cron", "@hourly", "--task", "t")
    assert answer.code == 1
    assert "schedule 's' already" in answer.error
    assert pgq("schedule", "add", "s", "--cron", "@hourly", "--task", "t", "--replace").code == 0
    assert queue.get_schedule("s").expression == "@hourly"


def test_add_with_an_app_checks_the_payload_and_takes_the_tasks_options(queue, pgq, tmp_path, monkeypatch):
    (tmp_path / "scheduled_shop.py").write_text(
        "import pgqueue\napp = pgqueue.App()\n"
        "@app.task(name='mail', queue='mails', max_attempts=4, group_key=lambda to: to)\ndef mail(to: str): ...\n"
        "@app.task(name='any', raw=True)\ndef anything(payload): ...\n"
    )
    monkeypatch.chdir(tmp_path)
    ours = ("--cron", "@daily", "--app", "scheduled_shop:app")
    answer = pgq("schedule", "add", "m", "--task", "mail", *ours, "--payload", '{"too": 1}')
    assert answer.code == 2
    assert "to: Field required" in answer.error
    assert pgq("schedule", "add", "m", "--task", "mail", *ours, "--payload", '{"to": "ann"}').code == 0
    record = queue.get_schedule("m")
    assert (record.queue, record.max_attempts, record.group_key) == ("mails", 4, "ann")
    assert pgq("schedule", "add", "a", "--task", "any", *ours, "--payload", "[1]").code == 0
    assert queue.get_schedule("a").payload == [1]


def test_add_with_an_app_goes_to_the_apps_own_database(queue, pgq, dsn, tmp_path, monkeypatch):
    (tmp_path / "far_shop.py").write_text(
        f"import pgqueue\napp = pgqueue.App({dsn!r})\n@app.task(name='mail')\ndef mail(to: str): ...\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PGQUEUE_DSN")
    monkeypatch.setenv("PGQUEUE_HOME", str(tmp_path / "nobody starts a server here"))
    ours = ("--cron", "@daily", "--app", "far_shop:app", "--task", "mail", "--payload", '{"to": "ann"}')
    assert pgq("schedule", "add", "m", *ours).code == 0
    assert queue.get_schedule("m").payload == {"to": "ann"}
    assert not (tmp_path / "nobody starts a server here").exists()


def test_list_shows_them_all(queue, pgq, dsn):
    assert pgq("schedule", "list").out == "no schedules\n"
    add(queue, "a", tz="Europe/Berlin")
    add(queue, "b", "every 90s")
    queue.pause_schedule("b")
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("INSERT INTO pgqueue.schedules (name, expression, task) VALUES ('c', '0 0 30 2 *', 't')")
    lines = pgq("schedule", "list").out.splitlines()
    assert [line.split()[0] for line in lines] == ["name", "a", "b", "c"]
    assert "0 9 * * *" in lines[1]
    assert "Europe/Berlin" in lines[1]
    assert "09:00:00 CE" in lines[1]
    assert "paused" in lines[2]
    assert "can't tick" in lines[3]
    facts = pgq("schedule", "list", "--json").json
    assert [one["name"] for one in facts] == ["a", "b", "c"]
    assert "never ticks" in facts[2]["problem"]


def test_list_says_to_a_person_why_one_can_not_tick(queue, pgq, dsn, terminal):
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("INSERT INTO pgqueue.schedules (name, expression, task) VALUES ('c', '0 0 30 2 *', 't')")
    terminal("stderr")
    assert "c can't tick: schedule '0 0 30 2 *'" in pgq("schedule", "list").err


def test_pause_and_resume_say_whether_it_was_a_change(queue, pgq):
    add(queue)
    assert pgq("schedule", "pause", "s").out == "s paused\n"
    assert pgq("schedule", "pause", "s").out == "s paused already\n"
    assert pgq("schedule", "resume", "s", "--json").json == {"schedule": "s", "paused": False, "changed": True}
    assert pgq("schedule", "resume", "s").out.startswith("s resumed already, next tick 20")


def test_remove(queue, pgq, terminal):
    add(queue)
    assert pgq("schedule", "remove", "s").out == "s removed\n"
    assert queue.schedules() == []
    add(queue)
    assert pgq("schedule", "remove", "s", "--json").json == {"schedule": "s", "removed": True}


def test_remove_says_that_a_declared_one_comes_back(queue, pgq, dsn, terminal):
    add(queue)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("UPDATE pgqueue.schedules SET declaration = '{}'")
    terminal("stderr")
    assert "the next worker of that app adds it again" in pgq("schedule", "remove", "s").err


@pytest.mark.parametrize("words", [["pause"], ["resume"], ["remove"], ["next"], ["backfill", "--from", "2026-01-01"]])
def test_a_schedule_that_is_not_there_is_exit_1_and_one_line(queue, pgq, words):
    answer = pgq("schedule", words[0], "ghost", *words[1:])
    assert answer.code == 1
    assert answer.error == "no schedule 'ghost'; see: pgq schedule list"


def test_next_prints_the_ticks_in_its_zone_and_in_utc(queue, pgq):
    add(queue, tz="Asia/Kolkata")
    lines = pgq("schedule", "next", "s", "-n", 3).out.splitlines()
    assert len(lines) == 4
    assert lines[0].split() == ["Asia/Kolkata", "UTC", "in"]
    assert all("09:00:00 IST" in line and "03:30:00Z" in line for line in lines[1:])
    ticks = pgq("schedule", "next", "s", "--json").json
    assert len(ticks) == 5
    assert [datetime.fromisoformat(tick["local"]).hour for tick in ticks] == [9] * 5
    assert all(datetime.fromisoformat(t["local"]) == datetime.fromisoformat(t["tick"]) for t in ticks)


def test_next_of_a_paused_one_says_so(queue, pgq, terminal):
    add(queue)
    queue.pause_schedule("s")
    terminal("stderr")
    answer = pgq("schedule", "next", "s")
    assert "it is paused" in answer.err
    assert len(answer.out.splitlines()) == 6


def test_backfill_enqueues_once(queue, pgq):
    add(queue, expression="* * * * *", tz="Europe/Berlin")
    window = ("--from", "2026-01-01T00:00", "--to", "2026-01-01T00:05:00")
    assert pgq("schedule", "backfill", "s", *window, "--dry-run").out == "5 ticks\n"
    assert queue.jobs() == []
    assert pgq("schedule", "backfill", "s", *window).out == "5 enqueued\n"
    assert pgq("schedule", "backfill", "s", *window).out == "0 enqueued; 5 had fired before\n"
    ticks = sorted(job.meta["tick"] for job in queue.jobs())
    assert ticks[0] == "2025-12-31T23:00:00+00:00"  # midnight in Berlin
    answer = pgq(
        "schedule", "backfill", "s", "--from", "2026-01-01T00:05+01:00", "--to", "2026-01-01T00:07+01:00", "--json"
    )
    assert (answer.json["ticks"], len(answer.json["job_ids"])) == (2, 2)


def test_backfill_of_very_many_wants_a_yes(queue, pgq):
    add(queue, expression="* * * * *")
    window = ("--from", "2026-01-01", "--to", "2026-01-02")
    answer = pgq("schedule", "backfill", "s", *window)
    assert answer.code == 2
    assert "1440 ticks" in answer.error
    assert "--yes" in answer.error
    assert pgq("schedule", "backfill", "s", *window, "--yes").out == "1440 enqueued\n"
    assert len({job.meta["tick"] for job in queue.jobs(limit=1000)}) == 1000
    add(queue, "often", "every 1s")
    answer = pgq("schedule", "backfill", "often", "--from", "2026-01-01", "--yes")
    assert answer.code == 2
    assert "more than 100000 ticks" in answer.error


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--from", "yesterday"], "--from must be a time such as"),
        (["--from", "2026-01-01", "--to", "soon"], "--to must be a time such as"),
    ],
)
def test_backfill_refuses_what_is_no_time(queue, pgq, words, said):
    add(queue)
    answer = pgq("schedule", "backfill", "s", *words)
    assert answer.code == 2
    assert said in answer.error


def test_backfill_up_to_the_future_is_refused(queue, pgq):
    add(queue, expression="* * * * *")
    soon = datetime.now(UTC) + 10 * MINUTE
    answer = pgq("schedule", "backfill", "s", "--from", (soon - 12 * MINUTE).isoformat(), "--to", soon.isoformat())
    assert answer.code == 2
    assert "past" in answer.error
    assert queue.jobs() == []
