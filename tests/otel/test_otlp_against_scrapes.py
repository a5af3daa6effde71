"""
Metrics by OTLP compared with those of ``/metrics``: series, rules and dashboards.

The application `metrics_scraped_and_sent` has one page with both: what its registry shows, and what
arrived by OTLP at the same moment, in Prometheus' translation. A real Prometheus scrapes that page,
so each query must have two equal results.
"""

from __future__ import annotations

import functools
import json
import math
import runpy
import shutil
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip(
    "opentelemetry.exporter.otlp.proto.grpc",
    reason="the OTLP exporter is not installed: it comes with the extra 'otlp'",
)
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse

from tests.helpers import grafana_queries
from tests.helpers.grafana_queries import Range, every_query, find
from tests.helpers.otlp_to_prometheus import metric_name, series
from tests.helpers.paths import ROOT
from tests.helpers.servers import Prometheus, configured_prometheus, get, running_process
from tests.helpers.waiting import wait_for_answer

SCRAPED, SENT = "shop", "shop-otlp"
RANGE = Range(seconds=10, scrape=2)
OUTCOMES = {"success", "error", "missed", "skipped", "coalesced", "lost"}
OF_SCRAPES = {"Memory", "CPU", "File descriptors", "Scrape duration", "Series"}
"""Panels about the process and its scrapes, which a push does not contain."""

pytestmark = pytest.mark.integration

Answer = dict[frozenset[tuple[str, str]], list[float]]


class TestTranslation:
    """The translation that this file uses, compared with documented examples."""

    @pytest.mark.parametrize(
        ("name", "unit", "kind", "expected"),
        [
            ("http.client.duration", "s", "histogram", "http_client_duration_seconds"),
            ("system.filesystem.usage", "By", "gauge", "system_filesystem_usage_bytes"),
            ("system.network.dropped", "{packets}", "gauge", "system_network_dropped"),
            ("system.memory.utilization", "1", "gauge", "system_memory_utilization_ratio"),
            ("(lambda).function.executions(#)", "", "gauge", "lambda_function_executions"),
            ("http.requests", "{request}", "counter", "http_requests_total"),
        ],
    )  # fmt: skip
    def test_names_and_units_are_translated_as_documented(
        self, name: str, unit: str, kind: str, expected: str
    ) -> None:
        """Names and units are translated as OpenTelemetry's documentation says."""
        gauge, monotonic = kind == "gauge", kind == "counter"
        assert metric_name(name, unit, gauge=gauge, monotonic=monotonic) == expected


class Both:
    """An application whose page has both exports, and a Prometheus that scrapes it."""

    def __init__(self, url: str, prometheus: Prometheus) -> None:
        self.url = url
        self.prometheus = prometheus

    def page(self, path: str = "metrics") -> str:
        """Return a page; the application responds with an error if its two exports differ."""
        status, body = get(f"{self.url}/{path}")
        assert status == 200, body
        return body

    def answers(self, expression: str, at: float, step: float | None = None) -> Answer:
        """Return the values of a query, ``job`` left out."""
        moment = {"time": str(at)}
        if step is not None:
            moment = {"start": str(at - RANGE.seconds), "end": str(at), "step": str(step)}
        path = "query" if step is None else "query_range"
        found = self.prometheus.api(path, query=expression, **moment)["result"]
        answers = {}
        for one in found:
            metric = {k: v for k, v in one["metric"].items() if k != "job"}
            if "le" in metric:  # 1 by OTLP, 1.0 from /metrics
                metric["le"] = str(float(metric["le"]))
            labels = frozenset(metric.items())
            values = [float(v) for _, v in (one["values"] if "values" in one else [one["value"]])]
            # Only /metrics has histograms of jobs that never ran, with empty buckets, whose
            # quantiles are not numbers.
            if not (all(map(math.isnan, values)) or ("le" in metric and not any(values))):
                answers[labels] = values
        return answers

    def ranges_begin_after_first_runs(self) -> bool:
        """
        Return whether all series that begin with a run began before the time range of the panels.

        By OTLP, those of a histogram begin with the first run, and in a scrape those of an outcome.
        There is no zero before it, so that rates over the first run differ.
        """
        began = (
            f'count(apscheduler_job_start_delay_seconds_count{{job="{SENT}",instance="one"}})',
            f'count(apscheduler_job_runs_total{{job="{SCRAPED}",instance="one"}})',
        )
        now = self.moment()
        return all(
            self.answers(count, now) == self.answers(count, now - 2 * RANGE.seconds)
            for count in began
        )

    def moment(self) -> float:
        """Return a time for which all samples have arrived."""
        return self.prometheus.value('timestamp(up{job="both"})') - 1

    def ask(self, name: str, title: str, ref: str, at: float, **chosen: Any) -> Answer:
        """Return the result of a panel's query."""
        panel, target = find(name, title, ref)
        model = grafana_queries.variables(grafana_queries.load(name))
        values = {key: chosen.get(key, [grafana_queries.ALL]) for key in model}
        expression = grafana_queries.fill(target["expr"], model, values, RANGE.values(panel))
        return self.answers(
            expression, at, None if target.get("instant") else RANGE.interval(panel)
        )


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    """Start the application and Prometheus; start and stop a second application twice."""
    binary = shutil.which("prometheus")
    if binary is None:
        pytest.skip("prometheus is not installed")
    pytest.importorskip("yaml")
    directory = tmp_path_factory.mktemp("exports")
    faster_rules = runpy.run_path(str(ROOT / "examples" / "demo" / "speed.py"))["faster_rules"]
    rules = directory / "rules.yml"
    rules.write_text(faster_rules((ROOT / "alerts" / "apscheduler.rules.yml").read_text(), 30))
    log = directory / "application.log"
    with running_process(
        [sys.executable, "-m", "tests.applications.metrics_scraped_and_sent"], log, cwd=ROOT
    ) as process:

        def port() -> int:
            assert process.poll() is None, log.read_text()
            return int(log.read_text().split("\n")[0])

        url = f"http://127.0.0.1:{wait_for_answer(lambda: _port(port))}"
        config = directory / "prometheus.yml"
        config.write_text(
            json.dumps(
                {
                    "global": {"scrape_interval": "2s", "evaluation_interval": "2s"},
                    "rule_files": [str(rules)],
                    "scrape_configs": [
                        {
                            "job_name": "both",
                            "honor_labels": True,
                            "scrape_timeout": "2s",
                            "static_configs": [{"targets": [url.removeprefix("http://")]}],
                        }
                    ],
                }
            )
        )
        with configured_prometheus(binary, directory, config) as server:
            pair = Both(url, server)
            next_runs = 'apscheduler_job:promised_run_timestamp_seconds{scheduler="doomed"}'
            for _ in range(2):
                pair.page("start")
                wait_for_answer(lambda: len(server.query(next_runs)) == 2)
                pair.page("stop")
            yield pair


def _port(port: Any) -> int:
    try:
        return int(port())
    except ValueError as error:  # nothing printed yet
        raise LookupError from error


class TestSeries:
    def test_series_by_otlp_and_by_scrape_are_equal(self, both: Both) -> None:
        """Each series of `/metrics` arrives by OTLP, with its value and type."""

        def outcomes() -> set[str]:
            families = parse(both.page())  # type: ignore[no-untyped-call]
            return {
                sample.labels["outcome"]
                for family in families
                for sample in family.samples
                if sample.name == "apscheduler_job_runs_total"
                and sample.labels["job"] == SENT
                and sample.value
            }

        assert wait_for_answer(lambda: outcomes() >= OUTCOMES)

    def test_resource_becomes_job_instance_and_target_info(self, both: Both) -> None:
        """The resource becomes `job`, `instance` and `target_info`."""
        families = parse(both.page())  # type: ignore[no-untyped-call]
        [(labels, value)] = [
            (dict(labels), value)
            for (name, labels), value in series(families).items()
            if name == "target_info"
        ]
        assert (labels["job"], labels["instance"], value) == (SENT, "one", 1)
        assert labels["telemetry_sdk_language"] == "python"

    def test_exemplars_by_otlp_and_by_scrape_are_equal(self, both: Both) -> None:
        """Exemplars by OTLP, which are those since the previous export, are also in `/metrics`."""

        def exemplars() -> list[dict[Any, Any]]:
            families = list(parse(both.page()))  # type: ignore[no-untyped-call]
            by_job = [
                {
                    (s.labels["job_id"], float(s.labels["le"])): s.exemplar
                    for family in families
                    for s in family.samples
                    if s.exemplar and s.labels["job"] == job
                    and s.name == "apscheduler_job_run_duration_seconds_bucket"
                }
                for job in (SENT, SCRAPED)
            ]  # fmt: skip
            return by_job if by_job[0] else []  # Prometheus has just had them

        sent, scraped = wait_for_answer(exemplars)
        for key, exemplar in sent.items():
            assert (scraped[key].labels, scraped[key].value) == (exemplar.labels, exemplar.value)


@pytest.fixture(scope="module")
def at(both: Both) -> float:
    """Wait until the alerts fire, and return a time that is past."""
    wanted = {"APSchedulerMissedRun", "APSchedulerJobFailing", "APSchedulerJobStuck"}

    def firing() -> bool:
        alerts = both.prometheus.query('ALERTS{alertstate="firing"}')
        return wanted <= {labels["alertname"] for labels, _ in alerts}

    wait_for_answer(firing, 90)
    fired = time.time()
    return wait_for_answer(lambda: max(0.0, both.moment() - fired)) + fired


class TestRules:
    def test_recording_rules_record_the_same(self, both: Both, at: float) -> None:
        """Each recording rule has the same series by scrape and by OTLP."""
        recorded = [
            both.answers(f'{{__name__=~"apscheduler.*:.*",job="{job}"}}', at)
            for job in (SCRAPED, SENT)
        ]
        assert recorded[0] == recorded[1]
        assert len({dict(labels)["__name__"] for labels in recorded[0]}) > 5

    def test_alerts_fire_for_both(self, both: Both, at: float) -> None:
        """The same alerts are pending and firing by scrape and by OTLP."""
        alerts = [both.answers(f'ALERTS{{job="{job}"}}', at) for job in (SCRAPED, SENT)]
        assert alerts[0] == alerts[1]
        names = {dict(labels)["alertname"] for labels in alerts[0]}
        assert names >= {"APSchedulerJobStuck", "APSchedulerJobFailing"}

    @pytest.mark.timeout(300)  # a minute until all ranges begin after the first runs, and its end
    def test_dashboards_show_the_same(self, both: Both) -> None:
        """
        Each query of each dashboard has the same result by scrape and by OTLP.

        While it has not, it is asked again, as an outcome may have its first run meanwhile.
        """
        jobs = [("main", job) for job in ("report", "fails", "hangs", "folded")] + [
            ("doomed", "archive")
        ]
        wait_for_answer(both.ranges_begin_after_first_runs)

        def is_answered(name: str, title: str, ref: str) -> bool:
            choices: list[dict[str, Any]] = [{}]
            if name == "job":
                choices = [{"scheduler": scheduler, "job_id": job} for scheduler, job in jobs]
            moment = both.moment()
            answered = False
            for chosen in choices:
                scraped, sent = (
                    both.ask(name, title, ref, moment, application=job, **chosen)
                    for job in (SCRAPED, SENT)
                )
                answered = answered or bool(scraped)
                differences = differing_values(scraped, sent), differing_values(sent, scraped)
                assert same(scraped, sent), (chosen, *differences)
            return answered

        for case in every_query():
            name, title, ref = (str(value) for value in case.values)
            if title in OF_SCRAPES:
                assert not is_answered(name, title, ref)
            else:
                wait_for_answer(functools.partial(is_answered, name, title, ref))


def same(one: Answer, other: Answer) -> bool:
    """Return whether two results are equal, apart from rounding errors of sums."""
    return one.keys() == other.keys() and all(
        values == pytest.approx(other[labels], rel=1e-9, nan_ok=True)
        for labels, values in one.items()
    )


def differing_values(one: Answer, other: Answer) -> Answer:
    """Return the part of a result that another one does not have."""
    return {labels: values for labels, values in one.items() if other.get(labels) != values}
