"""
One OpenTelemetry span per run, current while the job's callable runs.

A run is the root of its own trace: whatever is being traced where the scheduler happens to wake
up is not its cause. Where the context in which the job was added is known, the span links to it.

========= ======== ========================================= ====================
outcome   status   ``error.type``                            extent
========= ======== ========================================= ====================
success   unset    absent                                    that of the callable
error     ERROR    type of the exception                     that of the callable
missed    ERROR    ``missed``                                none
skipped   ERROR    ``skipped``                               none
coalesced unset    absent                                    none
lost      ERROR    type of the exception that tells of it,   none
                   ``lost`` where there is none
========= ======== ========================================= ====================

A span without extent lies where APScheduler decided, or where the loss was noticed; that of a run
that had been handed to another process by then lies at the hand-over.

The application owns the OpenTelemetry SDK: nothing here configures, flushes or shuts it down, and
without one nothing here does anything. Conventions: https://opentelemetry.io/docs/specs/semconv/
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
from datetime import timezone

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry._logs import Logger, LoggerProvider, SeverityNumber, get_logger
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context
from opentelemetry.environment_variables import OTEL_PYTHON_TRACER_PROVIDER
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from apscheduler_telemetry._version import __version__
from apscheduler_telemetry.core.model import Clock, JobInfo, Outcome, RunError, RunView

logger = logging.getLogger(__name__)

SCOPE = "apscheduler_telemetry"
SCHEMA_URL = "https://opentelemetry.io/schemas/1.44.0"
"""
The conventions that ``code.*``, ``error.*`` and ``exception.*`` follow here.

The newest of ``opentelemetry.semconv.schemas.Schemas``; written out, as that package comes with
the SDK and not with the API.
"""

OPT_IN = "OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN"
"""
Where exceptions go: ``logs`` for log records, ``logs/dup`` for both, else span events.

The variable of semconv's ``docs/exceptions/exceptions-logs.md``.
"""
EXCEPTION_LOG = "apscheduler.job.run.exception"
"""Name of those log records: the operation and ``.exception``, as recommended there."""

MAX_MESSAGE = 4_096
"""
Characters of an exception's message.

The SDK limits attributes only on request and a status description never; a database driver that
quotes its statement makes messages of megabytes, and a collector refuses the whole batch.
"""

MAX_FIXED = 1_000
"""Jobs whose attributes are kept, as most are the same for all runs of a job."""

MAX_STACKTRACE = 16_384
"""Characters of a stack trace; the last ones, as the cause stands at its end."""

_FAILURES = {
    Outcome.ERROR: "failed with an exception that is not known",
    Outcome.MISSED: "started too late, so APScheduler dropped the run (misfire)",
    Outcome.SKIPPED: "refused, as max_instances runs of the job were under way",
    Outcome.LOST: "handed over, or due to be, and never heard of again",
}
"""The outcomes that are failures, with the status where no exception has a better one."""

_SUCCESS = Outcome.SUCCESS

_PROPAGATOR = TraceContextTextMapPropagator()
"""Not the global one: the child process must read what is written here, however it is set up."""

_BAGGAGE = W3CBaggagePropagator()

_ROOT = Context()
"""A context without a span; one for all, as contexts do not change."""

_inside: ContextVar[None] = ContextVar("apscheduler_telemetry_inside")


@dataclass(slots=True)
class _Open:
    """
    A span whose run has not ended yet.

    Attributes:
        span: the span.
        since: Unix nanoseconds of its start.
        is_recording: whether anybody will see it.
        has_delay: whether it tells the start delay, as the run had started by then.
        tokens: what takes it out of the context again; None where it is not current.
    """

    span: trace.Span
    since: int
    is_recording: bool
    has_delay: bool
    tokens: tuple[Token[None], Token[Context]] | None = None


class SpanObserver:
    """
    Makes a span of each run; a `RunObserver`.

    Args:
        tracer_provider: where spans go. By default the global provider, which may be set at any
            time and counts from the next pass over due jobs on.
        logger_provider: where exceptions go when `OPT_IN`, read once and here, asks for log
            records. By default the global provider.
        clock: Unix seconds.
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
        self._as_event, self._as_log = _exception_signals()
        # One that the environment names is made when it is first asked for.
        named = OTEL_PYTHON_TRACER_PROVIDER in os.environ
        self._may_be_unset = self._tracer_provider is None and not named
        self._cached: tuple[trace.TracerProvider | None, trace.Tracer | None] = (None, None)
        self._fixed: dict[int, tuple[JobInfo, str, dict[str, AttributeValue]]] = {}

    def is_awake(self) -> bool | None:
        """Tell whether there is an SDK by now, or exceptions may be logged."""
        if self._as_log or self._tracer() is not None:
            return True
        return False if self._tracer_provider is None else None

    def enter(self, run: RunView) -> None:
        """Start the span of `run` and make it current."""
        run.span = opened = self._open(run, run.started)
        if opened is not None:
            # On top of what is current, as only the span is to change: not baggage, for one.
            base = _with_baggage(run) if run.links else None
            current = trace.set_span_in_context(opened.span, base)
            attached = otel_context.attach(current)
            opened.tokens = _inside.set(None), attached

    def leave(self, run: RunView, outcome: Outcome, error: RunError | None) -> None:
        """Take the span of `run` out of the context and end it."""
        opened: _Open | None = run.span
        if opened is None and error is None:
            return  # nothing is traced
        if opened is not None and opened.tokens is not None:
            _detach(*opened.tokens)
        # Now, so that the job's own spans lie within; yet no earlier, should the clock have been
        # set back meanwhile.
        self._close(run, outcome, error, max(run.ended or 0.0, self._clock()))

    def carry(self, run: RunView) -> Mapping[str, str] | None:
        """Start the span of `run` and return its ``traceparent``, and what goes with that."""
        run.span = opened = self._open(run, None)
        if opened is None:
            return None
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, trace.set_span_in_context(opened.span, _ROOT))
        if baggage := _baggage_of(run):
            carrier["baggage"] = baggage
        return carrier

    def settle(self, run: RunView, outcome: Outcome, error: RunError | None) -> None:
        """End the span of a run that was carried elsewhere, or make one of what never ran."""
        opened: _Open | None = run.span
        # By the end, as the start of a run that was lost may have been inferred.
        started = None if run.ended is None else run.started
        if opened is None:
            run.span = self._open(run, started)
        elif started is not None:
            _move_start(opened.span, _nanoseconds(started))
        self._close(run, outcome, error, run.ended)

    def _open(self, run: RunView, started: float | None) -> _Open | None:
        tracer = self._tracer()
        if tracer is None:
            return None
        since = _nanoseconds(self._clock() if started is None else started)
        root, links = _ROOT, None
        if run.links:
            root, links = _with_baggage(run, root), _links(run)
        name, attributes = self._told_of(run)
        if started is not None and (delay := run.start_delay) is not None:
            attributes["apscheduler.start_delay"] = delay
        span = tracer.start_span(
            name, context=root, attributes=attributes, links=links, start_time=since
        )
        context, is_recording = span.get_span_context(), span.is_recording()
        if is_recording and context.trace_flags.sampled:
            run.exemplar = context
        return _Open(span, since, is_recording, started is not None)

    def _told_of(self, run: RunView) -> tuple[str, dict[str, AttributeValue]]:
        """Return the name of a run's span, and what is known of it before it starts."""
        job = run.job
        fixed = self._fixed.get(id(job))
        if fixed is None or fixed[0] is not job:
            if len(self._fixed) >= MAX_FIXED:
                self._fixed.clear()
            fixed = job, _legal(job.label), _fixed_attributes(job, run.scheduler)
            self._fixed[id(job)] = fixed
        _, name, attributes = fixed
        attributes = attributes.copy()
        scheduled = run.scheduled.isoformat()
        if not scheduled.endswith("+00:00"):
            scheduled = run.scheduled.astimezone(timezone.utc).isoformat()
        attributes["apscheduler.scheduled_time"] = scheduled
        if run.arguments is not None:
            attributes["apscheduler.job.arguments"] = _legal(run.arguments)
        return name, attributes

    def _close(
        self, run: RunView, outcome: Outcome, error: RunError | None, ended: float | None
    ) -> None:
        opened: _Open | None = run.span
        run.span = None
        if opened is not None:
            until = opened.since if ended is None else _nanoseconds(ended)
            if opened.is_recording:
                if run.result is not None:
                    opened.span.set_attribute("apscheduler.result", _legal(run.result))
                if not opened.has_delay and ended is not None and run.start_delay is not None:
                    opened.span.set_attribute("apscheduler.start_delay", run.start_delay)
                self._describe(opened.span, outcome, error, until)
            opened.span.end(until)
        if error is not None and self._as_log:
            self._log(run, error, opened, self._clock() if ended is None else ended)

    def _describe(
        self, span: trace.Span, outcome: Outcome, error: RunError | None, until: int
    ) -> None:
        if outcome is _SUCCESS:  # as most are, for which a look into the enumeration takes longer
            span.set_attribute("apscheduler.outcome", "success")
            return
        span.set_attribute("apscheduler.outcome", outcome.value)
        why = _FAILURES.get(outcome)
        if why is not None:
            span.set_attribute("error.type", _legal(error.type) if error else outcome.value)
            span.set_status(trace.StatusCode.ERROR, _message(error) if error else why)
        if error is not None and self._as_event:
            span.add_event("exception", _exception(error), until)

    def _log(self, run: RunView, error: RunError, opened: _Open | None, at: float) -> None:
        get_logger(SCOPE, __version__, self._logger_provider, SCHEMA_URL).emit(
            timestamp=_nanoseconds(at),
            context=None if opened is None else trace.set_span_in_context(opened.span, _ROOT),
            # ERROR, not FATAL nor WARN: the application handles it no more, and lives on.
            severity_number=SeverityNumber.ERROR,
            event_name=EXCEPTION_LOG,
            attributes={
                **_exception(error),
                "apscheduler.job.id": _legal(run.job.id),
                "apscheduler.scheduler": _legal(run.scheduler),
            },
        )

    def _tracer(self) -> trace.Tracer | None:
        """Return the provider's tracer, or None where its spans would go nowhere."""
        known, tracer = self._cached
        if tracer is not None:
            return tracer  # for good, as the global provider can be set but once
        provider = self._tracer_provider
        if provider is None:
            if self._may_be_unset and _is_unset():
                return None
            provider = trace.get_tracer_provider()
        if provider is not known:
            tracer = _tracer_of(provider)
            self._cached = provider, tracer
        return tracer


def current_span_context() -> trace.SpanContext | None:
    """Return the context of the current span, where there is a valid one, to link a run to."""
    context = trace.get_current_span().get_span_context()
    return context if context.is_valid else None


@dataclass(frozen=True, kw_only=True)
class Origin:
    """
    Where a job was added, or a run of it triggered.

    Attributes:
        reason: which of both: ``added`` or ``triggered``.
        span: the context of the span there, where there was one.
        baggage: the baggage there, as the header of that name; empty where it is not asked for.
    """

    reason: str
    span: trace.SpanContext | None
    baggage: str = ""


class Origins:
    """
    Knows where we are.

    Args:
        baggage: whether baggage is to be known as well.
    """

    def __init__(self, *, baggage: bool = False) -> None:
        self._baggage = baggage

    def current(self, reason: str) -> Origin | None:
        """Return where we are, None where nothing is being traced."""
        carrier: dict[str, str] = {}
        if self._baggage:
            _BAGGAGE.inject(carrier)  # which limits its size as W3C has it
        span, baggage = current_span_context(), carrier.get("baggage", "")
        if span is None and not baggage:
            return None
        return Origin(reason=reason, span=span, baggage=baggage)

    def dump(self, origin: Origin) -> Mapping[str, str]:
        """Return `origin` as W3C headers."""
        carrier: dict[str, str] = {}
        if origin.span is not None:
            span = trace.NonRecordingSpan(origin.span)
            _PROPAGATOR.inject(carrier, trace.set_span_in_context(span, Context()))
        if origin.baggage:
            carrier["baggage"] = origin.baggage
        return carrier

    def load(self, reason: str, texts: Mapping[str, str]) -> Origin:
        """Return what was dumped."""
        there = trace.get_current_span(_PROPAGATOR.extract(texts, Context()))
        span = there.get_span_context()
        return Origin(
            reason=reason,
            span=span if span.is_valid else None,
            baggage=str(texts.get("baggage", "")) if self._baggage else "",
        )


def leave_context() -> Token[Context] | None:
    """
    Let nothing be current, neither a span nor baggage, until `return_to_context`.

    What wakes a scheduler up is not the cause of what it does then: a thread that
    opentelemetry-instrumentation-threading started keeps the span of who started it for good, and
    a timer of asyncio that of whoever added a job last.

    Two functions, as every pass over due jobs calls them: a context manager would take three times
    as long.

    Returns:
        What `return_to_context` is to be given; None where nothing is current, as in most threads,
        and there is nothing to return to.
    """
    return otel_context.attach(_ROOT) if otel_context.get_current() else None


def return_to_context(token: Token[Context]) -> None:
    """Let that be current again which was so before `leave_context`, where anything was."""
    otel_context.detach(token)


@contextmanager
def untraced() -> Iterator[None]:
    """
    Let nothing be current, and let instrumentations of OpenTelemetry make no span.

    What telemetry asks a database every few seconds is no work of the application's.
    """
    token = otel_context.attach(otel_context.set_value(_SUPPRESSED, value=True, context=Context()))
    try:
        yield
    finally:
        otel_context.detach(token)


def _is_unset() -> bool:
    """
    Tell whether it is certain that there is no global provider yet.

    By a private name of the API: whoever asks in public then waits for a look into the environment,
    which takes as long as a third of what we do in a pass. Where it goes by another name, or a test
    has replaced the public way, nothing is certain.
    """
    return (
        getattr(trace, "_TRACER_PROVIDER", trace) is None
        and trace.get_tracer_provider is _IN_PUBLIC
    )


_IN_PUBLIC = trace.get_tracer_provider


def _tracer_of(provider: trace.TracerProvider) -> trace.Tracer | None:
    if isinstance(provider, (trace.NoOpTracerProvider, trace.ProxyTracerProvider)):
        return None
    tracer = provider.get_tracer(SCOPE, __version__, schema_url=SCHEMA_URL)
    # What an SDK gives that OTEL_SDK_DISABLED has turned off.
    return None if isinstance(tracer, trace.NoOpTracer) else tracer


def _exception_signals() -> tuple[bool, bool]:
    """Return whether exceptions are told by span events, and whether by log records."""
    wanted = os.environ.get(OPT_IN, "").strip().lower()
    if wanted not in {"", "logs", "logs/dup"}:
        logger.warning(
            "%s=%r is not known; exceptions stay span events. Known are 'logs' and 'logs/dup'",
            OPT_IN,
            wanted,
        )
    elif wanted and "event_name" not in inspect.signature(Logger.emit).parameters:
        logger.warning(
            "%s=%r needs opentelemetry-api 1.38 or newer; exceptions stay span events",
            OPT_IN,
            wanted,
        )
    else:
        return wanted != "logs", bool(wanted)
    return True, False


def _links(run: RunView) -> list[trace.Link]:
    return [
        trace.Link(origin.span, {"apscheduler.link.reason": origin.reason})
        for origin in run.links
        if isinstance(origin, Origin) and origin.span is not None
    ]


def _baggage_of(run: RunView) -> str:
    # That of the latest, as it is the reason of this very run.
    return str(getattr(run.links[-1], "baggage", "")) if run.links else ""


def _with_baggage(run: RunView, context: Context | None = None) -> Context:
    """Return `context`, by default the current one, with the baggage that is meant for the run."""
    context = otel_context.get_current() if context is None else context
    baggage = _baggage_of(run)
    return _BAGGAGE.extract({"baggage": baggage}, context) if baggage else context


def _fixed_attributes(job: JobInfo, scheduler: str) -> dict[str, AttributeValue]:
    return {
        "job.system": "apscheduler",
        "apscheduler.job.id": _legal(job.id),
        "apscheduler.job.name": _legal(job.name),
        "apscheduler.scheduler": _legal(scheduler),
        "apscheduler.executor": _legal(job.executor),
        "apscheduler.jobstore": _legal(job.jobstore),
        "apscheduler.trigger": _legal(job.trigger),
        "code.function.name": _legal(job.func.replace(":", ".", 1)),
    }


def _exception(error: RunError) -> dict[str, AttributeValue]:
    attributes: dict[str, AttributeValue] = {
        "exception.type": _legal(error.type),
        "exception.message": _message(error),
    }
    if error.traceback:
        attributes["exception.stacktrace"] = _legal(error.traceback[-MAX_STACKTRACE:])
    return attributes


def _message(error: RunError) -> str:
    return _legal(error.message[:MAX_MESSAGE])


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)


def _legal(text: str) -> str:
    """Return `text` as protobuf can carry it: one lone surrogate would cost a whole batch."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def _detach(mark: Token[None], attached: Token[Context]) -> None:
    try:
        _inside.reset(mark)
    except ValueError:
        # Another context than that of `enter`: a coroutine that was given up is closed from
        # outside of its task. Detaching would change nothing and log an error.
        return
    otel_context.detach(attached)


def _move_start(span: trace.Span, since: int) -> None:
    """
    Correct the start of a span to when its run began in the other process.

    OpenTelemetry has no public way, and a span that includes the time in the queue would contradict
    the duration histogram. Where the SDK is another one the span begins at the hand-over.
    """
    if isinstance(getattr(span, "_start_time", None), int):
        span._start_time = since  # type: ignore[attr-defined]  # noqa: SLF001


_SUPPRESSED = "suppress_instrumentation"
"""By this key of a context, instrumentations know that they are to make no span."""
