"""
Looks ahead: the upcoming runs of all jobs in the order in which they are due, in bounded time.
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Hashable, Iterable
from datetime import tzinfo
from typing import Any

from apscheduler_telemetry.adapters.apscheduler3 import triggers
from apscheduler_telemetry.adapters.apscheduler3.tracked_jobs import TrackedJob
from apscheduler_telemetry.adapters.apscheduler3.triggers import FireTimeSearch
from apscheduler_telemetry.core.pauses import let_other_threads_run
from apscheduler_telemetry.core.times import to_datetime, to_unix_seconds
from apscheduler_telemetry.core.timetable import UnlistedRuns, UpcomingRun, UpcomingRuns

MAX_LISTED_RUNS_OF_JOB = 300
"""Runs of one job that are looked for: a day of a job that runs every five minutes."""
RUNS_BETWEEN_PAUSES = 100
"""Runs that are found before other threads run: about a millisecond."""
MAX_SEARCH_SECONDS = 0.3
"""Seconds after which no more runs are looked for."""
MAX_SEARCH_SECONDS_OF_JOB = 0.05
"""Seconds after which the trigger of one job is not called any more."""

_CUSTOM_TRIGGER_REASON = (
    "has a trigger of the application's own class, which only APScheduler calls"
)
_FREQUENT_RUNS_REASON = "runs often"
_SLOW_TRIGGER_REASON = "has a slow trigger"
_FAILED_TRIGGER_REASON = "has a trigger that failed"


def find_upcoming_runs(
    jobs: Iterable[TrackedJob], until: float, *, max_count: int, default_zone: tzinfo
) -> UpcomingRuns:
    """
    Return the upcoming runs of some jobs; see `Timetable.find_upcoming_runs`.

    Args:
        jobs: the jobs.
        until: Unix seconds.
        max_count: how many runs to return at most.
        default_zone: the time zone of fire times of triggers that have none.
    """
    stop_at = time.perf_counter() + MAX_SEARCH_SECONDS
    schedules: dict[Hashable, _LazyFireTimes] = {}
    upcoming: list[tuple[float, int, int, TrackedJob, _LazyFireTimes]] = []
    for number, job in enumerate(jobs):
        next_run, trigger = job.next_run, job.trigger
        if next_run is not None and next_run < until:
            first = to_datetime(next_run, triggers.find_timezone(trigger) or default_zone)
            key = triggers.create_schedule_key(trigger, first)
            if key is None:
                times = _LazyFireTimes(trigger, first)
            else:
                times = schedules.setdefault(key, _LazyFireTimes(trigger, first))
            upcoming.append((next_run, number, 0, job, times))
    heapq.heapify(upcoming)
    runs: list[UpcomingRun] = []
    unlisted: dict[str, UnlistedRuns] = {}
    while upcoming:
        due_at, number, index, job, times = upcoming[0]
        if len(runs) >= max_count or time.perf_counter() > stop_at:
            return UpcomingRuns(runs, due_at, list(unlisted.values()))
        if len(runs) % RUNS_BETWEEN_PAUSES == RUNS_BETWEEN_PAUSES - 1:
            let_other_threads_run()
        label = job.record.series.label
        runs.append(UpcomingRun(due_at, label, job.record.info.executor))
        following = times.find_fire_time(index + 1)
        if following is not None and following < until:
            heapq.heapreplace(upcoming, (following, number, index + 1, job, times))
            continue
        heapq.heappop(upcoming)
        if following is None and times.problem is not None:
            unlisted[label] = UnlistedRuns(label, due_at, times.problem)
    return UpcomingRuns(runs, math.inf, list(unlisted.values()))


class _LazyFireTimes:
    """
    The upcoming fire times of a trigger, found one by one when they are needed.

    Attributes:
        problem: why no further ones are known; None if there are none.
    """

    def __init__(self, trigger: Any, first: Any) -> None:
        self.problem: str | None = None
        self._search = FireTimeSearch(trigger, first)
        self._found_timestamps = [to_unix_seconds(first)]

    def find_fire_time(self, index: int) -> float | None:
        """Return a fire time in Unix seconds; None if there is none, or if it is not known."""
        while len(self._found_timestamps) <= index:
            search = self._search
            if not search.is_finished:
                if index >= MAX_LISTED_RUNS_OF_JOB:
                    self.problem = _FREQUENT_RUNS_REASON
                    return None
                if search.elapsed_seconds > MAX_SEARCH_SECONDS_OF_JOB:
                    self.problem = _SLOW_TRIGGER_REASON
                    return None
                search.run(1)
            if search.is_finished:
                if search.problem is not None:
                    self.problem = (
                        _CUSTOM_TRIGGER_REASON
                        if search.problem is triggers.CUSTOM_TRIGGER_PROBLEM
                        else _FAILED_TRIGGER_REASON
                    )
                return None
            self._found_timestamps.append(to_unix_seconds(search.latest_found))
        return self._found_timestamps[index]
