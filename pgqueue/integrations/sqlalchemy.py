"""SQLAlchemy: enqueue in the transaction of a Session, AsyncSession, Connection or AsyncConnection, on any driver."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import Connection, TextClause, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, scoped_session

from pgqueue.bigints import unpack_bigints
from pgqueue.connection import translate

if TYPE_CHECKING:
    from pgqueue.statements import Statement

T = TypeVar("T")
_CAST = re.compile(r"%\((\w+)\)s::([\w.]+(?:\[\])?)")
_PLAIN = re.compile(r"%\((\w+)\)s")


def run(session: Any, statement: Statement[T]) -> T:
    """Run a statement in the session's transaction. What a Session holds back is flushed first, with its own errors."""
    if not isinstance(session, Session | Connection | scoped_session):
        raise TypeError(f"{type(session).__name__} is async: await enqueue(…) instead of calling enqueue_sync(…)")
    if not isinstance(session, Connection):
        session.flush()
    try:
        return statement.read(_rows(session.execute(_clause(statement.sql), _params(statement))))
    except DBAPIError as error:
        raise translate(_original(error)) from error


async def run_async(session: Any, statement: Statement[T]) -> T:
    """The same for AsyncSession and AsyncConnection."""
    # SQLAlchemy needs greenlet for this module; whoever has an async session has it, others need not.
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session  # noqa: PLC0415

    if not isinstance(session, AsyncSession | AsyncConnection | async_scoped_session):
        raise TypeError(f"{type(session).__name__} is sync: call enqueue_sync(…) instead of awaiting enqueue(…)")
    if not isinstance(session, AsyncConnection):
        await session.flush()
    try:
        return statement.read(_rows(await session.execute(_clause(statement.sql), _params(statement))))
    except DBAPIError as error:
        raise translate(_original(error)) from error


def driver_connection(session: Any) -> Any:
    """The driver's own connection, in the same transaction."""
    connection = session if isinstance(session, Connection) else session.connection()
    return connection.connection.driver_connection


async def driver_connection_async(session: Any) -> Any:
    """The same for AsyncSession and AsyncConnection."""
    connection = session if hasattr(session, "get_raw_connection") else await session.connection()
    return (await connection.get_raw_connection()).driver_connection


def _params(statement: Statement[Any]) -> dict[str, Any]:
    """With what every driver understands."""
    return {name: unpack_bigints(value) for name, value in (statement.params or {}).items()}


def _rows(result: Any) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in result] if result.returns_rows else []


@cache
def _clause(sql: str) -> TextClause:
    """Psycopg's placeholders as SQLAlchemy's, so that any driver's paramstyle serves."""
    return text(_PLAIN.sub(r":\1", _CAST.sub(r"CAST(:\1 AS \2)", sql)).replace("%%", "%"))


def _original(error: DBAPIError) -> Exception:
    original = error.orig
    return original if isinstance(original, Exception) else error
