"""PgQueuer on asyncpg, which its documentation recommends: about twice psycopg's throughput in its own benchmark."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import asyncpg
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver, AsyncpgPoolDriver
from pgqueuer.queries import Queries

from benchmarks.peers.adapter import QUEUE, TEXT, Adapter, main, record

if TYPE_CHECKING:
    from collections.abc import Callable

    from pgqueuer.models import Job


class Pgqueuer(Adapter):
    """Uses ``Queries.enqueue`` (an array of jobs is one statement) and ``PgQueuer.run``."""

    batch = 1_000  # one INSERT ... SELECT unnest(...); more at once gains nothing

    async def setup(self) -> None:
        """``pgq install``, with its default durability (all tables logged), then ``pgq autovac``, as it advises."""
        connection = await asyncpg.connect(self.dsn)
        queries = Queries(AsyncpgDriver(connection))
        await queries.install()
        await queries.optimize_autovacuum()
        await connection.close()

    async def connect(self, clients: int) -> None:
        """A pool for producers, as it advises; a lone client has a connection of its own."""
        if clients == 1:
            self._close = connection = await asyncpg.connect(self.dsn)
            self._queries = Queries(AsyncpgDriver(connection))
        else:
            self._close = pool = await asyncpg.create_pool(self.dsn, min_size=clients, max_size=clients)
            self._queries = Queries(AsyncpgPoolDriver(pool))

    async def disconnect(self) -> None:
        """Close what was opened."""
        await self._close.close()

    async def enqueue(self, n: int) -> None:
        """One job."""
        await self._queries.enqueue(QUEUE, _payload(n))

    async def enqueue_many(self, numbers: range) -> None:
        """Several jobs in one statement."""
        count = len(numbers)
        await self._queries.enqueue([QUEUE] * count, [_payload(n) for n in numbers], [0] * count)

    async def work(self, purpose: str, ready: Callable[[], None], stop: asyncio.Event) -> None:  # noqa: ARG002
        """One tuning for all.

        - batch_size=500: its documentation says to raise the default of 10 for short jobs. 500 cost less CPU here
          than 100. Finished jobs are logged in batches of this size too, or every 0.1 s; a claim waits for nothing.
        - one asyncpg connection of its own: "always use a direct connection, not a pool, for the QueueManager".
        - uvloop: it depends on it.
        - the rest is its default: dequeue_timeout 30 s beside NOTIFY, heartbeats, log aggregation every 30 s.
        """
        connection = await asyncpg.connect(self.dsn)
        manager = PgQueuer.from_asyncpg_connection(connection)

        @manager.entrypoint(QUEUE)
        async def noop(job: Job) -> None:
            record(json.loads(job.payload)["n"])

        running = asyncio.create_task(manager.run(batch_size=500))
        watch = await asyncpg.connect(self.dsn)
        listening = "SELECT count(*) FROM pg_stat_activity WHERE pid = $1 AND query ~ 'LISTEN|pgqueuer'"
        while not await watch.fetchval(listening, connection.get_server_pid()):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        await watch.close()
        ready()
        await stop.wait()
        manager.shutdown.set()
        await running
        await connection.close()

    async def left(self) -> int:
        """A finished job leaves ``pgqueuer`` for ``pgqueuer_log``."""
        connection = await asyncpg.connect(self.dsn)
        count = await connection.fetchval("SELECT count(*) FROM pgqueuer")
        await connection.close()
        return int(count)


def _payload(n: int) -> bytes:
    return b'{"n": %d, "text": "%s"}' % (n, TEXT.encode())


if __name__ == "__main__":
    main(Pgqueuer())
