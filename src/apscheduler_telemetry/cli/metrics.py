"""
Reads the metrics of a running process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from apscheduler_telemetry.cli.client import fetch
from apscheduler_telemetry.cli.errors import CommandError

SCRAPE_ADVICE = "Pass the address at which Prometheus scrapes the application, with its path"

SCHEDULER_INFO_METRIC = "apscheduler_scheduler_info"
JOB_INFO_METRIC = "apscheduler_job_info"
ALERT_INFO_METRIC = "apscheduler_job_alert_info"
NEXT_RUN_METRIC = "apscheduler_job_next_run_timestamp_seconds"

SamplesByMetric = Mapping[str, Sequence[tuple[Mapping[str, str], float]]]
"""The labels and the value of each sample, by the name of the metric."""
JobKey = tuple[str, str]
"""The values of the labels ``scheduler`` and ``job_id``."""


def fetch_samples(
    url: str, token: str | None, names: Sequence[str], *, statuses: Sequence[int] = ()
) -> SamplesByMetric:
    """
    Return the samples of some metrics.

    Args:
        url: of `complete_url`.
        token: what the process requires; None for nothing.
        names: of gauges with the labels of schedulers or jobs.
        statuses: of HTTP that are allowed, besides 200.

    Returns:
        A list for each name, which is empty if the address shows no such metric.

    Raises:
        CommandError: there is no answer, or a sample cannot be read.
    """
    answer = fetch(
        url,
        token,
        [("name[]", name) for name in names],
        content_type="text/plain;version=0.0.4",
        advice=SCRAPE_ADVICE,
        statuses=statuses,
    )
    starts = tuple(f"{name}{{" for name in names)
    # Only line feeds end a line, as labels have other breaks.
    return _parse_samples(
        [line for line in answer.text.split("\n") if line.startswith(starts)], names
    )


def _parse_samples(lines: Sequence[str], names: Sequence[str]) -> SamplesByMetric:
    from prometheus_client.parser import text_string_to_metric_families  # noqa: PLC0415  # slow

    samples: dict[str, list[tuple[dict[str, str], float]]] = {name: [] for name in names}
    try:
        for family in text_string_to_metric_families("\n".join(lines) + "\n"):
            for sample in family.samples:
                samples[sample.name].append((dict(sample.labels), float(sample.value)))
    except Exception as error:  # the parser raises whatever a wrong line leads to
        raise _create_unreadable_error(error) from error
    return samples


def job_key_of(labels: Mapping[str, str]) -> JobKey:
    """
    Return to which job a sample belongs.

    Raises:
        CommandError: its labels do not say that.
    """
    try:
        return labels["scheduler"], labels["job_id"]
    except KeyError as error:
        raise _create_unreadable_error(error) from error


def _create_unreadable_error(error: Exception) -> CommandError:
    return CommandError(f"the metrics cannot be read: {error}")
