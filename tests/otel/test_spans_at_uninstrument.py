"""Spans of the runs that are in flight when their scheduler is uninstrumented."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from datetime import timezone
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk.trace", reason="it comes with the extra 'otlp'")

from apscheduler.executors.asyncio import AsyncIOExecutor
from apscheduler.executors.debug import DebugExecutor
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from opentelemetry import trace
from opentelemetry.metrics import MeterProvider, NoOpMeterProvider
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry

from apscheduler_telemetry import Telemetry, instrument
from tests.helpers import jobs
from tests.helpers.rigs import Gate
from tests.helpers.schedulers import HandDriven, forkserver_pool
from tests.helpers.waiting import wait_until, wait_until_async


class Spans:
    """An SDK of the test's own: what was started, and what has ended."""

    def __init__(self) -> None:
        self.provider = TracerProvider(shutdown_on_exit=False)
        self._exporter = InMemorySpanExporter()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.started: list[Any] = []
        self.provider.add_span_processor(_Started(self.started))

    @property
    def ended(self) -> list[tuple[Any, Any]]:
        """The id of the job, and the outcome, of all that have ended."""
        attributes = [span.attributes or {} for span in self._exporter.get_finished_spans()]
        return [
            (each["apscheduler.job.id"], each.get("apscheduler.outcome")) for each in attributes
        ]

    def instrument(self, scheduler: Any, **options: Any) -> Telemetry:
        return instrument(
            scheduler, registry=CollectorRegistry(), tracer_provider=self.provider, **options
        )


class _Started(SimpleSpanProcessor):
    def __init__(self, started: list[Any]) -> None:
        super().__init__(InMemorySpanExporter())
        self._started = started

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        self._started.append(span.attributes["apscheduler.job.id"])


@pytest.fixture
def spans() -> Spans:
    return Spans()


@pytest.fixture
def make_scheduler() -> Iterator[Callable[..., Any]]:
    """Make started schedulers that are shut down after the test."""
    made = []

    def make(executor: Any) -> Any:
        scheduler = HandDriven(executors={"default": executor}, timezone=timezone.utc)
        scheduler.start()
        made.append(scheduler)
        return scheduler

    yield make
    for scheduler in made:
        scheduler.shutdown()


def add(scheduler: Any, func: Callable[..., Any], job_id: str, *args: Any, **options: Any) -> None:
    """Add a job and let its run be submitted."""
    scheduler.add_job(func, id=job_id, args=args, misfire_grace_time=None, **options)
    scheduler.turn()


def methods_of_ours(scheduler: Any) -> list[str]:
    """Return which methods of the executor come from telemetry."""
    return [
        name
        for name, value in vars(scheduler._executors["default"]).items()
        if str(getattr(value, "__module__", "")).startswith("apscheduler_telemetry")
    ]


def has_no_instances(scheduler: Any) -> bool:
    return not any(list(scheduler._executors["default"]._instances.values()))


class TestThreads:
    """Runs in a thread pool."""

    @pytest.mark.parametrize("outcome", ["success", "error"])
    def test_span_of_a_run_in_flight_ends_with_its_outcome(
        self, spans: Spans, make_scheduler: Any, outcome: str
    ) -> None:
        """The span ends with its run; afterwards the executor is restored."""
        gate = Gate()
        current = []

        def job() -> None:
            gate.hold()
            current.append(trace.get_current_span())
            if outcome == "error":
                raise ValueError

        scheduler = make_scheduler(ThreadPoolExecutor(1))
        telemetry = spans.instrument(scheduler)
        add(scheduler, job, "job")
        gate.wait_for_run()
        telemetry.uninstrument()
        assert spans.ended == []
        gate.open()
        wait_until(lambda: has_no_instances(scheduler))

        assert spans.ended == [("job", outcome)]
        assert current[0].get_span_context().is_valid
        assert methods_of_ours(scheduler) == []

    def test_queued_run_gets_no_span(self, spans: Spans, make_scheduler: Any) -> None:
        """A run that was submitted before and starts later has no span, and succeeds."""
        gate, current = Gate(), []
        scheduler = make_scheduler(ThreadPoolExecutor(1))
        telemetry = spans.instrument(scheduler)
        add(scheduler, gate.hold, "running")
        gate.wait_for_run()
        add(scheduler, lambda: current.append(trace.get_current_span()), "queued")
        telemetry.uninstrument()
        gate.open()
        wait_until(lambda: current and has_no_instances(scheduler))

        assert current == [trace.INVALID_SPAN]
        assert spans.started == ["running"]
        assert spans.ended == [("running", "success")]

    def test_queued_run_that_fails_gets_no_span(self, spans: Spans, make_scheduler: Any) -> None:
        """A later run that fails has no span either, also while a span is open."""
        gates = [Gate(), Gate()]
        scheduler = make_scheduler(ThreadPoolExecutor(2))
        telemetry = spans.instrument(scheduler)
        for number, gate in enumerate(gates):
            add(scheduler, gate.hold, f"running {number}")
            gate.wait_for_run()
        add(scheduler, jobs.fail, "queued")
        telemetry.uninstrument()
        add(scheduler, jobs.nothing, "later")
        gates[0].open()
        wait_until(lambda: sum(scheduler._executors["default"]._instances.values()) == 1)

        assert spans.ended == [("running 0", "success")]
        gates[1].open()
        wait_until(lambda: has_no_instances(scheduler))
        assert spans.started == ["running 0", "running 1"]
        assert methods_of_ours(scheduler) == []

    def test_later_run_of_the_same_job_does_not_end_the_span(
        self, spans: Spans, make_scheduler: Any
    ) -> None:
        """A later run of the same job does not end the span of the run in flight."""
        gate, is_first = Gate(), threading.Semaphore(1)

        def job() -> None:
            if is_first.acquire(blocking=False):
                gate.hold()
                raise ValueError

        scheduler = make_scheduler(ThreadPoolExecutor(2))
        telemetry = spans.instrument(scheduler)
        add(scheduler, job, "job", max_instances=2)
        gate.wait_for_run()
        telemetry.uninstrument()
        add(scheduler, job, "job", max_instances=2)
        wait_until(lambda: sum(scheduler._executors["default"]._instances.values()) == 1)

        assert spans.ended == []
        gate.open()
        wait_until(lambda: has_no_instances(scheduler))
        assert spans.ended == [("job", "error")]

    def test_scheduler_that_is_instrumented_again_is_as_before_in_the_end(
        self, spans: Spans, make_scheduler: Any
    ) -> None:
        """The first handle ends its span, the second traces new runs; then all is restored."""
        gate = Gate()
        scheduler = make_scheduler(ThreadPoolExecutor(2))
        first = spans.instrument(scheduler)
        add(scheduler, gate.hold, "first")
        gate.wait_for_run()
        first.uninstrument()
        second = spans.instrument(scheduler)
        add(scheduler, jobs.nothing, "second")
        wait_until(lambda: spans.ended == [("second", "success")])
        gate.open()
        wait_until(lambda: has_no_instances(scheduler))
        assert spans.ended == [("second", "success"), ("first", "success")]
        second.uninstrument()

        assert methods_of_ours(scheduler) == []

    def test_histograms_of_a_meter_provider_get_nothing_more(
        self, spans: Spans, make_scheduler: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The duration of a run with an open span is not recorded any more."""
        recorded: list[float] = []
        provider = _meter_provider(recorded)
        gates = [Gate(), Gate()]
        scheduler = make_scheduler(ThreadPoolExecutor(1))
        telemetry = spans.instrument(scheduler, meter_provider=provider)
        add(scheduler, gates[0].hold, "running")
        gates[0].wait_for_run()
        add(scheduler, gates[1].hold, "queued")
        assert len(recorded) == 1, "the start delay of the first"
        telemetry.uninstrument()
        gates[0].open()
        gates[1].open()
        wait_until(lambda: has_no_instances(scheduler))

        assert spans.ended == [("running", "success")]
        assert len(recorded) == 1


def _meter_provider(recorded: list[float]) -> MeterProvider:
    """Return a provider that appends what histograms record to a list."""
    provider = NoOpMeterProvider()
    meter = provider.get_meter("test")
    create_histogram = meter.create_histogram

    def create(*args: Any, **kwargs: Any) -> Any:
        histogram = create_histogram(*args, **kwargs)
        histogram.record = lambda amount, *_, **__: recorded.append(amount)  # type: ignore[method-assign]
        return histogram

    meter.create_histogram = create  # type: ignore[method-assign]
    provider.get_meter = lambda *_, **__: meter  # type: ignore[method-assign]
    return provider


class TestOtherExecutors:
    """Runs in other executors."""

    def test_inline_job_that_uninstruments_its_scheduler_has_its_span_ended(
        self, spans: Spans, make_scheduler: Any
    ) -> None:
        """If a job in the debug executor calls `uninstrument`, its span ends with it."""
        scheduler = make_scheduler(DebugExecutor())
        telemetry = spans.instrument(scheduler)
        add(scheduler, telemetry.uninstrument, "job")

        assert spans.ended == [("job", "success")]
        assert methods_of_ours(scheduler) == []
        assert trace.get_current_span() is trace.INVALID_SPAN

    def test_coroutine_has_its_span_ended(self, spans: Spans) -> None:
        """The span of a waiting coroutine stays current until the coroutine ends."""
        current = []

        async def main() -> None:
            has_started, go_on = asyncio.Event(), asyncio.Event()

            async def wait() -> None:
                has_started.set()
                await go_on.wait()
                current.append(trace.get_current_span())

            scheduler = AsyncIOScheduler(
                executors={"default": AsyncIOExecutor()}, timezone=timezone.utc
            )
            telemetry = spans.instrument(scheduler)
            scheduler.start()
            scheduler.add_job(wait, id="job", misfire_grace_time=None)
            await has_started.wait()
            telemetry.uninstrument()
            go_on.set()
            await wait_until_async(lambda: current and has_no_instances(scheduler))
            assert methods_of_ours(scheduler) == []
            scheduler.shutdown()
            await wait_until_async(lambda: not scheduler.running)

        asyncio.run(main())

        assert spans.ended == [("job", "success")]
        assert current[0].get_span_context().is_valid

    @pytest.mark.slow
    @pytest.mark.parametrize("is_killed", [False, True])
    def test_run_in_a_process_pool_has_its_span_ended(
        self, spans: Spans, make_scheduler: Any, tmp_path: Path, is_killed: bool
    ) -> None:
        """The span ends with the result, also if the child dies."""
        scheduler = make_scheduler(forkserver_pool())
        telemetry = spans.instrument(scheduler)
        if is_killed:
            add(scheduler, jobs.die_when_let_go, "job", str(tmp_path), "gate")
        else:
            add(scheduler, jobs.hold, "job", str(tmp_path))
        wait_until((tmp_path / "gate.in").exists)
        telemetry.uninstrument()
        (tmp_path / "gate.out").touch()
        wait_until(lambda: has_no_instances(scheduler))

        assert spans.ended == [("job", "lost" if is_killed else "success")]
        assert methods_of_ours(scheduler) == []


class TestStopInTheMiddle:
    """A span that is being started in one thread while another uninstruments."""

    def test_span_of_a_job_stopped_in_the_middle_is_ended_at_once(
        self, spans: Spans, make_scheduler: Any
    ) -> None:
        """If the end of the run cannot be seen, its span ends at once; the job runs on."""
        current = []
        scheduler = make_scheduler(DebugExecutor())
        telemetry = spans.instrument(scheduler)

        class Uninstrument(SimpleSpanProcessor):
            def on_start(self, span: Any, parent_context: Any = None) -> None:
                telemetry.uninstrument()

        spans.provider.add_span_processor(Uninstrument(InMemorySpanExporter()))
        add(scheduler, lambda: current.append(trace.get_current_span()), "job")

        assert spans.ended == [("job", None)]
        assert current == [trace.INVALID_SPAN]
        assert methods_of_ours(scheduler) == []
