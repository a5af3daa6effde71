"""The dashboard files: up to date, importable, with titles, variables and valid links."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import grafana_queries
from tests.helpers.grafana_queries import NAMES, each_dashboard
from tests.helpers.paths import ROOT

pytestmark = pytest.mark.once
UIDS = {f"apscheduler-{name}" for name in NAMES}

GRAFANAS = {"__data", "__field", "__from", "__to", "__url_time_range"}
"""Variables that each dashboard has."""

JOINED = {"apscheduler_scheduler_up", "apscheduler_scheduler_state"}


class TestFiles:
    def test_files_are_what_the_build_script_makes(self) -> None:
        """The files are what `grafana/build.py` generates from its sources."""
        pytest.importorskip("grafana_foundation_sdk")
        built = subprocess.run(
            [sys.executable, ROOT / "grafana" / "build.py", "--check"],
            capture_output=True,
            text=True,
            check=False,
        )

        assert (built.returncode, built.stderr) == (0, "")

    def test_check_names_stale_files_and_writes_nothing(self, tmp_path: Path) -> None:
        """`--check` names the files that differ and how to update them, and writes nothing."""
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
    def test_files_can_be_imported_into_grafana(self, name: str) -> None:
        """Each file has a uid, no id, and the schema version of Grafana 10."""
        dashboard = grafana_queries.load(name)

        assert dashboard["uid"] == f"apscheduler-{name}"
        assert dashboard["id"] is None
        assert dashboard["schemaVersion"] <= 39
        assert "__inputs" not in dashboard

    @each_dashboard
    def test_every_query_uses_the_chosen_data_source(self, name: str) -> None:
        """Every query uses the data source of a variable, which is of its kind."""
        dashboard = grafana_queries.load(name)
        kinds = {
            f"${{{key}}}": variable["query"]
            for key, variable in grafana_queries.variables(dashboard).items()
            if variable["type"] == "datasource"
        }
        used = {
            (found["uid"], found["type"])
            for panel in grafana_queries.panels(dashboard)
            for found in (panel["datasource"], *(t["datasource"] for t in panel["targets"]))
        }

        assert used == set(kinds.items())
        uids = set(re.findall(r'"uid": "([^"]+)"', json.dumps(dashboard)))
        assert uids == {*kinds, f"apscheduler-{name}"}


class TestPanels:
    @each_dashboard
    def test_every_panel_has_title_description_unit_and_thresholds(self, name: str) -> None:
        """Every panel has a title, a description, a unit, thresholds and a text for no data."""
        for panel in grafana_queries.panels(grafana_queries.load(name)):
            defaults = panel["fieldConfig"]["defaults"]

            assert panel["title"]
            assert len(panel["description"]) > 20, panel["title"]
            assert defaults["unit"], panel["title"]
            assert defaults["noValue"], panel["title"]
            assert defaults["thresholds"]["steps"], panel["title"]

    @each_dashboard
    def test_no_panel_id_or_title_is_used_twice(self, name: str) -> None:
        """No id and no title is used twice."""
        dashboard = grafana_queries.load(name)
        ids = [panel["id"] for panel in dashboard["panels"]]
        titles = [panel["title"] for panel in dashboard["panels"]]

        assert len(set(ids)) == len(ids)
        assert len(set(titles)) == len(titles)

    @each_dashboard
    def test_panels_side_by_side_fill_the_row(self, name: str) -> None:
        """Panels side by side are of equal height and fill all 24 columns."""
        rows: dict[int, list[dict[str, int]]] = {}
        for panel in grafana_queries.load(name)["panels"]:
            rows.setdefault(panel["gridPos"]["y"], []).append(panel["gridPos"])

        end = 0
        for y, cells in sorted(rows.items()):
            assert y == end
            assert sum(cell["w"] for cell in cells) == 24
            assert len({cell["h"] for cell in cells}) == 1
            end = y + cells[0]["h"]

    @each_dashboard
    def test_states_and_lines_differ_by_more_than_colour(self, name: str) -> None:
        """States differ by a sign and lines by their style, not only by colour."""
        for panel in grafana_queries.panels(grafana_queries.load(name)):
            for mapping in panel["fieldConfig"]["defaults"].get("mappings", ()):
                if mapping["type"] != "value":
                    continue
                for result in mapping["options"].values():
                    assert re.match(r"[✖▲●▶‖–] ", result["text"]), result

    @each_dashboard
    def test_overrides_name_existing_columns(self, name: str) -> None:
        """Each override names a column or series that exists."""
        for panel in grafana_queries.panels(grafana_queries.load(name)):
            known = {target.get("legendFormat", "") for target in panel["targets"]}
            for transformation in panel.get("transformations", ()):
                known |= set(transformation["options"].get("renameByName", {}).values())
            by_label = any("{{" in legend for legend in known)
            for override in panel["fieldConfig"]["overrides"]:
                names = set(override["matcher"]["options"]["names"])
                assert by_label or names <= known, panel["title"]


class TestVariables:
    @each_dashboard
    def test_variables_are_those_that_queries_use(self, name: str) -> None:
        """The variables of a dashboard are exactly those that its queries use."""
        dashboard = grafana_queries.load(name)
        known = set(grafana_queries.variables(dashboard))
        text = json.dumps(dashboard)
        used = set(re.findall(r"\$\{(\w+)[:}]", text)) - GRAFANAS

        assert used == known

    @each_dashboard
    def test_variables_are_escaped_in_queries(self, name: str) -> None:
        """Variables are escaped and in backquotes, so that any id works."""
        for _, target in grafana_queries.queries(grafana_queries.load(name)):
            for found in re.finditer(r"(.)(\(\?:)?\$\{(\w+)(:\w+)?\}(\)\?)?(.)", target["expr"]):
                assert (found[1], found[4], found[6]) == ("`", ":regex", "`"), target["expr"]

    @each_dashboard
    def test_every_selector_is_limited_by_the_variables(self, name: str) -> None:
        """Every selector of a query is limited to what is selected."""
        model = grafana_queries.variables(grafana_queries.load(name))
        for panel, target in grafana_queries.queries(grafana_queries.load(name)):
            for metric, matchers in grafana_queries.selectors(target["expr"]):
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
    def test_links_keep_selection_and_time(self, name: str) -> None:
        """Links set variables of the other dashboard, and keep the time range."""
        dashboard = grafana_queries.load(name)
        links = [(link["url"], link["keepTime"]) for link in dashboard["links"]]
        for panel in grafana_queries.panels(dashboard):
            links += [
                (link["url"], "${__url_time_range}" in link["url"])
                for link in panel["fieldConfig"]["defaults"].get("links", ())
            ]

        for url, keeps_time in links:
            if url.startswith(("https://github.com/", "/explore?")):
                continue
            found = re.fullmatch(r"/d/apscheduler-(\w+)\?(.*)", url)
            assert found, url
            assert keeps_time, url
            other = grafana_queries.variables(grafana_queries.load(found[1]))
            passed = set(re.findall(r"var-(\w+)=|\$\{(\w+):queryparam\}", found[2]))
            names = {first or second for first, second in passed}
            assert names <= set(other), url
            assert {"datasource", "application", "scheduler"} <= names, url
            if found[1] == "job" and name != "job":
                assert "job_id" in names, url

    def test_rows_of_the_overview_link_to_their_job(self) -> None:
        """The links of a table row contain its labels, encoded for a URL."""
        [table] = [
            panel
            for panel in grafana_queries.panels(grafana_queries.load("overview"))
            if panel["title"].startswith("Jobs, ")
        ]
        [link] = table["fieldConfig"]["defaults"]["links"]

        for label in ("job", "scheduler", "job_id"):
            assert f"=${{__data.fields.{label}:percentencode}}" in link["url"]

    def test_runs_of_days_have_the_time_ranges_of_days(self) -> None:
        """One table is about today until now, the other about the whole day before."""
        ranges = {
            panel["title"]: (panel.get("timeFrom"), panel.get("timeShift"))
            for panel in grafana_queries.panels(grafana_queries.load("overview"))
            if panel["title"].startswith("Runs of ")
        }

        assert ranges == {
            "Runs of today": ("now/d", None),
            "Runs of yesterday": ("now/d", "1d/d"),
        }
