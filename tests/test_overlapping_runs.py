"""Runs that overlap: those of one job, and those that began before telemetry was there."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor as ThreadPool
from datetime import datetime, timezone
from typing import Any

import pytest
from apscheduler.events import EVENT_JOB_EXECUTED, JobExecutionEvent
from apscheduler.executors.base import BaseExecutor
from apscheduler.executors.pool import ThreadPoolExecutor

from support import HandDriven, HandRig, Rig, at, by_hand, frozen, live, sample, until
from support_jobs import PATIENCE


class Calls:
    """A job whose calls each wait until the test lets them return or fail."""

    def __init__(self, count: int = 2) -> None:
        self.entered = [threading.Event() for _ in range(count)]
        self._released = [threading.Event() for _ in range(count)]
        self._errors: list[Exception | None] = [None] * count
        self._number = iter(range(count))

    def __call__(self) -> None:
        number = next(self._number)
        self.entered[number].set()
        assert self._released[number].wait(PATIENCE), "the test did not release the call"
        if (error := self._errors[number]) is not None:
            raise error

    def wait_for(self, number: int) -> None:
        """Wait until the call with this number runs."""
        assert self.entered[number].wait(PATIENCE), "the call did not begin"

    def end(self, number: int, error: Exception | None = None) -> None:
        """Let the call with this number return, or raise `error`."""
        self._errors[number] = error
        self._released[number].set()


def running(rig: Rig) -> float:
    return sample(rig.telemetry, "apscheduler_job_running", job_id="job")


class TestRunThatIsOvertaken:
    """A run that ends after a later run of the same job."""

    @pytest.mark.parametrize("scraped", [False, True], ids=["not scraped", "scraped meanwhile"])
    def test_last_run_stays_that_of_the_later_run(self, *, scraped: bool) -> None:
        """The gauge of the last run does not move back when the earlier run ends."""
        calls = Calls()
        with by_hand() as rig:
            rig.add(calls, "interval", seconds=10, max_instances=2)
            for number in range(2):
                rig.after(10)
                calls.wait_for(number)
            if scraped:
                assert running(rig) == 2
            for number in (1, 0):
                calls.end(number)
                ended = 2 - number
                until(lambda: rig.codes().count("executed") == ended)  # noqa: B023  # at once
            assert rig.outcomes() == {"success": 2}
            last = sample(rig.telemetry, "apscheduler_job_last_run_timestamp_seconds", job_id="job")
            assert last == at(20).timestamp()


class TestExecutorThatIsAddedAgain:
    """An executor that is removed from the scheduler and added again."""

    def test_run_under_way_counts_as_running_there(self) -> None:
        """A run that it has worked on all the time is in its number of running runs."""
        calls, executor = Calls(1), ThreadPoolExecutor(1)
        with by_hand({"pool": executor}) as rig:
            rig.add(calls, "interval", seconds=10, executor="pool")
            rig.after(10)
            calls.wait_for(0)
            rig.scheduler.remove_executor("pool", shutdown=False)
            rig.scheduler.add_executor(executor, "pool")
            assert _running_in(rig, "pool") == running(rig) == 1
            calls.end(0)
            rig.settle()
            assert _running_in(rig, "pool") == running(rig) == 0


def _running_in(rig: HandRig, alias: str) -> float:
    return sample(rig.telemetry, "apscheduler_executor_running", executor=alias)


class TestRunFromBeforeTelemetry:
    """A run that was under way when its scheduler was instrumented."""

    @pytest.mark.parametrize("logged", [True, False], ids=["the job", "the log of its failure"])
    def test_its_failure_does_not_end_a_later_run(
        self, *, logged: bool, request: pytest.FixtureRequest
    ) -> None:
        """The later run of the same job goes on, and its own outcome is counted."""
        calls = Calls()
        failures: list[logging.LogRecord] = []

        def keep_record(record: logging.LogRecord) -> bool:
            failures.append(record)
            if not logged and len(failures) == 1:
                raise OSError("the log cannot be written")
            return True

        logger = logging.getLogger("apscheduler.executors.default")
        logger.addFilter(keep_record)
        request.addfinalizer(lambda: logger.removeFilter(keep_record))
        failures_expected = 1 if logged else 2  # the second by the executor, whose run has failed
        with frozen() as clock:
            scheduler = HandDriven(
                executors={"default": ThreadPoolExecutor(2)}, timezone=timezone.utc
            )
            scheduler.start()
            scheduler.add_job(
                calls, "interval", seconds=10, id="job", max_instances=2, misfire_grace_time=None
            )
            clock.advance(10)
            scheduler.turn()
            calls.wait_for(0)
            with live(scheduler, start=False) as rig:
                rig.is_told = False  # as listeners hear of the run from before
                clock.advance(10)
                scheduler.turn()
                calls.wait_for(1)
                failures.clear()
                calls.end(0, ValueError("from before"))
                until(lambda: len(failures) == failures_expected)
                until(lambda: list(scheduler._executors["default"]._instances.values()) == [1])
                assert rig.outcomes() == {}
                assert running(rig) == 1
                calls.end(1)
                rig.settle()
                assert rig.outcomes() == {"success": 1}


class PlainIdExecutor(BaseExecutor):
    """An executor of an application that calls the job itself and reports the plain job id."""

    def __init__(self) -> None:
        super().__init__()
        self._threads = ThreadPool(2)

    def shutdown(self, wait: bool = True) -> None:
        self._threads.shutdown(wait)

    def _do_submit_job(self, job: Any, run_times: Any) -> None:
        self._threads.submit(self._run, job, run_times[0])

    def _run(self, job: Any, run_time: datetime) -> None:
        job_id = "".join(job.id)
        try:
            result = job.func(*job.args, **job.kwargs)
        except Exception as error:  # noqa: BLE001  # as executors do
            self._run_job_error(job_id, error, error.__traceback__)
            return
        store = job._jobstore_alias
        event = JobExecutionEvent(EVENT_JOB_EXECUTED, job_id, store, run_time, result)
        self._run_job_success(job_id, [event])


class TestExecutorThatReportsThePlainJobId:
    """An executor of an application whose reports do not say which run of a job has ended."""

    def test_failure_of_the_later_run_does_not_end_the_earlier(self) -> None:
        """Of two runs under way, the one whose callable has raised is the one that has failed."""
        calls = Calls()
        with by_hand({"default": PlainIdExecutor()}) as rig:
            rig.is_told = False  # of the failure, for which APScheduler has a log and no event
            rig.add(calls, "interval", seconds=10, max_instances=2)
            for number in range(2):
                rig.after(10)
                calls.wait_for(number)
            calls.end(1, ValueError("the later run"))
            until(lambda: rig.outcomes() == {"error": 1})
            assert running(rig) == 1
            calls.end(0)
            rig.settle()
            assert rig.outcomes() == {"error": 1, "success": 1}


class RepeatingPool(ThreadPool):
    """A thread pool of an application that does everything twice."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        def twice() -> Any:
            fn(*args, **kwargs)
            return fn(*args, **kwargs)

        return super().submit(twice)


class TestPoolThatCallsTheJobTwice:
    """A thread pool of an application that runs what is submitted twice."""

    @pytest.mark.parametrize(("fails", "outcome"), [(False, "success"), (True, "error")])
    def test_one_run_is_counted_and_has_one_span(self, *, fails: bool, outcome: str) -> None:
        """The second call of the callable is followed by nobody, as one run was due."""
        pytest.importorskip("opentelemetry.sdk.trace", reason="it comes with the extra 'otlp'")
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

        exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        executor = ThreadPoolExecutor(1)
        executor._pool = RepeatingPool(1)
        calls: list[None] = []

        def call() -> None:
            calls.append(None)
            if fails:
                raise ValueError

        with by_hand({"default": executor}, telemetry={"tracer_provider": provider}) as rig:
            rig.add(call, "interval", seconds=10)
            for number in (1, 2):
                rig.after(10)
                rig.settle()
                assert len(calls) == 2 * number
                assert rig.outcomes() == {outcome: number}
                assert len(exporter.get_finished_spans()) == number
