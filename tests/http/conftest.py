"""A registry and its endpoints, as WSGI application, as ASGI application and in a server."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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
    with endpoints.start_server(0) as server:
        yield server


@pytest.fixture(scope="module")
def certificate_authority() -> Any:
    return pytest.importorskip("trustme").CA()


@pytest.fixture(scope="module")
def certificates(certificate_authority: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a directory with certificates for a server."""
    directory = tmp_path_factory.mktemp("certificates")
    issued = certificate_authority.issue_cert("127.0.0.1")
    issued.private_key_and_cert_chain_pem.write_to_path(directory / "both.pem")
    issued.private_key_pem.write_to_path(directory / "key.pem")
    issued.cert_chain_pems[0].write_to_path(directory / "cert.pem")
    certificate_authority.cert_pem.write_to_path(directory / "ca.pem")
    (directory / "invalid.pem").write_text("invalid")
    return directory


@pytest.fixture
def trusting_context(certificate_authority: Any) -> ssl.SSLContext:
    """Create the TLS context of a client that trusts the server."""
    context = ssl.create_default_context()
    certificate_authority.configure_trust(context)
    return context
