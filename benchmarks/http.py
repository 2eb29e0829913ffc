"""The queue over HTTP: `pgq serve` in a process of its own, clients in another, plain sockets on one machine."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import orjson

from benchmarks.harness import Bench, Case, Column, Measures, Regime, app_on, percentile, specs
from benchmarks.server import tree_cpu
from benchmarks.tasks import QUEUE, TEXT
from pgqueue.worker.supervisor import _loop_factory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection

    from benchmarks.server import Database

_CLIENTS = 200
_RATE = 1_000
_SENDERS = 32
_BATCH = 100


class Line:
    """One keep-alive connection; speaks as little HTTP as is needed."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def open(self) -> None:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)

    async def post(self, path: str, body: Any) -> tuple[int, Any]:
        data = orjson.dumps(body)
        self._writer.write(
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(data)}\r\n\r\n".encode()
            + data
        )
        head = await self._reader.readuntil(b"\r\n\r\n")
        status = int(head[9:12])
        found = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        content = await self._reader.readexactly(int(found[1])) if found else b""
        return status, orjson.loads(content) if content else None


@contextlib.contextmanager
def served(database: Database) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """The server and its port."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pgqueue", "serve", "--port", "0"],
        env={**os.environ, "PGQUEUE_DSN": database.dsn}, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    assert process.stderr is not None
    try:
        line = next(line for line in process.stderr if b"serves on" in line)
        time.sleep(1)
        yield int(line.rsplit(b":", 1)[1]), process
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


def _client(make: Any, pipe: Connection, *arguments: Any) -> None:
    try:
        with asyncio.Runner(
            loop_factory=_loop_factory()
        ) as runner:  # the clients share the cores with what is measured
            pipe.send(runner.run(make(*arguments)))
    except BaseException as error:  # noqa: BLE001 - the other side tells it
        pipe.send(error)


def elsewhere(make: Any, *arguments: Any) -> dict[str, Any]:
    """Run a coroutine function in a process of its own."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_client, args=(make, there, *arguments))
    process.start()
    answer = here.recv()
    process.join()
    if isinstance(answer, BaseException):
        raise answer
    return answer


async def load(port: int, seconds: float) -> dict[str, Any]:  # noqa: C901 - two kinds of clients, one story
    """Clients that wait for a job, acknowledge it and wait again, while jobs are sent at a rate."""
    sent: dict[int, float] = {}
    calls: list[float] = []
    waits: list[float] = []
    errors: list[str] = []
    expected = int(seconds * _RATE)
    done = asyncio.Event()
    arrived: dict[int, float] = {}
    acknowledged: set[int] = set()

    async def work() -> None:
        line = Line(port)
        await line.open()
        while not done.is_set():
            status, job = await line.post("/jobs/lease", {"queues": [QUEUE], "wait": 5})
            if status == 204:
                continue
            if status != 200:
                errors.append(f"lease {status}")
                continue
            arrived[job["payload"]["n"]] = time.perf_counter()
            status, _ = await line.post(f"/jobs/{job['job_id']}/ack", {"lease_token": job["lease_token"]})
            if status != 200:
                errors.append(f"ack {status}")
            acknowledged.add(job["job_id"])
            if len(acknowledged) == expected:
                done.set()

    async def send(nth: int, began: float) -> None:
        line = Line(port)
        await line.open()
        for n in range(nth, expected, _SENDERS):
            await asyncio.sleep(max(0.0, began + n / _RATE - time.perf_counter()))
            called = sent[n] = time.perf_counter()
            status, _ = await line.post("/jobs", {"queue": QUEUE, "payload": {"n": n, "text": TEXT}})
            calls.append((time.perf_counter() - called) * 1e3)
            if status != 201:
                errors.append(f"submit {status}")

    workers = [asyncio.create_task(work()) for _ in range(_CLIENTS)]
    await asyncio.sleep(1)
    began = time.perf_counter()
    await asyncio.gather(*(send(nth, began) for nth in range(_SENDERS)))
    took = time.perf_counter() - began
    async with asyncio.timeout(120):
        await done.wait()
    whole = time.perf_counter() - began
    for one in workers:
        one.cancel()
    waits = [(arrived[n] - sent[n]) * 1e3 for n in sent]
    return {
        "submitted": expected / took, "per_s": expected / whole, "errors": len(errors), "calls": calls, "waits": waits,
        "first_errors": errors[:3],
    }  # fmt: skip


async def drain(port: int, jobs: int, lines: int) -> dict[str, Any]:
    """Workers that lease and finish in batches."""
    left = jobs

    async def work() -> None:
        nonlocal left
        line = Line(port)
        await line.open()
        while left > 0:
            status, answer = await line.post("/jobs/lease", {"queues": [QUEUE], "max": _BATCH, "wait": 1})
            if status == 204:
                continue
            assert status == 200, answer
            ends = [{"job_id": job["job_id"], "lease_token": job["lease_token"]} for job in answer["jobs"]]
            status, landed = await line.post("/jobs:finish", {"jobs": ends})
            assert (status, landed["lost"]) == (200, []), landed
            left -= len(landed["landed"])

    began = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(lines)))
    return {"per_s": jobs / (time.perf_counter() - began)}


def steady(bench: Bench) -> Measures:
    """200 clients wait, 1,000 jobs are sent a second."""
    seconds = bench.size.steady
    with bench.server.database() as database, served(database) as (port, process):
        before, server = tree_cpu(process.pid), bench.server.cpu()
        answer = elsewhere(load, port, seconds)
        jobs = len(answer["waits"])
        ran = database.value("SELECT count(*) FROM pgqueue.history WHERE state = 'completed'")
        assert ran == jobs, f"{ran} of {jobs} jobs have run"
        if answer["errors"]:
            bench.notes.append(f"http: {answer['errors']} errors, such as {answer['first_errors']}")
        return {
            "jobs_per_s": answer["per_s"],
            "errors": float(answer["errors"]),
            "submit_p50_ms": percentile(answer["calls"], 0.5),
            "submit_p99_ms": percentile(answer["calls"], 0.99),
            "delivery_p50_ms": percentile(answer["waits"], 0.5),
            "delivery_p99_ms": percentile(answer["waits"], 0.99),
            "http_cpu_s_per_10k": (tree_cpu(process.pid) - before) / jobs * 1e4,
            "server_cpu_s_per_10k": (bench.server.cpu() - server) / jobs * 1e4,
        }


def batches(lines: int) -> Any:
    """A full queue, drained in batches."""

    def run(bench: Bench) -> Measures:
        jobs = bench.size.bulk
        with bench.server.database() as database:
            with contextlib.closing(app_on(database)) as app:
                app.enqueue_many_sync(specs(jobs), copy=True)
            with served(database) as (port, process):
                before, server = tree_cpu(process.pid), bench.server.cpu()
                answer = elsewhere(drain, port, jobs, lines)
                assert database.value("SELECT count(*) FROM pgqueue.jobs") == 0
                return {
                    "jobs_per_s": answer["per_s"],
                    "http_cpu_s_per_10k": (tree_cpu(process.pid) - before) / jobs * 1e4,
                    "server_cpu_s_per_10k": (bench.server.cpu() - server) / jobs * 1e4,
                }

    return run


REGIME = Regime(
    "http",
    f"Over HTTP: one server; {_CLIENTS} clients that wait and {_RATE} jobs sent a second; batches of {_BATCH}",
    (
        Column("jobs_per_s", "jobs/s", spread=True),
        Column("errors", "errors"),
        Column("submit_p50_ms", "submit p50 ms", ".1f"),
        Column("submit_p99_ms", "submit p99 ms", ".1f", spread=True),
        Column("delivery_p50_ms", "delivery p50 ms", ".1f"),
        Column("delivery_p99_ms", "delivery p99 ms", ".1f", spread=True),
        Column("http_cpu_s_per_10k", "HTTP CPU s / 10k", ".2f"),
        Column("server_cpu_s_per_10k", "server CPU s / 10k", ".2f"),
    ),
    (
        Case(f"{_CLIENTS} clients wait, {_RATE}/s are sent", steady),
        Case(f"batches of {_BATCH}, 1 worker", batches(1)),
        Case(f"batches of {_BATCH}, 4 workers", batches(4)),
    ),
)
