"""Schedulers that are uninstrumented while runs are in flight."""

from __future__ import annotations

import asyncio
from datetime import timezone
from pathlib import Path
from typing import Any

import pytest
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.asyncio import AsyncIOScheduler

from tests.helpers import jobs
from tests.helpers.clocks import freeze_time
from tests.helpers.metrics import check_counts, job_state, outcomes
from tests.helpers.rigs import Gate, Rig
from tests.helpers.schedulers import HandDriven, forkserver_pool
from tests.helpers.triggers import every
from tests.helpers.waiting import wait_until, wait_until_async

UTC = timezone.utc


class TestUninstrument:
    """`uninstrument` while runs are queued and running."""

    @pytest.mark.parametrize("kind", ["threads", "processes"])
    def test_runs_of_a_burst_end_as_without_telemetry(self, kind: str, tmp_path: Path) -> None:
        """Running and queued runs end as without telemetry."""
        executor = ThreadPoolExecutor(1) if kind == "threads" else forkserver_pool()
        scheduler = HandDriven(executors={"default": executor}, timezone=UTC)
        with freeze_time() as clock:
            rig = Rig(scheduler)
            scheduler.start()
            rig.add(jobs.hold, every(10), args=[str(tmp_path)], coalesce=False)
            rig.add(jobs.give_back, every(10), args=[1], id="queued", coalesce=False)
            clock.advance(15)
            scheduler.turn()
            wait_until((tmp_path / "gate.in").exists)
            rig.telemetry.uninstrument()
            (tmp_path / "gate.out").touch()
            wait_until(lambda: rig.codes().count("executed") == 2)
            wait_until(lambda: rig.codes("queued").count("executed") == 2)
            assert not any(executor._instances.values())
            scheduler.shutdown()
        check_counts(rig.telemetry)
        assert {str} == {type(e.job_id) for e in rig.events if hasattr(e, "job_id")}
        assert [e.retval for e in rig.events if getattr(e, "retval", None) == 1] == [1, 1]

    def test_coroutine_that_waits_ends_as_without_telemetry(self) -> None:
        """A coroutine that waits ends as without telemetry."""
        events: list[Any] = []

        async def main() -> None:
            go_on = asyncio.Event()

            async def wait() -> str:
                await go_on.wait()
                return "done"

            scheduler = AsyncIOScheduler(timezone=UTC)
            rig = Rig(scheduler)
            scheduler.start()
            rig.add(wait)
            await wait_until_async(lambda: rig.job().running)
            rig.telemetry.uninstrument()
            go_on.set()
            await wait_until_async(lambda: rig.codes().count("executed"))
            events.extend(e for e in rig.events if hasattr(e, "retval"))
            scheduler.shutdown()
            await wait_until_async(lambda: not scheduler.running)

        asyncio.run(main())
        assert [(str, "done")] == [(type(e.job_id), e.retval) for e in events]

    def test_the_end_of_a_run_from_before_is_not_taken_for_a_later_one(self) -> None:
        """The end of an earlier run is not mistaken for that of a later one."""
        before, after = Gate(), Gate()
        scheduler = HandDriven(executors={"default": ThreadPoolExecutor(2)}, timezone=UTC)
        with freeze_time() as clock:
            rig = Rig(scheduler)
            scheduler.start()
            job = rig.add(before.hold, every(10), max_instances=2)
            scheduler.turn()
            before.wait_for_run()
            rig.telemetry.uninstrument()
            job.modify(func=after.hold)
            again = Rig(scheduler)
            again.checks_events = False  # of more, namely of the run from before
            clock.advance(10)
            scheduler.turn()
            after.wait_for_run()
            before.open()
            wait_until(lambda: rig.codes().count("executed") == 1)
            assert (job_state(again.telemetry).running, outcomes(again.telemetry)) == (1, {})
            after.open()
            wait_until(lambda: outcomes(again.telemetry) == {"success": 1})
            scheduler.shutdown()
        again.check()
        again.telemetry.uninstrument()
