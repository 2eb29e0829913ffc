"""Enqueue in the transaction of SQLAlchemy: every kind of session and connection, over psycopg and asyncpg."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import invariants
import psycopg
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import PendingRollbackError
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker
from sqlalchemy.pool import NullPool

from pgqueue import App, JobSpec
from pgqueue.errors import (
    DatabaseError,
    InvalidJobError,
    InvalidPayloadError,
    JobNotFoundError,
    PgqueueError,
    SchemaError,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from sqlalchemy import Engine
    from sqlalchemy.ext.asyncio import AsyncEngine

WHEN = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
FULL = {
    "queue": "q", "priority": 1, "run_at": WHEN, "max_attempts": 3, "timeout": 90, "unique_key": "k: %(x)s :y",
    "meta": {"a": "%"},
}  # fmt: skip


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


@pytest.fixture
def app(dsn: str) -> Iterator[App]:
    app = App(dsn)

    @app.task(name="greet")
    def greet(name: str) -> None:
        """Nobody runs it here."""

    yield app
    app.close()


@pytest.fixture
def greet(app: App) -> Any:
    return app.get_task("greet")


@pytest.fixture
def engine(dsn: str) -> Iterator[Engine]:
    engine = create_engine(make_url(dsn).set(drivername="postgresql+psycopg"), poolclass=NullPool)
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture(params=["psycopg", "asyncpg"])
async def aengine(request: pytest.FixtureRequest, dsn: str, engine: Engine) -> AsyncIterator[AsyncEngine]:
    url = make_url(dsn).set(drivername=f"postgresql+{request.param}")
    if request.param == "asyncpg" and "host" in url.query:
        url = url.update_query_dict({"port": str(url.query.get("port", "5432"))})
    aengine = create_async_engine(url, poolclass=NullPool)
    yield aengine
    await aengine.dispose()


def count(dsn: str, table: str = "pgqueue.jobs") -> int:
    with psycopg.connect(dsn) as connection:
        return connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]


# -- sync ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ends", ["commit", "rollback"])
def test_the_job_and_the_rows_of_a_session_live_or_die_together(greet: Any, engine: Engine, dsn: str, ends: str):
    with Session(engine) as session:
        user = User(name="Ada")
        session.add(user)
        job = greet.using(session).enqueue_sync(name="Ada")
        assert user.id is not None, "the session was flushed, as for any statement"
        assert count(dsn) == count(dsn, "users") == 0
        getattr(session, ends)()
    assert count(dsn, "users") == (ends == "commit")
    invariants.check(dsn, [job.id] if ends == "commit" else [])


def test_a_savepoint_that_is_rolled_back_takes_its_job_along(greet: Any, engine: Engine, dsn: str):
    with Session(engine) as session, session.begin():
        kept = greet.using(session).enqueue_sync(name="a")
        with session.begin_nested() as savepoint:
            session.add(User(name="b"))
            greet.using(session).enqueue_sync(name="b")
            savepoint.rollback()
        with session.begin_nested():
            also = greet.using(session).enqueue_sync(name="c")
    assert count(dsn, "users") == 0
    invariants.check(dsn, [kept.id, also.id])


@pytest.mark.parametrize("ends", ["commit", "rollback"])
def test_a_connection_is_as_good_as_a_session(greet: Any, engine: Engine, dsn: str, ends: str):
    with engine.connect() as connection:
        connection.execute(text("INSERT INTO users (name) VALUES ('Ada')"))
        job = greet.using(connection).enqueue_sync(name="Ada")
        getattr(connection, ends)()
    assert count(dsn, "users") == (ends == "commit")
    invariants.check(dsn, [job.id] if ends == "commit" else [])


@pytest.mark.parametrize("ends", ["commit", "rollback"])
def test_a_scoped_session_is_as_good_as_a_session(greet: Any, engine: Engine, dsn: str, ends: str):
    session = scoped_session(sessionmaker(engine))
    session.add(User(name="Ada"))
    job = greet.using(session).enqueue_sync(name="Ada")
    getattr(session, ends)()
    session.remove()
    invariants.check(dsn, [job.id] if ends == "commit" else [])


def test_a_subclass_of_session_is_a_session(greet: Any, engine: Engine, dsn: str):
    class Mine(Session):
        pass

    with Mine(engine) as session, session.begin():
        job = greet.using(session).enqueue_sync(name="a")
    invariants.check(dsn, [job.id])


def test_every_option_arrives(greet: Any, app: App, engine: Engine):
    with Session(engine) as session, session.begin():
        job = greet.options(**FULL).using(session).enqueue_sync(name="100 % :sure ::text %s")
        again = greet.options(**FULL).using(session).enqueue_sync(name="other")
    assert again == job
    check_full(app.client.get(job.id))


def check_full(record: Any) -> None:
    assert (record.payload, record.queue, record.priority) == ({"name": "100 % :sure ::text %s"}, "q", 1)
    assert (record.run_at, record.max_attempts, record.timeout) == (WHEN, 3, timedelta(seconds=90))
    assert (record.unique_key, record.meta) == (FULL["unique_key"], {"a": "%"})


def test_the_other_verbs_join_a_session_too(app: App, greet: Any, engine: Engine, dsn: str):
    client = app.client
    with Session(engine) as session:
        ids = client.enqueue_many([greet.job(name=n) for n in "abc"], connection=session)
        assert client.cancel(ids[0], connection=session) == "cancelled"
        assert client.retry(ids[0], connection=session) == "available"
        record = client.get(ids[1], connection=session)
        assert (record.payload, record.state) == ({"name": "b"}, "available")
        assert [r.id for r in client.jobs(queue="default", connection=session)] == ids[::-1]
        assert client.pause("default", connection=session) is True
        assert [q.available for q in client.queues(connection=session)] == [3]
        assert client.retention(connection=session)["dead"] == timedelta(days=90)
        client.set_retention("dead", "1d", connection=session)
        assert client.redrive(connection=session) == client.purge_dead(connection=session) == 0
        assert client.workers(connection=session) == []
        token, secret = client.create_token("ci", ["read"], ["a*", "b"], "1d", connection=session)
        assert client.find_token(secret, connection=session) == token
        client.revoke_token("ci", connection=session)
        session.rollback()
    invariants.check(dsn, [])


def test_a_refusal_is_ours_and_the_session_can_be_rolled_back(app: App, greet: Any, engine: Engine, dsn: str):
    with Session(engine) as session:
        for spec, error, message in (
            (JobSpec("t", priority=99), InvalidJobError, "priority must be 0"),
            (JobSpec("t", '"' + "x" * 2**20 + '"'), InvalidPayloadError, "over the limit"),
        ):
            with pytest.raises(error, match=message):
                app.client.enqueue(spec, connection=session)
            session.rollback()
        with pytest.raises(JobNotFoundError):
            app.client.cancel(4711, connection=session)
        job = greet.using(session).enqueue_sync(name="a")
        session.commit()
    invariants.check(dsn, [job.id])


def test_a_payload_is_checked_before_the_session_is_touched(greet: Any, engine: Engine):
    with Session(engine) as session:
        with pytest.raises(InvalidPayloadError):
            greet.using(session).enqueue_sync(name=3)
        assert not session.in_transaction()


def test_a_missing_schema_says_what_to_run(app: App, engine: Engine):
    app.client.schema = "elsewhere"
    with Session(engine) as session, pytest.raises(SchemaError, match="run: pgq migrate"):
        app.client.enqueue(JobSpec.make("t"), connection=session)


def test_a_failed_session_says_so_in_sqlalchemys_words(greet: Any, engine: Engine):
    with Session(engine) as session:
        session.add(User(id=1, name="a"))
        session.flush()
        session.add(User(id=1, name="b"))
        with pytest.raises(Exception, match=r"identity|duplicate"):
            session.flush()
        with pytest.raises((PendingRollbackError, PgqueueError)):
            greet.using(session).enqueue_sync(name="a")


def test_copy_needs_a_psycopg_connection(app: App, engine: Engine, dsn: str):
    with Session(engine) as session, pytest.raises((TypeError, InvalidJobError), match="psycopg"):
        app.client.enqueue_many([JobSpec.make("t")], copy=True, connection=session)
    invariants.check(dsn, [])


# -- async -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ends", ["commit", "rollback"])
async def test_the_job_and_the_rows_of_an_async_session_live_or_die_together(
    greet: Any, aengine: AsyncEngine, dsn: str, ends: str
):
    async with AsyncSession(aengine) as session:
        session.add(User(name="Ada"))
        job = await greet.using(session).enqueue(name="Ada")
        assert count(dsn) == 0
        await getattr(session, ends)()
    assert count(dsn, "users") == (ends == "commit")
    invariants.check(dsn, [job.id] if ends == "commit" else [])


@pytest.mark.parametrize("ends", ["commit", "rollback"])
async def test_an_async_connection_is_as_good_as_a_session(greet: Any, aengine: AsyncEngine, dsn: str, ends: str):
    async with aengine.connect() as connection:
        job = await greet.using(connection).enqueue(name="Ada")
        await getattr(connection, ends)()
    invariants.check(dsn, [job.id] if ends == "commit" else [])


async def test_an_async_scoped_session_is_as_good_as_a_session(greet: Any, aengine: AsyncEngine, dsn: str):
    session = async_scoped_session(async_sessionmaker(aengine), scopefunc=asyncio.current_task)
    job = await greet.using(session).enqueue(name="Ada")
    await session.commit()
    await session.remove()
    invariants.check(dsn, [job.id])


async def test_an_async_savepoint_that_is_rolled_back_takes_its_job_along(greet: Any, aengine: AsyncEngine, dsn: str):
    async with AsyncSession(aengine) as session, session.begin():
        kept = await greet.using(session).enqueue(name="a")
        async with session.begin_nested() as savepoint:
            await greet.using(session).enqueue(name="b")
            await savepoint.rollback()
    invariants.check(dsn, [kept.id])


async def test_every_option_arrives_over_every_driver(greet: Any, app: App, aengine: AsyncEngine):
    async with AsyncSession(aengine) as session, session.begin():
        job = await greet.options(**FULL).using(session).enqueue(name="100 % :sure ::text %s")
        later = await greet.options(delay="1h").using(session).enqueue(name="x")
    check_full(app.client.get(job.id))
    assert app.client.get(later.id).state == "scheduled"


async def test_many_jobs_join_an_async_session(greet: Any, app: App, aengine: AsyncEngine, dsn: str):
    async with AsyncSession(aengine) as session, session.begin():
        jobs = await app.enqueue_many([greet.job(name=n) for n in "abc"], connection=session)
    invariants.check(dsn, [job.id for job in jobs])


async def test_the_other_verbs_join_an_async_session_too(app: App, greet: Any, aengine: AsyncEngine, dsn: str):
    client = app.aclient
    async with AsyncSession(aengine) as session:
        ids = await client.enqueue_many([greet.job(name=n) for n in "ab"], connection=session)
        assert await client.cancel(ids[0], connection=session) == "cancelled"
        assert await client.retry(ids[0], connection=session) == "available"
        assert [r.id for r in await client.jobs(queue="default", connection=session)] == ids[::-1]
        assert await client.pause("default", connection=session) is True
        assert [q.available for q in await client.queues(connection=session)] == [2]
        await client.set_retention("dead", "1d", connection=session)
        assert (await client.retention(connection=session))["dead"] == timedelta(days=1)
        assert await client.purge("default", connection=session) == 2
        token, secret = await client.create_token("ci", ["read"], ["a*", "b"], "1d", connection=session)
        assert await client.find_token(secret, connection=session) == token
        await client.revoke_token("ci", connection=session)
        await session.rollback()
    invariants.check(dsn, [])


async def test_a_job_read_over_any_driver_is_the_same(app: App, greet: Any, aengine: AsyncEngine):
    job = await greet.options(meta={"a": 1}, timeout=5).enqueue(name="a")
    expected = await app.aclient.get(job.id)
    async with AsyncSession(aengine) as session:
        assert await app.aclient.get(job.id, connection=session) == expected
    await app.aclose()


async def test_a_refusal_is_ours_over_every_driver(app: App, aengine: AsyncEngine, dsn: str):
    async with AsyncSession(aengine) as session:
        for spec, error, message in (
            (JobSpec("t", priority=99), InvalidJobError, "priority must be 0"),
            (JobSpec("t", '"' + "x" * 2**20 + '"'), InvalidPayloadError, "over the limit"),
        ):
            with pytest.raises(error, match=message) as caught:
                await app.aclient.enqueue(spec, connection=session)
            assert "<class" not in str(caught.value), "the words are PostgreSQL's, not the driver's"
            await session.rollback()
        app.aclient.schema = "elsewhere"
        with pytest.raises(SchemaError, match="run: pgq migrate"):
            await app.aclient.enqueue(JobSpec.make("t"), connection=session)
    invariants.check(dsn, [])


async def test_a_failure_of_the_server_is_ours_over_every_driver(app: App, aengine: AsyncEngine):
    async with AsyncSession(aengine) as session:
        await session.execute(text("SET TRANSACTION READ ONLY"))
        with pytest.raises(DatabaseError, match="read-only transaction"):
            await app.aclient.enqueue(JobSpec.make("t"), connection=session)


# -- the wrong kind --------------------------------------------------------------------------------------------------


async def test_a_sync_session_with_the_async_call_is_a_clear_type_error(greet: Any, engine: Engine, dsn: str):
    with Session(engine) as session, engine.connect() as connection:
        for wrong in (session, connection, scoped_session(sessionmaker(engine))):
            with pytest.raises(TypeError, match=r"is sync: call enqueue_sync\(…\) instead of awaiting enqueue"):
                await greet.using(wrong).enqueue(name="a")
    invariants.check(dsn, [])


async def test_an_async_session_with_the_sync_call_is_a_clear_type_error(greet: Any, aengine: AsyncEngine, dsn: str):
    async with AsyncSession(aengine) as session, aengine.connect() as connection:
        for wrong in (session, connection):
            with pytest.raises(TypeError, match=r"is async: await enqueue\(…\) instead of calling enqueue_sync"):
                greet.using(wrong).enqueue_sync(name="a")
    invariants.check(dsn, [])


def test_an_engine_is_no_connection(greet: Any, engine: Engine):
    with pytest.raises(TypeError):
        greet.using(engine).enqueue_sync(name="a")
