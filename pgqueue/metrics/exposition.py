"""The page that Prometheus reads, written by prometheus_client; the extra ``server`` brings it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.utils import floatToGoString

from pgqueue.metrics.catalogue import COUNTED, Metric

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from prometheus_client.metrics_core import Metric as Family

    from pgqueue.metrics.numbers import Series


@dataclass(frozen=True, slots=True)
class Page:
    """What a scrape is answered."""

    body: bytes
    content_type: str


def render(families: Iterable[Family], accept: str = "") -> Page:
    """In the format that the scraper's Accept header asks for: Prometheus' text, or OpenMetrics."""
    encode, content_type = choose_encoder(accept)
    return Page(encode(_Collected(list(families))), content_type)


def counted(metrics: Iterable[Metric], series: Iterable[Series]) -> list[Family]:
    """Counters and histograms; those that have no series yet are named, too."""
    families: dict[str, Any] = {}
    for metric in metrics:
        make = HistogramMetricFamily if metric.kind == "histogram" else CounterMetricFamily
        families[metric.name] = make(metric.name, metric.help, labels=metric.labels)
    for name, labels, values in series:
        metric, family = COUNTED[name], families[name]
        if metric.kind == "histogram":
            bounds = [*map(floatToGoString, metric.buckets), "+Inf"]
            family.add_metric(labels, list(zip(bounds, itertools.accumulate(values[:-1]), strict=True)), values[-1])
        else:
            family.add_metric(labels, values[0])
    return list(families.values())


def gauge(metric: Metric, values: Mapping[tuple[str, ...], float]) -> Family:
    """One gauge, by its labels."""
    family = GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)
    for labels, value in values.items():
        family.add_metric(labels, value)
    return family


class _Collected:
    """Looks like a registry to whoever writes the page."""

    def __init__(self, families: list[Family]) -> None:
        self._families = families

    def collect(self) -> list[Family]:
        return self._families
