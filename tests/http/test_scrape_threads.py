"""The threads that collect metrics for the endpoints: their end, number, and forks."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from apscheduler_telemetry.http import HTTPEndpoints, limits
from tests.helpers.collectors import HangingCollector, ReportedErrors
from tests.helpers.http_clients import RESPONSE_TIMEOUT, Reply, ask_wsgi
from tests.helpers.threads import in_fork
from tests.helpers.waiting import wait_until


class TestThreads:
    def test_threads_end_when_idle(self, endpoints: HTTPEndpoints) -> None:
        """Threads end when no request is waiting."""
        assert ask_wsgi(endpoints.wsgi_app, "/metrics").status == 200

        queue = endpoints._page_router._queues_by_page["metrics"]
        wait_until(lambda: not queue._thread_count, "the end of the thread")

    def test_one_thread_waits_for_the_next_scrape(
        self, endpoints: HTTPEndpoints, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One thread stays for the next scrape, as memory of many threads is not reused."""
        monkeypatch.setattr(limits, "IDLE_THREAD_SECONDS", RESPONSE_TIMEOUT)
        name = "apscheduler-telemetry-collect"

        def collecting() -> list[int | None]:
            return [thread.ident for thread in threading.enumerate() if thread.name == name]

        before = set(collecting())
        assert ask_wsgi(endpoints.wsgi_app, "/metrics").status == 200
        waiting = set(collecting()) - before
        assert len(waiting) == 1
        for _ in range(5):
            assert ask_wsgi(endpoints.wsgi_app, "/metrics").status == 200
            assert set(collecting()) - before == waiting
        queue = endpoints._page_router._queues_by_page["metrics"]
        monkeypatch.setattr(limits, "IDLE_THREAD_SECONDS", 0.0)
        with queue._condition:
            queue._condition.notify_all()
        wait_until(lambda: not waiting & set(collecting()), "the end of the thread")

    def test_scrape_that_takes_too_long_fails_and_the_next_works(
        self,
        ask: Callable[..., Reply],
        hanging: HangingCollector,
        failures: ReportedErrors,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """A scrape that takes too long fails, and the next one works."""
        monkeypatch.setattr(limits, "RENDER_TIMEOUT_SECONDS", 0.05)
        assert ask("/metrics").status == 500
        assert len(failures) == 1

        hanging.release.set()
        monkeypatch.setattr(limits, "RENDER_TIMEOUT_SECONDS", RESPONSE_TIMEOUT)
        assert ask("/metrics").status == 200

    def test_hanging_scrapes_are_bounded(
        self,
        endpoints: HTTPEndpoints,
        hanging: HangingCollector,
        failures: ReportedErrors,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """If a collector hangs, the number of threads stays bounded, and requests fail in time."""
        monkeypatch.setattr(limits, "RENDER_TIMEOUT_SECONDS", 0.01)
        monkeypatch.setattr(limits, "PARALLEL_RENDER_AFTER_SECONDS", 0.0)

        for _ in range(limits.MAX_THREADS_PER_PAGE + 10):
            assert ask_wsgi(endpoints.wsgi_app, "/metrics").status == 500

        queue = endpoints._page_router._queues_by_page["metrics"]
        assert queue._thread_count == limits.MAX_THREADS_PER_PAGE
        assert len(failures) == limits.MAX_THREADS_PER_PAGE + 10
        assert "does a collector hang?" in str(failures[-1][1])

        hanging.release.set()
        monkeypatch.setattr(limits, "RENDER_TIMEOUT_SECONDS", RESPONSE_TIMEOUT)
        wait_until(lambda: ask_wsgi(endpoints.wsgi_app, "/metrics").status == 200, "a scrape")

    def test_interpreter_exits_while_a_collector_hangs(self, tmp_path: Path) -> None:
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
            limits.RENDER_TIMEOUT_SECONDS = 0.1
            endpoints = HTTPEndpoints(
                registry=registry,
                get_health_report=dict,
                is_healthy=bool,
                report_exception=lambda _: None,
            )
            endpoints.start_server(0)
            environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/metrics"}
            print(endpoints.wsgi_app(environ, lambda status, headers: print(status)))
            """)
        )
        done = subprocess.run(
            [sys.executable, "-W", "error", program],
            capture_output=True,
            text=True,
            timeout=RESPONSE_TIMEOUT,
            check=False,
        )

        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("500 ")

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
    def test_child_forked_while_threads_are_busy_serves_requests(
        self, endpoints: HTTPEndpoints, hanging: HangingCollector, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A child that is forked while all threads are busy can serve requests."""
        monkeypatch.setattr(limits, "MAX_THREADS_PER_PAGE", 1)
        scrape = threading.Thread(target=ask_wsgi, args=(endpoints.wsgi_app, "/metrics"))
        scrape.start()
        assert hanging.entered.acquire(timeout=RESPONSE_TIMEOUT)

        def child() -> bool:
            hanging.release.set()
            return all(ask_wsgi(endpoints.wsgi_app, "/metrics").status == 200 for _ in range(9))

        assert in_fork(child)
        hanging.release.set()
        scrape.join()
