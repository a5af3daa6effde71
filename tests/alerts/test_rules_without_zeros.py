"""
The rules with series that are absent where others send 0.

`/metrics` leaves out what is usual: see "Usual values" in `docs/metrics.md`. By
OTLP these series exist. The cases in `alerts/tests` have most of them; here promtool runs the same
cases without.
"""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.metrics import LONGEST, SHORTEST, VALUES_OMITTED_FROM_SCRAPES
from tests.helpers.paths import ROOT
from tests.helpers.promtool import run_rule_tests

yaml = pytest.importorskip("yaml")

pytestmark = [pytest.mark.integration, pytest.mark.slow]

RULES = ROOT / "alerts" / "apscheduler.rules.yml"
TESTS = sorted((ROOT / "alerts" / "tests").glob("*.yml"))

MISSING, STALE = "_", "stale"

ALWAYS = 'outcome="success"'


def expand(values: str) -> list[str]:
    """Return the samples of promtool's notation, such as ``_x2 600x7 0+60x9 stale``."""
    samples: list[str] = []
    for word in values.split():
        match = re.fullmatch(r"(_|stale|Inf|[-\d.e]+)(?:([+-][\d.e]+))?(?:x(\d+))?", word)
        assert match, word
        start, step, times = match[1], float(match[2] or 0), int(match[3] or 0)
        if start in {MISSING, STALE}:
            samples += [start] * (times or 1)
        else:
            samples += [f"{float(start) + step * n:g}" if step else start for n in range(times + 1)]
    return samples


def leave_out(samples: list[str], usual: str) -> list[str]:
    """Return samples without those that have the usual value."""
    kept = [MISSING if sample == usual else sample for sample in samples]
    ended = [MISSING, *kept]
    return [
        STALE if now == MISSING and original == usual and before not in {MISSING, STALE} else now
        for (before, now), original in zip(pairwise(ended), samples, strict=True)
    ]


def without_usual_values(series: dict[str, str]) -> dict[str, str]:
    """Return the input of a case as `/metrics` has it."""
    expanded = {name: expand(values) for name, values in series.items()}
    sparse = {}
    for name, all_samples in expanded.items():
        samples, key = all_samples, name
        metric = name.partition("{")[0]
        if metric in VALUES_OMITTED_FROM_SCRAPES and ALWAYS not in name:
            samples = leave_out(samples, f"{VALUES_OMITTED_FROM_SCRAPES[metric]:g}")
        elif metric == LONGEST:
            shortest = name.replace(LONGEST, SHORTEST)
            key = name if shortest in expanded else shortest
            if expanded.get(shortest) == samples:
                continue
        if any(sample != MISSING for sample in samples):
            sparse[key] = " ".join(samples)
    return sparse


def rules_for_alerts_named_in(cases: str) -> str:
    """Return the rules without the alerts that the cases do not name, which takes less time."""
    rules = yaml.safe_load(RULES.read_text(encoding="utf-8"))
    for group in rules["groups"]:
        group["rules"] = [rule for rule in group["rules"] if rule.get("alert", "") in cases]
    return json.dumps(rules)


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_all_cases_of_a_file_pass(path: Path, tmp_path: Path) -> None:
    """All cases of a file pass without the series that `/metrics` leaves out."""
    text = path.read_text(encoding="utf-8")
    document: dict[str, Any] = yaml.safe_load(text)
    document["rule_files"] = ["rules.yml"]
    (tmp_path / "rules.yml").write_text(rules_for_alerts_named_in(text), encoding="utf-8")
    # Read as texts, because `0x30` is a number for YAML.
    texts = yaml.load(text, Loader=yaml.BaseLoader)
    changed_cases = []
    for case, written in zip(document["tests"], texts["tests"], strict=True):
        series = {one["series"]: one["values"] for one in written["input_series"]}
        sparse_series = without_usual_values(series)
        if sparse_series == {name: " ".join(expand(values)) for name, values in series.items()}:
            continue  # it is among the cases of `test_alert_rules.py`
        case["input_series"] = [
            {"series": name, "values": values} for name, values in sparse_series.items()
        ]
        changed_cases.append(case)
    if not changed_cases:
        pytest.skip("no case has a series that /metrics leaves out")
    document["tests"] = changed_cases
    sparse = tmp_path / path.name
    sparse.write_text(json.dumps(document), encoding="utf-8")  # JSON is YAML
    ran = run_rule_tests(sparse)
    assert ran.returncode == 0, ran.stdout + ran.stderr


class TestNotation:
    """What this file does with promtool's notation."""

    def test_values_are_expanded(self) -> None:
        """Repeated values, steps, gaps and ends are expanded."""
        assert expand("_x2 60x1 0+5x2 stale 7") == [
            "_",
            "_",
            "60",
            "60",
            "0",
            "5",
            "10",
            "stale",
            "7",
        ]

    def test_a_series_ends_where_its_value_is_usual(self) -> None:
        """The first usual value ends the series, and further ones are missing."""
        assert leave_out(["_", "0", "3", "0", "0", "stale", "1"], "0") == [
            *("_", "_", "3", "stale", "_", "stale", "1")
        ]
