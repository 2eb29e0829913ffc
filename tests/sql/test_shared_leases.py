"""Leases of clients that are not ours: a batch split among them, and when a lease ends."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from peers import SCHEMA, Peer

from pgqueue import statements
from pgqueue.outcome import COMPLETED

if TYPE_CHECKING:
    from peers import Claim


def split(peer: Peer, claim: Claim, parts: list[tuple[int, int, str]]) -> set[int]:
    return peer.run(statements.split_lease(claim.token, parts, schema=SCHEMA))


def leases(peer: Peer) -> list[tuple[object, ...]]:
    return peer.sql("SELECT token, worker, job_ids FROM pgqueue.leases ORDER BY token")


def test_each_part_gets_a_lease_of_its_own_until_the_same_time(one: Peer):
    ids = [one.enqueue() for _ in range(3)]
    claim = one.claim(lease=timedelta(minutes=7))
    before = one.value("SELECT lease_until FROM pgqueue.leases")
    assert split(one, claim, [(ids[0], 11, "a"), (ids[1], 12, "b"), (ids[2], 11, "a")]) == set(ids)
    assert leases(one) == [(11, "a", [ids[0], ids[2]]), (12, "b", [ids[1]])]
    assert one.sql("SELECT DISTINCT lease_until FROM pgqueue.leases") == [(before,)]
    assert one.sql("SELECT id, lease_token, worker FROM pgqueue.jobs ORDER BY id") == [
        (ids[0], 11, "a"), (ids[1], 12, "b"), (ids[2], 11, "a"),
    ]  # fmt: skip
    one.sql("UPDATE pgqueue.leases SET lease_until = now() - interval '1 second' WHERE token = 12")
    assert [job.id for job in one.sweep()] == [ids[1]]


def test_a_job_that_is_left_out_keeps_its_lease(one: Peer):
    ids = [one.enqueue() for _ in range(2)]
    claim = one.claim()
    assert split(one, claim, [(ids[0], 11, "a")]) == {ids[0]}
    assert [row[0] for row in leases(one)] == sorted([11, claim.token])
    one.sql("UPDATE pgqueue.leases SET lease_until = now() - interval '1 second'")
    assert sorted(job.id for job in one.sweep()) == ids, "neither is lost"
    assert leases(one) == []


def test_a_lease_that_has_run_out_is_not_split(one: Peer):
    ids = [one.enqueue()]
    claim = one.claim(lease=timedelta(seconds=-1))
    assert split(one, claim, [(ids[0], 11, "a")]) == set()
    assert [job.id for job in one.sweep()] == ids
    assert split(one, claim, [(ids[0], 11, "a")]) == set()
    assert leases(one) == []


def test_what_has_ended_meanwhile_is_not_moved(one: Peer):
    ids = [one.enqueue() for _ in range(2)]
    claim = one.claim()
    one.finish((ids[0], claim.token, COMPLETED))
    assert split(one, claim, [(ids[0], 11, "a"), (ids[1], 12, "b")]) == {ids[1]}
    assert leases(one) == [(12, "b", [ids[1]])]


def test_held_says_whether_a_lease_ends_with_these(one: Peer):
    ids = [one.enqueue() for _ in range(3)]
    claim = one.claim()

    def last(*some: int) -> dict[int, bool]:
        return {one_held.id: one_held.last for one_held in one.run(statements.held(some, schema=SCHEMA)).values()}

    assert last(*ids) == dict.fromkeys(ids, True)
    assert last(*ids[:2]) == dict.fromkeys(ids[:2], False)
    one.finish((ids[2], claim.token, COMPLETED))
    assert last(*ids[:2]) == dict.fromkeys(ids[:2], True)
    assert last(ids[0], ids[2], 999) == {ids[0]: False}
    found = one.run(statements.held([ids[0]], schema=SCHEMA))[ids[0]]
    assert (found.token, found.live, found.attempt, found.queue) == (claim.token, True, 1, "default")
    one.sql("UPDATE pgqueue.leases SET lease_until = now() - interval '1 second'")
    assert one.run(statements.held([ids[0]], schema=SCHEMA))[ids[0]].live is False
