"""The endpoint of the health report."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from apscheduler_telemetry import instrument
from apscheduler_telemetry.http import HTTPEndpoints, limits
from tests.helpers.collectors import ReportedErrors
from tests.helpers.http_clients import HEALTHY, UNHEALTHY, Reply, ask_wsgi
from tests.helpers.schedulers import hand_driven_scheduler


class TestHealth:
    @pytest.mark.parametrize(("report", "status"), [(HEALTHY, 200), (UNHEALTHY, 503)])
    def test_status_code_tells_whether_it_is_healthy(
        self, registry: CollectorRegistry, report: Any, status: int
    ) -> None:
        """The report is JSON, and the status code says whether it is healthy."""
        endpoints = HTTPEndpoints(
            registry=registry,
            get_health_report=lambda: report,
            is_healthy=lambda: True,
            report_exception=ReportedErrors(),
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
            registry=registry,
            get_health_report=health,
            is_healthy=lambda: True,
            report_exception=failures,
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


class TestLivez:
    """``/livez``: the status alone, for probes."""

    @pytest.fixture(params=[True, False], ids=["healthy", "unhealthy"])
    def is_healthy(self, request: pytest.FixtureRequest) -> bool:
        return bool(request.param)

    @pytest.fixture
    def endpoints(
        self, registry: CollectorRegistry, failures: ReportedErrors, is_healthy: bool
    ) -> HTTPEndpoints:
        return HTTPEndpoints(
            registry=registry,
            get_health_report=lambda: 1 / 0,  # type: ignore[arg-type, return-value]
            is_healthy=lambda: is_healthy,
            report_exception=failures,
        )

    @pytest.mark.parametrize("mount", ["", "/livez"])
    def test_status_alone_tells_it(
        self, ask: Callable[..., Reply], is_healthy: bool, failures: ReportedErrors, mount: str
    ) -> None:
        """The status tells whether the scheduler is healthy, and no report is made for it."""
        reply = ask("/livez", mount=mount)

        expected = (200, b"healthy\n") if is_healthy else (503, b"unhealthy\n")
        assert (reply.status, reply.body) == expected
        assert reply.headers["cache-control"] == "no-store"
        assert ask("/livez", method="HEAD").status == expected[0]
        assert ask("/livez", method="POST").status == 405
        assert failures == []

    def test_no_thread_is_needed(
        self, ask: Callable[..., Reply], is_healthy: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is answered while all other requests wait."""
        monkeypatch.setattr(limits, "MAX_PENDING_REQUESTS", 0)
        assert ask("/health").status == 503
        assert ask("/livez").status == (200 if is_healthy else 503)

    def test_failure_is_an_error(
        self, registry: CollectorRegistry, failures: ReportedErrors
    ) -> None:
        """If it cannot be told, the status is 500, which fails a probe, too."""
        endpoints = HTTPEndpoints(
            registry=registry,
            get_health_report=dict,
            is_healthy=lambda: bool(1 / 0),
            report_exception=failures,
        )
        assert ask_wsgi(endpoints.wsgi_app, "/livez").status == 500
        assert [component for component, _ in failures] == ["http"]

    def test_cost_does_not_depend_on_jobs(self) -> None:
        """It makes the same number of calls, whatever the number of jobs."""
        scheduler = hand_driven_scheduler()
        telemetry = instrument(scheduler, registry=None)

        def count_calls() -> int:
            calls = itertools.count()
            sys.setprofile(lambda _frame, event, _arg: event == "call" and next(calls))
            try:
                assert ask_wsgi(telemetry.wsgi_app, "/livez").status == 200
            finally:
                sys.setprofile(None)
            return next(calls)

        try:
            scheduler.start()
            count_calls()  # the first one may fill caches
            without_jobs = count_calls()
            for _ in range(200):
                scheduler.add_job(bool, "interval", days=1)
            assert count_calls() == without_jobs
        finally:
            scheduler.shutdown()
            telemetry.uninstrument()
