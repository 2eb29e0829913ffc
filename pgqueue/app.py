"""The application: its tasks, and the way to its database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, TypeVar, overload

from pgqueue.batch import BatchTask
from pgqueue.client import AsyncClient, Client
from pgqueue.connection import Database
from pgqueue.errors import InvalidJobError, InvalidScheduleError, ResourceError, UnknownTaskError
from pgqueue.handle import EnqueuedJobs, Job
from pgqueue.job import DEFAULT_MAX_ATTEMPTS, DEFAULT_PRIORITY, DEFAULT_QUEUE
from pgqueue.middleware import Around, Middleware
from pgqueue.resources import Resources
from pgqueue.settings import Settings
from pgqueue.task import Task
from pgqueue.workflow import Batch, Workflow, chain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Unpack

    from pgqueue.backoff import Backoff
    from pgqueue.durations import Duration
    from pgqueue.job import JobSpec
    from pgqueue.schedule import ScheduleOptions, ScheduleSpec
    from pgqueue.statements import Submitted

P = ParamSpec("P")
R = TypeVar("R")
X = TypeVar("X")
F = TypeVar("F", bound="Callable[..., Any]")


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
        self.schedules: dict[str, ScheduleSpec] = {}
        self.resources = Resources()
        self.middleware = Middleware()
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
        unique_key: str | Callable[..., str] | None = None,
        unique_for: Duration | None = None,
        on_conflict: str = "skip",
        group_key: str | Callable[..., str] | None = None,
        group_retry: Literal["hold", "pass"] = "hold",
    ) -> Callable[[Callable[P, R]], Task[P, R]]: ...
    @overload
    def task(
        self,
        *,
        batch: int,
        linger: Duration = 0,
        name: str | None = None,
        queue: str = DEFAULT_QUEUE,
        priority: int | str = DEFAULT_PRIORITY,
        max_attempts: int = DEFAULT_MAX_ATTEMPTS,
        timeout: Duration | None = None,
        retry: Backoff | None = None,
        retry_on: Mapping[type[BaseException], Backoff] | None = None,
        unique_key: str | Callable[..., str] | None = None,
        unique_for: Duration | None = None,
        on_conflict: str = "skip",
        group_key: str | Callable[..., str] | None = None,
        group_retry: Literal["hold", "pass"] = "hold",
    ) -> Callable[[Callable[Concatenate[list[X], ...], R]], BatchTask[X, R]]: ...
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
            unique_key: at most one live job has it. Text, a function of the task's arguments that answers text, or
                :func:`pgqueue.all_arguments`.
            unique_for: the key is held this long, even when the job ends before.
            on_conflict: ``skip``, ``replace`` or ``raise``, when the key is held; see :class:`pgqueue.JobSpec`.
            group_key: jobs with the same key run one at a time, in order (or as the queue's limits say); given as
                unique_key is.
            group_retry: while a failed job waits for its retry it holds its key (``hold``), or it goes to the end of
                the line and lets others pass (``pass``).
            batch: the function takes a list with the payloads of up to this many jobs; see
                :class:`pgqueue.BatchTask`.
            linger: how long the first job of a batch may wait for others; default: not at all.

        Raises:
            InvalidJobError: an option has no meaning, the name is taken, or the signature can't travel as JSON.
        """

        def register(function: Callable[P, R]) -> Task[P, R]:
            if "linger" in options and "batch" not in options:
                raise InvalidJobError("linger is for tasks with batch=…")
            make: Any = BatchTask if "batch" in options else Task
            task: Task[P, R] = make(self, function, **options)
            if task.name in self.tasks:
                raise InvalidJobError(f"there is already a task {task.name!r}; give one of them another name")
            self.tasks[task.name] = task
            return task

        return register if function is None else register(function)

    def schedule(self, expression: str, **options: Unpack[ScheduleOptions]) -> Callable[[Task[P, R]], Task[P, R]]:
        """Run a task at certain times. Above ``@app.task``, or called: ``app.schedule("@daily")(task)``.

        A worker that starts writes the schedule into the database, if it is new or has changed here since. There it can
        be paused and edited while workers run.

        Args:
            expression: five or six cron fields (six begin with seconds), ``@hourly`` and the like, or ``every 90s``.
            options: ``name``: default the task's. ``tz``: where the times are meant; default UTC. ``payload``: the
                task's arguments as a dict (of a raw task: its payload). ``misfire``, ``grace``, ``overlap``: see
                :class:`pgqueue.ScheduleSpec`. ``queue``, ``priority``, ``max_attempts``, ``timeout``,
                ``unique_key``, ``group_key``: as the task's.

        Raises:
            InvalidScheduleError: the expression, zone or a policy has no meaning, it never ticks, the name is taken,
                or an option is none of these.
            InvalidPayloadError: the payload does not fit the task's signature.
        """

        def declare(task: Task[P, R]) -> Task[P, R]:
            if not isinstance(task, Task):
                raise InvalidScheduleError("app.schedule is for tasks: write it above @app.task")
            task.schedule(expression, **options)
            return task

        return declare

    def resource(self, function: F) -> F:
        """Register what handlers share: a generator function that yields it, annotated with its type.

        A worker starts it before its first claim and closes it after its last handler. A parameter of a task that
        is annotated with the type gets what was yielded, and is not in the payload. Register it before the tasks
        that ask for it. An earlier resource may be a parameter of a later one.

        Raises:
            ResourceError: the function is no generator, its type is missing or taken, or a task came before it.

        Example:
            >>> @app.resource
            ... async def http() -> AsyncIterator[httpx.AsyncClient]:
            ...     async with httpx.AsyncClient() as client:
            ...         yield client
        """
        resource = self.resources.add(function)
        for task in self.tasks.values():
            if resource.key is not None and any(hint == resource.key for hint in task.arguments.hints.values()):
                raise ResourceError(
                    f"resource {resource.name} came too late: task {task.name!r} takes its type as payload; "
                    "register resources before tasks"
                )
        return function

    def around_run(self, function: F) -> F:
        """Register a middleware around every run: a generator function that takes the job and yields once.

        ``def`` is run where the handler runs, ``async def`` on the worker's event loop. The first to be registered
        is the outermost. Around a batch handler it gets a :class:`pgqueue.Jobs` instead of the job.

        Example:
            >>> @app.around_run
            ... def timed(job: pgqueue.Job) -> Iterator[None]:
            ...     began = time.perf_counter()
            ...     yield
            ...     print(job.task, time.perf_counter() - began)
        """
        self.middleware.runs.append(Around.of(function))
        return function

    def around_enqueue(self, function: F) -> F:
        """Register a middleware around every enqueue: a generator function from a JobSpec to the one to be written.

        It takes a JobSpec, yields once the one that is to be written, the same or another, and goes on when the
        statement has been executed. It is around what goes through tasks and ``enqueue_many``, not around
        ``app.client`` and SQL. ``def`` is around sync and async enqueues, ``async def`` around async ones only: a
        sync one is then refused.

        Example:
            >>> @app.around_enqueue
            ... def tagged(spec: pgqueue.JobSpec) -> Iterator[pgqueue.JobSpec]:
            ...     yield spec.with_meta(tenant=current_tenant())
        """
        self.middleware.enqueues.append(Around.of(function))
        return function

    def get_task(self, name: str) -> Task[Any, Any]:
        """The task of this name; raises UnknownTaskError."""
        try:
            return self.tasks[name]
        except KeyError:
            raise UnknownTaskError(name) from None

    async def enqueue_many(
        self, jobs: Iterable[JobSpec], *, copy: bool = False, connection: Any = None
    ) -> EnqueuedJobs:
        """Enqueue many jobs in one round trip, all or none; see :meth:`pgqueue.Client.enqueue_many`."""
        if not self.middleware.wraps_enqueues:
            return await self._write(jobs, copy, connection)
        async with self.middleware.around_enqueue_async(list(jobs)) as sending:
            handles = await self._write(sending.specs, copy, connection)
            sending.ids = handles.ids
        return handles

    async def _write(self, specs: Iterable[JobSpec], copy: bool, connection: Any) -> EnqueuedJobs:
        if copy:
            return EnqueuedJobs(self, await self.aclient.enqueue_many(specs, copy=True, connection=connection))
        return self._enqueued(await self.aclient.submit_many(list(specs), connection=connection))

    def enqueue_many_sync(self, jobs: Iterable[JobSpec], *, copy: bool = False, connection: Any = None) -> EnqueuedJobs:
        """The same for sync code."""
        if not self.middleware.wraps_enqueues:
            return self._write_sync(jobs, copy, connection)
        with self.middleware.around_enqueue(list(jobs)) as sending:
            handles = self._write_sync(sending.specs, copy, connection)
            sending.ids = handles.ids
        return handles

    def _write_sync(self, specs: Iterable[JobSpec], copy: bool, connection: Any) -> EnqueuedJobs:
        if copy:
            return EnqueuedJobs(self, self.client.enqueue_many(specs, copy=True, connection=connection))
        return self._enqueued(self.client.submit_many(list(specs), connection=connection))

    def _enqueued(self, answers: list[Submitted]) -> EnqueuedJobs:
        return EnqueuedJobs(self, [answer.id for answer in answers], [answer.created for answer in answers])

    def workflow(self, name: str | None = None) -> Workflow:
        """A workflow to add jobs to, each after those that it depends on; nothing is written yet."""
        return Workflow(self, name=name)

    def batch(self, jobs: Iterable[JobSpec], *, name: str | None = None) -> Workflow:
        """Jobs to be counted together: ``app.batch(jobs).then(job)`` runs one more when they have all ended."""
        return Workflow(self, jobs, name)

    def chain(self, *jobs: JobSpec, name: str | None = None) -> Workflow:
        """Each of these after the one before it."""
        return chain(self, jobs, name)

    def get_batch(self, batch_id: int) -> Batch:
        """A handle on a batch by its id; asks nothing yet."""
        return Batch(batch_id, self)

    def job(self, job_id: int) -> Job:
        """A handle on a job by its id; asks nothing yet."""
        return Job(job_id, self)

    def close(self) -> None:
        """Close the sync connections."""
        self.database.close()

    async def aclose(self) -> None:
        """Close the connections of the running event loop, and the sync ones."""
        await self.database.aclose()
