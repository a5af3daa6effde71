"""
The shipped rule files, and a form of expressions in which equal ones are the same.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from apscheduler_telemetry.cli.shipped_files import find_shipped_directory
from apscheduler_telemetry.cli.yaml_library import import_yaml

RULES_FILE = "apscheduler.rules.yml"
NATIVE_RULES_FILE = "apscheduler.native.rules.yml"
WATCHDOG_ALERT = "APSchedulerWatchdog"
SEVERITIES = ("critical", "warning", "info")

_TOKEN_PATTERN = re.compile(
    r"""
    (?P<space>\s+ | \#[^\n]*)
    | (?P<string>"(?:[^"\\]|\\.)*" | '(?:[^'\\]|\\.)*' | `[^`]*`)
    | (?P<duration>(?:\d+(?:ms|[smhdwy]))+\b)
    | (?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?\b)
    | (?P<name>[A-Za-z_:][\w:]*)
    | (?P<operator>=~|!~|!=|==|<=|>=|.)
    """,
    re.VERBOSE,
)
_DURATION_PART_PATTERN = re.compile(r"(\d+)(ms|[smhdwy])")
_SECONDS_BY_UNIT = {
    "ms": 0.001,
    "s": 1,
    "m": 60,
    "h": 3_600,
    "d": 86_400,
    "w": 604_800,
    "y": 31_536_000,
}
_ESCAPED_CHARACTERS = {"n": "\n", "t": "\t"}
_DEFAULT_SEVERITY_PATTERN = re.compile(r"\{\{ else \}\}(\w+)\{\{ end \}\}")


class Rule(NamedTuple):
    """
    A rule of a file, or of the API.

    Attributes:
        name: of the alert, or of the recorded series.
        group: the name of its group.
        expression: in PromQL.
        for_seconds: how long the expression must be true; 0 for recording rules.
        labels: what the rule adds or replaces.
    """

    name: str
    group: str
    expression: str
    for_seconds: float
    labels: Mapping[str, str]


@functools.cache
def read_rules(file_name: str) -> Sequence[Rule]:
    """Return the rules of one of the shipped files."""
    text = (find_shipped_directory() / "alerts" / file_name).read_text("utf-8")
    return [
        Rule(
            rule.get("alert") or rule["record"],
            group["name"],
            rule["expr"],
            parse_duration(rule.get("for", "0s")),
            rule.get("labels", {}),
        )
        for group in import_yaml().safe_load(text)["groups"]
        for rule in group["rules"]
    ]


def alerts_by_severity() -> dict[str, list[str]]:
    """
    Return the names of the alerts that can have each severity.

    For alerts on single jobs, that is any severity: the application may set it.
    """
    found: dict[str, list[str]] = {severity: [] for severity in SEVERITIES}
    for rule in read_rules(RULES_FILE):
        severity = rule.labels.get("severity", "")
        for each in SEVERITIES:
            if severity == each or _DEFAULT_SEVERITY_PATTERN.search(severity):
                found[each].append(rule.name)
    return {severity: list(dict.fromkeys(names)) for severity, names in found.items()}


def parse_duration(text: str) -> float:
    """Return the seconds of a duration of Prometheus, such as ``1h30m``."""
    return sum(
        int(number) * _SECONDS_BY_UNIT[unit]
        for number, unit in _DURATION_PART_PATTERN.findall(text)
    )


def normalize_expression(expression: str) -> Sequence[str]:
    """
    Return the tokens of an expression, so that only its formatting is lost.

    Servers return expressions on one line, with other quotes and units than in the file.
    """
    return list(_yield_normalized_tokens(expression))


def _yield_normalized_tokens(expression: str) -> Iterator[str]:
    for match in _TOKEN_PATTERN.finditer(expression):
        kind, text = match.lastgroup, match[0]
        if kind == "duration":
            yield str(float(parse_duration(text)))
        elif kind == "number":
            yield str(float(text))
        elif kind == "string":
            yield _normalize_quoting(text)
        elif kind != "space":
            yield text


def _normalize_quoting(text: str) -> str:
    """Return a string in double quotes, with escapes only of these and of backslashes."""
    inner = text[1:-1]
    if text[0] != "`":
        inner = re.sub(r"\\(.)", lambda match: _ESCAPED_CHARACTERS.get(match[1], match[1]), inner)
    escaped = inner.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
