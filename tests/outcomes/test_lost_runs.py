"""Lost runs: a worker is killed, a result cannot be pickled, an executor rejects a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from apscheduler.executors.debug import DebugExecutor
from apscheduler.executors.pool import ThreadPoolExecutor

from tests.helpers import jobs
from tests.helpers.clocks import START
from tests.helpers.rigs import hand_driven_rig
from tests.helpers.schedulers import HandDriven, forkserver_pool
from tests.helpers.triggers import every
from tests.helpers.waiting import wait_until


class TestProcesses:
    """Runs that are lost on the way to a process pool, in it, or on the way back."""

    def test_all_runs_of_a_pool_are_lost_with_a_killed_worker(self, tmp_path: Path) -> None:
        """If a worker is killed, all runs of its pool are lost; the next run is measured."""
        with hand_driven_rig({"default": forkserver_pool(2)}) as rig:
            directory = str(tmp_path)
            rig.add(jobs.hold, args=[directory, "bystander"], id="bystander")
            rig.add(jobs.die_when_let_go, args=[directory, "dying"], id="dying")
            rig.add(jobs.nothing, id="queued")
            rig.add(jobs.nap, every(10), args=[0.1], next_run_time=START + timedelta(seconds=5))
            rig.scheduler.turn()
            wait_until((tmp_path / "bystander.in").exists)
            wait_until((tmp_path / "dying.in").exists)
            (tmp_path / "dying.out").touch()
            rig.settle()
            for job_id in ("bystander", "dying", "queued"):
                assert rig.outcomes(job_id) == {"lost": 1}
            assert START.timestamp() == rig.job("bystander").last_run_due_at
            assert rig.job("queued").last_run_due_at is None, "it never started"
            rig.after(5)
            rig.settle()
            assert rig.outcomes() == {"success": 1}
            assert 0.1 <= rig.job().durations.sum < 1
            assert rig.errors_of("submit") == 0

    def test_a_broken_pool_loses_no_run_of_the_fresh_pool(self, tmp_path: Path) -> None:
        """A job has a run in both; the one in the fresh pool is measured."""
        executor, fresh = forkserver_pool(), forkserver_pool()
        with hand_driven_rig({"default": executor, "unused": fresh}) as rig:
            broken = executor._pool
            rig.add(jobs.hold, every(10), args=[str(tmp_path), "first"], max_instances=2)
            rig.scheduler.turn()
            wait_until((tmp_path / "first.in").exists)
            executor._pool = fresh._pool
            rig.scheduler.get_job("job").modify(args=[str(tmp_path), "second"])
            rig.after(10)
            wait_until((tmp_path / "second.in").exists)
            for process in list(broken._processes.values()):
                process.kill()
            wait_until(lambda: rig.outcomes() == {"lost": 1})
            (tmp_path / "second.out").touch()
            rig.settle()
            broken.shutdown()
            assert rig.outcomes() == {"success": 1, "lost": 1}
            assert sum(rig.job().durations.counts) == 1

    @pytest.mark.parametrize(
        "func",
        [jobs.result_without_pickle, jobs.fail_without_unpickle, lambda: None],
        ids=["result", "exception", "lambda"],
    )
    def test_what_cannot_be_pickled_is_a_lost_run(self, func: Callable[[], Any]) -> None:
        """A callable, result or exception that cannot be pickled or unpickled is a lost run."""
        with hand_driven_rig({"default": forkserver_pool()}) as rig:
            rig.add(func, id="lost")
            rig.scheduler.turn()
            rig.settle()
            assert rig.outcomes("lost") == {"lost": 1}
            assert rig.job("lost").consecutive_failures == 1
            rig.add(jobs.nothing)
            rig.scheduler.turn()
            rig.settle()
            assert rig.outcomes() == {"success": 1}

    def test_errors_and_results_of_a_child_reach_listeners(self) -> None:
        """A child's errors and results reach listeners as they are without telemetry."""
        with hand_driven_rig({"default": forkserver_pool()}) as rig:
            rig.add(jobs.fail, args=["here"], id="a")
            rig.add(jobs.throw, args=["SystemExit"], id="b")
            rig.add(jobs.throw, args=["KeyboardInterrupt"], id="c")
            rig.add(jobs.give_back, args=[{"x": 1}], id="d")
            rig.scheduler.turn()
            rig.settle()
            assert [rig.outcomes(job_id) for job_id in "abc"] == [{"error": 1}] * 3
            assert rig.outcomes("d") == {"success": 1}
        events = {e.job_id: e for e in rig.events if hasattr(e, "retval")}
        assert events["d"].retval == {"x": 1}
        assert events["a"].exception.args == ("here",)
        assert "child_process.py" not in events["a"].traceback
        assert "in fail" in events["a"].traceback
        assert {str} == {type(e.job_id) for e in events.values()}


class TestSubmission:
    """Runs that do not reach an executor."""

    @pytest.mark.parametrize(
        ("coalesce", "expected"), [(True, {"coalesced": 2, "lost": 1}), (False, {"lost": 3})]
    )
    def test_runs_are_lost_where_the_executor_raises(
        self, coalesce: bool, expected: dict[str, int]
    ) -> None:
        """Runs that an executor rejects are lost, and counted as submission errors."""
        executor = ThreadPoolExecutor(1)
        with hand_driven_rig({"default": executor}) as rig:
            rig.add(jobs.nothing, every(10), coalesce=coalesce)
            executor.shutdown()
            rig.after(25)
            assert expected == rig.outcomes()
            assert rig.errors_of("submit") == 1
            assert {"lost": expected["lost"]} == {"lost": rig.job().consecutive_failures}

    def test_runs_are_lost_where_submit_job_itself_raises(self) -> None:
        """The same holds if `submit_job` itself raises."""

        class Refusing(DebugExecutor):
            def submit_job(self, job: Any, run_times: Sequence[datetime]) -> None:
                raise OSError

        with hand_driven_rig({"default": Refusing()}) as rig:
            rig.add(jobs.nothing, every(10), coalesce=False)
            rig.after(25)
            assert rig.outcomes() == {"lost": 3}
            assert rig.errors_of("submit") == 1

    def test_last_run_on_an_executor_that_serves_another_scheduler(self) -> None:
        """If another scheduler owns the executor, the run's result goes there."""
        executor = DebugExecutor()
        with hand_driven_rig({"default": executor}) as rig:
            rig.checks_events = False
            other = HandDriven(executors={"default": executor}, timezone=timezone.utc)
            other.start()
            rig.add(jobs.nothing, "date", run_date=START)
            rig.scheduler.turn()
            assert rig.outcomes() == {}
            assert rig.errors_of("executor_lookup") == 0
            assert rig.job().next_run == 0
            other.shutdown()

    def test_runs_are_lost_where_the_executor_is_unknown(self) -> None:
        """All due runs of a job with an unknown executor are lost, and the job is removed."""
        with hand_driven_rig() as rig:
            rig.add(jobs.nothing, every(10), executor="nowhere")
            rig.after(35)
            assert rig.outcomes() == {"lost": 4}
            assert rig.scheduler.get_job("job") is None
            assert rig.errors_of("executor_lookup") == 1
            assert START.timestamp() == rig.job().next_run, "the promise is not taken back"

    def test_other_jobs_of_the_pass_run(self) -> None:
        """A job that cannot be submitted does not affect the other jobs of the pass."""
        with hand_driven_rig() as rig:
            rig.add(jobs.nothing, every(10), id="a", executor="nowhere")
            rig.add(jobs.nothing, every(10), id="b")
            rig.scheduler.turn()
            rig.settle()
            assert (rig.outcomes("a"), rig.outcomes("b")) == ({"lost": 1}, {"success": 1})
