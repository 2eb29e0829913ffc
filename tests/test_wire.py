"""Statements past psycopg's cursor: the same answers, the same errors, and a connection that stays usable."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import uvloop
from peers import Peer

from pgqueue.connection import Database
from pgqueue.errors import DatabaseUnreachableError, InvalidJobError
from pgqueue.statements import Statement
from pgqueue.wire import Wire

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

OTHERS = """
    FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""


@pytest.fixture
async def connection(empty_dsn: str) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    async with await psycopg.AsyncConnection.connect(empty_dsn, autocommit=True) as connection:
        yield connection


def ask(sql: str, **params: Any) -> Statement[list[tuple[Any, ...]]]:
    return Statement(sql, params, list)


async def prepared(connection: psycopg.AsyncConnection[Any]) -> list[str]:
    rows = await connection.execute(
        "SELECT name FROM pg_prepared_statements WHERE name LIKE 'pgqueue%' ORDER BY name", prepare=False
    )
    return [name for (name,) in await rows.fetchall()]


async def test_it_answers_what_a_cursor_answers(connection: psycopg.AsyncConnection[Any]):
    sql = "SELECT %(a)s::bigint, %(b)s::text, -%(a)s::bigint, 10 %% 3, %(c)s::jsonb, %(d)s::interval, %(e)s::bigint[]"
    params = {"a": 2**40, "b": "§", "c": '{"x": "y"}', "d": None, "e": [1, 2**50]}
    cursor = connection.cursor(binary=True)
    await cursor.execute(sql, params)
    wire = Wire(connection)
    rows = await cursor.fetchall()
    for _ in range(8):  # said once, said often, prepared
        assert await wire.run(Statement(sql, params, list)) == rows


async def test_without_parameters_a_percent_sign_is_one(connection: psycopg.AsyncConnection[Any]):
    assert await Wire(connection).run(Statement("SELECT 10 % 3", None, list)) == [(1,)]


async def test_a_statement_without_rows_reads_none(connection: psycopg.AsyncConnection[Any]):
    assert await Wire(connection).run(Statement("SET work_mem = '4MB'", None, list)) == []


async def test_what_is_said_often_is_prepared_once_for_each_kind_of_parameters(
    connection: psycopg.AsyncConnection[Any],
):
    wire = Wire(connection)
    for value in (1, None) * 8:
        assert await wire.run(ask("SELECT %(a)s::bigint", a=value)) == [(value,)]
    assert len(await prepared(connection)) == 2


async def test_behind_a_pooler_nothing_is_prepared(connection: psycopg.AsyncConnection[Any]):
    connection.prepare_threshold = None
    wire = Wire(connection)
    for _ in range(8):
        await wire.run(ask("SELECT %(a)s::bigint", a=1))
    assert await prepared(connection) == []


async def test_there_is_an_end_to_what_is_prepared(connection: psycopg.AsyncConnection[Any]):
    connection.prepare_threshold = 0
    wire = Wire(connection)
    for n in range(110):
        assert await wire.run(ask(f"SELECT {n} + %(a)s::bigint", a=1)) == [(n + 1,)]
    assert len(await prepared(connection)) <= 101


async def test_more_than_a_socket_takes_at_once_goes_through(connection: psycopg.AsyncConnection[Any]):
    long = "x" * 20_000_000
    wire = Wire(connection)
    assert await wire.run(ask("SELECT length(%(a)s::text)", a=long)) == [(len(long),)]
    ((back,),) = await wire.run(ask("SELECT %(a)s::text", a=long))
    assert back == long


async def test_an_error_is_psycopgs_own_and_the_connection_goes_on(connection: psycopg.AsyncConnection[Any]):
    wire = Wire(connection)
    for _ in range(8):
        with pytest.raises(psycopg.errors.DivisionByZero) as caught:
            await wire.run(ask("SELECT 1 / %(a)s::bigint", a=0))
        assert caught.value.diag.message_primary == "division by zero"
    with pytest.raises(psycopg.errors.SyntaxError):
        await wire.run(ask("SELEC"))
    assert await wire.run(ask("SELECT 1")) == [(1,)]


@pytest.mark.parametrize("threshold", [0, 5])
async def test_who_is_cancelled_takes_the_statement_back(
    connection: psycopg.AsyncConnection[Any], empty_dsn: str, threshold: int
):
    connection.prepare_threshold = threshold
    wire = Wire(connection)
    for _ in range(3):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await wire.run(ask("SELECT pg_sleep(%(a)s::float8)", a=60.0))
        assert await wire.run(ask("SELECT %(a)s::bigint", a=1)) == [(1,)]
    async with await psycopg.AsyncConnection.connect(empty_dsn, autocommit=True) as other:
        rows = await other.execute("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'")
        assert await rows.fetchone() == (0,)


async def test_a_server_that_goes_away_is_an_operational_error(
    connection: psycopg.AsyncConnection[Any], empty_dsn: str
):
    wire = Wire(connection)
    pid = connection.info.backend_pid
    waiting = asyncio.create_task(wire.run(ask("SELECT pg_sleep(60)")))
    async with await psycopg.AsyncConnection.connect(empty_dsn, autocommit=True) as other:
        await other.execute("SELECT pg_terminate_backend(%s)", [pid])
    with pytest.raises(psycopg.OperationalError):
        await waiting
    with pytest.raises(psycopg.OperationalError):
        await wire.run(ask("SELECT 1"))
    assert connection.broken


@pytest.mark.slow
@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize("how", ["fast", "immediate"])
def test_a_server_that_stops_leaves_nobody_waiting(private_server: Any, loop: Any, how: Any):
    """libuv stops watching a socket that has failed, and says so to nobody."""
    server = private_server()

    async def ask_for_ever(nth: int, ready: asyncio.Event) -> None:
        async with await psycopg.AsyncConnection.connect(server.dsn, autocommit=True) as connection:
            wire = Wire(connection)
            while True:
                await wire.run(ask("SELECT pg_sleep(%(a)s::float8)", a=0.01 * nth))
                ready.set()
                await asyncio.sleep(0.05)

    async def story() -> list[BaseException | None]:
        ready = [asyncio.Event() for _ in range(4)]
        asking = [asyncio.create_task(ask_for_ever(nth, one)) for nth, one in enumerate(ready)]
        for one in ready:
            await one.wait()
        await asyncio.to_thread(server.stop, how)
        async with asyncio.timeout(20):
            return await asyncio.gather(*asking, return_exceptions=True)

    with asyncio.Runner(loop_factory=loop) as runner:
        ends = runner.run(story())
    assert all(isinstance(end, psycopg.OperationalError) for end in ends), ends


# -- the connections that a Database keeps at hand -------------------------------------------------------------------


@pytest.fixture
def peer(dsn: str) -> Iterator[Peer]:
    with Peer(dsn) as peer:
        yield peer


async def test_one_that_the_server_closed_meanwhile_is_replaced(dsn: str, peer: Peer):
    database = Database(lambda: dsn)
    assert await database.arun(ask("SELECT 1")) == [(1,)]
    for _ in range(3):
        peer.sql(f"SELECT pg_terminate_backend(pid) {OTHERS}")
        while peer.sql(f"SELECT pid {OTHERS}"):  # noqa: ASYNC110 - the server tells nobody
            await asyncio.sleep(0.01)
        assert await database.arun(ask("SELECT 1")) == [(1,)]
    await database.aclose()


async def test_one_that_breaks_under_a_statement_is_not_kept(dsn: str):
    database = Database(lambda: dsn)
    with pytest.raises(DatabaseUnreachableError):
        await database.arun(ask("SELECT pg_terminate_backend(pg_backend_pid())"))
    assert await database.arun(ask("SELECT 1")) == [(1,)]
    with pytest.raises(InvalidJobError, match="division"):
        await database.arun(ask("SELECT 1 / 0"))
    assert await database.arun(ask("SELECT 1")) == [(1,)]
    await database.aclose()


async def test_closing_leaves_no_connection_behind(dsn: str, peer: Peer):
    database = Database(lambda: dsn)
    await asyncio.gather(*(database.arun(ask("SELECT pg_sleep(0.05)")) for _ in range(5)))
    await database.aclose()
    for _ in range(100):
        left = peer.value(f"SELECT count(*) {OTHERS}")
        if not left:
            break
        await asyncio.sleep(0.05)
    assert left == 0
