"""`Telemetry.check`: risks in how a scheduler is set up, in the process that runs it."""

from __future__ import annotations

import importlib.util
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from apscheduler.events import EVENT_JOBSTORE_ADDED, EVENT_SCHEDULER_STARTED
from apscheduler.jobstores.memory import MemoryJobStore
from apscheduler.schedulers.background import BackgroundScheduler
from prometheus_client import CollectorRegistry

from apscheduler_telemetry import NotInstrumentedError, Telemetry, instrument
from tests.helpers import jobs
from tests.helpers.metrics import sample
from tests.helpers.waiting import wait_until

needs_sqlalchemy = pytest.mark.skipif(
    importlib.util.find_spec("sqlalchemy") is None, reason="needs SQLAlchemy"
)


def codes_of(findings: list[dict[str, Any]]) -> set[str]:
    return {finding["code"] for finding in findings}


class TestCheck:
    """It reports what `doctor` reports, of a process that runs."""

    @pytest.fixture
    def scheduler(self) -> Iterator[BackgroundScheduler]:
        """Return a scheduler with a job at risk; it is shut down after the test."""
        scheduler = BackgroundScheduler(timezone="UTC")
        scheduler.add_job(jobs.nothing, "cron", hour=2, id="nightly")
        yield scheduler
        if scheduler.running:
            scheduler.shutdown()

    def test_jobs_are_checked_before_and_after_the_start(
        self, scheduler: BackgroundScheduler
    ) -> None:
        """The findings are those of `doctor`, with the name of the scheduler."""
        telemetry = instrument(scheduler, name="shop", registry=CollectorRegistry())
        before = telemetry.check()
        scheduler.start(paused=True)
        assert telemetry.check() == before
        [finding] = before
        assert (finding["scheduler"], finding["code"]) == ("shop", "misfire-grace-time")
        assert finding["job_ids"] == ["nightly"]
        telemetry.uninstrument()
        with pytest.raises(NotInstrumentedError):
            telemetry.check()

    def test_skipped_runs_are_reported(self, scheduler: BackgroundScheduler) -> None:
        """A job whose runs were skipped in this process has a wrong max_instances or interval."""
        release = threading.Event()
        telemetry = instrument(scheduler, registry=CollectorRegistry())
        scheduler.add_job(release.wait, "interval", seconds=0.05, id="slow")
        scheduler.start()
        try:
            wait_until(lambda: "max-instances" in codes_of(telemetry.check()))
        finally:
            release.set()
        [finding] = [each for each in telemetry.check() if each["code"] == "max-instances"]
        assert finding["job_ids"] == ["slow"]
        telemetry.uninstrument()

    @needs_sqlalchemy
    def test_stored_jobs_are_read_and_none_is_deleted(
        self, scheduler: BackgroundScheduler, tmp_path: Path
    ) -> None:
        """Also one that cannot be deserialized stays in its store."""
        from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
        from sqlalchemy import text

        store = SQLAlchemyJobStore(f"sqlite:///{tmp_path / 'jobs.sqlite'}")
        scheduler.add_jobstore(store, "stored")
        telemetry = instrument(scheduler, registry=CollectorRegistry())
        scheduler.start(paused=True)
        for job_id in ("good", "bad"):
            scheduler.add_job(jobs.nothing, "cron", hour=2, id=job_id, jobstore="stored")
        with store.engine.begin() as connection:
            connection.execute(
                text("UPDATE apscheduler_jobs SET job_state = :bytes WHERE id = 'bad'"),
                {"bytes": b"no pickle"},
            )
        [finding] = telemetry.check()
        assert sorted(finding["job_ids"]) == ["good", "nightly"]
        with store.engine.begin() as connection:
            assert connection.execute(text("SELECT count(*) FROM apscheduler_jobs")).scalar() == 2
        telemetry.uninstrument()
        store.engine.dispose()

    def test_job_store_that_is_just_being_added_is_left_out(
        self, scheduler: BackgroundScheduler
    ) -> None:
        """A listener of the user gets to know of a new store before the telemetry does."""
        handles: list[Telemetry] = []
        seen: dict[str, set[str]] = {}

        def check_with_added_store(event: Any) -> None:
            if handles:
                seen[event.alias] = codes_of(handles[0].check())

        # Before `instrument`, and so before the telemetry gets this event.
        scheduler.add_listener(check_with_added_store, EVENT_JOBSTORE_ADDED)
        telemetry = instrument(scheduler, registry=CollectorRegistry())
        handles.append(telemetry)
        scheduler.start(paused=True)
        scheduler.add_jobstore(MemoryJobStore(), "late")
        assert seen["late"] == {"misfire-grace-time"}
        telemetry.uninstrument()


class TestCheckAtStart:
    """`check_at_start=True` logs one line when a scheduler has started."""

    @pytest.fixture
    def scheduler(self, caplog: pytest.LogCaptureFixture) -> Iterator[BackgroundScheduler]:
        """Return a scheduler without jobs; it is shut down after the test."""
        caplog.set_level(logging.INFO, "apscheduler_telemetry")
        scheduler = BackgroundScheduler(timezone="UTC")
        yield scheduler
        if scheduler.running:
            scheduler.shutdown()

    def line(self, caplog: pytest.LogCaptureFixture) -> tuple[int, str]:
        """Wait for the only line, and return its level and its message."""
        wait_until(lambda: caplog.records)
        [record] = caplog.records
        return record.levelno, record.getMessage()

    def test_serious_risks_are_a_warning_with_their_codes(
        self, scheduler: BackgroundScheduler, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The codes are those of `check`, each with the number of its jobs; serious ones first."""
        for name in ("a", "b"):
            scheduler.add_job(jobs.nothing, "cron", hour=2, id=name)
        scheduler.add_job(jobs.nothing, "interval", hours=1, id="c", misfire_grace_time=7300)
        scheduler.configure(job_defaults={"coalesce": False})
        telemetry = instrument(
            scheduler, name="shop", registry=CollectorRegistry(), check_at_start=True
        )
        assert not caplog.records
        scheduler.start(paused=True)
        level, message = self.line(caplog)
        assert level == logging.WARNING
        assert message == (
            "Risks in how the scheduler 'shop' is set up: serious: misfire-grace-time (2 jobs); "
            "info: coalesce (1 job). What they mean, and the line that fixes each: "
            "telemetry.check(), or `apscheduler-telemetry doctor`"
        )
        assert codes_of(telemetry.check()) == {"misfire-grace-time", "coalesce"}
        telemetry.uninstrument()

    def test_job_store_that_is_added_during_the_start_is_left_out(
        self, scheduler: BackgroundScheduler, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The scheduler is checked although another thread is just adding a store."""
        is_added, may_go_on = threading.Event(), threading.Event()

        def add_store() -> None:
            scheduler.add_jobstore(MemoryJobStore(), "late")

        def wait_with_late_store(event: Any) -> None:
            if event.alias == "late":
                is_added.set()
                may_go_on.wait(10)

        thread = threading.Thread(target=add_store)

        def start_thread(_: Any) -> None:
            thread.start()
            is_added.wait(10)

        # Both before `instrument`, and so before the telemetry gets these events.
        scheduler.add_listener(start_thread, EVENT_SCHEDULER_STARTED)
        scheduler.add_listener(wait_with_late_store, EVENT_JOBSTORE_ADDED)
        telemetry = instrument(scheduler, registry=CollectorRegistry(), check_at_start=True)
        scheduler.start(paused=True)
        try:
            self.line(caplog)
        finally:
            may_go_on.set()
            thread.join()
        assert sample(telemetry, "apscheduler_telemetry_errors_total", component="adapter") == 0
        telemetry.uninstrument()

    def test_no_risk_is_said_as_well(
        self, scheduler: BackgroundScheduler, caplog: pytest.LogCaptureFixture
    ) -> None:
        """So that the line shows that the check was made."""
        scheduler.add_job(jobs.nothing, "cron", hour=2, id="nightly", misfire_grace_time=3600)
        telemetry = instrument(scheduler, registry=CollectorRegistry(), check_at_start=True)
        scheduler.start(paused=True)
        assert self.line(caplog) == (
            logging.INFO,
            "No risks were found in how the scheduler 'default' is set up",
        )
        telemetry.uninstrument()

    def test_scheduler_that_runs_already_is_checked(
        self, scheduler: BackgroundScheduler, caplog: pytest.LogCaptureFixture
    ) -> None:
        """If `instrument` is called after the start, the line comes then."""
        scheduler.add_job(jobs.nothing, "cron", hour=2, id="nightly")
        scheduler.start(paused=True)
        telemetry = instrument(scheduler, registry=CollectorRegistry(), check_at_start=True)
        level, message = self.line(caplog)
        assert level == logging.WARNING
        assert "misfire-grace-time (1 job)" in message
        telemetry.uninstrument()

    def test_nothing_is_logged_by_default(
        self, scheduler: BackgroundScheduler, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A job store is not read for it, and no job is pickled."""
        scheduler.add_job(jobs.nothing, "cron", hour=2, id="nightly")
        default = instrument(scheduler, registry=CollectorRegistry())
        scheduler.start(paused=True)
        checked = BackgroundScheduler(timezone="UTC")
        telemetry = instrument(
            checked, name="checked", registry=CollectorRegistry(), check_at_start=True
        )
        checked.start(paused=True)
        assert "'checked'" in self.line(caplog)[1]
        for each in (default, telemetry):
            each.uninstrument()
        checked.shutdown()

    def test_store_that_cannot_be_read_leaves_the_scheduler_alone(
        self, scheduler: BackgroundScheduler, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It is counted and logged, and the scheduler runs."""

        class Broken(MemoryJobStore):
            def get_all_jobs(self) -> list[Any]:
                raise OSError("no connection")

        scheduler.add_jobstore(Broken(), "broken")
        telemetry = instrument(scheduler, registry=CollectorRegistry(), check_at_start=True)
        scheduler.start()
        wait_until(lambda: "no connection" in caplog.text)
        assert scheduler.running
        assert sample(telemetry, "apscheduler_telemetry_errors_total", component="adapter") >= 1
        telemetry.uninstrument()
