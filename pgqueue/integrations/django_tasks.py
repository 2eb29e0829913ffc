"""A backend for ``django.tasks`` (Django 6, or the package django-tasks): tasks of Django as jobs of pgqueue.

In the settings::

    TASKS = {"default": {"BACKEND": "pgqueue.integrations.django_tasks.PgqueueBackend"}}

``OPTIONS`` may hold ``database`` (an alias of DATABASES, default ``default``), ``schema``, ``max_attempts`` (default
10) and ``timeout`` (of one attempt). The worker::

    DJANGO_SETTINGS_MODULE=shop.settings pgq worker --app pgqueue.integrations.django_tasks:app
"""

from __future__ import annotations

import builtins
import inspect
import re
import threading
from typing import TYPE_CHECKING, Any, Final, Self

import django
from django.apps import apps
from django.core import checks
from django.db import DEFAULT_DB_ALIAS, connections
from django.utils import timezone
from django.utils.module_loading import autodiscover_modules, import_string

try:
    from django.tasks import DEFAULT_TASK_BACKEND_ALIAS, TaskContext, TaskResult, TaskResultStatus, task_backends
    from django.tasks.backends.base import BaseTaskBackend
    from django.tasks.base import Task, TaskError
    from django.tasks.exceptions import TaskResultDoesNotExist
    from django.tasks.signals import task_enqueued, task_finished, task_started
    from django.utils.json import normalize_json
except ImportError:  # before Django 6
    from django_tasks import DEFAULT_TASK_BACKEND_ALIAS, TaskContext, TaskResult, TaskResultStatus, task_backends
    from django_tasks.backends.base import BaseTaskBackend
    from django_tasks.base import Task, TaskError
    from django_tasks.exceptions import TaskResultDoesNotExist
    from django_tasks.signals import task_enqueued, task_finished, task_started
    from django_tasks.utils import normalize_json

from pgqueue.app import App
from pgqueue.errors import InvalidPayloadError, JobNotFoundError, PgqueueError
from pgqueue.handle import Job  # noqa: TC001 - read from the handlers' annotations
from pgqueue.integrations.django import dsn_of, init_app
from pgqueue.job import DEFAULT_MAX_ATTEMPTS, JobSpec
from pgqueue.run import current_run
from pgqueue.worker.judge import failed

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pgqueue.job import JobRecord

_STATUS: Final = {
    "running": TaskResultStatus.RUNNING,
    "completed": TaskResultStatus.SUCCESSFUL,
    "dead": TaskResultStatus.FAILED,
    "cancelled": TaskResultStatus.FAILED,
}
_OPTIONS: Final = frozenset({"database", "schema", "max_attempts", "timeout"})
_HIGHEST_ID: Final = 2**63 - 1

_apps: dict[str, App] = {}  # by alias: Django makes a backend per thread
_guard = threading.RLock()


class PgqueueBackend(BaseTaskBackend):
    """Enqueues on Django's own connection: inside ``transaction.atomic()`` the job commits and rolls back with it."""

    supports_defer = True
    supports_async_task = True
    supports_get_result = True
    supports_priority = True

    def __init__(self, alias: str, params: dict[str, Any]) -> None:
        super().__init__(alias, params)
        self.database = self.options.get("database", DEFAULT_DB_ALIAS)

    @property
    def app(self) -> App:
        """The application of pgqueue behind this backend; its tasks are those of Django that were imported."""
        with _guard:
            if self.alias not in _apps:
                _apps[self.alias] = App(dsn_of(self.database), schema=self.options.get("schema"))
                init_app(_apps[self.alias])
            return _apps[self.alias]

    def validate_task(self, task: Any) -> None:
        """Called whenever a task is made: a worker that imports its module knows it from then on."""
        super().validate_task(task)
        with _guard:
            if task.module_path not in self.app.tasks:
                register = self.app.task(
                    name=task.module_path, queue=task.queue_name, raw=True,
                    max_attempts=self._max_attempts, timeout=self.options.get("timeout"),
                )  # fmt: skip
                register(_handler(self.alias, task))

    def enqueue(self, task: Any, args: Any, kwargs: Any) -> Any:
        """Enqueue a job in the transaction of Django's connection, if it is in one.

        Raises:
            InvalidPayloadError: the arguments are over 1 MiB or can't be stored.
        """
        self.validate_task(task)
        run_at = task.run_after
        if run_at is not None and timezone.is_naive(run_at):
            run_at = timezone.make_aware(run_at)
        payload = {"args": normalize_json(list(args)), "kwargs": normalize_json(dict(kwargs))}
        spec = JobSpec.make(
            task.module_path, payload, queue=task.queue_name, priority=_priority(task.priority), run_at=run_at,
            max_attempts=self._max_attempts, timeout=self.options.get("timeout"),
            meta={"django_priority": task.priority} if task.priority else None,
        )  # fmt: skip
        job_id = self.app.client.enqueue(spec, connection=connections[self.database])
        result = TaskResult(
            task=task, id=str(job_id), status=TaskResultStatus.READY, enqueued_at=timezone.now(), started_at=None,
            finished_at=None, last_attempted_at=None, args=list(args), kwargs=dict(kwargs), backend=self.alias,
            errors=[], worker_ids=[],
        )  # fmt: skip
        task_enqueued.send(type(self), task_result=result)
        return result

    def get_result(self, result_id: str) -> Any:
        """A task's result by its id; raises TaskResultDoesNotExist."""
        if not (str(result_id).isascii() and str(result_id).isdigit() and int(result_id) <= _HIGHEST_ID):
            raise TaskResultDoesNotExist(result_id)
        try:
            record = self.app.client.get(int(result_id), connection=connections[self.database])
            task = import_string(record.task)
        except (JobNotFoundError, ImportError):
            raise TaskResultDoesNotExist(result_id) from None
        if not isinstance(task, Task):
            raise TaskResultDoesNotExist(result_id)
        return _result(record, task, self.alias)

    def check(self, **kwargs: Any) -> Iterable[Any]:
        """Django's system check: the database is PostgreSQL, the options are known."""
        yield from super().check(**kwargs)
        if unknown := sorted(set(self.options) - _OPTIONS):
            yield checks.Error(f"TASKS[{self.alias!r}]: unknown option {unknown[0]!r}", id="pgqueue.E001")
        if connections[self.database].vendor != "postgresql":
            yield checks.Error(f"TASKS[{self.alias!r}]: database {self.database!r} is no PostgreSQL", id="pgqueue.E002")

    @property
    def _max_attempts(self) -> int:
        return int(self.options.get("max_attempts", DEFAULT_MAX_ATTEMPTS))


def app_of(alias: str = DEFAULT_TASK_BACKEND_ALIAS) -> App:
    """The application of pgqueue behind a backend, with the tasks in the ``tasks`` modules of all installed apps.

    Raises:
        PgqueueError: that backend is another one.
    """
    if not apps.ready:
        django.setup()
    backend = task_backends[alias]
    if not isinstance(backend, PgqueueBackend):
        raise PgqueueError(f"TASKS[{alias!r}] is not pgqueue.integrations.django_tasks.PgqueueBackend")
    autodiscover_modules("tasks")
    return backend.app


def __getattr__(name: str) -> Any:
    """``app``, for ``pgq worker --app pgqueue.integrations.django_tasks:app``."""
    if name == "app":
        return app_of()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# -- in a worker ----------------------------------------------------------------------------------------------------


def _handler(alias: str, task: Any) -> Any:
    """The function that a worker runs for a task of Django."""

    async def run_async(job: Job, call: Any) -> Any:
        with _Call(task, alias, job, await _apps[alias].aclient.get(job.id), call) as this:
            this.value = await task.func(*this.args, **this.kwargs)
        return this.value

    def run(job: Job, call: Any) -> Any:
        with _Call(task, alias, job, _apps[alias].client.get(job.id), call) as this:
            this.value = task.func(*this.args, **this.kwargs)
        return this.value

    handler: Any = run_async if inspect.iscoroutinefunction(task.func) else run
    handler.__module__, handler.__qualname__ = task.func.__module__, f"{task.func.__qualname__}.<handler>"
    return handler


class _Call:
    """One run of a task of Django: what its function is called with, and the signals before and after."""

    def __init__(self, task: Any, alias: str, job: Job, record: JobRecord, call: Any) -> None:
        if not (isinstance(call, dict) and isinstance(call.get("args"), list) and isinstance(call.get("kwargs"), dict)):
            raise InvalidPayloadError(f"task {task.module_path!r}: the payload must be {{args: […], kwargs: {{…}}}}")
        self._result = _result(record, task, alias)
        self._task = _apps[alias].tasks.get(job.task)
        context = [TaskContext(task_result=self._result)] if task.takes_context else []
        self.args: list[Any] = [*context, *call["args"]]
        self.kwargs: dict[str, Any] = call["kwargs"]
        self.value: Any = None

    def __enter__(self) -> Self:
        task_started.send(PgqueueBackend, task_result=self._result)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None:
            try:
                self.value = normalize_json(self.value)
            except (TypeError, ValueError) as refused:
                self._end(refused)
                raise
        self._end(error)

    def _end(self, error: BaseException | None) -> None:
        """Django speaks of the end of a task, not of an attempt; which it is, the worker's own judge says."""
        run = current_run.get()
        if run is None or run.ended or run.lost:  # it was given up meanwhile: this is not how it ends
            return
        verdict = "completed" if error is None else failed(run, self._task, error).verdict
        if verdict not in {"completed", "dead", "cancelled"}:
            return
        status = TaskResultStatus.SUCCESSFUL if error is None else TaskResultStatus.FAILED
        for name, fact in (("status", status), ("finished_at", timezone.now()), ("_return_value", self.value)):
            object.__setattr__(self._result, name, fact)  # as Django's own backends do
        task_finished.send(PgqueueBackend, task_result=self._result)


# -- words of Django ------------------------------------------------------------------------------------------------


def _priority(priority: int) -> int:
    """Django: -100 to 100, the larger the sooner. Here: 0 (first) to 9."""
    return min(9, max(0, round(5 - priority / 20)))


def _result(record: JobRecord, task: Any, alias: str) -> Any:
    call = record.payload if isinstance(record.payload, dict) else {}
    changes = {"priority": record.meta.get("django_priority", task.priority), "queue_name": record.queue}
    if any(getattr(task, name) != value for name, value in changes.items()):
        task = task.using(**changes)
    result = TaskResult(
        task=task, id=str(record.id), status=_STATUS.get(record.state, TaskResultStatus.READY),
        enqueued_at=record.created_at, started_at=record.started_at, finished_at=record.finished_at,
        last_attempted_at=record.started_at, args=call.get("args", []), kwargs=call.get("kwargs", {}), backend=alias,
        errors=[_error(error) for error in record.errors], worker_ids=[record.worker or ""] * record.attempt,
    )  # fmt: skip
    object.__setattr__(result, "_return_value", record.result)
    return result


def _error(error: dict[str, Any]) -> Any:
    """The class's full path stands at the end of the traceback, where Python writes it."""
    kind, trace = str(error.get("type")), str(error.get("traceback") or error.get("message") or "")
    paths = re.findall(rf"^((?:\w+\.)*{re.escape(kind)})(?::|$)", trace, re.MULTILINE)
    path = paths[-1] if paths else kind
    if "." not in path:
        path = f"builtins.{kind}" if hasattr(builtins, kind) else f"pgqueue.errors.{kind}"
    return TaskError(exception_class_path=path, traceback=trace)
