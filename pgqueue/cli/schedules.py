"""``pgq schedule``: what ticks when; add, pause, resume and remove schedules; make up for ticks that were missed."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from pgqueue.cli.options import AppOption, Context, command, make_group
from pgqueue.cli.person import note
from pgqueue.cli.text import ago, print_json, print_table, show, span

if TYPE_CHECKING:
    from pgqueue.app import App
    from pgqueue.job import JobSpec
    from pgqueue.schedule import ScheduleRecord

_UNASKED: Final = 1_000  # ticks that are backfilled without --yes
_MOST: Final = 100_000

app = make_group("schedule", "Schedules: what ticks when; add, pause, resume, remove, and make up for missed ticks.")

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The schedule's name.")]


@command(app, "list")
def list_schedules(context: Context) -> None:
    """Print every schedule: its times and task, when it ticks next and did last, and whether it is paused."""
    with context.client() as client:
        records = client.schedules()
    if context.json:
        print_json([record.as_dict() for record in records])
        return
    columns = ("name", "times", "zone", "task", "queue", "next tick", "last tick", "state", "made by")
    print_table(columns, [_row(record) for record in records], empty="no schedules")
    for record in records:
        if record.problem is not None:
            note(f"{record.name} can't tick: {record.problem}")


@command(app)
def add(
    context: Context,
    name: NameArgument,
    cron: Annotated[
        str,
        typer.Option(
            "--cron",
            metavar="TIMES",
            help="Five cron fields, six with seconds first, @hourly and the like, or 'every 90s'.",
        ),
    ],
    task: Annotated[str, typer.Option("--task", metavar="NAME", help="The task that its jobs run.")],
    payload: Annotated[
        str, typer.Option("--payload", "-p", metavar="JSON", help="Any JSON value. Default: {}.")
    ] = "{}",
    tz: Annotated[
        str | None, typer.Option(metavar="ZONE", help="Mean the times there: Europe/Berlin. Default: UTC.")
    ] = None,
    queue: Annotated[
        str | None,
        typer.Option("--queue", "-q", metavar="NAME", help="Let its jobs wait in this queue. Default: default."),
    ] = None,
    priority: Annotated[
        str | None, typer.Option(metavar="0-9", help="Of its jobs: 0 runs first, 9 last; or high, normal, low.")
    ] = None,
    max_attempts: Annotated[
        int | None,
        typer.Option(metavar="N", help="Runs before a failing job is dead, the first included. Default: 10."),
    ] = None,
    timeout: Annotated[
        str | None, typer.Option(metavar="DURATION", help="Longest run of one attempt: 30s, 5m.")
    ] = None,
    misfire: Annotated[
        str | None,
        typer.Option(
            metavar="POLICY",
            help="Of the ticks that came while no worker was there, fire none (skip), the latest, or all. "
            "Default: latest.",
        ),
    ] = None,
    grace: Annotated[
        str | None, typer.Option(metavar="DURATION", help="A tick up to this late counts as on time. Default: 1m.")
    ] = None,
    overlap: Annotated[
        str | None,
        typer.Option(
            metavar="POLICY", help="Drop a tick while an earlier one's job is live (skip), or allow. Default: allow."
        ),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="If there is one of this name, change it to this.")
    ] = False,
    app: AppOption = None,
) -> None:
    """Add a schedule. A worker makes its job at each tick; the job has the tick's time in its meta.

    With --app the task's own queue and options hold, and the payload is checked against its signature.
    """
    from pgqueue.cli.load import load_configured  # noqa: PLC0415
    from pgqueue.schedule import ScheduleSpec  # noqa: PLC0415

    own = None if app is None else load_configured(context, app)
    job = _job(own, task, payload, _given(queue=queue, priority=priority, max_attempts=max_attempts, timeout=timeout))
    policy = _given(tz=tz, misfire=misfire, grace=grace, overlap=overlap)
    spec = ScheduleSpec.of_job(name, cron, job, **policy)
    with context.client(own) as client:
        record = client.add_schedule(spec, replace=replace)
    if context.json:
        print_json(record.as_dict())
    else:
        typer.echo(f"{show(name)} added, {_coming(record)}")


@command(app)
def pause(context: Context, name: NameArgument) -> None:
    """Let a schedule not tick, until it is resumed; its jobs go on."""
    with context.client() as client:
        changed = client.pause_schedule(name)
    _tell(context, name, paused=True, changed=changed)


@command(app)
def resume(context: Context, name: NameArgument) -> None:
    """Let a paused schedule tick again from now on; what it missed is left to backfill."""
    with context.client() as client:
        changed = client.resume_schedule(name)
        record = client.get_schedule(name)
    _tell(context, name, paused=False, changed=changed, more=f", {_coming(record)}")


@command(app)
def remove(context: Context, name: NameArgument) -> None:
    """Delete a schedule; its jobs stay. One that an app declares comes back with its next worker: pause it."""
    with context.client() as client:
        declared = client.get_schedule(name).declared
        client.remove_schedule(name)
    if context.json:
        print_json({"schedule": name, "removed": True})
    else:
        typer.echo(f"{show(name)} removed")
    if declared:
        note("an app's code declares it: the next worker of that app adds it again; to keep it away, pause it")


@command(app, "next")
def coming(
    context: Context,
    name: NameArgument,
    count: Annotated[int, typer.Option("--count", "-n", min=1, max=1000, metavar="N", help="Print so many.")] = 5,
) -> None:
    """Print the next ticks of a schedule, in its time zone and in UTC."""
    with context.client() as client:
        record = client.get_schedule(name)
    times = record.timetable
    ticks = record.upcoming(count)
    if context.json:
        print_json([{"tick": tick.isoformat(), "local": times.local(tick).isoformat()} for tick in ticks])
        return
    rows = [(_local(record, tick), show(tick), span((tick - record.seen_at).total_seconds())) for tick in ticks]
    print_table((record.time_zone, "UTC", "in"), rows, empty="no ticks")
    if record.paused:
        note("it is paused: these are its ticks if it were resumed now")


@command(app)
def backfill(
    context: Context,
    name: NameArgument,
    start: Annotated[
        str, typer.Option("--from", metavar="TIME", help="From this time on: 2030-01-31 or 2030-01-31T09:00:00+01:00.")
    ],
    end: Annotated[
        str | None, typer.Option("--to", metavar="TIME", help="Up to this time, without it. Default: now.")
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help=f"Also if that is more than {_UNASKED} jobs; at most {_MOST}.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print how many ticks there are, and do nothing.")] = False,
) -> None:
    """Enqueue a job for each tick of the past that has not fired. It asks no policy, nor for a pause.

    What has fired is known for 30 days; a tick that fired before that is enqueued again. A time without a zone is meant
    in the schedule's.
    """
    from pgqueue.errors import InvalidScheduleError  # noqa: PLC0415

    with context.client() as client:
        record = client.get_schedule(name)
        last = None if end is None else _time(record, "--to", end)
        ticks = record.ticks_between(_time(record, "--from", start), last, _MOST)
        if dry_run:
            _tell_backfill(context, name, len(ticks), None)
            return
        if len(ticks) > _UNASKED and not yes:
            raise InvalidScheduleError(f"that is {len(ticks)} ticks; to enqueue so many jobs, say --yes")
        ids: list[int] = []
        for nth in range(0, len(ticks), _UNASKED):
            some = ticks[nth : nth + _UNASKED]
            ids += client.backfill(name, some[0], some[-1] + timedelta(microseconds=1), limit=_UNASKED)
    _tell_backfill(context, name, len(ticks), ids)


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _job(own: App | None, task: str, payload: str, given: dict[str, Any]) -> JobSpec:
    """What a tick enqueues; checked against the task's signature if there is an app."""
    import orjson  # noqa: PLC0415

    from pgqueue.job import JobSpec, parse_payload  # noqa: PLC0415

    text = parse_payload(payload)
    if own is None:
        return JobSpec.make(task, **given)._replace(payload=text)
    known = own.get_task(task)
    known.arguments.load(text)  # says what does not fit
    value = orjson.loads(text)
    call: Any = known.options(**given)
    job: JobSpec = call.job(value) if known.arguments.raw else call.job(**value)
    return job


def _time(record: ScheduleRecord, flag: str, text: str) -> datetime:
    from pgqueue.errors import InvalidScheduleError  # noqa: PLC0415

    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidScheduleError(
            f"{flag} must be a time such as 2030-01-31, 2030-01-31T09:00 or 2030-01-31T09:00:00+01:00; not {text!r}"
        ) from None
    return record.timetable.meant(time) if time.tzinfo is None else time


def _row(record: ScheduleRecord) -> tuple[Any, ...]:
    state = "paused" if record.paused else "can't tick" if record.problem is not None else "on"
    return (
        record.name, record.expression, record.time_zone, record.task, record.queue,
        None if record.next_tick is None else _local(record, record.next_tick),
        None if record.last_tick is None else ago(record.last_tick),
        state, "code" if record.declared else "hand",
    )  # fmt: skip


def _local(record: ScheduleRecord, tick: datetime) -> str:
    return f"{record.timetable.local(tick):%Y-%m-%d %H:%M:%S %Z}"


def _coming(record: ScheduleRecord) -> str:
    if record.paused or record.next_tick is None:
        return "paused" if record.paused else "can't tick"
    return f"next tick {_local(record, record.next_tick)}"


def _tell(context: Context, name: str, *, paused: bool, changed: bool, more: str = "") -> None:
    if context.json:
        print_json({"schedule": name, "paused": paused, "changed": changed})
    else:
        typer.echo(f"{show(name)} {'paused' if paused else 'resumed'}{'' if changed else ' already'}{more}")


def _tell_backfill(context: Context, name: str, ticks: int, ids: list[int] | None) -> None:
    if context.json:
        print_json({"schedule": name, "ticks": ticks, "job_ids": ids})
    elif ids is None:
        typer.echo(f"{ticks} ticks")
    else:
        fired = ticks - len(ids)
        typer.echo(f"{len(ids)} enqueued{f'; {fired} had fired before' if fired else ''}")
