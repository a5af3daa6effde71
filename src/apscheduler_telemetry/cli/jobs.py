"""
``apscheduler-telemetry jobs``: write the jobs of a running process as ``jobs.yml``.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from apscheduler_telemetry.cli.client import (
    add_address_arguments,
    complete_url,
    fetch_text,
    read_token,
)
from apscheduler_telemetry.cli.errors import CommandError
from apscheduler_telemetry.cli.expected_jobs import ExpectedJob, format_jobs, quote
from apscheduler_telemetry.cli.output import write_output
from apscheduler_telemetry.cli.yaml_library import import_yaml
from apscheduler_telemetry.core.labels import OVERFLOW

NEXT_RUN = "apscheduler_job_next_run_timestamp_seconds"
JOB_INFO = "apscheduler_job_info"
ALERT_INFO = "apscheduler_job_alert_info"
SCHEDULER_INFO = "apscheduler_scheduler_info"
_METRICS = (NEXT_RUN, JOB_INFO, ALERT_INFO, SCHEDULER_INFO)

_ADVICE = "Pass the address at which Prometheus scrapes the application, with its path"
_NO_NEXT_RUN = "has no next run now: it is paused, or was removed"
_RUNS_ONCE = "runs only once"
_OVERFLOW = "stands for all jobs above the limit of the label job_id: see max_labels="


class RunningJob(NamedTuple):
    """
    A job that a process shows.

    Attributes:
        job: the job.
        reason: why it is not expected to have a next run always; None if it is.
    """

    job: ExpectedJob
    reason: str | None


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the parser of this command."""
    parser = commands.add_parser(
        "jobs",
        help="write the jobs of a running process as jobs.yml, for `export --expect`",
        description="Read the jobs of a running process, and write them as YAML, for the option "
        "--expect of `export`.",
        epilog="Exit status: 0, or 1 if the process does not answer or has no jobs.",
    )
    add_address_arguments(parser)
    parser.add_argument(
        "--application",
        metavar="NAME",
        required=True,
        help="the label `job` that Prometheus gives its metrics: the job_name of the scrape "
        "configuration, or the service name by OTLP",
    )
    parser.set_defaults(run_command=run_jobs_command)


def run_jobs_command(options: argparse.Namespace) -> None:
    """Read the metrics and print the jobs."""
    if not options.application.strip():
        msg = "--application must not be empty. Pass the label `job` of its metrics in Prometheus."
        raise CommandError(msg)
    import_yaml()  # so that a missing one is said first
    url = complete_url(options.url)
    lines = _select_lines(fetch(url, read_token(options.bearer_token_file)))
    if not any(line.startswith(f"{SCHEDULER_INFO}{{") for line in lines):
        msg = f"{url} does not show metrics of apscheduler-telemetry. {_ADVICE}."
        raise CommandError(msg)
    jobs = parse_jobs(lines, options.application)
    if all(job.reason for job in jobs):
        msg = f"{url} shows no job that has a next run and runs more than once."
        raise CommandError(msg)
    write_output(_format(jobs, url))


def fetch(url: str, token: str | None) -> str:
    """
    Return the metrics of an address.

    Raises:
        CommandError: there is no answer, or another one than the metrics.
    """
    query = [("name[]", name) for name in _METRICS]
    return fetch_text(url, token, query, content_type="text/plain;version=0.0.4", advice=_ADVICE)


def _select_lines(text: str) -> list[str]:
    """Return the lines of our metrics; only line feeds end them, as labels have other breaks."""
    starts = tuple(f"{name}{{" for name in _METRICS)
    return [line for line in text.split("\n") if line.startswith(starts)]


def parse_jobs(lines: Iterable[str], application: str) -> list[RunningJob]:
    """
    Return the jobs of an exposition, sorted by scheduler and job.

    Raises:
        CommandError: a line cannot be read.
    """
    samples = _parse(lines)
    once: dict[tuple[str, str], bool] = {}
    for labels, _ in samples[JOB_INFO]:
        trigger = labels.get("trigger", "")
        is_date = trigger == "date" or trigger.startswith("date[")
        once[_key(labels)] = is_date and once.get(_key(labels), True)
    info = {_key(labels): labels for labels, _ in samples[ALERT_INFO]}
    next_runs: dict[tuple[str, str], float] = {}
    for labels, value in samples[NEXT_RUN]:  # of several processes, if they are shown together
        next_runs[_key(labels)] = max(value, next_runs.get(_key(labels), 0))
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
        if job_id == OVERFLOW:
            reason = _OVERFLOW
        elif once.get(key):
            reason = _RUNS_ONCE
        elif not next_run > 0:
            reason = _NO_NEXT_RUN
        jobs.append(RunningJob(job, reason))
    return jobs


def _parse(lines: Iterable[str]) -> dict[str, list[tuple[dict[str, str], float]]]:
    from prometheus_client.parser import text_string_to_metric_families  # noqa: PLC0415  # slow

    samples: dict[str, list[tuple[dict[str, str], float]]] = {name: [] for name in _METRICS}
    try:
        for family in text_string_to_metric_families("\n".join(lines) + "\n"):
            for sample in family.samples:
                samples[sample.name].append((dict(sample.labels), float(sample.value)))
        for labels, _ in samples[NEXT_RUN]:
            _key(labels)
    except Exception as error:  # the parser raises whatever a wrong line leads to
        msg = f"the metrics cannot be read: {error}"
        raise CommandError(msg) from error
    return samples


def _key(labels: Mapping[str, str]) -> tuple[str, str]:
    return labels["scheduler"], labels["job_id"]


def _format(jobs: Sequence[RunningJob], url: str) -> str:
    parts = [
        f"# Read from {url.partition('?')[0]} by `apscheduler-telemetry jobs`.\n",
        "# Remove the jobs that need not exist always, and keep this file in version control.\n",
    ]
    for scheduler in dict.fromkeys(each.job.scheduler for each in jobs):
        of_scheduler = [each for each in jobs if each.job.scheduler == scheduler]
        expected = [each.job for each in of_scheduler if each.reason is None]
        if expected:
            parts.append(format_jobs(expected))
        parts += [
            f"# Left out of scheduler {quote(scheduler)}, because it {each.reason}:\n"
            f"# - job_id: {quote(each.job.job_id)}\n"
            for each in of_scheduler
            if each.reason
        ]
    return "".join(parts)
