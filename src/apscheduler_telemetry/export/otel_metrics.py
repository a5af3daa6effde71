"""
Exports the metrics state to OpenTelemetry: the instruments of a meter provider, for all schedulers.

The metrics are those of `prometheus`. Prometheus translates their OTLP names into the same names:
``apscheduler.job.run.duration`` in ``s`` becomes ``apscheduler_job_run_duration_seconds``. The
metrics state is observed when the SDK collects. The two histograms are recorded run by run, because
OpenTelemetry has no observable histogram.

The application owns the OpenTelemetry SDK: this module does not configure, flush or shut it down.
"""

from __future__ import annotations

import inspect
import logging
import math
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from opentelemetry import metrics, trace
from opentelemetry.context import Context
from opentelemetry.metrics import CallbackOptions, Observation

from apscheduler_telemetry._version import __version__
from apscheduler_telemetry.core.locks import renew_lock_in_forked_children, synchronized
from apscheduler_telemetry.core.model import ERROR, SUCCESS, SpanIds
from apscheduler_telemetry.core.observers import ObservedRuns
from apscheduler_telemetry.core.records import Run
from apscheduler_telemetry.core.stats import Histogram
from apscheduler_telemetry.export.metric_families import (
    DELAYS,
    DURATIONS,
    FAMILIES,
    Exporter,
    MetricFamily,
    MetricKind,
    all_samples,
)

logger = logging.getLogger(__name__)

INSTRUMENTATION_SCOPE = "apscheduler_telemetry"
"""It has no schema URL, because no attribute is defined by the semantic conventions."""

ERROR_COMPONENT = "meter"

MAX_KEPT_TOTALS = 75_000
"""
Series of counters whose totals are kept.

A thousand jobs have 6,000 for their outcomes, up to 20,000 for exceptions and up to 11,000 for
quantities, and as many may be removed and come back.
"""

_OBSERVABLE_FAMILIES = tuple(
    family for family in FAMILIES if family.kind is not MetricKind.HISTOGRAM
)


class OpenTelemetryExporter(Exporter):
    """
    The instruments of one meter provider, for all schedulers that are instrumented on it.

    All schedulers share them, because a meter has only one instrument of each name. A meter cannot
    remove an instrument, so they stay; without schedulers they observe nothing.

    Args:
        provider: the meter provider.
        duration_buckets: upper bounds in seconds, ascending, without +Inf.
        delay_buckets: likewise.

    Attributes:
        is_global: whether it was created for the global provider.
        durations: the histogram of the durations of runs.
        delays: the histogram of their start delays.
    """

    def __init__(
        self,
        provider: metrics.MeterProvider,
        duration_buckets: Sequence[float],
        delay_buckets: Sequence[float],
    ) -> None:
        super().__init__("meter provider")
        self.is_global = provider is metrics.get_meter_provider()
        self._unreported_observations: dict[MetricFamily, list[Observation]] = {}
        self._monotonic_totals = MonotonicTotals()
        meter = provider.get_meter(INSTRUMENTATION_SCOPE, __version__)
        create: dict[MetricKind, Callable[..., object]] = {
            MetricKind.COUNTER: meter.create_observable_counter,
            MetricKind.GAUGE: meter.create_observable_gauge,
            MetricKind.UP_DOWN_COUNTER: meter.create_observable_up_down_counter,
        }
        for family in _OBSERVABLE_FAMILIES:
            create[family.kind](
                family.name,
                callbacks=[partial(self._observe_family, family)],
                unit=family.unit,
                description=family.description,
            )
        self.duration_histogram = _create_histogram(meter, DURATIONS, duration_buckets)
        self.delay_histogram = _create_histogram(meter, DELAYS, delay_buckets)

    def _observe_family(self, family: MetricFamily, _: CallbackOptions) -> Iterable[Observation]:
        """
        Return the observations of one metric.

        The SDK asks for one metric after the other. All observations come from one reading, so
        that they are consistent; the next reading is made when a metric is asked for again.
        """
        observations = self._pop_unreported_observations(family)
        if observations is None:
            reading = self._read_observations()
            observations = reading.pop(family)
            self._unreported_observations = reading
        return observations

    @synchronized
    def _pop_unreported_observations(self, family: MetricFamily) -> list[Observation] | None:
        return self._unreported_observations.pop(family, None)

    def _read_observations(self) -> dict[MetricFamily, list[Observation]]:
        reading: dict[MetricFamily, list[Observation]] = {
            family: [] for family in _OBSERVABLE_FAMILIES
        }
        for scheduler in self.schedulers():
            # A forked child has a copy of the numbers that does not change. With the same resource
            # as its parent, it would contradict it.
            if scheduler.liveness().is_forked_copy:
                continue
            for family, labels, value in all_samples(scheduler, ERROR_COMPONENT):
                if isinstance(value, Histogram) or not math.isfinite(value):
                    continue  # the SDK accepts no infinity: unlimited workers are absent
                if family.kind is MetricKind.COUNTER:
                    value = self._monotonic_totals.continue_total((family, labels), value)  # noqa: PLW2901
                attributes = dict(zip(family.labels, labels, strict=True))
                reading[family].append(Observation(value, attributes))
        self._monotonic_totals.evict_idle_series()
        return reading


class MonotonicTotals:
    """
    Prevents counters from decreasing as long as the process lives.

    A job that comes back after its series was dropped, or a scheduler that is instrumented anew,
    counts from 0. An SDK that sends deltas would send a negative one.
    """

    def __init__(self) -> None:
        # Of each series: what it counted before it last began at 0, and its latest value.
        self._bases_and_latest_by_series: OrderedDict[object, tuple[float, float]] = OrderedDict()
        self._lock = threading.RLock()
        renew_lock_in_forked_children(self)

    @synchronized
    def continue_total(self, series: object, value: float) -> float:
        """Return the total of a series whose value is `value` now."""
        base, latest = self._bases_and_latest_by_series.get(series, (0, 0))
        if value < latest:
            base += latest
        self._bases_and_latest_by_series[series] = base, value
        self._bases_and_latest_by_series.move_to_end(series)  # so that idle series come first
        return base + value

    @synchronized
    def evict_idle_series(self) -> None:
        """Drop the series that were idle for longest, if there are too many."""
        while len(self._bases_and_latest_by_series) > MAX_KEPT_TOTALS:
            self._bases_and_latest_by_series.popitem(last=False)


class HistogramObserver:
    """
    Records the durations and start delays of runs; a `RunObserver`.

    A delay is recorded at the start, when the span of the run is current if the observer of spans
    comes first. Everything else is recorded with the exemplar when the run is finished: only then
    it is known whether its duration counts, and what another process has measured.
    """

    component = ERROR_COMPONENT

    def __init__(self, exporter: OpenTelemetryExporter) -> None:
        self._duration_histogram = exporter.duration_histogram
        self._delay_histogram = exporter.delay_histogram
        self._runs_with_recorded_delay: ObservedRuns[bool] = ObservedRuns()
        self._is_stopped = False

    def is_enabled(self) -> bool:
        """Return True: there is always something to record."""
        return True

    def on_callable_start(self, run: Run) -> None:
        """Record the start delay of `run`."""
        if run.start_delay is not None and not self._is_stopped:
            runs = self._runs_with_recorded_delay
            if len(runs) >= runs.cleanup_threshold:
                runs.drop_stale_runs()
            runs[run] = True
            self._delay_histogram.record(run.start_delay, _scheduler_and_job_attributes(run))

    def on_callable_end(self, run: Run) -> None:
        """Do nothing, as the outcome is not known yet."""

    def create_trace_carrier(self, run: Run) -> Mapping[str, str] | None:
        """Return None, as the other process sends its measurements back."""

    def on_run_finished(self, run: Run) -> None:
        """Record the duration of `run`, and its start delay unless that was recorded before."""
        if self._is_stopped:
            return
        context = None
        delay = run.start_delay
        was_recorded = self._runs_with_recorded_delay.pop(run, False)
        if delay is not None and not was_recorded:
            context = _exemplar_context(run.exemplar_span)
            self._delay_histogram.record(delay, _scheduler_and_job_attributes(run), context=context)
        if run.duration is not None and (run.outcome is SUCCESS or run.outcome is ERROR):
            context = _exemplar_context(run.exemplar_span) if context is None else context
            self._duration_histogram.record(
                run.duration, _scheduler_and_job_attributes(run), context=context
            )

    def ignore_new_runs(self) -> None:
        """Record nothing from now on, because all other metrics end now as well."""
        self._is_stopped = True
        self._runs_with_recorded_delay.clear()

    def has_open_runs(self) -> bool:
        """Return False: no run has to be recorded any more."""
        return False


def get_or_create_exporter(
    provider: metrics.MeterProvider,
    duration_buckets: Sequence[float],
    delay_buckets: Sequence[float],
) -> OpenTelemetryExporter:
    """
    Return the exporter of `provider` and its instruments, which are created if there were none.

    The buckets are those of the first scheduler.
    """
    with _exporters_lock:
        exporter = _find_exporter(provider)
        if exporter is None:
            exporter = OpenTelemetryExporter(provider, duration_buckets, delay_buckets)
        _exporters_by_provider[provider] = exporter
        return exporter


def find_exporter(provider: metrics.MeterProvider) -> OpenTelemetryExporter | None:
    """Return the exporter of `provider`; None if no scheduler was instrumented on it."""
    with _exporters_lock:
        return _find_exporter(provider)


def _find_exporter(provider: metrics.MeterProvider) -> OpenTelemetryExporter | None:
    exporter = _exporters_by_provider.get(provider)
    if exporter is None and provider is metrics.get_meter_provider():
        # The proxy that stands for the global provider before it is set delegates to it.
        exporter = next(
            (known for known in _exporters_by_provider.values() if known.is_global), None
        )
    return exporter


def _create_histogram(
    meter: metrics.Meter, family: MetricFamily, buckets: Sequence[float]
) -> metrics.Histogram:
    advice: dict[str, Any] = {"explicit_bucket_boundaries_advisory": list(buckets)}
    if not advice.keys() <= inspect.signature(meter.create_histogram).parameters.keys():
        logger.warning(
            "The installed opentelemetry-api does not support buckets for %s, so the SDK uses its "
            "own, which are made for milliseconds: install a newer version, or add a view with "
            "ExplicitBucketHistogramAggregation(%s)",
            family.name,
            advice["explicit_bucket_boundaries_advisory"],
        )
        advice = {}
    return meter.create_histogram(family.name, family.unit, family.description, **advice)


def _scheduler_and_job_attributes(run: Run) -> dict[str, str]:
    return dict(zip(DURATIONS.labels, (run.scheduler_name, run.label), strict=True))


def _exemplar_context(exemplar: SpanIds | None) -> Context:
    """Return a context in which the span of an exemplar is current, as a sampled one."""
    if exemplar is None:
        return _CONTEXT_WITHOUT_SPAN
    span = (
        exemplar
        if isinstance(exemplar, trace.SpanContext)
        else trace.SpanContext(
            trace_id=exemplar.trace_id,
            span_id=exemplar.span_id,
            is_remote=False,
            trace_flags=trace.TraceFlags(trace.TraceFlags.SAMPLED),
        )
    )
    return trace.set_span_in_context(trace.NonRecordingSpan(span), Context())


# Not an empty context: the SDK would use the current one instead.
_CONTEXT_WITHOUT_SPAN = trace.set_span_in_context(trace.INVALID_SPAN, Context())
_exporters_lock = threading.Lock()
_exporters_by_provider: weakref.WeakKeyDictionary[metrics.MeterProvider, OpenTelemetryExporter] = (
    weakref.WeakKeyDictionary()
)
