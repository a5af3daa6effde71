"""
The attributes that spans and log records of runs have in common.

Conventions: https://opentelemetry.io/docs/specs/semconv/
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

from opentelemetry.util.types import AttributeValue

from apscheduler_telemetry.core.exception_text import MAX_STACKTRACE_LENGTH
from apscheduler_telemetry.core.labels import escape_surrogates, label_value
from apscheduler_telemetry.core.model import (
    ERROR,
    MAX_MESSAGE_LENGTH,
    ErrorDescription,
    JobInfo,
    Outcome,
)
from apscheduler_telemetry.core.records import Run
from apscheduler_telemetry.core.times import to_datetime

INSTRUMENTATION_SCOPE = "apscheduler_telemetry"
SCHEMA_URL = "https://opentelemetry.io/schemas/1.44.0"
"""
The conventions that ``code.*``, ``error.*`` and ``exception.*`` follow here.

The newest of ``opentelemetry.semconv.schemas.Schemas``, as a literal because that package comes
with the SDK and not with the API.
"""

MAX_CACHED_JOBS = 1_000
"""Jobs whose attributes are cached, as most are the same for all runs of a job."""

OUTCOME_DESCRIPTIONS: Mapping[Outcome, str] = {
    ERROR: "failed with an exception that is not known",
    Outcome.MISSED: "started too late, so APScheduler dropped the run (misfire)",
    Outcome.SKIPPED: "max_instances runs of the job were in progress",
    Outcome.COALESCED: "merged into a later run",
    Outcome.LOST: "lost by its executor, or could not be submitted to one",
}
"""What happened to a run of which no exception says more."""

Attributes = dict[str, AttributeValue]


class JobAttributeCache:
    """Makes the attributes of a run that are known before it starts."""

    def __init__(self) -> None:
        self._attributes_by_job: dict[int, tuple[JobInfo, Attributes]] = {}

    def attributes_of(self, run: Run) -> Attributes:
        """Return the attributes of a run, to be changed by the caller."""
        job = run.job_info
        cached = self._attributes_by_job.get(id(job))
        if cached is None or cached[0] is not job:
            if len(self._attributes_by_job) >= MAX_CACHED_JOBS:
                self._attributes_by_job.clear()
            cached = job, _job_attributes(job, run.label, run.scheduler_name)
            self._attributes_by_job[id(job)] = cached
        attributes = cached[1].copy()
        # Not of `run.due`, whose class may be the user's.
        attributes["apscheduler.scheduled_time"] = _to_iso_text(run.due_timestamp)
        if run.arguments is not None:
            attributes["apscheduler.job.arguments"] = escape_surrogates(run.arguments)
        return attributes


def error_type(outcome: Outcome, error: ErrorDescription | None) -> str:
    """Return the ``error.type`` of a run that did not succeed: its exception, or its outcome."""
    return outcome.value if error is None else label_value(error.type)


def error_message(outcome: Outcome, error: ErrorDescription | None) -> str | None:
    """
    Return why a run did not succeed.

    Args:
        outcome: any but success.
        error: its exception, or the failure that it reported.

    Returns:
        The message of the error, or None if it may not be exported; without an error, the
        description of the outcome.
    """
    if error is None:
        return OUTCOME_DESCRIPTIONS[outcome]
    return None if error.message is None else exported_message(error.message)


def exception_attributes(error: ErrorDescription) -> Attributes:
    """Return the attributes of an exception, as far as it may be exported."""
    attributes: Attributes = {"exception.type": label_value(error.type)}
    if error.message is not None:
        attributes["exception.message"] = exported_message(error.message)
    if error.traceback:
        attributes["exception.stacktrace"] = escape_surrogates(
            error.traceback[-MAX_STACKTRACE_LENGTH:]
        )
    return attributes


def exported_message(message: str) -> str:
    """Return a message as it is exported: bounded, and encodable."""
    return escape_surrogates(message[:MAX_MESSAGE_LENGTH])


def to_nanoseconds(seconds: float) -> int:
    """Return Unix seconds as Unix nanoseconds."""
    return int(seconds * 1e9)


@functools.lru_cache  # as many jobs are due at the same time
def _to_iso_text(timestamp: float) -> str:
    return to_datetime(timestamp).isoformat()


def _job_attributes(job: JobInfo, label: str, scheduler: str) -> Attributes:
    return {
        "job.system": "apscheduler",
        "apscheduler.job.id": label_value(job.id),
        "apscheduler.job.label": escape_surrogates(label),
        "apscheduler.job.name": label_value(job.name),
        "apscheduler.scheduler": label_value(scheduler),
        "apscheduler.executor": label_value(job.executor),
        "apscheduler.jobstore": label_value(job.jobstore),
        "apscheduler.trigger": label_value(job.trigger),
        "code.function.name": label_value(job.func.replace(":", ".", 1)),
    }
