"""``pgq queue``: what waits where; pause, resume, purge; limits; how long ended jobs are kept."""

from __future__ import annotations

import sys
from dataclasses import asdict
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from pgqueue.cli.options import Context, QueueArgument, command, make_group
from pgqueue.cli.person import confirm
from pgqueue.cli.serving import count_servers
from pgqueue.cli.text import print_json, print_table, show, span
from pgqueue.durations import format_duration, parse_duration

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pgqueue.statements import QueueSettings, QueueStats, WorkerRecord

COUNTED: Final = ("available", "scheduled", "retrying", "blocked", "running", "completed", "dead", "cancelled")
LIMITS: Final = ("max_running", "per_key", "rate", "burst", "key_rate", "key_burst", "ageing")
_ROOMY: Final = 110  # columns of a terminal that has room for every state
_UNITS: Final = (("s", 1), ("m", 60), ("h", 3_600), ("d", 86_400))

app = make_group(
    "queue", "Queues: what waits in each; pause, resume, limit and purge one; how long ended jobs are kept."
)


@command(app, "list")
def list_queues(context: Context) -> None:
    """Print every queue with what waits, runs and has ended in it."""
    with context.client() as client:
        queues = client.queues()
        limits = {settings.name: settings for settings in client.queue_settings()}
        workers = [] if context.json else client.workers()
    if context.json:
        print_json([{**asdict(queue), "limits": _limits_of(limits.get(queue.queue))} for queue in queues])
    else:
        print_queues(queues, workers, limits)


@command(app)
def pause(context: Context, queue: QueueArgument) -> None:
    """Have workers take nothing more from a queue; what runs goes on."""
    with context.client() as client:
        changed = client.pause(queue)
    _tell(context, queue, paused=True, changed=changed)


@command(app)
def resume(context: Context, queue: QueueArgument) -> None:
    """Have workers take jobs from a paused queue again."""
    with context.client() as client:
        changed = client.resume(queue)
    _tell(context, queue, paused=False, changed=changed)


@command(app)
def limit(
    context: Context,
    queue: QueueArgument,
    max_running: Annotated[
        str | None, typer.Option(metavar="N", help="Jobs of the queue running at once, on all workers; none: no limit.")
    ] = None,
    per_key: Annotated[
        str | None,
        typer.Option(metavar="N", help="The same for each group key. 1, the default: in order; 0: no limit, no order."),
    ] = None,
    rate: Annotated[
        str | None, typer.Option(metavar="N/UNIT", help="Starts of jobs: 10/s, 600/m, 5/h, 100/d; none: no limit.")
    ] = None,
    burst: Annotated[
        str | None,
        typer.Option(metavar="N", help="Starts at once after a pause. Default: a second's worth, at least 1."),
    ] = None,
    key_rate: Annotated[str | None, typer.Option(metavar="N/UNIT", help="--rate for each group key.")] = None,
    key_burst: Annotated[str | None, typer.Option(metavar="N", help="--burst for each group key.")] = None,
    ageing: Annotated[
        str | None,
        typer.Option(metavar="DURATION", help="Waiting this long is worth one step of priority; none: no ageing."),
    ] = None,
) -> None:
    """Print the limits of a queue, or change those that are given; running workers obey within a second.

    What is not given stays; none takes a limit away.
    """
    given = {
        name: None if text == "none" else _PARSERS[name](text, name)
        for name, text in zip(LIMITS, (max_running, per_key, rate, burst, key_rate, key_burst, ageing), strict=True)
        if text is not None
    }
    with context.client() as client:
        if given:
            client.limit_queue(queue, **given)
        settings = next((known for known in client.queue_settings() if known.name == queue), None)
    limits = _limits_of(settings)
    if context.json:
        print_json({"queue": queue, **limits})
    else:
        print_table(("limit", "value"), [(name, _show_limit(name, value)) for name, value in limits.items()], empty="")


@command(app)
def purge(
    context: Context,
    queue: QueueArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask, even on a terminal.")] = False,
) -> None:
    """Delete the waiting jobs of a queue for good; what runs goes on. Asks first, but only on a terminal."""
    confirm(f"Delete the waiting jobs of queue {queue} for good?", yes=yes)
    with context.client() as client:
        count = client.purge(queue)
    if context.json:
        print_json({"queue": queue, "purged": count})
    else:
        typer.echo(f"{count} purged")


@command(app)
def retention(
    context: Context,
    state: Annotated[str | None, typer.Argument(metavar="OUTCOME", help="completed, dead or cancelled.")] = None,
    keep: Annotated[str | None, typer.Argument(metavar="DURATION", help="Keep them this long: 12h, 7d.")] = None,
) -> None:
    """Print how long ended jobs are kept in history, or set it for one outcome; it holds for all queues."""
    from pgqueue.errors import InvalidJobError  # noqa: PLC0415

    if state is not None and keep is None:
        raise InvalidJobError(f"say how long, too: pgq queue retention {state} 7d")
    with context.client() as client:
        if state is not None and keep is not None:
            client.set_retention(state, keep)
        kept = client.retention()
    if context.json:
        print_json({outcome: format_duration(value) for outcome, value in kept.items()})
    else:
        print_table(("outcome", "kept"), list(kept.items()), empty="no outcomes")


def print_queues(
    queues: list[QueueStats], workers: list[WorkerRecord], limits: dict[str, QueueSettings] | None = None
) -> None:
    """The queues as a table, with how many workers serve each; ``due for``: age of the oldest job that could run.

    On a narrow terminal, a state that no queue has a job in is left out; so are limits when there are none.
    """
    served = count_servers(workers)
    roomy = not sys.stdout.isatty() or get_terminal_size().columns >= _ROOMY
    states = [state for state in COUNTED if roomy or any(getattr(queue, state) for queue in queues)]
    shown = {name: text for name, settings in (limits or {}).items() if (text := _summary(settings))}
    columns = (*states, "due for", "workers", *(["limits"] if shown else []))
    rows = [
        (
            queue.queue,
            *(getattr(queue, state) for state in states),
            span(queue.oldest_ready_seconds) if queue.oldest_ready_seconds else "-",
            "paused" if queue.paused else show(served.get(queue.queue) or "none"),
            *([shown.get(queue.queue, "-")] if shown else []),
        )
        for queue in queues
    ]
    print_table(("queue", *columns), rows, empty="no queues yet")


def _tell(context: Context, queue: str, *, paused: bool, changed: bool) -> None:
    if context.json:
        print_json({"queue": queue, "paused": paused, "changed": changed})
    else:
        typer.echo(f"{queue} {'paused' if paused else 'resumed'}{'' if changed else ' already'}")


# -- limits ----------------------------------------------------------------------------------------------------------


def _limits_of(settings: QueueSettings | None) -> dict[str, Any]:
    """By name, durations as text; of a queue without settings, too."""
    limits = {name: getattr(settings, name, None) for name in LIMITS}
    limits["per_key"] = 1 if settings is None else settings.per_key
    limits["ageing"] = None if limits["ageing"] is None else format_duration(limits["ageing"])
    return limits


def _show_limit(name: str, value: Any) -> str:
    if value is None:
        return "none"
    return _format_rate(value) if name.endswith("rate") else str(value)


def _summary(settings: QueueSettings) -> str:
    """In a few words, what is not as it always is."""
    words: Sequence[str] = [
        "" if settings.max_running is None else f"{settings.max_running} at once",
        "" if settings.per_key == 1 else f"{settings.per_key or 'any number'} per key",
        "" if settings.rate is None else _format_rate(settings.rate),
        "" if settings.key_rate is None else f"{_format_rate(settings.key_rate)} per key",
        "" if settings.ageing is None else f"ages in {format_duration(settings.ageing)}",
    ]
    return ", ".join(filter(None, words))


def _format_rate(rate: float) -> str:
    unit, seconds = next((pair for pair in _UNITS if rate * pair[1] >= 1), _UNITS[-1])
    return f"{rate * seconds:g}/{unit}"


def _parse_rate(text: str, name: str) -> float:
    """``10/s``, ``600/m``, ``5/2h``; a number alone is per second."""
    from pgqueue.errors import InvalidJobError  # noqa: PLC0415

    count, _, period = text.partition("/")
    period = period.strip() or "s"
    try:
        return float(count) / parse_duration(period if period[0].isdigit() else f"1{period}", name).total_seconds()
    except (ValueError, ZeroDivisionError, InvalidJobError):
        raise InvalidJobError(f"{name} {text!r} is no rate; write 10/s, 600/m, 5/h or 100/d") from None


def _parse_number(text: str, name: str) -> int:
    from pgqueue.errors import InvalidJobError  # noqa: PLC0415

    try:
        return int(text)
    except ValueError:
        raise InvalidJobError(f"{name} must be a whole number or none, not {text!r}") from None


_PARSERS: Final[dict[str, Callable[[str, str], Any]]] = {
    "max_running": _parse_number, "per_key": _parse_number, "rate": _parse_rate, "burst": _parse_number,
    "key_rate": _parse_rate, "key_burst": _parse_number, "ageing": lambda text, _name: text,
}  # fmt: skip
