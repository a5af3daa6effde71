"""Skipped runs: they are due while `max_instances` runs of the job are in flight."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import jobs
from tests.helpers.clocks import START
from tests.helpers.rigs import Gate, hand_driven_rig
from tests.helpers.schedulers import forkserver_pool
from tests.helpers.triggers import every
from tests.helpers.waiting import wait_until


class TestMaxInstances:
    """Runs that are skipped because other runs of the job are in flight."""

    def test_a_run_that_meets_one_in_flight_is_skipped(self) -> None:
        """A run that is due while another one is in flight is skipped."""
        gate = Gate()
        with hand_driven_rig() as rig:
            rig.add(gate.hold, every(10))
            rig.scheduler.turn()
            gate.wait_for_run()
            rig.after(10)
            rig.after(10)
            assert rig.outcomes() == {"skipped": 2}
            gate.open()
            rig.settle()
            assert rig.outcomes() == {"skipped": 2, "success": 1}

    @pytest.mark.parametrize(
        ("coalesce", "expected"),
        [(True, {"coalesced": 4, "skipped": 1}), (False, {"skipped": 5})],
    )
    def test_a_backlog_is_skipped(self, coalesce: bool, expected: dict[str, int]) -> None:
        """Of a backlog, the run that remains after coalescing is skipped, or all runs are."""
        gate = Gate()
        with hand_driven_rig() as rig:
            rig.add(gate.hold, every(10), coalesce=coalesce)
            rig.scheduler.turn()
            gate.wait_for_run()
            rig.after(50)
            assert expected == rig.outcomes()
            gate.open()

    def test_only_runs_beyond_max_instances_are_skipped(self) -> None:
        """With ``max_instances=2``, two runs are in flight and the third is skipped."""
        gate = Gate()
        with hand_driven_rig() as rig:
            rig.add(gate.hold, every(10), max_instances=2)
            rig.scheduler.turn()
            rig.after(10)
            rig.after(10)
            gate.wait_for_run()
            gate.wait_for_run()
            assert (rig.job().running, rig.outcomes()) == (2, {"skipped": 1})
            gate.open()
            rig.settle()
            assert rig.outcomes() == {"success": 2, "skipped": 1}

    def test_a_lost_run_leaves_the_other_one_running(self, tmp_path: Path) -> None:
        """Of two runs in flight, a lost one does not end the other."""
        with hand_driven_rig({"default": forkserver_pool(2)}) as rig:
            rig.add(jobs.lose_the_first, every(10), args=[str(tmp_path)], max_instances=2)
            rig.scheduler.turn()
            wait_until((tmp_path / "first.in").exists)
            rig.after(10)
            wait_until((tmp_path / "second.in").exists)
            (tmp_path / "first.out").touch()
            wait_until(lambda: rig.outcomes() == {"lost": 1})
            assert (1, START.timestamp() + 10) == (rig.job().running, rig.job().last_run_due_at)
            (tmp_path / "second.out").touch()
            rig.settle()
            assert rig.outcomes() == {"lost": 1, "success": 1}
