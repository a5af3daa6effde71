"""The queries of the dashboards, against a data set in which every number is known."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from tests.helpers import dashboards_scene as scene
from tests.helpers import grafana_queries
from tests.helpers.grafana_queries import ALL, NAMES, Range, each_dashboard, every_query, find
from tests.helpers.servers import Prometheus, free_port, get, running_process
from tests.helpers.waiting import wait_for_answer

pytestmark = pytest.mark.once


class Stage:
    """A Prometheus that holds the scene, and nothing else."""

    def __init__(self, prometheus: Prometheus) -> None:
        self.prometheus = prometheus

    def ask(
        self, name: str, panel: Mapping[str, Any], expression: str, **chosen: Any
    ) -> list[tuple[dict[str, str], float]]:
        """Return labels and values of an expression, filled in, at the end of the data."""
        filled = self.fill(name, panel, expression, **chosen)
        found = self.prometheus.api("query", query=filled, time=str(scene.NOW))
        return [
            (series["metric"], float((series.get("value") or series["values"][-1])[1]))
            for series in found["result"]
        ]

    def draw(self, name: str, panel: Mapping[str, Any], expression: str, **chosen: Any) -> Any:
        """Return the series of an expression, filled in, over the time range."""
        return self.prometheus.api(
            "query_range",
            query=self.fill(name, panel, expression, **chosen),
            start=str(scene.NOW - scene.RANGE),
            end=str(scene.NOW),
            step=str(scene.SCRAPE),
        )["result"]

    def fill(self, name: str, panel: Mapping[str, Any], expression: str, **chosen: Any) -> str:
        """Return an expression with its variables filled in; what is not chosen is all."""
        model = grafana_queries.variables(grafana_queries.load(name))
        values = {key: chosen.get(key, [ALL]) for key in model}
        window = Range(scene.RANGE, scrape=scene.SCRAPE)
        return grafana_queries.fill(expression, model, values, window.values(panel))


@pytest.fixture(scope="module", params=[True, False], ids=["all-series", "without-usual-values"])
def stage(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Stage]:
    """Write the data into blocks, as if they had been scraped, and start Prometheus."""
    binary, promtool = shutil.which("prometheus"), shutil.which("promtool")
    if binary is None or promtool is None:
        pytest.skip("prometheus is not installed")
    directory = tmp_path_factory.mktemp("scene")
    text = directory / "scene.om"
    text.write_text("".join(scene.openmetrics(usual=request.param)), encoding="utf-8")
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
    with running_process(server, directory / "prometheus.log"):
        prometheus = Prometheus(f"http://127.0.0.1:{port}")
        wait_for_answer(lambda: get(f"{prometheus.url}/-/ready")[0] == 200)
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
    """Each query returns the number that was computed by hand."""

    @pytest.mark.parametrize(("name", "title", "ref"), every_query())
    def test_every_query_has_exactly_the_known_answer(
        self, stage: Stage, name: str, title: str, ref: str
    ) -> None:
        """Each query returns exactly the known series, and none of another application."""
        panel, target = find(name, title, ref)
        chosen: dict[str, Any] = {"application": ["shop"]}
        if name == "job":
            chosen = {"application": "shop", "scheduler": "main", "job_id": "report"}

        answer = by_labels(stage.ask(name, panel, target["expr"], **chosen))

        assert answer == exactly(scene.ANSWERS[name][title][position(name, title, ref)])

    @pytest.mark.parametrize(("scheduler", "job"), scene.OTHERS)
    def test_job_dashboard_has_the_known_numbers_of_one_job(
        self, stage: Stage, scheduler: str, job: str
    ) -> None:
        """The job dashboard shows known numbers for each fault, also after its process died."""
        expected = scene.OTHERS[scheduler, job]
        chosen = {"application": "shop", "scheduler": scheduler, "job_id": job}

        answers: dict[str, list[dict[str, float]]] = {}
        for panel, target in grafana_queries.queries(grafana_queries.load("job")):
            if panel["title"] in expected:
                answer = by_labels(stage.ask("job", panel, target["expr"], **chosen))
                answers.setdefault(panel["title"], []).append(answer)

        assert answers == {title: [exactly(one) for one in expected[title]] for title in expected}

    @pytest.mark.parametrize(("scheduler", "job"), [("main", "report"), *scene.OTHERS])
    def test_graphs_continue_when_a_process_ends(
        self, stage: Stage, scheduler: str, job: str
    ) -> None:
        """Each graph of a job has an answer over a time in which its process ends."""
        chosen = {"application": "shop", "scheduler": scheduler, "job_id": job}

        for panel, target in grafana_queries.queries(grafana_queries.load("job")):
            if not target.get("instant"):
                # Raises an error if Prometheus does.
                stage.draw("job", panel, target["expr"], **chosen)

    @pytest.mark.parametrize("name", [name for name in NAMES if name != "job"])
    def test_graphs_of_all_jobs_continue_when_a_process_ends(self, stage: Stage, name: str) -> None:
        """Each graph has an answer over a time in which a process ends."""
        for panel, target in grafana_queries.queries(grafana_queries.load(name)):
            if not target.get("instant"):
                stage.draw(name, panel, target["expr"], application=["shop"])

    @each_dashboard
    def test_every_selector_finds_something(self, stage: Stage, name: str) -> None:
        """
        Each selector matches a series, which finds typing errors.

        Native histograms are not in the data: test_native_histograms.py has some.
        """
        idle = []
        for panel, target in grafana_queries.queries(grafana_queries.load(name)):
            for metric, matchers in grafana_queries.selectors(target["expr"]):
                if metric in grafana_queries.HISTOGRAMS:
                    continue
                anything = re.sub(r"\$\{\w+:regex\}", ".*", matchers)
                if not stage.ask(name, panel, f"{metric}{{{anything}}}[{scene.LENGTH}s]"):
                    idle.append((panel["title"], metric, matchers))

        assert idle == []

    def test_all_applications_together_are_their_sum(self, stage: Stage) -> None:
        """With all applications selected, the numbers add up; the Watchdog is not shown."""
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
        panel, target = find("overview", "Firing alerts", "A")
        assert len(stage.ask("overview", panel, target["expr"])) == 12

    @pytest.mark.parametrize(
        ("name", "variable"),
        [
            (name, variable)
            for name in NAMES
            for variable, model in grafana_queries.variables(grafana_queries.load(name)).items()
            if model["type"] != "datasource"
        ],
    )
    def test_selection_that_does_not_exist_has_no_answer(
        self, stage: Stage, name: str, variable: str
    ) -> None:
        """A selection that does not exist returns nothing."""
        chosen: dict[str, Any] = {"application": "shop", "scheduler": "main", "job_id": "report"}
        chosen[variable] = "does-not-exist"

        answered = {
            panel["title"]
            for panel, target in grafana_queries.queries(grafana_queries.load(name))
            if stage.ask(name, panel, target["expr"], **chosen)
        }

        of_schedulers = {"overview": {"Schedulers", "Alerts firing"}, "job": {"Run history"}}
        expected = of_schedulers.get(name, set()) if variable == "job_id" else set()
        assert answered == expected
