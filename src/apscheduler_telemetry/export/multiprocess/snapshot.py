"""
The current metrics of a scheduler in the form in which files of multiprocess mode store them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from apscheduler_telemetry.core.stats import Histogram
from apscheduler_telemetry.export import metric_families as families
from apscheduler_telemetry.export.metric_families import (
    InstrumentedScheduler,
    MetricFamily,
    MetricKind,
)
from apscheduler_telemetry.export.multiprocess.file_format import sample_keys
from apscheduler_telemetry.export.multiprocess.gauge_modes import (
    GAUGE_MODES,
    MOST_RECENT,
    priority_timestamp,
)

ERROR_COMPONENT = "multiprocess"
"""The component under which failures of this mode are counted."""

CUMULATIVE_FILE_TYPES = ("counter", "histogram")
"""The types of files whose values only grow; the next holder of a slot continues from them."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """
    The metrics of one scheduler at one moment, by the keys of the files.

    Attributes:
        cumulative_values: counters and histograms, by `CUMULATIVE_FILE_TYPES`.
        gauges_by_mode: gauges by their mode.
        gauge_priorities: those of the gauges in the mode `MOST_RECENT`; see `priority_timestamp`.
        job_labels: the labels of all jobs.
    """

    cumulative_values: dict[str, dict[str, float]] = field(
        default_factory=lambda: {kind: {} for kind in CUMULATIVE_FILE_TYPES}
    )
    gauges_by_mode: dict[str, dict[str, float]] = field(
        default_factory=lambda: {mode: {} for mode in GAUGE_MODES.values()}
    )
    gauge_priorities: dict[str, float] = field(default_factory=dict)
    job_labels: set[str] = field(default_factory=set)


class SnapshotTaker:
    """
    Takes snapshots of one scheduler.

    Args:
        scheduler: the scheduler.
    """

    def __init__(self, scheduler: InstrumentedScheduler) -> None:
        self._scheduler = scheduler
        # A key is JSON text, which is slow to make; those of the latest snapshot are used again.
        self._keys_by_series: dict[tuple[MetricFamily, tuple[str, ...]], list[str]] = {}

    def take_snapshot(
        self, update_earliest_start: Callable[[float], float] | None = None
    ) -> Snapshot:
        """
        Return the current metrics.

        Args:
            update_earliest_start: called with the start of the scheduler in Unix seconds; the
                snapshot gets the start that it returns.
        """
        previous_keys, self._keys_by_series = self._keys_by_series, {}
        snapshot = Snapshot()
        counters, histograms = (snapshot.cumulative_values[kind] for kind in CUMULATIVE_FILE_TYPES)
        ended_at: dict[tuple[str, ...], float] = {}
        succeeded_at: dict[tuple[str, ...], float] = {}
        for family, labels, value in families.all_samples(self._scheduler, ERROR_COMPONENT):
            keys = previous_keys.get((family, labels)) or sample_keys(family, labels, value)
            self._keys_by_series[family, labels] = keys
            if isinstance(value, Histogram):
                histograms.update(zip(keys, (*value.counts, value.sum), strict=True))
                snapshot.job_labels.add(labels[1])
                continue
            (key,) = keys
            if family.kind is MetricKind.COUNTER:
                counters[key] = value
                continue
            mode, shown = GAUGE_MODES[family], value
            if mode == MOST_RECENT:
                # The families that fill the times come before those that need them.
                times = succeeded_at if family is families.LAST_RECORDED else ended_at
                snapshot.gauge_priorities[key] = priority_timestamp(
                    family, value, times.get(labels[:2], 0.0)
                )
            elif family in (families.LAST_SUCCESS, families.LAST_FAILURE):
                ended_at[labels] = max(value, ended_at.get(labels, 0.0))
                if family is families.LAST_SUCCESS:
                    succeeded_at[labels] = value
            elif family is families.STARTED_AT and update_earliest_start is not None:
                shown = update_earliest_start(value)
            snapshot.gauges_by_mode[mode][key] = shown
        return snapshot
