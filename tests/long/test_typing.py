"""What type checkers are told: an enqueue takes what travels, a call takes what the function takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import Any, assert_type

import pgqueue

app = pgqueue.App()


class Pool:
    size = 1


@app.resource
async def pool() -> AsyncIterator[Pool]:
    yield Pool()


@app.task(batch=10, linger="50ms")
async def index(docs: list[str], batch: pgqueue.Jobs, pool: Pool) -> None: ...


@app.task(batch=10)
def count(numbers: Sequence[int]) -> list[int | BaseException]:
    return list(numbers)


@app.task
async def send(to: str, *, pool: Pool = pgqueue.injected, job: pgqueue.Job = pgqueue.injected) -> int:
    return pool.size


async def main() -> None:
    assert_type(await index.enqueue("one"), pgqueue.Job)
    assert_type(index.options(delay="5m").enqueue_sync("one"), pgqueue.Job)
    assert_type(index.job("one"), pgqueue.JobSpec)
    assert_type(count, pgqueue.BatchTask[int, list[int | BaseException]])
    assert_type(count([1, 2]), list[int | BaseException])
    await send.enqueue("one")
    await send.enqueue(to="one")
    assert_type(await send("one", pool=Pool()), int)
    await index.enqueue(1)  # wrong
    await index.enqueue(["one"])  # wrong
    await index.enqueue("one", "two")  # wrong
    index.options(delay="5m").enqueue_sync(1)  # wrong
    count(1)  # wrong
    await send.enqueue()  # wrong
    await send.enqueue(1)  # wrong
    app.task(batch=10, isolation="process")  # wrong
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return path


def test_a_type_checker_sees_what_enqueue_and_call_take(program: Path) -> None:
    root = Path(__file__).parent.parent.parent
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--hide-error-context", "--no-pretty",
               f"--cache-dir={root / '.mypy_cache'}", "--config-file=", str(program)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, cwd=root, check=False)
    found = {int(line.split(":")[1]) for line in done.stdout.splitlines() if ": error:" in line}
    expected = {nth for nth, line in enumerate(PROGRAM.splitlines(), 1) if line.endswith("# wrong")}
    assert found == expected, done.stdout + done.stderr
