"""The executor of an application that has batch handlers: gathers runs of one task until a call of it can begin.

A call takes one slot, whatever the size of its batch. How much is claimed follows from that: see :meth:`wants`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any, Final

from pgqueue.batch import BatchTask
from pgqueue.outcome import COMPLETED, Outcome
from pgqueue.run import BatchRun, Run
from pgqueue.worker.executor import LOGGED_PER_SECOND, Executor
from pgqueue.worker.judge import failed, story

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pgqueue.task import Task

log = logging.getLogger(__name__)

_MOST_CLAIMED: Final = 1_000


class BatchExecutor(Executor):
    """An executor whose queue also holds whole batches."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._batched = {name: task for name, task in self._app.tasks.items() if isinstance(task, BatchTask)}
        self._filling: dict[str, BatchRun] = {}  # by task: what more runs can join; its call has not begun
        self._alarms: dict[BatchRun, asyncio.TimerHandle] = {}
        # what the last claim brought: how many, how many of them for batches, how large those may be
        self._only = len(self._batched) == len(self._app.tasks) and self._catch_all is None
        self._last = 0
        self._share = 1.0 if self._only else 0.0
        self._size = float(min(task.batch for task in self._batched.values()))
        emit = self._emit
        # a batch run has no row to be written: its members' outcomes are emitted one by one, when it has ended
        self._emit = lambda run, outcome: None if isinstance(run, BatchRun) else emit(run, outcome)

    def wants(self) -> int:
        """How many jobs to claim now, from how many slots their calls will need.

        While there are other tasks too, nobody knows of what sort the next ones are: the last claim's mix is
        assumed, and no more than twice as many asked for, or a worker could claim far more than it can run.
        """
        if self._stopping or len(self._ready) > self._low:
            return 0
        return self._jobs_for(self._free + self._ahead - self._calls_waiting)

    @property
    def soon(self) -> int:
        """The jobs that would take the slots of :attr:`Executor.soon`."""
        return self._jobs_for(max(self._free - self._calls_waiting, min(self._slots, self._ahead) // 2))

    @property
    def _calls_waiting(self) -> float:
        """How many slots will be needed by what is here and does not run; a batch that fills counts by its part."""
        waiting = [*self._ready, *(batch for batch in self._filling.values() if not batch.due)]
        return sum(len(run.members) / self._size if isinstance(run, BatchRun) else 1.0 for run in waiting)

    def _jobs_for(self, slots: float) -> int:
        if slots <= 0:
            return 0
        jobs = slots / (1 - self._share + self._share / self._size)
        if not self._only:
            jobs = min(jobs, max(slots, 2.0 * self._last))
        return min(max(1, int(jobs)), _MOST_CLAIMED)

    def put(self, runs: list[Run], *, first: bool = False) -> None:
        """Gather what is for batches; start the others, or let them wait."""
        if self._stopping:
            super().put(runs)
            return
        alone: list[Run] = []
        sizes = []
        for run in runs:
            task = self._batched.get(run.task)
            if task is None:
                alone.append(run)
                continue
            sizes.append(task.batch)
            if run.suspect:
                alone.append(run if self._tasks[run.task].importable else BatchRun(run))  # it must not end the others
            else:
                self._gather(run, task)
        self._last = len(runs)
        if not self._only:
            self._share = len(sizes) / len(runs)
        if sizes:
            self._size = sum(sizes) / len(sizes)
        for batch in list(self._filling.values()):
            if not batch.due and batch not in self._alarms:
                self._linger(batch)
        super().put(alone, first=first)

    def tick(self) -> bool:
        """See :meth:`Executor.tick`."""
        settled = super().tick()
        if self._ready or self._filling:
            self.hungry.set()
        return settled and not self._filling

    def close(self) -> None:
        """Start nothing more; what has gathered is given back."""
        for batch in [batch for batch in self._filling.values() if not batch.due]:
            self._release(batch)
        super().close()

    def abandon(self) -> int:
        """See :meth:`Executor.abandon`; answers how many jobs there were."""
        batches = [run for run in self._running if isinstance(run, BatchRun)]
        for batch in batches:
            for member in batch.members:
                member.releasing = member.cancelled = True
        jobs = sum(len(batch.members) for batch in batches)
        return super().abandon() - len(batches) + jobs

    def cancel(self, run: Run, *, lost: bool = False) -> None:
        """Take a waiting job out of its batch; one that runs is only marked, unless it was the last of its call."""
        batch = run.batch
        if batch is None:
            super().cancel(run, lost=lost)
            return
        run.cancelled = True
        run.lost = run.lost or lost
        if batch.started:
            if all(member.cancelled for member in batch.members):  # nobody wants this call any more
                batch.cancelled = True
                batch.interrupt()
            return
        batch.remove(run)
        if not batch.members:
            self._forget(batch)
            if batch in self._ready:
                self._ready.remove(batch)
        run.ended = True
        self._emit(run, Outcome("cancelled"))
        self._check_idle()

    # -- gathering ---------------------------------------------------------------------------------------------------

    def _gather(self, run: Run, task: BatchTask[Any, Any]) -> None:
        batch = self._filling.get(run.task)
        if batch is None:
            batch = self._filling[run.task] = BatchRun(run)
            self.idle.clear()
        else:
            batch.add(run)
        if len(batch.members) >= task.batch:
            self._forget(batch)
            if not batch.due:
                self._make_due(batch)

    def _linger(self, batch: BatchRun) -> None:
        """Let a batch that is not full wait for more, as long as its task says, counted from its first job."""
        linger = self._batched[batch.task].linger.total_seconds()
        if linger:
            self._alarms[batch] = self._loop.call_later(linger, self._linger_is_over, batch)
        else:
            self._make_due(batch)

    def _linger_is_over(self, batch: BatchRun) -> None:
        self._alarms.pop(batch, None)
        self._make_due(batch)
        self._pump()

    def _make_due(self, batch: BatchRun) -> None:
        """It waits for a slot now; until it has one, it still takes more."""
        batch.due = True
        if not self._ready:
            self._ready_since = time.monotonic()
        self._ready.append(batch)

    def _forget(self, batch: BatchRun) -> None:
        """Nothing more joins this one."""
        if self._filling.get(batch.task) is batch:
            del self._filling[batch.task]
        if (alarm := self._alarms.pop(batch, None)) is not None:
            alarm.cancel()

    # -- starting and ending -----------------------------------------------------------------------------------------

    def _watch(self, run: Run, task: Task[Any, Any]) -> None:
        """A call begins. Its timeout is the shortest of its jobs'."""
        if isinstance(run, BatchRun):
            self._forget(run)
            own = None if task.timeout is None else task.timeout.total_seconds()
            timeouts = [timeout for member in run.members if (timeout := member.timeout or own) is not None]
            run.timeout = min(timeouts, default=None)
            for member in run.members:
                member.started, member.timeout = run.started, run.timeout
        super()._watch(run, task)

    def _time_out(self, run: Run) -> None:
        if isinstance(run, BatchRun):
            for member in run.members:
                member.timed_out = member.cancelled = True
        super()._time_out(run)

    def _end(self, run: Run, outcome: Outcome) -> None:
        if isinstance(run, BatchRun) and not run.ended:
            for member, end in self._endings(run, outcome):
                if not member.ended:
                    member.ended = True
                    if end.verdict != "completed":
                        self._say(member, end)
                    self._emit(member, end)
        super()._end(run, outcome)

    def _count(self, run: Run, outcome: Outcome) -> None:
        """A call counts once, and has one line in the log if it returned; its jobs have lines if they failed."""
        if isinstance(run, BatchRun) and outcome.verdict != "completed":
            self._ended += 1
        else:
            super()._count(run, outcome)

    def _say(self, run: Run, outcome: Outcome) -> None:
        if self._logged >= LOGGED_PER_SECOND:
            self._unlogged += 1
        else:
            self._logged += 1
            level, text = story(run, outcome)
            log.log(level, "%s", text, extra=run.facts())

    def _endings(self, batch: BatchRun, outcome: Outcome) -> Iterator[tuple[Run, Outcome]]:
        """Each job of a call that has ended, with its own outcome."""
        task = self._batched[batch.task]
        if outcome.verdict == "release":
            yield from ((run, COMPLETED if run.landed else outcome) for run in batch.members)
            return
        for run, error in batch.rejected:
            yield run, failed(run, task, error)
        if batch.results is None:  # it raised, or was interrupted before it began
            error_of_all = batch.error or asyncio.CancelledError()
            yield from ((run, failed(run, task, error_of_all)) for run in batch.accepted)
            return
        for run, result in zip(batch.accepted, batch.results, strict=True):
            yield run, result if isinstance(result, Outcome) else failed(run, task, result)

    def _release(self, run: Run) -> None:
        if not isinstance(run, BatchRun):
            super()._release(run)
            return
        self._forget(run)
        run.ended = True
        for member in run.members:
            super()._release(member)

    def _check_idle(self) -> None:
        if not self._filling:
            super()._check_idle()
