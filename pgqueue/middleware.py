"""Middleware: what an application wraps around every enqueue and every run. No I/O.

Each is a generator function with one ``yield``, as for ``contextlib.contextmanager``: what comes before it happens
before, what follows after, and an exception passes through it.
"""

from __future__ import annotations

import inspect
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pgqueue import tracing
from pgqueue.errors import PgqueueError
from pgqueue.job import JobSpec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator


@dataclass(frozen=True, slots=True)
class Around:
    """One middleware. ``open`` makes the context manager for one job: an async one if ``is_async``."""

    name: str
    is_async: bool
    open: Callable[[Any], Any]

    @classmethod
    def of(cls, function: Callable[..., Any]) -> Around:
        """From a generator function; raises TypeError for any other."""
        name = f"{function.__module__}.{function.__qualname__}"
        if inspect.isasyncgenfunction(function):
            return cls(name, True, asynccontextmanager(function))
        if inspect.isgeneratorfunction(function):
            return cls(name, False, contextmanager(function))
        raise TypeError(f"middleware {name} must be a generator function that yields once")


class Middleware:
    """What an application has registered; the first is the outermost."""

    def __init__(self) -> None:
        self.runs: list[Around] = []
        self.enqueues: list[Around] = []

    def around_runs(self) -> list[Around]:
        """What a worker that starts now wraps around every run: tracing, if it is set up, and the application's."""
        return [Around("tracing", False, tracing.running), *self.runs] if tracing.active() else list(self.runs)

    @property
    def wraps_enqueues(self) -> bool:
        """Whether an enqueue has anything around it. Asked by each, so it must cost next to nothing."""
        return bool(self.enqueues) or tracing.active()

    @contextmanager
    def around_enqueue(self, specs: list[JobSpec]) -> Iterator[tracing.Sending]:
        """Around one statement; the caller sets ``ids`` on the answer."""
        sending = tracing.Sending(specs)
        with ExitStack() as stack:
            stack.enter_context(tracing.sending(sending))
            for around in self.enqueues:
                if around.is_async:
                    raise PgqueueError(f"middleware {around.name} is async: use `await enqueue(…)`, or make it a def")
                sending.specs = [_checked(around, stack.enter_context(around.open(spec))) for spec in sending.specs]
            yield sending
        _check_sent(sending)

    @asynccontextmanager
    async def around_enqueue_async(self, specs: list[JobSpec]) -> AsyncIterator[tracing.Sending]:
        """The same around an async one."""
        sending = tracing.Sending(specs)
        async with AsyncExitStack() as stack:
            stack.enter_context(tracing.sending(sending))
            for around in self.enqueues:
                if around.is_async:
                    changed = [await stack.enter_async_context(around.open(spec)) for spec in sending.specs]
                else:
                    changed = [stack.enter_context(around.open(spec)) for spec in sending.specs]
                sending.specs = [_checked(around, spec) for spec in changed]
            yield sending
        _check_sent(sending)


def _checked(around: Around, spec: Any) -> JobSpec:
    if not isinstance(spec, JobSpec):
        raise TypeError(f"middleware {around.name} must yield the JobSpec to be enqueued, not {type(spec).__name__}")
    return spec


def _check_sent(sending: tracing.Sending) -> None:
    if sending.ids is None:
        raise PgqueueError("a middleware swallowed the error of an enqueue; whether the job exists is unknown")
