"""Exceptions of runs as events of their spans, and as log records."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry._logs import LoggerProvider, SeverityNumber
from opentelemetry.trace import StatusCode

from apscheduler_telemetry import __version__
from apscheduler_telemetry.core.model import MAX_MESSAGE_LENGTH, ErrorDescription, Outcome
from apscheduler_telemetry.export import otel_traces as otel
from apscheduler_telemetry.export.job_attributes import SCHEMA_URL
from apscheduler_telemetry.export.otel_traces import SpanObserver
from tests.helpers.span_observer import BOOM, LOGS, NOW, Spans, finish_run, go, ids, new_run

pytestmark = pytest.mark.usefixtures("clean_context")


@dataclass
class Logs(LoggerProvider):
    """A provider of the logs API that keeps what is emitted."""

    emitted: list[dict[str, Any]] = field(default_factory=list)
    scope: tuple[Any, ...] = ()

    def get_logger(self, *scope: Any, **_: Any) -> Any:
        self.scope = scope[:3]
        return self

    def emit(self, **record: Any) -> None:
        self.emitted.append(record)


def observe_failed_run(spans: Spans, monkeypatch: pytest.MonkeyPatch, opt_in: str) -> Logs:
    monkeypatch.setenv(otel.EXCEPTION_SIGNAL_VARIABLE, opt_in)
    logs = Logs()
    go(spans.observer(logger_provider=logs), outcome=Outcome.ERROR, error=BOOM)
    return logs


class TestExceptions:
    def test_failed_run_has_an_error_status_with_message_and_type(self, spans: Spans) -> None:
        """A failed run's span has the status, the message and the type of its exception."""
        go(spans.observer(), outcome=Outcome.ERROR, error=BOOM)

        span = spans.one()
        assert span.status.status_code is StatusCode.ERROR
        assert span.status.description == "no paper"
        assert span.attributes["error.type"] == "shop.Broken"
        assert span.attributes["apscheduler.outcome"] == "error"

    def test_exception_is_a_span_event_by_default(
        self, spans: Spans, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """By default an exception is an event of the span, without its traceback."""
        logs = observe_failed_run(spans, monkeypatch, "")

        (event,) = spans.one().events
        assert event.name == "exception"
        assert event.timestamp == (NOW + 2) * 1e9
        assert dict(event.attributes) == {
            "exception.type": "shop.Broken",
            "exception.message": "no paper",
        }
        assert logs.emitted == []

    @pytest.mark.skipif(not LOGS, reason="the logs API of this version knows no events")
    @pytest.mark.parametrize(("opt_in", "events"), [("logs", 0), ("logs/dup", 1), (" LOGS ", 0)])
    def test_exception_is_a_log_record_if_opted_in(
        self, spans: Spans, monkeypatch: pytest.MonkeyPatch, opt_in: str, events: int
    ) -> None:
        """If opted in, an exception is a log record of the span, with or without a span event."""
        logs = observe_failed_run(spans, monkeypatch, opt_in)

        span = spans.one()
        assert len(span.events) == events
        assert span.status.description == "no paper"
        assert logs.scope == ("apscheduler_telemetry", __version__, SCHEMA_URL)
        (record,) = logs.emitted
        current = trace.get_current_span(record.pop("context")).get_span_context()
        assert ids(current) == ids(span.context)
        assert record == {
            "timestamp": (NOW + 2) * 1e9,
            "severity_number": SeverityNumber.ERROR,
            "event_name": "apscheduler.job.run.exception",
            "attributes": {
                "exception.type": "shop.Broken",
                "exception.message": "no paper",
                "apscheduler.job.id": "report",
                "apscheduler.scheduler": "main",
            },
        }

    @pytest.mark.skipif(not LOGS, reason="the logs API of this version knows no events")
    def test_log_record_is_made_without_a_span(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Runs without a span have log records of their exceptions as well."""
        monkeypatch.setenv(otel.EXCEPTION_SIGNAL_VARIABLE, "logs")
        logs = Logs()
        observer = SpanObserver(
            tracer_provider=trace.NoOpTracerProvider(), logger_provider=logs, clock=lambda: NOW
        )

        go(observer, outcome=Outcome.ERROR, error=BOOM)
        finish_run(observer, new_run(), Outcome.LOST, BOOM)
        go(observer)

        assert [record["attributes"]["exception.type"] for record in logs.emitted] == [
            "shop.Broken",
            "shop.Broken",
        ]

    def test_unknown_opt_in_changes_nothing_and_warns(
        self, spans: Spans, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """An unknown value changes nothing and causes a warning."""
        logs = observe_failed_run(spans, monkeypatch, "metrics")

        assert len(spans.one().events) == 1
        assert logs.emitted == []
        (record,) = caplog.records
        assert record.getMessage() == (
            "OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN='metrics' is not known; exceptions stay span "
            "events. Known are 'logs' and 'logs/dup'"
        )

    def test_opt_in_on_an_old_api_keeps_span_events(
        self, spans: Spans, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """If the logs API has no events, exceptions stay span events, with a warning."""

        class OldLogger:
            def emit(self, record: object) -> None: ...

        monkeypatch.setattr(otel, "Logger", OldLogger)
        logs = observe_failed_run(spans, monkeypatch, "logs")

        assert len(spans.one().events) == 1
        assert logs.emitted == []
        (record,) = caplog.records
        assert "needs opentelemetry-api 1.38" in record.getMessage()

    def test_length_of_a_message_is_bounded(self, spans: Spans) -> None:
        """The length of a message is bounded in status, event and log record."""
        error = ErrorDescription.from_exception(ValueError("x" * 1_000_000))
        go(spans.observer(), outcome=Outcome.ERROR, error=error)

        span = spans.one()
        assert len(span.status.description) == MAX_MESSAGE_LENGTH
        assert len(span.events[0].attributes["exception.message"]) == MAX_MESSAGE_LENGTH

    def test_failure_without_a_known_exception_is_a_failure(self, spans: Spans) -> None:
        """A failure without a known exception is still a failed span."""
        go(spans.observer(), outcome=Outcome.ERROR)

        span = spans.one()
        assert span.status.status_code is StatusCode.ERROR
        assert span.attributes["error.type"] == "error"
        assert span.events == ()
