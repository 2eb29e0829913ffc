"""Awa: its Rust engine under its Python client and Python handlers (awa-pg)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import awa

from benchmarks.peers.adapter import QUEUE, TEXT, Adapter, main, record

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable


@dataclass
class Noop:
    """The arguments of a job."""

    n: int
    text: str


class Awa(Adapter):
    """Uses ``AsyncClient``: ``insert``, ``enqueue_many_copy`` and ``start``, on its queue storage."""

    batch = 5_000  # enqueue_many_copy streams a COPY into queue storage

    async def setup(self) -> None:
        """Its queue storage, its newest and fastest engine; `migrate` alone leaves the canonical tables active."""
        async with awa.AsyncClient(self.dsn) as client:
            await client.migrate()
            await client.install_queue_storage()

    async def connect(self, clients: int) -> None:
        """A pool of so many connections, in Rust."""
        self._client = awa.AsyncClient(self.dsn, max_connections=clients)

    async def disconnect(self) -> None:
        """Close the pool."""
        await self._client.close()

    async def enqueue(self, n: int) -> None:
        """One job."""
        await self._client.insert(Noop(n, TEXT), queue=QUEUE)

    async def enqueue_many(self, numbers: range) -> None:
        """COPY."""
        await self._client.enqueue_many_copy([Noop(n, TEXT) for n in numbers], queue=QUEUE)

    async def work(self, purpose: str, ready: Callable[[], None], stop: asyncio.Event) -> None:  # noqa: ARG002
        """One tuning for all.

        - 200 workers on the queue: a claim brings at most that many. Its Rust default of 50 drained 1,200 jobs/s
          here, 200 1,900, 500 2,100; two claimers (its option for hot queues) gained nothing on two cores.
        - a pool of 24: its benchmark notes say queues * 4 + 20.
        - the rest is its default: polling every 200 ms beside NOTIFY, one claimer, rotation of its partitions.
        """
        client = awa.AsyncClient(self.dsn, max_connections=24)

        @client.task(Noop, queue=QUEUE)
        async def noop(job: awa.Job) -> None:
            record(job.args.n)

        await client.start([(QUEUE, 200)])
        ready()
        await stop.wait()
        await client.shutdown()
        await client.close()

    async def left(self) -> int:
        """By its own statistics of the queue."""
        async with awa.AsyncClient(self.dsn) as client:
            stats = [one for one in await client.queue_stats() if one.queue == QUEUE]
        return sum(one.total_queued + one.running for one in stats)


if __name__ == "__main__":
    main(Awa())
