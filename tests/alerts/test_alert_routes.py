"""The receivers of an alert, by severity, owner and name."""

from __future__ import annotations

import pytest

yaml = pytest.importorskip("yaml")

import pytest

from tests.helpers.alertmanager_config import HEARD, JOBS, RULES, SCHEDULERS, WATCHDOG, heard

pytestmark = pytest.mark.integration


class TestRoutes:
    """The routes, as `amtool config routes test` reports them."""

    def test_tests_know_all_alerts_and_severities_of_the_rules(self) -> None:
        """The alerts and severities in this file are exactly those of the rules."""
        given: dict[str, set[str]] = {}
        for group in yaml.safe_load(RULES.read_text("utf-8"))["groups"]:
            for rule in group["rules"]:
                if "alert" in rule:
                    # Either a word, or the job's own severity and else a word.
                    default = rule["labels"]["severity"].removesuffix("{{ end }}")
                    default = default.rpartition("{{ else }}")[2]
                    given.setdefault(rule["alert"], set()).add(default)
        expected = {**JOBS, **SCHEDULERS, **WATCHDOG}
        assert given.keys() == expected.keys()
        assert {
            name: severity for name, severity in expected.items() if severity not in given[name]
        } == {}

    @pytest.mark.parametrize(("name", "severity"), {**JOBS, **SCHEDULERS}.items())
    def test_alert_goes_where_its_severity_is_routed(self, name: str, severity: str) -> None:
        """An alert goes to the receivers of its severity."""
        labels = {"job": "billing", "scheduler": "default", "severity": severity}
        assert heard(alertname=name, **labels) == HEARD[severity]

    @pytest.mark.parametrize("severity", HEARD)
    @pytest.mark.parametrize("name", ["APSchedulerMissedRun", "APSchedulerRunsCoalesced"])
    def test_severity_of_the_job_decides_the_route(self, name: str, severity: str) -> None:
        """The severity that the application sets for a job overrides that of the rule."""
        assert heard(alertname=name, job_id="nightly", severity=severity) == HEARD[severity]

    @pytest.mark.parametrize(("name", "severity"), JOBS.items())
    def test_owner_gets_the_alert_besides_the_usual_receivers(
        self, name: str, severity: str
    ) -> None:
        """The owner's receiver gets the alert too, except for alerts of the digest."""
        also = set() if severity == "info" else {"slack #payments"}
        labels = {"job_id": "nightly", "severity": severity}
        assert heard(alertname=name, owner="payments", **labels) == HEARD[severity] | also
        assert heard(alertname=name, owner="unknown-team", **labels) == HEARD[severity]

    def test_watchdog_goes_to_its_own_receiver_only(self) -> None:
        """The Watchdog goes only to its own receiver, even if its labels are changed."""
        assert heard(alertname="APSchedulerWatchdog", severity="none") == {"webhook"}
        assert heard(alertname="APSchedulerWatchdog", severity="critical", owner="payments") == {
            "webhook"
        }

    @pytest.mark.parametrize("labels", [{}, {"severity": "urgent"}], ids=["none", "made-up"])
    def test_alert_of_unknown_severity_is_not_lost(self, labels: dict[str, str]) -> None:
        """An alert without a severity, or with an unknown one, still reaches a receiver."""
        assert heard(alertname="APSchedulerMissedRun", **labels) == {"slack #alerts"}
