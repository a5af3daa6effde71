"""Spans without an SDK, with a disabled one, and with a provider that is set later."""

from __future__ import annotations

import gc
import inspect
import sys
from typing import Any

import pytest
from apscheduler.executors.debug import DebugExecutor
from opentelemetry import trace
from opentelemetry._logs import Logger

from apscheduler_telemetry.core.model import Outcome
from apscheduler_telemetry.export import otel_traces as otel
from apscheduler_telemetry.export.otel_traces import SpanObserver
from tests.helpers.jobs import nothing
from tests.helpers.span_observer import ADDED, BOOM, NOW, Spans, finish_run, go, measured, new_run

pytestmark = pytest.mark.usefixtures("clean_context")


class TestWithoutSdk:
    @pytest.mark.parametrize(
        "provider", [None, trace.NoOpTracerProvider(), trace.ProxyTracerProvider()]
    )
    def test_nothing_is_done_without_an_sdk(
        self, provider: trace.TracerProvider | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Without an SDK no span is made, no attribute is built and no context is changed."""
        proxy = trace.ProxyTracerProvider()
        monkeypatch.setattr(trace, "get_tracer_provider", lambda: proxy)
        observer = SpanObserver(tracer_provider=provider)
        go(observer)
        run, injected = new_run(links=[ADDED]), new_run()
        run.try_start(NOW)
        called = set()

        gc.collect()
        gc.disable()  # else finalizers of what other tests left behind are seen as well
        sys.setprofile(lambda frame, *_: called.add(frame.f_code.co_name))
        try:
            observer.on_callable_start(run)
            observer.on_callable_end(run)
            finish_run(observer, run, Outcome.ERROR, BOOM)
            carrier = observer.create_trace_carrier(injected)
            finish_run(observer, injected, Outcome.LOST)
        finally:
            sys.setprofile(None)
            gc.enable()

        ours = {
            "on_callable_start",
            "on_callable_end",
            "create_trace_carrier",
            "on_run_finished",
            "_start_span",
            "_find_tracer",
            "_is_global_provider_unset",
        }
        ours |= {"finish_run", "finish", "measured_end_at"}
        # "time" is the clock if an earlier test has frozen it.
        assert called - ours <= {"<lambda>", "test_nothing_is_done_without_an_sdk", "time"}
        assert carrier is None
        assert (run.exemplar_span, injected.exemplar_span, len(observer._spans)) == (None, None, 0)

    def test_disabled_sdk_counts_as_none(
        self, sampling: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An SDK that OTEL_SDK_DISABLED has disabled counts as none."""
        monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
        spans = Spans(sampling.ALWAYS_ON)
        if not isinstance(spans.provider.get_tracer("app"), trace.NoOpTracer):
            pytest.skip("this version of the SDK does not know the variable")

        go(observer := spans.observer())

        assert spans.ended == []
        assert len(observer._spans) == 0

    def test_provider_set_between_two_runs_counts_from_the_next_pass(
        self, sampling: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A provider that is set later is used from the next pass on."""
        providers: list[trace.TracerProvider] = [trace.ProxyTracerProvider()]
        monkeypatch.setattr(trace, "get_tracer_provider", lambda: providers[-1])
        spans = Spans(sampling.ALWAYS_ON)
        from tests.helpers.rigs import hand_driven_rig

        with hand_driven_rig({"default": DebugExecutor()}) as rig:
            rig.add(nothing, "interval", seconds=10)
            rig.after(10)
            providers.append(spans.provider)
            assert spans.ended == []
            rig.after(10)
            assert len(spans.ended) == 1
            assert rig.outcomes() == {"success": 2}

    def test_observer_tells_whether_it_is_enabled(
        self, spans: Spans, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The observer reports whether it has anything to do, now or later."""
        assert spans.observer().is_enabled()
        assert SpanObserver(tracer_provider=trace.NoOpTracerProvider()).is_enabled() is None
        monkeypatch.setattr(trace, "_TRACER_PROVIDER", None)
        assert SpanObserver().is_enabled() is False
        assert SpanObserver(tracer_provider=trace.ProxyTracerProvider()).is_enabled() is False
        monkeypatch.setenv(otel.EXCEPTION_SIGNAL_VARIABLE, "logs/dup")
        is_enabled = SpanObserver().is_enabled()
        assert is_enabled == ("event_name" in inspect.signature(Logger.emit).parameters)

    @pytest.mark.parametrize("argument", ["", "tracer_provider=trace.get_tracer_provider()"])
    @pytest.mark.usefixtures("sampling")
    def test_global_provider_that_is_set_later_counts(self, argument: str) -> None:
        """A global provider that is set later is used from then on."""
        script = f"""
            import sys; sys.path[:] = {sys.path!r}
            from opentelemetry import trace
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import SimpleSpanProcessor
            from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
            from apscheduler_telemetry.export.otel_traces import SpanObserver
            from tests.helpers.span_observer import go, job, new_run

            observer = SpanObserver({argument})
            go(observer, new_run(job(label="before")))
            exporter = InMemorySpanExporter()
            provider = TracerProvider()
            provider.add_span_processor(SimpleSpanProcessor(exporter))
            trace.set_tracer_provider(provider)
            go(observer, new_run(job(label="after")))
            print([span.name for span in exporter.get_finished_spans()])
        """

        from tests.helpers.scripts import output_of_script

        assert output_of_script(script) == ("['after']\n", "")

    @pytest.mark.usefixtures("sampling")
    def test_provider_named_in_the_environment_is_used(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A provider that is named in the environment is created when it is first used."""
        script = f"""
            import sys; sys.path[:] = {sys.path!r}
            from apscheduler_telemetry.export.otel_traces import SpanObserver

            print(SpanObserver().is_enabled())
        """
        from tests.helpers.scripts import output_of_script

        answers = []
        for name in ("", "sdk_tracer_provider"):
            if name:
                monkeypatch.setenv("OTEL_PYTHON_TRACER_PROVIDER", name)
            answers.append(output_of_script(script))
        assert answers == [("False\n", ""), ("True\n", "")]

    @pytest.mark.usefixtures("sampling")
    def test_private_provider_of_the_api_is_where_we_look(self) -> None:
        """The API's private variable says whether a global provider is set."""
        script = f"""
            import sys; sys.path[:] = {sys.path!r}
            from opentelemetry import trace
            from opentelemetry.sdk.trace import TracerProvider
            from apscheduler_telemetry.export import otel_traces as otel

            asked = []
            code = trace.get_tracer_provider.__code__
            sys.setprofile(lambda frame, *_: asked.append(1) if frame.f_code is code else None)
            observer = otel.SpanObserver()
            print(trace._TRACER_PROVIDER, observer.is_enabled(), len(asked))
            trace.set_tracer_provider(TracerProvider())
            print(observer.is_enabled(), len(asked) > 0)
            del asked[:], trace._TRACER_PROVIDER
            print(otel._is_global_provider_unset())
        """
        from tests.helpers.scripts import output_of_script

        assert output_of_script(script) == ("None False 0\nTrue True\nFalse\n", "")

    def test_run_whose_start_failed_gets_a_span_at_its_end(self, spans: Spans) -> None:
        """If the start of a run was not recorded, its span is made at its end."""
        observer = spans.observer()
        run = measured(new_run())
        observer.on_callable_end(run)
        assert spans.ended == []
        finish_run(observer, run, Outcome.SUCCESS)

        span = spans.one()
        assert (span.start_time, span.end_time) == (NOW * 1e9, (NOW + 2) * 1e9)
