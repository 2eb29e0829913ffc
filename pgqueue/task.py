"""A task: a function that workers may run, and the ways to enqueue it."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, ParamSpec, Self, TypedDict, TypeVar

from pgqueue.backoff import Backoff, Exponential
from pgqueue.errors import InvalidJobError, InvalidPayloadError
from pgqueue.handle import Job
from pgqueue.job import DEFAULT_MAX_ATTEMPTS, DEFAULT_PRIORITY, DEFAULT_QUEUE, JobSpec, parse_timeout
from pgqueue.signature import Arguments

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime, timedelta
    from typing import Unpack

    from pgqueue.app import App
    from pgqueue.durations import Duration
    from pgqueue.run import Run

P = ParamSpec("P")
R = TypeVar("R")

Kind = Literal["async", "thread", "process"]
_NO_RETRY: Final = (InvalidPayloadError,)


class Options(TypedDict, total=False):
    """What may differ for one job; see :class:`pgqueue.JobSpec`."""

    queue: str
    priority: int | str
    delay: Duration | None
    run_at: datetime | None
    max_attempts: int
    timeout: Duration | None
    unique_key: str | None
    meta: dict[str, Any] | None


class Task(Generic[P, R]):
    """A registered function. Calling it runs it here; :meth:`enqueue` has a worker run it.

    Made by :meth:`pgqueue.App.task`, where the options are explained.
    """

    def __init__(
        self,
        app: App,
        function: Callable[P, R],
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
    ) -> None:
        self.app = app
        self.function = function
        self.name = name or f"{_module_of(function)}.{function.__qualname__}"
        self.spec = JobSpec.make(self.name, queue=queue, priority=priority, max_attempts=max_attempts)
        self.timeout: timedelta | None = parse_timeout(timeout)
        self.retry: Backoff = retry or Exponential()
        self.retry_on = dict(retry_on or {})
        self.kind: Kind = _kind(function, isolation, self.name)
        self.arguments = Arguments(function, self.name, raw=raw, job_type=Job)
        self.__doc__ = function.__doc__
        self.__wrapped__ = function
        self.__name__ = getattr(function, "__name__", self.name)
        self.__qualname__ = getattr(function, "__qualname__", self.name)
        self.__module__ = function.__module__

    def bind(self, run: Run) -> dict[str, Any]:
        """The keyword arguments of one run; raises InvalidPayloadError when the payload does not fit."""
        arguments = self.arguments
        kwargs = arguments.load(run.payload)
        if arguments.job_parameter is not None:
            kwargs[arguments.job_parameter] = Job(run.id, self.app, run)
        return kwargs

    @property
    def importable(self) -> bool:
        """Whether a child process can find the function by its module and name."""
        return "<" not in self.function.__qualname__

    def __repr__(self) -> str:
        return f"<Task {self.name}>"

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function here and now, as if it were not a task."""
        return self.function(*args, **kwargs)

    async def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> Job:
        """Have a worker run it with these arguments.

        Raises:
            InvalidPayloadError: the arguments do not fit the signature or are not JSON; nothing was written.
            DatabaseUnreachableError: no connection; whether the job exists is unknown only if it broke at commit.
        """
        return await Call(self).enqueue(*args, **kwargs)

    def enqueue_sync(self, *args: P.args, **kwargs: P.kwargs) -> Job:
        """The same for sync code."""
        return Call(self).enqueue_sync(*args, **kwargs)

    def job(self, *args: P.args, **kwargs: P.kwargs) -> JobSpec:
        """The job as a value, for ``app.enqueue_many``; nothing is written."""
        return Call(self).job(*args, **kwargs)

    def options(self, **options: Unpack[Options]) -> Call[P]:
        """The same task with other options for the jobs enqueued through the answer."""
        return Call(self).options(**options)

    def using(self, connection: Any) -> Call[P]:
        """Enqueue in the transaction of this connection or session: the job exists exactly when it commits.

        Args:
            connection: a psycopg Connection or AsyncConnection, or a SQLAlchemy Session, AsyncSession, Connection
                or AsyncConnection (sync ones for ``enqueue_sync``, async ones for ``enqueue``).
        """
        return Call(self).using(connection)

    def backoff_for(self, error: BaseException) -> Backoff | None:
        """The policy for this failure: the most specific class in ``retry_on``, else ``retry``; None: no retry."""
        if isinstance(error, _NO_RETRY):
            return None
        for cls in type(error).__mro__:
            if cls in self.retry_on:
                return self.retry_on[cls]
        return self.retry


class Call(Generic[P]):
    """A task with options and a connection, ready to be enqueued."""

    __slots__ = ("_connection", "_options", "_task")

    def __init__(self, task: Task[P, Any], options: Options | None = None, connection: Any = None) -> None:
        self._task = task
        self._options: Options = options or {}
        self._connection = connection

    def options(self, **options: Unpack[Options]) -> Self:
        """With other options."""
        return type(self)(self._task, {**self._options, **options}, self._connection)

    def using(self, connection: Any) -> Self:
        """In the transaction of this connection or session."""
        return type(self)(self._task, self._options, connection)

    def job(self, *args: P.args, **kwargs: P.kwargs) -> JobSpec:
        """The job as a value; nothing is written."""
        base, payload = self._task.spec, self._task.arguments.dump(args, kwargs)
        spec = JobSpec(base.task, payload, base.queue, base.priority, max_attempts=base.max_attempts)
        return spec.changed(**self._options)

    async def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> Job:
        """Have a worker run it with these arguments; see :meth:`Task.enqueue`."""
        app = self._task.app
        return Job(await app.aclient.enqueue(self.job(*args, **kwargs), connection=self._connection), app)

    def enqueue_sync(self, *args: P.args, **kwargs: P.kwargs) -> Job:
        """The same for sync code."""
        app = self._task.app
        return Job(app.client.enqueue(self.job(*args, **kwargs), connection=self._connection), app)


def _module_of(function: Callable[..., Any]) -> str:
    """The name that a worker will import: a script that is run itself is called ``__main__`` only there."""
    main = sys.modules.get("__main__")
    if function.__module__ != "__main__" or main is None:
        return function.__module__
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return str(spec.name).removesuffix(".__main__")
    return Path(getattr(main, "__file__", None) or "__main__").stem


def _kind(function: Any, isolation: str | None, name: str) -> Kind:
    is_async = inspect.iscoroutinefunction(function)
    if isolation is None:
        return "async" if is_async else "thread"
    if isolation != "process":
        raise InvalidJobError(f"task {name!r}: isolation must be 'process', not {isolation!r}")
    return "process"
