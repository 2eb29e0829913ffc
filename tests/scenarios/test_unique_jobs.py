"""Unique jobs and worker processes that are killed: one live job per key, each that was made runs to its end."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from pgqueue import JobSpec
from scenarios.harness import LEASE

if TYPE_CHECKING:
    from scenarios.harness import Story

pytestmark = pytest.mark.slow
KEYS = 8


@pytest.fixture
def lease() -> float:
    return LEASE


def test_unique_jobs_survive_workers_that_are_killed(story: Story) -> None:
    """A retry, a release and a sweep meet newer jobs of the same key, and no worker stumbles over the unique index."""
    chance = random.Random(5)
    alive = story.start_many(3, "--slots", "4")

    def produce(nth: int) -> list[int]:
        options = random.Random(nth)
        made = []
        for n in range(40):
            answer = story.client.submit(JobSpec.make(
                "nap", {"seconds": options.choice([0, 0.02, 0.1])}, max_attempts=50, unique_key=f"k{n % KEYS}",
                on_conflict=options.choice(["skip", "replace"]), unique_for=options.choice([None, 0.05]),
            ))  # fmt: skip
            made += [answer.id] if answer.created else []
        return made

    for _ in range(4):
        with ThreadPoolExecutor(4) as pool:
            for made in pool.map(produce, range(4)):
                story.enqueued += made
        assert len(story.enqueued) == len(set(story.enqueued)), "nobody was told that he has made another's job"
        alive.pop(chance.randrange(len(alive))).kill()
        alive.append(story.start("--slots", "4", ready=False))
    story.until_finished()
    story.audit()
    assert story.states() == {"completed": len(story.enqueued)}
    assert len(story.enqueued) >= KEYS
    assert "unique" not in story.logs()
