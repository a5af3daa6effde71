"""Spans of runs in the child of a process pool."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from apscheduler_telemetry.core.model import Outcome
from apscheduler_telemetry.export import otel_traces as otel
from apscheduler_telemetry.export.otel_traces import SpanObserver
from tests.helpers.span_observer import (
    ADDED_IN,
    BOOM,
    NOW,
    Spans,
    finish_run,
    ids,
    measured,
    new_run,
)

pytestmark = pytest.mark.usefixtures("clean_context")


class TestOtherProcess:
    def test_carrier_leads_to_the_span_of_the_run(self, spans: Spans) -> None:
        """The carrier has the run's span in W3C form, and does not change the current context."""
        observer = spans.observer()
        run = new_run()
        with spans.provider.get_tracer("app").start_as_current_span("request") as request:
            carrier = observer.create_trace_carrier(run)
            assert trace.get_current_span() is request
        assert carrier is not None
        assert list(carrier) == ["traceparent"]
        assert pickle.loads(pickle.dumps(carrier)) == carrier

        there = TraceContextTextMapPropagator().extract(carrier)
        spans.provider.get_tracer("child").start_span("query", there).end()
        finish_run(observer, measured(run), Outcome.SUCCESS)

        _, query, span = spans.ended
        assert span.parent is None
        assert ids(query.parent) == ids(span.context)
        assert run.exemplar_span is not None
        assert run.exemplar_span.span_id == span.context.span_id

    def test_span_has_the_times_of_the_child(self, spans: Spans) -> None:
        """The span starts and ends when the job does in the child, not at its submission."""
        observer = spans.observer()
        run = new_run()
        observer.create_trace_carrier(run)
        finish_run(observer, measured(run, NOW + 7, 3), Outcome.SUCCESS)

        span = spans.one()
        assert (span.start_time, span.end_time) == ((NOW + 7) * 1e9, (NOW + 10) * 1e9)
        assert span.attributes["apscheduler.start_delay"] == 7.25
        assert span.attributes["apscheduler.outcome"] == "success"

    def test_run_submitted_before_the_provider_has_a_span(self, spans: Spans) -> None:
        """A run that was submitted before the provider was set has a span at its end."""
        finish_run(spans.observer(), measured(new_run(), NOW + 7, 3), Outcome.SUCCESS)

        span = spans.one()
        assert (span.start_time, span.end_time) == ((NOW + 7) * 1e9, (NOW + 10) * 1e9)

    def test_lost_run_has_no_extent(self, spans: Spans) -> None:
        """The span of a lost run has no duration."""
        now = NOW
        observer = SpanObserver(tracer_provider=spans.provider, clock=lambda: now)
        run = new_run()
        observer.create_trace_carrier(run)
        now += 600
        finish_run(observer, run, Outcome.LOST)

        span = spans.one()
        assert span.start_time == span.end_time == NOW * 1e9
        assert span.attributes["apscheduler.outcome"] == "lost"
        assert span.attributes["error.type"] == "lost"

    def test_estimated_start_of_a_lost_run_is_not_exported(self, spans: Spans) -> None:
        """An estimated start is not exported as a measured one."""
        observer = spans.observer()
        run = new_run()
        observer.create_trace_carrier(run)
        run.try_set_estimated_start(NOW + 2)
        finish_run(observer, run, Outcome.LOST)
        run = new_run()
        run.try_set_estimated_start(NOW + 2)
        finish_run(observer, run, Outcome.LOST)

        assert len(spans.ended) == 2
        for span in spans.ended:
            assert span.start_time == span.end_time == NOW * 1e9
            assert "apscheduler.start_delay" not in span.attributes

    def test_exception_of_the_child_is_exported(self, spans: Spans) -> None:
        """An exception in the child is exported like one in this process."""
        observer = spans.observer()
        run = new_run()
        observer.create_trace_carrier(run)
        finish_run(observer, measured(run), Outcome.ERROR, BOOM)

        span = spans.one()
        assert span.attributes["error.type"] == "shop.Broken"
        assert span.events[0].timestamp == (NOW + 2) * 1e9

    def test_child_learns_that_the_run_is_not_sampled(self, sampling: Any) -> None:
        """The carrier says whether the run is sampled."""
        spans = Spans(sampling.ALWAYS_OFF)
        observer = spans.observer()
        run = new_run()
        carrier = observer.create_trace_carrier(run)
        finish_run(observer, measured(run), Outcome.SUCCESS)

        there = TraceContextTextMapPropagator().extract(carrier or {})
        span_context = trace.get_current_span(there).get_span_context()
        assert span_context.is_valid
        assert not span_context.trace_flags.sampled
        assert spans.ended == []

    def test_private_start_of_the_sdk_is_where_we_correct_it(self, spans: Spans) -> None:
        """The SDK exports the private start time that `_move_start` changes."""
        span: Any = spans.provider.get_tracer("app").start_span("run", start_time=1)
        assert span._start_time == 1

        otel._move_start(span, 2)
        span.end(3)

        assert (spans.one().start_time, spans.one().end_time) == (2, 3)

    def test_span_of_another_sdk_is_left_as_it_is(self) -> None:
        """The start of another SDK's span is not changed."""
        span = trace.NonRecordingSpan(ADDED_IN)

        otel._move_start(span, 2)

        assert not hasattr(span, "_start_time")
