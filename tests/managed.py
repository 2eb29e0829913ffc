"""Claims from queues with keys or limits, for the tests of single statements; see :mod:`peers`."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from peers import LEASE, SCHEMA, Claim, Peer

from pgqueue import statements
from pgqueue.statements import Lanes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

_tokens = itertools.count(7_000_001)
NO_MARKS = Lanes(["q"] * 10, list(range(10)), [None] * 10, [0] * 10)


def managed(
    peer: Peer, most: int = 10, queue: str = "q", *, tasks: list[str] | None = None, hints: Sequence[str] = (),
    token: int | None = None, lease: timedelta = LEASE,
) -> Claim:  # fmt: skip
    """A claim as the worker makes it from a queue with keys or limits."""
    token = token or next(_tokens)
    rows = peer.run(statements.claim_managed(queue, NO_MARKS, tasks, most, token, lease, "w", hints, schema=SCHEMA))
    return Claim(token, rows)


def line(peer: Peer, key: str = "k", count: int = 1, queue: str = "q", **options: Any) -> list[int]:
    return [peer.enqueue(queue=queue, group_key=key, **options) for _ in range(count)]


def limit(peer: Peer, queue: str = "q", **limits: Any) -> None:
    peer.run(statements.limit_queue(queue, limits, schema=SCHEMA))


def running(peer: Peer, queue: str = "q") -> list[int]:
    return [
        i for (i,) in peer.sql("SELECT id FROM pgqueue.jobs WHERE queue = %s AND state = 'running' ORDER BY id", queue)
    ]


def drain(peer: Peer, queue: str = "q", most: int = 10) -> list[int]:
    """Everything that can run, in the order in which it started."""
    order: list[int] = []
    while (claim := managed(peer, most, queue)).ids:
        order += claim.ids
        peer.end(claim)
    return order
