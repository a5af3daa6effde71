"""
The latest runs of each job, kept in memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol

from apscheduler_telemetry.core.model import (
    ERROR,
    FAILED_OUTCOMES,
    SUCCESS,
    ErrorDescription,
    Outcome,
)
from apscheduler_telemetry.core.stats import FinishedRun

DEFAULT_HISTORY = 20
"""Runs that are kept of each job: a week and more of a nightly job, 20 minutes of a busy one."""
MAX_HISTORY = 1_000
"""The most that may be kept of each job."""
MAX_RUNS_OF_ALL_JOBS = 20_000
"""
Runs that are kept of all jobs of a scheduler together, in seven megabytes without messages.

If there are so many jobs that this would be exceeded, fewer are kept of each.
"""
MAX_KEPT_MESSAGE_LENGTH = 500
"""Characters of the message of an error that are kept: what fits into a row of a table."""


class RunRecord(NamedTuple):
    """
    How one run ended.

    Attributes:
        number: orders runs by their end, all jobs and schedulers of a process together.
        job_id: the value of the ``job_id`` label.
        due_at: when it was due, in Unix seconds.
        started_at: when it started, in Unix seconds, as measured or estimated; None if it never
            started.
        ended_at: when it ended, or when it was known that it does not run, in Unix seconds.
        duration: seconds from its start to its end; None if it was not measured.
        outcome: how it ended.
        error_type: the type of its exception, or what stands for it in the metrics; None if there
            is none.
        error_message: the message of its exception, or the reason that its callable gave, at most
            `MAX_KEPT_MESSAGE_LENGTH` characters; None if there is none or it may not be exported.
        trace_id: of its span, in hex; None if it has no span that is sampled.
    """

    number: int
    job_id: str
    due_at: float
    started_at: float | None
    ended_at: float
    duration: float | None
    outcome: Outcome
    error_type: str | None
    error_message: str | None
    trace_id: str | None


class KeptRun(FinishedRun, Protocol):
    """What is kept of a run that has ended; see `Run`."""

    finish_number: int

    @property
    def label(self) -> str: ...

    @property
    def measured_or_estimated_start_at(self) -> float | None: ...


History = tuple[KeptRun, ...]
"""The runs that are kept of a job, the latest last; replaced, and never changed."""


def create_run_records(runs: Iterable[KeptRun]) -> list[RunRecord]:
    """Return what is known of each of these runs."""
    return [_create_run_record(run) for run in runs]


def reduce_error_to_history(error: ErrorDescription) -> ErrorDescription:
    """Return an error with no more than the history shows."""
    message = (error.message or "")[:MAX_KEPT_MESSAGE_LENGTH] or None
    return ErrorDescription(type=error.type, message=message)


def keep_latest_runs(runs: History, size: int, *, has_failure: bool) -> History:
    """
    Return the latest of these runs.

    If none of them failed, the last failure comes before them: a job that runs every minute would
    otherwise not show in the morning why it failed at night.

    Args:
        runs: in the order of their ends.
        size: how many runs to keep.
        has_failure: whether any run of the job has failed; to look for one takes a tenth of what
            adding up takes.
    """
    kept = runs[max(0, len(runs) - size) :]
    if not (size and has_failure):
        return kept
    failure = next((run for run in reversed(runs) if run.outcome in FAILED_OUTCOMES), None)
    return kept if failure is None or failure in kept else (failure, *kept)


def list_run_records(histories: Iterable[History]) -> list[RunRecord]:
    """Return the runs of all these histories, the latest first."""
    records = create_run_records(run for history in histories for run in history)
    return sorted(records, reverse=True)  # by their number, which comes first


def _create_run_record(run: KeptRun) -> RunRecord:
    outcome, error, span = run.outcome, run.error, run.exemplar_span
    return RunRecord(
        number=run.finish_number,
        job_id=run.label,
        due_at=run.due_timestamp,
        started_at=run.measured_or_estimated_start_at,
        ended_at=run.finished_at,
        duration=run.duration if outcome is SUCCESS or outcome is ERROR else None,
        outcome=outcome,  # type: ignore[arg-type]  # it has one, as it has ended
        error_type=None if error is None else error.type,
        error_message=None if error is None else reduce_error_to_history(error).message,
        trace_id=None if span is None else f"{span.trace_id:032x}",
    )
