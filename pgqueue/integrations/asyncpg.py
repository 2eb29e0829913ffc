"""asyncpg: enqueue in the transaction of a Connection, or of one that a Pool has lent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from pgqueue.bigints import unpack_bigints
from pgqueue.connection import translate
from pgqueue.errors import DatabaseUnreachableError
from pgqueue.sql import numbered

if TYPE_CHECKING:
    from pgqueue.statements import Statement

T = TypeVar("T")


def run(connection: Any, statement: Statement[T]) -> T:  # noqa: ARG001 - every integration's signature
    """Not to be had: asyncpg knows no sync code."""
    if isinstance(connection, asyncpg.Pool):
        raise _is_a_pool()
    raise TypeError("asyncpg's connections are async: await enqueue(…) instead of calling enqueue_sync(…)")


async def run_async(connection: Any, statement: Statement[T]) -> T:
    """Run a statement in the transaction that the connection is in, if any."""
    if not isinstance(connection, asyncpg.Connection | PoolConnectionProxy):
        raise _is_a_pool() if isinstance(connection, asyncpg.Pool) else _not_a_connection(connection)
    params = statement.params or {}
    sql, names = (statement.sql, ()) if statement.params is None else numbered(statement.sql, json_as_text=True)
    try:
        rows = await connection.fetch(sql, *[unpack_bigints(params[name]) for name in names])
        return statement.read([tuple(row) for row in rows])
    except asyncpg.PostgresError as error:
        raise translate(error) from error
    except (asyncpg.InterfaceError, OSError) as error:
        if isinstance(error, OSError) or connection.is_closed():
            raise DatabaseUnreachableError(f"PostgreSQL can't be reached: {error}") from error
        raise translate(error) from error


def _is_a_pool() -> TypeError:
    return TypeError("a Pool is no transaction: async with pool.acquire() as connection, and give that connection")


def _not_a_connection(connection: Any) -> TypeError:
    return TypeError(f"{type(connection).__name__} is no connection of asyncpg")
