"""Flask: the queue takes its settings from the application, and handlers run inside its context."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click
from flask import Flask, current_app
from flask.cli import AppGroup

from pgqueue.errors import PgqueueError, SettingsError
from pgqueue.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pgqueue.app import App
    from pgqueue.handle import Job

_EXTENSION = "pgqueue"


def init_app(flask: Flask, queue: App) -> None:
    """Make a queue known to a Flask application, before the queue's first use.

    - Without a DSN of its own the queue takes ``PGQUEUE_DSN`` from ``flask.config``, else ``SQLALCHEMY_DATABASE_URI``;
      and ``PGQUEUE_SCHEMA``.
    - Handlers run inside ``flask.app_context()``, wherever their worker is: ``current_app`` and Flask-SQLAlchemy's
      ``db.session`` work in them.
    - ``flask pgqueue worker`` and ``flask pgqueue migrate`` are there.

    To enqueue in the request's transaction: ``task.using(db.session).enqueue_sync(…)``.

    Args:
        flask: the application.
        queue: the tasks and the database.

    Raises:
        SettingsError: the application has another queue already, or a setting has no meaning.

    Example:
        >>> init_app(flask, queue)  # doctest: +SKIP
    """
    if flask.extensions.get(_EXTENSION) not in {None, queue}:
        raise SettingsError("this Flask application has another queue already")
    if _EXTENSION in flask.extensions:
        return
    _take_settings(flask, queue)
    flask.extensions[_EXTENSION] = queue

    @queue.around_run
    def in_app_context(job: Job) -> Iterator[None]:  # noqa: ARG001 - a middleware takes the job
        with flask.app_context():
            yield

    flask.cli.add_command(_commands())


def current_queue() -> App:
    """The queue of the current application.

    Raises:
        PgqueueError: it has none.
    """
    try:
        queue: App = current_app.extensions[_EXTENSION]
    except KeyError:
        raise PgqueueError("this Flask application has no queue; call pgqueue.integrations.flask.init_app") from None
    return queue


def _take_settings(flask: Flask, queue: App) -> None:
    given: dict[str, Any] = {}
    dsn = flask.config.get("PGQUEUE_DSN") or flask.config.get("SQLALCHEMY_DATABASE_URI")
    if queue.settings.dsn is None and dsn:
        given["dsn"] = Settings.load({}, dsn=str(dsn)).dsn
    if schema := flask.config.get("PGQUEUE_SCHEMA"):
        given["schema"] = schema
    if given:
        queue.configure(replace(queue.settings, **given))


def _commands() -> AppGroup:
    group = AppGroup(_EXTENSION, help="The job queue of this application.")

    @group.command("worker")
    @click.option("--queues", metavar="A,B", help="Take jobs from these queues. Default: those of the tasks.")
    @click.option("--slots", type=int, help="Run at most so many jobs at the same time.")
    def worker(queues: str | None, slots: int | None) -> None:
        """Run jobs until SIGTERM or Ctrl-C; pgq worker --app module:queue is the same, and has more options."""
        from pgqueue.logs import configure_logging  # noqa: PLC0415 - only who works needs the worker
        from pgqueue.worker import Worker, run_worker  # noqa: PLC0415

        queue = current_queue()
        configure_logging(queue.settings.log_format)
        names = None if queues is None else [name.strip() for name in queues.split(",") if name.strip()]
        code = run_worker(Worker(queue, queues=names, slots=slots))
        raise SystemExit(code)

    @group.command("migrate")
    def migrate() -> None:
        """Create or upgrade the queue's schema."""
        from pgqueue.migrations import migrate as bring_up  # noqa: PLC0415

        queue = current_queue()
        bring_up(queue.database.dsn, schema=queue.schema)
        asyncio.run(queue.aclose())

    return group
