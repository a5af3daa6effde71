"""
The current metrics of a scheduler in the form in which files of multiprocess mode store them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from apscheduler_telemetry.core.stats import Histogram
from apscheduler_telemetry.export import metric_families as families
from apscheduler_telemetry.export.metric_families import InstrumentedScheduler, Kind, MetricFamily
from apscheduler_telemetry.export.multiprocess.file_format import sample_keys
from apscheduler_telemetry.export.multiprocess.gauge_modes import (
    GAUGE_MODES,
    MOST_RECENT,
    priority_of,
)

COMPONENT = "multiprocess"
"""The component under which failures of this mode are counted."""

COUNTED_KINDS = ("counter", "histogram")
"""The types of files whose values only grow; the next holder of a slot continues from them."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """
    The metrics of one scheduler at one moment, by the keys of the files.

    Attributes:
        counted: counters and histograms, by `COUNTED_KINDS`.
        gauges: gauges by their mode.
        timestamps: the timestamps of the gauges in the mode `MOST_RECENT`.
        jobs: the labels of all jobs.
    """

    counted: dict[str, dict[str, float]] = field(
        default_factory=lambda: {kind: {} for kind in COUNTED_KINDS}
    )
    gauges: dict[str, dict[str, float]] = field(
        default_factory=lambda: {mode: {} for mode in GAUGE_MODES.values()}
    )
    timestamps: dict[str, float] = field(default_factory=dict)
    jobs: set[str] = field(default_factory=set)


class SnapshotBuilder:
    """
    Takes snapshots of one scheduler.

    Args:
        source: the scheduler.
    """

    def __init__(self, source: InstrumentedScheduler) -> None:
        self._source = source
        # A key is JSON text, which is slow to make; those of the latest snapshot are used again.
        self._keys: dict[tuple[MetricFamily, tuple[str, ...]], list[str]] = {}

    def take_snapshot(self, record_start: Callable[[float], float] | None = None) -> Snapshot:
        """
        Return the current metrics.

        Args:
            record_start: called with the start of the scheduler in Unix seconds; the snapshot gets
                the start that it returns.
        """
        previous_keys, self._keys = self._keys, {}
        snapshot = Snapshot()
        counters, histograms = (snapshot.counted[kind] for kind in COUNTED_KINDS)
        ended_at: dict[tuple[str, ...], float] = {}
        for family, labels, value in families.samples(self._source, COMPONENT):
            keys = previous_keys.get((family, labels)) or sample_keys(family, labels, value)
            self._keys[family, labels] = keys
            if isinstance(value, Histogram):
                histograms.update(zip(keys, (*value.counts, value.sum), strict=True))
                snapshot.jobs.add(labels[1])
                continue
            (key,) = keys
            if family.kind is Kind.COUNTER:
                counters[key] = value
                continue
            mode, shown = GAUGE_MODES[family], value
            if mode == MOST_RECENT:
                # The families that fill `ended_at` come before the one that needs it.
                snapshot.timestamps[key] = priority_of(family, value, ended_at.get(labels, 0.0))
            elif family in (families.LAST_SUCCESS, families.LAST_FAILURE):
                ended_at[labels] = max(value, ended_at.get(labels, 0.0))
            elif family is families.STARTED_AT and record_start is not None:
                shown = record_start(value)
            snapshot.gauges[mode][key] = shown
        return snapshot
