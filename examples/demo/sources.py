"""Read the jobs from Prometheus or /metrics, and the alerts from Alertmanager."""

import json
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from prometheus_client.parser import text_string_to_metric_families

Key = tuple[str, str]
"""Scheduler and job."""

QUERIES = {
    "runs": "sum by (scheduler, job_id, outcome) (apscheduler_job_runs_total)",
    "p95": "histogram_quantile(0.95, sum by (scheduler, job_id, le)"
    " (rate(apscheduler_job_run_duration_seconds_bucket[1m])))",
    "delay": "histogram_quantile(0.95, sum by (scheduler, job_id, le)"
    " (rate(apscheduler_job_start_delay_seconds_bucket[1m])))",
    "last_success": "max by (scheduler, job_id) (apscheduler_job_last_success_timestamp_seconds)",
    "next_run": "max by (scheduler, job_id) (apscheduler_job_next_run_timestamp_seconds)",
    "running_since": "max by (scheduler, job_id) (apscheduler_job_running_since_timestamp_seconds)",
}


class Prometheus:
    """Reads the table back through Prometheus' HTTP API."""

    has_quantiles = True

    def __init__(self, url: str) -> None:
        self.url = url

    def read(self) -> dict[str, dict[Any, float]]:
        """Return, by query, the values by scheduler and job (and outcome, for runs)."""
        return {name: dict(self._query(query)) for name, query in QUERIES.items()}

    def _query(self, query: str) -> Iterator[tuple[Any, float]]:
        url = f"{self.url}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
        for series in json.loads(fetch(url))["data"]["result"]:
            labels = series["metric"]
            key = (labels.get("scheduler", ""), labels.get("job_id", ""))
            value = float(series["value"][1])
            yield ((*key, labels["outcome"]) if "outcome" in labels else key), value


class Metrics:
    """Reads the table from /metrics itself, where there is no Prometheus."""

    has_quantiles = False
    names: ClassVar = {
        "apscheduler_job_runs_total": "runs",
        "apscheduler_job_last_success_timestamp_seconds": "last_success",
        "apscheduler_job_next_run_timestamp_seconds": "next_run",
        "apscheduler_job_running_since_timestamp_seconds": "running_since",
    }

    def __init__(self, url: str) -> None:
        self.url = url

    def read(self) -> dict[str, dict[Any, float]]:
        """Return what `Prometheus.read` does, without quantiles."""
        found: dict[str, dict[Any, float]] = {name: {} for name in QUERIES}
        for family in text_string_to_metric_families(fetch(self.url)):
            for sample in family.samples:
                if sample.name in self.names:
                    key: Any = (sample.labels["scheduler"], sample.labels["job_id"])
                    if "outcome" in sample.labels:
                        key = (*key, sample.labels["outcome"])
                    found[self.names[sample.name]][key] = sample.value
        return found


@dataclass
class Alert:
    """An alert that Alertmanager has, or had."""

    name: str
    severity: str
    about: str
    seen: float
    inhibited: bool = False
    resolved: bool = False


class Alertmanager:
    """Follows the alerts of an Alertmanager, and remembers those that have resolved."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.alerts: dict[str, Alert] = {}

    def read(self) -> list[Alert]:
        """Return all alerts that were ever seen, the latest first."""
        current = {
            found["fingerprint"]: found for found in json.loads(fetch(f"{self.url}/api/v2/alerts"))
        }
        for fingerprint, found in current.items():
            labels = found["labels"]
            about = labels.get("job_id") or labels.get("scheduler", "")
            alert = self.alerts.setdefault(
                fingerprint, Alert(labels["alertname"], labels["severity"], about, time.time())
            )
            alert.inhibited = bool(found["status"]["inhibitedBy"])
            alert.resolved = False
        for fingerprint in self.alerts.keys() - current.keys():
            self.alerts[fingerprint].resolved = True
        return sorted(self.alerts.values(), key=lambda alert: -alert.seen)


def fetch(url: str) -> str:
    """Return what `url` answers."""
    with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310  # loopback
        return str(answer.read().decode())


def answers(url: str) -> bool:
    """Return whether `url` answers with success."""
    try:
        fetch(url)
    except OSError:  # an HTTP status of an error as well
        return False
    return True
