"""
How the gauges of several processes are combined: prometheus_client's mode for each of them.

``docs/metrics.md`` has the same table for users.
"""

from __future__ import annotations

from collections.abc import Mapping

from apscheduler_telemetry.export import metric_families as families
from apscheduler_telemetry.export.metric_families import MetricFamily

MOST_RECENT = "livemostrecent"
"""The mode that shows the value with the greatest timestamp; see `priority_timestamp`."""

GAUGE_MODES: Mapping[MetricFamily, str] = {
    # The earliest of the next runs; 0 only if no process has one.
    families.NEXT_RUN: MOST_RECENT,
    families.RUNNING_SINCE: MOST_RECENT,
    # That of the earliest next run.
    families.DEADLINE: "livemin",
    # That of the run that ended last.
    families.LAST_DURATION: MOST_RECENT,
    # That of the run that succeeded last.
    families.LAST_RECORDED: MOST_RECENT,
    # The latest of all processes.
    families.LAST_RUN_DUE: "livemax",
    families.LAST_SUCCESS: "livemax",
    families.LAST_FAILURE: "livemax",
    families.CANCELLED_RUN_DUE: "livemax",
    # The worst value, so that a healthy process does not hide a broken one.
    families.CONSECUTIVE_FAILURES: "livemax",
    families.UP: "livemin",
    families.LAST_PASS_END: "livemin",
    families.JOBSTORE_LAST_READ: "livemin",
    # Usually the same in all processes. If not, the value that makes an alert fire last, as the
    # alert rules do with several instances.
    families.GRACE: "livemax",
    families.MAX_DURATION: "livemax",
    families.MIN_DURATION: "livemin",
    families.MAX_FAILURES: "livemax",
    families.MIN_RECORDED: "livemin",
    families.SHORTEST_UPCOMING_INTERVAL: "livemin",
    families.LONGEST_UPCOMING_INTERVAL: "livemax",
    families.JOBS: "livemax",
    # Always 1: one series for each set of labels.
    families.ALERT_INFO: "livemax",
    families.JOB_INFO: "livemax",
    # One series for each process. This is the only mode that keeps the label `pid`.
    families.SCHEDULER_INFO: "liveall",
    # The number of processes in that state. If two are running, each job runs twice.
    families.STATE: "livesum",
    # The time from which the counters count.
    families.STARTED_AT: "livemin",
    # Load and capacity add up.
    families.RUNNING: "livesum",
    families.WORKERS: "livesum",
    families.EXECUTOR_RUNNING: "livesum",
    families.EXECUTOR_QUEUED: "livesum",
}
"""
All modes are ``live``: the gauges of a dead process are not shown. Its last known next run is still
in Prometheus, and the alert rules look there.
"""

_TIMESTAMP_AFTER_ALL_RUNS = 1e12
"""Unix seconds, later than any run: a `datetime` ends with the year 9999."""


def priority_timestamp(family: MetricFamily, value: float, ended_at: float) -> float:
    """
    Return the timestamp of a value in the mode `MOST_RECENT`.

    Scrapes do not show timestamps, so they can be used to choose between processes.

    Args:
        family: a gauge in that mode.
        value: its value in this process.
        ended_at: when the run ended that the value is about, in Unix seconds; 0 if none has ended.

    Returns:
        A number that is greater the more the value matters. It is never 0, which means that there
        is no timestamp.
    """
    if family is families.LAST_DURATION or family is families.LAST_RECORDED:
        return ended_at or 1.0
    return _TIMESTAMP_AFTER_ALL_RUNS - value if value else 1.0
