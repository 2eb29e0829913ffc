"""Enqueue immediate, scheduled and priority jobs, and watch them until all are done.

Needs a worker: ``pgq worker --app app:app`` in this folder. Exits with 1 if a job is dead.
"""

import asyncio
import sys
import time

import psycopg
from app import app, process_data, user_signup, welcome_email

import pgqueue


async def main() -> int:
    make_tables()
    begin = time.monotonic()
    jobs = await enqueue_all()
    await watch(jobs, begin)
    return await report(jobs)


def make_tables() -> None:
    """The application's own table; pgqueue's were made by `pgq migrate`."""
    with psycopg.connect(app.database.dsn) as connection:
        connection.execute("DROP TABLE IF EXISTS accounts")
        connection.execute("CREATE TABLE accounts (email text PRIMARY KEY, name text NOT NULL)")


async def enqueue_all() -> dict[str, pgqueue.Job]:
    """Immediate, scheduled and priority jobs."""
    return {
        "sign-up of Ann": await user_signup.enqueue(email="ann@example.com", name="Ann"),
        "sign-up of Bob": await user_signup.enqueue(email="bob@example.com", name="Bob"),
        "a mail that fails once": await welcome_email.enqueue(email="un@example.com", name="Unlucky"),
        "a mail in 2 s": await welcome_email.options(delay="2s").enqueue(email="eve@example.com", name="Eve"),
        "data, low priority": await process_data.options(priority="low").enqueue(rows=10_000),
        "data, high priority": await process_data.options(priority="high").enqueue(rows=100_000),
    }


async def watch(jobs: dict[str, pgqueue.Job], begin: float) -> None:
    """Print each change of a job's state or progress until all have ended."""
    shown: dict[str, str] = {}
    while True:
        records = {name: await job.refresh() for name, job in jobs.items()}
        for name, record in records.items():
            now = record.state
            if record.state == "running" and record.progress:
                now = f"running, {record.progress['value']:.0%}: {record.progress['note']}"
            if shown.get(name) != now:
                shown[name] = now
                print(f"{time.monotonic() - begin:5.1f} s  {name:<24} {now}", flush=True)
        if all(record.finished for record in records.values()):
            return
        await asyncio.sleep(0.1)


async def report(jobs: dict[str, pgqueue.Job]) -> int:
    """Print the results; answer the exit code."""
    failed = 0
    for name, job in jobs.items():
        try:
            result = await job.result(timeout=1)
        except pgqueue.JobFailedError as error:
            result, failed = error, failed + 1
        print(f"{name}: {result}")
        if isinstance(result, dict) and "welcome_job" in result:
            print(f"  its welcome e-mail: {await app.job(result['welcome_job']).result(timeout=30)}")
    await app.aclose()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
