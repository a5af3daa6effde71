"""
Writes the jobs of a running process as ``jobs.yml``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from apscheduler_telemetry.cli.client import complete_url
from apscheduler_telemetry.cli.errors import CommandError
from apscheduler_telemetry.cli.expected_jobs import ExpectedJob, format_jobs_as_yaml, quote_as_yaml
from apscheduler_telemetry.cli.metrics import (
    ALERT_INFO_METRIC,
    JOB_INFO_METRIC,
    NEXT_RUN_METRIC,
    SCHEDULER_INFO_METRIC,
    SCRAPE_ADVICE,
    JobKey,
    SamplesByMetric,
    fetch_samples,
    job_key_of,
)
from apscheduler_telemetry.cli.yaml_library import import_yaml
from apscheduler_telemetry.core.labels import OVERFLOW_LABEL

_REASON_NO_NEXT_RUN = "has no next run now: it is paused, or was removed"
_REASON_RUNS_ONCE = "runs only once"
_REASON_ABOVE_LABEL_LIMIT = (
    "stands for all jobs above the limit of the label job_id: see max_labels="
)


class ListedJob(NamedTuple):
    """
    A job that a process shows.

    Attributes:
        job: the job.
        reason_left_out: why it is not expected to have a next run always; None if it is.
    """

    job: ExpectedJob
    reason_left_out: str | None


def create_jobs_file(address: str, token: str | None, application: str) -> str:
    """
    Return the content of ``jobs.yml`` for the jobs of a running process.

    Args:
        address: of the process, as the user has given it.
        token: what the process requires; None for nothing.
        application: the label ``job`` of its metrics in Prometheus.

    Raises:
        CommandError: there is no answer, or it shows no jobs that are always expected.
    """
    import_yaml()  # so that a missing one is said first
    url = complete_url(address)
    samples = fetch_samples(
        url, token, (NEXT_RUN_METRIC, JOB_INFO_METRIC, ALERT_INFO_METRIC, SCHEDULER_INFO_METRIC)
    )
    if not samples[SCHEDULER_INFO_METRIC]:
        msg = f"{url} does not show metrics of apscheduler-telemetry. {SCRAPE_ADVICE}."
        raise CommandError(msg)
    jobs = _list_jobs(samples, application)
    if all(job.reason_left_out for job in jobs):
        msg = f"{url} shows no job that has a next run and runs more than once."
        raise CommandError(msg)
    return _format_jobs_file(jobs, url)


def _list_jobs(samples: SamplesByMetric, application: str) -> list[ListedJob]:
    """Return the jobs, sorted by scheduler and job."""
    once: dict[JobKey, bool] = {}
    for labels, _ in samples[JOB_INFO_METRIC]:
        trigger = labels.get("trigger", "")
        is_date = trigger == "date" or trigger.startswith("date[")
        once[job_key_of(labels)] = is_date and once.get(job_key_of(labels), True)
    info = {job_key_of(labels): labels for labels, _ in samples[ALERT_INFO_METRIC]}
    next_runs: dict[JobKey, float] = {}
    for labels, value in samples[
        NEXT_RUN_METRIC
    ]:  # of several processes, if they are shown together
        next_runs[job_key_of(labels)] = max(value, next_runs.get(job_key_of(labels), 0))
    jobs = []
    for key, next_run in sorted(next_runs.items()):
        scheduler, job_id = key
        alert_labels = info.get(key, {})
        job = ExpectedJob(
            application=application,
            scheduler=scheduler,
            job_id=job_id,
            severity=alert_labels.get("severity") or None,
            owner=alert_labels.get("owner") or None,
        )
        reason = None
        if job_id == OVERFLOW_LABEL:
            reason = _REASON_ABOVE_LABEL_LIMIT
        elif once.get(key):
            reason = _REASON_RUNS_ONCE
        elif not next_run > 0:
            reason = _REASON_NO_NEXT_RUN
        jobs.append(ListedJob(job, reason))
    return jobs


def _format_jobs_file(jobs: Sequence[ListedJob], url: str) -> str:
    parts = [
        f"# Read from {url.partition('?')[0]} by `apscheduler-telemetry jobs --yaml`.\n",
        "# Remove the jobs that need not exist always, and keep this file in version control.\n",
    ]
    for scheduler in dict.fromkeys(each.job.scheduler for each in jobs):
        of_scheduler = [each for each in jobs if each.job.scheduler == scheduler]
        expected = [each.job for each in of_scheduler if each.reason_left_out is None]
        if expected:
            parts.append(format_jobs_as_yaml(expected))
        parts += [
            f"# Left out of scheduler {quote_as_yaml(scheduler)}, because it "
            f"{each.reason_left_out}:\n"
            f"# - job_id: {quote_as_yaml(each.job.job_id)}\n"
            for each in of_scheduler
            if each.reason_left_out
        ]
    return "".join(parts)
