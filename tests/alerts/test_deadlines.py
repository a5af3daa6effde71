"""Deadlines: when the next run of a job has to have succeeded."""

from __future__ import annotations

import importlib
from datetime import datetime, time, timedelta, timezone, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from apscheduler_telemetry import Expectations, expect
from apscheduler_telemetry.core.times import find_deadline, to_unix_seconds
from tests.helpers.jobs import nothing
from tests.helpers.schedulers import HandDriven, hand_driven_scheduler
from tests.helpers.watching import Watched, due, watched

BERLIN = "Europe/Berlin"


def zones(name: str) -> list[tzinfo]:
    """Return a time zone in each library that there is."""
    found: list[tzinfo] = [ZoneInfo(name)]
    try:
        pytz: Any = importlib.import_module("pytz")
    except ModuleNotFoundError:  # APScheduler 3.10 needs it, 3.11 does not
        return found
    return [*found, pytz.timezone(name)]


def utc(text: str) -> float:
    """Return the Unix seconds of a time in UTC."""
    return datetime.fromisoformat(text).replace(tzinfo=timezone.utc).timestamp()


def deadline_of(seen: Watched) -> float | None:
    return seen.job("deadline_timestamp_seconds")


class TestTimeOfDay:
    """The first such time of day after the run is due."""

    @pytest.mark.parametrize(
        ("zone", "due_at", "time_of_day", "expected"),
        [
            (BERLIN, "2026-06-01 00:00", "06:30", "2026-06-01 04:30"),
            (BERLIN, "2026-06-01 04:29:59", "06:30", "2026-06-01 04:30"),
            # Strictly after it.
            (BERLIN, "2026-06-01 04:30", "06:30", "2026-06-02 04:30"),
            (BERLIN, "2026-06-01 23:30", "06:30", "2026-06-02 04:30"),
            (BERLIN, "2026-06-01 22:30", "00:00", "2026-06-02 22:00"),
            # Clocks are set forward, from 02:00 to 03:00, at 01:00 UTC.
            (BERLIN, "2026-03-28 20:00", "06:30", "2026-03-29 04:30"),
            (BERLIN, "2026-03-28 05:29", "06:30", "2026-03-28 05:30"),
            (BERLIN, "2026-03-28 05:30", "06:30", "2026-03-29 04:30"),
            # 02:30 is skipped: an hour and a half after 01:00 it is 03:30.
            (BERLIN, "2026-03-29 00:00", "02:30", "2026-03-29 01:30"),
            (BERLIN, "2026-03-29 00:59:59", "02:30", "2026-03-29 01:30"),
            # But not for a run that is due at 03:00 or later.
            (BERLIN, "2026-03-29 01:00", "02:30", "2026-03-30 00:30"),
            (BERLIN, "2026-03-29 01:10", "02:30", "2026-03-30 00:30"),
            (BERLIN, "2026-03-29 00:00", "02:00", "2026-03-29 01:00"),
            # Clocks are set back, from 03:00 to 02:00, at 01:00 UTC: 02:30 is there twice.
            (BERLIN, "2026-10-24 20:00", "06:30", "2026-10-25 05:30"),
            (BERLIN, "2026-10-25 00:00", "02:30", "2026-10-25 00:30"),
            (BERLIN, "2026-10-25 00:30", "02:30", "2026-10-25 01:30"),
            (BERLIN, "2026-10-25 00:45", "02:30", "2026-10-25 01:30"),
            (BERLIN, "2026-10-25 01:30", "02:30", "2026-10-26 01:30"),
            # Half an hour only.
            ("Australia/Lord_Howe", "2026-10-03 15:00", "02:15", "2026-10-03 15:45"),
            ("Australia/Lord_Howe", "2026-04-04 14:30", "01:45", "2026-04-04 14:45"),
            ("Australia/Lord_Howe", "2026-04-04 14:45", "01:45", "2026-04-04 15:15"),
            # Set back to the day before: after 00:01 it was 23:01 again.
            ("America/St_Johns", "2010-11-07 02:30:30", "23:30", "2010-11-07 03:00"),
            # There was no 30 December.
            ("Pacific/Apia", "2011-12-30 05:00", "06:30", "2011-12-30 16:30"),
            ("UTC", "2026-03-29 00:00", "02:30", "2026-03-29 02:30"),
        ],
    )
    def test_is_the_first_one_after_the_run_is_due(
        self, zone: str, due_at: str, time_of_day: str, expected: str
    ) -> None:
        """It is correct when clocks are changed, in each library of time zones."""
        for each in zones(zone):
            deadline = time.fromisoformat(time_of_day).replace(tzinfo=each)
            found = find_deadline(utc(due_at), deadline)
            assert found is not None
            assert datetime.fromtimestamp(found, timezone.utc) == datetime.fromtimestamp(
                utc(expected), timezone.utc
            )

    @pytest.mark.parametrize("zone", ["Europe/Berlin", "America/Sao_Paulo", "Asia/Kathmandu"])
    def test_is_within_a_day_and_shows_the_time(self, zone: str) -> None:
        """Whatever the run, its deadline is within 25 hours, and clocks show that time of day."""
        info = ZoneInfo(zone)
        for hours in range(0, 365 * 24, 7):
            due_at = utc("2018-01-01 00:17") + 3600 * hours
            found = find_deadline(due_at, time(6, 30, tzinfo=info))
            assert found is not None
            assert due_at < found <= due_at + 25 * 3600
            assert datetime.fromtimestamp(found, info).time() == time(6, 30)

    @pytest.mark.parametrize("year", [1, 9999])
    def test_end_of_the_calendar(self, year: int) -> None:
        """There, a deadline is absent, or the run has one."""
        day = datetime(year, 12, 31, 23, 59, tzinfo=timezone.utc)
        found = find_deadline(to_unix_seconds(day), time(6, 30, tzinfo=ZoneInfo(BERLIN)))
        assert (found is None) is (year == 9999)
        assert find_deadline(to_unix_seconds(day), 60.0) == to_unix_seconds(day) + 60

    def test_zone_that_fails(self) -> None:
        """A time zone of the user's that raises leaves no deadline."""

        class Broken(tzinfo):
            def utcoffset(self, _: datetime | None) -> timedelta:
                raise LookupError

            fromutc = dst = tzname = utcoffset  # type: ignore[assignment]

        assert find_deadline(utc("2026-06-01 00:00"), time(6, 30, tzinfo=Broken())) is None


class TestSeries:
    """``apscheduler_job_deadline_timestamp_seconds``, the deadline of the next run."""

    @pytest.mark.parametrize("zone", zones(BERLIN), ids=lambda zone: type(zone).__module__)
    @pytest.mark.parametrize(
        ("deadline", "expected"),
        [
            (90, "2030-06-01 10:01:30"),
            (timedelta(hours=30), "2030-06-02 16:00"),
            ("12:30", "2030-06-01 10:30"),
            ("12:30 UTC", "2030-06-01 12:30"),
            ("06:30 Asia/Tokyo", "2030-06-01 21:30"),
            (time(12, 30), "2030-06-01 10:30"),
            (time(12, 30, tzinfo=timezone.utc), "2030-06-01 12:30"),
        ],
        ids=str,
    )
    def test_forms(self, deadline: Any, expected: str, zone: tzinfo) -> None:
        """A time of day without a time zone is in that of the scheduler."""
        scheduler = HandDriven(timezone=zone)
        with watched(scheduler, expect=Expectations(deadline=deadline)) as seen:
            scheduler.start(paused=True)
            first = datetime(2030, 6, 1, 10, tzinfo=timezone.utc)
            scheduler.add_job(nothing, "interval", hours=1, id="job", start_date=first)
            assert deadline_of(seen) == utc(expected)

    def test_follows_the_next_run(self) -> None:
        """It changes with the next run, and is absent while there is none."""
        with watched(hand_driven_scheduler(), expect=Expectations(deadline=90)) as seen:
            seen.scheduler.start(paused=True)
            job = seen.scheduler.add_job(nothing, "interval", hours=1, id="job")

            def check() -> None:
                assert deadline_of(seen) == seen.next_run() + 90  # type: ignore[operator]

            check()
            job.modify(next_run_time=job.next_run_time + timedelta(hours=5))
            check()
            job.pause()
            assert (seen.next_run(), deadline_of(seen)) == (0, None)
            job.resume()
            check()
            job.remove()
            assert (seen.next_run(), deadline_of(seen)) == (0, None)

    def test_after_a_run(self) -> None:
        """When a run was submitted, it is the deadline of the next one; a last run has none."""
        with watched(hand_driven_scheduler(), expect=Expectations(deadline=90)) as seen:
            seen.scheduler.start()
            job = seen.scheduler.add_job(nothing, **due())
            first = deadline_of(seen)
            seen.scheduler.turn()
            assert deadline_of(seen) == job.next_run_time.timestamp() + 90
            assert deadline_of(seen) != first
            seen.scheduler.add_job(nothing, "date", id="once")
            assert seen.job("deadline_timestamp_seconds", "once") is not None
            seen.scheduler.turn()
            assert seen.runs("once") == {"success": 1}
            assert seen.job("deadline_timestamp_seconds", "once") is None

    def test_stays_while_the_loop_is_dead(self) -> None:
        """The run that nothing starts keeps its deadline, so that the alert can fire."""
        with watched(hand_driven_scheduler(), expect=Expectations(deadline=90)) as seen:
            seen.scheduler.start()
            seen.scheduler.add_job(nothing, **due())
            seen.scheduler.shutdown()
            assert deadline_of(seen) == seen.next_run() + 90  # type: ignore[operator]
            assert seen.next_run()

    def test_decorated_function_in_two_time_zones(self) -> None:
        """Each scheduler adds its own zone."""

        @expect(deadline="12:30")
        def report() -> None: ...

        found = []
        for zone in ("UTC", BERLIN):
            with watched(HandDriven(timezone=zone)) as seen:
                seen.scheduler.start(paused=True)
                first = datetime(2030, 6, 1, 8, tzinfo=timezone.utc)
                seen.scheduler.add_job(report, "interval", hours=1, id="job", start_date=first)
                found.append(deadline_of(seen))
        assert found == [utc("2030-06-01 12:30"), utc("2030-06-01 10:30")]
