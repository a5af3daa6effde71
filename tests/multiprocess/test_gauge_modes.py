"""How the gauges, counters and histograms of several processes are combined."""

from __future__ import annotations

import re
from datetime import datetime, timezone
from pathlib import Path

import pytest

from apscheduler_telemetry.core.model import JobExpectations, Liveness, Outcome, SchedulerErrorKind
from apscheduler_telemetry.core.records import Run
from apscheduler_telemetry.export.metric_families import FAMILIES, MetricKind
from apscheduler_telemetry.export.multiprocess.gauge_modes import GAUGE_MODES
from tests.helpers.multiprocess_files import Process, scrape, value
from tests.helpers.paths import ROOT

NOW = 1_800_000_000.0


class TestModes:
    """How the gauges of several processes are combined."""

    def test_each_gauge_has_a_mode(self) -> None:
        """The table has exactly the gauges that exist."""
        gauges = {
            family
            for family in FAMILIES
            if family.kind in (MetricKind.GAUGE, MetricKind.UP_DOWN_COUNTER)
        }
        assert set(GAUGE_MODES) == gauges

    def test_modes_match_the_docs(self) -> None:
        """``docs/metrics.md`` gives the same mode for each gauge."""
        page = (ROOT / "docs" / "metrics.md").read_text()
        section = page.split("## Multiprocess mode")[1].split("\n## ")[0]
        documented = re.findall(
            r"^\| `(\w+)` \| [^|]+ \| `(\w+)`( by priority)? \|", section, re.MULTILINE
        )
        assert {name: mode for name, mode, _ in documented} == {
            family.prometheus_family_name: mode for family, mode in GAUGE_MODES.items()
        }

    def test_all_modes_are_live(self) -> None:
        """No gauge of a dead process is shown."""
        assert all(mode.startswith("live") for mode in GAUGE_MODES.values())

    @pytest.mark.parametrize(
        ("next_runs", "shown"),
        [
            ((NOW + 9, NOW + 5, None), NOW + 5),
            ((None, NOW + 9), NOW + 9),
            ((None, None), 0),
            ((NOW + 0.25, NOW + 0.125), NOW + 0.125),
            ((253402300799.0,), 253402300799.0),
        ],
    )
    def test_earliest_next_run_is_shown(
        self, directory_without_threads: Path, next_runs: tuple[float | None, ...], shown: float
    ) -> None:
        """The earliest next run is shown; 0 only if no process has one."""
        for next_run in next_runs:
            process = Process(directory_without_threads)
            process.job(next_run)
            process.write()
        assert value(scrape(directory_without_threads), "job_next_run_timestamp_seconds") == shown

    def test_expectations_during_a_deploy(self, directory_without_threads: Path) -> None:
        """While processes expect different things, alerts fire by the mildest."""
        for number, next_run in ((1, NOW + 9), (2, NOW + 5), (3, None)):
            process = Process(directory_without_threads)
            expectations = JobExpectations(
                max_duration=number,
                min_duration=number,
                deadline=100.0,
                max_failures=number,
                min_recorded=(("rows", number),),
                owner=f"team {number}",
            )
            process.job(next_run, expectations=expectations)
            process.write()
        shown = scrape(directory_without_threads)
        assert value(shown, "job_max_duration_seconds") == 3
        assert value(shown, "job_min_duration_seconds") == 1
        assert value(shown, "job_max_failures") == 3
        assert value(shown, "job_min_recorded", quantity="rows") == 1
        # That of the earliest next run.
        assert value(shown, "job_deadline_timestamp_seconds") == NOW + 105
        labels = {"severity": "", "runbook_url": ""}
        for number in (1, 2, 3):
            assert value(shown, "job_alert_info", owner=f"team {number}", **labels) == 1

    def test_running_runs_add_up(self, directory_without_threads: Path) -> None:
        """Running runs add up, and the oldest start is shown; idle processes do not matter."""
        first, second, third = (Process(directory_without_threads) for _ in range(3))
        for process in (first, second, third):
            process.job(None)
        first.begin(NOW + 2)
        first.begin(NOW + 3)
        second.begin(NOW + 1)
        for process in (first, second, third):
            process.write()
        shown = scrape(directory_without_threads)
        assert value(shown, "job_running") == 3
        assert value(shown, "job_running_since_timestamp_seconds") == NOW + 1
        assert value(shown, "job_last_run_timestamp_seconds") == NOW + 3

    def test_duration_of_the_run_that_ended_last_is_shown(
        self, directory_without_threads: Path
    ) -> None:
        """The duration of the run that ended last is shown, whichever process ran it."""
        for name, dues in {"one": (NOW + 20, NOW), "other": (NOW, NOW + 20)}.items():
            for seconds, due in zip((3, 5), dues, strict=True):
                process = Process(directory_without_threads, name)
                process.job(None)
                process.run(seconds, due=due)
                process.write()
        shown = scrape(directory_without_threads)
        assert value(shown, "job_last_run_duration_seconds", scheduler="one") == 3
        assert value(shown, "job_last_run_duration_seconds", scheduler="other") == 5

    def test_recorded_quantities_of_the_run_that_succeeded_last_are_shown(
        self, directory_without_threads: Path
    ) -> None:
        """The counter adds up; the gauge is that of the latest success, also if others failed."""
        first, second = Process(directory_without_threads), Process(directory_without_threads)
        for process, rows, due in ((first, 3, NOW), (second, 5, NOW + 10)):
            process.job(None)
            run = process.begin(due)
            run.get_or_create_current_run().record(rows=rows)
            process.finish(run, 1)
        first.run(1, Outcome.ERROR, due=NOW + 20)
        second.write()
        first.write()
        shown = scrape(directory_without_threads)
        assert value(shown, "job_recorded_total", quantity="rows") == 8
        assert value(shown, "job_last_recorded", quantity="rows") == 5

    def test_counters_and_histograms_add_up(self, directory_without_threads: Path) -> None:
        """Counters add up, and so do the buckets of histograms."""
        first, second = Process(directory_without_threads), Process(directory_without_threads)
        for process in (first, second):
            process.job(None)
        first.run(seconds=1)
        first.run(seconds=0.2, outcome=Outcome.ERROR)
        second.run(seconds=1)
        first.recorder.count_scheduler_error(SchedulerErrorKind.LISTENER)
        first.write()
        second.write()
        shown = scrape(directory_without_threads)
        assert value(shown, "job_runs_total", outcome="success") == 2
        assert value(shown, "job_runs_total", outcome="error") == 1
        assert value(shown, "job_runs_total", outcome="lost") == 0
        assert value(shown, "scheduler_errors_total", kind="listener") == 1
        durations = [
            value(shown, "job_run_duration_seconds_bucket", le=le) for le in ("0.1", "0.25", "1.0")
        ]
        assert durations == [0, 1, 3]
        assert value(shown, "job_run_duration_seconds_count") == 3
        assert value(shown, "job_run_duration_seconds_sum") == pytest.approx(2.2)

    def test_state_is_the_number_of_processes_with_the_scheduler(
        self, directory_without_threads: Path
    ) -> None:
        """The state is the number of processes in which the scheduler runs."""
        first, second = Process(directory_without_threads), Process(directory_without_threads)
        for process in (first, second):
            process.job(NOW)
            process.write()
        shown = scrape(directory_without_threads)
        assert value(shown, "scheduler_state", state="running") == 2
        assert value(shown, "scheduler_up") == 1

    def test_dead_loop_is_not_hidden(self, directory_without_threads: Path) -> None:
        """If the loop is dead in one process, ``scheduler_up`` is 0."""
        first, second = Process(directory_without_threads), Process(directory_without_threads)
        first.alive = Liveness(scheduler_state="running", up=False)
        first.write()
        second.write()
        assert value(scrape(directory_without_threads), "scheduler_up") == 0

    def test_highest_number_of_consecutive_failures_is_shown(
        self, directory_without_threads: Path
    ) -> None:
        """The highest number of all processes is shown, also if a run elsewhere succeeded."""
        first, second = Process(directory_without_threads), Process(directory_without_threads)
        for process, outcome in ((first, Outcome.ERROR), (second, Outcome.SUCCESS)):
            process.job(None)
            process.run(1, outcome)
            process.write()
        assert value(scrape(directory_without_threads), "job_consecutive_failures") == 1

    def test_workers_and_queued_runs_add_up(self, directory_without_threads: Path) -> None:
        """Workers and queued runs add up."""
        for _ in range(2):
            process = Process(directory_without_threads)
            process.recorder.executor_added("default", lambda: 10)
            record, due = process.job(NOW), datetime.fromtimestamp(NOW, timezone.utc)
            for _ in range(3):
                process.recorder.run_submitted(Run(record, due, "default"))
            process.write()
        shown = scrape(directory_without_threads)
        assert value(shown, "executor_workers", executor="default") == 20
        assert value(shown, "executor_queued", executor="default") == 6

    def test_stopped_scheduler_is_shown_until_another_process_runs_it(
        self, directory_without_threads: Path
    ) -> None:
        """A stopped scheduler is shown until one with its name runs in another process."""
        first = Process(directory_without_threads)
        first.job(NOW + 1)
        first.alive = Liveness(scheduler_state="stopped", up=False)
        first.write()
        assert value(scrape(directory_without_threads), "scheduler_state", state="stopped") == 1
        second = Process(directory_without_threads)
        second.job(NOW + 9)
        second.write()
        first.write()
        second.write()
        shown = scrape(directory_without_threads)
        assert value(shown, "scheduler_up") == 1
        assert value(shown, "scheduler_state", state="stopped") == 0
        assert value(shown, "job_next_run_timestamp_seconds") == NOW + 9

    def test_schedulers_are_kept_apart_by_name(self, directory_without_threads: Path) -> None:
        """Schedulers whose names differ in one punctuation mark do not share files."""
        for name in ("a b", "a-b"):
            process = Process(directory_without_threads, name)
            process.job(None)
            process.run(1)
            process.write()
        shown = scrape(directory_without_threads)
        for name in ("a b", "a-b"):
            assert value(shown, "job_runs_total", outcome="success", scheduler=name) == 1
