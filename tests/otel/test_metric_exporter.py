"""The OpenTelemetry exporter alone: histograms, exemplars and totals; without a scheduler."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry import trace

from apscheduler_telemetry.core.model import Outcome
from apscheduler_telemetry.core.observers import RunObserver
from apscheduler_telemetry.core.records import Run
from apscheduler_telemetry.export import otel_metrics
from apscheduler_telemetry.export.otel_metrics import HistogramObserver, get_or_create_exporter
from tests.helpers.exported_schedulers import NOW, FakeScheduler, fill
from tests.helpers.recorder_rig import AT, RecorderRig

sdk = pytest.importorskip(
    "opentelemetry.sdk.metrics",
    reason="the OpenTelemetry SDK is not installed: it comes with the extra 'otlp'",
)
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

CONTEXT = trace.SpanContext(3, 4, is_remote=False, trace_flags=trace.TraceFlags(1))


class Sdk:
    """A meter provider, our exporter for it, and what it collects."""

    def __init__(self) -> None:
        self.reader = InMemoryMetricReader()
        self.provider = sdk.MeterProvider([self.reader], shutdown_on_exit=False)
        self.exporter = get_or_create_exporter(self.provider, (1.0, 2.0), (1.0, 2.0))
        self.observer = HistogramObserver(self.exporter)

    def points(self, name: str) -> list[Any]:
        """Return the points of a metric."""
        data = self.reader.get_metrics_data()
        return [
            point
            for resource in (data.resource_metrics if data is not None else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == f"apscheduler.{name}"
            for point in metric.data.data_points
        ]


@pytest.fixture
def otel() -> Sdk:
    return Sdk()


@pytest.fixture
def rig() -> RecorderRig:
    return RecorderRig()


def go(otel: Sdk, rig: RecorderRig, run: Run, outcome: Outcome = Outcome.SUCCESS) -> None:
    """Call the observer as for a run in a thread."""
    run.try_start(AT + 0.5)
    otel.observer.on_callable_start(run)
    run.set_duration(1.5)
    otel.observer.on_callable_end(run)
    rig.finish(run, outcome)
    otel.observer.on_run_finished(run)


class TestHistogramObserver:
    def test_run_in_a_thread_has_one_delay_and_one_duration(
        self, otel: Sdk, rig: RecorderRig
    ) -> None:
        """A run has one delay and one duration, with the labels of its counts."""
        (run,) = rig.submit()
        go(otel, rig, run)

        [delay], [duration] = otel.points("job.start_delay"), otel.points("job.run.duration")
        assert (delay.count, delay.sum) == (1, 0.5)
        assert (duration.count, duration.sum) == (1, 1.5)
        for point in (delay, duration):
            assert dict(point.attributes) == {"scheduler": "main", "job_id": "job"}

    def test_delay_is_recorded_at_the_start(self, otel: Sdk, rig: RecorderRig) -> None:
        """The delay of a run is recorded when it starts."""
        (run,) = rig.submit()
        run.try_start(AT + 0.5)
        otel.observer.on_callable_start(run)

        [delay] = otel.points("job.start_delay")
        assert (delay.count, otel.points("job.run.duration")) == (1, [])

    def test_run_in_another_process_is_recorded_at_its_end(
        self, otel: Sdk, rig: RecorderRig
    ) -> None:
        """A run that was measured in another process is recorded when it is finished."""
        (run,) = rig.submit()
        assert otel.observer.create_trace_carrier(run) is None
        run.try_set_estimated_start(AT + 9)
        rig.finish(run, started=AT + 0.5, duration=1.5)
        otel.observer.on_run_finished(run)

        [delay], [duration] = otel.points("job.start_delay"), otel.points("job.run.duration")
        assert (delay.count, delay.sum, duration.count, duration.sum) == (1, 0.5, 1, 1.5)

    @pytest.mark.parametrize("outcome", list(Outcome))
    def test_histograms_agree_with_the_recorder(
        self, otel: Sdk, rig: RecorderRig, outcome: Outcome
    ) -> None:
        """For each outcome, delays and durations are those of the recorder."""
        here, elsewhere, estimated, unknown = rig.submit(0, 0, 0, 0)
        if outcome is not Outcome.MISSED:  # whose start is taken back, but was recorded
            go(otel, rig, here, outcome)
        rig.finish(elsewhere, outcome, started=AT + 0.5, duration=1.5)
        estimated.try_set_estimated_start(AT + 1)
        for run in (estimated, unknown):
            rig.finish(run, outcome)
        for run in (elsewhere, estimated, unknown):
            otel.observer.on_run_finished(run)

        stats = rig.job().stats
        for name, histogram in (("start_delay", stats.delays), ("run.duration", stats.durations)):
            points = otel.points(f"job.{name}")
            assert sum(point.count for point in points) == sum(histogram.counts)
            assert sum(point.sum for point in points) == histogram.sum

    @pytest.mark.parametrize("is_current", [False, True])
    @pytest.mark.parametrize("name", ["job.start_delay", "job.run.duration"])
    def test_exemplars_are_of_the_span_of_the_run(
        self, otel: Sdk, rig: RecorderRig, name: str, is_current: bool
    ) -> None:
        """Exemplars refer to the run's span, whatever span is current at its end."""
        (run,) = rig.submit()
        run.set_exemplar_span(CONTEXT)
        other = trace.SpanContext(5, 6, is_remote=False, trace_flags=trace.TraceFlags(1))
        rig.finish(run, started=AT + 0.5, duration=1.5)
        with trace.use_span(trace.NonRecordingSpan(other) if is_current else trace.INVALID_SPAN):
            otel.observer.on_run_finished(run)

        [point] = otel.points(name)
        [exemplar] = point.exemplars
        assert (exemplar.trace_id, exemplar.span_id) == (3, 4)

    def test_run_without_a_sampled_span_has_no_exemplar(self, otel: Sdk, rig: RecorderRig) -> None:
        """A run without a sampled span has no exemplar, also if another span is current."""
        (run,) = rig.submit()
        rig.finish(run, started=AT + 0.5, duration=1.5)
        with trace.use_span(trace.NonRecordingSpan(CONTEXT)):
            otel.observer.on_run_finished(run)

        [point] = otel.points("job.run.duration")
        assert (point.count, list(point.exemplars)) == (1, [])

    def test_finished_run_is_not_kept(self, otel: Sdk, rig: RecorderRig) -> None:
        """The observer does not keep a finished run."""
        for outcome in (Outcome.SUCCESS, Outcome.LOST):
            (run,) = rig.submit()
            go(otel, rig, run, outcome)
        assert len(otel.observer._runs_with_recorded_delay) == 0


class TestObservations:
    def test_counters_and_gauges_are_those_of_the_recorder(self, otel: Sdk) -> None:
        """Counters and gauges are those of the recorder; infinite values are left out."""
        scheduler = FakeScheduler()
        fill(scheduler)
        otel.exporter.add_scheduler(scheduler)

        runs = {
            (point.attributes["job_id"], point.attributes["outcome"]): point.value
            for point in otel.points("job.runs")
        }
        assert runs["backup", "error"] == 2
        [since] = [
            point.value
            for point in otel.points("job.running_since.timestamp")
            if point.attributes["job_id"] == "report"
        ]
        assert since == NOW - 4.5
        workers = {p.attributes["executor"]: p.value for p in otel.points("executor.workers")}
        assert workers == {"default": 10}

    def test_schedulers_of_one_provider_share_an_exporter(self, otel: Sdk) -> None:
        """Schedulers of one provider share its instruments."""
        assert get_or_create_exporter(otel.provider, (5.0,), (5.0,)) is otel.exporter
        assert Sdk().exporter is not otel.exporter


class TestMonotonicTotals:
    def test_total_of_a_series_that_begins_again_goes_on(self) -> None:
        """If a series starts again, its counts are added to the former total."""
        totals = otel_metrics.MonotonicTotals()
        values = [totals.continue_total("runs", value) for value in (3, 5, 1, 1, 4)]
        assert values == [3, 5, 6, 6, 9]

    def test_totals_that_are_idle_for_longest_are_dropped(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Beyond the limit, the totals that were idle for the longest time are dropped."""
        monkeypatch.setattr(otel_metrics, "MAX_KEPT_TOTALS", 2)
        totals = otel_metrics.MonotonicTotals()
        for series in "abcab":
            totals.continue_total(series, 5)
        totals.evict_idle_series()

        assert [totals.continue_total(series, 1) for series in "abc"] == [6, 6, 1]


def check_types(observer: HistogramObserver) -> RunObserver:
    """Let mypy compare the observer with the protocol."""
    return observer
