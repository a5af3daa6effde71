"""
Tests of the HTTP endpoints and of the built-in server.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import errno
import gzip
import http.client
import itertools
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timezone
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from apscheduler.executors.debug import DebugExecutor
from prometheus_client import CollectorRegistry, Counter, Gauge, Metric, generate_latest
from prometheus_client.exposition import choose_encoder

from apscheduler_telemetry import Telemetry, errors, instrument
from apscheduler_telemetry.http import HTTPEndpoints, HTTPServer, limits
from support import HandDriven, frozen
from support_http import (
    PATIENCE,
    Reply,
    ask_asgi,
    ask_asgi_sync,
    ask_wsgi,
    read_all,
    send_raw,
    wait_until,
)

OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
HEALTHY = {"status": "healthy", "reasons": [], "jobs": [{"id": "nightly"}]}
UNHEALTHY = {"status": "unhealthy", "reasons": [{"code": "loop_dead", "message": "It died."}]}
GET_METRICS = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"


class ReportedErrors(list[tuple[str, BaseException | None]]):
    """Collects the components that failed, with the exception that was being handled."""

    def __call__(self, component: str) -> None:
        self.append((component, sys.exc_info()[1]))


class RaisingCollector:
    """A collector of a user that raises."""

    def __init__(self, error: BaseException, names: Sequence[str] = ()) -> None:
        self.error = error
        self.names = names

    def describe(self) -> list[Any]:
        return [Metric(name, "", "gauge") for name in self.names]

    def collect(self) -> list[Any]:
        raise self.error


class HangingCollector:
    """A collector of a user that blocks until it is released."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.release = threading.Event()

    def describe(self) -> list[Any]:
        return []

    def collect(self) -> list[Any]:
        self.entered.release()
        self.release.wait(PATIENCE)
        return []


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
        registry=registry, get_health_report=lambda: HEALTHY, report_exception=failures
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


def address(server: HTTPServer) -> tuple[str, int]:
    return server.addr, server.port


def fetch(server: HTTPServer, path: str = "/metrics", method: str = "GET", **kw: Any) -> Reply:
    """Send a well-formed request to a server."""
    client = http.client.HTTPConnection(server.addr, server.port, timeout=PATIENCE)
    if "context" in kw:
        client = http.client.HTTPSConnection(
            server.addr, server.port, timeout=PATIENCE, context=kw.pop("context")
        )
    try:
        client.request(method, path, **kw)
        response = client.getresponse()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return Reply(response.status, headers, response.read())
    finally:
        client.close()


class TestMetrics:
    def test_text_by_default(self, ask: Callable[..., Reply], registry: CollectorRegistry) -> None:
        """A client without an ``Accept`` header gets the text format."""
        reply = ask("/metrics")

        assert reply.status == 200
        assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
        assert reply.body == generate_latest(registry)
        assert reply.headers["content-length"] == str(len(reply.body))

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
    def test_preferred_format(self, ask: Callable[..., Reply], accept: str, expected: str) -> None:
        """The format with the highest quality is sent, and OpenMetrics if both have the same."""
        reply = ask("/metrics", headers={"Accept": accept})

        assert reply.headers["content-type"].startswith(expected.partition(";")[0])

    def test_gzip_excluded(self, ask: Callable[..., Reply]) -> None:
        """``q=0`` excludes gzip."""
        reply = ask("/metrics", headers={"Accept-Encoding": "gzip;q=0, identity"})

        assert "content-encoding" not in reply.headers
        assert "runs_total" in reply.text

    def test_gzip(self, ask: Callable[..., Reply], registry: CollectorRegistry) -> None:
        """A client that accepts gzip gets a compressed body."""
        reply = ask("/metrics", headers={"Accept-Encoding": "deflate, gzip"})

        assert reply.headers["content-encoding"] == "gzip"
        assert gzip.decompress(reply.body) == generate_latest(registry)

    def test_chunks(self, registry: CollectorRegistry, failures: ReportedErrors) -> None:
        """Chunks arrive as one body, compressed or not."""
        pieces = [random.randbytes(size) for size in (1 << 20, 1, 1 << 19)]
        whole = b"".join(pieces)
        endpoints = HTTPEndpoints(
            registry=registry,
            get_health_report=lambda: HEALTHY,
            report_exception=failures,
            expose_from_cache=lambda _encode, _names: pieces,
        )
        with endpoints.serve(0) as server:
            for ask in (
                partial(ask_wsgi, endpoints.wsgi_app, "/metrics"),
                partial(ask_asgi_sync, endpoints.asgi_app, "/metrics"),
                partial(fetch, server),
            ):
                reply = ask()
                assert (int(reply.headers["content-length"]), reply.body) == (len(whole), whole)
                assert ask(method="HEAD") == (200, reply.headers, b"")
                reply = ask(headers={"Accept-Encoding": "gzip"})
                assert int(reply.headers["content-length"]) == len(reply.body)
                assert gzip.decompress(reply.body) == whole
        assert not failures

    def test_name_filter(self, ask: Callable[..., Reply]) -> None:
        """``name[]`` restricts the response to samples of these names."""
        reply = ask("/metrics", query="name[]=jobs&name%5B%5D=nothing")

        assert "jobs 7.0" in reply.text
        assert "runs_total" not in reply.text

    def test_head(self, ask: Callable[..., Reply], registry: CollectorRegistry) -> None:
        """HEAD returns the same headers as GET, and no body."""
        reply = ask("/metrics", method="HEAD")

        assert reply.status == 200
        assert reply.body == b""
        assert reply.headers["content-length"] == str(len(generate_latest(registry)))

    @pytest.mark.parametrize("path", ["/metrics", "/health", "/"])
    def test_disallowed_methods(self, ask: Callable[..., Reply], path: str) -> None:
        """Other methods are rejected, and the response lists the allowed ones."""
        reply = ask(path, method="POST")

        assert (reply.status, reply.headers["allow"]) == (405, "GET, HEAD, OPTIONS")

    @pytest.mark.parametrize("path", ["/metrics", "/health", "/"])
    def test_options(self, ask: Callable[..., Reply], path: str) -> None:
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
    def test_invalid_accept(self, ask: Callable[..., Reply], accept: str) -> None:
        """An invalid ``Accept`` header gets a text format, and no part of it is sent back."""
        reply = ask("/metrics", headers={"Accept": accept})

        assert reply.status == 200
        assert "runs_total" in reply.text
        assert reply.headers["content-type"].isprintable()
        assert reply.headers["content-type"].isascii()

    @pytest.mark.parametrize("error", [ValueError("boom"), SystemExit(3)])
    def test_collector_that_raises(
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


class TestNameFilter:
    """``name[]`` with an instrumented scheduler, whose lines are cached."""

    FORMATS = (
        "",
        OPENMETRICS,
        "application/openmetrics-text; version=1.0.0; escaping=dots",
        "text/plain; version=1.0.0; escaping=allow-utf-8",
    )
    DURATION = "apscheduler_job_run_duration_seconds"
    JOBS = 40

    @pytest.fixture
    def telemetry(self, registry: CollectorRegistry) -> Iterator[Telemetry]:
        """Instrument two schedulers on one registry, one of them with jobs that have run."""
        with frozen() as clock:
            scheduler = HandDriven(executors={"default": DebugExecutor()}, timezone=timezone.utc)
            telemetry = instrument(scheduler, registry=registry)
            other = instrument(HandDriven(timezone=timezone.utc), name="other", registry=registry)
            scheduler.start()
            for number in range(self.JOBS):
                label = f"{number}\n{self.DURATION}_sum{{" if number % 2 else str(number)
                scheduler.add_job(bool, "interval", seconds=number + 1, id=label)
            clock.advance(100)
            scheduler.turn()
            yield telemetry
            scheduler.shutdown()
            telemetry.uninstrument()
            other.uninstrument()

    @pytest.mark.parametrize("accept", FORMATS)
    @pytest.mark.parametrize(
        "names",
        [
            ["apscheduler_scheduler_up"],
            ["apscheduler_job_runs_total", "jobs"],
            ["apscheduler_job_runs", "apscheduler_scheduler_info", "nothing"],
            [f"{DURATION}_bucket"],
            [f"{DURATION}_count"],
            [f"{DURATION}_sum"],
            [f"{DURATION}_bucket", f"{DURATION}_sum"],
            [f"{DURATION}_sum", f"{DURATION}_bucket", f"{DURATION}_count"],
            [DURATION],
            ["jobs"],
            ["nothing"],
            ["apscheduler_telemetry_place"],
        ],
        ids=" ".join,
    )
    def test_same_samples_as_the_library(
        self, telemetry: Telemetry, registry: CollectorRegistry, accept: str, names: list[str]
    ) -> None:
        """The response has the families of the library's restricted registry."""
        query = "&".join(f"name[]={name}" for name in names)
        encode, _ = choose_encoder(accept)
        expected = encode(registry.restricted_registry(names)).decode()

        for _ in range(2):  # the second response comes from cached lines
            body = ask_wsgi(
                telemetry.wsgi_app, "/metrics", query=query, headers={"Accept": accept}
            ).text
            families = body.removesuffix("# EOF\n").split("# HELP ")
            assert sorted(families) == sorted(expected.removesuffix("# EOF\n").split("# HELP "))
            assert body.endswith("# EOF\n") == expected.endswith("# EOF\n")

    @pytest.mark.parametrize("name", ["apscheduler_scheduler_up", f"{DURATION}_bucket"])
    def test_uses_cached_lines(self, telemetry: Telemetry, name: str) -> None:
        """Cached lines are reused: a filter costs at most two Python calls per job more."""
        ask_wsgi(telemetry.wsgi_app, "/metrics")

        whole = calls_in_threads(lambda: ask_wsgi(telemetry.wsgi_app, "/metrics"))
        filtered = calls_in_threads(
            lambda: ask_wsgi(telemetry.wsgi_app, "/metrics", query=f"name[]={name}")
        )

        assert 0 < filtered < whole + 2 * self.JOBS

    def test_other_collectors_are_not_called(
        self, telemetry: Telemetry, registry: CollectorRegistry
    ) -> None:
        """Collectors that have none of the names are not called."""
        registry.register(RaisingCollector(ValueError("boom"), names=["broken"]))

        query = "name[]=apscheduler_scheduler_up"
        assert ask_wsgi(telemetry.wsgi_app, "/metrics", query=query).status == 200
        assert ask_wsgi(telemetry.wsgi_app, "/metrics").status == 500


def calls_in_threads(function: Callable[[], Any]) -> int:
    """Return how many Python functions are called in threads that `function` starts."""
    calls = itertools.count()
    threading.setprofile(lambda _frame, event, _arg: event == "call" and next(calls))
    try:
        function()
    finally:
        threading.setprofile(None)
    return next(calls)


class TestHealth:
    @pytest.mark.parametrize(("report", "status"), [(HEALTHY, 200), (UNHEALTHY, 503)])
    def test_status(self, registry: CollectorRegistry, report: Any, status: int) -> None:
        """The report is JSON, and the status code alone tells whether it is healthy."""
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
    def test_failure(
        self, registry: CollectorRegistry, failures: ReportedErrors, health: Any
    ) -> None:
        """A report that cannot be produced counts as unhealthy, without a traceback."""
        endpoints = HTTPEndpoints(
            registry=registry, get_health_report=health, report_exception=failures
        )

        reply = ask_wsgi(endpoints.wsgi_app, "/health")

        assert (reply.status, reply.json["status"]) == (503, "unhealthy")
        assert reply.json["reasons"][0]["code"] == "health_failed"
        assert "Traceback" not in reply.text
        assert [component for component, _ in failures] == ["http"]

    def test_head(self, ask: Callable[..., Reply]) -> None:
        """HEAD returns the status code of the report."""
        reply = ask("/health", method="HEAD")

        assert (reply.status, reply.body) == (200, b"")


class TestOtherPaths:
    @pytest.mark.parametrize("path", ["/metric", "/metrics/x", "/%zz%ff", "/\xff\xfe", "/../etc"])
    def test_unknown(self, ask: Callable[..., Reply], path: str) -> None:
        """An unknown path leads to a 404 that lists the known ones."""
        reply = ask(path)

        assert reply.status == 404
        assert reply.text == "Not found. There are /metrics and /health.\n"

    def test_landing_page(self, ask: Callable[..., Reply]) -> None:
        """The landing page links to both pages below the mount point."""
        reply = ask("/", mount="/ops/x y")

        assert reply.status == 200
        assert reply.headers["content-type"].startswith("text/html")
        assert 'href="/ops/x%20y/metrics"' in reply.text
        assert 'href="/ops/x%20y/health"' in reply.text

    @pytest.mark.parametrize("path", ["/metrics/", "/health/"])
    def test_trailing_slash(self, ask: Callable[..., Reply], path: str) -> None:
        """A trailing slash is ignored."""
        assert ask(path).status == 200


class TestMounting:
    @pytest.mark.parametrize(
        ("mount", "path"),
        [
            ("", "/health"),
            ("/ops", "/health"),
            ("/ops", "/ops/health"),
            ("/api/ops", "/ops/health"),
            ("/ops/", "/ops/health"),
            ("/health", ""),
            ("/health", "/"),
            ("/health", "/health"),
            ("/health", "/health/"),
            ("/api/health", "/api/health"),
            ("/api/health", "/health"),
            ("/metrics", "/metrics/health"),
        ],
    )
    def test_mount_points(self, ask: Callable[..., Reply], mount: str, path: str) -> None:
        """Pages are found below any mount point, in all ways in which servers pass it."""
        assert ask(path, mount=mount).json == HEALTHY

    @pytest.mark.parametrize(("mount", "path"), [("/ops", "/opsx/health"), ("/ops", "/x")])
    def test_similar_prefix(self, ask: Callable[..., Reply], mount: str, path: str) -> None:
        """A path that only shares a prefix with the mount point is unknown."""
        assert ask(path, mount=mount).status == 404

    @pytest.mark.parametrize("path", ["/metrics", "/metrics/", "/ops/metrics", "/ops/metrics/"])
    def test_werkzeug(self, endpoints: HTTPEndpoints, path: str) -> None:
        """It works below Werkzeug's dispatcher, mounted at the path of a page or elsewhere."""
        dispatcher = pytest.importorskip("werkzeug.middleware.dispatcher")
        flask = pytest.importorskip("flask")
        mounts = {"/metrics": endpoints.wsgi_app, "/ops": endpoints.wsgi_app}
        app = dispatcher.DispatcherMiddleware(flask.Flask(__name__), mounts)

        assert "runs_total" in ask_wsgi(app, path).text

    @pytest.mark.parametrize("root_path", ["", "/proxy"])
    @pytest.mark.parametrize(
        "path", ["/metrics", "/bare/metrics/", "/ops/metrics", "/ops/metrics/"]
    )
    def test_starlette(self, endpoints: HTTPEndpoints, path: str, root_path: str) -> None:
        """It works below Starlette's routes, also behind proxies that strip a prefix or not."""
        routing = pytest.importorskip("starlette.routing")
        app = routing.Router(
            [
                routing.Route("/metrics", endpoints.asgi_app),
                routing.Mount("/bare/metrics", endpoints.asgi_app),
                routing.Mount("/ops", endpoints.asgi_app),
            ]
        )

        for given in (path, root_path + path):
            assert "runs_total" in ask_asgi_sync(app, given, mount=root_path).text


class TestAsgi:
    def test_collects_off_the_loop(self, registry: CollectorRegistry) -> None:
        """Collecting uses neither the loop's thread nor its default executor, which may be full."""
        names: list[str] = []

        class ThreadNameCollector(RaisingCollector):
            def collect(self) -> list[Any]:
                names.append(threading.current_thread().name)
                return []

        registry.register(ThreadNameCollector(RuntimeError()))
        endpoints = HTTPEndpoints(
            registry=registry, get_health_report=dict, report_exception=ReportedErrors()
        )
        busy = threading.Event()

        async def main() -> Reply:
            loop = asyncio.get_running_loop()
            loop.set_default_executor(concurrent.futures.ThreadPoolExecutor(1))
            job = loop.run_in_executor(None, busy.wait, PATIENCE)
            try:
                return await ask_asgi(endpoints.asgi_app, "/metrics")
            finally:
                busy.set()
                await job

        assert asyncio.run(main()).status == 200
        assert names == ["apscheduler-telemetry-collect"]

    def test_hanging_collector_leaves_health(
        self, endpoints: HTTPEndpoints, hanging: HangingCollector
    ) -> None:
        """While all threads for scrapes hang, the loop runs and ``/health`` responds."""

        async def main() -> Reply:
            ask = [
                asyncio.create_task(ask_asgi(endpoints.asgi_app, "/metrics"))
                for _ in range(limits.MAX_THREADS_PER_PAGE + 5)
            ]
            for _ in range(limits.MAX_THREADS_PER_PAGE):
                assert await asyncio.to_thread(hanging.entered.acquire, timeout=PATIENCE)
            reply = await asyncio.wait_for(ask_asgi(endpoints.asgi_app, "/health"), PATIENCE / 2)
            hanging.release.set()
            assert {(await task).status for task in ask} == {200}
            return reply

        assert asyncio.run(main()).json == HEALTHY

    def test_concurrent_requests(self, endpoints: HTTPEndpoints) -> None:
        """Hundreds of concurrent scrapes all succeed."""

        async def main() -> list[Reply]:
            return await asyncio.gather(
                *(ask_asgi(endpoints.asgi_app, "/metrics") for _ in range(300))
            )

        assert {reply.status for reply in asyncio.run(main())} == {200}

    def test_client_that_disconnects(
        self, endpoints: HTTPEndpoints, failures: ReportedErrors
    ) -> None:
        """A client that has disconnected before the response is not reported as an error."""

        async def send(_message: Any) -> None:
            raise ConnectionResetError

        async def main() -> None:
            scope = {"type": "http", "method": "GET", "path": "/metrics", "headers": []}
            await endpoints.asgi_app(scope, send, send)  # type: ignore[arg-type]

        asyncio.run(main())
        assert failures == []

    def test_loop_that_closes_during_a_scrape(
        self, endpoints: HTTPEndpoints, hanging: HangingCollector, capfd: pytest.CaptureFixture[str]
    ) -> None:
        """A loop that closes during a scrape leads to no output."""

        async def main() -> None:
            task = asyncio.create_task(ask_asgi(endpoints.asgi_app, "/metrics"))
            await asyncio.to_thread(hanging.entered.acquire, timeout=PATIENCE)
            task.cancel()

        asyncio.run(main())
        hanging.release.set()
        wait_until(
            lambda: "apscheduler-telemetry-collect" not in threads(), "the end of the thread"
        )
        assert capfd.readouterr().err == ""

    def test_lifespan(self, endpoints: HTTPEndpoints) -> None:
        """It completes the lifespan protocol."""
        incoming = iter(["lifespan.startup", "lifespan.shutdown"])
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": next(incoming)}

        async def send(message: Any) -> None:
            sent.append(message)

        asyncio.run(endpoints.asgi_app({"type": "lifespan"}, receive, send))
        assert sent == [
            {"type": "lifespan.startup.complete"},
            {"type": "lifespan.shutdown.complete"},
        ]

    def test_websocket(self, endpoints: HTTPEndpoints) -> None:
        """Websockets are rejected."""
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "websocket.connect"}

        async def send(message: Any) -> None:
            sent.append(message)

        asyncio.run(endpoints.asgi_app({"type": "websocket"}, receive, send))
        assert sent == [{"type": "websocket.close"}]

    def test_unknown_scope(self, endpoints: HTTPEndpoints) -> None:
        """An unknown scope type raises, as the ASGI specification requires."""
        with pytest.raises(ValueError, match="'smoke'"):
            asyncio.run(endpoints.asgi_app({"type": "smoke"}, None, None))  # type: ignore[arg-type]

    def test_uvicorn(self, endpoints: HTTPEndpoints) -> None:
        """It works with a real ASGI server, also for HEAD on a kept-alive connection."""
        uvicorn = pytest.importorskip("uvicorn")
        config = uvicorn.Config(endpoints.asgi_app, port=0, log_level="critical")
        uvicorn_server = uvicorn.Server(config)
        thread = threading.Thread(target=uvicorn_server.run)
        thread.start()
        try:
            wait_until(lambda: uvicorn_server.started, "the start of uvicorn")
            host, port = uvicorn_server.servers[0].sockets[0].getsockname()
            client = http.client.HTTPConnection(host, port, timeout=PATIENCE)
            client.request("HEAD", "/metrics")
            assert client.getresponse().read() == b""
            client.request("GET", "/metrics")  # on the same connection, which HEAD must not break
            assert b"runs_total" in client.getresponse().read()
            client.close()
        finally:
            uvicorn_server.should_exit = True
            thread.join()


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


class TestThreads:
    def test_threads_end_when_idle(self, endpoints: HTTPEndpoints) -> None:
        """Threads end when no request is waiting."""
        assert ask_wsgi(endpoints.wsgi_app, "/metrics").status == 200

        wait_until(
            lambda: "apscheduler-telemetry-collect" not in threads(), "the end of the thread"
        )

    def test_response_timeout(
        self,
        ask: Callable[..., Reply],
        hanging: HangingCollector,
        failures: ReportedErrors,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """A scrape that takes too long fails, and the next one works."""
        monkeypatch.setattr(limits, "RENDER_TIMEOUT", 0.05)
        assert ask("/metrics").status == 500
        assert len(failures) == 1

        hanging.release.set()
        monkeypatch.setattr(limits, "RENDER_TIMEOUT", PATIENCE)
        assert ask("/metrics").status == 200

    def test_hanging_scrapes_are_bounded(
        self,
        endpoints: HTTPEndpoints,
        hanging: HangingCollector,
        failures: ReportedErrors,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """If a collector hangs, the numbers of threads and waiting requests stay bounded."""
        monkeypatch.setattr(limits, "RENDER_TIMEOUT", 0.01)
        monkeypatch.setattr(limits, "MAX_PENDING_REQUESTS", 5)

        for _ in range(limits.MAX_THREADS_PER_PAGE + 10):
            assert ask_wsgi(endpoints.wsgi_app, "/metrics").status == 500

        running = [t for t in threading.enumerate() if t.name == "apscheduler-telemetry-collect"]
        assert len(running) == limits.MAX_THREADS_PER_PAGE
        assert "does a collector hang?" in str(failures[-1][1])

        hanging.release.set()
        monkeypatch.setattr(limits, "RENDER_TIMEOUT", PATIENCE)
        wait_until(lambda: ask_wsgi(endpoints.wsgi_app, "/metrics").status == 200, "a scrape")

    def test_interpreter_exits(self, tmp_path: Path) -> None:
        """The interpreter exits while a collector hangs."""
        program = tmp_path / "program.py"
        program.write_text(
            textwrap.dedent("""
            import threading
            from prometheus_client import CollectorRegistry
            from apscheduler_telemetry.http import HTTPEndpoints, limits

            class HangingCollector:
                def describe(self): return []
                def collect(self): threading.Event().wait()

            registry = CollectorRegistry()
            registry.register(HangingCollector())
            limits.RENDER_TIMEOUT = 0.1
            endpoints = HTTPEndpoints(
                registry=registry, get_health_report=dict, report_exception=lambda _: None
            )
            endpoints.serve(0)
            environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/metrics"}
            print(endpoints.wsgi_app(environ, lambda status, headers: print(status)))
            """)
        )
        done = subprocess.run(
            [sys.executable, "-W", "error", program],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("500 ")

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
    def test_forked_child(
        self, endpoints: HTTPEndpoints, hanging: HangingCollector, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A child that is forked while all threads are busy can serve requests."""
        monkeypatch.setattr(limits, "MAX_THREADS_PER_PAGE", 1)
        scrape = threading.Thread(target=ask_wsgi, args=(endpoints.wsgi_app, "/metrics"))
        scrape.start()
        assert hanging.entered.acquire(timeout=PATIENCE)

        def child() -> bool:
            hanging.release.set()
            return all(ask_wsgi(endpoints.wsgi_app, "/metrics").status == 200 for _ in range(9))

        assert in_fork(child)
        hanging.release.set()
        scrape.join()


def in_fork(check: Callable[[], bool]) -> bool:
    """Return what `check` returns in a forked child; false if it hangs or raises."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            code = 0 if check() else 2
        finally:
            os._exit(code)
    try:
        _, status = wait_until(lambda: any(found := os.waitpid(pid, os.WNOHANG)) and found)
    except AssertionError:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return False
    return bool(os.waitstatus_to_exitcode(status) == 0)


class TestServe:
    def test_serves(self, server: HTTPServer) -> None:
        """The server serves all pages on loopback, and its handle has the address."""
        assert server.addr == "127.0.0.1"
        assert server.url == f"http://127.0.0.1:{server.port}"
        assert "runs_total" in fetch(server).text
        assert fetch(server, "/health").json == HEALTHY
        assert fetch(server, "/").status == 200

    def test_concurrent_requests(self, server: HTTPServer) -> None:
        """A hundred concurrent clients all succeed."""
        with concurrent.futures.ThreadPoolExecutor(100) as pool:
            replies = list(pool.map(lambda _: fetch(server), range(200)))

        assert {reply.status for reply in replies} == {200}

    def test_ipv6(self, endpoints: HTTPEndpoints) -> None:
        """An IPv6 address works, and stands in brackets in the URL."""
        try:
            socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        except OSError:
            pytest.skip("no IPv6 here")
        with endpoints.serve(0, "::1") as server:
            assert server.url == f"http://[::1]:{server.port}"
            assert fetch(server).status == 200

    def test_close_frees_the_port(self, endpoints: HTTPEndpoints) -> None:
        """A closed port can be served again immediately."""
        with endpoints.serve(0) as server:
            port = server.port
        for _ in range(10):
            server = endpoints.serve(port)
            assert fetch(server).status == 200
            server.close()
            server.close()
            with pytest.raises(ConnectionRefusedError):
                send_raw(address(server))

    def test_close_ends_connections(self, endpoints: HTTPEndpoints) -> None:
        """Closing waits neither for a silent client nor for one in the middle of a request."""
        server = endpoints.serve(0)
        silent = socket.create_connection(address(server), timeout=PATIENCE)
        halfway = socket.create_connection(address(server), timeout=PATIENCE)
        halfway.sendall(b"GET /metrics HTTP/1.1\r\nHo")
        fetch(server)  # after this response the others have been accepted
        began = time.monotonic()

        server.close()

        assert time.monotonic() - began < PATIENCE / 2
        for connection in (silent, halfway):
            assert read_all(connection) == b""
            connection.close()

    def test_close_by_several_threads(self, endpoints: HTTPEndpoints) -> None:
        """Several threads may close concurrently; all return when the port is free."""
        server = endpoints.serve(0)
        closing = [threading.Thread(target=server.close) for _ in range(5)]
        for thread in closing:
            thread.start()
        for thread in closing:
            thread.join(PATIENCE)
        assert not any(thread.is_alive() for thread in closing)
        endpoints.serve(server.port).close()

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
    def test_forked_child_that_closes(self, endpoints: HTTPEndpoints) -> None:
        """A forked child that closes its copy of the server affects neither port nor parent."""
        read_end, write_end = os.pipe()
        with endpoints.serve(0) as server:
            pid = os.fork()
            if not pid:
                server.close()
                os.read(read_end, 1)
                os._exit(0)
            try:
                assert fetch(server).status == 200
                server.close()
                endpoints.serve(server.port).close()
            finally:
                os.write(write_end, b"x")
                os.waitpid(pid, 0)
                os.close(read_end)
                os.close(write_end)

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
    def test_forked_child_that_outlives_its_parent(self, endpoints: HTTPEndpoints) -> None:
        """A forked child that outlives its parent does not hold the port."""
        port_read, port_write = os.pipe()
        end_read, end_write = os.pipe()
        pid = os.fork()
        if not pid:
            server = endpoints.serve(0)
            if os.fork():
                os._exit(0)  # like a killed process, closes nothing
            os.close(end_write)
            os.write(port_write, str(server.port).encode())
            os.read(end_read, 1)
            os._exit(0)
        try:
            os.waitpid(pid, 0)
            endpoints.serve(int(os.read(port_read, 10))).close()
        finally:
            for end in (port_read, port_write, end_read, end_write):
                os.close(end)

    def test_taken_port(self, endpoints: HTTPEndpoints, server: HTTPServer) -> None:
        """A taken port raises an error that names it and says what to do."""
        with pytest.raises(
            OSError, match=rf"127\.0\.0\.1:{server.port}.*pass another port"
        ) as info:
            endpoints.serve(server.port)

        assert info.value.errno == errno.EADDRINUSE

    @pytest.mark.parametrize("addr", ["192.0.2.1", "no such host", "x" * 70, "a\0b"])
    def test_address_of_another_machine(self, endpoints: HTTPEndpoints, addr: str) -> None:
        """An address of another machine raises an error that says what to pass."""
        with pytest.raises(OSError, match="pass an addr of this machine"):
            endpoints.serve(0, addr)

    @pytest.mark.parametrize("port", ["9476", 9476.0, None, True])
    def test_port_of_a_wrong_type(self, endpoints: HTTPEndpoints, port: Any) -> None:
        """A port that is not an int raises an error that says what to pass."""
        with pytest.raises(errors.ArgumentTypeError, match="pass one of 0 to 65535"):
            endpoints.serve(port)

    @pytest.mark.parametrize("port", [-1, 65536])
    def test_port_out_of_range(self, endpoints: HTTPEndpoints, port: int) -> None:
        """A port out of range raises an error that says what to pass."""
        with pytest.raises(errors.ArgumentValueError, match="pass one of 0 to 65535"):
            endpoints.serve(port)

    @pytest.mark.parametrize("addr", [None, 127, b"127.0.0.1"])
    def test_addr_of_a_wrong_type(self, endpoints: HTTPEndpoints, addr: Any) -> None:
        """An address that is not a str raises an error that says what to pass."""
        with pytest.raises(errors.ArgumentTypeError, match=r"'127\.0\.0\.1'"):
            endpoints.serve(0, addr)

    def test_empty_addr(self, endpoints: HTTPEndpoints) -> None:
        """An empty address raises: listening on all addresses must be explicit."""
        with pytest.raises(errors.ArgumentValueError, match=r"'0\.0\.0\.0'"):
            endpoints.serve(0, "")


class TestHostileClients:
    @pytest.fixture(autouse=True)
    def server_is_intact(
        self, server: HTTPServer, failures: ReportedErrors, capfd: pytest.CaptureFixture[str]
    ) -> Iterator[None]:
        """After each test the server still works, and nothing was printed or reported."""
        yield
        assert fetch(server).status == 200
        server.close()
        assert capfd.readouterr().err == ""
        assert failures == []

    @pytest.mark.parametrize(
        ("sent_bytes", "status"),
        [
            (b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 100_000 + b"\r\n\r\n", 431),
            (b"GET /metrics HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n", 431),
            (b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n", 414),
            (b"GET\r\n\r\n", 400),
            (b"GET /metrics HTTP/x.y\r\n\r\n", 400),
            (b"GET /metrics HTTP/9.9\r\n\r\n", 505),
            (b"GET /metrics is what I want HTTP/1.1\r\n\r\n", 400),
            (b"BREW /metrics HTTP/1.1\r\n\r\n", 405),
            (b"POST /metrics HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", 405),
            (b"GET /nothing HTTP/1.1\r\n\r\n", 404),
            (b"GET /%zz%ff%00%0d%0aX:%20y HTTP/1.1\r\n\r\n", 404),
            (b"GET /\xff\xfe HTTP/1.1\r\n\r\n", 404),
            (b"GET /metrics?%zz&name=\xff&&== HTTP/1.1\r\n\r\n", 200),
            (b"GET /metrics HTTP/1.1\r\nX: \xfe\xff\r\nAccept: \xff\r\n\r\n", 200),
            (b"GET /metrics HTTP/1.1\r\nX-\xff: y\r\n\r\n", 400),
            (b"GET /metrics HTTP/1.1\r\nno colon here\r\nHost: x\r\n\r\n", 400),
            (b"GET /metrics HTTP/1.1\r\n: no name\r\n\r\n", 400),
            (b"GET /metrics HTTP/1.1\r\nX: a fold\r\n of 1999\r\n\r\n", 400),
            (b"GET /metrics HTTP/1.1\r\nX: a nought\0\r\n\r\n", 400),
            (b"GET /metrics HTTP/1.1\r\nContent-Length: many\r\n\r\n", 400),
            (b"GET /metrics HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
            (b"GET /metrics HTTP/1.1\r\nContent-Length: 0 \r\n\r\n", 200),
            (b"GET /metrics HTTP/1.1\r\nAccept: " + b"a/b;q=x," * 5000 + b"\r\n\r\n", 200),
            (b"GET /metrics HTTP/1.1\r\nConnection: keep-alive\r\n\r\n" + GET_METRICS, 200),
            (b"GET http://elsewhere/metrics HTTP/1.1\r\n\r\n", 404),
        ],
        ids=lambda value: value[:40] if isinstance(value, bytes) else None,
    )
    def test_malformed_request(self, server: HTTPServer, sent_bytes: bytes, status: int) -> None:
        """A malformed request gets exactly one well-formed response."""
        answer = send_raw(address(server), sent_bytes)

        # A reset may arrive before the response if the server did not read everything.
        assert not answer or answer.startswith(b"HTTP/1.0 %d " % status)
        assert answer.count(b"runs_total{") == (status == 200)
        assert b"Traceback" not in answer

    @pytest.mark.parametrize(
        "sent_bytes",
        [
            b"",
            b"\r\n\r\n",
            b"\x00" * 1000,
            random.Random(7).randbytes(5000),
            bytes.fromhex("16030100c8010000c40303") + b"\x42" * 200,  # TLS ClientHello
            b"GE",
        ],
        ids=["nothing", "empty lines", "zeros", "noise", "TLS", "half a line"],
    )
    def test_bytes_that_are_not_http(self, server: HTTPServer, sent_bytes: bytes) -> None:
        """Bytes that are not HTTP lead to a 400, or to the end of the connection."""
        answer = send_raw(address(server), sent_bytes)

        assert not answer or answer.startswith(b"HTTP/1.0 400 ")

    def test_http_09(self, server: HTTPServer) -> None:
        """A request of HTTP 0.9 gets a response."""
        assert b"runs_total" in send_raw(address(server), b"GET /metrics\r\n")

    def test_client_that_resets(self, server: HTTPServer) -> None:
        """A client may reset the connection before or during the response."""
        for sent_bytes in (b"", b"GET /metrics HTTP/1.1\r\nHo", GET_METRICS):
            connection = socket.create_connection(address(server), timeout=PATIENCE)
            connection.sendall(sent_bytes)
            # Closing with a linger time of 0 sends a reset.
            linger = (1).to_bytes(4, sys.byteorder) + (0).to_bytes(4, sys.byteorder)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            connection.close()

    def test_silent_client(self, server: HTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
        """A silent client blocks no other client, and is disconnected after a timeout."""
        monkeypatch.setattr(limits, "IDLE_TIMEOUT", 0.1)
        with socket.create_connection(address(server), timeout=PATIENCE) as silent:
            assert fetch(server).status == 200
            assert read_all(silent) == b""

    def test_slow_client(self, server: HTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
        """A client that sends single bytes is disconnected after a timeout."""
        monkeypatch.setattr(limits, "MAX_CONNECTION_AGE", 0.1)
        with socket.create_connection(address(server), timeout=PATIENCE) as slow:

            def is_disconnected() -> bool:
                try:
                    slow.sendall(b"x")
                except ConnectionError:
                    return True
                return False

            wait_until(is_disconnected, "the end of the connection")

    def test_client_that_does_not_read(
        self,
        server: HTTPServer,
        registry: CollectorRegistry,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """A client that does not read the response is disconnected after a timeout."""
        monkeypatch.setattr(limits, "IDLE_TIMEOUT", 0.1)
        big = Gauge("big", "Big.", ["text"], registry=registry)
        big.labels(text="x" * 20_000_000)
        with socket.create_connection(address(server), timeout=PATIENCE) as not_reading:
            not_reading.sendall(GET_METRICS)
            wait_until(lambda: server._server.connections, "the connection")
            wait_until(lambda: not server._server.connections, "the end of the connection")
        registry.unregister(big)

    def test_too_many_connections(
        self, server: HTTPServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """If there are too many silent clients, the oldest are disconnected for new ones."""
        monkeypatch.setattr(limits, "MAX_CONNECTIONS", 20)
        silent = [socket.create_connection(address(server), timeout=PATIENCE) for _ in range(60)]
        try:
            assert fetch(server).status == 200
            assert read_all(silent[0]) == b""
            wait_until(
                lambda: len(server._server.connections) <= 20, "the end of the excess connections"
            )
        finally:
            for connection in silent:
                connection.close()


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


class TestTls:
    @pytest.mark.parametrize(
        "files",
        [
            {"certfile": "both.pem"},
            {"certfile": "cert.pem", "keyfile": "key.pem"},
        ],
    )
    def test_serves(
        self,
        endpoints: HTTPEndpoints,
        certificates: Path,
        trusting_context: ssl.SSLContext,
        files: dict[str, str],
    ) -> None:
        """With a certificate the server speaks HTTPS, with the key in the same file or not."""
        paths: dict[str, Any] = {name: certificates / file for name, file in files.items()}
        with endpoints.serve(0, **paths) as server:
            assert server.url == f"https://127.0.0.1:{server.port}"
            assert "runs_total" in fetch(server, context=trusting_context).text

    def test_client_certificates(
        self,
        endpoints: HTTPEndpoints,
        certificate_authority: Any,
        certificates: Path,
        trusting_context: ssl.SSLContext,
    ) -> None:
        """If client certificates are required, only clients that have one are served."""
        with endpoints.serve(
            0,
            certfile=certificates / "both.pem",
            client_cafile=certificates / "ca.pem",
            client_auth_required=True,
        ) as server:
            with pytest.raises((ssl.SSLError, ConnectionError)):
                fetch(server, context=trusting_context)
            certificate_authority.issue_cert("client.example").configure_cert(trusting_context)
            assert fetch(server, context=trusting_context).status == 200

    def test_incomplete_handshakes(
        self,
        endpoints: HTTPEndpoints,
        certificates: Path,
        trusting_context: ssl.SSLContext,
        monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        """Clients that do not complete the handshake block no other, and nothing is printed."""
        monkeypatch.setattr(limits, "IDLE_TIMEOUT", 1.0)
        server = endpoints.serve(0, certfile=certificates / "both.pem")
        with socket.create_connection(address(server), timeout=PATIENCE) as silent:
            for sent_bytes in (
                GET_METRICS,
                b"",
                b"\x16\x03\x01\x00\xc8\x01",
                random.Random(7).randbytes(1000),
            ):
                assert b"200" not in send_raw(address(server), sent_bytes)[:12]
            assert fetch(server, context=trusting_context).status == 200
            assert read_all(silent) == b""

        with socket.create_connection(address(server), timeout=PATIENCE):
            assert fetch(server, context=trusting_context).status == 200
            server.close()
        endpoints.serve(server.port).close()
        assert capfd.readouterr().err == ""

    @pytest.mark.parametrize(
        ("files", "error"),
        [
            ({"certfile": "missing.pem"}, FileNotFoundError),
            (
                {"certfile": "cert.pem", "keyfile": "missing.pem"},
                FileNotFoundError,
            ),
            ({"certfile": "cert.pem"}, ssl.SSLError),
            ({"certfile": "invalid.pem"}, ssl.SSLError),
            ({"certfile": "."}, OSError),
        ],
    )
    def test_files_that_do_not_load(
        self,
        endpoints: HTTPEndpoints,
        certificates: Path,
        files: dict[str, str],
        error: type[OSError],
    ) -> None:
        """A missing or invalid file raises an error that names it, and nothing listens."""
        port = unused_port()
        with pytest.raises(error, match=f"{files['certfile']}.*pass PEM files"):
            endpoints.serve(port, **{name: certificates / file for name, file in files.items()})  # type: ignore[arg-type]
        with pytest.raises(ConnectionRefusedError):
            send_raw(("127.0.0.1", port))

    @pytest.mark.parametrize(
        "options",
        [
            {"keyfile": "key.pem"},
            {"client_cafile": "ca.pem", "client_auth_required": True},
            {"certfile": "both.pem", "client_auth_required": True},
            {"certfile": "both.pem", "client_cafile": "ca.pem"},
        ],
    )
    def test_incomplete_options(self, endpoints: HTTPEndpoints, options: dict[str, Any]) -> None:
        """Options that would protect less than they seem to raise an error."""
        with pytest.raises(errors.ArgumentValueError, match="pass"):
            endpoints.serve(0, **options)

    def test_encrypted_key(self, endpoints: HTTPEndpoints, certificates: Path) -> None:
        """An encrypted key raises an error instead of prompting for a password."""
        serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization")
        key = serialization.load_pem_private_key((certificates / "key.pem").read_bytes(), None)
        (certificates / "locked.pem").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.BestAvailableEncryption(b"secret"),
            )
        )
        with pytest.raises(ssl.SSLError, match=r"locked\.pem"):
            endpoints.serve(
                0,
                certfile=certificates / "cert.pem",
                keyfile=certificates / "locked.pem",
            )


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])
