"""For tests of applications: run what is due, see what was enqueued, move the clock; in a transaction that rolls back.

:class:`Sandbox` and :class:`AsyncSandbox` hold an application's queue on one connection. The functions do the same for
the sandbox that an application is in, or without one on the application's own connections. pytest's fixtures are in
:mod:`pgqueue.testing.plugin`.
"""

from pgqueue.testing.clock import AsyncClock, Clock
from pgqueue.testing.engine import Ran
from pgqueue.testing.functions import (
    assert_enqueued,
    assert_enqueued_async,
    assert_not_enqueued,
    assert_not_enqueued_async,
    enqueued,
    enqueued_async,
    run_pending,
    run_pending_async,
)
from pgqueue.testing.sandbox import AsyncSandbox, Sandbox

__all__ = [
    "AsyncClock", "AsyncSandbox", "Clock", "Ran", "Sandbox", "assert_enqueued", "assert_enqueued_async",
    "assert_not_enqueued", "assert_not_enqueued_async", "enqueued", "enqueued_async", "run_pending",
    "run_pending_async",
]  # fmt: skip
