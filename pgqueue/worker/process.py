"""Handlers in child processes: a crash or a kill costs one job; a child serves many jobs, one after another."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import importlib
import inspect
import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
from dataclasses import replace
from functools import cache
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any, Final

from pgqueue import tracing
from pgqueue.errors import HandlerCrashedError
from pgqueue.handle import Job
from pgqueue.outcome import COMPLETED, REMOTE_TRACEBACK, Outcome, dump_result
from pgqueue.resources import Lifespan
from pgqueue.run import Run, current_run

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from pgqueue.app import App
    from pgqueue.settings import Settings
    from pgqueue.task import Task

_JOBS_PER_CHILD: Final = 1_000
_PARTING: Final = 5.0  # how long a child may take to close its resources


@cache
def _context() -> multiprocessing.context.ForkServerContext:
    """Children are forked from a clean process that has imported us already: a start takes 20 ms, not a second."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pgqueue.worker.fork_server", "__main__", "pgqueue.app", "pgqueue.worker.process"])
    return context


class ChildPool:
    """The idle children of a worker. ``call`` runs in a thread of the executor.

    ``around``: the application's middleware as one context manager, which is here, around the child.
    """

    def __init__(self, app: App, around: Callable[[Job], AbstractContextManager[None]] | None = None) -> None:
        self._app = app
        self._around = around
        self._idle: list[_Child] = []
        self._all: set[_Child] = set()
        self._closed = False

    def call(self, run: Run, task: Task[Any, Any], taken: Callable[[], object]) -> Outcome:
        """Run one job in a child, starting one if none is idle. Raises what the handler raised.

        ``taken`` is called when the child has the job: from then on its timeout counts, not while it starts.
        """
        if self._around is None:
            return self._call(run, task, taken)
        with self._around(Job(run.id, self._app, run)):
            return self._call(run, task, taken)
        return COMPLETED  # a middleware has swallowed the exception

    @property
    def holding(self) -> bool:
        """Whether an idle child has started resources."""
        return any(child.holding for child in self._idle)

    def part(self) -> None:
        """Let the idle children close their resources and end; waits for them, not for ever."""
        self._closed = True
        children = [child for child in self._idle if child.holding]
        for child in children:
            child.say_goodbye()
        end = time.monotonic() + _PARTING
        for child in children:
            child.wait(end - time.monotonic())

    def _call(self, run: Run, task: Task[Any, Any], taken: Callable[[], object]) -> Outcome:
        child = self._take()
        try:
            run.cancel_hook = child.kill
            if run.ended or run.cancelled:
                child.kill()
            return child.call(run, task, taken)
        finally:
            run.cancel_hook = None
            if child.usable and not self._closed:
                self._idle.append(child)
            elif child.holding and not child.killed:
                threading.Thread(target=self._retire, args=(child,), daemon=True).start()
            else:
                child.kill()
                self._all.discard(child)

    def _retire(self, child: _Child) -> None:
        child.say_goodbye()
        child.wait(_PARTING)
        child.kill()
        self._all.discard(child)

    def _take(self) -> _Child:
        """An idle child that still lives, else a new one."""
        while self._idle:
            child = self._idle.pop()
            if child.usable:
                return child
            child.kill()
            self._all.discard(child)
        child = _Child(replace(self._app.settings, dsn=self._app.database.dsn))
        self._all.add(child)
        return child

    def close(self) -> None:
        """End all children."""
        self._closed = True
        for child in list(self._all):
            child.kill()


class _Child:
    """The parent's end of one child."""

    def __init__(self, settings: Settings) -> None:
        context = _context()
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=child_main, args=(theirs, settings), name="pgqueue-child")
        self._process.start()
        theirs.close()
        self._jobs = 0
        self.killed = False
        self.holding = False

    @property
    def usable(self) -> bool:
        return not self.killed and self._jobs < _JOBS_PER_CHILD and self._process.is_alive()

    def call(self, run: Run, task: Task[Any, Any], taken: Callable[[], object]) -> Outcome:
        self._jobs += 1
        self.holding = self.holding or bool(task.arguments.resources)
        function = task.function
        row = (run.priority, None, run.id, run.queue, run.task, run.payload,
               run.attempt, run.max_attempts, run.timeout, tracing.carried(run.meta), run.suspect)  # fmt: skip
        message = function.__module__, function.__qualname__, task.arguments.raw, row, run.token
        try:
            kind, value = self._converse(message, run, taken)
        except (EOFError, OSError):
            self._process.join(5)
            code = self._process.exitcode
            self.kill()
            raise HandlerCrashedError(_last_words(code)) from None
        if kind == "error":  # not inside the try: what the handler raised may be an OSError, too
            raise _rebuilt(*value)
        return COMPLETED if value is None else Outcome("completed", result=value)

    def _converse(self, message: object, run: Run, taken: Callable[[], object]) -> tuple[str, Any]:
        """Give the child its job and listen until it answers: result or error. An OSError here is the pipe's own."""
        self._pipe.send(message)
        while True:
            wait([self._pipe, self._process.sentinel])
            kind, value = self._pipe.recv() if self._pipe.poll() else _no_answer()
            if kind == "taken":
                run.started = time.monotonic()
                taken()
            elif kind == "progress":
                run.tell(value)
            elif kind == "landed":
                run.land()
            else:
                return kind, value

    def say_goodbye(self) -> None:
        """Have an idle child close its resources and end."""
        with contextlib.suppress(OSError):
            self._pipe.send(None)

    def wait(self, seconds: float) -> None:
        """Until it has ended, or this long."""
        self._process.join(max(0.0, seconds))

    def kill(self) -> None:
        """The child and everything that it started."""
        pid = self._process.pid
        if self.killed or pid is None:
            return
        self.killed = True
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)  # also when the child itself is dead: the group lives while a member does
        if self._process.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def child_main(pipe: Connection, settings: Settings) -> None:
    """The child's whole life: take a job, run its handler, answer; end when the parent has ended."""
    os.setsid()  # so that the parent can kill it with all its own children, and Ctrl-C reaches only the parent
    for number in (signal.SIGINT, signal.SIGTERM):  # of the terminal, of systemd: the worker decides when we end
        signal.signal(number, lambda *_: None)  # not SIG_IGN, which the handler's own children would inherit
    threading.Thread(target=_die_with_parent, daemon=True).start()
    from pgqueue.app import App  # noqa: PLC0415 - only the child needs it

    app = App(settings=settings)
    tasks: dict[tuple[str, str], Task[Any, Any]] = {}
    held = _Held(settings)
    while True:
        try:
            message = pipe.recv()
        except (EOFError, OSError):
            return
        if message is None:
            held.close()
            return
        module, name, raw, row, token = message
        try:
            task = tasks.get((module, name)) or tasks.setdefault((module, name), _load(app, module, name, row[4], raw))
            pipe.send(("taken", None))
            answer: tuple[str, Any] = ("result", _run_here(app, task, _ChildRun(row, token, app, pipe), held))
        except BaseException as error:  # noqa: BLE001 - SystemExit and the like end this job and nothing else
            answer = ("error", _flat(error))
        try:
            pipe.send(answer)
        except OSError:
            return


class _ChildRun(Run):
    """A run whose facts travel to the parent."""

    def __init__(self, row: tuple[Any, ...], token: int, app: App, pipe: Connection) -> None:
        super().__init__(row, token, app)
        self._pipe = pipe

    def tell(self, report: str) -> None:
        self._pipe.send(("progress", report))

    def land(self) -> None:
        super().land()
        self._pipe.send(("landed", None))


class _Held:
    """The resources of this child, each started when the first job comes that needs it, and their event loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lifespans: dict[App, Lifespan] = {}
        self._runner: asyncio.Runner | None = None

    def call(self, task: Task[Any, Any], run: Run) -> Any:
        """Call the handler of a task with resources, or of a batch of one."""
        from pgqueue.worker.compose import call_alone  # noqa: PLC0415 - only such a child needs it

        if task.app not in self._lifespans:
            task.app.configure(self._settings)
            self._lifespans[task.app] = Lifespan()
        lifespan = self._lifespans[task.app]
        needed = task.app.resources.needed_for(task.arguments.resources.values())
        if needed:
            self.run(lifespan.start(needed))
        value = call_alone(task, lifespan.values, run)
        return self.run(_closing(task.app, value)) if inspect.iscoroutine(value) else value

    def run(self, coroutine: Any) -> Any:
        """Always on the same loop, which is that of the resources."""
        if self._runner is None:
            self._runner = asyncio.Runner()
        return self._runner.run(coroutine, context=contextvars.copy_context())

    def close(self) -> None:
        for lifespan in self._lifespans.values():
            self.run(lifespan.close())
        if self._runner is not None:
            self._runner.close()


def _run_here(app: App, task: Task[Any, Any], run: Run, held: _Held) -> str | None:
    current_run.set(run)
    if run.meta and tracing.imported():
        with tracing.attached(run.meta):
            return _result_here(app, task, run, held)
    return _result_here(app, task, run, held)


def _result_here(app: App, task: Task[Any, Any], run: Run, held: _Held) -> str | None:
    if task.app is app:
        value: Any = task.function(**task.bind(run))
        if inspect.iscoroutine(value):
            value = asyncio.run(_closing(app, value))
    else:
        value = held.call(task, run)
    return None if value is None else dump_result(value)


async def _closing(app: App, coroutine: Any) -> Any:
    try:
        return await coroutine
    finally:
        await app.aclose()


def _load(app: App, module: str, qualname: str, name: str, raw: bool) -> Task[Any, Any]:
    from pgqueue.task import Task  # noqa: PLC0415
    from pgqueue.worker.compose import is_plain  # noqa: PLC0415

    found: Any = importlib.import_module("__mp_main__" if module == "__main__" else module)
    for part in qualname.split("."):
        found = getattr(found, part)
    if isinstance(found, Task) and not is_plain(found):
        return found
    return Task(app, found.function if isinstance(found, Task) else found, name=name, raw=raw)


def _flat(error: BaseException) -> tuple[bytes, str, str, str]:
    """The exception itself if it can be pickled, and what can always travel: name, message, traceback."""
    try:
        whole = pickle.dumps(error)
    except BaseException:  # noqa: BLE001 - a user's class may raise anything here
        whole = b""
    try:
        message = str(error)
    except BaseException:  # noqa: BLE001
        message = "<its __str__ failed>"
    return whole, type(error).__name__, message, "".join(traceback.format_exception(error))


def _rebuilt(whole: bytes, name: str, message: str, trace: str) -> BaseException:
    """The child's exception; one that does not survive the way comes as a class of the same name."""
    try:
        error: Any = pickle.loads(whole)  # noqa: S301 - from our own child
        if not isinstance(error, BaseException):
            raise TypeError(name)  # noqa: TRY301
    except Exception:  # noqa: BLE001
        error = type(name, (Exception,), {})(message)
    rebuilt: BaseException = error
    with contextlib.suppress(Exception):
        setattr(rebuilt, REMOTE_TRACEBACK, trace)
    return rebuilt


def _no_answer() -> tuple[str, Any]:
    raise EOFError


def _last_words(code: int | None) -> str:
    if code is None:
        return "the handler's process closed its pipe"
    if code < 0:
        return f"the handler's process was killed by {signal.Signals(-code).name}"
    return f"the handler's process exited with status {code}"


def _die_with_parent() -> None:
    """The worker is gone, and with it the right to run: end, with everything that was started here."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.killpg(0, signal.SIGKILL)
