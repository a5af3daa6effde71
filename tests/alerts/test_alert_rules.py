"""
The alert rules: promtool runs their cases in `alerts/tests`, and these tests check completeness.

Every alert must have a case in which it fires, one in which it does not, and a section of the
runbook. Rules may only use what Prometheus 2.42 and the exposition have.
"""

from __future__ import annotations

import functools
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from apscheduler_telemetry.cli import never_seen_rules
from tests.helpers.paths import ROOT
from tests.helpers.promtool import run_rule_tests
from tests.helpers.servers import required_program

yaml = pytest.importorskip("yaml")

pytestmark = pytest.mark.integration

RULES = ROOT / "alerts" / "apscheduler.rules.yml"
NATIVE_RULES = ROOT / "alerts" / "apscheduler.native.rules.yml"
TESTS = sorted((ROOT / "alerts" / "tests").glob("*.yml"))
RUNBOOK = ROOT / "docs" / "runbook.md"
RUNBOOK_URL = (
    "https://github.com/apscheduler-telemetry/apscheduler-telemetry/blob/main/docs/runbook.md"
)
YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where it is built
SECTIONS = ["Meaning", "Impact", "Diagnosis", "Mitigation"]

TEMPLATES = ROOT / "alerts" / "templates" / "apscheduler.tmpl"
TIME_LAYOUT = "2006-01-02 15:04:05 UTC"
"""The only layout for times in annotations and messages, as Go's reference time."""

GENERATED = {never_seen_rules.NEVER_SEEN_ALERT}
"""Alerts that `apscheduler-telemetry export --expect` writes; see test_never_seen.py."""

NEVER_SILENT = {"APSchedulerWatchdog"}
"""What has no silent case, as firing is all that it is for."""

FUNCTIONS = frozenset(
    re.findall(
        r"\w+",
        """
        abs absent absent_over_time acos acosh asin asinh atan atanh avg_over_time ceil changes
        clamp clamp_max clamp_min cos cosh count_over_time day_of_month day_of_week day_of_year
        days_in_month deg delta deriv exp floor histogram_count histogram_fraction
        histogram_quantile histogram_sum holt_winters hour idelta increase irate label_join
        label_replace last_over_time ln log10 log2 max_over_time min_over_time minute month pi
        predict_linear present_over_time quantile_over_time rad rate resets round scalar sgn sin
        sinh sort sort_desc sqrt stddev_over_time stdvar_over_time sum_over_time tan tanh time
        timestamp vector year
        """,
    )
)
"""Of Prometheus 2.42. Version 3 has them all but `holt_winters`, under another name."""
REMOVED = {"holt_winters"}
AGGREGATIONS = {"avg", "bottomk", "count", "count_values", "group", "max", "min", "quantile"}
AGGREGATIONS |= {"stddev", "stdvar", "sum", "topk"}
MODIFIERS = {"and", "or", "unless", "by", "without", "on", "ignoring", "group_left", "group_right"}


@functools.cache
def load(path: Path) -> dict[str, Any]:
    """Return the content of a file of YAML, which no test changes."""
    document: dict[str, Any] = yaml.load(path.read_text(encoding="utf-8"), Loader=YAML_LOADER)
    return document


GROUPS = load(RULES)["groups"]
NATIVE = [rule for group in load(NATIVE_RULES)["groups"] for rule in group["rules"]]
RECORDED = [rule for group in GROUPS for rule in group["rules"] if "record" in rule]
ALERTS = [rule for group in GROUPS for rule in group["rules"] if "alert" in rule]
NAMES = sorted({rule["alert"] for rule in ALERTS})
CASES = [
    case
    for path in TESTS
    for test in load(path)["tests"]
    for case in test.get("alert_rule_test", ())
]


def names_of(rule: dict[str, Any]) -> str:
    return str(rule.get("alert") or rule["record"])


def bare(expression: str) -> str:
    """Return an expression without its texts and comments."""
    return re.sub(r'"(?:\\.|[^"\\])*"|#[^\n]*', "", expression)


def metrics_in(expression: str) -> set[str]:
    """Return the metrics that an expression selects by name."""
    by_regex = re.findall(r'__name__=~"([^"]*)"', expression)
    assert by_regex == [], "the metrics of a rule must be named, not matched by a pattern"
    return set(re.findall(r"\bapscheduler_[\w:]+", bare(expression)))


def expressions(rule: dict[str, Any]) -> list[str]:
    """Return what a rule asks: its expression, and the queries of its templates."""
    templates = rule.get("annotations", {}).values()
    queries = [
        query for text in templates for query in re.findall(r'printf "([^"]*\{[^"]*)"', text)
    ]
    return [rule["expr"], *(re.sub(r"\{[^}]*\}", "", query) for query in queries)]


def runbook() -> dict[str, list[str]]:
    """Return the headings of the runbook that name alerts, each with the headings below it."""
    pages: dict[str, list[str]] = {}
    page: list[str] = []
    for level, title in re.findall(r"^(##|###) (.+)$", RUNBOOK.read_text("utf-8"), re.MULTILINE):
        if level == "##":
            page = []
            if title.startswith("APScheduler"):
                pages[title] = page
        else:
            page.append(title)
    return pages


@pytest.fixture(scope="module")
def promtool() -> str:
    """Return the path of promtool, which comes with Prometheus."""
    return required_program("promtool")


class TestPromtool:
    """The checks and tests of promtool."""

    @pytest.mark.parametrize("path", [RULES, NATIVE_RULES], ids=lambda path: path.name)
    def test_rules_are_valid(self, promtool: str, path: Path) -> None:
        """The rules load, and no rule exists twice."""
        checked = subprocess.run(
            [promtool, "check", "rules", "--lint=all", "--lint-fatal", path],
            capture_output=True,
            text=True,
            check=False,
        )
        assert checked.returncode == 0, checked.stdout + checked.stderr

    @pytest.mark.slow
    @pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
    def test_all_cases_of_a_file_pass(self, path: Path) -> None:
        """All cases of a file pass in promtool."""
        ran = run_rule_tests(path)
        assert ran.returncode == 0, ran.stdout + ran.stderr


class TestCases:
    """The cases in `alerts/tests` are complete."""

    def test_there_are_cases(self) -> None:
        """The tests below find cases to check."""
        assert TESTS
        assert len(NAMES) > 20

    @pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
    def test_each_file_evaluates_the_groups_in_the_order_of_the_rules(self, path: Path) -> None:
        """Each file lists the rule groups in order; promtool shuffles them otherwise."""
        document = load(path)
        assert document["rule_files"] == ["../apscheduler.rules.yml"]
        assert document["group_eval_order"] == [group["name"] for group in GROUPS]

    def test_each_case_has_a_name_of_its_own(self) -> None:
        """Each case has a unique name, so that a failure identifies it."""
        names = [test.get("name") for path in TESTS for test in load(path)["tests"]]
        assert all(names)
        assert len(set(names)) == len(names)

    @pytest.mark.parametrize("name", NAMES)
    def test_each_alert_has_a_case_in_which_it_fires(self, name: str) -> None:
        """Each alert has a case in which it fires, with all its labels and annotations."""
        fired = [
            alert for case in CASES if case["alertname"] == name for alert in case["exp_alerts"]
        ]
        assert fired
        for rule in ALERTS:
            if rule["alert"] == name:
                annotated = set(rule["annotations"])
                assert any(set(alert["exp_annotations"]) == annotated for alert in fired)

    @pytest.mark.parametrize("name", sorted(set(NAMES) - NEVER_SILENT))
    def test_each_alert_has_a_case_in_which_it_stays_silent(self, name: str) -> None:
        """Each alert has a case in which it does not fire."""
        assert any(case["alertname"] == name and not case["exp_alerts"] for case in CASES)

    def test_no_case_is_about_an_unknown_alert(self) -> None:
        """Each case names an alert that exists; an unknown alert would always stay silent."""
        assert {case["alertname"] for case in CASES} <= set(NAMES)
        mentioned = {
            name
            for path in TESTS
            for name in re.findall(r"\bAPScheduler[A-Z]\w+", path.read_text("utf-8"))
        }
        assert mentioned <= set(NAMES)

    def test_no_case_uses_an_unknown_metric(self) -> None:
        """The input of each case has only metrics of the exposition, and of the native rules."""
        fed = {
            series["series"].split("{")[0]
            for path in TESTS
            for test in load(path)["tests"]
            for series in test["input_series"]
        }
        assert fed <= exposed() | {rule["record"] for rule in NATIVE}


def exposed() -> set[str]:
    """Return the names of all series that the page of metrics documents."""
    page = (ROOT / "docs" / "metrics.md").read_text("utf-8")
    names = set()
    for name, kind in re.findall(r"^\| `(apscheduler_\w+)` \| (\w+) \|", page, re.MULTILINE):
        names |= (
            {name + end for end in ("", "_bucket", "_sum", "_count")}
            if kind == "histogram"
            else {name}
        )
    return names


class TestRules:
    """The rules are complete and consistent."""

    @pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
    def test_each_alert_has_severity_summary_description_and_runbook(
        self, rule: dict[str, Any]
    ) -> None:
        """Each alert has a severity, a fixed summary, a description and a runbook link."""
        assert rule["labels"]["severity"]
        annotations = rule["annotations"]
        assert re.fullmatch(r"[A-Z][^{}]*\.", annotations["summary"])
        assert annotations["description"].endswith(".")
        assert annotations["runbook_url"] == f"{RUNBOOK_URL}#{rule['alert'].lower()}"

    @pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
    def test_descriptions_name_the_subject_and_the_first_step(self, rule: dict[str, Any]) -> None:
        """A description names application, scheduler and job, and the first step to take."""
        description = rule["annotations"]["description"]
        if rule["alert"] != "APSchedulerWatchdog":
            assert "{{ $labels.job }}" in description
            assert "{{ $labels.scheduler }}" in description
            assert ". First " in description
        if "group_left (severity, owner)" in rule["expr"]:
            assert "{{ $labels.job_id }}" in description

    @pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
    def test_annotations_have_the_last_success_and_the_last_process(
        self, rule: dict[str, Any]
    ) -> None:
        """All alerts but the Watchdog have `last_seen`; alerts about jobs have `last_success`."""
        annotations = rule["annotations"]
        same = ALERTS[0]["annotations"]
        if rule["alert"] == "APSchedulerWatchdog":
            assert "last_seen" not in annotations
        else:
            assert annotations["last_seen"] == same["last_seen"]
        if "group_left (severity, owner)" in rule["expr"]:
            assert annotations["last_success"] == same["last_success"]
            assert "{{ else }}none seen{{ end }}" in annotations["last_success"]
        else:
            assert "last_success" not in annotations

    def test_times_have_one_layout(self) -> None:
        """All times in annotations and messages have the same format, with the time zone."""
        for text in (text for rule in ALERTS for text in rule["annotations"].values()):
            # Its first 19 characters, as vmalert 1.79 does not know toTime.
            assert text.count("humanizeTimestamp") == len(
                re.findall(r"\{\{ slice \([^()]+ \| humanizeTimestamp\) 0 19 \}\} UTC", text)
            )
            assert "toTime" not in text
        templates = TEMPLATES.read_text("utf-8")
        assert templates.count(".Format") == templates.count(f'.UTC.Format "{TIME_LAYOUT}"')
        assert "humanizeTimestamp" not in templates

    @pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
    def test_severities_are_those_of_the_routes(self, rule: dict[str, Any]) -> None:
        """A rule's severity is one that a route matches, or the job's with such a default."""
        severity = rule["labels"]["severity"]
        own = re.fullmatch(
            r"\{\{ with \$labels\.severity \}\}\{\{ \. \}\}\{\{ else \}\}(\w+)\{\{ end \}\}",
            severity,
        )
        known = {"critical", "warning", "info"}
        assert (own[1] if own else severity) in known | ({"none"} & {severity})
        assert ("group_left (severity, owner)" in rule["expr"]) == bool(own)

    @pytest.mark.parametrize("rule", RECORDED + ALERTS + NATIVE, ids=names_of)
    def test_functions_exist_in_prometheus_2_42_and_3(self, rule: dict[str, Any]) -> None:
        """Every function exists in Prometheus 2.42 and in version 3."""
        for expression in expressions(rule):
            called = set(re.findall(r"\b([a-z_][a-z0-9_]*)\s*\(", bare(expression)))
            assert called - AGGREGATIONS - MODIFIERS <= FUNCTIONS - REMOVED

    @pytest.mark.parametrize("rule", RECORDED + ALERTS + NATIVE, ids=names_of)
    def test_metrics_are_exposed_or_recorded(self, rule: dict[str, Any]) -> None:
        """Every metric is in the exposition, or recorded by a rule."""
        known = exposed() | {recorded["record"] for recorded in RECORDED + NATIVE}
        for expression in expressions(rule):
            assert metrics_in(expression) <= known

    def test_recorded_series_are_used(self) -> None:
        """Each recorded series is used by another rule."""
        used = {
            metric
            for rule in RECORDED + ALERTS
            for expression in expressions(rule)
            for metric in metrics_in(expression)
            if metric != rule.get("record")
        }
        assert {rule["record"] for rule in RECORDED} <= used


class TestRunbook:
    """The runbook has a section for every alert."""

    def test_there_is_a_section_for_each_alert_and_no_other(self) -> None:
        """The runbook has one section for each alert, and no other sections."""
        assert sorted(runbook().keys() - GENERATED) == NAMES

    @pytest.mark.parametrize("name", NAMES)
    def test_each_alert_has_meaning_impact_diagnosis_and_mitigation(self, name: str) -> None:
        """Each section has the parts meaning, impact, diagnosis and mitigation."""
        assert runbook().get(name) == SECTIONS

    def test_queries_ask_for_metrics_that_exist(self) -> None:
        """The queries in the runbook use metrics that exist."""
        known = exposed() | {rule["record"] for rule in RECORDED + NATIVE}
        queries = re.findall(r"```promql\n(.*?)```", RUNBOOK.read_text("utf-8"), re.DOTALL)
        assert queries
        asked = {
            metric
            for query in queries
            for metric in re.findall(r"\bapscheduler_[\w:]+", bare(query))
        }
        assert asked <= known
