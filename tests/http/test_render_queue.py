"""Requests that wait: equal ones share a rendering, and nothing is rendered for nobody."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import CancelledError
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from apscheduler_telemetry.http import HTTPEndpoints, HTTPServer, limits
from apscheduler_telemetry.http.render_queue import RenderQueue
from tests.helpers.collectors import HangingCollector, ReportedErrors
from tests.helpers.http_clients import (
    GET_METRICS,
    HEALTHY,
    RESPONSE_TIMEOUT,
    address,
    ask_asgi,
    fetch,
    send_raw,
)
from tests.helpers.waiting import wait_until, wait_until_async


class Renderer:
    """Counts renderings, each of which waits until it is released."""

    def __init__(self) -> None:
        self.count = 0
        self.entered = threading.Semaphore(0)
        self.release = threading.Event()

    def __call__(self) -> int:
        self.count += 1
        number = self.count
        self.entered.release()
        self.release.wait(RESPONSE_TIMEOUT)
        return number


@pytest.fixture
def renderer() -> Iterator[Renderer]:
    renderer = Renderer()
    yield renderer
    renderer.release.set()


class TestQueue:
    @pytest.fixture(autouse=True)
    def slow_renderings_hold_up_the_next(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "PARALLEL_RENDER_AFTER_SECONDS", RESPONSE_TIMEOUT * 10)

    def test_equal_requests_that_wait_share_one_rendering(self, renderer: Renderer) -> None:
        """Requests that arrive during a rendering share the next one, which is up to date."""
        queue = RenderQueue()
        first = queue.submit("page", renderer)
        assert renderer.entered.acquire(timeout=RESPONSE_TIMEOUT)
        waiting = [queue.submit("page", renderer) for _ in range(100)]
        other = queue.submit("other names", renderer)
        renderer.release.set()

        assert first.result(RESPONSE_TIMEOUT) == 1
        assert {future.result(RESPONSE_TIMEOUT) for future in waiting} == {2}
        assert other.result(RESPONSE_TIMEOUT) == 3

    def test_different_requests_are_rendered_by_one_thread(
        self, renderer: Renderer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Requests that cannot share a result are rendered one after the other, in one thread."""
        monkeypatch.setattr(limits, "IDLE_THREAD_SECONDS", RESPONSE_TIMEOUT * 10)
        queue = RenderQueue()

        def render() -> int:
            renderer()
            return threading.get_ident()

        futures = [queue.submit(number, render) for number in range(20)]
        assert renderer.entered.acquire(timeout=RESPONSE_TIMEOUT)
        renderer.release.set()
        threads = {future.result(RESPONSE_TIMEOUT) for future in futures}
        wait_until(lambda: queue._thread_count == 1, "the end of the other thread")
        threads.add(queue.submit(20, render).result(RESPONSE_TIMEOUT))
        assert len(threads) == 1
        end_threads(queue, monkeypatch)

    def test_thread_that_has_rendered_last_goes_on(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Another idle thread ends, and leaves a request to it, although it was quicker."""
        monkeypatch.setattr(limits, "IDLE_THREAD_SECONDS", RESPONSE_TIMEOUT * 10)
        queue = RenderQueue()
        first = queue.submit("page", threading.get_ident).result(RESPONSE_TIMEOUT)
        wait_until(lambda: not queue._started_at_by_rendering, "the end of the rendering")
        with queue._condition:  # which the first thread needs to go on
            queue._thread_count += 1
            second = queue.submit("page", threading.get_ident)
            assert queue._take_next_rendering(None) is None
        assert second.result(RESPONSE_TIMEOUT) == first
        assert queue._thread_count == 1
        end_threads(queue, monkeypatch)

    def test_slow_rendering_does_not_hold_up_the_next_for_long(
        self, renderer: Renderer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """After a while, the page is rendered again, although all earlier renderings hang."""
        monkeypatch.setattr(limits, "PARALLEL_RENDER_AFTER_SECONDS", 0.05)
        queue = RenderQueue()
        queue.submit("page", renderer)
        assert renderer.entered.acquire(timeout=RESPONSE_TIMEOUT)

        for key in ("page", "other names", "more names"):
            queue.submit(key, renderer)
        for _ in range(3):
            assert renderer.entered.acquire(timeout=RESPONSE_TIMEOUT)

    def test_nothing_is_rendered_without_clients(self, renderer: Renderer) -> None:
        """A request that is cancelled, or whose client has disconnected, is not rendered."""
        queue = RenderQueue()
        queue.submit("page", renderer)
        assert renderer.entered.acquire(timeout=RESPONSE_TIMEOUT)
        gone = [queue.submit(number, renderer, lambda: True) for number in range(20)]
        gone += [queue.submit("page", renderer, lambda: True) for _ in range(20)]
        cancelled = queue.submit("page", renderer)
        cancelled.cancel()
        renderer.release.set()

        for future in (*gone, cancelled):
            with pytest.raises(CancelledError):
                future.result(RESPONSE_TIMEOUT)
        assert queue.submit("page", renderer).result(RESPONSE_TIMEOUT) == 2

    def test_result_is_freed_while_a_thread_waits(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The thread that waits for the next request does not keep the last result."""

        class Page:
            pass

        monkeypatch.setattr(limits, "IDLE_THREAD_SECONDS", RESPONSE_TIMEOUT)
        queue = RenderQueue()
        page = weakref.ref(queue.submit("page", Page).result(RESPONSE_TIMEOUT))
        wait_until(lambda: page() is None, "the end of the result")
        assert queue._thread_count == 1
        end_threads(queue, monkeypatch)

    def test_waiting_requests_are_bounded(
        self, renderer: Renderer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Too many waiting requests raise an error; those that are cancelled make room."""
        monkeypatch.setattr(limits, "MAX_PENDING_REQUESTS", 5)
        queue = RenderQueue()
        queue.submit("page", renderer)
        assert renderer.entered.acquire(timeout=RESPONSE_TIMEOUT)
        waiting = [queue.submit("page", renderer) for _ in range(5)]

        with pytest.raises(RuntimeError, match="does a collector hang"):
            queue.submit("page", renderer)
        waiting[0].cancel()
        queue.submit("page", renderer)

    def test_vanished_requests_leave_nothing_behind(
        self, renderer: Renderer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A flood of different requests whose clients are gone takes no more and more memory."""
        monkeypatch.setattr(limits, "MAX_PENDING_REQUESTS", 5)
        monkeypatch.setattr(limits, "MAX_THREADS_PER_PAGE", 1)
        queue = RenderQueue()
        queue.submit("page", renderer)
        assert renderer.entered.acquire(timeout=RESPONSE_TIMEOUT)
        for number in range(100):
            queue.submit(number, renderer, lambda: True)
        assert len(queue._pending) <= 5

    def test_one_of_several_threads_waits(
        self, renderer: Renderer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Of the threads that were busy at the same time, one waits for the next request."""
        monkeypatch.setattr(limits, "IDLE_THREAD_SECONDS", RESPONSE_TIMEOUT * 10)
        monkeypatch.setattr(limits, "PARALLEL_RENDER_AFTER_SECONDS", 0.0)
        queue = RenderQueue()
        for number in range(4):
            queue.submit(number, renderer)
            assert renderer.entered.acquire(timeout=RESPONSE_TIMEOUT)
        assert queue._thread_count == 4
        renderer.release.set()
        wait_until(lambda: queue._thread_count == 1, "the end of the other threads")
        end_threads(queue, monkeypatch)

    def test_error_reaches_all_requests(self) -> None:
        """All requests that share a rendering get its error."""
        release = threading.Event()

        def fail() -> None:
            release.wait(RESPONSE_TIMEOUT)
            raise ValueError

        queue = RenderQueue()
        queue.submit("page", fail)
        waiting = [queue.submit("page", fail) for _ in range(3)]
        release.set()

        for future in waiting:
            assert isinstance(future.exception(RESPONSE_TIMEOUT), ValueError)

    def test_caller_renders_if_no_thread_can_be_started(
        self, renderer: Renderer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """If no thread can be started, the page is rendered at once."""
        monkeypatch.setattr(threading.Thread, "start", raise_runtime_error)
        renderer.release.set()
        assert RenderQueue().submit("page", renderer).result(0) == 1


class TestVanishedClients:
    """Clients that have disconnected before their request was rendered."""

    @pytest.fixture(autouse=True)
    def renderings_can_be_counted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "PARALLEL_RENDER_AFTER_SECONDS", RESPONSE_TIMEOUT * 10)
        monkeypatch.setattr(limits, "SHARED_RESPONSE_SECONDS", 0.0)

    @pytest.fixture(params=[True, False], ids=["reset", "closed"])
    def is_reset(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
        """Let only a connection that was reset be known at once to have no client."""
        is_reset = bool(request.param)
        patience = RESPONSE_TIMEOUT * 10 if is_reset else 0.0
        monkeypatch.setattr(limits, "HALF_CLOSED_CLIENT_GRACE_SECONDS", patience)
        return is_reset

    def test_server_renders_nothing_for_them(
        self,
        server: HTTPServer,
        endpoints: HTTPEndpoints,
        hanging: HangingCollector,
        failures: ReportedErrors,
        is_reset: bool,
    ) -> None:
        """The server renders nothing for clients that have closed or reset the connection."""
        with socket.create_connection(address(server), RESPONSE_TIMEOUT) as waiting:
            waiting.sendall(GET_METRICS)
            assert hanging.entered.acquire(timeout=RESPONSE_TIMEOUT)
            for _ in range(20):
                send_and_vanish(server, GET_METRICS, is_reset=is_reset)
            queue = endpoints._page_router._queues_by_page["metrics"]
            wait_until(lambda: queue._count_waiters() == 20, "the requests")
            hanging.release.set()
            wait_until(lambda: queue._count_waiters() == 0, "the end of the requests")

            assert fetch(server).status == 200
        assert hanging.entered.acquire(timeout=RESPONSE_TIMEOUT)
        assert not hanging.entered.acquire(blocking=False)
        assert failures == []

    def test_flood_of_them_costs_few_reports(
        self, registry: CollectorRegistry, failures: ReportedErrors
    ) -> None:
        """Hundreds of them cost one rendering, even while it is not known that they are gone."""
        renderer = Renderer()

        def report() -> Any:
            renderer()
            return HEALTHY

        endpoints = HTTPEndpoints(
            registry=registry,
            get_health_report=report,
            is_healthy=lambda: True,
            report_exception=failures,
        )
        request = b"GET /health HTTP/1.1\r\n\r\n"
        with (
            endpoints.start_server(0) as server,
            socket.create_connection(address(server), RESPONSE_TIMEOUT) as waiting,
        ):
            waiting.sendall(request)
            assert renderer.entered.acquire(timeout=RESPONSE_TIMEOUT)
            for _ in range(200):
                send_and_vanish(server, request, is_reset=False)
            queue = endpoints._page_router._queues_by_page["health"]
            wait_until(lambda: queue._count_waiters() == 200, "the requests")
            renderer.release.set()
            assert fetch(server, "/health").json == HEALTHY
            assert renderer.count <= 3

    def test_client_that_only_ends_its_request_is_served(self, server: HTTPServer) -> None:
        """A client that closes its sending side, as netcat may do, gets its response."""
        assert b"runs_total{" in send_raw(address(server), GET_METRICS)

    def test_asgi_renders_nothing_for_them(
        self, endpoints: HTTPEndpoints, hanging: HangingCollector, failures: ReportedErrors
    ) -> None:
        """An ASGI application renders nothing for clients that have disconnected."""
        queue = endpoints._page_router._queues_by_page["metrics"]
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        async def receive() -> dict[str, Any]:
            return {"type": "http.disconnect"}

        async def main() -> None:
            waiting = asyncio.create_task(ask_asgi(endpoints.asgi_app, "/metrics"))
            await wait_until_async(lambda: hanging.entered.acquire(blocking=False), "the first")
            scope = {"type": "http", "method": "GET", "path": "/metrics", "headers": []}
            for _ in range(20):
                await endpoints.asgi_app(scope, receive, send)
            hanging.release.set()
            assert (await waiting).status == 200

        asyncio.run(main())
        wait_until(lambda: queue._count_waiters() == 0, "the end of the requests")
        assert not hanging.entered.acquire(blocking=False)
        assert (sent, failures) == ([], [])

    @pytest.mark.parametrize("key", ["gunicorn.socket", "werkzeug.socket"])
    @pytest.mark.parametrize("is_closed_here", [False, True])
    def test_sockets_of_other_servers_tell_of_them(
        self,
        endpoints: HTTPEndpoints,
        hanging: HangingCollector,
        key: str,
        is_closed_here: bool,
    ) -> None:
        """Where a server passes its socket on, that is looked at, whoever has closed it."""
        ours, theirs = socket.socketpair()
        with ours:
            theirs.close()
            if is_closed_here:
                ours.close()
            environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/metrics", key: ours}
            assert list(endpoints.wsgi_app(environ, lambda *_args: None))
        assert not hanging.entered.acquire(blocking=False)

    def test_unknown_kind_of_socket_tells_nothing(self, endpoints: HTTPEndpoints) -> None:
        """A server may pass on what is no socket, such as one of its own library."""
        environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/metrics", "gunicorn.socket": object()}
        assert b"runs_total" in b"".join(endpoints.wsgi_app(environ, lambda *_args: None))

    def test_waitress_tells_of_them(
        self, endpoints: HTTPEndpoints, hanging: HangingCollector
    ) -> None:
        """What waitress knows of its clients is used."""
        environ = {
            "REQUEST_METHOD": "GET",
            "PATH_INFO": "/metrics",
            "waitress.client_disconnected": lambda: True,
        }
        assert list(endpoints.wsgi_app(environ, lambda *_args: None))
        assert not hanging.entered.acquire(blocking=False)


def end_threads(queue: RenderQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    """End the threads of a queue that wait for the next request."""
    monkeypatch.setattr(limits, "IDLE_THREAD_SECONDS", 0.0)
    with queue._condition:
        queue._condition.notify_all()
    wait_until(lambda: not queue._thread_count, "the end of the threads")


def raise_runtime_error(*_args: Any) -> None:
    """Fail as `threading.Thread.start` does if there are too many threads."""
    msg = "can't start new thread"
    raise RuntimeError(msg)


def send_and_vanish(server: HTTPServer, request: bytes, *, is_reset: bool) -> None:
    """Send a request and close the connection, with a reset or without."""
    with contextlib.closing(socket.create_connection(address(server), RESPONSE_TIMEOUT)) as client:
        client.sendall(request)
        if is_reset:  # closing with a linger time of 0 sends a reset
            linger = (1).to_bytes(4, sys.byteorder) + (0).to_bytes(4, sys.byteorder)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
