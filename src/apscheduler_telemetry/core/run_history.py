"""
The latest runs of each job, kept in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from apscheduler_telemetry.core.model import (
    ERROR,
    SUCCESS,
    Outcome,
)
from apscheduler_telemetry.core.stats import FinishedRun

DEFAULT_HISTORY = 20
"""Runs that are kept of each job: a week and more of a nightly job, 20 minutes of a busy one."""
MAX_HISTORY = 1_000
"""The most that may be kept of each job."""
MAX_RUNS_OF_ALL_JOBS = 20_000
"""
Runs that are kept of all jobs of a scheduler together, in four megabytes without messages.

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


class ListableRun(FinishedRun, Protocol):
    """What is kept of a run that has ended; see `Run`."""

    finish_number: int

    @property
    def listed_runs(self) -> Sequence[ListableRun] | None: ...


History = tuple[tuple[Any, ...], ...]
"""
The runs that are kept of a job, the latest last; replaced, and never changed.

Each is a plain tuple with the fields of a `RunRecord`, which takes half as long to make.
"""


def add_to_history(history: History, runs: Sequence[ListableRun], label: str, size: int) -> History:
    """
    Return a history with further runs.

    Args:
        history: before that.
        runs: which have ended, in the order of their ends.
        label: the value of the ``job_id`` label.
        size: how many runs to keep.
    """
    if not runs:
        return history if len(history) <= size else history[len(history) - size :]
    latest = list(history)
    for run in runs[-size:] if size else ():
        for one in (run,) if run.listed_runs is None else run.listed_runs[-size:]:
            outcome, error, span = one.outcome, one.error, one.exemplar_span
            start = one.estimated_start_at if one.started_at is None else one.started_at
            duration = one.duration if outcome is SUCCESS or outcome is ERROR else None
            kind = message = trace_id = None
            if error is not None:
                kind, message = error.type, (error.message or "")[:MAX_KEPT_MESSAGE_LENGTH] or None
            if span is not None:
                trace_id = f"{span.trace_id:032x}"
            latest.append(
                (
                    one.finish_number,
                    label,
                    one.due_timestamp,
                    start,
                    one.finished_at,
                    duration,
                    outcome,
                    kind,
                    message,
                    trace_id,
                )
            )
    return tuple(latest[-size:]) if size else ()


def list_records(histories: Iterable[History]) -> list[RunRecord]:
    """Return the runs of all these histories, the latest first."""
    records = [RunRecord(*kept) for history in histories for kept in history]
    return sorted(records, reverse=True)  # by their number, which comes first
