"""
Checks of the rules that Prometheus has loaded, for ``doctor --prometheus``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

from apscheduler_telemetry._version import __version__
from apscheduler_telemetry.cli.chain_checks import OK, CheckResult, abbreviate, parse_time
from apscheduler_telemetry.cli.chain_prometheus import PrometheusApi
from apscheduler_telemetry.cli.rule_files import (
    NATIVE_RULES_FILE,
    RULES_FILE,
    WATCHDOG_ALERT,
    Rule,
    normalize_expression,
    read_rules,
)
from apscheduler_telemetry.core.findings import INFO, SERIOUS

_RULE_NAME_PREFIXES = ("APScheduler", "apscheduler_")
_MAX_EVALUATION_INTERVAL_SECONDS = 60.0
"""Seconds: what the slowest group of the file has."""
_LATE_AFTER_INTERVALS = 3
_MIN_LATE_EVALUATION_AGE = timedelta(seconds=60)
"""Of the last evaluation, before it counts as late; clocks differ, and servers may be busy."""
_LAST_YEAR_MEANING_NEVER = 2000
"""Up to this year, a time of the API means never."""


class LoadedRule(NamedTuple):
    """
    A rule that a server has loaded.

    Attributes:
        rule: what it says.
        alert_state: of an alert, such as ``firing``; empty for recording rules.
        evaluation_health: ``ok``, ``err`` or ``unknown``.
        evaluation_error: that of the last evaluation.
        evaluated_at: the time of the last evaluation.
        evaluation_interval: seconds between evaluations of its group.
        evaluation_duration: seconds that the last evaluation took.
    """

    rule: Rule
    alert_state: str
    evaluation_health: str
    evaluation_error: str
    evaluated_at: datetime
    evaluation_interval: float
    evaluation_duration: float


def check_rules(api: PrometheusApi) -> Iterator[CheckResult]:
    """Check that the rules are loaded, are those of this version, and are evaluated."""
    data = api.get("rules")
    groups = [] if data is None else data["groups"]
    if not groups and not api.is_prometheus:
        yield CheckResult(
            "rules",
            INFO,
            f"{api.server.url} has no rules, and another server may evaluate them",
            "Pass the address of that server (vmalert, or the ruler) as --prometheus in a second "
            "call. VictoriaMetrics shows those of vmalert with -vmalert.proxyURL.",
        )
        yield from _check_stored_watchdog(api)
        return
    loaded = [each for group in groups for each in _parse_rules_of_group(group)]
    missing = _find_missing_rules(read_rules(RULES_FILE), loaded)
    if not loaded or len(missing) == len(read_rules(RULES_FILE)):
        yield CheckResult(
            "rules",
            SERIOUS,
            f"{api.server.url} has not loaded {RULES_FILE}, so no alert fires",
            _LOAD_RULES_ADVICE,
        )
        return
    if missing:
        yield CheckResult(
            "rules",
            SERIOUS,
            f"{len(missing)} rules of version {__version__} are not loaded: {abbreviate(missing)}",
            _LOAD_RULES_ADVICE,
        )
    else:
        yield CheckResult("rules", OK, f"all {len(read_rules(RULES_FILE))} rules are loaded")
    yield _check_rule_version(api, loaded)
    yield from _check_rule_evaluation(loaded, _query_server_time(api))
    yield _check_watchdog_rule(loaded)


_LOAD_RULES_ADVICE = (
    f"Run apscheduler-telemetry export DIRECTORY, add DIRECTORY/alerts/{RULES_FILE} to rule_files, "
    "and reload Prometheus."
)


def _parse_rules_of_group(group: Mapping[str, Any]) -> Iterator[LoadedRule]:
    """Yield our rules of a group."""
    for item in group["rules"]:
        if item["name"].startswith(_RULE_NAME_PREFIXES):
            yield LoadedRule(
                Rule(
                    item["name"],
                    group["name"],
                    item["query"],
                    float(item.get("duration", 0)),
                    item.get("labels") or {},
                ),
                item.get("state", ""),
                item["health"],
                item.get("lastError", ""),
                parse_time(item["lastEvaluation"]),
                float(group["interval"]),
                float(item["evaluationTime"]),
            )


def _find_missing_rules(rules: Sequence[Rule], loaded: Sequence[LoadedRule]) -> list[str]:
    """Return the names of rules that are loaded less often than they should be."""
    names = [each.rule.name for each in loaded]
    wanted = [rule.name for rule in rules]
    return [name for name in dict.fromkeys(wanted) if names.count(name) < wanted.count(name)]


def _check_rule_version(api: PrometheusApi, loaded: Sequence[LoadedRule]) -> CheckResult:
    """Compare what is loaded with the shipped rules."""
    shipped = [*read_rules(RULES_FILE), *read_rules(NATIVE_RULES_FILE)]
    differences = []
    for each in loaded:
        candidates = [rule for rule in shipped if rule.name == each.rule.name]
        # Those of `export --expect` depend on jobs.yml.
        if candidates and not any(
            not _find_rule_differences(api, rule, each.rule) for rule in candidates
        ):
            parts = min(
                (_find_rule_differences(api, rule, each.rule) for rule in candidates), key=len
            )
            differences.append(f"{each.rule.name} ({', '.join(parts)})")
    if not differences:
        return CheckResult("rule-version", OK, f"they are those of version {__version__}")
    return CheckResult(
        "rule-version",
        INFO,
        f"{len(differences)} rules differ from those of version {__version__}: "
        f"{abbreviate(differences)}",
        "If you have not changed them on purpose, export the rules again, and reload Prometheus.",
    )


def _find_rule_differences(api: PrometheusApi, shipped: Rule, loaded: Rule) -> list[str]:
    """Return in what a loaded rule differs; runbooks and texts may be the user's own."""
    parts = []
    if normalize_expression(shipped.expression) != normalize_expression(loaded.expression):
        # Prometheus itself knows best how it writes an expression.
        formatted = api.get("format_query", query=shipped.expression)
        if formatted is None or normalize_expression(formatted) != normalize_expression(
            loaded.expression
        ):
            parts.append("expr")
    if shipped.for_seconds != loaded.for_seconds:
        parts.append("for")
    if dict(shipped.labels) != dict(loaded.labels):
        parts.append("labels")
    return parts


def _check_rule_evaluation(loaded: Sequence[LoadedRule], now: datetime) -> Iterator[CheckResult]:
    code = "rule-evaluation"
    failing = [each for each in loaded if each.evaluation_health == "err"]
    if failing:
        yield CheckResult(
            code,
            SERIOUS,
            f"{len(failing)} rules fail: {abbreviate([each.rule.name for each in failing])}. "
            f"{failing[0].rule.name}: {failing[0].evaluation_error}",
            "See the log of Prometheus. If series collide, see whether the rules are loaded twice.",
        )
    late = {
        each.rule.group
        for each in loaded
        if each.evaluated_at.year > _LAST_YEAR_MEANING_NEVER
        and now - each.evaluated_at
        > max(
            timedelta(seconds=each.evaluation_interval * _LATE_AFTER_INTERVALS),
            _MIN_LATE_EVALUATION_AGE,
        )
    }
    durations: dict[str, float] = {}
    intervals: dict[str, float] = {}
    for each in loaded:
        group = each.rule.group
        durations[group] = durations.get(group, 0) + each.evaluation_duration
        intervals[group] = each.evaluation_interval
    slow = [name for name, seconds in durations.items() if seconds > intervals[name]]
    if late:
        yield CheckResult(
            code,
            SERIOUS,
            f"The last evaluation of {abbreviate(sorted(late))} is more than "
            f"{_LATE_AFTER_INTERVALS} intervals ago",
            "See whether Prometheus is overloaded, and its log.",
        )
    if slow:
        yield CheckResult(
            code,
            SERIOUS,
            f"The evaluation of {abbreviate(slow)} takes longer than its interval",
            "Give Prometheus more CPU time, or evaluate less often, at least once a minute.",
        )
    if failing or late or slow:
        return
    waiting = [
        each.rule.name for each in loaded if each.evaluated_at.year <= _LAST_YEAR_MEANING_NEVER
    ]
    rare = [
        name for name, seconds in intervals.items() if seconds > _MAX_EVALUATION_INTERVAL_SECONDS
    ]
    if waiting:
        message = f"{len(waiting)} rules were not evaluated yet"
        yield CheckResult(code, INFO, message, "Wait for a minute, and call this command again.")
    elif rare:
        message = f"{abbreviate(rare)} are evaluated less than once a minute, so alerts are late"
        yield CheckResult(code, INFO, message, "Set evaluation_interval to 1m or less.")
    else:
        total = sum(durations.values())
        often = f"{min(intervals.values()):.0f} s"
        yield CheckResult(
            code, OK, f"without errors, every {often}, which takes {total:.3f} s in all"
        )


def _check_watchdog_rule(loaded: Sequence[LoadedRule]) -> CheckResult:
    states = [each.alert_state for each in loaded if each.rule.name == WATCHDOG_ALERT]
    if "firing" in states:
        return CheckResult("watchdog", OK, f"{WATCHDOG_ALERT} fires, as it always should")
    state = states[0] if states else "not loaded"
    return CheckResult(
        "watchdog",
        SERIOUS,
        f"{WATCHDOG_ALERT} should always fire, but is {state}",
        "Load its rule as it is. If Prometheus has just started, wait for the next evaluation.",
    )


def _check_stored_watchdog(api: PrometheusApi) -> Iterator[CheckResult]:
    """Check the series of the Watchdog, which vmalert writes to the server."""
    found = api.query(f'ALERTS{{alertname="{WATCHDOG_ALERT}",alertstate="firing"}}')
    if found:
        yield CheckResult("watchdog", OK, f"{WATCHDOG_ALERT} fires, as it always should")
    else:
        yield CheckResult(
            "watchdog",
            SERIOUS,
            f"{WATCHDOG_ALERT} should always fire, but this server has no series of it",
            "Evaluate the rules, and let vmalert write its results here with -remoteWrite.url.",
        )


def _query_server_time(api: PrometheusApi) -> datetime:
    """Return the time of the server, whose clock may differ; that of this machine without one."""
    try:
        return parsedate_to_datetime(api.build_info_answer.date)
    except (TypeError, ValueError):
        return datetime.now(timezone.utc)
