"""Runs one statement at a time on a psycopg connection, past its cursor: half the CPU per statement.

A cursor is made for everybody. What it does for each statement beyond the exchange with libpq (find the placeholders,
choose what to prepare, drive generators, arm a timer that looks for Ctrl-C) costs as much as the exchange itself. Ours
are few, known, and said by the thousand. The exchange is libpq's: https://www.postgresql.org/docs/current/libpq-async.html
"""

from __future__ import annotations

import asyncio
from itertools import count
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from psycopg import errors, generators
from psycopg.adapt import PyFormat, Transformer
from psycopg.pq import ConnStatus, ExecStatus, Format

from pgqueue.sql import numbered

if TYPE_CHECKING:
    from collections.abc import Generator

    import psycopg
    from psycopg.pq.abc import PGresult

    from pgqueue.statements import Statement

T = TypeVar("T")

_MOST_PREPARED: Final = 100  # statements of one connection; as psycopg
_CANCEL_PATIENCE: Final = 5.0
_LOOK: Final = 0.2  # seconds; an event loop may not tell that a socket has failed (libuv stops watching it)


class _Talk:
    """What is sent and what is read; how to wait in between is for those below.

    Not for two at once: whoever calls has the connection to himself.

    Args:
        connection: in autocommit mode, outside a transaction.
    """

    def __init__(self, connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> None:
        self._parent = connection
        self._pgconn = connection.pgconn
        self._adapt = Transformer(connection)
        # by a statement and the types of its parameters: its name when it is prepared, else how often it was said
        self._known: dict[tuple[str, tuple[int, ...]], bytes | int] = {}
        self._names = count(1)

    def _talk(self, statement: Statement[T]) -> Generator[None, PGresult, T]:
        """Send; yield for the server's answer; answer what the statement reads in it."""
        params, adapt = statement.params, self._adapt
        sql, names = (statement.sql, ()) if params is None else numbered(statement.sql)
        values = [params[name] for name in names] if params else []
        sent = adapt.dump_sequence(values, [PyFormat.AUTO] * len(values))
        types, formats = adapt.types or (), adapt.formats
        key = (statement.sql, types)
        known = self._known.get(key, 0)
        if not isinstance(known, bytes) and self._often(key, known):
            name = b"pgqueue_%d" % next(self._names)  # never again: who is cancelled does not know what was prepared
            self._pgconn.send_prepare(name, sql.encode(), types)
            self._check((yield))
            self._known[key] = known = name
        if isinstance(known, bytes):
            self._pgconn.send_query_prepared(known, sent, formats, Format.BINARY)
        else:
            self._pgconn.send_query_params(sql.encode(), sent, types, formats, Format.BINARY)
        result = self._check((yield))
        if result.status != ExecStatus.TUPLES_OK:
            return statement.read([])
        adapt.set_pgresult(result)
        return statement.read(adapt.load_rows(0, result.ntuples, tuple))

    def _often(self, key: tuple[str, tuple[int, ...]], said: int) -> bool:
        """Whether to prepare it. Behind a pooler (no threshold) nothing is: it would be somebody else's."""
        threshold = self._parent.prepare_threshold
        if threshold is None or len(self._known) > _MOST_PREPARED:
            return False
        self._known[key] = said + 1
        return said >= threshold

    def _check(self, result: PGresult) -> PGresult:
        if result.status == ExecStatus.FATAL_ERROR:
            raise errors.error_from_result(result, self._parent.info.encoding)
        return result


class Wire(_Talk):
    """A sync connection's; psycopg waits, and takes the statement back when it is interrupted."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        super().__init__(connection)
        self._connection = connection

    def run(self, statement: Statement[T]) -> T:
        """Run it in a transaction of its own; answers what it reads.

        Raises:
            psycopg.Error: what a cursor raises. After an OperationalError without a sqlstate the connection is broken.
        """
        talk = self._talk(statement)
        try:
            next(talk)
            while True:
                talk.send(self._connection.wait(generators.execute(self._pgconn))[-1])
        except StopIteration as end:
            return cast("T", end.value)


class AsyncWire(_Talk):
    """An async connection's."""

    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        super().__init__(connection)
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._answer: asyncio.Future[PGresult] | None = None
        self._last: PGresult | None = None
        self._looking = False

    async def run(self, statement: Statement[T]) -> T:
        """See :meth:`Wire.run`."""
        talk = self._talk(statement)
        try:
            next(talk)
            while True:
                talk.send(await self._result())
        except StopIteration as end:
            return cast("T", end.value)

    async def _result(self) -> PGresult:
        """What the server answers to what was sent."""
        if self._pgconn.flush():  # more than the socket takes at once
            return cast("PGresult", (await self._connection.wait(generators.execute(self._pgconn)))[-1])
        self._last = None
        answer = self._answer = self._loop.create_future()
        socket = self._pgconn.socket  # raises when sending has noticed that the connection is lost
        self._loop.add_reader(socket, self._readable)
        if not self._looking:
            self._looking = True
            self._loop.call_later(_LOOK, self._look)
        try:
            result: PGresult = await answer
        finally:
            self._loop.remove_reader(socket)
            if answer.cancelled():
                await self._call_off()
        return result

    def _look(self) -> None:
        """Look without being told, as long as somebody waits. No timer for each statement: most take a millisecond."""
        self._readable()
        self._looking = self._answer is not None and not self._answer.done()
        if self._looking:
            self._loop.call_later(_LOOK, self._look)

    def _readable(self) -> None:
        """The server has said something; when it is all, whoever waits goes on."""
        answer = self._answer
        if answer is None or answer.done():
            return
        pgconn = self._pgconn
        try:
            pgconn.consume_input()
            while not pgconn.is_busy():  # else the next one may not be here yet
                result = pgconn.get_result()
                if result is None:
                    break
                self._last = result
            else:
                if pgconn.status == ConnStatus.OK:
                    return  # else libpq has closed the socket: nothing more will come, not even an event
        except Exception as error:  # noqa: BLE001 - it is raised where somebody waits
            answer.set_exception(error)
            return
        if self._last is None:
            answer.set_exception(errors.OperationalError("the server closed the connection"))
        else:
            answer.set_result(self._last)

    async def _call_off(self) -> None:
        """The caller has gone: so should the statement. A connection that does not come to rest is closed."""
        try:
            async with asyncio.timeout(_CANCEL_PATIENCE):
                await self._connection.cancel_safe(timeout=_CANCEL_PATIENCE)
                await self._connection.wait(generators.execute(self._pgconn))
        except Exception:  # noqa: BLE001 - whatever it is, the caller is not interested any more
            self._pgconn.finish()
        except BaseException:
            self._pgconn.finish()
            raise
