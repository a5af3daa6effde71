"""Series of removed jobs, those of dead processes included."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from apscheduler_telemetry.core.model import RemovalReason, SchedulerErrorKind
from apscheduler_telemetry.core.recorder import REMOVED_JOB_SECONDS
from apscheduler_telemetry.export.multiprocess import slots
from apscheduler_telemetry.export.multiprocess.file_format import read_values
from tests.helpers.clocks import ManualClock
from tests.helpers.multiprocess_files import Process, counts, failing, scrape, value

NOW = 1_800_000_000.0


class TestRemovedJobs:
    """Metrics of removed jobs disappear."""

    @pytest.fixture
    def now(self, monkeypatch: pytest.MonkeyPatch) -> ManualClock:
        """Replace the monotonic clock of the writer."""
        clock = ManualClock(1000.0)
        monkeypatch.setattr("time.monotonic", clock)
        return clock

    def write_and_die(self, directory: Path, *job_ids: str, name: str = "main") -> None:
        """Leave the files of a process that has ended."""
        process = Process(directory, name)
        for job_id in job_ids:
            process.job(NOW, job_id)
        process.write()
        process.die()

    def jobs(self, directory: Path) -> set[str]:
        return {
            dict(labels)["job_id"] for _, labels in scrape(directory) if "job_id" in dict(labels)
        }

    def test_job_of_this_process_is_dropped_with_the_metrics_state(
        self, directory_without_threads: Path
    ) -> None:
        """A job is dropped from the files when it is dropped from the metrics state."""
        process = Process(directory_without_threads)
        record = process.job(NOW)
        process.write()
        process.recorder.job_removed(record, RemovalReason.CANCELLED)
        process.write()
        shown = scrape(directory_without_threads)
        assert value(shown, "job_next_run_timestamp_seconds") == 0
        assert value(shown, "job_withdrawn_run_timestamp_seconds") == NOW
        process.clock.now += REMOVED_JOB_SECONDS + 1
        process.write()
        assert self.jobs(directory_without_threads) == set()

    def test_both_counts_of_a_job_disappear_together(self, directory_without_threads: Path) -> None:
        """The job's counts in both slots disappear together, so that no counter decreases."""
        self.write_and_die(directory_without_threads, "job")
        process = Process(directory_without_threads)
        record = process.job(NOW)
        process.run(1)
        process.write()
        process.recorder.job_removed(record, RemovalReason.CANCELLED)
        process.clock.now += REMOVED_JOB_SECONDS + 1
        process.write()
        assert self.jobs(directory_without_threads) == set()

    def test_job_of_a_previous_process_disappears_after_its_time(
        self, directory_without_threads: Path, now: ManualClock
    ) -> None:
        """The job disappears `REMOVED_JOB_SECONDS` seconds after the slot was taken."""
        self.write_and_die(directory_without_threads, "old", "job")
        process = Process(directory_without_threads)
        process.job(NOW)
        now.now += 1
        process.write()
        assert self.jobs(directory_without_threads) == {"job", "old"}
        now.now += REMOVED_JOB_SECONDS + 1
        process.write()
        assert self.jobs(directory_without_threads) == {"job"}

    def test_unknown_jobs_are_removed_from_free_slots(
        self, directory_without_threads: Path, now: ManualClock
    ) -> None:
        """
        Jobs that the live process does not know are removed from free slots.

        A reload leaves such slots, because the new process starts before the old one ends.
        """
        old = Process(directory_without_threads)
        for job_id in ("job", "old"):
            old.job(NOW, job_id)
        old.run(1)
        old.recorder.count_scheduler_error(SchedulerErrorKind.LOOP)
        old.write()
        new = Process(directory_without_threads)
        new.job(NOW)
        new.write()
        old.die()
        now.now += 3600
        new.write()
        assert self.jobs(directory_without_threads) == {"job", "old"}, "too early"
        long_ago = time.time() - REMOVED_JOB_SECONDS - 1
        for path in directory_without_threads.glob("[ch]*.0.db"):
            os.utime(path, (long_ago, long_ago))
        now.now += 3600
        new.write()
        assert self.jobs(directory_without_threads) == {"job"}
        shown = scrape(directory_without_threads)
        assert value(shown, "job_runs_total", outcome="success") == 1
        assert value(shown, "scheduler_errors_total", kind="loop") == 1

    def test_two_live_processes_prune_no_free_slot(
        self, directory_without_threads: Path, now: ManualClock
    ) -> None:
        """While two processes live, neither removes jobs from the free slot of a third."""
        third, first, second = (Process(directory_without_threads) for _ in range(3))
        third.job(NOW, "third")
        for process in (third, first, second):
            process.write()
        third.die()
        long_ago = time.time() - REMOVED_JOB_SECONDS - 1
        for path in directory_without_threads.glob("[ch]*.0.db"):
            os.utime(path, (long_ago, long_ago))
        now.now += 3600
        first.write()
        assert self.jobs(directory_without_threads) == {"third"}

    def test_unreadable_free_slot_keeps_its_counts(
        self, directory_without_threads: Path, now: ManualClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Neither the search for removed jobs nor that for stale gauges loses its counts."""
        old, new = Process(directory_without_threads), Process(directory_without_threads)
        for process in (old, new):
            process.job(NOW)
            process.run(1)
            process.write()
        old.die()
        long_ago = time.time() - REMOVED_JOB_SECONDS - 1
        for path in directory_without_threads.glob("[ch]*.0.db"):
            os.utime(path, (long_ago, long_ago))
        now.now += 3600
        with monkeypatch.context() as patch:
            patch.setattr(slots, "read_values", failing(read_values, "_"))
            new.writer.write()
            assert new.error_reporter.counts()["multiprocess"] == 1
        assert counts(directory_without_threads) == (2, 2)
        now.now += 3600
        new.writer.write()
        assert new.error_reporter.counts()["multiprocess"] == 1
        assert counts(directory_without_threads) == (2, 2)
