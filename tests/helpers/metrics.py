"""Counts and states of telemetry, read from its handle and its registry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry

from apscheduler_telemetry import Telemetry
from apscheduler_telemetry.core.observers import ErrorReporter
from apscheduler_telemetry.core.recorder import Recorder
from apscheduler_telemetry.core.records import JobSnapshot

OUTCOMES = ("success", "error", "missed", "skipped", "coalesced", "lost")
RUNS = "apscheduler_job_runs_total"
NEXT_RUN = "apscheduler_job_next_run_timestamp_seconds"
GRACE = "apscheduler_job_grace_seconds"
LONGEST, SHORTEST = (
    f"apscheduler_job_{which}_interval_seconds" for which in ("longest", "shortest")
)
VALUES_OMITTED_FROM_SCRAPES = {
    "apscheduler_job_consecutive_failures": 0.0,
    GRACE: 60.0,
    "apscheduler_job_running": 0.0,
    "apscheduler_job_running_since_timestamp_seconds": 0.0,
    RUNS: 0.0,
}
"""Metrics that `/metrics` leaves out where they have this value, except runs that succeeded."""

Series = tuple[str, frozenset[tuple[str, str]]]
"""A name and labels."""


def outcomes(telemetry: Telemetry, job_id: str = "job") -> dict[str, int]:
    """Return the runs of a job by outcome, as Prometheus gets them, without zeros."""
    seen = {
        outcome: sample(telemetry, RUNS, job_id=job_id, outcome=outcome) for outcome in OUTCOMES
    }
    return {outcome: int(count) for outcome, count in seen.items() if count}


def sample(telemetry: Telemetry, name: str, **labels: str) -> float:
    """Return the value of a sample, which must exist, or be absent because it is usual."""
    labels["scheduler"] = telemetry.name
    value = value_or_usual(registry_of(telemetry), name, labels)
    assert value is not None, f"no sample {name}{labels}"
    return float(value)


def value_or_usual(
    registry: CollectorRegistry, name: str, labels: Mapping[str, str]
) -> float | None:
    """Return the value of a sample: the usual one, if that is why it is absent."""

    def find(name: str, **changed: str) -> float | None:
        return registry.get_sample_value(name, {**labels, **changed})

    value = find(name)
    if value is None and name == LONGEST:
        return find(SHORTEST)
    if value is None and name in VALUES_OMITTED_FROM_SCRAPES:
        is_known = find(NEXT_RUN) if name == GRACE else find(RUNS, outcome="success")
        return None if is_known is None else VALUES_OMITTED_FROM_SCRAPES[name]
    return value


def without_usual_values(series: Mapping[Series, float]) -> dict[Series, float]:
    """Return what `/metrics` has of the series that are exported in other ways."""
    return {
        (name, labels): value
        for (name, labels), value in series.items()
        if ("outcome", "success") in labels
        or value
        != (
            series.get((SHORTEST, labels))
            if name == LONGEST
            else VALUES_OMITTED_FROM_SCRAPES.get(name)
        )
    }


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
