"""Metrics by OpenTelemetry: what its SDK collects, of whole applications."""

from __future__ import annotations

import gc
import inspect
import os
import re
import time
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from opentelemetry import metrics as api
from prometheus_client import CollectorRegistry

import support_jobs as jobs
import support_scenes as scenes
from apscheduler_telemetry import ArgumentTypeError, DuplicateNameError, instrument
from apscheduler_telemetry.core.recorder import REMOVED_JOB_SECONDS
from apscheduler_telemetry.core.records import JobSnapshot
from apscheduler_telemetry.core.stats import DELAY_BUCKETS, DURATION_BUCKETS, Histogram
from apscheduler_telemetry.export import otel_metrics
from apscheduler_telemetry.export.metric_families import FAMILIES, Kind
from support import Gate, by_hand, frozen, live, live_async, processes, until
from support_scenes import Boom

sdk = pytest.importorskip(
    "opentelemetry.sdk.metrics",
    reason="the OpenTelemetry SDK is not installed: it comes with the extra 'otlp'",
)
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader
from opentelemetry.sdk.metrics.view import (
    DropAggregation,
    ExplicitBucketHistogramAggregation,
    View,
)
from opentelemetry.sdk.trace import TracerProvider, sampling

CAN_ADVISE = "explicit_bucket_boundaries_advisory" in (
    api.Meter.create_histogram.__kwdefaults__ or {}
)
DELTA = dict.fromkeys(
    (sdk.Counter, sdk.Histogram, sdk.ObservableCounter), AggregationTemporality.DELTA
)


def raise_boom(*_: Any, **__: Any) -> Any:
    raise Boom("on purpose")


def recorder_of(rig: Any) -> Any:
    """Return the metrics state of a rig's scheduler."""
    return rig.telemetry._exported_scheduler.recorder


def errors_of(rig: Any) -> Any:
    """Return how often each component of telemetry failed."""
    return rig.telemetry._exported_scheduler.error_reporter.counts()


def job_of(rig: Any, label: str = "job") -> JobSnapshot:
    """Return the snapshot of a label."""
    job: JobSnapshot
    (job,) = [job for job in recorder_of(rig).snapshots() if job.label == label]
    return job


Points = dict[frozenset[tuple[str, Any]], Any]


def by_name(data: Any) -> dict[str, Any]:
    """Return the metrics of a collection by name."""
    return {
        metric.name: metric
        for resource in (data.resource_metrics if data is not None else ())
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }


class Sdk:
    """A meter provider of the test's own, and what it collects."""

    def __init__(self, *, views: Any = (), other_readers: Any = (), **reader: Any) -> None:
        self.reader = InMemoryMetricReader(**reader)
        self.provider = sdk.MeterProvider(
            [self.reader, *other_readers], views=views, shutdown_on_exit=False
        )

    def collect(self) -> dict[str, Any]:
        """Return the metrics by name, as one collection has them."""
        return by_name(self.reader.get_metrics_data())

    def points(self, name: str) -> Points:
        """Return the points of a metric by their attributes, ``scheduler`` left out."""
        metric = self.collect().get(f"apscheduler.{name}")
        points = metric.data.data_points if metric is not None else []
        return {frozenset((k, v) for k, v in p.attributes.items() if k != "scheduler"): p
                for p in points}  # fmt: skip

    def values(self, name: str, label: str = "job_id") -> dict[Any, Any]:
        """Return the values of a metric by one of their attributes."""
        return {dict(key).get(label): point.value for key, point in self.points(name).items()}

    def runs(self, job_id: str = "job") -> dict[str, int]:
        """Return the runs of a job by outcome, those at 0 left out."""
        found = {
            dict(key)["outcome"]: point.value
            for key, point in self.points("job.runs").items()
            if dict(key)["job_id"] == job_id and point.value
        }
        return dict(sorted(found.items()))


class TestInstruments:
    def test_are_those_of_the_contract(self) -> None:
        """Each metric is an instrument of its name, unit, description and kind."""
        otel = Sdk()
        options = {"meter_provider": otel.provider, "owner": "shop", "max_duration": 1}
        with by_hand(telemetry=options) as rig:
            rig.add(jobs.nothing, "interval", seconds=9)
            rig.add(jobs.fail, "interval", seconds=9, id="fails")
            rig.after(9)
            rig.settle()
            rig.scheduler.modify_job("fails", next_run_time=None)
            until(lambda: otel.points("job.shortest_interval"))
            found = otel.collect()

        kinds = {
            ("Sum", True): Kind.COUNTER,
            ("Sum", False): Kind.LOAD,
            ("Gauge", None): Kind.GAUGE,
            ("Histogram", None): Kind.HISTOGRAM,
        }

        def kind(data: Any) -> Kind:
            return kinds[type(data).__name__, getattr(data, "is_monotonic", None)]

        assert {(m.name, m.unit, m.description, kind(m.data)) for m in found.values()} == {
            (f.name, f.unit, f.description, f.kind) for f in FAMILIES
        }
        for family in FAMILIES:
            for point in found[family.name].data.data_points:
                assert tuple(point.attributes) == family.labels

    @pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
    def test_names_follow_the_conventions(self, family: Any) -> None:
        """Names and units are as OpenTelemetry wants them, and as Prometheus can translate them."""
        assert re.fullmatch(r"apscheduler(\.[a-z]+(_[a-z]+)*){2,3}", family.name)
        assert re.fullmatch(r"s|\{[a-z]+\}", family.unit)
        others = [other.name for other in FAMILIES]
        assert not [name for name in others if name.startswith(f"{family.name}.")]

    def test_names_and_attributes_are_not_taken(self) -> None:
        """None of them means something else in the installed semantic conventions."""
        pytest.importorskip("opentelemetry.semconv", reason="not installed")
        defined = set(semantic_conventions())
        assert {"error.type", "exception.type", "http.server.request.duration"} <= defined
        ours = {name for family in FAMILIES for name in (family.name, *family.labels)}
        assert ours & defined == set()
        assert not [name for name in defined if name.startswith(("apscheduler", "job."))]

    @pytest.mark.skipif(not CAN_ADVISE, reason="this API takes no advice")
    def test_buckets_are_advised(self) -> None:
        """The histograms have the buckets that the user asked for, without a view."""
        otel = Sdk()
        options = {"meter_provider": otel.provider, "duration_buckets": (1, 2.5)}
        with by_hand(telemetry=options) as rig:
            rig.add(jobs.nothing)
            rig.after(0)
            rig.settle()
            [duration] = otel.points("job.run.duration").values()
            [delay] = otel.points("job.start_delay").values()

        assert tuple(duration.explicit_bounds) == (1, 2.5)
        assert tuple(delay.explicit_bounds) == DELAY_BUCKETS

    def test_buckets_that_cannot_be_advised(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """An API that is too old for advice on buckets works; a warning says what to do."""
        otel = Sdk()
        create = sdk.Meter.create_histogram

        def create_histogram(self: Any, name: str, unit: str = "", description: str = "") -> Any:
            return create(self, name, unit, description)

        monkeypatch.setattr(sdk.Meter, "create_histogram", create_histogram)
        with by_hand(telemetry={"meter_provider": otel.provider}) as rig:
            rig.add(jobs.nothing)
            rig.after(0)
            rig.settle()
            assert len(otel.points("job.run.duration")) == 1

        said = [record.getMessage() for record in caplog.records]
        assert len(said) == 2
        assert "apscheduler.job.run.duration" in said[0]
        assert f"ExplicitBucketHistogramAggregation({list(DURATION_BUCKETS)})" in said[0]

    def test_without_an_sdk(self) -> None:
        """A provider of the API alone takes everything, and nothing comes of it."""
        provider = api.NoOpMeterProvider()
        with by_hand(telemetry={"meter_provider": provider}) as rig:
            rig.add(jobs.nothing)
            rig.after(0)


def semantic_conventions() -> Iterator[str]:
    """Yield each name of an attribute or a metric that is defined, stable or not."""
    import importlib
    import pkgutil

    import opentelemetry.semconv as root

    for info in pkgutil.walk_packages(root.__path__, f"{root.__name__}."):
        if info.name.split(".")[-2] in ("attributes", "metrics"):
            module = importlib.import_module(info.name)
            yield from (v for k, v in vars(module).items() if k.isupper() and isinstance(v, str))


class TestRuns:
    def test_are_those_of_the_recorder(self) -> None:
        """Runs, by their outcomes, are those of the recorder, and so is what is running."""
        otel = Sdk()
        gate = Gate()
        with by_hand(telemetry={"meter_provider": otel.provider}) as rig:
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

    def test_durations_and_delays(self) -> None:
        """The histograms have each run once, with the numbers of the recorder."""
        otel = Sdk()
        with by_hand(telemetry={"meter_provider": otel.provider}) as rig:
            rig.add(jobs.nothing, "interval", seconds=10)
            rig.add(jobs.fail, "interval", seconds=10, id="fails")
            for _ in range(3):
                rig.after(10.5)
                rig.settle()
            jobs_by_label = {job.label: job for job in recorder_of(rig).snapshots()}
            durations, delays = otel.points("job.run.duration"), otel.points("job.start_delay")

        for found, name in ((durations, "durations"), (delays, "delays")):
            expected = set()
            for label, job in jobs_by_label.items():
                histogram: Histogram = getattr(job.stats, name)
                expected.add((label, sum(histogram.counts), histogram.sum))
            actual = {(dict(k)["job_id"], p.count, p.sum) for k, p in found.items()}
            assert actual == expected

    @pytest.mark.slow
    def test_in_a_process_pool(self) -> None:
        """What a child measured is recorded when it has come back, with the trace of the run."""
        otel = Sdk()
        tracers = TracerProvider(shutdown_on_exit=False)
        scheduler = BackgroundScheduler(executors={"default": processes()})
        with live(scheduler, meter_provider=otel.provider, tracer_provider=tracers) as rig:
            rig.add(jobs.nap, args=[0.01])
            until(lambda: rig.outcomes() == {"success": 1})
            [duration] = until(lambda: otel.points("job.run.duration").values())
            [delay] = otel.points("job.start_delay").values()
            stats = job_of(rig).stats

        assert (duration.count, duration.sum) == (1, stats.durations.sum)
        assert (delay.count, delay.sum) == (1, stats.delays.sum)
        [kept] = stats.durations.exemplars.values()
        [exemplar] = duration.exemplars
        assert f"{exemplar.trace_id:032x}" == kept.labels["trace_id"]
        assert f"{exemplar.span_id:016x}" == kept.labels["span_id"]

    def test_more_labels_than_may_be(self) -> None:
        """Jobs that share the label of the rest are recorded under it."""
        otel = Sdk()
        with by_hand(telemetry={"meter_provider": otel.provider}) as rig:
            recorder_of(rig)._max_labels = 1
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
    def test_lead_to_the_span_of_the_run(self, name: str) -> None:
        """The SDK finds the run's span current where a value is recorded."""
        otel = Sdk()
        tracers = TracerProvider(shutdown_on_exit=False)
        options = {"meter_provider": otel.provider, "tracer_provider": tracers}
        with by_hand(telemetry=options) as rig:
            rig.add(jobs.nothing)
            rig.after(0)
            rig.settle()
            [point] = otel.points(name).values()
            [kept] = job_of(rig).stats.durations.exemplars.values()

        [exemplar] = point.exemplars
        assert f"{exemplar.trace_id:032x}" == kept.labels["trace_id"]
        assert f"{exemplar.span_id:016x}" == kept.labels["span_id"]

    def test_are_of_sampled_runs_only(self) -> None:
        """A run that is not sampled counts, and is no exemplar."""
        otel = Sdk()
        tracers = TracerProvider(sampler=sampling.ALWAYS_OFF, shutdown_on_exit=False)
        options = {"meter_provider": otel.provider, "tracer_provider": tracers}
        with by_hand(telemetry=options) as rig:
            rig.add(jobs.nothing)
            rig.after(0)
            rig.settle()
            [point] = otel.points("job.run.duration").values()

        assert point.count == 1
        assert not point.exemplars


def test_a_share_of_the_runs_is_sampled() -> None:
    """All runs count on both roads; sampled ones are there with all that they called, or not."""
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
    with by_hand(telemetry=options) as rig:
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


class TestTargets:
    def test_none_is_prometheus_only(self) -> None:
        """Without a meter provider nothing goes to OpenTelemetry, not even to the global one."""
        with by_hand() as rig:
            assert [type(r).__name__ for r in rig.telemetry._exporters] == ["PrometheusExporter"]

    def test_otlp_only(self) -> None:
        """Without a registry, Prometheus has nothing to scrape, and /metrics says so."""
        otel = Sdk()
        scheduler = scenes.by_hand()
        telemetry = instrument(scheduler, registry=None, meter_provider=otel.provider)
        with telemetry.start_http_server(0) as server:
            from servers import get

            assert get(f"{server.url}/metrics") == (404, "Not found. There is /health.\n")
            assert get(f"{server.url}/health")[0] == 503
            assert "/metrics" not in get(f"{server.url}/")[1]
        assert otel.values("scheduler.up", "state") == {None: 0}
        telemetry.uninstrument()

    @pytest.mark.parametrize("provider", [sdk.MeterProvider, object(), "otlp", 1])
    def test_no_meter_provider(self, provider: Any) -> None:
        """Anything else is rejected, with what to pass."""
        with pytest.raises(ArgumentTypeError, match="meter_provider must be an OpenTelemetry Mete"):
            instrument(scenes.by_hand(), registry=CollectorRegistry(), meter_provider=provider)

    def test_infinity_is_absent(self, caplog: pytest.LogCaptureFixture) -> None:
        """
        Where nothing limits an executor its workers are absent.

        The SDK refuses infinity, and would say so in the log with every export.
        """
        otel = Sdk()

        async def main() -> None:
            async with live_async({"small": ThreadPoolExecutor(3)}) as rig:
                rig.telemetry.uninstrument()
                rig.telemetry = instrument(
                    rig.scheduler, registry=CollectorRegistry(), meter_provider=otel.provider
                )
                assert otel.values("executor.workers", "executor") == {"small": 3}
                assert otel.values("executor.queued", "executor") == {"small": 0, "default": 0}

        import asyncio

        asyncio.run(main())
        assert [text for text in said(caplog) if "finite" in text] == []


def test_opentelemetry_s_own_translation() -> None:
    """OpenTelemetry's own exporter for Prometheus makes of the instruments what a scrape shows."""
    exporter = pytest.importorskip(
        "opentelemetry.exporter.prometheus", reason="opentelemetry-exporter-prometheus is missing"
    )
    from support_translation import differences

    theirs, ours = CollectorRegistry(), CollectorRegistry()
    options = {"scope_info_enabled": False, "registry": theirs}
    if not options.keys() <= inspect.signature(exporter.PrometheusMetricReader).parameters.keys():
        pytest.skip("it is too old to be given a registry")
    provider = sdk.MeterProvider(
        [exporter.PrometheusMetricReader(**options)], shutdown_on_exit=False
    )
    with frozen():  # a store in memory is read as of now
        scheduler = scenes.by_hand()
        telemetry = instrument(scheduler, registry=ours, meter_provider=provider, owner="shop")
        scheduler.start()
        for func in (jobs.nothing, jobs.fail):
            scheduler.add_job(func, **scenes.due(func.__name__))
        scheduler.turn()

        known = {"scheduler": "default", "job_id": "fail"}
        name = (
            "apscheduler_job_longest_interval_seconds"  # of the latter job, by a background thread
        )
        until(lambda: ours.get_sample_value(name, known))
        assert differences(list(ours.collect()), list(theirs.collect())) == []
        assert ours.get_sample_value("apscheduler_job_runs_total", {**known, "outcome": "error"})
        telemetry.uninstrument()
        scheduler.shutdown()
    provider.shutdown()


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what was logged, without the warning about an API that is too old."""
    others = [record for record in caplog.records if record.name != otel_metrics.__name__]
    return [record.getMessage() for record in others]


class TestLifecycle:
    def test_uninstrumented(self) -> None:
        """Nothing is observed any more, and nothing keeps scheduler or handle."""
        otel = Sdk()
        scheduler = scenes.by_hand()
        telemetry = instrument(
            scheduler, registry=CollectorRegistry(), meter_provider=otel.provider
        )
        assert otel.values("scheduler.up", "state") == {None: 0}
        telemetry.uninstrument()

        assert otel.collect() == {}
        kept = weakref.ref(telemetry), weakref.ref(scheduler)
        del telemetry, scheduler
        until(lambda: gc.collect() >= 0 and [ref() for ref in kept] == [None, None])

    def test_a_forgotten_scheduler(self) -> None:
        """A scheduler that is freed without being uninstrumented is observed no more."""
        otel = Sdk()
        instrument(scenes.by_hand(), registry=CollectorRegistry(), meter_provider=otel.provider)
        until(lambda: gc.collect() >= 0 and otel.collect() == {})

    def test_a_forgotten_provider(self) -> None:
        """Nothing here keeps a meter provider alive."""
        otel = Sdk()
        scheduler = scenes.by_hand()
        telemetry = instrument(
            scheduler, registry=CollectorRegistry(), meter_provider=otel.provider
        )
        telemetry.uninstrument()
        kept = weakref.ref(otel.provider)
        del otel, telemetry, scheduler
        until(lambda: gc.collect() >= 0 and kept() is None)

    def test_instrumented_again(self, caplog: pytest.LogCaptureFixture) -> None:
        """The second time the instruments are the same; nothing is doubled, nothing warned of."""
        otel = Sdk()
        for _ in range(3):
            with by_hand(telemetry={"meter_provider": otel.provider}) as rig:
                rig.add(jobs.nothing)
                rig.after(0)
                rig.settle()
                assert otel.values("scheduler.jobs", "jobstore") == {"default": 0}
        assert said(caplog) == []

    def test_two_schedulers(self, caplog: pytest.LogCaptureFixture) -> None:
        """Schedulers of one provider share its instruments, and are told apart by their label."""
        otel = Sdk()
        options = {"registry": CollectorRegistry(), "meter_provider": otel.provider}
        handles = [instrument(scenes.by_hand(), name=name, **options) for name in ("a", "b")]
        kept = [handle._scheduler for handle in handles]

        def names() -> list[str]:
            found = otel.collect()["apscheduler.scheduler.up"].data.data_points
            return [point.attributes["scheduler"] for point in found]

        assert names() == ["a", "b"]
        handles[0].uninstrument()
        assert names() == ["b"]
        handles[1].uninstrument()
        assert (otel.collect(), said(caplog), len(kept)) == ({}, [], 2)

    def test_a_name_is_taken(self) -> None:
        """Two schedulers of one name would be one series, so the second is rejected."""
        otel = Sdk()
        scheduler = scenes.by_hand()
        options = {"meter_provider": otel.provider}
        telemetry = instrument(scheduler, registry=CollectorRegistry(), **options)
        second = CollectorRegistry()
        with pytest.raises(DuplicateNameError, match=r"'default'.*this meter provider already"):
            instrument(scenes.by_hand(), registry=second, **options)
        assert list(second.collect()) == []
        telemetry.uninstrument()
        instrument(scheduler, registry=second, **options).uninstrument()

    def test_the_global_provider(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The global provider may be asked for before it is set; then both are the same."""
        from opentelemetry.metrics import _internal
        from opentelemetry.util._once import Once

        monkeypatch.setattr(_internal, "_METER_PROVIDER_SET_ONCE", Once())
        monkeypatch.setattr(_internal, "_METER_PROVIDER", None)
        monkeypatch.setattr(_internal, "_PROXY_METER_PROVIDER", _internal._ProxyMeterProvider())
        # A process has but one proxy; that of a test before is none of ours.
        known = "apscheduler_telemetry.export.otel_metrics._exporters"
        monkeypatch.setattr(known, weakref.WeakKeyDictionary())
        otel = Sdk()
        first, second = scenes.by_hand(), scenes.by_hand()
        options: dict[str, Any] = {"registry": CollectorRegistry()}
        early = api.get_meter_provider()
        one = instrument(first, name="a", meter_provider=early, **options)
        api.set_meter_provider(otel.provider)
        two = instrument(second, name="b", meter_provider=api.get_meter_provider(), **options)

        found = otel.collect()["apscheduler.scheduler.up"].data.data_points
        assert [point.attributes["scheduler"] for point in found] == ["a", "b"]
        one.uninstrument()
        two.uninstrument()

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform cannot fork")
    def test_a_forked_child(self) -> None:
        """A child that was forked after the start is silent, as its copy stands still."""
        otel = Sdk()
        with by_hand(telemetry={"meter_provider": otel.provider}) as rig:
            rig.add(jobs.nothing, "interval", hours=1)
            assert otel.values("job.running") == {"job": 0}
            child = os.fork()
            if child == 0:
                os._exit(1 if otel.collect() else 0)
            assert os.waitpid(child, 0)[1] == 0

    def test_a_collection_is_of_one_moment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """All metrics of a collection come from one reading, and each collection reads anew."""
        otel = Sdk()
        with by_hand(telemetry={"meter_provider": otel.provider}) as rig:
            rig.add(jobs.nothing, "interval", hours=1)
            looks = []
            snapshots_of_recorder = recorder_of(rig).snapshots

            def look() -> Any:
                looks.append(1)
                return snapshots_of_recorder()

            monkeypatch.setattr(recorder_of(rig), "snapshots", look)
            for number in range(1, 4):
                assert len(otel.collect()) > 10
                assert len(looks) == number
            [exporter] = [
                e for e in rig.telemetry._exporters if hasattr(e, "_unreported_observations")
            ]
            assert exporter._unreported_observations == {}

    def test_what_fails_is_counted(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Jobs that cannot be read are left out, counted and logged once; the rest is there."""
        otel = Sdk()
        with by_hand(telemetry={"meter_provider": otel.provider}) as rig:
            monkeypatch.setattr(recorder_of(rig), "snapshots", raise_boom)
            for number in range(1, 4):
                assert otel.values("telemetry.errors", "component")["meter"] == number
            assert otel.values("scheduler.up", "state") == {None: 1}
            assert len(said(caplog)) == 1
            monkeypatch.undo()
            rig.failing = {"meter"}

    def test_a_histogram_that_fails(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """An SDK that raises where a run is recorded is counted, and the run goes on."""
        otel = Sdk()
        with by_hand(telemetry={"meter_provider": otel.provider}) as rig:
            monkeypatch.setattr(sdk.Histogram, "record", raise_boom)
            rig.add(jobs.nothing)
            rig.after(0)
            rig.settle()
            rig.failing = {"meter"}
            assert errors_of(rig)["meter"] == 2
            assert errors_of(rig)["spans"] == 0


class TestRemovedJobs:
    def test_end(self) -> None:
        """What is observed of a job ends 15 minutes after it was removed."""
        otel = Sdk()
        with by_hand(telemetry={"meter_provider": otel.provider}) as rig:
            rig.add(jobs.nothing, "interval", seconds=10)
            rig.after(10)
            rig.settle()
            rig.scheduler.remove_job("job")
            assert otel.values("job.next_run.timestamp") == {"job": 0}
            assert otel.runs() == {"success": 1}
            rig.after(REMOVED_JOB_SECONDS + 1)
            found = otel.collect()
            rig.is_told = False  # the run is not counted any more

        of_jobs = {name for name in found if name.startswith("apscheduler.job.")}
        # The SDK keeps what was recorded, and has no way to be told otherwise.
        assert of_jobs == {"apscheduler.job.run.duration", "apscheduler.job.start_delay"}

    @pytest.mark.parametrize("temporality", [{}, DELTA], ids=["cumulative", "delta"])
    def test_come_back(self, temporality: Any) -> None:
        """A job that comes back goes on counting where it was; no total goes back."""
        otel = Sdk(preferred_temporality=temporality)
        seen = []
        with by_hand(telemetry={"meter_provider": otel.provider}) as rig:
            for runs in (3, 1):
                rig.add(jobs.nothing, "interval", seconds=10)
                for _ in range(runs):
                    rig.after(10)
                    rig.settle()
                seen.append(otel.runs())
                rig.scheduler.remove_job("job")
                rig.after(REMOVED_JOB_SECONDS + 1)
                seen.append(otel.runs())
            rig.is_told = False  # the first runs are not counted any more

        total = 1 if temporality else 4
        assert seen == [{"success": 3}, {}, {"success": total}, {}]


class TestTemporality:
    def test_cumulative(self) -> None:
        """By default all is since the start, also while nothing happens."""
        otel = Sdk()
        with by_hand(telemetry={"meter_provider": otel.provider}) as rig:
            rig.add(jobs.nothing, "interval", seconds=10)
            for number in (1, 2):
                rig.after(10)
                rig.settle()
                assert otel.runs() == {"success": number}
            [point] = otel.points("job.run.duration").values()
            assert point.count == 2
            assert otel.runs() == {"success": 2}

    def test_delta(self) -> None:
        """If asked for, counters and histograms are what is new; gauges are as ever."""
        otel = Sdk(preferred_temporality=DELTA)
        with by_hand(telemetry={"meter_provider": otel.provider}) as rig:
            rig.add(jobs.nothing, "interval", seconds=10)
            for _ in range(2):
                rig.after(10)
                rig.settle()
                found = otel.collect()
                runs = found["apscheduler.job.runs"].data
                assert runs.aggregation_temporality == AggregationTemporality.DELTA
                assert sum(point.value for point in runs.data_points) == 1
                [point] = found["apscheduler.job.run.duration"].data.data_points
                assert point.count == 1
            assert otel.runs() == {}
            assert otel.values("job.next_run.timestamp") == {"job": rig.clock.now.timestamp() + 10}

    def test_restart(self) -> None:
        """Another process, that is another provider, starts at 0 and says since when."""
        started = []
        for _ in range(2):
            otel = Sdk()
            with by_hand(telemetry={"meter_provider": otel.provider}) as rig:
                rig.add(jobs.nothing)
                rig.after(0)
                rig.settle()
                before = time.time_ns()
                [point] = otel.points("job.run.duration").values()
            assert point.count == 1
            started.append(point.start_time_unix_nano)
            assert before - 10**15 < point.start_time_unix_nano <= point.time_unix_nano


class TestViews:
    @staticmethod
    def collect(*views: View) -> dict[str, Any]:
        otel = Sdk(views=views)
        with by_hand(telemetry={"meter_provider": otel.provider}) as rig:
            for name in ("first", "second"):
                rig.add(jobs.nothing, "interval", seconds=10, id=name)
            rig.after(10)
            rig.settle()
            return otel.collect()

    def test_drop(self) -> None:
        """What a view drops is gone, and nothing else."""
        found = self.collect(View(instrument_name="*.info", aggregation=DropAggregation()))

        assert "apscheduler.job.info" not in found
        assert {"apscheduler.job.runs", "apscheduler.scheduler.up"} <= found.keys()

    def test_rename(self) -> None:
        """A view may call a metric otherwise."""
        found = self.collect(View(instrument_name="apscheduler.job.runs", name="jobs.done"))

        assert "apscheduler.job.runs" not in found
        assert sum(point.value for point in found["jobs.done"].data.data_points) == 2

    def test_other_buckets(self) -> None:
        """A view's buckets win over ours."""
        aggregation = ExplicitBucketHistogramAggregation((7.0,))
        found = self.collect(
            View(instrument_name="apscheduler.job.run.duration", aggregation=aggregation)
        )

        points = found["apscheduler.job.run.duration"].data.data_points
        assert [tuple(point.explicit_bounds) for point in points] == [(7.0,), (7.0,)]
        assert [tuple(point.bucket_counts) for point in points] == [(1, 0), (1, 0)]

    @pytest.mark.parametrize(
        ("name", "total"), [("job.runs", 2), ("job.running", 0), ("executor.running", 0)]
    )
    def test_fewer_attributes(self, name: str, total: int) -> None:
        """Without the attribute of the job, what may be added up is."""
        view = View(instrument_name=f"apscheduler.{name}", attribute_keys={"scheduler"})
        found = self.collect(view)

        [point] = found[f"apscheduler.{name}"].data.data_points
        assert (dict(point.attributes), point.value) == ({"scheduler": "default"}, total)


@pytest.mark.slow
def test_a_thousand_jobs() -> None:
    """Each of a thousand jobs is there, where the SDK's limit is raised as the manual says."""
    has_limit = hasattr(sdk.export, "CardinalityLimits")
    limits: dict[str, Any] = (
        {"cardinality_limits": {sdk.ObservableCounter: 30_000}} if has_limit else {}
    )
    raised = InMemoryMetricReader(**limits)
    otel = Sdk(other_readers=[raised])
    scheduler = scenes.by_hand()
    telemetry = instrument(scheduler, registry=CollectorRegistry(), meter_provider=otel.provider)
    scheduler.add_job(jobs.nothing, "interval", hours=1, id="job 0")
    scheduler.start()
    recorder = telemetry._exported_scheduler.recorder
    info = next(recorder.snapshots()).info
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
