"""pgqueue: ``pgq worker``, and the async client (the sync one for a lone client), with default settings."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pgqueue
from benchmarks.peers.adapter import QUEUE, TEXT, Adapter, main, record
from pgqueue.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

app = pgqueue.App()


@app.task(name="bench.noop", queue=QUEUE)
async def noop(n: int, text: str) -> None:  # noqa: ARG001
    """Nothing but the record."""
    record(n)


class Pgqueue(Adapter):
    """Default settings: 50 slots, 30 s leases."""

    batch = 50_000  # COPY; beyond this nothing gets faster

    def __init__(self) -> None:
        super().__init__()
        app.configure(Settings(dsn=self.dsn))

    async def setup(self) -> None:
        """``pgq migrate``."""
        from pgqueue.migrations import migrate  # noqa: PLC0415 - each command loads what it needs

        await asyncio.to_thread(migrate, self.dsn)

    async def connect(self, clients: int) -> None:
        """The client's pool opens connections when they are needed; here one is, before the clock runs."""
        self._alone = clients == 1
        await app.database.grow(clients)
        await self._ask("SELECT 1")
        if self._alone:
            with app.database.connection() as connection:
                connection.execute("SELECT 1")

    async def disconnect(self) -> None:
        """Close the pool."""
        await app.aclose()

    async def enqueue(self, n: int) -> None:
        """One job; by the sync call for a lone client, who has nothing else to do meanwhile."""
        if self._alone:
            noop.enqueue_sync(n=n, text=TEXT)
        else:
            await noop.enqueue(n=n, text=TEXT)

    async def enqueue_many(self, numbers: range) -> None:
        """``enqueue_many(copy=True)``, which is for large numbers."""
        jobs = (pgqueue.JobSpec("bench.noop", f'{{"n": {n}, "text": "{TEXT}"}}', QUEUE) for n in numbers)
        await app.enqueue_many(jobs, copy=True)

    async def work(self, purpose: str, ready: Callable[[], None], stop: asyncio.Event) -> None:  # noqa: ARG002
        """What ``pgq worker --app`` runs."""
        from pgqueue.worker import Worker  # noqa: PLC0415
        from pgqueue.worker.supervisor import calm_collector  # noqa: PLC0415

        calm_collector()
        worker = Worker(app)
        running = asyncio.create_task(worker.run())
        while not await self._ask("SELECT count(*) FROM pgqueue.workers WHERE name = %s", worker.name):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        ready()
        await stop.wait()
        worker.stop()
        await running
        await app.aclose()

    async def left(self) -> int:
        """A finished job leaves ``jobs`` for ``history``."""
        count = await self._ask("SELECT count(*) FROM pgqueue.jobs")
        await app.aclose()
        return count

    async def _ask(self, query: str, *values: str) -> int:
        async with app.database.aconnection() as connection:
            row = await (await connection.execute(query, values)).fetchone()
        assert row is not None
        return int(row[0])


if __name__ == "__main__":
    main(Pgqueue())
