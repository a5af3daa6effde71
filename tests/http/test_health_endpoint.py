"""The endpoint of the health report."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from apscheduler_telemetry.http import HTTPEndpoints
from tests.helpers.collectors import ReportedErrors
from tests.helpers.http_clients import HEALTHY, UNHEALTHY, Reply, ask_wsgi


class TestHealth:
    @pytest.mark.parametrize(("report", "status"), [(HEALTHY, 200), (UNHEALTHY, 503)])
    def test_status_code_tells_whether_it_is_healthy(
        self, registry: CollectorRegistry, report: Any, status: int
    ) -> None:
        """The report is JSON, and the status code says whether it is healthy."""
        endpoints = HTTPEndpoints(
            registry=registry, get_health_report=lambda: report, report_exception=ReportedErrors()
        )

        reply = ask_wsgi(endpoints.wsgi_app, "/health")

        assert (reply.status, reply.json) == (status, report)
        assert reply.headers["content-type"] == "application/json"
        assert reply.headers["cache-control"] == "no-store"

    @pytest.mark.parametrize(
        "health",
        [lambda: 1 / 0, dict, lambda: {"status": "healthy", ("no", "json"): 1}],
        ids=["raises", "no status", "no JSON"],
    )
    def test_report_that_fails_counts_as_unhealthy(
        self, registry: CollectorRegistry, failures: ReportedErrors, health: Any
    ) -> None:
        """If the report fails, the response is unhealthy, without a traceback."""
        endpoints = HTTPEndpoints(
            registry=registry, get_health_report=health, report_exception=failures
        )

        reply = ask_wsgi(endpoints.wsgi_app, "/health")

        assert (reply.status, reply.json["status"]) == (503, "unhealthy")
        assert reply.json["reasons"][0]["code"] == "health_failed"
        assert "Traceback" not in reply.text
        assert [component for component, _ in failures] == ["http"]

    def test_head_returns_the_status_code(self, ask: Callable[..., Reply]) -> None:
        """HEAD returns the status code of the report."""
        reply = ask("/health", method="HEAD")

        assert (reply.status, reply.body) == (200, b"")
