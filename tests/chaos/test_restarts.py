"""Fault 5: the server restarts, fast and immediate, again and again under load; afterwards the rate is back."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from scenarios.harness import Story

from chaos.chaos_tasks import EFFECTS
from chaos.tools import LEASE, LONG, Producer, audit, start_many, wait_for

if TYPE_CHECKING:
    from pathlib import Path

    from servers import PrivateServers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

RESTARTS = 20 if LONG else 3
SAMPLE = 5000 if LONG else 400


def rate(story: Story) -> float:
    """Jobs a second, drained from a full queue; the best of some."""
    rates = []
    for _ in range(3 if LONG else 1):
        began = time.monotonic()
        story.enqueue_many("nap", [{}] * SAMPLE)
        story.until_finished(within=120)
        rates.append(SAMPLE / (time.monotonic() - began))
    return max(rates)


def test_the_server_restarts_again_and_again_and_the_rate_returns(
    private_server: PrivateServers, tmp_path: Path
) -> None:
    server = private_server(migrated=True)
    story = Story(server.dsn, tmp_path, lease=LEASE)
    story.query(EFFECTS)
    try:
        workers = start_many(story, 2, "--slots", "20")
        before = rate(story)
        work = [("nap", {"seconds": 0.01}), ("transact", {}), ("toil", {"seconds": 0.02}), ("transact_thread", {})]
        producers = [Producer(server.dsn, f"p{n}", work, rate=60) for n in range(2 if LONG else 1)]
        outages = []
        for nth in range(RESTARTS):
            done = len(story.ledger.entries("end"))
            wait_for(lambda done=done: len(story.ledger.entries("end")) > done + 20, "work goes on", story)
            began = time.monotonic()
            server.restart("immediate" if nth % 2 else "fast")
            ends = len(story.ledger.entries("end"))
            wait_for(lambda ends=ends: len(story.ledger.entries("end")) > ends + 5, "work is taken up again", story)
            outages.append(time.monotonic() - began)
        for producer in producers:
            producer.finish()
        took = story.until_finished(within=120)
        after = rate(story)
        ids = audit(story, *producers, effects=True)
        outages.sort()
        print(
            f"MEASURED {RESTARTS} restarts: work again {outages[len(outages) // 2]:.2f} s (median) and "
            f"{outages[-1]:.2f} s (worst) after the stop; finished {took:.2f} s after all; rate {before:.0f} before, "
            f"{after:.0f} after ({after / before:.0%}); {len(ids)} jobs, {sum(p.unsure for p in producers)} said again"
        )
        assert all(worker.alive for worker in workers), "no worker ended"
        assert {entry.pid for entry in story.ledger.entries()} == {worker.pid for worker in workers}
        assert story.states() == {"completed": len(ids)}
        assert not LONG or after > 0.3 * before, "it came back; a noisy machine is allowed the rest"
    finally:
        story.end()
