"""Spans and metrics end to end: real schedulers and executors, OTLP exporters, a receiver."""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any

import pytest

for _module in ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http", "grpc"):
    pytest.importorskip(
        _module,
        reason=f"{_module} is not installed: it comes with the extra 'otlp' of this package",
    )

from apscheduler.executors.asyncio import AsyncIOExecutor
from apscheduler.executors.debug import DebugExecutor
from apscheduler.executors.pool import ProcessPoolExecutor, ThreadPoolExecutor
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.schedulers.background import BackgroundScheduler
from opentelemetry._logs import Logger
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from prometheus_client import CollectorRegistry

from apscheduler_telemetry import __version__, instrument
from apscheduler_telemetry.core.model import ErrorDescription, Outcome
from apscheduler_telemetry.export import otel_traces as otel
from apscheduler_telemetry.export.job_attributes import SCHEMA_URL
from apscheduler_telemetry.export.metric_families import FAMILIES, MetricKind
from tests.helpers import jobs
from tests.helpers.otlp_receiver import OtlpReceiver, Received
from tests.helpers.recorder_rig import AT, RecorderRig
from tests.helpers.rigs import hand_driven_rig
from tests.helpers.schedulers import finish_pass

PROTOCOLS = ("grpc", "http")
UNSET, ERROR = 0, 2  # opentelemetry.proto.trace.v1.Status.StatusCode
SEVERITY_ERROR = 17
CLOCK_SLACK = 1_000_000
"""Nanoseconds by which two readings of one clock may differ, one of them having been a float."""


def exporter(endpoint: str, protocol: str) -> Any:
    if protocol == "grpc":
        return GrpcExporter(endpoint=endpoint, insecure=True, timeout=10)
    return HttpExporter(endpoint=f"{endpoint}/v1/traces", timeout=10)


def provider(endpoint: str, protocol: str, service: str) -> TracerProvider:
    provider = TracerProvider(
        resource=Resource.create({"service.name": service}), shutdown_on_exit=False
    )
    provider.add_span_processor(
        BatchSpanProcessor(exporter(endpoint, protocol), schedule_delay_millis=50)
    )
    return provider


# What runs in the process pool: in a child of its own, with an SDK of its own.


def query_in_child(endpoint: str, protocol: str) -> str:
    """Make a span in whatever trace is going on, as an instrumented database driver would."""
    child = provider(endpoint, protocol, "child")
    with child.get_tracer("driver").start_as_current_span("query"):
        pid = os.getpid()
    child.force_flush()
    child.shutdown()
    return f"done by {pid}"


def fail() -> None:
    msg = "no paper"
    raise LookupError(msg)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module")
def _receiver() -> Iterator[OtlpReceiver]:
    with OtlpReceiver() as receiver:
        yield receiver


@pytest.fixture
def receiver(_receiver: OtlpReceiver) -> OtlpReceiver:
    _receiver.clear()
    return _receiver


class Application:
    """An application with the SDK set up and an instrumented scheduler."""

    def __init__(self, receiver: OtlpReceiver, protocol: str = "grpc") -> None:
        self.receiver = receiver
        self.endpoint = getattr(receiver, f"{protocol}_endpoint")
        self.protocol = protocol
        self.provider = provider(self.endpoint, protocol, "application")
        self.tracer = self.provider.get_tracer("driver")

    def query(self) -> None:
        """Be a job that makes a span of its own."""
        self.tracer.start_span("query").end()

    async def query_later(self) -> None:
        """Be a job on the event loop that does so after it has given way."""
        await asyncio.sleep(0)
        self.tracer.start_span("query").end()

    @contextmanager
    def scheduler(self, executor: Any) -> Iterator[BackgroundScheduler]:
        scheduler = BackgroundScheduler(executors={"default": executor}, timezone=timezone.utc)
        instrument(
            scheduler, name="main", registry=CollectorRegistry(), tracer_provider=self.provider
        )
        scheduler.start()
        try:
            yield scheduler
        finally:
            finish_pass(scheduler)
            scheduler.shutdown()
            self.provider.shutdown()

    def run(self, executor: Any, func: Callable[..., Any], *args: Any) -> Received:
        """Have `func` run once as a job and return its span as it was received."""
        with self.scheduler(executor) as scheduler:
            # No misfire, however long a loaded machine takes to spawn a child.
            scheduler.add_job(
                func, args=args, id="report", name="Nightly report", misfire_grace_time=None
            )
            self.receiver.wait_for_spans("report")
        return self.receiver.span("report")


def pool(workers: int = 1) -> ProcessPoolExecutor:
    # Spawned, not forked: forking a process with gRPC threads is what gRPC warns of.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, pool_kwargs={"mp_context": context})


def check(span: Received, *, func: str, outcome: str = "success") -> None:
    """Compare what every span of a run has in common."""
    attributes = dict(span.attributes)
    scheduled = datetime.fromisoformat(attributes.pop("apscheduler.scheduled_time"))
    started = span.data.start_time_unix_nano / 1e9
    assert scheduled.utcoffset() == timezone.utc.utcoffset(None)
    if outcome in {"success", "error"}:
        delay = attributes.pop("apscheduler.start_delay")
        assert started - scheduled.timestamp() == pytest.approx(delay, abs=CLOCK_SLACK / 1e9)
    assert attributes == {
        "job.system": "apscheduler",
        "apscheduler.job.id": "report",
        "apscheduler.job.label": "report",
        "apscheduler.job.name": "Nightly report",
        "apscheduler.scheduler": "main",
        "apscheduler.executor": "default",
        "apscheduler.jobstore": "default",
        "apscheduler.trigger": "date",
        "apscheduler.outcome": outcome,
        "code.function.name": func,
        **({} if outcome == "success" else {"error.type": attributes.get("error.type")}),
    }
    assert span.data.kind == span.data.SPAN_KIND_INTERNAL
    assert span.data.parent_span_id == b""
    assert (span.scope.name, span.scope.version) == ("apscheduler_telemetry", __version__)
    assert span.schema_url in {SCHEMA_URL, ""}  # exporters before 1.31 do not send it
    assert span.resource["service.name"] == "application"


def check_child(query: Received, run: Received) -> None:
    """Check that `query` is a child of `run`, and within it."""
    assert query.data.trace_id == run.data.trace_id
    assert query.data.parent_span_id == run.data.span_id
    assert run.data.start_time_unix_nano - CLOCK_SLACK <= query.data.start_time_unix_nano
    assert query.data.end_time_unix_nano <= run.data.end_time_unix_nano + CLOCK_SLACK


@pytest.mark.parametrize("protocol", PROTOCOLS)
class TestExecutors:
    """One span per run, with the job's spans as its children, in each kind of executor."""

    @pytest.mark.parametrize("executor", [ThreadPoolExecutor, DebugExecutor])
    def test_spans_of_threads_and_the_debug_executor_arrive(
        self, receiver: OtlpReceiver, protocol: str, executor: Any
    ) -> None:
        """Spans of runs in a thread pool and in the scheduler's thread arrive."""
        app = Application(receiver, protocol)
        run = app.run(executor(), app.query)

        assert len(receiver.spans) == 2
        assert run.data.status.code == UNSET
        check(run, func=f"{__name__}.Application.query")
        check_child(receiver.span("query"), run)

    def test_spans_of_coroutines_arrive(self, receiver: OtlpReceiver, protocol: str) -> None:
        """Spans of several concurrent coroutines arrive."""
        app = Application(receiver, protocol)

        async def main() -> None:
            scheduler = AsyncIOScheduler(
                executors={"default": AsyncIOExecutor()}, timezone=timezone.utc
            )
            instrument(
                scheduler, name="main", registry=CollectorRegistry(), tracer_provider=app.provider
            )
            scheduler.start()
            for _ in range(3):
                scheduler.add_job(app.query_later, name="report", misfire_grace_time=None)
            await asyncio.to_thread(receiver.wait_for, lambda r: len(r.spans) >= 6)
            scheduler.shutdown()

        asyncio.run(main())
        app.provider.shutdown()

        queries = {s.data.trace_id: s for s in receiver.spans if s.data.name == "query"}
        runs = [s for s in receiver.spans if s.data.name != "query"]
        assert len(receiver.spans) == 6
        assert len(queries) == len(runs) == 3
        for run in runs:
            assert run.attributes["apscheduler.outcome"] == "success"
            check_child(queries[run.data.trace_id], run)

    def test_spans_of_a_process_pool_continue_the_trace(
        self, receiver: OtlpReceiver, protocol: str
    ) -> None:
        """Spans that a job makes in another process are in the trace of its run."""
        app = Application(receiver, protocol)
        run = app.run(pool(), query_in_child, app.endpoint, protocol)
        query = receiver.span("query")

        assert len(receiver.spans) == 2
        assert run.data.status.code == UNSET
        check(run, func=f"{__name__}.query_in_child")
        assert query.resource["service.name"] == "child"
        check_child(query, run)


@pytest.mark.parametrize("traced", [True, False], ids=["with spans", "without spans"])
def test_metrics_of_every_kind_arrive(receiver: OtlpReceiver, *, traced: bool) -> None:
    """Metrics of every kind arrive, with exemplars where there are spans."""
    exporter = OTLPMetricExporter(endpoint=f"{receiver.http_endpoint}/v1/metrics", timeout=10)
    reader = PeriodicExportingMetricReader(exporter, export_interval_millis=math.inf)
    meters = MeterProvider([reader], shutdown_on_exit=False)
    options: dict[str, Any] = {"meter_provider": meters}
    if traced:
        options["tracer_provider"] = TracerProvider(shutdown_on_exit=False)
    with hand_driven_rig(telemetry=options) as rig:
        rig.add(jobs.nothing, "interval", seconds=9)
        rig.after(9)
        rig.settle()
        meters.force_flush()
    meters.shutdown()

    found = {metric.data.name: metric.data for metric in receiver.metrics}
    assert {family.kind for family in FAMILIES if family.name in found} == set(MetricKind)
    [duration] = found["apscheduler.job.run.duration"].histogram.data_points
    assert duration.count == 1
    assert [len(exemplar.span_id) for exemplar in duration.exemplars] == [8] * traced


def test_run_links_to_the_span_that_added_its_job(receiver: OtlpReceiver) -> None:
    """A run is a trace of its own, and links to the span that added its job."""
    app = Application(receiver)
    with app.scheduler(ThreadPoolExecutor()) as scheduler:
        with app.tracer.start_as_current_span("request"):
            scheduler.add_job(app.query, id="report", misfire_grace_time=None)
        receiver.wait_for_spans("request", "report")

    request, run = receiver.span("request").data, receiver.span("report").data
    (link,) = run.links
    assert (link.trace_id, link.span_id) == (request.trace_id, request.span_id)
    assert run.trace_id != request.trace_id
    assert run.parent_span_id == b""


class TestFailures:
    @pytest.mark.parametrize("executor", [ThreadPoolExecutor, DebugExecutor, pool])
    def test_raised_exception_arrives_as_a_failed_span(
        self, receiver: OtlpReceiver, executor: Any
    ) -> None:
        """A run that raises is a failed span with the exception, without a stack trace."""
        run = Application(receiver).run(executor(), fail)

        check(run, func=f"{__name__}.fail", outcome="error")
        assert run.attributes["error.type"] == "LookupError"
        assert (run.data.status.code, run.data.status.message) == (ERROR, "no paper")
        (event,) = run.data.events
        assert event.name == "exception"
        assert {a.key: a.value.string_value for a in event.attributes} == {
            "exception.type": "LookupError",
            "exception.message": "no paper",
        }

    @pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this platform has no SIGKILL")
    def test_killed_worker_arrives_as_a_lost_span(
        self, receiver: OtlpReceiver, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A run whose process is killed is a failed span with the outcome `lost`."""
        caplog.set_level(logging.CRITICAL + 1)  # APScheduler logs the broken pool
        run = Application(receiver).run(pool(), die)

        check(run, func=f"{__name__}.die", outcome="lost")
        assert run.data.status.code == ERROR
        assert run.attributes["error.type"] == "concurrent.futures.process.BrokenProcessPool"
        assert run.data.start_time_unix_nano == run.data.end_time_unix_nano

    def test_missed_run_arrives_as_a_failed_span(self, receiver: OtlpReceiver) -> None:
        """A missed run is a failed span."""
        app = Application(receiver)
        with app.scheduler(ThreadPoolExecutor()) as scheduler:
            long_ago = datetime(2020, 1, 1, tzinfo=timezone.utc)
            scheduler.add_job(
                app.query,
                "interval",
                days=1,
                next_run_time=long_ago,
                misfire_grace_time=1,
                coalesce=True,
                id="report",
            )
            receiver.wait_for(lambda r: any(outcome(s) == "missed" for s in r.spans))

        missed = [span for span in receiver.spans if outcome(span) == "missed"]
        assert {span.data.status.code for span in missed} == {ERROR}
        folded = [span for span in receiver.spans if outcome(span) == "coalesced"]
        assert {span.data.status.code for span in folded} == {UNSET}


def outcome(span: Received) -> Any:
    return span.attributes.get("apscheduler.outcome")


@pytest.mark.skipif(
    "event_name" not in inspect.signature(Logger.emit).parameters,
    reason="the logs API of this version knows no events",
)
def test_exception_arrives_as_a_log_record_if_opted_in(
    receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If opted in, an exception arrives as a log record of the run's span, and as no event."""
    from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import SimpleLogRecordProcessor

    monkeypatch.setenv(otel.EXCEPTION_SIGNAL_VARIABLE, "logs")
    app = Application(receiver, "http")
    logs = LoggerProvider(shutdown_on_exit=False)
    logs.add_log_record_processor(
        SimpleLogRecordProcessor(OTLPLogExporter(endpoint=f"{app.endpoint}/v1/logs"))
    )
    observer = otel.SpanObserver(tracer_provider=app.provider, logger_provider=logs)
    rig = RecorderRig()
    (run,) = rig.submit()
    run.try_start(AT)
    observer.on_callable_start(run)
    run.set_duration(0.5)
    observer.on_callable_end(run)
    rig.finish(run, Outcome.ERROR, ErrorDescription(type="shop.Broken", message="no paper"))
    observer.on_run_finished(run)
    app.provider.shutdown()
    logs.shutdown()

    span = receiver.span("job")
    (record,) = receiver.logs
    assert len(span.data.events) == 0
    assert record.data.event_name == "apscheduler.job.run.exception"
    assert record.data.severity_number == SEVERITY_ERROR
    assert record.data.span_id == span.data.span_id
    assert record.data.trace_id == span.data.trace_id
    assert record.data.time_unix_nano == span.data.end_time_unix_nano
    assert record.scope.name == "apscheduler_telemetry"
    assert record.attributes == {
        "exception.type": "shop.Broken",
        "exception.message": "no paper",
        "apscheduler.job.id": "job",
        "apscheduler.scheduler": "main",
    }
