"""Dashboards as Grafana uses them: their parts, and queries with variables filled in."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from tests.helpers import grafana_queries
from tests.helpers.paths import ROOT

DASHBOARDS = ROOT / "grafana" / "dashboards"
ALL = "$__all"

HISTOGRAMS = ("apscheduler_job_run_duration_seconds", "apscheduler_job_start_delay_seconds")
"""Their names, which native histograms have; classic ones have `_bucket`, `_sum` and `_count`."""

Values = Mapping[str, "str | Sequence[str]"]


@functools.cache  # some tests ask for it thousands of times
def load(name: str) -> dict[str, Any]:
    """Return a dashboard, which is not to be changed."""
    model: dict[str, Any] = json.loads((DASHBOARDS / f"{name}.json").read_text(encoding="utf-8"))
    return model


def panels(dashboard: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return all panels except rows."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def variables(dashboard: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the variables by name."""
    return {variable["name"]: variable for variable in dashboard["templating"]["list"]}


@dataclass(frozen=True)
class Range:
    """The time range of a dashboard, and what Grafana derives from it."""

    seconds: float
    points: int = 600
    scrape: float = 1.0
    """Seconds between scrapes, as configured in the data source."""

    def interval(self, panel: Mapping[str, Any]) -> float:
        """Return $__interval in seconds, which is the step as well."""
        least = panel.get("interval")
        points: float = min(self.points, panel.get("maxDataPoints", self.points))
        return max(self.seconds / points, _seconds(least) if least else self.scrape)

    def values(self, panel: Mapping[str, Any]) -> dict[str, str]:
        """Return Grafana's own variables."""
        interval = self.interval(panel)
        rate = max(interval + self.scrape, 4 * self.scrape)
        return {
            "__interval": _duration(interval),
            "__rate_interval": _duration(rate),
            "__range": f"{round(self.seconds)}s",
            "__range_s": str(round(self.seconds)),
        }


def fill(text: str, model: Mapping[str, dict[str, Any]], chosen: Values, own: Values) -> str:
    """
    Return a query with its variables filled in, as Grafana does.

    The format `regex` escapes what is special in a regular expression (`escapeRegex` of
    @grafana/data), and joins several values as alternatives. "All" is the variable's `allValue`,
    without any escaping.
    """

    def value(found: re.Match[str]) -> str:
        name, form = found["name"] or found["plain"], found["form"]
        if name in own:
            return str(own[name])
        if name.isdigit():  # `$1` of label_replace, which Grafana knows nothing of and leaves
            return found[0]
        picked = chosen[name]
        values = [picked] if isinstance(picked, str) else list(picked)
        if values == [ALL]:
            assert model[name]["includeAll"], name
            return str(model[name]["allValue"])
        assert len(values) == 1 or model[name]["multi"], name
        assert form == "regex", f"{name} is not escaped"
        escaped = [re.sub(r"[\\^$*+?.()|\[\]{}/]", r"\\\g<0>", value) for value in values]
        return escaped[0] if len(escaped) == 1 else f"({'|'.join(escaped)})"

    return re.sub(r"\$\{(?P<name>\w+)(?::(?P<form>\w+))?\}|\$(?P<plain>\w+)", value, text)


def queries(dashboard: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield each query in PromQL with the panel that it is in."""
    yield from queries_of("prometheus", dashboard)


def queries_of(
    source: str, dashboard: Mapping[str, Any]
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield each query of a kind of data source with the panel that it is in."""
    for panel in panels(dashboard):
        for target in panel["targets"]:
            if target["datasource"]["type"] == source:
                yield panel, target


def conditions(query: str) -> dict[str, str]:
    """Return the regular expressions of a query for Tempo or Loki, by field."""
    return dict(re.findall(r"([\w.:]+) ?=~ ?`([^`]*)`", query))


def names_in_loki(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return attributes by the names that Loki gives them."""
    return {re.sub(r"\W", "_", key): value for key, value in attributes.items()}


def selectors(expression: str) -> Iterator[tuple[str, str]]:
    """Yield metric and matchers of each selector; each metric must have matchers."""
    found = r"([a-zA-Z_:][\w:]*|(?<![\w:]))\{((?:`[^`]*`|\"[^\"]*\"|[^`\"}])*)\}"
    rest = re.sub(r'"[^"]*"', '""', re.sub(found, "", expression))
    assert not re.search(r"(apscheduler|process|scrape)_|ALERTS", rest), expression
    yield from re.findall(found, expression)


def _seconds(duration: str) -> float:
    found = re.fullmatch(r"(\d+)(s|m|h)", duration)
    assert found, duration
    return int(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]]


def _duration(seconds: float) -> str:
    milliseconds = round(seconds * 1000)
    return f"{milliseconds}ms" if milliseconds % 1000 else f"{milliseconds // 1000}s"


NAMES = ("overview", "job", "scheduler", "runs")

each_dashboard = pytest.mark.parametrize("name", NAMES)


def every_query() -> list[Any]:
    """Return each query of each panel as a parameter with a readable id."""
    return [
        pytest.param(name, panel["title"], target["refId"], id=f"{name}-{panel['title']}-{ref}")
        for name in NAMES
        for panel, target in grafana_queries.queries(grafana_queries.load(name))
        for ref in [target["refId"]]
    ]


def find(name: str, title: str, ref: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a panel and its query."""
    for panel, target in grafana_queries.queries(grafana_queries.load(name)):
        if (panel["title"], target["refId"]) == (title, ref):
            return panel, target
    raise LookupError(title)
