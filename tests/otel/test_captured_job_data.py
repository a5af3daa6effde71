"""Data of jobs in spans: by default none, and only what is enabled."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timezone
from typing import Any, NoReturn

import pytest

pytest.importorskip("opentelemetry.sdk.trace", reason="it comes with the extra 'otlp'")

from apscheduler.executors.asyncio import AsyncIOExecutor
from apscheduler.executors.debug import DebugExecutor
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.schedulers.background import BackgroundScheduler
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry

from apscheduler_telemetry import ArgumentTypeError, instrument
from apscheduler_telemetry.api import get_handle
from tests.helpers.metrics import errors_of
from tests.helpers.paths import ROOT
from tests.helpers.schedulers import finish_pass, forkserver_pool
from tests.helpers.waiting import wait_until, wait_until_async

SECRET = "hunter2"
EXECUTORS = [DebugExecutor, ThreadPoolExecutor, forkserver_pool]
ALL: dict[str, Any] = {
    "capture_arguments": True,
    "capture_result": True,
    "capture_stacktrace": True,
}


class Unspeakable:
    """A value whose text raises."""

    def __repr__(self) -> str:
        raise AssertionError("no code of the user's is to be called")


def echo(value: Any, **_: Any) -> Any:
    return value


async def echo_later(value: Any) -> Any:
    return value


def unspeakable(value: Any) -> Unspeakable:
    return Unspeakable()


def fail(value: Any) -> NoReturn:
    local = value
    raise ValueError(len(local)) from LookupError("the cause")


@contextmanager
def scheduler(executor: Any, **options: Any) -> Iterator[tuple[Any, InMemorySpanExporter]]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    made = BackgroundScheduler(executors={"default": executor}, timezone=timezone.utc)
    instrument(made, registry=CollectorRegistry(), tracer_provider=provider, **options)
    made.start()
    try:
        yield made, exporter
    finally:
        finish_pass(made)
        made.shutdown()


def span_of(executor: Any, func: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Return the span of one run of `func`."""
    with scheduler(executor, **options) as (made, exporter):
        made.add_job(func, args=args, id="job", misfire_grace_time=None)
        wait_until(exporter.get_finished_spans)
        (span,) = exporter.get_finished_spans()
        return span


def stack_of(span: Any) -> str:
    (event,) = span.events
    return str(event.attributes["exception.stacktrace"])


@pytest.mark.parametrize("executor", EXECUTORS, ids=lambda e: e.__name__)
class TestByDefault:
    def test_no_arguments_results_or_stack_traces_by_default(self, executor: Any) -> None:
        """By default, spans have no arguments, results or stack traces."""
        for func in (echo, fail):
            span = span_of(executor(), func, SECRET)
            text = span.to_json()
            assert SECRET not in text
            assert "stacktrace" not in text
            assert __file__ not in text


@pytest.mark.parametrize("executor", EXECUTORS, ids=lambda e: e.__name__)
class TestOnRequest:
    def test_arguments_and_result_are_captured_in_brief(self, executor: Any) -> None:
        """Arguments and results are captured in a short form."""
        span = span_of(executor(), echo, {"order": [1, 2]}, **ALL)
        assert span.attributes["apscheduler.job.arguments"] == "{'order': [1, 2]}"
        assert span.attributes["apscheduler.result"] == "{'order': [1, 2]}"

    def test_secrets_are_masked(self, executor: Any) -> None:
        """The values of arguments and keys that are named like secrets are not captured."""
        value = {"user": "ann", "password": SECRET}
        with scheduler(executor(), **ALL) as (made, exporter):
            made.add_job(echo, args=[value], kwargs={"api_key": SECRET}, misfire_grace_time=None)
            wait_until(exporter.get_finished_spans)
        (span,) = exporter.get_finished_spans()
        assert SECRET not in span.to_json()
        shown = "{'user': 'ann', 'password': ***}"
        assert (span.attributes or {})["apscheduler.job.arguments"] == f"{shown}, api_key=***"
        assert (span.attributes or {})["apscheduler.result"] == shown

    def test_objects_are_captured_by_their_type(self, executor: Any) -> None:
        """Objects are captured by their type; a ``__repr__`` that fails is not called."""
        span = span_of(executor(), unspeakable, Unspeakable(), **ALL)
        assert span.attributes["apscheduler.outcome"] == "success"
        shown = f"<{__name__}.Unspeakable>"
        assert span.attributes["apscheduler.job.arguments"] == shown
        assert span.attributes["apscheduler.result"] == shown

    def test_stack_trace_has_no_frames_of_ours(self, executor: Any) -> None:
        """The stack trace is complete, without frames of this package and without values."""
        span = span_of(executor(), fail, SECRET, **ALL)
        stack = stack_of(span)
        assert stack.splitlines()[0] in {
            "Traceback (most recent call last):",
            "LookupError: the cause",
        }
        assert stack.splitlines()[-1] == "ValueError: 7"
        assert f'File "{__file__}"' in stack
        assert "in fail" in stack
        assert "_worker.py" not in stack
        assert SECRET not in stack
        assert "apscheduler.result" not in span.attributes


class TestPage:
    """docs/opentelemetry.md."""

    PAGE = (ROOT / "docs" / "opentelemetry.md").read_text()

    def test_page_lists_every_attribute(self) -> None:
        """The table on the page has every attribute, and no other."""
        table = self.PAGE.split("| attribute | type | example | stability |")[1].split("\n\n")[0]
        documented = set(re.findall(r"^\| `([\w.]+)` \|", table, re.MULTILINE))

        seen: set[str] = set()
        for func in (echo, fail):
            with scheduler(DebugExecutor(), **ALL) as (made, exporter):
                parent = trace.NonRecordingSpan(trace.SpanContext(1, 2, is_remote=False))
                with trace.use_span(parent):
                    made.add_job(func, args=[1] if func is echo else [[1]], misfire_grace_time=None)
                wait_until(exporter.get_finished_spans)
                (span,) = exporter.get_finished_spans()
                seen |= set(span.attributes or ())
                parts: list[Any] = [*span.events, *span.links]
                for part in parts:
                    seen |= set(part.attributes)
        assert seen == documented

    def test_log_recipe_shows_the_ids_of_the_run(self, capsys: pytest.CaptureFixture[str]) -> None:
        """The page's recipe for `logging` adds the ids of the run."""
        (recipe,) = re.findall(
            r"```python\n(import logging\nfrom opent.*?)```", self.PAGE, re.DOTALL
        )
        root = logging.getLogger()
        handlers, level = root.handlers[:], root.level
        root.handlers.clear()
        try:
            exec(recipe, {})
            with scheduler(ThreadPoolExecutor()) as (made, exporter):
                made.add_job(logging.getLogger("shop").warning, args=["it works"], id="job")
                wait_until(exporter.get_finished_spans)
                (span,) = exporter.get_finished_spans()
        finally:
            root.handlers[:] = handlers
            root.setLevel(level)

        line = f"WARNING it works trace_id={span.context.trace_id:032x}"
        assert line in capsys.readouterr().err.splitlines()


class TestMore:
    def test_result_of_a_coroutine_is_what_it_returns(self) -> None:
        """The result of a coroutine function is the awaited value, not the coroutine."""
        exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(exporter))

        async def main() -> None:
            made = AsyncIOScheduler(executors={"default": AsyncIOExecutor()}, timezone=timezone.utc)
            instrument(made, registry=CollectorRegistry(), tracer_provider=provider, **ALL)
            made.start()
            made.add_job(echo_later, args=[7], misfire_grace_time=None)
            await wait_until_async(exporter.get_finished_spans)
            made.shutdown()
            await asyncio.sleep(0)

        asyncio.run(main())

        span: Any = exporter.get_finished_spans()[0]
        assert span.attributes["apscheduler.result"] == "7"

    def test_each_option_captures_only_its_own(self) -> None:
        """Each option captures only what it is named after."""
        span = span_of(DebugExecutor(), echo, 1, capture_arguments=True)
        assert "apscheduler.job.arguments" in span.attributes
        assert "apscheduler.result" not in span.attributes
        span = span_of(DebugExecutor(), echo, 1, capture_result=True)
        assert "apscheduler.job.arguments" not in span.attributes
        assert "apscheduler.result" in span.attributes

    def test_size_of_captured_values_is_limited(self) -> None:
        """The size of captured values is limited."""
        span = span_of(DebugExecutor(), echo, "x" * 10**7, **ALL)
        assert len(span.attributes["apscheduler.job.arguments"]) == 1_024
        assert len(span.attributes["apscheduler.result"]) == 1_024

    def test_end_of_a_long_stack_trace_is_kept(self) -> None:
        """Of a long stack trace, the end is kept, which has the cause."""

        def deep(depth: int) -> None:
            if not depth:
                raise ZeroDivisionError
            # Each frame under a name of its own, or Python would write them as one.
            exec(f"def f{depth}(): deep({depth} - 1)\nf{depth}()", {"deep": deep})

        span = span_of(DebugExecutor(), deep, 200, **ALL)
        stack = stack_of(span)
        assert len(stack) == 16_384
        assert stack.endswith("\nZeroDivisionError\n")

    def test_options_other_than_booleans_are_refused(self) -> None:
        """Values other than True and False are rejected."""
        with pytest.raises(ArgumentTypeError, match="capture_result must be True or False"):
            instrument(BackgroundScheduler(), capture_result="yes")  # type: ignore[arg-type]

    def test_value_that_changes_during_capture_is_left_out(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A value that cannot be captured is left out and counted; the run has its span."""
        from apscheduler_telemetry.adapters.apscheduler3 import runs

        def changed(*_: object) -> str:
            raise RuntimeError("dictionary changed size during iteration")

        monkeypatch.setattr(runs, "safe_repr", changed)
        monkeypatch.setattr(runs, "safe_repr_call", changed)
        with scheduler(DebugExecutor(), **ALL) as (made, exporter):
            made.add_job(echo, args=[1], id="job", misfire_grace_time=None)
            wait_until(exporter.get_finished_spans)
            handle = get_handle(made)
            assert handle is not None
            assert errors_of(handle).counts()["spans"] == 2
        span: Any = exporter.get_finished_spans()[0]
        assert span.attributes["apscheduler.outcome"] == "success"
