"""Fast jobs and backlogs: each run is counted, in whatever order events arrive."""

from __future__ import annotations

import threading
from datetime import timezone

from apscheduler.events import EVENT_JOB_EXECUTED
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.schedulers.blocking import BlockingScheduler

from tests.helpers import jobs
from tests.helpers.rigs import hand_driven_rig, live_rig
from tests.helpers.schedulers import forkserver_pool
from tests.helpers.triggers import every
from tests.helpers.waiting import wait_until

UTC = timezone.utc


class TestFastJobs:
    """Jobs that end before APScheduler sends the event of their submission."""

    def test_each_of_500_one_off_runs_counts_once(self) -> None:
        """500 one-off jobs with one label are 500 successes, in whatever order events arrive."""
        with live_rig(BackgroundScheduler(timezone=UTC), start=False) as rig:
            rig.scheduler.start(paused=True)
            for _ in range(500):
                rig.add(jobs.nothing, id=None)
            rig.scheduler.resume()
            label = "tests.helpers.jobs:nothing"
            wait_until(lambda: rig.outcomes(label) == {"success": 500})
            wait_until(lambda: sum(e.code == EVENT_JOB_EXECUTED for e in rig.events) == 500)
        codes_by_job: dict[str, list[str]] = {}
        for event in rig.events:
            if hasattr(event, "job_id"):
                codes_by_job.setdefault(event.job_id, rig.codes(event.job_id))
        assert ["executed", "submitted"] in codes_by_job.values(), (
            "the case that is meant did not occur"
        )

    def test_a_blocking_scheduler_is_no_different(self) -> None:
        """Runs of a blocking scheduler are counted."""
        scheduler = BlockingScheduler(timezone=UTC)
        with live_rig(scheduler, start=False) as rig:
            for number in range(20):
                rig.add(jobs.nothing, id=f"job {number}")
            thread = threading.Thread(target=scheduler.start)
            thread.start()
            wait_until(lambda: scheduler.running)
            wait_until(lambda: all(rig.outcomes(f"job {n}") == {"success": 1} for n in range(20)))
            scheduler.shutdown()
            thread.join()


class TestBacklog:
    """Many due runs with ``coalesce=False``: one submission with several events."""

    def test_each_run_of_a_burst_is_counted(self) -> None:
        """Five due runs without a grace time are five successes."""
        with hand_driven_rig() as rig:
            rig.add(jobs.nothing, every(10), coalesce=False)
            rig.after(45)
            rig.settle()
            assert rig.outcomes() == {"success": 5}
        assert [code for code in rig.codes() if code == "executed"] == ["executed"] * 5

    def test_misfired_runs_of_a_burst_are_counted_as_missed(self) -> None:
        """Of five due runs, those later than the grace time are missed; the others run."""
        with hand_driven_rig() as rig:
            rig.add(jobs.nothing, every(10), coalesce=False, misfire_grace_time=25)
            rig.after(45)  # 45, 35, 25, 15 and 5 s late
            rig.settle()
            assert rig.outcomes() == {"missed": 2, "success": 3}

    def test_a_run_that_the_others_of_its_burst_delay_is_missed(self) -> None:
        """A run is missed if the earlier runs of its burst take too long."""
        with hand_driven_rig() as rig:
            rig.add(lambda: rig.clock.advance(20), every(10), coalesce=False, misfire_grace_time=30)
            rig.after(55)  # 55, 45, 35, 25, then 15 + 20 and 5 + 20 s late
            rig.settle()
            assert rig.outcomes() == {"missed": 4, "success": 2}

    def test_errors_and_successes_of_a_burst_are_kept_apart(self) -> None:
        """Errors and successes of one burst are counted separately."""
        turns = iter(range(6))

        def fail_each_third() -> None:
            if next(turns) % 3 == 0:
                jobs.fail()

        with hand_driven_rig() as rig:
            rig.add(fail_each_third, every(10), coalesce=False)
            rig.after(55)
            rig.settle()
            assert rig.outcomes() == {"success": 4, "error": 2}
            assert rig.job().exceptions == {"ValueError": 2}

    def test_a_burst_in_a_process_is_counted_run_by_run(self) -> None:
        """A burst in another process is counted run by run, with durations."""
        with hand_driven_rig({"default": forkserver_pool()}) as rig:
            rig.add(jobs.nap, every(10), args=[0.02], coalesce=False)
            rig.after(25)
            assert (rig.job().running, rig.job().queued) == (1, 2)
            rig.settle()
            assert rig.outcomes() == {"success": 3}
            assert 0.06 <= rig.job().durations.sum < 1
