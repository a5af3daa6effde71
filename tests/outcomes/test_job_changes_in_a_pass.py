"""Jobs that are changed by themselves or by a listener during a pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from apscheduler.events import EVENT_JOB_SUBMITTED
from apscheduler.executors.base import BaseExecutor, run_job
from apscheduler.executors.debug import DebugExecutor

from tests.helpers.clocks import START, at
from tests.helpers.jobs import nothing
from tests.helpers.metrics import sample
from tests.helpers.rigs import HandRig, hand_driven_rig

HOUR = 3600.0


class InlineExecutor(BaseExecutor):
    """An executor of an application that runs jobs in the scheduler's thread."""

    def _do_submit_job(self, job: Any, run_times: Any) -> None:
        events = run_job(job, job._jobstore_alias, run_times, self._logger.name)
        self._run_job_success(job.id, events)


def next_run(rig: HandRig) -> float:
    """Return the next run of the job in seconds after `START`."""
    return _after_start(rig, "apscheduler_job_next_run_timestamp_seconds")


def withdrawn(rig: HandRig) -> float | None:
    """Return the withdrawn run of the job in seconds after `START`, None if there is none."""
    try:
        return _after_start(rig, "apscheduler_job_withdrawn_run_timestamp_seconds")
    except AssertionError:
        return None


def _after_start(rig: HandRig, name: str) -> float:
    return sample(rig.telemetry, name, job_id="job") - START.timestamp()


class TestJobThatReschedulesItself:
    """A job that reschedules itself while it runs in the scheduler's thread."""

    @pytest.mark.parametrize("executor", [DebugExecutor, InlineExecutor])
    @pytest.mark.parametrize("overdue", [1, 3])
    def test_runs_under_way_are_not_counted_as_missed(
        self, executor: Callable[[], Any], overdue: int
    ) -> None:
        """Runs that the pass has already submitted are counted once, by their outcome."""
        with hand_driven_rig({"default": executor()}) as rig:
            rig.add(
                lambda: rig.scheduler.reschedule_job("job", trigger="interval", seconds=HOUR),
                "interval",
                seconds=10,
                coalesce=False,
                max_instances=3,
            )
            rig.after(10 * overdue)
            assert rig.outcomes() == {"success": overdue}
            rig.after(HOUR)
            rig.settle()
            assert rig.outcomes().get("missed") is None


class TestJobThatReplacesItself:
    """A job that removes itself while it runs and adds a job with the same id."""

    def test_metrics_describe_the_job_that_the_scheduler_keeps(self) -> None:
        """Next run and intervals are those of the job that `get_job` returns afterwards."""

        def replace() -> None:
            rig.scheduler.remove_job("job")
            rig.add(nothing, "interval", seconds=50)

        with hand_driven_rig({"default": DebugExecutor()}) as rig:
            rig.add(replace, "interval", seconds=10)
            for seconds in (10, 50, 50):
                rig.after(seconds)
                kept = rig.scheduler.get_job("job")
                assert next_run(rig) == (kept.next_run_time - START).total_seconds()
                shortest = sample(
                    rig.telemetry, "apscheduler_job_shortest_interval_seconds", job_id="job"
                )
                assert shortest == kept.trigger.interval.total_seconds()


class TestListenerThatChangesTheJob:
    """A listener that changes a job in the same pass that has just submitted it."""

    def test_change_after_several_runs_withdraws_the_next_run(self) -> None:
        """The change counts as the user's, and cancels the next run that the pass has set."""
        with hand_driven_rig({"default": DebugExecutor()}) as rig:
            rig.add(nothing, "interval", seconds=10)
            for _ in range(3):
                rig.after(10)
            assert (next_run(rig), withdrawn(rig)) == (40, None)
            rig.scheduler.add_listener(
                lambda event: rig.scheduler.modify_job(event.job_id, next_run_time=at(HOUR)),
                EVENT_JOB_SUBMITTED,
            )
            rig.after(10)
            assert (next_run(rig), withdrawn(rig)) == (HOUR, 50)
