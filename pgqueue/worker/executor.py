"""Runs handlers in slots: coroutines that live as long as the worker, threads, and child processes.

A claimed run waits in ``ready``; while a slot is free the next one starts in the lane of its task's kind; its
outcome goes to the finisher. Exactly one outcome per run, whatever its handler does.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import heapq
import logging
import threading
import time
from collections import deque
from datetime import timedelta
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final

import orjson

from pgqueue.durations import format_duration, parse_duration
from pgqueue.errors import Cancel, Dead, HandlerCrashedError, JobTimeoutError, Retry, Snooze, UnknownTaskError
from pgqueue.handle import Job
from pgqueue.outcome import COMPLETED, RELEASED, Outcome, completed, describe_error, error_json
from pgqueue.run import Run, current_run
from pgqueue.worker.process import ChildPool

if TYPE_CHECKING:
    from collections.abc import Callable

    from pgqueue.app import App
    from pgqueue.task import Task

log = logging.getLogger(__name__)

_AHEAD_SECONDS: Final = 0.05  # claim ahead what is finished in this time …
_MOST_AHEAD: Final = 1_000  # … and never more than this
_YIELD_EVERY: Final = 64  # runs of handlers that never wait, before others get the loop
_LOGGED_PER_SECOND: Final = 50
_LONGEST_DELAY: Final = timedelta(days=36_500).total_seconds()  # whatever a user's backoff says
_DEAF_AFTER: Final = 5.0  # seconds between the cancellation of a coroutine and leaving it to itself
_UNJUDGED_DELAY: Final = 60.0
_THREAD_GRACE: Final = 2.0  # a thread can't be killed: its job is given back for after the process has ended


class Executor:
    """The slots of one worker. Used on the event loop only, but for the threads' own function."""

    def __init__(
        self, app: App, slots: int, emit: Callable[[Run, Outcome], None], *, catch_all: Task[Any, Any] | None = None
    ) -> None:
        self._app = app
        self._slots = slots
        self._free = slots
        self._emit = emit
        self._catch_all = catch_all
        self._loop = asyncio.get_running_loop()
        self._ready: deque[Run] = deque()
        self._ready_since = 0.0
        self._running: set[Run] = set()
        self._stopping = self._over = False
        self.hungry = asyncio.Event()
        self.hungry.set()
        self.idle = asyncio.Event()
        self.idle.set()
        # the rate of completions, for claiming ahead
        self._ended = 0
        self._ahead = self._low = 0
        self._rate = 0.0
        self._rate_at = time.monotonic()
        self._rate_ended = 0
        self._unlogged = 0
        self._logged = 0
        # coroutines
        self._inbox: deque[tuple[Run, Task[Any, Any]]] = deque()
        self._sleeping: list[asyncio.Future[None]] = []
        self._coroutines: list[asyncio.Task[None]] = []
        self._deaf: set[asyncio.Task[None]] = set()  # whose handler ignores that it is cancelled
        self._context = contextvars.copy_context()
        # threads
        self._thread_inbox: SimpleQueue[tuple[Run, Task[Any, Any], str] | None] = SimpleQueue()
        self._thread_done: deque[tuple[Run, Outcome]] = deque()
        self._thread_told = False
        self._threads = 0
        self._threads_busy = 0
        self._children = ChildPool(app)
        # one structure for all timeouts
        self._deadlines: list[tuple[float, int, Run]] = []
        self._most_deadlines = 1_000
        self._alarm: asyncio.TimerHandle | None = None

    @property
    def running(self) -> int:
        """Jobs whose handler is running."""
        return self._slots - self._free

    def wants(self) -> int:
        """How many jobs to claim now: the free slots, and what will be finished while the next claim is under way."""
        waiting = len(self._ready)
        if self._stopping or waiting > self._low:
            return 0
        return self._free + self._ahead - waiting

    def put(self, runs: list[Run]) -> None:
        """Start these, or let them wait for a slot. After :meth:`close` they are given back."""
        if self._stopping:
            for run in runs:
                self._release(run)
            return
        if not self._ready:
            self._ready_since = time.monotonic()
        self._ready.extend(runs)
        self.idle.clear()
        self._pump()

    def tick(self) -> None:
        """Once a second: forget an old rate, give back what would wait too long here, sum up what was not logged."""
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

    def close(self) -> None:
        """Start nothing more; what has not started is given back."""
        self._stopping = True
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
        self._over = True
        coroutines = [*self._coroutines, *self._deaf]
        for task in coroutines:
            task.cancel()
        stuck = (await asyncio.wait(coroutines, timeout=1))[1] if coroutines else set()
        for _ in range(self._threads):
            self._thread_inbox.put(None)
        self._children.close()
        if self._alarm is not None:
            self._alarm.cancel()
        return not stuck

    # -- starting and ending -----------------------------------------------------------------------------------------

    def _pump(self, *, here: bool = False) -> None:
        """Start what can start. ``here``: the caller is a coroutine slot that will take the first from the inbox."""
        while self._ready and self._free:
            run = self._ready.popleft()
            if run.lost:
                self._emit(run, RELEASED)
                continue
            task = self._app.tasks.get(run.task) or self._catch_all
            self._free -= 1
            self._running.add(run)
            run.started = time.monotonic()
            if task is None:
                self._end(run, self._failed(run, None, UnknownTaskError(run.task)))
                continue
            kind = "process" if run.suspect and task.importable else task.kind
            if kind != "process":  # a child's time counts from when it has taken the job
                self._watch(run, task)
            if kind != "async":
                self._start_in_thread(run, task, kind)
                continue
            self._inbox.append((run, task))
            if here:
                here = False
            else:
                self._wake_coroutine()
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
        if self._logged >= _LOGGED_PER_SECOND:
            self._unlogged += 1
        elif outcome.verdict == "completed":
            self._logged += 1
            log.info("completed in %s", format_duration(timedelta(seconds=now - run.started)), extra=run.facts())
        else:
            self._logged += 1
            level, story = _story(run, outcome)
            log.log(level, "%s", story, extra=run.facts())

    def _set_rate(self, rate: float) -> None:
        self._rate = rate
        self._ahead = min(_MOST_AHEAD, int(rate * _AHEAD_SECONDS))
        self._low = self._ahead // 2

    # -- what an exception means -------------------------------------------------------------------------------------

    def _failed(self, run: Run, task: Task[Any, Any] | None, error: BaseException) -> Outcome:
        """The outcome of a run that raised. Never raises itself, whatever a user's backoff or delay does."""
        try:
            return self._judge(run, task, error)
        except Exception as broken:
            log.exception("the end of a run could not be judged; it counts as a failure", extra=run.facts())
            verdict = "dead" if run.attempt >= run.max_attempts else "retry"
            return Outcome(verdict, error=describe_error(broken, run.attempt), delay=_UNJUDGED_DELAY)

    def _judge(self, run: Run, task: Task[Any, Any] | None, error: BaseException) -> Outcome:  # noqa: PLR0911
        if run.landed:
            log.warning("the handler failed after its transaction had completed the job: %r", error, extra=run.facts())
            return COMPLETED
        if run.releasing:
            return RELEASED
        if isinstance(error, Snooze):
            return Outcome("snooze", delay=_seconds(error.delay))
        if isinstance(error, Cancel):
            return Outcome("cancelled", error=describe_error(error, run.attempt))
        if run.timed_out:
            error = JobTimeoutError(f"the handler ran longer than its timeout of {run.timeout:g}s")
        elif run.cancelled and isinstance(error, asyncio.CancelledError | HandlerCrashedError):
            return Outcome("cancelled", error=error_json(run.attempt, "Cancelled", "cancelled while it was running"))
        text = describe_error(error, run.attempt)
        if isinstance(error, Dead) or run.attempt >= run.max_attempts:
            return Outcome("dead", error=text)
        if isinstance(error, Retry):
            return Outcome("retry", error=text, delay=_seconds(error.delay))
        policy = task.backoff_for(error) if task is not None else None
        delay = policy.delay(run.attempt) if policy is not None else None
        if delay is None:
            return Outcome("dead", error=text)
        return Outcome("retry", error=text, delay=min(max(0.0, delay.total_seconds()), _LONGEST_DELAY))

    # -- coroutines --------------------------------------------------------------------------------------------------

    def _wake_coroutine(self) -> None:
        """When every slot is awake, the next one that ends its run looks into the inbox."""
        while self._sleeping:
            future = self._sleeping.pop()
            if not future.done():
                future.set_result(None)
                return
        if len(self._coroutines) < self._slots:
            self._coroutines.append(self._loop.create_task(self._slot(), context=self._context.copy()))

    async def _slot(self) -> None:
        """A slot's whole life: take a run, await its handler, hand in the outcome."""
        me = asyncio.current_task()
        assert me is not None  # noqa: S101
        current_run.set(None)
        clean = contextvars.copy_context()
        since = 0
        while me not in self._deaf:
            if not self._inbox:
                since = 0
                await self._sleep()
                continue
            run, task = self._inbox.popleft()
            if not run.ended:
                outcome = await self._await_handler(run, task, me)
                self._end(run, outcome)
                current_run.set(None)
                if contextvars.copy_context() != clean:  # a handler has set a ContextVar: the next one gets a new slot
                    break
                self._pump(here=True)
            since += 1
            if since >= _YIELD_EVERY:
                since = 0
                await asyncio.sleep(0)

        if me in self._deaf:
            self._deaf.discard(me)
        else:
            self._coroutines.remove(me)
        self._pump()
        if self._inbox:
            self._wake_coroutine()

    async def _sleep(self) -> None:
        future: asyncio.Future[None] = self._loop.create_future()
        self._sleeping.append(future)
        await future

    async def _await_handler(self, run: Run, task: Task[Any, Any], me: asyncio.Task[None]) -> Outcome:
        current_run.set(run)
        run.cancel_hook = me.cancel
        try:
            if run.cancelled:
                raise asyncio.CancelledError  # noqa: TRY301 - it was cancelled on its way to this slot
            arguments = task.arguments
            kwargs = arguments.load(run.payload)
            if arguments.job_parameter is not None:
                kwargs[arguments.job_parameter] = Job(run.id, self._app, run)
            value = await task.function(**kwargs)
        except BaseException as error:
            if isinstance(error, GeneratorExit) and self._over:
                raise
            outcome = self._failed(run, task, error)
        else:
            outcome = COMPLETED if value is None or run.landed else completed(value)
        run.cancel_hook = None
        if me.cancelling():
            await _swallow_cancellation(me)
        return outcome

    # -- threads -----------------------------------------------------------------------------------------------------

    def _start_in_thread(self, run: Run, task: Task[Any, Any], kind: str) -> None:
        self._threads_busy += 1
        if self._threads_busy > self._threads:
            self._threads += 1
            threading.Thread(target=self._thread, name=f"pgqueue-slot-{self._threads}", daemon=True).start()
        self._thread_inbox.put((run, task, kind))

    def _thread(self) -> None:
        """A thread's whole life. Outcomes are handed in many at a time: the loop is told once, then looks."""
        while (item := self._thread_inbox.get()) is not None:
            run, task, kind = item
            # each handler in a context of its own: what one sets, the next one does not see
            outcome = contextvars.Context().run(self._call_handler, run, task, kind)
            self._thread_done.append((run, outcome))
            if not self._thread_told:
                self._thread_told = True
                try:
                    self._loop.call_soon_threadsafe(self._collect)
                except RuntimeError:  # the loop is closed: the worker has stopped without this thread
                    return

    def _call_handler(self, run: Run, task: Task[Any, Any], kind: str) -> Outcome:
        current_run.set(run)
        try:
            if run.cancelled or run.ended:
                raise asyncio.CancelledError  # noqa: TRY301 - it was cancelled or abandoned on its way to this thread
            if kind == "process":
                return self._children.call(run, task, lambda: self._loop.call_soon_threadsafe(self._watch, run, task))
            arguments = task.arguments
            kwargs = arguments.load(run.payload)
            if arguments.job_parameter is not None:
                kwargs[arguments.job_parameter] = Job(run.id, self._app, run)
            value = task.function(**kwargs)
        except BaseException as error:  # noqa: BLE001 - as above
            return self._failed(run, task, error)
        else:
            return COMPLETED if value is None or run.landed else completed(value)

    def _collect(self) -> None:
        self._thread_told = False
        while self._thread_done:
            run, outcome = self._thread_done.popleft()
            if run.ended:
                self._threads_busy -= 1  # it had been abandoned: its thread is of use again
                continue
            self._threads_busy -= 1
            self._end(run, outcome)
        self._pump()

    # -- timeouts ----------------------------------------------------------------------------------------------------

    def _watch(self, run: Run, task: Task[Any, Any]) -> None:
        if run.ended:
            return
        if run.timeout is None:
            if task.timeout is None:
                return
            run.timeout = task.timeout.total_seconds()
        if len(self._deadlines) > self._most_deadlines:
            self._forget_deadlines()
        deadline = run.started + run.timeout
        heapq.heappush(self._deadlines, (deadline, run.id, run))
        if self._deadlines[0][2] is run:
            self._set_alarm()

    def _forget_deadlines(self) -> None:
        """Most runs end long before their deadline; looked through whenever the heap has doubled."""
        self._deadlines = [entry for entry in self._deadlines if not entry[2].ended]
        heapq.heapify(self._deadlines)
        self._most_deadlines = 2 * len(self._deadlines) + 1_000

    def _set_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        delay = max(0.0, self._deadlines[0][0] - time.monotonic())
        self._alarm = self._loop.call_later(delay, self._ring)

    def _ring(self) -> None:
        self._alarm = None
        now = time.monotonic()
        while self._deadlines and (self._deadlines[0][0] <= now or self._deadlines[0][2].ended):
            run = heapq.heappop(self._deadlines)[2]
            if not run.ended:
                self._time_out(run)
        if self._deadlines:
            self._set_alarm()

    def _time_out(self, run: Run) -> None:
        run.timed_out = run.cancelled = True
        if run.cancel_hook is not None:
            run.interrupt()
            self._loop.call_later(_DEAF_AFTER, self._leave_deaf, run)
            return
        # A thread can't be stopped: its job fails now, its slot is free, its result will be dropped.
        task = self._app.tasks.get(run.task) or self._catch_all
        log.error("a handler in a thread hangs; it is abandoned", extra=run.facts())
        self._end(run, self._failed(run, task, TimeoutError()))
        self._pump()

    def _leave_deaf(self, run: Run) -> None:
        """A coroutine that goes on after its timeout and its cancellation is left to itself, like a thread."""
        slot = next((task for task in self._coroutines if run.cancel_hook == task.cancel), None)
        if run.ended or slot is None:
            return
        log.error("a handler ignores its cancellation; it is abandoned", extra=run.facts())
        self._coroutines.remove(slot)
        self._deaf.add(slot)
        self._end(run, self._failed(run, self._app.tasks.get(run.task) or self._catch_all, TimeoutError()))
        self._pump()


async def _swallow_cancellation(me: asyncio.Task[None]) -> None:
    """A cancellation meant for the handler that has just ended must not hit the next one in this slot."""
    while me.cancelling():
        me.uncancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(0)


def _seconds(delay: Any) -> float:
    return parse_duration(delay, "delay").total_seconds()


def _story(run: Run, outcome: Outcome) -> tuple[int, str]:
    """Level and text of the log line for an outcome that is not a completion."""
    why = ""
    if outcome.error:
        error = orjson.loads(outcome.error)
        why = f": {error['type']}: {error['message']}"
    wait = format_duration(timedelta(seconds=outcome.delay))
    match outcome.verdict:
        case "retry":
            return logging.WARNING, f"failed, again in {wait}{why}"
        case "dead":
            return logging.ERROR, f"dead after attempt {run.attempt} of {run.max_attempts}{why}"
        case "snooze":
            return logging.INFO, f"snoozed for {wait}"
        case "release":
            return logging.INFO, "given back"
        case verdict:
            return logging.INFO, f"{verdict}{why}"
