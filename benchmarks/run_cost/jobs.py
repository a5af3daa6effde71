"""
The jobs that are run. They do nothing, so that what is measured is everything around them.

A process pool's workers import this module, so it imports nothing of the contenders.
"""

import functools
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import (
    BatchLogRecordProcessor,
    LogRecordExporter,
    LogRecordExportResult,
)
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Tracer

ATTRIBUTES = {
    "job.system": "apscheduler",
    "apscheduler.job.id": "job-1",
    "apscheduler.job.label": "job-1",
    "apscheduler.job.name": "work",
    "apscheduler.scheduler": "default",
    "apscheduler.executor": "default",
    "apscheduler.jobstore": "default",
    "apscheduler.trigger": "interval[0:00:01]",
    "apscheduler.scheduled_time": "2040-01-01T00:00:00+00:00",
    "apscheduler.start_delay": 0.001,
    "code.function.name": "runs.work",
}
"""The attributes of our spans, which get ``apscheduler.outcome`` when they end."""


class DroppingExporter(SpanExporter):
    """Drops all spans, so that the network is not measured."""

    def export(self, spans: Iterable[Any]) -> SpanExportResult:  # noqa: ARG002
        """Drop them."""
        return SpanExportResult.SUCCESS


def recording_provider() -> TracerProvider:
    """Return a provider as applications configure it."""
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(DroppingExporter(), max_queue_size=1 << 20))
    return provider


class DroppingLogExporter(LogRecordExporter):
    """Drops all log records, so that the network is not measured."""

    def export(self, batch: Iterable[Any]) -> LogRecordExportResult:  # noqa: ARG002
        """Drop them."""
        return LogRecordExportResult.SUCCESS

    def shutdown(self) -> None:
        """Do nothing."""

    def force_flush(self, timeout_millis: int = 30_000) -> bool:  # noqa: ARG002
        """Return that nothing is left."""
        return True


def recording_logger_provider() -> LoggerProvider:
    """Return a provider of logs as applications configure it."""
    provider = LoggerProvider()
    provider.add_log_record_processor(
        BatchLogRecordProcessor(DroppingLogExporter(), max_queue_size=1 << 20)
    )
    return provider


@functools.cache  # its processor has a thread, which only the bare span needs
def _tracer() -> Tracer:
    return recording_provider().get_tracer("bare")


def work() -> None:
    """Do nothing."""


async def work_async() -> None:
    """Do nothing."""


def call_work() -> None:
    """Only call another function."""
    work()


async def call_work_async() -> None:
    """Only await another coroutine."""
    await work_async()


def span_work() -> None:
    """Make a span by hand, with the attributes that ours has."""
    with _tracer().start_as_current_span("work", attributes=ATTRIBUTES) as span:
        work()
        span.set_attribute("apscheduler.outcome", "success")


async def span_work_async() -> None:
    """Make a span by hand, with the attributes that ours has."""
    with _tracer().start_as_current_span("work", attributes=ATTRIBUTES) as span:
        await work_async()
        span.set_attribute("apscheduler.outcome", "success")


@dataclass(frozen=True, kw_only=True)
class JobFunctions:
    """The same job twice, for executors that run functions and for those that run coroutines."""

    function: Callable[[], None]
    coroutine: Callable[[], Awaitable[None]]


WORK = JobFunctions(function=work, coroutine=work_async)
CALL_WORK = JobFunctions(function=call_work, coroutine=call_work_async)
SPAN_WORK = JobFunctions(function=span_work, coroutine=span_work_async)
