"""The dashboards: what is in them, and that every query of theirs has an answer."""

from __future__ import annotations

import contextlib
import json
import math
import re
import runpy
import shutil
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

import dashboards_scene as scene
import support_dashboards as support
from dashboards_app import ODD
from servers import Prometheus, eventually, free_port, get, running
from support_dashboards import ALL, ROOT, Range

pytestmark = pytest.mark.once

NAMES = ("overview", "job", "scheduler")
UIDS = {f"apscheduler-{name}" for name in NAMES}
RANGE = Range(seconds=8)
TROUBLES = ("report", "fails", "hangs", "killed", "skips", "late", "later", "folded", "paused")

JOINED = {"apscheduler_scheduler_up", "apscheduler_scheduler_state"}

each_dashboard = pytest.mark.parametrize("name", NAMES)


class TestFiles:
    def test_are_up_to_date(self) -> None:
        """The files are what grafana/build.py makes of its sources."""
        pytest.importorskip("grafana_foundation_sdk")
        built = subprocess.run(
            [sys.executable, ROOT / "grafana" / "build.py", "--check"],
            capture_output=True,
            text=True,
            check=False,
        )

        assert (built.returncode, built.stderr) == (0, "")

    def test_check_names_what_is_stale(self, tmp_path: Path) -> None:
        """What differs is named, and how to mend it, and nothing is written."""
        pytest.importorskip("grafana_foundation_sdk")
        shutil.copytree(ROOT / "grafana", tmp_path / "grafana")
        stale = tmp_path / "grafana" / "dashboards" / "job.json"
        stale.write_text("{}")

        built = subprocess.run(
            [sys.executable, tmp_path / "grafana" / "build.py", "--check"],
            capture_output=True,
            text=True,
            check=False,
        )

        assert built.returncode == 1
        assert built.stderr == "Not up to date: job.json. Run `python grafana/build.py`.\n"
        assert stale.read_text() == "{}"

    @each_dashboard
    def test_can_be_imported(self, name: str) -> None:
        """They have a uid but no id, and a model that Grafana 10 knows."""
        dashboard = support.load(name)

        assert dashboard["uid"] == f"apscheduler-{name}"
        assert dashboard["id"] is None
        assert dashboard["schemaVersion"] <= 39
        assert "__inputs" not in dashboard

    @each_dashboard
    def test_are_tied_to_no_data_source(self, name: str) -> None:
        """Whatever asks a data source asks the one that is chosen."""
        text = json.dumps(support.load(name))

        assert set(re.findall(r'"uid": "([^"]+)"', text)) == {
            "${datasource}",
            f"apscheduler-{name}",
        }


class TestPanels:
    @each_dashboard
    def test_explain_themselves(self, name: str) -> None:
        """Every panel has a title, a description, a unit, thresholds and words for no data."""
        for panel in support.panels(support.load(name)):
            defaults = panel["fieldConfig"]["defaults"]

            assert panel["title"]
            assert len(panel["description"]) > 20, panel["title"]
            assert defaults["unit"], panel["title"]
            assert defaults["noValue"], panel["title"]
            assert defaults["thresholds"]["steps"], panel["title"]

    @each_dashboard
    def test_are_told_apart(self, name: str) -> None:
        """No id and no title is used twice."""
        dashboard = support.load(name)
        ids = [panel["id"] for panel in dashboard["panels"]]
        titles = [panel["title"] for panel in dashboard["panels"]]

        assert len(set(ids)) == len(ids)
        assert len(set(titles)) == len(titles)

    @each_dashboard
    def test_fill_rows(self, name: str) -> None:
        """Panels side by side are of equal height and fill all 24 columns."""
        rows: dict[int, list[dict[str, int]]] = {}
        for panel in support.load(name)["panels"]:
            rows.setdefault(panel["gridPos"]["y"], []).append(panel["gridPos"])

        end = 0
        for y, cells in sorted(rows.items()):
            assert y == end
            assert sum(cell["w"] for cell in cells) == 24
            assert len({cell["h"] for cell in cells}) == 1
            end = y + cells[0]["h"]

    @each_dashboard
    def test_tell_nothing_by_colour_alone(self, name: str) -> None:
        """Each state has a sign besides its colour, and lines of one panel differ in style."""
        for panel in support.panels(support.load(name)):
            for mapping in panel["fieldConfig"]["defaults"].get("mappings", ()):
                if mapping["type"] != "value":
                    continue
                for result in mapping["options"].values():
                    assert re.match(r"[✖▲●▶‖–] ", result["text"]), result

    @each_dashboard
    def test_columns_that_are_named_exist(self, name: str) -> None:
        """An override names a column or a series that is there."""
        for panel in support.panels(support.load(name)):
            known = {target["legendFormat"] for target in panel["targets"]}
            for transformation in panel.get("transformations", ()):
                known |= set(transformation["options"].get("renameByName", {}).values())
            by_label = any("{{" in legend for legend in known)
            for override in panel["fieldConfig"]["overrides"]:
                names = set(override["matcher"]["options"]["names"])
                assert by_label or names <= known, panel["title"]


class TestVariables:
    @each_dashboard
    def test_are_those_that_are_used(self, name: str) -> None:
        """What queries use is there, and what is there is used."""
        dashboard = support.load(name)
        known = set(support.variables(dashboard))
        text = json.dumps(dashboard)
        used = set(re.findall(r"\$\{(\w+)[:}]", text)) - {"__data", "__field", "__url_time_range"}

        assert used == known

    @each_dashboard
    def test_are_escaped(self, name: str) -> None:
        """In a query, values stand escaped between backquotes, so that any id works."""
        for _, target in support.queries(support.load(name)):
            for found in re.finditer(r"(.)(\(\?:)?\$\{(\w+)(:\w+)?\}(\)\?)?(.)", target["expr"]):
                assert (found[1], found[4], found[6]) == ("`", ":regex", "`"), target["expr"]

    @each_dashboard
    def test_limit_every_selector(self, name: str) -> None:
        """No part of a query looks at more than what is chosen."""
        model = support.variables(support.load(name))
        for panel, target in support.queries(support.load(name)):
            for metric, matchers in support.selectors(target["expr"]):
                wanted = {"application"}
                # Others are of a whole process, or of a scheduler that the rest is joined with.
                if not metric.startswith(("process_", "scrape_")) and metric not in JOINED:
                    wanted.add("scheduler")
                if "job_id" in model and not metric.startswith("apscheduler_scheduler_"):
                    wanted.add("job_id")
                if panel["title"] == "Schedulers":
                    wanted.discard("job_id")

                assert wanted <= set(re.findall(r"\$\{(\w+):regex\}", matchers)), metric


class TestLinks:
    @each_dashboard
    def test_lead_to_a_dashboard_and_keep_the_selection(self, name: str) -> None:
        """Every link sets variables that the other dashboard has, and takes the time along."""
        dashboard = support.load(name)
        links = [(link["url"], link["keepTime"]) for link in dashboard["links"]]
        for panel in support.panels(dashboard):
            links += [
                (link["url"], "${__url_time_range}" in link["url"])
                for link in panel["fieldConfig"]["defaults"].get("links", ())
            ]

        for url, keeps_time in links:
            if url.startswith("https://github.com/"):
                continue
            found = re.fullmatch(r"/d/apscheduler-(\w+)\?(.*)", url)
            assert found, url
            assert keeps_time, url
            other = support.variables(support.load(found[1]))
            passed = set(re.findall(r"var-(\w+)=|\$\{(\w+):queryparam\}", found[2]))
            names = {first or second for first, second in passed}
            assert names <= set(other), url
            assert {"datasource", "application", "scheduler"} <= names, url
            if found[1] == "job" and name != "job":
                assert "job_id" in names, url

    def test_rows_of_the_overview_lead_to_their_job(self) -> None:
        """The table's links carry the row's labels, encoded for an address."""
        [table] = [
            panel
            for panel in support.panels(support.load("overview"))
            if panel["title"].startswith("Jobs, ")
        ]
        [link] = table["fieldConfig"]["defaults"]["links"]

        for label in ("job", "scheduler", "job_id"):
            assert f"=${{__data.fields.{label}:percentencode}}" in link["url"]


# Queries, of a real Prometheus.


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
        model = support.variables(support.load(name))
        values = {key: chosen.get(key, [ALL]) for key in model}
        return support.fill(text, model, values, RANGE.values(panel))

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
    """Run an application, and yield its port and what kills it."""
    script = Path(__file__).parent / "dashboards_app.py"
    command = [sys.executable, str(script), *map(str, arguments)]
    with running(command, log) as process:
        [port] = eventually(lambda: re.findall(r"^(\d+)\n", log.read_text(), re.MULTILINE))
        yield int(port), process.kill


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """Start it all: two applications that share names, and one that dies."""
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
        # It starts twice, and dies with a promise.
        for life in (1, 2):
            with application(directory / f"doomed-{life}.log", "doomed", doomed) as (_, kill):
                eventually(
                    lambda life=life: (
                        server.value(  # type: ignore[misc]
                            "sum(changes(apscheduler_scheduler_start_timestamp_seconds"
                            '{scheduler="doomed"}[1m]))'
                        )
                        == life - 1
                    )
                )
                eventually(
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
    port = free_port()
    command = [
        binary,
        f"--config.file={config}",
        f"--storage.tsdb.path={directory / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--enable-feature=exemplar-storage",
    ]
    with running(command, directory / "prometheus.log"):
        server = Prometheus(f"http://127.0.0.1:{port}")
        eventually(lambda: get(f"{server.url}/-/ready")[0] == 200)
        yield server


def every_query() -> list[Any]:
    """Return each query of each panel, under a name that a failure can be found by."""
    return [
        pytest.param(name, panel["title"], target["refId"], id=f"{name}-{panel['title']}-{ref}")
        for name in NAMES
        for panel, target in support.queries(support.load(name))
        for ref in [target["refId"]]
    ]


def find(name: str, title: str, ref: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a panel and its query."""
    for panel, target in support.queries(support.load(name)):
        if (panel["title"], target["refId"]) == (title, ref):
            return panel, target
    raise LookupError(title)


def plausible(panel: dict[str, Any], values: list[float]) -> bool:
    """Tell whether values are what the panel's unit and mappings are made for."""
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
        below_zero = panel["title"] in {"Promise against fact", "Next run, in"}
        return all(below_zero or number >= 0 for number in numbers)
    return bool(panel["type"] == "table" or all(number >= 0 for number in numbers))


@pytest.mark.integration
class TestQueries:
    @pytest.mark.parametrize(("name", "title", "ref"), every_query())
    def test_has_an_answer(self, watched: Watched, name: str, title: str, ref: str) -> None:
        """There is some trouble in which the query has a sensible answer, of one application."""
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

        found = eventually(answer)

        assert {metric.get("job", "shop") for metric, _ in found} == {"shop"}

    @pytest.mark.parametrize(
        ("name", "title", "ref"),
        [case for case in every_query() if find(*case.values)[1]["exemplar"]],
    )
    def test_has_exemplars(self, watched: Watched, name: str, title: str, ref: str) -> None:
        """Where a panel asks for exemplars there are some, with the trace that they lead to."""
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

        assert all("trace_id" in labels for labels in eventually(exemplars))

    @each_dashboard
    def test_variables_have_values(self, watched: Watched, name: str) -> None:
        """Variables offer what there is, also what is dead by now, and only that of the choice."""
        model = support.variables(support.load(name))

        def options(variable: str, **chosen: Any) -> set[str]:
            found = re.fullmatch(r"label_values\((.*), (\w+)\)", model[variable]["query"])
            assert found
            match = watched.fill(name, found[1], **chosen)
            now = time.time()
            query = {"match[]": match, "start": str(now - RANGE.seconds), "end": str(now)}
            url = f"{watched.prometheus.url}/api/v1/label/{found[2]}/values"
            return set(json.loads(get(f"{url}?{urllib.parse.urlencode(query)}")[1])["data"])

        assert options("application") == {"shop", "bank"}
        bank = options("scheduler", application="bank")
        assert bank == {"main", "resting", "loop"}
        assert options("scheduler", application="shop") == {*bank, "doomed"}
        if "job_id" in model:
            jobs = eventually(lambda: options("job_id", application="shop", scheduler="doomed"))
            assert jobs == {"archive"}
            assert ODD in options("job_id", application="bank", scheduler="main")

    @each_dashboard
    def test_annotations_have_events(self, watched: Watched, name: str) -> None:
        """Starts are marked at the moment that they happened, and alerts while they fire."""
        for annotation in support.load(name)["annotations"]["list"]:
            chosen: dict[str, Any] = {"application": "shop", "scheduler": "main"}
            if name == "job":
                chosen["job_id"] = "fails"
            expression = watched.fill(name, annotation["expr"], **chosen)
            events = eventually(lambda e=expression: watched.range(e, 1))  # type: ignore[misc]
            assert {metric["job"] for metric, _ in events} == {"shop"}
            if annotation.get("useValueForTime"):
                assert abs(events[0][1][-1] / 1000 - time.time()) < 600
            else:
                assert {metric["alertstate"] for metric, _ in events} == {"firing"}


@pytest.mark.integration
class TestAnswers:
    """What the dashboards say of jobs whose trouble is known."""

    def test_states(self, watched: Watched) -> None:
        """The table of the overview says of each job what is wrong with it."""
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

        assert eventually(states)

    def test_odd_ids(self, watched: Watched) -> None:
        """Quotes, dots, backslashes and brackets in an id lead to that job and no other."""
        panel, target = find("job", "Outcomes", "A")
        state = find("overview", "Jobs, those in trouble first", "A")

        [outcomes] = eventually(
            lambda: [
                watched.ask("job", panel, target, application="bank", scheduler="main", job_id=ODD)
            ]
        )
        several = eventually(
            lambda: watched.ask("overview", *state, application=["bank"], job_id=[ODD, "fails"])
        )

        assert {labels["outcome"] for labels, _ in outcomes} >= {"success", "error"}
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

        exceptions = eventually(lambda: watched.ask("job", *raised, **chosen, job_id="fails"))
        [(_, [p95])] = eventually(lambda: watched.ask("job", *slow, **chosen, job_id="report"))

        assert {labels["exception"] for labels, _ in exceptions} == {f"__main__.{exception}"}
        assert least < p95 < most

    def test_everything_of_all_applications(self, watched: Watched) -> None:
        """With nothing chosen, the overview has each job of each application once."""
        table = find("overview", "Jobs, those in trouble first", "A")

        rows = eventually(
            lambda: [
                (labels["job"], labels["scheduler"], labels["job_id"])
                for labels, _ in watched.ask("overview", *table)
            ]
        )

        assert len(rows) == len(set(rows))
        for application in ("shop", "bank"):
            assert (application, "main", "report") in rows


# Queries, of a scene in which every number is known.


class Stage:
    """A Prometheus that holds the scene, and nothing else."""

    def __init__(self, prometheus: Prometheus) -> None:
        self.prometheus = prometheus

    def ask(
        self, name: str, panel: Mapping[str, Any], expression: str, **chosen: Any
    ) -> list[tuple[dict[str, str], float]]:
        """Return labels and values of what an expression, filled in, had at the scene's end."""
        model = support.variables(support.load(name))
        values = {key: chosen.get(key, [ALL]) for key in model}
        window = Range(scene.RANGE, scrape=scene.SCRAPE)
        filled = support.fill(expression, model, values, window.values(panel))
        found = self.prometheus.api("query", query=filled, time=str(scene.NOW))
        return [
            (series["metric"], float((series.get("value") or series["values"][-1])[1]))
            for series in found["result"]
        ]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Write the scene into blocks, as if Prometheus had scraped it, and start one upon them."""
    binary, promtool = shutil.which("prometheus"), shutil.which("promtool")
    if binary is None or promtool is None:
        pytest.skip("prometheus is not installed")
    directory = tmp_path_factory.mktemp("scene")
    text = directory / "scene.om"
    text.write_text("".join(scene.openmetrics()), encoding="utf-8")
    tsdb = directory / "tsdb"
    subprocess.run(
        [promtool, "tsdb", "create-blocks-from", "openmetrics", text, tsdb],
        check=True,
        capture_output=True,
        timeout=60,
    )
    config = directory / "prometheus.yml"
    config.write_text("{}")
    port = free_port()
    server = [
        binary,
        f"--config.file={config}",
        f"--storage.tsdb.path={tsdb}",
        "--storage.tsdb.retention.time=100y",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with running(server, directory / "prometheus.log"):
        prometheus = Prometheus(f"http://127.0.0.1:{port}")
        eventually(lambda: get(f"{prometheus.url}/-/ready")[0] == 200)
        yield Stage(prometheus)


def by_labels(answer: list[tuple[dict[str, str], float]]) -> dict[str, float]:
    """Return values by what distinguishes them, which is never the application's name."""
    assert {metric.get("job", "shop") for metric, _ in answer} <= {"shop"}
    values = {
        " ".join(metric[key] for key in sorted(metric) if key not in {"__name__", "job"}): value
        for metric, value in answer
    }
    assert len(values) == len(answer)
    return values


def exactly(answer: dict[str, float]) -> Any:
    """Return what equals an answer but for the last digits of its numbers, which no state has."""
    return pytest.approx(answer, rel=1e-13)


def position(name: str, title: str, ref: str) -> int:
    """Return which of its panel's queries one is."""
    panel, _ = find(name, title, ref)
    return [target["refId"] for target in panel["targets"]].index(ref)


@pytest.mark.integration
class TestNumbers:
    """Each query's answer is the one that can be worked out by hand."""

    @pytest.mark.parametrize(("name", "title", "ref"), every_query())
    def test_is_right(self, stage: Stage, name: str, title: str, ref: str) -> None:
        """All of what is asked for, nothing of an application of the same names, and no other."""
        panel, target = find(name, title, ref)
        chosen: dict[str, Any] = {"application": ["shop"]}
        if name == "job":
            chosen = {"application": "shop", "scheduler": "main", "job_id": "report"}

        answer = by_labels(stage.ask(name, panel, target["expr"], **chosen))

        assert answer == exactly(scene.ANSWERS[name][title][position(name, title, ref)])

    @pytest.mark.parametrize(("scheduler", "job"), scene.OTHERS)
    def test_of_a_job(self, stage: Stage, scheduler: str, job: str) -> None:
        """A job's dashboard tells troubles apart, and has what is remembered of a dead process."""
        expected = scene.OTHERS[scheduler, job]
        chosen = {"application": "shop", "scheduler": scheduler, "job_id": job}

        answers: dict[str, list[dict[str, float]]] = {}
        for panel, target in support.queries(support.load("job")):
            if panel["title"] in expected:
                answer = by_labels(stage.ask("job", panel, target["expr"], **chosen))
                answers.setdefault(panel["title"], []).append(answer)

        assert answers == {title: [exactly(one) for one in expected[title]] for title in expected}

    @each_dashboard
    def test_every_part_counts(self, stage: Stage, name: str) -> None:
        """Each selector has something to select, so that none is a slip of the pen."""
        idle = []
        for panel, target in support.queries(support.load(name)):
            for metric, matchers in support.selectors(target["expr"]):
                anything = re.sub(r"\$\{\w+:regex\}", ".*", matchers)
                if not stage.ask(name, panel, f"{metric}{{{anything}}}[{scene.LENGTH}s]"):
                    idle.append((panel["title"], metric, matchers))

        assert idle == []

    def test_of_everything(self, stage: Stage) -> None:
        """All applications together are the sum of both; the watchdog is no alert that fires."""
        answers = {
            title: stage.ask("overview", panel, target["expr"])
            for title in ("Jobs in trouble", "Alerts firing", "Running now")
            for panel, target in [find("overview", title, "A")]
        }

        assert answers == {
            "Jobs in trouble": [({}, 18)],
            "Alerts firing": [({}, 12)],
            "Running now": [({}, 14)],
        }
        panel, target = find("overview", "Alerts that fire", "A")
        assert len(stage.ask("overview", panel, target["expr"])) == 12

    @pytest.mark.parametrize(
        ("name", "variable"),
        [
            (name, variable)
            for name in NAMES
            for variable in support.variables(support.load(name))
            if variable != "datasource"
        ],
    )
    def test_of_nothing(self, stage: Stage, name: str, variable: str) -> None:
        """Whoever asks for what does not exist is told nothing, instead of something else."""
        chosen: dict[str, Any] = {"application": "shop", "scheduler": "main", "job_id": "report"}
        chosen[variable] = "nobody"

        answered = {
            panel["title"]
            for panel, target in support.queries(support.load(name))
            if stage.ask(name, panel, target["expr"], **chosen)
        }

        of_schedulers = {"overview": {"Schedulers", "Alerts firing"}, "job": {"Run history"}}
        assert answered == (of_schedulers[name] if variable == "job_id" else set())
