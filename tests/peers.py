"""A peer: one connection to the queue, and the engine's statements on it as methods. For tests that enumerate
the interleavings of two peers: `begin`, `commit`, and `behind` for a statement that must wait for another peer."""

from __future__ import annotations

import itertools
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self

import psycopg

from pgqueue import statements
from pgqueue.connection import run
from pgqueue.job import JobSpec
from pgqueue.outcome import Outcome
from pgqueue.statements import Lanes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime
    from types import TracebackType

    from pgqueue.statements import Statement, Swept

SCHEMA = "pgqueue"
LEASE = timedelta(seconds=30)
PATIENCE = 30.0
LANES = tuple(range(10))


def whole(queues: Sequence[str]) -> Lanes:
    """Every lane of these queues, from its start."""
    lanes = [(queue, priority) for priority in LANES for queue in queues]
    return Lanes(
        [queue for queue, _ in lanes], [priority for _, priority in lanes], [None] * len(lanes), [0] * len(lanes)
    )


_tokens = itertools.count(1_000_001)


@dataclass(frozen=True)
class Claim:
    """What one claim brought."""

    token: int
    rows: list[tuple[Any, ...]] = field(default_factory=list)

    @property
    def ids(self) -> list[int]:
        return [row[2] for row in self.rows]

    @property
    def attempts(self) -> dict[int, int]:
        return {row[2]: row[6] for row in self.rows}


class Peer:
    """One autocommit connection with the engine's statements."""

    def __init__(self, dsn: str, **settings: Any) -> None:
        self.dsn = dsn
        self.connection = psycopg.connect(dsn, autocommit=True, **settings)
        self.pid = self.connection.info.backend_pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.connection.close()

    # -- plain SQL ---------------------------------------------------------------------------------------------------

    def run(self, statement: Statement[Any]) -> Any:
        return run(self.connection, statement)

    def sql(self, query: str, *params: Any) -> list[tuple[Any, ...]]:
        cursor = self.connection.execute(query, params or None)
        return cursor.fetchall() if cursor.description else []

    def value(self, query: str, *params: Any) -> Any:
        rows = self.sql(query, *params)
        return rows[0][0] if rows else None

    def begin(self, isolation: str = "READ COMMITTED") -> None:
        self.sql(f"BEGIN ISOLATION LEVEL {isolation}")

    def commit(self) -> None:
        self.sql("COMMIT")

    def rollback(self) -> None:
        self.sql("ROLLBACK")

    def behind(self, action: Callable[[], Any]) -> Future[Any]:
        """Run it in a thread and return once it waits for another peer's lock. Fails if it does not wait."""
        future = self.start(action)
        if future.done():
            raise AssertionError(f"it did not wait: {future.exception() or future.result()!r}")
        return future

    def start(self, action: Callable[[], Any]) -> Future[Any]:
        """Run it in a thread and return once it has ended or waits for a lock."""
        future: Future[Any] = Future()

        def work() -> None:
            try:
                future.set_result(action())
            except BaseException as error:  # noqa: BLE001 - it belongs to whoever asks for the result
                future.set_exception(error)

        threading.Thread(target=work, daemon=True).start()
        deadline = time.monotonic() + PATIENCE
        with psycopg.connect(self.dsn, autocommit=True) as observer:
            while not future.done() and not self._waits(observer):
                assert time.monotonic() < deadline, "it neither ends nor waits for a lock"
                time.sleep(0.005)
        return future

    def _waits(self, observer: psycopg.Connection[Any]) -> bool:
        row = observer.execute("SELECT cardinality(pg_blocking_pids(%s)) > 0", [self.pid]).fetchone()
        return bool(row and row[0])

    # -- the engine --------------------------------------------------------------------------------------------------

    def enqueue(self, task: str = "t", payload: Any = None, **options: Any) -> int:
        return self.run(statements.enqueue(JobSpec.make(task, payload, **options), schema=SCHEMA))

    def claim(
        self,
        limit: int = 10,
        *,
        queues: Sequence[str] = ("default",),
        tasks: list[str] | None = None,
        marks: dict[tuple[str, int], tuple[datetime, int]] | None = None,
        lease: timedelta = LEASE,
        worker: str = "w1",
        token: int | None = None,
    ) -> Claim:
        token = token or next(_tokens)
        lanes = [(queue, priority) for priority in LANES for queue in queues]
        found = [(marks or {}).get(lane) for lane in lanes]
        where = Lanes(
            [queue for queue, _ in lanes],
            [priority for _, priority in lanes],
            [mark[0].timestamp() if mark else None for mark in found],
            [mark[1] if mark else 0 for mark in found],
        )
        return Claim(token, self.run(statements.claim(where, tasks, limit, token, lease, worker, schema=SCHEMA)))

    def finish(self, *landings: tuple[int, int, Outcome], done: Sequence[int] = ()) -> list[tuple[int, int]]:
        return self.run(statements.finish(landings, done, schema=SCHEMA))

    def end(self, claim: Claim, verdict: str = "completed", **facts: Any) -> list[tuple[int, int]]:
        """Finish everything of a claim, and its lease with it."""
        outcome = Outcome(verdict, **facts)
        return self.finish(*((job_id, claim.token, outcome) for job_id in claim.ids), done=[claim.token])

    def renew(self, claim: Claim, lease: timedelta = LEASE) -> dict[int, bool]:
        held = [(job_id, claim.token) for job_id in claim.ids]
        answer = self.run(statements.renew([claim.token], held, lease, schema=SCHEMA))
        return {job_id: cancel_requested for job_id, (cancel_requested, _) in answer.items()}

    def progress(self, *reports: tuple[int, int, str]) -> None:
        self.run(statements.progress(reports, schema=SCHEMA))

    def sweep(self, limit: int = 100) -> list[Swept]:
        return self.run(statements.sweep(limit, schema=SCHEMA))

    def cancel(self, job_id: int) -> str | None:
        return self.run(statements.cancel(job_id, schema=SCHEMA))

    def retry(self, job_id: int) -> str | None:
        return self.run(statements.retry(job_id, schema=SCHEMA))

    def ahead(self, *, queues: Sequence[str] = ("default",), tasks: list[str] | None = None) -> statements.Ahead:
        return self.run(statements.next_due(whole(queues), tasks, schema=SCHEMA))

    def next_due(self, *, queues: Sequence[str] = ("default",), tasks: list[str] | None = None) -> float | None:
        return self.ahead(queues=queues, tasks=tasks).seconds

    # -- moving time, looking ----------------------------------------------------------------------------------------

    def expire(self, claim: Claim, by: str = "1 second") -> None:
        """The lease ran out this long ago."""
        self.sql("UPDATE pgqueue.leases SET lease_until = now() - %s::interval WHERE token = %s", by, claim.token)

    def make_due(self, job_id: int) -> None:
        """The wait is over."""
        self.sql("UPDATE pgqueue.jobs SET run_at = now() - interval '1 ms' WHERE id = %s", job_id)

    def job(self, job_id: int) -> Any:
        return self.run(statements.get_job(job_id, schema=SCHEMA))

    def state(self, job_id: int) -> str | None:
        record = self.job(job_id)
        return record and record.state

    def leases(self) -> list[int]:
        return [token for (token,) in self.sql("SELECT token FROM pgqueue.leases ORDER BY token")]
