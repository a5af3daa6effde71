"""Overlapping runs of one job, and runs that started before `instrument`."""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor as ThreadPool
from datetime import datetime, timezone
from typing import Any

import pytest
from apscheduler.events import EVENT_JOB_EXECUTED, JobExecutionEvent
from apscheduler.executors.base import BaseExecutor, run_job
from apscheduler.executors.pool import ThreadPoolExecutor

from tests.helpers.clocks import at, freeze_time
from tests.helpers.interruptions import interrupt, raise_timeout
from tests.helpers.jobs import WAIT_TIMEOUT
from tests.helpers.metrics import recorder_of, sample
from tests.helpers.rigs import HandRig, Rig, hand_driven_rig, live_rig
from tests.helpers.schedulers import HandDriven
from tests.helpers.waiting import wait_until

JOB = {"job_id": "job"}


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
        assert self._released[number].wait(WAIT_TIMEOUT), "the test did not release the call"
        if (error := self._errors[number]) is not None:
            raise error

    def wait_for(self, number: int) -> None:
        """Wait until the call with this number runs."""
        assert self.entered[number].wait(WAIT_TIMEOUT), "the call did not begin"

    def end(self, number: int, error: Exception | None = None) -> None:
        """Let the call with this number return, or raise `error`."""
        self._errors[number] = error
        self._released[number].set()


@pytest.fixture
def provider_and_spans() -> tuple[Any, Callable[[], Any]]:
    """Return a tracer provider, and what returns its finished spans."""
    pytest.importorskip("opentelemetry.sdk.trace", reason="it comes with the extra 'otlp'")
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider, exporter.get_finished_spans


def running_runs(rig: Rig) -> float:
    return sample(rig.telemetry, "apscheduler_job_running", job_id="job")


class TestRunThatIsOvertaken:
    """A run that ends after a later run of the same job."""

    @pytest.mark.parametrize("scraped", [False, True], ids=["not scraped", "scraped meanwhile"])
    def test_last_run_does_not_move_back_when_an_earlier_run_ends(self, *, scraped: bool) -> None:
        """The time of the last run does not go back when an earlier run ends."""
        calls = Calls()
        with hand_driven_rig() as rig:
            rig.add(calls, "interval", seconds=10, max_instances=2)
            for number in range(2):
                rig.after(10)
                calls.wait_for(number)
            if scraped:
                assert running_runs(rig) == 2
            for number in (1, 0):
                calls.end(number)
                ended = 2 - number
                wait_until(lambda: rig.codes().count("executed") == ended)  # noqa: B023  # at once
            assert rig.outcomes() == {"success": 2}
            last = sample(rig.telemetry, "apscheduler_job_last_run_timestamp_seconds", **JOB)
            assert last == at(20).timestamp()


class TestRunsThatAreDueAtTheSameTime:
    """Two runs of a job whose next run the user has set to the same time twice."""

    @pytest.mark.parametrize("first", [0, 1])
    def test_runs_due_at_the_same_time_each_end_once(self, first: int) -> None:
        """Two runs with the same due time each end once, in either order."""
        calls, due = Calls(), at(1)
        with hand_driven_rig() as rig:
            job = rig.add(calls, "interval", seconds=1000, max_instances=2)
            for number in range(2):
                job.modify(next_run_time=due)
                rig.after(10)
                calls.wait_for(number)
            assert running_runs(rig) == 2
            calls.end(first)
            wait_until(lambda: rig.outcomes() == {"success": 1})
            assert running_runs(rig) == 1
            assert rig.job().oldest_start_at == at(10 * (2 - first)).timestamp()
            calls.end(1 - first)
            rig.settle()
            assert rig.outcomes() == {"success": 2}


class KeptByHand(BaseExecutor):
    """An executor whose submissions end when the test says so, and which may raise then."""

    def __init__(self, error: BaseException | None = None) -> None:
        super().__init__()
        self.submissions: list[tuple[Any, Any]] = []
        self.error = error

    def _do_submit_job(self, job: Any, run_times: Any) -> None:
        self.submissions.append((job, run_times))
        if self.error is not None:
            raise self.error

    def end(self, number: int) -> None:
        """Run and report a submission."""
        job, run_times = self.submissions[number]
        self._run_job_success(job.id, run_job(job, "default", run_times, "apscheduler"))


class TestSubmissionThatIsInterrupted:
    """Ctrl-C while, or right after, an executor is given a job."""

    def test_does_not_end_another_run_that_is_due_at_the_same_time(self) -> None:
        """A rejected run does not end a run in flight with the same due time, at any line."""
        number, was_there = 0, True
        while was_there:
            executor = KeptByHand()
            with hand_driven_rig({"default": executor}) as rig:
                rig.checks_events = False
                job = rig.add(lambda: None, "interval", seconds=10, max_instances=2)
                due = [job.next_run_time]
                executor.submit_job(job, due)

                def submit(executor: Any = executor, job: Any = job, due: Any = due) -> None:
                    executor.submit_job(job, due)

                was_there = interrupt(submit, ("apscheduler3/executors.py",), raise_timeout, number)
                executor.end(0)
                assert rig.outcomes()["success"] == 1, number
                for other in range(1, len(executor.submissions)):
                    executor.end(other)
                executor._instances.clear()
            number += 1

    def test_counts_a_run_once_that_ends_meanwhile(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A run that ends in another thread during a rejection counts once."""
        executor = KeptByHand(KeyboardInterrupt())
        with hand_driven_rig({"default": executor}) as rig:
            rig.checks_events = False
            recorder = recorder_of(rig.telemetry)
            register = recorder.run_submitted
            registered: list[Any] = []

            def run_submitted(run: Any) -> None:
                if registered:
                    executor.end(0)
                    list(recorder.job_snapshots())
                registered.append(run)
                register(run)

            monkeypatch.setattr(recorder, "run_submitted", run_submitted)
            job = rig.add(lambda: None, "interval", seconds=10)
            with pytest.raises(KeyboardInterrupt):
                executor.submit_job(job, [job.next_run_time])
            assert sum(rig.outcomes().values()) == 1
            executor._instances.clear()


class TestErrorReportThatIsInterrupted:
    """Ctrl-C while an executor reports that it got no result."""

    def test_reaches_apscheduler(self) -> None:
        """The exception reaches APScheduler, which otherwise would keep the job as running."""
        executor = KeptByHand()
        with hand_driven_rig({"default": executor}) as rig:
            rig.checks_events = False
            job = rig.add(lambda: None, "interval", seconds=10)
            executor.submit_job(job, [job.next_run_time])
            interrupt(
                lambda: executor._run_job_error("job", OSError()),
                ("apscheduler3/executors.py",),
                raise_timeout,
                3,
            )
            assert not executor._instances
            executor._instances["job"] += 1
            executor.end(0)


class TestExecutorThatIsAddedAgain:
    """An executor that is removed from the scheduler and added again."""

    def test_run_under_way_counts_as_running_there(self) -> None:
        """A run from before counts as running in the new scheduler's executor."""
        calls, executor = Calls(1), ThreadPoolExecutor(1)
        with hand_driven_rig({"pool": executor}) as rig:
            rig.add(calls, "interval", seconds=10, executor="pool")
            rig.after(10)
            calls.wait_for(0)
            rig.scheduler.remove_executor("pool", shutdown=False)
            rig.scheduler.add_executor(executor, "pool")
            assert _running_in(rig, "pool") == running_runs(rig) == 1
            calls.end(0)
            rig.settle()
            assert _running_in(rig, "pool") == running_runs(rig) == 0


def _running_in(rig: HandRig, alias: str) -> float:
    return sample(rig.telemetry, "apscheduler_executor_running", executor=alias)


class TestRunFromBeforeTelemetry:
    """A run that was in flight when its scheduler was instrumented."""

    @pytest.mark.parametrize("logged", [True, False], ids=["the job", "the log of its failure"])
    def test_its_failure_does_not_end_a_later_run(
        self, *, logged: bool, request: pytest.FixtureRequest
    ) -> None:
        """The failure of an earlier run does not end a later one, which has its own outcome."""
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
        with freeze_time() as clock:
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
            with live_rig(scheduler, start=False) as rig:
                rig.checks_events = False  # as listeners hear of the run from before
                clock.advance(10)
                scheduler.turn()
                calls.wait_for(1)
                failures.clear()
                calls.end(0, ValueError("from before"))
                wait_until(lambda: len(failures) == failures_expected)
                wait_until(lambda: list(scheduler._executors["default"]._instances.values()) == [1])
                assert rig.outcomes() == {}
                assert running_runs(rig) == 1
                calls.end(1)
                rig.settle()
                assert rig.outcomes() == {"success": 1}


class TestRunWhoseFailureCannotBeLogged:
    """A run whose failure the executor reports only with the id of its job."""

    def test_failure_that_cannot_be_logged_does_not_end_the_earlier_run(
        self, request: pytest.FixtureRequest
    ) -> None:
        """Of two runs, the later one is lost, and the earlier one stays in flight."""
        calls = Calls()
        records: list[logging.LogRecord] = []

        def refuse_first(record: logging.LogRecord) -> bool:
            records.append(record)
            if len(records) == 1:
                raise OSError("the log cannot be written")
            return True

        logger = logging.getLogger("apscheduler.executors.default")
        request.addfinalizer(lambda: logger.removeFilter(refuse_first))
        with hand_driven_rig() as rig:
            rig.checks_events = (
                False  # of the later run, for which APScheduler has a log and no event
            )
            rig.add(calls, "interval", seconds=10, max_instances=2)
            for number in range(2):
                rig.after(10)
                calls.wait_for(number)
            logger.addFilter(refuse_first)
            calls.end(1, ValueError("the later run"))
            wait_until(lambda: len(records) == 2)  # the second is the executor's
            wait_until(lambda: list(rig.scheduler._executors["default"]._instances.values()) == [1])
            gc.collect()  # of the exception, which refers to itself
            assert rig.outcomes() == {"lost": 1}
            assert running_runs(rig) == 1
            calls.end(0)
            rig.settle()
            assert rig.outcomes() == {"lost": 1, "success": 1}


class PlainIdExecutor(BaseExecutor):
    """
    An executor of an application that calls the job itself and reports the plain job id.

    Attributes:
        has_traceback: whether the exception that it reports has a stack trace.
    """

    def __init__(self, *, has_traceback: bool = True) -> None:
        super().__init__()
        self.has_traceback = has_traceback
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
            if not self.has_traceback:
                error = error.with_traceback(None)
            self._run_job_error(job_id, error, error.__traceback__)
            return
        store = job._jobstore_alias
        event = JobExecutionEvent(EVENT_JOB_EXECUTED, job_id, store, run_time, result)
        self._run_job_success(job_id, [event])


class TestExecutorThatReportsThePlainJobId:
    """A user's executor that reports results without saying which run of the job ended."""

    @pytest.mark.parametrize("failing", [0, 1], ids=["the earlier", "the later"])
    @pytest.mark.parametrize("has_traceback", [True, False])
    def test_failure_of_one_run_ends_one_run(self, *, has_traceback: bool, failing: int) -> None:
        """Of two runs in flight one is lost; the other succeeds."""
        calls = Calls()
        executor = PlainIdExecutor(has_traceback=has_traceback)
        with hand_driven_rig({"default": executor}) as rig:
            rig.checks_events = (
                False  # of the failure, for which APScheduler has a log and no event
            )
            rig.add(calls, "interval", seconds=10, max_instances=2)
            for number in range(2):
                rig.after(10)
                calls.wait_for(number)
            calls.end(failing, ValueError("one of the runs"))
            wait_until(lambda: rig.outcomes() == {"lost": 1})
            assert rig.job().due_count == 2
            calls.end(1 - failing)
            rig.settle()
            assert rig.outcomes() == {"lost": 1, "success": 1}

    @pytest.mark.parametrize("failing", [0, 1], ids=["the earlier", "the later"])
    def test_stack_trace_tells_which_run_has_failed(
        self, failing: int, provider_and_spans: tuple[Any, Callable[[], Any]]
    ) -> None:
        """The span of the run whose job raised is the one that is lost."""
        provider, spans = provider_and_spans
        calls = Calls()
        telemetry = {"tracer_provider": provider}
        with hand_driven_rig({"default": PlainIdExecutor()}, telemetry=telemetry) as rig:
            rig.checks_events = False
            rig.add(calls, "interval", seconds=10, max_instances=2)
            for number in range(2):
                rig.after(10)
                calls.wait_for(number)
            calls.end(failing, ValueError("one of the runs"))
            wait_until(lambda: rig.outcomes() == {"lost": 1})
            calls.end(1 - failing)
            rig.settle()
            outcomes = ["success", "success"]
            outcomes[failing] = "lost"
            assert outcomes == [
                span.attributes["apscheduler.outcome"]
                for span in sorted(
                    spans(), key=lambda span: span.attributes["apscheduler.scheduled_time"]
                )
            ]


class RepeatingPool(ThreadPool):
    """A thread pool of an application that does everything twice."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        def twice() -> Any:
            fn(*args, **kwargs)
            return fn(*args, **kwargs)

        return super().submit(twice)


class TestPoolThatCallsTheJobTwice:
    """A user's thread pool that calls what is submitted twice."""

    @pytest.mark.parametrize(("fails", "outcome"), [(False, "success"), (True, "error")])
    def test_one_run_is_counted_and_has_one_span(
        self, *, fails: bool, outcome: str, provider_and_spans: tuple[Any, Callable[[], Any]]
    ) -> None:
        """A second call of the job within one due run is not counted."""
        provider, spans = provider_and_spans
        from opentelemetry.trace import get_current_span as current_span

        executor = ThreadPoolExecutor(1)
        executor._pool = RepeatingPool(1)
        calls: list[int] = []

        def call() -> None:
            calls.append(current_span().get_span_context().span_id)
            if fails:
                raise ValueError

        with hand_driven_rig({"default": executor}, telemetry={"tracer_provider": provider}) as rig:
            rig.add(call, "interval", seconds=10)
            for number in (1, 2):
                rig.after(10)
                rig.settle()
                assert len(calls) == 2 * number
                assert rig.outcomes() == {outcome: number}
                assert len(spans()) == number
                assert calls[-2:] == [spans()[-1].context.span_id, 0]
