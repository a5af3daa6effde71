"""OpenTelemetry metrics while schedulers and providers are added and removed."""

from __future__ import annotations

import gc
import os
import weakref
from typing import Any

import pytest

sdk = pytest.importorskip(
    "opentelemetry.sdk.metrics",
    reason="the OpenTelemetry SDK is not installed: it comes with the extra 'otlp'",
)

import pytest
from opentelemetry import metrics as api
from prometheus_client import CollectorRegistry

from apscheduler_telemetry import DuplicateNameError, instrument
from tests.helpers import jobs
from tests.helpers.faults import iterate_to_boom, raise_boom
from tests.helpers.meter_provider import Sdk, logged_messages
from tests.helpers.metrics import errors_of, recorder_of
from tests.helpers.rigs import hand_driven_rig
from tests.helpers.schedulers import hand_driven_scheduler
from tests.helpers.waiting import wait_until


class TestLifecycle:
    def test_nothing_is_observed_after_uninstrument(self) -> None:
        """After `uninstrument` nothing is observed, and scheduler and handle can be freed."""
        otel = Sdk()
        scheduler = hand_driven_scheduler()
        telemetry = instrument(
            scheduler, registry=CollectorRegistry(), meter_provider=otel.provider
        )
        assert otel.values("scheduler.up", "state") == {None: 0}
        telemetry.uninstrument()

        assert otel.collect() == {}
        kept = weakref.ref(telemetry), weakref.ref(scheduler)
        del telemetry, scheduler
        wait_until(lambda: gc.collect() >= 0 and [ref() for ref in kept] == [None, None])

    def test_freed_scheduler_is_not_observed(self) -> None:
        """A scheduler that was freed without `uninstrument` is not observed."""
        otel = Sdk()
        instrument(
            hand_driven_scheduler(), registry=CollectorRegistry(), meter_provider=otel.provider
        )
        wait_until(lambda: gc.collect() >= 0 and otel.collect() == {})

    def test_meter_provider_is_not_kept_alive(self) -> None:
        """Telemetry does not keep a meter provider alive."""
        otel = Sdk()
        scheduler = hand_driven_scheduler()
        telemetry = instrument(
            scheduler, registry=CollectorRegistry(), meter_provider=otel.provider
        )
        telemetry.uninstrument()
        kept = weakref.ref(otel.provider)
        del otel, telemetry, scheduler
        wait_until(lambda: gc.collect() >= 0 and kept() is None)

    def test_instrumenting_again_doubles_nothing(self, caplog: pytest.LogCaptureFixture) -> None:
        """Instrumenting again uses the same instruments, without duplicates or warnings."""
        otel = Sdk()
        for _ in range(3):
            with hand_driven_rig(telemetry={"meter_provider": otel.provider}) as rig:
                rig.add(jobs.nothing)
                rig.after(0)
                rig.settle()
                assert otel.values("scheduler.jobs", "jobstore") == {"default": 0}
        assert logged_messages(caplog) == []

    def test_schedulers_of_one_provider_share_instruments(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Schedulers of one provider share its instruments and differ by an attribute."""
        otel = Sdk()
        options = {"registry": CollectorRegistry(), "meter_provider": otel.provider}
        handles = [instrument(hand_driven_scheduler(), name=name, **options) for name in ("a", "b")]
        kept = [handle._scheduler for handle in handles]

        def names() -> list[str]:
            found = otel.collect()["apscheduler.scheduler.up"].data.data_points
            return [point.attributes["scheduler"] for point in found]

        assert names() == ["a", "b"]
        handles[0].uninstrument()
        assert names() == ["b"]
        handles[1].uninstrument()
        assert (otel.collect(), logged_messages(caplog), len(kept)) == ({}, [], 2)

    def test_second_scheduler_of_one_name_is_rejected(self) -> None:
        """A second scheduler with the same name is rejected, as both would be one series."""
        otel = Sdk()
        scheduler = hand_driven_scheduler()
        options = {"meter_provider": otel.provider}
        telemetry = instrument(scheduler, registry=CollectorRegistry(), **options)
        scheduler.start()
        second = CollectorRegistry()
        with pytest.raises(DuplicateNameError, match=r"'default'.*this meter provider already"):
            instrument(hand_driven_scheduler(), registry=second, **options)
        assert list(second.collect()) == []
        telemetry.uninstrument()
        instrument(scheduler, registry=second, **options).uninstrument()

    def test_global_provider_may_be_set_later(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The global provider may be set after it was passed; both are the same."""
        from opentelemetry.metrics import _internal
        from opentelemetry.util._once import Once

        monkeypatch.setattr(_internal, "_METER_PROVIDER_SET_ONCE", Once())
        monkeypatch.setattr(_internal, "_METER_PROVIDER", None)
        monkeypatch.setattr(_internal, "_PROXY_METER_PROVIDER", _internal._ProxyMeterProvider())
        # A process has only one proxy, which an earlier test may have used.
        known = "apscheduler_telemetry.export.otel_metrics._exporters_by_provider"
        monkeypatch.setattr(known, weakref.WeakKeyDictionary())
        otel = Sdk()
        first, second = hand_driven_scheduler(), hand_driven_scheduler()
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
    def test_forked_child_observes_nothing(self) -> None:
        """A forked child observes nothing, as its copy of the scheduler does not run."""
        otel = Sdk()
        with hand_driven_rig(telemetry={"meter_provider": otel.provider}) as rig:
            rig.add(jobs.nothing, "interval", hours=1)
            assert otel.values("job.running") == {"job": 0}
            child = os.fork()
            if child == 0:
                os._exit(1 if otel.collect() else 0)
            assert os.waitpid(child, 0)[1] == 0

    def test_collection_comes_from_one_reading(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """All metrics of a collection come from one reading of the state."""
        otel = Sdk()
        with hand_driven_rig(telemetry={"meter_provider": otel.provider}) as rig:
            rig.add(jobs.nothing, "interval", hours=1)
            looks = []
            snapshots_of_recorder = recorder_of(rig.telemetry).job_snapshots

            def look(**_: Any) -> Any:
                looks.append(1)
                return snapshots_of_recorder()

            monkeypatch.setattr(recorder_of(rig.telemetry), "job_snapshots", look)
            for number in range(1, 4):
                assert len(otel.collect()) > 10
                assert len(looks) == number
            [exporter] = [
                e for e in rig.telemetry._exporters if hasattr(e, "_unreported_observations")
            ]
            assert exporter._unreported_observations == {}

    def test_jobs_that_cannot_be_read_are_left_out_and_counted(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Jobs that cannot be read are left out, counted and logged once."""
        otel = Sdk()
        with hand_driven_rig(telemetry={"meter_provider": otel.provider}) as rig:
            monkeypatch.setattr(recorder_of(rig.telemetry), "job_snapshots", iterate_to_boom)
            for number in range(1, 4):
                assert otel.values("telemetry.errors", "component")["meter"] == number
            assert otel.values("scheduler.up", "state") == {None: 1}
            assert len(logged_messages(caplog)) == 1
            monkeypatch.undo()
            rig.failing = {"meter"}

    def test_failing_histogram_is_counted_and_the_run_goes_on(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """If the SDK raises while a run is recorded, this is counted and the run succeeds."""
        otel = Sdk()
        with hand_driven_rig(telemetry={"meter_provider": otel.provider}) as rig:
            monkeypatch.setattr(sdk.Histogram, "record", raise_boom)
            rig.add(jobs.nothing)
            rig.after(0)
            rig.settle()
            rig.failing = {"meter"}
            assert errors_of(rig.telemetry).counts()["meter"] == 2
            assert errors_of(rig.telemetry).counts()["spans"] == 0
