"""A registry and its endpoints, as WSGI application, as ASGI application and in a server."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge

from apscheduler_telemetry.http import HTTPEndpoints, HTTPServer, limits
from tests.helpers.collectors import HangingCollector, ReportedErrors
from tests.helpers.http_clients import HEALTHY, Reply, ask_asgi_sync, ask_wsgi


@pytest.fixture(autouse=True)
def threads_end_when_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no thread wait for further requests, so that a test sees only its own."""
    monkeypatch.setattr(limits, "IDLE_THREAD_SECONDS", 0.0)


@pytest.fixture
def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    runs = Counter("runs", "Runs.", ["job_id"], registry=registry)
    runs.labels(job_id="nightly").inc(3, exemplar={"trace_id": "abc"})
    Gauge("jobs", "Jobs.", registry=registry).set(7)
    return registry


@pytest.fixture
def failures() -> ReportedErrors:
    return ReportedErrors()


@pytest.fixture
def endpoints(registry: CollectorRegistry, failures: ReportedErrors) -> HTTPEndpoints:
    return HTTPEndpoints(
        registry=registry,
        get_health_report=lambda: HEALTHY,
        is_healthy=lambda: True,
        report_exception=failures,
    )


@pytest.fixture(params=["wsgi", "asgi"])
def ask(request: pytest.FixtureRequest, endpoints: HTTPEndpoints) -> Callable[..., Reply]:
    """Send requests to the WSGI application and, in a second run, to the ASGI application."""
    if request.param == "wsgi":
        return lambda path, **kw: ask_wsgi(endpoints.wsgi_app, path, **kw)
    return lambda path, **kw: ask_asgi_sync(endpoints.asgi_app, path, **kw)


@pytest.fixture
def hanging(registry: CollectorRegistry) -> Iterator[HangingCollector]:
    collector = HangingCollector()
    registry.register(collector)
    yield collector
    collector.release.set()


@pytest.fixture
def server(endpoints: HTTPEndpoints) -> Iterator[HTTPServer]:
    with endpoints.serve(0) as server:
        yield server
