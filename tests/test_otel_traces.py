"""Spans of runs: what `SpanObserver` makes of its calls, as the SDK exports it."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import importlib
import inspect
import logging
import pickle
import pkgutil
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from apscheduler.executors.debug import DebugExecutor
from opentelemetry import baggage, context, trace
from opentelemetry._logs import Logger, LoggerProvider, SeverityNumber
from opentelemetry.trace import SpanContext, SpanKind, StatusCode, TraceFlags
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from apscheduler_telemetry import __version__
from apscheduler_telemetry.core import observers
from apscheduler_telemetry.core.model import MAX_MESSAGE, JobInfo, Outcome, RunError
from apscheduler_telemetry.core.observers import RunObserver
from apscheduler_telemetry.core.recorder import Recorder
from apscheduler_telemetry.core.records import Run
from apscheduler_telemetry.export import otel_traces as otel
from apscheduler_telemetry.export.otel_traces import Origin, SpanObserver
from support_jobs import nothing

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
    info: JobInfo | None = None, *, scheduler: str = "main", links: Sequence[Any] = ()
) -> Run:
    """Return a run that was submitted a quarter of a second before `NOW`."""
    recorder = Recorder(scheduler)
    record = recorder.job_upserted(info or job(), None)
    run = Run(record, DUE, "default", links)
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


@pytest.fixture
def sampling() -> Any:
    """Give the SDK's samplers, or skip the test where there is no SDK."""
    return pytest.importorskip(
        "opentelemetry.sdk.trace.sampling", reason="opentelemetry-sdk is not installed"
    )


@pytest.fixture
def spans(sampling: Any) -> Spans:
    """Give an SDK that samples everything."""
    return Spans(sampling.ALWAYS_ON)


@pytest.fixture(autouse=True)
def _no_opt_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(otel.EXCEPTION_SIGNAL_VARIABLE, raising=False)
    before = context.get_current()
    yield
    assert context.get_current() == before, "a test left something in the context"


def go(
    observer: SpanObserver,
    run: Run | None = None,
    outcome: Outcome = Outcome.SUCCESS,
    error: RunError | None = None,
    body: Callable[[], object] = lambda: None,
) -> Run:
    """Call an observer as for a run of two seconds in a thread."""
    run = run or new_run()
    run.start(NOW)
    observer.on_callable_start(run)
    body()
    run.stop(2.0)
    observer.on_callable_end(run)
    return finish_run(observer, run, outcome, error)


def measured(run: Run, started: float = NOW, duration: float = 2.0) -> Run:
    """Give a run what another process has measured."""
    run.start(started)
    run.stop(duration)
    return run


def finish_run(
    observer: SpanObserver, run: Run, outcome: Outcome, error: RunError | None = None
) -> Run:
    """End a run and let the observer know."""
    assert run.finish(outcome, error)
    observer.on_run_finished(run)
    return run


def ids(span_context: SpanContext) -> tuple[int, int]:
    return span_context.trace_id, span_context.span_id


BOOM = RunError(type="shop.Broken", message="no paper")
ADDED_IN = SpanContext(0xABC, 0xDEF, is_remote=False, trace_flags=TraceFlags(1))
ADDED = Origin(reason="added", span=ADDED_IN)


class TestSpan:
    def test_is_complete(self, spans: Spans) -> None:
        """A run becomes one root span with exactly the documented name, attributes and times."""
        go(spans.observer())

        span = spans.one()
        assert span.name == "report"
        assert span.kind is SpanKind.INTERNAL
        assert span.parent is None
        assert span.links == ()
        assert span.events == ()
        assert span.status.status_code is StatusCode.UNSET
        assert (span.start_time, span.end_time) == (NOW * 1e9, (NOW + 2) * 1e9)
        assert dict(span.attributes) == {
            "job.system": "apscheduler",
            "apscheduler.job.id": "report",
            "apscheduler.job.name": "Nightly report",
            "apscheduler.scheduler": "main",
            "apscheduler.executor": "default",
            "apscheduler.jobstore": "sql",
            "apscheduler.trigger": "interval[0:00:10]",
            "apscheduler.scheduled_time": "2027-01-15T07:59:59.750000+00:00",
            "apscheduler.start_delay": 0.25,
            "apscheduler.outcome": "success",
            "code.function.name": "shop.reports.Report.send",
        }

    def test_scope(self, spans: Spans) -> None:
        """The scope names this package, its version and the schema of the conventions."""
        go(spans.observer())

        scope = spans.one().instrumentation_scope
        assert scope.name == "apscheduler_telemetry"
        assert scope.version == __version__
        assert scope.schema_url == otel.SCHEMA_URL

    def test_ends_with_the_callable(self, spans: Spans) -> None:
        """Not earlier, or spans of the job's own would reach beyond it; nor before its start."""
        for now in (NOW + 3, NOW - 3600):
            go(SpanObserver(tracer_provider=spans.provider, clock=lambda: now))  # noqa: B023

        late, set_back = spans.ended
        assert (late.start_time, late.end_time) == (NOW * 1e9, (NOW + 3) * 1e9)
        assert (set_back.start_time, set_back.end_time) == (NOW * 1e9, (NOW + 2) * 1e9)

    def test_is_named_by_the_label(self, spans: Spans) -> None:
        """One-off jobs share a span name, as they share a label, and keep their own ids."""
        go(spans.observer(), new_run(job(id="9f" * 16, label="shop:mail")))

        span = spans.one()
        assert span.name == "shop:mail"
        assert span.attributes["apscheduler.job.id"] == "9f" * 16

    def test_is_a_root_whatever_is_current(self, spans: Spans) -> None:
        """The span that is current where the scheduler wakes up is not the parent of a run."""
        with spans.provider.get_tracer("app").start_as_current_span("request"):
            go(spans.observer())

        run, request = spans.ended
        assert run.parent is None
        assert run.context.trace_id != request.context.trace_id

    def test_links_to_where_the_job_was_added(self, spans: Spans) -> None:
        """The context in which the job was added is linked to."""
        go(spans.observer(), new_run(links=[ADDED]))

        (link,) = spans.one().links
        assert link.context == ADDED_IN
        assert link.attributes == {"apscheduler.link.reason": "added"}

    @pytest.mark.parametrize("link", [Origin(reason="added", span=None), "nonsense"])
    def test_does_not_link_to_nothing(self, spans: Spans, link: object) -> None:
        """What is no valid span context makes no link."""
        go(spans.observer(), new_run(links=[link]))

        assert spans.one().links == ()

    def test_sampler_decides_by_attributes(self, sampling: Any) -> None:
        """A sampler sees what is known at the start of a run."""
        seen: dict[str, Any] = {}

        class Sampler:
            def should_sample(self, *arguments: Any) -> Any:
                *_, attributes, links = arguments
                seen.update(attributes, links=len(links))
                return sampling.SamplingResult(sampling.Decision.DROP)

        go(Spans(Sampler()).observer(), new_run(links=[ADDED]))

        assert seen["apscheduler.job.id"] == "report"
        assert seen["apscheduler.start_delay"] == 0.25
        assert seen["links"] == 1
        assert "apscheduler.outcome" not in seen

    def test_gives_an_exemplar(self, spans: Spans) -> None:
        """The ids of a recorded span are the exemplar of the run's duration."""
        run = go(spans.observer())

        assert run.exemplar_span == spans.one().context

    def test_texts_that_are_no_utf8(self, spans: Spans) -> None:
        """Lone surrogates, of which one would cost the exporter a whole batch, are escaped."""
        name = "caf\u00e9 \udcff"
        bad = job(id=name, label=name, name=name, func=name, trigger=name, executor=name)
        error = RunError(type=name, message=name)
        go(spans.observer(), new_run(bad, scheduler=name), Outcome.ERROR, error)

        span = spans.one()
        legal = "caf\u00e9 \\udcff"
        assert span.name == legal
        assert span.status.description == legal
        assert span.attributes["apscheduler.job.id"] == legal
        (event,) = span.events
        for text in (*span.attributes.values(), *event.attributes.values()):
            assert str(text).encode()


class TestContext:
    def test_span_is_current_in_the_callable(self, spans: Spans) -> None:
        """Spans of the job's own are children of the run's, which is no longer current after it."""
        tracer = spans.provider.get_tracer("app")

        go(spans.observer(), body=lambda: tracer.start_span("query").end())

        query, run = spans.ended
        assert ids(query.parent) == ids(run.context)
        assert trace.get_current_span() is trace.INVALID_SPAN

    def test_keeps_what_else_is_current(self, spans: Spans) -> None:
        """Baggage of the surrounding context stays visible in the callable."""
        seen = []
        token = context.attach(baggage.set_baggage("tenant", "acme"))
        try:
            go(spans.observer(), body=lambda: seen.append(baggage.get_baggage("tenant")))
        finally:
            context.detach(token)

        assert seen == ["acme"]

    def test_runs_within_runs(self, spans: Spans) -> None:
        """A run that is started inside of another ends without taking the other's place."""
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
        """Two runs that take turns on one event loop each keep their own current span."""
        observer = spans.observer()
        tracer = spans.provider.get_tracer("app")

        async def one(label: str, barrier: asyncio.Event, other: asyncio.Event) -> None:
            run = new_run(job(label=label))
            run.start(NOW)
            observer.on_callable_start(run)
            barrier.set()
            await other.wait()
            tracer.start_span(f"query of {label}").end()
            run.stop(2.0)
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
        """Runs in several threads at once each keep their own current span."""
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

    def test_abandoned_coroutine(self, spans: Spans, caplog: pytest.LogCaptureFixture) -> None:
        """A coroutine closed from outside its task ends its span and logs no error."""
        observer = spans.observer()
        run = new_run()

        async def call() -> None:
            run.start(NOW)
            observer.on_callable_start(run)
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                run.stop(2.0)
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

    def test_unsampled(self, sampling: Any) -> None:
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


class TestWithoutSdk:
    @pytest.mark.parametrize(
        "provider", [None, trace.NoOpTracerProvider(), trace.ProxyTracerProvider()]
    )
    def test_does_nothing(
        self, provider: trace.TracerProvider | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where spans would go nowhere none is made, no attribute is built, no context changed."""
        proxy = trace.ProxyTracerProvider()
        monkeypatch.setattr(trace, "get_tracer_provider", lambda: proxy)
        observer = SpanObserver(tracer_provider=provider)
        go(observer)
        run, injected = new_run(links=[ADDED]), new_run()
        run.start(NOW)
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
            "_tracer",
            "_is_global_provider_unset",
        }
        ours |= {"finish_run", "finish", "ended_at"}
        # "time" is the clock, where a test before this one has had it stand still.
        assert called - ours <= {"<lambda>", "test_does_nothing", "time"}
        assert carrier is None
        assert (run.exemplar_span, injected.exemplar_span, len(observer._spans)) == (None, None, 0)

    def test_sdk_disabled(self, sampling: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """An SDK that OTEL_SDK_DISABLED has turned off counts as none."""
        monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
        spans = Spans(sampling.ALWAYS_ON)
        if not isinstance(spans.provider.get_tracer("app"), trace.NoOpTracer):
            pytest.skip("this version of the SDK does not know the variable")

        go(observer := spans.observer())

        assert spans.ended == []
        assert len(observer._spans) == 0

    def test_provider_set_between_two_runs(
        self, sampling: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It counts from the next pass over due jobs on; before it, no run is followed."""
        providers: list[trace.TracerProvider] = [trace.ProxyTracerProvider()]
        monkeypatch.setattr(trace, "get_tracer_provider", lambda: providers[-1])
        spans = Spans(sampling.ALWAYS_ON)
        from support import by_hand

        with by_hand({"default": DebugExecutor()}) as rig:
            rig.add(nothing, "interval", seconds=10)
            rig.after(10)
            providers.append(spans.provider)
            assert spans.ended == []
            rig.after(10)
            assert len(spans.ended) == 1
            assert rig.outcomes() == {"success": 2}

    def test_is_enabled(self, spans: Spans, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whether there is something to do, now or ever."""
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
    def test_provider_set_later(self, argument: str) -> None:
        """A global provider that is set after the observer was made counts from then on."""
        script = f"""
            import sys; sys.path[:] = {sys.path!r}
            from opentelemetry import trace
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import SimpleSpanProcessor
            from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
            from test_otel_traces import SpanObserver, go, job, new_run

            observer = SpanObserver({argument})
            go(observer, new_run(job(label="before")))
            exporter = InMemorySpanExporter()
            provider = TracerProvider()
            provider.add_span_processor(SimpleSpanProcessor(exporter))
            trace.set_tracer_provider(provider)
            go(observer, new_run(job(label="after")))
            print([span.name for span in exporter.get_finished_spans()])
        """

        from support import told_by

        assert told_by(script) == ("['after']\n", "")

    @pytest.mark.usefixtures("sampling")
    def test_provider_named_in_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The API creates it when it is first asked for."""
        script = f"""
            import sys; sys.path[:] = {sys.path!r}
            from apscheduler_telemetry.export.otel_traces import SpanObserver

            print(SpanObserver().is_enabled())
        """
        from support import told_by

        answers = []
        for name in ("", "sdk_tracer_provider"):
            if name:
                monkeypatch.setenv("OTEL_PYTHON_TRACER_PROVIDER", name)
            answers.append(told_by(script))
        assert answers == [("False\n", ""), ("True\n", "")]

    @pytest.mark.usefixtures("sampling")
    def test_private_attribute_of_the_api(self) -> None:
        """It tells whether there is a global provider; without it we ask in public."""
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
        from support import told_by

        assert told_by(script) == ("None False 0\nTrue True\nFalse\n", "")

    def test_end_without_start(self, spans: Spans) -> None:
        """A run whose start failed gets its span when it is finished, and no error."""
        observer = spans.observer()
        run = measured(new_run())
        observer.on_callable_end(run)
        assert spans.ended == []
        finish_run(observer, run, Outcome.SUCCESS)

        span = spans.one()
        assert (span.start_time, span.end_time) == (NOW * 1e9, (NOW + 2) * 1e9)


class TestCurrentSpanContext:
    def test_nothing_is_current(self) -> None:
        """Without a span there is nothing to link to."""
        assert otel.current_span_context() is None

    def test_in_a_span(self, spans: Spans) -> None:
        """In a span its context is given."""
        with spans.provider.get_tracer("app").start_as_current_span("request") as span:
            assert otel.current_span_context() == span.get_span_context()


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


def tell(spans: Spans, monkeypatch: pytest.MonkeyPatch, wanted: str) -> Logs:
    monkeypatch.setenv(otel.EXCEPTION_SIGNAL_VARIABLE, wanted)
    logs = Logs()
    go(spans.observer(logger_provider=logs), outcome=Outcome.ERROR, error=BOOM)
    return logs


class TestExceptions:
    def test_status(self, spans: Spans) -> None:
        """A failed run's span has the status, the message and the type of its exception."""
        go(spans.observer(), outcome=Outcome.ERROR, error=BOOM)

        span = spans.one()
        assert span.status.status_code is StatusCode.ERROR
        assert span.status.description == "no paper"
        assert span.attributes["error.type"] == "shop.Broken"
        assert span.attributes["apscheduler.outcome"] == "error"

    def test_event(self, spans: Spans, monkeypatch: pytest.MonkeyPatch) -> None:
        """By default an exception is an event of the span, without its traceback."""
        logs = tell(spans, monkeypatch, "")

        (event,) = spans.one().events
        assert event.name == "exception"
        assert event.timestamp == (NOW + 2) * 1e9
        assert dict(event.attributes) == {
            "exception.type": "shop.Broken",
            "exception.message": "no paper",
        }
        assert logs.emitted == []

    @pytest.mark.skipif(not LOGS, reason="the logs API of this version knows no events")
    @pytest.mark.parametrize(("wanted", "events"), [("logs", 0), ("logs/dup", 1), (" LOGS ", 0)])
    def test_log_record(
        self, spans: Spans, monkeypatch: pytest.MonkeyPatch, wanted: str, events: int
    ) -> None:
        """If opted in, an exception is a log record of that span, instead of an event or too."""
        logs = tell(spans, monkeypatch, wanted)

        span = spans.one()
        assert len(span.events) == events
        assert span.status.description == "no paper"
        assert logs.scope == ("apscheduler_telemetry", __version__, otel.SCHEMA_URL)
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
    def test_log_record_without_a_span(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Log records of exceptions are made for runs that have no span, too."""
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

    def test_unknown_opt_in(
        self, spans: Spans, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A value that the conventions do not know changes nothing and is warned of."""
        logs = tell(spans, monkeypatch, "metrics")

        assert len(spans.one().events) == 1
        assert logs.emitted == []
        (record,) = caplog.records
        assert record.getMessage() == (
            "OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN='metrics' is not known; exceptions stay span "
            "events. Known are 'logs' and 'logs/dup'"
        )

    def test_opt_in_that_the_api_is_too_old_for(
        self, spans: Spans, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Where the logs API knows no events, exceptions stay span events, with a warning."""

        class OldLogger:
            def emit(self, record: object) -> None: ...

        monkeypatch.setattr(otel, "Logger", OldLogger)
        logs = tell(spans, monkeypatch, "logs")

        assert len(spans.one().events) == 1
        assert logs.emitted == []
        (record,) = caplog.records
        assert "needs opentelemetry-api 1.38" in record.getMessage()

    def test_long_message(self, spans: Spans) -> None:
        """The length of a message is bounded wherever it goes."""
        error = RunError.from_exception(ValueError("x" * 1_000_000))
        go(spans.observer(), outcome=Outcome.ERROR, error=error)

        span = spans.one()
        assert len(span.status.description) == MAX_MESSAGE
        assert len(span.events[0].attributes["exception.message"]) == MAX_MESSAGE

    def test_unknown_exception(self, spans: Spans) -> None:
        """A failure of which no exception is known is a failure still."""
        go(spans.observer(), outcome=Outcome.ERROR)

        span = spans.one()
        assert span.status.status_code is StatusCode.ERROR
        assert span.attributes["error.type"] == "error"
        assert span.events == ()


class TestNeverRan:
    @pytest.mark.parametrize("outcome", [Outcome.MISSED, Outcome.SKIPPED, Outcome.LOST])
    def test_failures(self, spans: Spans, outcome: Outcome) -> None:
        """A run that was missed, skipped or lost is a failed span without extent."""
        finish_run(spans.observer(), new_run(links=[ADDED]), outcome)

        span = spans.one()
        assert span.start_time == span.end_time == NOW * 1e9
        assert span.parent is None
        assert len(span.links) == 1
        assert span.status.status_code is StatusCode.ERROR
        assert span.status.description
        assert span.attributes["error.type"] == outcome.value
        assert span.attributes["apscheduler.outcome"] == outcome.value
        assert "apscheduler.start_delay" not in span.attributes

    def test_coalesced(self, spans: Spans) -> None:
        """A run that was folded into a later one has not failed."""
        finish_run(spans.observer(), new_run(), Outcome.COALESCED)

        span = spans.one()
        assert span.start_time == span.end_time == NOW * 1e9
        assert span.status.status_code is StatusCode.UNSET
        assert span.attributes["apscheduler.outcome"] == "coalesced"
        assert "error.type" not in span.attributes

    def test_lost_with_a_reason(self, spans: Spans) -> None:
        """The exception that tells of a loss is the reason of the failure."""
        error = RunError(type="concurrent.futures.process.BrokenProcessPool", message="died")
        finish_run(spans.observer(), new_run(), Outcome.LOST, error)

        span = spans.one()
        assert span.status.description == "died"
        assert span.attributes["error.type"] == "concurrent.futures.process.BrokenProcessPool"
        assert len(span.events) == 1


class TestOtherProcess:
    def test_carrier(self, spans: Spans) -> None:
        """The carrier leads to the run's span in W3C form, and nothing becomes current here."""
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

    def test_times_are_those_of_the_child(self, spans: Spans) -> None:
        """The span begins and ends when the callable did, not when it was handed over."""
        observer = spans.observer()
        run = new_run()
        observer.create_trace_carrier(run)
        finish_run(observer, measured(run, NOW + 7, 3), Outcome.SUCCESS)

        span = spans.one()
        assert (span.start_time, span.end_time) == ((NOW + 7) * 1e9, (NOW + 10) * 1e9)
        assert span.attributes["apscheduler.start_delay"] == 7.25
        assert span.attributes["apscheduler.outcome"] == "success"

    def test_provider_that_came_later(self, spans: Spans) -> None:
        """A run that was handed over without a span has one all the same when it ends."""
        finish_run(spans.observer(), measured(new_run(), NOW + 7, 3), Outcome.SUCCESS)

        span = spans.one()
        assert (span.start_time, span.end_time) == ((NOW + 7) * 1e9, (NOW + 10) * 1e9)

    def test_lost(self, spans: Spans) -> None:
        """A run that never came back has no extent, as its duration is not known."""
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

    def test_lost_with_an_estimated_start(self, spans: Spans) -> None:
        """An estimated start is not exported as one that was measured."""
        observer = spans.observer()
        run = new_run()
        observer.create_trace_carrier(run)
        run.set_estimated_start(NOW + 2)
        finish_run(observer, run, Outcome.LOST)
        run = new_run()
        run.set_estimated_start(NOW + 2)
        finish_run(observer, run, Outcome.LOST)

        assert len(spans.ended) == 2
        for span in spans.ended:
            assert span.start_time == span.end_time == NOW * 1e9
            assert "apscheduler.start_delay" not in span.attributes

    def test_failed_there(self, spans: Spans) -> None:
        """An exception in the other process is exported like one in this."""
        observer = spans.observer()
        run = new_run()
        observer.create_trace_carrier(run)
        finish_run(observer, measured(run), Outcome.ERROR, BOOM)

        span = spans.one()
        assert span.attributes["error.type"] == "shop.Broken"
        assert span.events[0].timestamp == (NOW + 2) * 1e9

    def test_unsampled(self, sampling: Any) -> None:
        """The other process learns that the run is not sampled."""
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

    def test_private_attribute_of_the_sdk(self, spans: Spans) -> None:
        """The SDK keeps a span's start where `_move_start` corrects it, and exports that."""
        span: Any = spans.provider.get_tracer("app").start_span("run", start_time=1)
        assert span._start_time == 1

        otel._move_start(span, 2)
        span.end(3)

        assert (spans.one().start_time, spans.one().end_time) == (2, 3)

    def test_sdk_without_that_attribute(self) -> None:
        """Another SDK's span is left as it is."""
        span = trace.NonRecordingSpan(ADDED_IN)

        otel._move_start(span, 2)

        assert not hasattr(span, "_start_time")


class TestConventions:
    def test_attributes(self, spans: Spans) -> None:
        """What the installed semantic conventions define is called here as there."""
        root = "opentelemetry.semconv.attributes"
        code, error, exception = (
            pytest.importorskip(f"{root}.{name}_attributes", reason="older conventions")
            for name in ("code", "error", "exception")
        )
        error_with_stack = dataclasses.replace(BOOM, traceback="Traceback ...")
        go(spans.observer(), outcome=Outcome.ERROR, error=error_with_stack)

        span = spans.one()
        assert {code.CODE_FUNCTION_NAME, error.ERROR_TYPE} <= span.attributes.keys()
        assert {*span.events[0].attributes} == {
            exception.EXCEPTION_TYPE,
            exception.EXCEPTION_MESSAGE,
            exception.EXCEPTION_STACKTRACE,
        }

    def test_other_attributes_are_ours(self, spans: Spans) -> None:
        """What the installed conventions do not define lies in a namespace of our own."""
        root = "opentelemetry.semconv"
        walk = pytest.importorskip(root, reason="semantic conventions not installed").__path__
        defined = {
            value
            for info in pkgutil.walk_packages(walk, f"{root}.")
            if info.name.split(".")[-2] == "attributes"
            for name, value in vars(importlib.import_module(info.name)).items()
            if name.isupper() and isinstance(value, str)
        }
        go(spans.observer(), outcome=Outcome.ERROR, error=BOOM)

        span = spans.one()
        used = {*span.attributes, *span.events[0].attributes}
        of_ours = {name for name in used if name.startswith("apscheduler.")} | {"job.system"}
        later = {"code.function.name"} - defined  # not in conventions of 2024
        assert used - of_ours - later <= defined
        assert of_ours & defined == set()

    def test_schema_url_exists(self) -> None:
        """The schema is one that the conventions have published."""
        schemas = pytest.importorskip(
            "opentelemetry.semconv.schemas", reason="semantic conventions not installed, or older"
        ).Schemas
        known = {schema.value for schema in schemas}
        if "https://opentelemetry.io/schemas/1.41.0" not in known:
            pytest.skip("the installed conventions are older than the schema")

        assert otel.SCHEMA_URL in known


class TestLifetime:
    @pytest.mark.parametrize("outcome", [Outcome.SUCCESS, Outcome.MISSED, Outcome.LOST])
    def test_keeps_no_run(self, spans: Spans, outcome: Outcome) -> None:
        """Nothing of a finished run stays in the observer, however it came to its end."""
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
        """Of runs whose end is never reported, the observer keeps no more than a number."""
        monkeypatch.setattr(observers, "MAX_STALE_RUNS", 5)
        observer = spans.observer()
        for _ in range(20):
            run = new_run()
            run.start(NOW)
            observer.on_callable_start(run)
            run.stop(2.0)
            observer.on_callable_end(run)
            run.finish(Outcome.SUCCESS)
            run.finished_at = 0  # long ago by the clock of this process
        assert len(observer._spans) <= 5

    def test_finished_before_its_end(self, spans: Spans) -> None:
        """
        A run that was given up while its callable runs has its span ended once, and at once.

        The span stays current until the callable is over.
        """
        observer = spans.observer()
        run = new_run()
        run.start(NOW)
        observer.on_callable_start(run)
        finish_run(observer, run, Outcome.LOST)
        span = spans.one()
        assert trace.get_current_span().get_span_context() == span.context
        run.stop(5.0)
        observer.on_callable_end(run)

        assert trace.get_current_span() is trace.INVALID_SPAN
        assert spans.one().attributes["apscheduler.outcome"] == "lost"
        assert span.start_time == span.end_time == NOW * 1e9
        assert len(observer._spans) == 0

    def test_missed_after_its_start(self, spans: Spans) -> None:
        """A run that was started here, but too late for APScheduler, has no extent."""
        go(spans.observer(), outcome=Outcome.MISSED)

        span = spans.one()
        assert span.start_time == span.end_time == NOW * 1e9
        assert span.attributes["error.type"] == "missed"

    def test_runs_of_a_burst(self, spans: Spans) -> None:
        """Runs that are finished together, after all have ended, keep their own times."""
        now = NOW
        observer = SpanObserver(tracer_provider=spans.provider, clock=lambda: now)
        runs = [new_run() for _ in range(3)]
        for run in runs:
            run.start(now)
            observer.on_callable_start(run)
            now += 2
            run.stop(2.0)
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


class TestContextOfScheduler:
    """What is current while telemetry and the scheduler's loop work."""

    def test_clear_and_restore(self, spans: Spans) -> None:
        """Nothing is current in between; without anything current there is nothing to restore."""
        assert otel.attach_empty_context() is None
        with spans.provider.get_tracer("app").start_as_current_span("request") as request:
            token = otel.attach_empty_context()
            assert token is not None
            assert trace.get_current_span() is trace.INVALID_SPAN
            otel.restore_context(token)
            assert trace.get_current_span() is request

    def test_suppress_tracing(self, spans: Spans) -> None:
        """Instrumentations find their key, and nothing is current."""
        with spans.provider.get_tracer("app").start_as_current_span("request") as request:
            with otel.suppress_tracing():
                assert context.get_value("suppress_instrumentation") is True
                assert trace.get_current_span() is trace.INVALID_SPAN
            assert trace.get_current_span() is request


def check_types(observer: SpanObserver) -> RunObserver:
    """Let mypy compare the observer with the protocol."""
    return observer
