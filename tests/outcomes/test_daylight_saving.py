"""Runs in nights in which daylight saving time begins or ends."""

from __future__ import annotations

from datetime import datetime, timezone
from zoneinfo import ZoneInfo

import pytest
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.date import DateTrigger
from apscheduler.triggers.interval import IntervalTrigger

from tests.helpers import jobs
from tests.helpers.rigs import hand_driven_rig
from tests.helpers.schedulers import APSCHEDULER, forkserver_pool

UTC = timezone.utc


HOUR = 3600.0


BERLIN = ZoneInfo("Europe/Berlin")


SPRING = datetime(2030, 3, 30, 23, 0, tzinfo=UTC)  # midnight; at 2:00 it is 3:00


AUTUMN = datetime(2030, 10, 26, 22, 0, tzinfo=UTC)  # midnight; at 3:00 it is 2:00


class TestDaylightSaving:
    """Nights in which an hour is missing or repeated."""

    @pytest.mark.parametrize("coalesce", [True, False])
    @pytest.mark.parametrize("midnight", [SPRING, AUTUMN], ids=["spring", "autumn"])
    def test_hourly_job_has_a_run_for_each_hour_of_the_night(
        self, midnight: datetime, coalesce: bool
    ) -> None:
        """An hourly job has one run per elapsed hour of the night."""
        if APSCHEDULER < (3, 11) and midnight is AUTUMN and not coalesce:
            pytest.skip("APScheduler 3.10 adds intervals to the clock on the wall, and loses one")
        trigger = IntervalTrigger(hours=1, start_date=midnight.astimezone(BERLIN), timezone=BERLIN)
        with hand_driven_rig(at=midnight, zone=BERLIN) as rig:
            rig.add(jobs.nothing, trigger, coalesce=coalesce)
            rig.after(9.5 * HOUR)
            rig.settle()
            expected = {"success": 1, "coalesced": 9} if coalesce else {"success": 10}
            assert expected == rig.outcomes()

    @pytest.mark.slow
    def test_a_child_process_measures_a_run_in_the_hour_that_comes_twice(self) -> None:
        """Though the time zone that comes back from the child is another object."""
        zone = ZoneInfo.no_cache("Europe/Berlin")
        due = datetime(2030, 10, 27, 0, 30, tzinfo=UTC).astimezone(zone)
        with hand_driven_rig({"default": forkserver_pool()}, at=AUTUMN, zone=UTC) as rig:
            rig.add(jobs.nothing, DateTrigger(due, timezone=zone))
            rig.after(2.5 * HOUR)
            rig.settle()
            assert rig.outcomes() == {"success": 1}
            assert sum(rig.job().durations.counts) == 1

    @pytest.mark.skipif(APSCHEDULER < (3, 11), reason="APScheduler 3.10 repeats hours itself")
    @pytest.mark.parametrize("midnight", [SPRING, AUTUMN], ids=["spring", "autumn"])
    def test_cron_job_has_a_run_for_each_half_hour_of_the_night(self, midnight: datetime) -> None:
        """A cron job of every half hour has one run per elapsed half hour of the night."""
        trigger = CronTrigger(minute="*/30", timezone=BERLIN)
        with hand_driven_rig(at=midnight, zone=BERLIN) as rig:
            rig.add(jobs.nothing, trigger, coalesce=True)
            rig.after(4.75 * HOUR)
            rig.settle()
            assert rig.outcomes() == {"success": 1, "coalesced": 9}

    def test_lost_runs_in_the_repeated_hour_are_counted_by_the_time(self) -> None:
        """Due runs in the repeated hour are counted by elapsed time, not by the wall clock."""
        trigger = IntervalTrigger(minutes=30, start_date=AUTUMN.astimezone(BERLIN), timezone=BERLIN)
        with hand_driven_rig(at=AUTUMN, zone=BERLIN) as rig:
            rig.add(jobs.nothing, trigger, executor="nowhere")
            rig.after(3.25 * HOUR)  # a quarter past two, for the second time
            assert rig.outcomes() == {"lost": 7}
