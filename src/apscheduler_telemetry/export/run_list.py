"""
The latest runs of a process as a list: the answer of ``/runs``.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from typing import Any

from apscheduler_telemetry.core.labels import escape_surrogates, label_value
from apscheduler_telemetry.core.run_history import RunRecord
from apscheduler_telemetry.core.times import to_iso


def build_run_list(
    runs_by_scheduler: Mapping[str, Sequence[RunRecord]], limit: int, before: int | None = None
) -> dict[str, Any]:
    """
    Return the latest runs of several schedulers, ready for JSON.

    Args:
        runs_by_scheduler: the runs of each scheduler by its name, the latest first.
        limit: how many runs to return at most.
        before: return only runs whose number is less; None for all.

    Returns:
        ``runs``, the latest first, and ``next_before``: what to pass as `before` for those that
        come next, or None if there are no more.
    """
    runs = heapq.merge(
        *(
            [(run, scheduler) for run in runs if before is None or run.number < before]
            for scheduler, runs in runs_by_scheduler.items()
        ),
        reverse=True,
    )
    chosen = [item for item, _ in zip(runs, range(limit + 1), strict=False)]
    has_more = len(chosen) > limit
    del chosen[limit:]
    return {
        "runs": [describe_run(scheduler, run) for run, scheduler in chosen],
        "next_before": chosen[-1][0].number if has_more else None,
    }


def describe_run(scheduler: str, run: RunRecord) -> dict[str, Any]:
    """Return one run, ready for JSON and UTF-8; times are ISO 8601 in UTC, or None."""
    return {
        "number": run.number,
        "scheduler": scheduler,
        "job_id": run.job_id,
        "scheduled_time": to_iso(run.due_at),
        "start_time": to_iso(run.started_at),
        "end_time": to_iso(run.ended_at),
        "duration": run.duration,
        "outcome": run.outcome.value,
        "error_type": run.error_type and label_value(run.error_type),
        "error_message": run.error_message and escape_surrogates(run.error_message),
        "trace_id": run.trace_id,
    }
