"""The shipped rules as ``doctor`` compares them with those of a server."""

from __future__ import annotations

import pytest

pytest.importorskip("yaml")

from apscheduler_telemetry.cli.rule_files import (
    RULES_FILE,
    alerts_by_severity,
    normalize_expression,
    parse_duration,
    read_rules,
)

pytestmark = pytest.mark.once


class TestNormalize:
    """Expressions that are the same but for their formatting."""

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("sum by (job) (\n  x\n)\n", "sum by(job)(x)"),
            ("x offset 24h", "x offset 1d"),
            ("rate(x[90m])", "rate(x[1h30m])"),
            ("x > 604800", "x>6.048e+05"),
            ("x{a='b\"c'}", 'x{a="b\\"c"}'),
            ("x{a=~`b\\d`}", 'x{a=~"b\\\\d"}'),
            ("x # why\n+ 1", "x + 1"),
        ],
    )
    def test_formatting_is_lost(self, one: str, other: str) -> None:
        """Spaces, comments, quotes and units make no difference."""
        assert normalize_expression(one) == normalize_expression(other)

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("x > 1", "x >= 1"),
            ("rate(x[5m])", "rate(x[10m])"),
            ('x{a="b c"}', 'x{a="b  c"}'),
            ('x{a="b"}', 'x{a=~"b"}'),
            ("x - y", "y - x"),
            ("x == 60", "x == 61"),
            ("xy", "x y"),
        ],
    )
    def test_meaning_is_kept(self, one: str, other: str) -> None:
        """Other operators, numbers, strings and names make a difference."""
        assert normalize_expression(one) != normalize_expression(other)


class TestShippedRules:
    """What is read from the files."""

    def test_rules_have_durations_and_labels(self) -> None:
        """`for` is in seconds."""
        [rule] = (rule for rule in read_rules(RULES_FILE) if rule.name == "APSchedulerMissedRun")
        assert (rule.group, rule.for_seconds) == ("apscheduler-next-runs", 60)
        assert "critical" in rule.labels["severity"]

    def test_alerts_of_each_severity(self) -> None:
        """The application may set the severity of alerts on its jobs, and not of others."""
        found = alerts_by_severity()
        assert list(found) == ["critical", "warning", "info"]
        assert all("APSchedulerMissedRun" in names for names in found.values())
        having = [name for name, names in found.items() if "APSchedulerCrashLoop" in names]
        assert having == ["critical"]
        assert "APSchedulerWatchdog" not in {name for names in found.values() for name in names}

    @pytest.mark.parametrize(("text", "seconds"), [("15s", 15), ("1h30m", 5400), ("500ms", 0.5)])
    def test_durations_of_prometheus(self, text: str, seconds: float) -> None:
        """Durations may have several units."""
        assert parse_duration(text) == seconds
