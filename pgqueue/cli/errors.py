"""How an error leaves the command line: one line on stderr which names the remedy, and an exit code."""

from __future__ import annotations

import re
import sys
import traceback
from contextlib import contextmanager
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final

import typer

from pgqueue.cli.help import did_you_mean
from pgqueue.cli.text import one_line, styled
from pgqueue.errors import (
    DatabaseUnreachableError,
    EmbeddedServerError,
    InvalidJobError,
    PgqueueError,
    SchemaError,
    SettingsError,
    UnknownTaskError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

DONE: Final = 0
FAILED: Final = 1
USAGE: Final = 2
UNREACHABLE: Final = 3
SCHEMA: Final = 4
INTERRUPTED: Final = 130

_LIBPQ_ASKS: Final = re.compile(r"\s*Is the server running[^?]*\?")

_CODES: Final = (
    ((InvalidJobError, SettingsError, UnknownTaskError), USAGE),
    ((DatabaseUnreachableError, EmbeddedServerError), UNREACHABLE),
    ((SchemaError,), SCHEMA),
)


def exit_code(error: BaseException) -> int:
    """The exit code that an error means."""
    return next((code for classes, code in _CODES if isinstance(error, classes)), FAILED)


@contextmanager
def rendered(*, debug: bool) -> Iterator[None]:
    """Turn whatever a command raises into its line on stderr and its exit code."""
    try:
        yield
    except (BrokenPipeError, typer.Exit, typer.Abort, typer.BadParameter):
        raise
    except Exception as error:  # noqa: BLE001 - a command ends with a line, not with a traceback
        if debug:
            traceback.print_exc()
        say(_line(error))
        raise typer.Exit(exit_code(error)) from None


def report_usage(error: Exception) -> int:
    """Say what was wrong with the words after ``pgq``; anything else is raised again."""
    code, message = getattr(error, "exit_code", None), getattr(error, "format_message", None)
    if code is None or message is None:
        raise error
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()  # type: ignore[attr-defined]
        return USAGE
    ctx = getattr(error, "ctx", None)
    text = _option_that_is_none(error, ctx) or message().rstrip(".")
    see = f"{ctx.command_path if ctx else 'pgq'} --help"
    say(f"{text[0].lower()}{text[1:]}{' See' if text.endswith('?') else '; see'}: {see}")
    return USAGE


def _option_that_is_none(error: Exception, ctx: Any) -> str | None:
    if type(error).__name__ != "NoSuchOption" or ctx is None:
        return None
    name = str(getattr(error, "option_name", ""))
    known = [spelling for parameter in ctx.command.get_params(ctx) for spelling in parameter.opts]
    return f"no option {name}{did_you_mean(get_close_matches(name, known, n=1))}"


def say(message: str) -> None:
    """One line on stderr, its first word in red on a terminal."""
    typer.echo(styled("error: ", fg="red", bold=True) + one_line(message), err=True)
    sys.stderr.flush()


def _line(error: Exception) -> str:
    message = str(error) or type(error).__name__
    if isinstance(error, DatabaseUnreachableError):
        message = _LIBPQ_ASKS.sub("", message)
        return f"{message}; is the server up, and are --dsn, PGQUEUE_DSN or DATABASE_URL right?"
    if isinstance(error, EmbeddedServerError):
        return f"{message}; or name a server of your own with --dsn or PGQUEUE_DSN"
    if isinstance(error, PgqueueError):
        return message
    return f"{type(error).__name__}: {message}; --debug shows the traceback"
