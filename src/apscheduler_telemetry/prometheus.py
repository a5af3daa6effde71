"""
Shows the books to Prometheus: a collector that renders the ledgers of a registry on a scrape.

No ``_created`` series: nothing here reads them, and they would add a third.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar
from prometheus_client.utils import floatToGoString

from apscheduler_telemetry._ledger import Histogram
from apscheduler_telemetry._series import FAMILIES, Family, Kind, Reader, Source, read
from apscheduler_telemetry.errors import ArgumentValueError

_TYPES: dict[Kind, Any] = {
    Kind.COUNTER: CounterMetricFamily,
    Kind.GAUGE: GaugeMetricFamily,
    Kind.LOAD: GaugeMetricFamily,
    Kind.HISTOGRAM: HistogramMetricFamily,
}


class LedgerCollector(Reader, Collector):
    """
    The collector of one registry, for all schedulers that are instrumented on it.

    One for all, as an exposition must not name a metric family twice.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__("registry")
        self._registry = weakref.ref(registry)  # weakly, as whoever forgets it is free to do so

    def describe(self) -> Iterable[Metric]:
        """Name the families without collecting, for the registry's check of duplicates."""
        return list(_empty().values())

    def collect(self) -> Iterator[Metric]:
        """Render all books. What fails is counted and left out; a scrape never raises."""
        metrics = _empty()
        for source in self.sources():
            for family, labels, value in read(source, "collector"):
                metric = metrics[family]
                if isinstance(value, Histogram):
                    metric.add_metric(labels, _buckets(value), value.sum)
                else:
                    metric.add_metric(labels, value)
        yield from metrics.values()

    def remove(self, source: Source) -> None:
        """Show a scheduler no more; the last one takes the collector out of the registry."""
        with _lock:
            super().remove(source)
            registry = self._registry()
            empty = not self._sources
            if registry is not None and empty and _collectors.get(registry) is self:
                del _collectors[registry]
                registry.unregister(self)


def collector_of(registry: CollectorRegistry) -> LedgerCollector:
    """
    Return the collector of `registry`, registered now if it was not.

    Raises:
        ArgumentValueError: somebody else's metrics on that registry have our names.
    """
    with _lock:
        collector = _collectors.get(registry)
        if collector is None:
            collector = LedgerCollector(registry)
            try:
                registry.register(collector)
            except ValueError as error:
                msg = (
                    "the registry has metrics of the same names as ours, which are not ours: pass "
                    f"instrument(..., registry=...) with another registry. {error}"
                )
                raise ArgumentValueError(msg) from error
            _collectors[registry] = collector
        return collector


def _empty() -> dict[Family, Any]:
    return {
        family: _TYPES[family.kind](family.prometheus_name, family.about, labels=family.labels)
        for family in FAMILIES
    }


def _buckets(histogram: Histogram) -> list[tuple[str, float] | tuple[str, float, Exemplar]]:
    buckets: list[tuple[str, float] | tuple[str, float, Exemplar]] = []
    total = 0
    for index, count in enumerate(histogram.counts):
        total += count
        bound = histogram.bounds[index] if index < len(histogram.bounds) else float("inf")
        le: str = floatToGoString(bound)  # type: ignore[no-untyped-call]
        seen = histogram.exemplars.get(index)
        if seen is None:
            buckets.append((le, total))
        else:
            exemplar = Exemplar(dict(seen.labels), seen.value, seen.timestamp)
            buckets.append((le, total, exemplar))
    return buckets


_lock = threading.Lock()
_collectors: weakref.WeakKeyDictionary[CollectorRegistry, LedgerCollector] = (
    weakref.WeakKeyDictionary()
)
