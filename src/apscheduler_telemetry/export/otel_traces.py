"""
One OpenTelemetry span for each run, current while the callable of the job runs.

Each run is the root of its own trace: a request that wakes the scheduler is not the cause of the
run. The run links to the span in which the job was added, if that is known.

========= ======== ======================================== ===============
outcome   status   ``error.type``                           duration
========= ======== ======================================== ===============
success   unset    absent                                   that of the run
error     ERROR    type of the exception, or ``__fail__``   that of the run
                   if the callable has reported a failure
missed    ERROR    ``missed``                               0
skipped   ERROR    ``skipped``                              0
coalesced unset    absent                                   0
lost      ERROR    type of the exception that reports the   0
                   loss, ``interrupted``, or ``lost``
========= ======== ======================================== ===============

A span with a duration of 0 has the time at which APScheduler dropped the run, or at which the loss
was detected; if the run had been sent to another process or had started, the time of that.

The application owns the OpenTelemetry SDK: this module does not configure, flush or shut it down,
and does nothing without an SDK. Conventions: https://opentelemetry.io/docs/specs/semconv/
"""

from __future__ import annotations

import inspect
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar, Token
from dataclasses import dataclass

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry._logs import Logger, LoggerProvider, SeverityNumber, get_logger
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context
from opentelemetry.environment_variables import OTEL_PYTHON_TRACER_PROVIDER
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from apscheduler_telemetry._version import __version__
from apscheduler_telemetry.core.labels import escape_surrogates, label_value
from apscheduler_telemetry.core.model import (
    ERROR,
    SUCCESS,
    Clock,
    ErrorDescription,
    Outcome,
    SpanIds,
)
from apscheduler_telemetry.core.observers import ObservedRuns
from apscheduler_telemetry.core.records import Run
from apscheduler_telemetry.export.given_span_ids import with_given_span_ids
from apscheduler_telemetry.export.job_attributes import (
    INSTRUMENTATION_SCOPE,
    SCHEMA_URL,
    JobAttributeCache,
    error_message,
    error_type,
    exception_attributes,
    to_nanoseconds,
)

logger = logging.getLogger(__name__)

EXCEPTION_SIGNAL_VARIABLE = "OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN"
"""
Selects where exceptions go: ``logs`` for log records, ``logs/dup`` for both, else span events.

The environment variable of ``docs/exceptions/exceptions-logs.md`` of the conventions.
"""
EXCEPTION_LOG_EVENT_NAME = "apscheduler.job.run.exception"
"""The event name of those log records: the operation and ``.exception``, as recommended there."""

_TRACE_CONTEXT_PROPAGATOR = TraceContextTextMapPropagator()
"""Not the global one, because the child process must read this format with any configuration."""

_BAGGAGE_PROPAGATOR = W3CBaggagePropagator()

_EMPTY_CONTEXT = Context()
"""A context without a span; shared, as contexts are immutable."""

_context_marker: ContextVar[None] = ContextVar("apscheduler_telemetry_context_marker")
"""Always None: its token shows whether a call is made in the same context as an earlier one."""


@dataclass(slots=True, eq=False)
class _RunSpan:
    """
    The span of a run that is not finished yet.

    Attributes:
        span: the span.
        start_ns: Unix nanoseconds of its start.
        is_recording: whether it is exported.
        has_start_delay_attribute: whether it has the start delay, as the run had started by then.
        context_tokens: remove the span from the context; None if it is not current.
        callable_ended_at: Unix seconds of the end of the callable; None before it.
        is_ended_before_callable_end: whether it was ended while its callable still ran.
    """

    span: trace.Span
    start_ns: int
    is_recording: bool
    has_start_delay_attribute: bool
    context_tokens: tuple[Token[None], Token[Context]] | None = None
    callable_ended_at: float | None = None
    is_ended_before_callable_end: bool = False

    def make_current(self, base: Context | None) -> None:
        """Put the span into the current context, and all of `base` unless it is None."""
        context_token = otel_context.attach(trace.set_span_in_context(self.span, base))
        self.context_tokens = _context_marker.set(None), context_token

    def remove_from_context(self) -> None:
        """Undo `make_current`, if it was called."""
        if self.context_tokens is not None:
            _detach_if_same_context(*self.context_tokens)
            self.context_tokens = None

    def set_callable_end(self, at: float) -> None:
        """Set the end of the callable, in Unix seconds."""
        self.callable_ended_at = at

    def move_start(self, start_ns: int) -> None:
        """Correct the start to the one in another process, in Unix nanoseconds."""
        self.start_ns = start_ns
        _move_start(self.span, start_ns)

    def mark_ended_before_callable_end(self) -> None:
        """Note that the span was ended before its callable was over."""
        self.is_ended_before_callable_end = True


class SpanObserver:
    """
    Makes a span of each run; a `RunObserver`.

    Args:
        tracer_provider: where spans go. By default the global provider, which may be set at any
            time and is used from the next pass over due jobs on.
        logger_provider: where exceptions go if `EXCEPTION_SIGNAL_VARIABLE` selects log records; it
            is read once, by the constructor. By default the global provider.
        clock: returns Unix seconds.
    """

    component = "spans"

    def __init__(
        self,
        *,
        tracer_provider: trace.TracerProvider | None = None,
        logger_provider: LoggerProvider | None = None,
        clock: Clock = time.time,
    ) -> None:
        # The proxy is the global provider before there is one.
        proxy = isinstance(tracer_provider, trace.ProxyTracerProvider)
        self._tracer_provider = None if proxy else tracer_provider
        self._logger_provider = logger_provider
        self._clock = clock
        self._records_exception_events, self._logs_exceptions = _read_exception_signal_variable()
        # A provider that the environment variable names is created at its first use.
        named = OTEL_PYTHON_TRACER_PROVIDER in os.environ
        self._may_global_provider_be_unset = self._tracer_provider is None and not named
        self._cached_provider_and_tracer: tuple[
            trace.TracerProvider | None, trace.Tracer | None
        ] = (None, None)
        self._job_attribute_cache = JobAttributeCache()
        self._spans: ObservedRuns[_RunSpan] = ObservedRuns()
        self._is_stopped = False

    def is_enabled(self) -> bool | None:
        """Return whether there is an SDK by now, or exceptions may be logged."""
        if self._logs_exceptions or self._find_tracer() is not None:
            return True
        return False if self._tracer_provider is None else None

    def on_callable_start(self, run: Run) -> None:
        """Start the span of `run` and make it current."""
        run_span = None if self._is_stopped else self._start_span(run, run.started_at)
        if run_span is None:
            return
        # Only the span of the current context changes, but not its baggage, for example.
        base = _add_origin_baggage(run) if run.link_origins else None
        run_span.make_current(base)

    def on_callable_end(self, run: Run) -> None:
        """Remove the span of `run` from the context, and note the end of the callable."""
        run_span = self._spans.get(run)
        if run_span is None:
            return  # nothing is traced
        run_span.remove_from_context()
        if run_span.is_ended_before_callable_end:
            self._spans.pop(run, None)
            return
        # The time now, so that the job's own spans lie within; yet not before the measured end, if
        # the clock was set back meanwhile.
        run_span.set_callable_end(max(run.measured_end_at or 0.0, self._clock()))

    def create_trace_carrier(self, run: Run) -> Mapping[str, str] | None:
        """Start the span of `run`, and return its ``traceparent`` and the baggage."""
        run_span = None if self._is_stopped else self._start_span(run, None)
        if run_span is None:
            return None
        carrier: dict[str, str] = {}
        _TRACE_CONTEXT_PROPAGATOR.inject(
            carrier, trace.set_span_in_context(run_span.span, _EMPTY_CONTEXT)
        )
        if baggage := _origin_baggage_header_of(run):
            carrier["baggage"] = baggage
        return carrier

    def on_run_finished(self, run: Run) -> None:
        """End the span of `run`; if it has none, because it did not start here, create one."""
        run_span = self._spans.get(run)
        if run_span is None and self._is_stopped:
            return  # an exception without a span becomes no log record either
        if run_span is None:
            # An estimated start has no measured end.
            run_span = self._start_span(
                run, None if run.measured_end_at is None else run.started_at
            )
        elif (
            run_span.callable_ended_at is None
            and run.measured_end_at is not None
            and run.started_at is not None
        ):
            # It was measured in another process.
            run_span.move_start(to_nanoseconds(run.started_at))
        if run_span is not None and run_span.context_tokens is not None:
            run_span.mark_ended_before_callable_end()  # and is current until `on_callable_end`
        else:
            self._spans.pop(run, None)
        ended_at = None
        if run.outcome is SUCCESS or run.outcome is ERROR:
            ended_at = (
                run.measured_end_at
                if run_span is None or run_span.callable_ended_at is None
                else run_span.callable_ended_at
            )
        if run_span is not None:
            self._end_span(run_span, run, ended_at)
        if run.error is not None and self._logs_exceptions and run.error.was_raised:
            at = self._clock() if ended_at is None else ended_at
            self._log_exception(run, run.error, run_span, at)

    def export_interrupted_run(self, run: Run, span_ids: SpanIds | None) -> None:
        """
        Create the span of a run that ended with a former process, which did not export it.

        It has the start of the run and, as when it ended is not known, a duration of 0. A run that
        did not start has a span of now, like others that are lost before they start.

        Args:
            run: the run, as lost.
            span_ids: the ids that its span had in that process, under which the spans of the job
                may have been exported; None if it had none.
        """
        tracer = self._find_tracer()
        if tracer is None or self._is_stopped:
            return
        if span_ids is not None:
            tracer = with_given_span_ids(tracer, span_ids)
        started_at = run.measured_or_estimated_start_at
        start_ns = to_nanoseconds(self._clock() if started_at is None else started_at)
        attributes = self._job_attribute_cache.attributes_of(run)
        # What the journal does not say is absent.
        attributes = {key: value for key, value in attributes.items() if value != ""}
        span = tracer.start_span(
            escape_surrogates(run.job_info.label),
            context=_EMPTY_CONTEXT,
            attributes=attributes,
            start_time=start_ns,
        )
        span.set_attribute("apscheduler.outcome", Outcome.LOST.value)
        if run.error is not None:
            span.set_attribute("error.type", run.error.type)
            span.set_status(trace.StatusCode.ERROR, run.error.message)
        span.end(start_ns)

    def ignore_new_runs(self) -> None:
        """Start no further span from now on; those that are open end when their runs do."""
        self._is_stopped = True

    def has_open_runs(self) -> bool:
        """Return whether any span still has to be ended."""
        # An exception from outside may keep `on_run_finished` from being called.
        return any(run.outcome is None for run in list(self._spans))

    def _start_span(self, run: Run, started_at: float | None) -> _RunSpan | None:
        tracer = self._find_tracer()
        if tracer is None:
            return None
        start_ns = to_nanoseconds(self._clock() if started_at is None else started_at)
        root, links = _EMPTY_CONTEXT, None
        if run.link_origins:
            root, links = _add_origin_baggage(run, root), _create_links(run)
        attributes = self._job_attribute_cache.attributes_of(run)
        if started_at is not None and (delay := run.start_delay) is not None:
            attributes["apscheduler.start_delay"] = delay
        span = tracer.start_span(
            escape_surrogates(run.job_info.label),
            context=root,
            attributes=attributes,
            links=links,
            start_time=start_ns,
        )
        context, is_recording = span.get_span_context(), span.is_recording()
        if is_recording and context.trace_flags.sampled:
            run.set_exemplar_span(context)
        spans = self._spans
        if len(spans) >= spans.cleanup_threshold:
            spans.drop_stale_runs()
        run_span = spans[run] = _RunSpan(span, start_ns, is_recording, started_at is not None)
        if self._is_stopped:
            # Another thread has just called `stop`. If its `has_open_runs` did not see this span,
            # `on_run_finished` will never be called for it. Nothing has used the span yet.
            del spans[run]
            span.end(start_ns)
            return None
        return run_span

    def _end_span(self, run_span: _RunSpan, run: Run, ended_at: float | None) -> None:
        span = run_span.span
        end_ns = run_span.start_ns if ended_at is None else to_nanoseconds(ended_at)
        if run_span.is_recording:
            if run.result is not None:
                span.set_attribute("apscheduler.result", escape_surrogates(run.result))
            if (
                not run_span.has_start_delay_attribute
                and ended_at is not None
                and run.start_delay is not None
            ):
                span.set_attribute("apscheduler.start_delay", run.start_delay)
            for name, amount in run.recorded.items():
                span.set_attribute(f"apscheduler.recorded.{name}", amount)
            if run.outcome is SUCCESS:
                span.set_attribute("apscheduler.outcome", "success")
            elif run.outcome is not None:
                self._set_unsuccessful_outcome(span, run.outcome, run.error, end_ns)
        span.end(end_ns)

    def _set_unsuccessful_outcome(
        self, span: trace.Span, outcome: Outcome, error: ErrorDescription | None, event_time_ns: int
    ) -> None:
        span.set_attribute("apscheduler.outcome", outcome.value)
        if outcome is not Outcome.COALESCED:
            span.set_attribute("error.type", error_type(outcome, error))
            span.set_status(trace.StatusCode.ERROR, error_message(outcome, error))
        if error is not None and self._records_exception_events and error.was_raised:
            span.add_event("exception", exception_attributes(error), event_time_ns)

    def _log_exception(
        self, run: Run, error: ErrorDescription, run_span: _RunSpan | None, at: float
    ) -> None:
        context = (
            None if run_span is None else trace.set_span_in_context(run_span.span, _EMPTY_CONTEXT)
        )
        get_logger(INSTRUMENTATION_SCOPE, __version__, self._logger_provider, SCHEMA_URL).emit(
            timestamp=to_nanoseconds(at),
            context=context,
            # ERROR, not FATAL or WARN: nothing handles it, but the application continues.
            severity_number=SeverityNumber.ERROR,
            event_name=EXCEPTION_LOG_EVENT_NAME,
            attributes={
                **exception_attributes(error),
                "apscheduler.job.id": label_value(run.job_info.id),
                "apscheduler.scheduler": label_value(run.scheduler_name),
            },
        )

    def _find_tracer(self) -> trace.Tracer | None:
        """Return the provider's tracer, or None if it would not export spans."""
        known, tracer = self._cached_provider_and_tracer
        if tracer is not None:
            return tracer  # final, as the global provider can be set only once
        provider = self._tracer_provider
        if provider is None:
            if self._may_global_provider_be_unset and _is_global_provider_unset():
                return None
            provider = trace.get_tracer_provider()
        if provider is not known:
            tracer = _find_exporting_tracer(provider)
            self._cached_provider_and_tracer = provider, tracer
        return tracer


def find_current_span_context() -> trace.SpanContext | None:
    """Return the context of the current span, to which a run may link; None if it is not valid."""
    context = trace.get_current_span().get_span_context()
    return context if context.is_valid else None


@dataclass(frozen=True, kw_only=True)
class Origin:
    """
    Where a job was added, or one of its runs triggered.

    Attributes:
        reason: ``added`` or ``triggered``.
        span: the context of the span there, if there was one.
        baggage: the value of the ``baggage`` header there; empty if it is not propagated.
    """

    reason: str
    span: trace.SpanContext | None
    baggage: str = ""


class OriginPropagator:
    """
    Determines where jobs are added and runs triggered, and converts that to W3C headers.

    Args:
        propagate_baggage: whether to propagate baggage as well.
    """

    def __init__(self, *, propagate_baggage: bool = False) -> None:
        self._propagates_baggage = propagate_baggage

    def find_current_origin(self, reason: str) -> Origin | None:
        """Return the current origin; None if nothing is traced."""
        carrier: dict[str, str] = {}
        if self._propagates_baggage:
            _BAGGAGE_PROPAGATOR.inject(carrier)  # it limits the size as W3C requires
        span, baggage = find_current_span_context(), carrier.get("baggage", "")
        if span is None and not baggage:
            return None
        return Origin(reason=reason, span=span, baggage=baggage)

    def dump(self, origin: Origin) -> Mapping[str, str]:
        """Return `origin` as W3C headers."""
        carrier: dict[str, str] = {}
        if origin.span is not None:
            span = trace.NonRecordingSpan(origin.span)
            _TRACE_CONTEXT_PROPAGATOR.inject(carrier, trace.set_span_in_context(span, Context()))
        if origin.baggage:
            carrier["baggage"] = origin.baggage
        return carrier

    def load(self, reason: str, headers: Mapping[str, str]) -> Origin:
        """Return the origin that was dumped as `headers`."""
        context = _TRACE_CONTEXT_PROPAGATOR.extract(headers, Context())
        span = trace.get_current_span(context).get_span_context()
        return Origin(
            reason=reason,
            span=span if span.is_valid else None,
            baggage=str(headers.get("baggage", "")) if self._propagates_baggage else "",
        )


def attach_empty_context() -> Token[Context] | None:
    """
    Make nothing current, neither a span nor baggage, until `detach_empty_context`.

    A span that is current when a scheduler wakes up is not the cause of its runs: with
    opentelemetry-instrumentation-threading, a thread has the span of its creator for ever, and a
    timer of asyncio has the span in which the latest job was added.

    These are two functions because every pass over due jobs calls them, and a context manager
    would take three times as long.

    Returns:
        The argument of `detach_empty_context`; None if nothing was current, as in most threads, and
        there is nothing to restore.
    """
    return otel_context.attach(_EMPTY_CONTEXT) if otel_context.get_current() else None


def detach_empty_context(token: Token[Context]) -> None:
    """Restore the context that was current before `attach_empty_context`."""
    otel_context.detach(token)


@contextmanager
def suppressing_tracing() -> Iterator[None]:
    """
    Make nothing current, and prevent instrumentations of OpenTelemetry from creating spans.

    The telemetry queries a database every few seconds; the application's traces do not need that.
    """
    token = otel_context.attach(
        otel_context.set_value(_SUPPRESS_INSTRUMENTATION_KEY, value=True, context=Context())
    )
    try:
        yield
    finally:
        otel_context.detach(token)


def _is_global_provider_unset() -> bool:
    """
    Return whether it is certain that there is no global provider yet.

    This uses a private name of the API: the public function reads the environment, which takes a
    third as long as everything else that telemetry does in a pass. It is not certain if the name
    does not exist, or if a test has replaced the public function.
    """
    return (
        getattr(trace, "_TRACER_PROVIDER", trace) is None
        and trace.get_tracer_provider is _ORIGINAL_GET_TRACER_PROVIDER
    )


_ORIGINAL_GET_TRACER_PROVIDER = trace.get_tracer_provider


def _find_exporting_tracer(provider: trace.TracerProvider) -> trace.Tracer | None:
    if isinstance(provider, (trace.NoOpTracerProvider, trace.ProxyTracerProvider)):
        return None
    tracer = provider.get_tracer(INSTRUMENTATION_SCOPE, __version__, schema_url=SCHEMA_URL)
    # An SDK that OTEL_SDK_DISABLED has turned off returns one that does nothing.
    return None if isinstance(tracer, trace.NoOpTracer) else tracer


def _read_exception_signal_variable() -> tuple[bool, bool]:
    """Return whether exceptions become span events, and whether they become log records."""
    wanted = os.environ.get(EXCEPTION_SIGNAL_VARIABLE, "").strip().lower()
    if wanted not in {"", "logs", "logs/dup"}:
        logger.warning(
            "%s=%r is not known; exceptions stay span events. Known are 'logs' and 'logs/dup'",
            EXCEPTION_SIGNAL_VARIABLE,
            wanted,
        )
    elif wanted and "event_name" not in inspect.signature(Logger.emit).parameters:
        logger.warning(
            "%s=%r needs opentelemetry-api 1.38 or newer; exceptions stay span events",
            EXCEPTION_SIGNAL_VARIABLE,
            wanted,
        )
    else:
        return wanted != "logs", bool(wanted)
    return True, False


def _create_links(run: Run) -> list[trace.Link]:
    return [
        trace.Link(origin.span, {"apscheduler.link.reason": origin.reason})
        for origin in run.link_origins
        if isinstance(origin, Origin) and origin.span is not None
    ]


def _origin_baggage_header_of(run: Run) -> str:
    # The baggage of the latest link, which is the reason for this run.
    return str(getattr(run.link_origins[-1], "baggage", "")) if run.link_origins else ""


def _add_origin_baggage(run: Run, context: Context | None = None) -> Context:
    """Return `context`, by default the current one, with the baggage of the run."""
    context = otel_context.get_current() if context is None else context
    baggage = _origin_baggage_header_of(run)
    return _BAGGAGE_PROPAGATOR.extract({"baggage": baggage}, context) if baggage else context


def _detach_if_same_context(marker_token: Token[None], context_token: Token[Context]) -> None:
    try:
        _context_marker.reset(marker_token)
    except ValueError:
        # This is not the context of `on_callable_start`, because an abandoned coroutine is closed
        # from outside of its task. Detaching would change nothing and log an error.
        return
    otel_context.detach(context_token)


def _move_start(span: trace.Span, start_ns: int) -> None:
    """
    Correct the start of a span to the start of its run in the other process.

    OpenTelemetry has no public function for this, and a span that includes the time in the queue
    would contradict the histogram of durations. With another SDK, the span starts when the run is
    sent to the other process.
    """
    if isinstance(getattr(span, "_start_time", None), int):
        span._start_time = start_ns  # type: ignore[attr-defined]  # noqa: SLF001


_SUPPRESS_INSTRUMENTATION_KEY = "suppress_instrumentation"
"""The context key that prevents instrumentations from creating spans."""
