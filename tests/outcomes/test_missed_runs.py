"""Missed runs: the loop, a thread or a child of a pool finds them too late."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from apscheduler.executors.pool import ThreadPoolExecutor

from tests.helpers import jobs
from tests.helpers.rigs import Gate, hand_driven_rig
from tests.helpers.schedulers import forkserver_pool
from tests.helpers.triggers import every

UTC = timezone.utc


MINUTE = 60.0


class TestMisfires:
    """Runs that start later than their job allows."""

    def test_a_run_that_the_loop_finds_too_late_is_missed(self) -> None:
        """A run that the loop finds too late is missed; the next run, in time, is not."""
        with hand_driven_rig() as rig:
            rig.add(jobs.nothing, every(MINUTE), misfire_grace_time=30)
            rig.after(45)
            rig.settle()
            rig.after(15)
            rig.settle()
            assert rig.outcomes() == {"missed": 1, "success": 1}

    def test_a_run_that_waits_too_long_for_a_thread_is_missed(self) -> None:
        """A run that waits too long for a thread is missed."""
        gate = Gate()
        with hand_driven_rig({"default": ThreadPoolExecutor(1)}) as rig:
            rig.add(gate.hold, id="a")
            rig.add(jobs.nothing, misfire_grace_time=10)
            rig.scheduler.turn()
            gate.wait_for_run()
            assert (rig.job().running, rig.job().queued) == (0, 1)
            rig.clock.advance(11)
            gate.open()
            rig.settle()
            assert rig.outcomes("a") == {"success": 1}
            assert rig.outcomes() == {"missed": 1}
            assert rig.job().last_run_due_at is None, "it never started"

    def test_each_queued_run_of_one_job_is_missed_by_itself(self) -> None:
        """Of several queued runs of a job, each one that is too late is missed."""
        gate = Gate()
        with hand_driven_rig({"default": ThreadPoolExecutor(1)}) as rig:
            rig.add(gate.hold, id="a")
            rig.add(jobs.nothing, every(10), misfire_grace_time=20, max_instances=3)
            rig.scheduler.turn()
            gate.wait_for_run()
            rig.after(10)
            rig.after(10)
            assert rig.job().queued == 3
            rig.clock.advance(19)
            gate.open()
            rig.settle()
            assert rig.outcomes() == {"missed": 2, "success": 1}

    def test_a_run_that_a_child_finds_too_late_is_missed(self) -> None:
        """A run that a child finds too late is missed, also if its start was estimated."""
        long_ago = datetime.now(UTC) - timedelta(hours=1)  # for the child, whose clock is right
        with hand_driven_rig({"default": forkserver_pool()}, at=long_ago) as rig:
            rig.add(jobs.nothing, misfire_grace_time=60)
            rig.scheduler.turn()
            rig.settle()
            assert rig.outcomes() == {"missed": 1}
            assert [0] * len(rig.job().delays.counts) == rig.job().delays.counts

    def test_the_last_of_a_coalesced_backlog_can_be_missed(self) -> None:
        """The last run of a coalesced backlog can be missed as well."""
        with hand_driven_rig() as rig:
            rig.add(jobs.nothing, every(MINUTE), coalesce=True, misfire_grace_time=30)
            rig.after(4 * MINUTE + 45)
            rig.settle()
            assert rig.outcomes() == {"missed": 1, "coalesced": 4}
