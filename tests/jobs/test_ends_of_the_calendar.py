"""Jobs at `datetime.max`, in the year 9999 and in the year 1: what describes them never fails."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable
from datetime import datetime, timedelta, timezone, tzinfo
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from apscheduler.jobstores.memory import MemoryJobStore
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.date import DateTrigger
from apscheduler.triggers.interval import IntervalTrigger
from prometheus_client import generate_latest

from apscheduler_telemetry.core.records import JobSeries
from apscheduler_telemetry.core.times import to_datetime, to_unix_seconds
from tests.helpers import jobs
from tests.helpers.clocks import START
from tests.helpers.metrics import registry_of, sample
from tests.helpers.rigs import hand_driven_rig, live_rig
from tests.helpers.scripts import output_of_script
from tests.helpers.servers import free_port
from tests.helpers.triggers import Moment, Moments, every
from tests.helpers.waiting import wait_until

UTC = timezone.utc
MAX, MIN = datetime.max.replace(tzinfo=UTC), datetime.min.replace(tzinfo=UTC)
EAST, WEST = timezone(timedelta(hours=14)), timezone(timedelta(hours=-12))
ZONES = [UTC, EAST, WEST, ZoneInfo("Pacific/Kiritimati"), ZoneInfo("America/New_York")]
LATE: dict[str, Callable[[], datetime]] = {
    "max": lambda: MAX,
    "max in the east": lambda: MAX.replace(tzinfo=EAST),
    "max in Kiritimati": lambda: MAX.replace(tzinfo=ZONES[3]),
    "max in whole seconds": lambda: MAX.replace(microsecond=0),
    "new year's eve": lambda: datetime(9999, 12, 31, tzinfo=UTC),
    "year 9999 in the west": lambda: datetime(9999, 12, 30, tzinfo=WEST),
}
late = pytest.mark.parametrize("make", LATE.values(), ids=LATE)


def memory(_: Path) -> Any:
    return MemoryJobStore()


def sqlite(path: Path) -> Any:
    pytest.importorskip("sqlalchemy")
    from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore

    return SQLAlchemyJobStore(f"sqlite:///{path / 'jobs.sqlite'}")


class FailingZone(tzinfo):
    """A time zone that fails at the end of the calendar."""

    def utcoffset(self, at: datetime | None) -> timedelta:
        assert at is not None
        return at.replace(tzinfo=None) + timedelta(days=9) - at.replace(tzinfo=None)

    dst = utcoffset

    def tzname(self, _: datetime | None) -> str:
        return "failing"


class TestConversions:
    @pytest.mark.parametrize("zone", ZONES, ids=str)
    @pytest.mark.parametrize("at", [MAX, MIN, START])
    def test_any_datetime_survives_both_ways(self, at: datetime, zone: tzinfo) -> None:
        """It becomes Unix seconds and, but for microseconds, the nearest datetime in any zone."""
        seconds = to_unix_seconds(at)
        converted = to_datetime(seconds, zone)
        assert converted.tzinfo is zone
        assert abs(converted.replace(tzinfo=None) - at.replace(tzinfo=None)) < timedelta(days=1)

    @pytest.mark.parametrize("seconds", [float("inf"), float("-inf"), 1e300, -1e300])
    def test_seconds_beyond_the_calendar_are_its_end(self, seconds: float) -> None:
        """Any number of seconds becomes a datetime."""
        assert to_datetime(seconds) == (MAX if seconds > 0 else MIN)

    def test_zone_that_fails_is_taken_for_utc(self) -> None:
        """A time zone that fails costs its offset, and not the whole report."""
        at = datetime(9999, 12, 31, tzinfo=FailingZone())
        assert to_unix_seconds(at) == datetime(9999, 12, 31, tzinfo=UTC).timestamp()

    @pytest.mark.parametrize("zone", ZONES, ids=str)
    def test_class_of_the_user_is_like_any_datetime(self, zone: tzinfo) -> None:
        """Its own methods are not called."""
        at = START.astimezone(zone)
        assert to_unix_seconds(Moment.of(at)) == START.timestamp()
        failing = Moment.of(datetime(9999, 12, 31, tzinfo=FailingZone()))
        assert to_unix_seconds(failing) == datetime(9999, 12, 31, tzinfo=UTC).timestamp()


class TestDatetimesOfTheUser:
    """A job whose run times are of a subclass of `datetime` whose methods fail."""

    @pytest.mark.parametrize("coalesce", [True, False])
    @pytest.mark.parametrize("store", [memory, sqlite])
    def test_all_jobs_are_counted_and_reported(
        self, store: Callable[[Path], Any], coalesce: bool, tmp_path: Path
    ) -> None:
        """Its runs, dropped ones too, and reports are like any others."""
        with hand_driven_rig(jobstores={"default": store(tmp_path)}) as rig:
            rig.add(jobs.nothing, every(10))
            rig.add(jobs.nothing, Moments(), id="moments", coalesce=coalesce, max_instances=9)
            rig.scheduler.turn()
            rig.settle()
            rig.after(20)
            rig.settle()
            expected = {"success": 2, "coalesced": 1} if coalesce else {"success": 3}
            assert rig.outcomes("moments") == expected
            assert rig.outcomes() == {"success": 2, "coalesced": 1}
            health = {job["id"]: job["next_run"] for job in rig.telemetry.health()["jobs"]}
            assert health["moments"] == health["job"] == "2030-01-01T00:00:30.000+00:00"
            rig.clock.advance(60)
            rig.scheduler.remove_job("moments")
            wait_until(lambda: rig.outcomes("moments").get("missed"))
            rig.forgotten = rig.outcomes("moments")["missed"]


class TestFailingSnapshot:
    """A job whose numbers cannot be read, for whatever reason."""

    def test_all_other_jobs_are_reported(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Health, scrapes and exports show them, and count an error."""
        create_snapshot = JobSeries.create_snapshot

        def fail(series: JobSeries, *args: Any) -> Any:
            if series.label == "broken":
                raise OverflowError
            return create_snapshot(series, *args)

        with hand_driven_rig() as rig:
            for job_id in ("a", "broken", "z"):
                rig.add(jobs.nothing, every(10), id=job_id)
            with monkeypatch.context() as patch:
                patch.setattr(JobSeries, "create_snapshot", fail)
                assert [job["id"] for job in rig.telemetry.health()["jobs"]] == ["a", "z"]
                page = generate_latest(registry_of(rig.telemetry)).decode()
                assert [f'job_id="{name}"' in page for name in ("a", "broken", "z")] == [1, 0, 1]
            rig.failing = {"collector"}


class TestLateRuns:
    """A job that is parked at the end of the calendar, beside one that runs."""

    @late
    @pytest.mark.parametrize("store", [memory, sqlite])
    def test_reports_have_all_jobs(
        self, make: Callable[[], datetime], store: Callable[[Path], Any], tmp_path: Path
    ) -> None:
        """Health, metrics and the other job's runs are what they always are."""
        at = make()
        with hand_driven_rig(jobstores={"default": store(tmp_path)}) as rig:
            rig.add(jobs.nothing, every(10))
            for name, trigger in {
                "interval": IntervalTrigger(hours=1, timezone=UTC),
                "cron": CronTrigger(year="2030-9999", timezone=UTC),
                "date": DateTrigger(at),
            }.items():
                rig.add(jobs.nothing, trigger, id=name, next_run_time=at)
            rig.scheduler.turn()
            rig.settle()
            parked = [job for job in rig.telemetry.health()["jobs"] if job["id"] != "job"]
            assert len(parked) == 3
            for job in parked:
                assert job["next_run"].startswith("9999-12-3")
                assert job["overdue"] is False
            assert json.dumps(rig.telemetry.health()["jobs"])
            assert rig.outcomes() == {"success": 1}
            next_run = sample(
                rig.telemetry, "apscheduler_job_next_run_timestamp_seconds", job_id="date"
            )
            assert next_run == pytest.approx(at.timestamp())

    @late
    @pytest.mark.parametrize("zone", ZONES, ids=str)
    def test_job_may_be_changed_and_removed(
        self, make: Callable[[], datetime], zone: tzinfo
    ) -> None:
        """A parked job can be moved, paused, replaced and removed."""
        with hand_driven_rig(zone=zone) as rig:
            job = rig.add(jobs.nothing, "interval", hours=1, next_run_time=make())
            job.modify(next_run_time=START + timedelta(hours=1))
            job.modify(next_run_time=make())
            job.pause()
            job.resume()
            rig.add(jobs.nothing, "interval", hours=1, next_run_time=make(), replace_existing=True)
            rig.scheduler.remove_job("job")
            assert rig.job().next_run == 0

    def test_parked_job_runs_by_hand(self) -> None:
        """A job that is triggered by hand is parked again by its own trigger."""
        with hand_driven_rig() as rig:
            job = rig.add(jobs.nothing, DateTrigger(MAX))
            job.modify(next_run_time=rig.clock.now)
            rig.scheduler.turn()
            rig.settle()
            assert rig.outcomes() == {"success": 1}

    def test_health_endpoint_is_healthy(self) -> None:
        """`/health` answers 200, by which a container lives on."""
        from apscheduler.schedulers.background import BackgroundScheduler

        with live_rig(BackgroundScheduler(timezone=UTC)) as rig:
            rig.add(jobs.nothing, "interval", hours=1, next_run_time=MAX)
            port = free_port()
            rig.telemetry.start_http_server(port)
            wait_until(lambda: rig.telemetry.health()["status"] == "healthy")
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as answer:
                assert answer.status == 200
                assert "9999-12-31T23:59:59.999+00:00" in answer.read().decode()

    @pytest.mark.parametrize("zone", ["UTC", "America/New_York"])
    def test_exit_warning_names_the_parked_job(self, zone: str) -> None:
        """
        The warning at the end of the process comes as for any other job.

        In time zones east of Greenwich, APScheduler's own thread ends with an OverflowError.
        """
        _, errors = output_of_script(
            f"""
            from datetime import datetime, timezone
            from apscheduler.schedulers.background import BackgroundScheduler
            from apscheduler_telemetry import instrument

            scheduler = BackgroundScheduler(timezone={zone!r})
            instrument(scheduler)
            at = datetime.max.replace(tzinfo=timezone.utc)
            scheduler.add_job(print, "interval", hours=1, id="parked", next_run_time=at)
            scheduler.start()
            """
        )
        assert "Exiting with 1 pending job(s)" in errors.splitlines()[0]
        assert "'parked' at 9999-12-31T" in errors


class TestEarlyRuns:
    """A job whose next run is in the year 1, by which some say "at once"."""

    @pytest.mark.parametrize("at", [MIN, MIN.replace(tzinfo=WEST)], ids=["min", "min in the west"])
    @pytest.mark.parametrize("zone", ZONES, ids=str)
    def test_run_is_recorded(self, at: datetime, zone: tzinfo) -> None:
        """It runs, or is missed, and is counted."""
        with hand_driven_rig(zone=zone) as rig:
            rig.add(jobs.nothing, DateTrigger(at))
            rig.add(jobs.nothing, DateTrigger(at), id="too late", misfire_grace_time=1)
            rig.scheduler.turn()
            rig.settle()
            assert rig.outcomes() == {"success": 1}
            assert rig.outcomes("too late") == {"missed": 1}

    @pytest.mark.parametrize("zone", ZONES, ids=str)
    def test_dropped_runs_are_recorded(self, zone: tzinfo) -> None:
        """When such a job is replaced before it runs, all that was due is counted."""
        with hand_driven_rig(zone=zone) as rig:
            rig.add(jobs.nothing, "interval", days=100, next_run_time=MIN)
            rig.add(jobs.nothing, every(10), replace_existing=True, next_run_time=START)
            wait_until(lambda: rig.outcomes().get("missed"))
            years = rig.outcomes()["coalesced"] * 100 / 365.2425
            assert years == pytest.approx(2029, abs=1)
            rig.forgotten = 1

    def test_health_has_the_year_1(self) -> None:
        """Health has such a time as it is."""
        with hand_driven_rig() as rig:
            rig.scheduler.pause()
            rig.add(jobs.nothing, DateTrigger(MIN))
            (job,) = rig.telemetry.health()["jobs"]
            assert job["next_run"] == "0001-01-01T00:00:00.000+00:00"
            assert job["overdue"] is True
