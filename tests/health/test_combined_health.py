"""The health of a process with several schedulers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip(
    "opentelemetry.instrumentation.instrumentor",
    reason="opentelemetry-instrumentation comes with the extra 'instrumentation' of this package",
)

from apscheduler_telemetry.instrumentor import APSchedulerInstrumentor
from tests.helpers.schedulers import HandDriven
from tests.helpers.servers import free_port, get


class TestSeveralSchedulers:
    """``/health`` of all schedulers that the instrumentor has found."""

    @pytest.fixture
    def url(self) -> Iterator[str]:
        """Serve the health of all schedulers that start in this test."""
        port = free_port()
        instrumentor = APSchedulerInstrumentor()
        instrumentor.instrument(http_port=port)
        yield f"http://127.0.0.1:{port}/health"
        instrumentor.uninstrument()

    @pytest.fixture
    def schedulers(self, url: str) -> Iterator[list[Any]]:
        """Start two schedulers that are alive."""
        schedulers = [HandDriven(), HandDriven()]
        for scheduler in schedulers:
            scheduler.start()
            scheduler.turn()
        yield schedulers
        for scheduler in schedulers:
            if scheduler.running:
                scheduler.shutdown()

    def test_all_alive_is_healthy(self, url: str, schedulers: list[Any]) -> None:
        """A process whose schedulers are all alive is healthy."""
        status, body = get(url)
        assert (status, json.loads(body)["status"]) == (200, "healthy")

    @pytest.mark.parametrize("dead", [0, 1])
    def test_one_dead_scheduler_is_unhealthy(
        self, url: str, schedulers: list[Any], dead: int
    ) -> None:
        """If one scheduler is dead, the process is unhealthy; the report names the scheduler."""
        schedulers[dead].shutdown()
        status, body = get(url)
        health = json.loads(body)
        assert (status, health["status"]) == (503, "unhealthy")
        expected = ["healthy", "healthy"]
        expected[dead] = "unhealthy"
        assert [scheduler["status"] for scheduler in health["schedulers"]] == expected
        names = [scheduler["name"] for scheduler in health["schedulers"]]
        assert [reason["scheduler"] for reason in health["reasons"]] == [names[dead]]
