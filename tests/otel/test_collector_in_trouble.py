"""OTLP with a failing collector: jobs do not wait for it, and memory stays bounded."""

from __future__ import annotations

import gc
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip(
    "opentelemetry.exporter.otlp.proto.grpc",
    reason="the OTLP exporter is not installed: it comes with the extra 'otlp'",
)
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as GrpcMetrics
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcSpans
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as HttpMetrics
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpSpans
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from tests.helpers import jobs, watching
from tests.helpers.clocks import ManualClock
from tests.helpers.otlp_receiver import OtlpReceiver
from tests.helpers.paths import ROOT
from tests.helpers.rigs import Rig
from tests.helpers.schedulers import hand_driven_scheduler
from tests.helpers.servers import free_port
from tests.helpers.waiting import wait_until

PROTOCOLS = ("grpc", "http")
TIMEOUT = 10
"""Seconds that an export may take; what waits for one takes as long."""
ROUNDS = 200
QUEUE = 64
"""Spans that wait for an export at most; fewer than there are runs."""

REFUSAL = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
ANSWERS = {
    "silent": None,
    "late": REFUSAL,
    "refusing": REFUSAL,
    "garbage": b"\x00\xff garbage \r\n\r\n" * 100,
}
LATE = 0.5
"""Seconds after which the collector that is late answers."""


class Collector:
    """Accepts connections, and sends the same bytes to each, or nothing."""

    def __init__(self, answer: bytes | None, delay: float = 0) -> None:
        self._answer = answer
        self._delay = delay
        self._closed = threading.Event()
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
                    self._closed.wait(self._delay)
                    connection.sendall(self._answer)
                    connection.close()

    def close(self) -> None:
        self._closed.set()
        for one in (self._socket, *self._open):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._thread.join()


@contextmanager
def trouble(kind: str) -> Iterator[tuple[int, threading.Event]]:
    """Yield the port of a failing collector, and an event that is set by the first request."""
    if kind == "down":
        asked = threading.Event()
        asked.set()
        yield free_port(), asked
        return
    collector = Collector(ANSWERS[kind], LATE if kind == "late" else 0)
    try:
        yield collector.port, collector.was_asked
    finally:
        collector.close()


@contextmanager
def exporting(port: int, protocol: str) -> Iterator[dict[str, Any]]:
    """Yield providers that export continuously to a port."""
    url = f"http://127.0.0.1:{port}"
    spans: Any
    metrics: Any
    if protocol == "grpc":
        spans = GrpcSpans(endpoint=url, insecure=True, timeout=TIMEOUT)
        metrics = GrpcMetrics(endpoint=url, insecure=True, timeout=TIMEOUT)
    else:
        spans = HttpSpans(endpoint=f"{url}/v1/traces", timeout=TIMEOUT)
        metrics = HttpMetrics(endpoint=f"{url}/v1/metrics", timeout=TIMEOUT)
    tracers = TracerProvider(shutdown_on_exit=False)
    processor = BatchSpanProcessor(
        spans, max_queue_size=QUEUE, max_export_batch_size=QUEUE // 8, schedule_delay_millis=20
    )
    tracers.add_span_processor(processor)
    reader = PeriodicExportingMetricReader(metrics, export_interval_millis=20)
    meters = MeterProvider([reader], shutdown_on_exit=False)
    yield {"tracer_provider": tracers, "meter_provider": meters}
    with suppress(Exception):  # older exporters have no timeout
        meters.shutdown(timeout_millis=100)
    with suppress(Exception):
        # As shutdown() of the SDK's takes no timeout, and here it would be in vain.
        processor._batch_processor.shutdown(timeout_millis=100)


@pytest.mark.slow
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("kind", ["down", *ANSWERS])
def test_jobs_do_not_wait_for_the_collector(
    protocol: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A failing collector delays no run; all runs count, and memory stays bounded."""
    caplog.set_level(logging.CRITICAL + 1)  # the SDK logs failed exports
    with trouble(kind) as (port, asked), exporting(port, protocol) as providers:
        scheduler = hand_driven_scheduler()
        rig = Rig(scheduler, **providers)
        scheduler.start()
        rig.add(jobs.nothing, "interval", hours=1)

        def rounds() -> float:
            slowest = 0.0
            for _ in range(ROUNDS):
                scheduler.modify_job("job", next_run_time=watching.ago(0))
                since = time.perf_counter()
                scheduler.turn()
                slowest = max(slowest, time.perf_counter() - since)
            return slowest

        rounds()  # what is made once is made by now
        wait_until(asked.is_set)
        gc.collect()
        tracemalloc.start()
        slowest = rounds()
        gc.collect()
        taken = tracemalloc.take_snapshot().filter_traces(
            [tracemalloc.Filter(True, "*apscheduler_telemetry*")]
        )
        tracemalloc.stop()
        ours = providers["tracer_provider"].resource  # threads of tests before may live on a while
        spans = sum(
            isinstance(thing, ReadableSpan) and thing.resource is ours for thing in gc.get_objects()
        )

        assert slowest < TIMEOUT / 2
        assert rig.outcomes() == {"success": 2 * ROUNDS}
        # Those in the queue, those of the current export, and one that a thread is processing.
        assert spans <= QUEUE + QUEUE // 8 + 1
        # A run that is kept with its points takes some kilobytes. The attributes of spans are also
        # allocated by the package, and are freed with the spans.
        assert sum(trace.size for trace in taken.traces) < 100 * ROUNDS + 5_000 * spans
        scheduler.shutdown()
        rig.telemetry.uninstrument()
        rig.check()


def recipe(word: str) -> str:
    """Return the Python block of docs/opentelemetry.md that contains a word."""
    page = (ROOT / "docs" / "opentelemetry.md").read_text()
    (found,) = (
        block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if word in block
    )
    return str(found)


@contextmanager
def script(path: Path, code: str, endpoint: str, **variables: str) -> Iterator[Any]:
    """Run an application that exports to an endpoint; yield the process, whose output is piped."""
    path.write_text(code)
    with subprocess.Popen(
        [sys.executable, path],
        env={**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, **variables},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process


ENDS = """
import importlib, threading
from apscheduler.schedulers.background import BackgroundScheduler
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from apscheduler_telemetry import instrument

otlp = "opentelemetry.exporter.otlp.proto.PROTOCOL"
spans = importlib.import_module(f"{otlp}.trace_exporter").OTLPSpanExporter()
metrics = importlib.import_module(f"{otlp}.metric_exporter").OTLPMetricExporter()
tracers = TracerProvider()
tracers.add_span_processor(BatchSpanProcessor(spans))
meters = MeterProvider([PeriodicExportingMetricReader(metrics)])

scheduler = BackgroundScheduler()
instrument(scheduler, tracer_provider=tracers, meter_provider=meters)
scheduler.start()
ran = threading.Event()
scheduler.add_job(ran.set, id="report", misfire_grace_time=None)
assert ran.wait(60)
scheduler.shutdown()
print("end", flush=True)
"""


@pytest.mark.slow
class TestEnd:
    """The exit of a program that does not shut down its providers."""

    def test_process_ends_soon_with_a_silent_collector(self, tmp_path: Path) -> None:
        """The process exits soon after the configured timeout, once for each signal."""
        with ExitStack() as stack:
            processes = []
            for protocol in PROTOCOLS:
                port, asked = stack.enter_context(trouble("silent"))
                process = stack.enter_context(
                    script(
                        tmp_path / f"sends_by_{protocol}.py",
                        ENDS.replace("PROTOCOL", protocol),
                        f"http://127.0.0.1:{port}",
                        OTEL_EXPORTER_OTLP_TIMEOUT="1",
                    )
                )
                processes.append((process, asked))
            for process, asked in processes:
                assert process.stdout.readline() == "end\n"
                since = time.perf_counter()
                assert process.wait(60) == 0
                # Without that timeout it would be twice this one.
                assert time.perf_counter() - since < TIMEOUT
                assert asked.is_set()

    def test_process_sends_the_rest_at_its_end(self, tmp_path: Path) -> None:
        """At its exit, the process sends what was not sent yet."""
        with OtlpReceiver() as receiver:
            code = ENDS.replace("PROTOCOL", "grpc")
            with script(tmp_path / "app.py", code, receiver.grpc_endpoint) as process:
                assert process.wait(60) == 0
            assert receiver.span("report").attributes["apscheduler.outcome"] == "success"
            (runs,) = (m.data for m in receiver.metrics if m.data.name == "apscheduler.job.runs")
            assert sum(point.as_int for point in runs.sum.data_points) == 1


IN_WORKERS = """

def report(ended):
    with trace.get_tracer("driver").start_as_current_span("query"):
        pass
    if ended == "killed":
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    import threading
    from apscheduler.schedulers.background import BackgroundScheduler
    from apscheduler_telemetry import instrument

    tracers = TracerProvider()
    tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(), schedule_delay_millis=50))
    scheduler = BackgroundScheduler(executors={"default": executor})
    instrument(scheduler, tracer_provider=tracers)
    scheduler.start()
    scheduler.add_job(report, args=["ENDED"], id="report", misfire_grace_time=None)
    input()  # until the test has the run's span
    scheduler.shutdown()
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this platform has no SIGKILL")
def test_runs_of_ending_workers_are_reported(tmp_path: Path) -> None:
    """Runs of workers that end are reported, with the spans that the worker has sent."""
    imports = "import os, signal\nfrom opentelemetry.sdk.trace.export import BatchSpanProcessor\n"
    cases = [
        ("BatchSpanProcessor", "shut down", "success", 1),
        ("BatchSpanProcessor", "killed", "lost", 0),
        ("SimpleSpanProcessor", "killed", "lost", 1),
    ]
    with ExitStack() as stack:
        started = []
        for number, (processor, ended, *_) in enumerate(cases):
            page = recipe("initializer").replace("BatchSpanProcessor", processor)
            receiver = stack.enter_context(OtlpReceiver())
            process = stack.enter_context(
                script(
                    tmp_path / f"application_{number}.py",
                    imports + page + IN_WORKERS.replace("ENDED", ended),
                    receiver.grpc_endpoint,
                    OTEL_BSP_SCHEDULE_DELAY="60000",
                )
            )
            started.append((process, receiver))
        for (process, receiver), (_, _, outcome, queries) in zip(started, cases, strict=True):
            receiver.wait_for_spans("report")
            process.communicate("\n", timeout=60)
            assert process.returncode == 0
            run = receiver.span("report")
            found = [span for span in receiver.spans if span.data.name == "query"]
            assert run.attributes["apscheduler.outcome"] == outcome
            assert [span.data.parent_span_id for span in found] == [run.data.span_id] * queries
            assert [span.data.trace_id for span in found] == [run.data.trace_id] * queries


def test_log_recipe_lets_each_complaint_of_an_exporter_through_once() -> None:
    """The recipe limits each exporter to one log record; other records pass."""
    names: dict[str, Any] = {}
    exec(recipe("NowAndThen").split("\nhandler =")[0], names)  # from the page
    clock = ManualClock()

    def passed(name: str) -> bool:
        record = logging.LogRecord(name, logging.ERROR, "", 0, "down", None, None)
        record.created = clock()
        return bool(some.filter(record))

    some = names["NowAndThen"]()
    exporter = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
    assert [passed(exporter) for _ in range(3)] == [True, False, False]
    assert [passed("shop"), passed("opentelemetry.sdk.trace")] == [True, True]
    clock.now += 601
    assert [passed(exporter) for _ in range(2)] == [True, False]
