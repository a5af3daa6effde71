"""Stored jobs that cannot be restored."""

from __future__ import annotations

import pickle

import pytest

pytest.importorskip("sqlalchemy")

from apscheduler_telemetry.core.recorder import REMOVED_JOB_SECONDS
from tests.helpers.clocks import START, FrozenClock
from tests.helpers.jobstore_servers import Rows
from tests.helpers.metrics import recorder_of
from tests.helpers.stored_jobs import IN_A_MINUTE, add, driven
from tests.helpers.watching import wait_for_reading


class TestUndeserializable:
    """Rows that APScheduler cannot deserialize, and therefore deletes."""

    def test_run_of_a_due_job_is_lost_when_its_row_is_deleted(
        self, rows: Rows, clock: FrozenClock
    ) -> None:
        """The run of a due job whose row is deleted is lost, and its next run stays expected."""
        with driven(jobstores={"default": rows.store()}) as seen:
            add(seen)
            add(seen, id="other")
            rows.spoil("job")
            clock.advance(61)
            seen.scheduler.turn()
            assert rows.ids() == {"other"}
            assert seen.errors() == {"restore": 1}
            assert seen.runs() == {"lost": 1}
            assert (seen.next_run(), seen.withdrawn_run()) == (IN_A_MINUTE, None)
            assert seen.job("last_failure_timestamp_seconds") == IN_A_MINUTE + 1
            assert seen.runs("other") == {"success": 1}
            assert seen.value("scheduler_jobs", jobstore="default") == 1
            clock.advance(REMOVED_JOB_SECONDS - 1)
            assert seen.next_run() == IN_A_MINUTE
            clock.advance(2)
            assert seen.next_run() is None

    def test_row_is_deleted_when_the_user_lists_the_jobs(
        self, rows: Rows, clock: FrozenClock
    ) -> None:
        """`get_jobs` deletes the row as well, also if the job was not due."""
        with driven(jobstores={"default": rows.store()}) as seen:
            add(seen)
            add(seen, id="other")
            wait_for_reading(seen)
            rows.spoil("job")
            assert [job.id for job in seen.scheduler.get_jobs()] == ["other"]
            assert rows.ids() == {"other"}
            assert seen.errors() == {"restore": 1}
            assert seen.runs() == {}
            assert (seen.next_run(), seen.withdrawn_run()) == (IN_A_MINUTE, None)
            assert seen.value("scheduler_jobs", jobstore="default") == 1

    def test_lookup_raises_and_counts_nothing(self, rows: Rows, clock: FrozenClock) -> None:
        """`get_job` raises; nothing is deleted or counted."""
        with driven(jobstores={"default": rows.store()}) as seen:
            add(seen)
            rows.spoil("job")
            with pytest.raises(pickle.UnpicklingError):
                seen.scheduler.get_job("job")
            assert seen.errors() == {}
            assert rows.ids() == {"job"}

    def test_unreadable_row_of_an_unknown_job_is_an_error(
        self, rows: Rows, clock: FrozenClock
    ) -> None:
        """A row that was never readable counts as an error, without a job."""
        rows.write("job", at=START)
        rows.spoil("job")
        with driven(jobstores={"default": rows.store()}) as seen:
            wait_for_reading(seen)
            seen.scheduler.turn()
            assert seen.errors() == {"restore": 1}
            assert list(recorder_of(seen.telemetry).job_snapshots()) == []

    def test_nothing_is_counted_after_uninstrument(self, rows: Rows, clock: FrozenClock) -> None:
        """After `uninstrument`, nothing is counted."""
        with driven(jobstores={"default": rows.store()}) as seen:
            add(seen, seconds=0)
            rows.spoil("job")
            seen.telemetry.uninstrument()
            seen.scheduler.turn()
            assert set(recorder_of(seen.telemetry).scheduler_error_counts().values()) == {0}
