"""Procrastinate: the async worker and client on psycopg, its main connector."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import procrastinate

from benchmarks.peers.adapter import QUEUE, TEXT, Adapter, main, payload, record

if TYPE_CHECKING:
    from collections.abc import Callable


class Procrastinate(Adapter):
    """Uses ``App``, ``defer_async``, ``batch_defer_async`` and ``run_worker_async``."""

    batch = 1_000  # one INSERT from an array of jobs; more at once gains nothing

    async def setup(self) -> None:
        """``procrastinate schema --apply``."""
        async with self._app(1).open_async() as app:
            await app.schema_manager.apply_schema_async()

    async def connect(self, clients: int) -> None:
        """A pool with a connection for each client."""
        self._client = self._app(clients)
        await self._client.open_async()
        self._task = self._client.tasks["bench.noop"]

    async def disconnect(self) -> None:
        """Close the pool."""
        await self._client.close_async()

    async def enqueue(self, n: int) -> None:
        """One job."""
        await self._task.defer_async(n=n, text=TEXT)

    async def enqueue_many(self, numbers: range) -> None:
        """Several jobs in one statement."""
        await self._task.batch_defer_async(*(payload(n) for n in numbers))

    async def work(self, purpose: str, ready: Callable[[], None], stop: asyncio.Event) -> None:  # noqa: ARG002
        """One tuning for all.

        - concurrency=50: the default runs one job at a time, which its documentation calls right for a start only;
          as many as pgqueue's slots. Jobs are fetched one by one whatever it is.
        - a pool of 20: finishing has a connection beside fetching; LISTEN takes one for itself.
        - delete_jobs="always": a finished job's row goes, which keeps the table small (its documentation advises it
          or a task that deletes them); without it rows stay as succeeded.
        - listen_notify=True and polling every 5 s are its defaults.
        """
        async with self._app(20).open_async() as app:
            worker = asyncio.create_task(
                app.run_worker_async(
                    queues=[QUEUE], concurrency=50, delete_jobs="always", install_signal_handlers=False, wait=True
                )
            )
            # its LISTEN shows in pg_stat_activity; it tells nobody that it is ready
            listening = (
                "SELECT count(*) AS n FROM pg_stat_activity WHERE datname = current_database() AND query ~ %(q)s"
            )
            while not (await app.connector.execute_query_one_async(listening, q="^LISTEN"))["n"]:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            ready()
            await stop.wait()
            worker.cancel()  # its way to stop: running jobs are finished first
            await asyncio.gather(worker, return_exceptions=True)

    async def left(self) -> int:
        """A finished job is deleted."""
        async with self._app(1).open_async() as app:
            query = "SELECT count(*) AS n FROM procrastinate_jobs WHERE status IN ('todo', 'doing')"
            return (await app.connector.execute_query_one_async(query))["n"]

    def _app(self, size: int) -> procrastinate.App:
        connector = procrastinate.PsycopgConnector(conninfo=self.dsn, min_size=min(size, 4), max_size=size)
        app = procrastinate.App(connector=connector)

        @app.task(name="bench.noop", queue=QUEUE)
        async def noop(n: int, text: str) -> None:  # noqa: ARG001
            record(n)

        return app


if __name__ == "__main__":
    main(Procrastinate())
