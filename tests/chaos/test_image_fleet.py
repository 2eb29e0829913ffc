"""examples/image_fleet: scaled 2 → 5 → 2 under load, the database restarted in between, every picture accounted for."""

from __future__ import annotations

import contextlib
import functools
import http.server
import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import invariants
import psycopg
import pytest
from PIL import Image
from server.conftest import until

if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDER = Path(__file__).parent.parent.parent / "examples" / "image_fleet"


def picture(width: int, height: int) -> bytes:
    out = io.BytesIO()
    Image.effect_noise((width, height), 50).save(out, "PNG")
    return out.getvalue()


class Fleet:
    """Worker processes that come and go."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.workers: list[subprocess.Popen[str]] = []
        self.codes: list[int] = []

    def scale(self, count: int) -> None:
        while len(self.workers) < count:
            self.workers.append(subprocess.Popen(
                [sys.executable, "-m", "pgqueue", "worker", "--app", "fleet:queue", "--slots", "4", "--lease", "5s"],
                cwd=FOLDER, env={**os.environ, "PGQUEUE_DSN": self.dsn, "LEASE_CHECK_INTERVAL": "0.5s"},
                stderr=subprocess.DEVNULL, text=True, start_new_session=True,
            ))  # fmt: skip
        leaving = [self.workers.pop() for _ in range(len(self.workers) - count)]
        for worker in leaving:
            worker.send_signal(signal.SIGTERM)
        self.codes += [worker.wait(60) for worker in leaving]

    def kill_one(self) -> None:
        worker = self.workers.pop(0)
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait(60)

    def close(self) -> None:
        for worker in self.workers:
            os.killpg(worker.pid, signal.SIGKILL)
            worker.wait(60)

    def alive(self) -> int:
        with psycopg.connect(self.dsn) as connection:
            row = connection.execute(
                "SELECT count(*) FROM pgqueue.workers WHERE heartbeat_at > now() - interval '30 s'"
            ).fetchone()
            assert row is not None
            return int(row[0])


@pytest.fixture
def pictures(tmp_path: Path) -> Iterator[str]:
    """A web server with a picture."""
    (tmp_path / "one.png").write_bytes(picture(300, 150))

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_words: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


class Site:
    """The application under uvicorn, and a thread that sends pictures until it is told to stop."""

    def __init__(self, dsn: str, pictures: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", "fleet:api", "--port", str(port), "--log-level", "error"],
            cwd=FOLDER, env={**os.environ, "PGQUEUE_DSN": dsn}, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self._pictures = pictures
        self._stop = threading.Event()
        self._sender = threading.Thread(target=self._upload)
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)
        self.accepted: list[int] = []

    def start(self) -> None:
        until(self._serves, "the site serves")
        self._sender.start()

    def stop_sending(self) -> None:
        self._stop.set()
        if self._sender.is_alive():
            self._sender.join()

    def close(self) -> None:
        self.stop_sending()
        self.client.close()
        self._process.kill()
        self._process.wait(60)

    def wait_for(self, count: int) -> None:
        until(lambda: len(self.accepted) > count, f"{count} pictures have come")

    def ended(self, image_id: int) -> str:
        def look() -> str | None:
            state: str = self.client.get(f"/images/{image_id}").json()["state"]
            return state if state in {"completed", "dead"} else None

        return str(until(look, f"picture {image_id} is done", 60))

    def _serves(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return self.client.get("/images/1").status_code == 404
        return False

    def _upload(self) -> None:
        body, nth = picture(400, 200), 0
        while not self._stop.is_set():
            nth += 1
            sent: dict[str, Any] = (
                {"params": {"url": f"{self._pictures}/one.png"}} if nth % 5 == 0 else {"content": body}
            )
            with contextlib.suppress(httpx.TransportError):
                answer = self.client.post("/images", **sent)
                if answer.status_code == 202:
                    self.accepted.append(answer.json()["image_id"])
            time.sleep(0.03)


def test_every_picture_is_accounted_for(private_server: Any, pictures: str):
    database = private_server(migrated=True)
    with contextlib.ExitStack() as stack:
        site, fleet = Site(database.dsn, pictures), Fleet(database.dsn)
        stack.callback(fleet.close)
        stack.callback(site.close)
        site.start()
        fleet.scale(2)
        site.wait_for(10)
        fleet.scale(5)
        until(lambda: fleet.alive() >= 5, "five work")
        database.restart("fast")
        site.wait_for(40)
        fleet.kill_one()
        fleet.scale(2)
        site.wait_for(60)
        site.stop_sending()
        assert {site.ended(one) for one in site.accepted} == {"completed"}
        for one in site.accepted:
            for width in (64, 256):
                thumbnail = Image.open(io.BytesIO(site.client.get(f"/images/{one}/{width}").content))
                assert thumbnail.size == (width, width // 2)
        assert site.ended(site.client.post("/images", content=b"no picture").json()["image_id"]) == "dead"
        fleet.scale(0)
        assert fleet.codes == [0] * 4, "all but the killed one ended in order"
    with psycopg.connect(database.dsn) as connection:
        ids = [row[0] for row in connection.execute("SELECT id FROM pgqueue.history").fetchall()]
    invariants.check(database.dsn, ids)
