"""Schedules and real workers that are frozen, killed and restarted around their ticks: each tick fires once."""

from __future__ import annotations

import random
import signal
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from scenarios.harness import LEASE, Story, until

from pgqueue import ScheduleSpec

if TYPE_CHECKING:
    from pathlib import Path

    from servers import PrivateServers

pytestmark = pytest.mark.slow

SECOND = timedelta(seconds=1)


def add(story: Story, name: str = "s", expression: str = "* * * * * *", **options: str) -> None:
    story.client.add_schedule(ScheduleSpec.make(name, expression, "nap", **options))


def ticks(story: Story, name: str = "s") -> Counter[datetime]:
    """How many jobs each tick has."""
    rows = story.query(
        "SELECT (meta ->> 'tick')::timestamptz FROM pgqueue.all_jobs WHERE meta ->> 'schedule' = %s ORDER BY 1", name
    )
    return Counter(tick.astimezone(UTC) for (tick,) in rows)


def until_ticks(story: Story, count: int) -> None:
    """So many more than now."""
    before = len(ticks(story))
    until(lambda: len(ticks(story)) >= before + count, f"{count} more ticks", story.logs)


def settle(story: Story) -> Counter[datetime]:
    """No more ticks; everything that was enqueued is done; answers the ticks."""
    story.client.pause_schedule("s")
    story.until_finished()
    found = ticks(story)
    ids = [job for (job,) in story.query("SELECT id FROM pgqueue.all_jobs")]
    story.audit(enqueued=ids)
    return found


def gaps(found: Counter[datetime]) -> list[datetime]:
    """The seconds that have no job although later ones have."""
    first, last = min(found), max(found)
    return [first + nth * SECOND for nth in range((last - first) // SECOND) if first + nth * SECOND not in found]


def test_workers_that_are_frozen_and_thawed_around_ticks_fire_each_once(story: Story) -> None:
    workers = story.start_many(3)
    add(story, misfire="all")
    until_ticks(story, 1)
    rng = random.Random(26)
    for _ in range(4):  # one of them always runs
        frozen = rng.sample(workers, 2)
        for worker in frozen:
            worker.send(signal.SIGSTOP)
        until_ticks(story, 1)
        for worker in frozen:
            worker.send(signal.SIGCONT)
    for worker in workers:  # and all of them at once: the ticks of that time are late
        worker.send(signal.SIGSTOP)
    stopped = story.query("SELECT now()")[0][0]
    until(lambda: story.query("SELECT now() - %s > interval '2.5 seconds'", stopped)[0][0], "two ticks are missed")
    for worker in workers:
        worker.send(signal.SIGCONT)
    until_ticks(story, 3)
    found = settle(story)
    assert set(found.values()) == {1}
    assert gaps(found) == []


@pytest.mark.parametrize("lease", [LEASE])
def test_workers_that_are_killed_around_ticks_fire_each_once(story: Story) -> None:
    story.start_many(2)
    add(story, misfire="all")
    until_ticks(story, 1)
    for _ in range(3):
        story.workers[-1].kill()
        story.start()
        until_ticks(story, 1)
    found = settle(story)
    assert set(found.values()) == {1}
    assert gaps(found) == []


@pytest.mark.parametrize(("misfire", "least", "most"), [("skip", 2, 4), ("latest", 1, 2), ("all", 11, 12)])
def test_after_a_downtime_the_misfire_policy_is_obeyed(story: Story, misfire: str, least: int, most: int) -> None:
    """Nobody was there for ten minutes; the row is moved, so that nobody has to wait so long."""
    add(story, expression="* * * * *", misfire=misfire, grace="150s")
    story.query("UPDATE pgqueue.schedules SET next_tick = date_trunc('minute', now()) - interval '10 minutes'")
    story.start_many(3)
    until(
        lambda: story.query("SELECT next_tick > now() FROM pgqueue.schedules")[0][0], "it has caught up", story.logs
    )  # fmt: skip
    found = settle(story)
    assert set(found.values()) == {1}
    assert least <= len(found) <= most


def test_edits_and_pauses_are_seen_while_workers_run(story: Story) -> None:
    story.start_many(2)
    add(story, expression="@yearly")
    story.query("UPDATE pgqueue.schedules SET expression = '* * * * * *'")
    until_ticks(story, 2)
    story.client.pause_schedule("s")
    paused_at = story.query("SELECT now()")[0][0]
    story.client.resume_schedule("s")
    until_ticks(story, 1)
    story.client.pause_schedule("s")
    paused_at = story.query("SELECT now()")[0][0]
    until(lambda: story.query("SELECT now() - %s > interval '1.5 seconds'", paused_at)[0][0], "a tick would have come")
    found = settle(story)
    assert set(found.values()) == {1}
    assert max(found) <= paused_at


def test_ticks_go_on_through_restarts_of_the_server(private_server: PrivateServers, tmp_path: Path) -> None:
    server = private_server(migrated=True)
    story = Story(server.dsn, tmp_path)
    try:
        story.start_many(2)
        add(story, misfire="all")
        until_ticks(story, 1)
        for how in ("immediate", "fast"):
            server.stop(how)
            server.start()
            until_ticks(story, 2)
        found = settle(story)
        assert set(found.values()) == {1}
        assert gaps(found) == []
    finally:
        story.end()
