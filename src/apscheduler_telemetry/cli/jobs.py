"""
``apscheduler-telemetry jobs``: list the jobs of a running process, and how they are declared.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from apscheduler_telemetry.cli.client import add_process_parser, complete_url, read_token
from apscheduler_telemetry.cli.errors import UsageError
from apscheduler_telemetry.cli.health import describe_job_state, fetch_schedulers
from apscheduler_telemetry.cli.jobs_file import create_jobs_file
from apscheduler_telemetry.cli.metrics import (
    ALERT_INFO_METRIC,
    JOB_INFO_METRIC,
    JobKey,
    SamplesByMetric,
    fetch_samples,
    job_key_of,
)
from apscheduler_telemetry.cli.output import max_line_width, write_json, write_output
from apscheduler_telemetry.cli.table import (
    fit_columns,
    format_duration,
    format_table,
    format_time,
)
from apscheduler_telemetry.core.times import to_iso

DEADLINE_METRIC = "apscheduler_job_deadline_timestamp_seconds"
MIN_RECORDED_METRIC = "apscheduler_job_min_recorded"
EXPECTED_SECONDS_METRICS = {
    "grace": "apscheduler_job_grace_seconds",
    "max_duration": "apscheduler_job_max_duration_seconds",
    "min_duration": "apscheduler_job_min_duration_seconds",
}
"""What is expected in seconds, and its metrics, by the names of the arguments of `expect`."""
MAX_FAILURES_METRIC = "apscheduler_job_max_failures"

_TABLE_HEADER = (
    *("JOB", "STATE", "TRIGGER", "NEXT RUN", "LAST", "DURATION", "EXECUTOR", "JOB STORE"),
    *("FUNCTION", "SEVERITY", "OWNER", "EXPECTED"),
)
_LEAST_IMPORTANT_COLUMNS = _TABLE_HEADER[:1:-1]
"""Columns that a narrow terminal lacks, the first of them first. JOB and STATE always stay."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the parser of this command."""
    parser = add_process_parser(
        commands,
        "jobs",
        run_jobs_command,
        summary="list the jobs of a running process, and how they are declared",
        description="List the jobs of a running process by name, and how they are declared; times "
        "are UTC. With --yaml, write them as jobs.yml, for the option --expect of `export`.",
        epilog="Exit status: 0, 1 if the process does not answer, or has no jobs for --yaml, or 2 "
        "if the command line is wrong.",
    )
    parser.add_argument("--yaml", action="store_true", help="write jobs.yml, for `export --expect`")
    parser.add_argument(
        "--application",
        metavar="NAME",
        help="with --yaml: the label `job` that Prometheus gives its metrics, which is the "
        "job_name of the scrape configuration, or the service name by OTLP",
    )


def run_jobs_command(options: argparse.Namespace) -> None:
    """Read the jobs, and print them."""
    _check_options(options)
    token = read_token(options.bearer_token_file)
    if options.yaml:
        write_output(create_jobs_file(options.url, token, options.application))
        return
    jobs = _fetch_jobs(options.url, token)
    if options.json:
        write_json(jobs)
    else:
        write_output(
            "\n".join(_format_table(jobs, max_line_width()) if jobs else ["No jobs"]) + "\n"
        )


def _check_options(options: argparse.Namespace) -> None:
    if options.yaml and options.json:
        msg = "--yaml and --json exclude each other. Pass one of them."
    elif options.yaml and not (options.application or "").strip():
        msg = "--yaml needs --application NAME: the label `job` of the metrics in Prometheus."
    elif options.application is not None and not options.yaml:
        msg = "--application is only for --yaml. Pass both to write jobs.yml, or none of them."
    else:
        return
    raise UsageError(msg)


def _fetch_jobs(address: str, token: str | None) -> list[dict[str, Any]]:
    """Return the jobs of a process, by scheduler and name."""
    schedulers = fetch_schedulers(complete_url(address, "health"), token)
    names = (
        *(
            JOB_INFO_METRIC,
            ALERT_INFO_METRIC,
            DEADLINE_METRIC,
            MIN_RECORDED_METRIC,
            MAX_FAILURES_METRIC,
        ),
        *EXPECTED_SECONDS_METRICS.values(),
    )
    # A process whose metrics go elsewhere, as by OTLP, has no such page.
    statuses = (HTTPStatus.NOT_FOUND,)
    samples = fetch_samples(complete_url(address, "metrics"), token, names, statuses=statuses)
    declared = _read_declarations(samples)
    jobs = [
        {
            "scheduler": str(scheduler["name"]),
            "job_id": job["id"],
            "state": describe_job_state(job),
            "trigger": job["trigger"],
            "next_run": job["next_run"],
            "last_outcome": job["last_outcome"],
            "last_duration": job["last_duration"],
            **_EMPTY_DECLARATION,
            **declared.get((scheduler["name"], job["id"]), {}),
        }
        for scheduler in schedulers
        for job in scheduler["jobs"]
    ]
    return sorted(jobs, key=lambda job: (job["scheduler"], job["job_id"]))


_EMPTY_DECLARATION: Mapping[str, Any] = {
    **dict.fromkeys(("name", "function", "executor", "jobstore")),
    **dict.fromkeys(("severity", "owner", "runbook_url")),
    "expected": {},
}


def _read_declarations(samples: SamplesByMetric) -> dict[JobKey, dict[str, Any]]:
    """Return what the metrics say of each job."""
    declared: dict[JobKey, dict[str, Any]] = {}
    for labels, _ in samples[JOB_INFO_METRIC]:
        declared[job_key_of(labels)] = {
            "name": labels.get("name"),
            "function": labels.get("func"),
            "executor": labels.get("executor"),
            "jobstore": labels.get("jobstore"),
            "expected": {},
        }
    for labels, _ in samples[ALERT_INFO_METRIC]:
        texts = {name: labels.get(name) or None for name in ("severity", "owner", "runbook_url")}
        declared.get(job_key_of(labels), {}).update(texts)
    expected = {key: job["expected"] for key, job in declared.items()}
    for name, metric in EXPECTED_SECONDS_METRICS.items():
        for labels, value in samples[metric]:
            expected.get(job_key_of(labels), {})[name] = value
    for labels, value in samples[DEADLINE_METRIC]:
        expected.get(job_key_of(labels), {})["deadline"] = to_iso(value)
    for labels, value in samples[MAX_FAILURES_METRIC]:
        expected.get(job_key_of(labels), {})["max_failures"] = (
            int(value) if value.is_integer() else value
        )
    for labels, value in samples[MIN_RECORDED_METRIC]:
        least = expected.get(job_key_of(labels), {}).setdefault("min_recorded", {})
        least[labels.get("quantity", "")] = value
    return declared


def _format_table(jobs: Sequence[dict[str, Any]], width: int | None) -> list[str]:
    """Return the lines of the table, without columns that say nothing of any job."""
    names_scheduler = len({job["scheduler"] for job in jobs}) > 1
    rows = [_format_job(job, names_scheduler=names_scheduler) for job in jobs]
    used = [
        number
        for number, name in enumerate(_TABLE_HEADER)
        if name not in _LEAST_IMPORTANT_COLUMNS or any(row[number] for row in rows)
    ]
    header, *cells = [[row[number] for number in used] for row in (_TABLE_HEADER, *rows)]
    left_out = [name for name in _LEAST_IMPORTANT_COLUMNS if name in header]
    return format_table(*fit_columns(header, cells, width, left_out))


def _format_job(job: dict[str, Any], *, names_scheduler: bool) -> Sequence[str]:
    return (
        f"{job['scheduler']}/{job['job_id']}" if names_scheduler else job["job_id"],
        job["state"],
        str(job["trigger"] or ""),
        format_time(job["next_run"]),
        job["last_outcome"] or "",
        format_duration(job["last_duration"]),
        job["executor"] or "",
        job["jobstore"] or "",
        job["function"] or "",
        job["severity"] or "",
        job["owner"] or "",
        _format_expected(job["expected"]),
    )


def _format_expected(expected: Mapping[str, Any]) -> str:
    """Return what is expected of the runs of a job, by the names of the arguments of `expect`."""
    texts = []
    for name, value in expected.items():
        if name in EXPECTED_SECONDS_METRICS:
            texts.append(f"{name}={format_duration(value)}")
        elif name == "deadline":
            texts.append(f"{name}={format_time(value)}")
        elif name == "min_recorded":
            texts += [f"{name}[{quantity}]={least:g}" for quantity, least in value.items()]
        else:
            texts.append(f"{name}={value}")
    return ", ".join(texts)
