"""Oban for Python, the open-source edition (Oban Pro's executors and batching are sold, so they are not here)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from oban import Oban, worker
from oban.schema import install

from benchmarks.peers.adapter import QUEUE, Adapter, main, payload, record

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from oban import Job


@worker(queue=QUEUE)
class Noop:
    """Nothing but the record."""

    async def process(self, job: Job) -> None:
        """Run."""
        record(job.args["n"])


class ObanPython(Adapter):
    """Uses ``Oban.enqueue``, ``Oban.enqueue_many`` and a server-mode ``Oban`` with one queue."""

    batch = 1_000  # enqueue_many is one INSERT from arrays; more at once gains nothing

    async def setup(self) -> None:
        """``oban install``."""
        pool = await self._pool(1)
        await install(pool)
        await pool.close()

    async def connect(self, clients: int) -> None:
        """Client mode: no queues. A connection for each client."""
        self._clients = await self._pool(clients)
        self._oban = Oban(pool=self._clients)

    async def disconnect(self) -> None:
        """Close the pool."""
        await self._clients.close()

    async def enqueue(self, n: int) -> None:
        """One job."""
        await self._oban.enqueue(Noop.new(payload(n)))

    async def enqueue_many(self, numbers: range) -> None:
        """Several jobs in one statement."""
        await self._oban.enqueue_many(Noop.new(payload(n)) for n in numbers)

    async def work(self, purpose: str, ready: Callable[[], None], stop: asyncio.Event) -> None:  # noqa: ARG002
        """One tuning for all.

        - limit=50: jobs that run at the same time, and so how many a fetch can bring and acknowledge; as many as
          pgqueue's slots. 200 was no faster here.
        - a pool of 10, its default.
        - the rest is its default: PostgreSQL notifier, staging every second, finished jobs are kept for a day.
        """
        pool = await self._pool(10)
        async with Oban(pool=pool, queues={QUEUE: 50}):
            ready()
            await stop.wait()
        await pool.close()

    async def left(self) -> int:
        """A finished job's row stays, as completed."""
        pool = await self._pool(1)
        async with pool.connection() as connection:
            query = "SELECT count(*) FROM oban_jobs WHERE state NOT IN ('completed', 'cancelled', 'discarded')"
            row = await (await connection.execute(query)).fetchone()
        await pool.close()
        return int(row[0])

    async def _pool(self, size: int):
        return await Oban.create_pool(self.dsn, min_size=min(size, 4), max_size=size)


if __name__ == "__main__":
    main(ObanPython())
