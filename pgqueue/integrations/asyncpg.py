"""asyncpg: enqueue in the transaction of a Connection, or of one that a Pool has lent."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from pgqueue.bigints import unpack_bigints
from pgqueue.connection import translate
from pgqueue.errors import DatabaseUnreachableError

if TYPE_CHECKING:
    from pgqueue.statements import Statement

T = TypeVar("T")
_PLACEHOLDER = re.compile(r"%%|%\((\w+)\)s(::jsonb\b(?!\[))?")


def run(connection: Any, statement: Statement[T]) -> T:  # noqa: ARG001 - every integration's signature
    """Not to be had: asyncpg knows no sync code."""
    if isinstance(connection, asyncpg.Pool):
        raise _is_a_pool()
    raise TypeError("asyncpg's connections are async: await enqueue(…) instead of calling enqueue_sync(…)")


async def run_async(connection: Any, statement: Statement[T]) -> T:
    """Run a statement in the transaction that the connection is in, if any."""
    if not isinstance(connection, asyncpg.Connection | PoolConnectionProxy):
        raise _is_a_pool() if isinstance(connection, asyncpg.Pool) else _not_a_connection(connection)
    sql, names = _numbered(statement.sql, statement.params is not None)
    params = statement.params or {}
    try:
        rows = await connection.fetch(sql, *[unpack_bigints(params[name]) for name in names])
        return statement.read([tuple(row) for row in rows])
    except asyncpg.PostgresError as error:
        raise translate(error) from error
    except (asyncpg.InterfaceError, OSError) as error:
        if isinstance(error, OSError) or connection.is_closed():
            raise DatabaseUnreachableError(f"PostgreSQL can't be reached: {error}") from error
        raise translate(error) from error


@cache
def _numbered(sql: str, has_params: bool) -> tuple[str, tuple[str, ...]]:
    """Psycopg's ``%(name)s`` as ``$1``, and the names in that order. JSON goes as text, whatever the caller's codec."""
    if not has_params:
        return sql, ()
    names: list[str] = []

    def number(match: re.Match[str]) -> str:
        name = match[1]
        if name is None:
            return "%"
        if name not in names:
            names.append(name)
        return f"${names.index(name) + 1}{'::text' + match[2] if match[2] else ''}"

    return _PLACEHOLDER.sub(number, sql), tuple(names)


def _is_a_pool() -> TypeError:
    return TypeError("a Pool is no transaction: async with pool.acquire() as connection, and give that connection")


def _not_a_connection(connection: Any) -> TypeError:
    return TypeError(f"{type(connection).__name__} is no connection of asyncpg")
