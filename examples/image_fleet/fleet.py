"""A fleet of image workers: upload a picture or name its URL, get its thumbnails.

uvicorn fleet:api                       # in this folder; pip install 'pgqueue[embedded]' fastapi uvicorn pillow
pgq worker --app fleet:queue            # as many of these as there is work, on as many machines
curl --data-binary @cat.jpg localhost:8000/images
curl -X POST 'localhost:8000/images?url=https://example.org/cat.jpg'
curl localhost:8000/images/1
curl localhost:8000/images/1/256 > cat-256.png
"""

from __future__ import annotations

import io
import urllib.request
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, HTTPException, Request, Response
from PIL import Image, UnidentifiedImageError

import pgqueue
from pgqueue.integrations.fastapi import pgqueue_lifespan

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

WIDTHS = (64, 256)
MOST_BYTES = 20 * 1024 * 1024

TABLES = """
    CREATE TABLE IF NOT EXISTS images (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, body bytea, job_id bigint);
    CREATE TABLE IF NOT EXISTS thumbnails (
        image_id bigint REFERENCES images, width integer, body bytea NOT NULL, PRIMARY KEY (image_id, width));
"""

queue = pgqueue.App()


@queue.task(queue="fetch", timeout="60s", max_attempts=5)
def fetch(image_id: int, url: str, job: pgqueue.Job) -> None:
    """Store the picture, and have it resized: in one commit with this job's own end."""
    with urllib.request.urlopen(url, timeout=30) as answer:
        body = answer.read(MOST_BYTES + 1)
    if len(body) > MOST_BYTES:
        raise pgqueue.Dead(f"{url} has more than {MOST_BYTES} bytes")
    with job.transaction() as connection:
        connection.execute("UPDATE images SET body = %s WHERE id = %s", [body, image_id])
        next_job = resize.using(connection).enqueue_sync(image_id=image_id)  # type: ignore[call-arg]
        connection.execute("UPDATE images SET job_id = %s WHERE id = %s", [next_job.id, image_id])


@queue.task(queue="resize", timeout="60s", max_attempts=5)
def resize(image_id: int, job: pgqueue.Job) -> list[int]:
    """Make the thumbnails. In a thread: Pillow works while others do. Run again, it makes the same."""
    with queue.database.connection() as connection:
        row = connection.execute("SELECT body FROM images WHERE id = %s", [image_id]).fetchone()
    assert row is not None
    try:
        picture = Image.open(io.BytesIO(row[0])).convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise pgqueue.Dead(f"no picture: {error}") from None
    made = []
    for nth, width in enumerate(WIDTHS, 1):
        out = io.BytesIO()
        picture.resize((width, max(1, picture.height * width // picture.width))).save(out, "PNG")
        made.append((image_id, width, out.getvalue()))
        job.progress(nth / len(WIDTHS))
    job.set_result([width for _, width, _ in made])
    with job.transaction() as connection:  # the thumbnails and the job's end, in one commit
        connection.cursor().executemany("INSERT INTO thumbnails VALUES (%s, %s, %s)", made)
    return [width for _, width, _ in made]


@asynccontextmanager
async def tables(_api: FastAPI) -> AsyncIterator[dict[str, Any]]:
    async with queue.database.aconnection() as connection:
        await connection.execute(TABLES)
    yield {}


api = FastAPI(lifespan=pgqueue_lifespan(queue, lifespan=tables))


@api.post("/images", status_code=202)
async def submit(request: Request, url: str | None = None) -> dict[str, int]:
    """The picture and its job, both or none."""
    body = None if url else await request.body()
    async with queue.database.aconnection() as connection, connection.transaction():
        row = await (await connection.execute("INSERT INTO images (body) VALUES (%s) RETURNING id", [body])).fetchone()
        assert row is not None
        if url:
            job = await fetch.using(connection).enqueue(image_id=row[0], url=url)  # type: ignore[call-arg]
        else:
            job = await resize.using(connection).enqueue(image_id=row[0])  # type: ignore[call-arg]
        await connection.execute("UPDATE images SET job_id = %s WHERE id = %s", [job.id, row[0]])
    return {"image_id": row[0], "job_id": job.id}


@api.get("/images/{image_id}")
async def status(image_id: int) -> dict[str, Any]:
    """How far it is."""
    async with queue.database.aconnection() as connection:
        row = await (await connection.execute("SELECT job_id FROM images WHERE id = %s", [image_id])).fetchone()
    if row is None:
        raise HTTPException(404)
    job = await queue.job(row[0]).refresh()
    return {
        "image_id": image_id, "state": job.state, "widths": job.result,
        "error": job.errors[-1]["message"] if job.errors else None,
    }  # fmt: skip


@api.get("/images/{image_id}/{width}")
async def thumbnail(image_id: int, width: int) -> Response:
    """One of its thumbnails."""
    async with queue.database.aconnection() as connection:
        found = await connection.execute(
            "SELECT body FROM thumbnails WHERE image_id = %s AND width = %s", [image_id, width]
        )
        row = await found.fetchone()
    if row is None:
        raise HTTPException(404)
    return Response(row[0], media_type="image/png")
