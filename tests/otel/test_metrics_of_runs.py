"""OpenTelemetry metrics of runs: outcomes, durations, exemplars and removed jobs."""

from __future__ import annotations

from typing import Any

import pytest

sdk = pytest.importorskip(
    "opentelemetry.sdk.metrics",
    reason="the OpenTelemetry SDK is not installed: it comes with the extra 'otlp'",
)

import pytest
from apscheduler.schedulers.background import BackgroundScheduler
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider, sampling
from prometheus_client import CollectorRegistry

from apscheduler_telemetry import instrument
from apscheduler_telemetry.core.recorder import REMOVED_JOB_SECONDS
from apscheduler_telemetry.core.stats import Histogram
from tests.helpers import jobs
from tests.helpers.meter_provider import DELTA, Sdk, by_name, job_of
from tests.helpers.metrics import recorder_of
from tests.helpers.rigs import Gate, hand_driven_rig, live_rig
from tests.helpers.schedulers import forkserver_pool, hand_driven_scheduler
from tests.helpers.waiting import wait_until


class TestRuns:
    def test_runs_are_those_of_the_recorder(self) -> None:
        """Runs by outcome, and running runs, are those of the recorder."""
        otel = Sdk()
        gate = Gate()
        with hand_driven_rig(telemetry={"meter_provider": otel.provider}) as rig:
            rig.add(gate.hold, "interval", seconds=10)
            rig.after(10)
            gate.wait_for_run()
            rig.after(10)
            assert otel.runs() == {"skipped": 1}
            assert otel.values("job.running") == {"job": 1}
            assert otel.values("executor.running", "executor") == {"default": 1}
            gate.open()
            rig.settle()
            assert otel.runs() == rig.outcomes() == {"skipped": 1, "success": 1}
            assert otel.values("job.running") == {"job": 0}

    def test_histograms_have_each_run_once(self) -> None:
        """Histograms have each run once, with the recorder's values."""
        otel = Sdk()
        with hand_driven_rig(telemetry={"meter_provider": otel.provider}) as rig:
            rig.add(jobs.nothing, "interval", seconds=10)
            rig.add(jobs.fail, "interval", seconds=10, id="fails")
            for _ in range(3):
                rig.after(10.5)
                rig.settle()
            jobs_by_label = {job.label: job for job in recorder_of(rig.telemetry).job_snapshots()}
            durations, delays = otel.points("job.run.duration"), otel.points("job.start_delay")

        for found, name in ((durations, "durations"), (delays, "delays")):
            expected = set()
            for label, job in jobs_by_label.items():
                histogram: Histogram = getattr(job.stats, name)
                expected.add((label, sum(histogram.counts), histogram.sum))
            actual = {(dict(k)["job_id"], p.count, p.sum) for k, p in found.items()}
            assert actual == expected

    @pytest.mark.slow
    def test_run_in_a_process_pool_is_recorded_when_it_returns(self) -> None:
        """A run in a process pool is recorded when its result arrives, with its trace."""
        otel = Sdk()
        tracers = TracerProvider(shutdown_on_exit=False)
        scheduler = BackgroundScheduler(executors={"default": forkserver_pool()})
        with live_rig(scheduler, meter_provider=otel.provider, tracer_provider=tracers) as rig:
            rig.add(jobs.nap, args=[0.01])
            wait_until(lambda: rig.outcomes() == {"success": 1})
            [duration] = wait_until(lambda: otel.points("job.run.duration").values())
            [delay] = otel.points("job.start_delay").values()
            stats = job_of(rig).stats

        assert (duration.count, duration.sum) == (1, stats.durations.sum)
        assert (delay.count, delay.sum) == (1, stats.delays.sum)
        [kept] = stats.durations.exemplars.values()
        [exemplar] = duration.exemplars
        assert f"{exemplar.trace_id:032x}" == kept.labels["trace_id"]
        assert f"{exemplar.span_id:016x}" == kept.labels["span_id"]

    def test_jobs_beyond_max_labels_are_recorded_together(self) -> None:
        """Jobs beyond `max_labels` are recorded together."""
        otel = Sdk()
        with hand_driven_rig(telemetry={"meter_provider": otel.provider}) as rig:
            recorder_of(rig.telemetry)._max_labels = 1
            for name in ("first", "second", "third"):
                rig.add(jobs.nothing, id=name)
            rig.after(0)
            rig.settle()
            counts = {
                dict(k)["job_id"]: p.count for k, p in otel.points("job.run.duration").items()
            }

        assert counts == {"first": 1, "__overflow__": 2}


class TestExemplars:
    @pytest.mark.parametrize("name", ["job.run.duration", "job.start_delay"])
    def test_exemplars_lead_to_the_span_of_the_run(self, name: str) -> None:
        """The exemplar has the ids of the run's span."""
        otel = Sdk()
        tracers = TracerProvider(shutdown_on_exit=False)
        options = {"meter_provider": otel.provider, "tracer_provider": tracers}
        with hand_driven_rig(telemetry=options) as rig:
            rig.add(jobs.nothing)
            rig.after(0)
            rig.settle()
            [point] = otel.points(name).values()
            [kept] = job_of(rig).stats.durations.exemplars.values()

        [exemplar] = point.exemplars
        assert f"{exemplar.trace_id:032x}" == kept.labels["trace_id"]
        assert f"{exemplar.span_id:016x}" == kept.labels["span_id"]

    def test_exemplars_are_of_sampled_runs_only(self) -> None:
        """A run that is not sampled counts, and has no exemplar."""
        otel = Sdk()
        tracers = TracerProvider(sampler=sampling.ALWAYS_OFF, shutdown_on_exit=False)
        options = {"meter_provider": otel.provider, "tracer_provider": tracers}
        with hand_driven_rig(telemetry=options) as rig:
            rig.add(jobs.nothing)
            rig.after(0)
            rig.settle()
            [point] = otel.points("job.run.duration").values()

        assert point.count == 1
        assert not point.exemplars


def test_all_runs_count_though_a_share_is_sampled() -> None:
    """All runs count by scrape and OTLP; sampled ones are exported with all their spans."""
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    otel = Sdk()
    sampler = sampling.TraceIdRatioBased(0.25)
    exporter = InMemorySpanExporter()
    tracers = TracerProvider(sampler=sampling.ParentBased(sampler), shutdown_on_exit=False)
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    traces: list[int] = []

    def query() -> None:
        with tracers.get_tracer("driver").start_as_current_span("query") as span:
            traces.append(span.get_span_context().trace_id)

    options = {"meter_provider": otel.provider, "tracer_provider": tracers}
    with hand_driven_rig(telemetry=options) as rig:
        for _ in range(100):
            rig.add(query)
            rig.after(0)
            rig.settle()
        counted = otel.runs()
        assert rig.outcomes() == counted == {"success": 100}

    sampled = [trace for trace in traces if trace & sampler.TRACE_ID_LIMIT < sampler.bound]
    assert len(set(traces)) == 100
    assert 0 < len(sampled) < 100
    for name in ("query", "job"):
        spans = [span for span in exporter.get_finished_spans() if span.name == name]
        assert [span.context.trace_id for span in spans] == sampled


class TestRemovedJobs:
    def test_removed_job_is_observed_for_15_minutes(self) -> None:
        """A removed job is observed for 15 minutes."""
        otel = Sdk()
        with hand_driven_rig(telemetry={"meter_provider": otel.provider}) as rig:
            rig.add(jobs.nothing, "interval", seconds=10)
            rig.after(10)
            rig.settle()
            rig.scheduler.remove_job("job")
            assert otel.values("job.next_run.timestamp") == {"job": 0}
            assert otel.runs() == {"success": 1}
            rig.after(REMOVED_JOB_SECONDS + 1)
            found = otel.collect()
            rig.checks_events = False  # the run is not counted any more

        of_jobs = {name for name in found if name.startswith("apscheduler.job.")}
        # The SDK keeps what was recorded; its API cannot remove it.
        assert of_jobs == {"apscheduler.job.run.duration", "apscheduler.job.start_delay"}

    @pytest.mark.parametrize("temporality", [{}, DELTA], ids=["cumulative", "delta"])
    def test_job_that_comes_back_goes_on_counting(self, temporality: Any) -> None:
        """A job that is added again continues its counts; no total decreases."""
        otel = Sdk(preferred_temporality=temporality)
        seen = []
        with hand_driven_rig(telemetry={"meter_provider": otel.provider}) as rig:
            for runs in (3, 1):
                rig.add(jobs.nothing, "interval", seconds=10)
                for _ in range(runs):
                    rig.after(10)
                    rig.settle()
                seen.append(otel.runs())
                rig.scheduler.remove_job("job")
                rig.after(REMOVED_JOB_SECONDS + 1)
                seen.append(otel.runs())
            rig.checks_events = False  # the first runs are not counted any more

        total = 1 if temporality else 4
        assert seen == [{"success": 3}, {}, {"success": total}, {}]


@pytest.mark.slow
def test_thousand_jobs_are_all_exported() -> None:
    """All of a thousand jobs are exported if the SDK's limit is raised as documented."""
    has_limit = hasattr(sdk.export, "CardinalityLimits")
    limits: dict[str, Any] = (
        {"cardinality_limits": {sdk.ObservableCounter: 30_000}} if has_limit else {}
    )
    raised = InMemoryMetricReader(**limits)
    otel = Sdk(other_readers=[raised])
    scheduler = hand_driven_scheduler()
    telemetry = instrument(scheduler, registry=CollectorRegistry(), meter_provider=otel.provider)
    scheduler.add_job(jobs.nothing, "interval", hours=1, id="job 0")
    scheduler.start()
    recorder = telemetry._exported_scheduler.recorder
    info = next(recorder.job_snapshots()).info
    for number in range(1, 1_000):
        other = f"job {number}"
        recorder.job_upserted(info._replace(id=other, label=other), None)

    found = by_name(raised.get_metrics_data())
    assert len(found["apscheduler.job.runs"].data.data_points) == 6_000
    for name in ("info", "next_run.timestamp", "running"):
        assert len(found[f"apscheduler.job.{name}"].data.data_points) == 1_000
    if has_limit:  # what is left over is added up
        limited = otel.collect()
        runs = limited["apscheduler.job.runs"].data.data_points
        assert len(runs) == 2_001
        assert {"otel.metric.overflow": True} in [dict(point.attributes) for point in runs]
        assert len(limited["apscheduler.job.next_run.timestamp"].data.data_points) == 1_000
    telemetry.uninstrument()
    scheduler.shutdown()
