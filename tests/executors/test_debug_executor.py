"""The debug executor, which runs jobs in the scheduler's loop."""

from __future__ import annotations

from datetime import timezone

import pytest
from apscheduler.events import EVENT_JOB_SUBMITTED
from apscheduler.executors.base import BaseExecutor
from apscheduler.executors.debug import DebugExecutor
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.jobstores.base import JobLookupError
from apscheduler.schedulers.background import BackgroundScheduler

from tests.helpers import jobs
from tests.helpers.clocks import START
from tests.helpers.rigs import hand_driven_rig, live_rig
from tests.helpers.triggers import every
from tests.helpers.waiting import wait_until

UTC = timezone.utc


class TestInline:
    """Jobs that run in the loop, and jobs that change their scheduler."""

    @pytest.mark.parametrize("executor", [DebugExecutor, ThreadPoolExecutor])
    def test_job_that_adds_another_job_counts_both(self, executor: type[BaseExecutor]) -> None:
        """A job may add another job and wake the scheduler up; both runs are counted."""
        scheduler = BackgroundScheduler(executors={"default": executor()}, timezone=UTC)

        def add() -> None:
            rig.add(jobs.nothing, id="child")
            scheduler.wakeup()

        with live_rig(scheduler) as rig:
            rig.add(add)
            wait_until(lambda: rig.codes("child").count("executed"))
            assert (rig.outcomes(), rig.outcomes("child")) == ({"success": 1}, {"success": 1})

    def test_job_that_removes_itself_is_a_success_and_a_loop_error(self) -> None:
        """In the debug executor this makes APScheduler's loop fail: one success, one loop error."""
        with hand_driven_rig({"default": DebugExecutor()}) as rig:
            rig.add(lambda: rig.scheduler.remove_job("job"), every(10))
            with pytest.raises(JobLookupError):
                rig.scheduler.turn()
            assert rig.outcomes() == {"success": 1}
            assert rig.errors_of("loop") == 1
            assert START.timestamp() == rig.job().cancelled_run_due_at

    def test_listener_that_removes_the_job_withdraws_its_next_run(self) -> None:
        """A removal by a listener cancels the next run, also in the loop's thread."""
        with hand_driven_rig() as rig:
            rig.scheduler.add_listener(
                lambda e: rig.scheduler.remove_job(e.job_id), EVENT_JOB_SUBMITTED
            )
            rig.add(jobs.nothing, every(10))
            rig.scheduler.turn()
            rig.settle()
            assert rig.outcomes() == {"success": 1}
            assert START.timestamp() + 10 == rig.job().cancelled_run_due_at
