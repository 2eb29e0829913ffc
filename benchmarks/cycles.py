"""The worker's own statements on one bare connection, as it sends them: claim, look ahead, finish; and their time."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Any

from benchmarks.floors import LEASE
from pgqueue import statements
from pgqueue.connection import run as run_statement
from pgqueue.outcome import COMPLETED
from pgqueue.worker.link import PINNED
from pgqueue.worker.marks import Marks

if TYPE_CHECKING:
    from collections.abc import Sequence

    import psycopg

    from benchmarks.server import Database
    from pgqueue.statements import Row


class Cycles:
    """Claims with the worker's marks and pinned plans, from these queues; each answers milliseconds and rows."""

    def __init__(
        self, connection: psycopg.Connection[Any], queues: Sequence[str], tasks: list[str] | None = None
    ) -> None:
        self._connection = connection
        self._queues = list(queues)
        self._tasks = tasks
        self._marks = Marks(self._queues)
        self._turn = 0
        connection.execute(PINNED, prepare=False)
        connection.prepare_threshold = 0
        row = connection.execute("SELECT extract(epoch FROM clock_timestamp())::float8").fetchone()
        assert row is not None
        self._marks.set_clock(row[0])

    def claim(self, limit: int, *, full: bool = False) -> tuple[float, list[Row]]:
        """Claim and finish; the time is that of the claim. ``full``: look from the start, not from the marks."""
        self._turn += 1
        token = secrets.randbits(62) + 1
        lanes = self._marks.lanes(full=full, turn=self._turn)
        claim = statements.claim(lanes, self._tasks, limit, token, LEASE, "bare", schema="pgqueue")
        return self._complete(claim, token)

    def claim_keyed(self, limit: int) -> tuple[float, list[Row]]:
        """The same by the way of queues with keys and limits, from the first queue."""
        token = secrets.randbits(62) + 1
        lanes = self._marks.of(self._queues[0], full=False)
        claim = statements.claim_managed(
            self._queues[0], lanes, self._tasks, limit, token, LEASE, "bare", [], schema="pgqueue"
        )
        return self._complete(claim, token)

    def look(self, *, full: bool = False) -> float:
        """What an idle worker asks: how many milliseconds does the answer take?"""
        lanes = self._marks.lanes(full=full, turn=0)
        began = time.perf_counter()
        run_statement(self._connection, statements.next_due(lanes, self._tasks, schema="pgqueue"))
        return (time.perf_counter() - began) * 1e3

    def _complete(self, claim: statements.Statement[list[Row]], token: int) -> tuple[float, list[Row]]:
        began = time.perf_counter()
        rows = run_statement(self._connection, claim)
        took = (time.perf_counter() - began) * 1e3
        self._marks.advance([row for row in rows if row[statements.COLUMNS :] in {(), (None,)}])  # not by keyed ones
        if rows:
            landings = [(row[2], token, COMPLETED) for row in rows]
            run_statement(self._connection, statements.finish(landings, [token], schema="pgqueue"))
        return took, rows


class ServerTime:
    """What the server says of one statement from here on: milliseconds and buffers per call (pg_stat_statements)."""

    def __init__(self, database: Database, part: str) -> None:
        self._database = database
        self._part = part
        self._before = self.look()

    def look(self) -> tuple[int, float, int]:
        """Calls, milliseconds and buffers so far; nothing where the extension is not."""
        if not self._database.server.statements:
            return 0, 0.0, 0
        with self._database.connect() as connection:
            row: Any = connection.execute(
                "SELECT coalesce(sum(calls), 0)::bigint, coalesce(sum(total_exec_time), 0)::float8,"
                " coalesce(sum(shared_blks_hit + shared_blks_read), 0)::bigint FROM pg_stat_statements"
                " WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database()) AND query LIKE %s",
                [f"%{self._part}%"],
            ).fetchone()
        return int(row[0]), float(row[1]), int(row[2])

    def per_call(self) -> tuple[float | None, float | None]:
        """Milliseconds and buffers of a call since this was made, or since the last time; None without any call."""
        before, self._before = self._before, self.look()
        calls = self._before[0] - before[0]
        return (None, None) if not calls else (
            (self._before[1] - before[1]) / calls, (self._before[2] - before[2]) / calls,
        )  # fmt: skip


CLAIM = "INSERT INTO pgqueue.leases"
CLAIM_KEYED = "pgqueue.claim_managed"
