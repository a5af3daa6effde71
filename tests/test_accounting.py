"""
The accounting invariant: every due run ends in exactly one of six outcomes, whatever happens to it.

Each test computes by itself how many runs fall due and how they end. Every rig also checks that no
count is negative, and that listeners got as many events as there are outcomes.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import copy
import gc
import itertools
import random
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor as Threads
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar
from zoneinfo import ZoneInfo

import pytest
from apscheduler.events import (
    EVENT_JOB_ERROR,
    EVENT_JOB_EXECUTED,
    EVENT_JOB_MISSED,
    EVENT_JOB_SUBMITTED,
    JobExecutionEvent,
)
from apscheduler.executors.asyncio import AsyncIOExecutor, run_coroutine_job
from apscheduler.executors.base import BaseExecutor, run_job
from apscheduler.executors.debug import DebugExecutor
from apscheduler.executors.pool import BasePoolExecutor, ThreadPoolExecutor
from apscheduler.jobstores.base import JobLookupError
from apscheduler.jobstores.memory import MemoryJobStore
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.schedulers.blocking import BlockingScheduler
from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.combining import AndTrigger, OrTrigger
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.interval import IntervalTrigger

import support_jobs as jobs
from apscheduler_telemetry.adapters.apscheduler3 import triggers
from support import (
    APSCHEDULER,
    START,
    Gate,
    HandDriven,
    HandRig,
    Rig,
    by_hand,
    check_counts,
    errors_of,
    eventually,
    finish_pass,
    frozen,
    job_state,
    job_states,
    live,
    live_async,
    outcomes,
    processes,
    recorder_of,
    until,
)

UTC = timezone.utc
MINUTE = 60.0
HOUR = 3600.0
DAY = 24 * HOUR


def every(seconds: float, **options: Any) -> IntervalTrigger:
    """Return a trigger that fires at `START` for the first time."""
    return IntervalTrigger(seconds=seconds, start_date=START, timezone=UTC, **options)


def calendar(**options: Any) -> BaseTrigger:
    """Return a trigger of every day at midnight, which APScheduler 3.10 does not have."""
    module = pytest.importorskip("apscheduler.triggers.calendarinterval")
    trigger: BaseTrigger = module.CalendarIntervalTrigger(
        days=1, start_date=START.date(), timezone=UTC, **options
    )
    return trigger


def cron(**options: Any) -> CronTrigger:
    return CronTrigger(timezone=UTC, **options)


class TestFastJobs:
    """Jobs that end before APScheduler gets around to telling that they were submitted."""

    def test_each_of_500_one_off_runs_counts_once(self) -> None:
        """500 one-off jobs share one label and are 500 successes, told in whatever order."""
        with live(BackgroundScheduler(timezone=UTC), start=False) as rig:
            rig.scheduler.start(paused=True)
            for _ in range(500):
                rig.add(jobs.nothing, id=None)
            rig.scheduler.resume()
            label = "support_jobs:nothing"
            until(lambda: rig.outcomes(label) == {"success": 500})
            until(lambda: sum(e.code == EVENT_JOB_EXECUTED for e in rig.events) == 500)
        told: dict[str, list[str]] = {}
        for event in rig.events:
            if hasattr(event, "job_id"):
                told.setdefault(event.job_id, rig.codes(event.job_id))
        assert ["executed", "submitted"] in told.values(), "the case that is meant did not occur"

    def test_a_blocking_scheduler_is_no_different(self) -> None:
        """Runs of a scheduler that blocks its thread are counted there."""
        scheduler = BlockingScheduler(timezone=UTC)
        with live(scheduler, start=False) as rig:
            for number in range(20):
                rig.add(jobs.nothing, id=f"job {number}")
            thread = threading.Thread(target=scheduler.start)
            thread.start()
            until(lambda: scheduler.running)
            until(lambda: all(rig.outcomes(f"job {n}") == {"success": 1} for n in range(20)))
            scheduler.shutdown()
            thread.join()


class TestBacklog:
    """Many runs due at once, with ``coalesce=False``: one submission, one burst of events."""

    def test_each_run_of_a_burst_is_counted(self) -> None:
        """Five due runs without a grace time are five successes."""
        with by_hand() as rig:
            rig.add(jobs.nothing, every(10), coalesce=False)
            rig.after(45)
            rig.settle()
            assert rig.outcomes() == {"success": 5}
        assert [code for code in rig.codes() if code == "executed"] == ["executed"] * 5

    def test_misfired_runs_of_a_burst_are_counted_as_missed(self) -> None:
        """Of five runs, those that are later than the grace time are missed, the others run."""
        with by_hand() as rig:
            rig.add(jobs.nothing, every(10), coalesce=False, misfire_grace_time=25)
            rig.after(45)  # 45, 35, 25, 15 and 5 s late
            rig.settle()
            assert rig.outcomes() == {"missed": 2, "success": 3}

    def test_a_run_that_the_others_of_its_burst_delay_is_missed(self) -> None:
        """A run of the burst is missed when the runs before it in the burst take too long."""
        with by_hand() as rig:
            rig.add(lambda: rig.clock.advance(20), every(10), coalesce=False, misfire_grace_time=30)
            rig.after(55)  # 55, 45, 35, 25, then 15 + 20 and 5 + 20 s late
            rig.settle()
            assert rig.outcomes() == {"missed": 4, "success": 2}

    def test_errors_and_successes_of_a_burst_are_told_apart(self) -> None:
        """Errors and successes of one burst are kept apart."""
        turns = iter(range(6))

        def fail_each_third() -> None:
            if next(turns) % 3 == 0:
                jobs.fail()

        with by_hand() as rig:
            rig.add(fail_each_third, every(10), coalesce=False)
            rig.after(55)
            rig.settle()
            assert rig.outcomes() == {"success": 4, "error": 2}
            assert rig.job().exceptions == {"ValueError": 2}

    def test_a_burst_in_a_process_is_counted_run_by_run(self) -> None:
        """A burst that runs in another process is counted run by run, with its durations."""
        with by_hand({"default": processes()}) as rig:
            rig.add(jobs.nap, every(10), args=[0.02], coalesce=False)
            rig.after(25)
            assert (rig.job().running, rig.job().queued) == (1, 2)
            rig.settle()
            assert rig.outcomes() == {"success": 3}
            assert 0.06 <= rig.job().durations.sum < 1


FOLDED: dict[str, tuple[Callable[[], BaseTrigger], float]] = {
    "interval": (lambda: every(MINUTE), 9.5 * MINUTE),
    "interval of parts": (lambda: every(0.1), 0.95),
    "cron": (lambda: cron(minute="*"), 9.5 * MINUTE),
    "calendar": (calendar, 9.5 * DAY),
    "or": (lambda: OrTrigger([cron(minute="0"), cron(minute="30")]), 4.75 * HOUR),
    "and": (lambda: AndTrigger([cron(minute="*/30"), cron(minute="0,30")]), 4.75 * HOUR),
}
THROWN: dict[str, tuple[Callable[[], BaseTrigger], float]] = {
    "interval": (lambda: every(MINUTE, jitter=2), 9.5 * MINUTE),
    "cron": (lambda: cron(minute="*", jitter=20), 9.5 * MINUTE),
    "calendar": (lambda: calendar(jitter=3600), 9.5 * DAY),
    "or": (lambda: OrTrigger([cron(minute="0"), cron(minute="30")], jitter=60), 4.75 * HOUR),
    "inside or": (
        lambda: OrTrigger([cron(minute="0", jitter=60), cron(minute="30", jitter=30)]),
        4.75 * HOUR,
    ),
}


def cases(of: dict[str, Any]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("make", "seconds"), of.values(), ids=of)


class TestCoalescing:
    """Ten runs fall due, one of them runs (``coalesce=True``), and nothing tells of the others."""

    @cases(FOLDED)
    def test_all_runs_but_the_last_are_coalesced(
        self, make: Callable[[], BaseTrigger], seconds: float
    ) -> None:
        """Nine runs are coalesced and one is a success, whatever the trigger."""
        with by_hand() as rig:
            rig.add(jobs.nothing, make(), coalesce=True)
            rig.after(seconds)
            rig.settle()
            assert rig.outcomes() == {"success": 1, "coalesced": 9}
            assert rig.job().due_count == 10

    @cases(THROWN)
    def test_jitter_does_not_change_counts(
        self, make: Callable[[], BaseTrigger], seconds: float
    ) -> None:
        """Jitter that is smaller than the interval leaves the number exact."""
        for seed in range(20):
            random.seed(seed)
            with by_hand() as rig:
                rig.add(jobs.nothing, make(), coalesce=True)
                rig.after(seconds)
                rig.settle()
                assert rig.outcomes() == {"success": 1, "coalesced": 9}, f"seed {seed}"

    def test_jitter_as_large_as_the_interval_makes_the_count_an_estimate(self) -> None:
        """Where only the dice knew how many there were, the number is a fair guess."""
        guessed = actual = 0
        for seed in range(20):
            random.seed(seed)
            with by_hand() as rig:
                job = rig.add(jobs.nothing, every(10, jitter=10), coalesce=True)
                dice = random.getstate()
                actual += len(job._get_run_times(rig.clock.now + timedelta(seconds=300)))
                random.setstate(dice)
                rig.after(300)
                rig.settle()
                guessed += rig.job().due_count
        assert actual == pytest.approx(guessed, rel=0.05)

    @cases(THROWN)
    def test_telemetry_draws_no_random_numbers(
        self, make: Callable[[], BaseTrigger], seconds: float
    ) -> None:
        """Whoever seeded `random` gets the same fire times, and next number, as without us."""

        def throw(scheduler: HandDriven, rig: HandRig | None, advance: Any) -> tuple[Any, float]:
            random.seed(4)
            job = scheduler.add_job(
                jobs.nothing, make(), id="job", coalesce=True, misfire_grace_time=None
            )
            advance(seconds)
            scheduler.turn()
            if rig is not None:
                until(lambda: rig.job().intervals, "telemetry to look ahead")
            return job.next_run_time, random.random()

        with frozen() as clock:
            scheduler = HandDriven(timezone=UTC)
            scheduler.start()
            expected = throw(scheduler, None, clock.advance)
            scheduler.shutdown()
        with by_hand() as rig:
            assert expected == throw(rig.scheduler, rig, rig.clock.advance)

    @pytest.mark.parametrize("instrumented", [False, True])
    def test_a_stateful_trigger_is_not_called_more_often(self, instrumented: bool) -> None:
        """A trigger of the user's that keeps count is not asked, and is understood all the same."""
        trigger = Countdown(10)
        with by_hand() as rig:
            if not instrumented:
                rig.telemetry.uninstrument()
            rig.scheduler.add_job(
                jobs.nothing, trigger, id="job", coalesce=True, misfire_grace_time=None
            )
            rig.after(9.5 * MINUTE)
            # Once when it is added, ten times for what is due, once for what comes then.
            assert (trigger.asked, trigger.left) == (12, -2)
            assert rig.scheduler.get_job("job") is None
            if instrumented:
                rig.settle()
                assert rig.outcomes() == {"success": 1, "coalesced": 9}
            rig.is_told = instrumented

    def test_a_stateful_trigger_of_another_process_is_counted(self, tmp_path: Path) -> None:
        """So it is where another process has stored the job, and the loop comes to it first."""
        pytest.importorskip("sqlalchemy")
        from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore

        url = f"sqlite:///{tmp_path / 'jobs.sqlite'}"
        with by_hand(jobstores={"default": SQLAlchemyJobStore(url)}) as rig:
            until(lambda: recorder_of(rig.telemetry).jobstores()["default"].last_read_at)
            other = HandDriven(jobstores={"default": SQLAlchemyJobStore(url)}, timezone=UTC)
            other.start()
            trigger = Countdown(10)
            other.add_job(jobs.nothing, trigger, id="job", coalesce=True, misfire_grace_time=None)
            other.shutdown()
            rig.after(9.5 * MINUTE)
            rig.settle()
            assert rig.outcomes() == {"success": 1, "coalesced": 9}

    def test_a_trigger_that_cannot_be_copied_is_an_error_of_ours(self) -> None:
        """A trigger that telemetry cannot ask runs as ever, and the failure is counted."""
        trigger = Countdown(10)
        trigger.lock = threading.Lock()
        with by_hand() as rig:
            rig.add(jobs.nothing, trigger, coalesce=True)
            rig.after(9.5 * MINUTE)
            rig.settle()
            assert rig.outcomes() == {"success": 1}
            rig.failing = {"schedule"}

    def test_a_week_of_missed_seconds_is_counted_at_once(self) -> None:
        """A job of every second that was down for a week is counted at once."""
        with by_hand() as rig:
            rig.add(jobs.nothing, every(1), coalesce=True)
            rig.after(7 * DAY)
            rig.settle()
            assert rig.outcomes() == {"success": 1, "coalesced": 7 * 24 * 3600}

    def test_a_run_in_time_coalesces_nothing(self) -> None:
        """A job that is run whenever it is due has no coalesced runs."""
        with by_hand() as rig:
            rig.add(jobs.nothing, every(10), coalesce=True)
            rig.scheduler.turn()
            rig.settle()
            for _ in range(5):
                rig.after(10)
                rig.settle()
            assert rig.outcomes() == {"success": 6}


class Countdown(BaseTrigger):
    """A trigger of the user's: every minute, so many times, and it keeps count of itself."""

    def __init__(self, times: int) -> None:
        self.left = times
        self.asked = 0
        self.lock: Any = None

    def get_next_fire_time(self, previous: datetime | None, now: datetime) -> datetime | None:
        self.asked += 1
        self.left -= 1
        if self.left < 0:
            return None
        return START if previous is None else previous + timedelta(minutes=1)


BERLIN = ZoneInfo("Europe/Berlin")
SPRING = datetime(2030, 3, 30, 23, 0, tzinfo=UTC)  # midnight; at 2:00 it is 3:00
AUTUMN = datetime(2030, 10, 26, 22, 0, tzinfo=UTC)  # midnight; at 3:00 it is 2:00


class TestDaylightSaving:
    """Nights in which an hour is missing, or comes twice."""

    @pytest.mark.parametrize("coalesce", [True, False])
    @pytest.mark.parametrize("midnight", [SPRING, AUTUMN], ids=["spring", "autumn"])
    def test_intervals(self, midnight: datetime, coalesce: bool) -> None:
        """Ten hours are ten runs of an hourly job."""
        if APSCHEDULER < (3, 11) and midnight is AUTUMN and not coalesce:
            pytest.skip("APScheduler 3.10 adds intervals to the clock on the wall, and loses one")
        trigger = IntervalTrigger(hours=1, start_date=midnight.astimezone(BERLIN), timezone=BERLIN)
        with by_hand(at=midnight, zone=BERLIN) as rig:
            rig.add(jobs.nothing, trigger, coalesce=coalesce)
            rig.after(9.5 * HOUR)
            rig.settle()
            expected = {"success": 1, "coalesced": 9} if coalesce else {"success": 10}
            assert expected == rig.outcomes()

    @pytest.mark.skipif(APSCHEDULER < (3, 11), reason="APScheduler 3.10 repeats hours itself")
    @pytest.mark.parametrize("midnight", [SPRING, AUTUMN], ids=["spring", "autumn"])
    def test_cron(self, midnight: datetime) -> None:
        """A cron job of every half hour has as many runs as the night has half hours."""
        trigger = CronTrigger(minute="*/30", timezone=BERLIN)
        with by_hand(at=midnight, zone=BERLIN) as rig:
            rig.add(jobs.nothing, trigger, coalesce=True)
            rig.after(4.75 * HOUR)
            rig.settle()
            assert rig.outcomes() == {"success": 1, "coalesced": 9}

    def test_lost_runs_in_the_repeated_hour_are_counted_by_the_time(self) -> None:
        """What is due in that hour is counted by the time, and not by the clock on the wall."""
        trigger = IntervalTrigger(minutes=30, start_date=AUTUMN.astimezone(BERLIN), timezone=BERLIN)
        with by_hand(at=AUTUMN, zone=BERLIN) as rig:
            rig.add(jobs.nothing, trigger, executor="nowhere")
            rig.after(3.25 * HOUR)  # a quarter past two, for the second time
            assert rig.outcomes() == {"lost": 7}


class TestMisfires:
    """Runs that start later than their job allows."""

    def test_a_run_that_the_loop_finds_too_late_is_missed(self) -> None:
        """A run that the loop finds too late is missed, and the next one in time is not."""
        with by_hand() as rig:
            rig.add(jobs.nothing, every(MINUTE), misfire_grace_time=30)
            rig.after(45)
            rig.settle()
            rig.after(15)
            rig.settle()
            assert rig.outcomes() == {"missed": 1, "success": 1}

    def test_a_run_that_waits_too_long_for_a_thread_is_missed(self) -> None:
        """A run that waits too long for a thread is missed."""
        gate = Gate()
        with by_hand({"default": ThreadPoolExecutor(1)}) as rig:
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
            assert rig.job().last_run_due is None, "it never started"

    def test_each_queued_run_of_one_job_is_missed_by_itself(self) -> None:
        """Of a job that waits more than once, each run is missed when it is too late."""
        gate = Gate()
        with by_hand({"default": ThreadPoolExecutor(1)}) as rig:
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
        """A run that a child finds too late is missed, though the parent thought it had begun."""
        long_ago = datetime.now(UTC) - timedelta(hours=1)  # for the child, whose clock is right
        with by_hand({"default": processes()}, at=long_ago) as rig:
            rig.add(jobs.nothing, misfire_grace_time=60)
            rig.scheduler.turn()
            rig.settle()
            assert rig.outcomes() == {"missed": 1}
            assert [0] * len(rig.job().delays.counts) == rig.job().delays.counts

    def test_the_last_of_a_coalesced_backlog_can_be_missed(self) -> None:
        """Of a backlog that is folded, the last run can be too late as well."""
        with by_hand() as rig:
            rig.add(jobs.nothing, every(MINUTE), coalesce=True, misfire_grace_time=30)
            rig.after(4 * MINUTE + 45)
            rig.settle()
            assert rig.outcomes() == {"missed": 1, "coalesced": 4}


class TestMaxInstances:
    """Runs that are refused, as others of the job are under way."""

    def test_a_run_that_meets_one_in_flight_is_skipped(self) -> None:
        """Each due run that meets one under way is skipped."""
        gate = Gate()
        with by_hand() as rig:
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
        """Of a backlog, the run that the others are folded into is skipped, or all of them are."""
        gate = Gate()
        with by_hand() as rig:
            rig.add(gate.hold, every(10), coalesce=coalesce)
            rig.scheduler.turn()
            gate.wait_for_run()
            rig.after(50)
            assert expected == rig.outcomes()
            gate.open()

    def test_only_runs_beyond_max_instances_are_skipped(self) -> None:
        """With ``max_instances=2``, two runs are under way and the third is skipped."""
        gate = Gate()
        with by_hand() as rig:
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
        """Of two runs at a time the one that gets lost does not end the other's account."""
        with by_hand({"default": processes(2)}) as rig:
            rig.add(jobs.lose_the_first, every(10), args=[str(tmp_path)], max_instances=2)
            rig.scheduler.turn()
            until((tmp_path / "first.in").exists)
            rig.after(10)
            until((tmp_path / "second.in").exists)
            (tmp_path / "first.out").touch()
            until(lambda: rig.outcomes() == {"lost": 1})
            assert (1, START.timestamp() + 10) == (rig.job().running, rig.job().last_run_due)
            (tmp_path / "second.out").touch()
            rig.settle()
            assert rig.outcomes() == {"lost": 1, "success": 1}


class TestRunsOfOneJob:
    """Runs of one job after and beside each other."""

    @staticmethod
    def settle(rig: Rig) -> None:
        """Wait until no run is in flight, without a look at the metrics state."""
        executors = rig.scheduler._executors.values()

        def is_enabled_final() -> bool:
            events = list(rig.events)
            due = sum(len(e.scheduled_run_times) for e in events if e.code == EVENT_JOB_SUBMITTED)
            codes = {EVENT_JOB_EXECUTED, EVENT_JOB_ERROR, EVENT_JOB_MISSED}
            ends = sum(e.code in codes for e in events)
            return ends >= due and not any(any(list(e._instances.values())) for e in executors)

        until(is_enabled_final)

    def test_the_failure_of_a_run_from_before_us_is_not_taken_for_a_later_one(self) -> None:
        """A run that started before telemetry was installed fails; the run after it goes on."""
        before, after = Gate(), Gate()
        gates = iter([before, after])

        def hold() -> None:
            gate = next(gates)
            gate.hold()
            if gate is before:
                jobs.fail()

        scheduler = HandDriven(executors={"default": ThreadPoolExecutor(2)}, timezone=UTC)
        with frozen() as clock:
            scheduler.start()
            scheduler.add_job(hold, every(10), id="job", max_instances=2, misfire_grace_time=None)
            clock.advance(10)
            scheduler.turn()
            before.wait_for_run()
            rig = Rig(scheduler)
            clock.advance(10)
            scheduler.turn()
            after.wait_for_run()
            before.open()
            until(lambda: "error" in rig.codes("job"))
            assert rig.job().running == 1
            after.open()
            until(lambda: "executed" in rig.codes("job"))
            assert rig.outcomes() == {"success": 1}
            scheduler.shutdown()
        rig.telemetry.uninstrument()

    @pytest.mark.parametrize("kind", ["inline", "threads"])
    def test_a_callable_that_cannot_be_called_is_an_error(self, kind: str) -> None:
        """So it is where the arguments are such that no call is made."""
        executor = DebugExecutor() if kind == "inline" else ThreadPoolExecutor(2)
        with by_hand({"default": executor}) as rig:
            job = rig.add(jobs.nothing, "interval", seconds=10)
            rig.after(10)
            rig.settle()
            job.kwargs = {1: 2}
            rig.after(10)
            rig.settle()
            job.kwargs = {}
            rig.after(10)
            rig.settle()
            assert rig.outcomes() == {"success": 2, "error": 1}
            assert rig.job().exceptions == {"TypeError": 1}

    def test_a_job_that_runs_within_itself_has_two_runs(self) -> None:
        """It makes the loop look for due jobs while the loop runs it."""
        with by_hand({"default": DebugExecutor()}) as rig:
            within: list[bool] = []

            def turn() -> None:
                if not within:
                    within.append(True)
                    rig.scheduler.turn()

            rig.add(turn, "interval", seconds=10)
            rig.after(10)
            assert rig.job().due_count == 2
            assert rig.outcomes() == {"success": 2}

    def test_a_scrape_before_the_next_run_is_set_does_not_hide_it(self) -> None:
        """A scrape sees a run that has started; the next one sees the job's next run as well."""
        gate = Gate()

        class Scraping(IntervalTrigger):
            def get_next_fire_time(self, *args: Any) -> Any:
                if started and rig.job().due_count == 3:  # not before the run is submitted
                    gate.wait_for_run()
                    started.clear()
                    for label, job in recorder_of(rig.telemetry).snapshots_since({}):
                        assert job is not None
                        assert job.in_flight.running == 1
                        known[label] = job.version
                return super().get_next_fire_time(*args)

        def hold() -> None:
            if started:
                gate.hold()

        started: list[bool] = []
        known: dict[str, int] = {}
        with by_hand() as rig:
            rig.add(hold, Scraping(seconds=10, timezone=UTC))
            for _ in range(2):
                rig.after(10)
                rig.settle()
            next_run = rig.job().next_run
            started.append(True)
            rig.after(10)
            ((_, job),) = recorder_of(rig.telemetry).snapshots_since(known)
            assert job is not None
            assert job.next_run == next_run + 10
            gate.open()
            rig.settle()

    def test_intervals_that_are_computed_late_are_computed_again(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """They are, when they do not hold any more, however late they were computed first."""
        compute, may_compute = triggers.compute_intervals, threading.Event()

        def compute_late(*args: Any) -> Any:
            assert may_compute.wait(jobs.PATIENCE)
            return compute(*args)

        class Slowing(BaseTrigger):
            """Every minute, 15 times, and every hour from then on."""

            def get_next_fire_time(self, previous: datetime | None, now: datetime) -> datetime:
                if previous is None:
                    return START
                is_slow = previous >= START + timedelta(minutes=15)
                return previous + timedelta(hours=1 if is_slow else 1 / 60)

        monkeypatch.setattr(triggers, "compute_intervals", compute_late)
        with by_hand({"default": DebugExecutor()}) as rig:
            rig.add(jobs.nothing, Slowing())
            rig.scheduler.turn()
            rig.after(60)
            assert rig.job().intervals is None
            may_compute.set()
            until(lambda: rig.job().intervals == (60, 60))
            for _ in range(13):
                rig.after(60)
            until(lambda: rig.job().intervals == (60, 3600))

    def test_intervals_of_a_former_trigger_that_are_computed_late_are_dropped(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Those of the job's new trigger stay, which are known at once."""
        compute, may_compute = triggers.compute_intervals, threading.Event()

        def compute_late(*args: Any) -> Any:
            assert may_compute.wait(jobs.PATIENCE)
            return compute(*args)

        monkeypatch.setattr(triggers, "compute_intervals", compute_late)
        with by_hand() as rig:
            job = rig.add(jobs.nothing, "cron", hour=3)
            job.reschedule("interval", seconds=10)
            rig.add(jobs.nothing, "cron", hour=3, id="next")
            may_compute.set()
            until(lambda: rig.job("next").intervals is not None)
            assert rig.job().intervals == (10, 10)

    @pytest.mark.parametrize("is_paused", [False, True])
    def test_intervals_of_a_job_that_gets_another_label(self, *, is_paused: bool) -> None:
        """They are known under the new label as well, once the job is not paused."""
        with by_hand(telemetry={"job_label": lambda job: job.name}) as rig:
            job = rig.add(jobs.nothing, "interval", seconds=10, name="job")
            if is_paused:
                job.pause()
            job.modify(name="renamed")
            if is_paused:
                job.resume()
            assert rig.job("renamed").intervals == (10, 10)

    @pytest.mark.parametrize("kind", ["inline", "threads"])
    def test_each_of_100_runs_counts_once(self, kind: str) -> None:
        """Each is counted, however often the metrics state is read meanwhile."""
        executor = DebugExecutor() if kind == "inline" else ThreadPoolExecutor(2)
        with by_hand({"default": executor}) as rig:
            rig.add(jobs.give_back, "interval", seconds=10, args=[1])
            for number in range(1, 101):
                rig.after(10)
                self.settle(rig)
                if number % 30 == 0:
                    assert rig.outcomes() == {"success": number}
            job = rig.job()
            assert sum(job.delays.counts) == sum(job.durations.counts) == 100
            assert job.last_run_due == (START + timedelta(seconds=1000)).timestamp()

    def test_a_run_that_a_scrape_has_seen_counts_once(self) -> None:
        """So it is for a run that a scrape saw while it ran, and for the one after it."""
        gate = Gate()
        with by_hand() as rig:
            rig.add(gate.hold, "interval", seconds=10)
            rig.after(10)
            gate.wait_for_run()
            assert rig.job().running == 1
            gate.open()
            self.settle(rig)
            rig.after(10)
            self.settle(rig)
            assert rig.outcomes() == {"success": 2}

    def test_a_missed_run_between_two_others_counts_as_missed(self) -> None:
        """A run that waits too long for a thread is missed, and its neighbours succeed."""
        with by_hand() as rig:
            gate = Gate()
            rig.add(jobs.nothing, "interval", seconds=10, misfire_grace_time=1)
            rig.after(10)
            self.settle(rig)
            for number in range(4):
                rig.add(gate.hold, id=f"hold-{number}")
            rig.scheduler.turn()
            for _ in range(4):
                gate.wait_for_run()
            rig.after(10)
            rig.clock.advance(2)
            gate.open()
            self.settle(rig)
            assert rig.outcomes() == {"success": 1, "missed": 1}
            rig.after(8)
            self.settle(rig)
            assert rig.outcomes() == {"success": 2, "missed": 1}

    @pytest.mark.parametrize("way", ["modify", "by hand", "by name"])
    def test_a_run_gets_the_arguments_that_its_job_has_by_then(self, way: str) -> None:
        """They may be changed between two runs, by APScheduler or past it."""
        with by_hand({"default": DebugExecutor()}) as rig:
            job = rig.add(jobs.give_back, "interval", seconds=10, args=["old"])
            rig.after(10)
            if way == "modify":
                job.modify(args=["new"])
            elif way == "by name":
                job.modify(args=(), kwargs={"value": "new"})
            else:
                job.args = ("new",)
            rig.after(10)
            results = [event.retval for event in rig.events if event.code == EVENT_JOB_EXECUTED]
            assert results == ["old", "new"]

    def test_limits_that_were_set_past_apscheduler_apply(self) -> None:
        """So do a grace time and a `max_instances` that were set on the job itself."""
        with by_hand() as rig:
            job = rig.add(jobs.nothing, "interval", seconds=10)
            rig.after(10)
            self.settle(rig)
            job.misfire_grace_time = 1
            rig.after(12)
            self.settle(rig)
            assert rig.outcomes() == {"success": 1, "missed": 1}
            job.misfire_grace_time = None
            rig.after(10)
            self.settle(rig)
            job.max_instances = 0
            rig.after(10)
            assert rig.outcomes() == {"success": 2, "missed": 1, "skipped": 1}

    def test_events_of_missed_runs_are_not_taken_for_those_of_others(self) -> None:
        """Of three queued runs of one job, two are missed and one runs."""
        gate = Gate()
        with by_hand({"default": ThreadPoolExecutor(1)}) as rig:
            options: dict[str, Any] = {"seconds": 10, "max_instances": 3, "coalesce": False}
            rig.add(jobs.nothing, "interval", **options, misfire_grace_time=15)
            rig.after(10)
            self.settle(rig)
            rig.add(gate.hold, id="hold")
            rig.scheduler.turn()
            gate.wait_for_run()
            rig.after(20)  # two at once
            rig.after(10)  # and one alone
            rig.clock.advance(10)
            gate.open()
            self.settle(rig)
            assert rig.outcomes() == {"success": 2, "missed": 2}

    def test_an_executor_that_gets_a_copy_of_the_job_runs_the_copy(self) -> None:
        """A copy that the user submits is run, and counts as a run of the job."""
        with by_hand({"default": DebugExecutor()}) as rig:
            job = rig.add(jobs.give_back, "interval", seconds=10, args=["job"])
            rig.after(10)
            copied = copy.copy(job)
            copied.args, copied._jobstore_alias = ("copy",), "default"
            rig.scheduler._executors["default"].submit_job(copied, [job.next_run_time])
            results = [event.retval for event in rig.events if event.code == EVENT_JOB_EXECUTED]
            assert results == ["job", "copy"]
            assert rig.outcomes() == {"success": 2}

    def test_a_span_has_the_name_that_the_job_had_at_its_submission(self) -> None:
        """A span has the name that the job had when it was submitted."""
        sdk = pytest.importorskip("opentelemetry.sdk.trace")
        export = pytest.importorskip("opentelemetry.sdk.trace.export")
        memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
        exporter, provider = memory.InMemorySpanExporter(), sdk.TracerProvider()
        provider.add_span_processor(export.SimpleSpanProcessor(exporter))
        options = {"tracer_provider": provider}
        with by_hand({"default": DebugExecutor()}, telemetry=options) as rig:
            names = iter(["2", "2", "4", "5"])

            def rename() -> None:
                job.modify(name=next(names))

            job = rig.add(rename, "interval", seconds=10, name="1")
            for _ in range(4):
                rig.after(10)
            spans = exporter.get_finished_spans()
        names_of_spans = [(span.attributes or {})["apscheduler.job.name"] for span in spans]
        assert names_of_spans == ["1", "2", "2", "4"]

    def test_only_a_sampled_run_is_an_exemplar(self) -> None:
        """Where one run in two is sampled, the others leave the exemplar as it is."""
        sdk = pytest.importorskip("opentelemetry.sdk.trace")
        sampling = pytest.importorskip("opentelemetry.sdk.trace.sampling")
        turns = itertools.cycle([sampling.ALWAYS_ON, sampling.ALWAYS_OFF])

        class InTurns(sampling.Sampler):  # type: ignore[name-defined]
            def should_sample(self, *args: Any, **kwargs: Any) -> Any:
                return next(turns).should_sample(*args, **kwargs)

            def get_description(self) -> str:
                return "in turns"

        seen = []
        options = {"tracer_provider": sdk.TracerProvider(sampler=InTurns())}
        with by_hand({"default": DebugExecutor()}, telemetry=options) as rig:
            rig.add(jobs.nothing, "interval", seconds=10)
            for number in range(1, 5):
                rig.after(10)
                seen.append(rig.job().durations.exemplars.copy())
                assert len(seen[-1]) == 1, number
        assert seen[0] == seen[1] != seen[2] == seen[3]

    def test_jobs_of_one_id_on_one_executor_are_told_apart(self) -> None:
        """They are in two stores, and never taken for each other."""
        gate = Gate()
        stores = {"default": MemoryJobStore(), "other": MemoryJobStore()}
        with by_hand({"default": ThreadPoolExecutor(1)}, jobstores=stores) as rig:
            options: dict[str, Any] = {"seconds": 10, "max_instances": 2}
            rig.add(jobs.nothing, "interval", **options, misfire_grace_time=1)
            later = START + timedelta(seconds=15)
            rig.add(jobs.nothing, "interval", **options, start_date=later, jobstore="other")
            for _ in range(4):  # in turns, up to 20 s
                rig.after(5)
                self.settle(rig)
            rig.add(gate.hold, id="hold")
            rig.scheduler.turn()
            gate.wait_for_run()
            rig.after(10)  # both
            rig.clock.advance(2)
            gate.open()
            self.settle(rig)
            assert rig.outcomes() == {"success": 4, "missed": 1}

    def test_a_run_that_the_user_submits_leaves_the_next_run_as_it_is(self) -> None:
        """A change of the job after that cancels its next run, as ever."""
        with by_hand({"default": DebugExecutor()}) as rig:
            job = rig.add(jobs.nothing, "interval", seconds=10)
            rig.after(10)
            next_run = rig.job().next_run
            rig.scheduler._executors["default"].submit_job(job, [job.next_run_time])
            job.modify(next_run_time=START + timedelta(seconds=100))
            job_now = rig.job()
            assert job_now.cancelled_run_due_at == next_run
            assert job_now.next_run == next_run + 80
            assert rig.outcomes() == {"success": 2}

    def test_a_patch_that_a_wrapper_keeps_in_place_measures_nothing(self) -> None:
        """That is so after `uninstrument`, where a wrapper of the user's still calls our patch."""
        executor = DebugExecutor()
        with by_hand({"default": executor}) as rig:
            rig.add(jobs.nothing, "interval", seconds=10)
            rig.after(10)
            patch = executor.submit_job
            executor.submit_job = partial(patch)
            rig.telemetry.uninstrument()
            rig.after(10)
            assert rig.codes().count("executed") == 2
            assert rig.job().due_count == 1
            rig.is_told = False

    def test_due_jobs_that_can_be_read_only_once_all_run(self) -> None:
        """A store of the user's may yield the due jobs one by one."""

        class OneByOne(MemoryJobStore):
            def get_due_jobs(self, now: datetime) -> Any:
                yield from super().get_due_jobs(now)

        stores = {"default": OneByOne()}
        with by_hand({"default": DebugExecutor()}, jobstores=stores) as rig:
            rig.add(jobs.nothing, "interval", seconds=10, id="lost", executor="gpu")
            for job_id in ("a", "b"):
                rig.add(jobs.nothing, "interval", seconds=10, id=job_id)
            rig.after(10)
            assert rig.outcomes("lost") == {"lost": 1}
            assert rig.outcomes("a") == rig.outcomes("b") == {"success": 1}

    def test_a_stored_job_is_not_kept_after_its_run(self) -> None:
        """What a store has unpickled for a run is gone after it, without a garbage collection."""
        sqlalchemy = pytest.importorskip("sqlalchemy")
        from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore

        engine = sqlalchemy.create_engine("sqlite://", poolclass=sqlalchemy.pool.StaticPool)
        stores = {"default": SQLAlchemyJobStore(engine=engine)}
        with by_hand({"default": DebugExecutor()}, jobstores=stores) as rig:
            rig.add(jobs.give_back, "interval", seconds=10, args=[Kept()])
            gc.collect()
            gc.disable()
            try:
                for _ in range(2):
                    rig.after(10)
                    rig.events.clear()
                    assert not list(Kept.unpickled)
            finally:
                gc.enable()
            rig.is_told = False
            assert rig.outcomes() == {"success": 2}
            rig.scheduler.remove_job("job")
        engine.dispose()

    @pytest.mark.parametrize("ends", ["before", "after"])
    def test_a_job_is_not_kept_after_a_shutdown(self, ends: str) -> None:
        """It goes, also where its run ends later. Its next run stays expected."""
        gate = Gate()
        with by_hand() as rig:
            rig.add(lambda *_: gate.hold(), "interval", seconds=10, args=[Kept()])
            kept = weakref.ref(rig.scheduler.get_job("job").args[0])
            rig.after(10)
            gate.wait_for_run()
            if ends == "before":
                gate.open()
                self.settle(rig)
            executor = rig.scheduler._executors["default"]
            rig.scheduler.shutdown(wait=False)
            gate.open()
            until(lambda: not any(executor._instances.values()))
            until(lambda: gc.collect() >= 0 and kept() is None)
            assert rig.job().next_run == START.timestamp() + 20

    def test_a_job_that_was_removed_is_not_kept_after_its_last_run(self) -> None:
        """A job that runs once is removed before its run ends."""
        gate = Gate()
        with by_hand() as rig:
            rig.add(lambda *_: gate.hold(), args=[Kept()])
            kept = weakref.ref(rig.scheduler.get_job("job").args[0])
            rig.scheduler.turn()
            gate.wait_for_run()
            assert recorder_of(rig.telemetry).records_in_jobstore("default") == []
            gate.open()
            self.settle(rig)
            until(lambda: gc.collect() >= 0 and kept() is None)
            assert rig.outcomes() == {"success": 1}

    def test_an_executor_that_was_removed_is_not_kept(self) -> None:
        """It goes, though a job that ran there stays."""
        with by_hand() as rig:
            executor = DebugExecutor()
            rig.scheduler.add_executor(executor, "other")
            rig.add(jobs.nothing, "interval", seconds=10, executor="other")
            rig.after(10)
            rig.scheduler.remove_executor("other")
            reference = weakref.ref(executor)
            del executor
            until(lambda: gc.collect() >= 0 and reference() is None)

    def test_a_job_that_moves_to_another_executor_runs_there(self) -> None:
        """And it is counted there."""
        executors = {"default": DebugExecutor(), "other": ThreadPoolExecutor(1)}
        with by_hand(executors) as rig:
            job = rig.add(threading.get_ident, "interval", seconds=10)
            for executor in ("default", "other", "default"):
                job.modify(executor=executor)
                for _ in range(2):
                    rig.after(10)
                    self.settle(rig)
            assert rig.outcomes() == {"success": 6}
            here = threading.get_ident()
            ran = [event.retval == here for event in rig.events if event.code == EVENT_JOB_EXECUTED]
            assert ran == [True, True, False, False, True, True]


class Kept:
    """What a job is called with, and which of them are alive that came out of a store."""

    unpickled: ClassVar[weakref.WeakSet[Kept]] = weakref.WeakSet()

    def __setstate__(self, _: object) -> None:
        self.unpickled.add(self)

    def __getstate__(self) -> object:
        return True


class TestProcesses:
    """What gets lost on the way to another process, there, or on the way back."""

    def test_all_runs_of_a_pool_are_lost_with_a_killed_worker(self, tmp_path: Path) -> None:
        """All runs of a pool are lost with one killed worker; the next run is measured again."""
        with by_hand({"default": processes(2)}) as rig:
            directory = str(tmp_path)
            rig.add(jobs.hold, args=[directory, "bystander"], id="bystander")
            rig.add(jobs.die_when_let_go, args=[directory, "dying"], id="dying")
            rig.add(jobs.nothing, id="queued")
            rig.add(jobs.nap, every(10), args=[0.1], next_run_time=START + timedelta(seconds=5))
            rig.scheduler.turn()
            until((tmp_path / "bystander.in").exists)
            until((tmp_path / "dying.in").exists)
            (tmp_path / "dying.out").touch()
            rig.settle()
            for job_id in ("bystander", "dying", "queued"):
                assert rig.outcomes(job_id) == {"lost": 1}
            assert START.timestamp() == rig.job("bystander").last_run_due
            assert rig.job("queued").last_run_due is None, "it never started"
            rig.after(5)
            rig.settle()
            assert rig.outcomes() == {"success": 1}
            assert 0.1 <= rig.job().durations.sum < 1
            assert rig.errors_of("submit") == 0

    @pytest.mark.parametrize(
        "func",
        [jobs.result_without_pickle, jobs.fail_without_unpickle, lambda: None],
        ids=["result", "exception", "lambda"],
    )
    def test_what_cannot_be_pickled_is_a_lost_run(self, func: Callable[[], Any]) -> None:
        """A callable, result or exception that cannot be pickled or unpickled is a lost run."""
        with by_hand({"default": processes()}) as rig:
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
        with by_hand({"default": processes()}) as rig:
            rig.add(jobs.fail, args=["here"], id="a")
            rig.add(jobs.throw, args=["SystemExit"], id="b")
            rig.add(jobs.throw, args=["KeyboardInterrupt"], id="c")
            rig.add(jobs.give_back, args=[{"x": 1}], id="d")
            rig.scheduler.turn()
            rig.settle()
            assert [rig.outcomes(job_id) for job_id in "abc"] == [{"error": 1}] * 3
            assert rig.outcomes("d") == {"success": 1}
        told = {e.job_id: e for e in rig.events if hasattr(e, "retval")}
        assert told["d"].retval == {"x": 1}
        assert told["a"].exception.args == ("here",)
        assert "child_process.py" not in told["a"].traceback
        assert "in fail" in told["a"].traceback
        assert {str} == {type(e.job_id) for e in told.values()}


class TestSubmission:
    """Runs that do not even reach an executor."""

    @pytest.mark.parametrize(
        ("coalesce", "expected"), [(True, {"coalesced": 2, "lost": 1}), (False, {"lost": 3})]
    )
    def test_runs_are_lost_where_the_executor_raises(
        self, coalesce: bool, expected: dict[str, int]
    ) -> None:
        """What an executor does not take is lost, and counted as an error of submission."""
        executor = ThreadPoolExecutor(1)
        with by_hand({"default": executor}) as rig:
            rig.add(jobs.nothing, every(10), coalesce=coalesce)
            executor.shutdown()
            rig.after(25)
            assert expected == rig.outcomes()
            assert rig.errors_of("submit") == 1
            assert {"lost": expected["lost"]} == {"lost": rig.job().consecutive_failures}

    def test_runs_are_lost_where_submit_job_itself_raises(self) -> None:
        """So it is with an executor that refuses in `submit_job` itself."""

        class Refusing(DebugExecutor):
            def submit_job(self, job: Any, run_times: Sequence[datetime]) -> None:
                raise OSError

        with by_hand({"default": Refusing()}) as rig:
            rig.add(jobs.nothing, every(10), coalesce=False)
            rig.after(25)
            assert rig.outcomes() == {"lost": 3}
            assert rig.errors_of("submit") == 1

    def test_last_run_on_an_executor_that_serves_another_scheduler(self) -> None:
        """The other one gets its result; the job is finished here, and no error has removed it."""
        executor = DebugExecutor()
        with by_hand({"default": executor}) as rig:
            rig.is_told = False
            other = HandDriven(executors={"default": executor}, timezone=timezone.utc)
            other.start()
            rig.add(jobs.nothing, "date", run_date=START)
            rig.scheduler.turn()
            assert rig.outcomes() == {}
            assert rig.errors_of("executor_lookup") == 0
            assert rig.job().next_run == 0
            other.shutdown()

    def test_runs_are_lost_where_the_executor_is_unknown(self) -> None:
        """All due runs of a job whose executor is unknown are lost, and so is the job."""
        with by_hand() as rig:
            rig.add(jobs.nothing, every(10), executor="nowhere")
            rig.after(35)
            assert rig.outcomes() == {"lost": 4}
            assert rig.scheduler.get_job("job") is None
            assert rig.errors_of("executor_lookup") == 1
            assert START.timestamp() == rig.job().next_run, "the promise is not taken back"

    def test_other_jobs_of_the_pass_run(self) -> None:
        """One job that cannot be submitted does not disturb the accounts of the next one."""
        with by_hand() as rig:
            rig.add(jobs.nothing, every(10), id="a", executor="nowhere")
            rig.add(jobs.nothing, every(10), id="b")
            rig.scheduler.turn()
            rig.settle()
            assert (rig.outcomes("a"), rig.outcomes("b")) == ({"lost": 1}, {"success": 1})


class TestChanges:
    """Jobs that are changed while runs of them are queued or running."""

    @pytest.mark.parametrize("wait_for", ["queue", "run"])
    def test_removed(self, wait_for: str) -> None:
        """A run that was handed over before its job was removed ends as what it is."""
        gate = Gate()
        with by_hand({"default": ThreadPoolExecutor(1)}) as rig:
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
        """A job that comes back under its id goes on with its account, old runs included."""
        gate = Gate()
        with by_hand() as rig:
            rig.add(gate.hold, every(10))
            rig.scheduler.turn()
            gate.wait_for_run()
            rig.scheduler.remove_job("job")
            rig.add(jobs.fail, every(10), max_instances=2)
            rig.after(10)
            until(lambda: rig.outcomes() == {"error": 1, "coalesced": 1})
            gate.open()
            rig.settle()
            assert rig.outcomes() == {"error": 1, "coalesced": 1, "success": 1}

    @pytest.mark.parametrize("instrumented", [False, True])
    @pytest.mark.parametrize("kind", ["threads", "processes"])
    def test_a_queued_run_gets_the_arguments_that_its_job_has_at_its_start(
        self, kind: str, instrumented: bool, tmp_path: Path
    ) -> None:
        """A queued run takes the arguments that its job has when it starts, as without us."""
        results: list[Any] = []
        executor = ThreadPoolExecutor(1) if kind == "threads" else processes()
        with by_hand({"default": executor}) as rig:
            if not instrumented:
                rig.telemetry.uninstrument()
            rig.scheduler.add_listener(lambda e: results.append(e.retval), EVENT_JOB_EXECUTED)
            rig.add(jobs.hold, args=[str(tmp_path)], id="a")
            for job_id in "bc":  # two runs are pickled ahead for one child
                rig.add(jobs.nothing, id=job_id)
            job = rig.add(jobs.give_back, args=["old"], trigger=every(10), id="d")
            rig.add(jobs.give_back, args=["last"], id="e")
            rig.scheduler.turn()
            until((tmp_path / "gate.in").exists)
            job.modify(args=["new"])
            (tmp_path / "gate.out").touch()
            until(lambda: len(results) == 5)
            rig.is_told = instrumented
        assert results[3:] == ["new", "last"]

    def test_a_grace_time_that_is_set_while_a_run_is_queued_applies(self) -> None:
        """A grace time that is set while a run is queued makes it miss, as without us."""
        gate = Gate()
        with by_hand({"default": ThreadPoolExecutor(1)}) as rig:
            rig.add(gate.hold, id="a")
            job = rig.add(jobs.nothing, every(60))
            rig.scheduler.turn()
            gate.wait_for_run()
            job.modify(misfire_grace_time=1)
            rig.clock.advance(2)
            gate.open()
            rig.settle()
            assert rig.outcomes() == {"missed": 1}

    @pytest.mark.parametrize("change", ["reschedule", "pause", "replace"])
    def test_a_new_schedule_leaves_the_running_run_alone(self, change: str) -> None:
        """A new schedule, or none, does not touch the run under way, and counts from then on."""
        gate = Gate()
        later = IntervalTrigger(seconds=100, start_date=START + timedelta(seconds=100))
        with by_hand() as rig:
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
        """Runs that a job would have had while it was paused are not due."""
        with by_hand() as rig:
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
        with by_hand() as rig:
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

    def test_a_job_that_removes_itself(self) -> None:
        """A job that removes itself from its thread has one run, and promises no more."""
        with by_hand() as rig:
            rig.add(lambda: rig.scheduler.remove_job("job"), every(10))
            rig.scheduler.turn()
            rig.settle()
            rig.after(10)
            assert rig.outcomes() == {"success": 1}
            assert (0, START.timestamp() + 10) == (
                rig.job().next_run,
                rig.job().cancelled_run_due_at,
            )


class TestShutdown:
    """Schedulers that stop while runs are queued and running."""

    @pytest.mark.parametrize("wait", [False, True])
    def test_threads(self, wait: bool) -> None:
        """A thread pool works off its queue, whether the scheduler waits for it or not."""
        gate = Gate()
        scheduler = BackgroundScheduler(executors={"default": ThreadPoolExecutor(1)}, timezone=UTC)
        with live(scheduler) as rig:
            rig.add(gate.hold, id="a")
            gate.wait_for_run()
            for job_id in "bc":
                rig.add(jobs.nothing, id=job_id)
            until(lambda: rig.job("b").queued + rig.job("c").queued == 2)
            finish_pass(scheduler)
            thread = threading.Thread(target=scheduler.shutdown, args=[wait])
            thread.start()
            until(lambda: not scheduler.running)
            assert wait == thread.is_alive() or not wait
            gate.open()
            thread.join()
            rig.settle()
            assert [rig.outcomes(job_id) for job_id in "abc"] == [{"success": 1}] * 3

    @pytest.mark.parametrize("wait", [False, True])
    def test_processes(self, wait: bool, tmp_path: Path) -> None:
        """So does a process pool."""
        with by_hand({"default": processes()}) as rig:
            rig.add(jobs.hold, args=[str(tmp_path)], id="a")
            rig.add(jobs.nothing, id="b")
            rig.add(jobs.nap, args=[0.1], id="c")
            rig.scheduler.turn()
            until((tmp_path / "gate.in").exists)
            thread = threading.Thread(target=rig.scheduler.shutdown, args=[wait])
            thread.start()
            until(lambda: not rig.scheduler.running)
            check_counts(rig.telemetry)
            (tmp_path / "gate.out").touch()
            thread.join()
            rig.settle()
            assert [rig.outcomes(job_id) for job_id in "abc"] == [{"success": 1}] * 3
            assert 0.1 <= rig.job("c").durations.sum < 1


class TestAsyncio:
    """Coroutines, and the threads that an asyncio executor gives other callables to."""

    def test_coroutines_and_functions(self) -> None:
        """Both are counted by how they end."""

        async def succeed() -> None:
            await asyncio.sleep(0)

        async def fail() -> None:
            await asyncio.sleep(0)
            jobs.fail()

        async def main() -> None:
            async with live_async() as rig:
                funcs: dict[str, Callable[..., Any]] = {
                    "a": succeed,
                    "b": fail,
                    "c": jobs.nothing,
                    "d": jobs.fail,
                    "e": partial(succeed),
                }
                for job_id, func in funcs.items():
                    rig.add(func, id=job_id, name=job_id)
                ends = {"executed", "error"}
                await eventually(lambda: all(ends & set(rig.codes(name)) for name in "abcde"))
                assert [rig.outcomes(job_id) for job_id in "ace"] == [{"success": 1}] * 3
                assert [rig.outcomes(job_id) for job_id in "bd"] == [{"error": 1}] * 2

        asyncio.run(main())

    def test_overlapping_bursts_are_told_apart(self) -> None:
        """Coroutines that take turns in one thread are not taken for each other."""

        async def main() -> None:
            with frozen() as clock:
                first, second = asyncio.Event(), asyncio.Event()
                waiting = iter([first, second, first])

                async def wait() -> None:
                    await next(waiting).wait()

                async with live_async() as rig:
                    rig.add(wait, every(10), max_instances=3, coalesce=False)
                    await eventually(lambda: rig.job().running == 1)
                    clock.advance(20)
                    rig.scheduler.wakeup()
                    await eventually(lambda: rig.job().running == 2)
                    assert rig.job().queued == 1, "the second run of the burst"
                    second.set()
                    await eventually(lambda: rig.job().running == 3)
                    assert START.timestamp() + 20 == rig.job().last_run_due
                    assert rig.outcomes() == {}, "the events of the burst come at its end"
                    first.set()
                    await eventually(lambda: rig.outcomes() == {"success": 3})

        asyncio.run(main())

    def test_a_cancelled_coroutine_is_an_error(self) -> None:
        """What shutdown cancels is an error, as its listeners are told."""

        async def forever() -> None:
            await asyncio.Event().wait()

        async def main() -> None:
            async with live_async() as rig:
                rig.add(forever)
                await eventually(lambda: rig.job().running)
                rig.scheduler.shutdown()
                await eventually(rig.is_quiet)
                assert rig.outcomes() == {"error": 1}
                assert rig.job().exceptions == {"asyncio.exceptions.CancelledError": 1}

        asyncio.run(main())

    def test_a_coroutine_that_is_cancelled_before_its_start_is_lost(self) -> None:
        """A coroutine that shutdown cancels before its first step is lost."""

        async def never() -> None:
            raise AssertionError

        async def main() -> None:
            with frozen():
                async with live_async({"default": (executor := AsyncIOExecutor())}) as rig:
                    job = rig.add(never, every(1), next_run_time=START + timedelta(seconds=1))
                    rig.scheduler.shutdown()  # in the loop's next turn, before the task's first
                    executor.submit_job(job, [START])
                    assert rig.job().queued == 1
                    await eventually(rig.is_quiet)
                    assert rig.outcomes() == {"lost": 1}

        asyncio.run(main())

    def test_a_thread_that_asyncio_has_given_up_ends_as_lost(self) -> None:
        """It counts as running until it is over. Nobody reports then how it ended."""
        gate = Gate()

        async def main() -> None:
            async with live_async() as rig:
                rig.add(gate.hold, id="a")
                rig.add(partial(hold_and_fail, gate), id="b", name="b")
                await eventually(lambda: rig.job("a").running + rig.job("b").running == 2)
                rig.scheduler.shutdown()
                await eventually(lambda: not rig.scheduler.running)
                for _ in range(10):  # the callbacks of what was cancelled
                    await asyncio.sleep(0)
                assert (rig.job("a").running, rig.job("b").running) == (1, 1)
                check_counts(rig.telemetry)
                gate.open()
                await eventually(rig.is_quiet)
                assert (rig.outcomes("a"), rig.outcomes("b")) == ({"lost": 1}, {"lost": 1})
                rig.is_told = False

        asyncio.run(main())

    def test_a_burst_in_a_thread_that_asyncio_has_given_up_ends_as_lost(self) -> None:
        """So do all runs of a burst, those included that were dropped as they came too late."""
        gate = Gate()

        async def main() -> None:
            with frozen() as clock:
                async with live_async() as rig:
                    rig.scheduler.pause()
                    rig.add(gate.hold, every(10), coalesce=False, misfire_grace_time=100)
                    clock.advance(25)
                    rig.scheduler.resume()
                    await eventually(lambda: rig.job().running)
                    rig.scheduler.shutdown()
                    await eventually(lambda: not rig.scheduler.running)
                    for _ in range(10):
                        await asyncio.sleep(0)
                    assert (rig.job().running, rig.job().queued) == (1, 2)
                    clock.advance(90)  # 115, 105 and 95 s late
                    gate.open()
                    await eventually(rig.is_quiet)
                    assert rig.outcomes() == {"lost": 3}
                    rig.is_told = False

        asyncio.run(main())

    def test_a_function_that_is_cancelled_before_its_start_is_lost(self) -> None:
        """A function that waits for a thread when shutdown comes is lost."""
        gate = Gate()

        async def main() -> None:
            asyncio.get_running_loop().set_default_executor(Threads(1))
            async with live_async() as rig:
                rig.add(gate.hold, id="a")
                await eventually(lambda: rig.job("a").running)
                rig.add(jobs.nothing)
                await eventually(lambda: rig.job().queued)
                rig.scheduler.shutdown()
                await eventually(lambda: rig.outcomes() == {"lost": 1})
                gate.open()
                await eventually(rig.is_quiet)
                assert rig.outcomes("a") == {"lost": 1}, "asyncio has given up its thread as well"
                rig.is_told = False

        asyncio.run(main())


def hold_and_fail(gate: Gate) -> None:
    gate.hold()
    jobs.fail()


BASE = [SystemExit, KeyboardInterrupt, asyncio.CancelledError, BaseException, GeneratorExit]
CANCELLED = "asyncio.exceptions.CancelledError"


class TestWhatJobsRaise:
    """Exceptions that are not meant for jobs; APScheduler calls each of them an error."""

    @pytest.mark.parametrize("exception", BASE)
    @pytest.mark.parametrize("executor", [ThreadPoolExecutor, DebugExecutor])
    def test_functions(self, executor: type[BaseExecutor], exception: type[BaseException]) -> None:
        """A function that raises any of them is one error, with the type's name."""

        def throw() -> None:
            raise exception

        with by_hand({"default": executor()}) as rig:
            rig.add(throw)
            rig.scheduler.turn()
            rig.settle()
            assert rig.outcomes() == {"error": 1}
            name = CANCELLED if exception is asyncio.CancelledError else exception.__name__
            assert {name: 1} == rig.job().exceptions
        (told,) = [e.exception for e in rig.events if getattr(e, "exception", None)]
        assert exception is type(told)

    @pytest.mark.parametrize("exception", [e for e in BASE if e is not GeneratorExit])
    def test_coroutines(self, exception: type[BaseException]) -> None:
        """So is a coroutine."""

        async def throw() -> None:
            raise exception

        async def main() -> None:
            async with live_async() as rig:
                rig.add(throw)
                await eventually(lambda: rig.codes().count("error"))
                assert rig.outcomes() == {"error": 1}

        asyncio.run(main())

    def test_an_exception_without_a_text(self) -> None:
        """An exception whose text cannot be had is an error like any other."""

        class MuteError(Exception):
            def __str__(self) -> str:
                raise RuntimeError

        def throw() -> None:
            raise MuteError

        with by_hand({"default": DebugExecutor()}) as rig:
            rig.add(throw)
            rig.scheduler.turn()
            assert rig.outcomes() == {"error": 1}


class TestInline:
    """Jobs that the debug executor runs in the loop itself, and jobs that use their scheduler."""

    @pytest.mark.parametrize("executor", [DebugExecutor, ThreadPoolExecutor])
    def test_a_job_that_adds_jobs(self, executor: type[BaseExecutor]) -> None:
        """A job may add another one and wake the scheduler up; both are counted."""
        scheduler = BackgroundScheduler(executors={"default": executor()}, timezone=UTC)

        def add() -> None:
            rig.add(jobs.nothing, id="child")
            scheduler.wakeup()

        with live(scheduler) as rig:
            rig.add(add)
            until(lambda: rig.codes("child").count("executed"))
            assert (rig.outcomes(), rig.outcomes("child")) == ({"success": 1}, {"success": 1})

    def test_a_job_that_removes_itself(self) -> None:
        """Inline, that breaks APScheduler's loop: the run is a success, and the loop an error."""
        with by_hand({"default": DebugExecutor()}) as rig:
            rig.add(lambda: rig.scheduler.remove_job("job"), every(10))
            with pytest.raises(JobLookupError):
                rig.scheduler.turn()
            assert rig.outcomes() == {"success": 1}
            assert rig.errors_of("loop") == 1
            assert START.timestamp() == rig.job().cancelled_run_due_at

    def test_a_listener_that_removes_the_job(self) -> None:
        """What a listener does in the loop's thread is the user's doing."""
        with by_hand() as rig:
            rig.scheduler.add_listener(
                lambda e: rig.scheduler.remove_job(e.job_id), EVENT_JOB_SUBMITTED
            )
            rig.add(jobs.nothing, every(10))
            rig.scheduler.turn()
            rig.settle()
            assert rig.outcomes() == {"success": 1}
            assert START.timestamp() + 10 == rig.job().cancelled_run_due_at


class TestLabels:
    """Accounts that several jobs share, and jobs that share an id."""

    def test_the_same_id_in_two_stores(self) -> None:
        """Two jobs of one id in different job stores are both counted, under that id."""
        with by_hand(jobstores={"one": {"type": "memory"}, "two": {"type": "memory"}}) as rig:
            # An executor tells them apart by their ids only, and counts the runs of both as one's.
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

    def test_generated_ids(self) -> None:
        """Jobs without an id of their own share the account of their function."""
        with by_hand() as rig:
            for seconds in (10, 20, 30):
                rig.add(jobs.nothing, every(seconds), id=None)
            rig.add(jobs.fail, every(60), id=None)
            for _ in range(7):  # 0, 10 .. 60: 7, 4 and 3 runs
                rig.scheduler.turn()
                rig.settle()
                rig.clock.advance(10)
            assert rig.outcomes("support_jobs:nothing") == {"success": 14}
            assert rig.outcomes("support_jobs:fail") == {"error": 2}

    def test_too_many(self) -> None:
        """Beyond 1,000 labels, jobs share one account, and all runs are counted."""
        with by_hand({"default": DebugExecutor()}) as rig:
            for number in range(1010):
                rig.add(jobs.nothing, every(10), id=f"job {number}")
            rig.scheduler.turn()
            due = {a.label: a.due_count for a in job_states(rig.telemetry)}
            assert {"__overflow__": 10, **{f"job {n}": 1 for n in range(1000)}} == due

    def test_a_removed_job_is_dropped_after_15_minutes(self) -> None:
        """Its numbers stay for a quarter of an hour, and so long after the end of its last run."""
        gate = Gate()
        with by_hand() as rig:
            rig.add(gate.hold, id="long")
            rig.add(jobs.nothing)
            rig.scheduler.turn()
            gate.wait_for_run()
            until(lambda: rig.outcomes() == {"success": 1})
            rig.clock.advance(899)
            assert {"job", "long"} == {a.label for a in job_states(rig.telemetry)}
            rig.clock.advance(1)
            assert {"long"} == {a.label for a in job_states(rig.telemetry)}
            gate.open()
            until(lambda: rig.outcomes("long") == {"success": 1})
            rig.clock.advance(899)
            assert {"long"} == {a.label for a in job_states(rig.telemetry)}
            rig.clock.advance(1)
            assert not list(job_states(rig.telemetry))
            rig.is_told = False


class Calling(BaseExecutor):
    """An executor of the user's that calls jobs by itself, and reports what it likes to."""

    def __init__(self, report: Callable[[Any, Sequence[datetime]], Sequence[Any]]) -> None:
        super().__init__()
        self._report = report

    def _do_submit_job(self, job: Any, run_times: Sequence[datetime]) -> None:
        for _ in range(len(run_times)):
            job.func(*job.args, **job.kwargs)
        self._run_job_success(str(job.id), self._report(job, run_times))


class Iterating(Calling):
    """An executor of the user's that calls jobs in a loop over their run times."""

    def _do_submit_job(self, job: Any, run_times: Sequence[datetime]) -> None:
        for _ in run_times:
            job.func(*job.args, **job.kwargs)
        self._run_job_success(str(job.id), self._report(job, run_times))


class Copying(Calling):
    """An executor of the user's that calls jobs in a loop over a copy of their run times."""

    def _do_submit_job(self, job: Any, run_times: Sequence[datetime]) -> None:
        for _ in list(run_times):
            job.func(*job.args, **job.kwargs)
        self._run_job_success(str(job.id), self._report(job, run_times))


class Retrying(BaseExecutor):
    """An executor of the user's that runs each job again that has failed."""

    def _do_submit_job(self, job: Any, run_times: Sequence[datetime]) -> None:
        for _ in range(2):
            events = run_job(job, job._jobstore_alias, run_times, "apscheduler.executors.own")
            if not any(event.exception for event in events):
                break
        self._run_job_success(job.id, events)


class Deferring(BaseExecutor):
    """An executor of the user's that hands jobs to somewhere else, of which it keeps the ids."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[tuple[str, Sequence[datetime], Callable[[], Any]]] = []

    def _do_submit_job(self, job: Any, run_times: Sequence[datetime]) -> None:
        self.taken.append((str(job.id), run_times, partial(job.func, *job.args)))

    def end(self, index: int, *, call: bool = False) -> None:
        job_id, run_times, func = self.taken[index]
        if call:
            func()
        self._run_job_success(job_id, executed(job_id, run_times))


class OnPool(BasePoolExecutor):
    """An executor on a pool of the user's."""

    def __init__(self) -> None:
        super().__init__(concurrent.futures.ThreadPoolExecutor(2))


class Awaiting(BaseExecutor):
    """An executor of the user's that runs coroutine functions, each in an event loop of its own."""

    def _do_submit_job(self, job: Any, run_times: Sequence[datetime]) -> None:
        events = asyncio.run(run_coroutine_job(job, "default", run_times, "apscheduler"))
        self._run_job_success(job.id, events)


def executed(job_id: str, run_times: Sequence[datetime]) -> list[JobExecutionEvent]:
    return [JobExecutionEvent(EVENT_JOB_EXECUTED, job_id, "default", at) for at in run_times]


class TestExecutorsOfTheUser:
    """Executors that do things in ways of their own."""

    def test_one_that_iterates_over_the_run_times_is_measured(self) -> None:
        """A loop over the run times that calls the job is measured, as APScheduler's own are."""
        executor = Iterating(lambda job, run_times: executed(job.id, run_times))
        with by_hand({"default": executor}) as rig:
            rig.add(lambda: jobs.nap(0.01), every(10), coalesce=False)
            rig.after(25)
            assert rig.outcomes() == {"success": 3}
            assert sum(rig.job().durations.counts) == sum(rig.job().delays.counts) == 3
            assert 0.03 <= rig.job().durations.sum < 1
        assert {str} == {type(e.job_id) for e in rig.events if hasattr(e, "job_id")}

    @pytest.mark.parametrize("kind", [Calling, Copying])
    def test_one_that_does_not_is_counted_without_durations(self, kind: type[Calling]) -> None:
        """What calls the job without that loop is queued until it has ended, as its events say."""
        executor = kind(lambda job, run_times: executed(job.id, run_times))
        loads: list[tuple[int, int]] = []
        with by_hand({"default": executor}) as rig:
            rig.add(lambda: loads.append((rig.job().queued, rig.job().running)), every(10))
            rig.scheduler.turn()
            assert (rig.outcomes(), loads) == ({"success": 1}, [(1, 0)])
            assert sum(rig.job().durations.counts) == sum(rig.job().delays.counts) == 0
        assert {str} == {type(e.job_id) for e in rig.events if hasattr(e, "job_id")}

    @pytest.mark.parametrize("kind", ["measured", "not measured"])
    def test_one_that_reports_no_events_loses_its_runs(self, kind: str) -> None:
        """How a run ended is only known from its event."""
        executor = (Iterating if kind == "measured" else Calling)(lambda *_: [])
        with by_hand({"default": executor}) as rig:
            rig.add(jobs.nothing, every(10), coalesce=False)
            rig.after(25)
            assert rig.outcomes() == {"lost": 3}

    def test_one_that_never_reports_an_end_keeps_its_runs_in_flight(self) -> None:
        """They would be lost only if the executor said that no result will come."""
        with by_hand({"default": (executor := Deferring())}) as rig:
            rig.add(jobs.nothing, every(10))
            rig.scheduler.turn()
            rig.after(5)
            assert (rig.job().queued, rig.outcomes()) == (1, {})
            executor.end(0)
            assert (rig.job().queued, rig.outcomes()) == (0, {"success": 1})

    def test_one_that_tries_again_counts_a_run_once(self) -> None:
        """A run that is tried again has the start of its first try, and the outcome that counts."""
        attempts: list[int] = []

        def fail_first() -> None:
            attempts.append(len(attempts))
            jobs.nap(0.02)
            if len(attempts) == 1:
                jobs.fail()

        with by_hand({"default": Retrying()}) as rig:
            rig.add(fail_first, every(10))
            rig.scheduler.turn()
            assert attempts == [0, 1]
            assert rig.outcomes() == {"success": 1}
            assert sum(rig.job().durations.counts) == sum(rig.job().delays.counts) == 1
            assert 0.02 <= rig.job().durations.sum < 1

    def test_one_whose_events_can_be_read_only_once(self) -> None:
        """Events that can be walked through only once reach the listeners."""
        executor = Calling(lambda job, run_times: iter(executed(job.id, run_times)))  # type: ignore[arg-type, return-value]
        with by_hand({"default": executor}) as rig:
            rig.add(jobs.nothing, every(10), coalesce=False)
            rig.after(25)
            assert rig.outcomes() == {"success": 3}
            assert rig.codes().count("executed") == 3

    @pytest.mark.parametrize("coalesce", [True, False])
    def test_one_that_the_user_calls(self, coalesce: bool) -> None:
        """What is submitted without a scheduler, and without a due time, is submitted."""
        with by_hand({"default": (executor := Deferring())}) as rig:
            job = SimpleNamespace(id="bare", max_instances=1, func=jobs.nothing, args=())
            executor.submit_job(job, [])
            executor.submit_job(rig.add(jobs.nothing, every(10), coalesce=coalesce), [])
            assert [job_id for job_id, *_ in executor.taken] == ["bare", "job"]
            for job_id, *_ in executor.taken:
                executor._run_job_success(job_id, [])
            rig.failing = {"adapter"}

    def test_one_that_reports_no_events_and_ran_nothing_loses_its_runs(self) -> None:
        """What was neither seen to run nor told of is lost."""
        with by_hand({"default": (executor := Deferring())}) as rig:
            rig.add(jobs.nothing, every(10), coalesce=False)
            rig.after(25)
            assert rig.job().queued == 3
            executor._run_job_success("job", [])
            assert rig.outcomes() == {"lost": 3}

    def test_one_that_runs_jobs_elsewhere_gives_outcomes_without_durations(self) -> None:
        """What was not seen to run is what events say, without a duration."""
        with by_hand({"default": (executor := Deferring())}) as rig:
            rig.add(jobs.nothing, every(10), coalesce=False)
            rig.after(15)
            executor.end(0)
            assert rig.outcomes() == {"success": 2}
            assert sum(rig.job().durations.counts) == 0

    def test_runs_without_an_event_beside_others_with_one_are_lost(self) -> None:
        """Events are matched by their scheduled time where some are missing; the rest is lost."""
        with by_hand({"default": (executor := Deferring())}) as rig:
            rig.add(jobs.nothing, every(10), coalesce=False)
            rig.after(25)
            job_id, run_times, _ = executor.taken[0]
            executor._run_job_success(job_id, executed(job_id, run_times[1:2]))
            assert rig.outcomes() == {"success": 1, "lost": 2}

    def test_runs_that_end_in_another_order(self) -> None:
        """Of two runs of one job, the one ends that the event is about."""
        with by_hand({"default": (executor := Deferring())}) as rig:
            rig.add(jobs.nothing, every(10), max_instances=2)
            rig.scheduler.turn()
            rig.after(10)
            executor.end(1, call=True)
            assert (rig.outcomes(), rig.job().queued) == ({"success": 1}, 1)
            executor.end(0, call=True)
            assert rig.outcomes() == {"success": 2}

    def test_two_submissions_for_one_due_time_both_count(self) -> None:
        """The user may submit a job by hand for a time for which it is running already."""
        with by_hand({"default": (executor := Deferring())}) as rig:
            job = rig.add(jobs.nothing, every(10), max_instances=2)
            for _ in range(2):
                executor.submit_job(job, [job.next_run_time])
            assert rig.job().queued == 2
            for number in range(2):
                executor.end(number)
            assert rig.outcomes() == {"success": 2}

    def test_one_that_only_reports_an_error_ends_the_oldest_submission(self) -> None:
        """Which of several runs of one job broke is not known from its id: a guess."""
        with by_hand({"default": (executor := Deferring())}) as rig:
            rig.add(jobs.nothing, every(10), max_instances=2)
            rig.scheduler.turn()
            rig.after(10)
            executor._run_job_error("job", OSError())
            assert (rig.outcomes(), rig.job().queued) == ({"lost": 1}, 1)
            executor.end(1)
            assert rig.outcomes() == {"lost": 1, "success": 1}

    def test_one_on_a_pool(self) -> None:
        """A pool executor of the user's is like those of APScheduler."""
        with by_hand({"default": OnPool()}) as rig:
            rig.add(jobs.nothing, every(10), coalesce=False)
            rig.add(jobs.fail, every(10), id="b")
            rig.after(25)
            rig.settle()
            assert rig.outcomes() == {"success": 3}
            assert rig.outcomes("b") == {"error": 1, "coalesced": 2}

    def test_one_that_awaits(self) -> None:
        """A coroutine is measured until its end, whoever awaits it."""

        async def fail_late() -> None:
            await asyncio.sleep(0.02)
            jobs.fail()

        with by_hand({"default": Awaiting()}) as rig:
            rig.add(fail_late)
            rig.scheduler.turn()
            assert rig.outcomes() == {"error": 1}
            assert 0.02 <= rig.job().durations.sum < 1

    def test_a_coroutine_function_in_a_thread(self) -> None:
        """What a thread pool makes of a coroutine function, which is nothing, is left as it is."""

        async def never() -> None:
            raise AssertionError

        with by_hand() as rig:
            rig.add(never)
            rig.scheduler.turn()
            rig.settle()
            assert rig.outcomes() == {"success": 1}
        (coroutine,) = [e.retval for e in rig.events if hasattr(e, "retval")]
        assert never.__code__ is coroutine.cr_code
        coroutine.close()


class TestUninstrument:
    """Telemetry that is taken off while runs are under way."""

    @pytest.mark.parametrize("kind", ["threads", "processes"])
    def test_in_the_middle_of_a_burst(self, kind: str, tmp_path: Path) -> None:
        """Runs under way, queued ones included, end as if they had never been followed."""
        executor = ThreadPoolExecutor(1) if kind == "threads" else processes()
        scheduler = HandDriven(executors={"default": executor}, timezone=UTC)
        with frozen() as clock:
            rig = Rig(scheduler)
            scheduler.start()
            rig.add(jobs.hold, every(10), args=[str(tmp_path)], coalesce=False)
            rig.add(jobs.give_back, every(10), args=[1], id="queued", coalesce=False)
            clock.advance(15)
            scheduler.turn()
            until((tmp_path / "gate.in").exists)
            rig.telemetry.uninstrument()
            (tmp_path / "gate.out").touch()
            until(lambda: rig.codes().count("executed") == 2)
            until(lambda: rig.codes("queued").count("executed") == 2)
            assert not any(executor._instances.values())
            scheduler.shutdown()
        check_counts(rig.telemetry)
        assert {str} == {type(e.job_id) for e in rig.events if hasattr(e, "job_id")}
        assert [e.retval for e in rig.events if getattr(e, "retval", None) == 1] == [1, 1]

    def test_a_coroutine(self) -> None:
        """So does a coroutine that waits."""
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
            await eventually(lambda: rig.job().running)
            rig.telemetry.uninstrument()
            go_on.set()
            await eventually(lambda: rig.codes().count("executed"))
            events.extend(e for e in rig.events if hasattr(e, "retval"))
            scheduler.shutdown()
            await eventually(lambda: not scheduler.running)

        asyncio.run(main())
        assert [(str, "done")] == [(type(e.job_id), e.retval) for e in events]

    def test_the_end_of_a_run_from_before_is_not_taken_for_a_later_one(self) -> None:
        """The end of a run from before is not taken for the end of one that came after."""
        before, after = Gate(), Gate()
        scheduler = HandDriven(executors={"default": ThreadPoolExecutor(2)}, timezone=UTC)
        with frozen() as clock:
            rig = Rig(scheduler)
            scheduler.start()
            job = rig.add(before.hold, every(10), max_instances=2)
            scheduler.turn()
            before.wait_for_run()
            rig.telemetry.uninstrument()
            job.modify(func=after.hold)
            again = Rig(scheduler)
            again.is_told = False  # of more, namely of the run from before
            clock.advance(10)
            scheduler.turn()
            after.wait_for_run()
            before.open()
            until(lambda: rig.codes().count("executed") == 1)
            assert (job_state(again.telemetry).running, outcomes(again.telemetry)) == (1, {})
            after.open()
            until(lambda: outcomes(again.telemetry) == {"success": 1})
            scheduler.shutdown()
        again.check()
        again.telemetry.uninstrument()


class TestOurOwnFailures:
    """Faults of telemetry itself, at each place where it meets a run."""

    @pytest.mark.parametrize(
        ("kind", "place"),
        [
            ("threads", "core.records.Run.__init__"),
            ("threads", "core.recorder.Recorder.runs_unsubmitted"),
            ("threads", "core.records.Run.finish"),
            ("threads", "adapters.apscheduler3.job_events.JobEvents.on_job_advanced"),
            ("threads", "adapters.apscheduler3.runs.Submission.__init__"),
            ("threads", "adapters.apscheduler3.runs.RunTracker.on_run_event"),
            ("threads", "adapters.apscheduler3.runs.RunTracker.finish_run"),
            ("threads", "adapters.apscheduler3.triggers.fire_times_before"),
            ("threads", "adapters.apscheduler3.tracked_jobs.TrackedJobs.upsert"),
            ("threads", "adapters.apscheduler3.executors.ExecutorHooks._open_submission"),
            ("threads", "adapters.apscheduler3.executors.ExecutorHooks._on_result"),
            ("processes", "core.records.Run.__init__"),
            ("processes", "core.records.Run.finish"),
            ("processes", "core.records.Run.start"),
            ("processes", "core.records.Run.set_estimated_start"),
            ("processes", "adapters.apscheduler3.runs.RunTracker.on_run_event"),
            ("processes", "adapters.apscheduler3.runs.Submission.assign_pool"),
            ("processes", "adapters.apscheduler3.runs.RunTracker.create_trace_carriers"),
            ("processes", "core.records.Run.stop"),
            ("processes", "adapters.apscheduler3.runs.Submission.is_late"),
            ("processes", "adapters.apscheduler3.runs.Submission.mark_abandoned"),
            ("processes", "adapters.apscheduler3.executors.ExecutorHooks._on_result"),
            ("processes", "adapters.apscheduler3.executors.ExecutorHooks._on_rejected"),
            ("processes", "adapters.apscheduler3.executors.ExecutorHooks._on_result_lost"),
            ("processes", "adapters.apscheduler3.executors.ExecutorHooks._estimate_starts"),
            ("processes", "adapters.apscheduler3.executors.ExecutorHooks._abandon"),
            ("processes", "adapters.apscheduler3.triggers.fire_times_before"),
        ],
    )
    def test_jobs_go_on(self, kind: str, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """They are counted, and runs and events are what they are without us."""
        executor = ThreadPoolExecutor(1) if kind == "threads" else processes()
        scheduler = HandDriven(executors={"default": executor}, timezone=UTC)

        def broken(*_: Any) -> Any:
            raise OSError

        with frozen() as clock:
            # First, as what runs often is looked up when the scheduler is instrumented.
            monkeypatch.setattr(f"apscheduler_telemetry.{place}", broken)
            rig = Rig(scheduler)
            scheduler.start()
            rig.add(jobs.give_back, every(10), args=[5], id="good")
            rig.add(jobs.fail, every(10), id="bad")
            if kind == "processes":
                rig.add(lambda: None, every(10), id="lost")
            clock.advance(15)
            scheduler.turn()
            until(lambda: "executed" in rig.codes("good") and "error" in rig.codes("bad"))
            until(lambda: not any(list(executor._instances.values())))
            assert [rig.codes(job_id).count("submitted") for job_id in ("good", "bad")] == [1, 1]
            rig.add(jobs.nothing, every(10), id="refused")
            clock.advance(10)
            scheduler._executors["default"]._instances["refused"] = 1
            scheduler.turn()
            assert "max_instances" in rig.codes("refused")
            # All of them: where a pool is shut down while a job cannot be pickled, Python hangs.
            until(lambda: not any(executor._instances[key] for key in ("good", "bad", "lost")))
            scheduler.shutdown()
        rig.telemetry.uninstrument()
        assert [e.retval for e in rig.events if e.code == EVENT_JOB_EXECUTED] == [5, 5]
        assert {type(e.job_id) for e in rig.events if hasattr(e, "job_id")} == {str}
        components = {name for name, n in errors_of(rig.telemetry).counts().items() if n}
        assert components <= {"adapter", "schedule"}
        assert components
