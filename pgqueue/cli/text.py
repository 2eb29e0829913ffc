"""How values are shown: safe on a terminal, whole in a pipe, machine-readable with ``--json``."""

from __future__ import annotations

import dataclasses
import re
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import orjson
import typer

from pgqueue.durations import format_duration

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_WHOLE = 100_000  # columns of a table that goes into a pipe


def clean(text: str) -> str:
    """Without control characters: what is in the queue must not steer the terminal."""
    return _CONTROL.sub(lambda match: repr(match[0])[1:-1], text)


def one_line(text: str) -> str:
    """On one line, without control characters."""
    return clean(" ".join(text.split()))


def print_json(value: Any) -> None:
    """JSON on stdout: indented on a terminal, one line in a pipe."""
    option = orjson.OPT_INDENT_2 if sys.stdout.isatty() else 0
    typer.echo(orjson.dumps(value, default=_default, option=option | orjson.OPT_NON_STR_KEYS).decode())


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, empty: str) -> None:
    """A table on stdout, as wide as the terminal, in a pipe as wide as it needs to be; ``empty`` if it has no row."""
    rows = list(rows)
    if not rows:
        typer.echo(empty)
        return
    from rich import box  # noqa: PLC0415 - not for --help, and not for --json
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for nth, column in enumerate(columns):
        numbers = all(isinstance(row[nth], int | float) for row in rows)
        table.add_column(column, justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(show(cell)) for cell in row))
    Console(width=None if sys.stdout.isatty() else _WHOLE, highlight=False).print(table)


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
