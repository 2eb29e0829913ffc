"""The options that every command takes, before or after its name, and the way from them to the queue."""

from __future__ import annotations

import functools
import inspect
import os
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from pgqueue.cli.errors import rendered
from pgqueue.cli.help import Command, Group
from pgqueue.cli.signals import attended

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pgqueue.app import App
    from pgqueue.client import Client
    from pgqueue.settings import Settings

DsnOption = Annotated[
    str | None,
    typer.Option(
        metavar="DSN",
        help="Use this PostgreSQL (URI or libpq string). "
        "Default: PGQUEUE_DSN, else DATABASE_URL, else the embedded server.",
    ),
]
SchemaOption = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Use the queue in this schema. Default: PGQUEUE_SCHEMA, else pgqueue."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print machine-readable JSON on stdout.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error, and debug messages.")]

JobIdArgument = Annotated[int, typer.Argument(metavar="ID", min=1, max=2**63 - 1, help="The job's id.")]
QueueArgument = Annotated[str, typer.Argument(metavar="QUEUE", help="The queue's name.")]
QueueFilter = Annotated[str | None, typer.Option("--queue", "-q", metavar="NAME", help="Only jobs of this queue.")]
TaskFilter = Annotated[str | None, typer.Option("--task", metavar="NAME", help="Only jobs of this task.")]
TagFilter = Annotated[
    str | None, typer.Option("--tag", metavar="TAG", help="Only jobs with this text in the list tags of their meta.")
]
SinceFilter = Annotated[
    str | None,
    typer.Option(
        "--since",
        metavar="WHEN",
        help="Only jobs created at this time (with its zone) or later, or since 30s, 5m, 2d ago.",
    ),
]
LimitOption = Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, metavar="N", help="Print at most N.")]
BeforeOption = Annotated[
    int | None,
    typer.Option(min=1, max=2**63 - 1, metavar="ID", help="Go on below this id, the last one of the page before."),
]
WideOption = Annotated[
    bool, typer.Option("--wide", "-w", help="Print all columns: priority, times, worker, payload and last error.")
]
AppOption = Annotated[
    str | None,
    typer.Option("--app", metavar="MODULE:APP", help="Import this app, looking in the current folder first."),
]

_INSUFFICIENT_PRIVILEGE: Final = "42501"


@dataclass(frozen=True, slots=True)
class Context:
    """What the shared options said, and what follows from it."""

    dsn: str | None = None
    schema: str | None = None
    json: bool = False
    debug: bool = False

    def merged(self, inner: Context) -> Context:
        """With what was said further to the right."""
        return Context(
            inner.dsn or self.dsn, inner.schema or self.schema, inner.json or self.json, inner.debug or self.debug
        )

    def settings(self, **given: Any) -> Settings:
        """Flag, else environment, else default; raises SettingsError."""
        from pgqueue.settings import Settings  # noqa: PLC0415 - imports that cost are late: --help is fast

        return _checked(Settings.load(dsn=self.dsn, schema=self.schema, **given))

    def settings_over(self, base: Settings, **given: Any) -> Settings:
        """Flag, else environment, else what the app's own settings say."""
        from pgqueue.settings import Settings, from_environment  # noqa: PLC0415

        given = {"dsn": self.dsn, "schema": self.schema, **given}
        loaded = Settings.load(**given)
        said = {
            field.name: getattr(loaded, field.name)
            for field in fields(Settings)
            if given.get(field.name) is not None or _is_set(from_environment(field.name, os.environ))
        }
        return _checked(replace(base, **said))

    @contextmanager
    def client(self, own: App | None = None) -> Iterator[Client]:
        """The queue's verbs, on a schema that fits; closed at the end. ``own``: those of this app."""
        with self.app(own) as app:
            yield app.client

    @contextmanager
    def app(self, own: App | None = None) -> Iterator[App]:
        """This app, or one without tasks, on a schema that fits; closed at the end."""
        from pgqueue.app import App  # noqa: PLC0415

        if own is None:
            app = App(settings=ready(self.settings()))
        else:
            app = own
            app.configure(ready(app.settings))
        try:
            yield app
        finally:
            app.close()


def ready(settings: Settings) -> Settings:
    """The settings again; makes sure that the schema fits, and makes it on the embedded server.

    Raises:
        DatabaseUnreachableError: no connection.
        SchemaError: the schema is missing (on a server that is not ours), older or newer.
        EmbeddedServerError: the embedded server could not be started.
    """
    from pgqueue.errors import DatabaseError  # noqa: PLC0415
    from pgqueue.revision import current_revision, require_head  # noqa: PLC0415

    dsn = settings.resolve_dsn()
    try:
        revision = current_revision(dsn, schema=settings.schema)
    except DatabaseError as error:
        if getattr(error.__cause__, "sqlstate", None) != _INSUFFICIENT_PRIVILEGE:
            raise
        return settings  # a role that may enqueue and no more: the database will tell
    if revision is None and settings.dsn is None:
        from pgqueue.migrations import migrate  # noqa: PLC0415

        migrate(dsn, schema=settings.schema)
    else:
        require_head(revision, settings.schema)
    return settings


def ready_attended(settings: Settings) -> Settings:
    """The same for what runs for long: a signal is heard at once. An embedded server is started on the main thread."""
    return ready(settings) if settings.dsn is None else attended(lambda: ready(settings))


def command(
    group: typer.Typer, name: str | None = None, *, kind: type[Command] = Command
) -> Callable[[Callable[..., None]], None]:
    """Register ``function(context, …)`` as a command that also takes the shared options."""

    def register(function: Callable[..., None]) -> None:
        group.command(name, cls=kind)(_with_shared_options(function))

    return register


def callback(group: typer.Typer, **options: Any) -> Callable[[Callable[..., None]], None]:
    """The same for what a group does by itself."""

    def register(function: Callable[..., None]) -> None:
        group.callback(**options)(_with_shared_options(function))

    return register


def make_group(name: str, about: str) -> typer.Typer:
    """A group of commands which takes the shared options, too."""
    group = typer.Typer(name=name, help=about, cls=Group, no_args_is_help=True)
    callback(group)(_remember)
    return group


def _remember(context: Context) -> None:
    """A group does nothing but keep its options."""


def _with_shared_options(function: Callable[..., None]) -> Callable[..., None]:
    """The function as typer is to see it: with --dsn, --schema, --json and --debug, of which it gets the context.

    typer takes a command's options from its signature and annotations, so both are written here; ``__wrapped__`` goes,
    because inspect would follow it back to the function's own.
    """

    def run(ctx: typer.Context, **arguments: Any) -> None:
        said = Context(*(arguments.pop(name) for name in _SHARED))
        ctx.obj = (ctx.obj or Context()).merged(said)
        if "ctx" in own:
            arguments["ctx"] = ctx
        with rendered(debug=ctx.obj.debug):
            function(ctx.obj, **arguments)

    functools.update_wrapper(run, function)
    del run.__wrapped__  # type: ignore[attr-defined]
    own = dict(list(inspect.signature(function, eval_str=True).parameters.items())[1:])
    shown = [parameter.replace(kind=_KEYWORD) for name, parameter in own.items() if name != "ctx"]
    shared = [
        inspect.Parameter(name, _KEYWORD, annotation=kind, default=default) for name, (kind, default) in _SHARED.items()
    ]
    parameters = [inspect.Parameter("ctx", _KEYWORD, annotation=typer.Context), *shown, *shared]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


_KEYWORD: Final = inspect.Parameter.KEYWORD_ONLY
_SHARED: Final[dict[str, tuple[Any, Any]]] = {
    "dsn": (DsnOption, None),
    "schema": (SchemaOption, None),
    "json": (JsonOption, False),
    "debug": (DebugOption, False),
}


def _is_set(found: tuple[str, str | None]) -> bool:
    return found[1] is not None


def _checked(settings: Settings) -> Settings:
    """A DSN that is none is wrong usage, not an unreachable database."""
    from pgqueue.connection import connection_string  # noqa: PLC0415
    from pgqueue.errors import DatabaseError, SettingsError  # noqa: PLC0415

    for dsn in (settings.dsn, settings.listen_dsn):
        try:
            if dsn is not None:
                connection_string(dsn)
        except DatabaseError as error:
            raise SettingsError(f"{error}; write postgresql://user@host/database") from None
    return settings
