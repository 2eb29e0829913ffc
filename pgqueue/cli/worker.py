"""``pgq worker``: run jobs, in this process or in several."""

from __future__ import annotations

import logging
import os
import random
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from pgqueue.cli.errors import DONE
from pgqueue.cli.options import AppOption, Context, command, ready_attended
from pgqueue.cli.signals import Terminated

if TYPE_CHECKING:
    from pgqueue.app import App
    from pgqueue.metrics.watch import Watch
    from pgqueue.settings import Settings
    from pgqueue.worker import Worker

log = logging.getLogger(__name__)

_SLOWEST_TRY: Final = 30.0  # seconds
_MOST_PROCESSES: Final = 256
_MOST_NAMED: Final = 6
_SUPERVISED: Final = "PGQUEUE_SUPERVISED"  # set by our supervisor


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app)(worker)


def worker(
    context: Context,
    app: AppOption = None,
    queues: Annotated[
        str | None,
        typer.Option(
            "--queues", "-q", metavar="A,B", help="Take jobs from these queues. Default: those of the app's tasks."
        ),
    ] = None,
    slots: Annotated[
        int | None,
        typer.Option(metavar="N", help="Run at most N jobs at the same time in each process. Default: SLOTS, else 50."),
    ] = None,
    processes: Annotated[
        int,
        typer.Option(
            min=1, max=_MOST_PROCESSES, metavar="N", help="Start N such processes, and restart any that dies."
        ),
    ] = 1,
    lease: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION", help="Hold a job this long without a renewal. Default: LEASE_DURATION, else 30s."
        ),
    ] = None,
    poll: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION",
            help="Look for jobs at least this often when NOTIFY does not reach it. Default: POLL_INTERVAL, else 1s.",
        ),
    ] = None,
    shutdown_timeout: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION",
            help="Wait this long for running jobs when told to stop. Default: SHUTDOWN_TIMEOUT, else 30s.",
        ),
    ] = None,
    exec_: Annotated[
        str | None,
        typer.Option(
            "--exec",
            metavar="COMMAND",
            help="Run this shell command for every job of any task: payload on stdin, facts in "
            "PGQUEUE_JOB_ID, _TASK, _QUEUE, _ATTEMPT, _MAX_ATTEMPTS, _META. Exit 0 completes with stdout as result, "
            "75 snoozes (60s, or the duration on stdout), any other status fails with the end of stderr.",
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Call the worker this in logs and lists; with --processes: NAME-1, NAME-2 and so on. "
            "Default: host, pid and a random part.",
        ),
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65_535,
            metavar="PORT",
            help="Serve /metrics, /metrics/database, /livez and /readyz here, for all --processes; 0: on a free port. "
            "Default: METRICS_PORT, else not at all.",
        ),
    ] = None,
    metrics_host: Annotated[
        str | None,
        typer.Option(metavar="HOST", help="Listen on this address for that. Default: METRICS_HOST, else 0.0.0.0."),
    ] = None,
    health_file: Annotated[
        str | None,
        typer.Option(
            metavar="PATH", help="Touch this file every second while nothing is stuck, remove it when something is."
        ),
    ] = None,
    log_format: Annotated[
        str | None,
        typer.Option(metavar="text|json", help="Write logs (to stderr) like this. Default: LOG_FORMAT, else text."),
    ] = None,
) -> None:
    """Run jobs until SIGTERM or Ctrl-C; a second one gives unfinished jobs back at once.

    Without --app it runs the built-in tasks echo, sleep and fail. Exits with 0 when all that ran was finished in order.
    """
    from pgqueue.durations import parse_duration  # noqa: PLC0415
    from pgqueue.errors import SettingsError  # noqa: PLC0415
    from pgqueue.logs import configure_logging  # noqa: PLC0415

    if app is not None and exec_ is not None:
        raise SettingsError("say --app or --exec, not both: a command runs the jobs of every task")
    if exec_ is not None and not exec_.strip():
        raise SettingsError("--exec needs a command")
    for flag, text in (("--lease", lease), ("--poll", poll), ("--shutdown-timeout", shutdown_timeout)):
        if text is not None:
            parse_duration(text, flag)
    given = {
        "slots": slots, "lease_duration": lease, "poll_interval": poll, "shutdown_timeout": shutdown_timeout,
        "log_format": log_format or ("json" if context.json else None),
        "metrics_port": metrics_port, "metrics_host": metrics_host,
    }  # fmt: skip
    chosen = _split(queues)
    own = _app(context, app, given, for_command=exec_ is not None)
    configure_logging(own.settings.log_format, logging.DEBUG if context.debug else logging.INFO)
    with _watched(own, health_file, processes) as watch:
        try:
            settings = _wait_until_ready(own.settings)
        except (Terminated, KeyboardInterrupt):
            log.info("told to stop before the database could be reached")
            raise typer.Exit(DONE) from None
        if processes > 1:
            _supervise(context, settings, _words(app, queues, exec_, given), processes, name, watch)
        own.configure(settings)
        log.info("%s", _served(own, exec_))
        raise typer.Exit(_run(_make(own, chosen, exec_, name, watch)))


def _watched(own: App, health_file: str | None, processes: int) -> Watch:
    """What shows how the worker is. Of several processes the supervisor shows it, so its copies must not."""
    from pgqueue.metrics.watch import Watch  # noqa: PLC0415

    port = None if os.environ.get(_SUPERVISED) else own.settings.metrics_port
    return Watch(own, port=port, host=own.settings.metrics_host, health_file=health_file, processes=processes)


def _served(own: App, exec_: str | None) -> str:
    """What the log says next to the worker's own line about its queues."""
    if exec_ is not None:
        return f"every task runs the command: {exec_}"
    names = sorted(own.tasks)
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return f"{len(names)} task{'s' * (len(names) != 1)}: {', '.join(names[:_MOST_NAMED])}{more}"


def _make(own: App, queues: list[str] | None, exec_: str | None, name: str | None, watch: Watch) -> Worker:
    from pgqueue.worker import Worker  # noqa: PLC0415

    catch_all = None
    if exec_ is not None:
        from pgqueue.worker.command import make_command_task  # noqa: PLC0415

        catch_all = make_command_task(own, exec_)
    return Worker(own, queues=queues, catch_all=catch_all, name=name, monitor=watch.monitor)


def _run(worker: Worker) -> int:
    from pgqueue.worker import run_worker  # noqa: PLC0415

    return run_worker(worker)


def _app(context: Context, where: str | None, given: dict[str, Any], *, for_command: bool) -> App:
    """The app named with --app under our settings; else one with the built-in tasks, or with none for --exec."""
    if for_command:
        from pgqueue.app import App  # noqa: PLC0415

        return App(settings=context.settings(**given))
    if where is None:
        from pgqueue.builtin import make_builtin_app  # noqa: PLC0415

        return make_builtin_app(context.settings(**given))
    from pgqueue.cli.load import load_configured  # noqa: PLC0415
    from pgqueue.errors import SettingsError  # noqa: PLC0415

    own = load_configured(context, where, **given)
    if not own.tasks:
        raise SettingsError(
            f"--app {where}: it has no tasks; import the modules that define them where the app is made"
        )
    return own


def _wait_until_ready(settings: Settings) -> Settings:
    """A worker may start before its database: try again after 1, 2, 4 … 30 s. A schema that does not fit ends it."""
    from pgqueue.errors import DatabaseUnreachableError  # noqa: PLC0415

    pause = 1.0
    while True:
        try:
            return ready_attended(settings)
        except DatabaseUnreachableError as error:
            log.warning(
                "the database can't be reached; next try in %.0f s",
                pause,
                extra={"error": " ".join(str(error).split())},
            )
            time.sleep(pause * random.uniform(0.9, 1.1))  # noqa: S311 - not all workers at once
            pause = min(pause * 2, _SLOWEST_TRY)


def _supervise(
    context: Context, settings: Settings, words: list[str], processes: int, name: str | None, watch: Watch
) -> None:
    """Copies of this command, each with one process and a name of its own, by which the others know it.

    The DSN travels in the environment: `ps` shows arguments.
    """
    from pgqueue.worker import supervise  # noqa: PLC0415

    if context.dsn is not None and settings.dsn is not None:
        os.environ["PGQUEUE_DSN"] = settings.dsn
    shared = ["--schema", settings.schema, *(["--debug"] if context.debug else [])]
    copy = [sys.executable, "-m", "pgqueue", "worker", *shared, *words]
    names = [[] if name is None else [f"--name={name}-{nth}"] for nth in range(1, processes + 1)]
    raise typer.Exit(supervise([[*copy, *own] for own in names], watch))


def _words(app: str | None, queues: str | None, exec_: str | None, given: dict[str, Any]) -> list[str]:
    options = {
        "--app": app, "--queues": queues, "--exec": exec_, "--slots": given["slots"],
        "--lease": given["lease_duration"], "--poll": given["poll_interval"],
        "--shutdown-timeout": given["shutdown_timeout"], "--log-format": given["log_format"],
    }  # fmt: skip
    return [f"{option}={value}" for option, value in options.items() if value is not None]


def _split(queues: str | None) -> list[str] | None:
    from pgqueue.errors import InvalidJobError  # noqa: PLC0415
    from pgqueue.job import MAX_NAME_LENGTH, check_text  # noqa: PLC0415

    if queues is None:
        return None
    names = list(dict.fromkeys(name.strip() for name in queues.split(",") if name.strip()))
    if not names:
        raise InvalidJobError("--queues needs at least one name")
    return [check_text(name, "queue", MAX_NAME_LENGTH) for name in names]
