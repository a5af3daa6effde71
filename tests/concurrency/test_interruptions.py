"""Scrapes and passes in the main thread that a signal, Ctrl-C or a lack of memory interrupts."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from apscheduler.executors.base import BaseExecutor, run_job
from apscheduler.executors.debug import DebugExecutor
from apscheduler.executors.pool import ThreadPoolExecutor
from prometheus_client import generate_latest

import apscheduler_telemetry
from tests.helpers import jobs
from tests.helpers.interruptions import interrupt
from tests.helpers.metrics import check_counts, errors_of, recorder_of, registry_of
from tests.helpers.rigs import HandRig, hand_driven_rig
from tests.helpers.waiting import run_in_thread

OUR_FILES = tuple(map(str, Path(apscheduler_telemetry.__file__).parent.rglob("*.py")))
INTERRUPTIONS = [TimeoutError(), KeyboardInterrupt(), MemoryError()]


def executed_line(number: int, read: Callable[[], Any], raised: BaseException) -> bool:
    """
    Raise an exception at the n-th line of the package that `read` executes.

    A signal raises it, but for `MemoryError`, which goes no further than to the telemetry.

    Returns:
        Whether there was such a line.
    """

    def fail(*_: Any) -> None:
        raise raised.with_traceback(None)

    act = fail if isinstance(raised, MemoryError) else partial(signal.raise_signal, signal.SIGALRM)
    before = signal.signal(signal.SIGALRM, fail)
    try:
        was_there = interrupt(read, OUR_FILES, act, number)
    except type(raised):
        return True
    else:
        assert not (was_there and isinstance(raised, TimeoutError)), "the exception was swallowed"
        return was_there
    finally:
        signal.signal(signal.SIGALRM, before)


class TestScrape:
    """An exception at any line of the package during a scrape, with runs in every state."""

    @pytest.mark.slow
    @pytest.mark.parametrize("raised", INTERRUPTIONS, ids=repr)
    def test_scrape_after_an_interrupted_scrape_is_right(self, raised: BaseException) -> None:
        """No run is lost or counted twice, and another thread can scrape."""
        started, may_end = threading.Event(), threading.Event()

        def hold() -> None:
            started.set()
            may_end.wait()

        with hand_driven_rig({"default": DebugExecutor(), "threads": ThreadPoolExecutor(2)}) as rig:
            rig.add(jobs.nothing, "interval", seconds=10, id="good")
            rig.add(jobs.fail, "interval", seconds=10, id="bad")
            rig.add(hold, id="running", executor="threads")
            registry = registry_of(rig.telemetry)
            passes = line = 0
            while True:
                rig.after(10)
                passes += 1
                assert started.wait(jobs.WAIT_TIMEOUT)
                if not executed_line(line, lambda: generate_latest(registry), raised):
                    break
                run_in_thread(lambda: generate_latest(registry))
                assert counts(rig) == {
                    "good": ({"success": passes}, 0),
                    "bad": ({"error": passes}, 0),
                    "running": ({}, 1),
                }
                line += 1 if line < 100 else 11
            assert line > 300
            may_end.set()
            rig.settle()
            assert rig.outcomes("running") == {"success": 1}
            rig.failing = {"collector"} if isinstance(raised, MemoryError) else set()


class TestPass:
    """An exception at any line during a pass that runs a job in the main thread."""

    @pytest.mark.parametrize("due_count", [1, pytest.param(3, marks=pytest.mark.slow)])
    @pytest.mark.parametrize("func", [jobs.nothing, jobs.fail])
    def test_each_due_run_ends_once_in_an_interrupted_pass(
        self, func: Callable[[], None], due_count: int
    ) -> None:
        """Unless the next pass submits it; none is in flight, and none counts as cancelled."""
        line, lines_without_outcome = 0, []
        while True:
            with hand_driven_rig({"default": DebugExecutor()}) as rig:
                rig.checks_events = False  # Ctrl-C keeps APScheduler from it
                rig.add(func, "interval", seconds=10, coalesce=False, misfire_grace_time=None)
                due = rig.scheduler.get_job("job").next_run_time
                rig.clock.advance(10 * due_count)
                was_there = executed_line(line, rig.scheduler.turn, KeyboardInterrupt())
                job = rig.job()
                assert (job.running, job.queued, job.cancelled_run_due_at) == (0, 0, None), line
                is_over = rig.scheduler.get_job("job").next_run_time != due
                counted = sum(job.outcomes.values())
                if is_over and not counted:
                    lines_without_outcome.append(line)
                else:
                    assert counted == due_count * is_over, line
                rig.scheduler._executors["default"]._instances.clear()
            if not was_there:
                break
            line += 1
        assert line > 100
        # The first ones of the method that takes a submission, before it can catch anything.
        assert len(lines_without_outcome) <= 4


CHANGES: list[Callable[[Any], object]] = [
    lambda scheduler: scheduler.add_job(jobs.nothing, "interval", hours=1, id="added"),
    lambda scheduler: scheduler.add_job(jobs.nothing, id="job", replace_existing=True),
    lambda scheduler: scheduler.reschedule_job("job", trigger="interval", hours=2),
    lambda scheduler: scheduler.remove_job("job"),
    lambda scheduler: scheduler.remove_all_jobs(),
]


@pytest.mark.slow
class TestJobChanges:
    """The time limit of an application, by a signal, at any line while it changes its jobs."""

    @pytest.mark.parametrize(
        "change", CHANGES, ids=["add", "replace", "reschedule", "remove", "remove all"]
    )
    def test_time_limit_reaches_the_application(self, change: Callable[[Any], object]) -> None:
        """It is no error of telemetry, and the jobs that there are then are counted."""
        line, was_there = 0, True
        while was_there:
            with hand_driven_rig({"default": DebugExecutor()}) as rig:
                rig.add(jobs.nothing, "interval", hours=1)
                was_there = executed_line(line, partial(change, rig.scheduler), TimeoutError())
                rig.after(3600)
            line += 1
        assert line > 50


class Delegating(BaseExecutor):
    """An executor that reports results later, as asyncio's does from a callback of its loop."""

    submitted: tuple[Any, Any]

    def _do_submit_job(self, job: Any, run_times: Any) -> None:
        self.submitted = job, run_times

    def run(self, failure: Exception | None) -> Callable[[], None]:
        """Run what was submitted, and return what reports its result."""
        job, run_times = self.submitted
        if failure is not None:
            return lambda: self._run_job_error(job.id, failure)
        events = run_job(job, "default", run_times, "apscheduler")
        return lambda: self._run_job_success(job.id, events)


class TestResult:
    """An exception at any line while the main thread reports the result of a run."""

    @pytest.mark.parametrize("interruption", INTERRUPTIONS, ids=repr)
    @pytest.mark.parametrize("failure", [None, ValueError()], ids=repr)
    def test_the_run_ends_once(
        self, failure: Exception | None, interruption: BaseException
    ) -> None:
        """The run has one outcome, and APScheduler gets its result."""
        # At the first line, `try`, the package has not done anything yet.
        line, was_there, unheard = 1, True, 0
        while was_there:
            executor = Delegating()
            with hand_driven_rig({"default": executor}) as rig:
                rig.checks_events = False  # an exception in the middle keeps listeners from it
                rig.add(jobs.nothing, "interval", seconds=10)
                rig.after(10)
                was_there = executed_line(line, executor.run(failure), interruption)
                job = rig.job()
                assert (job.running, job.queued) == (0, 0), line
                assert sum(job.outcomes.values()) == 1
                unheard += executor._instances.pop("job", 0)
                rig.failing = {k for k, n in errors_of(rig.telemetry).counts().items() if n}
            line += 1
        assert line > 20
        assert unheard <= 2  # at the lines that pass the result on


def counts(rig: HandRig) -> dict[str, tuple[dict[str, int], int]]:
    """Return the outcomes of each job, and the number of its running runs."""
    check_counts(rig.telemetry)
    return {
        job.label: (
            {outcome.value: n for outcome, n in job.stats.outcomes.items() if n},
            job.in_flight_summary.running,
        )
        for job in recorder_of(rig.telemetry).job_snapshots()
    }
