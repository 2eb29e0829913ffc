"""Time for tests. PostgreSQL's clock is not touched: every time in the queue's rows is moved back instead."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from pgqueue.durations import Duration, parse_duration
from pgqueue.errors import InvalidJobError
from pgqueue.sql import qualify
from pgqueue.statements import Statement

if TYPE_CHECKING:
    from pgqueue.testing.sandbox import AsyncSandbox, Sandbox
    from pgqueue.testing.steps import Steps

_NOW: Final = "SELECT now()"

# Every time in the tables: what is compared with now(), and what people compare with that.
_TIMES: Final = """
    SELECT c.relname, a.attname
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid
    WHERE c.relnamespace = CAST(%(schema)s AS text)::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
      AND a.attnum > 0 AND NOT a.attisdropped AND a.atttypid = 'timestamptz'::regtype
    ORDER BY c.relname, a.attnum
"""
_AWAY: Final = "interval '3000 years'"
_LAND: Final = f"UPDATE pgqueue.ticks SET tick = tick + {_AWAY} WHERE tick < '0001-01-01Z' RETURNING tick"


def shift(by: timedelta, schema: str) -> Steps[None]:
    """Move every time in the queue's rows into the past by this much ('infinity' stays what it is)."""
    tables: dict[str, list[str]] = {}
    for table, column in (yield Statement(_TIMES, {"schema": schema}, list)):
        # ticks.tick is a part of the primary key: moved out of the way of those that are still to be moved, then back
        away = f" - {_AWAY}" if (table, column) == ("ticks", "tick") else ""
        tables.setdefault(table, []).append(f"{column} = {column} - %(by)s::interval{away}")
    moves = ", ".join(
        f"moved_{table} AS (UPDATE {schema}.{table} SET {', '.join(columns)})" for table, columns in tables.items()
    )
    yield Statement(f"WITH {moves} SELECT now()", {"by": by}, list)
    if "ticks" in tables:
        yield Statement(qualify(_LAND, schema), None, list)


class _Time:
    """What both clocks know."""

    def __init__(self) -> None:
        self.offset = timedelta(0)

    def _advance(self, by: Duration, schema: str) -> Steps[datetime]:
        delta = parse_duration(by, "advance")
        yield from shift(delta, schema)
        self.offset += delta
        return (yield from self._now())

    def _move_to(self, moment: datetime, schema: str) -> Steps[datetime]:
        if not isinstance(moment, datetime) or moment.utcoffset() is None:
            raise InvalidJobError(f"move_to needs a datetime with a time zone, not {moment!r}")
        now = yield from self._now()
        if moment < now:
            raise InvalidJobError(
                f"the clock goes forward only: it is {now.isoformat()}, later than {moment.isoformat()}"
            )
        return (yield from self._advance(moment - now, schema))

    def _now(self) -> Steps[datetime]:
        now: datetime = yield Statement(_NOW, None, _moment)
        return now.astimezone(UTC) + self.offset


class Clock(_Time):
    """A sandbox's clock: :attr:`Sandbox.clock`."""

    def __init__(self, sandbox: Sandbox) -> None:
        super().__init__()
        self._sandbox = sandbox

    def advance(self, by: Duration) -> datetime:
        """Let time pass, without waiting: delays end, retries become due, leases expire; answers what time it is now.

        Nothing runs by itself; what would have run in between runs at the next :meth:`Sandbox.run_pending`, late.

        Raises:
            InvalidJobError: it is no duration, or negative.
        """
        return self._sandbox.perform(self._advance(by, self._sandbox.schema))

    def move_to(self, moment: datetime) -> datetime:
        """Let it be this time, not before now; for schedules: ``clock.move_to(datetime(2030, 3, 31, 9, tzinfo=UTC))``.

        Raises:
            InvalidJobError: it says no time zone, or lies in the clock's past.
        """
        return self._sandbox.perform(self._move_to(moment, self._sandbox.schema))

    def now(self) -> datetime:
        """Tell what time it is here, in UTC. Inside a transaction it stands still, as in PostgreSQL."""
        return self._sandbox.perform(self._now())


class AsyncClock(_Time):
    """An async sandbox's clock; see :class:`Clock`."""

    def __init__(self, sandbox: AsyncSandbox) -> None:
        super().__init__()
        self._sandbox = sandbox

    async def advance(self, by: Duration) -> datetime:
        """See :meth:`Clock.advance`."""
        return await self._sandbox.perform(self._advance(by, self._sandbox.schema))

    async def move_to(self, moment: datetime) -> datetime:
        """See :meth:`Clock.move_to`."""
        return await self._sandbox.perform(self._move_to(moment, self._sandbox.schema))

    async def now(self) -> datetime:
        """See :meth:`Clock.now`."""
        return await self._sandbox.perform(self._now())


def _moment(rows: list[tuple[Any, ...]]) -> datetime:
    moment: datetime = rows[0][0]
    return moment
