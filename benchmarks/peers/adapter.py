"""The base of the Python adapters: one process, one command, one peer. It runs in the peer's own environment, so it
needs the standard library only.

The commands, their output and the files behind ``BENCH_STARTS``, ``BENCH_COUNTS`` and ``BENCH_COMMITS`` are described
in docs/benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import logging
import mmap
import os
import signal
import sys
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

QUEUE = "bench"
TEXT = "x" * 76  # with the rest of the payload about 100 bytes of JSON
_WARM_UP = 5


class Adapter(ABC):
    """What a peer must be able to do. One instance lives in one process and serves one command.

    Attributes:
        dsn: a ``postgresql://`` URL of the peer's own database.
        batch: how many jobs one call of :meth:`enqueue_many` gets; the size that suits the peer best.
    """

    batch = 1_000

    def __init__(self) -> None:
        self.dsn = os.environ["BENCH_DSN"]

    @abstractmethod
    async def setup(self) -> None:
        """Install the peer's schema."""

    @abstractmethod
    async def connect(self, clients: int) -> None:
        """Get ready for so many concurrent calls of :meth:`enqueue`."""

    @abstractmethod
    async def disconnect(self) -> None:
        """Close what :meth:`connect` opened."""

    @abstractmethod
    async def enqueue(self, n: int) -> None:
        """Enqueue job ``n``; it is committed when this returns."""

    @abstractmethod
    async def enqueue_many(self, numbers: range) -> None:
        """Enqueue these jobs in one call; they are committed when this returns."""

    @abstractmethod
    async def work(self, purpose: str, ready: Callable[[], None], stop: asyncio.Event) -> None:
        """Be one worker process: call ``ready`` when it serves, end in order when ``stop`` is set."""

    @abstractmethod
    async def left(self) -> int:
        """How many jobs are not yet finished."""


def record(n: int) -> None:
    """The handler of job ``n``: when it started, and that it ran once more."""
    starts, counts = _tally()
    starts[n] = time.monotonic_ns()
    counts[n] += 1


def payload(n: int) -> dict[str, Any]:
    """The arguments of job ``n``."""
    return {"n": n, "text": TEXT}


def main(adapter: Adapter) -> None:
    """Carry out the command line."""
    logging.disable(logging.WARNING)  # nobody would read a line per job
    options = _parse()
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        answer = runner.run(_COMMANDS[options.command](adapter, options))
    if answer is not None:
        print(json.dumps(answer), flush=True)


async def _setup(adapter: Adapter, _options: argparse.Namespace) -> None:
    await adapter.setup()


async def _left(adapter: Adapter, _options: argparse.Namespace) -> int:
    return await adapter.left()


async def _load(adapter: Adapter, options: argparse.Namespace) -> dict[str, Any]:
    await adapter.connect(1)
    numbers = range(options.first, options.first + options.jobs)
    cpu, began = time.process_time(), time.perf_counter()
    for at in range(0, len(numbers), adapter.batch):
        await adapter.enqueue_many(numbers[at : at + adapter.batch])
    answer = _answer(options.jobs, time.perf_counter() - began, cpu)
    await adapter.disconnect()
    return answer


async def _one(adapter: Adapter, options: argparse.Namespace) -> dict[str, Any]:
    await adapter.connect(options.clients)
    took: list[float] = []
    count = options.clients

    async def client(nth: int) -> None:
        n = options.first + nth
        began = before = time.perf_counter()
        while before - began < options.seconds:
            await adapter.enqueue(n)
            now = time.perf_counter()
            took.append(now - before)
            before, n = now, n + count

    async def warm_up(nth: int) -> None:
        for _ in range(_WARM_UP):
            await adapter.enqueue(options.first + nth)

    await asyncio.gather(*(warm_up(nth) for nth in range(count)))
    cpu, began = time.process_time(), time.perf_counter()
    await asyncio.gather(*(client(nth) for nth in range(count)))
    answer = _answer(len(took), time.perf_counter() - began, cpu)
    await adapter.disconnect()
    took.sort()
    return answer | {"p50_ms": took[len(took) // 2] * 1e3, "p99_ms": took[int(len(took) * 0.99)] * 1e3}


async def _ping(adapter: Adapter, _options: argparse.Namespace) -> None:
    await adapter.connect(1)
    print("ready", flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        n = int(line)
        before = time.monotonic_ns()
        await adapter.enqueue(n)
        print(before, time.monotonic_ns(), flush=True)
    await adapter.disconnect()


async def _pace(adapter: Adapter, options: argparse.Namespace) -> dict[str, Any]:
    commits = _map("BENCH_COMMITS").cast("q")
    await adapter.connect(options.clients)
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    cpu, began = time.process_time(), time.monotonic()

    async def client(nth: int) -> None:
        for n in range(nth, options.jobs, options.clients):
            pause = began + n / options.rate - time.monotonic()
            if pause > 0:
                await asyncio.sleep(pause)
            await adapter.enqueue(n)
            commits[n] = time.monotonic_ns()

    await asyncio.gather(*(client(nth) for nth in range(options.clients)))
    answer = _answer(options.jobs, time.monotonic() - began, cpu)
    await adapter.disconnect()
    return answer


async def _work(adapter: Adapter, options: argparse.Namespace) -> None:
    _tally()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await adapter.work(options.purpose, lambda: print("ready", flush=True), stop)


def _answer(jobs: int, seconds: float, cpu: float) -> dict[str, Any]:
    return {"jobs": jobs, "seconds": seconds, "cpu": time.process_time() - cpu}


@functools.cache
def _tally() -> tuple[memoryview, memoryview]:
    return _map("BENCH_STARTS").cast("q"), _map("BENCH_COUNTS")


def _map(variable: str) -> memoryview:
    with Path(os.environ[variable]).open("r+b") as file:
        return memoryview(mmap.mmap(file.fileno(), 0))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop, which every Python peer has in its environment."""
    try:
        import uvloop  # noqa: PLC0415
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


_COMMANDS: dict[str, Callable[[Adapter, argparse.Namespace], Any]] = {
    "setup": _setup, "load": _load, "one": _one, "ping": _ping, "pace": _pace, "work": _work, "left": _left,
}  # fmt: skip


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=_COMMANDS)
    parser.add_argument("--jobs", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--rate", type=float, default=1_000.0)
    parser.add_argument("--for", dest="purpose", choices=("drain", "latency"), default="drain")
    return parser.parse_args()
