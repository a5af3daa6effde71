"""The Alertmanager configuration: it loads, contains no secrets, and groups as documented."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("yaml")

from tests.helpers.alertmanager_config import (
    SECRETS,
    alert,
    amtool,
    hasten,
    routes,
    seconds,
    shipped,
)
from tests.helpers.alertmanager_server import alertmanager
from tests.helpers.servers import get, required_program
from tests.helpers.waiting import wait_for_answer

pytestmark = pytest.mark.integration


class TestFile:
    """The shipped file."""

    def test_amtool_accepts_the_configuration(self) -> None:
        """The file and its templates pass amtool, also if the files of secrets are missing."""
        printed = amtool("check-config", "alertmanager.yml")
        assert "SUCCESS" in printed
        assert "1 templates" in printed
        assert "FAILED" not in printed

    def test_starts_without_secrets(self, tmp_path: Path) -> None:
        """Alertmanager starts without a secret, and logs an error when the secret is needed."""
        config = json.loads(json.dumps(shipped()).replace(SECRETS, str(tmp_path / "none")))
        hasten(config)
        binary = required_program("prometheus-alertmanager")
        with alertmanager(binary, tmp_path / "am", config) as server:
            server.post(alert("APSchedulerRunsLost", job="billing", scheduler="default"))
            failed = r'notifications_failed_total{integration="(\w+)".*} [1-9]'
            expected = {"pagerduty", "slack"}
            wait_for_answer(
                lambda: set(re.findall(failed, get(f"{server.url}/metrics")[1])) == expected
            )
            assert f"open {tmp_path / 'none'}" in server.log.read_text()

    def test_every_secret_is_read_from_a_file(self) -> None:
        """Every secret is read from a file."""
        text = json.dumps(shipped())
        secret = r'"(slack_api_url|api_url|routing_key|service_key|\w*password|credentials)":'
        assert re.findall(secret, text) == []
        assert sorted(re.findall(rf"{SECRETS}/(\w+)", text)) == [
            "pagerduty_routing_key",
            "slack_api_url",
            "smtp_password",
        ]

    def test_every_receiver_but_the_watchdog_sends_resolved_alerts(self) -> None:
        """All receivers send resolved alerts; the Watchdog's would take one for a ping."""
        sends_resolved = {
            (receiver["name"], one["send_resolved"])
            for receiver in shipped()["receivers"]
            for kind, several in receiver.items()
            if kind != "name"
            for one in several
        }
        names = {receiver["name"] for receiver in shipped()["receivers"]}
        assert sends_resolved == {(name, name != "watchdog") for name in names}

    def test_all_slack_channels_get_the_same_message(self) -> None:
        """All Slack channels get the same message."""
        messages = [
            {key: value for key, value in one.items() if key != "channel"}
            for receiver in shipped()["receivers"]
            for one in receiver.get("slack_configs", ())
        ]
        assert len(messages) == 3
        assert messages == messages[:1] * 3

    def test_alerts_are_grouped_by_scheduler_and_emails_by_application(self) -> None:
        """Alerts are grouped by application and scheduler; e-mails by application."""
        grouping = {
            route["receiver"]: route["group_by"]
            for route in routes(shipped())
            if "group_by" in route
        }
        assert grouping == {
            "slack": ["job", "scheduler"],
            "watchdog": ["alertname"],
            "digest": ["job"],
        }

    def test_digest_waits_less_than_events_last(self) -> None:
        """The digest's `group_wait` is shorter than the ten minutes for which event alerts fire."""
        [digest] = (route for route in routes(shipped()) if route["receiver"] == "digest")
        assert seconds(digest["group_wait"]) < 600
        assert seconds(digest["group_interval"]) >= 3600

    def test_watchdog_pings_every_five_minutes(self) -> None:
        """The Watchdog is sent every five minutes, and is delayed by a minute at most."""
        [watchdog] = (route for route in routes(shipped()) if route["receiver"] == "watchdog")
        assert seconds(watchdog["repeat_interval"]) == 300
        assert seconds(watchdog["group_interval"]) <= 60

    def test_maintenance_window_mutes_all_but_watchdog_and_digest(self) -> None:
        """The window mutes all routes but Watchdog and digest; as shipped, it is in the past."""
        config = shipped()
        muted = {route["receiver"] for route in routes(config) if "mute_time_intervals" in route}
        assert muted == {"critical", "payments", "slack"}
        [window] = config["time_intervals"]
        assert {
            route.get("mute_time_intervals", ["maintenance"])[0] for route in routes(config)
        } == {window["name"]}
        assert all(int(part["years"][0]) < 2024 for part in window["time_intervals"])
