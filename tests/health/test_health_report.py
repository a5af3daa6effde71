"""The health report, computed from the metrics state."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import Any

import pytest

from apscheduler_telemetry.core.model import Liveness, Outcome
from apscheduler_telemetry.core.records import JobRecord, Run
from apscheduler_telemetry.export import health
from tests.helpers.exported_schedulers import NOW, FakeScheduler
from tests.helpers.recorder_rig import job_info

ALIVE = Liveness(scheduler_state="running", up=True)


class Rig:
    """A scheduler at a fixed time, and its report."""

    def __init__(self) -> None:
        self.scheduler = FakeScheduler()
        self.recorder = self.scheduler.recorder
        self.clock = self.scheduler.clock

    def report(self, liveness: Liveness = ALIVE, last_pass_ended_at: float | None = None) -> Any:
        self.scheduler.alive = liveness
        self.scheduler.last_pass_ended_at = last_pass_ended_at
        return health.build_report(self.scheduler, self.clock)

    def add_job(
        self, job_id: str = "job", next_run: float | None = NOW + 60, **changes: Any
    ) -> Any:
        changes.setdefault("trigger", "interval[0:01:00]")
        return self.recorder.job_upserted(job_info(job_id, **changes), next_run)

    def submit(self, record: JobRecord) -> Run:
        due = datetime.fromtimestamp(self.clock(), timezone.utc)
        run = Run(record, due, "default")
        self.recorder.run_submitted(run)
        return run

    def run(self, record: JobRecord, outcome: Outcome) -> None:
        run = self.submit(record)
        run.try_start(self.clock())
        run.set_duration(2.0)
        run.finish(outcome)


class TestStatus:
    def test_loop_that_is_alive_is_healthy(self) -> None:
        """With a live loop the report is healthy, without reasons."""
        report = Rig().report(last_pass_ended_at=NOW - 1.5)
        assert report == {
            "status": "healthy",
            "reasons": [],
            "scheduler": {
                "name": "main",
                "state": "running",
                "loop_alive": True,
                "last_wakeup": "2027-01-15T07:59:58.500+00:00",
            },
            "jobs": [],
        }

    def test_loop_that_is_not_alive_is_unhealthy_with_a_reason(self) -> None:
        """With a dead loop the report is unhealthy; the reason has a code and a sentence."""
        liveness = Liveness(
            scheduler_state="running", up=False, reasons=[("overdue", "It is late.")]
        )
        report = Rig().report(liveness)
        assert report["status"] == "unhealthy"
        assert report["reasons"] == [{"code": "overdue", "message": "It is late."}]
        assert report["scheduler"]["loop_alive"] is False
        assert report["scheduler"]["last_wakeup"] is None

    def test_a_job_that_fails_does_not_make_it_unhealthy(self) -> None:
        """A failing job does not make the report unhealthy, as a restart would not help."""
        rig = Rig()
        rig.run(rig.add_job(), Outcome.ERROR)
        assert rig.report()["status"] == "healthy"

    def test_report_is_ready_for_json(self) -> None:
        """The report can be serialized as JSON."""
        rig = Rig()
        rig.run(rig.add_job(), Outcome.ERROR)
        report = rig.report(
            Liveness(scheduler_state="stopped", up=False, reasons=[("stopped", "It is.")])
        )
        assert json.loads(json.dumps(report)) == report


class TestJobs:
    def test_new_job_has_a_next_run_only(self) -> None:
        """A job that has not run yet has a next run and nothing else."""
        rig = Rig()
        rig.add_job()
        assert rig.report()["jobs"] == [
            {
                "id": "job",
                "next_run": "2027-01-15T08:01:00.000+00:00",
                "trigger": "interval[0:01:00]",
                "last_outcome": None,
                "last_duration": None,
                "last_success": None,
                "outcomes": {},
                "running_since": None,
                "overdue": False,
            }
        ]

    def test_paused_job_has_no_next_run(self) -> None:
        """A paused job has no next run, and cannot be overdue."""
        rig = Rig()
        rig.add_job(next_run=None)
        (job,) = rig.report()["jobs"]
        assert job["next_run"] is None
        assert job["overdue"] is False

    def test_last_outcome_is_that_of_the_run_that_ended_last(self) -> None:
        """The last outcome is that of the latest run; the last success is kept."""
        rig = Rig()
        record = rig.add_job()
        rig.run(record, Outcome.SUCCESS)
        rig.clock.now += 10
        rig.run(record, Outcome.ERROR)
        (job,) = rig.report()["jobs"]
        assert job["last_outcome"] == "error"
        assert job["last_duration"] == 2.0
        assert job["outcomes"] == {"success": 1, "error": 1}
        assert job["last_success"] == "2027-01-15T08:00:02.000+00:00"

    def test_running_job_says_since_when(self) -> None:
        """A running job has the time of its start."""
        rig = Rig()
        record = rig.add_job()
        rig.submit(record).try_start(NOW + 0.25)
        assert rig.report()["jobs"][0]["running_since"] == "2027-01-15T08:00:00.250+00:00"

    @pytest.mark.parametrize(("late", "overdue"), [(-1, False), (60, False), (60.1, True)])
    def test_job_is_overdue_after_its_grace(self, late: float, overdue: bool) -> None:
        """A job is overdue if its next run is late by more than its grace."""
        rig = Rig()
        rig.add_job(next_run=NOW - late, grace=60.0)
        assert rig.report()["jobs"][0]["overdue"] is overdue

    @pytest.mark.parametrize(("waited", "overdue"), [(60, False), (61, True)])
    def test_job_is_overdue_if_its_run_waits_for_longer_than_its_grace(
        self, waited: float, overdue: bool
    ) -> None:
        """Its next run is in the future: the scheduler goes on, but no worker takes the run."""
        rig = Rig()
        record = rig.add_job(next_run=NOW + 120, grace=60.0)
        runs = [rig.submit(record), rig.submit(record)]
        runs[0].try_start(NOW)
        rig.clock.now = NOW + waited
        rig.submit(record)
        assert rig.report()["jobs"][0]["overdue"] is overdue
        runs[1].try_start(NOW + waited)
        assert rig.report()["jobs"][0]["overdue"] is False

    def test_jobs_are_sorted_by_label(self) -> None:
        """Jobs are sorted by label, and jobs of one label are one item."""
        rig = Rig()
        for job_id, label in (("3", "b"), ("1", "a"), ("2", "b")):
            rig.add_job(job_id, label=label)
        assert [job["id"] for job in rig.report()["jobs"]] == ["a", "b"]


class TestCombine:
    def test_combined_report_is_unhealthy_if_any_scheduler_is(self) -> None:
        """A combined report is unhealthy if any scheduler is; each reason names its scheduler."""
        rigs = Rig(), Rig()
        rigs[1].scheduler.name = "other"
        rigs[0].add_job()
        stopped = Liveness(scheduler_state="stopped", up=False, reasons=[("stopped", "It is.")])
        good, bad = rigs[0].report(), rigs[1].report(stopped)
        assert health.combine_reports([good])["status"] == "healthy"
        combined = health.combine_reports([good, bad])
        assert combined["status"] == "unhealthy"
        assert combined["reasons"] == [
            {"scheduler": "other", "code": "stopped", "message": "It is."}
        ]
        assert [each["name"] for each in combined["schedulers"]] == ["main", "other"]
        assert [each["status"] for each in combined["schedulers"]] == ["healthy", "unhealthy"]
        assert [len(each["jobs"]) for each in combined["schedulers"]] == [1, 0]
