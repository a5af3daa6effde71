"""Runs for a `SpanObserver`, and the spans that it makes of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

from opentelemetry._logs import Logger
from opentelemetry.trace import SpanContext, TraceFlags

from apscheduler_telemetry.core.model import ErrorDescription, JobInfo, Outcome
from apscheduler_telemetry.core.recorder import Recorder
from apscheduler_telemetry.core.records import Run
from apscheduler_telemetry.export.otel_traces import Origin, SpanObserver

NOW = 1_800_000_000.0


DUE = datetime.fromtimestamp(NOW - 0.25, timezone(timedelta(hours=2)))


LOGS = "event_name" in inspect.signature(Logger.emit).parameters


def job(**changes: Any) -> JobInfo:
    values = {
        "id": "report",
        "label": "report",
        "name": "Nightly report",
        "func": "shop.reports:Report.send",
        "trigger": "interval[0:00:10]",
        "executor": "default",
        "jobstore": "sql",
        "persistent": True,
        "grace": 60.0,
    }
    return JobInfo(**{**values, **changes})


def new_run(
    info: JobInfo | None = None,
    *,
    scheduler: str = "main",
    links: Sequence[Any] = (),
    due: datetime = DUE,
) -> Run:
    """Return a run that was submitted, by default a quarter of a second before `NOW`."""
    recorder = Recorder(scheduler)
    record = recorder.job_upserted(info or job(), None)
    run = Run(record, due, "default", links)
    recorder.run_submitted(run)
    return run


class Spans:
    """An SDK of the test's own, and what has come out of it."""

    def __init__(self, sampler: Any) -> None:
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

        self.provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        self._exporter = InMemorySpanExporter()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    def observer(self, **arguments: Any) -> SpanObserver:
        return SpanObserver(tracer_provider=self.provider, clock=lambda: NOW, **arguments)

    @property
    def ended(self) -> list[Any]:
        return list(self._exporter.get_finished_spans())

    def one(self) -> Any:
        (span,) = self.ended
        return span


def go(
    observer: SpanObserver,
    run: Run | None = None,
    outcome: Outcome = Outcome.SUCCESS,
    error: ErrorDescription | None = None,
    body: Callable[[], object] = lambda: None,
) -> Run:
    """Call an observer as for a run of two seconds in a thread."""
    run = run or new_run()
    run.try_start(NOW)
    observer.on_callable_start(run)
    body()
    run.set_duration(2.0)
    observer.on_callable_end(run)
    return finish_run(observer, run, outcome, error)


def measured(run: Run, started: float = NOW, duration: float = 2.0) -> Run:
    """Give a run what another process has measured."""
    run.try_start(started)
    run.set_duration(duration)
    return run


def finish_run(
    observer: SpanObserver, run: Run, outcome: Outcome, error: ErrorDescription | None = None
) -> Run:
    """End a run and let the observer know."""
    assert run.finish(outcome, error)
    observer.on_run_finished(run)
    return run


def ids(span_context: SpanContext) -> tuple[int, int]:
    return span_context.trace_id, span_context.span_id


BOOM = ErrorDescription(type="shop.Broken", message="no paper")


ADDED_IN = SpanContext(0xABC, 0xDEF, is_remote=False, trace_flags=TraceFlags(1))


ADDED = Origin(reason="added", span=ADDED_IN)
