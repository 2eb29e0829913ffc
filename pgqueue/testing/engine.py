"""Runs what is due, one job after another, with the worker's own statements and its own judgement of outcomes."""

from __future__ import annotations

import logging
import secrets
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from pgqueue import statements
from pgqueue.errors import Interruption, InvalidScheduleError, PgqueueError
from pgqueue.run import Run
from pgqueue.schedule import Plan, Waiting, plan
from pgqueue.sql import qualify
from pgqueue.statements import Lanes, Row, Statement
from pgqueue.testing.steps import Handled, Handling, Steps

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from pgqueue.app import App
    from pgqueue.job import JobRecord

log = logging.getLogger(__name__)

WORKER: Final = "pgqueue.testing"
_PRIORITIES: Final = range(10)
_NOW: Final = timedelta(0)
_MOST_LOOKS: Final = 100  # at schedules that are due

_DUE_QUEUES: Final = """
    SELECT DISTINCT j.queue FROM pgqueue.jobs j
    WHERE j.state = 'available' AND j.run_at <= now() AND j.task = ANY (%(tasks)s::text[])
      AND (%(queues)s::text[] IS NULL OR j.queue = ANY (%(queues)s::text[]))
    ORDER BY j.queue
"""
# A job whose upstreams have ended is due at the time of that statement; in the test's transaction now() stands still.
_DUE_NOW: Final = """
    UPDATE pgqueue.jobs SET run_at = now()
    WHERE state = 'available' AND depends_on IS NOT NULL AND attempt = 0
      AND run_at > now() AND run_at <= statement_timestamp()
    RETURNING id
"""
_MOVE_TICKS: Final = """
    UPDATE pgqueue.jobs
    SET meta = jsonb_set(meta, '{tick}', to_jsonb((meta ->> 'tick')::timestamptz + %(by)s::interval))
    WHERE id = ANY (%(ids)s::bigint[])
    RETURNING id
"""


@dataclass(frozen=True, slots=True)
class Ran:
    """One run of one job.

    Attributes:
        job: the job as the database holds it after this run.
        error: what its handler raised, or None.
    """

    job: JobRecord
    error: BaseException | None = None

    @property
    def id(self) -> int:
        """The job's id."""
        return self.job.id

    @property
    def task(self) -> str:
        """Name of the task."""
        return self.job.task

    @property
    def queue(self) -> str:
        """The queue it came from."""
        return self.job.queue

    @property
    def payload(self) -> Any:
        """The payload, decoded."""
        return self.job.payload

    @property
    def state(self) -> str:
        """What has become of the job: completed, dead, cancelled, retrying, scheduled (snoozed) or available."""
        return self.job.state

    @property
    def result(self) -> Any:
        """What the handler returned."""
        return self.job.result


def run_pending(
    app: App, queues: Sequence[str] | None, *, limit: int, raise_errors: bool, offset: timedelta
) -> Steps[list[Ran]]:
    """Sweep, tick, then claim and run until nothing is due."""
    yield from _sweep(app)
    yield from _tick(app, offset)
    ran: list[Ran] = []
    while claimed := (yield from _claim(app, queues)):
        if len(ran) >= limit:
            raise PgqueueError(
                f"{limit} jobs ran and there are more: does one enqueue itself for ever? else give a higher limit="
            )
        run, task = claimed
        handled: Handled = yield Handling(run, task)
        yield from _finish(app, run, handled)
        record = yield statements.get_job(run.id, schema=app.schema)
        if record is not None:
            ran.append(Ran(record, handled.error))
        if raise_errors and handled.error is not None and not isinstance(handled.error, Interruption):
            raise handled.error
    return ran


def _sweep(app: App) -> Steps[None]:
    while (yield statements.sweep(schema=app.schema)):
        pass


def _claim(app: App, queues: Sequence[str] | None) -> Steps[tuple[Run, Any] | None]:
    """The next job that a worker with one slot would take."""
    tasks, schema = sorted(app.tasks), app.schema
    wanted = {"tasks": tasks, "queues": None if queues is None else list(queues)}
    due: list[str] = yield Statement(qualify(_DUE_QUEUES, schema), wanted, lambda rows: [name for (name,) in rows])
    token, lease = secrets.randbits(62) + 1, app.settings.lease_duration
    if not due:
        return None
    rows: list[Row] = yield statements.claim(_lanes(due), tasks, 1, token, lease, WORKER, schema=schema)
    managed: list[str] = [] if rows else (yield statements.managed_queues(due, schema=schema))
    for name in managed:
        rows = rows or (
            yield statements.claim_managed(name, _lanes([name]), tasks, 1, token, lease, WORKER, schema=schema)
        )
        if statements.lacks_payloads(rows):
            rows = statements.filled(rows, (yield statements.payloads([rows[0][2]], token, schema=schema)))
    if not rows:
        return None
    run = Run(rows[0][: statements.COLUMNS], token, app)
    return run, app.tasks[run.task]


def _lanes(queues: list[str]) -> Lanes:
    lanes = [(queue, priority) for priority in _PRIORITIES for queue in queues]
    return Lanes(
        [queue for queue, _ in lanes], [priority for _, priority in lanes], [None] * len(lanes), [0] * len(lanes)
    )


def _finish(app: App, run: Run, handled: Handled) -> Steps[None]:
    if run.report is not None:
        yield statements.progress([(run.id, run.token, run.report)], schema=app.schema)
    landings = [] if run.landed else [(run.id, run.token, handled.outcome)]
    if (yield statements.finish(landings, [run.token], schema=app.schema)):
        log.warning("the lease was lost before the outcome landed; it is dropped", extra=run.facts())
    yield Statement(qualify(_DUE_NOW, app.schema), None, list)


# -- schedules ------------------------------------------------------------------------------------------------------


def _tick(app: App, offset: timedelta) -> Steps[None]:
    """Fire what is due.

    Rows were moved back by ``offset``, but nine o'clock is nine o'clock: plans are made in the test's time, and
    written down in the server's.
    """
    if app.schedules:
        yield statements.declare_schedules(list(app.schedules.values()), schema=app.schema)
    for _ in range(_MOST_LOOKS):
        waiting: list[Waiting] = yield statements.due_schedules(_NOW, schema=app.schema)
        plans = [made for one in waiting if (made := _plan(one, offset)) is not None]
        settled = (yield statements.tick(plans, waiting[0].now, schema=app.schema)) if plans else []
        fired = [job_id for _, _, job_id in settled if job_id is not None]
        if fired and offset:
            params = {"by": offset, "ids": fired}
            yield Statement(qualify(_MOVE_TICKS, app.schema), params, list)
        if not settled:
            return


def _plan(waiting: Waiting, offset: timedelta) -> Plan | None:
    def later(moment: datetime | None) -> datetime | None:
        return None if moment is None else moment + offset

    moved = replace(
        waiting, since=waiting.since + offset, now=waiting.now + offset,
        next_tick=later(waiting.next_tick), last_tick=later(waiting.last_tick),
    )  # fmt: skip
    try:
        made = plan(moved)
    except (InvalidScheduleError, OverflowError) as error:
        log.warning("schedule %s can't tick: %s", waiting.name, error)
        return None
    return replace(made, due=waiting.next_tick, fire=[tick - offset for tick in made.fire], next=made.next - offset)
