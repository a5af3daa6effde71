"""
What a Prometheus knows of the runs of a time range, for ``apscheduler-telemetry report``.
"""

from __future__ import annotations

import math
import re
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import NamedTuple

from apscheduler_telemetry.cli.client import fetch_json
from apscheduler_telemetry.cli.errors import CommandError
from apscheduler_telemetry.cli.table import OUTCOMES
from apscheduler_telemetry.core.model import Clock

SLOW_FACTOR = 2.0
"""A run is slower than usual if it takes at least twice as long: shorter ones are noise."""
MIN_SLOW_DIFFERENCE_SECONDS = 1.0
"""The least difference to the usual duration that is worth a line."""

_SECONDS_BY_UNIT = {"m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_BY_JOB = "by (job, scheduler, job_id)"
_BY_ALERT = "by (alertname, severity, job, scheduler, job_id)"
_ALERT_MATCHERS = 'alertname=~"APScheduler.+", alertname!="APSchedulerWatchdog"'


class JobRunSummary(NamedTuple):
    """
    The runs of one job.

    Attributes:
        scheduler: the name of its scheduler.
        job_id: the value of its label ``job_id``.
        counts_by_outcome: how many runs had each outcome.
        slowest_seconds: of the slowest run that was scraped; None if it was not slower than usual.
        usual_seconds: what most runs took before; None if `slowest_seconds` is.
    """

    scheduler: str
    job_id: str
    counts_by_outcome: Mapping[str, int]
    slowest_seconds: float | None = None
    usual_seconds: float | None = None

    @property
    def due_count(self) -> int:
        """How many runs were due; coalesced ones were replaced by a later one."""
        return sum(self.counts_by_outcome.values()) - self.counts_by_outcome.get("coalesced", 0)

    @property
    def is_in_trouble(self) -> bool:
        """Whether a run did not succeed, or took longer than usual."""
        return (
            self.due_count > self.counts_by_outcome.get("success", 0)
            or self.slowest_seconds is not None
        )


class FiredAlert(NamedTuple):
    """
    An alert that has fired.

    Attributes:
        name: the name of its rule.
        severity: its label.
        scheduler: its scheduler; empty if it is about an application.
        job_id: its job; empty if it is about a scheduler.
        is_firing: whether it still fires.
    """

    name: str
    severity: str
    scheduler: str
    job_id: str
    is_firing: bool


class ApplicationReport(NamedTuple):
    """
    What happened in an application.

    Attributes:
        name: the value of Prometheus' label ``job``.
        jobs: those in trouble first.
        alerts: those that still fire first.
    """

    name: str
    jobs: Sequence[JobRunSummary]
    alerts: Sequence[FiredAlert]


def parse_time_range(text: str) -> int:
    """Return the seconds of a duration of Prometheus with one unit, such as ``24h``."""
    match = re.fullmatch(r"([1-9]\d{0,5})([mhdw])", text)
    if match is None:
        msg = f"{text!r} is no number with m, h, d or w, such as 24h"
        raise ValueError(msg)
    return int(match[1]) * _SECONDS_BY_UNIT[match[2]]


def read_reports(
    url: str, token: str | None, seconds: int, clock: Clock = time.time
) -> list[ApplicationReport]:
    """
    Return a report for each application that has jobs.

    Args:
        url: of Prometheus' instant queries.
        token: what it requires; None for nothing.
        seconds: the length of the time range, which ends now.
        clock: returns Unix seconds.

    Raises:
        CommandError: Prometheus does not answer.
    """
    now = clock()

    def query(expression: str) -> list[tuple[Mapping[str, str], float]]:
        return _query_prometheus(url, token, expression)

    runs = query(f"sum {_BY_JOB[:-1]}, outcome) ({_build_count_query(seconds)})")
    durations = "apscheduler_job_last_run_duration_seconds"
    # The gauge shows a run until the next one ends, so runs from before the range are left out.
    ended = " or ".join(
        f"apscheduler_job_last_{outcome}_timestamp_seconds > {now - seconds:.0f}"
        for outcome in ("success", "failure")
    )
    of_range = f"{durations} and ({ended})"
    slowest = _values_by_job(query(f"max {_BY_JOB} (max_over_time(({of_range})[{seconds}s:1m]))"))
    usual = _values_by_job(
        query(
            f"max {_BY_JOB} "
            f"(quantile_over_time(0.95, {durations}[{7 * 86_400}s] offset {seconds}s))"
        )
    )
    fired = query(
        f"max {_BY_ALERT} (max_over_time("
        f'ALERTS{{alertstate="firing", {_ALERT_MATCHERS}}}[{seconds}s]))'
    )
    firing = query(f'max {_BY_ALERT} (ALERTS{{alertstate="firing", {_ALERT_MATCHERS}}})')
    counts: dict[tuple[str, str, str], dict[str, int]] = defaultdict(dict)
    for labels, value in runs:
        if round(value) and labels.get("outcome") in OUTCOMES:
            counts[_job_key(labels)][labels["outcome"]] = round(value)
    jobs: dict[str, list[JobRunSummary]] = defaultdict(list)
    for key, of_job in counts.items():
        application, scheduler, job_id = key
        duration, before = slowest.get(key), usual.get(key)
        is_slow = (
            duration is not None
            and before is not None
            and duration > max(SLOW_FACTOR * before, before + MIN_SLOW_DIFFERENCE_SECONDS)
        )
        measured = (duration, before) if is_slow else (None, None)
        jobs[application].append(JobRunSummary(scheduler, job_id, of_job, *measured))
    still = {_alert_key(labels) for labels, _ in firing}
    alerts: dict[str, list[FiredAlert]] = defaultdict(list)
    for labels, _ in fired:
        alert = FiredAlert(*_alert_key(labels)[1:], is_firing=_alert_key(labels) in still)
        alerts[labels.get("job", "")].append(alert)
    return [
        ApplicationReport(
            name,
            sorted(jobs[name], key=lambda job: (not job.is_in_trouble, job[:2])),
            sorted(alerts[name], key=lambda alert: (not alert.is_firing, alert[:4])),
        )
        for name in sorted({*jobs, *alerts})
    ]


def _build_count_query(seconds: int) -> str:
    """
    Return a query for how many runs a time range has, those included with which a series began.

    The function `increase` ignores the first value of a series. So that counts from before the
    range are not taken for new ones, such a series counts only if its process was scraped before,
    or has started since. The dashboards do the same.
    """
    runs, start = "apscheduler_job_runs_total", "apscheduler_scheduler_start_timestamp_seconds"
    known = f"{start} offset {seconds}s or last_over_time({start}[{seconds}s]) > time() - {seconds}"
    return (
        f"(last_over_time({runs}[{seconds}s]) unless {runs} offset {seconds}s"
        f" and on (job, instance, scheduler) ({known})) or increase({runs}[{seconds}s])"
    )


def _query_prometheus(
    url: str, token: str | None, expression: str
) -> list[tuple[Mapping[str, str], float]]:
    advice = "Pass the address of Prometheus"
    answer = fetch_json(
        url,
        token,
        [("query", expression)],
        advice=advice,
        statuses=(HTTPStatus.UNPROCESSABLE_ENTITY, HTTPStatus.BAD_REQUEST),
    )
    try:
        if answer["status"] != "success":
            msg = f"Prometheus cannot answer: {answer['error']}"
            raise CommandError(msg)
        series = answer["data"]["result"]
        values = [(each["metric"], float(each["value"][1])) for each in series]
    except (LookupError, TypeError, ValueError) as error:
        msg = f"{url} does not answer queries of Prometheus. {advice}."
        raise CommandError(msg) from error
    return [(labels, value) for labels, value in values if math.isfinite(value)]


def _job_key(labels: Mapping[str, str]) -> tuple[str, str, str]:
    return labels.get("job", ""), labels.get("scheduler", ""), labels.get("job_id", "")


def _values_by_job(
    series: Sequence[tuple[Mapping[str, str], float]],
) -> dict[tuple[str, str, str], float]:
    return {_job_key(labels): value for labels, value in series}


def _alert_key(labels: Mapping[str, str]) -> tuple[str, str, str, str, str]:
    application, scheduler, job_id = _job_key(labels)
    return application, labels.get("alertname", ""), labels.get("severity", ""), scheduler, job_id
