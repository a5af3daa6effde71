"""The alert rules in VictoriaMetrics' vmalert, whose language and templates differ in details."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

for _module in ("sqlalchemy", "yaml"):
    pytest.importorskip(_module)

from tests.drills import drill
from tests.helpers.paths import ROOT

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(shutil.which("vmalert") is None, reason="victoria-metrics is not installed"),
]

RULES = ROOT / "alerts" / "apscheduler.rules.yml"


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
