"""A small shop's jobs: a sign-up that enqueues a welcome e-mail, and a long piece of data processing.

Worker: ``pgq worker --app app:app`` in this folder.
"""

import asyncio

import pgqueue

app = pgqueue.App()  # PGQUEUE_DSN, else DATABASE_URL, else the embedded server


@app.task(name="user_signup", queue="users", max_attempts=5)
async def user_signup(job: pgqueue.Job, email: str, name: str) -> None:
    """Make the account, enqueue the welcome e-mail and complete this job: all three in one commit."""
    async with job.transaction() as connection:
        await connection.execute("INSERT INTO accounts (email, name) VALUES (%s, %s)", [email, name])
        welcome = await welcome_email.using(connection).enqueue(email=email, name=name)
        job.set_result({"account": email, "welcome_job": welcome.id})


@app.task(name="welcome_email", queue="emails", max_attempts=8, timeout="30s")
async def welcome_email(email: str, name: str) -> str:
    """Pretend to send; the mail server is not there at the first attempt."""
    if pgqueue.current_job().attempt == 1 and name == "Unlucky":
        raise pgqueue.Retry("1s", "the mail server did not answer")
    await asyncio.sleep(0.05)
    return f"sent to {email}"


@app.task(name="process_data", queue="data", timeout="5m")
async def process_data(job: pgqueue.Job, rows: int) -> dict[str, int]:
    """Work through the rows in ten steps and say how far it is."""
    total = 0
    for step in range(10):
        total += sum(range(rows * step // 10, rows * (step + 1) // 10))
        job.progress((step + 1) / 10, f"{rows * (step + 1) // 10} of {rows} rows")
        await asyncio.sleep(0.1)
    return {"rows": rows, "total": total}
