"""``pgq bench``: what the queue does on this database, beside what bare SQL does there."""

from __future__ import annotations

import signal
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from pgqueue.cli.errors import FAILED, say
from pgqueue.cli.options import Context, command
from pgqueue.cli.text import one_line, print_json, styled
from pgqueue.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pgqueue.bench.measure import Figures, Report

_SLOWER_ON_DISK: Final = ("fsync", "synchronous_commit")


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app)(bench)


def bench(
    context: Context,
    seconds: Annotated[
        float,
        typer.Option(
            min=0.05, max=60, metavar="N", help="Measure each figure for about so many seconds. Default: 3, 25 in all."
        ),
    ] = 3.0,
    only: Annotated[
        str | None, typer.Option(metavar="A,B", help="Measure only these of enqueue, bulk, drain, latency.")
    ] = None,
) -> None:
    """Measure in half a minute how fast your database enqueues and one worker works, beside what bare SQL does there.

    Works in a schema of its own, which is gone afterwards: your jobs and your workers have no part in it. Exits with 1
    when not every job ran exactly once.
    """
    from pgqueue.bench.measure import measure  # noqa: PLC0415

    if context.schema is not None:
        raise SettingsError("the benchmark makes a schema of its own and drops it; leave --schema out")
    chosen, settings, began = _split(only), context.settings(), time.monotonic()
    with _told_to_stop():
        report = measure(settings, chosen, seconds, _progress)
    if context.json:
        print_json({"ok": not report.problems, **asdict(report), "seconds": round(time.monotonic() - began, 1)})
    else:
        _show(report)
    for problem in report.problems:
        say(problem)
    if report.problems:
        raise typer.Exit(FAILED)


def _split(only: str | None) -> list[str]:
    from pgqueue.bench.measure import REGIMES  # noqa: PLC0415

    names = list(REGIMES) if only is None else [name.strip() for name in only.split(",")]
    if unknown := [name for name in names if name not in REGIMES]:
        raise SettingsError(f"--only takes {', '.join(REGIMES)}; not {unknown[0]!r}")
    return [name for name in REGIMES if name in names]


def _progress(line: str) -> None:
    if sys.stderr.isatty():
        typer.echo(styled(line, dim=True), err=True)


def _show(report: Report) -> None:
    typer.echo(f"{'':<30}{'jobs/s':>10}{'p50 ms':>10}{'p99 ms':>10}{'of floor':>10}")
    for measure in report.measures:
        if measure.floor is not None:
            typer.echo(_line(measure.floor, None))
        typer.echo(_line(measure.queue, measure.ratio))
    facts = report.server
    typer.echo(
        f"\nPostgreSQL {one_line(facts['server_version'])}, fsync {facts['fsync']}, synchronous_commit "
        f"{facts['synchronous_commit']}, round trip {facts['round_trip_ms']:.2f} ms; {facts['client_cpus']} CPUs here"
    )
    if off := [name for name in _SLOWER_ON_DISK if facts[name] == "off"]:
        typer.echo(
            f"hint: with {' and '.join(off)} off no commit waits for the disk: a crash of the server may lose the "
            "latest ones, and these figures are better than those of a durable server"
        )


def _line(figures: Figures, ratio: float | None) -> str:
    cells = ((figures.jobs_per_second, ",.0f"), (figures.p50_ms, ".2f"), (figures.p99_ms, ".2f"), (ratio, ".2f"))
    return f"{figures.name:<30}{''.join(f'{_cell(value, style):>10}' for value, style in cells)}".rstrip()


def _cell(value: float | None, style: str) -> str:
    return "" if value is None else format(value, style)


class _Stopped(KeyboardInterrupt):
    """A signal, as Ctrl-C: psycopg then cancels what it waits for."""


@contextmanager
def _told_to_stop() -> Iterator[None]:
    """SIGTERM and the end of the terminal stop the run as Ctrl-C does: everything is cleared up.

    Python forgets what a signal raises while a destructor runs: then the signal is given once more.
    """

    def stop(number: int, _frame: Any) -> None:
        raise _Stopped(number)

    def again(lost: sys.UnraisableHookArgs) -> None:
        if isinstance(lost.exc_value, _Stopped):
            threading.Timer(0.01, signal.pthread_kill, (threading.get_ident(), lost.exc_value.args[0])).start()
        else:
            unraisable(lost)

    on_main_thread = threading.current_thread() is threading.main_thread()
    here = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if on_main_thread else ()
    heard = [number for number in here if signal.getsignal(number) is not signal.SIG_IGN]  # as under nohup
    unraisable, sys.unraisablehook = sys.unraisablehook, again
    before = {number: signal.signal(number, stop) for number in heard}
    try:
        yield
    except _Stopped as stopped:
        raise typer.Exit(128 + stopped.args[0]) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        sys.unraisablehook = unraisable
