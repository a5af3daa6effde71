"""Spans of runs: names, attributes, links, status, and semantic conventions."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from typing import Any

import pytest
from opentelemetry.trace import SpanKind, StatusCode

from apscheduler_telemetry import __version__
from apscheduler_telemetry.core.model import ErrorDescription, Outcome
from apscheduler_telemetry.export import otel_traces as otel
from apscheduler_telemetry.export.job_attributes import SCHEMA_URL
from apscheduler_telemetry.export.otel_traces import Origin, SpanObserver
from tests.helpers.span_observer import ADDED, ADDED_IN, BOOM, DUE, NOW, Spans, go, job, new_run
from tests.helpers.triggers import Moment

pytestmark = pytest.mark.usefixtures("clean_context")


class TestSpan:
    def test_span_has_the_documented_name_attributes_and_times(self, spans: Spans) -> None:
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
            "apscheduler.job.label": "report",
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

    def test_scheduled_time_may_be_of_a_class_of_the_user(self, spans: Spans) -> None:
        """A trigger of the user's may return a datetime whose methods fail."""
        go(spans.observer(), new_run(due=Moment.of(DUE)))
        attributes = spans.one().attributes
        assert attributes["apscheduler.scheduled_time"] == "2027-01-15T07:59:59.750000+00:00"

    def test_scope_names_package_version_and_schema(self, spans: Spans) -> None:
        """The scope names this package, its version and the schema of the conventions."""
        go(spans.observer())

        scope = spans.one().instrumentation_scope
        assert scope.name == "apscheduler_telemetry"
        assert scope.version == __version__
        assert scope.schema_url == SCHEMA_URL

    def test_span_ends_with_the_callable(self, spans: Spans) -> None:
        """A span ends when the job does: not before spans of the job, nor before its own start."""
        for now in (NOW + 3, NOW - 3600):
            go(SpanObserver(tracer_provider=spans.provider, clock=lambda: now))  # noqa: B023

        late, set_back = spans.ended
        assert (late.start_time, late.end_time) == (NOW * 1e9, (NOW + 3) * 1e9)
        assert (set_back.start_time, set_back.end_time) == (NOW * 1e9, (NOW + 2) * 1e9)

    def test_span_is_named_by_the_label(self, spans: Spans) -> None:
        """One-off jobs share a span name, which is their label, and have their own ids."""
        go(spans.observer(), new_run(job(id="9f" * 16, label="shop:mail")))

        span = spans.one()
        assert span.name == "shop:mail"
        assert span.attributes["apscheduler.job.id"] == "9f" * 16

    def test_span_is_a_root_whatever_is_current(self, spans: Spans) -> None:
        """A run's span is a root, also if a span is current where the scheduler wakes up."""
        with spans.provider.get_tracer("app").start_as_current_span("request"):
            go(spans.observer())

        run, request = spans.ended
        assert run.parent is None
        assert run.context.trace_id != request.context.trace_id

    def test_span_links_to_where_the_job_was_added(self, spans: Spans) -> None:
        """The span links to the context in which the job was added."""
        go(spans.observer(), new_run(links=[ADDED]))

        (link,) = spans.one().links
        assert link.context == ADDED_IN
        assert link.attributes == {"apscheduler.link.reason": "added"}

    @pytest.mark.parametrize("link", [Origin(reason="added", span=None), "nonsense"])
    def test_invalid_span_context_makes_no_link(self, spans: Spans, link: object) -> None:
        """An invalid span context makes no link."""
        go(spans.observer(), new_run(links=[link]))

        assert spans.one().links == ()

    def test_sampler_decides_by_attributes(self, sampling: Any) -> None:
        """A sampler gets the attributes that are known at the start."""
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

    def test_recorded_span_is_the_exemplar_of_the_duration(self, spans: Spans) -> None:
        """The exemplar of the duration has the ids of the recorded span."""
        run = go(spans.observer())

        assert run.exemplar_span == spans.one().context

    def test_lone_surrogates_are_escaped(self, spans: Spans) -> None:
        """Lone surrogates are escaped, as one would make the export of a whole batch fail."""
        name = "caf\u00e9 \udcff"
        bad = job(id=name, label=name, name=name, func=name, trigger=name, executor=name)
        error = ErrorDescription(type=name, message=name)
        go(spans.observer(), new_run(bad, scheduler=name), Outcome.ERROR, error)

        span = spans.one()
        legal = "caf\u00e9 \\udcff"
        assert span.name == legal
        assert span.status.description == legal
        assert span.attributes["apscheduler.job.id"] == legal
        (event,) = span.events
        for text in (*span.attributes.values(), *event.attributes.values()):
            assert str(text).encode()


class TestCurrentSpanContext:
    def test_no_span_gives_no_context(self) -> None:
        """Without a current span there is no context to link to."""
        assert otel.find_current_span_context() is None

    def test_current_span_gives_its_context(self, spans: Spans) -> None:
        """With a current span, its context is returned."""
        with spans.provider.get_tracer("app").start_as_current_span("request") as span:
            assert otel.find_current_span_context() == span.get_span_context()


class TestConventions:
    def test_attributes_are_named_as_in_the_conventions(self, spans: Spans) -> None:
        """Attributes that the installed semantic conventions define have their names."""
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

    def test_other_attributes_are_in_our_namespace(self, spans: Spans) -> None:
        """Other attributes are in the namespace `apscheduler`."""
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

    def test_schema_url_is_published(self) -> None:
        """The schema URL is one that the conventions have published."""
        schemas = pytest.importorskip(
            "opentelemetry.semconv.schemas", reason="semantic conventions not installed, or older"
        ).Schemas
        known = {schema.value for schema in schemas}
        if "https://opentelemetry.io/schemas/1.41.0" not in known:
            pytest.skip("the installed conventions are older than the schema")

        assert SCHEMA_URL in known
