"""
Durations and start delays, measured where the job runs: in its thread, task or process.

Upper bounds are wide, as machines may be busy; wrong values are outside of the bounds.
"""

from __future__ import annotations

import asyncio
import time
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from apscheduler.executors.debug import DebugExecutor
from apscheduler.executors.pool import ThreadPoolExecutor

from tests.helpers import jobs
from tests.helpers.clocks import START, freeze_time
from tests.helpers.rigs import Gate, Rig, hand_driven_rig, live_rig, live_rig_async
from tests.helpers.schedulers import HandDriven, forkserver_pool
from tests.helpers.waiting import wait_until, wait_until_async

UTC = timezone.utc


def by_the_clock(executor: Any) -> HandDriven:
    """Return a scheduler that is driven by hand, in the time that it really is."""
    return HandDriven(executors={"default": executor}, timezone=UTC)


def duration(rig: Rig, job_id: str = "job") -> float:
    """Return the duration of a job's only run."""
    account = rig.job(job_id)
    assert sum(account.durations.counts) == 1
    assert account.durations.sum == account.last_duration
    return float(account.durations.sum)


def delay(rig: Rig, job_id: str = "job") -> float:
    """Return the start delay of a job's only run."""
    assert sum(rig.job(job_id).delays.counts) == 1
    return float(rig.job(job_id).delays.sum)


NAP = 0.6
"""Seconds that each of several queued runs takes; a busy machine interrupts them for less."""


class TestQueue:
    """Runs that wait for the only worker, and are queued at the same moment."""

    @pytest.mark.parametrize("kind", ["threads", "processes"])
    def test_delay_of_a_queued_run_is_not_part_of_its_duration(self, kind: str) -> None:
        """The third takes as long as the first and starts after two of them; one may fail."""
        executor = ThreadPoolExecutor(1) if kind == "threads" else forkserver_pool()
        with live_rig(by_the_clock(executor)) as rig:
            rig.add(jobs.nothing, id="first")  # starts the child process, which takes time
            rig.scheduler.turn()
            rig.settle()
            now = datetime.now(UTC)
            rig.add(jobs.nap, args=[NAP], id="a", next_run_time=now)
            rig.add(jobs.nap_and_fail, args=[NAP], id="b", next_run_time=now)
            rig.add(jobs.nap, args=[NAP], id="c", next_run_time=now)
            rig.scheduler.turn()
            rig.settle()
            assert (rig.outcomes("b"), rig.outcomes("c")) == ({"error": 1}, {"success": 1})
            for job_id in "abc":
                assert NAP <= duration(rig, job_id) < 2 * NAP
            assert 0 <= delay(rig, "a") <= delay(rig, "b") - NAP + 0.01
            assert delay(rig, "b") <= delay(rig, "c") - NAP + 0.01
            assert 2 * NAP <= delay(rig, "c") < 10 * NAP

    def test_each_run_of_a_burst_has_its_own_duration_and_delay(self) -> None:
        """Each run of a burst has its own duration, and its own delay."""

        def nap() -> None:
            time.sleep(0.05)
            rig.clock.advance(3)

        with hand_driven_rig() as rig:
            rig.add(nap, "interval", seconds=10, start_date=START, coalesce=False)
            rig.after(25)  # delays of 25, 15 + 3 and 5 + 6 s
            rig.settle()
            account = rig.job()
            assert (sum(account.delays.counts), account.delays.sum) == (3, 25 + 18 + 11)
            assert sum(account.durations.counts) == 3
            assert 0.15 <= account.durations.sum < 1
            assert 0.05 <= (account.last_duration or 0) <= account.durations.sum - 0.1


class TestInPlace:
    """Runs that do not wait for a worker."""

    def test_run_of_the_debug_executor_is_measured(self) -> None:
        """A run of the debug executor has a duration and a delay."""
        with live_rig(by_the_clock(DebugExecutor())) as rig:
            rig.add(jobs.nap, args=[0.05])
            rig.scheduler.turn()
            assert 0.05 <= duration(rig) < 1
            assert 0 <= delay(rig) < 1

    def test_duration_of_a_coroutine_is_from_first_step_to_end(self) -> None:
        """A coroutine's duration is from its first step to its end."""

        async def nap(seconds: float) -> None:
            await asyncio.sleep(seconds)

        async def fail(seconds: float) -> None:
            await asyncio.sleep(seconds)
            jobs.fail()

        async def main() -> None:
            async with live_rig_async() as rig:
                rig.add(nap, args=[0.2], id="a")
                rig.add(fail, args=[0.1], id="b")
                await wait_until_async(lambda: "executed" in rig.codes("a"))
                assert 0.2 <= duration(rig, "a") < 1
                assert 0.1 <= duration(rig, "b") < 1
                assert 0 <= delay(rig, "a") < 1

        asyncio.run(main())

    def test_delay_counts_from_the_scheduled_time(self) -> None:
        """The delay counts from the scheduled time, not from the pass that found the job."""
        with hand_driven_rig() as rig:
            rig.add(jobs.nothing, next_run_time=START)
            rig.after(7)
            rig.settle()
            assert delay(rig) == 7
            assert rig.job().last_run_due_at == START.timestamp()

    def test_running_run_shows_since_when_and_no_duration(self) -> None:
        """A running run has a start time and no duration yet."""
        gate = Gate()
        with hand_driven_rig() as rig:
            rig.add(gate.hold, next_run_time=START)
            rig.after(2)
            gate.wait_for_run()
            rig.clock.advance(100)
            account = rig.job()
            assert (account.running, account.oldest_start_at) == (1, START.timestamp() + 2)
            assert (account.last_duration, sum(account.delays.counts)) == (None, 1)
            gate.open()
            rig.settle()
            assert rig.job().oldest_start_at == 0

    def test_runs_without_a_start_have_no_duration(self) -> None:
        """Lost runs are in no histogram."""
        with hand_driven_rig({"default": forkserver_pool()}) as rig:
            rig.add(lambda: None, id="lost")
            rig.add(jobs.nothing, executor="nowhere", id="nowhere")
            rig.scheduler.turn()
            rig.settle()
            for job_id in ("lost", "nowhere"):
                assert rig.outcomes(job_id) == {"lost": 1}
                assert sum(rig.job(job_id).durations.counts) == 0
                assert rig.job(job_id).last_duration is None


class TestClockJumps:
    """Wall clocks that are set while jobs are queued and running."""

    def test_start_before_the_due_time_has_a_delay_of_0(self) -> None:
        """A run that starts before its due time, by the wall clock, has a delay of 0."""
        gate = Gate()
        with hand_driven_rig({"default": ThreadPoolExecutor(1)}) as rig:
            rig.add(gate.hold, id="a")
            rig.add(jobs.nothing)
            rig.scheduler.turn()
            gate.wait_for_run()
            rig.clock.advance(-3600)
            gate.open()
            rig.settle()
            assert delay(rig) == 0
            assert 0 <= duration(rig) < 1

    @pytest.mark.parametrize("jump", [-3600, 3600])
    def test_duration_does_not_follow_the_wall_clock(self, jump: float) -> None:
        """A duration is measured with a monotonic clock; the end is start plus duration."""
        with hand_driven_rig() as rig:
            rig.add(lambda: rig.clock.advance(jump))
            rig.scheduler.turn()
            rig.settle()
            assert 0 <= duration(rig) < 1
            assert rig.job().last_success_at == pytest.approx(START.timestamp(), abs=1)

    def test_child_whose_clock_is_behind_has_a_delay_of_0(self) -> None:
        """If the child's clock is behind, the delay is 0."""
        with freeze_time(datetime.now(UTC) + timedelta(hours=1)):
            scheduler = by_the_clock(forkserver_pool())
            with live_rig(scheduler) as rig:
                rig.add(jobs.nap, args=[0.05])
                scheduler.turn()
                wait_until(lambda: rig.outcomes() == {"success": 1})
                assert delay(rig) == 0
                assert 0.05 <= duration(rig) < 1
