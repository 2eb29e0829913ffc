"""Money on asyncpg: the booking and the job that tells of it in one transaction."""

import asyncio
import os

import asyncpg

import pgqueue

queue = pgqueue.App()


@queue.task(name="notify")
async def notify(account: str, cents: int) -> str:
    return f"{account}: {cents / 100:+.2f}"


async def book(connection: asyncpg.Connection, account: str, cents: int) -> pgqueue.Job:
    async with connection.transaction():
        await connection.execute("INSERT INTO bookings (account, cents) VALUES ($1, $2)", account, cents)
        job = await notify.using(connection).enqueue(account, cents)
        if await connection.fetchval("SELECT sum(cents) < 0 FROM bookings WHERE account = $1", account):
            raise ValueError(f"{account} has not so much")  # the booking is undone, and nobody is notified
        return job


async def main() -> None:
    connection = await asyncpg.connect(os.environ["PGQUEUE_DSN"])
    await connection.execute("CREATE TABLE IF NOT EXISTS bookings (account text, cents bigint)")
    print(await book(connection, "ann", 100))
    await connection.close()
    await queue.aclose()


if __name__ == "__main__":
    asyncio.run(main())
