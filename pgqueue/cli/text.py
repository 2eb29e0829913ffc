"""How values are shown: safe on a terminal, whole in a pipe, machine-readable with ``--json``."""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import orjson
import typer

from pgqueue.durations import format_duration

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pgqueue.job import JobRecord

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_WHOLE = 100_000  # columns of a table that goes into a pipe
_GAP = 2  # columns between columns
_LEAST = 16  # columns of a column that is cut
_SHORT = 10  # columns of a cell that is never folded


def clean(text: str) -> str:
    """Without control characters: what is in the queue must not steer the terminal."""
    return _CONTROL.sub(lambda match: repr(match[0])[1:-1], text)


def one_line(text: str) -> str:
    """On one line, without control characters."""
    return clean(" ".join(text.split()))


def styled(text: str, **style: Any) -> str:
    """The text in this style, or plain where NO_COLOR is set or the terminal is a dumb one."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return text if plain else typer.style(text, **style)


def print_json(value: Any) -> None:
    """JSON on stdout: indented on a terminal, one line in a pipe."""
    option = orjson.OPT_INDENT_2 if sys.stdout.isatty() else 0
    typer.echo(orjson.dumps(value, default=_default, option=option | orjson.OPT_NON_STR_KEYS).decode())


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, empty: str, cut_last: bool = False) -> None:
    """A table on stdout, as wide as the terminal, in a pipe as wide as it needs to be; ``empty`` if it has no row.

    With ``cut_last`` the last column is cut where a terminal ends; otherwise, long cells are folded.
    """
    rows = [[show(cell) if not isinstance(cell, int | float) else cell for cell in row] for row in rows]
    if not rows:
        typer.echo(empty)
        return
    from rich.console import Console  # noqa: PLC0415 - not for --help, and not for --json
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    console = Console(width=None if sys.stdout.isatty() else _WHOLE, highlight=False)
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    cells = [[Text(show(cell)) for cell in row] for row in rows]
    widths = [max(Text(column).cell_len, *(line[nth].cell_len for line in cells)) for nth, column in enumerate(columns)]
    if cut_last:
        widths[-1] = max(_LEAST, min(widths[-1], console.width - sum(widths[:-1]) - _GAP * (len(widths) - 1)))
        for line in cells:
            line[-1].truncate(widths[-1], overflow="ellipsis")
    for nth, column in enumerate(columns):
        numbers = all(isinstance(row[nth], int | float) for row in rows)
        table.add_column(column, justify="right" if numbers else "left", overflow="fold", no_wrap=widths[nth] <= _SHORT)
    for line in cells:
        table.add_row(*line)
    with console.capture() as shown:
        console.print(table)
    typer.echo("\n".join(line.rstrip() for line in shown.get().splitlines()))


def span(seconds: float) -> str:
    """How long that is, in whole seconds, roughly: ``4s``, ``2m10s``, ``3h5m``, ``2d``."""
    whole = max(0, round(seconds))
    for unit, grain in ((86_400, 3_600), (3_600, 60)):
        if whole >= unit:
            whole -= whole % grain
    return format_duration(timedelta(seconds=whole)) if whole else "0s"


def ago(moment: datetime) -> str:
    """How long ago that was, by the clock of this machine."""
    return f"{span((datetime.now(UTC) - moment).total_seconds())} ago"


def age(record: JobRecord) -> str:
    """Goes on where the state ends: completed 3m ago, running for 4s, blocked for 2m, scheduled in 5m."""
    if record.finished_at is not None:
        return ago(record.finished_at)
    since = {"running": record.started_at, "blocked": record.created_at}.get(record.state) or record.run_at
    passed = (datetime.now(UTC) - since).total_seconds()
    return f"in {span(-passed)}" if passed < 0 else f"for {span(passed)}"


def show(value: Any) -> str:  # noqa: PLR0911 - a case per kind
    """A value as a person reads it."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z"
    if isinstance(value, timedelta):
        return format_duration(value)
    if isinstance(value, float):
        return f"{value:.1f}"
    if isinstance(value, list | tuple):
        return ", ".join(show(item) for item in value) or "-"
    return one_line(str(value))


def compact(value: Any, longest: int = 60) -> str:
    """JSON on one line, cut."""
    text = orjson.dumps(value, default=_default, option=orjson.OPT_NON_STR_KEYS).decode()
    return clean(text if len(text) <= longest else f"{text[: longest - 1]}…")


def _default(value: Any) -> Any:
    if isinstance(value, timedelta):
        return format_duration(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)  # pragma: no cover - orjson knows dataclasses itself
    return str(value)
