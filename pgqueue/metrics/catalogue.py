"""Every metric: its name, type, labels and meaning. What is shown and what is documented comes from here. No I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["counter", "gauge", "histogram"]

_WAITS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1_800, 3_600, 21_600)
_RUNS: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1_800, 7_200)
_STATEMENTS: Final = (0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_SIZES: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000)


@dataclass(frozen=True, slots=True)
class Metric:
    """One name on the page. ``buckets``: upper bounds of a histogram, without the infinite one."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def width(self) -> int:
        """How many numbers a series of it takes: for a histogram its buckets, the infinite one, and the sum."""
        return len(self.buckets) + 2 if self.kind == "histogram" else 1


FINISHED: Final = Metric(
    "pgqueue_finished_total",
    "counter",
    "Runs whose end was written, by how: completed, dead, cancelled; retry, snooze, release: the job waits again.",
    ("queue", "task", "outcome"),
)
WAIT: Final = Metric(
    "pgqueue_wait_seconds",
    "histogram",
    "From run_at until the handler began; known when the run has ended.",
    ("queue",),
    _WAITS,
)
RUN: Final = Metric("pgqueue_run_seconds", "histogram", "How long handlers ran.", ("queue", "task"), _RUNS)
CLAIM: Final = Metric(
    "pgqueue_claim_seconds", "histogram", "How long claims took, empty ones too.", buckets=_STATEMENTS
)
CLAIM_SIZE: Final = Metric("pgqueue_claim_batch_size", "histogram", "Jobs per claim that found any.", buckets=_SIZES)
FLUSH: Final = Metric(
    "pgqueue_finish_flush_seconds",
    "histogram",
    "How long a batch of outcomes took to be written, retries included.",
    buckets=_STATEMENTS,
)
SWEPT: Final = Metric("pgqueue_swept_total", "counter", "Jobs that this process took from expired leases.")
LEASE_LOST: Final = Metric(
    "pgqueue_lease_lost_total", "counter", "Runs of this process that lost their lease: what they did was refused."
)
ENQUEUED: Final = Metric(
    "pgqueue_enqueued_total",
    "counter",
    "Jobs that this process has enqueued through pgqueue's clients, in transactions that were rolled back, too.",
)
BELL_UP: Final = Metric(
    "pgqueue_bell_up", "gauge", "1: NOTIFY reaches this worker (of several processes: all of them); 0: it polls."
)
OWN_SLOTS: Final = Metric("pgqueue_slots", "gauge", "Slots of this worker, busy and free.", ("state",))

JOBS: Final = Metric(
    "pgqueue_jobs",
    "gauge",
    "Jobs by queue and state. Exact up to some thousands per queue and state, beyond that estimated from the "
    "statistics that PostgreSQL keeps.",
    ("queue", "state"),
)
OLDEST_READY: Final = Metric(
    "pgqueue_oldest_ready_seconds", "gauge", "For how long the oldest due job has been due; 0: none is.", ("queue",)
)
WORKERS: Final = Metric("pgqueue_workers", "gauge", "Workers that were heard of within 30 seconds.")
ALL_SLOTS: Final = Metric(
    "pgqueue_slots",
    "gauge",
    "Slots of all workers that are alive, busy and free, as of their last heartbeat.",
    ("state",),
)
DEAD_TUPLES: Final = Metric(
    "pgqueue_dead_tuples", "gauge", "Dead row versions in the table jobs, as PostgreSQL's statistics know them."
)
OLDEST_XMIN: Final = Metric(
    "pgqueue_oldest_xmin_seconds",
    "gauge",
    "Age of the oldest transaction that keeps vacuum from removing dead rows. Other roles' transactions are seen by "
    "members of pg_monitor only.",
)

PROCESS: Final = (
    ENQUEUED, FINISHED, WAIT, RUN, CLAIM, CLAIM_SIZE, FLUSH, SWEPT, LEASE_LOST, BELL_UP, OWN_SLOTS
)  # fmt: skip
DATABASE: Final = (JOBS, OLDEST_READY, WORKERS, ALL_SLOTS, DEAD_TUPLES, OLDEST_XMIN)
COUNTED: Final = {metric.name: metric for metric in PROCESS if metric.kind != "gauge"}
OTHER: Final = "other"  # the task of a job whose name is registered nowhere
