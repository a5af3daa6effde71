"""Rules and routes are made faster completely, or not at all."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml")

from examples.demo import speed
from tests.helpers.paths import ROOT

pytestmark = pytest.mark.once

RULES = ROOT / "alerts" / "apscheduler.rules.yml"
ROUTES = ROOT / "alerts" / "alertmanager.yml"


def rules_with(**rule: Any) -> str:
    return str(yaml.safe_dump({"groups": [{"name": "g", "rules": [{"expr": "up", **rule}]}]}))


def rule_of(text: str) -> Any:
    return yaml.safe_load(text)["groups"][0]["rules"][0]


class TestExpressions:
    @pytest.mark.parametrize(
        ("slow", "fast"),
        [
            ("rate(a[10m])", "rate(a[20s])"),
            ("rate(a[1m])", "rate(a[5s])"),  # 2 s would hold too few samples
            ("max_over_time(a[1h30m:30s])", "max_over_time(a[180s:1s])"),
            ("a offset 1d", "a offset 2880s"),
            ("a > b or c * 0 + 60", "a > b or c * 0 + 60"),  # as the application exports it
            ("a != 60", "a != 60"),
            ("a offset -1h", "a offset -120s"),
            ("a OFFSET 5s", "a OFFSET 1s"),
            ("time() - a > 604800", "time() - a > 20160"),
            ("a > 100", "a > 3.333333"),
            ("a >= 3 or b > 59 or c < 0.5", "a >= 3 or b > 59 or c < 0.5"),
            ('a{b="[10m] 3600"}', 'a{b="[10m] 3600"}'),
            ("a{b='it\\'s 90'} > `90`", "a{b='it\\'s 90'} > `90`"),
            ("a:increase10m + b_60 # 60 [1h]", "a:increase10m + b_60 # 60 [1h]"),
            ("0.99993124 * a @ end()", "0.99993124 * a @ end()"),
        ],
    )
    def test_times_in_expressions_are_divided_and_nothing_else(self, slow: str, fast: str) -> None:
        """Ranges, steps, offsets and numbers of seconds are divided, but not exported values."""
        assert speed.faster_expression(slow, 30) == fast

    @pytest.mark.parametrize("expression", ["a > 60.5", "a > 1e3", "a > 5m", "a > 0x60", "a ? b"])
    def test_unreadable_expression_is_an_error(self, expression: str) -> None:
        """An expression with a number that may or may not be a time is rejected."""
        with pytest.raises(speed.SpeedError, match=r"^Some"):
            speed.faster_expression(expression, 30, "Some")


class TestRules:
    def test_durations_of_groups_and_rules_are_divided(self) -> None:
        """Durations of groups and rules are divided; the shortest interval is a second."""
        document = yaml.safe_load(rules_with(alert="A", **{"for": "1m", "keep_firing_for": "1h"}))
        document["groups"][0] |= {"interval": "15s", "query_offset": "2m"}

        [group] = yaml.safe_load(speed.faster_rules(yaml.safe_dump(document), 30))["groups"]

        assert (group["interval"], group["query_offset"]) == ("1s", "4s")
        assert (group["rules"][0]["for"], group["rules"][0]["keep_firing_for"]) == ("2s", "120s")

    def test_fractions_of_seconds_are_written_as_milliseconds(self) -> None:
        """Fractions are written in milliseconds, because Prometheus does not accept 1.5s."""
        fast = speed.faster_rules(rules_with(alert="A", **{"for": "45s"}), 30)

        assert rule_of(fast)["for"] == "1500ms"

    @pytest.mark.parametrize(
        "rule",
        [
            {"alert": "A", "for": "soon"},
            {"alert": "A", "for": 60},
            {"record": "a", "after": "1m"},
            {"alert": "A", "annotations": {"a": '{{ query "rate(a[1h])" }}'}},
        ],
        ids=str,
    )
    def test_unknown_key_is_an_error(self, rule: dict[str, Any]) -> None:
        """It would stay slow, and look as if it did not work."""
        with pytest.raises(speed.SpeedError):
            speed.faster_rules(rules_with(**rule), 30)

    def test_our_rules_at_factor_one_stay_the_same(self) -> None:
        """With factor 1, only the notation of durations changes."""

        def normal(text: str) -> Any:
            words = re.sub(
                r"\b(?:\d+[smhdw])+\b", lambda found: f"{speed.seconds(found[0]):g}s", text
            )
            return yaml.safe_load(words)

        slow = RULES.read_text()

        assert normal(speed.faster_rules(slow, 1)) == normal(slow)

    def test_our_rules_can_be_made_faster(self) -> None:
        """With factor 30, a `for` of one hour becomes two minutes."""
        slow = yaml.safe_load(RULES.read_text())["groups"]
        fast = yaml.safe_load(speed.faster_rules(RULES.read_text(), 30))["groups"]

        pairs = [
            (speed.seconds(before["for"]) / 30, speed.seconds(after["for"]))
            for old, new in zip(slow, fast, strict=True)
            for before, after in zip(old["rules"], new["rules"], strict=True)
            if "for" in before
        ]
        assert pairs
        assert all(before == pytest.approx(after, abs=0.001) for before, after in pairs)


class TestRoutes:
    def test_waits_are_divided_and_the_calendar_is_gone(self) -> None:
        """Waits of all routes are divided; receivers and inhibitions stay the same."""
        slow = {
            "route": {
                "receiver": "r",
                "group_wait": "30s",
                "routes": [
                    {"matchers": ["a = b"], "group_wait": "0s", "mute_time_intervals": ["m"]},
                    {"routes": [{"repeat_interval": "1h"}]},
                ],
            },
            "inhibit_rules": [{"source_matchers": ["a = b"]}],
            "receivers": [{"name": "r"}],
            "time_intervals": [{"name": "m"}],
        }

        fast = yaml.safe_load(speed.faster_routes(yaml.safe_dump(slow), 30))

        assert fast == {
            "route": {
                "receiver": "r",
                "group_wait": "1s",
                "group_interval": "10s",  # the defaults are slow as well
                "repeat_interval": "480s",
                "routes": [
                    {"matchers": ["a = b"], "group_wait": "1s"},
                    {"routes": [{"repeat_interval": "120s"}]},
                ],
            },
            "inhibit_rules": slow["inhibit_rules"],
            "receivers": slow["receivers"],
        }

    @pytest.mark.parametrize(
        "document",
        [{"route": {"wait": "1s"}}, {"route": {"group_wait": 30}}, {"routes": {}}, []],
        ids=str,
    )
    def test_unknown_key_is_an_error(self, document: object) -> None:
        """Rather than a route that is slower than it should be."""
        with pytest.raises(speed.SpeedError):
            speed.faster_routes(yaml.safe_dump(document), 30)

    def test_our_routes_can_be_made_faster(self) -> None:
        """The shipped routes, with their one `group_interval`, can be made faster."""
        slow = yaml.safe_load(ROUTES.read_text())["route"]
        fast = yaml.safe_load(speed.faster_routes(ROUTES.read_text(), 30))["route"]

        assert speed.seconds(fast["group_interval"]) == speed.seconds(slow["group_interval"]) / 30


class TestCommand:
    @pytest.mark.parametrize("file", [RULES, ROUTES], ids=lambda file: str(file.name))
    def test_command_prints_the_faster_file(self, file: Path) -> None:
        """The command prints the faster version of a file of rules or of routes."""
        command = [sys.executable, speed.__file__, "30", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)

        make = speed.faster_rules if file == RULES else speed.faster_routes
        assert done.stdout == make(file.read_text(), 30)

    def test_command_says_in_one_line_what_it_cannot_read(self, tmp_path: Path) -> None:
        """If a file cannot be read, the command prints one line and exits with status 1."""
        file = tmp_path / "rules.yml"
        file.write_text(rules_with(alert="A", expr="a > 1e9"))
        command = [sys.executable, speed.__file__, "30", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)

        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == (
            f"{file}: A: is 1e9 a number of seconds? Write those as whole numbers\n"
        )
