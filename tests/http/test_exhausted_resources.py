"""The built-in server without threads, without file descriptors, and after the main thread."""

from __future__ import annotations

import json
import os
import socket
import threading
from typing import Any

import pytest
from apscheduler.schedulers.background import BackgroundScheduler
from prometheus_client import CollectorRegistry

from apscheduler_telemetry import instrument
from apscheduler_telemetry.http import HTTPServer, limits
from tests.helpers.collectors import ReportedErrors
from tests.helpers.http_clients import RESPONSE_TIMEOUT, address, fetch
from tests.helpers.scripts import output_of_script
from tests.helpers.waiting import wait_until


class TestNoThreads:
    @pytest.fixture
    def other_threads(self) -> set[threading.Thread]:
        """Return the threads before the server is started, such as those of earlier tests."""
        return set(threading.enumerate())

    @pytest.fixture
    def exhausted(
        self,
        other_threads: set[threading.Thread],
        server: HTTPServer,
        monkeypatch: pytest.MonkeyPatch,
    ) -> HTTPServer:
        """Return a server in a process that can start no further thread."""

        def start(_thread: Any) -> None:
            msg = "can't start new thread"
            raise RuntimeError(msg)

        monkeypatch.setattr(threading.Thread, "start", start)
        return server

    def test_all_pages_are_served(self, exhausted: HTTPServer, failures: ReportedErrors) -> None:
        """All pages are served if no thread can be started, and the failure is counted."""
        for _ in range(3):
            assert b"runs_total" in fetch(exhausted).body
            assert fetch(exhausted, "/health").status == 200
            assert fetch(exhausted, "/livez").status == 200
        assert {component for component, _ in failures} == {"http"}

    def test_silent_client_does_not_block_others_for_long(
        self, exhausted: HTTPServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A silent client is disconnected soon, as all others wait for it."""
        monkeypatch.setattr(limits, "SPARE_THREAD_CONNECTION_SECONDS", 0.1)
        with socket.create_connection(address(exhausted), timeout=RESPONSE_TIMEOUT):
            assert fetch(exhausted).status == 200

    def test_server_can_be_closed(
        self, other_threads: set[threading.Thread], exhausted: HTTPServer
    ) -> None:
        """A server that has served without threads can be closed."""
        fetch(exhausted)
        names = {thread.name for thread in set(threading.enumerate()) - other_threads}
        assert "apscheduler-telemetry-http-spare" in names
        exhausted.close()
        wait_until(lambda: not set(threading.enumerate()) - other_threads)
        with pytest.raises(ConnectionRefusedError):
            fetch(exhausted)


AFTER_MAIN_THREAD = """
    import json, logging, threading, urllib.error, urllib.request
    from concurrent.futures import ThreadPoolExecutor
    from apscheduler.schedulers.asyncio import AsyncIOScheduler
    from apscheduler.schedulers.background import BackgroundScheduler
    from prometheus_client import CollectorRegistry
    from apscheduler_telemetry import instrument

    logging.disable()
    registry = CollectorRegistry()
    scheduler = BackgroundScheduler(timezone="UTC")
    telemetry = instrument(scheduler, registry=registry)
    telemetry.start_http_server(0)
    scheduler.start()
    server, = telemetry._servers
    main_thread = threading.main_thread()

    def get(path):
        try:
            with urllib.request.urlopen(server.url + path, timeout=10) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as reply:
            return reply.code, reply.read().decode()

    def outlive():
        main_thread.join()
        while True:  # the pools are closed a moment later
            try:
                ThreadPoolExecutor(1).submit(bool)
            except RuntimeError:
                break
        scheduler.add_job(bool, id="lost")
        while 'outcome="lost",scheduler="default"} 1.0' not in get("/metrics")[1]:
            pass
        print(json.dumps([get("/metrics"), get("/health"), get("/livez")]), flush=True)
        scheduler.shutdown(wait=False)

    threading.Thread(target=outlive).start()
"""


class TestAfterTheMainThread:
    """An application whose main thread has ended, while another thread goes on."""

    def test_pages_are_served_and_say_that_nothing_can_be_submitted(self) -> None:
        """All pages are served as long as the process lives, and health says what is wrong."""
        output, errors = output_of_script(AFTER_MAIN_THREAD)

        assert errors == ""
        (metrics_status, metrics), (health_status, health), livez = json.loads(output)
        assert metrics_status == 200
        assert (
            'apscheduler_scheduler_errors_total{kind="submit",scheduler="default"} 1.0' in metrics
        )
        assert 'apscheduler_telemetry_errors_total{component="http",scheduler="default"} 0.0' in (
            metrics
        )
        assert 'apscheduler_scheduler_up{scheduler="default"} 0.0' in metrics
        assert health_status == 503
        (reason,) = json.loads(health)["reasons"]
        assert reason["code"] == "main_thread_ended"
        assert "'default'" in reason["message"]
        assert livez == [503, "unhealthy\n"]

    def test_scheduler_whose_pools_accept_calls_stays_healthy(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What Python takes for the main thread may end early, as in a program that embeds it."""
        ended = threading.Thread(target=bool)
        ended.start()
        ended.join()
        scheduler = BackgroundScheduler(timezone="UTC")
        telemetry = instrument(scheduler, registry=CollectorRegistry())
        scheduler.start()
        monkeypatch.setattr(threading, "main_thread", lambda: ended)
        assert telemetry.health()["status"] == "healthy"
        monkeypatch.undo()
        scheduler.shutdown()

    def test_scheduler_whose_jobs_need_no_pool_stays_healthy(self) -> None:
        """A scheduler that submits nothing to a pool is not affected."""
        output, errors = output_of_script("""
            import asyncio, threading
            from apscheduler.executors.asyncio import AsyncIOExecutor
            from apscheduler.schedulers.asyncio import AsyncIOScheduler
            from prometheus_client import CollectorRegistry
            from apscheduler_telemetry import instrument

            main_thread = threading.main_thread()

            async def main():
                done = asyncio.Event()

                async def job():
                    done.set()

                scheduler = AsyncIOScheduler(timezone="UTC")
                telemetry = instrument(scheduler, registry=CollectorRegistry())
                scheduler.start()
                while main_thread.is_alive():
                    await asyncio.sleep(0.001)
                scheduler.add_job(job)
                await done.wait()
                print(telemetry.health()["status"], flush=True)
                scheduler.shutdown()

            threading.Thread(target=asyncio.run, args=[main()]).start()
        """)
        assert (output, errors) == ("healthy\n", "")


@pytest.mark.skipif(os.name == "nt", reason="no such limit")
class TestNoFileDescriptors:
    def test_server_waits_for_a_free_descriptor_and_counts(self) -> None:
        """Without file descriptors the server waits between attempts, and serves when it can."""
        output, errors = output_of_script("""
            import os, resource, socket, time
            from prometheus_client import CollectorRegistry
            from apscheduler_telemetry.http import HTTPEndpoints, limits

            resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
            attempts = []
            endpoints = HTTPEndpoints(
                registry=CollectorRegistry(),
                get_health_report=lambda: {"status": "healthy"},
                is_healthy=bool,
                report_exception=lambda component: attempts.append((component, time.monotonic())),
            )
            server = endpoints.start_server(0)
            client = socket.socket()
            held = []
            try:
                while True:
                    held.append(os.open(os.devnull, os.O_RDONLY))
            except OSError:
                pass
            client.connect((server.addr, server.port))
            client.sendall(b"GET /health HTTP/1.0\\r\\n\\r\\n")
            while len(attempts) < 4:
                time.sleep(0.001)
            for descriptor in held:
                os.close(descriptor)
            client.settimeout(10)
            print(client.recv(100).split()[1].decode())
            times = [at for component, at in attempts if component == "http"]
            print(times[3] - times[0] >= 2.5 * limits.ACCEPT_RETRY_SECONDS)
            server.close()
        """)
        assert (output, errors) == ("200\nTrue\n", "")

    def test_server_that_waits_can_be_closed(self) -> None:
        """A server that waits for a descriptor is closed without waiting for it."""
        output, errors = output_of_script("""
            import os, resource, socket, time
            from prometheus_client import CollectorRegistry
            from apscheduler_telemetry.http import HTTPEndpoints, limits

            limits.ACCEPT_RETRY_SECONDS = 3600.0
            resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
            attempts = []
            endpoints = HTTPEndpoints(
                registry=CollectorRegistry(),
                get_health_report=dict,
                is_healthy=bool,
                report_exception=attempts.append,
            )
            server = endpoints.start_server(0)
            client = socket.socket()
            try:
                while True:
                    os.open(os.devnull, os.O_RDONLY)
            except OSError:
                pass
            client.connect((server.addr, server.port))
            while not attempts:
                time.sleep(0.001)
            server.close()
            print(server.is_serving)
        """)
        assert (output, errors) == ("False\n", "")
