"""
Shows the books to Prometheus: a collector that renders the ledgers of a registry on a scrape.

No ``_created`` series: nothing here reads them, and they would add a third.
"""

from __future__ import annotations

import re
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar

from apscheduler_telemetry.core.observers import renew_lock_after_fork
from apscheduler_telemetry.core.recorder import Histogram
from apscheduler_telemetry.errors import ArgumentValueError
from apscheduler_telemetry.export.metric_families import (
    FAMILIES,
    Family,
    Kind,
    Reader,
    Sample,
    Source,
    of_scheduler,
    of_telemetry,
    read,
)
from apscheduler_telemetry.export.name_filter import LineFilter, create_line_filters
from apscheduler_telemetry.export.text_format import Lines, bounds, line

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
        self._exposition = _Exposition()
        self._stands_aside = threading.local()
        self._registry = weakref.ref(registry)  # weakly, as whoever forgets it is free to do so

    def describe(self) -> Iterable[Metric]:
        """Name the families without collecting, for the registry's check of duplicates."""
        return list(_empty().values())

    def collect(self) -> Iterator[Metric]:
        """Render all books. What fails is counted and left out; a scrape never raises."""
        if getattr(self._stands_aside, "now", False):
            place = Metric(_PLACE, "", "gauge")
            place.add_sample(_PLACE, {}, 1)  # a restricted registry drops metrics without samples
            yield place
            return
        metrics = _empty()
        for source in self.sources():
            for family, labels, value in read(source, "collector"):
                metric = metrics[family]
                if isinstance(value, Histogram):
                    metric.add_metric(labels, _buckets(value), value.sum)
                else:
                    metric.add_metric(labels, value)
        yield from metrics.values()

    def expose(self, encode: Callable[[Any], bytes], names: Sequence[str] = ()) -> Sequence[bytes]:
        """
        Return what `encode` makes of the registry, with our part from lines that are kept.

        Args:
            encode: of `prometheus_client.exposition.choose_encoder`.
            names: of the samples to return, as for `CollectorRegistry.restricted_registry`; all if
                it is empty.

        Returns:
            Pieces of some hundred kilobytes. Nothing else can run while Python copies memory, and
            all of it at one go would be 50 MB for 10,000 jobs.
        """
        registry = self._registry()
        if registry is None:
            return [encode(_Families([]))]
        probe = GaugeMetricFamily(_PLACE, "", labels=["job_id"])
        probe.add_metric(["a"], 1)
        *heads, probed = _HEAD.split(encode(_Families([*_empty().values(), probe])).decode())[1:]
        if f'\n{_PLACE}{{job_id="a"}} 1.0\n' not in probed:
            # The escaping changes our names.
            return [encode(registry.restricted_registry(names) if names else registry)]
        with_exemplars = probed.endswith("# EOF\n")
        # The encoder goes through the registry, and where our part is to be it finds a place.
        self._stands_aside.now = True
        try:
            whole = encode(registry.restricted_registry([*names, _PLACE]) if names else registry)
        finally:
            self._stands_aside.now = False
        before, place, after = whole.partition(_PLACE_LINES)
        if not place:
            return [whole]  # the last scheduler was uninstrumented meanwhile, or no name is ours
        filters = create_line_filters(set(names)) if names else dict.fromkeys(FAMILIES)
        ours = self._exposition.of(self.sources(), filters, with_exemplars=with_exemplars)
        parts = [before]
        for family, head in zip(FAMILIES, heads):  # noqa: B905  # as many
            blocks = ours.get(family, ())
            if any(blocks) or not names:
                parts.append(f"# HELP {head}".encode())
                parts.extend(blocks)
        parts.append(after)
        return list(_pieces(parts))

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
    return [
        (le, total)
        if seen is None
        else (le, total, Exemplar(dict(seen.labels), seen.value, seen.timestamp))
        for le, (total, seen) in zip(bounds(histogram), histogram.cumulative(), strict=True)
    ]


def _pieces(parts: Iterable[bytes]) -> Iterator[bytes]:
    """Join what is small; few jobs are one piece."""
    joined: list[bytes] = []
    size = 0
    for part in parts:
        joined.append(part)
        size += len(part)
        if size >= _PIECE:
            yield b"".join(joined)
            joined.clear()
            size = 0
    yield b"".join(joined)


class _Exposition:
    """The lines of all families; those of jobs are kept, by format and scheduler."""

    def __init__(self) -> None:
        self._lines: dict[bool, WeakKeyDictionary[Source, Lines]] = {}
        self._lock = threading.RLock()
        renew_lock_after_fork(self)

    def of(
        self,
        sources: Sequence[Source],
        filters: Mapping[Family, LineFilter | None],
        *,
        with_exemplars: bool,
    ) -> Mapping[Family, list[bytes]]:
        """Return the lines of each family in `filters`, in blocks."""
        written: dict[Family, list[bytes]] = {family: [] for family in filters}

        def write(sample: Sample) -> None:
            family = sample[0]
            if family in filters:
                filter_lines = filters[family] or bytes
                text = line(sample, with_exemplars=with_exemplars)
                written[family].append(filter_lines(text.encode()))

        with self._lock:  # one scrape at a time, as another would write the same lines
            kept = self._lines.setdefault(with_exemplars, WeakKeyDictionary())
            for source in sources:
                for sample in of_scheduler(source, "collector"):
                    write(sample)
                if source not in kept:
                    kept[source] = Lines("collector", with_exemplars=with_exemplars)
                for family, blocks in kept[source].of_jobs(source, filters).items():
                    written[family].extend(blocks)
        for source in sources:
            for sample in of_telemetry(source):
                write(sample)
        return written


class _Families(Collector):
    """Some families, for an encoder to write."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        """Return them."""
        return self._families


_PIECE = 1 << 18
"""Bytes from which on a piece is not made any longer."""
_PLACE = "apscheduler_telemetry_place"
_PLACE_LINES = f"# HELP {_PLACE} \n# TYPE {_PLACE} gauge\n{_PLACE} 1.0\n".encode()
_HEAD = re.compile("^# HELP ", re.MULTILINE)
_lock = threading.Lock()
_collectors: weakref.WeakKeyDictionary[CollectorRegistry, LedgerCollector] = (
    weakref.WeakKeyDictionary()
)
