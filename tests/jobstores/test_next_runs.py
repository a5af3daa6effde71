"""The next run of a job that is added, moved, paused, removed or finished."""

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
    """The next run of a job, which the user may withdraw."""

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
        """After a run the following one is the next, and none was withdrawn."""
        with driven() as seen:
            add(seen)
            clock.advance(60)
            seen.scheduler.turn()
            assert (seen.next_run(), seen.withdrawn_run()) == (IN_A_MINUTE + 3600, None)

    def test_next_run_stays_overdue_until_a_pass(self, clock: FrozenClock) -> None:
        """While the scheduler does not look for due jobs, the next run stays, and is overdue."""
        with driven() as seen:
            add(seen)
            clock.advance(1000)
            assert seen.next_run() == IN_A_MINUTE
            assert seen.telemetry.health()["jobs"][0]["overdue"] is True

    def test_next_run_of_a_removed_job_is_withdrawn(self) -> None:
        """The next run of a job that the user removes is withdrawn."""
        with driven() as seen:
            add(seen).remove()
            assert (seen.next_run(), seen.withdrawn_run()) == (0, IN_A_MINUTE)

    def test_next_run_of_a_paused_job_is_withdrawn(self) -> None:
        """The next run of a job that is paused is withdrawn; resumed, the job has a new one."""
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
        """A job that is given another time has that as its next run, and withdraws the other."""
        with driven() as seen:
            at = START + timedelta(seconds=seconds)
            add(seen).modify(next_run_time=at)
            assert (seen.next_run(), seen.withdrawn_run()) == (at.timestamp(), IN_A_MINUTE)

    def test_next_run_comes_from_the_new_trigger(self) -> None:
        """The next run of a job that is given another trigger comes from that."""
        with driven() as seen:
            add(seen).reschedule("interval", minutes=5)
            assert (seen.next_run(), seen.withdrawn_run()) == (START.timestamp() + 300, IN_A_MINUTE)

    def test_other_changes_withdraw_nothing(self) -> None:
        """A change that leaves the next run alone withdraws nothing."""
        with driven() as seen:
            add(seen).modify(name="other")
            assert (seen.next_run(), seen.withdrawn_run()) == (IN_A_MINUTE, None)

    def test_next_run_that_is_set_again_is_not_withdrawn(self) -> None:
        """A next run that is set again does not count as withdrawn."""
        with driven() as seen:
            job = add(seen)
            at = job.next_run_time
            job.pause()
            assert seen.withdrawn_run() == IN_A_MINUTE
            job.modify(next_run_time=at)
            assert (seen.next_run(), seen.withdrawn_run()) == (IN_A_MINUTE, None)

    def test_next_run_of_a_job_added_again_is_not_withdrawn(self) -> None:
        """Nor does that of a job that is removed and added again for the same time."""
        with driven() as seen:
            add(seen).remove()
            add(seen)
            assert (seen.next_run(), seen.withdrawn_run()) == (IN_A_MINUTE, None)

    def test_next_run_of_a_replaced_job_is_withdrawn(self) -> None:
        """`replace_existing` is a change by the user like any other."""
        with driven() as seen:
            add(seen)
            add(seen, seconds=90, replace_existing=True)
            assert (seen.next_run(), seen.withdrawn_run()) == (IN_A_MINUTE + 30, IN_A_MINUTE)
            assert seen.value("scheduler_jobs", jobstore="default") == 1

    def test_finished_job_has_no_next_run(self, clock: FrozenClock) -> None:
        """A one-off job that has run has no next run, and none was withdrawn."""
        with driven() as seen:
            add(seen, trigger="date")
            clock.advance(60)
            seen.scheduler.turn()
            assert seen.runs() == {"success": 1}
            assert (seen.next_run(), seen.withdrawn_run()) == (0, None)

    def test_next_run_of_a_job_with_an_unknown_executor_stays_expected(
        self, clock: FrozenClock
    ) -> None:
        """If APScheduler removes a job, as its executor is unknown, the next run stays expected."""
        with driven() as seen:
            add(seen, executor="gpu")
            clock.advance(60)
            seen.scheduler.turn()
            assert seen.scheduler.get_job("job") is None
            assert seen.runs() == {"lost": 1}
            assert (seen.next_run(), seen.withdrawn_run()) == (IN_A_MINUTE, None)
            assert seen.value("scheduler_jobs", jobstore="default") == 0

    def test_remove_all_jobs_withdraws_each_next_run(self) -> None:
        """`remove_all_jobs` withdraws the next run of each job."""
        with driven() as seen:
            add(seen, id="a")
            add(seen, id="b", seconds=90)
            seen.scheduler.remove_all_jobs()
            assert (seen.next_run("a"), seen.withdrawn_run("a")) == (0, IN_A_MINUTE)
            assert (seen.next_run("b"), seen.withdrawn_run("b")) == (0, IN_A_MINUTE + 30)
            assert seen.value("scheduler_jobs", jobstore="default") == 0

    def test_shutdown_of_a_memory_store_withdraws_nothing(self) -> None:
        """A memory store empties itself on shutdown, which withdraws no run."""
        with driven() as seen:
            add(seen)
            seen.scheduler.shutdown()
            assert (seen.next_run(), seen.withdrawn_run()) == (IN_A_MINUTE, None)

    def test_removing_a_job_store_withdraws_its_next_runs(self) -> None:
        """Removing a job store withdraws the next runs of its jobs."""
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
        """A change by a listener in the middle of a pass is the user's, not the loop's."""
        with driven() as seen:
            job = add(seen)
            seen.scheduler.add_listener(lambda event: getattr(job, change)(), EVENT_JOB_SUBMITTED)
            clock.advance(60)
            seen.scheduler.turn()
            assert (seen.next_run(), seen.withdrawn_run()) == (0, IN_A_MINUTE + 3600)

    def test_job_may_withdraw_a_next_run_in_a_pass(self, clock: FrozenClock) -> None:
        """So is a change of another job by a job that runs in the middle of a pass."""
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
        """The series of a job that is gone stay for 15 minutes, long enough to be scraped."""
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
        """Telemetry keeps neither a one-off job nor its arguments alive after its run."""

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
