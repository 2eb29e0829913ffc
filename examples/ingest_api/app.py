"""An ingest API: 202 at once, the work later, progress meanwhile. Workers run in the application's own lifespan.

uvicorn app:api                     # in this folder; the embedded PostgreSQL if no PGQUEUE_DSN is set
curl --data-binary @big.csv localhost:8000/api/v1/ingest
curl localhost:8000/api/v1/ingest/1/status
"""

from __future__ import annotations

import asyncio
import csv
import io
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, HTTPException, Request, Response

import pgqueue
from pgqueue.integrations.fastapi import pgqueue_lifespan

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

CHUNK = 1_000  # rows between two reports

queue = pgqueue.App()


@queue.task(name="ingest", queue="ingest", max_attempts=5)
async def ingest(upload_id: int, job: pgqueue.Job) -> dict[str, int]:
    """Read an upload row by row. Run again after a crash it begins anew: nothing was written before its end."""
    async with queue.database.aconnection() as connection:
        row = await (await connection.execute("SELECT body FROM uploads WHERE id = %s", [upload_id])).fetchone()
    assert row is not None
    rows = list(csv.reader(io.StringIO(row[0])))
    total = 0
    for nth, cells in enumerate(rows, 1):
        total += len(cells)
        if nth % CHUNK == 0:
            job.progress(nth / len(rows), f"{nth} of {len(rows)} rows")
            await asyncio.sleep(0)  # others want to run, too
    result = {"rows": len(rows), "cells": total}
    job.set_result(result)
    async with job.transaction() as connection:  # the data and the job's completion, in one commit
        await connection.execute("UPDATE uploads SET rows = %s WHERE id = %s", [len(rows), upload_id])
    return result


@asynccontextmanager
async def tables(_api: FastAPI) -> AsyncIterator[dict[str, Any]]:
    async with queue.database.aconnection() as connection:
        await connection.execute(
            "CREATE TABLE IF NOT EXISTS uploads"
            " (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, body text NOT NULL, rows bigint)"
        )
    yield {}


api = FastAPI(lifespan=pgqueue_lifespan(queue, worker=True, lifespan=tables, slots=4))


@api.post("/api/v1/ingest", status_code=202)
async def start(request: Request, response: Response) -> dict[str, Any]:
    """Store the upload and enqueue its job: both or none."""
    body = (await request.body()).decode()
    async with queue.database.aconnection() as connection, connection.transaction():
        row = await (await connection.execute("INSERT INTO uploads (body) VALUES (%s) RETURNING id", [body])).fetchone()
        assert row is not None
        job = await ingest.using(connection).enqueue(upload_id=row[0])  # type: ignore[call-arg]
    response.headers["Location"] = f"/api/v1/ingest/{job.id}/status"
    return {"job_id": job.id, "state": "accepted"}


@api.get("/api/v1/ingest/{job_id}/status")
async def status(job_id: int) -> dict[str, Any]:
    """How far it is."""
    try:
        job = await queue.job(job_id).refresh()
    except pgqueue.JobNotFoundError:
        raise HTTPException(404) from None
    progress = 1.0 if job.state == "completed" else (job.progress or {}).get("value", 0.0)
    return {
        "job_id": job_id, "state": job.state, "progress": progress, "note": (job.progress or {}).get("note"),
        "result": job.result, "error": job.errors[-1]["message"] if job.errors else None,
    }  # fmt: skip
