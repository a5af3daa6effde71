"""
The metrics state as a health report: the answer of ``/health``.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from apscheduler_telemetry.core.model import Clock
from apscheduler_telemetry.core.records import JobSnapshot
from apscheduler_telemetry.core.times import to_iso
from apscheduler_telemetry.export.metric_families import InstrumentedScheduler, sorted_job_snapshots

ERROR_COMPONENT = "collector"


def build_report(scheduler: InstrumentedScheduler, clock: Clock = time.time) -> dict[str, Any]:
    """
    Return the health of a scheduler, ready for JSON.

    Times are ISO 8601 in UTC, or None; durations are seconds. Jobs that share a label are one item.
    A job that fails does not make the scheduler unhealthy: restarting it would not help, and there
    are alerts for that.

    Args:
        scheduler: the scheduler.
        clock: returns Unix seconds.
    """
    now, liveness = clock(), scheduler.liveness()
    jobs = sorted_job_snapshots(scheduler, ERROR_COMPONENT, is_export=False)
    return {
        "status": "healthy" if liveness.up else "unhealthy",
        "reasons": [{"code": code, "message": message} for code, message in liveness.reasons],
        "scheduler": {
            "name": scheduler.name,
            "state": liveness.scheduler_state,
            "loop_alive": liveness.up,
            "last_wakeup": to_iso(scheduler.last_pass_ended_at),
        },
        "jobs": [_describe_job(job, now) for job in jobs],
    }


def build_uninstrumented_report(name: str, message: str) -> dict[str, Any]:
    """Return the health of a scheduler that is not followed any more, for the reason given."""
    return {
        "status": "unhealthy",
        "reasons": [{"code": "uninstrumented", "message": message}],
        "scheduler": {"name": name, "state": None, "loop_alive": None, "last_wakeup": None},
        "jobs": [],
    }


def combine_reports(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Combine the reports of all schedulers of a process; any unhealthy one makes it unhealthy."""
    return {
        "status": "unhealthy" if any(r["status"] != "healthy" for r in reports) else "healthy",
        "reasons": [
            {"scheduler": report["scheduler"]["name"], **reason}
            for report in reports
            for reason in report["reasons"]
        ],
        "schedulers": [
            {**report["scheduler"], "status": report["status"], "jobs": report["jobs"]}
            for report in reports
        ],
    }


def _describe_job(job: JobSnapshot, now: float) -> dict[str, Any]:
    next_run = job.next_run or None
    outcome = job.stats.last_outcome
    return {
        "id": job.label,
        "next_run": to_iso(next_run),
        "trigger": job.info.trigger,
        "last_outcome": None if outcome is None else outcome.value,
        "last_duration": job.stats.last_duration,
        "last_success": to_iso(job.stats.last_success_at),
        "outcomes": {each.value: count for each, count in job.stats.outcomes.items() if count},
        "running_since": to_iso(job.in_flight_summary.oldest_start_at or None),
        "overdue": any(
            due_at and now > due_at + job.info.grace
            for due_at in (next_run, job.in_flight_summary.oldest_queued_due_at)
        ),
    }
