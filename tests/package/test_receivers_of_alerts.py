"""Which receivers of an Alertmanager configuration get an alert, and what mutes it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from apscheduler_telemetry.cli.alert_routes import (
    find_destinations,
    find_integrations,
    is_inhibited,
    is_silenced,
    parse_matchers,
)
from tests.helpers.servers import required_program

CRITICAL = {"alertname": "APSchedulerMissedRun", "severity": "critical", "job": "shop"}
DOWN = {"alertname": "APSchedulerSchedulerDown", "job": "shop"}

# The routes below the first one, labels, and the receivers.
ROUTES = [
    pytest.param([], CRITICAL, ["top"], id="no routes"),
    pytest.param(
        [{"receiver": "a", "matchers": ['severity="critical"']}], CRITICAL, ["a"], id="matchers"
    ),
    pytest.param(
        [{"receiver": "a", "matchers": ["severity = critical", "job != shop"]}],
        CRITICAL,
        ["top"],
        id="all matchers",
    ),
    pytest.param(
        [{"receiver": "a", "matchers": ['{severity=~"crit.*", job!~"mail|web"}']}],
        CRITICAL,
        ["a"],
        id="several in one text",
    ),
    pytest.param(
        [{"receiver": "a", "matchers": ['job=~"sho"']}], CRITICAL, ["top"], id="whole value"
    ),
    pytest.param(
        [{"receiver": "a", "matchers": ['owner=""']}], CRITICAL, ["a"], id="absent is empty"
    ),
    pytest.param(
        [{"receiver": "a", "matchers": ['job="a\\"b\\\\c, d}"']}],
        {"job": 'a"b\\c, d}'},
        ["a"],
        id="escapes",
    ),
    pytest.param(
        [{"receiver": "a", "match": {"severity": "critical"}, "match_re": {"job": "s.+"}}],
        CRITICAL,
        ["a"],
        id="match and match_re",
    ),
    pytest.param(
        [
            {"receiver": "a", "matchers": ["job=shop"], "continue": True},
            {"receiver": "b", "matchers": ["job=shop"]},
            {"receiver": "c", "matchers": ["job=shop"]},
        ],
        CRITICAL,
        ["a", "b"],
        id="continue",
    ),
    pytest.param(
        [
            {
                "matchers": ["job=shop"],
                "routes": [
                    {"receiver": "a", "matchers": ["severity=warning"]},
                    {"matchers": ["severity=critical"], "continue": True},
                    {"receiver": "b", "matchers": ["severity=info"]},
                ],
            },
            {"receiver": "c"},
        ],
        CRITICAL,
        ["top"],
        id="inherited",
    ),
    pytest.param(
        [{"receiver": "a", "matchers": ["job=shop"], "routes": [{"match": {"job": "mail"}}]}],
        CRITICAL,
        ["a"],
        id="no child matches",
    ),
]


class TestDestinations:
    """Routes, as Alertmanager evaluates them."""

    @pytest.mark.parametrize(("routes", "labels", "receivers"), ROUTES)
    def test_receivers_of_an_alert(
        self, routes: list[Any], labels: dict[str, str], receivers: list[str]
    ) -> None:
        """The deepest routes that match get the alert, and none after one without `continue`."""
        found = find_destinations({"receiver": "top", "routes": routes}, labels)
        assert [each.receiver for each in found] == receivers

    @pytest.mark.integration
    @pytest.mark.parametrize(("routes", "labels", "receivers"), ROUTES)
    def test_amtool_agrees(
        self,
        tmp_path: Path,
        routes: list[Any],
        labels: dict[str, str],
        receivers: list[str],
    ) -> None:
        """`amtool config routes test` says the same."""
        names = ("top", "a", "b", "c")
        config = {
            "route": {"receiver": "top", "routes": routes},
            "receivers": [{"name": name} for name in names],
        }
        path = tmp_path / "alertmanager.yml"
        path.write_text(json.dumps(config), "utf-8")  # JSON is YAML
        done = subprocess.run(
            [
                *(required_program("amtool"), "config", "routes", "test"),
                f"--config.file={path}",
                *(f"{name}={json.dumps(value)}" for name, value in labels.items()),
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert done.stdout.strip().split(",") == receivers

    def test_default_is_known(self) -> None:
        """An alert that matches no route below the first one goes to the default receiver."""
        route = {"receiver": "top", "routes": [{"receiver": "top", "match": {"job": "shop"}}]}
        assert [each.is_default for each in find_destinations(route, CRITICAL)] == [False]
        assert [each.is_default for each in find_destinations(route, {})] == [True]

    @pytest.mark.parametrize("text", ["severity", "=critical", 'a="b" c="d"', 'a="b'])
    def test_unknown_matcher_is_an_error(self, text: str) -> None:
        """A text that is no matcher is not taken for one."""
        with pytest.raises(ValueError, match="unknown matcher"):
            parse_matchers(text)

    def test_unknown_regular_expression_is_an_error(self) -> None:
        """What only Go understands is an error that names it."""
        [matcher] = parse_matchers(r'job=~"\\pN+"')
        with pytest.raises(ValueError, match=r"unknown regular expression '\\\\pN\+'"):
            matcher.matches({})

    def test_quoted_names_are_understood(self) -> None:
        """Later Alertmanagers write names of labels in quotes."""
        [matcher] = parse_matchers('"café owner"="data"')
        assert matcher.matches({"café owner": "data"})


class TestIntegrations:
    """What a receiver sends to."""

    def test_kinds_of_each_receiver(self) -> None:
        """A receiver without a list, or with an empty one, sends nothing."""
        receivers = [
            {"name": "a", "slack_configs": [{}], "email_configs": [{}, {}]},
            {"name": "b", "webhook_configs": []},
            {"name": "c"},
        ]
        found = find_integrations({"receivers": receivers})
        assert found == {"a": ["slack", "email"], "b": [], "c": []}


class TestInhibition:
    """Rules by which one alert mutes others."""

    @pytest.mark.parametrize(
        ("rule", "expected"),
        [
            ({"target_matchers": ["severity=critical"]}, True),
            ({"target_matchers": ["severity=warning"]}, False),
            ({"source_matchers": ["alertname=Other"]}, False),
            ({"target_match": {"severity": "critical"}, "equal": ["job", "owner"]}, True),
            ({"target_match_re": {"severity": "crit.*"}, "equal": ["severity"]}, False),
            ({"source_match": {"job": "shop"}, "target_match": {"job": "shop"}}, False),
        ],
    )
    def test_source_inhibits_target(self, rule: dict[str, Any], *, expected: bool) -> None:
        """Both sides must match, with equal labels, and the target must be no source as well."""
        rule = {"source_matchers": ["alertname=APSchedulerSchedulerDown"], **rule}
        if "source_match" in rule:
            del rule["source_matchers"]
        assert is_inhibited(rule, DOWN, CRITICAL) is expected


class TestSilences:
    """Silences of the API."""

    @pytest.mark.parametrize(
        ("matcher", "expected"),
        [
            ({"value": "critical", "isRegex": False, "isEqual": True}, True),
            ({"value": "critical", "isRegex": False, "isEqual": False}, False),
            ({"value": "crit.*|info", "isRegex": True, "isEqual": True}, True),
            ({"value": "crit", "isRegex": True, "isEqual": False}, True),
            ({"value": "critical", "isRegex": False}, True),
        ],
    )
    def test_matchers_decide(self, matcher: dict[str, Any], *, expected: bool) -> None:
        """Old Alertmanagers do not have `isEqual`."""
        assert is_silenced({"matchers": [{"name": "severity", **matcher}]}, CRITICAL) is expected
