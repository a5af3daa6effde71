"""The built-in server in a process that can start no thread when the server is to start."""

from __future__ import annotations

import sys
import threading

import pytest

from apscheduler_telemetry import errors
from apscheduler_telemetry.http import HTTPEndpoints
from tests.helpers.http_clients import RESPONSE_TIMEOUT
from tests.helpers.scripts import output_of_script
from tests.helpers.servers import free_port


class TestStartWithoutThreads:
    """A server that is started when the process can start no thread."""

    @pytest.mark.parametrize("startable", [0, 1])
    def test_error_says_why_and_nothing_is_left(
        self, endpoints: HTTPEndpoints, monkeypatch: pytest.MonkeyPatch, startable: int
    ) -> None:
        """The error names the reason and what to do; no port and no thread stays in use."""
        start = threading.Thread.start
        started: list[threading.Thread] = []

        def start_few(thread: threading.Thread) -> None:
            if len(started) == startable:
                msg = "can't start new thread"
                raise RuntimeError(msg)
            started.append(thread)
            start(thread)

        port = free_port()
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start_few)
            with pytest.raises(
                errors.TelemetryError, match=rf":{port}: can't start new thread; end some threads"
            ):
                endpoints.start_server(port)
        for thread in started:
            thread.join(RESPONSE_TIMEOUT)
            assert not thread.is_alive()
        endpoints.start_server(port).close()

    @pytest.mark.skipif(sys.version_info[:2] != (3, 12), reason="threads can be started there")
    def test_error_says_that_the_main_thread_has_ended(self) -> None:
        """After the main thread, the error says so, and what the main thread has to do."""
        output, error = output_of_script("""
            import threading
            from apscheduler.schedulers.background import BackgroundScheduler
            from prometheus_client import CollectorRegistry
            from apscheduler_telemetry import TelemetryError, instrument

            telemetry = instrument(BackgroundScheduler(), registry=CollectorRegistry())
            main_thread = threading.main_thread()

            def serve():
                main_thread.join()
                while True:  # refused a moment later
                    try:
                        telemetry.start_http_server(0).close()
                    except TelemetryError as error:
                        print(error)
                        return

            threading.Thread(target=serve).start()
        """)
        assert error == ""
        assert output.startswith("cannot serve metrics on 127.0.0.1:0: the main thread has ended")
        assert "thread.join()" in output
