"""A registry whose collectors the application takes out, as fixtures do between tests."""

from __future__ import annotations

import logging

import pytest
from prometheus_client import CollectorRegistry, Counter, generate_latest

from apscheduler_telemetry import ArgumentValueError, instrument
from tests.helpers.instrumented_parts import ours
from tests.helpers.schedulers import hand_driven_scheduler


def clear(registry: CollectorRegistry) -> None:
    """Do what a common fixture does with the global registry between two tests."""
    for collector in list(registry._collector_to_names):
        registry.unregister(collector)


def schedulers_in(registry: CollectorRegistry) -> set[str]:
    """Return the names of the schedulers that the registry shows."""
    lines = generate_latest(registry).decode().splitlines()
    up = [line for line in lines if line.startswith("apscheduler_scheduler_up{")]
    assert len(up) == len(set(up))
    return {line.split('"')[1] for line in up}


class TestClearedRegistry:
    """`instrument` and `uninstrument` work on it as on any other."""

    @pytest.mark.parametrize("name", ["default", "other"])
    def test_next_scheduler_is_exported(self, name: str) -> None:
        """An application factory is called again, with the same name or another one."""
        registry = CollectorRegistry()
        for _ in range(3):
            scheduler = hand_driven_scheduler()
            instrument(scheduler, registry=registry)
            scheduler.start()
            scheduler.shutdown()
            clear(registry)
            assert schedulers_in(registry) == set()
        telemetry = instrument(hand_driven_scheduler(), name=name, registry=registry)
        assert telemetry.name in schedulers_in(registry)

    def test_scheduler_that_runs_is_exported_again(self) -> None:
        """One that was there before comes back together with the next one."""
        registry = CollectorRegistry()
        first = hand_driven_scheduler()
        instrument(first, name="first", registry=registry)
        first.start()
        clear(registry)
        second = instrument(hand_driven_scheduler(), name="second", registry=registry)
        assert schedulers_in(registry) == {"first", second.name}
        first.shutdown()

    def test_uninstrument_reverts_everything(self, caplog: pytest.LogCaptureFixture) -> None:
        """That the collector is gone already is no error, and all else is reverted, too."""
        registry = CollectorRegistry()
        scheduler = hand_driven_scheduler()
        telemetry = instrument(scheduler, registry=registry)
        server = telemetry.start_http_server(0)
        clear(registry)
        telemetry.uninstrument()
        assert ours(scheduler) == []
        assert not server.is_serving
        assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []

    def test_pages_show_what_the_registry_has(self) -> None:
        """The handle of a scheduler whose collector is gone serves the rest."""
        registry = CollectorRegistry()
        telemetry = instrument(hand_driven_scheduler(), registry=registry)
        clear(registry)
        Counter("orders", "Orders.", registry=registry)
        body = b"".join(
            telemetry.wsgi_app(
                {"REQUEST_METHOD": "GET", "PATH_INFO": "/metrics"}, lambda *_: lambda _: None
            )
        )
        assert b"orders_total" in body
        assert b"apscheduler_" not in body

    def test_metrics_of_our_names_are_rejected_as_before(self) -> None:
        """Another collector may have taken the names meanwhile, once there is no scheduler."""
        registry = CollectorRegistry()
        telemetry = instrument(hand_driven_scheduler(), registry=registry)
        clear(registry)
        telemetry.uninstrument()
        Counter("apscheduler_job_runs", "Not ours.", registry=registry)
        with pytest.raises(ArgumentValueError, match="another registry"):
            instrument(hand_driven_scheduler(), registry=registry)
