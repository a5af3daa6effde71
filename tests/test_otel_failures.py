"""Metrics by OTLP with a collector in trouble: jobs do not wait for it, and nothing piles up."""

from __future__ import annotations

import gc
import logging
import socket
import threading
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

pytest.importorskip(
    "opentelemetry.exporter.otlp.proto.grpc",
    reason="the OTLP exporter is not installed: it comes with the extra 'otlp'",
)
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as Grpc
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as Http
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

import support_jobs as jobs
import support_scenes as scenes
from servers import free_port
from support import Rig, until

TIMEOUT = 10
"""Seconds that an export may take; what waits for one takes as long."""
ROUNDS = 200

ANSWERS = {
    "silent": None,
    "refusing": b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n",
    "garbage": b"\x00\xff garbage \r\n\r\n" * 100,
}


class Collector:
    """Takes connections, and answers each with the same, or never."""

    def __init__(self, answer: bytes | None) -> None:
        self._answer = answer
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self.port: int = self._socket.getsockname()[1]
        self.was_asked = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                self._open.append(connection)
                connection.recv(1)
                self.was_asked.set()
                if self._answer is not None:
                    connection.sendall(self._answer)
                    connection.close()

    def close(self) -> None:
        for one in (self._socket, *self._open):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._thread.join()


@contextmanager
def trouble(kind: str) -> Iterator[tuple[int, threading.Event]]:
    """Yield the port of a collector in trouble, and what is set when it was asked."""
    if kind == "down":
        asked = threading.Event()
        asked.set()
        yield free_port(), asked
        return
    collector = Collector(ANSWERS[kind])
    try:
        yield collector.port, collector.was_asked
    finally:
        collector.close()


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("kind", ["down", *ANSWERS])
def test_jobs_do_not_wait(protocol: str, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """While the collector is in trouble runs take no longer, all count, and no memory is taken."""
    caplog.set_level(logging.CRITICAL + 1)  # the SDK says what it thinks of the collector
    with trouble(kind) as (port, asked):
        url = f"http://127.0.0.1:{port}"
        exporter: Any = (
            Grpc(endpoint=url, insecure=True, timeout=TIMEOUT)
            if protocol == "grpc"
            else Http(endpoint=f"{url}/v1/metrics", timeout=TIMEOUT)
        )
        reader = PeriodicExportingMetricReader(exporter, export_interval_millis=20)
        provider = MeterProvider([reader], shutdown_on_exit=False)
        scheduler = scenes.by_hand()
        rig = Rig(scheduler, meter_provider=provider)
        scheduler.start()
        rig.add(jobs.nothing, "interval", hours=1)
        until(asked.is_set)

        def rounds() -> float:
            slowest = 0.0
            for _ in range(ROUNDS):
                scheduler.modify_job("job", next_run_time=scenes.ago(0))
                since = time.perf_counter()
                scheduler.turn()
                slowest = max(slowest, time.perf_counter() - since)
            return slowest

        rounds()  # what is made once is made by now
        gc.collect()
        tracemalloc.start()
        slowest = rounds()
        gc.collect()
        taken = tracemalloc.take_snapshot().filter_traces(
            [tracemalloc.Filter(True, "*apscheduler_telemetry*")]
        )
        tracemalloc.stop()

        assert slowest < TIMEOUT / 2
        assert rig.outcomes() == {"success": 2 * ROUNDS}
        # A run that was kept, with its points, would be some kilobytes of each.
        assert sum(trace.size for trace in taken.traces) < 100 * ROUNDS
        scheduler.shutdown()
        rig.telemetry.uninstrument()
        rig.check()
    with suppress(Exception):  # older exporters have no timeout
        provider.shutdown(timeout_millis=100)
