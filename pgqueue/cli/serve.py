"""``pgq serve``: the queue over HTTP."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Annotated, Final

import typer

from pgqueue.cli.errors import FAILED
from pgqueue.cli.options import Context, command, ready_attended

if TYPE_CHECKING:
    from pgqueue.app import App

log = logging.getLogger(__name__)

_PORT: Final = 8080
_MOST_PORT: Final = 65_535


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app)(serve)


def serve(
    context: Context,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Listen here. Another address than this machine's needs a token.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=_MOST_PORT,
            metavar="N",
            help="Listen on this port, 0: on any free one. Default: PORT, else 8080.",
        ),
    ] = None,
    lease: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION",
            help="Hold a leased job this long where the client does not say. Default: LEASE_DURATION, else 30s.",
        ),
    ] = None,
    redact: Annotated[
        str | None,
        typer.Option(
            metavar="A,B", help="Do not show the values of these fields when jobs are read. Default: PGQUEUE_REDACT."
        ),
    ] = None,
    shutdown_timeout: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION",
            help="Wait this long for requests when told to stop. Default: SHUTDOWN_TIMEOUT, else 30s.",
        ),
    ] = None,
    log_format: Annotated[
        str | None,
        typer.Option(metavar="text|json", help="Write logs (to stderr) like this. Default: LOG_FORMAT, else text."),
    ] = None,
) -> None:
    """Serve the queue over HTTP until SIGTERM or Ctrl-C: enqueue, lease and finish jobs in any language.

    Also recovers expired leases and fires schedules, as workers do. Needs the extra: pip install 'pgqueue[server]'.
    """
    from pgqueue.app import App  # noqa: PLC0415
    from pgqueue.durations import parse_duration  # noqa: PLC0415
    from pgqueue.errors import SettingsError  # noqa: PLC0415
    from pgqueue.logs import configure_logging  # noqa: PLC0415

    try:
        from pgqueue.http import LOOPBACK, create_app  # noqa: PLC0415
        from pgqueue.http.server import address, is_loopback, listen, run  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise SettingsError(f"pgq serve needs the package {error.name}; run: pip install 'pgqueue[server]'") from None

    for flag, text in (("--lease", lease), ("--shutdown-timeout", shutdown_timeout)):
        if text is not None:
            parse_duration(text, flag)
    settings = context.settings(
        lease_duration=lease,
        shutdown_timeout=shutdown_timeout,
        log_format=log_format or ("json" if context.json else None),
    )
    configure_logging(settings.log_format, logging.DEBUG if context.debug else logging.INFO)
    bound = listen(host, _port(port))
    queue = App(settings=ready_attended(settings))
    if not is_loopback(bound) and not _has_tokens(queue):
        raise SettingsError(
            f"without a token anybody who reaches {host} could use the queue; "
            "run: pgq token create NAME --scope admin, or leave --host out"
        )
    names = redact if redact is not None else os.environ.get("PGQUEUE_REDACT", "")
    hidden = [name.strip() for name in names.split(",") if name.strip()]
    api = create_app(queue, redact=hidden, hosts=[*LOOPBACK, host, str(bound.getsockname()[0])])
    typer.echo(f"pgqueue serves on {address(bound)}", err=True)
    if not run(api, bound, settings.shutdown_timeout.total_seconds()):
        raise typer.Exit(FAILED)


def _port(given: int | None) -> int:
    from pgqueue.errors import SettingsError  # noqa: PLC0415
    from pgqueue.settings import from_environment  # noqa: PLC0415

    if given is not None:
        return given
    source, text = from_environment("port", os.environ)
    if text is None:
        return _PORT
    if not text.isdecimal() or int(text) > _MOST_PORT:
        raise SettingsError(f"{source} must be 0 to {_MOST_PORT}, not {text!r}")
    return int(text)


def _has_tokens(queue: App) -> bool:
    try:
        return queue.client.has_tokens()
    finally:
        queue.close()
