"""The ASGI application: collection off the event loop, clients that disconnect, lifespan."""

from __future__ import annotations

import asyncio
import concurrent.futures
import http.client
import threading
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from apscheduler_telemetry.http import HTTPEndpoints, limits
from tests.helpers.collectors import HangingCollector, RaisingCollector, ReportedErrors
from tests.helpers.http_clients import HEALTHY, RESPONSE_TIMEOUT, Reply, ask_asgi
from tests.helpers.waiting import wait_until


class TestAsgi:
    def test_metrics_are_collected_off_the_event_loop(self, registry: CollectorRegistry) -> None:
        """Collecting uses neither the loop's thread nor its default executor, which may be full."""
        names: list[str] = []

        class ThreadNameCollector(RaisingCollector):
            def collect(self) -> list[Any]:
                names.append(threading.current_thread().name)
                return []

        registry.register(ThreadNameCollector(RuntimeError()))
        endpoints = HTTPEndpoints(
            registry=registry,
            get_health_report=dict,
            is_healthy=lambda: True,
            report_exception=ReportedErrors(),
        )
        busy = threading.Event()

        async def main() -> Reply:
            loop = asyncio.get_running_loop()
            loop.set_default_executor(concurrent.futures.ThreadPoolExecutor(1))
            job = loop.run_in_executor(None, busy.wait, RESPONSE_TIMEOUT)
            try:
                return await ask_asgi(endpoints.asgi_app, "/metrics")
            finally:
                busy.set()
                await job

        assert asyncio.run(main()).status == 200
        assert names == ["apscheduler-telemetry-collect"]

    def test_hanging_collector_does_not_block_health(
        self,
        endpoints: HTTPEndpoints,
        hanging: HangingCollector,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """While all threads for scrapes hang, the loop runs and ``/health`` responds."""
        # Requests for one page share a rendering, so that they would not use several threads.
        monkeypatch.setattr(limits, "MAX_THREADS_PER_PAGE", 1)

        async def main() -> Reply:
            ask = [asyncio.create_task(ask_asgi(endpoints.asgi_app, "/metrics")) for _ in range(13)]
            assert await asyncio.to_thread(hanging.entered.acquire, timeout=RESPONSE_TIMEOUT)
            reply = await asyncio.wait_for(
                ask_asgi(endpoints.asgi_app, "/health"), RESPONSE_TIMEOUT / 2
            )
            hanging.release.set()
            assert {(await task).status for task in ask} == {200}
            return reply

        assert asyncio.run(main()).json == HEALTHY

    def test_concurrent_scrapes_succeed(self, endpoints: HTTPEndpoints) -> None:
        """Hundreds of concurrent scrapes all succeed."""

        async def main() -> list[Reply]:
            return await asyncio.gather(
                *(ask_asgi(endpoints.asgi_app, "/metrics") for _ in range(300))
            )

        assert {reply.status for reply in asyncio.run(main())} == {200}

    def test_client_that_disconnects_is_not_an_error(
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

    def test_no_task_remains(self, endpoints: HTTPEndpoints) -> None:
        """A request leaves no task in the loop, also if the server never tells of its end."""

        async def main() -> list[Any]:
            assert (await ask_asgi(endpoints.asgi_app, "/metrics")).status == 200
            await asyncio.sleep(0)
            return [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]

        assert asyncio.run(main()) == []

    def test_loop_that_closes_during_a_scrape_prints_nothing(
        self, endpoints: HTTPEndpoints, hanging: HangingCollector, capfd: pytest.CaptureFixture[str]
    ) -> None:
        """A loop that closes during a scrape leads to no output."""

        async def main() -> None:
            task = asyncio.create_task(ask_asgi(endpoints.asgi_app, "/metrics"))
            await asyncio.to_thread(hanging.entered.acquire, timeout=RESPONSE_TIMEOUT)
            task.cancel()

        asyncio.run(main())
        hanging.release.set()
        queue = endpoints._page_router._queues_by_page["metrics"]
        wait_until(lambda: not queue._thread_count, "the end of the thread")
        assert capfd.readouterr().err == ""

    def test_lifespan_protocol_is_completed(self, endpoints: HTTPEndpoints) -> None:
        """The application completes the lifespan protocol."""
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

    def test_websocket_is_rejected(self, endpoints: HTTPEndpoints) -> None:
        """Websockets are rejected."""
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "websocket.connect"}

        async def send(message: Any) -> None:
            sent.append(message)

        asyncio.run(endpoints.asgi_app({"type": "websocket"}, receive, send))
        assert sent == [{"type": "websocket.close"}]

    def test_unknown_scope_raises(self, endpoints: HTTPEndpoints) -> None:
        """An unknown scope type raises, as the ASGI specification requires."""
        with pytest.raises(ValueError, match="'smoke'"):
            asyncio.run(endpoints.asgi_app({"type": "smoke"}, None, None))  # type: ignore[arg-type]

    def test_uvicorn_serves_it(self, endpoints: HTTPEndpoints) -> None:
        """Uvicorn serves the application, also HEAD on a kept-alive connection."""
        uvicorn = pytest.importorskip("uvicorn")
        config = uvicorn.Config(endpoints.asgi_app, port=0, log_level="critical")
        uvicorn_server = uvicorn.Server(config)
        thread = threading.Thread(target=uvicorn_server.run)
        thread.start()
        try:
            wait_until(lambda: uvicorn_server.started, "the start of uvicorn")
            host, port = uvicorn_server.servers[0].sockets[0].getsockname()
            client = http.client.HTTPConnection(host, port, timeout=RESPONSE_TIMEOUT)
            client.request("HEAD", "/metrics")
            assert client.getresponse().read() == b""
            client.request("GET", "/metrics")  # on the same connection, which HEAD must not break
            assert b"runs_total" in client.getresponse().read()
            client.close()
        finally:
            uvicorn_server.should_exit = True
            thread.join()
