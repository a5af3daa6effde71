"""OpenTelemetry instruments: names, buckets, attributes, and schedulers without Prometheus."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

import pytest

sdk = pytest.importorskip(
    "opentelemetry.sdk.metrics",
    reason="the OpenTelemetry SDK is not installed: it comes with the extra 'otlp'",
)

import pytest
from apscheduler.executors.pool import ThreadPoolExecutor
from opentelemetry import metrics as api
from prometheus_client import CollectorRegistry

from apscheduler_telemetry import ArgumentTypeError, Expectations, current_run, instrument
from apscheduler_telemetry.core.stats import DELAY_BUCKETS, DURATION_BUCKETS
from apscheduler_telemetry.export.metric_families import FAMILIES, MetricKind
from tests.helpers import jobs, watching
from tests.helpers.clocks import freeze_time
from tests.helpers.meter_provider import Sdk, logged_messages
from tests.helpers.rigs import hand_driven_rig, live_rig_async
from tests.helpers.schedulers import hand_driven_scheduler
from tests.helpers.waiting import wait_until

CAN_ADVISE = "explicit_bucket_boundaries_advisory" in (
    api.Meter.create_histogram.__kwdefaults__ or {}
)


class TestInstruments:
    def test_instruments_are_those_of_the_contract(self) -> None:
        """Each metric has the documented instrument, name, unit and description."""
        otel = Sdk()
        expected = Expectations(
            max_duration=9,
            min_duration=1,
            deadline=8,
            max_failures=2,
            min_recorded={"rows": 1},
            owner="shop",
        )
        options = {"meter_provider": otel.provider, "expect": expected}
        with hand_driven_rig(telemetry=options) as rig:
            rig.add(lambda: current_run().record(rows=1), "interval", seconds=9)
            rig.add(jobs.fail, "interval", seconds=9, id="fails")
            rig.after(9)
            rig.settle()
            rig.scheduler.modify_job("fails", next_run_time=None)
            wait_until(lambda: otel.points("job.shortest_interval"))
            found = otel.collect()

        kinds = {
            ("Sum", True): MetricKind.COUNTER,
            ("Sum", False): MetricKind.UP_DOWN_COUNTER,
            ("Gauge", None): MetricKind.GAUGE,
            ("Histogram", None): MetricKind.HISTOGRAM,
        }

        def kind(data: Any) -> MetricKind:
            return kinds[type(data).__name__, getattr(data, "is_monotonic", None)]

        assert {(m.name, m.unit, m.description, kind(m.data)) for m in found.values()} == {
            (f.name, f.unit, f.description, f.kind) for f in FAMILIES
        }
        for family in FAMILIES:
            for point in found[family.name].data.data_points:
                assert tuple(point.attributes) == family.labels

    @pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
    def test_names_and_units_follow_the_conventions(self, family: Any) -> None:
        """Names and units follow OpenTelemetry's rules and can be translated by Prometheus."""
        assert re.fullmatch(r"apscheduler(\.[a-z]+(_[a-z]+)*){2,3}", family.name)
        assert re.fullmatch(r"s|\{[a-z]+\}", family.unit)
        others = [other.name for other in FAMILIES]
        assert not [name for name in others if name.startswith(f"{family.name}.")]

    def test_names_and_attributes_mean_nothing_else_in_the_conventions(self) -> None:
        """No name is defined otherwise in the installed semantic conventions."""
        pytest.importorskip("opentelemetry.semconv", reason="not installed")
        defined = set(semantic_conventions())
        assert {"error.type", "exception.type", "http.server.request.duration"} <= defined
        ours = {name for family in FAMILIES for name in (family.name, *family.labels)}
        assert ours & defined == set()
        assert not [name for name in defined if name.startswith(("apscheduler", "job."))]

    @pytest.mark.skipif(not CAN_ADVISE, reason="this API takes no advice")
    def test_histograms_advise_the_buckets_of_the_user(self) -> None:
        """Histograms have the buckets that were passed, without a view."""
        otel = Sdk()
        options = {"meter_provider": otel.provider, "duration_buckets": (1, 2.5)}
        with hand_driven_rig(telemetry=options) as rig:
            rig.add(jobs.nothing)
            rig.after(0)
            rig.settle()
            [duration] = otel.points("job.run.duration").values()
            [delay] = otel.points("job.start_delay").values()

        assert tuple(duration.explicit_bounds) == (1, 2.5)
        assert tuple(delay.explicit_bounds) == DELAY_BUCKETS

    def test_old_api_without_advice_warns(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """With an API without bucket advice, metrics work, and a warning says what to do."""
        otel = Sdk()
        create = sdk.Meter.create_histogram

        def create_histogram(self: Any, name: str, unit: str = "", description: str = "") -> Any:
            return create(self, name, unit, description)

        monkeypatch.setattr(sdk.Meter, "create_histogram", create_histogram)
        with hand_driven_rig(telemetry={"meter_provider": otel.provider}) as rig:
            rig.add(jobs.nothing)
            rig.after(0)
            rig.settle()
            assert len(otel.points("job.run.duration")) == 1

        messages = [record.getMessage() for record in caplog.records]
        assert len(messages) == 2
        assert "apscheduler.job.run.duration" in messages[0]
        assert f"ExplicitBucketHistogramAggregation({list(DURATION_BUCKETS)})" in messages[0]

    def test_provider_without_an_sdk_is_accepted(self) -> None:
        """A provider of the API alone is accepted, and records nothing."""
        provider = api.NoOpMeterProvider()
        with hand_driven_rig(telemetry={"meter_provider": provider}) as rig:
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


class TestTargets:
    def test_metrics_without_a_meter_provider_go_to_prometheus_only(self) -> None:
        """Without a meter provider nothing goes to OpenTelemetry, nor to its global provider."""
        with hand_driven_rig() as rig:
            assert [type(r).__name__ for r in rig.telemetry._exporters] == ["PrometheusExporter"]

    def test_metrics_without_a_registry_go_to_otlp_only(self) -> None:
        """Without a registry, Prometheus has nothing to scrape, and /metrics says so."""
        otel = Sdk()
        scheduler = hand_driven_scheduler()
        telemetry = instrument(scheduler, registry=None, meter_provider=otel.provider)
        with telemetry.start_http_server(0) as server:
            from tests.helpers.servers import get

            not_found = "Not found. There are /health, /runs and /livez.\n"
            assert get(f"{server.url}/metrics") == (404, not_found)
            assert get(f"{server.url}/health")[0] == 503
            assert "/metrics" not in get(f"{server.url}/")[1]
        assert otel.values("scheduler.up", "state") == {None: 0}
        telemetry.uninstrument()

    @pytest.mark.parametrize("provider", [sdk.MeterProvider, object(), "otlp", 1])
    def test_other_objects_are_refused_as_meter_providers(self, provider: Any) -> None:
        """Other objects are rejected; the error says what to pass."""
        with pytest.raises(ArgumentTypeError, match="meter_provider must be an OpenTelemetry Mete"):
            instrument(
                hand_driven_scheduler(), registry=CollectorRegistry(), meter_provider=provider
            )

    def test_unlimited_workers_are_absent(self, caplog: pytest.LogCaptureFixture) -> None:
        """
        The number of workers of an executor without a limit is left out.

        The SDK rejects infinity, and would log this at every export.
        """
        otel = Sdk()

        async def main() -> None:
            async with live_rig_async({"small": ThreadPoolExecutor(3)}) as rig:
                rig.telemetry.uninstrument()
                rig.telemetry = instrument(
                    rig.scheduler, registry=CollectorRegistry(), meter_provider=otel.provider
                )
                assert otel.values("executor.workers", "executor") == {"small": 3}
                assert otel.values("executor.queued", "executor") == {"small": 0, "default": 0}

        import asyncio

        asyncio.run(main())
        assert [text for text in logged_messages(caplog) if "finite" in text] == []


def test_exporter_of_opentelemetry_shows_the_same_as_a_scrape() -> None:
    """OpenTelemetry's Prometheus exporter shows the same series as a scrape."""
    exporter = pytest.importorskip(
        "opentelemetry.exporter.prometheus", reason="opentelemetry-exporter-prometheus is missing"
    )
    from tests.helpers.otlp_to_prometheus import differences

    theirs, ours = CollectorRegistry(), CollectorRegistry()
    options = {"scope_info_enabled": False, "registry": theirs}
    if not options.keys() <= inspect.signature(exporter.PrometheusMetricReader).parameters.keys():
        pytest.skip("it is too old to be given a registry")
    provider = sdk.MeterProvider(
        [exporter.PrometheusMetricReader(**options)], shutdown_on_exit=False
    )
    with freeze_time():  # a store in memory is read as of now
        scheduler = hand_driven_scheduler()
        expected = Expectations(deadline=8, max_failures=2, min_recorded={"rows": 1}, owner="shop")
        telemetry = instrument(scheduler, registry=ours, meter_provider=provider, expect=expected)
        scheduler.start()
        for func in (jobs.nothing, jobs.fail):
            scheduler.add_job(func, **watching.due(func.__name__))
        scheduler.turn()

        known = {"scheduler": "default", "job_id": "fail"}
        name = (
            "apscheduler_job_shortest_interval_seconds"  # of the latter job, by a background thread
        )
        wait_until(lambda: ours.get_sample_value(name, known))
        assert differences(list(ours.collect()), list(theirs.collect())) == []
        assert ours.get_sample_value("apscheduler_job_runs_total", {**known, "outcome": "error"})
        telemetry.uninstrument()
        scheduler.shutdown()
    provider.shutdown()
