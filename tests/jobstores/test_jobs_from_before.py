"""Jobs that were in a store before the scheduler was started or instrumented."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

pytest.importorskip("sqlalchemy")

from apscheduler.executors.debug import DebugExecutor
from apscheduler.jobstores.base import BaseJobStore
from apscheduler.jobstores.memory import MemoryJobStore
from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.interval import IntervalTrigger

from apscheduler_telemetry.adapters.apscheduler3.jobstore_poller import JobStorePoller
from apscheduler_telemetry.core import labels
from apscheduler_telemetry.core.recorder import REMOVED_JOB_SECONDS
from tests.helpers import jobs, watching
from tests.helpers.clocks import START, FrozenClock
from tests.helpers.faults import Boom, raise_boom
from tests.helpers.jobstore_servers import NEVER, NO_POOL, Rows
from tests.helpers.metrics import recorder_of
from tests.helpers.schedulers import hand_driven_scheduler
from tests.helpers.stored_jobs import IN_A_MINUTE, INFO, add, driven
from tests.helpers.waiting import wait_until
from tests.helpers.watching import wait_for_reading, watched


@pytest.mark.usefixtures("clock")
class TestRestart:
    """A scheduler that is shut down and started again in one process."""

    def test_jobs_of_a_memory_store_are_gone(self, clock: FrozenClock) -> None:
        """Jobs of a memory store are gone; their next runs stay for 15 minutes, not cancelled."""
        with driven() as seen:
            add(seen)
            seen.scheduler.shutdown()
            seen.scheduler.start()
            assert seen.value("scheduler_jobs", jobstore="default") == 0
            assert (seen.next_run(), seen.withdrawn_run()) == (IN_A_MINUTE, None)
            clock.advance(REMOVED_JOB_SECONDS + 1)
            assert seen.next_run() is None

    def test_jobs_that_are_added_again(self, clock: FrozenClock) -> None:
        """A job that is added again keeps its state."""
        with driven() as seen:
            add(seen)
            seen.scheduler.shutdown()
            add(seen, seconds=90)
            seen.scheduler.start()
            assert seen.value("scheduler_jobs", jobstore="default") == 1
            assert seen.next_run() == IN_A_MINUTE + 30
            clock.advance(REMOVED_JOB_SECONDS * 2)
            assert seen.next_run() == IN_A_MINUTE + 30

    def test_jobs_of_a_persistent_store(self, rows: Rows) -> None:
        """Jobs of a persistent store are still there."""
        with driven(jobstores={"default": rows.store()}) as seen:
            add(seen)
            seen.scheduler.shutdown()
            seen.scheduler.start()
            wait_for_reading(seen)
            assert seen.value("scheduler_jobs", jobstore="default") == 1
            assert seen.next_run() == IN_A_MINUTE

    def test_new_configuration_removes_parts_without_an_event(self) -> None:
        """A new configuration removes executors and job stores without an event."""
        options: dict[str, Any] = {
            "executors": {"fast": DebugExecutor()},
            "jobstores": {"old": MemoryJobStore()},
        }
        with driven(**options) as seen:
            add(seen, jobstore="old")
            seen.scheduler.shutdown()
            seen.scheduler.configure(
                executors={"slow": DebugExecutor()}, jobstores={"new": MemoryJobStore()}
            )
            assert recorder_of(seen.telemetry).executors().keys() == {"slow"}
            assert recorder_of(seen.telemetry).jobstores().keys() == {"new"}
            seen.scheduler.start()
            add(seen, jobstore="new", executor="slow")
            assert seen.value("scheduler_jobs", jobstore="new") == 1
            assert seen.value("scheduler_jobs", jobstore="old") is None
            assert seen.own_errors() == {}


class Foreign(BaseJobStore):
    """A user's job store, which is not derived from APScheduler's stores."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = MemoryJobStore()
        self.listed = 0

    def get_all_jobs(self) -> Any:
        self.listed += 1
        return self.inner.get_all_jobs()

    def lookup_job(self, job_id: str) -> Any:
        return self.inner.lookup_job(job_id)

    def get_due_jobs(self, now: datetime) -> Any:
        return iter(self.inner.get_due_jobs(now))

    def get_next_run_time(self) -> Any:
        return self.inner.get_next_run_time()

    def add_job(self, job: Any) -> None:
        self.inner.add_job(job)

    def update_job(self, job: Any) -> None:
        self.inner.update_job(job)

    def remove_job(self, job_id: str) -> None:
        self.inner.remove_job(job_id)

    def remove_all_jobs(self) -> None:
        self.inner.remove_all_jobs()


class Broken(SQLAlchemyJobStore):
    """A store that cannot list its jobs, in a way of its own."""

    broken = True

    def get_all_jobs(self) -> Any:
        return raise_boom() if self.broken else super().get_all_jobs()


class TestJobsFromBefore:
    """Jobs that are already in a store are known before they are due."""

    @pytest.mark.parametrize("running", [False, True], ids=["before start", "after start"])
    def test_jobs_of_a_former_process_are_shown_soon(self, rows: Rows, running: bool) -> None:
        """Stored jobs are shown soon after the start, or after `instrument`."""
        rows.write("job", "other")
        scheduler = BackgroundScheduler(jobstores={"default": rows.store()})
        if running:
            scheduler.start()
        with watched(scheduler) as seen:
            if not running:
                scheduler.start()
            wait_until(lambda: seen.next_run() == seen.next_run("other") == NEVER.timestamp())
            assert seen.withdrawn_run() is None
            assert seen.value("scheduler_jobs", jobstore="default") == 2
            wait_until(lambda: seen.job("shortest_interval_seconds") == 3600)

    def test_jobs_in_memory_are_known_when_instrument_returns(self) -> None:
        """Jobs of a memory store are known when `instrument` returns."""
        scheduler = hand_driven_scheduler()
        scheduler.start()
        scheduler.add_job(jobs.nothing, "interval", hours=1, id="job", next_run_time=NEVER)
        with watched(scheduler) as seen:
            assert seen.next_run() == NEVER.timestamp()

    def test_jobs_of_a_store_that_is_added_are_known(self, rows: Rows) -> None:
        """Jobs of a store that is added to a running scheduler are known."""
        rows.write("job")
        with driven() as seen:
            seen.scheduler.add_jobstore(rows.store(), "sql")
            wait_until(lambda: seen.next_run() == NEVER.timestamp())
            assert seen.value("scheduler_jobs", jobstore="sql") == 1

    def test_undeserializable_rows_stay(self, rows: Rows, caplog: pytest.LogCaptureFixture) -> None:
        """A reading by telemetry does not delete rows that cannot be deserialized."""
        rows.write("job", "spoilt")
        rows.spoil("spoilt")
        with driven(jobstores={"default": rows.store()}) as seen:
            wait_until(lambda: seen.next_run() == NEVER.timestamp())
            wait_for_reading(seen)
            assert rows.ids() == {"job", "spoilt"}
            assert seen.errors() == {}
            assert seen.own_errors() == {}
            assert "Unable to restore" not in caplog.text

    def test_unknown_store_is_not_read(self) -> None:
        """A store of an unknown class is not read, as this may not be safe."""
        store = Foreign()
        with driven(jobstores={"default": store}) as seen:
            add(seen, seconds=-0.1)
            wait_for_reading(seen)
            assert store.listed == 0
            seen.scheduler.turn()
            assert seen.runs() == {"success": 1}
            assert seen.own_errors() == {}
            assert seen.job("info", **INFO, jobstore="default", persistent="true") == 1

    def test_store_that_cannot_be_read_is_logged_once_and_read_again(
        self, rows: Rows, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A store that cannot be read is logged once and read again; no error of telemetry."""
        monkeypatch.setattr(JobStorePoller, "POLL_INTERVAL_SECONDS", 0.01)
        rows.write("job", at=watching.ago(0.1))
        store = Broken(rows.url, engine_options=NO_POOL)
        with driven(jobstores={"default": store}) as seen:
            wait_until(
                lambda: (seen.value("jobstore_read_failures_total", jobstore="default") or 0) > 2
            )
            assert (seen.own_errors(), seen.errors()) == ({}, {})
            assert seen.value("jobstore_last_read_timestamp_seconds", jobstore="default") is None
            assert caplog.text.count("could not read the job store 'default' (Boom)") == 1
            seen.scheduler.turn()
            assert seen.runs() == {"success": 1}
            store.broken = False
            wait_until(
                lambda: seen.value("jobstore_last_read_timestamp_seconds", jobstore="default")
            )

    def test_job_that_cannot_be_described_does_not_hide_others(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A job that cannot be described does not hide the others."""
        scheduler = hand_driven_scheduler()
        scheduler.start()
        for job_id in "ab":
            scheduler.add_job(
                jobs.nothing, "interval", hours=1, id=job_id, next_run_time=NEVER, name=job_id
            )
        label_value = labels.label_value
        monkeypatch.setattr(
            labels, "label_value", lambda name: raise_boom() if name == "a" else label_value(name)
        )
        with watched(scheduler) as seen:
            assert seen.next_run("a") is None
            assert seen.next_run("b") == NEVER.timestamp()
            assert seen.own_errors() == {"adapter": 1}

    def test_trigger_without_a_text_is_described_by_its_type(self) -> None:
        """A user's trigger whose text fails is described by its type."""

        class Mute(IntervalTrigger):
            def __str__(self) -> str:
                raise Boom("no words")

        with driven() as seen:
            # Not due, as APScheduler itself cannot log that such a job runs.
            seen.scheduler.add_job(jobs.nothing, Mute(hours=1), id="job", next_run_time=NEVER)
            assert seen.next_run() == NEVER.timestamp()
            assert seen.own_errors() == {}

    def test_due_job_changed_by_another_process_is_known_as_it_is_now(
        self, rows: Rows, clock: FrozenClock
    ) -> None:
        """A due job that another process has changed has its current state."""
        with driven(jobstores={"default": rows.store()}) as seen:
            add(seen)
            wait_for_reading(seen)
            other = hand_driven_scheduler(
                jobstores={"default": rows.store()}, timezone=timezone.utc
            )
            other.start(paused=True)
            other.modify_job("job", next_run_time=START + timedelta(seconds=30), name="renamed")
            other.shutdown()
            clock.advance(30)
            seen.scheduler.turn()
            assert seen.runs() == {"success": 1}
            assert seen.next_run() == START.timestamp() + 30 + 3600
            assert seen.withdrawn_run() is None
