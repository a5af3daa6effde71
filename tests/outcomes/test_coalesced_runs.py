"""Coalesced runs: of several due runs, APScheduler runs the last, and the others count here."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.combining import AndTrigger, OrTrigger

from tests.helpers import jobs
from tests.helpers.clocks import START, freeze_time
from tests.helpers.metrics import recorder_of
from tests.helpers.rigs import HandRig, hand_driven_rig
from tests.helpers.schedulers import HandDriven
from tests.helpers.triggers import calendar, cron, every
from tests.helpers.waiting import wait_until

UTC = timezone.utc


MINUTE = 60.0


HOUR = 3600.0


DAY = 24 * HOUR


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
    """Ten runs are due and one of them runs (``coalesce=True``); the others have no events."""

    @cases(FOLDED)
    def test_all_runs_but_the_last_are_coalesced(
        self, make: Callable[[], BaseTrigger], seconds: float
    ) -> None:
        """Nine runs are coalesced and one is a success, whatever the trigger."""
        with hand_driven_rig() as rig:
            rig.add(jobs.nothing, make(), coalesce=True)
            rig.after(seconds)
            rig.settle()
            assert rig.outcomes() == {"success": 1, "coalesced": 9}
            assert rig.job().due_count == 10

    @cases(THROWN)
    def test_jitter_does_not_change_the_coalesced_count(
        self, make: Callable[[], BaseTrigger], seconds: float
    ) -> None:
        """Jitter that is smaller than the interval leaves the number exact."""
        for seed in range(20):
            random.seed(seed)
            with hand_driven_rig() as rig:
                rig.add(jobs.nothing, make(), coalesce=True)
                rig.after(seconds)
                rig.settle()
                assert rig.outcomes() == {"success": 1, "coalesced": 9}, f"seed {seed}"

    @pytest.mark.parametrize(
        "make",
        [
            lambda: every(10, jitter=10),
            lambda: every(10, jitter=35),
            lambda: cron(second="*/10", jitter=25),
            lambda: OrTrigger([every(10, jitter=35), cron(second="5", jitter=90)]),
        ],
        ids=["as large", "larger", "cron", "or"],
    )
    def test_jitter_larger_than_the_interval_leaves_the_count_exact(
        self, make: Callable[[], BaseTrigger]
    ) -> None:
        """Where only the dice knew how many there were, the number is APScheduler's own."""
        for seed in range(20):
            random.seed(seed)
            with hand_driven_rig() as rig:
                job = rig.add(jobs.nothing, make(), coalesce=True)
                dice = random.getstate()
                expected = len(job._get_run_times(rig.clock.now + timedelta(seconds=300)))
                random.setstate(dice)
                rig.after(300)
                rig.settle()
                assert rig.job().due_count == expected, f"seed {seed}"

    @cases(THROWN)
    def test_telemetry_draws_no_random_numbers(
        self, make: Callable[[], BaseTrigger], seconds: float
    ) -> None:
        """Telemetry does not change the sequence of a seeded `random`."""

        def throw(scheduler: HandDriven, rig: HandRig | None, advance: Any) -> tuple[Any, float]:
            random.seed(4)
            job = scheduler.add_job(
                jobs.nothing, make(), id="job", coalesce=True, misfire_grace_time=None
            )
            advance(seconds)
            scheduler.turn()
            if rig is not None:
                wait_until(lambda: rig.job().interval_range, "telemetry to look ahead")
            return job.next_run_time, random.random()

        with freeze_time() as clock:
            scheduler = HandDriven(timezone=UTC)
            scheduler.start()
            expected = throw(scheduler, None, clock.advance)
            scheduler.shutdown()
        with hand_driven_rig() as rig:
            assert expected == throw(rig.scheduler, rig, rig.clock.advance)

    @pytest.mark.parametrize("instrumented", [False, True])
    def test_a_stateful_trigger_is_not_called_more_often(self, instrumented: bool) -> None:
        """A user's stateful trigger is not called more often, and its runs are counted."""
        trigger = Countdown(10)
        with hand_driven_rig() as rig:
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
            rig.checks_events = instrumented

    def test_stateful_trigger_of_another_process_is_counted(self, tmp_path: Path) -> None:
        """This also holds if another process has stored the job."""
        pytest.importorskip("sqlalchemy")
        from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore

        url = f"sqlite:///{tmp_path / 'jobs.sqlite'}"
        with hand_driven_rig(jobstores={"default": SQLAlchemyJobStore(url)}) as rig:
            wait_until(lambda: recorder_of(rig.telemetry).jobstores()["default"].last_read_at)
            other = HandDriven(jobstores={"default": SQLAlchemyJobStore(url)}, timezone=UTC)
            other.start()
            trigger = Countdown(10)
            other.add_job(jobs.nothing, trigger, id="job", coalesce=True, misfire_grace_time=None)
            other.shutdown()
            rig.after(9.5 * MINUTE)
            rig.settle()
            assert rig.outcomes() == {"success": 1, "coalesced": 9}

    def test_coalesced_runs_of_a_trigger_that_cannot_be_copied_are_known(self) -> None:
        """Only the scheduler's loop calls it."""
        trigger = Countdown(10)
        trigger.lock = threading.Lock()
        with hand_driven_rig() as rig:
            rig.add(jobs.nothing, trigger, coalesce=True)
            rig.after(9.5 * MINUTE)
            rig.settle()
            assert rig.outcomes() == {"success": 1, "coalesced": 9}

    def test_a_week_of_missed_seconds_is_counted_at_once(self) -> None:
        """A job of every second that was down for a week is counted within one pass."""
        with hand_driven_rig() as rig:
            rig.add(jobs.nothing, every(1), coalesce=True)
            rig.after(7 * DAY)
            rig.settle()
            assert rig.outcomes() == {"success": 1, "coalesced": 7 * 24 * 3600}

    def test_run_in_time_coalesces_nothing(self) -> None:
        """A job that always runs in time has no coalesced runs."""
        with hand_driven_rig() as rig:
            rig.add(jobs.nothing, every(10), coalesce=True)
            rig.scheduler.turn()
            rig.settle()
            for _ in range(5):
                rig.after(10)
                rig.settle()
            assert rig.outcomes() == {"success": 6}


class Countdown(BaseTrigger):
    """A user's trigger that fires every minute, a number of times, and counts its calls."""

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
