import asyncio

import asyncpg
import ledger
import pytest

from pgqueue.testing import AsyncSandbox


def test_a_booking_notifies_and_one_that_is_undone_does_not(pgqueue_dsn: str, pgqueue_schema: str):
    async def story() -> None:
        connection = await asyncpg.connect(pgqueue_dsn)
        outer = connection.transaction()
        await outer.start()
        await connection.execute("CREATE TABLE bookings (account text, cents bigint)")
        async with AsyncSandbox(ledger.queue, connection, schema=pgqueue_schema) as queue:
            await ledger.book(connection, "ann", 1050)
            with pytest.raises(ValueError, match="not so much"):
                await ledger.book(connection, "ann", -2000)
            await queue.assert_enqueued(ledger.notify, count=1, account="ann")
            (ran,) = await queue.run_pending(raise_errors=True)
            assert ran.result == "ann: +10.50"
        await outer.rollback()
        await connection.close()

    asyncio.run(story())
