"""
One log record for each run, by the standard library and by OpenTelemetry.

The fields are those of the spans. A record of a run that was traced is in the trace of the run.
"""

from __future__ import annotations

import atexit
import inspect
import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Mapping
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry._logs import Logger, LoggerProvider, SeverityNumber
from opentelemetry.context import Context

from apscheduler_telemetry._version import __version__
from apscheduler_telemetry.core.forks import (
    create_daemon_thread,
    is_thread_alive,
    reset_in_forked_children,
)
from apscheduler_telemetry.core.labels import escape_surrogates
from apscheduler_telemetry.core.locks import renew_lock_in_forked_children
from apscheduler_telemetry.core.model import ERROR, SUCCESS, Outcome, SpanIds
from apscheduler_telemetry.core.observers import ErrorReporter
from apscheduler_telemetry.core.records import Run
from apscheduler_telemetry.core.times import to_datetime
from apscheduler_telemetry.errors import ArgumentTypeError
from apscheduler_telemetry.export.job_attributes import (
    INSTRUMENTATION_SCOPE,
    SCHEMA_URL,
    Attributes,
    JobAttributeCache,
    error_message,
    error_type,
    exception_attributes,
    to_nanoseconds,
)

LOGGER_NAME = "apscheduler_telemetry.runs"
"""The logger of the standard library that gets the records."""
EVENT_NAME = "apscheduler.job.run"
"""The name of OpenTelemetry's event."""
ERROR_COMPONENT = "run_log"
"""Under which errors are counted."""

MAX_WAITING_RECORDS = 10_000
"""
Records that wait for handlers that are too slow, in some tens of megabytes; others are dropped.

A scheduler that runs 1,000 jobs a second fills this in ten seconds.
"""
IDLE_SECONDS = 1.0
"""Seconds without a record after which the thread ends."""
MAX_EXIT_FLUSH_SECONDS = 5.0
"""Seconds for which the end of the process waits for handlers."""

_OUTCOMES_LOGGED_AS_INFO = frozenset({SUCCESS, Outcome.COALESCED})
"""The outcomes that are no failure."""


class RunLogObserver:
    """
    Makes a log record of each run that has ended; a `RunObserver`.

    It has to come before the observer that makes spans, whose `on_run_finished` then comes first.

    Args:
        logs_to_standard_library: whether the logger `LOGGER_NAME` gets a record.
        logger_provider: where an event of OpenTelemetry goes; None for nowhere.
        error_reporter: counts records that are dropped.

    Raises:
        ArgumentTypeError: OpenTelemetry is too old for events.
    """

    component = ERROR_COMPONENT

    def __init__(
        self,
        *,
        logs_to_standard_library: bool,
        logger_provider: LoggerProvider | None,
        error_reporter: ErrorReporter,
    ) -> None:
        error_reporter.add_component(ERROR_COMPONENT)
        self._logger = logging.getLogger(LOGGER_NAME) if logs_to_standard_library else None
        self._log_writer = LogWriter(error_reporter)
        self._otel_logger: Logger | None = None
        if logger_provider is not None:
            _check_events_are_supported()
            self._otel_logger = logger_provider.get_logger(
                INSTRUMENTATION_SCOPE, __version__, schema_url=SCHEMA_URL
            )
        self._job_attribute_cache = JobAttributeCache()
        self._is_stopped = False

    def is_enabled(self) -> bool | None:
        """Return True: which handlers there are may change at any time."""
        return True

    def on_callable_start(self, run: Run) -> None:
        """Do nothing."""

    def on_callable_end(self, run: Run) -> None:
        """Do nothing: the outcome of the run is not known yet."""

    def create_trace_carrier(self, run: Run) -> Mapping[str, str] | None:
        """Return nothing to carry."""

    def on_run_finished(self, run: Run) -> None:
        """Log how a run ended."""
        outcome = run.outcome
        if self._is_stopped or outcome is None:
            return
        is_fine = outcome in _OUTCOMES_LOGGED_AS_INFO
        level = logging.INFO if is_fine else logging.ERROR
        logger = self._logger
        if logger is not None and not logger.isEnabledFor(level):
            logger = None
        if logger is None and self._otel_logger is None:
            return
        attributes = self._attributes_of(run, outcome)
        text = _to_one_line(_format_message(run, outcome))
        context = _create_context(run.exemplar_span)
        if self._otel_logger is not None:
            self._otel_logger.emit(
                timestamp=to_nanoseconds(run.finished_at),
                context=context,
                severity_number=SeverityNumber.INFO if is_fine else SeverityNumber.ERROR,
                severity_text="INFO" if is_fine else "ERROR",
                body=text,
                event_name=EVENT_NAME,
                attributes=attributes,
            )
        if logger is not None:
            extra: dict[str, Any] = {**attributes, **_ids_in_hex(run.exemplar_span)}
            if "code.function.name" in extra:
                # OpenTelemetry's handler fills in that name, with the function that logs.
                extra["apscheduler.job.function"] = extra.pop("code.function.name")
            record = logger.makeRecord(logger.name, level, __file__, 0, "%s", (text,), None)
            # Not by `extra=`, which refuses what the application's record factory has set, too.
            vars(record).update(extra)
            self._log_writer.write(logger, record, context)

    def ignore_new_runs(self) -> None:
        """Log no further run from now on."""
        self._is_stopped = True

    def has_open_runs(self) -> bool:
        """Return False: nothing has to be closed."""
        return False

    def _attributes_of(self, run: Run, outcome: Outcome) -> Attributes:
        attributes = self._job_attribute_cache.attributes_of(run)
        # What the journal of a former process does not say is absent.
        attributes = {key: value for key, value in attributes.items() if value != ""}
        attributes["apscheduler.outcome"] = outcome.value
        started_at = run.measured_or_estimated_start_at
        if started_at is not None:
            attributes["apscheduler.start_time"] = to_datetime(started_at).isoformat()
        if run.start_delay is not None:
            attributes["apscheduler.start_delay"] = run.start_delay
        if run.duration is not None and (outcome is SUCCESS or outcome is ERROR):
            attributes["apscheduler.job.run.duration"] = run.duration
        if run.result is not None:
            attributes["apscheduler.result"] = escape_surrogates(run.result)
        for name, amount in run.recorded.items():
            attributes[f"apscheduler.recorded.{name}"] = amount
        if outcome not in _OUTCOMES_LOGGED_AS_INFO:
            error = run.error
            attributes["error.type"] = error_type(outcome, error)
            message = error_message(outcome, error)
            if message:
                attributes["apscheduler.error.message"] = message
            if error is not None and error.was_raised:
                attributes.update(exception_attributes(error))
        return attributes


class LogWriter:
    """
    Passes log records to their logger in a thread of its own, so that no handler holds up a job.

    Args:
        error_reporter: counts records that are dropped.
    """

    def __init__(self, error_reporter: ErrorReporter) -> None:
        self._error_reporter = error_reporter
        self._lock = threading.RLock()
        self._records: deque[tuple[logging.Logger, logging.LogRecord, Context]] = deque()
        self._wakeup = threading.Event()
        self._thread: threading.Thread | None = None
        self._is_writing = False
        renew_lock_in_forked_children(self)
        reset_in_forked_children(self)
        _writers.add(self)

    def reset_after_fork(self) -> None:
        """Leave the records to the parent, which has them, too."""
        self._records, self._wakeup, self._thread = deque(), threading.Event(), None
        self._is_writing = False

    def write(self, logger: logging.Logger, record: logging.LogRecord, context: Context) -> None:
        """
        Let a logger handle a record soon.

        Args:
            logger: the logger.
            record: the record.
            context: the context in which its handlers are called.
        """
        if len(self._records) >= MAX_WAITING_RECORDS:
            # Not logged: the handlers that do not keep up may be those of our own logger, too.
            self._error_reporter.count(ERROR_COMPONENT)
            return
        self._records.append((logger, record, context))
        with self._lock:
            self._wake_or_start_thread()

    def flush(self, timeout: float) -> None:
        """Wait until the handlers have had all records, at most `timeout` seconds."""
        deadline = time.perf_counter() + timeout
        while (self._records or self._is_writing) and time.perf_counter() < deadline:
            with self._lock:
                self._wake_or_start_thread()
            time.sleep(0.01)

    def _wake_or_start_thread(self) -> None:
        if self._thread is None or not is_thread_alive(self._thread):
            self._wakeup = threading.Event()
            name = "apscheduler-telemetry-run-log"
            thread = create_daemon_thread(self._write_until_idle, self._wakeup, name=name)
            try:
                thread.start()
            except RuntimeError:  # too many threads, or the interpreter ends
                self._error_reporter.count(ERROR_COMPONENT)
                return  # the next record tries again
            self._thread = thread
        self._wakeup.set()

    def _write_until_idle(self, wakeup: threading.Event) -> None:
        while True:
            was_woken = wakeup.wait(IDLE_SECONDS)
            with self._lock:
                if self._wakeup is not wakeup:
                    return  # the copy of a greenlet, in a forked child
                wakeup.clear()
                if not was_woken and not self._records:
                    self._thread = None
                    return
            self._write_records()

    def _write_records(self) -> None:
        self._is_writing = True
        try:
            while self._records:
                logger, record, context = self._records.popleft()
                token = otel_context.attach(context)
                try:
                    logger.handle(record)
                except BaseException:  # noqa: BLE001  # of a handler or a filter of the user's
                    self._error_reporter.count(ERROR_COMPONENT)
                finally:
                    otel_context.detach(token)
        finally:
            self._is_writing = False


def _check_events_are_supported() -> None:
    if "event_name" not in inspect.signature(Logger.emit).parameters:
        msg = "logger_provider= needs opentelemetry-api 1.38 or newer; install it, or omit it"
        raise ArgumentTypeError(msg)


def _format_message(run: Run, outcome: Outcome) -> str:
    """Return a run in a sentence, for logs that show nothing else."""
    text = f"{escape_surrogates(run.label)}: {outcome.value}"
    if run.duration is not None and (outcome is SUCCESS or outcome is ERROR):
        text += f" after {run.duration:.3f} s"
    if outcome is SUCCESS:
        return text
    if run.error is None:
        text += f", due {to_datetime(run.due_timestamp).isoformat()}"
    else:
        text += f": {error_type(outcome, run.error)}"
    message = error_message(outcome, run.error)
    return f"{text}: {message}" if message else text


def _to_one_line(text: str) -> str:
    """Escape line breaks and control characters: ids and messages must not forge a log line."""
    if text.isprintable():
        return text
    escaped = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return "".join(escaped)


def _create_context(span: SpanIds | None) -> Context:
    """Return a context in which the span of a run is current; empty if there is none."""
    if span is None:
        return Context()
    span_context = trace.SpanContext(
        span.trace_id,
        span.span_id,
        is_remote=False,
        trace_flags=trace.TraceFlags(trace.TraceFlags.SAMPLED),
    )
    return trace.set_span_in_context(trace.NonRecordingSpan(span_context), Context())


def _ids_in_hex(span: SpanIds | None) -> Mapping[str, str]:
    if span is None:
        return {}
    return {
        "trace_id": trace.format_trace_id(span.trace_id),
        "span_id": trace.format_span_id(span.span_id),
    }


def _flush_at_exit() -> None:
    deadline = time.perf_counter() + MAX_EXIT_FLUSH_SECONDS
    for writer in list(_writers):
        writer.flush(max(0.0, deadline - time.perf_counter()))


_writers: weakref.WeakSet[LogWriter] = weakref.WeakSet()
atexit.register(_flush_at_exit)
