"""Processes that die, hang or restart: gauges are removed, counters stay."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from apscheduler_telemetry.export.multiprocess.directory import DIRECTORY_VARIABLE
from apscheduler_telemetry.export.multiprocess.slots import STALE_GAUGE_SECONDS, remove_stale_gauges
from apscheduler_telemetry.multiprocess import child_exit
from tests.helpers.multiprocess_files import Process, scrape, value

NOW = 1_800_000_000.0


class TestDeath:
    """The files of processes that have ended."""

    def test_gauges_of_a_dead_process_go_and_counters_stay(
        self, directory_without_threads: Path
    ) -> None:
        """`remove_stale_gauges` removes the gauges and keeps the counters."""
        process = Process(directory_without_threads)
        process.job(NOW)
        process.run(1)
        process.write()
        process.die()
        remove_stale_gauges(directory_without_threads)
        shown = scrape(directory_without_threads)
        assert {name for name, _ in shown if "_timestamp_" in name or name.endswith("_up")} == set()
        assert value(shown, "job_runs_total", outcome="success") == 1

    def test_next_holder_of_a_slot_removes_the_gauges(
        self, directory_without_threads: Path
    ) -> None:
        """Gauges of a process that dies while another one starts do not pass for live ones."""
        dead = Process(directory_without_threads)
        dead.write()
        successor = Process(directory_without_threads)
        for path in directory_without_threads.glob("gauge_*"):  # as if it had another number
            path.rename(path.with_name(path.name.replace(f"_{os.getpid()}.db_", "_1.db_")))
        dead.die()
        successor.write()
        assert list(directory_without_threads.glob("gauge_*_1.db_*")) == []
        assert list(directory_without_threads.glob(f"gauge_*_{os.getpid()}.db_*.0.db")) != []

    def test_gunicorn_hook_removes_the_gauges(self, directory_without_threads: Path) -> None:
        """The hook of gunicorn removes the gauges, and also those of prometheus_client itself."""
        process = Process(directory_without_threads)
        process.write()
        process.die()
        (directory_without_threads / "gauge_liveall_4711.db").touch()
        child_exit(None, SimpleNamespace(pid=4711))
        assert [path.name for path in directory_without_threads.glob("gauge_*")] == []

    def test_hook_does_nothing_without_the_mode(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without the mode, the hook does nothing."""
        monkeypatch.delenv(DIRECTORY_VARIABLE, raising=False)
        child_exit(None, SimpleNamespace(pid=4711))

    def test_live_gauges_are_kept(self, directory_without_threads: Path) -> None:
        """Neither gauges of live processes nor files of other metrics are removed."""
        process = Process(directory_without_threads)
        process.write()
        (directory_without_threads / "gauge_liveall_4711.db").touch()
        before = sorted(path.name for path in directory_without_threads.iterdir())
        remove_stale_gauges(directory_without_threads)
        assert sorted(path.name for path in directory_without_threads.iterdir()) == before

    def test_gauges_of_a_hanging_process_go_and_come_back(
        self, directory_without_threads: Path
    ) -> None:
        """Gauges that are not updated are removed, and the next write restores them."""
        process = Process(directory_without_threads)
        process.write()
        long_ago = time.time() - STALE_GAUGE_SECONDS - 1
        for path in directory_without_threads.glob("gauge_*"):
            os.utime(path, (long_ago, long_ago))
        remove_stale_gauges(directory_without_threads)
        assert value(scrape(directory_without_threads), "scheduler_up") is None
        process.write()
        assert value(scrape(directory_without_threads), "scheduler_up") == 1

    def test_idle_process_keeps_its_gauges(self, directory_without_threads: Path) -> None:
        """A write without changes keeps the files from becoming stale."""
        process = Process(directory_without_threads)
        process.write()
        long_ago = time.time() - STALE_GAUGE_SECONDS - 1
        for path in directory_without_threads.glob("gauge_*"):
            os.utime(path, (long_ago, long_ago))
        process.write()
        assert value(scrape(directory_without_threads), "scheduler_up") == 1

    def test_next_process_continues_the_counters(self, directory_without_threads: Path) -> None:
        """The next process continues from the counters, and the number of files stays the same."""
        files = set()
        for life in range(1, 5):
            process = Process(directory_without_threads)
            process.job(NOW)
            process.run(1)
            process.write()
            shown = scrape(directory_without_threads)
            assert value(shown, "job_runs_total", outcome="success") == life
            assert value(shown, "job_run_duration_seconds_count") == life
            assert value(shown, "job_run_duration_seconds_sum") == life
            files.add(len(list(directory_without_threads.iterdir())))
            process.die()
        assert len(files) == 1

    def test_start_is_that_of_the_first_process(self, directory_without_threads: Path) -> None:
        """The counters count from the start of the first process, so that start is shown."""
        for started in (NOW, NOW + 50, NOW + 100):
            process = Process(directory_without_threads, started=started)
            process.write()
            assert (
                value(scrape(directory_without_threads), "scheduler_start_timestamp_seconds") == NOW
            )
            process.die()

    def test_restart_in_one_process_keeps_the_start(self, directory_without_threads: Path) -> None:
        """A restart of the scheduler in the same process does not change the start."""
        process = Process(directory_without_threads, started=NOW + 50)
        process.write()
        process.started_at = NOW + 70
        process.write()
        assert (
            value(scrape(directory_without_threads), "scheduler_start_timestamp_seconds")
            == NOW + 50
        )
