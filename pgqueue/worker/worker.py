"""The worker: wires its parts, starts them, and stops them in order."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import time
from typing import TYPE_CHECKING, Any, Final

import psycopg

from pgqueue import statements
from pgqueue.batch import BatchTask
from pgqueue.connection import connection_string
from pgqueue.errors import SettingsError
from pgqueue.job import DEFAULT_QUEUE, MAX_NAME_LENGTH, check_text
from pgqueue.metrics.board import Monitor
from pgqueue.metrics.meter import make_meter
from pgqueue.metrics.vitals import CLAIMER, LOOP, patience
from pgqueue.pruner import prune, tidy
from pgqueue.resources import Lifespan
from pgqueue.scheduler import Scheduler, forget_ticks
from pgqueue.service import every
from pgqueue.sweeper import sweep
from pgqueue.version import __version__
from pgqueue.worker.batches import BatchExecutor
from pgqueue.worker.bell import Bell
from pgqueue.worker.claimer import Claimer
from pgqueue.worker.compose import around_thread, compose
from pgqueue.worker.executor import Executor
from pgqueue.worker.finisher import Finisher
from pgqueue.worker.hand import Hand
from pgqueue.worker.link import Link
from pgqueue.worker.process import ChildPool
from pgqueue.worker.renewer import Renewer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

    from pgqueue.app import App
    from pgqueue.metrics.vitals import Readiness
    from pgqueue.outcome import Outcome
    from pgqueue.run import Run
    from pgqueue.task import Task

log = logging.getLogger(__name__)

_TICK: Final = 1.0
_IDLE_TICK: Final = 5.0  # while nothing is held: a wake-up of a process that sleeps is a quarter of a millisecond
_HEARTBEAT: Final = 10.0
_PRUNE: Final = 3600.0
_OWN_CONNECTIONS: Final = 10  # beyond one per slot, so that handlers in job.transaction() can also enqueue
_PATIENCE: Final = 5.0  # a statement is given as long as the lease, and at least this
_LAST_CLAIM: Final = 5.0  # how long a claim that is under way may take to come back; without a connection none is
_INTERRUPTED: Final = 2.0  # how long an interrupted handler may take to clean up


class Worker:
    """Runs the jobs of an application's tasks, in this process.

    Args:
        app: the tasks and the database.
        queues: which queues to serve; default: the queues of the app's tasks.
        slots: jobs running at the same time; default from the settings: 50.
        lease: how long a claim is held without renewal; default 30 s.
        poll: longest sleep when idle; default 1 s.
        shutdown_timeout: how long :meth:`stop` waits for running jobs; default 30 s.
        catch_all: a task that runs the jobs of every name which the app does not know.
        name: how it is called in logs and in ``pgq workers``; default host, pid and a few random letters.
        bell: listen for NOTIFY; without it the worker polls.
        monitor: where it writes how it is and what it counts, for whoever shows that; default: for nobody.

    Raises:
        SettingsError: there is nothing that it could run, or a value has no meaning.
    """

    def __init__(
        self,
        app: App,
        *,
        queues: Sequence[str] | None = None,
        slots: int | None = None,
        lease: timedelta | None = None,
        poll: timedelta | None = None,
        shutdown_timeout: timedelta | None = None,
        catch_all: Task[Any, Any] | None = None,
        name: str | None = None,
        bell: bool = True,
        monitor: Monitor | None = None,
    ) -> None:
        settings = app.settings
        if not app.tasks and catch_all is None:
            raise SettingsError("the application has no tasks: a worker would have nothing to run")
        self.app = app
        self.queues = [check_text(queue, "queue", MAX_NAME_LENGTH) for queue in queues or _queues_of(app)]
        self.slots = settings.slots if slots is None else slots
        if self.slots < 1:
            raise SettingsError(f"slots must be at least 1, not {self.slots}")
        self.lease = lease or settings.lease_duration
        self.poll = poll or settings.poll_interval
        self.shutdown_timeout = settings.shutdown_timeout if shutdown_timeout is None else shutdown_timeout
        self.name = name or f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(2)}"
        self._catch_all = catch_all
        self._with_bell = bell
        self._monitor = monitor or Monitor()
        self.vitals = self._monitor.vitals
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()
        self.started = asyncio.Event()
        self._gave_back = 0
        self.stuck = False

    def stop(self, *, now: bool = False) -> None:
        """Claim nothing more; wait for running jobs, or with ``now`` give them back at once. On the event loop."""
        self._stopping.set()
        if now:
            self._hurry.set()

    async def run(self) -> bool:
        """Work until :meth:`stop`; answers whether every running job was finished in order.

        Raises:
            ResourceError: a resource of the application did not start; nothing was claimed.
        """
        resources = self._lifespan = Lifespan()
        try:
            await resources.start(self.app.resources.all_but(_only_in_children(self.app)))
            return await self._work()
        finally:
            await resources.close()

    async def _work(self) -> bool:
        self._assemble()
        await self.app.database.grow(self.slots + _OWN_CONNECTIONS)
        self.renewer.start()
        background = [
            asyncio.create_task(coroutine)
            for coroutine in (
                self.finisher.loop(),
                self.bell.loop(),
                every(self.app.settings.lease_check_interval.total_seconds(), self._sweep, "the sweep"),
                every(_HEARTBEAT, self._heartbeat, "the heartbeat"),
                every(_PRUNE, self._prune, "pruning"),
                every(_TICK, self._tick, "the tick", self.executor.stirred),
                every(1.0, self.scheduler.look, "the scheduler", self.scheduler.edited),
            )
        ]
        claiming = asyncio.create_task(self.claimer.loop())
        log.info("worker %s: %d slots, queues %s", self.name, self.slots, ", ".join(self.queues))
        self.started.set()
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await _first_of(stopping, claiming, *background)
        finally:
            self._stopping.set()
            clean = await self._shut_down(claiming, background)
        log.info("worker %s: stopped%s", self.name, "" if clean else f", {self._gave_back} jobs given back")
        return clean

    def _assemble(self) -> None:
        app = self.app
        settings = app.settings

        dsn = app.database.address

        def listen_dsn() -> str:
            return connection_string(settings.listen_dsn) if settings.listen_dsn else dsn()

        self._loop = asyncio.get_running_loop()
        self.hand = Hand(app)
        longest = max(self.lease.total_seconds(), _PATIENCE)
        self._links = [
            Link(dsn, "claiming", longest),
            Link(dsn, "finishing", longest, lock_timeout="1s"),
            Link(dsn, "sweeping", longest, lock_timeout="1s"),
            Link(dsn, "scheduling", longest, lock_timeout="1s"),  # opened when a tick is near
            Link(dsn, "looking behind", longest),  # opened when a held snapshot makes looks from the start take long
        ]
        self.meter = make_meter(app, self._monitor.numbers, lambda: self.claimer.clock_offset)
        self.finisher = Finisher(self._links[1], self.hand, app.schema)
        self.executor = self._make_executor()
        self.finisher.on_landed = self._on_landed
        self.finisher.meter = self.meter
        self.scheduler = Scheduler(
            self._links[2], self._links[3], app.schema, list(app.schedules.values()), hears=lambda: self.bell.up
        )
        self.bell = Bell(
            listen_dsn, app.schema, self.queues, self._on_cancel,
            edited=self.scheduler.edited.set, back=self._on_back, silent=not self._with_bell,
        )  # fmt: skip
        self.renewer = Renewer(
            dsn, self.hand, self.lease, app.schema,
            lost=lambda run: self._loop.call_soon_threadsafe(self._lose, run),
            cancelled=lambda run: self._loop.call_soon_threadsafe(self.executor.cancel, run),
            vitals=self.vitals,
        )  # fmt: skip
        self.claimer = Claimer(
            self._links[0], self._links[4], self.hand, self.executor, self.bell,
            behind=lambda: self.finisher.behind, schema=app.schema, worker=self.name, queues=self.queues,
            tasks=None if self._catch_all is not None else sorted(app.tasks),
            lease=self.lease, poll=self.poll, stopping=self._stopping, vitals=self.vitals, meter=self.meter,
        )  # fmt: skip

    def _make_executor(self) -> Executor:
        """What is around handlers is put together here, once: an application without middleware pays nothing."""
        app, catch_all = self.app, self._catch_all
        arounds, values = app.middleware.around_runs(), self._lifespan.values
        composed = {name: compose(task, arounds, values) for name, task in app.tasks.items()}
        make = BatchExecutor if any(isinstance(task, BatchTask) for task in app.tasks.values()) else Executor
        return make(
            app, self.slots, self.finisher.add if self.meter is None else self._add_timed,
            catch_all=compose(catch_all, arounds, values) if catch_all is not None else None,
            tasks=app.tasks if composed == app.tasks else composed,
            children=ChildPool(app, around_thread(arounds, self._loop) if arounds else None),
        )  # fmt: skip

    async def _shut_down(self, claiming: asyncio.Task[None], background: list[asyncio.Task[None]]) -> bool:
        """In the order in which nothing is lost: stop claiming, run out, land the outcomes, then let go."""
        self.executor.close()
        self.bell.rung.set()
        try:
            await asyncio.wait_for(claiming, 0 if self._links[0].down else _LAST_CLAIM)
        except Exception as error:  # noqa: BLE001 - a claim that hangs is left to its lease
            log.warning("the last claim did not come back: %r", error)
        self.vitals.release(CLAIMER)
        clean = await self._run_out()
        landed = await self.finisher.drained(hurry=self._hurry.is_set())
        self.stuck = not await self.executor.shut_down()
        await asyncio.to_thread(self.renewer.stop)
        self.vitals.release(LOOP)  # what follows are the resources' last words
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        await self._sign_off()
        for link in self._links:
            await link.close()
        return clean and landed

    async def _run_out(self) -> bool:
        """Wait for the running jobs; when the time is over, or in a hurry, give them back."""
        idle = asyncio.create_task(self.executor.idle.wait())
        hurry = asyncio.create_task(self._hurry.wait())
        if self.executor.running:
            log.info(
                "stopping: %d jobs are running, up to %gs", self.executor.running, self.shutdown_timeout.total_seconds()
            )
        await asyncio.wait(
            [idle, hurry], timeout=self.shutdown_timeout.total_seconds(), return_when=asyncio.FIRST_COMPLETED
        )
        hurry.cancel()
        if not idle.done():
            self._gave_back = self.executor.abandon()
            await asyncio.wait([idle], timeout=_INTERRUPTED)
            self.executor.give_up()
        idle.cancel()
        return not self._gave_back

    def _on_cancel(self, job_id: int) -> None:
        """A hint, no more: anybody may NOTIFY. The renewal asks the row whether somebody may have asked."""
        self.hand.look_again(job_id)
        self.renewer.wake()

    def _on_back(self, queue: str) -> None:
        self.claimer.want(queue)

    def _on_landed(self) -> None:
        self.executor.hungry.set()
        if self.claimer.managed:  # a key or a place of a limit may be free again
            self.bell.rung.set()

    def _add_timed(self, run: Run, outcome: Outcome) -> None:
        """Between the executor and the finisher, when somebody counts."""
        run.finished = time.monotonic()
        self.finisher.add(run, outcome)

    def _lose(self, run: Run) -> None:
        if self.meter is not None and not run.lost:
            self.meter.lost(1)
        self.executor.cancel(run, lost=True)

    async def _tick(self) -> float:
        self.executor.stirred.clear()
        pause = _IDLE_TICK if self.executor.tick() and not self._readiness() else _TICK
        self.vitals.expect(LOOP, pause + patience(self.lease.total_seconds()))
        self.vitals.show(
            self._readiness(), bell=self.bell.up, busy=self.executor.running, free=self.slots - self.executor.running
        )
        if self.meter is not None:
            self.meter.beat()
        return pause

    def _readiness(self) -> Readiness:
        if self._stopping.is_set():
            return "stopping"
        return "" if self.bell.up or self.bell.polls else "the bell is down"

    async def _sweep(self) -> None:
        swept = await sweep(self._links[2], self.app.schema)
        if swept and self.meter is not None:
            self.meter.swept(len(swept))

    async def _prune(self) -> None:
        await prune(self._links[2], self.app.schema)
        await tidy(self._links[2], self.app.schema)
        await forget_ticks(self._links[2], self.app.schema)

    async def _heartbeat(self) -> None:
        clock = await self._links[2].arun(statements.heartbeat(
            self.name, socket.gethostname(), os.getpid(), self.queues, self.slots, self.executor.running,
            __version__, self._stopping.is_set(), schema=self.app.schema,
        ))  # fmt: skip
        self.claimer.set_clock(clock)

    async def _sign_off(self) -> None:
        if self._links[2].down:
            return  # the row will be forgotten in a day
        try:
            await asyncio.wait_for(self._links[2].arun(statements.sign_off(self.name, schema=self.app.schema)), 2)
        except (psycopg.Error, OSError, TimeoutError):
            log.debug("could not sign off; the row will be forgotten in a day")


def _queues_of(app: App) -> list[str]:
    return sorted({task.spec.queue for task in app.tasks.values()}) or [DEFAULT_QUEUE]


def _only_in_children(app: App) -> set[Any]:
    """The resources that only isolated tasks take: their children start their own."""
    keys: dict[bool, set[Any]] = {True: set(), False: set()}
    for task in app.tasks.values():
        keys[task.kind == "process"].update(task.arguments.resources.values())
    return keys[True] - keys[False]


async def _first_of(*tasks: asyncio.Task[Any]) -> None:
    """Until one of them ends; the error of a part that broke is the worker's."""
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    tasks[0].cancel()
    for task in done:
        if task is not tasks[0]:
            task.result()
