"""What the testing kit does, without I/O: generators that yield what is to be done and are sent what came of it.

So the sync and the async sandbox share every line of logic; they differ in who carries out a step.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from pgqueue.statements import Statement

if TYPE_CHECKING:
    from pgqueue.outcome import Outcome
    from pgqueue.run import Run
    from pgqueue.task import Task

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Handling:
    """A step: run this handler. Sent back: a :class:`Handled`."""

    run: Run
    task: Task[Any, Any]


@dataclass(frozen=True, slots=True)
class Handled:
    """How it ended, as the worker would judge it, and what was raised."""

    outcome: Outcome
    error: BaseException | None = None


Step = Statement[Any] | Handling
Steps = Generator[Step, Any, T]
