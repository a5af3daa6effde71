"""Read what happened from Prometheus or /metrics, and the alerts from Alertmanager."""

import json
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any, ClassVar

from prometheus_client.parser import text_string_to_metric_families

Data = dict[str, dict[Any, float]]
"""By the names of `QUERIES`, the values by scheduler and job, and by outcome for runs."""

QUERIES = {
    "runs": "sum by (scheduler, job_id, outcome) (apscheduler_job_runs_total)",
    "p95": "histogram_quantile(0.95, sum by (scheduler, job_id, le)"
    " (rate(apscheduler_job_run_duration_seconds_bucket[1m])))",
    "next_run": "max by (scheduler, job_id) (apscheduler_job_next_run_timestamp_seconds)",
    "running_since": "max by (scheduler, job_id) (apscheduler_job_running_since_timestamp_seconds)",
}


class Prometheus:
    """Reads what Prometheus has scraped."""

    has_quantiles = True

    def __init__(self, url: str) -> None:
        self.url = url

    def read(self) -> Data:
        """Return the values of all queries."""
        return {name: dict(self._query(query)) for name, query in QUERIES.items()}

    def _query(self, query: str) -> Iterator[tuple[Any, float]]:
        url = f"{self.url}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
        for series in json.loads(fetch(url))["data"]["result"]:
            labels = series["metric"]
            key = (labels.get("scheduler", ""), labels.get("job_id", ""))
            value = float(series["value"][1])
            yield ((*key, labels["outcome"]) if "outcome" in labels else key), value


class Metrics:
    """Reads /metrics itself, where there is no Prometheus."""

    has_quantiles = False
    names: ClassVar = {
        "apscheduler_job_runs_total": "runs",
        "apscheduler_job_next_run_timestamp_seconds": "next_run",
        "apscheduler_job_running_since_timestamp_seconds": "running_since",
    }

    def __init__(self, url: str) -> None:
        self.url = url

    def read(self) -> Data:
        """Return what `Prometheus.read` does, without quantiles."""
        found: Data = {name: {} for name in QUERIES}
        for family in text_string_to_metric_families(fetch(self.url)):
            for sample in family.samples:
                if sample.name in self.names:
                    key: Any = (sample.labels["scheduler"], sample.labels["job_id"])
                    if "outcome" in sample.labels:
                        key = (*key, sample.labels["outcome"])
                    found[self.names[sample.name]][key] = sample.value
        return found


class Alertmanager:
    """
    Remembers which alerts an Alertmanager has had, as it does not list those that have resolved.

    Attributes:
        has_resolved: by the name of the alert, and by its job or scheduler.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.has_resolved: dict[tuple[str, str], bool] = {}

    def read(self) -> None:
        """Read which alerts there are now."""
        self.has_resolved = dict.fromkeys(self.has_resolved, True)
        for alert in json.loads(fetch(f"{self.url}/api/v2/alerts")):
            labels = alert["labels"]
            about = labels.get("job_id") or labels.get("scheduler", "")
            self.has_resolved[labels["alertname"], about] = False


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
