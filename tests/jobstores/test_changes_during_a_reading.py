"""Jobs that change while telemetry reads their store."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest

pytest.importorskip("sqlalchemy")

from apscheduler.jobstores.memory import MemoryJobStore
from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore

from apscheduler_telemetry.adapters.apscheduler3 import jobstore_poller
from apscheduler_telemetry.adapters.apscheduler3.jobstore_reader import SQLAlchemyReader
from tests.helpers import jobs
from tests.helpers.jobstore_servers import NEVER, NO_POOL, Rows
from tests.helpers.schedulers import hand_driven_scheduler
from tests.helpers.stored_jobs import driven, job_record
from tests.helpers.waiting import wait_until
from tests.helpers.watching import Watched, wait_for_reading, watched


class Slow:
    """Delays a reading of telemetry until the test continues it."""

    def __init__(self) -> None:
        self.read, self.go_on = threading.Event(), threading.Event()

    def hold(self) -> None:
        if threading.current_thread().name == "apscheduler-telemetry":
            self.read.set()
            assert self.go_on.wait(jobs.WAIT_TIMEOUT)


class SlowStore(SQLAlchemyJobStore):
    """A store that lists jobs in its own way, and is slow for telemetry."""

    def __init__(self, url: str, slow: Slow) -> None:
        super().__init__(url, engine_options=NO_POOL)
        self.slow = slow

    def get_all_jobs(self) -> Any:
        jobs_then = super().get_all_jobs()
        self.slow.hold()
        return jobs_then


class SlowReader(SQLAlchemyReader):
    """A reader that is slow."""

    slow: Slow

    def fetch_pickled_jobs(self, job_ids: Any) -> Any:
        states = super().fetch_pickled_jobs(job_ids)
        self.slow.hold()
        return states


class TestRaces:
    """A reading does not undo changes that happen during it."""

    @pytest.fixture(params=["all jobs", "rows"], autouse=True)
    def way_of_reading(
        self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Read through the store itself, or with a reader."""
        self.slow = SlowReader.slow = Slow()
        self.by_rows = request.param == "rows"
        if self.by_rows:
            monkeypatch.setattr(jobstore_poller, "create_reader_if_supported", SlowReader)

    @contextmanager
    def reading(self, rows: Rows) -> Iterator[tuple[Watched, Callable[[], None]]]:
        rows.write("job", "other")
        store = rows.store() if self.by_rows else SlowStore(rows.url, self.slow)
        with driven(jobstores={"default": MemoryJobStore(), "sql": store}) as seen:
            assert self.slow.read.wait(jobs.WAIT_TIMEOUT)

            def end() -> None:
                self.slow.go_on.set()
                wait_for_reading(seen)
                assert seen.own_errors() == {}

            yield seen, end
            self.slow.go_on.set()

    def test_jobs_are_known_without_a_change(self, rows: Rows) -> None:
        """Without a change, the reading finds both jobs."""
        with self.reading(rows) as (seen, end):
            assert seen.next_run() is None
            end()
            assert seen.next_run() == seen.next_run("other") == NEVER.timestamp()

    @pytest.mark.parametrize(
        "remove",
        [
            lambda scheduler: scheduler.remove_job("job"),
            lambda scheduler: scheduler.remove_all_jobs("sql"),
            lambda scheduler: scheduler.remove_jobstore("sql", shutdown=False),
        ],
        ids=["the job", "all jobs", "the job store"],
    )
    def test_removed_job_does_not_come_back(self, rows: Rows, remove: Callable[[Any], Any]) -> None:
        """A job that is removed during a reading does not come back."""
        with self.reading(rows) as (seen, end):
            remove(seen.scheduler)
            end()
            assert not seen.next_run()

    def test_removal_of_one_job_does_not_hide_another(self, rows: Rows) -> None:
        """The removal of a job during a reading does not hide another job."""
        with self.reading(rows) as (seen, end):
            seen.scheduler.remove_job("job")
            end()
            assert seen.next_run("other") == NEVER.timestamp()
            assert seen.value("scheduler_jobs", jobstore="sql") == 1

    def test_changed_job_stays_as_it_was_changed(self, rows: Rows) -> None:
        """A job that is changed during a reading keeps the change."""
        with self.reading(rows) as (seen, end):
            at = NEVER - timedelta(days=1)
            seen.scheduler.modify_job("job", next_run_time=at, name="changed")
            end()
            assert seen.next_run() == at.timestamp()
            assert job_record(seen, "sql").info.name == "changed"

    def test_job_added_again_stays_as_it_was_added(self, rows: Rows) -> None:
        """A job that is removed and added again during a reading keeps its new state."""
        with self.reading(rows) as (seen, end):
            at = NEVER - timedelta(days=1)
            seen.scheduler.remove_job("job")
            seen.scheduler.add_job(
                jobs.nothing, "interval", hours=1, id="job", jobstore="sql", next_run_time=at
            )
            end()
            assert seen.next_run() == at.timestamp()

    def test_uninstrument_ends_the_reading(self, rows: Rows) -> None:
        """After `uninstrument` nothing is read, and the thread of the reading ends."""
        others = set(threading.enumerate())
        with self.reading(rows) as (seen, end):
            ours = set(threading.enumerate()) - others
            assert "apscheduler-telemetry" in {thread.name for thread in ours}
            seen.telemetry.uninstrument()
            end()
            wait_until(lambda: not any(thread.is_alive() for thread in ours))

    def test_jobs_are_described_without_a_lock(self, rows: Rows) -> None:
        """A user's callback may call the scheduler during a reading, without a deadlock."""
        self.slow.go_on.set()
        rows.write("job")
        scheduler = hand_driven_scheduler(jobstores={"default": rows.store()})
        asked, modified = threading.Event(), threading.Event()

        def job_label(job: Any) -> str:
            if threading.current_thread().name == "apscheduler-telemetry":
                asked.set()
                assert modified.wait(jobs.WAIT_TIMEOUT)
            return f"label of {scheduler.get_job(job.id).id}"

        with watched(scheduler, job_label=job_label) as seen:
            scheduler.start()
            assert asked.wait(jobs.WAIT_TIMEOUT)
            scheduler.modify_job("job", name="changed")
            modified.set()
            wait_for_reading(seen)
            assert seen.next_run("label of job") == NEVER.timestamp()
            assert seen.own_errors() == {}
