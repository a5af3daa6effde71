"""
Reads the health report of a running process.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from apscheduler_telemetry.cli.client import fetch_json
from apscheduler_telemetry.cli.errors import CommandError


def fetch_schedulers(url: str, token: str | None) -> list[dict[str, Any]]:
    """
    Return the schedulers of a process, each with its jobs.

    Args:
        url: of its health report.
        token: what the process requires; None for nothing.

    Raises:
        CommandError: there is no health report.
    """
    # That of an unhealthy process has this status.
    report = fetch_json(url, token, statuses=(HTTPStatus.SERVICE_UNAVAILABLE,))
    try:
        schedulers = [
            {
                **scheduler,
                "jobs": [{**_JOB_FIELD_DEFAULTS, **job, "id": str(job["id"])} for job in jobs],
            }
            for scheduler, jobs in (
                [(each, each["jobs"]) for each in report["schedulers"]]
                if "schedulers" in report
                else [({**report["scheduler"], "status": report["status"]}, report["jobs"])]
            )
        ]
        for scheduler in schedulers:
            _ = scheduler["name"], scheduler["state"]
            for job in scheduler["jobs"]:
                _check_job_field_types(job)
    except (AttributeError, LookupError, TypeError) as error:
        msg = f"{url} shows no scheduler. Pass the address of the application's telemetry."
        raise CommandError(msg) from error
    return schedulers


_JOB_FIELD_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "next_run": str,
    "trigger": str,
    "last_outcome": str,
    "last_duration": (int, float),
    "last_success": str,
    "outcomes": dict,
    "running_since": str,
    "overdue": bool,
}
_JOB_FIELD_DEFAULTS = dict.fromkeys(_JOB_FIELD_TYPES)


def _check_job_field_types(job: Mapping[str, Any]) -> None:
    for name, expected in _JOB_FIELD_TYPES.items():
        if job[name] is not None and not isinstance(job[name], expected):
            raise TypeError(name)


def describe_job_state(job: dict[str, Any]) -> str:
    """Return the state of a job in a word or two."""
    if job["overdue"]:
        return "overdue"
    if job["running_since"]:
        return "running"
    return "waiting" if job["next_run"] else "no next run"
