"""Lines and limits while workers are killed: in order, never too many, none stuck."""

from __future__ import annotations

import random
import time
from collections import defaultdict
from typing import TYPE_CHECKING

import pytest
from scenarios.harness import LEASE, SWEEP, until

if TYPE_CHECKING:
    from scenarios.harness import Story

pytestmark = pytest.mark.slow


@pytest.fixture
def lease() -> float:
    return LEASE


def test_lines_stay_in_order_and_none_is_stuck_while_workers_are_killed(story: Story) -> None:
    chance = random.Random(7)
    alive = story.start_many(3, "--slots", "8")
    lines: dict[str, list[int]] = defaultdict(list)
    for _ in range(6):
        before = len(story.ledger.entries("end"))
        for key in chance.sample(range(25), 25):
            naps = [{"seconds": chance.choice([0, 0.01, 0.05])} for _ in range(3)]
            lines[f"k{key}"] += story.enqueue_many("nap", naps, max_attempts=50, group_key=f"k{key}")
        until(lambda before=before: len(story.ledger.entries("end")) > before + 20, "work goes on", story.logs)
        alive.pop(chance.randrange(len(alive))).kill()
        alive.append(story.start("--slots", "8", ready=False))
    took = story.until_finished()
    print(f"MEASURED finished {took:.1f} s after the last kill (lease {LEASE:g} s, sweep {SWEEP:g} s)")
    story.audit()
    assert story.states() == {"completed": len(story.enqueued)}
    again = len(story.ledger.entries("start")) - len(story.enqueued)
    assert again > 0, "else nobody was killed at work, and this proves nothing"
    for key, ids in lines.items():
        events = [entry for entry in story.ledger.entries() if entry.job in set(ids)]
        started = [entry.job for entry in events if entry.event == "start"]
        assert started == sorted(started), key
        ended: set[int] = set()
        for entry in events:
            if entry.event == "start":
                assert all(job in ended for job in ids if job < entry.job), f"{key}: {entry.job} did not wait"
            else:
                ended.add(entry.job)


def test_a_key_whose_worker_was_killed_goes_on_after_the_lease_and_other_keys_at_once(story: Story) -> None:
    first = story.start("--slots", "1")
    held = story.enqueue("hold", group_key="k")
    story.until_started(held)
    behind = story.enqueue("nap", group_key="k")
    other = story.enqueue("nap", group_key="other")
    second = story.start()
    story.until_completed(other)
    assert story.get(behind).state == "available"
    first.kill()
    story.ledger.say_go()
    story.until_completed(behind)
    assert second.alive
    order = [entry.job for entry in story.ledger.entries("start")]
    assert order == [held, other, held, behind]
    story.audit()


def test_a_limit_is_kept_at_every_instant_while_workers_are_killed(story: Story) -> None:
    """I9, probed all along."""
    story.client.limit_queue("default", max_running=3)
    chance = random.Random(8)
    alive = story.start_many(3, "--slots", "8")
    story.enqueue_many("nap", [{"seconds": 0.1} for _ in range(200)], max_attempts=50)
    most, kills, next_kill = 0, 0, time.monotonic() + 1

    def probe() -> bool:
        nonlocal most, kills, next_kill
        ((running, live),) = story.query("SELECT count(*) FILTER (WHERE state = 'running'), count(*) FROM pgqueue.jobs")
        most = max(most, running)
        if kills < 3 and time.monotonic() > next_kill:
            alive.pop(chance.randrange(len(alive))).kill()
            alive.append(story.start("--slots", "8", ready=False))
            kills, next_kill = kills + 1, time.monotonic() + 2
        return live == 0

    until(probe, "everything is finished", story.logs, within=90)
    assert (most, kills) == (3, 3)
    story.audit()
