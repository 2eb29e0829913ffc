"""Enqueue in the transaction of an asyncpg connection."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import asyncpg
import invariants
import psycopg
import pytest

import pgqueue
from pgqueue import App, JobSpec
from pgqueue.errors import (
    DatabaseError,
    DatabaseUnreachableError,
    InvalidJobError,
    InvalidPayloadError,
    JobExistsError,
    JobNotFoundError,
    SchemaError,
)
from pgqueue.sql import numbered

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

WHEN = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
FULL = {
    "queue": "q", "priority": 1, "run_at": WHEN, "max_attempts": 3, "timeout": 90, "unique_key": "k: %(x)s $1",
    "meta": {"a": "%"}, "group_key": "g", "unique_for": "1h",
}  # fmt: skip


@pytest.fixture
async def app(dsn: str) -> AsyncIterator[App]:
    app = App(dsn)

    @app.task(name="greet")
    def greet(name: str) -> None:
        """Nobody runs it here."""

    yield app
    await app.aclose()


@pytest.fixture
def greet(app: App) -> Any:
    return app.get_task("greet")


@pytest.fixture
async def connection(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(dsn)
    yield connection
    await connection.close()


@pytest.mark.parametrize("ends", ["commit", "rollback"])
async def test_the_job_and_the_rows_live_or_die_together(greet, connection, dsn, ends):
    await connection.execute("CREATE TABLE users (name text)")
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute("INSERT INTO users VALUES ('Ada')")
    job = await greet.using(connection).enqueue(name="Ada")
    with psycopg.connect(dsn) as outside:
        assert outside.execute("SELECT count(*) FROM pgqueue.jobs").fetchone() == (0,)
    await getattr(transaction, ends)()
    assert await connection.fetchval("SELECT count(*) FROM users") == (ends == "commit")
    invariants.check(dsn, [job.id] if ends == "commit" else [])


async def test_a_rolled_back_enqueue_rings_no_bell(greet, connection, dsn):
    heard = []
    listener = await asyncpg.connect(dsn)
    await listener.add_listener("pgqueue.wake", lambda *message: heard.append(message[-1]))
    await listener.execute("SELECT pg_advisory_lock_shared(pgqueue.bell_key('default'))")  # an idle worker
    for ends in ("rollback", "commit"):
        transaction = connection.transaction()
        await transaction.start()
        await greet.using(connection).enqueue(name=ends)
        await getattr(transaction, ends)()
        await listener.execute("SELECT 1")
        assert len(heard) == (ends == "commit")
    await listener.close()


async def test_a_savepoint_that_is_rolled_back_takes_its_job_along(greet, connection, dsn):
    async with connection.transaction():
        kept = await greet.using(connection).enqueue(name="a")
        with pytest.raises(KeyError):  # noqa: PT012
            async with connection.transaction():
                await greet.using(connection).enqueue(name="b")
                raise KeyError
    invariants.check(dsn, [kept.id])


async def test_a_connection_that_a_pool_has_lent_is_one(greet, dsn):
    async with asyncpg.create_pool(dsn, min_size=1, max_size=1) as pool:
        async with pool.acquire() as connection, connection.transaction():
            job = await greet.using(connection).enqueue(name="a")
        with pytest.raises(TypeError, match="a Pool is no transaction"):
            await greet.using(pool).enqueue(name="a")
        with pytest.raises(TypeError, match="a Pool is no transaction"):
            greet.using(pool).enqueue_sync(name="a")
    invariants.check(dsn, [job.id])


@pytest.mark.parametrize("codec", [False, True])
async def test_every_option_arrives_whatever_codecs_the_connection_has(greet, app, connection, codec):
    if codec:
        for kind in ("json", "jsonb"):
            await connection.set_type_codec(kind, encoder=json.dumps, decoder=json.loads, schema="pg_catalog")
    job = await greet.options(**FULL).using(connection).enqueue(name="100 % :sure ::text %s $1")
    again = await greet.options(**FULL).using(connection).enqueue(name="other")
    assert again == job
    assert not again.created
    record = await app.aclient.get(job.id, connection=connection)
    assert (record.payload, record.queue, record.priority) == ({"name": "100 % :sure ::text %s $1"}, "q", 1)
    assert (record.run_at, record.max_attempts, record.timeout) == (WHEN, 3, timedelta(seconds=90))
    assert (record.unique_key, record.meta, record.group_key) == (FULL["unique_key"], {"a": "%"}, "g")
    assert record == await app.aclient.get(job.id)


async def test_the_other_verbs_join_too(app, greet, connection, dsn):
    client = app.aclient
    transaction = connection.transaction()
    await transaction.start()
    ids = await client.enqueue_many([greet.job(name=n) for n in "ab"], connection=connection)
    assert await client.cancel(ids[0], connection=connection) == "cancelled"
    assert await client.retry(ids[0], connection=connection) == "available"
    assert [r.id for r in await client.jobs(queue="default", connection=connection)] == ids[::-1]
    assert await client.pause("default", connection=connection) is True
    assert [q.available for q in await client.queues(connection=connection)] == [2]
    await client.set_retention("dead", "1d", connection=connection)
    assert (await client.retention(connection=connection))["dead"] == timedelta(days=1)
    await client.limit_queue("default", rate=2, burst=3, ageing="1m", connection=connection)
    assert [s.ageing for s in await client.queue_settings(connection=connection)] == [timedelta(minutes=1)]
    await client.add_schedule(pgqueue.ScheduleSpec.make("s", "@daily", "greet", {"name": "x"}), connection=connection)
    assert [s.name for s in await client.schedules(connection=connection)] == ["s"]
    token, secret = await client.create_token("ci", ["read"], ["a*", "b"], "1d", connection=connection)
    assert await client.find_token(secret, connection=connection) == token
    assert (token.scopes, token.queues) == (("read",), ("a*", "b"))
    await client.revoke_token("ci", connection=connection)
    batch = await app.batch([greet.job(name="c")]).then(greet.job(name="d")).enqueue(connection=connection)
    assert (await client.batch(batch.id, connection=connection)).total == 1
    assert await client.purge("default", connection=connection) == 4
    await transaction.rollback()
    invariants.check(dsn, [])


async def test_a_refusal_is_ours(app, connection, dsn):
    for spec, error, message in (
        (JobSpec("t", priority=99), InvalidJobError, "priority must be 0"),
        (JobSpec("t", '"' + "x" * 2**20 + '"'), InvalidPayloadError, "over the limit"),
    ):
        with pytest.raises(error, match=message):
            await app.aclient.enqueue(spec, connection=connection)
    with pytest.raises(JobNotFoundError):
        await app.aclient.cancel(4711, connection=connection)
    with pytest.raises(SchemaError, match="run: pgq migrate"):
        await pgqueue.AsyncClient(app.database, "elsewhere").enqueue(JobSpec.make("t"), connection=connection)
    held = await app.aclient.enqueue(JobSpec.make("t", unique_key="k"), connection=connection)
    with pytest.raises(JobExistsError) as caught:
        await app.aclient.enqueue(JobSpec.make("t", unique_key="k", on_conflict="raise"), connection=connection)
    assert caught.value.job_id == held
    async with connection.transaction(readonly=True):
        with pytest.raises(DatabaseError, match="read-only transaction"):
            await app.aclient.enqueue(JobSpec.make("t"), connection=connection)
    invariants.check(dsn, [held])


async def test_a_payload_is_checked_before_the_connection_is_touched(greet, connection):
    await connection.close()
    with pytest.raises(InvalidPayloadError):
        await greet.using(connection).enqueue(name=3)


async def test_a_connection_that_is_gone_is_a_typed_error(greet, connection, dsn):
    with psycopg.connect(dsn, autocommit=True) as outside:
        outside.execute("SELECT pg_terminate_backend(%s)", [connection.get_server_pid()])
    for _ in range(2):  # it finds out, and it knows
        with pytest.raises(DatabaseUnreachableError):
            await greet.using(connection).enqueue(name="a")


async def test_the_sync_call_is_a_clear_type_error(greet, connection, dsn):
    with pytest.raises(TypeError, match=r"are async: await enqueue\(…\)"):
        greet.using(connection).enqueue_sync(name="a")
    invariants.check(dsn, [])


def test_placeholders_are_numbered_once_per_name():
    sql = "a %(x)s %(y)s::jsonb %(x)s 100%% %(z)s::text[] %(w)s::jsonb[]"
    assert numbered(sql) == ("a $1 $2::jsonb $1 100% $3::text[] $4::jsonb[]", ("x", "y", "z", "w"))
    assert numbered(sql, json_as_text=True)[0] == "a $1 $2::text::jsonb $1 100% $3::text[] $4::jsonb[]"
