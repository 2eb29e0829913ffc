"""Two connections, pairs of things that can happen to a workflow; the first stays open until the second waits or ends.

Here in one state and with one policy; in every other one: tests/chaos/test_dependencies_every_pair.py.
Whatever the order, and whether the first one commits or not: edges and counters fit, nobody waits for what has ended,
and when all that can run has run, only what is held behind something dead is left.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Any, Self

import flows
import psycopg
import pytest
from peers import SCHEMA, Claim, Peer

from pgqueue import statements
from pgqueue.job import JobSpec
from pgqueue.outcome import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable

TABLES = ("jobs", "history", "leases", "batches", "dependencies")


@dataclass
class World:
    """A batch of up and side; after waits for up, then for the batch, both for up and then, last for after."""

    policy: str
    batch: int
    up: int
    side: int
    after: int
    then: int
    both: int
    last: int
    claim: Claim = field(default_factory=lambda: Claim(0))


def build(peer: Peer, policy: str, state: str) -> World:
    batch = peer.run(statements.create_batch("b", schema=SCHEMA))
    members = [JobSpec.make("up", max_attempts=1), JobSpec.make("side", delay=3600)]
    up, side = (job.id for job in peer.run(statements.submit_many(members, batch_id=batch, schema=SCHEMA)))
    after = peer.enqueue("after", depends_on=[up], on_dead=policy)
    then = peer.enqueue("then", depends_on=[batch], on_dead=policy)
    both = peer.enqueue("both", depends_on=[up, then], on_dead="hold")
    last = peer.enqueue("last", depends_on=[after], on_dead=policy)
    world = World(policy, batch, up, side, after, then, both, last)
    if state != "available":
        world.claim = peer.claim(1)
        assert world.claim.ids == [up]
        if state == "dead":
            peer.end(world.claim, "dead")
        else:
            peer.expire(world.claim)
    return world


def finish(verdict: str) -> Callable[[Peer, World], Any]:
    def act(peer: Peer, world: World) -> Any:
        return peer.finish((world.up, world.claim.token, Outcome(verdict)), done=[world.claim.token])

    return act


def member(peer: Peer, world: World) -> Any:
    specs = [JobSpec.make("late"), JobSpec.make("later", depends_on=[world.side])]
    return peer.run(statements.submit_many(specs, batch_id=world.batch, after={1: [0]}, schema=SCHEMA))


ACTS: dict[str, Callable[[Peer, World], Any]] = {
    "follow up": lambda p, w: p.enqueue("new", depends_on=[w.up], on_dead=w.policy),
    "follow the batch": lambda p, w: p.enqueue("new", depends_on=[w.batch], on_dead=w.policy),
    "follow after": lambda p, w: p.enqueue("new", depends_on=[w.after], on_dead=w.policy),
    "add a member": member,
    "complete": finish("completed"),
    "die": finish("dead"),
    "go back": finish("retry"),
    "sweep": lambda p, _w: p.sweep(),
    "cancel up": lambda p, w: p.cancel(w.up),
    "cancel side": lambda p, w: p.cancel(w.side),
    "cancel after": lambda p, w: p.cancel(w.after),
    "retry up": lambda p, w: p.retry(w.up),
    "retry after": lambda p, w: p.retry(w.after),
    "retry then": lambda p, w: p.retry(w.then),
    "redrive": lambda p, _w: p.run(statements.redrive(None, None, 100, schema=SCHEMA)),
    "purge": lambda p, _w: p.run(statements.purge("default", schema=SCHEMA)),
    "purge the dead": lambda p, _w: p.run(statements.purge_dead(None, schema=SCHEMA)),
    "cancel the batch": lambda p, w: p.run(statements.cancel_batch(w.batch, schema=SCHEMA)),
    "tidy": lambda p, _w: p.run(statements.tidy(schema=SCHEMA)),
}
OF_A_RUN = {"complete", "die", "go back", "sweep"}
EXPECTED = (psycopg.errors.InvalidParameterValue,)  # what it names is gone: said, and nothing written


class Stage:
    """Two connections, and a third that looks on."""

    def __init__(self, dsn: str) -> None:
        self.one, self.two, self.observer = Peer(dsn), Peer(dsn), Peer(dsn)
        self.pool = ThreadPoolExecutor(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for peer in (self.one, self.two, self.observer):
            peer.connection.close()
        self.pool.shutdown()

    def clear(self) -> None:
        self.one.sql("; ".join(f"DELETE FROM pgqueue.{table}" for table in TABLES))

    def start(self, peer: Peer, action: Callable[[], Any]) -> Future[Any]:
        """Run it until it has ended or waits for a lock."""
        future = self.pool.submit(action)
        wait([future], 0.004)
        while not future.done():
            if self.observer.value("SELECT cardinality(pg_blocking_pids(%s)) > 0", peer.pid):
                return future
            wait([future], 0.004)
        return future

    def judge(self, case: str, world: World, *, purged: bool) -> None:
        """Whole, and when all that can run has run, nobody is left who waits for nothing."""
        try:
            flows.check(self.one, purged=purged)
            flows.drain(self.one)
            flows.check(self.one, purged=purged)
            assert not flows.stuck(self.one), "left waiting"
        except AssertionError as error:
            raise AssertionError(f"{case}\n{error}\n{world}\n{flows.facts(self.one)}") from error


def every_pair(dsn: str, state: str, policy: str, outcomes: tuple[str, ...] = ("commit", "rollback")) -> None:
    with Stage(dsn) as stage:
        one, two = stage.one, stage.two
        for first, second, outcome in product(ACTS, ACTS, outcomes):
            if state != "running" and {first, second} & OF_A_RUN:
                continue
            case = f"{first}, then {second}; {outcome}"
            stage.clear()
            world = build(one, policy, state)
            one.begin()
            ACTS[first](one, world)
            future = stage.start(two, lambda second=second, world=world: ACTS[second](two, world))  # type: ignore[misc]
            one.sql(outcome)
            try:
                future.result(timeout=30)
            except EXPECTED as error:
                assert "purge" in case or "no unfinished batch" in str(error), f"{case}: {error}"  # noqa: PT017
            stage.judge(case, world, purged="purge" in case)


@pytest.mark.parametrize(("state", "policy"), [("running", "cancel")])
def test_any_two_things_at_once_leave_a_workflow_whole(dsn: str, state: str, policy: str):
    every_pair(dsn, state, policy, ("commit",))
