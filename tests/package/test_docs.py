"""The documentation is correct: links have targets, named tests and metrics exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from apscheduler_telemetry.export.metric_families import FAMILIES, MetricKind
from apscheduler_telemetry.export.prometheus import PrometheusExporter
from tests.helpers.paths import ROOT

pytestmark = pytest.mark.once

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


UNTESTED = {"the store is in memory"}
"""Faults of which nothing is to be seen from within; the alert's own test is elsewhere."""


def anchors(page: Path) -> set[str]:
    """Return the anchors that a Markdown page has, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def named_tests(path: Path) -> set[str]:
    """Return the tests of a file, as ``Class.test``."""
    return {
        f"{outer.name}.{inner.name}"
        for outer in ast.parse(path.read_text()).body
        if isinstance(outer, ast.ClassDef)
        for inner in outer.body
        if isinstance(inner, (ast.FunctionDef, ast.AsyncFunctionDef))
    }


class TestLinks:
    """Links between pages, and to files."""

    @pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
    def test_links_lead_to_existing_files_and_headings(self, page: Path) -> None:
        """Every relative link leads to an existing file and heading."""
        broken = []
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            if re.match(r"[a-z]+:", target):
                continue
            name, _, anchor = target.partition("#")
            path = (page.parent / name).resolve() if name else page
            if not path.exists() or (anchor and anchor not in anchors(path)):
                broken.append(target)
        assert broken == []


class TestReliability:
    """The table of failure modes."""

    def test_each_fault_names_a_test(self) -> None:
        """Each row names existing tests in the file that its section links to, or says why not."""
        wrong = []
        for section in (ROOT / "docs" / "reliability.md").read_text().split("\n## ")[1:]:
            linked = [ROOT / path for path in re.findall(r"\]\(\.\./(tests/[\w/.]+)\)", section)]
            paths = [
                path for each in linked for path in (each.glob("*.py") if each.is_dir() else [each])
            ]
            known = {test for path in paths for test in named_tests(path)}
            known |= {part for test in known for part in test.split(".")}
            known |= {
                d
                for path in paths
                for d in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
            }
            for row in re.findall(r"^\| (?!fault|---)(.*) \|$", section, re.MULTILINE):
                fault, tests, seen = row.split(" | ", 2)
                named = re.findall(r"`([\w.]+)`", tests)
                if not seen or not (named or fault in UNTESTED) or not known.issuperset(named):
                    wrong.append(fault)
        assert wrong == []


class TestContributing:
    """The table of features and their tests."""

    def test_table_of_features_has_every_test_file_once(self) -> None:
        """Each file in the table exists, and each test file is in it once."""
        page = (ROOT / "CONTRIBUTING.md").read_text()
        section = page.split("## Which test shows what")[1].split("\n## ")[0]
        named = re.findall(r"\[([\w/]+\.py)\]\((tests/[\w/]+\.py)\)", section)
        assert [f"tests/{text}" for text, _ in named] == [path for _, path in named]
        files = [path.relative_to(ROOT).as_posix() for path in ROOT.glob("tests/**/test_*.py")]
        assert sorted(path for _, path in named) == sorted(files)

    def test_no_file_of_tests_has_more_than_700_lines(self) -> None:
        """No test file has more than 700 lines, as a longer one is about several features."""
        lengths = {path: len(path.read_text().splitlines()) for path in ROOT.glob("tests/**/*.py")}
        assert {path: n for path, n in lengths.items() if n > 700} == {}


class TestMetricsPage:
    """The tables of metrics."""

    def test_page_lists_what_the_collector_shows(self) -> None:
        """The table has name, type and labels of every family, and no others."""
        page = (ROOT / "docs" / "metrics.md").read_text()
        documented = {
            (name, kind, frozenset({"scheduler", *re.findall(r"`(\w+)`", labels)}))
            for name, kind, labels in re.findall(
                r"^\| `(apscheduler_\w+)` \| (\w+) \| ([^|]*)\|", page, re.MULTILINE
            )
        }
        shown = {
            (
                family.name + ("_total" if family.type == "counter" else ""),
                family.type,
                frozenset(family._labelnames),  # type: ignore[attr-defined]
            )
            for family in PrometheusExporter(CollectorRegistry()).describe()
        }
        assert documented == shown


class TestOpenTelemetryPage:
    def test_page_lists_the_metrics_that_exist(self) -> None:
        """The table has name, instrument, unit, attributes and translation of each metric."""
        page = (ROOT / "docs" / "opentelemetry.md").read_text()
        documented = {
            (*found[:3], tuple(re.findall(r"`(\w+)`", found[3])), found[4])
            for found in re.findall(
                r"^\| `(apscheduler\.[\w.]+)` \| ([\w -]+) \| `([^`]+)` \| ([^|]*)\| `(\w+)` \|$",
                page,
                re.MULTILINE,
            )
        }
        kinds = {
            MetricKind.COUNTER: "observable counter",
            MetricKind.GAUGE: "observable gauge",
            MetricKind.UP_DOWN_COUNTER: "observable up-down counter",
            MetricKind.HISTOGRAM: "histogram",
        }
        assert documented == {
            (
                family.name,
                kinds[family.kind],
                family.unit,
                tuple(label for label in family.labels if label != "scheduler"),
                family.prometheus_family_name
                + ("_total" if family.kind is MetricKind.COUNTER else ""),
            )
            for family in FAMILIES
        }
