"""Clients that read slowly: they share responses, and the memory for them is limited."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.metrics_core import GaugeMetricFamily

from apscheduler_telemetry.http import HTTPEndpoints, HTTPServer, limits
from apscheduler_telemetry.http.messages import Request, Response
from apscheduler_telemetry.http.readers import ReaderBudget, SlowReaderError
from tests.helpers.collectors import ReportedErrors
from tests.helpers.http_clients import GET_METRICS, RESPONSE_TIMEOUT, address, fetch, read_all
from tests.helpers.waiting import wait_until


class BigCollector:
    """Counts how often it is read, and has more than the kernel buffers for a connection."""

    def __init__(self) -> None:
        self.count = 0

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> list[Metric]:
        self.count += 1
        big = GaugeMetricFamily("big", "Big.", labels=["text"])
        big.add_metric([f"{self.count}" + "x" * 20_000_000], 1)
        return [big]


@pytest.fixture
def big(registry: CollectorRegistry) -> BigCollector:
    collector = BigCollector()
    registry.register(collector)
    return collector


@pytest.fixture
def connect_silent() -> Iterator[Callable[[HTTPServer], socket.socket]]:
    """Send a request and read only the start of the response, so that rendering is done."""
    with contextlib.ExitStack() as stack:

        def connect(server: HTTPServer) -> socket.socket:
            client = stack.enter_context(
                socket.create_connection(address(server), RESPONSE_TIMEOUT)
            )
            client.sendall(GET_METRICS)
            assert client.recv(1) == b"H"
            return client

        yield connect


def start_response(*_args: Any) -> None:
    """Ignore the headers."""


ENVIRON = {"REQUEST_METHOD": "GET", "PATH_INFO": "/metrics"}


class TestSharedResponses:
    def test_clients_that_read_at_the_same_time_share_one_response(
        self,
        server: HTTPServer,
        big: BigCollector,
        connect_silent: Callable[[HTTPServer], socket.socket],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """While a client reads a recent response, others get the same one."""
        monkeypatch.setattr(limits, "SHARED_RESPONSE_SECONDS", RESPONSE_TIMEOUT * 10)
        for _ in range(10):
            connect_silent(server)
        assert b"big{" in fetch(server).body
        assert big.count == 1

    def test_response_that_no_one_has_read_is_shared(
        self, registry: CollectorRegistry, failures: ReportedErrors, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A response that was rendered, and that no client has read yet, is shared."""
        monkeypatch.setattr(limits, "SHARED_RESPONSE_SECONDS", RESPONSE_TIMEOUT * 10)
        app = make_endpoints(registry, failures)._app
        request = Request(
            method="GET", root_path="", path="/metrics", query="", accept="", accept_encoding=""
        )
        first = app.submit_request(request).result(RESPONSE_TIMEOUT)
        assert app.submit_request(request).result(RESPONSE_TIMEOUT) is first

    def test_response_is_not_shared_for_longer_than_a_second(
        self,
        server: HTTPServer,
        big: BigCollector,
        connect_silent: Callable[[HTTPServer], socket.socket],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """An older response is not shared, although a client still reads it."""
        monkeypatch.setattr(limits, "SHARED_RESPONSE_SECONDS", 0.0)
        connect_silent(server)
        assert fetch(server).status == 200
        assert big.count == 2

    def test_client_that_asks_again_gets_a_new_response(
        self, server: HTTPServer, big: BigCollector, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A client that has read a response and asks again gets a new one."""
        monkeypatch.setattr(limits, "SHARED_RESPONSE_SECONDS", RESPONSE_TIMEOUT * 10)
        assert b'text="1x' in fetch(server).body
        assert b'text="2x' in fetch(server).body
        assert big.count == 2

    def test_other_formats_are_not_shared(
        self,
        server: HTTPServer,
        big: BigCollector,
        connect_silent: Callable[[HTTPServer], socket.socket],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Requests for another format, for gzip or for other names are not mixed up."""
        monkeypatch.setattr(limits, "SHARED_RESPONSE_SECONDS", RESPONSE_TIMEOUT * 10)
        connect_silent(server)

        openmetrics = fetch(server, headers={"Accept": "application/openmetrics-text"})
        assert openmetrics.body.endswith(b"# EOF\n")
        zipped = fetch(server, headers={"Accept-Encoding": "gzip"})
        assert zipped.headers["content-encoding"] == "gzip"
        assert b"big{" not in fetch(server, "/metrics?name[]=jobs").body
        assert big.count == 3


class TestReaderBudget:
    def test_slowest_client_of_the_server_is_disconnected(
        self,
        endpoints: HTTPEndpoints,
        failures: ReportedErrors,
        big: BigCollector,
        connect_silent: Callable[[HTTPServer], socket.socket],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """If slow clients hold too many bytes, the slowest is disconnected and counted."""
        monkeypatch.setattr(limits, "SHARED_RESPONSE_SECONDS", 0.0)
        with endpoints.serve(0, max_buffered_bytes=45_000_000) as server:
            silent = [connect_silent(server) for _ in range(3)]
            wait_until(lambda: len(server._server.connections) == 2, "the end of a connection")

            assert len(read_all(silent[0])) < 20_000_000
            assert len(read_all(silent[1])) > 20_000_000
            assert len(read_all(silent[2])) > 20_000_000
        assert [component for component, _ in failures] == ["http"]
        assert "start_http_server(max_buffered_bytes=...)" in str(failures[0][1])
        assert big.count == 3

    def test_budget_applies_to_wsgi(
        self, registry: CollectorRegistry, failures: ReportedErrors, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Below a WSGI server, the response ends as if the client had disconnected."""
        monkeypatch.setattr(limits, "MAX_BUFFERED_BYTES", 1)
        monkeypatch.setattr(limits, "SHARED_RESPONSE_SECONDS", 0.0)
        app = make_endpoints(registry, failures).wsgi_app

        slow = iter(app(ENVIRON, start_response))
        newest = iter(app(ENVIRON, start_response))

        with pytest.raises(ConnectionResetError):
            next(slow)
        assert b"runs_total" in b"".join(newest)
        assert len(failures) == 1

    def test_budget_applies_to_asgi(
        self, registry: CollectorRegistry, failures: ReportedErrors, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Below an ASGI server, the response ends incompletely."""
        monkeypatch.setattr(limits, "MAX_BUFFERED_BYTES", 1)
        monkeypatch.setattr(limits, "SHARED_RESPONSE_SECONDS", 0.0)
        monkeypatch.setattr(limits, "MAX_FOREIGN_PIECE_BYTES", 10)
        app = make_endpoints(registry, failures).asgi_app
        scope = {"type": "http", "method": "GET", "path": "/metrics", "headers": []}

        async def receive() -> Any:
            await asyncio.Event().wait()

        async def main() -> tuple[list[Any], list[Any]]:
            started, release = asyncio.Event(), asyncio.Event()
            sent_to_slow: list[Any] = []
            sent_to_newest: list[Any] = []

            async def send_slowly(message: Any) -> None:
                sent_to_slow.append(message)
                if message["type"] == "http.response.body":
                    started.set()
                    await release.wait()

            async def send(message: Any) -> None:
                sent_to_newest.append(message)

            slow = asyncio.create_task(app(scope, receive, send_slowly))
            await asyncio.wait_for(started.wait(), RESPONSE_TIMEOUT)
            await app(scope, receive, send)
            release.set()
            await asyncio.wait_for(slow, RESPONSE_TIMEOUT)
            return sent_to_slow, sent_to_newest

        sent_to_slow, sent_to_newest = asyncio.run(main())
        assert len(sent_to_slow) == 2
        assert all(len(message.get("body", b"")) <= 10 for message in sent_to_newest)
        assert not sent_to_newest[-1].get("more_body")
        assert len(failures) == 1

    def test_response_without_progress_is_dropped_first(self, failures: ReportedErrors) -> None:
        """Of several responses, that one is dropped whose clients have not read for longest."""
        budget = ReaderBudget(250, failures)
        progressing, silent = (
            budget.open_reader(Response(200, [b"x" * 50, b"y" * 50]))  # type: ignore[arg-type]
            for _ in range(2)
        )
        next(silent)
        next(progressing)

        budget.open_reader(Response(200, [b"z" * 100]))  # type: ignore[arg-type]

        with pytest.raises(SlowReaderError):
            next(silent)
        assert next(progressing) == b"y" * 50

    def test_shared_response_counts_once(self, failures: ReportedErrors) -> None:
        """A response that many clients read counts once, and is dropped for all of them."""
        budget = ReaderBudget(250, failures)
        shared = Response(200, [b"x" * 100])  # type: ignore[arg-type]
        readers = [budget.open_reader(shared) for _ in range(100)]
        budget.open_reader(Response(200, [b"y" * 100]))  # type: ignore[arg-type]
        assert failures == []

        budget.open_reader(Response(200, [b"z" * 100]))  # type: ignore[arg-type]
        assert len(failures) == 100
        assert all(reader.response is None for reader in readers)

    def test_closed_reader_holds_nothing(self, failures: ReportedErrors) -> None:
        """A client that has read its response, or has disconnected, is not counted."""
        budget = ReaderBudget(100, failures)
        for _ in range(10):
            with contextlib.closing(
                budget.open_reader(Response(200, [b"x" * 100]))  # type: ignore[arg-type]
            ) as reader:
                next(reader)
        assert failures == []

    def test_exhausted_or_abandoned_reader_holds_nothing(self, failures: ReportedErrors) -> None:
        """A reader that is not closed holds nothing after its last part, or when it is garbage."""
        budget = ReaderBudget(100, failures)
        exhausted = budget.open_reader(Response(200, [b"x" * 100]))  # type: ignore[arg-type]
        assert b"".join(exhausted) == b"x" * 100
        for _ in range(10):
            next(budget.open_reader(Response(200, [b"x" * 100])))  # type: ignore[arg-type]
            gc.collect()
        assert failures == []

    def test_largest_response_is_always_allowed(self, failures: ReportedErrors) -> None:
        """A response that is larger than the budget is sent nevertheless."""
        budget = ReaderBudget(1, failures)
        reader = budget.open_reader(Response(200, [b"x", b"y" * 100]))  # type: ignore[arg-type]
        assert b"".join(reader) == b"x" + b"y" * 100
        assert failures == []


def make_endpoints(registry: CollectorRegistry, failures: ReportedErrors) -> HTTPEndpoints:
    return HTTPEndpoints(
        registry=registry,
        get_health_report=dict,
        is_healthy=lambda: True,
        report_exception=failures,
    )
