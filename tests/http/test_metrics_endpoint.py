"""The endpoint of metrics: formats, compression, methods, and collectors that fail."""

from __future__ import annotations

import gzip
import random
from collections.abc import Callable
from functools import partial

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from apscheduler_telemetry.http import HTTPEndpoints
from tests.helpers.collectors import RaisingCollector, ReportedErrors
from tests.helpers.http_clients import HEALTHY, OPENMETRICS, Reply, ask_asgi_sync, ask_wsgi, fetch


class TestMetrics:
    def test_text_by_default(self, ask: Callable[..., Reply], registry: CollectorRegistry) -> None:
        """A client without an ``Accept`` header gets the text format."""
        reply = ask("/metrics")

        assert reply.status == 200
        assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
        assert reply.body == generate_latest(registry)
        assert reply.headers["content-length"] == str(len(reply.body))
        assert reply.headers["cache-control"] == "no-store"
        assert reply.headers["x-content-type-options"] == "nosniff"

    def test_openmetrics_has_exemplars(self, ask: Callable[..., Reply]) -> None:
        """A client that accepts OpenMetrics gets it, exemplars included."""
        reply = ask("/metrics", headers={"Accept": f"{OPENMETRICS},text/plain;q=0.5"})

        assert reply.headers["content-type"].startswith("application/openmetrics-text")
        assert 'runs_total{job_id="nightly"} 3.0 # {trace_id="abc"} 3.0' in reply.text
        assert reply.text.endswith("# EOF\n")

    @pytest.mark.parametrize(
        ("accept", "expected"),
        [
            (f"{OPENMETRICS};q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1", OPENMETRICS),
            (f"text/plain,{OPENMETRICS}", OPENMETRICS),
            (f"*/*,{OPENMETRICS};q=x", OPENMETRICS),
            (f"text/plain;q=0,{OPENMETRICS};q=0.1", OPENMETRICS),
            (f"{OPENMETRICS};q=0,text/plain", "text/plain"),
            (f"{OPENMETRICS}; Q=0.0", "text/plain"),
            (f"{OPENMETRICS};q=0.4,text/plain;q=0.5", "text/plain"),
            (f"{OPENMETRICS};q=0.4,*/*", "text/plain"),
            ("image/png", "text/plain"),
        ],
    )
    def test_format_with_the_highest_quality_is_sent(
        self, ask: Callable[..., Reply], accept: str, expected: str
    ) -> None:
        """The format with the highest quality is sent; if equal, OpenMetrics."""
        reply = ask("/metrics", headers={"Accept": accept})

        assert reply.headers["content-type"].startswith(expected.partition(";")[0])

    def test_gzip_with_quality_0_is_not_sent(self, ask: Callable[..., Reply]) -> None:
        """``q=0`` excludes gzip."""
        reply = ask("/metrics", headers={"Accept-Encoding": "gzip;q=0, identity"})

        assert "content-encoding" not in reply.headers
        assert "runs_total" in reply.text

    def test_body_is_compressed_if_the_client_accepts_gzip(
        self, ask: Callable[..., Reply], registry: CollectorRegistry
    ) -> None:
        """A client that accepts gzip gets a compressed body."""
        reply = ask("/metrics", headers={"Accept-Encoding": "deflate, gzip"})

        assert reply.headers["content-encoding"] == "gzip"
        assert gzip.decompress(reply.body) == generate_latest(registry)

    def test_chunks_arrive_as_one_body(
        self, registry: CollectorRegistry, failures: ReportedErrors
    ) -> None:
        """Chunks arrive as one body, compressed or not."""
        pieces = [random.randbytes(size) for size in (1 << 20, 1, 1 << 19)]
        whole = b"".join(pieces)
        endpoints = HTTPEndpoints(
            registry=registry,
            get_health_report=lambda: HEALTHY,
            is_healthy=lambda: True,
            report_exception=failures,
            expose_from_cache=lambda _encode, _names: pieces,
        )
        with endpoints.start_server(0) as server:
            for ask in (
                partial(ask_wsgi, endpoints.wsgi_app, "/metrics"),
                partial(ask_asgi_sync, endpoints.asgi_app, "/metrics"),
                partial(fetch, server),
            ):
                reply = ask()
                assert (int(reply.headers["content-length"]), reply.body) == (len(whole), whole)
                head = ask(method="HEAD")
                assert (head.status, head.body) == (200, b"")
                assert {**head.headers, "date": ""} == {**reply.headers, "date": ""}
                reply = ask(headers={"Accept-Encoding": "gzip"})
                assert int(reply.headers["content-length"]) == len(reply.body)
                assert gzip.decompress(reply.body) == whole
        assert not failures

    @pytest.mark.parametrize("ask", [ask_wsgi, ask_asgi_sync])
    def test_page_is_missing_without_a_registry(
        self, failures: ReportedErrors, ask: Callable[..., Reply]
    ) -> None:
        """Without a registry there are the other pages, which link to no metrics."""
        endpoints = HTTPEndpoints(
            registry=None,
            get_health_report=lambda: HEALTHY,
            is_healthy=lambda: True,
            report_exception=failures,
        )
        app = endpoints.wsgi_app if ask is ask_wsgi else endpoints.asgi_app
        reply = ask(app, "/metrics")
        assert (reply.status, reply.text) == (404, "Not found. There are /health and /livez.\n")
        assert ask(app, "/health").json == HEALTHY
        assert "metrics" not in ask(app, "/").text
        assert failures == []

    def test_name_parameter_restricts_the_samples(self, ask: Callable[..., Reply]) -> None:
        """``name[]`` restricts the response to samples of these names."""
        reply = ask("/metrics", query="name[]=jobs&name%5B%5D=nothing")

        assert "jobs 7.0" in reply.text
        assert "runs_total" not in reply.text

    def test_head_has_the_headers_of_get_and_no_body(
        self, ask: Callable[..., Reply], registry: CollectorRegistry
    ) -> None:
        """HEAD returns the same headers as GET, and no body."""
        reply = ask("/metrics", method="HEAD")

        assert reply.status == 200
        assert reply.body == b""
        assert reply.headers["content-length"] == str(len(generate_latest(registry)))

    @pytest.mark.parametrize("path", ["/metrics", "/health", "/"])
    def test_other_methods_are_rejected_with_the_allowed_ones(
        self, ask: Callable[..., Reply], path: str
    ) -> None:
        """Other methods are rejected, and the response lists the allowed ones."""
        reply = ask(path, method="POST")

        assert (reply.status, reply.headers["allow"]) == (405, "GET, HEAD, OPTIONS")

    @pytest.mark.parametrize("path", ["/metrics", "/health", "/"])
    def test_options_lists_the_allowed_methods(self, ask: Callable[..., Reply], path: str) -> None:
        """OPTIONS lists the allowed methods."""
        reply = ask(path, method="OPTIONS")

        assert (reply.status, reply.body) == (200, b"")
        assert reply.headers["allow"] == "GET, HEAD, OPTIONS"

    @pytest.mark.parametrize(
        "accept",
        [
            "application/openmetrics-text; version=x",
            "application/openmetrics-text; version=2.\r\n Set-Cookie: a=b",
            "application/openmetrics-text; version=2.\xff",
            "text/plain; version=1.0.x",
            ",;=,;;==,version",
            "*" * 60000,
        ],
    )
    def test_invalid_accept_header_gets_the_text_format(
        self, ask: Callable[..., Reply], accept: str
    ) -> None:
        """An invalid ``Accept`` header gets a text format, and no part of it is sent back."""
        reply = ask("/metrics", headers={"Accept": accept})

        assert reply.status == 200
        assert "runs_total" in reply.text
        assert reply.headers["content-type"].isprintable()
        assert reply.headers["content-type"].isascii()

    @pytest.mark.parametrize("error", [ValueError("boom"), SystemExit(3)])
    def test_collector_that_raises_leads_to_500_and_is_reported(
        self,
        ask: Callable[..., Reply],
        registry: CollectorRegistry,
        failures: ReportedErrors,
        error: BaseException,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        """A collector that raises leads to a 500 without details, and is reported."""
        registry.register(RaisingCollector(error))

        reply = ask("/metrics")

        assert reply.status == 500
        assert reply.text.count("\n") == 1
        assert "boom" not in reply.text
        [(component, handled)] = failures
        assert component == "http"
        assert repr(error) in (repr(handled), str(handled))
        assert capfd.readouterr().err == ""
