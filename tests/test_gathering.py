"""Concurrent enqueues share transactions, and each caller gets what it would have got alone."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

import psycopg
import pytest

from pgqueue import AsyncClient, JobSpec
from pgqueue.connection import Database
from pgqueue.errors import DatabaseUnreachableError, InvalidJobError
from pgqueue.gathering import Gathering
from pgqueue.statements import Submitted

if TYPE_CHECKING:
    from collections.abc import Sequence


class Server:
    """Answers when it is told to; a job named bad is refused."""

    def __init__(self) -> None:
        self.sent: list[list[str]] = []
        self.open = asyncio.Event()
        self.error: Exception | None = None

    async def __call__(self, specs: Sequence[JobSpec]) -> list[Submitted]:
        self.sent.append([spec.task for spec in specs])
        await self.open.wait()
        if self.error:
            raise self.error
        for spec in specs:
            if spec.task == "bad":
                raise InvalidJobError("bad is bad")
        return [Submitted(int(spec.task), created=True) for spec in specs]


async def several(gathering: Gathering, *tasks: str) -> list[asyncio.Task[Submitted]]:
    calls = [asyncio.create_task(gathering.submit(JobSpec.make(task))) for task in tasks]
    await asyncio.sleep(0)
    return calls


async def test_a_lone_caller_waits_for_nobody_and_those_who_come_meanwhile_go_together():
    server = Server()
    gathering = Gathering(server)
    calls = await several(gathering, "1", "2", "3", "4", "5")
    assert server.sent == [["1"], ["2"]], "two are under way"
    server.open.set()
    assert [(await call).id for call in calls] == [1, 2, 3, 4, 5]
    assert server.sent == [["1"], ["2"], ["3", "4", "5"]]
    assert (await gathering.submit(JobSpec.make("6"))).id == 6
    assert server.sent[-1] == ["6"]


async def test_who_is_refused_fails_alone():
    server = Server()
    calls = await several(Gathering(server), "1", "2", "3", "bad", "5")
    server.open.set()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [answer.id for answer in answers if isinstance(answer, Submitted)] == [1, 2, 3, 5]
    assert isinstance(answers[3], InvalidJobError)


async def test_a_lost_connection_is_told_to_all_and_nothing_is_sent_twice():
    server = Server()
    server.error = DatabaseUnreachableError("gone")
    gathering = Gathering(server)
    calls = await several(gathering, "1", "2", "3", "4")
    server.open.set()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(answer, DatabaseUnreachableError) for answer in answers)
    assert len({id(answer) for answer in answers[2:]}) == 2, "each has its own, with its own traceback"
    assert server.sent == [["1"], ["2"], ["3", "4"]]
    server.error = None
    assert (await gathering.submit(JobSpec.make("5"))).id == 5


async def test_a_caller_that_was_cancelled_while_it_waited_sends_nothing():
    server = Server()
    calls = await several(Gathering(server), "1", "2", "3", "4")
    calls[2].cancel()
    await asyncio.sleep(0)
    server.open.set()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(answers[2], asyncio.CancelledError)
    assert server.sent == [["1"], ["2"], ["4"]]


async def test_a_caller_that_is_cancelled_under_way_does_not_harm_the_others():
    server = Server()
    gathering = Gathering(server)
    calls = await several(gathering, "1", "2", "3", "4")
    calls[0].cancel()
    await asyncio.sleep(0.01)
    assert server.sent == [["1"], ["2"], ["3", "4"]], "its place is free"
    calls[2].cancel()
    server.open.set()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [isinstance(answer, Submitted) for answer in answers] == [False, True, False, True]


async def test_large_payloads_do_not_gather_without_bound():
    server = Server()
    gathering = Gathering(server)
    specs = [JobSpec.make(str(n), "x" * 600_000) for n in range(6)]
    calls = [asyncio.create_task(gathering.submit(spec)) for spec in specs]
    await asyncio.sleep(0)
    server.open.set()
    await asyncio.gather(*calls)
    assert server.sent == [["0"], ["1"], ["2", "3"], ["4", "5"]]


@pytest.mark.parametrize("callers", [10, 100])
async def test_all_are_committed_in_the_end_and_only_the_refused_one_is_not(dsn: str, callers: int):
    database = Database(lambda: dsn)
    client = AsyncClient(database)
    specs = [JobSpec.make(f"t{n}", {"n": n}, delay=timedelta(minutes=n), timeout=60) for n in range(callers)]
    specs[7] = JobSpec("never", queue="")  # not made by JobSpec.make: only PostgreSQL refuses it
    answers = await asyncio.gather(*(client.submit(spec) for spec in specs), return_exceptions=True)
    with psycopg.connect(dsn) as connection:
        rows = connection.execute("SELECT id, task, payload, timeout, xmin::text FROM pgqueue.jobs").fetchall()
    await database.aclose()
    found = {row[0]: row[1:4] for row in rows}
    for n, answer in enumerate(answers):
        if n == 7:
            assert isinstance(answer, InvalidJobError)
        else:
            assert isinstance(answer, Submitted)
            assert found.pop(answer.id) == (f"t{n}", {"n": n}, timedelta(minutes=1))
    assert not found
    if callers == 100:
        assert len({row[4] for row in rows}) < callers, "they share transactions"
