"""run_pending and the asserts, inside a transaction that is rolled back, with the real statements."""

from __future__ import annotations

import asyncio
import contextvars
import re
import threading
import time
from collections.abc import AsyncIterator, Iterator  # noqa: TC003 - read from annotations
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import ANY

import invariants
import psycopg
import pytest

import pgqueue
from pgqueue.testing import Sandbox, assert_enqueued, assert_not_enqueued, enqueued, run_pending


@pytest.fixture
def queue(app: pgqueue.App, connection: psycopg.Connection) -> Iterator[Sandbox]:
    with Sandbox(app, connection) as sandbox:
        yield sandbox


class BoomError(Exception):
    pass


class Pool:
    pass


# -- running ---------------------------------------------------------------------------------------------------------


def test_what_is_enqueued_in_a_sandbox_runs_there_and_is_rolled_back_with_it(app, connection, dsn):
    @app.task(name="double")
    def double(n: int) -> int:
        return 2 * n

    @app.task(name="triple")
    async def triple(n: int) -> int:
        await asyncio.sleep(0)
        return 3 * n

    with Sandbox(app, connection) as queue:
        job = double.enqueue_sync(4)
        triple.using(connection).enqueue_sync(4)
        ran = queue.run_pending()
        assert [(r.task, r.state, r.result, r.error) for r in ran] == [
            ("double", "completed", 8, None), ("triple", "completed", 12, None),
        ]  # fmt: skip
        assert job.refresh_sync().state == "completed"
        assert queue.run_pending() == []
        invariants.check(dsn, [])  # seen from outside
    connection.rollback()
    invariants.check(dsn, [])
    assert app.client.jobs() == []


def test_jobs_that_handlers_enqueue_run_too_by_priority_and_order(queue, app, connection):
    seen = []

    @app.task(name="parent")
    def parent(n: int) -> None:
        seen.append(f"parent {n}")
        child.enqueue_sync(f"own {n}")
        child.options(priority="high", queue="elsewhere").using(connection).enqueue_sync(f"first {n}")

    @app.task(name="child")
    async def child(name: str) -> None:
        seen.append(name)
        if name == "own 1":
            await child.enqueue("grandchild")

    parent.enqueue_sync(1)
    parent.enqueue_sync(2)
    assert len(queue.run_pending()) == 7
    assert seen == ["parent 1", "first 1", "parent 2", "first 2", "own 1", "own 2", "grandchild"]


def test_only_the_given_queues_run(queue, app):
    @app.task(name="t")
    def t() -> None: ...

    t.enqueue_sync()
    t.options(queue="mail").enqueue_sync()
    assert [ran.queue for ran in queue.run_pending(["mail"])] == ["mail"]
    with pytest.raises(TypeError, match="list of names"):
        queue.run_pending("mail")
    app.client.pause("default")
    assert queue.run_pending() == []


def test_jobs_of_tasks_that_the_application_does_not_know_wait(queue, app, connection):
    app.client.enqueue(pgqueue.JobSpec.make("unknown"))
    assert queue.run_pending() == []
    assert [record.task for record in queue.enqueued()] == ["unknown"]


def test_every_end_is_judged_as_a_worker_does(queue, app):
    @app.task(name="end", max_attempts=2, retry=pgqueue.Fixed("10s"), retry_on={KeyError: pgqueue.never})
    def end(how: str) -> str:
        if how == "ok":
            return "ok"
        raise {
            "snooze": pgqueue.Snooze("5m"), "retry": pgqueue.Retry("1m"), "cancel": pgqueue.Cancel(),
            "dead": pgqueue.Dead(), "fail": BoomError("no"), "never": KeyError("k"), "exit": SystemExit(3),
        }[how]  # fmt: skip

    for how in ("ok", "snooze", "retry", "cancel", "dead", "fail", "never", "exit"):
        end.enqueue_sync(how)
    app.client.enqueue(pgqueue.JobSpec.make("end", {"wrong": 1}))
    ran = queue.run_pending()
    states = {r.payload.get("how"): r.state for r in ran}
    assert states == {
        "ok": "completed", "snooze": "scheduled", "retry": "retrying", "cancel": "cancelled", "dead": "dead",
        "fail": "retrying", "never": "dead", "exit": "retrying", None: "dead",
    }  # fmt: skip
    assert isinstance(ran[5].error, BoomError)
    assert ran[5].job.errors[-1]["message"] == "no"
    assert isinstance(ran[-1].error, pgqueue.InvalidPayloadError)
    attempts = {r.payload.get("how"): r.job.attempt for r in ran}
    assert (attempts["snooze"], attempts["fail"]) == (0, 1)


def test_with_raise_errors_a_handlers_exception_is_the_tests_and_its_job_has_landed(queue, app):
    @app.task(name="fail", max_attempts=1)
    def fail() -> None:
        raise BoomError("the reason")

    @app.task(name="later")
    async def later() -> None:
        raise pgqueue.Snooze("1m")

    later.enqueue_sync()
    job = fail.enqueue_sync()
    with pytest.raises(BoomError, match="the reason") as caught:
        queue.run_pending(raise_errors=True)
    assert caught.traceback[-1].name == "fail"
    assert job.refresh_sync().state == "dead"


def test_what_is_meant_for_the_test_goes_through_a_handler(queue, app):
    @app.task(name="fails_the_test")
    def fails_the_test() -> None:
        pytest.fail("seen")

    fails_the_test.enqueue_sync()
    with pytest.raises(pytest.fail.Exception, match="seen"):
        queue.run_pending()


def test_a_handler_that_breaks_the_transaction_fails_alone(queue, app, connection):
    @app.task(name="broken", max_attempts=1)
    def broken(swallow: bool) -> str:
        try:
            connection.execute("SELECT 1 / 0")
        except psycopg.Error:
            if not swallow:
                raise
        return "went on"

    @app.task(name="fine")
    def fine() -> None: ...

    broken.enqueue_sync(False)
    broken.enqueue_sync(True)
    fine.enqueue_sync()
    assert [ran.state for ran in queue.run_pending()] == ["dead", "completed", "completed"]


def test_a_refused_enqueue_leaves_the_transaction_usable(queue, app, connection):
    @app.task(name="t")
    def t() -> None: ...

    first = t.options(unique_key="k").enqueue_sync()
    with pytest.raises(pgqueue.JobExistsError) as caught:
        t.options(unique_key="k", on_conflict="raise").enqueue_sync()
    assert caught.value.job_id == first.id
    assert len(queue.run_pending()) == 1


def test_what_is_copied_runs_in_the_sandbox_too(queue, app, connection, dsn):
    @app.task(name="t", group_key="g")
    def t(n: int) -> int:
        return n

    jobs = app.enqueue_many_sync([t.job(n) for n in range(3)], copy=True)
    ids = app.client.enqueue_many([t.job(3)], copy=True)
    assert [ran.result for ran in queue.run_pending()] == [0, 1, 2, 3]
    assert [job.refresh_sync().state for job in jobs] == ["completed"] * 3
    assert app.client.get(ids[0]).group_key == "g"
    with pytest.raises(pgqueue.InvalidJobError, match="do not go together with copy=True"):
        app.enqueue_many_sync([t.options(unique_key="k").job(1)], copy=True)
    invariants.check(dsn, [])  # seen from outside


def test_a_handler_that_rolls_the_tests_transaction_back_is_told_so(queue, app, connection):
    @app.task(name="t")
    def t() -> None:
        connection.rollback()

    t.enqueue_sync()
    with pytest.raises(pgqueue.PgqueueError, match=r"only transactions .* that it has begun"):
        queue.run_pending()


def test_an_endless_chain_is_given_up(queue, app):
    @app.task(name="again")
    def again() -> None:
        again.enqueue_sync()

    again.enqueue_sync()
    with pytest.raises(pgqueue.PgqueueError, match="5 jobs ran and there are more"):
        queue.run_pending(limit=5)


def test_a_handler_has_its_job_and_a_context_of_its_own(queue, app):
    variable = contextvars.ContextVar("variable", default="clean")
    variable.set("the test's")
    seen = []

    @app.task(name="t", isolation="process")
    def t(job: pgqueue.Job) -> str:
        seen.append(variable.get())
        variable.set("dirty")
        assert pgqueue.current_job().id == job.id
        job.progress(0.5, "half")
        return threading.current_thread().name

    @app.task(name="a")
    async def a(job: pgqueue.Job) -> int:
        seen.append(variable.get())
        variable.set("dirty")
        return job.attempt

    for task in (t, a, t, a):
        task.options(meta={"x": 1}).enqueue_sync()
    ran = queue.run_pending(raise_errors=True)
    assert seen == ["clean"] * 4
    assert [r.result for r in ran] == ["MainThread", 1, "MainThread", 1]
    assert ran[0].job.progress == {"value": 0.5, "note": "half"}
    with pytest.raises(pgqueue.PgqueueError):
        pgqueue.current_job()


def test_a_timeout_fails_the_attempt(queue, app):
    @app.task(name="hang", timeout=0.01, max_attempts=1)
    async def hang() -> None:
        await asyncio.sleep(60)

    @app.task(name="slow", max_attempts=1)
    def slow() -> None:
        time.sleep(0.02)

    hang.enqueue_sync()
    slow.options(timeout=0.01).enqueue_sync()
    ran = queue.run_pending()
    assert [(r.state, type(r.error)) for r in ran] == [("dead", pgqueue.JobTimeoutError)] * 2


def test_a_jobs_transaction_is_a_savepoint_of_the_tests(queue, app, connection, dsn):
    connection.execute("CREATE TABLE bookings (room int PRIMARY KEY)")

    @app.task(name="book", max_attempts=1)
    def book(job: pgqueue.Job, room: int) -> str:
        with job.transaction() as own:
            own.execute("INSERT INTO bookings VALUES (%s)", [room])
            job.set_result({"room": room})
        return "ignored"

    @app.task(name="abook", max_attempts=1)
    async def abook(job: pgqueue.Job) -> None:
        async with job.transaction():
            pass

    book.enqueue_sync(7)
    book.enqueue_sync(7)
    abook.enqueue_sync()
    first, second, third = queue.run_pending()
    assert (first.state, first.result) == ("completed", {"room": 7})
    assert (second.state, type(second.error)) == ("dead", psycopg.errors.UniqueViolation)
    assert "AsyncSandbox" in str(third.error)
    assert connection.execute("SELECT count(*) FROM bookings").fetchone() == (1,)
    assert connection.execute("SELECT count(*) FROM pgqueue.leases").fetchone() == (0,)


def test_keys_limits_and_workflows_hold_in_a_sandbox(queue, app):
    seen = []

    @app.task(name="step")
    def step(n: int) -> int:
        seen.append(n)
        return n

    @app.task(name="total")
    def total(job: pgqueue.Job) -> int:
        return sum(job.upstream_results_sync().values())

    for n in range(3):
        step.options(group_key="one", queue="keyed").enqueue_sync(n)
    app.client.limit_queue("limited", max_running=1)
    step.options(queue="limited").enqueue_sync(10)
    step.options(queue="limited").enqueue_sync(11)
    flow = app.batch([step.job(n) for n in (20, 21)]).then(total.job()).enqueue_sync()
    ran = queue.run_pending(raise_errors=True)
    assert [n for n in seen if n < 10] == [0, 1, 2]
    assert sorted(seen) == [0, 1, 2, 10, 11, 20, 21]
    assert [r.result for r in ran if r.task == "total"] == [41]
    assert flow.refresh_sync().finished


@pytest.mark.parametrize("in_a_loop", [False, True])
async def test_middleware_resources_and_batch_handlers_work_as_in_a_worker(queue, app, in_a_loop):
    told = []

    @app.resource
    async def pool() -> AsyncIterator[Pool]:
        told.append("open")
        yield Pool()
        told.append("close")

    @app.around_run
    async def outer(job: Any) -> AsyncIterator[None]:
        try:
            yield
        except BoomError:
            told.append("failed")
            raise

    @app.around_run
    def inner(job: Any) -> Iterator[None]:
        told.append(f"in {job.task}")
        yield
        told.append("out")

    @app.task(name="one")
    def one(pool: Pool, n: int) -> str:
        if n > 1:
            raise BoomError
        return type(pool).__name__

    @app.task(name="aone")
    async def aone(pool: Pool) -> str:
        return type(pool).__name__

    @app.task(name="many", batch=10)
    def many(items: list[int]) -> list[int]:
        return [2 * item for item in items]

    @app.task(name="amany", batch=10)
    async def amany(items: list[int]) -> list[int]:
        return [3 * item for item in items]

    one.enqueue_sync(1)
    aone.enqueue_sync()
    many.enqueue_sync(4)
    amany.enqueue_sync(5)
    one.enqueue_sync(2)
    ran = await queue.run_pending_async() if in_a_loop else await asyncio.to_thread(queue.run_pending)
    assert [r.result for r in ran] == ["Pool", "Pool", 8, 15, None]
    assert told == [
        "open", "in one", "out", "in aone", "out", "in many", "out", "in amany", "out", "in one", "failed", "close",
    ]  # fmt: skip


# -- what is enqueued ------------------------------------------------------------------------------------------------


@pytest.fixture
def mail(app: pgqueue.App) -> Any:
    @app.task(name="mail", queue="mails")
    def mail(
        to: str, template: str = "welcome", options: dict[str, Any] | None = None, at: datetime | None = None,
        queue: str = "",
    ) -> None: ...  # fmt: skip

    return mail


def test_a_job_is_found_by_some_of_its_arguments(queue, mail):
    when = datetime(2030, 1, 1, tzinfo=UTC)
    job = mail.enqueue_sync("ann", options={"a": 1, "b": [1, 2]}, at=when, queue="x")
    for arguments in (
        {}, {"to": "ann"}, {"to": ANY}, {"template": "welcome"}, {"options": {"a": 1}}, {"options": {"b": [1, 2]}},
        {"at": when}, {"at": "2030-01-01T00:00:00Z"}, {"payload": {"queue": "x"}}, {"queue": "mails"}, {"count": 1},
    ):  # fmt: skip
        assert [r.id for r in assert_enqueued(mail, **arguments)] == [job.id], arguments
    for arguments in (
        {"to": "bob"}, {"template": "x"}, {"options": {"a": 2}}, {"options": {"b": [1]}}, {"queue": "x"},
        {"at": when + timedelta(1)}, {"payload": {"queue": "y"}},
    ):  # fmt: skip
        assert_not_enqueued(mail, **arguments)
        with pytest.raises(AssertionError):
            queue.assert_enqueued("mail", **arguments)
    assert [r.id for r in queue.enqueued(queue="mails")] == [job.id]


def test_a_failed_assertion_lists_what_is_enqueued_instead(queue, mail):
    mail.options(delay="5m").enqueue_sync("bob")
    job = mail.enqueue_sync("ann")
    queue.run_pending()
    with pytest.raises(AssertionError) as caught:
        queue.assert_enqueued(mail, to="ann")
    assert str(caught.value).splitlines() == [
        'mail with {"to":"ann"}: nothing like it is enqueued.',
        "Enqueued is:",
        f'  {job.id - 1} mail {{"to":"bob"}} queue mails, scheduled for 5m',
        "What fits has been run or taken already:",
        f'  {job.id} mail {{"to":"ann"}} queue mails, completed',
    ]
    with pytest.raises(AssertionError, match="was expected 2 times, and is enqueued 1 times"):
        assert_enqueued(mail, count=2)
    with pytest.raises(AssertionError, match="Nothing is enqueued"):  # noqa: PT012
        app = pgqueue.App(mail.app.settings.dsn)
        other = app.task(name="other")(lambda: None)
        with Sandbox(app) as empty:
            empty.assert_enqueued(other)
        app.close()


def test_what_waits_is_found_in_any_waiting_state_and_what_has_run_is_not(queue, app, mail):
    done = mail.enqueue_sync("a")
    queue.run_pending()
    first = mail.options(delay="1h").enqueue_sync("b")
    mail.options(depends_on=[first]).enqueue_sync("c")
    assert [(r.payload["to"], r.state) for r in enqueued(mail)] == [("b", "scheduled"), ("c", "blocked")]
    assert done.refresh_sync().state == "completed"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"too": "ann"}, pgqueue.InvalidPayloadError, "has no parameter 'too'; it has: to, template"),
        ({"count": -1}, pgqueue.InvalidJobError, "count must be"),
        ({"count": True}, pgqueue.InvalidJobError, "count must be"),
    ],
)
def test_a_misspelt_assertion_is_refused(queue, mail, arguments, error, message):
    with pytest.raises(error, match=message):
        assert_enqueued(mail, **arguments)
    with pytest.raises(TypeError, match=r"write @app\.task"):
        queue.assert_not_enqueued(lambda: None)
    with pytest.raises(TypeError, match="give a task"):
        assert_not_enqueued("mail")


# -- the sandbox -----------------------------------------------------------------------------------------------------


def test_one_call_may_name_the_connection(app, connection, mail, dsn):
    mail.using(connection).enqueue_sync("ann")
    assert_enqueued(mail, to="ann", connection=connection)
    assert_not_enqueued(mail)
    assert [ran.state for ran in run_pending(app, connection)] == ["completed"]
    connection.rollback()
    invariants.check(dsn, [])


def test_without_a_connection_everything_is_committed_until_it_is_cleared(app, mail, dsn):
    with Sandbox(app) as queue:
        job = mail.enqueue_sync("ann")

        @app.task(name="a")
        async def a() -> None:
            await mail.options(delay=60).enqueue("bob")

        other = a.enqueue_sync()
        assert len(queue.run_pending(raise_errors=True)) == 2
        invariants.check(dsn, [job.id, other.id, other.id + 1])
        queue.clear()
        invariants.check(dsn, [])


def test_a_sandbox_may_be_in_another_database_and_schema(dsn, empty_dsn, mail, app):
    pgqueue.migrate(empty_dsn, schema="other")
    with Sandbox(app, dsn=empty_dsn, schema="other") as queue:
        job = mail.enqueue_sync("ann")
        assert len(queue.run_pending()) == 1
    invariants.check(empty_dsn, [job.id], schema="other")
    invariants.check(dsn, [])
    assert app.schema == "pgqueue"


def test_an_autocommit_connection_commits(app, mail, dsn):
    with psycopg.connect(dsn, autocommit=True) as own, Sandbox(app, own) as queue:
        job = mail.enqueue_sync("ann")
        assert len(queue.run_pending()) == 1
    invariants.check(dsn, [job.id])


def test_misuse_is_a_clear_error(app, connection, queue, dsn):
    with pytest.raises(pgqueue.PgqueueError, match="in a sandbox already"), Sandbox(app, connection):
        pass
    with pytest.raises(pgqueue.PgqueueError, match="on another connection"):
        run_pending(app, object())
    with pytest.raises(TypeError, match="not both"):
        Sandbox(app, connection, dsn=dsn)
    with pytest.raises(TypeError, match="no connection that pgqueue knows"):
        Sandbox(app, object()).run_pending()


async def test_the_sync_form_in_a_running_loop_is_a_clear_error(queue):
    with pytest.raises(pgqueue.PgqueueError, match=re.escape("await run_pending_async(…)")):
        queue.run_pending()
