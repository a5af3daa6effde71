"""Fire times of triggers: those that were due, and intervals between the next ones."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import datetime, timedelta, timezone, tzinfo
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.combining import AndTrigger, OrTrigger
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.date import DateTrigger
from apscheduler.triggers.interval import IntervalTrigger

from apscheduler_telemetry.adapters.apscheduler3 import triggers
from apscheduler_telemetry.adapters.apscheduler3.triggers import MAX_LISTED_FIRE_TIMES

UTC = timezone.utc
START = datetime(2030, 1, 1, tzinfo=UTC)  # a Tuesday
BERLIN = ZoneInfo("Europe/Berlin")
SECOND_TIME = datetime(2030, 10, 27, 2, 15, fold=1, tzinfo=BERLIN)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def job(trigger: BaseTrigger, next_run: datetime | None = START) -> Any:
    """Return what the functions need of a job."""
    return SimpleNamespace(trigger=trigger, next_run_time=next_run)


def interval(seconds: float, **options: Any) -> IntervalTrigger:
    return IntervalTrigger(seconds=seconds, start_date=START, timezone=UTC, **options)


def cron(**options: Any) -> CronTrigger:
    return CronTrigger(timezone=UTC, **options)


class Hourly(BaseTrigger):
    """A user's trigger."""

    def get_next_fire_time(self, previous: datetime | None, now: datetime) -> datetime | None:
        return (previous or now) + timedelta(hours=1)


class Stuck(BaseTrigger):
    """A user's trigger that returns the same time again and again."""

    def get_next_fire_time(self, previous: datetime | None, now: datetime) -> datetime | None:
        return previous


class TestFireTimesBefore:
    """The fire times that APScheduler coalesces into a later one."""

    @pytest.mark.parametrize(
        "trigger",
        [
            interval(10),
            cron(second="*/10"),
            OrTrigger([cron(second="0,20,40"), cron(second="10,30,50")]),
            AndTrigger([cron(second="*/10"), cron(second="0,10,20,30,40,50")]),
            type("Ours", (IntervalTrigger,), {})(seconds=10, start_date=START, timezone=UTC),
        ],
        ids=["interval", "cron", "or", "and", "subclass"],
    )
    def test_all_fire_times_but_the_last_are_returned(self, trigger: BaseTrigger) -> None:
        """All fire times are returned except for the last one."""
        times = triggers.fire_times_before(job(trigger), at(50))
        assert times.total == 5
        assert list(times.latest_times) == [at(s) for s in (0, 10, 20, 30, 40)]

    @pytest.mark.parametrize("next_run", [None, START, at(1)])
    def test_paused_job_has_no_fire_times(self, next_run: datetime | None) -> None:
        """A paused job, or one without fire times before the next run, has none."""
        for trigger in (interval(10), cron(second="*")):
            assert triggers.fire_times_before(job(trigger, next_run), START) == (0, ())

    @pytest.mark.parametrize("trigger", [interval(1), cron(second="*")], ids=["interval", "cron"])
    def test_many_fire_times_are_counted_and_the_latest_returned(
        self, trigger: BaseTrigger
    ) -> None:
        """Many fire times are all counted, and the latest are returned."""
        times = triggers.fire_times_before(job(trigger), at(5000))
        assert (times.total, len(times.latest_times)) == (5000, MAX_LISTED_FIRE_TIMES)
        assert (times.latest_times[0], times.latest_times[-1]) == (at(4000), at(4999))

    def test_trigger_that_does_not_move_on_ends_the_count(self) -> None:
        """A trigger that returns the same time again ends the count."""
        assert triggers.fire_times_before(job(Stuck()), at(50)).total == 1

    def test_trigger_that_has_ended_is_asked_no_further(self) -> None:
        """A trigger is not called after its last fire time."""
        trigger = cron(second="*/10", end_date=at(20))
        assert triggers.fire_times_before(job(trigger), at(50)).total == 3

    def test_fire_times_are_in_the_jobs_time_zone(self) -> None:
        """Fire times are in the time zone that APScheduler uses for the job."""
        start = START.astimezone(BERLIN)
        for trigger in (interval(60), CronTrigger(minute="*", timezone=BERLIN)):
            times = triggers.fire_times_before(job(trigger, start), start + timedelta(minutes=2))
            assert [t.isoformat() for t in times.latest_times] == [
                "2030-01-01T01:00:00+01:00",
                "2030-01-01T01:01:00+01:00",
            ]


def due_times(job: Any, now: datetime) -> Any:
    return triggers.list_due_times(job.next_run_time, job.trigger, now)


class TestDueTimes:
    """The fire times up to now."""

    @pytest.mark.parametrize("trigger", [interval(10), cron(second="*/10")])
    @pytest.mark.parametrize(("now", "expected"), [(-1, 0), (0, 1), (9.9, 1), (10, 2), (35, 4)])
    def test_run_that_is_due_now_is_due(
        self, trigger: BaseTrigger, now: float, expected: int
    ) -> None:
        """A run whose time is exactly now is due."""
        due = due_times(job(trigger), at(now))
        assert (due.total, list(due.latest_times)) == (
            expected,
            [at(10 * n) for n in range(expected)],
        )

    @pytest.mark.parametrize("make", [interval, lambda _: Hourly()], ids=["interval", "own"])
    def test_repeated_hour_counts_twice(self, make: Callable[[float], BaseTrigger]) -> None:
        """The hour that is repeated when daylight saving ends counts twice."""
        since = datetime(2030, 10, 27, 0, 15, tzinfo=BERLIN)
        due = due_times(job(make(3600), since), SECOND_TIME)
        # 0:15, 1:15, 2:15 and 2:15 again; the user's trigger ignores that.
        assert due.total == (4 if make is interval else 3)

    @pytest.mark.parametrize("trigger", [interval(10), cron(second="*/10")])
    @pytest.mark.parametrize(
        ("following", "expected"), [(0, 0), (5, 1), (10, 1), (11, 2), (30, 3), (40, 4), (99, 4)]
    )
    def test_fire_times_from_the_following_run_on_do_not_count(
        self, trigger: BaseTrigger, following: float, expected: int
    ) -> None:
        """Fire times from the following run on, or after now, do not count."""
        due = triggers.list_due_times(at(0), trigger, at(35), at(following))
        assert (due.total, list(due.latest_times)) == (
            expected,
            [at(10 * n) for n in range(expected)],
        )

    def test_paused_job_has_no_due_runs(self) -> None:
        """A job without a next run time has no due runs."""
        assert due_times(job(interval(10), None), START).total == 0


class TestSnapshot:
    """Copies of triggers whose result depends on how often they were called."""

    @pytest.mark.parametrize(
        "trigger",
        [interval(1), cron(second=1), DateTrigger(START), OrTrigger([interval(1), cron(second=1)])],
    )
    def test_triggers_of_apscheduler_are_not_copied(self, trigger: BaseTrigger) -> None:
        """APScheduler's triggers, combined ones included, are not copied."""
        assert triggers.copy_if_stateful(trigger) is None

    @pytest.mark.parametrize("trigger", [Hourly(), OrTrigger([interval(1), Hourly()])])
    def test_triggers_of_the_user_are_copied(self, trigger: BaseTrigger) -> None:
        """A user's trigger is copied, also as part of a combined one."""
        copied = triggers.copy_if_stateful(trigger)
        assert copied is not trigger
        assert type(copied) is type(trigger)


class TestIntervals:
    """The shortest and the longest interval between the next fire times."""

    @pytest.mark.parametrize(
        ("trigger", "expected"),
        [
            (interval(90), (90, 90)),
            (cron(day_of_week="mon-fri", hour=2), (86_400, 3 * 86_400)),
            (cron(minute="0,10"), (600, 3000)),
            (interval(10, end_date=at(25)), (10, 10)),
            (OrTrigger([cron(hour=1), cron(hour=4)]), (3 * 3600, 21 * 3600)),
            (interval(60, jitter=30), (60, 60)),
            (Hourly(), (3600, 3600)),
        ],
    )
    def test_intervals_are_those_of_the_next_ten_fire_times(
        self, trigger: BaseTrigger, expected: tuple[float, float]
    ) -> None:
        """Intervals are computed from the next ten fire times, without jitter."""
        first = trigger.get_next_fire_time(None, START) or START
        assert triggers.compute_intervals(trigger, first)[0] == expected

    @pytest.mark.parametrize("trigger", [DateTrigger(START), interval(10, end_date=at(5)), Stuck()])
    def test_trigger_with_one_fire_time_left_has_no_intervals(self, trigger: BaseTrigger) -> None:
        """A trigger with one fire time left has no intervals."""
        assert triggers.compute_intervals(trigger, START)[0] is None

    @pytest.mark.parametrize(
        "trigger", [interval(90), interval(0.5), interval(60, jitter=30), DateTrigger(START)]
    )
    def test_constant_intervals_are_found_without_calling_the_trigger(
        self, trigger: BaseTrigger
    ) -> None:
        """`get_constant_intervals` returns the same without calling the trigger."""
        first = trigger.get_next_fire_time(None, START) or START
        assert triggers.has_constant_intervals(trigger)
        assert (
            triggers.get_constant_intervals(trigger)
            == triggers.compute_intervals(trigger, first)[0]
        )

    @pytest.mark.parametrize(
        "trigger", [cron(hour=1), interval(10, end_date=at(25)), OrTrigger([interval(1)]), Hourly()]
    )
    def test_differing_or_ending_intervals_are_not_constant(self, trigger: BaseTrigger) -> None:
        """Triggers with differing intervals, or with an end, have no constant interval."""
        assert not triggers.has_constant_intervals(trigger)

    def test_cron_trigger_in_a_zone_without_a_hash(self) -> None:
        """Cron triggers in time zones without a hash, such as dateutil's, have intervals."""

        class Zone(tzinfo):
            """An hour east of Greenwich."""

            __hash__ = None  # type: ignore[assignment]

            def utcoffset(self, _: datetime | None) -> timedelta:
                return timedelta(hours=1)

            def dst(self, _: datetime | None) -> timedelta:
                return timedelta()

            def tzname(self, _: datetime | None) -> str:
                return "east"

            def localize(self, at: datetime) -> datetime:  # APScheduler 3.10 needs it
                return at.replace(tzinfo=self)

            def normalize(self, at: datetime) -> datetime:
                return at

        trigger = CronTrigger(minute="*/5", timezone=Zone())
        assert triggers.compute_intervals(trigger, START)[0] == (300, 300)

    def test_cron_triggers_that_differ_have_intervals_of_their_own(self) -> None:
        """Intervals are cached by fields, limits, time zone and next run."""
        alike = [
            triggers.compute_intervals(cron(hour=1, minute="0,20"), at(3600)) for _ in range(2)
        ]
        assert alike[0] is alike[1]
        assert triggers.compute_intervals(cron(hour=1, minute="0,30"), at(3600)) != alike[0]
        assert triggers.compute_intervals(cron(hour=1, minute="0,20"), at(4800)) != alike[0]
        assert triggers.compute_intervals(
            cron(hour=1, minute="0,20", end_date=at(5000)), at(3600)
        ) == (
            (1200, 1200),
            at(4800).timestamp(),
        )

    def test_intervals_are_valid_up_to_the_tenth_fire_time(self) -> None:
        """Intervals are valid until the tenth fire time."""
        assert triggers.compute_intervals(interval(10), START)[1] == at(90).timestamp()

    def test_interval_is_25_hours_when_daylight_saving_ends(self) -> None:
        """A daily job has an interval of 25 hours on the day when daylight saving ends."""
        trigger = CronTrigger(hour=12, timezone=BERLIN)
        first = datetime(2030, 10, 24, 12, tzinfo=BERLIN)
        assert triggers.compute_intervals(trigger, first)[0] == (24 * 3600, 25 * 3600)

    def test_jitter_and_random_state_do_not_change(self) -> None:
        """The trigger's jitter and the state of `random` are not changed."""
        trigger = OrTrigger([interval(10, jitter=5)], jitter=3)
        random.seed(1)
        expected = random.random()
        random.seed(1)
        triggers.compute_intervals(trigger, START)
        triggers.fire_times_before(job(trigger), at(100))
        assert random.random() == expected
        assert (trigger.jitter, trigger.triggers[0].jitter) == (3, 5)


class TestDescribe:
    """Triggers as text."""

    def test_date_triggers_share_one_description(self) -> None:
        """Date triggers share one description, as their jobs share a label."""
        assert triggers.describe(DateTrigger(START)) == "date"
        assert triggers.describe(interval(10)) == "interval[0:00:10]"
