"""Decides which claimed run starts when and where, and sees each to its one outcome.

A claimed run waits in ``ready``; while a slot is free the next one starts: in a coroutine (:mod:`.coroutines`), a
thread or a child process (:mod:`.threads`). Its outcome goes to the finisher.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from pgqueue.durations import format_duration
from pgqueue.errors import UnknownTaskError
from pgqueue.outcome import RELEASED, Outcome
from pgqueue.worker.coroutines import CoroutineSlots
from pgqueue.worker.deadlines import Deadlines
from pgqueue.worker.judge import failed, story
from pgqueue.worker.process import ChildPool
from pgqueue.worker.threads import ThreadSlots

if TYPE_CHECKING:
    from collections.abc import Callable

    from pgqueue.app import App
    from pgqueue.run import Run
    from pgqueue.task import Task

log = logging.getLogger(__name__)

_AHEAD_SECONDS: Final = 0.05  # claim ahead what is finished in this time …
_MOST_AHEAD: Final = 1_000  # … and never more than this
LOGGED_PER_SECOND: Final = 50
_DEAF_AFTER: Final = 5.0  # seconds between the cancellation of a coroutine and leaving it to itself
_THREAD_GRACE: Final = 2.0  # a thread can't be killed: its job is given back for after the process has ended


class Executor:
    """The slots of one worker. Used on the event loop only."""

    def __init__(
        self,
        app: App,
        slots: int,
        emit: Callable[[Run, Outcome], None],
        *,
        catch_all: Task[Any, Any] | None = None,
        tasks: dict[str, Task[Any, Any]] | None = None,
        children: ChildPool | None = None,
    ) -> None:
        self._app = app
        self._tasks = app.tasks if tasks is None else tasks
        self._slots = slots
        self._free = slots
        self._emit = emit
        self._catch_all = catch_all
        self._loop = asyncio.get_running_loop()
        self._ready: deque[Run] = deque()
        self._ready_since = 0.0
        self._running: set[Run] = set()
        self._stopping = False
        self.hungry = asyncio.Event()
        self.hungry.set()
        self.idle = asyncio.Event()
        self.idle.set()
        self.stirred = asyncio.Event()  # something came after a tick that had found nothing to do
        self._dozing = self._came = False
        # the rate of completions, for claiming ahead
        self._ended = 0
        self._ahead = self._low = 0
        self._rate = 0.0
        self._rate_at = time.monotonic()
        self._rate_ended = 0
        self._unlogged = 0
        self._logged = 0
        self._coroutines = CoroutineSlots(slots, self._end, self._pump)
        self._threads = ThreadSlots(children or ChildPool(app), self._end, self._pump, self._watch)
        self._deadlines = Deadlines(self._time_out)

    @property
    def running(self) -> int:
        """Jobs whose handler is running."""
        return self._slots - self._free

    @property
    def soon(self) -> int:
        """Slots that nothing runs in or waits for, and while jobs are quick those that will be free at once."""
        return max(0, self._free + min(4 * self._slots, self._ahead) - len(self._ready))

    def wants(self) -> int:
        """How many jobs to claim now: the free slots, and what will be finished while the next claim is under way."""
        waiting = len(self._ready)
        if self._stopping or waiting > self._low:
            return 0
        return self._free + self._ahead - waiting

    def put(self, runs: list[Run], *, first: bool = False) -> None:
        """Start these, or let them wait for a slot, ``first``: the next one. After :meth:`close` give them back."""
        if self._stopping:
            for run in runs:
                self._release(run)
            return
        if not self._ready:
            self._ready_since = time.monotonic()
        if first:
            self._ready.extendleft(reversed(runs))
        else:
            self._ready.extend(runs)
        self._came = True
        if self._dozing:
            self._dozing = False
            self.stirred.set()
        self.idle.clear()
        self._pump()

    def tick(self) -> bool:
        """Once a second: forget an old rate, give back what would wait too long here, sum up what was not logged.

        Answers whether there was nothing since the last time; and will not be until ``stirred`` is set.
        """
        now = time.monotonic()
        if now - self._rate_at > 1:
            self._set_rate(0.0)
        if self._ready and not self._free and now - self._ready_since > 2:  # noqa: PLR2004
            log.debug("%d claimed jobs would have to wait here; given back for other workers", len(self._ready))
            while self._ready:
                self._release(self._ready.pop())
        if self._unlogged:
            log.info("and %d more jobs ended", self._unlogged)
        self._logged = self._unlogged = 0
        self._dozing = self.idle.is_set() and not self._rate and not self._came
        self._came = False
        return self._dozing

    def close(self) -> None:
        """Start nothing more; what has not started is given back."""
        self._stopping = True
        self.stirred.set()
        self.hungry.set()
        while self._ready:
            self._release(self._ready.popleft())
        self._check_idle()

    def abandon(self) -> int:
        """Interrupt what still runs and give it back, the attempt refunded; answers how many there were."""
        runs = list(self._running)
        for run in runs:
            run.releasing = run.cancelled = True
            if run.cancel_hook is not None:
                run.interrupt()
            else:
                self._end(run, Outcome("release", delay=_THREAD_GRACE))
        return len(runs)

    def cancel(self, run: Run, *, lost: bool = False) -> None:
        """Stop a run because somebody asked, or because its lease is lost."""
        run.cancelled = True
        run.lost = run.lost or lost
        if not run.started and run in self._ready:
            self._ready.remove(run)
            self._emit(run, Outcome("cancelled"))
            self._check_idle()
        else:
            run.interrupt()

    def give_up(self) -> None:
        """After :meth:`abandon`: what does not even stop when it is interrupted is given back without its consent."""
        for run in list(self._running):
            log.error("the handler does not stop; its job is given back", extra=run.facts())
            self._end(run, Outcome("release", delay=_THREAD_GRACE))

    async def shut_down(self) -> bool:
        """End the coroutines, the idle threads and the children; answers False when a coroutine does not end."""
        self._deadlines.close()
        await self._threads.shut_down()
        return await self._coroutines.shut_down()

    # -- starting and ending -----------------------------------------------------------------------------------------

    def _pump(self, here: bool = False) -> None:
        """Start what can start. ``here``: the caller is a coroutine slot that takes the next run of its kind itself."""
        while self._ready and self._free:
            run = self._ready.popleft()
            if run.lost:
                self._emit(run, RELEASED)
                continue
            task = self._tasks.get(run.task) or self._catch_all
            self._free -= 1
            self._running.add(run)
            run.started = time.monotonic()
            if task is None:
                self._end(run, failed(run, None, UnknownTaskError(run.task)))
            elif run.suspect and task.importable:
                self._threads.take(run, task, "process")
            elif task.kind == "async":
                self._watch(run, task)
                self._coroutines.take(run, task, here=here)
                here = False
            else:
                if task.kind == "thread":  # a child's time counts from when it has taken the job
                    self._watch(run, task)
                self._threads.take(run, task, task.kind)
        if len(self._ready) <= self._low:
            self.hungry.set()

    def _end(self, run: Run, outcome: Outcome) -> None:
        """The one place where a run ends; the second outcome of an abandoned one is dropped."""
        if run.ended:
            return
        run.ended = True
        run.cancel_hook = None
        self._running.discard(run)
        self._free += 1
        self._count(run, outcome)
        self._emit(run, outcome)
        if len(self._ready) <= self._low:
            self.hungry.set()
        self._check_idle()

    def _release(self, run: Run) -> None:
        run.ended = True
        self._emit(run, RELEASED)

    def _check_idle(self) -> None:
        if self._free == self._slots and not self._ready:
            self.idle.set()

    def _count(self, run: Run, outcome: Outcome) -> None:
        self._ended += 1
        now = time.monotonic()
        if now - self._rate_at >= 0.02:  # noqa: PLR2004
            rate = (self._ended - self._rate_ended) / (now - self._rate_at)
            self._set_rate(0.5 * (self._rate or rate) + 0.5 * rate)
            self._rate_at, self._rate_ended = now, self._ended
        if self._logged >= LOGGED_PER_SECOND:
            self._unlogged += 1
        elif outcome.verdict == "completed":
            self._logged += 1
            log.info("completed in %s", format_duration(timedelta(seconds=now - run.started)), extra=run.facts())
        else:
            self._logged += 1
            level, text = story(run, outcome)
            log.log(level, "%s", text, extra=run.facts())

    def _set_rate(self, rate: float) -> None:
        self._rate = rate
        self._ahead = min(_MOST_AHEAD, int(rate * _AHEAD_SECONDS))
        self._low = self._ahead // 2

    # -- timeouts ----------------------------------------------------------------------------------------------------

    def _watch(self, run: Run, task: Task[Any, Any]) -> None:
        if run.timeout is None and task.timeout is not None:
            run.timeout = task.timeout.total_seconds()
        if run.timeout is not None:
            self._deadlines.watch(run)

    def _time_out(self, run: Run) -> None:
        run.timed_out = run.cancelled = True
        if run.cancel_hook is not None:
            run.interrupt()
            self._loop.call_later(_DEAF_AFTER, self._leave_deaf, run)
            return
        # A thread can't be stopped: its job fails now, its slot is free, its result will be dropped.
        log.error("a handler in a thread hangs; it is abandoned", extra=run.facts())
        self._fail_for_time(run)

    def _leave_deaf(self, run: Run) -> None:
        """A coroutine that goes on after its timeout and its cancellation is left to itself, like a thread."""
        if not run.ended and self._coroutines.leave(run):
            log.error("a handler ignores its cancellation; it is abandoned", extra=run.facts())
            self._fail_for_time(run)

    def _fail_for_time(self, run: Run) -> None:
        self._end(run, failed(run, self._tasks.get(run.task) or self._catch_all, TimeoutError()))
        self._pump()
