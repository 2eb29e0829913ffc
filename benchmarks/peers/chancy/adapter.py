"""Chancy, with its asyncio executor, on psycopg."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
from chancy import Chancy, Queue, Worker, job

from benchmarks.peers.adapter import QUEUE, Adapter, main, payload, record

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable


@job(queue=QUEUE)
async def noop(*, n: int, text: str) -> None:  # noqa: ARG001
    """Nothing but the record."""
    record(n)


class ChancyQueue(Adapter):
    """Uses ``Chancy.push``, ``Chancy.push_many`` and ``Worker``."""

    batch = 1_000  # push_many's own batch: one transaction, one INSERT a job

    async def setup(self) -> None:
        """``chancy misc migrate``, and the queue, whose settings live in the database.

        One tuning for all:

        - executor=Async: its documentation names it for many small I/O jobs; the default starts processes.
        - concurrency=100: what the asyncio executor takes when nothing is said; a fetch brings up to that
          many. 500 was no faster here.
        - eager_polling=True: fetch again when a job ends; without it a worker fetches once per notification or poll.
        - polling_interval=1: the least; without notifications, how late a job is found.
        """
        async with Chancy(self.dsn) as chancy:
            await chancy.migrate()
            await chancy.declare(
                Queue(QUEUE, executor=Chancy.Executor.Async, concurrency=100, eager_polling=True, polling_interval=1),
                upsert=True,
            )

    async def connect(self, clients: int) -> None:
        """A pool with a connection for each client."""
        self._chancy = Chancy(self.dsn, min_connection_pool_size=min(clients, 4), max_connection_pool_size=clients)
        await self._chancy.__aenter__()

    async def disconnect(self) -> None:
        """Close the pool."""
        await self._chancy.__aexit__(None, None, None)

    async def enqueue(self, n: int) -> None:
        """One job."""
        await self._chancy.push(noop.job.with_kwargs(**payload(n)))

    async def enqueue_many(self, numbers: range) -> None:
        """Several jobs in one transaction."""
        jobs = [noop.job.with_kwargs(**payload(n)) for n in numbers]
        async for _ in self._chancy.push_many(jobs, batch_size=self.batch):
            pass

    async def work(self, purpose: str, ready: Callable[[], None], stop: asyncio.Event) -> None:  # noqa: ARG002
        """Default plugins, as ``chancy worker start`` has them; outcomes are written once a second, its default."""
        async with Chancy(self.dsn) as chancy, Worker(chancy, register_signal_handlers=False):
            ready()
            await stop.wait()

    async def left(self) -> int:
        """A finished job's row stays, as succeeded, until its pruner takes it."""
        query = "SELECT count(*) FROM chancy_jobs WHERE state NOT IN ('succeeded', 'failed', 'expired')"
        async with await psycopg.AsyncConnection.connect(self.dsn) as connection:
            row = await (await connection.execute(query)).fetchone()
        assert row is not None
        return int(row[0])


if __name__ == "__main__":
    main(ChancyQueue())
