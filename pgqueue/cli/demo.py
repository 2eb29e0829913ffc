"""``pgq demo``: the whole story, on a real server, with real processes. Whatever it says, it has checked."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import groupby
from typing import IO, TYPE_CHECKING, Any, Final, TypeVar

import typer

from pgqueue.cli.errors import FAILED
from pgqueue.cli.options import Context, command
from pgqueue.cli.text import clean, print_json
from pgqueue.errors import JobNotFoundError, PgqueueError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pgqueue.app import App
    from pgqueue.job import JobRecord
    from pgqueue.settings import Settings

T = TypeVar("T")

LEASE: Final = timedelta(seconds=3)
CHECK: Final = timedelta(seconds=1)
GUESTS: Final = 12  # of each priority
CLERK: Final = "clerk"
NOOPS: Final = 20_000
_PATIENCE: Final = 30.0  # seconds, for anything that the story waits for
_LOOK: Final = 0.02
_LATE: Final = 1.0  # seconds: guarantee 9
_SECOND: Final = 2  # attempt
_MIDDLE: Final = 0.3  # of the long job, when its worker is killed


class StoryError(PgqueueError):
    """The story can't go on."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app)(demo)


def demo(context: Context) -> None:
    """Tell the whole story in under a minute: enqueue, work, kill a worker, recover, drain 20,000 jobs.

    Uses the embedded server, or the one of --dsn; in either case a schema of its own, which is gone afterwards.
    Leaves nothing running. Exits with 1 when something that it shows does not hold.
    """
    from pgqueue.logs import configure_logging  # noqa: PLC0415

    if context.schema is not None:
        raise SettingsError("the demo makes a schema of its own and drops it; leave --schema out")
    configure_logging("text", logging.DEBUG if context.debug else logging.ERROR)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if threading.current_thread() is threading.main_thread():
            signal.signal(number, _leave)
    own_schema = f"pgqueue_demo_{secrets.token_hex(3)}"
    settings = replace(context.settings(), schema=own_schema, lease_duration=LEASE, lease_check_interval=CHECK)
    teller = Teller(to_stderr=context.json)
    with contextlib.ExitStack() as end:
        _tell(teller, settings, end, show_logs=context.debug)
    teller.close()
    if context.json:
        print_json(
            {"ok": teller.ok, "checks": teller.checks, "measured": teller.measured, "seconds": round(teller.elapsed, 1)}
        )
    if not teller.ok:
        raise typer.Exit(FAILED)


def _leave(number: int, _frame: object) -> None:
    sys.exit(128 + number)


def _tell(teller: Teller, settings: Settings, end: contextlib.ExitStack, *, show_logs: bool) -> None:
    """The chapters, and behind them the clearing up: workers first, then the schema, then the server (at exit)."""
    from pgqueue.cli.demo_tasks import COUNTER, QUEUES, app  # noqa: PLC0415

    settings = _start_server(teller, settings)
    end.callback(_drop, settings)
    _migrate(teller, settings)
    app.configure(settings)
    end.callback(app.close)
    staff = Staff(settings, teller.aside if show_logs else None)
    end.callback(staff.close)
    try:
        staff.hire("worker-1", queues=QUEUES)
        staff.hire("worker-2", queues=QUEUES)
        staff.hire(CLERK, queues=COUNTER, slots=1)
        ids = _enqueue(teller, app)
        _work(teller, app, staff, ids)
        ids += _priorities(teller, app, staff)
        ids += _retry_and_schedule(teller, app)
        ids += _crash(teller, app, staff)
        _conserve(teller, app, ids)
        _drain(teller, app, staff)
        _stop(teller, staff)
    except Exception:
        for line in staff.said:
            teller.aside(line)
        raise


# -- the chapters ----------------------------------------------------------------------------------------------------


def _start_server(teller: Teller, settings: Settings) -> Settings:
    from pgqueue.connection import Database  # noqa: PLC0415

    teller.chapter("A PostgreSQL")
    own = settings.dsn is None
    begin = time.monotonic()
    settings = replace(settings, dsn=settings.resolve_dsn())
    took = time.monotonic() - begin
    database = Database(settings.resolve_dsn)
    try:
        with database.connection() as connection:
            info = connection.info
            version, place = _version(info.server_version), f"{info.host}, port {info.port}, database {info.dbname}"
    finally:
        database.close()
    teller.measured["postgresql"] = version
    if own:
        teller.say(f"no DSN is set, so the PostgreSQL that comes with pgqueue was started or joined in {took:.2f} s")
    teller.say(f"PostgreSQL [b]{version}[/b] at {_escape(place)}")
    return settings


def _migrate(teller: Teller, settings: Settings) -> None:
    from pgqueue.migrations import migrate  # noqa: PLC0415
    from pgqueue.revision import current_revision, head_revision  # noqa: PLC0415

    begin = time.monotonic()
    dsn = settings.resolve_dsn()
    migrate(dsn, schema=settings.schema)
    teller.say(
        f"migrated a schema of its own, [b]{settings.schema}[/b], in {time.monotonic() - begin:.2f} s; "
        "it is dropped at the end"
    )
    teller.check(
        "the schema is the one that this pgqueue needs",
        current_revision(dsn, schema=settings.schema) == head_revision(),
    )


def _enqueue(teller: Teller, app: App) -> list[int]:
    import psycopg  # noqa: PLC0415

    from pgqueue.cli.demo_tasks import greet  # noqa: PLC0415

    teller.chapter("Enqueue in your own transaction")
    with app.database.connection() as connection:
        with connection.transaction():
            lost = greet.using(connection).enqueue_sync(name="nobody")
            teller.say(f"BEGIN … enqueue → job {lost.id} … [b]ROLLBACK[/b]")
            raise psycopg.Rollback
        teller.check(f"job {lost.id} does not exist", not _exists(app, lost.id))
        with connection.transaction():
            kept = greet.using(connection).enqueue_sync(name="Ada")
            unseen = not _exists(app, kept.id)
            teller.say(f"BEGIN … enqueue → job {kept.id} … [b]COMMIT[/b]")
        teller.check(f"job {kept.id} exists, and nobody saw it before the commit", unseen and _exists(app, kept.id))
    more = app.enqueue_many_sync(greet.job(name=name) for name in ("Grace", "Edsger", "Barbara", "Donald"))
    teller.say(f"and four more in one round trip: {', '.join(str(job.id) for job in more)}")
    return [kept.id, *(job.id for job in more)]


def _work(teller: Teller, app: App, staff: Staff, ids: list[int]) -> None:
    teller.chapter("Two worker processes")
    _reported(app, {"worker-1", "worker-2"})
    for name in ("worker-1", "worker-2"):
        teller.say(f"{name} is process {staff.members[name].process.pid}, with a lease of {LEASE.seconds} s")
    records = _finished(app, ids)
    for record in records:
        teller.say(
            f"job {record.id} {record.task}: [b]{record.state}[/b] by {record.worker} → {_escape(repr(record.result))}"
        )
    right = [record.result for record in records] == [f"hello {record.payload['name']}" for record in records]
    teller.check(
        "all five completed, each at its first attempt", right and all(record.attempt == 1 for record in records)
    )


def _priorities(teller: Teller, app: App, staff: Staff) -> list[int]:
    """With one slot, so that the order of starts is the order of claims: slots side by side would blur it."""
    from pgqueue.cli.demo_tasks import COUNTER, serve  # noqa: PLC0415

    teller.chapter("Priorities")
    _reported(app, {CLERK})
    app.client.pause(COUNTER)
    names = ("low", "normal", "high")
    jobs = app.enqueue_many_sync(serve.options(priority=name).job(guest=name) for name in names for _ in range(GUESTS))
    teller.say(f"queue {COUNTER!r} has one worker with one slot, and is paused")
    teller.say(f"{GUESTS} low, then {GUESTS} normal, then {GUESTS} high enqueued; queue resumed")
    app.client.resume(COUNTER)
    served = sorted(_finished(app, [job.id for job in jobs]), key=_began)
    order = [(guest, len(list(group))) for guest, group in groupby(one.result[0] for one in served)]
    teller.say(f"{CLERK} started {', then '.join(f'{count} {guest}' for guest, count in order)}")
    teller.check(
        "every high started before every normal, and every normal before every low",
        order == [(name, GUESTS) for name in reversed(names)],
    )
    staff.dismiss(CLERK)
    return [job.id for job in jobs]


def _retry_and_schedule(teller: Teller, app: App) -> list[int]:
    from pgqueue.cli.demo_tasks import charge_card, remind  # noqa: PLC0415

    teller.chapter("A retry with backoff, and a job for later")
    later = remind.options(delay="2s").enqueue_sync(text="tea")
    flaky = charge_card.enqueue_sync(amount=42)
    teller.say(f"job {later.id} is to start in 2 s; job {flaky.id} fails the first time")
    failed = _until("the first failure", lambda: _when(app.client.get(flaky.id), lambda record: bool(record.errors)))
    error = failed.errors[0]
    wait = (failed.run_at - datetime.now(UTC)).total_seconds()
    teller.say(
        f"job {flaky.id}: attempt 1 failed with {error['type']}: {error['message']}; "
        f"{failed.state}, again in {wait:.1f} s"
    )
    again, reminded = _finished(app, [flaky.id, later.id])
    teller.say(
        f"job {flaky.id}: attempt {again.attempt} of {again.max_attempts} → {again.state}, result {again.result}"
    )
    teller.check(
        "the retry waited for its backoff, then completed",
        again.state == "completed" and again.attempt == _SECOND and _started(again) >= failed.run_at,
    )
    late = (_started(reminded) - reminded.run_at).total_seconds()
    teller.measured["scheduled_job_late_ms"] = round(late * 1000, 1)
    teller.say(f"job {later.id}: started [b]{late * 1000:.0f} ms[/b] after its time")
    teller.check("the scheduled job started on time, never early, within 1 s", 0 <= late <= _LATE)
    return [later.id, flaky.id]


def _crash(teller: Teller, app: App, staff: Staff) -> list[int]:
    from pgqueue.cli.demo_tasks import QUEUES, report  # noqa: PLC0415

    teller.chapter("kill -9")
    job = report.enqueue_sync(seconds=2.5)
    running = _until("the long job to be under way", lambda: _when(app.client.get(job.id), _under_way))
    victim = str(running.worker)
    done = (running.progress or {}).get("value", 0)
    teller.say(f"job {job.id} runs on {victim}, progress {done:.0%}")
    pid = staff.kill(victim)
    killed = time.monotonic()
    teller.say(f"[b red]kill -9 {pid}[/b red] ({victim})")
    held = app.client.get(job.id)
    if held.lease_until is None:
        raise StoryError(f"job {job.id} holds no lease after its worker was killed: it is {held.state}")
    left = (held.lease_until - datetime.now(UTC)).total_seconds()
    teller.say(f"the row still says {held.state}: its lease has {left:.1f} s to go; nobody may touch it before")
    staff.hire("worker-3", queues=QUEUES)
    again = _until(
        "the recovery", lambda: _when(app.client.get(job.id), lambda record: record.worker not in {None, victim})
    )
    took = time.monotonic() - killed
    teller.measured["recovery_seconds"] = round(took, 2)
    teller.say(
        f"lease over → swept → claimed by [b]{again.worker}[/b], attempt {again.attempt}, {took:.1f} s after the kill"
    )
    (record,) = _finished(app, [job.id])
    lost = [error["message"] for error in record.errors]
    teller.say(f"job {job.id}: {record.state} by {record.worker}; kept with it: {_escape('; '.join(lost))}")
    teller.check("not before its lease was over", _started(record) >= held.lease_until)
    limit = (LEASE + CHECK).total_seconds()
    teller.check(f"again within lease + check interval ({limit:.0f} s, and a moment to claim)", took <= limit + _LATE)
    teller.check(
        "completed by another worker, at attempt 2",
        record.state == "completed" and record.attempt == _SECOND and record.worker != victim,
    )
    return [job.id]


def _conserve(teller: Teller, app: App, ids: list[int]) -> None:
    teller.chapter("Nothing lost, nothing twice")
    records = _all_records(app)
    states: dict[str, int] = {}
    for record in records:
        states[record.state] = states.get(record.state, 0) + 1
    teller.say(
        f"enqueued and committed: {len(ids)}; found: {', '.join(f'{count} {state}' for state, count in states.items())}"
    )
    found = sorted(record.id for record in records)
    teller.check("by id: every committed job is there, once, and no other", found == sorted(ids))
    teller.check("every one completed", states == {"completed": len(ids)})


def _drain(teller: Teller, app: App, staff: Staff) -> None:
    from pgqueue.cli.demo_tasks import noop  # noqa: PLC0415

    teller.chapter("Speed")
    _reported(app, set(staff.alive))
    app.client.pause("fast")
    spec = noop.job()
    begin = time.monotonic()
    app.enqueue_many_sync((spec for _ in range(NOOPS)), copy=True)
    filled = time.monotonic() - begin
    teller.say(f"{NOOPS:,} jobs enqueued with COPY in {filled:.2f} s, {NOOPS / filled:,.0f} a second")
    begin = time.monotonic()
    app.client.resume("fast")
    done = _until(
        "the queue to be empty", lambda: _when(_completed(app, "fast"), lambda count: count >= NOOPS), look=0.05
    )
    took = time.monotonic() - begin
    teller.measured["enqueued_per_second"] = round(NOOPS / filled)
    teller.measured["drained_per_second"] = round(NOOPS / took)
    teller.say(
        f"drained by {len(staff.alive)} processes in {took:.2f} s: "
        f"[b]{NOOPS / took:,.0f} jobs a second[/b], committed durably"
    )
    teller.check(f"all {NOOPS:,} completed, once", done == NOOPS)


def _stop(teller: Teller, staff: Staff) -> None:
    teller.chapter("Stop")
    codes = staff.dismiss()
    teller.say("SIGTERM → " + ", ".join(f"{name} ended with {code}" for name, code in codes.items()))
    teller.check("every worker stopped in order", bool(codes) and set(codes.values()) == {0})


# -- what the chapters use -------------------------------------------------------------------------------------------


def _exists(app: App, job_id: int) -> bool:
    try:
        app.client.get(job_id)
    except JobNotFoundError:
        return False
    return True


def _reported(app: App, names: set[str]) -> None:
    _until(
        f"{', '.join(sorted(names))} to report",
        lambda: names <= {worker.name for worker in app.client.workers() if worker.alive},
    )


def _when(value: T, holds: Callable[[T], bool]) -> T | None:
    return value if holds(value) else None


def _under_way(record: JobRecord) -> bool:
    return record.state == "running" and (record.progress or {}).get("value", 0) >= _MIDDLE


def _began(record: JobRecord) -> int:
    began: int = record.result[1]
    return began


def _started(record: JobRecord) -> datetime:
    if record.started_at is None:
        raise StoryError(f"job {record.id} was never started")
    return record.started_at


def _until(what: str, look_up: Callable[[], T | None], *, look: float = _LOOK) -> T:
    deadline = time.monotonic() + _PATIENCE
    while not (found := look_up()):
        if time.monotonic() > deadline:
            raise StoryError(f"waited {_PATIENCE:.0f} s for {what}, in vain; the workers' last words are above")
        time.sleep(look)
    return found


def _finished(app: App, ids: list[int]) -> list[JobRecord]:
    """These jobs, once all of them have ended."""
    return [_until(f"job {job_id} to end", partial(_if_finished, app, job_id)) for job_id in ids]


def _if_finished(app: App, job_id: int) -> JobRecord | None:
    return _when(app.client.get(job_id), lambda record: record.finished)


def _all_records(app: App) -> list[JobRecord]:
    records: list[JobRecord] = []
    while page := app.client.jobs(before=records[-1].id if records else None, limit=1000):
        records += page
    return records


def _completed(app: App, queue: str) -> int:
    return next((stats.completed for stats in app.client.queues() if stats.queue == queue), 0)


def _drop(settings: Settings) -> None:
    """Drop the demo's schema, and only that."""
    from sqlalchemy.schema import DropSchema  # noqa: PLC0415

    from pgqueue.migrations import engine_for  # noqa: PLC0415

    with engine_for(settings.resolve_dsn()).begin() as connection:
        connection.execute(DropSchema(settings.schema, cascade=True, if_exists=True))


def _version(number: int) -> str:
    return f"{number // 10_000}.{number % 10_000}"


def _escape(text: str) -> str:
    from rich.markup import escape  # noqa: PLC0415

    return escape(clean(text))


@dataclass
class Member:
    """A worker process and the thread that reads what it says."""

    process: subprocess.Popen[str]
    reader: threading.Thread


class Staff:
    """The demo's worker processes: real ones, `pgq worker`, none of which outlives it."""

    def __init__(self, settings: Settings, on_line: Callable[[str], None] | None) -> None:
        self._on_line = on_line
        self._environment = {
            **os.environ,
            "PGQUEUE_DSN": settings.resolve_dsn(),
            "PGQUEUE_SCHEMA": settings.schema,
            "PGQUEUE_LEASE_CHECK_INTERVAL": f"{CHECK.total_seconds()}s",
        }
        self.members: dict[str, Member] = {}
        self.said: deque[str] = deque(maxlen=30)

    @property
    def alive(self) -> list[str]:
        """Who works."""
        return [name for name, member in self.members.items() if member.process.poll() is None]

    def hire(self, name: str, *, queues: str, slots: int = 50) -> None:
        """Start a worker; in a session of its own, so that Ctrl-C reaches it through us."""
        from pgqueue.worker.supervisor import die_with_parent  # noqa: PLC0415

        process = subprocess.Popen(  # noqa: S603 - our own command line
            [
                sys.executable,
                "-m",
                "pgqueue",
                "worker",
                "--app=pgqueue.cli.demo_tasks",
                f"--name={name}",
                f"--queues={queues}",
                f"--slots={slots}",
                f"--lease={LEASE.seconds}s",
            ],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
            preexec_fn=die_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509 - one prctl
        )
        reader = threading.Thread(target=self._listen, args=(name, process.stderr), daemon=True)
        reader.start()
        self.members[name] = Member(process, reader)

    def kill(self, name: str) -> int:
        """Kill -9; answers the pid, once the process is gone."""
        process = self.members[name].process
        process.kill()
        process.wait()
        return process.pid

    def dismiss(self, *names: str) -> dict[str, int]:
        """SIGTERM to these, else to all who are left; answers how each ended."""
        alive = [name for name in self.alive if not names or name in names]
        for name in alive:
            self.members[name].process.terminate()
        return {name: self.members[name].process.wait(_PATIENCE) for name in alive}

    def close(self) -> None:
        """Leave nothing running, whatever happened."""
        for member in self.members.values():
            member.process.kill()
        for member in self.members.values():
            member.process.wait()
            member.reader.join(timeout=1)

    def _listen(self, name: str, lines: IO[str] | None) -> None:
        for line in lines or ():
            text = f"{name} │ {clean(line.rstrip())}"
            self.said.append(text)
            if self._on_line is not None:
                self._on_line(text)


class Teller:
    """Prints the story and keeps what was checked."""

    def __init__(self, *, to_stderr: bool) -> None:
        from rich.console import Console  # noqa: PLC0415

        self._console = Console(stderr=to_stderr, highlight=False, soft_wrap=True)
        self._begin = time.monotonic()
        self.checks: list[dict[str, Any]] = []
        self.measured: dict[str, Any] = {}

    @property
    def elapsed(self) -> float:
        """Seconds since the story began."""
        return time.monotonic() - self._begin

    @property
    def ok(self) -> bool:
        """Whether every check held."""
        return all(check["ok"] for check in self.checks)

    def chapter(self, title: str) -> None:
        """Begin a chapter."""
        self._console.print(f"\n[b cyan]{title}[/b cyan]")

    def say(self, markup: str) -> None:
        """Tell what happened."""
        self._console.print(f"[dim]{self.elapsed:5.1f}s[/dim]  {markup}")

    def aside(self, text: str) -> None:
        """What a worker said."""
        self._console.print(f"[dim]        {_escape(text)}[/dim]")

    def check(self, claim: str, holds: bool) -> None:
        """Say whether it is so."""
        self.checks.append({"check": claim, "ok": holds})
        mark, style = ("✓", "green") if holds else ("✗ NOT SO:", "bold red")
        self._console.print(f"[dim]{self.elapsed:5.1f}s[/dim]  [{style}]{mark} {_escape(claim)}[/{style}]")

    def close(self) -> None:
        """Sum up."""
        failed = sum(not check["ok"] for check in self.checks)
        if failed:
            self._console.print(
                f"\n[bold red]{failed} of {len(self.checks)} checks failed[/bold red] after {self.elapsed:.1f} s"
            )
            return
        self._console.print(
            f"\n[bold green]All {len(self.checks)} checks hold[/bold green], {self.elapsed:.1f} s in all; "
            "nothing is left running."
        )
        pgq = "pgq" if shutil.which("pgq") else sys.argv[0] if sys.argv[0].endswith("pgq") else "python -m pgqueue"
        self._console.print(f"Next: {pgq} enqueue --payload '{{\"a\": 1}}'   then: {pgq} worker   and: {pgq} stats")
