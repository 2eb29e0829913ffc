"""``pgq migrate``: bring the schema up, show its SQL, or check it."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from pgqueue.cli.errors import SCHEMA
from pgqueue.cli.options import Context, command
from pgqueue.cli.text import print_json

if TYPE_CHECKING:
    from collections.abc import Iterator


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app)(migrate)


def migrate(
    context: Context,
    sql: Annotated[
        bool, typer.Option("--sql", help="Print the SQL for an empty database instead; connects to nothing.")
    ] = False,
    to: Annotated[
        str, typer.Option(metavar="REVISION", help="Go up or down to this revision: head, base, -1, or its number.")
    ] = "head",
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing; exit with 4 when the schema does not fit this pgqueue.")
    ] = False,
) -> None:
    """Create the schema, or bring it to the version of this pgqueue. Running it twice, or two at once, is harmless."""
    from pgqueue.errors import SettingsError  # noqa: PLC0415

    if sql and check:
        raise SettingsError("say --sql or --check, not both")
    if check and to != "head":
        raise SettingsError("say --check or --to, not both")
    if sql:
        _print_sql(context, to)
    elif check:
        _check(context)
    else:
        _migrate(context, to)


def _print_sql(context: Context, to: str) -> None:
    from pgqueue.migrations import migration_sql  # noqa: PLC0415

    schema = context.settings().schema
    with _revision_errors(to):
        text = migration_sql(schema, _known(to, downwards=False))
    if context.json:
        print_json({"sql": text})
    else:
        typer.echo(text, nl=False)


def _check(context: Context) -> None:
    from pgqueue.errors import SchemaError  # noqa: PLC0415
    from pgqueue.revision import current_revision, head_revision, require_head  # noqa: PLC0415

    settings = context.settings()
    revision = current_revision(settings.resolve_dsn(), schema=settings.schema)
    try:
        require_head(revision, settings.schema)
    except SchemaError:
        if not context.json:
            raise
        print_json({"schema": settings.schema, "revision": revision, "needed": head_revision(), "fits": False})
        raise typer.Exit(SCHEMA) from None
    if context.json:
        print_json({"schema": settings.schema, "revision": revision, "needed": revision, "fits": True})
    else:
        typer.echo(f"schema {settings.schema} is at {revision}, as this pgqueue needs it")


def _migrate(context: Context, to: str) -> None:
    from pgqueue.migrations import migrate  # noqa: PLC0415
    from pgqueue.revision import current_revision  # noqa: PLC0415

    settings = context.settings()
    to = _known(to, downwards=True)
    dsn = settings.resolve_dsn()
    before = current_revision(dsn, schema=settings.schema)
    with _revision_errors(to):
        migrate(dsn, schema=settings.schema, to=to)
    after = current_revision(dsn, schema=settings.schema)
    if context.json:
        print_json({"schema": settings.schema, "before": before, "revision": after})
    elif before == after:
        typer.echo(f"schema {settings.schema} is at {after or 'nothing'} already")
    else:
        typer.echo(f"schema {settings.schema}: {before or 'nothing'} → {after or 'nothing'}")


def _known(to: str, *, downwards: bool) -> str:
    """Something that can be a revision; whether it is one, the scripts know."""
    from pgqueue.errors import SettingsError  # noqa: PLC0415

    shape = r"head|base|[+-]\d+|\w+" if downwards else r"head|(?!base)\w+"
    if not re.fullmatch(shape, to, re.ASCII):
        raise SettingsError(f"--to must be head, a revision{', base, or -1' if downwards else ''}; not {to!r}")
    return to


@contextmanager
def _revision_errors(to: str) -> Iterator[None]:
    """A revision that there is not is wrong usage, not a broken schema."""
    from alembic.util import CommandError  # noqa: PLC0415

    from pgqueue.errors import SchemaError, SettingsError  # noqa: PLC0415

    try:
        yield
    except (CommandError, SchemaError) as error:
        if isinstance(error, SchemaError) and "no revision" not in str(error):
            raise
        raise SettingsError(f"--to {to}: {error}") from error
