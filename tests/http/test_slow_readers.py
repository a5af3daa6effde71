"""Clients that read slowly: they share responses, and the memory for them is limited."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import socket
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.metrics_core import GaugeMetricFamily

from apscheduler_telemetry.http import HTTPEndpoints, HTTPServer, limits
from apscheduler_telemetry.http.messages import Request, Response
from apscheduler_telemetry.http.readers import BufferBudget, ResponseReader, SlowReaderError
from tests.helpers.collectors import HangingCollector, ReportedErrors
from tests.helpers.http_clients import (
    GET_METRICS,
    OPENMETRICS,
    RESPONSE_TIMEOUT,
    Reply,
    address,
    ask_asgi,
    fetch,
    read_all,
)
from tests.helpers.threads import in_fork
from tests.helpers.waiting import wait_until


class BigCollector:
    """Counts how often it is read, and has more than the kernel buffers for a connection."""

    def __init__(self) -> None:
        self.count = 0

    def describe(self) -> list[Metric]:
        return [GaugeMetricFamily("big", "Big.")]

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

    @pytest.mark.parametrize("accept", ["", OPENMETRICS, "text/plain; version=1.0.0"])
    def test_equal_requests_share_a_response_in_every_format(
        self,
        registry: CollectorRegistry,
        failures: ReportedErrors,
        monkeypatch: pytest.MonkeyPatch,
        accept: str,
    ) -> None:
        """A response that no client has read yet is shared, also as Prometheus asks for it."""
        monkeypatch.setattr(limits, "SHARED_RESPONSE_SECONDS", RESPONSE_TIMEOUT * 10)
        app = make_endpoints(registry, failures)._page_router
        request = replace(request_for_metrics(), accept=accept)
        open_reader = BufferBudget(1000, failures).open_reader
        first, second = (
            app.submit_request(request, open_reader).result(RESPONSE_TIMEOUT) for _ in range(2)
        )
        assert first.response is not None
        assert second.response is first.response

    def test_names_in_another_order_are_the_same(
        self, registry: CollectorRegistry, failures: ReportedErrors, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Requests for the same names share a response, whatever their order."""
        monkeypatch.setattr(limits, "SHARED_RESPONSE_SECONDS", RESPONSE_TIMEOUT * 10)
        app = make_endpoints(registry, failures)._page_router
        queries = "name[]=jobs&name[]=runs", "name[]=runs&name[]=jobs&name[]=runs"
        open_reader = BufferBudget(1000, failures).open_reader
        first, second = (
            app.submit_request(request_for_metrics(query), open_reader).result(RESPONSE_TIMEOUT)
            for query in queries
        )
        assert first.response is not None
        assert second.response is first.response

    def test_response_is_not_kept_after_it_was_read(
        self, registry: CollectorRegistry, failures: ReportedErrors
    ) -> None:
        """Nothing but its readers keeps a response in memory."""
        app = make_endpoints(registry, failures)._page_router
        submitted = app.submit_request(
            request_for_metrics(), BufferBudget(1000, failures).open_reader
        )
        reader = submitted.result(RESPONSE_TIMEOUT)
        assert reader.response is not None
        response = weakref.ref(reader.response)
        assert b"runs_total" in b"".join(reader)
        wait_until(lambda: gc.collect() is not None and response() is None, "the end of it")

    def test_reader_with_the_last_part_shares_no_more(self, failures: ReportedErrors) -> None:
        """A client that was given the last part may ask again before its connection ends."""
        response = Response(200, [b"x", b"y"])  # type: ignore[arg-type]
        reader = BufferBudget(100, failures).open_reader(response)
        next(reader)
        assert response.may_be_shared_now
        next(reader)
        assert not response.may_be_shared_now

    def test_reader_that_is_closed_early_shares_no_more(self, failures: ReportedErrors) -> None:
        """A client that has disconnected lets go of the response at once."""
        response = Response(200, [b"x", b"y"])  # type: ignore[arg-type]
        reader = BufferBudget(100, failures).open_reader(response)
        next(reader)
        reader.close()
        assert reader.response is None
        assert not response.may_be_shared_now

    def test_other_formats_are_not_shared(
        self,
        endpoints: HTTPEndpoints,
        big: BigCollector,
        connect_silent: Callable[[HTTPServer], socket.socket],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Requests for another format, for gzip or for other names are not mixed up."""
        monkeypatch.setattr(limits, "SHARED_RESPONSE_SECONDS", RESPONSE_TIMEOUT * 10)
        with endpoints.start_server(0, max_buffered_bytes=1_000_000_000) as server:
            connect_silent(server)

            openmetrics = fetch(server, headers={"Accept": "application/openmetrics-text"})
            assert openmetrics.body.endswith(b"# EOF\n")
            zipped = fetch(server, headers={"Accept-Encoding": "gzip"})
            assert zipped.headers["content-encoding"] == "gzip"
            assert b"big{" not in fetch(server, "/metrics?name[]=jobs").body
            assert big.count == 3
            assert b'text="1x' in fetch(server).body  # the first one is still shared
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
        with endpoints.start_server(0, max_buffered_bytes=45_000_000) as server:
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

        with pytest.raises(ConnectionResetError) as info:
            next(slow)
        assert info.value.errno == errno.ECONNRESET  # by which gunicorn knows it
        assert b"runs_total" in b"".join(newest)
        assert len(failures) == 1

    @pytest.mark.parametrize("key", ["gunicorn.socket", "werkzeug.socket"])
    def test_slowest_client_of_another_server_is_disconnected(
        self,
        registry: CollectorRegistry,
        failures: ReportedErrors,
        monkeypatch: pytest.MonkeyPatch,
        key: str,
    ) -> None:
        """Where a server passes its socket on, a slow client is disconnected at once."""
        monkeypatch.setattr(limits, "MAX_BUFFERED_BYTES", 1)
        monkeypatch.setattr(limits, "SHARED_RESPONSE_SECONDS", 0.0)
        app = make_endpoints(registry, failures).wsgi_app
        connection, client = socket.socketpair()
        with connection, client:
            client.settimeout(RESPONSE_TIMEOUT)
            slow = app({**ENVIRON, key: connection}, start_response)
            newest = app(ENVIRON, start_response)
            assert client.recv(1) == b""
            del slow, newest

    def test_slow_client_with_an_unknown_kind_of_socket_is_dropped(
        self, registry: CollectorRegistry, failures: ReportedErrors, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A client that cannot be disconnected is dropped without an error for the next one."""
        monkeypatch.setattr(limits, "MAX_BUFFERED_BYTES", 1)
        monkeypatch.setattr(limits, "SHARED_RESPONSE_SECONDS", 0.0)
        app = make_endpoints(registry, failures).wsgi_app
        slow = iter(app({**ENVIRON, "gunicorn.socket": object()}, start_response))
        assert b"runs_total" in b"".join(app(ENVIRON, start_response))
        with pytest.raises(ConnectionResetError):
            next(slow)

    def test_other_servers_get_small_pieces(
        self, registry: CollectorRegistry, failures: ReportedErrors, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A WSGI server gets small pieces, as it may keep one for each client."""
        monkeypatch.setattr(limits, "MAX_PIECE_BYTES_FOR_OTHER_SERVERS", 10)
        app = make_endpoints(registry, failures).wsgi_app
        pieces = list(app(ENVIRON, start_response))
        assert b"runs_total" in b"".join(pieces)
        assert max(map(len, pieces)) == 10

    def test_large_body_is_kept_in_parts(
        self, registry: CollectorRegistry, failures: ReportedErrors, big: BigCollector
    ) -> None:
        """A client of the built-in server holds one part of a response that was dropped."""
        app = make_endpoints(registry, failures)._page_router
        open_reader = BufferBudget(1, failures).open_reader
        response = (
            app.submit_request(request_for_metrics(), open_reader).result(RESPONSE_TIMEOUT).response
        )
        assert response is not None
        assert response.size > 20_000_000
        assert max(map(len, response.chunks)) == limits.MAX_CHUNK_BYTES
        assert big.count == 1

    def test_kernel_keeps_little_for_a_client(self, server: HTTPServer) -> None:
        """The kernel keeps no more for a client than the limit, which Linux doubles."""
        with socket.create_connection(address(server), RESPONSE_TIMEOUT):
            connections = server._server.connections._deadlines
            wait_until(lambda: connections, "the connection")
            (connection,) = connections
            size = connection.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
            assert size <= 2 * limits.SEND_BUFFER_BYTES

    def test_asgi_client_that_disconnects_gets_no_more(
        self, registry: CollectorRegistry, failures: ReportedErrors, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The response ends when the client disconnects, also if the server never waits."""
        monkeypatch.setattr(limits, "MAX_PIECE_BYTES_FOR_OTHER_SERVERS", 1)
        app = make_endpoints(registry, failures).asgi_app
        scope = {"type": "http", "method": "GET", "path": "/metrics", "headers": []}
        sent: list[Any] = []

        async def main() -> None:
            started = asyncio.Event()

            async def receive() -> Any:
                await started.wait()
                return {"type": "http.disconnect"}

            async def send(message: Any) -> None:
                sent.append(message)
                if len(sent) > 1:
                    started.set()

            await asyncio.wait_for(app(scope, receive, send), RESPONSE_TIMEOUT)

        asyncio.run(main())
        assert 2 <= len(sent) < 20
        assert sent[-1]["more_body"]
        assert failures == []

    def test_budget_applies_to_asgi(
        self, registry: CollectorRegistry, failures: ReportedErrors, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Below an ASGI server, the response ends incompletely."""
        monkeypatch.setattr(limits, "MAX_BUFFERED_BYTES", 1)
        monkeypatch.setattr(limits, "SHARED_RESPONSE_SECONDS", 0.0)
        monkeypatch.setattr(limits, "MAX_PIECE_BYTES_FOR_OTHER_SERVERS", 10)
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
        budget = BufferBudget(250, failures)
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

    def test_response_that_one_of_its_clients_reads_is_not_dropped_first(
        self, failures: ReportedErrors
    ) -> None:
        """A shared response counts as read when any of its clients has read last."""
        budget = BufferBudget(250, failures)
        shared = Response(200, [b"x" * 50, b"y" * 50])  # type: ignore[arg-type]
        readers = [budget.open_reader(shared) for _ in range(2)]
        other = budget.open_reader(Response(200, [b"x" * 50, b"y" * 50]))  # type: ignore[arg-type]
        next(other)
        next(readers[1])

        budget.open_reader(Response(200, [b"z" * 100]))  # type: ignore[arg-type]

        with pytest.raises(SlowReaderError):
            next(other)
        assert next(readers[0]) == b"x" * 50

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
    def test_child_does_not_disconnect_the_clients_of_its_parent(
        self, failures: ReportedErrors
    ) -> None:
        """What clients of the parent read does not count in a child, which has the same sockets."""
        budget = BufferBudget(1, failures)
        disconnected: list[bool] = []
        reader = budget.open_reader(
            Response(200, [b"x" * 100]),  # type: ignore[arg-type]
            disconnect=lambda: disconnected.append(True),
        )

        def child() -> bool:
            budget.open_reader(Response(200, [b"y" * 100]))  # type: ignore[arg-type]
            return not disconnected and reader.response is not None

        assert in_fork(child)

    def test_shared_response_counts_once(self, failures: ReportedErrors) -> None:
        """A response that many clients read counts once, and is dropped for all of them."""
        budget = BufferBudget(250, failures)
        shared = Response(200, [b"x" * 100])  # type: ignore[arg-type]
        readers = [budget.open_reader(shared) for _ in range(100)]
        others = [budget.open_reader(Response(200, [b"y" * 100]))]  # type: ignore[arg-type]
        assert failures == []

        others.append(budget.open_reader(Response(200, [b"z" * 100])))  # type: ignore[arg-type]
        assert len(failures) == 100
        assert all(reader.response is None for reader in readers)
        assert not any(reader.response is None for reader in others)

    def test_dropped_client_is_counted_once(self, failures: ReportedErrors) -> None:
        """A client that is about to be dropped is not dropped for another response as well."""
        budget = BufferBudget(150, failures)
        shared = Response(200, [b"x" * 100])  # type: ignore[arg-type]

        def open_another() -> None:
            budget.open_reader(Response(200, [b"z" * 10]))  # type: ignore[arg-type]

        readers = [budget.open_reader(shared, disconnect=open_another) for _ in range(2)]
        budget.open_reader(Response(200, [b"y" * 100]))  # type: ignore[arg-type]

        assert all(reader.response is None for reader in readers)
        assert len(failures) == 2

    def test_closed_reader_holds_nothing(self, failures: ReportedErrors) -> None:
        """A client that has read its response, or has disconnected, is not counted."""
        budget = BufferBudget(100, failures)
        for _ in range(10):
            with contextlib.closing(
                budget.open_reader(Response(200, [b"x" * 100]))  # type: ignore[arg-type]
            ) as reader:
                next(reader)
        assert failures == []

    def test_exhausted_or_abandoned_reader_holds_nothing(self, failures: ReportedErrors) -> None:
        """A reader that is not closed holds nothing after its last part, or when it is garbage."""
        budget = BufferBudget(100, failures)
        exhausted = budget.open_reader(Response(200, [b"x" * 100]))  # type: ignore[arg-type]
        assert b"".join(exhausted) == b"x" * 100
        for _ in range(10):
            next(budget.open_reader(Response(200, [b"x" * 100])))  # type: ignore[arg-type]
            gc.collect()
        assert failures == []

    def test_response_that_no_request_has_taken_yet_counts(
        self, registry: CollectorRegistry, big: BigCollector, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """While the application blocks the event loop, no more responses are kept than allowed."""
        monkeypatch.setattr(limits, "MAX_BUFFERED_BYTES", 45_000_000)
        reported: list[str] = []  # without the errors, whose tracebacks have the responses
        app = make_endpoints(registry, reported.append).asgi_app

        def are_all_rendered() -> bool:
            queue = app._page_router._queues_by_page["metrics"]
            return big.count == 5 and not queue._started_at_by_rendering

        async def main() -> None:
            requests = [
                asyncio.create_task(ask_asgi(app, "/metrics", query=f"name[]=big&name[]={number}"))
                for number in range(5)
            ]
            await asyncio.sleep(0)
            wait_until(are_all_rendered, "the responses")
            # The thread that rendered the last one still lets go of it.
            wait_until(lambda: sum(r.size > 20_000_000 for r in find_responses()) == 2, "two")
            await asyncio.gather(*requests, return_exceptions=True)

        asyncio.run(main())
        assert reported == ["http"] * 3

    def test_response_that_comes_too_late_is_not_kept(  # fixtures
        self,
        ask: Callable[..., Reply],
        hanging: HangingCollector,
        failures: ReportedErrors,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """The response to a request that was given up meanwhile holds no memory."""
        readers: list[ResponseReader] = []
        open_reader = BufferBudget.open_reader

        def open_and_note(*args: Any, **kwargs: Any) -> ResponseReader:
            readers.append(open_reader(*args, **kwargs))
            return readers[-1]

        monkeypatch.setattr(BufferBudget, "open_reader", open_and_note)
        monkeypatch.setattr(limits, "RENDER_TIMEOUT_SECONDS", 0.05)
        assert ask("/metrics").status == 500
        hanging.release.set()
        wait_until(lambda: len(readers) == 2, "the response")
        wait_until(lambda: readers[1].response is None, "the end of the response")
        assert len(failures) == 1

    def test_nothing_keeps_a_dropped_response(self) -> None:
        """A response is freed when its readers are dropped, without a garbage collection."""
        budget = BufferBudget(1, lambda _component: None)
        readers, responses = [], []
        gc.disable()
        try:
            for _ in range(3):
                response = Response(200, [b"x", b"y" * 100])  # type: ignore[arg-type]
                readers.append(budget.open_reader(response))
                responses.append(weakref.ref(response))
                del response
            assert [response() is None for response in responses] == [True, True, False]
        finally:
            gc.enable()

    def test_largest_response_is_always_allowed(self, failures: ReportedErrors) -> None:
        """A response that is larger than the budget is sent nevertheless."""
        budget = BufferBudget(1, failures)
        reader = budget.open_reader(Response(200, [b"x", b"y" * 100]))  # type: ignore[arg-type]
        assert b"".join(reader) == b"x" + b"y" * 100
        assert failures == []


def find_responses() -> list[Response]:
    gc.collect()
    return [found for found in gc.get_objects() if issubclass(type(found), Response)]


def request_for_metrics(query: str = "") -> Request:
    return Request(
        method="GET", root_path="", path="/metrics", query=query, accept="", accept_encoding=""
    )


def make_endpoints(
    registry: CollectorRegistry, report_exception: Callable[[str], None]
) -> HTTPEndpoints:
    return HTTPEndpoints(
        registry=registry,
        get_health_report=dict,
        is_healthy=lambda: True,
        report_exception=report_exception,
    )
