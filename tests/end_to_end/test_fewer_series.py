"""The configurations of "Fewer series" in `docs/metrics.md`, and the numbers in its table."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from apscheduler.executors.debug import DebugExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from prometheus_client import CollectorRegistry, generate_latest

from apscheduler_telemetry import instrument
from tests.helpers import grafana_queries
from tests.helpers.paths import ROOT
from tests.helpers.servers import configured_prometheus, free_port, required_program
from tests.helpers.waiting import wait_for_answer, wait_until

yaml = pytest.importorskip("yaml")

from examples.demo import speed

pytestmark = pytest.mark.once

ALERTS = ROOT / "alerts"
PAGE = (ROOT / "docs" / "metrics.md").read_text("utf-8")
SECTION = PAGE.partition("\n## Fewer series\n")[2].partition("\n## ")[0]
CONFIGURATIONS = [
    yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", SECTION, re.DOTALL)
]
[DROPPING] = [one for one in CONFIGURATIONS if "metric_relabel_configs" in str(one)]
[REGEX] = [
    rule["regex"]
    for scraped in DROPPING["scrape_configs"]
    for rule in scraped["metric_relabel_configs"]
]
[REGEX_OF_DELAYS] = re.findall(r"use the regex `(.*)`", SECTION)
ROWS = {
    re.sub(r"\[(.*)\]\(.*\)", r"\1", what): (int(scraped), int(recorded), panels)
    for what, scraped, recorded, panels in re.findall(
        r"^\| (.*) \| (\d+) \| (\d+) \| (.*) \|$", SECTION, re.MULTILINE
    )
}
"""Of the table: scraped series, recorded series, and panels without data."""
DEFAULT, NATIVE, NO_DELAYS, NO_BUCKETS = ROWS.values()


@pytest.fixture(scope="module")
def application() -> Iterator[tuple[CollectorRegistry, int]]:
    """Run an interval job with success; yield its registry, and the port of `/metrics`."""
    registry = CollectorRegistry()
    scheduler = BackgroundScheduler(executors={"default": DebugExecutor()})
    telemetry = instrument(scheduler, registry=registry)
    now = datetime.now(timezone.utc)
    scheduler.add_job(
        len, "interval", seconds=5, args=[""], id="job", next_run_time=now, misfire_grace_time=None
    )  # soon again, so that Prometheus also records a run that was due
    scheduler.start()
    success = "apscheduler_job_last_success_timestamp_seconds{"
    wait_until(lambda: any(success in line for line in series_of(registry)))
    port = free_port()
    telemetry.start_http_server(port)
    yield registry, port
    scheduler.shutdown()
    telemetry.uninstrument()


def series_of(registry: CollectorRegistry) -> list[str]:
    """Return the series of the job."""
    lines = generate_latest(registry).decode().splitlines()
    return [line for line in lines if 'job_id="job"' in line]


def empty_panels(regex: str) -> set[str]:
    """Return the panels that select a metric whose name matches."""
    return {
        panel["title"]
        for name in grafana_queries.NAMES
        for panel, target in grafana_queries.queries(grafana_queries.load(name))
        for metric, _ in grafana_queries.selectors(target["expr"])
        if re.fullmatch(regex, metric)
    }


class TestTable:
    """The numbers of the table."""

    def test_classic_and_native_histograms(
        self, application: tuple[CollectorRegistry, int]
    ) -> None:
        """A native histogram is one series instead of buckets, sum and count."""
        series = series_of(application[0])
        parts = [line for line in series if re.search(r"_(bucket|sum|count)\{", line)]
        assert DEFAULT[0] == len(series)
        assert NATIVE[0] == len(series) - len(parts) + len(grafana_queries.HISTOGRAMS)

    @pytest.mark.parametrize(
        ("row", "regex"), [(NO_DELAYS, REGEX_OF_DELAYS), (NO_BUCKETS, REGEX)], ids=["delays", "all"]
    )
    def test_panels_without_data(self, row: tuple[int, int, str], regex: str) -> None:
        """The panels of which a query selects what is dropped are those of the table."""
        assert empty_panels(regex) == set(re.findall(r"\*(.*?)\*", row[2]))

    def test_recorded_series_of_native_histograms(self) -> None:
        """Of what the second rule file records of a job, one series is only for its first runs."""
        rules = yaml.safe_load((ALERTS / "apscheduler.native.rules.yml").read_text("utf-8"))
        recorded = [rule["record"] for group in rules["groups"] for rule in group["rules"]]
        of_jobs = {name for name in recorded if name.startswith("apscheduler_job:")}
        at_rest = of_jobs - {"apscheduler_job:mean_run_duration_seconds"}
        assert NATIVE[1] == DEFAULT[1] + len(at_rest)

    def test_rules_do_not_read_what_is_dropped(self) -> None:
        """No rule reads a bucket, so all alerts work without."""
        rules = (ALERTS / "apscheduler.rules.yml").read_text("utf-8")
        assert re.findall(r"\w+_bucket\b", rules) == []


@pytest.mark.integration
class TestPrometheus:
    """A real Prometheus with these configurations."""

    @pytest.mark.parametrize(
        ("row", "regex"), [(NO_DELAYS, REGEX_OF_DELAYS), (NO_BUCKETS, REGEX)], ids=["delays", "all"]
    )
    def test_series_that_are_left(
        self,
        application: tuple[CollectorRegistry, int],
        tmp_path: Path,
        row: tuple[int, int, str],
        regex: str,
    ) -> None:
        """Prometheus stores and records as many series of a job as the table says."""
        config: dict[str, Any] = json.loads(json.dumps(DROPPING))
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        rules = tmp_path / "rules.yml"
        rules.write_text(speed.faster_rules((ALERTS / "apscheduler.rules.yml").read_text(), 30))
        config["rule_files"] = [str(rules)]
        [scraped] = config["scrape_configs"]
        scraped["static_configs"] = [{"targets": [f"127.0.0.1:{application[1]}"]}]
        scraped["metric_relabel_configs"][0]["regex"] = regex
        path = tmp_path / "prometheus.yml"
        path.write_text(json.dumps(config))
        with configured_prometheus(required_program("prometheus"), tmp_path, path) as server:
            count = 'count({job_id="job",alertname="",__name__%s"apscheduler_job:.+"})'
            wait_for_answer(lambda: server.value(count % "!~") == row[0])
            wait_for_answer(lambda: server.value(count % "=~") == row[1])
