"""Slots for ``async def`` handlers: coroutines that live as long as the worker and take one run after another.

A task per job would cost 8 µs, a slot that is woken costs 1.2 (docs/decisions/0003, the design's figures).
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from pgqueue.outcome import COMPLETED, Outcome, completed
from pgqueue.run import Run, current_run
from pgqueue.worker.judge import failed

if TYPE_CHECKING:
    from collections.abc import Callable

    from pgqueue.task import Task

_YIELD_EVERY: Final = 64  # runs of handlers that never wait, before others get the loop


class CoroutineSlots:
    """Up to ``most`` of them, made when needed.

    Args:
        most: how many there may be.
        end: takes each run with its outcome.
        more: asked after each end whether another run can start; it calls :meth:`take` with ``here=True``.
    """

    def __init__(self, most: int, end: Callable[[Run, Outcome], None], more: Callable[[bool], None]) -> None:
        self._most = most
        self._end = end
        self._more = more
        self._loop = asyncio.get_running_loop()
        self._inbox: deque[tuple[Run, Task[Any, Any]]] = deque()
        self._sleeping: list[asyncio.Future[None]] = []
        self._slots: list[asyncio.Task[None]] = []
        self._deaf: set[asyncio.Task[None]] = set()  # whose handler ignores that it is cancelled
        self._context = contextvars.copy_context()
        self._over = False

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def deaf(self) -> int:
        """How many were left to themselves by :meth:`leave`, and still run."""
        return len(self._deaf)

    def take(self, run: Run, task: Task[Any, Any], *, here: bool = False) -> None:
        """Run this in a slot. ``here``: the caller is a slot that looks into the inbox next, so none is woken."""
        self._inbox.append((run, task))
        if not here:
            self._wake()

    def leave(self, run: Run) -> bool:
        """Leave the slot whose handler goes on although it was cancelled to itself; answers whether there is one."""
        slot = next((slot for slot in self._slots if run.cancel_hook == slot.cancel), None)
        if slot is None:
            return False
        self._slots.remove(slot)
        self._deaf.add(slot)
        return True

    async def shut_down(self) -> bool:
        """End them all; answers False when one does not end."""
        self._over = True
        slots = [*self._slots, *self._deaf]
        for slot in slots:
            slot.cancel()
        return not slots or not (await asyncio.wait(slots, timeout=1))[1]

    def _wake(self) -> None:
        """When every slot is awake, the next one that ends its run looks into the inbox."""
        while self._sleeping:
            future = self._sleeping.pop()
            if not future.done():
                future.set_result(None)
                return
        if len(self._slots) < self._most:
            self._slots.append(self._loop.create_task(self._live(), context=self._context.copy()))

    async def _live(self) -> None:
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
                self._more(True)
            since += 1
            if since >= _YIELD_EVERY:
                since = 0
                await asyncio.sleep(0)

        if me in self._deaf:
            self._deaf.discard(me)
        else:
            self._slots.remove(me)
        self._more(False)
        if self._inbox:
            self._wake()

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
            value = await task.function(**task.bind(run))
        except BaseException as error:
            if isinstance(error, GeneratorExit) and self._over:
                raise
            outcome = failed(run, task, error)
        else:
            outcome = COMPLETED if value is None or run.landed else completed(value)
        run.cancel_hook = None
        if me.cancelling():
            await _swallow_cancellation(me)
        return outcome


async def _swallow_cancellation(me: asyncio.Task[None]) -> None:
    """A cancellation meant for the handler that has just ended must not hit the next one in this slot."""
    while me.cancelling():
        me.uncancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(0)
