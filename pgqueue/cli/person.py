"""Asking a person, and hints for one: nothing of it where nobody is looking."""

from __future__ import annotations

import sys
from typing import TextIO

import typer

from pgqueue.cli.errors import FAILED, say
from pgqueue.cli.text import one_line, styled


def confirm(question: str, *, yes: bool) -> None:
    """Ask a person; a script means what it says."""
    if not yes and stdin().isatty() and not typer.confirm(question, err=True):
        say("nothing was deleted")
        raise typer.Exit(FAILED)


def note(message: str) -> None:
    """A hint on stderr for a person; nothing where none is looking."""
    if sys.stderr.isatty():
        typer.echo(styled(f"note: {one_line(message)}", dim=True), err=True)


def stdin() -> TextIO:
    """Where an answer would come from."""
    return sys.stdin
