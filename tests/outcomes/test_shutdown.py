"""Runs in flight when their scheduler is shut down."""

from __future__ import annotations

import threading
from datetime import timezone
from pathlib import Path

import pytest
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler

from tests.helpers import jobs
from tests.helpers.metrics import check_counts
from tests.helpers.rigs import Gate, hand_driven_rig, live_rig
from tests.helpers.schedulers import finish_pass, forkserver_pool
from tests.helpers.waiting import wait_until

UTC = timezone.utc


class TestShutdown:
    """Schedulers that are shut down while runs are queued and running."""

    @pytest.mark.parametrize("wait", [False, True])
    def test_queued_runs_of_a_thread_pool_run_after_shutdown(self, wait: bool) -> None:
        """Queued runs of a thread pool run after `shutdown`, with and without `wait`."""
        gate = Gate()
        scheduler = BackgroundScheduler(executors={"default": ThreadPoolExecutor(1)}, timezone=UTC)
        with live_rig(scheduler) as rig:
            rig.add(gate.hold, id="a")
            gate.wait_for_run()
            for job_id in "bc":
                rig.add(jobs.nothing, id=job_id)
            wait_until(lambda: rig.job("b").queued + rig.job("c").queued == 2)
            finish_pass(scheduler)
            thread = threading.Thread(target=scheduler.shutdown, args=[wait])
            thread.start()
            wait_until(lambda: not scheduler.running)
            assert wait == thread.is_alive() or not wait
            gate.open()
            thread.join()
            rig.settle()
            assert [rig.outcomes(job_id) for job_id in "abc"] == [{"success": 1}] * 3

    @pytest.mark.parametrize("wait", [False, True])
    def test_queued_runs_of_a_process_pool_run_after_shutdown(
        self, wait: bool, tmp_path: Path
    ) -> None:
        """Queued runs of a process pool run after `shutdown`, with and without `wait`."""
        with hand_driven_rig({"default": forkserver_pool()}) as rig:
            rig.add(jobs.hold, args=[str(tmp_path)], id="a")
            rig.add(jobs.nothing, id="b")
            rig.add(jobs.nap, args=[0.1], id="c")
            rig.scheduler.turn()
            wait_until((tmp_path / "gate.in").exists)
            thread = threading.Thread(target=rig.scheduler.shutdown, args=[wait])
            thread.start()
            wait_until(lambda: not rig.scheduler.running)
            check_counts(rig.telemetry)
            (tmp_path / "gate.out").touch()
            thread.join()
            rig.settle()
            assert [rig.outcomes(job_id) for job_id in "abc"] == [{"success": 1}] * 3
            assert 0.1 <= rig.job("c").durations.sum < 1
