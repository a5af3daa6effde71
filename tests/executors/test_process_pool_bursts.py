"""Process pools with tracing: bursts of runs, and children without OpenTelemetry."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk.trace", reason="it comes with the extra 'otlp'")

from apscheduler.events import EVENT_JOB_EXECUTED
from apscheduler.executors.pool import ProcessPoolExecutor
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from apscheduler_telemetry.adapters.apscheduler3.tracked_jobs import TrackedJob
from tests.helpers.jobs import hold, nothing
from tests.helpers.metrics import errors_of, sample
from tests.helpers.rigs import HandRig, hand_driven_rig
from tests.helpers.schedulers import forkserver_pool
from tests.helpers.waiting import wait_until


def current_span_id() -> int:
    """Return the id of the span that spans of the job would have as their parent."""
    return trace.get_current_span().get_span_context().span_id


def hide_opentelemetry() -> None:
    """Let imports of OpenTelemetry fail in this process, as where it is not installed."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "opentelemetry"]:
        del sys.modules[name]
    sys.modules["opentelemetry"] = None  # type: ignore[assignment]  # which the import system knows


@contextmanager
def traced(executor: Any) -> Iterator[tuple[HandRig, Any]]:
    """Start a scheduler with this executor whose runs are traced."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with hand_driven_rig({"default": executor}, telemetry={"tracer_provider": provider}) as rig:
        yield rig, exporter


@pytest.mark.slow
class TestResultDuringSubmission:
    """The result of a run arrives, in a thread of the pool, while another job is submitted."""

    def test_it_is_recorded_without_an_error(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The submission that is being made has no runs yet, and is not looked at."""
        set_last_submitted_due = TrackedJob.set_last_submitted_due
        with hand_driven_rig({"default": forkserver_pool()}) as rig:
            rig.add(hold, args=[str(tmp_path)], id="first")
            rig.scheduler.turn()

            def receive_result(tracked: TrackedJob, due: datetime) -> None:
                (tmp_path / "gate.out").touch()
                wait_until(lambda: rig.outcomes("first") == {"success": 1}, "the first run")
                set_last_submitted_due(tracked, due)

            monkeypatch.setattr(TrackedJob, "set_last_submitted_due", receive_result)
            rig.add(nothing, id="second")
            rig.scheduler.turn()
            rig.settle()
            assert rig.outcomes("second") == {"success": 1}
            assert not any(errors_of(rig.telemetry).counts().values())


@pytest.mark.slow
class TestTracedBurst:
    """Several runs of a job that are submitted at once, because it does not coalesce."""

    def test_each_run_has_its_own_span_as_the_parent_in_the_child(self) -> None:
        """Spans that a job makes in the child process are children of the span of its run."""
        with traced(forkserver_pool()) as (rig, exporter):
            rig.add(current_span_id, "interval", seconds=10, coalesce=False, max_instances=2)
            rig.after(20)
            rig.settle()
            in_child = {
                event.scheduled_run_time.isoformat(): event.retval
                for event in rig.events
                if event.code == EVENT_JOB_EXECUTED
            }
            spans = wait_until(lambda: len(exporter.get_finished_spans()) == 2) and (
                exporter.get_finished_spans()
            )
            of_runs = {
                span.attributes["apscheduler.scheduled_time"]: span.context.span_id
                for span in spans
            }
            assert in_child == of_runs


@pytest.mark.slow
class TestChildWithoutTracing:
    """A child process that cannot continue the trace of its parent."""

    def test_run_succeeds_and_a_telemetry_error_of_spans_is_counted(self) -> None:
        """The run succeeds, and the parent counts the child's error."""
        spawn = multiprocessing.get_context("spawn")
        options = {"mp_context": spawn, "initializer": hide_opentelemetry}
        with traced(ProcessPoolExecutor(1, pool_kwargs=options)) as (rig, _):
            rig.failing.add("spans")
            rig.add(nothing, "interval", seconds=10)
            rig.after(10)
            rig.settle()
            assert rig.outcomes() == {"success": 1}
            errors = sample(rig.telemetry, "apscheduler_telemetry_errors_total", component="spans")
            assert errors == 1
