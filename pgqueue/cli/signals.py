"""How a command ends when it is told to while it still waits for something."""

from __future__ import annotations

import signal
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, NoReturn, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class Terminated(BaseException):
    """SIGTERM as an exception that nobody takes for something else, such as a SystemExit of a module on import."""


def listen_to_sigterm() -> None:
    """From now on SIGTERM ends the command in order: also as process 1 of a container, where the kernel drops it else.

    So an embedded server whose last client this is stops, too.
    """
    signal.signal(signal.SIGTERM, _terminate)


def attended(work: Callable[[], T]) -> T:
    """Do work in a thread, and wait for it where a signal is heard at once.

    Python runs a signal's handler between two steps of the main thread. A look-up of the database's name is one step,
    which takes half a minute where no name server answers.
    """
    answer: Future[T] = Future()

    def run() -> None:
        try:
            answer.set_result(work())
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is raised where it is waited for
            answer.set_exception(error)

    threading.Thread(target=run, name="pgqueue-attended", daemon=True).start()
    return answer.result()


def _terminate(_number: int, _frame: object) -> NoReturn:
    raise Terminated
