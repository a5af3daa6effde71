"""APScheduler's own triggers whose coming fire times cannot all be found."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from datetime import timedelta, timezone
from typing import Any

import pytest
from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.combining import AndTrigger, OrTrigger
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.date import DateTrigger
from apscheduler.triggers.interval import IntervalTrigger

from apscheduler_telemetry.adapters.apscheduler3.triggers import has_no_custom_part
from tests.helpers import jobs
from tests.helpers.clocks import START
from tests.helpers.metrics import errors_of
from tests.helpers.rigs import HandRig, hand_driven_rig
from tests.helpers.triggers import calendar, cron, every
from tests.helpers.waiting import wait_until

HOUR = timedelta(hours=1)
NEVER_AGREE: dict[str, Callable[[], BaseTrigger]] = {
    "interval and cron": lambda: AndTrigger([every(7200), cron(day_of_week="sat,sun")]),
    "two crons": lambda: AndTrigger([cron(hour="*/2"), cron(day_of_week="sat,sun")]),
    "two intervals": lambda: AndTrigger([every(60), every(90)]),
    "and in and": lambda: AndTrigger([AndTrigger([cron(hour=0), cron(day="*/2")]), cron()]),
    "and in or": lambda: OrTrigger([cron(hour=5), AndTrigger([every(60), every(90)])]),
    "or in and": lambda: AndTrigger([OrTrigger([every(60), every(90)]), cron(hour=0)]),
}


@pytest.fixture
def rig() -> Iterator[HandRig]:
    with hand_driven_rig() as rig:
        yield rig


def errors(rig: HandRig) -> int:
    return errors_of(rig.telemetry).counts()["schedule"]


def knows_intervals(rig: HandRig, job_id: str) -> bool:
    return rig.job(job_id).interval_range is not None


def add(rig: HandRig, trigger: BaseTrigger, job_id: str = "job", **options: Any) -> Any:
    return rig.add(jobs.nothing, trigger, id=job_id, next_run_time=START, **options)


class TestNoCommonFireTime:
    """An `AndTrigger` whose parts never agree again; asked for that, APScheduler never returns."""

    @pytest.mark.parametrize("make", NEVER_AGREE.values(), ids=NEVER_AGREE)
    def test_warning_names_the_job_and_other_jobs_are_not_affected(
        self, make: Callable[[], BaseTrigger], rig: HandRig, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A warning names the job and when the scheduler will hang; others are looked at."""
        rig.failing = {"schedule"}
        add(rig, make(), "endless")
        add(rig, cron(minute="0"), "other")
        wait_until(lambda: errors(rig) and rig.job("other").interval_range)
        assert errors(rig) == 1
        assert "'endless'" in caplog.text
        assert f"no fire time after {START}" in caplog.text
        assert "without an end" in caplog.text

    @pytest.mark.parametrize(
        "trigger",
        [
            AndTrigger([cron(minute="*/30"), cron(minute="0,30")]),
            AndTrigger([every(60), every(60)]),
            AndTrigger([cron(hour=1), DateTrigger(START)]),
        ],
        ids=["crons", "intervals", "ending"],
    )
    def test_parts_that_agree_are_no_problem(self, trigger: BaseTrigger, rig: HandRig) -> None:
        """If they agree, or one of them ends, nothing is reported."""
        add(rig, trigger)
        add(rig, cron(minute="0"), "later")
        wait_until(lambda: rig.job("later").interval_range)
        assert errors(rig) == 0

    def test_dropped_runs_of_other_jobs_are_counted(self, rig: HandRig) -> None:
        """Overdue runs of another job that is replaced are counted."""
        rig.failing = {"schedule"}
        rig.scheduler.pause()
        add(rig, AndTrigger([cron(hour="*/2"), cron(day_of_week="sat,sun")]), "endless")
        add(rig, every(10))
        rig.clock.advance(600)
        rig.add(jobs.nothing, every(10), replace_existing=True, next_run_time=START + HOUR)
        wait_until(lambda: rig.outcomes() == {"missed": 1, "coalesced": 60})
        rig.forgotten = 1


class TestTriggerThatRaises:
    """One of APScheduler's own whose attributes the application has changed."""

    def test_it_is_reported_once_and_asked_again_an_hour_later(
        self, rig: HandRig, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Not at every run; when it answers, its intervals are known."""
        rig.failing = {"schedule"}
        part = cron(minute="0,30")
        fields, part.fields = part.fields, None
        add(rig, OrTrigger([part]))
        wait_until(lambda: errors(rig))
        part.fields = fields
        assert f"raised TypeError when it was called for the fire time after {START}" in caplog.text
        for number in range(2):
            rig.scheduler.turn()
            rig.settle()
            add(rig, cron(minute="0"), f"later {number}")
            wait_until(functools.partial(knows_intervals, rig, f"later {number}"))
            assert (rig.job().interval_range, errors(rig)) == (None, 1)
            rig.clock.advance(1800)
        rig.scheduler.turn()
        wait_until(lambda: rig.job().interval_range == (1800, 1800))


class TestNestedTriggers:
    """Combined triggers inside each other."""

    @pytest.mark.parametrize("depth", [15, 25, 100])
    def test_deep_combined_trigger_is_looked_at(self, rig: HandRig, depth: int) -> None:
        """However many triggers are inside each other, the application's own part is found."""
        own: BaseTrigger = cron(minute="0")
        custom: BaseTrigger = type("Custom", (CronTrigger,), {})(timezone=timezone.utc)
        for _ in range(depth):
            own, custom = (OrTrigger([part, cron(minute="30")]) for part in (own, custom))
        assert has_no_custom_part(own)
        assert not has_no_custom_part(custom)
        add(rig, own)
        wait_until(lambda: rig.job().interval_range == (1800, 1800))

    def test_trigger_that_contains_itself_is_reported(self, rig: HandRig) -> None:
        """APScheduler cannot ask it either."""
        rig.failing = {"schedule"}
        trigger = OrTrigger([cron(minute="0")])
        trigger.triggers.append(trigger)
        add(rig, trigger)
        wait_until(lambda: errors(rig))
        add(rig, cron(minute="0"), "later")
        wait_until(lambda: rig.job("later").interval_range)
        assert errors(rig) == 1


class TestEndOfTheCalendar:
    """Triggers that come to the year 9999, where some fail and others search without an end."""

    @pytest.mark.parametrize(
        "make",
        [
            lambda: IntervalTrigger(weeks=52_000, timezone="UTC", end_date="9998-01-01"),
            lambda: OrTrigger([IntervalTrigger(weeks=52_000, timezone="UTC")]),
            lambda: cron(year="*/2000", month=1, day=1),
        ],
        ids=["interval", "or", "cron"],
    )
    def test_trigger_without_a_later_fire_time_is_no_problem(
        self, make: Callable[[], BaseTrigger], rig: HandRig
    ) -> None:
        """The last fire time that a datetime can hold is the last one."""
        add(rig, make())
        wait_until(lambda: rig.job().interval_range)

    def test_calendar_interval_trigger_is_not_asked_there(self, rig: HandRig) -> None:
        """`CalendarIntervalTrigger` would search without an end."""
        trigger = calendar()
        trigger.days, trigger.years = 0, 1000
        add(rig, trigger)
        add(rig, cron(minute="0"), "later")
        wait_until(lambda: rig.job("later").interval_range)
        assert errors(rig) == 0
