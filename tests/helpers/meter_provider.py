"""A meter provider for one test, and the metrics that it collects."""

from __future__ import annotations

from typing import Any

import pytest

sdk = pytest.importorskip(
    "opentelemetry.sdk.metrics",
    reason="the OpenTelemetry SDK is not installed: it comes with the extra 'otlp'",
)

import pytest
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader

from apscheduler_telemetry.core.records import JobSnapshot
from apscheduler_telemetry.export import otel_metrics
from tests.helpers.metrics import recorder_of

DELTA = dict.fromkeys(
    (sdk.Counter, sdk.Histogram, sdk.ObservableCounter), AggregationTemporality.DELTA
)


def job_of(rig: Any, label: str = "job") -> JobSnapshot:
    """Return the snapshot of a label."""
    job: JobSnapshot
    (job,) = [job for job in recorder_of(rig.telemetry).job_snapshots() if job.label == label]
    return job


Points = dict[frozenset[tuple[str, Any]], Any]


def by_name(data: Any) -> dict[str, Any]:
    """Return the metrics of a collection by name."""
    return {
        metric.name: metric
        for resource in (data.resource_metrics if data is not None else ())
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }


class Sdk:
    """A meter provider for one test, and what it collects."""

    def __init__(self, *, views: Any = (), other_readers: Any = (), **reader: Any) -> None:
        self.reader = InMemoryMetricReader(**reader)
        self.provider = sdk.MeterProvider(
            [self.reader, *other_readers], views=views, shutdown_on_exit=False
        )

    def collect(self) -> dict[str, Any]:
        """Return the metrics of one collection by name."""
        return by_name(self.reader.get_metrics_data())

    def points(self, name: str) -> Points:
        """Return the points of a metric by their attributes without ``scheduler``."""
        metric = self.collect().get(f"apscheduler.{name}")
        points = metric.data.data_points if metric is not None else []
        return {frozenset((k, v) for k, v in p.attributes.items() if k != "scheduler"): p
                for p in points}  # fmt: skip

    def values(self, name: str, label: str = "job_id") -> dict[Any, Any]:
        """Return the values of a metric by one of their attributes."""
        return {dict(key).get(label): point.value for key, point in self.points(name).items()}

    def runs(self, job_id: str = "job") -> dict[str, int]:
        """Return the runs of a job by outcome, without zeros."""
        found = {
            dict(key)["outcome"]: point.value
            for key, point in self.points("job.runs").items()
            if dict(key)["job_id"] == job_id and point.value
        }
        return dict(sorted(found.items()))


def logged_messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the logged messages, without the warning about an old API."""
    others = [record for record in caplog.records if record.name != otel_metrics.__name__]
    return [record.getMessage() for record in others]
