"""Batch handlers: tasks whose function takes the payloads of many jobs in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, Generic, ParamSpec, TypeVar, overload

from pgqueue.durations import parse_duration
from pgqueue.errors import InvalidJobError
from pgqueue.handle import Job, Transaction
from pgqueue.run import BatchRun
from pgqueue.signature import ItemArguments
from pgqueue.task import Task

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta

    from pgqueue.app import App
    from pgqueue.durations import Duration
    from pgqueue.run import Run

P = ParamSpec("P")
X = TypeVar("X")
R = TypeVar("R")

MOST_IN_A_BATCH: Final = 10_000


class Jobs(Sequence[Job]):
    """The jobs of one call of a batch handler, in the order of its items: its parameter annotated ``pgqueue.Jobs``.

    A :func:`pgqueue.App.around_run` middleware gets it too, in the place of the job.
    """

    __slots__ = ("_app", "_run")

    def __init__(self, app: App, run: BatchRun) -> None:
        self._app = app
        self._run = run

    def __repr__(self) -> str:
        return f"<Jobs {', '.join(str(job.id) for job in self)}>"

    def __len__(self) -> int:
        return len(self._run.accepted)

    @overload
    def __getitem__(self, index: int) -> Job: ...
    @overload
    def __getitem__(self, index: slice) -> list[Job]: ...
    def __getitem__(self, index: int | slice) -> Job | list[Job]:
        if isinstance(index, slice):
            return [Job(run.id, self._app, run) for run in self._run.accepted[index]]
        run = self._run.accepted[index]
        return Job(run.id, self._app, run)

    @property
    def task(self) -> str:
        """Name of the task that runs."""
        task: str = self._run.task
        return task

    @property
    def queue(self) -> str:
        """The queue that the first of them came from."""
        queue: str = self._run.queue
        return queue

    def transaction(self) -> Transaction:
        """The handler's own writes and the completion of all jobs in one commit; see :meth:`pgqueue.Job.transaction`.

        Raises:
            LeaseLostError: at the end of the block, when the lease of one of them was lost; everything is rolled back.
        """
        return Transaction(self._app, self._run.accepted)


class BatchTask(Task[[X], R], Generic[X, R]):
    """A task whose function takes many payloads at once; what ``@app.task(batch=…)`` makes.

    A call of :meth:`enqueue` enqueues one item. Calling the task runs the function here, with a list.
    """

    arguments: ItemArguments  # type: ignore[assignment]

    def __init__(
        self, app: App, function: Callable[..., R], *, batch: int, linger: Duration = 0, **options: Any
    ) -> None:
        super().__init__(app, function, **options)
        if not isinstance(batch, int) or isinstance(batch, bool) or not 1 <= batch <= MOST_IN_A_BATCH:
            raise InvalidJobError(f"task {self.name!r}: batch must be 1 to {MOST_IN_A_BATCH} jobs, not {batch!r}")
        if self.kind == "process":
            raise InvalidJobError(
                f"task {self.name!r}: batch and isolation='process' do not go together: a crash would cost all jobs "
                "of the call"
            )
        self.batch = batch
        self.linger: timedelta = parse_duration(linger, "linger")

    def __call__(self, items: list[X], *args: Any, **kwargs: Any) -> R:  # type: ignore[override]
        """Run the function here and now, with a list of items, as if it were not a task."""
        return self.function(items, *args, **kwargs)  # type: ignore[arg-type]

    def bind(self, run: Run) -> dict[str, Any]:
        """The keyword arguments of a call with this job alone; raises InvalidPayloadError."""
        return self.bind_batch(BatchRun(run), [self.arguments.load(run.payload)])

    def bind_batch(self, batch: BatchRun, items: list[Any]) -> dict[str, Any]:
        """The keyword arguments of a call with these items, but for resources."""
        arguments: dict[str, Any] = {self.arguments.items_parameter: items}
        if self.arguments.jobs_parameter is not None:
            arguments[self.arguments.jobs_parameter] = Jobs(self.app, batch)
        return arguments

    def _read_arguments(self, *, raw: bool) -> ItemArguments:  # type: ignore[override]
        if raw:
            raise InvalidJobError(f"task {self.name!r}: batch and raw do not go together; annotate list[Any]")
        return ItemArguments(self.function, self.name, job_type=Job, jobs_type=Jobs, resources=self.app.resources.keys)
