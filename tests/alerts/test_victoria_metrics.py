"""The alert rules in VictoriaMetrics' vmalert, whose language and templates differ in details."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("sqlalchemy")
yaml = pytest.importorskip("yaml")

from tests.drills import drill
from tests.helpers import grafana_queries
from tests.helpers.grafana_queries import NAMES, Range
from tests.helpers.paths import ROOT
from tests.helpers.servers import Prometheus, free_port, get, running_process
from tests.helpers.waiting import wait_for_answer

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(shutil.which("vmalert") is None, reason="victoria-metrics is not installed"),
]

RULES = ROOT / "alerts" / "apscheduler.rules.yml"


@pytest.fixture(scope="module")
def victoria_metrics(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Run an empty VictoriaMetrics, whose API is that of Prometheus."""
    directory = tmp_path_factory.mktemp("victoria")
    address = f"127.0.0.1:{free_port()}"
    command = ["victoria-metrics", f"-storageDataPath={directory}", f"-httpListenAddr={address}"]
    with running_process(command, directory / "log"):
        server = Prometheus(f"http://{address}")
        wait_for_answer(lambda: get(f"{server.url}/health")[0] == 200)
        yield server


class TestQueries:
    """
    VictoriaMetrics executes all queries.

    `vmalert -dryRun` accepts functions that VictoriaMetrics does not have, such as `histogram_sum`.
    """

    def test_expressions_of_rules_have_no_error(self, victoria_metrics: Prometheus) -> None:
        """The expression of each rule can be executed."""
        for group in yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]:
            for rule in group["rules"]:
                victoria_metrics.api("query", query=rule["expr"])

    @pytest.mark.parametrize("name", NAMES)
    def test_queries_of_dashboards_have_no_error(
        self, victoria_metrics: Prometheus, name: str
    ) -> None:
        """Each query of a dashboard can be executed."""
        model = grafana_queries.variables(grafana_queries.load(name))
        for panel, target in grafana_queries.queries(grafana_queries.load(name)):
            own = Range(3600).values(panel)
            filled = grafana_queries.fill(target["expr"], model, dict.fromkeys(model, "any"), own)
            victoria_metrics.api("query", query=filled)


class TestVmalert:
    """vmalert loads the rules as they are, and its alerts arrive."""

    def test_rules_are_valid(self) -> None:
        """`vmalert -dryRun` accepts every expression and every template."""
        command = ["vmalert", "-dryRun", f"-rule={RULES}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr

    @pytest.mark.slow
    @pytest.mark.timeout(400)
    def test_alerts_arrive_and_are_resolved(self, tmp_path: Path) -> None:
        """A killed application and a run that was due during a restart reach the webhook."""
        expected = {
            "killed": "APSchedulerSchedulerDown",
            "skipped-by-restart": "APSchedulerMissedRun",
        }
        results = drill.rehearse(list(expected), tmp_path / "drill", "VictoriaMetrics")
        print(drill.table(results.values()))  # noqa: T201  # beside whatever fails
        for name, alert in expected.items():
            result = results[name]
            assert (result.error, result.alert, result.also) == ("", alert, [])
            assert result.seconds_to_resolve is not None
            assert result.annotations["runbook_url"].endswith(f"#{alert.lower()}")
            assert "host " in result.annotations["last_seen"]
            assert "%!" not in str(result.annotations)
