"""The application: its tasks, and the way to its database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, overload

from pgqueue.client import AsyncClient, Client
from pgqueue.connection import Database
from pgqueue.errors import InvalidJobError, UnknownTaskError
from pgqueue.handle import Job
from pgqueue.job import DEFAULT_MAX_ATTEMPTS, DEFAULT_PRIORITY, DEFAULT_QUEUE
from pgqueue.settings import Settings
from pgqueue.task import Task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from pgqueue.backoff import Backoff
    from pgqueue.durations import Duration
    from pgqueue.job import JobSpec

P = ParamSpec("P")
R = TypeVar("R")


class App:
    """Tasks and the database that holds their jobs. Making one opens nothing.

    Args:
        dsn: PostgreSQL connection string or URI. Default: ``PGQUEUE_DSN``, else ``DATABASE_URL``, else the
            embedded server.
        schema: the schema that holds the queue; default ``PGQUEUE_SCHEMA``, else ``pgqueue``.
        settings: all settings at once, instead of the two above and the environment.

    Raises:
        SettingsError: a value from the environment has no meaning.

    Example:
        >>> app = App()
        >>> @app.task(queue="emails", max_attempts=8)
        ... async def send_email(to: str) -> str:
        ...     return f"sent to {to}"
    """

    def __init__(self, dsn: str | None = None, *, schema: str | None = None, settings: Settings | None = None) -> None:
        self.tasks: dict[str, Task[Any, Any]] = {}
        self.configure(settings or Settings.load(dsn=dsn, schema=schema))

    def configure(self, settings: Settings) -> None:
        """Point the application at another database or schema, before its first use (``pgq worker --dsn`` does)."""
        self.settings = settings
        self.schema = settings.schema
        self.database = Database(settings.resolve_dsn, embedded=settings.dsn is None)
        self.client = Client(self.database, self.schema)
        self.aclient = AsyncClient(self.database, self.schema)

    @overload
    def task(self, function: Callable[P, R], /) -> Task[P, R]: ...
    @overload
    def task(
        self,
        *,
        name: str | None = None,
        queue: str = DEFAULT_QUEUE,
        priority: int | str = DEFAULT_PRIORITY,
        max_attempts: int = DEFAULT_MAX_ATTEMPTS,
        timeout: Duration | None = None,
        retry: Backoff | None = None,
        retry_on: Mapping[type[BaseException], Backoff] | None = None,
        isolation: Literal["process"] | None = None,
        raw: bool = False,
    ) -> Callable[[Callable[P, R]], Task[P, R]]: ...
    def task(self, function: Callable[..., Any] | None = None, **options: Any) -> Any:  # noqa: D417 - see the overload
        """Register a function as a task.

        ``async def`` runs on the worker's event loop, ``def`` in a thread. A parameter annotated
        :class:`pgqueue.Job` gets the running job. The others travel as JSON and are checked by pydantic, when the
        job is enqueued and again when it runs.

        Args:
            function: the function, when used without parentheses.
            name: default ``module.function``; what is stored in the job.
            queue: where its jobs wait by default.
            priority: 0 (first) to 9 (last), or ``high``, ``normal``, ``low``.
            max_attempts: runs before a failing job is dead, the first included; default 10.
            timeout: longest run of one attempt; default none.
            retry: the wait after a failure; default ``Exponential()``: 2, 4, 8, 16 s …
            retry_on: other policies by exception class; ``pgqueue.never`` for no retry.
            isolation: ``"process"``: in a child process that is killed at the timeout, and whose crash costs
                only this job.
            raw: the one parameter takes the whole payload, whatever JSON it is.

        Raises:
            InvalidJobError: an option has no meaning, the name is taken, or the signature can't travel as JSON.
        """

        def register(function: Callable[P, R]) -> Task[P, R]:
            task = Task(self, function, **options)
            if task.name in self.tasks:
                raise InvalidJobError(f"there is already a task {task.name!r}; give one of them another name")
            self.tasks[task.name] = task
            return task

        return register if function is None else register(function)

    def get_task(self, name: str) -> Task[Any, Any]:
        """The task of this name; raises UnknownTaskError."""
        try:
            return self.tasks[name]
        except KeyError:
            raise UnknownTaskError(name) from None

    async def enqueue_many(self, jobs: Iterable[JobSpec], *, copy: bool = False, connection: Any = None) -> list[Job]:
        """Enqueue many jobs in one round trip, all or none; see :meth:`pgqueue.Client.enqueue_many`."""
        return [Job(job_id, self) for job_id in await self.aclient.enqueue_many(jobs, copy=copy, connection=connection)]

    def enqueue_many_sync(self, jobs: Iterable[JobSpec], *, copy: bool = False, connection: Any = None) -> list[Job]:
        """The same for sync code."""
        return [Job(job_id, self) for job_id in self.client.enqueue_many(jobs, copy=copy, connection=connection)]

    def job(self, job_id: int) -> Job:
        """A handle on a job by its id; asks nothing yet."""
        return Job(job_id, self)

    def close(self) -> None:
        """Close the sync connections."""
        self.database.close()

    async def aclose(self) -> None:
        """Close the connections of the running event loop, and the sync ones."""
        await self.database.aclose()
