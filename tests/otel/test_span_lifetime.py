"""How long a `SpanObserver` keeps runs."""

from __future__ import annotations

import gc
import weakref

import pytest
from opentelemetry import trace

from apscheduler_telemetry.core import observers
from apscheduler_telemetry.core.model import Outcome
from apscheduler_telemetry.core.observers import RunObserver
from apscheduler_telemetry.export.otel_traces import SpanObserver
from tests.helpers.span_observer import NOW, Spans, finish_run, go, new_run

pytestmark = pytest.mark.usefixtures("clean_context")


class TestLifetime:
    @pytest.mark.parametrize("outcome", [Outcome.SUCCESS, Outcome.MISSED, Outcome.LOST])
    def test_finished_run_is_not_kept(self, spans: Spans, outcome: Outcome) -> None:
        """The observer does not keep a finished run, whatever its outcome."""
        observer = spans.observer()
        runs = [go(observer, outcome=outcome)]
        injected = new_run()
        observer.create_trace_carrier(injected)
        runs += [finish_run(observer, injected, outcome), finish_run(observer, new_run(), outcome)]
        assert len(observer._spans) == 0
        kept = [weakref.ref(run) for run in runs]
        del runs, injected
        gc.collect()

        assert [ref() for ref in kept] == [None] * 3

    def test_unfinished_runs_are_bounded(
        self, spans: Spans, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The number of runs whose end is never reported is bounded."""
        monkeypatch.setattr(observers, "MAX_ENDED_RUNS_HELD", 5)
        observer = spans.observer()
        for _ in range(20):
            run = new_run()
            run.try_start(NOW)
            observer.on_callable_start(run)
            run.set_duration(2.0)
            observer.on_callable_end(run)
            run.finish(Outcome.SUCCESS)
            run.finished_at = 0  # long ago by the clock of this process
        assert len(observer._spans) <= 5

    def test_run_finished_before_its_callable_ends_its_span_once(self, spans: Spans) -> None:
        """
        If a run is given up while its job runs, its span ends at once, and only once.

        The span stays current until the job ends.
        """
        observer = spans.observer()
        run = new_run()
        run.try_start(NOW)
        observer.on_callable_start(run)
        finish_run(observer, run, Outcome.LOST)
        span = spans.one()
        assert trace.get_current_span().get_span_context() == span.context
        run.set_duration(5.0)
        observer.on_callable_end(run)

        assert trace.get_current_span() is trace.INVALID_SPAN
        assert spans.one().attributes["apscheduler.outcome"] == "lost"
        assert span.start_time == span.end_time == NOW * 1e9
        assert len(observer._spans) == 0

    def test_run_missed_after_its_start_has_no_extent(self, spans: Spans) -> None:
        """A run that started, but that APScheduler reports as missed, has no duration."""
        go(spans.observer(), outcome=Outcome.MISSED)

        span = spans.one()
        assert span.start_time == span.end_time == NOW * 1e9
        assert span.attributes["error.type"] == "missed"

    def test_runs_of_a_burst_keep_their_own_times(self, spans: Spans) -> None:
        """Runs of a burst that are finished together have their own times."""
        now = NOW
        observer = SpanObserver(tracer_provider=spans.provider, clock=lambda: now)
        runs = [new_run() for _ in range(3)]
        for run in runs:
            run.try_start(now)
            observer.on_callable_start(run)
            now += 2
            run.set_duration(2.0)
            observer.on_callable_end(run)
            now += 1
        assert spans.ended == []
        for run, outcome in zip(
            runs, (Outcome.SUCCESS, Outcome.ERROR, Outcome.SUCCESS), strict=True
        ):
            finish_run(observer, run, outcome)

        times = [(span.start_time / 1e9 - NOW, span.end_time / 1e9 - NOW) for span in spans.ended]
        assert times == [(0, 2), (3, 5), (6, 8)]
        outcomes = [span.attributes["apscheduler.outcome"] for span in spans.ended]
        assert outcomes == ["success", "error", "success"]


def check_types(observer: SpanObserver) -> RunObserver:
    """Let mypy compare the observer with the protocol."""
    return observer
