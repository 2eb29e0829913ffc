"""``pgq db``: the embedded PostgreSQL."""

from __future__ import annotations

from typing import Annotated

import typer

from pgqueue.cli.help import Group
from pgqueue.cli.options import Context, callback, command
from pgqueue.cli.text import print_json

app = typer.Typer(name="db", cls=Group)
ForceOption = Annotated[
    bool, typer.Option("--force", help="Do it under other processes that use the server; their connections break.")
]


@callback(app, invoke_without_command=True)
def db(context: Context, ctx: typer.Context) -> None:
    """Print the DSN and the status of the embedded PostgreSQL; starts nothing."""
    if ctx.invoked_subcommand is not None:
        return
    from pgqueue.embedded import status  # noqa: PLC0415

    found = status()
    facts = {
        "dsn": found.dsn,
        "status": "running" if found.running else "stopped",
        "version": found.version,
        "data": str(found.data_dir),
        "binaries": str(found.bin_dir),
        "log": str(found.log_file),
    }
    if context.json:
        print_json(facts)
    else:
        for name, value in facts.items():
            typer.echo(f"{name:<10} {value}")


@command(app)
def stop(context: Context, force: ForceOption = False) -> None:
    """Stop the embedded PostgreSQL; its data stays. Usually it stops by itself, after its last client."""
    from pgqueue.embedded import stop  # noqa: PLC0415

    stopped = stop(force=force)
    if context.json:
        print_json({"stopped": stopped})
    else:
        typer.echo("stopped" if stopped else "it was not running")


@command(app)
def reset(
    context: Context,
    yes: Annotated[bool, typer.Option("--yes", help="Yes, delete everything in it.")] = False,
    force: ForceOption = False,
) -> None:
    """Stop the embedded PostgreSQL and delete its data, all of it."""
    from pgqueue.embedded import reset, status  # noqa: PLC0415
    from pgqueue.errors import SettingsError  # noqa: PLC0415

    if not yes:
        raise SettingsError(f"this deletes every job in {status().data_dir}; if you mean it: pgq db reset --yes")
    reset(force=force)
    if context.json:
        print_json({"reset": True})
    else:
        typer.echo("reset: the data is gone, the next command starts afresh")
