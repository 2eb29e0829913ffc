"""From counts that end at a cap, and PostgreSQL's statistics, to the numbers of jobs. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pgqueue.statements import EndedCounts, LiveCount, TableFacts

K = TypeVar("K")
_LEAST: float = 1e-6


def spread(total: float, counted: Mapping[K, int], weights: Mapping[K, float]) -> dict[K, int]:
    """The counts again, but for those that have a weight: these were not counted to their end.

    What is left of the total is theirs, each its share by weight, and at least what was counted.
    """
    left = total - sum(count for key, count in counted.items() if key not in weights)
    whole = sum(weights.values()) or 1.0
    return {
        key: max(count, round(left * weights[key] / whole)) if key in weights else count
        for key, count in counted.items()
    }


def live_jobs(counts: list[LiveCount], facts: TableFacts) -> dict[tuple[str, str], int]:
    """Live jobs by queue and state: available, scheduled, retrying, blocked, running."""
    shares = dict(zip(facts.queues, facts.queue_shares, strict=True))
    kinds = {
        "due": max(1 - facts.blocked_share - facts.future_share, 0.01),
        "later": max(facts.future_share, 0.01),
        "blocked": max(facts.blocked_share, 0.01),
    }
    counted: dict[tuple[str, str], int] = {}
    weights: dict[tuple[str, str], float] = {}
    for one in counts:
        seen = {"due": one.available, "later": one.scheduled + one.retrying, "blocked": one.blocked}
        counted[one.queue, "running"] = one.running
        for kind, count in seen.items():
            counted[one.queue, kind] = count
            if kind in one.more:
                weights[one.queue, kind] = shares.get(one.queue, _LEAST) * kinds[kind]
    numbers = spread(facts.live, counted, weights)
    answer: dict[tuple[str, str], int] = {}
    for one in counts:
        later = numbers[one.queue, "later"]
        seen_later = one.scheduled + one.retrying
        retrying = round(later * one.retrying / seen_later) if seen_later else 0
        answer |= {
            (one.queue, "available"): numbers[one.queue, "due"],
            (one.queue, "scheduled"): later - retrying,
            (one.queue, "retrying"): retrying,
            (one.queue, "blocked"): numbers[one.queue, "blocked"],
            (one.queue, "running"): one.running,
        }
    return answer


def ended_jobs(counts: EndedCounts) -> dict[tuple[str, str], int]:
    """Jobs in history by queue and outcome."""
    answer: dict[tuple[str, str], int] = {}
    for state, sample in counts.samples.items():
        if state not in counts.cut:
            answer |= {(queue, state): count for queue, count in sample.items()}
            continue
        shares = counts.shares.get(state, {})
        total = max(counts.totals.get(state, 0.0), float(sum(sample.values())))
        known = {queue: shares.get(queue, 0.0) for queue in {*sample, *shares}}
        missing = max(total - sum(known.values()), 0.0)  # of days that were not looked at by ANALYZE, or of rare queues
        seen = sum(sample.values()) or 1
        weights = {queue: share + missing * sample.get(queue, 0) / seen for queue, share in known.items()}
        numbers = spread(total, {queue: sample.get(queue, 0) for queue in known}, weights)
        answer |= {(queue, state): count for queue, count in numbers.items()}
    return answer
