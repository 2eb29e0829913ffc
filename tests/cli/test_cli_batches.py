"""`pgq batch` and `pgq job tree`: workflows on the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pgqueue import JobSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    from cli.conftest import Answer

    from pgqueue import Client


def make(queue: Client, count: int = 2, task: str = "echo", name: str | None = "import") -> tuple[int, list[int]]:
    batch_id = queue.create_batch(name)
    specs = [JobSpec.make(task, {"n": n}, max_attempts=1) for n in range(count)]
    return batch_id, [job.id for job in queue.submit_many(specs, batch_id=batch_id)]


def test_a_batch_is_shown_and_listed(pgq: Callable[..., Answer], queue: Client, work_off: Callable[[], None]):
    done, _ = make(queue)
    work_off()
    waiting, _ = make(queue, 3, name=None)
    answer = pgq("batch", "show", done, "--json").json
    assert {
        "id": done,
        "name": "import",
        "total": 2,
        "completed": 2,
        "pending": 0,
        "progress": 1.0,
    }.items() <= answer.items()
    shown = pgq("batch", "show", waiting)
    assert shown.code == 0
    assert "pending          3" in shown.out
    assert "progress         0%" in shown.out
    assert [batch["id"] for batch in pgq("batch", "list", "--json").json] == [waiting, done]
    assert [batch["id"] for batch in pgq("batch", "list", "--unfinished", "--json").json] == [waiting]
    assert [batch["id"] for batch in pgq("batch", "list", "--before", waiting, "-n", 5, "--json").json] == [done]
    listed = pgq("batch", "list")
    assert "import" in listed.out
    assert "100%" in listed.out


def test_no_batch_is_said(pgq: Callable[..., Answer], queue: Client):
    assert pgq("batch", "list").out.strip() == "no such batches"
    for verb in ("show", "cancel", "wait"):
        answer = pgq("batch", verb, 77)
        assert answer.code == 1
        assert "77" in answer.error
    job = queue.enqueue(JobSpec.make("echo"))
    assert pgq("batch", "show", job).code == 1


def test_a_batch_is_cancelled(pgq: Callable[..., Answer], queue: Client):
    batch_id, ids = make(queue)
    assert pgq("batch", "cancel", batch_id).out.strip() == "2 cancelled"
    assert {queue.get(job).state for job in ids} == {"cancelled"}
    assert pgq("batch", "cancel", batch_id, "--json").json == {"batch_id": batch_id, "cancelled": 0, "pending": 0}


def test_a_wait_for_a_batch_says_how_it_ended(pgq: Callable[..., Answer], queue: Client, work_off: Callable[[], None]):
    good, _ = make(queue)
    bad, _ = make(queue, task="fail")
    assert pgq("batch", "wait", good, "--timeout", "10ms").code == 1
    work_off()
    answer = pgq("batch", "wait", good, "--json")
    assert (answer.code, answer.json["completed"]) == (0, 2)
    answer = pgq("batch", "wait", bad, "--json")
    assert (answer.code, answer.json["dead"]) == (1, 2)


def test_a_tree_shows_who_waits_for_whom(pgq: Callable[..., Answer], queue: Client, work_off: Callable[[], None]):
    batch_id, (a, b) = make(queue)
    then = queue.enqueue(JobSpec.make("echo", depends_on=[batch_id]))
    both = queue.enqueue(JobSpec.make("sleep", depends_on=[then, a]))
    drawn = pgq("job", "tree", then).out.splitlines()
    assert [line.split(" for ")[0] for line in drawn] == [
        f"batch {batch_id} import: 0 of 2 ended",
        f"├─ {a} echo available",
        f"├─ {b} echo available",
        f"└─ {then} echo blocked",
        f"   └─ {both} sleep blocked",
    ]
    assert drawn[3].endswith("(waits for 1) ← this one")
    assert drawn[4].endswith(f"(waits for 2), also after {a}")
    answer = pgq("job", "tree", a, "--json").json
    assert ([job["id"] for job in answer["jobs"]], [batch["id"] for batch in answer["batches"]]) == (
        [a, b, then, both],
        [batch_id],
    )
    assert pgq("job", "tree", batch_id).out.splitlines()[0].endswith("ended ← this one")
    work_off()
    drawn = pgq("job", "tree", both).out.splitlines()
    assert drawn[0] == f"batch {batch_id} import: 2 of 2 ended"
    assert all("completed" in line for line in drawn[1:])
    assert pgq("job", "tree", 10**9).code == 1


def test_a_large_batch_is_cut_and_a_long_chain_is_not_drawn_off_the_screen(pgq: Callable[..., Answer], queue: Client):
    batch_id, ids = make(queue, 200)
    queue.cancel(ids[150])
    assert len(pgq("job", "tree", ids[199]).out.splitlines()) == 2, "nobody waits for the batch: its others are no part"
    queue.enqueue(JobSpec.make("echo", depends_on=[batch_id]))
    drawn = pgq("job", "tree", ids[199]).out
    assert "… 180 more" in drawn
    assert f"{ids[150]} echo cancelled" in drawn
    assert f"{ids[199]} echo" in drawn
    before: tuple[int, ...] = ()
    for _ in range(100):
        before = (queue.enqueue(JobSpec.make("echo", depends_on=before)),)
    drawn = pgq("job", "tree", before[0]).out
    assert max(map(len, drawn.splitlines())) < 250
    assert len(drawn.splitlines()) == 100


def test_a_blocked_job_says_what_it_waits_for(pgq: Callable[..., Answer], queue: Client):
    batch_id, (a, _) = make(queue)
    job = queue.enqueue(JobSpec.make("echo", depends_on=[batch_id, a]))
    shown = pgq("job", "show", job).out
    assert (
        f"waits            for batch {batch_id} (0 of 2 ended), job {a} (available); see: pgq job tree {job}" in shown
    )
    assert f"depends_on       {batch_id}, {a}" in shown
    assert "pending          2" in shown
    assert f"batch_id         {batch_id}" in pgq("job", "show", a).out
    assert "pending" not in pgq("job", "show", a).out
    assert [job_["id"] for job_ in pgq("job", "list", "--state", "blocked", "--json").json] == [job]
    assert pgq("job", "retry", job).out.strip() == f"{job} available"


def test_a_job_is_blocked_for_a_time_whenever_it_would_be_due(pgq: Callable[..., Answer], queue: Client):
    waits_for = queue.enqueue(JobSpec.make("echo"))
    job = queue.enqueue(JobSpec.make("echo", depends_on=[waits_for], delay="1h"))
    for words in (("list", "--state", "blocked"), ("tree", job)):
        shown = pgq("job", *words).out
        assert "blocked" in shown
        assert " for " in shown
        assert " in 59m" not in shown
        assert " in 1h" not in shown


@pytest.mark.parametrize("hostile", ["\x1b[2J", "a\nb"])
def test_a_name_does_not_steer_the_terminal(pgq: Callable[..., Answer], queue: Client, hostile: str):
    batch_id, _ = make(queue, 1, task=hostile, name=hostile)
    queue.enqueue(JobSpec.make("t", depends_on=[batch_id]))
    for words in (("batch", "list"), ("batch", "show", batch_id), ("job", "tree", batch_id)):
        out = pgq(*words).out
        assert "\x1b" not in out
        assert "a\nb" not in out
