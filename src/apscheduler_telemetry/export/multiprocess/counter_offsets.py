"""
What is added to the counters of this process before they are written.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from apscheduler_telemetry.core.recorder import REMOVED_JOB_SECONDS
from apscheduler_telemetry.export.multiprocess.file_format import (
    drop_values_of_other_jobs,
    parse_job_label,
)
from apscheduler_telemetry.export.multiprocess.snapshot import CUMULATIVE_FILE_TYPES


class CounterOffsets:
    """
    The offsets of the counters and histograms of one scheduler, by the keys of the files.

    An offset is positive for what previous holders of the slot counted. It is negative in a forked
    child, for what the parent counted before the fork and exposes itself.
    """

    def __init__(self) -> None:
        self._offsets: dict[str, dict[str, float]] = {kind: {} for kind in CUMULATIVE_FILE_TYPES}
        self._last_added_at = 0.0
        self._previous_job_labels: set[str] = set()

    def exclude_parent_counts(self, cumulative_values: Mapping[str, Mapping[str, float]]) -> None:
        """Start again from the negative of these values, which another process exposes."""
        for kind, values in cumulative_values.items():
            self._offsets[kind] = {key: -value for key, value in values.items()}

    def add_previous_counts(self, kind: str, values: Mapping[str, float]) -> None:
        """Add what previous holders of the slot counted."""
        self._last_added_at = time.monotonic()
        offsets = self._offsets[kind]
        for key, value in values.items():
            offsets[key] = offsets.get(key, 0.0) + value

    def add_to_values(self, cumulative_values: Mapping[str, dict[str, float]]) -> None:
        """Add the offsets to the values of a snapshot, in place."""
        for kind, values in cumulative_values.items():
            for key, offset in self._offsets[kind].items():
                values[key] = values.get(key, 0.0) + offset

    def drop_removed_jobs(self, existing_job_labels: set[str]) -> None:
        """
        Drop the offsets of jobs that no longer exist.

        A job keeps its offsets for as long as the metrics state keeps the job after its removal.
        Otherwise its counters would fall before they disappear. A job that this process never knew
        keeps its offsets for the same time, counted from when they were added.

        Args:
            existing_job_labels: the labels of all jobs in the metrics state.
        """
        gone = self._previous_job_labels - existing_job_labels
        self._previous_job_labels = existing_job_labels
        is_expired = time.monotonic() - self._last_added_at > REMOVED_JOB_SECONDS
        for kind, offsets in self._offsets.items():
            if is_expired:
                self._offsets[kind] = drop_values_of_other_jobs(offsets, existing_job_labels)
            elif gone:
                self._offsets[kind] = {
                    key: offset
                    for key, offset in offsets.items()
                    if parse_job_label(key) not in gone
                }
