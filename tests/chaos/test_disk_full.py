"""Fault 19: the disk that holds the data fills up under load, and has room again later."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
from scenarios.harness import Story
from servers import copy_blank, free_port, local_binaries

from chaos.chaos_tasks import EFFECTS
from chaos.tools import LEASE, LONG, Producer, audit, long_only, skip, start_many, wait_for
from pgqueue.embedded import PostgresServer
from pgqueue.migrations import migrate

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

DISK = "160m"
SETTINGS = {"max_wal_size": "32MB", "min_wal_size": "32MB", "shared_buffers": "16MB", "checkpoint_timeout": "30s"}
ROUNDS = 4 if LONG else 1


@pytest.fixture
def disk(run_folder: Path) -> Iterator[Path]:
    """A small disk of our own; only root may mount one, and not in every sandbox."""
    folder = Path(tempfile.mkdtemp(prefix="disk-", dir=run_folder))
    folder.chmod(0o711)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK},mode=0711", "pgqueue-chaos", folder],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if mounted.returncode != 0:
        folder.rmdir()
        skip(f"no small disk can be mounted here ({mounted.stderr.strip()}); run it as root")
    yield folder
    subprocess.run(["umount", "-l", folder], check=False, capture_output=True)
    folder.rmdir()


class Ballast:
    """Takes all the room, and gives it back."""

    def __init__(self, disk: Path) -> None:
        self.file = disk / "ballast"

    def fill(self) -> None:
        """The server takes room at the same time: so in smaller and smaller pieces."""
        piece = 1 << 24
        with self.file.open("wb") as file:
            while piece >= 4096:
                try:
                    os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, piece)
                except OSError:
                    piece //= 2

    def drop(self) -> None:
        self.file.unlink()


@pytest.mark.parametrize("panic", [False, pytest.param(True, marks=long_only)])
def test_a_full_disk_delays_everything_and_loses_nothing(
    disk: Path, run_folder: Path, tmp_path: Path, panic: bool
) -> None:
    """No room for a table to grow: statements fail. No room for a segment of the WAL: PostgreSQL itself goes down."""
    server = PostgresServer(
        copy_blank(run_folder, disk / "data"), local_binaries(run_folder), settings=SETTINGS, port=free_port()
    )
    story = Story(server.dsn, tmp_path, lease=LEASE)
    try:
        server.start()
        migrate(server.dsn)
        story.query(EFFECTS)
        workers = start_many(story, 2 if LONG else 1, "--slots", "5")
        big = {"seconds": 0.005}
        work = [("nap", big), ("transact", {}), ("flaky", {"failures": 1}), ("toil", big)]
        producers = [Producer(server.dsn, f"p{n}", work, rate=60) for n in range(2)]
        ballast = Ballast(disk)
        crashed = 0
        for _ in range(ROUNDS):
            before = len(story.ledger.entries("end"))
            wait_for(lambda before=before: len(story.ledger.entries("end")) > before + 50, "it is under load", story)
            unsure = [producer.unsure for producer in producers]
            ballast.fill()
            wait_for(
                lambda unsure=unsure: all(p.unsure > n for p, n in zip(producers, unsure, strict=True)),
                "the producers hear that the disk is full", story, within=90,
            )  # fmt: skip
            wait_for(lambda: "space" in logs(story) or "connection" in logs(story), "the workers, too", story)
            if panic:
                use_up_the_wal(server)
            time.sleep(2.5)  # longer than the leases
            ballast.drop()
            if not answers(server):  # no room for a WAL segment: PostgreSQL panics, and its recovery finds no room
                crashed += 1
                server.start()
        acknowledged = [len(producer.acknowledged) for producer in producers]
        wait_for(
            lambda: all(len(p.acknowledged) > n + 20 for p, n in zip(producers, acknowledged, strict=True)),
            "enqueues go on", story, within=60,
        )  # fmt: skip
        for producer in producers:
            producer.finish()
        took = story.until_finished(within=60)
        ids = audit(story, *producers, effects=True)
        print(
            f"MEASURED disk full: {len(ids)} jobs, {sum(p.unsure for p in producers)} enqueues refused and said again, "
            f"the server went down {crashed} times, finished {took:.2f} s after the last enqueue; "
            f"said: {sorted({error[:70] for p in producers for error in p.errors})[:4]}"
        )
        assert all(worker.alive for worker in workers), "no worker ended"
        assert story.states() == {"completed": len(ids)}
    finally:
        story.end()
        server.stop("immediate")


def logs(story: Story) -> str:
    return "\n".join(worker.log.read_text() for worker in story.workers)


def answers(server: PostgresServer) -> bool:
    """Whether it takes connections, or soon will."""
    end = time.monotonic() + 15
    while server.is_running() and time.monotonic() < end:
        try:
            with psycopg.connect(server.dsn, connect_timeout=2) as connection:
                connection.execute("SELECT 1")
        except psycopg.OperationalError:
            time.sleep(0.1)
        else:
            return True
    return False


def use_up_the_wal(server: PostgresServer) -> None:
    """Until there is no segment left to recycle, and none can be made: it panics."""
    message = "SELECT pg_logical_emit_message(false, 'chaos', repeat('x', 1000000)) FROM generate_series(1, 20)"
    with contextlib.suppress(psycopg.Error), psycopg.connect(server.dsn, autocommit=True) as connection:
        for _ in range(20):
            connection.execute(message)
