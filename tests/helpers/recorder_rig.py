"""A recorder with a clock that the test sets; no scheduler is needed."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

from apscheduler_telemetry.core.model import ErrorDescription, JobInfo, Outcome
from apscheduler_telemetry.core.recorder import Recorder
from apscheduler_telemetry.core.records import JobRecord, JobSnapshot, Run
from apscheduler_telemetry.core.run_history import create_run_records
from tests.helpers.clocks import ManualClock

DUE = datetime(2030, 1, 1, tzinfo=timezone.utc)
AT = DUE.timestamp()


def job_info(job_id: str = "job", **changes: Any) -> JobInfo:
    """Return the description of a job."""
    values: dict[str, Any] = {
        "id": job_id,
        "label": job_id,
        "name": "Job",
        "func": "shop:job",
        "trigger": "interval[0:00:10]",
        "executor": "default",
        "jobstore": "default",
        "persistent": False,
        "grace": 60.0,
    }
    return JobInfo(**{**values, **changes})


class RecorderRig:
    """A recorder, its clock, an executor and a job whose next run is at `AT`."""

    def __init__(self, **options: Any) -> None:
        self.clock = ManualClock(AT)
        self.recorder = Recorder("main", clock=self.clock, **options)
        self.recorder.executor_added("default", lambda: 4)
        self.record = self.recorder.job_upserted(job_info(), AT)

    def submit(self, *seconds: float, record: JobRecord | None = None) -> list[Run]:
        """Submit runs that are due some seconds after `DUE`; one at `DUE` by default."""
        due_times = [DUE + timedelta(seconds=each) for each in seconds or (0,)]
        create_run = self.recorder.create_run
        runs = [create_run(record or self.record, due, "default") for due in due_times]
        for run in runs:
            self.recorder.run_submitted(run)
        return runs

    def finish(
        self,
        run: Run,
        outcome: Outcome = Outcome.SUCCESS,
        error: ErrorDescription | None = None,
        *,
        started: float | None = None,
        duration: float | None = None,
    ) -> bool:
        """End a run, measured if `started` or `duration` are given."""
        if started is not None:
            run.try_start(started)
        if duration is not None:
            run.set_duration(duration)
        return run.finish(outcome, error)

    def job(self, label: str = "job") -> JobSnapshot:
        """Return the snapshot of a label."""
        (job,) = [job for job in self.recorder.job_snapshots() if job.label == label]
        return job

    def labels(self) -> list[str]:
        """Return all labels."""
        return [job.label for job in self.recorder.job_snapshots()]

    def counts(self) -> tuple[int, int, int, dict[str, int]]:
        """Return due, queued and running runs, and the outcomes without zeros."""
        job = self.job()
        queued, running = job.in_flight_summary.queued, job.in_flight_summary.running
        assert self.recorder.executors() == {"default": (4, running, queued)}
        outcomes = {outcome.value: n for outcome, n in job.stats.outcomes.items() if n}
        return job.due_count, queued, running, outcomes

    def numbers(self, label: str = "job") -> dict[str, Any]:
        """Return all values of the snapshot of a label, for comparisons."""
        job = self.job(label)
        numbers = job._asdict() | {name: getattr(job.stats, name) for name in job.stats.__slots__}
        del numbers["version"], numbers["stats"]
        # Whose numbers go on from test to test.
        numbers["history"] = [record[1:] for record in create_run_records(job.history)]
        for name in ("durations", "delays"):
            histogram = numbers[name]
            numbers[name] = histogram.counts, histogram.sum, histogram.exemplars
        return numbers


def readings(recorder: Recorder, alias: str) -> tuple[float | None, int]:
    jobstore = recorder.jobstores()[alias]
    return jobstore.last_read_at, jobstore.read_failure_count
