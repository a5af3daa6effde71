"""
Shows the books to OpenTelemetry: the instruments of a meter provider, for all its schedulers.

The metrics are those of `prometheus`, under the names that Prometheus' translation of OTLP turns
into the same: ``apscheduler.job.run.duration`` in ``s`` is
``apscheduler_job_run_duration_seconds``. What the ledgers keep is observed when the SDK collects.
The two histograms are recorded where runs start and end, as OpenTelemetry cannot observe one, and
as there the span is current by which the SDK makes exemplars.

The application owns the OpenTelemetry SDK: nothing here configures, flushes or shuts it down.
"""

from __future__ import annotations

import inspect
import logging
import math
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from opentelemetry import metrics, trace
from opentelemetry.context import Context
from opentelemetry.metrics import CallbackOptions, Observation

from apscheduler_telemetry._version import __version__
from apscheduler_telemetry.core.model import Outcome, RunError, RunView, SpanIds
from apscheduler_telemetry.core.recorder import Histogram
from apscheduler_telemetry.export.metric_families import (
    DELAYS,
    DURATIONS,
    FAMILIES,
    Family,
    Kind,
    Reader,
    read,
)

logger = logging.getLogger(__name__)

SCOPE = "apscheduler_telemetry"
"""No schema URL: of the attributes, none is of the semantic conventions."""

COMPONENT = "meter"

MAX_TOTALS = 50_000
"""
Series of counters whose totals are remembered: at most some 10 MB.

A thousand jobs have 6,000 for their outcomes and up to 20,000 for exceptions; as many may be gone
and come back.
"""

_OBSERVED = tuple(family for family in FAMILIES if family.kind is not Kind.HISTOGRAM)


class MeterReader(Reader):
    """
    The instruments of one meter provider, for all schedulers that are instrumented on it.

    One for all, as a meter has one instrument of a name; and for good, as it has no way to be rid
    of one: without schedulers there is nothing to observe.

    Attributes:
        durations: the histogram of runs' durations.
        delays: the histogram of their start delays.
        buckets: upper bounds in seconds, of both.
    """

    def __init__(
        self,
        provider: metrics.MeterProvider,
        duration_buckets: Sequence[float],
        delay_buckets: Sequence[float],
    ) -> None:
        super().__init__("meter provider")
        self.is_global = provider is metrics.get_meter_provider()
        self.buckets = tuple(duration_buckets), tuple(delay_buckets)
        self._rows: dict[Family, list[Observation]] = {}
        self._totals = Totals()
        meter = provider.get_meter(SCOPE, __version__)
        create: dict[Kind, Callable[..., object]] = {
            Kind.COUNTER: meter.create_observable_counter,
            Kind.GAUGE: meter.create_observable_gauge,
            Kind.LOAD: meter.create_observable_up_down_counter,
        }
        for family in _OBSERVED:
            create[family.kind](
                family.name,
                callbacks=[partial(self._observe, family)],
                unit=family.unit,
                description=family.about,
            )
        self.durations = _histogram(meter, DURATIONS, duration_buckets)
        self.delays = _histogram(meter, DELAYS, delay_buckets)

    def _observe(self, family: Family, _: CallbackOptions) -> Iterable[Observation]:
        """
        Return what the ledgers have of one metric.

        The SDK asks for one metric after the other. All are answered from one look at the
        ledgers, so that they agree: a new one is taken when a metric is asked for again.
        """
        with self._lock:
            rows = self._rows.pop(family, None)
        if rows is None:
            fresh = self._read()
            rows = fresh.pop(family)
            with self._lock:
                self._rows = fresh
        return rows

    def _read(self) -> dict[Family, list[Observation]]:
        rows: dict[Family, list[Observation]] = {family: [] for family in _OBSERVED}
        for source in self.sources():
            # A forked child has a copy of the ledgers that stands still, and under the resource
            # of its parent would contradict it.
            if any(code == "forked" for code, _ in source.liveness().reasons):
                continue
            for family, labels, value in read(source, COMPONENT):
                if isinstance(value, Histogram) or not math.isfinite(value):
                    continue  # the SDK takes no infinity: where nothing limits workers, absent
                if family.kind is Kind.COUNTER:
                    value = self._totals.of((family, labels), value)  # noqa: PLW2901
                attributes = dict(zip(family.labels, labels, strict=True))
                rows[family].append(Observation(value, attributes))
        self._totals.trim()
        return rows


class Totals:
    """
    Keeps counters from going back, as long as the process lives.

    A job that comes back after its account was closed, or a scheduler that is instrumented anew,
    counts from 0. An SDK that sends deltas would send a negative one.
    """

    def __init__(self) -> None:
        self._seen: dict[object, tuple[float, float]] = {}
        self._lock = threading.Lock()

    def of(self, series: object, value: float) -> float:
        """Return the total of a series of which an account has counted `value`."""
        with self._lock:
            before, latest = self._seen.pop(series, (0, 0))
            if value < latest:
                before += latest
            self._seen[series] = before, value  # at the end, so that idle ones are at the front
            return before + value

    def trim(self) -> None:
        """Forget the series that were idle for longest, where there are too many."""
        with self._lock:
            while len(self._seen) > MAX_TOTALS:
                del self._seen[next(iter(self._seen))]


class HistogramObserver:
    """
    Records the durations and start delays of runs; a `RunObserver`.

    In this process in the context of the run, whose span is current: to be called after what
    enters that span, and before what leaves it.
    """

    component = COMPONENT

    def __init__(self, reader: MeterReader) -> None:
        self._durations = reader.durations
        self._delays = reader.delays

    def is_awake(self) -> bool:
        """Tell that there is always something to do."""
        return True

    def enter(self, run: RunView) -> None:
        """Record how late `run` starts."""
        if run.start_delay is not None:
            self._delays.record(run.start_delay, _attributes(run))

    def leave(self, run: RunView, outcome: Outcome, error: RunError | None) -> None:  # noqa: ARG002
        """Record how long `run` took."""
        if run.duration is not None:
            self._durations.record(run.duration, _attributes(run))

    def carry(self, run: RunView) -> Mapping[str, str] | None:
        """Return nothing: what another process measures comes home."""

    def settle(self, run: RunView, outcome: Outcome, error: RunError | None) -> None:  # noqa: ARG002
        """Record a run that was measured in another process, in the context of its span."""
        if run.duration is not None and run.start_delay is not None:
            context = _context(run.exemplar)
            self._delays.record(run.start_delay, _attributes(run), context=context)
            self._durations.record(run.duration, _attributes(run), context=context)


def reader_of(
    provider: metrics.MeterProvider,
    duration_buckets: Sequence[float],
    delay_buckets: Sequence[float],
) -> MeterReader:
    """
    Return the reader of `provider`, with its instruments, made now if there was none.

    The buckets are those that the first scheduler asked for.
    """
    with _lock:
        reader = _readers.get(provider)
        if reader is None and provider is metrics.get_meter_provider():
            # What was the global provider before there was one passes everything on to it.
            reader = next((known for known in _readers.values() if known.is_global), None)
        if reader is None:
            reader = MeterReader(provider, duration_buckets, delay_buckets)
        _readers[provider] = reader
        return reader


def _histogram(meter: metrics.Meter, family: Family, buckets: Sequence[float]) -> metrics.Histogram:
    advice: dict[str, Any] = {"explicit_bucket_boundaries_advisory": list(buckets)}
    if not advice.keys() <= inspect.signature(meter.create_histogram).parameters.keys():
        logger.warning(
            "The installed opentelemetry-api cannot be told the buckets of %s, which are the "
            "SDK's, made for milliseconds: give it a view with ExplicitBucketHistogramAggregation"
            "(%s), or install a newer one",
            family.name,
            advice["explicit_bucket_boundaries_advisory"],
        )
        advice = {}
    return meter.create_histogram(family.name, family.unit, family.about, **advice)


def _attributes(run: RunView) -> dict[str, str]:
    return dict(zip(DURATIONS.labels, (run.scheduler, run.label), strict=True))


def _context(exemplar: SpanIds | None) -> Context:
    """Return a context in which the span of an exemplar is current, as it was sampled."""
    if exemplar is None:
        return Context()
    span = trace.SpanContext(
        trace_id=exemplar.trace_id,
        span_id=exemplar.span_id,
        is_remote=False,
        trace_flags=trace.TraceFlags(trace.TraceFlags.SAMPLED),
    )
    return trace.set_span_in_context(trace.NonRecordingSpan(span), Context())


_lock = threading.Lock()
_readers: weakref.WeakKeyDictionary[metrics.MeterProvider, MeterReader] = (
    weakref.WeakKeyDictionary()
)
