"""Job ids as labels: equal ids, generated ids, too many ids, and those of removed jobs."""

from __future__ import annotations

from apscheduler.executors.debug import DebugExecutor

from tests.helpers import jobs
from tests.helpers.clocks import START
from tests.helpers.metrics import job_states
from tests.helpers.rigs import Gate, hand_driven_rig
from tests.helpers.triggers import every
from tests.helpers.waiting import wait_until


class TestLabels:
    """Labels that several jobs share, and jobs with the same id."""

    def test_jobs_of_one_id_in_two_stores_are_both_counted(self) -> None:
        """Two jobs with the same id in different stores are both counted under that id."""
        with hand_driven_rig(
            jobstores={"one": {"type": "memory"}, "two": {"type": "memory"}}
        ) as rig:
            # An executor knows only ids, and counts the runs of both as those of one job.
            rig.add(jobs.nothing, every(10), jobstore="one", max_instances=2)
            rig.add(jobs.fail, every(5), jobstore="two", max_instances=2)
            rig.scheduler.turn()
            rig.settle()
            rig.after(5)
            rig.settle()
            assert rig.outcomes() == {"success": 1, "error": 2}
            rig.scheduler.remove_job("job", "two")
            assert START.timestamp() + 10 == rig.job().next_run
            rig.after(5)
            rig.settle()
            assert rig.outcomes() == {"success": 2, "error": 2}

    def test_jobs_with_generated_ids_share_the_label_of_their_function(self) -> None:
        """Jobs without an id of their own share the label of their function."""
        with hand_driven_rig() as rig:
            for seconds in (10, 20, 30):
                rig.add(jobs.nothing, every(seconds), id=None)
            rig.add(jobs.fail, every(60), id=None)
            for _ in range(7):  # 0, 10 .. 60: 7, 4 and 3 runs
                rig.scheduler.turn()
                rig.settle()
                rig.clock.advance(10)
            assert rig.outcomes("tests.helpers.jobs:nothing") == {"success": 14}
            assert rig.outcomes("tests.helpers.jobs:fail") == {"error": 2}

    def test_jobs_beyond_1000_labels_share_one(self) -> None:
        """Jobs beyond 1,000 labels share one, and all their runs are counted."""
        with hand_driven_rig({"default": DebugExecutor()}) as rig:
            for number in range(1010):
                rig.add(jobs.nothing, every(10), id=f"job {number}")
            rig.scheduler.turn()
            due = {a.label: a.due_count for a in job_states(rig.telemetry)}
            assert {"__overflow__": 10, **{f"job {n}": 1 for n in range(1000)}} == due

    def test_a_removed_job_is_dropped_after_15_minutes(self) -> None:
        """The numbers of a removed job stay for 15 minutes after the end of its last run."""
        gate = Gate()
        with hand_driven_rig() as rig:
            rig.add(gate.hold, id="long")
            rig.add(jobs.nothing)
            rig.scheduler.turn()
            gate.wait_for_run()
            wait_until(lambda: rig.outcomes() == {"success": 1})
            rig.clock.advance(899)
            assert {"job", "long"} == {a.label for a in job_states(rig.telemetry)}
            rig.clock.advance(1)
            assert {"long"} == {a.label for a in job_states(rig.telemetry)}
            gate.open()
            wait_until(lambda: rig.outcomes("long") == {"success": 1})
            rig.clock.advance(899)
            assert {"long"} == {a.label for a in job_states(rig.telemetry)}
            rig.clock.advance(1)
            assert not list(job_states(rig.telemetry))
            rig.checks_events = False
