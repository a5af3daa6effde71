"""Counts and states of telemetry, read from its handle and its registry."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry

from apscheduler_telemetry import Telemetry
from apscheduler_telemetry.core.observers import ErrorReporter
from apscheduler_telemetry.core.recorder import Recorder
from apscheduler_telemetry.core.records import JobSnapshot

OUTCOMES = ("success", "error", "missed", "skipped", "coalesced", "lost")


def outcomes(telemetry: Telemetry, job_id: str = "job") -> dict[str, int]:
    """Return the runs of a job by outcome, as Prometheus gets them, without zeros."""
    seen = {
        outcome: sample(telemetry, "apscheduler_job_runs_total", job_id=job_id, outcome=outcome)
        for outcome in OUTCOMES
    }
    return {outcome: int(count) for outcome, count in seen.items() if count}


def sample(telemetry: Telemetry, name: str, **labels: str) -> float:
    """Return the value of a sample, which must exist."""
    labels["scheduler"] = telemetry.name
    value = registry_of(telemetry).get_sample_value(name, labels)
    assert value is not None, f"no sample {name}{labels}"
    return float(value)


def recorder_of(telemetry: Telemetry) -> Recorder:
    """Return the metrics state of an instrumented scheduler."""
    return telemetry._exported_scheduler.recorder


def adapter_of(telemetry: Telemetry) -> Any:
    """Return the adapter of a scheduler, for tests of its private parts."""
    return telemetry._exported_scheduler.adapter


def errors_of(telemetry: Telemetry) -> ErrorReporter:
    """Return the reporter of telemetry's own errors."""
    return telemetry._exported_scheduler.error_reporter


def registry_of(telemetry: Telemetry) -> CollectorRegistry:
    """Return the registry on which a scheduler is instrumented."""
    registry = telemetry._config.registry
    assert registry is not None
    return registry


class JobState:
    """The metrics state of a job: all attributes of its snapshot, its stats and its in-flight."""

    def __init__(self, snapshot: JobSnapshot) -> None:
        self.snapshot = snapshot

    def __getattr__(self, name: str) -> Any:
        snapshot = self.snapshot
        parts = snapshot, snapshot.stats, snapshot.in_flight_summary
        return next(getattr(part, name) for part in parts if hasattr(part, name))

    def __repr__(self) -> str:
        return repr(self.snapshot)


def job_states(telemetry: Telemetry) -> list[JobState]:
    """Return the metrics state of all jobs."""
    return [JobState(snapshot) for snapshot in recorder_of(telemetry).job_snapshots()]


def job_state(telemetry: Telemetry, job_id: str = "job") -> JobState:
    """Return the metrics state of a job."""
    (found,) = [job for job in job_states(telemetry) if job.label == job_id]
    return found


def check_counts(telemetry: Telemetry) -> None:
    """Check that no count is negative, and that executors and jobs agree on runs in flight."""
    running = queued = 0
    for job in recorder_of(telemetry).job_snapshots():
        assert min(*job.in_flight_summary, *job.stats.outcomes.values()) >= 0, job
        running += job.in_flight_summary.running
        queued += job.in_flight_summary.queued
    assert running >= 0
    for alias, state in recorder_of(telemetry).executors().items():
        assert state.running >= 0, alias
        assert state.queued >= 0, alias
