"""Delta temporality, and users' views of the instruments."""

from __future__ import annotations

import time
from typing import Any

import pytest

pytest.importorskip(
    "opentelemetry.sdk.metrics",
    reason="the OpenTelemetry SDK is not installed: it comes with the extra 'otlp'",
)

from opentelemetry.sdk.metrics.export import AggregationTemporality, ExponentialHistogram
from opentelemetry.sdk.metrics.view import (
    DropAggregation,
    ExplicitBucketHistogramAggregation,
    ExponentialBucketHistogramAggregation,
    View,
)

from tests.helpers import jobs
from tests.helpers.meter_provider import DELTA, Sdk
from tests.helpers.rigs import hand_driven_rig


class TestTemporality:
    def test_totals_are_cumulative_by_default(self) -> None:
        """By default, totals are cumulative since the start."""
        otel = Sdk()
        with hand_driven_rig(telemetry={"meter_provider": otel.provider}) as rig:
            rig.add(jobs.nothing, "interval", seconds=10)
            for number in (1, 2):
                rig.after(10)
                rig.settle()
                assert otel.runs() == {"success": number}
            [point] = otel.points("job.run.duration").values()
            assert point.count == 2
            assert otel.runs() == {"success": 2}

    def test_delta_reports_what_is_new(self) -> None:
        """With delta temporality, counters and histograms have only what is new."""
        otel = Sdk(preferred_temporality=DELTA)
        with hand_driven_rig(telemetry={"meter_provider": otel.provider}) as rig:
            rig.add(jobs.nothing, "interval", seconds=10)
            for _ in range(2):
                rig.after(10)
                rig.settle()
                found = otel.collect()
                runs = found["apscheduler.job.runs"].data
                assert runs.aggregation_temporality == AggregationTemporality.DELTA
                assert sum(point.value for point in runs.data_points) == 1
                [point] = found["apscheduler.job.run.duration"].data.data_points
                assert point.count == 1
            assert otel.runs() == {}
            assert otel.values("job.next_run.timestamp") == {"job": rig.clock.now.timestamp() + 10}

    def test_another_provider_starts_at_0(self) -> None:
        """Another provider, as in another process, starts at 0 with its own start time."""
        started = []
        for _ in range(2):
            otel = Sdk()
            with hand_driven_rig(telemetry={"meter_provider": otel.provider}) as rig:
                rig.add(jobs.nothing)
                rig.after(0)
                rig.settle()
                before = time.time_ns()
                [point] = otel.points("job.run.duration").values()
            assert point.count == 1
            started.append(point.start_time_unix_nano)
            assert before - 10**15 < point.start_time_unix_nano <= point.time_unix_nano


class TestViews:
    @staticmethod
    def collect(*views: View) -> dict[str, Any]:
        otel = Sdk(views=views)
        with hand_driven_rig(telemetry={"meter_provider": otel.provider}) as rig:
            for name in ("first", "second"):
                rig.add(jobs.nothing, "interval", seconds=10, id=name)
            rig.after(10)
            rig.settle()
            return otel.collect()

    def test_dropped_metric_is_gone(self) -> None:
        """A metric that a view drops is not exported; all others are."""
        found = self.collect(View(instrument_name="*.info", aggregation=DropAggregation()))

        assert "apscheduler.job.info" not in found
        assert {"apscheduler.job.runs", "apscheduler.scheduler.up"} <= found.keys()

    def test_view_may_rename_a_metric(self) -> None:
        """A view may rename a metric."""
        found = self.collect(View(instrument_name="apscheduler.job.runs", name="jobs.done"))

        assert "apscheduler.job.runs" not in found
        assert sum(point.value for point in found["jobs.done"].data.data_points) == 2

    def test_buckets_of_a_view_win(self) -> None:
        """Buckets of a view replace those of this package."""
        aggregation = ExplicitBucketHistogramAggregation((7.0,))
        found = self.collect(
            View(instrument_name="apscheduler.job.run.duration", aggregation=aggregation)
        )

        points = found["apscheduler.job.run.duration"].data.data_points
        assert [tuple(point.explicit_bounds) for point in points] == [(7.0,), (7.0,)]
        assert [tuple(point.bucket_counts) for point in points] == [(1, 0), (1, 0)]

    @pytest.mark.parametrize("name", ["job.run.duration", "job.start_delay"])
    def test_view_may_make_a_histogram_exponential(self, name: str) -> None:
        """With such a view, both histograms are exponential; Prometheus calls that native."""
        aggregation = ExponentialBucketHistogramAggregation()
        found = self.collect(View(instrument_name=f"apscheduler.{name}", aggregation=aggregation))

        data = found[f"apscheduler.{name}"].data
        assert isinstance(data, ExponentialHistogram)
        assert [point.count for point in data.data_points] == [1, 1]

    @pytest.mark.parametrize(
        ("name", "total"), [("job.runs", 2), ("job.running", 0), ("executor.running", 0)]
    )
    def test_view_without_the_job_adds_up(self, name: str, total: int) -> None:
        """Without the job's attribute, counts are summed over all jobs."""
        view = View(instrument_name=f"apscheduler.{name}", attribute_keys={"scheduler"})
        found = self.collect(view)

        [point] = found[f"apscheduler.{name}"].data.data_points
        assert (dict(point.attributes), point.value) == ({"scheduler": "default"}, total)
