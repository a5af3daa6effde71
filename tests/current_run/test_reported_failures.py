"""Runs that `current_run().fail()` lets count as errors, without an exception."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from apscheduler.events import EVENT_JOB_EXECUTED
from apscheduler.executors.debug import DebugExecutor

pytest.importorskip("opentelemetry.sdk")

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from apscheduler_telemetry import current_run
from apscheduler_telemetry.core.model import MAX_MESSAGE_LENGTH
from tests.helpers import jobs
from tests.helpers.metrics import sample
from tests.helpers.rigs import HandRig, hand_driven_rig
from tests.helpers.schedulers import forkserver_pool


class Traced:
    """The spans of jobs that run in the thread of the test."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))

    def run(self, func: Any, executor: Any = None, **options: Any) -> HandRig:
        """Run a job once, and return its rig, which is closed."""
        options["tracer_provider"] = self.provider
        with hand_driven_rig({"default": executor or DebugExecutor()}, telemetry=options) as rig:
            rig.checks_events = False  # an executed event is an error here
            rig.add(func)
            rig.after(1)
            rig.settle()
            self.outcomes = rig.outcomes()
        return rig

    @property
    def span(self) -> Any:
        (span,) = self.exporter.get_finished_spans()
        return span


@pytest.fixture
def traced() -> Traced:
    """Return an SDK of the test's own."""
    return Traced()


@pytest.fixture
def rig() -> Iterator[HandRig]:
    """Start a scheduler that runs its jobs in the thread of the test."""
    with hand_driven_rig({"default": DebugExecutor()}) as rig:
        rig.checks_events = False  # an executed event is an error here
        yield rig


def fail_twice() -> str:
    """Report two failures, go on and return."""
    current_run().fail("the source was empty")
    current_run().fail("and so is the target")
    return "done"


def record_and_raise() -> None:
    """Report a failure, and raise another."""
    current_run().fail("it begins")
    jobs.fail("it ends")


class TestMetrics:
    """The counts of a failure."""

    def test_run_counts_as_an_error(self, rig: HandRig) -> None:
        """It counts as an error that has no type of exception, and as the last failure."""
        rig.add(fail_twice)
        rig.after(1)
        assert rig.outcomes() == {"error": 1}
        assert rig.job().consecutive_failures == 1
        assert rig.job().last_success_at is None
        counted = sample(
            rig.telemetry,
            "apscheduler_job_exceptions_total",
            job_id="job",
            exception="__fail__",
        )
        assert counted == 1

    def test_apscheduler_sees_a_success(self, rig: HandRig) -> None:
        """Listeners get the event of a success, with what the job returned."""
        rig.add(fail_twice)
        rig.after(1)
        assert sorted(rig.codes()) == ["executed", "submitted"]
        (event,) = [event for event in rig.events if event.code == EVENT_JOB_EXECUTED]
        assert event.retval == "done"

    def test_exception_counts_instead(self, rig: HandRig) -> None:
        """If the callable raises as well, the type of its exception counts."""
        rig.add(record_and_raise)
        rig.after(1)
        assert rig.job().exceptions == {"ValueError": 1}

    def test_next_run_is_not_affected(self, rig: HandRig) -> None:
        """Only the run that has reported the failure counts as one."""
        remaining = iter([fail_twice, jobs.nothing])

        def call_next() -> None:
            next(remaining)()

        rig.add(call_next, "interval", seconds=10)
        rig.after(10)
        rig.after(10)
        assert rig.outcomes() == {"error": 1, "success": 1}
        assert rig.job().consecutive_failures == 0


class TestSpans:
    """The span of a failure."""

    def test_status_has_the_first_reason(self, traced: Traced) -> None:
        """The status is ERROR with the first reason, and there is no exception event."""
        traced.run(fail_twice)
        assert traced.outcomes == {"error": 1}
        span = traced.span
        assert span.status.status_code is StatusCode.ERROR
        assert span.status.description == "the source was empty"
        assert span.attributes["apscheduler.outcome"] == "error"
        assert span.attributes["error.type"] == "__fail__"
        assert span.events == ()

    @pytest.mark.parametrize(
        ("options", "description"),
        [
            ({"capture_message": False}, None),
            ({"redact": lambda text: text.replace("source", "***")}, "the *** was empty"),
        ],
        ids=["capture_message", "redact"],
    )
    def test_options_of_messages_apply(
        self, traced: Traced, options: dict[str, Any], description: str | None
    ) -> None:
        """A reason is kept in the process or redacted like the message of an exception."""
        traced.run(fail_twice, **options)
        assert traced.span.status.description == description

    def test_long_reason_is_cut(self, traced: Traced) -> None:
        """A reason is as long as the message of an exception may be."""
        traced.run(lambda: current_run().fail("x" * 1_000_000))
        assert traced.span.status.description == "x" * MAX_MESSAGE_LENGTH

    def test_quantities_are_attributes(self, traced: Traced) -> None:
        """Each quantity of a run is a float attribute of its span, also if the run failed."""

        def work() -> None:
            current_run().record(rows=17, megabytes=1.5)
            current_run().fail("too few")

        traced.run(work)
        attributes = traced.span.attributes
        assert attributes["apscheduler.recorded.rows"] == 17.0
        assert type(attributes["apscheduler.recorded.rows"]) is float
        assert attributes["apscheduler.recorded.megabytes"] == 1.5

    def test_run_that_records_nothing_has_no_attribute(self, traced: Traced) -> None:
        """A run that records nothing has no attribute for that."""
        traced.run(jobs.nothing)
        assert not [name for name in traced.span.attributes if "recorded" in name]

    @pytest.mark.slow
    def test_failure_of_a_child_comes_back(self, traced: Traced) -> None:
        """A failure that a child process reports is that of the run."""
        traced.run(fail_twice, forkserver_pool())
        assert traced.outcomes == {"error": 1}
        assert traced.span.status.description == "the source was empty"
