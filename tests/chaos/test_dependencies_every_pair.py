"""Every pair of things that can happen to a workflow, in every state of its upstream and under every policy.

And from an old snapshot. The pairs and the judgement are those of tests/sql/test_dependencies_interleaved.py."""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path

import psycopg
import pytest

sys.path.append(str(Path(__file__).parent.parent / "sql"))
from test_dependencies_interleaved import ACTS, EXPECTED, OF_A_RUN, Stage, build, every_pair


@pytest.mark.timeout(600)
@pytest.mark.parametrize("policy", ["cancel", "continue", "hold"])
@pytest.mark.parametrize("state", ["available", "running", "dead"])
def test_any_two_things_at_once_leave_a_workflow_whole_under_every_policy(dsn: str, state: str, policy: str):
    every_pair(dsn, state, policy)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("first_is_repeatable", [True, False])
def test_under_repeatable_read_it_is_refused_or_right(dsn: str, *, first_is_repeatable: bool):
    """An old snapshot does not see who began to wait: then the end is refused, before anything is written."""
    refused = (*EXPECTED, psycopg.errors.FeatureNotSupported, psycopg.errors.SerializationFailure)
    names = [name for name in ACTS if name not in OF_A_RUN | {"tidy"}]  # those are a worker's, who pins its level
    with Stage(dsn) as stage:
        one, two = stage.one, stage.two
        old, new = (one, two) if first_is_repeatable else (two, one)
        for state, first, second in product(["available", "dead"], names, names):
            stage.clear()
            world = build(one, "hold", state)
            old.begin("REPEATABLE READ")
            old.sql("SELECT count(*) FROM pgqueue.jobs")
            for peer, name in ((one, first), (two, second)):
                try:
                    if peer is old:
                        ACTS[name](old, world)
                        continue
                    future = stage.start(new, lambda name=name, world=world: ACTS[name](new, world))  # type: ignore[misc]
                    if not future.done():
                        old.commit()
                    future.result(timeout=30)
                except refused:
                    if peer is old:
                        old.rollback()
            if old.connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
                old.commit()
            stage.judge(f"{state}: {first}, then {second}", world, purged="purge" in first + second)
