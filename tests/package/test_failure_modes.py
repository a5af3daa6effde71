"""The page about failure modes: each row names an existing test, each alert a rule."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.once

from tests.helpers.paths import ROOT

PAGE = (ROOT / "docs" / "failures.md").read_text("utf-8")


def section(heading: str) -> str:
    return PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]


def methods_of(path: Path) -> set[str]:
    """Return the tests of a file, as ``Class.test``."""
    return {
        f"{outer.name}.{inner.name}"
        for outer in ast.parse(path.read_text("utf-8")).body
        if isinstance(outer, ast.ClassDef)
        for inner in outer.body
        if isinstance(inner, (ast.FunctionDef, ast.AsyncFunctionDef))
    }


class TestSituations:
    """The table of failures that APScheduler hides."""

    def test_each_names_a_test_that_exists(self) -> None:
        rows = [
            row
            for row in section("What APScheduler hides").splitlines()
            if row.startswith("| ") and not row.startswith("| situation")
        ]
        assert len(rows) >= 15
        missing = []
        for row in rows:
            named = re.findall(r"\[`([\w.]+)`\]\(\.\./(tests/[\w/]+\.py)\)", row)
            if not named or any(test not in methods_of(ROOT / path) for test, path in named):
                missing.append(row)
        assert missing == []


class TestAlerts:
    """The alerts that detect these failures."""

    def test_each_is_one_of_the_rules(self) -> None:
        rules = (ROOT / "alerts" / "apscheduler.rules.yml").read_text("utf-8")
        named = re.findall(r"`(APScheduler\w+)`", section("The alerts that detect them"))
        assert len(named) >= 15
        assert set(named) <= set(re.findall(r"alert: (\w+)", rules))
