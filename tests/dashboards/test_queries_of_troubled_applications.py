"""The queries of the dashboards, against a real Prometheus and applications with faults."""

from __future__ import annotations

import contextlib
import json
import math
import re
import runpy
import shutil
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from tests.applications.troubled import ODD
from tests.helpers import grafana_queries
from tests.helpers.grafana_queries import ALL, Range, each_dashboard, every_query, find
from tests.helpers.paths import APPLICATIONS, ROOT
from tests.helpers.servers import Prometheus, configured_prometheus, free_port, get, running_process
from tests.helpers.waiting import wait_for_answer

pytestmark = pytest.mark.once
RANGE = Range(seconds=8)
TROUBLES = ("report", "fails", "hangs", "killed", "skips", "late", "later", "folded", "paused")


class Watched:
    """A Prometheus over two applications in trouble; dashboards' queries are filled in and run."""

    def __init__(self, prometheus: Prometheus) -> None:
        self.prometheus = prometheus

    def ask(
        self,
        name: str,
        panel: Mapping[str, Any],
        target: Mapping[str, Any],
        **chosen: Any,
    ) -> list[tuple[dict[str, str], list[float]]]:
        """Return labels and values of what a panel's query has now."""
        expression = self.fill(name, target["expr"], panel, **chosen)
        if target.get("instant"):
            return [(m, [v]) for m, v in self.prometheus.query(expression)]
        return self.range(expression, RANGE.interval(panel))

    def fill(
        self, name: str, text: str, panel: Mapping[str, Any] = MappingProxyType({}), **chosen: Any
    ) -> str:
        """Return a text with its variables filled in; what is not chosen is all."""
        model = grafana_queries.variables(grafana_queries.load(name))
        values = {key: chosen.get(key, [ALL]) for key in model}
        return grafana_queries.fill(text, model, values, RANGE.values(panel))

    def range(self, expression: str, step: float) -> list[tuple[dict[str, str], list[float]]]:
        """Return labels and values of a query over the time range."""
        end = time.time()
        found = self.prometheus.api(
            "query_range",
            query=expression,
            start=str(end - RANGE.seconds),
            end=str(end),
            step=str(step),
        )
        return [
            (series["metric"], [float(value) for _, value in series["values"]])
            for series in found["result"]
        ]


@contextlib.contextmanager
def application(log: Path, *arguments: object) -> Iterator[tuple[int, Callable[[], None]]]:
    """Run an application, and yield its port and a function that kills it."""
    script = APPLICATIONS / "troubled.py"
    command = [sys.executable, str(script), *map(str, arguments)]
    with running_process(command, log) as process:
        [port] = wait_for_answer(lambda: re.findall(r"^(\d+)\n", log.read_text(), re.MULTILINE))
        yield int(port), process.kill


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """Start two applications that share names, a third one that is killed, and Prometheus."""
    binary = shutil.which("prometheus")
    if binary is None:
        pytest.skip("prometheus is not installed")
    pytest.importorskip("yaml")
    faster_rules = runpy.run_path(str(ROOT / "examples" / "demo" / "speed.py"))["faster_rules"]
    directory = tmp_path_factory.mktemp("dashboards")
    rules = directory / "rules.yml"
    rules.write_text(faster_rules((ROOT / "alerts" / "apscheduler.rules.yml").read_text(), 30))
    with contextlib.ExitStack() as stack:
        shop, _ = stack.enter_context(
            application(directory / "shop.log", "troubled", 0.01, "ShopError")
        )
        bank, _ = stack.enter_context(
            application(directory / "bank.log", "troubled", 0.3, "BankError")
        )
        doomed = free_port()
        server = stack.enter_context(
            scraping(binary, directory, rules, {"shop": [shop, doomed], "bank": [bank]})
        )
        # It starts twice, and dies before its next run.
        for life in (1, 2):
            with application(directory / f"doomed-{life}.log", "doomed", doomed) as (_, kill):
                wait_for_answer(
                    lambda life=life: (
                        server.value(  # type: ignore[misc]
                            "sum(changes(apscheduler_scheduler_start_timestamp_seconds"
                            '{scheduler="doomed"}[1m]))'
                        )
                        == life - 1
                    )
                )
                wait_for_answer(
                    lambda: server.value(
                        'apscheduler_job:promised_run_timestamp_seconds{scheduler="doomed"}'
                    )
                )
                kill()
        yield Watched(server)


@contextlib.contextmanager
def scraping(
    binary: str, directory: Path, rules: Path, targets: dict[str, list[int]]
) -> Iterator[Prometheus]:
    """Run a Prometheus that scrapes applications by name."""
    config = directory / "prometheus.yml"
    config.write_text(
        json.dumps(
            {
                "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
                "rule_files": [str(rules)],
                "scrape_configs": [
                    {
                        "job_name": name,
                        "static_configs": [{"targets": [f"127.0.0.1:{port}" for port in ports]}],
                    }
                    for name, ports in targets.items()
                ],
            }
        )
    )
    with configured_prometheus(binary, directory, config) as server:
        yield server


def plausible(panel: dict[str, Any], values: list[float]) -> bool:
    """Return whether values fit the unit and the mappings of a panel."""
    numbers = [value for value in values if not math.isnan(value)]
    if not numbers or not all(map(math.isfinite, numbers)):
        return False
    defaults = panel["fieldConfig"]["defaults"]
    codes = [
        code
        for mapping in defaults.get("mappings", ())
        if mapping["type"] == "value"
        for code in mapping["options"]
    ]
    if codes and panel["type"] in {"stat", "state-timeline"}:
        return all(str(round(number)) in codes for number in numbers)
    unit = defaults["unit"]
    if unit == "percentunit":
        return all(0 <= number <= 1 for number in numbers)
    if unit.startswith("dateTime"):
        return all(abs(number / 1000 - time.time()) < 7200 for number in numbers)
    if unit == "s" and panel["type"] != "table":
        below_zero = panel["title"] in {"Countdown to the next run", "Next run, in"}
        return all(below_zero or number >= 0 for number in numbers)
    return bool(panel["type"] == "table" or all(number >= 0 for number in numbers))


@pytest.mark.integration
class TestQueries:
    @pytest.mark.parametrize(("name", "title", "ref"), every_query())
    def test_every_query_has_a_plausible_answer(
        self, watched: Watched, name: str, title: str, ref: str
    ) -> None:
        """Each query returns plausible values for at least one fault, of one application."""
        panel, target = find(name, title, ref)
        if name == "job":
            choices = [
                {"application": "shop", "scheduler": scheduler, "job_id": job}
                for scheduler, jobs in (("main", TROUBLES), ("doomed", ("archive",)))
                for job in jobs
            ]
        else:
            choices = [{"application": "shop"}]

        def answer() -> list[tuple[dict[str, str], list[float]]]:
            found = []
            for chosen in choices:
                series = watched.ask(name, panel, target, **chosen)
                found += [one for one in series if not all(map(math.isnan, one[1]))]
            assert [one for one in found if not plausible(panel, one[1])] == []
            return found

        found = wait_for_answer(answer)

        assert {metric.get("job", "shop") for metric, _ in found} == {"shop"}

    @pytest.mark.parametrize(
        ("name", "title", "ref"),
        [case for case in every_query() if find(*case.values)[1]["exemplar"]],
    )
    def test_panels_with_exemplars_have_some(
        self, watched: Watched, name: str, title: str, ref: str
    ) -> None:
        """Panels with exemplars get exemplars with a trace id."""
        pytest.importorskip("opentelemetry.sdk")
        panel, target = find(name, title, ref)
        expression = watched.fill(
            name,
            target["expr"],
            panel,
            application="shop",
            scheduler="main",
            job_id="report",
        )

        def exemplars() -> list[dict[str, str]]:
            now = time.time()
            found = watched.prometheus.api(
                "query_exemplars", query=expression, start=str(now - 60), end=str(now)
            )
            return [one["labels"] for series in found for one in series["exemplars"]]

        assert all("trace_id" in labels for labels in wait_for_answer(exemplars))

    @each_dashboard
    def test_variables_offer_the_values_of_the_selection(self, watched: Watched, name: str) -> None:
        """Variables offer the values of the selection, also of processes that have ended."""
        model = grafana_queries.variables(grafana_queries.load(name))

        def options(variable: str, **chosen: Any) -> set[str]:
            found = re.fullmatch(r"label_values\((.*), (\w+)\)", model[variable]["query"])
            assert found
            match = watched.fill(name, found[1], **chosen)
            now = time.time()
            query = {"match[]": match, "start": str(now - RANGE.seconds), "end": str(now)}
            url = f"{watched.prometheus.url}/api/v1/label/{found[2]}/values"
            return set(json.loads(get(f"{url}?{urllib.parse.urlencode(query)}")[1])["data"])

        def offers(expected: set[str], variable: str, **chosen: Any) -> None:
            """Wait until both applications have been scraped, and a variable has these options."""
            wait_for_answer(lambda: options(variable, **chosen) == expected)

        offers({"shop", "bank"}, "application")
        offers({"main", "resting", "loop"}, "scheduler", application="bank")
        offers({"main", "resting", "loop", "doomed"}, "scheduler", application="shop")
        if "job_id" in model:
            offers({"archive"}, "job_id", application="shop", scheduler="doomed")
            wait_for_answer(lambda: ODD in options("job_id", application="bank", scheduler="main"))

    @each_dashboard
    def test_annotations_mark_starts_and_alerts(self, watched: Watched, name: str) -> None:
        """Annotations mark the time of each start, and the time during which alerts fire."""
        for annotation in grafana_queries.load(name)["annotations"]["list"]:
            chosen: dict[str, Any] = {"application": "shop", "scheduler": "main"}
            if name == "job":
                chosen["job_id"] = "fails"
            expression = watched.fill(name, annotation["expr"], **chosen)
            events = wait_for_answer(lambda e=expression: watched.range(e, 1))  # type: ignore[misc]
            assert {metric["job"] for metric, _ in events} == {"shop"}
            if annotation.get("useValueForTime"):
                assert abs(events[0][1][-1] / 1000 - time.time()) < 600
            else:
                assert {metric["alertstate"] for metric, _ in events} == {"firing"}


@pytest.mark.integration
class TestAnswers:
    """The results for jobs with known faults."""

    def test_overview_shows_the_state_of_each_job(self, watched: Watched) -> None:
        """The table of the overview shows the state of each job."""
        panel, target = find("overview", "Jobs, those in trouble first", "A")
        texts = panel["fieldConfig"]["defaults"]["mappings"][0]["options"]
        expected = {
            "archive": {"✖ Missed"},
            "hangs": {"✖ Stuck"},
            "fails": {"✖ Failing"},
            "skips": {"▲ Dropping"},
            "paused": {"– Idle"},
            "resting": {"‖ Paused"},
            "report": {"● Waiting", "▶ Running"},
            ODD: {"● Waiting", "▶ Running"},
        }

        def states() -> bool:
            found = {
                labels["job_id"]: texts[str(round(values[0]))]["text"]
                for labels, values in watched.ask("overview", panel, target, application="shop")
            }
            wrong = {job: found.get(job) for job in expected if found.get(job) not in expected[job]}
            assert wrong == {}
            return True

        assert wait_for_answer(states)

    def test_timeline_shows_what_each_job_did(self, watched: Watched) -> None:
        """The latest band of each job shows what it did, or that a run is overdue."""
        panel, target = find("overview", "Timeline of all jobs", "A")
        texts = panel["fieldConfig"]["defaults"]["mappings"][0]["options"]
        expected = {
            "archive": "✖ Due, not started",
            "fails": "✖ Failed",
            "killed": "✖ Failed",
            "skips": "▲ Dropped",
            "report": "● Ran",
            "paused": "– Nothing due",
        }

        def bands() -> bool:
            found = {
                labels["job_id"]: texts[str(round(values[-1]))]["text"]
                for labels, values in watched.ask("overview", panel, target, application="shop")
            }
            assert {job: found.get(job) for job in expected} == expected
            return True

        assert wait_for_answer(bands)

    def test_days_count_successes_and_due_runs(self, watched: Watched) -> None:
        """A job that always fails has no success, and one that never does has all."""
        panel, target = find("overview", "Runs of today", "A")

        def days() -> dict[str, list[int]]:
            return {
                labels["job_id"]: [int(number) for number in labels["runs"].split(" of ")]
                for labels, _ in watched.ask("overview", panel, target, application="shop")
            }

        def is_right() -> bool:
            found = days()
            assert found["archive"] == [0, 1]
            assert found["fails"][0] == 0 < found["fails"][1]
            assert found["report"][0] == found["report"][1] > 0
            assert "paused" not in found
            return True

        assert wait_for_answer(is_right)

    def test_odd_job_id_selects_that_job_only(self, watched: Watched) -> None:
        """An id with quotes, dots, backslashes and brackets selects that job only."""
        panel, target = find("job", "Outcomes", "A")
        state = find("overview", "Jobs, those in trouble first", "A")

        def outcomes() -> set[str]:
            answer = watched.ask(
                "job", panel, target, application="bank", scheduler="main", job_id=ODD
            )
            return {labels["outcome"] for labels, _ in answer}

        assert wait_for_answer(lambda: outcomes() == {"success"})
        several = wait_for_answer(
            lambda: watched.ask("overview", *state, application=["bank"], job_id=[ODD, "fails"])
        )

        assert {labels["job_id"] for labels, _ in several} == {ODD, "fails"}

    @pytest.mark.parametrize(
        ("application", "exception", "least", "most"),
        [("shop", "ShopError", 0.0, 0.2), ("bank", "BankError", 0.25, 1.0)],
    )
    def test_applications_are_not_mixed(
        self, watched: Watched, application: str, exception: str, least: float, most: float
    ) -> None:
        """Two applications that share the names of schedulers and jobs do not share numbers."""
        chosen: dict[str, Any] = {"application": application, "scheduler": "main"}
        raised = find("job", "Exceptions in the time range", "A")
        slow = find("job", "95 % of runs", "A")

        exceptions = wait_for_answer(lambda: watched.ask("job", *raised, **chosen, job_id="fails"))
        [(_, [p95])] = wait_for_answer(lambda: watched.ask("job", *slow, **chosen, job_id="report"))

        assert {labels["exception"] for labels, _ in exceptions} == {f"__main__.{exception}"}
        assert least < p95 < most

    def test_overview_without_selection_has_each_job_once(self, watched: Watched) -> None:
        """Without a selection, the overview has each job of each application once."""
        table = find("overview", "Jobs, those in trouble first", "A")

        rows = wait_for_answer(
            lambda: [
                (labels["job"], labels["scheduler"], labels["job_id"])
                for labels, _ in watched.ask("overview", *table)
            ]
        )

        assert len(rows) == len(set(rows))
        for application in ("shop", "bank"):
            assert (application, "main", "report") in rows
