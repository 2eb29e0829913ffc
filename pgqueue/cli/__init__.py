"""The command ``pgq``: each module is one group of commands; here they become one tree and one entry point."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.main import get_command

from pgqueue.cli import (
    batches,
    bench,
    db,
    dead,
    demo,
    enqueue,
    jobs,
    migrate,
    queues,
    schedules,
    serve,
    stats,
    tokens,
    worker,
)
from pgqueue.cli.errors import FAILED, INTERRUPTED, report_usage
from pgqueue.cli.help import LINE, Group
from pgqueue.cli.options import Context, DebugOption, DsnOption, JsonOption, SchemaOption
from pgqueue.cli.signals import Terminated, listen_to_sigterm

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["app", "main"]

app = typer.Typer(
    name="pgq",
    cls=Group,
    rich_markup_mode=None,  # --help is plain text
    help="pgqueue: a job queue whose only server is PostgreSQL.",
    epilog="With no --dsn, PGQUEUE_DSN or DATABASE_URL, every command uses the PostgreSQL that comes with pgqueue.",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": LINE},
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version  # noqa: PLC0415 - only who asks pays for it

        typer.echo(f"pgqueue {version('pgqueue')}")
        raise typer.Exit


@app.callback()
def _root(
    ctx: typer.Context,
    dsn: DsnOption = None,
    schema: SchemaOption = None,
    json: JsonOption = False,
    debug: DebugOption = False,
    version: Annotated[  # noqa: ARG001 - its callback answers
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    ctx.obj = Context(dsn, schema, json, debug)


for module in (migrate, worker, serve, enqueue, demo, bench):
    module.register(app)
for group in (jobs, batches, dead, queues, schedules, tokens):
    app.add_typer(group.app)
stats.register(app)
app.add_typer(db.app)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and answer its exit code.

    0 done, 1 failed, 2 wrong usage, 3 database not reachable, 4 schema missing, too old or too new.

    Args:
        argv: the words after ``pgq``; default: those of this process, which then also ends in order on SIGTERM.
    """
    if argv is None:
        listen_to_sigterm()
    try:
        code: Any = get_command(app).main(
            args=None if argv is None else list(argv), prog_name="pgq", standalone_mode=False
        )
        sys.stdout.flush()
    except BrokenPipeError:  # `pgq job list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except Terminated:
        return 128 + signal.SIGTERM
    except Exception as error:  # noqa: BLE001 - usage is told, the rest raised again
        return report_usage(error)
    return code if isinstance(code, int) else 0
