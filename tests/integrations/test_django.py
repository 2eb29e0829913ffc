"""Django's own connection, and the backend for django.tasks."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import invariants
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

import pgqueue
from pgqueue.errors import (
    DatabaseError,
    InvalidJobError,
    InvalidPayloadError,
    JobExistsError,
    PgqueueError,
    SchemaError,
    SettingsError,
)
from pgqueue.testing import Sandbox

django = pytest.importorskip("django")

from asgiref.sync import async_to_sync, sync_to_async  # noqa: E402
from django.conf import settings  # noqa: E402
from django.db import connection, connections, transaction  # noqa: E402
from django.test.utils import override_settings  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

BACKEND = "pgqueue.integrations.django_tasks.PgqueueBackend"
NATIVE = django.VERSION >= (6,)

if not settings.configured:
    settings.configure(
        USE_TZ=True,
        TIME_ZONE="Europe/Berlin",
        INSTALLED_APPS=["pgqueue.integrations.django.PgqueueConfig", *([] if NATIVE else ["django_tasks"])],
        DATABASES={
            "default": {"ENGINE": "django.db.backends.postgresql"},
            "lite": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"},
        },
        TASKS={
            "default": {"BACKEND": BACKEND, "QUEUES": [], "OPTIONS": {"max_attempts": 2, "timeout": "1m"}},
            "wrong": {"BACKEND": BACKEND, "OPTIONS": {"database": "lite", "tries": 3}},
        },
    )
    django.setup()

from pgqueue.integrations import django as integration  # noqa: E402
from pgqueue.integrations import django_tasks  # noqa: E402


@pytest.fixture
def database(dsn: str) -> Iterator[str]:
    """Django's default database is this test's."""
    facts = conninfo_to_dict(dsn)
    connection.close()
    connection.settings_dict.update(
        NAME=facts["dbname"], USER=facts.get("user", ""), PASSWORD=facts.get("password", ""),
        HOST=facts.get("host", ""), PORT=str(facts.get("port", "")),
    )  # fmt: skip
    with psycopg.connect(dsn) as own:
        own.execute("CREATE TABLE users (name text)")
    yield dsn
    connections.close_all()


@pytest.fixture
def app(database: str) -> Iterator[pgqueue.App]:
    app = pgqueue.App(integration.dsn_of())

    @app.task(name="greet")
    def greet(name: str) -> str:
        return f"hello {name}"

    yield app
    app.close()


@pytest.fixture
def greet(app: pgqueue.App) -> Any:
    return app.get_task("greet")


def insert(name: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO users VALUES (%s)", [name])


def users(dsn: str) -> list[str]:
    with psycopg.connect(dsn) as outside:
        return [name for (name,) in outside.execute("SELECT name FROM users")]


@contextlib.contextmanager
def rolled_back() -> Iterator[None]:
    """As Django's TestCase does it."""
    with transaction.atomic():
        yield
        transaction.set_rollback(True)


# -- the connection --------------------------------------------------------------------------------------------------


def test_the_job_and_the_rows_of_an_atomic_block_live_or_die_together(greet, database):
    with pytest.raises(KeyError), transaction.atomic():  # noqa: PT012
        insert("Ada")
        greet.using(connection).enqueue_sync(name="Ada")
        raise KeyError
    invariants.check(database, [])
    with transaction.atomic():
        insert("Ada")
        job = greet.using(connection).enqueue_sync(name="Ada")
        with pytest.raises(KeyError), transaction.atomic():  # noqa: PT012
            greet.using(connection).enqueue_sync(name="inner")
            raise KeyError
        assert users(database) == []
    assert users(database) == ["Ada"]
    invariants.check(database, [job.id])


def test_without_a_block_each_enqueue_is_its_own_transaction(greet, database):
    job = greet.using(connections["default"]).enqueue_sync(name="Ada")
    invariants.check(database, [job.id])


@pytest.mark.parametrize("use_tz", [True, False])
def test_what_is_read_over_django_is_what_is_read_without_it(app, greet, use_tz):
    when = datetime(2030, 7, 1, 12, tzinfo=UTC)
    with override_settings(USE_TZ=use_tz):
        connection.close()
        job = greet.options(
            run_at=when, timeout=5, meta={"a": "100%"}, unique_key="k", group_key="g", unique_for="1h"
        ).using(connection).enqueue_sync(name="100% %s %(x)s")  # fmt: skip
        record = app.client.get(job.id, connection=connection)
        assert record == app.client.get(job.id)
        assert (record.run_at, record.timeout) == (when, timedelta(seconds=5))
        assert record.payload == {"name": "100% %s %(x)s"}
        assert app.client.queues(connection=connection) == app.client.queues()
        assert app.client.retention(connection=connection) == app.client.retention()
    connection.close()


def test_the_other_verbs_join_too(app, greet, database):
    with pytest.raises(KeyError), transaction.atomic():  # noqa: PT012
        ids = app.client.enqueue_many([greet.job(name=n) for n in "ab"], connection=connection)
        assert app.client.cancel(ids[0], connection=connection) == "cancelled"
        app.client.set_retention("dead", "1d", connection=connection)
        app.client.limit_queue("default", rate=2, connection=connection)
        app.batch([greet.job(name="c")]).then(greet.job(name="d")).enqueue_sync(connection=connection)
        assert app.client.purge("default", connection=connection) == 3
        raise KeyError
    invariants.check(database, [])


def test_a_refusal_is_ours_and_the_block_can_be_rolled_back(app, database):
    for spec, error, message in (
        (pgqueue.JobSpec("t", priority=99), InvalidJobError, "priority must be 0"),
        (pgqueue.JobSpec("t", '"' + "x" * 2**20 + '"'), InvalidPayloadError, "over the limit"),
    ):
        with pytest.raises(error, match=message), transaction.atomic():
            app.client.enqueue(spec, connection=connection)
    held = app.client.enqueue(pgqueue.JobSpec.make("t", unique_key="k"), connection=connection)
    with pytest.raises(JobExistsError) as caught:
        app.client.enqueue(pgqueue.JobSpec.make("t", unique_key="k", on_conflict="raise"), connection=connection)
    assert caught.value.job_id == held
    with pytest.raises(SchemaError, match="run: pgq migrate"):
        pgqueue.Client(app.database, "elsewhere").enqueue(pgqueue.JobSpec.make("t"), connection=connection)
    with pytest.raises(DatabaseError, match="read-only"), transaction.atomic():  # noqa: PT012
        with connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION READ ONLY")
        app.client.enqueue(pgqueue.JobSpec.make("t"), connection=connection)
    invariants.check(database, [held])


def test_the_wrong_kind_is_a_clear_type_error(greet, database):
    with pytest.raises(TypeError, match=r"are sync: call enqueue_sync\(…\)"):
        asyncio.run(greet.using(connection).enqueue(name="a"))
    with pytest.raises(TypeError, match="PostgreSQL connection"):
        greet.using(connections["lite"]).enqueue_sync(name="a")
    with pytest.raises(SettingsError, match="sqlite, not PostgreSQL"):
        integration.dsn_of("lite")
    job = async_to_sync(sync_to_async(lambda: greet.using(connection).enqueue_sync(name="a")))()
    invariants.check(database, [job.id])


def test_a_sandbox_on_djangos_connection(app, greet, database):
    @app.task(name="parent")
    async def parent(job: pgqueue.Job) -> str:
        await greet.enqueue("child")
        return await sync_to_async(read)()

    def read() -> str:
        with connection.cursor() as cursor:
            cursor.execute("SELECT name FROM users")
            return cursor.fetchone()[0]

    @app.task(name="own", max_attempts=1)
    def own(job: pgqueue.Job) -> None:
        with job.transaction() as driver:
            driver.execute("INSERT INTO users VALUES ('own')")
            job.set_result("done")

    with rolled_back(), Sandbox(app, connection) as queue:
        insert("seen by handlers")
        parent.enqueue_sync()
        own.enqueue_sync()
        ran = queue.run_pending(raise_errors=True)
        assert [r.result for r in ran] == ["seen by handlers", "done", "hello child"]
        with pytest.raises(PgqueueError, match=r"no job is running"):
            pgqueue.current_job()
        greet.options(delay="1h").enqueue_sync("later")
        queue.clock.advance("1h")
        assert len(queue.run_pending()) == 1
    invariants.check(database, [])
    assert users(database) == []


def test_a_workers_threads_let_old_connections_go(app, database):
    integration.init_app(app)
    seen = []

    @app.task(name="look")
    def look() -> None:
        connection.ensure_connection()
        seen.append(connection.connection)
        connection.close_at = 0  # it is too old now

    async def work() -> None:
        jobs = [await look.enqueue() for _ in range(2)]
        worker = pgqueue.Worker(app, slots=1)
        running = asyncio.create_task(worker.run())
        for job in jobs:
            await job.result(timeout=60)
        worker.stop()
        await running
        await app.aclose()

    asyncio.run(work())
    assert [own.closed for own in seen] == [True, True]


def test_django_migrates_the_schema_with_its_own(empty_dsn):
    facts = conninfo_to_dict(empty_dsn)
    connection.close()
    connection.settings_dict.update(
        NAME=facts["dbname"], USER=facts.get("user", ""), PASSWORD=facts.get("password", ""),
        HOST=facts.get("host", ""), PORT=str(facts.get("port", "")),
    )  # fmt: skip
    from django.core.management import call_command

    with override_settings(PGQUEUE_SCHEMA="other"):
        call_command("migrate", verbosity=0)
    with psycopg.connect(empty_dsn) as own:
        assert own.execute("SELECT to_regclass('other.jobs') IS NOT NULL").fetchone() == (True,)
    connection.close()


# -- django.tasks ----------------------------------------------------------------------------------------------------


@pytest.fixture
def jobs(database: str) -> Iterator[Any]:
    """The module of tasks, whose application is on this test's database."""
    import django_jobs

    app = django_tasks.app_of()
    app.configure(pgqueue.Settings(dsn=integration.dsn_of()))
    yield django_jobs
    app.close()


def test_a_task_of_django_is_a_job_in_its_transaction(jobs, database):
    with pytest.raises(KeyError), transaction.atomic():  # noqa: PT012
        jobs.add.enqueue(1)
        raise KeyError
    invariants.check(database, [])
    with transaction.atomic():
        result = jobs.add.enqueue(1, b=2)
        assert (result.status, result.args, result.kwargs) == ("READY", [1], {"b": 2})
        assert users(database) == []
    app = django_tasks.app
    record = app.client.get(int(result.id))
    assert (record.task, record.payload) == ("django_jobs.add", {"args": [1], "kwargs": {"b": 2}})
    assert (record.max_attempts, record.timeout, record.priority) == (2, timedelta(minutes=1), 5)
    assert jobs.add.get_result(result.id).status == "READY"


def test_the_async_half(jobs, database):
    result = async_to_sync(jobs.aadd.aenqueue)(1)
    assert async_to_sync(jobs.aadd.aget_result)(result.id).status == "READY"
    invariants.check(database, [int(result.id)])


def test_a_worker_runs_tasks_of_django(jobs, database):
    signals = []
    started, finished = django_tasks.task_started, django_tasks.task_finished

    def note(task_result: Any, **_: Any) -> None:
        signals.append((task_result.task.name, str(task_result.status)))

    started.connect(note)
    finished.connect(note)
    with rolled_back(), Sandbox(django_tasks.app, connection) as queue:
        results = [jobs.add.enqueue(1), jobs.aadd.enqueue(2), jobs.with_context.enqueue()]
        later = jobs.add.using(run_after=datetime.now(UTC) + timedelta(hours=1), priority=-30).enqueue(7)
        ran = queue.run_pending(raise_errors=True)
        assert [(r.task, r.result) for r in ran] == [
            ("django_jobs.aadd", {"sum": 3}), ("django_jobs.add", 2), ("django_jobs.with_context", 1),
        ]  # fmt: skip
        assert (ran[0].queue, ran[0].job.priority) == ("mails", 2)
        for result in results:
            result.refresh()
        assert [(r.status, r.return_value, r.attempts) for r in results] == [
            ("SUCCESSFUL", 2, 1), ("SUCCESSFUL", {"sum": 3}, 1), ("SUCCESSFUL", 1, 1),
        ]  # fmt: skip
        assert jobs.context_of.pop().task_result.id == results[2].id
        assert signals[:2] == [("aadd", "RUNNING"), ("aadd", "SUCCESSFUL")]
        queue.clock.advance("61m")
        assert [(r.id, r.result) for r in queue.run_pending()] == [(int(later.id), 8)]
        later.refresh()
        assert (later.task.priority, later.is_finished) == (-30, True)
    started.disconnect(note)
    finished.disconnect(note)


@pytest.fixture
def finished() -> Iterator[list[tuple[int, str]]]:
    """What ``task_finished`` told: ids and statuses."""
    told = []

    def note(task_result: Any, **_: Any) -> None:
        told.append((int(task_result.id), str(task_result.status)))

    django_tasks.task_finished.connect(note)
    yield told
    django_tasks.task_finished.disconnect(note)


@pytest.mark.parametrize("how", ["dead", "cancel", "payload"])
def test_a_task_that_ends_before_its_last_attempt_is_told_to_have_failed(jobs, database, finished, how):
    with rolled_back(), Sandbox(django_tasks.app, connection) as queue:
        result = jobs.end.enqueue(how)
        queue.run_pending()
        result.refresh()
        assert (result.status, result.attempts) == ("FAILED", 1)
        assert finished == [(int(result.id), "FAILED")]


def test_a_task_that_snoozes_has_not_ended_whatever_attempt_it_is(jobs, database, finished):
    with rolled_back(), Sandbox(django_tasks.app, connection) as queue:
        spec = pgqueue.JobSpec.make("django_jobs.snooze", {"args": [], "kwargs": {}}, max_attempts=1)
        django_tasks.app.client.enqueue(spec)
        assert [ran.state for ran in queue.run_pending()] == ["scheduled"]
        assert finished == []


def test_a_coroutine_that_takes_too_long_is_told_to_have_failed_once(jobs, database, finished):
    app = django_tasks.app

    async def work() -> None:
        specs = [
            pgqueue.JobSpec.make(f"django_jobs.{name}", {"args": [], "kwargs": {}}, timeout=0.2, max_attempts=1)
            for name in ("sleep", "sleep_in_a_thread")
        ]
        handles = await app.enqueue_many(specs)
        worker = pgqueue.Worker(app)
        running = asyncio.create_task(worker.run())
        for job in handles:
            with pytest.raises(pgqueue.JobFailedError, match="longer than its timeout"):
                await job.result(timeout=60)
        worker.stop()
        jobs.released.set()  # the thread's handler comes to its end when nobody waits for it any more
        await running
        jobs.threads.pop().join(60)
        assert finished == [(handles[0].id, "FAILED")]

    asyncio.run(work())


def test_a_failed_task_says_why_in_djangos_words(jobs, database):
    with transaction.atomic(), Sandbox(django_tasks.app, connection) as queue:
        results = {kind: jobs.fail.enqueue(kind) for kind in ("odd", "value", "not JSON")}
        django_tasks.app.client.enqueue(pgqueue.JobSpec.make("django_jobs.fail", {"kind": "odd"}))
        assert {ran.state for ran in queue.run_pending()} == {"retrying", "dead"}
        queue.clock.advance("1m")
        assert {ran.state for ran in queue.run_pending()} == {"dead"}
        for result in results.values():
            result.refresh()
        odd = results["odd"]
        assert (odd.status, odd.attempts, len(odd.errors)) == ("FAILED", 2, 2)
        assert odd.errors[0].exception_class is jobs.OddError
        assert "raise OddError" in odd.errors[0].traceback
        assert results["value"].errors[0].exception_class is ValueError
        assert results["not JSON"].errors[0].exception_class is TypeError
        with pytest.raises(ValueError, match="failed"):
            _ = odd.return_value
        queue.clear()


def test_a_result_that_is_none_is_a_typed_error(jobs, database, app):
    other = app.client.enqueue(pgqueue.JobSpec.make("greet"))
    module = app.client.enqueue(pgqueue.JobSpec.make("json.dumps"))
    for wrong in ("0", "x", "٣", str(2**70), str(other), str(module), ""):
        with pytest.raises(django_tasks.TaskResultDoesNotExist):
            jobs.add.get_result(wrong)
    good = jobs.add.enqueue(1)
    with pytest.raises(Exception, match="does not match"):
        jobs.fail.get_result(good.id)


def test_bad_arguments_and_settings_are_typed_errors(jobs, database):
    with pytest.raises(InvalidPayloadError, match="over the limit"):
        jobs.add.enqueue("x" * 2**21)
    with pytest.raises(TypeError):
        jobs.add.enqueue(object())
    problems = list(django_tasks.task_backends["wrong"].check())
    assert [problem.id for problem in problems] == ["pgqueue.E001", "pgqueue.E002"]
    assert list(django_tasks.task_backends["default"].check()) == []
    with pytest.raises(AttributeError):
        _ = django_tasks.nothing
    invariants.check(database, [])


def test_priorities_of_django_keep_their_order():
    mapped = [django_tasks._priority(priority) for priority in range(-100, 101)]
    assert (mapped[0], mapped[100], mapped[200]) == (9, 5, 0)
    assert mapped == sorted(mapped, reverse=True)
