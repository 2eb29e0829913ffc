"""Handlers that child processes can import by name."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from pgqueue import Cancel, Dead, Job, Retry, Snooze, current_job
from pgqueue.errors import ResultTimeoutError

NUL_AND_SURROGATE = "a\0b\ud800c"


class Point(BaseModel):
    x: int
    name: str


class Opaque:
    """What JSON can't say."""

    def __repr__(self) -> str:
        return "<an opaque thing>"


class Unspeakable:
    """What not even repr can say."""

    def __repr__(self) -> str:
        raise RuntimeError("no")


class OddError(Exception):
    """An exception that does not survive pickling."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


class BrokenStrError(Exception):
    def __str__(self) -> str:
        raise ValueError("my __str__ is broken")


class FarFromException(BaseException):
    pass


class WorseError(LookupError):
    pass


def make_value(kind: str) -> Any:
    """A result of every sort."""
    return {
        "none": lambda: None,
        "plain": lambda: {"a": [1, 2.5, "ü", None, True]},
        "nul": lambda: {"a\0b": "c\0d", "deep": [{"x": "\0"}]},
        "escaped nul": lambda: r"\u0000 is only text",
        "surrogate": lambda: {"text": "x\ud800y"},
        "nan": lambda: [float("nan"), float("inf"), 1.0],
        "huge": lambda: "x" * 100_000_000,
        "set": lambda: {"one"},
        "model": lambda: Point(x=1, name="p"),
        "opaque": Opaque,
        "unspeakable": lambda: [Unspeakable()],
        "big number": lambda: 10**40,
        "bytes": lambda: b"\x00\xff",
        "deep": lambda: _nested(100_000),
        "odd keys": lambda: {1: "a", None: "b", (1, 2): "c"},
    }[kind]()


def make_error(kind: str) -> BaseException:
    """An exception of every sort."""
    return {
        "plain": lambda: ValueError("wrong value"),
        "system exit": lambda: SystemExit(3),
        "keyboard interrupt": KeyboardInterrupt,
        "base exception": lambda: FarFromException("far"),
        "broken str": BrokenStrError,
        "nul": lambda: ValueError(NUL_AND_SURROGATE),
        "long": lambda: ValueError("x" * 10_000_000),
        "group": lambda: ExceptionGroup("several", [ValueError("one"), KeyError("two")]),
        "unpicklable": lambda: OddError(1, 2),
        "generator exit": GeneratorExit,
        "stop iteration": lambda: StopIteration(5),
    }[kind]()


def _nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def return_value(kind: str) -> Any:
    return make_value(kind)


def raise_error(kind: str) -> None:
    raise make_error(kind)


def raise_lookup_error(kind: str) -> None:
    raise {"worse": WorseError, "key": KeyError, "other": ValueError}[kind]("as asked")


def raise_one_of_the_pipe(kind: str) -> None:
    """What a broken pipe to the worker would raise, too; the message tells in which process."""
    raise {
        "EOFError": EOFError,
        "OSError": OSError,
        "FileNotFoundError": FileNotFoundError,
        "BrokenPipeError": BrokenPipeError,
        "ConnectionResetError": ConnectionResetError,
        "TimeoutError": TimeoutError,
        "ResultTimeoutError": ResultTimeoutError,
    }[kind](f"in {os.getpid()}")


def say(verb: str) -> None:
    raise {
        "snooze": Snooze(60),
        "retry": Retry("1h", "not yet"),
        "cancel": Cancel("no need"),
        "dead": Dead("never again"),
    }[verb]


def exit_process(how: str) -> None:
    if how == "exit":
        os._exit(7)
    os.kill(os.getpid(), getattr(signal, how))
    time.sleep(30)


def my_pid() -> int:
    return os.getpid()


def facts(job: Job) -> list[Any]:
    here = current_job()
    return [job.id == here.id, job.attempt, job.max_attempts, job.task, job.queue, job.meta, job.payload, job.cancelled]


async def facts_async(job: Job) -> list[Any]:
    return facts(job)


def sleep_with_progress(job: Job, flag: str) -> str:
    """Reports, then waits for a file."""
    job.progress(0.5, "half")
    while not Path(flag).exists():
        time.sleep(0.01)
    return "done"


def write_pid_and_sleep(path: str) -> None:
    _publish(path, str(os.getpid()))
    time.sleep(60)


def write_family_and_sleep(path: str) -> None:
    """Starts a process of its own, tells both pids, and sleeps."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    _publish(path, f"{os.getpid()} {child.pid}")
    time.sleep(60)


def write_family_and_exit(path: str) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    _publish(path, f"{os.getpid()} {child.pid}")
    os._exit(1)


def start_a_process() -> int:
    """Uses multiprocessing itself."""
    import multiprocessing

    process = multiprocessing.get_context("spawn").Process(target=int)
    process.start()
    process.join(20)
    return process.exitcode or 0


def insert_and_complete(job: Job, value: int, then: str) -> str:
    job.set_result("from the transaction")
    with job.transaction() as connection:
        connection.execute("INSERT INTO effects VALUES (%s)", [value])
        if then == "raise inside":
            raise RuntimeError("inside")
    if then == "raise after":
        raise RuntimeError("after")
    if then == "exit after":
        os._exit(9)
    return "from the handler"


def _publish(path: str, text: str) -> None:
    half = Path(path + ".half")
    half.write_text(text)
    half.rename(path)


def complete_and_go_on(seconds: float, flag: str) -> None:
    """Completes its job early and works on for a while."""
    job = current_job()
    with job.transaction():
        job.set_result("early")
    time.sleep(seconds)
    Path(flag).touch()


def current_trace(load: bool = False) -> list[Any]:
    """Whether the program traces here, and the current span if it does."""
    if not load and "opentelemetry.trace" not in sys.modules:
        return [False, None]
    from opentelemetry import trace

    context = trace.get_current_span().get_span_context()
    return [True, f"{context.trace_id:032x}-{context.span_id:016x}"]
