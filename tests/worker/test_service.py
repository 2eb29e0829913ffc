"""The loop behind every background service."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from pgqueue.service import every


@pytest.mark.parametrize("steps", range(6))
async def test_a_stop_at_the_moment_of_a_wake_is_obeyed(steps: int):
    """``asyncio.wait_for`` of Python 3.11 forgets a cancellation that comes while its event is being set."""
    ran, wake = asyncio.Event(), asyncio.Event()

    async def body() -> None:
        ran.set()

    loop = asyncio.create_task(every(60, body, "the test", wake))
    await ran.wait()
    await asyncio.sleep(0.01)
    wake.set()
    wake.clear()
    for _ in range(steps):
        await asyncio.sleep(0)
    loop.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        async with asyncio.timeout(10):
            await asyncio.shield(loop)
    assert loop.cancelled()
