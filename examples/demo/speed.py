"""
Makes alert rules and the routes of an Alertmanager faster: ``speed.py FACTOR FILE`` prints them.

What takes an hour in production is to be watched in two minutes, so every duration is
divided: ``for``, ``keep_firing_for``, intervals, ranges, offsets, whole numbers of seconds in
expressions, and the waiting times of routes. What it cannot read is an error, as a rule that
stayed slow would look like a rule that does not work.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import yaml

LEAST_RANGE = 5.0
"""Seconds: a range has to hold some samples, which here are a second apart."""
LEAST_INTERVAL = 1.0
"""Seconds: Prometheus evaluates no more often here, and Alertmanager needs not be hasty either."""
SECONDS_FROM = 60
"""Whole numbers in expressions are seconds from here on, and counts and ratios below."""

UNITS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
UNITS["y"] = 365 * UNITS["d"]

GROUP_KEYS = {"name", "interval", "limit", "rules", "query_offset", "labels"}
RULE_KEYS = {"record", "alert", "expr", "for", "keep_firing_for", "labels", "annotations"}
CONFIG_KEYS = {
    *("global", "templates", "route", "receivers", "inhibit_rules"),
    *("time_intervals", "mute_time_intervals"),
}
ROUTE_KEYS = {
    *("receiver", "group_by", "continue", "match", "match_re", "matchers", "routes"),
    *("group_wait", "group_interval", "repeat_interval"),
    *("mute_time_intervals", "active_time_intervals"),
}

DURATION = re.compile(r"(?:\d+(?:ms|[smhdwy]))+")
WORD = re.compile(
    r"""(?P<text> "(?:\\.|[^"\\])*" | '(?:\\.|[^'\\])*' | `[^`]*` )
    | (?P<comment> \#[^\n]* )
    | (?P<duration> (?:\d+(?:ms|[smhdwy]))+ (?![\w.]) )
    | (?P<name> :?[a-zA-Z_][\w:]* )
    | (?P<number> (?: \d+\.?\d* | \.\d+ ) (?:[eE][+-]?\d+)? (?![\w.]) )
    | (?P<space> \s+ )
    | (?P<sign> [-+*/%^=!<>~@,(){}\[\]:] )
    """,
    re.VERBOSE,
)


class SpeedError(ValueError):
    """Something that cannot be made faster, as it cannot be read."""


def faster_rules(text: str, factor: float) -> str:
    """
    Return a rules file of Prometheus, `factor` times faster.

    Raises:
        SpeedError: there is something in it that this does not know.
    """
    document = _mapping(yaml.safe_load(text), "the rules file", {"groups"})
    for group in document["groups"]:
        _mapping(group, "a group", GROUP_KEYS)
        where = f"group {group['name']}"
        _divide(group, "interval", factor, LEAST_INTERVAL, where)
        _divide(group, "query_offset", factor, 0, where)
        for rule in group["rules"]:
            _mapping(rule, f"a rule of {where}", RULE_KEYS)
            where = str(rule.get("alert") or rule["record"])
            rule["expr"] = faster_expression(str(rule["expr"]), factor, where)
            _divide(rule, "for", factor, 0, where)
            _divide(rule, "keep_firing_for", factor, 0, where)
            for name, template in rule.get("annotations", {}).items():
                # Templates may contain queries. Their words are the same as in production.
                if re.search(r"{{[^}]*\bquery\b[^}]*(\[\d|\boffset\b)", template):
                    msg = f"{where}: the annotation {name} queries over time, which stays slow"
                    raise SpeedError(msg)
    return _dumped(document)


def faster_routes(text: str, factor: float) -> str:
    """
    Return a configuration of Alertmanager, `factor` times faster.

    The calendar cannot be made faster, so times at which routes are mute or active are left out.

    Raises:
        SpeedError: there is something in it that this does not know.
    """
    document = _mapping(yaml.safe_load(text), "the configuration", CONFIG_KEYS)
    _divide(document.get("global", {}), "resolve_timeout", factor, LEAST_INTERVAL, "global")
    document.pop("time_intervals", None)
    document.pop("mute_time_intervals", None)
    routes = [document["route"]]
    for route in routes:  # which grows
        _mapping(route, "a route", ROUTE_KEYS)
        where = f"route to {route.get('receiver', 'the same receiver')}"
        route.pop("mute_time_intervals", None)
        route.pop("active_time_intervals", None)
        for wait in ("group_wait", "group_interval", "repeat_interval"):
            _divide(route, wait, factor, LEAST_INTERVAL, where)
        routes += route.get("routes", ())
    # Without a value, slow defaults apply.
    for wait, seconds in (("group_wait", 30), ("group_interval", 300), ("repeat_interval", 14400)):
        document["route"].setdefault(wait, _last_written(max(LEAST_INTERVAL, seconds / factor)))
    return _dumped(document)


def faster_expression(expression: str, factor: float, where: str = "expression") -> str:
    """
    Return a PromQL expression in which time goes `factor` times faster.

    Values that the application exports do not change: that for an absent series, as in
    ``series * 0 + 60``, and that of a series which is left out, as in ``!= 60``.

    Raises:
        SpeedError: there is a number of which it is not plain whether it is a time.
    """
    written: list[str] = []
    in_front: list[str] = []  # the words before this one, without spaces and comments
    for kind, word in _words(expression, where):
        last = in_front[-1] if in_front else ""
        if kind == "duration":
            least = LEAST_RANGE if last == "[" else LEAST_INTERVAL
            if last not in {"[", ":", "offset"} and in_front[-2:] != ["offset", "-"]:
                msg = f"{where}: the duration {word} is neither a range, a step nor an offset"
                raise SpeedError(msg)
            written.append(_last_written(max(least, seconds(word) / factor)))
        elif in_front[-3:] == ["*", "0", "+"] or in_front[-2:] == ["!", "="]:
            written.append(word)
        elif kind == "number" and float(word) >= SECONDS_FROM:
            if not word.isdigit():
                msg = f"{where}: is {word} a number of seconds? Write those as whole numbers"
                raise SpeedError(msg)
            written.append(_number(Fraction(int(word)) / Fraction(factor)))
        else:
            written.append(word)
        if kind not in {"space", "comment"}:
            in_front.append(word.lower())
    return "".join(written)


def seconds(duration: str) -> float:
    """
    Return the seconds of a duration as Prometheus writes them, such as ``1h30m``.

    Raises:
        SpeedError: it is none.
    """
    if duration == "0":
        return 0.0
    if not DURATION.fullmatch(duration):
        msg = f"{duration!r} is no duration, such as 90s or 1h30m"
        raise SpeedError(msg)
    parts = re.findall(r"(\d+)(ms|[smhdwy])", duration)
    return sum(int(count) * UNITS[unit] for count, unit in parts) / 1000


def _words(expression: str, where: str) -> Iterator[tuple[str, str]]:
    position = 0
    while position < len(expression):
        found = WORD.match(expression, position)
        if found is None:
            msg = f"{where}: cannot read the expression from {expression[position:][:40]!r}"
            raise SpeedError(msg)
        yield str(found.lastgroup), found[0]
        position = found.end()


def _divide(mapping: dict[str, Any], key: str, factor: float, least: float, where: str) -> None:
    if key not in mapping:
        return
    try:
        slow = seconds(str(mapping[key]))
    except SpeedError as error:
        msg = f"{where}: {key}: {error}"
        raise SpeedError(msg) from None
    mapping[key] = _last_written(max(least, slow / factor))


def _mapping(value: Any, what: str, known: set[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        msg = f"{what} is no mapping but {value!r}"
        raise SpeedError(msg)
    unknown = sorted(value.keys() - known)
    if unknown:
        msg = f"{what} has {', '.join(map(str, unknown))}, which may be a time or not"
        raise SpeedError(msg)
    return value


def _last_written(duration: float) -> str:
    milliseconds = round(duration * 1000)
    if milliseconds % 1000:
        return f"{milliseconds}ms"
    return f"{milliseconds // 1000}s"


def _number(value: Fraction) -> str:
    return str(value.numerator) if value.denominator == 1 else f"{float(value):.6f}"


def _dumped(document: dict[str, Any]) -> str:
    text: str = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=1000)
    return text


def main(factor: str, file: str) -> int:
    """Print a file, faster; whether it has rules or routes is seen from what is in it."""
    text = Path(file).read_text(encoding="utf-8")
    has_rules = "groups" in (yaml.safe_load(text) or {})
    try:
        sys.stdout.write((faster_rules if has_rules else faster_routes)(text, float(factor)))
    except SpeedError as error:
        print(f"{file}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
