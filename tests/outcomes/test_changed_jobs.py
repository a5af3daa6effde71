"""Jobs that are removed, replaced, modified or paused while their runs are in flight."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from apscheduler.events import EVENT_JOB_EXECUTED
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.triggers.interval import IntervalTrigger

from tests.helpers import jobs
from tests.helpers.clocks import START
from tests.helpers.rigs import Gate, hand_driven_rig
from tests.helpers.schedulers import forkserver_pool
from tests.helpers.triggers import every
from tests.helpers.waiting import wait_until


class TestChanges:
    """Jobs that are changed while runs of them are queued or running."""

    @pytest.mark.parametrize("wait_for", ["queue", "run"])
    def test_run_of_a_removed_job_keeps_its_outcome(self, wait_for: str) -> None:
        """A run that was submitted before its job was removed has its own outcome."""
        gate = Gate()
        with hand_driven_rig({"default": ThreadPoolExecutor(1)}) as rig:
            if wait_for == "queue":
                rig.add(gate.hold, id="a")
                rig.add(jobs.nothing, every(10))
            else:
                rig.add(gate.hold, every(10))
            rig.scheduler.turn()
            gate.wait_for_run()
            rig.scheduler.remove_job("job")
            assert rig.job().queued + rig.job().running == 1
            gate.open()
            rig.settle()
            assert rig.outcomes() == {"success": 1}

    def test_runs_of_a_job_that_was_removed_and_added_again_count_together(self) -> None:
        """A job that is added again under its id continues its counts."""
        gate = Gate()
        with hand_driven_rig() as rig:
            rig.add(gate.hold, every(10))
            rig.scheduler.turn()
            gate.wait_for_run()
            rig.scheduler.remove_job("job")
            rig.add(jobs.fail, every(10), max_instances=2)
            rig.after(10)
            wait_until(lambda: rig.outcomes() == {"error": 1, "coalesced": 1})
            gate.open()
            rig.settle()
            assert rig.outcomes() == {"error": 1, "coalesced": 1, "success": 1}

    @pytest.mark.parametrize("instrumented", [False, True])
    @pytest.mark.parametrize("kind", ["threads", "processes"])
    def test_a_queued_run_gets_the_arguments_that_its_job_has_at_its_start(
        self, kind: str, instrumented: bool, tmp_path: Path
    ) -> None:
        """A queued run gets the arguments that its job has at its start, as without telemetry."""
        results: list[Any] = []
        executor = ThreadPoolExecutor(1) if kind == "threads" else forkserver_pool()
        with hand_driven_rig({"default": executor}) as rig:
            if not instrumented:
                rig.telemetry.uninstrument()
            rig.scheduler.add_listener(lambda e: results.append(e.retval), EVENT_JOB_EXECUTED)
            rig.add(jobs.hold, args=[str(tmp_path)], id="a")
            for job_id in "bc":  # two runs are pickled ahead for one child
                rig.add(jobs.nothing, id=job_id)
            job = rig.add(jobs.give_back, args=["old"], trigger=every(10), id="d")
            rig.add(jobs.give_back, args=["last"], id="e")
            rig.scheduler.turn()
            wait_until((tmp_path / "gate.in").exists)
            job.modify(args=["new"])
            (tmp_path / "gate.out").touch()
            wait_until(lambda: len(results) == 5)
            rig.checks_events = instrumented
        assert results[3:] == ["new", "last"]

    def test_a_grace_time_that_is_set_while_a_run_is_queued_applies(self) -> None:
        """A grace time that is set while a run is queued applies, as without telemetry."""
        gate = Gate()
        with hand_driven_rig({"default": ThreadPoolExecutor(1)}) as rig:
            rig.add(gate.hold, id="a")
            job = rig.add(jobs.nothing, every(60))
            rig.scheduler.turn()
            gate.wait_for_run()
            job.modify(misfire_grace_time=1)
            rig.clock.advance(2)
            gate.open()
            rig.settle()
            assert rig.outcomes() == {"missed": 1}

    @pytest.mark.parametrize("change", ["remove", "remove all", "reschedule", "pause"])
    @pytest.mark.parametrize(("seconds", "missed"), [(0, 0), (0.9, 0), (1, 1), (30, 1)])
    def test_a_change_soon_after_the_due_time_cancels_the_run(
        self, seconds: float, missed: int, change: str
    ) -> None:
        """Within a second, the change was only faster than the loop; later, a run is missed."""
        with hand_driven_rig() as rig:
            rig.add(jobs.nothing, every(3600), next_run_time=START + timedelta(seconds=10))
            rig.clock.advance(10 + seconds)
            if change == "remove":
                rig.scheduler.remove_job("job")
            elif change == "remove all":
                rig.scheduler.remove_all_jobs()
            elif change == "reschedule":
                rig.scheduler.reschedule_job("job", trigger=every(3600))
            else:
                rig.scheduler.pause_job("job")
            wait_until(lambda: rig.outcomes() == ({"missed": 1} if missed else {}))
            cancelled_run = rig.job().cancelled_run_due_at
            assert cancelled_run == (None if missed else START.timestamp() + 10)
            rig.forgotten = missed

    @pytest.mark.parametrize("change", ["reschedule", "pause", "replace"])
    def test_a_new_schedule_leaves_the_running_run_alone(self, change: str) -> None:
        """A new schedule does not affect the run in flight, and applies afterwards."""
        gate = Gate()
        later = IntervalTrigger(seconds=100, start_date=START + timedelta(seconds=100))
        with hand_driven_rig() as rig:
            job = rig.add(gate.hold, every(10))
            rig.scheduler.turn()
            gate.wait_for_run()
            if change == "reschedule":
                job.reschedule(later)
            elif change == "pause":
                job.pause()
            else:
                rig.add(jobs.nothing, later, replace_existing=True)
            rig.after(50)  # nothing is due any more
            assert rig.outcomes() == {}
            gate.open()
            rig.settle()
            assert rig.outcomes() == {"success": 1}

    def test_a_paused_job_has_no_due_runs(self) -> None:
        """Runs of a paused job are not due."""
        with hand_driven_rig() as rig:
            job = rig.add(jobs.nothing, every(10))
            rig.scheduler.turn()
            rig.settle()
            job.pause()
            rig.after(100)
            assert rig.job().next_run == 0
            job.resume()
            rig.after(10)
            rig.settle()
            assert 2 <= rig.job().due_count <= 3
            assert START.timestamp() + 10 == rig.job().cancelled_run_due_at

    def test_runs_fall_due_while_the_scheduler_is_paused(self) -> None:
        """Runs that fall due while the scheduler is paused are due when it is resumed."""
        with hand_driven_rig() as rig:
            rig.add(jobs.nothing, every(10))
            rig.scheduler.turn()
            rig.settle()
            rig.scheduler.pause()
            rig.after(50)
            assert rig.outcomes() == {"success": 1}
            rig.scheduler.resume()
            rig.scheduler.turn()
            rig.settle()
            assert rig.outcomes() == {"success": 2, "coalesced": 4}

    def test_job_that_removes_itself_has_one_run(self) -> None:
        """A job that removes itself from its thread has one run, and no next run."""
        with hand_driven_rig() as rig:
            rig.add(lambda: rig.scheduler.remove_job("job"), every(10))
            rig.scheduler.turn()
            rig.settle()
            rig.after(10)
            assert rig.outcomes() == {"success": 1}
            assert (0, START.timestamp() + 10) == (
                rig.job().next_run,
                rig.job().cancelled_run_due_at,
            )
