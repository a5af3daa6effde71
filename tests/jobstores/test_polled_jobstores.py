"""
Job stores that other processes change, as telemetry polls them.

The polls happen every five seconds, as by default; these tests do not change the interval.
"""

from __future__ import annotations

import importlib
import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from apscheduler.executors.debug import DebugExecutor

sqlalchemy = pytest.importorskip("sqlalchemy")
from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore

from tests.helpers import jobs
from tests.helpers.clocks import at, freeze_time
from tests.helpers.jobstore_servers import NEVER, NO_POOL, Rows
from tests.helpers.schedulers import HandDriven
from tests.helpers.waiting import wait_until
from tests.helpers.watching import Watched, watched

POLL_INTERVAL_SECONDS = 5.0
"""Seconds between two polls, or more where a poll is slow; see docs/metrics.md."""
LATER = at(3600)


def scheduler_on(store: Any) -> HandDriven:
    return HandDriven(
        jobstores={"default": store},
        executors={"default": DebugExecutor()},
        timezone=timezone.utc,
    )


@contextmanager
def started(store: Any) -> Iterator[Watched]:
    """Start a scheduler on the store, and wait until telemetry has read the store once."""
    with watched(scheduler_on(store)) as seen:
        seen.scheduler.start()
        wait_until(lambda: seen.last_read() is not None, "the first reading")
        yield seen
        errors = {k: n for k, n in _telemetry_errors(seen).items() if n}
        assert errors == {}


def _telemetry_errors(seen: Watched) -> dict[str, float]:
    samples = (s for metric in seen.registry.collect() for s in metric.samples)
    return {
        s.labels["component"]: s.value
        for s in samples
        if s.name == "apscheduler_telemetry_errors_total"
    }


@contextmanager
def another_process(rows: Rows) -> Iterator[HandDriven]:
    """Yield a scheduler without telemetry that changes the store as another process does."""
    other = scheduler_on(rows.store())
    other.start(paused=True)
    yield other
    other.shutdown()


def add(scheduler: HandDriven, job_id: str = "job", next_run: datetime = NEVER) -> None:
    scheduler.add_job(
        jobs.nothing,
        "interval",
        hours=1,
        id=job_id,
        next_run_time=next_run,
        misfire_grace_time=None,
    )


def known_jobs(seen: Watched) -> float | None:
    return seen.value("scheduler_jobs", jobstore="default")


@pytest.mark.slow
class TestDueJobThatAnotherProcessTakes:
    """A due job that another process removes or changes before it runs here."""

    @pytest.mark.parametrize("looked", [False, True], ids=["before a pass", "after a pass"])
    def test_run_stays_owed_unless_a_pass_has_found_it_gone(
        self, rows: Rows, *, looked: bool
    ) -> None:
        """
        The next run of a job that another process removed or moved stays expected.

        It is cancelled if a pass after the change did not find the job due.
        """
        due = at(60)
        with freeze_time() as clock, another_process(rows) as other:
            for job_id in ("removed", "moved", "untouched"):
                add(other, job_id, due if job_id != "untouched" else LATER)
            with started(rows.store()) as seen:
                wait_until(lambda: known_jobs(seen) == 3)
                seen.scheduler.turn()
                clock.advance(61)
                other.remove_job("removed")
                other.modify_job("moved", next_run_time=LATER)
                if looked:
                    seen.scheduler.turn()
                wait_until(lambda: known_jobs(seen) == 2, "a poll")
                wait_until(lambda: seen.next_run("moved") == LATER.timestamp(), "a poll")
                if looked:
                    assert not seen.next_run("removed")
                    assert seen.withdrawn_run("removed") == due.timestamp()
                    assert seen.withdrawn_run("moved") == due.timestamp()
                else:
                    assert seen.next_run("removed") == due.timestamp()
                    assert seen.withdrawn_run("removed") is None
                    assert seen.withdrawn_run("moved") is None
                assert seen.next_run("untouched") == LATER.timestamp()


class OwnStore(SQLAlchemyJobStore):
    """A store of an application, of whose rows telemetry knows nothing: it lists all jobs."""

    def get_all_jobs(self) -> Any:
        return super().get_all_jobs()


class TestRowsThatCannotBeRestored:
    """Rows of a store that cannot be deserialized, at least at the moment."""

    def test_jobs_stay_known_where_the_rows_cannot_be_told_apart(self, rows: Rows) -> None:
        """If a listing hides which row failed, no job is dropped at a restart."""
        store = OwnStore(rows.url, engine_options=NO_POOL)
        with started(store) as seen:
            add(seen.scheduler, "spoilt")
            add(seen.scheduler, "other")
            seen.scheduler.shutdown()
            rows.spoil("spoilt")
            before = time.time()
            seen.scheduler.start()
            wait_until(lambda: (seen.last_read() or 0) > before, "the reading of the restart")
            assert known_jobs(seen) == 2
            assert seen.next_run("spoilt") == seen.next_run("other") == NEVER.timestamp()
            assert rows.ids() == {"spoilt", "other"}

    def test_they_are_tried_again_after_a_restart(
        self, rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """After a restart, a job is known if its module can be imported now."""
        (tmp_path / "late_module.py").write_text("def work():\n    pass\n")
        with monkeypatch.context() as patch:
            patch.syspath_prepend(tmp_path)
            work = importlib.import_module("late_module").work
            with another_process(rows) as other:
                other.add_job(work, "interval", hours=1, id="late", next_run_time=NEVER)
        del sys.modules["late_module"]
        importlib.invalidate_caches()
        with started(rows.store()) as seen:
            add(seen.scheduler)
            assert seen.next_run("late") is None
            seen.scheduler.shutdown()
            monkeypatch.syspath_prepend(tmp_path)
            seen.scheduler.start()
            wait_until(lambda: seen.next_run("late") == NEVER.timestamp(), "the job")
            sys.modules.pop("late_module")

    @pytest.mark.slow
    def test_poll_during_a_listing_that_deletes_them_withdraws_nothing(self, rows: Rows) -> None:
        """A job that `get_jobs` deletes is lost, not cancelled, also if a poll sees it first."""
        store = rows.store()
        deleted, go_on = threading.Event(), threading.Event()
        lister = threading.Thread(target=lambda: seen.scheduler.get_jobs())  # noqa: PLW0108  # it comes later

        def hold(*_: Any) -> None:
            """Hold the listing after its transaction, before `get_jobs` returns."""
            if threading.current_thread() is lister:
                deleted.set()
                assert go_on.wait(jobs.WAIT_TIMEOUT), "the test did not go on"

        sqlalchemy.event.listen(store.engine, "checkin", hold)
        with started(store) as seen:
            add(seen.scheduler, "spoilt")
            add(seen.scheduler, "other")
            rows.spoil("spoilt")
            lister.start()
            assert deleted.wait(jobs.WAIT_TIMEOUT)
            assert rows.ids() == {"other"}
            now = time.time()
            wait_until(lambda: (seen.last_read() or 0) > now, "a poll")
            polled = (seen.next_run("spoilt"), seen.withdrawn_run("spoilt"))
            go_on.set()
            lister.join(jobs.WAIT_TIMEOUT)
            assert polled == (NEVER.timestamp(), None)
            assert (seen.next_run("spoilt"), seen.withdrawn_run("spoilt")) == polled
            assert known_jobs(seen) == 1


class TestPolls:
    """When a store is read, and what is exported and logged about that."""

    def test_last_read_is_the_beginning_of_the_reading(self, rows: Rows) -> None:
        """The time of a reading is its start, as later changes may be missing in it."""
        reads, go_on = threading.Event(), threading.Event()
        main = threading.current_thread()

        class SlowStore(OwnStore):
            def get_all_jobs(self) -> Any:
                if threading.current_thread() is not main:
                    reads.set()
                    assert go_on.wait(jobs.WAIT_TIMEOUT), "the test did not go on"
                return super().get_all_jobs()

        store = SlowStore(rows.url, engine_options=NO_POOL)
        with freeze_time() as clock, watched(scheduler_on(store)) as seen:
            seen.scheduler.start()
            assert reads.wait(jobs.WAIT_TIMEOUT)
            began = clock.now
            clock.advance(30)
            assert seen.last_read() is None
            go_on.set()
            wait_until(lambda: seen.last_read() is not None, "the end of the reading")
            assert seen.last_read() == began.timestamp()

    @pytest.mark.slow
    @pytest.mark.parametrize("what", ["the scheduler", "the store"])
    def test_store_that_starts_again_is_not_polled_more_often(self, rows: Rows, what: str) -> None:
        """After a restart, or if the store is added again, earlier polls end."""
        store = rows.store()
        with started(store) as seen:
            first = seen.last_read() or 0
            wait_until(lambda: time.time() > first + 1, "a moment in the midst of two polls")
            if what == "the scheduler":
                seen.scheduler.shutdown()
                seen.scheduler.start()
            else:
                seen.scheduler.remove_jobstore("default", shutdown=False)
                seen.scheduler.add_jobstore(store, "default")
            wait_until(lambda: (seen.last_read() or 0) > first, "the reading of the new start")
            second = seen.last_read() or 0
            wait_until(lambda: (seen.last_read() or 0) > second, "the next poll")
            assert (seen.last_read() or 0) - second >= POLL_INTERVAL_SECONDS

    @pytest.mark.slow
    def test_second_outage_of_a_store_is_logged_too(
        self, rows: Rows, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Each outage of a store is logged once."""

        def rename(before: str, after: str) -> None:
            with rows.engine.begin() as connection:
                connection.execute(sqlalchemy.text(f"alter table {before} rename to {after}"))

        def failures() -> float:
            return seen.value("jobstore_read_failures_total", jobstore="default") or 0

        def warnings() -> list[str]:
            return [
                record.getMessage()
                for record in caplog.records
                if record.name.startswith("apscheduler_telemetry")
                and record.levelno == logging.WARNING
            ]

        with started(rows.store()) as seen:
            for outage in (1, 2):
                now = time.time()
                if outage == 2:
                    rename("out_of_reach", "apscheduler_jobs")
                    wait_until(lambda: (seen.last_read() or 0) > now, "a poll that succeeds")  # noqa: B023
                rename("apscheduler_jobs", "out_of_reach")
                failed = failures()
                wait_until(lambda: failures() > failed, "a poll that fails")  # noqa: B023
                # The warning follows the count.
                wait_until(lambda: len(warnings()) >= outage, "the warning")  # noqa: B023
                assert len(warnings()) == outage
                assert "could not read the job store 'default'" in warnings()[-1]


class TestStoreThatIsRemoved:
    """A store that was removed from its scheduler without a shutdown."""

    def test_jobs_of_another_scheduler_in_it_are_not_shown(self, rows: Rows) -> None:
        """If another scheduler uses the store afterwards, its jobs are not shown."""
        store = rows.store()
        with started(store) as seen:
            add(seen.scheduler)
            seen.scheduler.remove_jobstore("default", shutdown=False)
            other = scheduler_on(store)
            other.start(paused=True)
            add(other, "elsewhere")
            assert seen.next_run() == 0
            assert seen.next_run("elsewhere") is None
            other.shutdown()
