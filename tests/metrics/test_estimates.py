"""From counts that end at a cap, and statistics, to numbers of jobs."""

from __future__ import annotations

from pgqueue.metrics.estimates import ended_jobs, live_jobs, spread
from pgqueue.statements import EndedCounts, LiveCount, TableFacts


def facts(live: float, queues: dict[str, float] | None = None, *, blocked: float = 0, future: float = 0) -> TableFacts:
    queues = queues or {}
    return TableFacts(live, 0, list(queues), list(queues.values()), blocked, future, 0, 0, 0, 0)


def count(queue: str, *more: str, **counts: int) -> LiveCount:
    values = {"available": 0, "scheduled": 0, "retrying": 0, "blocked": 0, "running": 0} | counts
    return LiveCount(queue, **values, oldest_ready_seconds=0.0, more=frozenset(more))


def test_what_was_counted_to_its_end_stays_and_the_rest_goes_to_the_others_by_weight():
    counted = {"a": 5, "b": 100, "c": 100}
    assert spread(10_005, counted, {"b": 3.0, "c": 1.0}) == {"a": 5, "b": 7_500, "c": 2_500}


def test_an_estimate_is_never_below_what_was_counted():
    assert spread(0, {"a": 5, "b": 100}, {"b": 1.0}) == {"a": 5, "b": 100}


def test_without_weights_there_is_nothing_to_estimate():
    assert spread(1_000_000, {"a": 5}, {}) == {"a": 5}


def test_one_large_queue_gets_all_that_was_not_counted():
    counts = [count("big", "due", available=100, scheduled=3, retrying=4, running=7), count("small", available=2)]
    found = live_jobs(counts, facts(1_000_016))
    assert found["big", "available"] == 1_000_000
    assert (found["big", "scheduled"], found["big", "retrying"], found["big", "running"]) == (3, 4, 7)
    assert found["small", "available"] == 2
    assert sum(found.values()) == 1_000_016


def test_large_queues_share_by_what_analyze_has_seen():
    counts = [count("a", "due", available=100), count("b", "due", available=100)]
    found = live_jobs(counts, facts(1_000, {"a": 0.9, "b": 0.1}))
    assert (found["a", "available"], found["b", "available"]) == (900, 100)


def test_large_states_of_a_queue_share_by_what_analyze_has_seen_of_run_at_and_state():
    counts = [count("a", "due", "later", "blocked", available=10, scheduled=6, retrying=4, blocked=10)]
    found = live_jobs(counts, facts(1_000, {"a": 1.0}, blocked=0.2, future=0.5))
    assert (found["a", "available"], found["a", "blocked"]) == (300, 200)
    assert (found["a", "scheduled"], found["a", "retrying"]) == (300, 200), (
        "in proportion to the rows that were counted"
    )


def test_history_that_was_counted_is_exact():
    counts = EndedCounts({"dead": 999.0}, {"dead": {"x": 500.0}}, {"dead": {"a": 3, "b": 1}}, frozenset())
    assert ended_jobs(counts) == {("a", "dead"): 3, ("b", "dead"): 1}


def test_history_that_is_large_is_its_total_by_shares():
    counts = EndedCounts(
        {"completed": 1_000.0},
        {"completed": {"a": 700.0, "b": 300.0}},
        {"completed": {"a": 10}},
        frozenset({"completed"}),
    )
    assert ended_jobs(counts) == {("a", "completed"): 700, ("b", "completed"): 300}


def test_history_that_analyze_has_not_seen_goes_by_the_rows_that_were_looked_at():
    counts = EndedCounts({"completed": 1_000.0}, {}, {"completed": {"a": 6, "b": 4}}, frozenset({"completed"}))
    assert ended_jobs(counts) == {("a", "completed"): 600, ("b", "completed"): 400}
