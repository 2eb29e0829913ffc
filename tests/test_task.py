"""A task: registered, called, enqueued; and which options a job ends up with."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import invariants
import psycopg
import pytest

from pgqueue import App, Exponential, Fixed, Job, JobSpec, never
from pgqueue.errors import InvalidJobError, InvalidPayloadError, UnknownTaskError

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def app() -> App:
    return App("host=nowhere")


@pytest.fixture
def live(dsn: str) -> Iterator[App]:
    app = App(dsn)
    yield app
    app.close()


def test_a_task_is_still_the_function(app: App):
    @app.task
    def add(a: int, b: int = 1) -> int:
        """Adds."""
        return a + b

    assert add(1, b=2) == 3
    assert (add.__doc__, add.__name__, add.__wrapped__(5)) == ("Adds.", "add", 6)
    assert add.name == f"{__name__}.test_a_task_is_still_the_function.<locals>.add"
    assert app.get_task(add.name) is add
    assert repr(add) == f"<Task {add.name}>"


async def test_an_async_task_is_still_a_coroutine_function(app: App):
    @app.task(name="twice")
    async def twice(a: int) -> int:
        return 2 * a

    assert await twice(4) == 8


def test_how_a_task_runs_follows_from_its_function(app: App):
    def plain() -> None: ...

    async def coroutine() -> None: ...

    assert app.task(name="a")(plain).kind == "thread"
    assert app.task(name="b")(coroutine).kind == "async"
    assert app.task(name="c", isolation="process")(plain).kind == "process"
    with pytest.raises(InvalidJobError, match="isolation must be 'process', not 'thread'"):
        app.task(name="d", isolation="thread")(plain)  # type: ignore[call-overload]


def test_the_jobs_of_a_task_have_its_options_and_a_call_may_change_them(app: App):
    @app.task(name="mail", queue="emails", priority="high", max_attempts=3)
    def mail(to: str) -> None: ...

    assert mail.job("a") == JobSpec("mail", '{"to":"a"}', "emails", 2, max_attempts=3)
    call = mail.options(queue="slow", delay="1m")
    assert call.job("a") == JobSpec("mail", '{"to":"a"}', "slow", 2, timedelta(minutes=1), None, 3)
    further = call.options(delay=None, priority=0, unique_key="k", meta={"a": 1})
    assert further.job("a") == JobSpec("mail", '{"to":"a"}', "slow", 0, None, None, 3, None, "k", '{"a":1}')
    assert call.job("a").priority == 2, "a call is a value"
    with pytest.raises(InvalidJobError, match="not both"):
        call.options(run_at=datetime.now(UTC)).job("a")
    with pytest.raises(InvalidJobError, match="priority"):
        mail.options(priority=99).job("a")
    with pytest.raises(TypeError):
        mail.options(colour="red").job("a")  # type: ignore[call-arg]


@pytest.mark.parametrize(
    "options",
    [{"name": "x" * 129}, {"name": "a\0"}, {"queue": ""}, {"priority": 10}, {"priority": "urgent"}, {"max_attempts": 0},
     {"max_attempts": 40_000}, {"timeout": "soon"}, {"timeout": -1}, {"isolation": "fork"}],
    ids=str,
)  # fmt: skip
def test_an_option_without_meaning_is_refused_when_the_task_is_made(app: App, options: dict[str, Any]):
    with pytest.raises(InvalidJobError):

        @app.task(**options)
        def task() -> None: ...

    assert app.tasks == {}


def test_a_key_function_that_answers_none_makes_a_job_without_key(app: App):
    @app.task(unique_key=lambda n: f"n:{n}" if n else None, unique_for="1h", on_conflict="replace")
    def keyed(n: int) -> None: ...

    spec = keyed.job(0)
    assert (spec.unique_key, spec.unique_for, spec.on_conflict) == (None, None, "skip")
    spec = keyed.job(1)
    assert (spec.unique_key, spec.unique_for, spec.on_conflict) == ("n:1", timedelta(hours=1), "replace")


def test_a_period_without_a_key_is_refused_also_when_the_key_is_taken_away():
    spec = JobSpec.make("t", unique_key="k", unique_for="1h")
    with pytest.raises(InvalidJobError, match="unique_for needs a unique_key"):
        spec.changed(unique_key=None)
    assert spec.changed(unique_key=None, unique_for=None).plain


def test_a_timeout_of_zero_is_refused_like_that_of_a_job(app: App):
    with pytest.raises(InvalidJobError, match="timeout must be positive"):
        app.task(name="t", timeout=0)(lambda: None)


def test_a_name_is_taken_once(app: App):
    app.task(name="t")(lambda: None)
    with pytest.raises(InvalidJobError, match="there is already a task 't'"):
        app.task(name="t")(lambda: None)


def test_an_unknown_task_says_what_to_do(app: App):
    with pytest.raises(
        UnknownTaskError, match=r"'mail\.send' is not registered here; import its module with --app"
    ) as caught:
        app.get_task("mail.send")
    assert caught.value.task == "mail.send"


def test_the_most_specific_policy_decides_after_a_failure(app: App):
    slow, fast = Fixed("1h"), Fixed(1)

    @app.task(name="t", retry=fast, retry_on={OSError: slow, FileNotFoundError: never, BaseException: Fixed(7)})
    def task() -> None: ...

    assert task.backoff_for(PermissionError()) is slow
    assert task.backoff_for(FileNotFoundError()) is never
    assert task.backoff_for(ValueError()) == Fixed(7)
    assert task.backoff_for(InvalidPayloadError("bad")) is None
    assert app.task(name="u")(lambda: None).backoff_for(ValueError()) == Exponential()
    assert app.task(name="v", retry=fast)(lambda: None).backoff_for(ValueError()) is fast


def test_enqueue_sync_writes_the_job_and_answers_a_handle(live: App, dsn: str):
    @live.task(name="add", queue="q")
    def add(a: int) -> int:
        return a

    job = add.enqueue_sync(1)
    later = add.options(delay=60).enqueue_sync(2)
    assert isinstance(job, Job)
    record = job.refresh_sync()
    assert (record.task, record.queue, record.payload, record.state) == ("add", "q", {"a": 1}, "available")
    assert later.refresh_sync().state == "scheduled"
    jobs = live.enqueue_many_sync([add.job(3), add.options(priority=0).job(4)])
    assert [j.refresh_sync().payload for j in jobs] == [{"a": 3}, {"a": 4}]
    invariants.check(dsn, [job.id, later.id, *(j.id for j in jobs)])


async def test_enqueue_writes_the_job_for_async_code(live: App, dsn: str):
    @live.task(name="add")
    async def add(a: int) -> int:
        return a

    job = await add.enqueue(1)
    (other,) = await live.enqueue_many([add.job(2)])
    assert (await job.refresh()).payload == {"a": 1}
    assert await add.options(unique_key="k").enqueue(1) == await add.options(unique_key="k").enqueue(2)
    with pytest.raises(InvalidPayloadError):
        await add.enqueue("one")
    await live.aclose()
    with psycopg.connect(dsn) as connection:
        assert connection.execute("SELECT count(*) FROM pgqueue.jobs").fetchone() == (3,)
    assert job != other


@pytest.mark.parametrize("ends", ["commit", "rollback"])
def test_using_a_connection_the_job_is_part_of_its_transaction(live: App, dsn: str, ends: str):
    add = live.task(name="add")(lambda a: a)
    with psycopg.connect(dsn) as connection:
        job = add.using(connection).enqueue_sync(1)
        other = add.options(priority=1).using(connection).options(queue="q").enqueue_sync(2)
        getattr(connection, ends)()
    invariants.check(dsn, [job.id, other.id] if ends == "commit" else [])
