"""The same metrics through OpenTelemetry's API: active as soon as the program itself has set a meter provider.

Nothing is imported here before the program has imported OpenTelemetry. The names are those of the Prometheus page in
OpenTelemetry's spelling: ``pgqueue.run`` in seconds is ``pgqueue_run_seconds`` there.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

from pgqueue.metrics import catalogue

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pgqueue.metrics.catalogue import Metric
    from pgqueue.metrics.meter import Ended

_NOBODY: Final = {"_ProxyMeterProvider", "NoOpMeterProvider"}  # nothing is set, or nothing is wanted


def active() -> bool:
    """Whether the program has set a meter provider."""
    metrics = sys.modules.get("opentelemetry.metrics")
    if metrics is None or not hasattr(metrics, "get_meter_provider"):
        return False
    return type(metrics.get_meter_provider()).__name__ not in _NOBODY


class Instruments:
    """An observer that records with OpenTelemetry's instruments."""

    def __init__(self) -> None:
        from opentelemetry import metrics  # noqa: PLC0415 - it is imported already

        meter = metrics.get_meter("pgqueue")

        def histogram(metric: Metric, unit: str = "s") -> Any:
            about: dict[str, Any] = {"unit": unit, "description": metric.help}
            try:
                return meter.create_histogram(
                    name_of(metric), **about, explicit_bucket_boundaries_advisory=metric.buckets
                )
            except TypeError:  # before 1.30
                return meter.create_histogram(name_of(metric), **about)

        def counter(metric: Metric, unit: str) -> Any:
            return meter.create_counter(name_of(metric), unit=unit, description=metric.help)

        self._claim = histogram(catalogue.CLAIM)
        self._claim_size = histogram(catalogue.CLAIM_SIZE, "{job}")
        self._flush = histogram(catalogue.FLUSH)
        self._run = histogram(catalogue.RUN)
        self._wait = histogram(catalogue.WAIT)
        self._finished = counter(catalogue.FINISHED, "{run}")
        self._swept = counter(catalogue.SWEPT, "{job}")
        self._lost = counter(catalogue.LEASE_LOST, "{run}")
        self._enqueued = counter(catalogue.ENQUEUED, "{job}")

    def claimed(self, seconds: float, found: int) -> None:
        """See :class:`pgqueue.metrics.meter.Observer`."""
        self._claim.record(seconds)
        if found:
            self._claim_size.record(found)

    def flushed(self, seconds: float, ended: Sequence[Ended]) -> None:
        """See :class:`pgqueue.metrics.meter.Observer`."""
        for group in ended:
            about = {"queue": group.queue, "task": group.task}
            for outcome, count in group.counts().items():
                self._finished.add(count, {**about, "outcome": outcome})
            for ran, waited in zip(group.ran, group.waited, strict=True):
                self._run.record(ran, about)
                self._wait.record(max(waited, 0.0), {"queue": group.queue})
        self._flush.record(seconds)

    def swept(self, jobs: int) -> None:
        """See :class:`pgqueue.metrics.meter.Observer`."""
        self._swept.add(jobs)

    def lost(self, runs: int) -> None:
        """See :class:`pgqueue.metrics.meter.Observer`."""
        self._lost.add(runs)

    def enqueued(self, jobs: int) -> None:
        """See :class:`pgqueue.metrics.meter.Observer`."""
        self._enqueued.add(jobs)


def name_of(metric: Metric) -> str:
    """In OpenTelemetry's spelling: without the unit and the suffix, which its exporters add again."""
    return metric.name.replace("pgqueue_", "pgqueue.").removesuffix("_total").removesuffix("_seconds")
