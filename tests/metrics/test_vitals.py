"""Vitals: until when a part may be silent; and what is made of them for probes and files."""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from typing import TYPE_CHECKING

import pytest

from pgqueue import App, Settings
from pgqueue.metrics import board as module
from pgqueue.metrics.board import Board, Copy, HealthFile, Monitor, Reachability
from pgqueue.metrics.vitals import CLAIMER, LOOP, PARTS, RENEWER, Vitals, patience
from pgqueue.metrics.watch import Watch

if TYPE_CHECKING:
    from pathlib import Path


def fine() -> None:
    return None


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_has_not_come_round_in_time_is_overdue(part: int):
    vitals = Vitals()
    vitals.begin()
    assert vitals.overdue() == []
    vitals.expect(part, 3_600)
    assert vitals.overdue() == []
    vitals.expect(part, -3)
    assert vitals.overdue() == [f"{PARTS[part]} is stuck (3s overdue)"]
    vitals.release(part)
    assert vitals.overdue() == []


def test_a_short_lease_does_not_make_it_hasty():
    assert patience(1) == 5
    assert patience(30) == 30


def test_the_worst_of_several_processes_is_the_boards(monkeypatch: pytest.MonkeyPatch):
    monitors = [Monitor(), Monitor()]
    for monitor in monitors:
        monitor.vitals.show("", bell=True, busy=2, free=3)
    board = Board(monitors, fine)
    assert (board.trouble(), board.unready(), board.bell_up) == ([], [], True)
    assert board.slots == {("busy",): 4, ("free",): 6}
    monitors[1].vitals.expect(RENEWER, -1)
    monitors[1].vitals.show("the bell is down", bell=False, busy=0, free=0)
    pid = os.getpid()
    assert board.trouble() == [f"process {pid}: the renewer is stuck (1s overdue)"]
    assert board.unready() == [*board.trouble(), f"process {pid}: the bell is down"]
    assert not board.bell_up


def test_a_lost_database_makes_unready_and_no_trouble():
    monitor = Monitor()
    monitor.vitals.show("", bell=True, busy=0, free=1)
    board = Board([monitor], lambda: "PostgreSQL can't be reached")
    assert board.trouble() == []
    assert board.unready() == ["PostgreSQL can't be reached"]


def test_a_worker_that_has_not_begun_is_unready_and_no_trouble():
    board = Board([Monitor()], fine)
    assert board.trouble() == []
    assert len(board.unready()) == 1


def test_a_supervisor_reads_the_vitals_of_the_process_that_it_started_and_of_no_other(tmp_path: Path):
    pid: list[int | None] = [None]
    copy = Copy(tmp_path / "0", counting=True, pid=lambda: pid[0])
    assert copy.look() is None
    theirs = Monitor(path=tmp_path / "0")  # as the copy does in its process
    theirs.vitals.expect(LOOP, -10)
    pid[0] = os.getpid()
    seen = copy.look()
    assert seen is not None
    assert len(seen.overdue()) == 1
    pid[0] = os.getpid() + 1  # started again, and not there yet: what the one before it said no longer counts
    assert copy.look() is None
    pid[0] = os.getpid()
    again = Monitor(path=tmp_path / "0")
    assert again.vitals.overdue() == []
    again.vitals.expect(CLAIMER, 100)
    seen = copy.look()
    assert seen is not None
    assert seen.overdue() == []


def test_a_copy_that_is_not_to_count_has_no_numbers(tmp_path: Path):
    copy = Copy(tmp_path / "0", counting=False, pid=lambda: None)
    assert Monitor(path=tmp_path / "0").numbers is None
    assert copy.series() == []


def test_the_files_of_copies_are_locked_against_who_tidies_up_and_gone_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """systemd-tmpfiles takes away what is old, but for locked folders: see AGE in tmpfiles.d(5)."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    watch = Watch(App(settings=Settings(dsn="host=nowhere")), port=None, host="", health_file=str(tmp_path / "health"),
                  processes=2)  # fmt: skip
    with watch:
        (folder,) = tmp_path.glob("pgqueue-monitor-*")
        assert watch.environment(1)["PGQUEUE_MONITOR"] == str(folder / "1")
        descriptor = os.open(folder, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(descriptor)
    assert not list(tmp_path.iterdir())


def test_the_database_is_asked_once_for_many_probes(monkeypatch: pytest.MonkeyPatch):
    asked = []
    monkeypatch.setattr(module, "database_problem", lambda _settings: asked.append(1) or "down")
    monkeypatch.setattr(module, "_SHARED_FOR", 3_600)
    reachable = Reachability(lambda: None)  # type: ignore[arg-type, return-value]
    reachable._asked_at = -3_600
    assert [reachable() for _ in range(10)] == ["down"] * 10
    assert len(asked) == 1


def test_a_health_file_is_touched_while_all_is_well_removed_when_not_and_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "_SHARED_FOR", 0.01)
    path, trouble = tmp_path / "health", list[str]()

    def until(look: object) -> None:
        end = time.monotonic() + 30
        while not look():  # type: ignore[operator]
            assert time.monotonic() < end
            time.sleep(0.005)

    file = HealthFile(path, lambda: trouble)
    file.start()
    try:
        os.utime(path, (0, 0))
        until(lambda: path.stat().st_mtime > 0)
        trouble.append("the claimer is stuck")
        until(lambda: not path.exists())
        trouble.clear()
        until(path.exists)
    finally:
        file.stop()
    assert not path.exists()
