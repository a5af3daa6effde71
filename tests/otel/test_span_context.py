"""The context of a run: its span is the current one in the job, and nowhere else."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any

import pytest
from opentelemetry import baggage, context, trace

from apscheduler_telemetry.core.model import Outcome
from apscheduler_telemetry.export import otel_traces as otel
from tests.helpers.span_observer import BOOM, NOW, Spans, finish_run, go, ids, job, new_run

pytestmark = pytest.mark.usefixtures("clean_context")


class TestContext:
    def test_span_is_current_in_the_callable(self, spans: Spans) -> None:
        """Spans of the job are children of the run's span, which is current only in the job."""
        tracer = spans.provider.get_tracer("app")

        go(spans.observer(), body=lambda: tracer.start_span("query").end())

        query, run = spans.ended
        assert ids(query.parent) == ids(run.context)
        assert trace.get_current_span() is trace.INVALID_SPAN

    def test_surrounding_baggage_stays_visible(self, spans: Spans) -> None:
        """Baggage of the surrounding context is visible in the job."""
        seen = []
        token = context.attach(baggage.set_baggage("tenant", "acme"))
        try:
            go(spans.observer(), body=lambda: seen.append(baggage.get_baggage("tenant")))
        finally:
            context.detach(token)

        assert seen == ["acme"]

    def test_run_inside_of_a_run_restores_the_outer_span(self, spans: Spans) -> None:
        """After a nested run, the span of the outer run is current again."""
        observer = spans.observer()
        current = []

        def body() -> None:
            go(observer)
            current.append(trace.get_current_span().get_span_context())

        go(observer, body=body)

        inner, outer = spans.ended
        assert inner.parent is None
        assert [ids(c) for c in current] == [ids(outer.context)]

    def test_concurrent_tasks_do_not_mix(self, spans: Spans) -> None:
        """Two interleaved runs on one event loop each have their own current span."""
        observer = spans.observer()
        tracer = spans.provider.get_tracer("app")

        async def one(label: str, barrier: asyncio.Event, other: asyncio.Event) -> None:
            run = new_run(job(label=label))
            run.try_start(NOW)
            observer.on_callable_start(run)
            barrier.set()
            await other.wait()
            tracer.start_span(f"query of {label}").end()
            run.set_duration(2.0)
            observer.on_callable_end(run)
            finish_run(observer, run, Outcome.SUCCESS)
            assert trace.get_current_span() is trace.INVALID_SPAN

        async def both() -> None:
            a, b = asyncio.Event(), asyncio.Event()
            await asyncio.gather(one("a", a, b), one("b", b, a))
            assert trace.get_current_span() is trace.INVALID_SPAN

        asyncio.run(both())

        by_name = {span.name: span for span in spans.ended}
        for label in ("a", "b"):
            assert ids(by_name[f"query of {label}"].parent) == ids(by_name[label].context)

    def test_threads_do_not_mix(self, spans: Spans) -> None:
        """Runs in several threads each have their own current span."""
        observer = spans.observer()
        tracer = spans.provider.get_tracer("app")
        together = threading.Barrier(4, timeout=10)

        def one(label: str) -> None:
            def body() -> None:
                together.wait()
                tracer.start_span(f"query of {label}").end()
                together.wait()

            go(observer, new_run(job(label=label)), body=body)

        threads = [threading.Thread(target=one, args=(label,)) for label in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)

        by_name = {span.name: span for span in spans.ended}
        for label in "abcd":
            assert ids(by_name[f"query of {label}"].parent) == ids(by_name[label].context)

    def test_abandoned_coroutine_ends_its_span(
        self, spans: Spans, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A coroutine closed from outside its task ends its span and logs no error."""
        observer = spans.observer()
        run = new_run()

        async def call() -> None:
            run.try_start(NOW)
            observer.on_callable_start(run)
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                run.set_duration(2.0)
                observer.on_callable_end(run)
                finish_run(observer, run, Outcome.LOST)

        coroutine = call()

        async def first_step() -> None:
            coroutine.send(None)

        with caplog.at_level(logging.DEBUG):
            asyncio.run(first_step())
            coroutine.close()

        assert spans.one().attributes["apscheduler.outcome"] == "lost"
        assert [record for record in caplog.records if record.levelno > logging.INFO] == []

    def test_unsampled_run_exports_nothing(self, sampling: Any) -> None:
        """An unsampled run is not exported, nor are the spans in it, and it has no exemplar."""
        spans = Spans(sampling.ParentBased(sampling.ALWAYS_OFF))
        tracer = spans.provider.get_tracer("app")
        current = []

        def body() -> None:
            current.append(trace.get_current_span())
            tracer.start_span("query").end()

        run = go(spans.observer(), outcome=Outcome.ERROR, error=BOOM, body=body)

        assert spans.ended == []
        assert run.exemplar_span is None
        (span,) = current
        assert span.get_span_context().is_valid
        assert not span.get_span_context().trace_flags.sampled


class TestContextOfScheduler:
    """The current context while telemetry and the scheduler's loop work."""

    def test_context_is_cleared_and_restored(self, spans: Spans) -> None:
        """The context is cleared and then restored; without a context nothing is done."""
        assert otel.attach_empty_context() is None
        with spans.provider.get_tracer("app").start_as_current_span("request") as request:
            token = otel.attach_empty_context()
            assert token is not None
            assert trace.get_current_span() is trace.INVALID_SPAN
            otel.detach_empty_context(token)
            assert trace.get_current_span() is request

    def test_tracing_is_suppressed_for_instrumentations(self, spans: Spans) -> None:
        """The key that suppresses instrumentations is set, and no span is current."""
        with spans.provider.get_tracer("app").start_as_current_span("request") as request:
            with otel.suppressing_tracing():
                assert context.get_value("suppress_instrumentation") is True
                assert trace.get_current_span() is trace.INVALID_SPAN
            assert trace.get_current_span() is request
