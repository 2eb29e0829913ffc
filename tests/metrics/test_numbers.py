"""Numbers: counters and histograms in memory and in files that outlive a process."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from pgqueue.metrics import catalogue, numbers
from pgqueue.metrics.catalogue import CLAIM, CLAIM_SIZE, FINISHED, RUN, SWEPT
from pgqueue.metrics.numbers import Numbers

if TYPE_CHECKING:
    from pathlib import Path

KILLED = """
import os, signal, sys
from pathlib import Path
from pgqueue.metrics.catalogue import FINISHED, CLAIM
from pgqueue.metrics.numbers import Numbers
counted = Numbers(Path(sys.argv[1]))
for nth in range(int(sys.argv[2])):
    counted.add(FINISHED, 1, "q", "t", "completed")
    counted.observe(CLAIM, 0.5)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(params=["memory", "file"])
def counted(request: pytest.FixtureRequest, tmp_path: Path) -> Numbers:
    if request.param == "memory":
        return Numbers()
    numbers.create(tmp_path / "0")
    return Numbers(tmp_path / "0")


def as_dict(series: list[numbers.Series]) -> dict[tuple[str, ...], list[float]]:
    return {(name, *labels): values for name, labels, values in series}


def test_a_counter_counts_per_label(counted: Numbers):
    counted.add(FINISHED, 2, "q", "t", "completed")
    counted.add(FINISHED, 1, "q", "t", "dead")
    counted.add(FINISHED, 3, "q", "t", "completed")
    counted.add(SWEPT)
    assert as_dict(counted.series()) == {
        ("pgqueue_finished_total", "q", "t", "completed"): [5],
        ("pgqueue_finished_total", "q", "t", "dead"): [1],
        ("pgqueue_swept_total",): [1],
    }


def test_a_histogram_puts_a_value_into_the_first_bucket_that_is_not_below_it(counted: Numbers):
    for size in (1, 2, 3, 5, 1000, 1001):
        counted.observe(CLAIM_SIZE, size)
    (values,) = as_dict(counted.series()).values()
    assert dict(zip([*CLAIM_SIZE.buckets, "over", "sum"], values, strict=True)) == {
        1: 1, 2: 1, 5: 2, 10: 0, 20: 0, 50: 0, 100: 0, 200: 0, 500: 0, 1000: 1, "over": 1, "sum": 2012
    }  # fmt: skip


@pytest.mark.parametrize("sizes", [[], [1], [2000], [1, 2, 3, 5, 1000, 1001] * 3, list(range(1, 1500, 7))], ids=len)
def test_many_values_at_once_are_the_same_as_one_after_another(counted: Numbers, sizes: list[float]):
    one_by_one = Numbers()
    one_by_one.place(CLAIM_SIZE)
    for size in sizes:
        one_by_one.observe(CLAIM_SIZE, size)
    counted.observe_many(counted.place(CLAIM_SIZE), CLAIM_SIZE.buckets, sizes[::-1])
    assert as_dict(counted.series()) == as_dict(one_by_one.series())


def test_series_do_not_overlap(counted: Numbers):
    tasks = [f"t{n}" for n in range(50)]
    for nth, task in enumerate(tasks):
        counted.observe(RUN, 10_000, "q", task)
        counted.add(FINISHED, nth, "q", task, "dead")
    found = as_dict(counted.series())
    for nth, task in enumerate(tasks):
        assert found["pgqueue_finished_total", "q", task, "dead"] == [nth]
        assert found["pgqueue_run_seconds", "q", task] == [0] * len(RUN.buckets) + [1, 10_000]


def test_another_process_reads_what_is_in_the_file(tmp_path: Path):
    path = tmp_path / "0"
    numbers.create(path)
    assert numbers.read(path) == []
    counted = Numbers(path)
    counted.add(FINISHED, 7, "q", "tä\n", "completed")
    counted.observe(CLAIM, 0.003)
    assert as_dict(numbers.read(path)) == as_dict(counted.series())


def test_a_killed_process_loses_nothing_and_its_successor_goes_on(tmp_path: Path):
    path = tmp_path / "0"
    numbers.create(path)
    for count in (1000, 10):
        done = subprocess.run([sys.executable, "-c", KILLED, str(path), str(count)], check=False)
        assert done.returncode == -signal.SIGKILL
    found = as_dict(numbers.read(path))
    assert found["pgqueue_finished_total", "q", "t", "completed"] == [1010]
    assert sum(found["pgqueue_claim_seconds",][:-1]) == 1010


def test_half_a_name_that_a_kill_has_left_does_not_shift_the_others(tmp_path: Path):
    path = tmp_path / "0"
    numbers.create(path)
    Numbers(path).add(SWEPT, 3)
    with (tmp_path / "0.names").open("a") as names:
        names.write('["pgqueue_fini')
    assert as_dict(numbers.read(path)) == {("pgqueue_swept_total",): [3]}
    again = Numbers(path)
    again.add(FINISHED, 4, "q", "t", "dead")
    expected = {("pgqueue_swept_total",): [3], ("pgqueue_finished_total", "q", "t", "dead"): [4]}
    assert as_dict(numbers.read(path)) == as_dict(again.series()) == expected


def test_a_full_file_drops_new_series_and_keeps_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "0"
    monkeypatch.setattr(numbers, "_ROOM", numbers._WIDEST + 2)
    numbers.create(path)
    counted = Numbers(path)
    counted.add(SWEPT)
    for nth in range(5):
        counted.observe(RUN, 1, "q", f"t{nth}")
    counted.add(FINISHED, 9, "q", "t", "dead")
    counted.add(FINISHED, 9, "q", "t", "completed")
    expected = {("pgqueue_swept_total",): [1], ("pgqueue_finished_total", "q", "t", "dead"): [9]}
    assert as_dict(counted.series()) == as_dict(numbers.read(path)) == expected


def test_the_disk_of_a_file_is_taken_when_it_is_made(tmp_path: Path):
    """A store into a hole of a sparse file for which there is no room later ends the process: SIGBUS."""
    numbers.create(tmp_path / "0")
    facts = (tmp_path / "0").stat()
    assert facts.st_size == 8 * numbers._ROOM
    assert facts.st_blocks * 512 >= facts.st_size


@pytest.mark.parametrize("written", ["", '["pgqueue_fini'])
def test_a_name_that_can_not_be_written_is_not_counted_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str
):
    path = tmp_path / "0"
    numbers.create(path)
    counted = Numbers(path)
    counted.add(SWEPT, 3)

    def full(names: Path, line: str) -> None:
        with names.open("a") as file:
            file.write(written)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(numbers, "_append", full)
        counted.add(FINISHED, 4, "q", "t", "dead")
    counted.add(FINISHED, 5, "q", "t", "completed")  # there is room again, but the file may end in half a line
    counted.add(SWEPT, 1)
    assert as_dict(numbers.read(path)) == as_dict(counted.series()) == {("pgqueue_swept_total",): [4]}
    again = Numbers(path)
    again.add(FINISHED, 6, "q", "t", "dead")
    assert as_dict(numbers.read(path))["pgqueue_finished_total", "q", "t", "dead"] == [6]


def test_a_name_is_not_written_into_a_file_that_was_taken_away(tmp_path: Path):
    path = tmp_path / "0"
    numbers.create(path)
    counted = Numbers(path)
    counted.add(SWEPT, 3)
    (tmp_path / "0.names").unlink()
    counted.add(FINISHED, 4, "q", "t", "dead")
    assert not (tmp_path / "0.names").exists(), "alone in it, the name would stand for another's numbers"


def test_who_reads_while_a_series_is_added_sees_it_whole_or_not_at_all():
    counted = Numbers()

    class Places(dict[tuple[str, ...], int]):
        def __setitem__(self, key: tuple[str, ...], place: int) -> None:
            super().__setitem__(key, place)
            seen.append(as_dict(counted.series()))  # as a thread that comes just then

    seen: list[dict[tuple[str, ...], list[float]]] = []
    counted._places = Places()
    counted.observe(RUN, 1, "q", "t")
    assert seen == [{("pgqueue_run_seconds", "q", "t"): [0] * RUN.width}]


def test_the_series_of_several_processes_are_added(tmp_path: Path):
    one, other = Numbers(), Numbers()
    one.add(SWEPT, 1)
    other.add(SWEPT, 2)
    other.add(FINISHED, 3, "q", "t", "dead")
    one.observe(CLAIM_SIZE, 1)
    other.observe(CLAIM_SIZE, 1)
    found = as_dict(numbers.total([one.series(), other.series()]))
    assert found["pgqueue_swept_total",] == [3]
    assert found["pgqueue_finished_total", "q", "t", "dead"] == [3]
    assert found["pgqueue_claim_batch_size",][0] == 2
    assert found["pgqueue_claim_batch_size",][-1] == 2


def test_every_metric_has_a_meaning_and_names_are_said_once_a_page():
    for page in (catalogue.PROCESS, catalogue.DATABASE):
        assert len({metric.name for metric in page}) == len(page)
        assert all(metric.help for metric in page)
    assert all(list(metric.buckets) == sorted(metric.buckets) for metric in catalogue.PROCESS)
