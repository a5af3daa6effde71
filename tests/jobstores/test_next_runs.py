"""The next run of a job that is added, changed, paused, removed or finished."""

from __future__ import annotations

import gc
from datetime import timedelta

import pytest

pytest.importorskip("sqlalchemy")

from apscheduler.events import EVENT_JOB_SUBMITTED
from apscheduler.jobstores.memory import MemoryJobStore

from apscheduler_telemetry.core.recorder import REMOVED_JOB_SECONDS
from tests.helpers import watching
from tests.helpers.clocks import START, FrozenClock
from tests.helpers.schedulers import hand_driven_scheduler
from tests.helpers.stored_jobs import IN_A_MINUTE, add, driven
from tests.helpers.watching import watched


@pytest.mark.usefixtures("clock")
class TestNextRun:
    """The next run of a job, which the user may cancel."""

    def test_next_run_of_a_new_job_is_known_at_once(self) -> None:
        """The next run of a job is known as soon as the job is in its store."""
        with driven() as seen:
            add(seen)
            assert (seen.next_run(), seen.withdrawn_run()) == (IN_A_MINUTE, None)

    def test_next_run_of_a_pending_job_is_known_after_the_start(self) -> None:
        """The next run of a job that is added before the start is known after it."""
        with watched(hand_driven_scheduler()) as seen:
            add(seen)
            assert seen.next_run() is None
            seen.scheduler.start()
            assert seen.next_run() == IN_A_MINUTE

    def test_next_run_follows_a_run_and_none_is_withdrawn(self, clock: FrozenClock) -> None:
        """After a run, the following one is the next run, and none is cancelled."""
        with driven() as seen:
            add(seen)
            clock.advance(60)
            seen.scheduler.turn()
            assert (seen.next_run(), seen.withdrawn_run()) == (IN_A_MINUTE + 3600, None)

    def test_next_run_stays_overdue_until_a_pass(self, clock: FrozenClock) -> None:
        """Until the next pass, an overdue run stays the next run."""
        with driven() as seen:
            add(seen)
            clock.advance(1000)
            assert seen.next_run() == IN_A_MINUTE
            assert seen.telemetry.health()["jobs"][0]["overdue"] is True

    def test_next_run_of_a_removed_job_is_withdrawn(self) -> None:
        """The next run of a removed job is cancelled."""
        with driven() as seen:
            add(seen).remove()
            assert (seen.next_run(), seen.withdrawn_run()) == (0, IN_A_MINUTE)

    def test_next_run_of_a_paused_job_is_withdrawn(self) -> None:
        """The next run of a paused job is cancelled; when resumed, it has a new one."""
        with driven() as seen:
            job = add(seen)
            job.pause()
            assert (seen.next_run(), seen.withdrawn_run()) == (0, IN_A_MINUTE)
            job.resume()
            assert (seen.next_run(), seen.withdrawn_run()) == (
                START.timestamp() + 3600,
                IN_A_MINUTE,
            )

    @pytest.mark.parametrize("seconds", [1, 7200], ids=["sooner", "later"])
    def test_next_run_of_a_rescheduled_job_is_replaced(self, seconds: float) -> None:
        """If the next run time is changed, the former next run is cancelled."""
        with driven() as seen:
            at = START + timedelta(seconds=seconds)
            add(seen).modify(next_run_time=at)
            assert (seen.next_run(), seen.withdrawn_run()) == (at.timestamp(), IN_A_MINUTE)

    def test_next_run_comes_from_the_new_trigger(self) -> None:
        """A rescheduled job has the next run of its new trigger."""
        with driven() as seen:
            add(seen).reschedule("interval", minutes=5)
            assert (seen.next_run(), seen.withdrawn_run()) == (START.timestamp() + 300, IN_A_MINUTE)

    def test_other_changes_withdraw_nothing(self) -> None:
        """A change that keeps the next run cancels nothing."""
        with driven() as seen:
            add(seen).modify(name="other")
            assert (seen.next_run(), seen.withdrawn_run()) == (IN_A_MINUTE, None)

    def test_next_run_that_is_set_again_is_not_withdrawn(self) -> None:
        """A cancelled run that is set again is not cancelled any more."""
        with driven() as seen:
            job = add(seen)
            at = job.next_run_time
            job.pause()
            assert seen.withdrawn_run() == IN_A_MINUTE
            job.modify(next_run_time=at)
            assert (seen.next_run(), seen.withdrawn_run()) == (IN_A_MINUTE, None)

    def test_next_run_of_a_job_added_again_is_not_withdrawn(self) -> None:
        """If a job is removed and added for the same time, its next run is not cancelled."""
        with driven() as seen:
            add(seen).remove()
            add(seen)
            assert (seen.next_run(), seen.withdrawn_run()) == (IN_A_MINUTE, None)

    def test_next_run_of_a_replaced_job_is_withdrawn(self) -> None:
        """If a job is replaced with `replace_existing`, its former next run is cancelled."""
        with driven() as seen:
            add(seen)
            add(seen, seconds=90, replace_existing=True)
            assert (seen.next_run(), seen.withdrawn_run()) == (IN_A_MINUTE + 30, IN_A_MINUTE)
            assert seen.value("scheduler_jobs", jobstore="default") == 1

    def test_finished_job_has_no_next_run(self, clock: FrozenClock) -> None:
        """A one-off job that has run has no next run, and none is cancelled."""
        with driven() as seen:
            add(seen, trigger="date")
            clock.advance(60)
            seen.scheduler.turn()
            assert seen.runs() == {"success": 1}
            assert (seen.next_run(), seen.withdrawn_run()) == (0, None)

    def test_next_run_of_a_job_with_an_unknown_executor_stays_expected(
        self, clock: FrozenClock
    ) -> None:
        """If APScheduler drops a job with an unknown executor, its next run stays expected."""
        with driven() as seen:
            add(seen, executor="gpu")
            clock.advance(60)
            seen.scheduler.turn()
            assert seen.scheduler.get_job("job") is None
            assert seen.runs() == {"lost": 1}
            assert (seen.next_run(), seen.withdrawn_run()) == (IN_A_MINUTE, None)
            assert seen.value("scheduler_jobs", jobstore="default") == 0

    def test_remove_all_jobs_withdraws_each_next_run(self) -> None:
        """`remove_all_jobs` cancels the next run of each job."""
        with driven() as seen:
            add(seen, id="a")
            add(seen, id="b", seconds=90)
            seen.scheduler.remove_all_jobs()
            assert (seen.next_run("a"), seen.withdrawn_run("a")) == (0, IN_A_MINUTE)
            assert (seen.next_run("b"), seen.withdrawn_run("b")) == (0, IN_A_MINUTE + 30)
            assert seen.value("scheduler_jobs", jobstore="default") == 0

    def test_shutdown_of_a_memory_store_withdraws_nothing(self) -> None:
        """The shutdown, which empties a memory store, cancels no run."""
        with driven() as seen:
            add(seen)
            seen.scheduler.shutdown()
            assert (seen.next_run(), seen.withdrawn_run()) == (IN_A_MINUTE, None)

    def test_removing_a_job_store_withdraws_its_next_runs(self) -> None:
        """Removing a job store cancels the next runs of its jobs."""
        with driven() as seen:
            seen.scheduler.add_jobstore(MemoryJobStore(), "other")
            add(seen, jobstore="other")
            assert seen.value("scheduler_jobs", jobstore="other") == 1
            seen.scheduler.remove_jobstore("other", shutdown=False)
            assert (seen.next_run(), seen.withdrawn_run()) == (0, IN_A_MINUTE)
            assert seen.value("scheduler_jobs", jobstore="other") is None

    @pytest.mark.parametrize("change", ["remove", "pause"])
    def test_listener_may_withdraw_a_next_run_in_a_pass(
        self, clock: FrozenClock, change: str
    ) -> None:
        """A change by a listener during a pass is a change by the user."""
        with driven() as seen:
            job = add(seen)
            seen.scheduler.add_listener(lambda event: getattr(job, change)(), EVENT_JOB_SUBMITTED)
            clock.advance(60)
            seen.scheduler.turn()
            assert (seen.next_run(), seen.withdrawn_run()) == (0, IN_A_MINUTE + 3600)

    def test_job_may_withdraw_a_next_run_in_a_pass(self, clock: FrozenClock) -> None:
        """A job that runs during a pass may remove another job, which cancels its next run."""
        with driven() as seen:
            add(seen, func=lambda: seen.scheduler.remove_job("other"))
            add(seen, id="other", seconds=90)
            clock.advance(60)
            seen.scheduler.turn()
            assert seen.runs() == {"success": 1}
            assert (seen.next_run("other"), seen.withdrawn_run("other")) == (0, IN_A_MINUTE + 30)

    @pytest.mark.parametrize("failed", [False, True], ids=["removed", "failed"])
    def test_series_of_a_gone_job_stay_for_15_minutes(
        self, clock: FrozenClock, failed: bool
    ) -> None:
        """The series of a removed job stay for 15 minutes, so that they are scraped."""
        with driven() as seen:
            if failed:
                add(seen, executor="gpu")
                clock.advance(60)
                seen.scheduler.turn()
            else:
                add(seen).remove()
            clock.advance(REMOVED_JOB_SECONDS - 1)
            assert seen.next_run() == (IN_A_MINUTE if failed else 0)
            clock.advance(2)
            assert seen.next_run() is None
            assert seen.job("runs_total", outcome="lost") is None


class TestMemory:
    def test_a_job_that_has_run_is_forgotten(self) -> None:
        """After its run, telemetry keeps neither a one-off job nor its arguments alive."""

        class Big:
            pass

        with driven() as seen:
            for _ in range(3):
                add(
                    seen, func=watching.succeed, args=[Big()], trigger="date", id=None, seconds=-0.1
                )
            seen.scheduler.turn()
            gc.collect()
            assert [thing for thing in gc.get_objects() if type(thing) is Big] == []
            assert seen.value("scheduler_jobs", jobstore="default") == 0
