"""Keeps the leases of long runs, from its own thread and connection: a blocked event loop loses no job."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Any, Final, TypeVar

import psycopg

from pgqueue import statements
from pgqueue.connection import is_pooled
from pgqueue.connection import run as run_statement
from pgqueue.errors import EmbeddedServerError
from pgqueue.metrics.vitals import RENEWER, patience
from pgqueue.worker.link import PINNED, hang_up

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta

    from pgqueue.metrics.vitals import Vitals
    from pgqueue.run import Run
    from pgqueue.statements import Statement
    from pgqueue.worker.hand import Hand

T = TypeVar("T")
log = logging.getLogger(__name__)

_LONGEST_PAUSE: Final = 30.0


class Renewer:
    """Renews what has been held for a third of the lease, and writes the progress that handlers report."""

    def __init__(
        self,
        dsn: Callable[[], str],
        hand: Hand,
        lease: timedelta,
        schema: str,
        *,
        lost: Callable[[Run], Any],
        cancelled: Callable[[Run], Any],
        vitals: Vitals,
    ) -> None:
        self._dsn = dsn
        self._hand = hand
        self._lease = lease
        self._third = lease.total_seconds() / 3
        self._tick = min(0.5, self._third / 2)
        self._schema = schema
        self._lost = lost
        self._cancelled = cancelled
        self._vitals = vitals
        self._patience = patience(lease.total_seconds())
        self._connection: psycopg.Connection[Any] | None = None
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="pgqueue-renewer", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; waits a moment for it, and hangs up on a server that does not answer it."""
        self._stop.set()
        self._wake.set()
        self._thread.join(1)
        connection = self._connection
        if self._thread.is_alive() and connection is not None:
            hang_up(connection)
            self._thread.join(1)

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def wake(self) -> None:
        """Look now, not at the next tick."""
        self._wake.set()

    def renew(self) -> None:
        """Prolong what is due. One look; a test can call it."""
        batches = self._hand.older_than(self._third)
        if not batches:
            return
        running = [
            run for batch in batches for run in list(batch.runs.values()) if not (run.ended or run.lost or run.landed)
        ]
        tokens, pairs = [batch.token for batch in batches], [(run.id, run.token) for run in running]
        held = self._run(statements.renew(tokens, pairs, self._lease, schema=self._schema))
        for batch in batches:
            if all(held[job_id][1] for job_id in list(batch.runs) if job_id in held):  # else at the next tick
                batch.renewed_at = time.monotonic()
        for run in running:
            if run.ended or run.landed:
                continue
            if run.id not in held:
                log.warning("the lease is lost; the handler is told to stop", extra=run.facts())
                self._lost(run)
            elif held[run.id][0] and not run.cancelled:
                self._cancelled(run)

    def report(self) -> None:
        """Write the progress that has been reported since the last look."""
        reports = []
        for run in self._hand.runs():
            if run.report is not None and not run.ended:
                report, run.report = run.report, None
                reports.append((run.id, run.token, report))
        if reports:
            self._run(statements.progress(sorted(reports), schema=self._schema))

    def _loop(self) -> None:
        pause = 0.0
        while not self._stop.is_set():
            self._wait(pause or self._tick)
            try:
                self.report()
                self.renew()
            except (psycopg.Error, OSError, EmbeddedServerError) as error:
                pause = min(max(1.0, pause * 2), _LONGEST_PAUSE, max(self._third / 2, 0.5))
                log.warning("leases could not be renewed, again in %.3gs: %s", pause, str(error).strip().split("\n")[0])
                self._close()
            except Exception:
                log.exception("leases could not be renewed, again in %.3gs", self._third / 2)
                pause = self._third / 2
            else:
                pause = 0.0
        self._vitals.release(RENEWER)
        self._close()

    def _wait(self, seconds: float) -> None:
        """Until the next look; one that holds nothing has none until something is taken."""
        self._hand.filled = self._wake
        if not self._hand.empty:
            self._hand.filled = None
        if self._hand.filled is None:
            self._vitals.expect(RENEWER, seconds + self._patience)
            self._wake.wait(seconds)
        else:
            self._vitals.release(RENEWER)
            self._wake.wait()
            self._vitals.expect(RENEWER, self._patience)
        self._hand.filled = None
        self._wake.clear()

    def _run(self, statement: Statement[T]) -> T:
        """One statement; a peer that does not answer for half a lease is hung up on."""
        connection = self._open()
        longest = max(self._third * 1.5, 1.0)
        alarm = threading.Timer(longest, hang_up, [connection])
        self._vitals.expect(RENEWER, longest + self._patience)
        alarm.daemon = True
        alarm.start()
        try:
            return run_statement(connection, statement)
        finally:
            alarm.cancel()

    def _open(self) -> psycopg.Connection[Any]:
        if self._connection is None:
            self._vitals.release(RENEWER)  # a database that does not answer is no fault of ours
            connection = psycopg.connect(self._dsn(), autocommit=True, prepare_threshold=None)
            if not is_pooled(connection):
                connection.execute(PINNED)
            self._connection = connection
        return self._connection

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
