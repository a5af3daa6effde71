"""Spans of runs that did not run: missed, skipped, coalesced and lost."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from opentelemetry.trace import StatusCode

from apscheduler_telemetry.core.model import ErrorDescription, Outcome
from apscheduler_telemetry.export.job_attributes import OUTCOME_DESCRIPTIONS
from tests.helpers.span_observer import ADDED, NOW, Spans, finish_run, new_run

pytestmark = pytest.mark.usefixtures("clean_context")


class TestNeverRan:
    @pytest.mark.parametrize("outcome", [Outcome.MISSED, Outcome.SKIPPED, Outcome.LOST])
    def test_missed_skipped_and_lost_runs_are_failed_spans(
        self, spans: Spans, outcome: Outcome
    ) -> None:
        """A missed, skipped or lost run is a failed span without duration."""
        finish_run(spans.observer(), new_run(links=[ADDED]), outcome)

        span = spans.one()
        assert span.start_time == span.end_time == NOW * 1e9
        assert span.parent is None
        assert len(span.links) == 1
        assert span.status.status_code is StatusCode.ERROR
        assert span.status.description == OUTCOME_DESCRIPTIONS[outcome]
        assert span.attributes["error.type"] == outcome.value
        assert span.attributes["apscheduler.outcome"] == outcome.value
        assert "apscheduler.start_delay" not in span.attributes

    def test_coalesced_run_has_not_failed(self, spans: Spans) -> None:
        """The span of a coalesced run has not failed."""
        finish_run(spans.observer(), new_run(), Outcome.COALESCED)

        span = spans.one()
        assert span.start_time == span.end_time == NOW * 1e9
        assert span.status.status_code is StatusCode.UNSET
        assert span.attributes["apscheduler.outcome"] == "coalesced"
        assert "error.type" not in span.attributes

    @pytest.mark.parametrize("hours", [-12, 0, 14])
    @pytest.mark.parametrize("limit", [datetime.min, datetime.max])  # noqa: DTZ901
    def test_run_at_the_end_of_the_calendar(
        self, spans: Spans, limit: datetime, hours: int
    ) -> None:
        """Its scheduled time is UTC, or the nearest time that there is."""
        due = limit.replace(tzinfo=timezone(timedelta(hours=hours)))
        finish_run(spans.observer(), new_run(due=due), Outcome.MISSED)

        scheduled = datetime.fromisoformat(spans.one().attributes["apscheduler.scheduled_time"])
        assert scheduled.utcoffset() == timedelta()
        assert abs(scheduled.timestamp() - due.timestamp()) < 15 * 3600

    def test_exception_is_the_reason_of_a_loss(self, spans: Spans) -> None:
        """The exception of a lost run is the message of its span."""
        error = ErrorDescription(
            type="concurrent.futures.process.BrokenProcessPool", message="died"
        )
        finish_run(spans.observer(), new_run(), Outcome.LOST, error)

        span = spans.one()
        assert span.status.description == "died"
        assert span.attributes["error.type"] == "concurrent.futures.process.BrokenProcessPool"
        assert len(span.events) == 1
