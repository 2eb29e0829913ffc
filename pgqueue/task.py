"""A task: a function that workers may run, and the ways to enqueue it."""

from __future__ import annotations

import hashlib
import inspect
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, ParamSpec, Self, TypedDict, TypeVar

import orjson

from pgqueue.backoff import Backoff, Exponential
from pgqueue.errors import InvalidJobError, InvalidPayloadError, InvalidScheduleError
from pgqueue.handle import Job
from pgqueue.job import DEFAULT_MAX_ATTEMPTS, DEFAULT_PRIORITY, DEFAULT_QUEUE, JobSpec, parse_timeout
from pgqueue.schedule import ScheduleOptions, ScheduleSpec
from pgqueue.signature import Arguments

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
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
    group_key: str | None
    unique_for: Duration | None
    on_conflict: str
    depends_on: Iterable[Any]
    on_dead: str


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
        unique_key: str | Callable[..., str] | None = None,
        unique_for: Duration | None = None,
        on_conflict: str = "skip",
        group_key: str | Callable[..., str] | None = None,
        group_retry: Literal["hold", "pass"] = "hold",
    ) -> None:
        self.app = app
        self.function = function
        self.name = name or f"{_module_of(function)}.{function.__qualname__}"
        self.spec = JobSpec.make(self.name, queue=queue, priority=priority, max_attempts=max_attempts)
        self.keys = Keys(self.name, unique_key, unique_for, on_conflict, group_key)
        if group_retry not in {"hold", "pass"}:
            raise InvalidJobError(f"task {self.name!r}: group_retry must be 'hold' or 'pass', not {group_retry!r}")
        self.group_retry = group_retry
        self.timeout: timedelta | None = parse_timeout(timeout)
        self.retry: Backoff = retry or Exponential()
        self.retry_on = dict(retry_on or {})
        self.kind: Kind = _kind(function, isolation, self.name)
        self.arguments = self._read_arguments(raw=raw)
        self.__doc__ = function.__doc__
        self.__wrapped__ = function
        self.__name__ = getattr(function, "__name__", self.name)
        self.__qualname__ = getattr(function, "__qualname__", self.name)
        self.__module__ = function.__module__

    def _read_arguments(self, *, raw: bool) -> Arguments:
        return Arguments(self.function, self.name, raw=raw, job_type=Job, resources=self.app.resources.keys)

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
            connection: a psycopg Connection or AsyncConnection, a SQLAlchemy Session, AsyncSession, Connection or
                AsyncConnection, an asyncpg Connection, or ``django.db.connection`` (sync ones for
                ``enqueue_sync``, async ones for ``enqueue``).
        """
        return Call(self).using(connection)

    def schedule(self, expression: str, **options: Unpack[ScheduleOptions]) -> ScheduleSpec:
        """Declare that it runs at the times of an expression; see :meth:`pgqueue.App.schedule`."""
        given: dict[str, Any] = dict(options)
        name, payload = given.pop("name", self.name), given.pop("payload", {})
        if unknown := sorted(given.keys() - ScheduleOptions.__annotations__.keys()):
            raise InvalidScheduleError(f"schedule {name!r}: {unknown[0]} is not an option of a schedule")
        policy = {word: given.pop(word) for word in ("tz", "misfire", "grace", "overlap") if word in given}
        call: Any = Call(self).options(**given)
        if not self.arguments.raw and not isinstance(payload, dict):
            raise InvalidPayloadError(f"schedule {name!r}: payload must be a dict of the task's arguments")
        job = call.job(payload) if self.arguments.raw else call.job(**payload)
        spec = ScheduleSpec.of_job(name, expression, job, **policy)
        if spec.name in self.app.schedules:
            raise InvalidScheduleError(f"there is already a schedule {spec.name!r}; give one of them another name")
        self.app.schedules[spec.name] = spec
        return spec

    def backoff_for(self, error: BaseException) -> Backoff | None:
        """The policy for this failure: the most specific class in ``retry_on``, else ``retry``; None: no retry."""
        if isinstance(error, _NO_RETRY):
            return None
        for cls in type(error).__mro__:
            if cls in self.retry_on:
                return self.retry_on[cls]
        return self.retry


def all_arguments(*_args: Any, **_kwargs: Any) -> str:
    """As a task's ``unique_key`` or ``group_key``: made from the task's name and all its arguments."""
    raise NotImplementedError("it is recognised by itself, not called")


class Keys:
    """The keys of a task's jobs: fixed, or made from their arguments."""

    def __init__(
        self,
        task: str,
        unique_key: str | Callable[..., str] | None,
        unique_for: Duration | None,
        on_conflict: str,
        group_key: str | Callable[..., str] | None,
    ) -> None:
        self._task = task
        self._keys = {
            name: key for name, key in (("unique_key", unique_key), ("group_key", group_key)) if key is not None
        }
        self._fixed: dict[str, Any] = {}
        if unique_for is not None:
            self._fixed["unique_for"] = unique_for
        if on_conflict != "skip":
            self._fixed["on_conflict"] = on_conflict
        for key in self._keys.values():
            if not (isinstance(key, str) or callable(key)):
                raise InvalidJobError(f"task {task!r}: a key is text, or a function of the arguments; not {key!r}")
        JobSpec.make(task, **{**self._fixed, **dict.fromkeys(self._keys, "checked")})

    def options(self, payload: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """What one call's job gets."""
        if not self._keys:
            return self._fixed
        keys = {name: self._make(key, payload, args, kwargs) for name, key in self._keys.items()}
        return keys if keys.get("unique_key") is None else {**self._fixed, **keys}  # what is fixed is about that key

    def _make(self, key: Any, payload: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if key is all_arguments:
            same = orjson.dumps(orjson.loads(payload), option=orjson.OPT_SORT_KEYS)
            return f"{self._task}:{hashlib.sha256(same).hexdigest()[:32]}"
        return key(*args, **kwargs) if callable(key) else key


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
        return spec.changed(**{**self._task.keys.options(payload, args, kwargs), **self._options})

    async def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> Job:
        """Have a worker run it with these arguments; see :meth:`Task.enqueue`."""
        app = self._task.app
        spec = self.job(*args, **kwargs)
        if app.middleware.wraps_enqueues:
            async with app.middleware.around_enqueue_async([spec]) as sending:
                answer = await app.aclient.submit(sending.specs[0], connection=self._connection)
                sending.ids = [answer.id]
        else:
            answer = await app.aclient.submit(spec, connection=self._connection)
        return Job(answer.id, app, created=answer.created)

    def enqueue_sync(self, *args: P.args, **kwargs: P.kwargs) -> Job:
        """The same for sync code."""
        app = self._task.app
        spec = self.job(*args, **kwargs)
        if app.middleware.wraps_enqueues:
            with app.middleware.around_enqueue([spec]) as sending:
                answer = app.client.submit(sending.specs[0], connection=self._connection)
                sending.ids = [answer.id]
        else:
            answer = app.client.submit(spec, connection=self._connection)
        return Job(answer.id, app, created=answer.created)


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
