"""
Dashboards and alert rules where Prometheus has native histograms, and no classic ones.

A real Prometheus scrapes them in the protobuf format, and evaluates both rule files.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

yaml = pytest.importorskip("yaml")

from examples.demo import speed
from tests.helpers import grafana_queries
from tests.helpers.grafana_queries import HISTOGRAMS, NAMES, Range, find
from tests.helpers.native_histograms import Series, bucket_bounds, serving
from tests.helpers.paths import ROOT
from tests.helpers.servers import Prometheus, configured_prometheus, required_program
from tests.helpers.waiting import wait_for_answer

pytestmark = pytest.mark.once

RULES = [
    ROOT / "alerts" / name for name in ("apscheduler.rules.yml", "apscheduler.native.rules.yml")
]
NATIVE = RULES[1]
RECORDED = [
    rule["record"]
    for group in yaml.safe_load(NATIVE.read_text())["groups"]
    for rule in group["rules"]
]

FASTER = 30
"""How much faster than in production the rules are. A grace of 60 seconds becomes 2 seconds."""
DURATION, LATE, PUNCTUAL = 4.0, 40.0, 0.5
"""Seconds: how long each run takes, and how late runs of two jobs start."""


def queries_of_histograms() -> list[Any]:
    """Return each query that reads a native histogram, or what is recorded of one."""
    return [
        pytest.param(
            name, panel["title"], target["refId"], id=f"{panel['title']}-{target['refId']}"
        )
        for name in NAMES
        for panel, target in grafana_queries.queries(grafana_queries.load(name))
        if {metric for metric, _ in grafana_queries.selectors(target["expr"])}
        & {*HISTOGRAMS, *RECORDED}
    ]


def test_all_that_is_recorded_is_read() -> None:
    """A rule or a dashboard reads each series that is recorded of native histograms."""
    readers = RULES[0].read_text() + "".join(
        target["expr"]
        for name in NAMES
        for _, target in grafana_queries.queries(grafana_queries.load(name))
    )
    assert [name for name in RECORDED if name not in readers] == []


def test_each_query_of_classic_buckets_also_reads_the_native_histogram() -> None:
    """A query of buckets reads the native histogram with the same labels, too."""
    asked = 0
    for name in NAMES:
        for _, target in grafana_queries.queries(grafana_queries.load(name)):
            selectors = list(grafana_queries.selectors(target["expr"]))
            for metric, matchers in selectors:
                if metric.endswith("_bucket"):
                    asked += 1
                    assert (metric.removesuffix("_bucket"), matchers) in selectors
    assert asked


def job(name: str, delay: float, now: float) -> list[Series]:
    """Return the series of a job of which five runs are known."""
    labels = {"scheduler": "main", "job_id": name}
    durations, delays = HISTOGRAMS
    return [
        Series(durations, labels, DURATION, is_histogram=True),
        Series(delays, labels, delay, is_histogram=True),
        Series("apscheduler_job_next_run_timestamp_seconds", labels, now + 9999),
        Series("apscheduler_job_last_run_duration_seconds", labels, 3 * DURATION),
        Series("apscheduler_job_runs_total", {**labels, "outcome": "success"}, 5),
    ]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Start a Prometheus that scrapes native histograms of two jobs."""
    binary = required_program("prometheus")
    directory = tmp_path_factory.mktemp("native")
    now = time.time()
    scheduler = Series("apscheduler_scheduler_start_timestamp_seconds", {"scheduler": "main"}, now)
    rules = [directory / path.name for path in RULES]
    for path, original in zip(rules, RULES, strict=True):
        path.write_text(speed.faster_rules(original.read_text(), FASTER))
    with contextlib.ExitStack() as stack:
        jobs = [*job("late", LATE, now), *job("punctual", PUNCTUAL, now)]
        port = stack.enter_context(serving([scheduler, *jobs]))
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(path) for path in rules],
            "scrape_configs": [
                {"job_name": "app", "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}
            ],
        }
        path = directory / "prometheus.yml"
        path.write_text(json.dumps(config))
        features = "native-histograms"
        yield stack.enter_context(configured_prometheus(binary, directory, path, features=features))


def ask(server: Prometheus, name: str, title: str, ref: str) -> list[dict[str, Any]]:
    """Return the answer of a dashboard's query, for the job that is late."""
    panel, target = find(name, title, ref)
    model = grafana_queries.variables(grafana_queries.load(name))
    chosen = {"application": "app", "scheduler": "main", "job_id": "late"}
    own = Range(30).values(panel)
    filled = grafana_queries.fill(target["expr"], model, chosen, own)
    result: list[dict[str, Any]] = server.api("query", query=filled)["result"]
    return result


@pytest.mark.integration
class TestDashboards:
    """Every panel of durations and delays has its answer."""

    @pytest.mark.parametrize(("name", "title", "ref"), queries_of_histograms())
    def test_query_has_the_known_answer(
        self, server: Prometheus, name: str, title: str, ref: str
    ) -> None:
        """Each query returns what follows from the observations, within their bucket."""
        if title == "Jobs that use the most workers":
            # A run of four seconds starts each second, which is when there is a scrape.
            expected = pytest.approx({"late": DURATION, "punctual": DURATION}, rel=0.3)

            def workers() -> bool:
                answers = ask(server, name, title, ref)
                found = {one["metric"]["job_id"]: float(one["value"][1]) for one in answers}
                return bool(found == expected)

            assert wait_for_answer(workers)
            return
        [answer] = wait_for_answer(lambda: ask(server, name, title, ref))
        if title == "Durations, all runs":
            [bucket] = answer["histogram"][1]["buckets"]
            bounds = tuple(float(bound) for bound in bucket[1:3])
            assert bounds == pytest.approx(bucket_bounds(DURATION))
        elif title == "Average start delay":
            assert float(answer["value"][1]) == pytest.approx((LATE + PUNCTUAL) / 2)
        else:
            low, high = bucket_bounds(LATE if title == "Start delay" else DURATION)
            assert low < float(answer["value"][1]) <= high


@pytest.mark.integration
class TestRules:
    """The alert rules read native histograms through what is recorded of them."""

    def test_late_job_has_an_alert_and_the_other_one_has_none(self, server: Prometheus) -> None:
        """APSchedulerStartDelayHigh fires for the job that is late, with its average delay."""
        firing = 'ALERTS{alertname="APSchedulerStartDelayHigh",alertstate="firing"}'
        alerts = wait_for_answer(lambda: server.query(firing))
        assert {labels["job_id"] for labels, _ in alerts} == {"late"}
        delays = server.query("apscheduler_job:mean_start_delay_seconds")
        assert {labels["job_id"]: value for labels, value in delays} == pytest.approx(
            {"late": LATE, "punctual": PUNCTUAL}
        )

    def test_usual_duration_is_the_average_of_the_first_runs(self, server: Prometheus) -> None:
        """What counts as usual is the average of the histogram, not the latest duration."""
        usual = 'apscheduler_job:usual_run_seconds{job_id="late"} < 2 * 4'
        assert wait_for_answer(lambda: server.value(usual)) == pytest.approx(DURATION)
