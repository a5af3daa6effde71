"""Fire times of triggers: those that were due, and intervals between the next ones."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.combining import AndTrigger, OrTrigger
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.date import DateTrigger
from apscheduler.triggers.interval import IntervalTrigger

from apscheduler_telemetry.adapters.apscheduler3 import triggers
from apscheduler_telemetry.adapters.apscheduler3.triggers import (
    MAX_LISTED_FIRE_TIMES,
    FireTimeSearch,
    FoundFireTimes,
)
from tests.helpers.triggers import Every

UTC = timezone.utc
START = datetime(2030, 1, 1, tzinfo=UTC)  # a Tuesday
BERLIN = ZoneInfo("Europe/Berlin")
SECOND_TIME = datetime(2030, 10, 27, 2, 15, fold=1, tzinfo=BERLIN)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def found_by(search: FireTimeSearch) -> FoundFireTimes:
    """Return what a search finds, without any problem."""
    search.run()
    assert search.is_finished
    assert search.problem is None
    return search.found


def times_before(
    trigger: BaseTrigger, end: datetime, first: datetime | None = START
) -> FoundFireTimes:
    return found_by(triggers.create_search_before(first, end, trigger))


def due_times(
    trigger: BaseTrigger, now: datetime, first: datetime | None = START, before: Any = None
) -> FoundFireTimes:
    return found_by(triggers.create_due_fire_time_search(first, trigger, now, before))


def coming_times(trigger: BaseTrigger, next_run: datetime = START) -> Sequence[datetime]:
    return found_by(triggers.create_upcoming_fire_time_search(trigger, next_run)).latest_times


def intervals(trigger: BaseTrigger, next_run: datetime = START) -> Any:
    return triggers.compute_interval_range(coming_times(trigger, next_run))


def interval(seconds: float, **options: Any) -> IntervalTrigger:
    return IntervalTrigger(seconds=seconds, start_date=START, timezone=UTC, **options)


def cron(**options: Any) -> CronTrigger:
    return CronTrigger(timezone=UTC, **options)


class Hourly(BaseTrigger):
    """A user's trigger."""

    def get_next_fire_time(self, previous: datetime | None, now: datetime) -> datetime | None:
        return (previous or now) + timedelta(hours=1)


class Stuck(BaseTrigger):
    """A trigger that returns the same time again and again."""

    __module__ = "apscheduler.triggers.stuck"  # else it would not be asked

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
        ],
        ids=["interval", "cron", "or", "and"],
    )
    def test_all_fire_times_but_the_last_are_returned(self, trigger: BaseTrigger) -> None:
        """All fire times are returned, except for the last one."""
        times = times_before(trigger, at(50))
        assert times.found_count == 5
        assert list(times.latest_times) == [at(s) for s in (0, 10, 20, 30, 40)]

    @pytest.mark.parametrize("next_run", [None, START, at(1)])
    def test_paused_job_has_no_fire_times(self, next_run: datetime | None) -> None:
        """A paused job, or one without fire times before the next run, has none."""
        for trigger in (interval(10), cron(second="*")):
            assert times_before(trigger, START, next_run).found_count == 0

    @pytest.mark.parametrize("trigger", [interval(1), cron(second="*")], ids=["interval", "cron"])
    def test_many_fire_times_are_counted_and_the_latest_returned(
        self, trigger: BaseTrigger
    ) -> None:
        """Of many fire times all are counted, and the latest are returned."""
        times = times_before(trigger, at(5000))
        assert (times.found_count, len(times.latest_times)) == (5000, MAX_LISTED_FIRE_TIMES)
        assert (times.latest_times[0], times.latest_times[-1]) == (at(4000), at(4999))

    def test_trigger_that_does_not_move_on_ends_the_count(self) -> None:
        """A trigger that does not move on ends the count, and not the scheduler."""
        assert times_before(Stuck(), at(50)).found_count == 1

    def test_trigger_that_has_ended_is_asked_no_further(self) -> None:
        """A trigger is not called after its last fire time."""
        trigger = cron(second="*/10", end_date=at(20))
        assert times_before(trigger, at(50)).found_count == 3

    def test_fire_times_are_in_the_jobs_time_zone(self) -> None:
        """Fire times are in the time zone that APScheduler uses for the job."""
        start = START.astimezone(BERLIN)
        for trigger in (interval(60), CronTrigger(minute="*", timezone=BERLIN)):
            times = times_before(trigger, start + timedelta(minutes=2), start)
            assert [t.isoformat() for t in times.latest_times] == [
                "2030-01-01T01:00:00+01:00",
                "2030-01-01T01:01:00+01:00",
            ]


class TestDueTimes:
    """The fire times up to now."""

    @pytest.mark.parametrize("trigger", [interval(10), cron(second="*/10")])
    @pytest.mark.parametrize(("now", "expected"), [(-1, 0), (0, 1), (9.9, 1), (10, 2), (35, 4)])
    def test_run_that_is_due_now_is_due(
        self, trigger: BaseTrigger, now: float, expected: int
    ) -> None:
        """A run that is due this very moment is due."""
        due = due_times(trigger, at(now))
        assert (due.found_count, list(due.latest_times)) == (
            expected,
            [at(10 * n) for n in range(expected)],
        )

    @pytest.mark.parametrize("kind", ["interval", "cron"])
    @pytest.mark.parametrize(
        ("end_date", "expected"), [(0, 1), (9.9, 1), (10, 2), (25, 3), (35, 4), (99, 4), (-5, 1)]
    )
    def test_fire_times_after_the_end_date_do_not_count(
        self, kind: str, end_date: float, expected: int
    ) -> None:
        """Those up to and including the end date count, and the next run of the job always."""
        options = {"end_date": at(end_date)}
        trigger = interval(10, **options) if kind == "interval" else cron(second="*/10", **options)
        due = due_times(trigger, at(35))
        assert (due.found_count, list(due.latest_times)) == (
            expected,
            [at(10 * n) for n in range(expected)],
        )

    def test_end_date_limits_runs_with_jitter(self) -> None:
        """Each run is later by one half of the jitter on average, and none is after the end."""
        trigger = interval(10, jitter=4, end_date=at(36))
        assert list(due_times(trigger, at(500)).latest_times) == [at(0), at(12), at(24), at(36)]

    def test_repeated_hour_counts_twice(self) -> None:
        """The hour that is repeated when daylight saving ends counts twice."""
        since = datetime(2030, 10, 27, 0, 15, tzinfo=BERLIN)
        due = due_times(interval(3600), SECOND_TIME, since)
        assert due.found_count == 4  # 0:15, 1:15, 2:15 and 2:15 again

    def test_trigger_of_the_user_has_one_that_is_known(self) -> None:
        """It is not called, so that only the first is known."""
        search = triggers.create_due_fire_time_search(START, Hourly(), at(36_000))
        assert (search.is_finished, search.problem) == (True, triggers.CUSTOM_TRIGGER_PROBLEM)
        assert list(search.found.latest_times) == [START]
        assert due_times(Hourly(), at(-1)).found_count == 0

    @pytest.mark.parametrize("trigger", [interval(10), cron(second="*/10")])
    @pytest.mark.parametrize(
        ("following", "expected"), [(0, 0), (5, 1), (10, 1), (11, 2), (30, 3), (40, 4), (99, 4)]
    )
    def test_fire_times_from_the_following_run_on_do_not_count(
        self, trigger: BaseTrigger, following: float, expected: int
    ) -> None:
        """Neither fire times from the following run on count, nor those after now."""
        due = due_times(trigger, at(35), at(0), at(following))
        assert (due.found_count, list(due.latest_times)) == (
            expected,
            [at(10 * n) for n in range(expected)],
        )

    def test_paused_job_has_no_due_runs(self) -> None:
        """A job without a next run time has no due runs."""
        assert due_times(interval(10), START, None).found_count == 0


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
        ],
    )
    def test_intervals_are_those_of_the_next_ten_fire_times(
        self, trigger: BaseTrigger, expected: tuple[float, float]
    ) -> None:
        """Intervals are computed from the next ten fire times, without jitter."""
        first = trigger.get_next_fire_time(None, START) or START
        assert intervals(trigger, first) == expected

    @pytest.mark.parametrize("trigger", [DateTrigger(START), interval(10, end_date=at(5)), Stuck()])
    def test_trigger_with_one_fire_time_left_has_no_intervals(self, trigger: BaseTrigger) -> None:
        """A trigger with one fire time left has no intervals."""
        assert intervals(trigger) is None

    @pytest.mark.parametrize(
        "trigger", [interval(90), interval(0.5), interval(60, jitter=30), DateTrigger(START)]
    )
    def test_constant_intervals_are_found_without_calling_the_trigger(
        self, trigger: BaseTrigger
    ) -> None:
        """`get_constant_interval_range` returns the same without calling the trigger."""
        first = trigger.get_next_fire_time(None, START) or START
        assert triggers.has_constant_interval_range(trigger)
        assert triggers.get_constant_interval_range(trigger) == intervals(trigger, first)

    @pytest.mark.parametrize(
        "trigger", [cron(hour=1), interval(10, end_date=at(25)), OrTrigger([interval(1)]), Hourly()]
    )
    def test_differing_or_ending_intervals_are_not_constant(self, trigger: BaseTrigger) -> None:
        """Triggers with differing intervals, or with an end, have no constant interval."""
        assert not triggers.has_constant_interval_range(trigger)

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
        assert intervals(trigger) == (300, 300)

    def test_cron_triggers_that_differ_have_intervals_of_their_own(self) -> None:
        """They are computed once for all with the same fields, limits, zone and next run."""

        def search(*, since: float = 3600, **options: Any) -> Sequence[datetime]:
            return coming_times(cron(**options), at(since))

        alike = [search(hour=1, minute="0,20") for _ in range(2)]
        assert alike[0][1] is alike[1][1]
        assert search(hour=1, minute="0,30") != alike[0]
        assert search(hour=1, minute="0,20", since=4800) != alike[0]
        assert search(hour=1, minute="0,20", end_date=at(5000)) == [at(3600), at(4800)]

    def test_interval_is_25_hours_when_daylight_saving_ends(self) -> None:
        """A daily job has an interval of 25 hours on the day when daylight saving ends."""
        trigger = CronTrigger(hour=12, timezone=BERLIN)
        first = datetime(2030, 10, 24, 12, tzinfo=BERLIN)
        assert intervals(trigger, first) == (24 * 3600, 25 * 3600)

    def test_jitter_and_random_state_do_not_change(self) -> None:
        """The trigger's jitter and the state of `random` are not changed."""
        trigger = OrTrigger([interval(10, jitter=5)], jitter=3)
        random.seed(1)
        expected = random.random()
        random.seed(1)
        intervals(trigger)
        times_before(trigger, at(100))
        assert random.random() == expected
        assert (trigger.jitter, trigger.triggers[0].jitter) == (3, 5)


class TestDescribe:
    """Triggers as text."""

    def test_date_triggers_share_one_description(self) -> None:
        """Date triggers share one description, as their jobs share a label."""
        assert triggers.describe_trigger(DateTrigger(START)) == "date"
        assert triggers.describe_trigger(interval(10)) == "interval[0:00:10]"

    def test_own_trigger_without_a_text_has_that_of_its_class(self) -> None:
        """Python's would have a memory address, also as a part of a combined trigger."""
        assert triggers.describe_trigger(Every(10)) == "Every"
        parts = [interval(10), AndTrigger([Every(10), DateTrigger(START)])]
        assert (
            triggers.describe_trigger(OrTrigger(parts)) == "or[interval[0:00:10], and[Every, date]]"
        )

    def test_trigger_that_contains_itself_has_the_text_of_its_class(self) -> None:
        """A text of it would have no end."""
        trigger = OrTrigger([Every(10)])
        trigger.triggers += [trigger, trigger]
        assert triggers.describe_trigger(trigger) == "OrTrigger"
