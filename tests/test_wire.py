"""Statements past psycopg's cursor: the same answers, the same errors, and a connection that stays usable."""

from __future__ import annotations

import asyncio
import signal
import threading
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg
import pytest
import uvloop
from peers import Peer

from pgqueue.connection import Database
from pgqueue.errors import DatabaseUnreachableError, InvalidJobError
from pgqueue.statements import Statement
from pgqueue.wire import AsyncWire, Wire

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

T = TypeVar("T")

OTHERS = """
    FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""


class Sync:
    """A sync connection and its wire; in a thread, so that a test can watch it from outside."""

    def __init__(self, dsn: str) -> None:
        self.connection = psycopg.connect(dsn, autocommit=True)
        self.wire = Wire(self.connection)

    async def run(self, statement: Statement[T]) -> T:
        return await asyncio.to_thread(self.wire.run, statement)

    async def query(self, sql: str) -> list[tuple[Any, ...]]:
        return self.connection.cursor(binary=True).execute(sql, prepare=False).fetchall()

    async def close(self) -> None:
        self.connection.close()


class Async:
    """The same of the other kind."""

    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self.connection = connection
        self.wire = AsyncWire(connection)
        self.run = self.wire.run

    async def query(self, sql: str) -> list[tuple[Any, ...]]:
        cursor = self.connection.cursor(binary=True)
        await cursor.execute(sql, prepare=False)
        return await cursor.fetchall()

    async def close(self) -> None:
        await self.connection.close()


@pytest.fixture(params=["sync", "async"])
async def wired(request: pytest.FixtureRequest, empty_dsn: str) -> AsyncIterator[Sync | Async]:
    connect = psycopg.AsyncConnection.connect
    one = Sync(empty_dsn) if request.param == "sync" else Async(await connect(empty_dsn, autocommit=True))
    yield one
    await one.close()


@pytest.fixture
async def connection(empty_dsn: str) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    async with await psycopg.AsyncConnection.connect(empty_dsn, autocommit=True) as connection:
        yield connection


def ask(sql: str, **params: Any) -> Statement[list[tuple[Any, ...]]]:
    return Statement(sql, params, list)


async def prepared(wired: Sync | Async) -> list[str]:
    rows = await wired.query("SELECT name FROM pg_prepared_statements WHERE name LIKE 'pgqueue%' ORDER BY name")
    return [name for (name,) in rows]


async def test_it_answers_what_a_cursor_answers(wired: Sync | Async):
    sql = "SELECT %(a)s::bigint, %(b)s::text, -%(a)s::bigint, 10 %% 3, %(c)s::jsonb, %(d)s::interval, %(e)s::bigint[]"
    params = {"a": 2**40, "b": "§", "c": '{"x": "y"}', "d": None, "e": [1, 2**50]}
    rows = [(2**40, "§", -(2**40), 1, {"x": "y"}, None, [1, 2**50])]
    for _ in range(8):  # said once, said often, prepared
        assert await wired.run(Statement(sql, params, list)) == rows


async def test_without_parameters_a_percent_sign_is_one(wired: Sync | Async):
    assert await wired.run(Statement("SELECT 10 % 3", None, list)) == [(1,)]


async def test_a_statement_without_rows_reads_none(wired: Sync | Async):
    assert await wired.run(Statement("SET work_mem = '4MB'", None, list)) == []


async def test_what_is_said_often_is_prepared_once_for_each_kind_of_parameters(wired: Sync | Async):
    for value in (1, None) * 8:
        assert await wired.run(ask("SELECT %(a)s::bigint", a=value)) == [(value,)]
    assert len(await prepared(wired)) == 2


async def test_behind_a_pooler_nothing_is_prepared(wired: Sync | Async):
    wired.connection.prepare_threshold = None
    for _ in range(8):
        await wired.run(ask("SELECT %(a)s::bigint", a=1))
    assert await prepared(wired) == []


async def test_there_is_an_end_to_what_is_prepared(wired: Sync | Async):
    wired.connection.prepare_threshold = 0
    for n in range(110):
        assert await wired.run(ask(f"SELECT {n} + %(a)s::bigint", a=1)) == [(n + 1,)]
    assert len(await prepared(wired)) <= 101


async def test_more_than_a_socket_takes_at_once_goes_through(wired: Sync | Async):
    long = "x" * 20_000_000
    assert await wired.run(ask("SELECT length(%(a)s::text)", a=long)) == [(len(long),)]
    ((back,),) = await wired.run(ask("SELECT %(a)s::text", a=long))
    assert back == long


async def test_an_error_is_psycopgs_own_and_the_connection_goes_on(wired: Sync | Async):
    for _ in range(8):
        with pytest.raises(psycopg.errors.DivisionByZero) as caught:
            await wired.run(ask("SELECT 1 / %(a)s::bigint", a=0))
        assert caught.value.diag.message_primary == "division by zero"
    with pytest.raises(psycopg.errors.SyntaxError):
        await wired.run(ask("SELEC"))
    assert await wired.run(ask("SELECT 1")) == [(1,)]


@pytest.mark.parametrize("threshold", [0, 5])
async def test_who_is_cancelled_takes_the_statement_back(
    connection: psycopg.AsyncConnection[Any], empty_dsn: str, threshold: int
):
    connection.prepare_threshold = threshold
    wire = AsyncWire(connection)
    for _ in range(3):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await wire.run(ask("SELECT pg_sleep(%(a)s::float8)", a=60.0))
        assert await wire.run(ask("SELECT %(a)s::bigint", a=1)) == [(1,)]
    async with await psycopg.AsyncConnection.connect(empty_dsn, autocommit=True) as other:
        rows = await other.execute("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'")
        assert await rows.fetchone() == (0,)


@pytest.mark.parametrize("threshold", [0, 5])
def test_ctrl_c_takes_a_sync_statement_back(empty_dsn: str, threshold: int):
    with psycopg.connect(empty_dsn, autocommit=True) as connection, Peer(empty_dsn) as peer:
        connection.prepare_threshold = threshold
        wire = Wire(connection)
        for _ in range(3):
            alarm = threading.Timer(0.3, signal.raise_signal, [signal.SIGINT])
            alarm.start()
            with pytest.raises(KeyboardInterrupt):
                wire.run(ask("SELECT pg_sleep(%(a)s::float8)", a=60.0))
            assert wire.run(ask("SELECT %(a)s::bigint", a=1)) == [(1,)]
        assert peer.value("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'") == 0


async def test_a_server_that_goes_away_is_an_operational_error(wired: Sync | Async, empty_dsn: str):
    pid = wired.connection.info.backend_pid
    waiting = asyncio.create_task(wired.run(ask("SELECT pg_sleep(60)")))
    async with await psycopg.AsyncConnection.connect(empty_dsn, autocommit=True) as other:
        await other.execute("SELECT pg_terminate_backend(%s)", [pid])
    with pytest.raises(psycopg.OperationalError):
        await waiting
    with pytest.raises(psycopg.OperationalError):
        await wired.run(ask("SELECT 1"))
    assert wired.connection.broken


@pytest.mark.slow
@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize("how", ["fast", "immediate"])
def test_a_server_that_stops_leaves_nobody_waiting(private_server: Any, loop: Any, how: Any):
    """libuv stops watching a socket that has failed, and says so to nobody."""
    server = private_server()

    async def ask_for_ever(nth: int, ready: asyncio.Event) -> None:
        async with await psycopg.AsyncConnection.connect(server.dsn, autocommit=True) as connection:
            wire = AsyncWire(connection)
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
