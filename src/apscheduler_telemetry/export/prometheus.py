"""
Exports the metrics state to Prometheus: one collector for all schedulers of a registry.

There are no ``_created`` series: nothing here reads them, and they would add a third.
"""

from __future__ import annotations

import re
import threading
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
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

from apscheduler_telemetry.core.locks import renew_lock_in_forked_children, synchronized
from apscheduler_telemetry.core.stats import Histogram
from apscheduler_telemetry.errors import ArgumentValueError
from apscheduler_telemetry.export.metric_families import (
    FAMILIES,
    JOB_FAMILIES,
    Exporter,
    InstrumentedScheduler,
    MetricFamily,
    MetricKind,
    Sample,
    all_samples,
    scheduler_samples,
    telemetry_samples,
)
from apscheduler_telemetry.export.text_format import (
    HistogramLineFilter,
    JobTextCache,
    format_bucket_bounds,
    histogram_line_filter,
    render_sample,
)

ERROR_COMPONENT = "collector"

Encoder = Callable[[Any], bytes]
"""Of `prometheus_client.exposition.choose_encoder`: takes a registry, and calls its `collect`."""

_METRIC_CLASSES_BY_KIND: dict[MetricKind, Any] = {
    MetricKind.COUNTER: CounterMetricFamily,
    MetricKind.GAUGE: GaugeMetricFamily,
    MetricKind.UP_DOWN_COUNTER: GaugeMetricFamily,
    MetricKind.HISTOGRAM: HistogramMetricFamily,
}
_SAMPLE_SUFFIXES_BY_KIND = {
    MetricKind.COUNTER: ("_total",),
    MetricKind.GAUGE: ("",),
    MetricKind.UP_DOWN_COUNTER: ("",),
    MetricKind.HISTOGRAM: ("_bucket", "_count", "_sum"),
}
"""What the names of samples add to the name of their family."""
_RESERVED_SUFFIXES_BY_KIND = {
    MetricKind.COUNTER: ("_created",),
    MetricKind.GAUGE: (),
    MetricKind.UP_DOWN_COUNTER: (),
    MetricKind.HISTOGRAM: ("_created",),
}
"""What the registry reserves besides."""


class PrometheusExporter(Exporter, Collector):
    """
    The collector of one registry, for all schedulers that are instrumented on it.

    One for all, as an exposition must not name a metric family twice.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__("registry")
        self._text_renderer = _TextRenderer()
        self._get_registry = weakref.ref(registry)  # weakly, so that it can be freed

    def describe(self) -> Iterable[Metric]:
        """Return the families without samples, by which the registry finds duplicates."""
        return list(_create_metric_families().values())

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics. What fails is left out and reported; a scrape never raises."""
        collection = _LazyCollection(self)
        yield from (_LazyMetric(family, collection) for family in FAMILIES)
        collection.read_metrics()

    def expose(self, encode: Encoder, names: Collection[str] = ()) -> Sequence[bytes]:
        """
        Return what `encode` makes of the registry, with our part from cached text.

        Args:
            encode: writes a registry in one format.
            names: of the samples to expose, as `CollectorRegistry.restricted_registry` takes them;
                none for all.

        Returns:
            Chunks of some hundred kilobytes, as no other thread can run while Python copies memory,
            and 10,000 jobs have 41 MB.
        """
        registry = self._get_registry()
        if registry is None:
            return [encode(FixedMetricsCollector([]))]
        probed = _probe_encoder(encode)
        if probed is None:
            return [encode(registry.restricted_registry(names) if names else registry)]
        heads, with_exemplars = probed
        others = (
            _collect_named_with_own_metrics_replaced(registry, names)
            if names
            else self._collect_with_own_metrics_replaced(registry)
        )
        whole = encode(FixedMetricsCollector(others))
        before, placeholder, after = whole.partition(_PLACEHOLDER_TEXT)
        if not placeholder:
            return [whole]  # the last scheduler was uninstrumented meanwhile
        parts = [before]
        wanted = _select_families(names) if names else dict.fromkeys(FAMILIES)
        texts = self._text_renderer.render(self.schedulers(), wanted, with_exemplars=with_exemplars)
        for family, blocks in texts.items():
            if not names or any(blocks):  # a restricted registry has no family without samples
                parts.append(heads[family])
                parts.extend(blocks)
        parts.append(after)
        return list(_join_small_chunks(parts))

    def _collect_with_own_metrics_replaced(self, registry: CollectorRegistry) -> Iterator[Metric]:
        """Yield the metrics of a registry, with one placeholder for those of this package."""
        has_placeholder = False
        for metric in registry.collect():
            if not (isinstance(metric, _LazyMetric) and metric.lazy_collection.exporter is self):
                yield metric
            elif not has_placeholder:
                metric.lazy_collection.skip_reading()
                has_placeholder = True
                yield _create_placeholder_metric()

    def remove_scheduler(self, scheduler: InstrumentedScheduler) -> None:
        """Stop exporting a scheduler; the last one takes the collector out of the registry."""
        with _exporters_lock:
            super().remove_scheduler(scheduler)
            registry = self._get_registry()
            is_empty = not self._schedulers
            if registry is not None and is_empty and _exporters_by_registry.get(registry) is self:
                del _exporters_by_registry[registry]
                with suppress(KeyError):  # the application has taken all collectors out
                    registry.unregister(self)


def get_or_create_exporter(registry: CollectorRegistry) -> PrometheusExporter:
    """
    Return the exporter of `registry`, which is created if there was none, and is registered.

    One that the application has unregistered, as fixtures that clear the registry do, is registered
    again, with all of its schedulers.

    Raises:
        ArgumentValueError: the registry has other metrics of the same names.
    """
    with _exporters_lock:
        known = _exporters_by_registry.get(registry)
        exporter = PrometheusExporter(registry) if known is None else known
        try:
            registry.register(exporter)
        except ValueError as error:
            if known is None:
                msg = (
                    "the registry already has metrics with the names that this package uses: pass "
                    f"instrument(..., registry=...) with another registry. {error}"
                )
                raise ArgumentValueError(msg) from error
            # It is still registered: nothing public tells whether it is.
        _exporters_by_registry[registry] = exporter
        return exporter


def find_exporter(registry: CollectorRegistry) -> PrometheusExporter | None:
    """Return the exporter of `registry`; None if no scheduler is instrumented on it."""
    with _exporters_lock:
        return _exporters_by_registry.get(registry)


class _LazyCollection:
    """
    One collection of the samples of all schedulers of an exporter.

    They are read when they are first needed, and at the end of the collection at the latest. So
    `PrometheusExporter.expose` can replace the metrics of a collection that reads nothing.
    """

    def __init__(self, exporter: PrometheusExporter) -> None:
        self.exporter = exporter
        self._metrics: dict[MetricFamily, Any] | None = None

    def skip_reading(self) -> None:
        """Read nothing, as the metrics are not needed."""
        self._metrics = {}

    def read_metrics(self) -> Mapping[MetricFamily, Metric]:
        """Return the metrics, which are read now unless they were before."""
        if self._metrics is None:
            metrics = _create_metric_families()
            for scheduler in self.exporter.schedulers():
                for family, labels, value in all_samples(
                    scheduler, ERROR_COMPONENT, is_scrape=True
                ):
                    if isinstance(value, Histogram):
                        metrics[family].add_metric(
                            labels, _cumulative_buckets_with_exemplars(value), value.sum
                        )
                    else:
                        metrics[family].add_metric(labels, value)
            self._metrics = metrics
        return self._metrics


class _LazyMetric(Metric):
    """A family of a collection."""

    def __init__(self, family: MetricFamily, collection: _LazyCollection) -> None:
        self.lazy_collection = collection
        self._family = family
        kind = "gauge" if family.kind is MetricKind.UP_DOWN_COUNTER else family.kind.name.lower()
        super().__init__(family.prometheus_family_name, family.description, kind)

    @property
    def samples(self) -> list[Any]:
        """Its samples."""
        metric = self.lazy_collection.read_metrics().get(self._family)
        return [] if metric is None else metric.samples

    @samples.setter
    def samples(self, samples: list[Any]) -> None:
        """Ignore the list that the constructor of the base class sets."""


class _TextRenderer:
    """Renders all families as text; that of jobs is cached for each format and scheduler."""

    def __init__(self) -> None:
        self._caches_by_exemplars_shown: dict[
            bool, WeakKeyDictionary[InstrumentedScheduler, JobTextCache]
        ] = {
            False: WeakKeyDictionary(),
            True: WeakKeyDictionary(),
        }
        self._lock = threading.RLock()
        renew_lock_in_forked_children(self)

    @synchronized  # as another scrape would render the same jobs meanwhile
    def render(
        self,
        schedulers: Sequence[InstrumentedScheduler],
        families: Mapping[MetricFamily, HistogramLineFilter | None],
        *,
        with_exemplars: bool,
    ) -> Mapping[MetricFamily, Sequence[bytes]]:
        """Return the text of `families` in blocks; see `JobTextCache.render_jobs`."""
        texts: dict[MetricFamily, list[bytes]] = {family: [] for family in families}
        job_families = {
            family: filter_lines
            for family, filter_lines in families.items()
            if family in JOB_FAMILIES
        }

        def add_samples(samples: Iterable[Sample]) -> None:
            for sample in samples:
                if sample[0] in texts:
                    text = render_sample(sample, with_exemplars=with_exemplars)
                    texts[sample[0]].append(text.encode())

        for scheduler in schedulers:
            if len(job_families) < len(texts):
                add_samples(scheduler_samples(scheduler, ERROR_COMPONENT))
            if job_families:
                cache = self._get_or_create_cache(scheduler, with_exemplars=with_exemplars)
                for family, blocks in cache.render_jobs(scheduler, job_families).items():
                    texts[family].extend(blocks)
        for scheduler in schedulers:
            add_samples(telemetry_samples(scheduler))
        return texts

    def _get_or_create_cache(
        self, scheduler: InstrumentedScheduler, *, with_exemplars: bool
    ) -> JobTextCache:
        caches = self._caches_by_exemplars_shown[with_exemplars]
        cache = caches.get(scheduler)
        if cache is None:
            cache = caches[scheduler] = JobTextCache(ERROR_COMPONENT, with_exemplars=with_exemplars)
        return cache


class FixedMetricsCollector(Collector):
    """Metrics that are given, for an encoder or a registry."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def describe(self) -> Iterable[Metric]:
        """Return the metrics, by whose names a registry finds them."""
        return self._metrics

    def collect(self) -> Iterable[Metric]:
        """Return the metrics."""
        return self._metrics


def _create_metric_families() -> dict[MetricFamily, Any]:
    return {
        family: _METRIC_CLASSES_BY_KIND[family.kind](
            family.prometheus_family_name, family.description, labels=family.labels
        )
        for family in FAMILIES
    }


def _cumulative_buckets_with_exemplars(
    histogram: Histogram,
) -> list[tuple[str, float] | tuple[str, float, Exemplar]]:
    return [
        (le, total)
        if exemplar is None
        else (le, total, Exemplar(dict(exemplar.labels), exemplar.value, exemplar.timestamp))
        for le, (total, exemplar) in zip(
            format_bucket_bounds(histogram), histogram.cumulative_buckets(), strict=True
        )
    ]


def _probe_encoder(encode: Encoder) -> tuple[Mapping[MetricFamily, bytes], bool] | None:
    """
    Find out what an encoder writes.

    Returns:
        The HELP and TYPE lines of each family, and whether the format has exemplars; None if it
        escapes names in a way that changes ours.
    """
    probe = GaugeMetricFamily(_PLACEHOLDER_METRIC_NAME, "", labels=["job_id"])
    probe.add_metric(["a"], 1)
    text = encode(FixedMetricsCollector([*_create_metric_families().values(), probe])).decode()
    *heads, probed = _HELP_LINE_START.split(text)[1:]
    if f'\n{_PLACEHOLDER_METRIC_NAME}{{job_id="a"}} 1.0\n' not in probed:
        return None
    encoded = [f"# HELP {head}".encode() for head in heads]
    return dict(zip(FAMILIES, encoded, strict=True)), probed.endswith("# EOF\n")


def _collect_named_with_own_metrics_replaced(
    registry: CollectorRegistry, sample_names: Collection[str]
) -> Iterator[Metric]:
    """Yield the samples of a registry with these names that are not ours, and a placeholder."""
    others = [name for name in sample_names if name not in _OWN_SAMPLE_NAMES]
    yield from registry.restricted_registry(others).collect()
    yield _create_placeholder_metric()


def _create_placeholder_metric() -> Metric:
    return Metric(_PLACEHOLDER_METRIC_NAME, "", "gauge")


def _select_families(
    sample_names: Collection[str],
) -> dict[MetricFamily, HistogramLineFilter | None]:
    """Return the families that have samples of these names; None selects all samples."""
    wanted: dict[MetricFamily, HistogramLineFilter | None] = {}
    for family in FAMILIES:
        name, suffixes = family.prometheus_family_name, _SAMPLE_SUFFIXES_BY_KIND[family.kind]
        chosen = [suffix for suffix in suffixes if f"{name}{suffix}" in sample_names]
        if chosen:
            is_whole = len(chosen) == len(suffixes)
            wanted[family] = None if is_whole else histogram_line_filter(name, chosen)
    return wanted


def _join_small_chunks(parts: Iterable[bytes]) -> Iterator[bytes]:
    """Join small parts; the exposition of a few jobs is one chunk."""
    joined: list[bytes] = []
    size = 0
    for part in parts:
        joined.append(part)
        size += len(part)
        if size >= _MIN_CHUNK_BYTES:
            yield b"".join(joined)
            joined.clear()
            size = 0
    yield b"".join(joined)


_MIN_CHUNK_BYTES = 1 << 18
"""Bytes at which a chunk ends."""
_PLACEHOLDER_METRIC_NAME = "apscheduler_telemetry_placeholder"
_PLACEHOLDER_TEXT = (
    f"# HELP {_PLACEHOLDER_METRIC_NAME} \n# TYPE {_PLACEHOLDER_METRIC_NAME} gauge\n".encode()
)
_HELP_LINE_START = re.compile("^# HELP ", re.MULTILINE)
_OWN_SAMPLE_NAMES = frozenset(
    f"{family.prometheus_family_name}{suffix}"
    for family in FAMILIES
    for suffix in {
        "",
        *_SAMPLE_SUFFIXES_BY_KIND[family.kind],
        *_RESERVED_SUFFIXES_BY_KIND[family.kind],
    }
)
"""Names that the registry reserves for us by what `describe` returns."""
_exporters_lock = threading.Lock()
_exporters_by_registry: weakref.WeakKeyDictionary[CollectorRegistry, PrometheusExporter] = (
    weakref.WeakKeyDictionary()
)
