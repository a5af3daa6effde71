"""
The queries for Tempo and Loki, whose fields must be those of real spans and log records.

Neither server is available here: `docs/dashboards.md` says what was tried in them. Here, the
conditions of a query are evaluated on the spans and records of real runs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

import pytest
from apscheduler.executors.pool import ThreadPoolExecutor

from apscheduler_telemetry.run_log import JSONFormatter
from tests.applications.troubled import ODD
from tests.helpers import grafana_queries, jobs
from tests.helpers.grafana_queries import ALL, conditions, names_in_loki
from tests.helpers.rigs import hand_driven_rig
from tests.helpers.run_log_records import recording

pytestmark = pytest.mark.once

DASHBOARD = grafana_queries.load("runs")
TRACES, LOGS = (next(grafana_queries.queries_of(source, DASHBOARD)) for source in ("tempo", "loki"))
GRAFANAS = {
    "time": "Start time",
    "name": "Name",
    "duration": "Duration",
    "traceService": "Trace Service",
    "traceIdHidden": "traceIdHidden",
}
"""What Grafana's source of Tempo adds: its fields, and their names in transformations."""
APPLICATION = "shop (new)"
Run = Mapping[str, Any]


@pytest.fixture(scope="module")
def recorded() -> dict[str, list[Run]]:
    """Return what a success and a failure are in Tempo, in Loki by OTLP, and in lines of JSON."""
    tracing = pytest.importorskip("opentelemetry.sdk.trace")
    logs = pytest.importorskip("opentelemetry.sdk._logs")
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    export = pytest.importorskip("opentelemetry.sdk._logs.export")
    resource = pytest.importorskip("opentelemetry.sdk.resources").Resource.create(
        {"service.name": APPLICATION}
    )
    if not hasattr(export, "InMemoryLogRecordExporter"):
        pytest.skip("this OpenTelemetry has no events")
    spans, records = memory.InMemorySpanExporter(), export.InMemoryLogRecordExporter()
    tracer_provider = tracing.TracerProvider(resource=resource, shutdown_on_exit=False)
    processors = pytest.importorskip("opentelemetry.sdk.trace.export")
    tracer_provider.add_span_processor(processors.SimpleSpanProcessor(spans))
    logger_provider = logs.LoggerProvider(resource=resource, shutdown_on_exit=False)
    logger_provider.add_log_record_processor(export.SimpleLogRecordProcessor(records))
    options = {
        "tracer_provider": tracer_provider,
        "logger_provider": logger_provider,
        "run_log": True,
    }
    executors = {"default": ThreadPoolExecutor(1)}
    with recording() as handler, hand_driven_rig(executors, telemetry=options) as rig:
        for job, function, arguments in ((ODD, jobs.nothing, []), ("a|b", jobs.fail, ["refused"])):
            # Without an id: what is selected is the label, which is the name then.
            rig.scheduler.add_job(function, name=job, args=arguments, misfire_grace_time=None)
            rig.scheduler.turn()
            rig.settle()
        lines = [JSONFormatter().format(record) for record in handler.wait_for(2)]
    return {
        "tempo": [as_in_tempo(span) for span in spans.get_finished_spans()],
        "loki": [as_in_loki(record) for record in records.get_finished_logs()],
        "json": [
            {"service_name": APPLICATION, **names_in_loki(json.loads(line))} for line in lines
        ],
    }


def as_in_tempo(span: Any) -> Run:
    """Return the fields of a span by their names in TraceQL."""
    return {
        **{f"resource.{key}": value for key, value in span.resource.attributes.items()},
        **{f"span.{key}": value for key, value in span.attributes.items()},
        "name": span.name,
        "instrumentation:name": span.instrumentation_scope.name,
        "statusMessage": span.status.description,
        # The numbering of a nested set begins with 1, and the parent of a root is -1.
        "nestedSetParent": -1 if span.parent is None else 1,
    }


def as_in_loki(log: Any) -> Run:
    """Return the labels and the structured metadata of a record that came by OTLP."""
    record = log.log_record
    return {
        **names_in_loki(log.resource.attributes),
        **names_in_loki(record.attributes),
        "trace_id": f"{record.trace_id:032x}",
    }


def found(runs: list[Run], query: str, **chosen: Any) -> list[Run]:
    """Return the runs that fulfil all conditions of a query; what is not chosen is all."""
    model = grafana_queries.variables(DASHBOARD)
    filled = grafana_queries.fill(query, model, {key: chosen.get(key, [ALL]) for key in model}, {})
    return [
        run
        for run in runs
        if all(re.fullmatch(regex, str(run[key])) for key, regex in conditions(filled).items())
    ]


QUERIES = [
    pytest.param("tempo", TRACES[1]["query"], id="traceql"),
    pytest.param("loki", LOGS[1]["expr"], id="logql-otlp"),
    pytest.param("json", LOGS[1]["expr"], id="logql-json"),
]


class TestConditions:
    """The conditions, on real spans and records."""

    @pytest.mark.parametrize(("source", "query"), QUERIES)
    @pytest.mark.parametrize(
        ("chosen", "expected"),
        [
            ({}, ["success", "error"]),
            ({"application": [APPLICATION]}, ["success", "error"]),
            ({"application": ["shop"]}, []),
            ({"scheduler": ["default"]}, ["success", "error"]),
            ({"scheduler": ["other"]}, []),
            ({"job_id": [ODD]}, ["success"]),
            ({"job_id": ["a|b"]}, ["error"]),
            ({"job_id": ["a", "b"]}, []),
            ({"job_id": [ODD, "a|b"]}, ["success", "error"]),
            ({"outcome": ["error", "lost"]}, ["error"]),
        ],
        ids=str,
    )
    def test_selection_finds_its_runs_only(
        self,
        recorded: dict[str, list[Run]],
        source: str,
        query: str,
        chosen: dict[str, list[str]],
        expected: list[str],
    ) -> None:
        """Each variable selects the runs with exactly this value, whatever characters it has."""
        runs = found(recorded[source], query, **chosen)

        outcomes = [
            run.get("apscheduler_outcome") or run.get("span.apscheduler.outcome") for run in runs
        ]
        assert outcomes == expected

    def test_every_variable_is_in_each_query(self) -> None:
        """Both queries are limited by all variables except those for data sources."""
        model = grafana_queries.variables(DASHBOARD)
        wanted = {name for name, variable in model.items() if variable["type"] != "datasource"}

        for query in (TRACES[1]["query"], LOGS[1]["expr"]):
            assert set(re.findall(r"`\$\{(\w+):regex\}`", query)) == wanted
            assert query.count("${") == len(wanted)

    def test_other_conditions_hold_for_runs(self, recorded: dict[str, list[Run]]) -> None:
        """Spans of runs are roots, and of the scope that the query names."""
        query = TRACES[1]["query"]

        [scope] = re.findall(r'instrumentation:name = "([^"]+)"', query)
        assert "nestedSetParent < 0" in query
        for run in recorded["tempo"]:
            assert run["instrumentation:name"] == scope
            assert run["nestedSetParent"] < 0


class TestColumns:
    """The columns of the tables."""

    def test_columns_of_traces_are_fields_of_spans(self, recorded: dict[str, list[Run]]) -> None:
        """Each selected attribute is one of a failed run, and is a column."""
        selected = re.findall(r"[\w.]+", TRACES[1]["query"].split("select(")[1].split(")")[0])

        failed = recorded["tempo"][1]
        assert [name for name in selected if failed.get(name) is None] == []
        # Grafana shows a number that is an attribute in the unit of the table, nanoseconds.
        assert [name for name in selected if not isinstance(failed[name], str)] == []
        # Grafana names attributes without their scope, and adds its own columns.
        assert set(columns(TRACES[0])) == {
            *(name.removeprefix("span.") for name in selected),
            *GRAFANAS.values(),
        }

    @pytest.mark.parametrize("source", ["loki", "json"])
    def test_columns_of_logs_are_fields_of_records(
        self, recorded: dict[str, list[Run]], source: str
    ) -> None:
        """Each kept label is one of a failed run, and is a column."""
        kept = re.findall(r"\w+", LOGS[1]["expr"].split("| keep ")[1])

        failed = recorded[source][1]
        assert [name for name in kept if failed.get(name) is None] == []
        assert set(columns(LOGS[0])) == {*kept, "Time"}

    @pytest.mark.parametrize("panel", [TRACES[0], LOGS[0]], ids=["traces", "logs"])
    def test_converted_and_linked_fields_are_columns(self, panel: dict[str, Any]) -> None:
        """Only columns are converted, and links contain only columns."""
        converted = {
            conversion["targetField"]
            for transformation in panel["transformations"]
            for conversion in transformation["options"].get("conversions", ())
        }
        linked = {
            name
            for link in panel["fieldConfig"]["defaults"]["links"]
            for pair in re.findall(
                r'\$\{__data\.fields(?:\.(\w+)|\["([^"]+)"\])', unquote(link["url"])
            )
            for name in pair
            if name
        }

        assert converted
        assert linked
        shown = set(columns(panel))
        assert converted <= shown
        assert {GRAFANAS.get(name, name) for name in linked} <= shown


def columns(panel: Mapping[str, Any]) -> list[str]:
    """Return the names of the fields that a table shows."""
    [organized] = [one for one in panel["transformations"] if one["id"] == "organize"]
    return list(organized["options"]["renameByName"])


class TestLinks:
    """The links of a row to Explore."""

    @pytest.mark.parametrize("panel", [TRACES[0], LOGS[0]], ids=["traces", "logs"])
    def test_links_open_the_trace_and_the_log_of_the_run(self, panel: dict[str, Any]) -> None:
        """The links are what Explore reads, of the chosen data sources and the time range."""
        links = {link["title"]: link["url"] for link in panel["fieldConfig"]["defaults"]["links"]}
        panes = {}
        for title, url in links.items():
            if title != "Job":
                path, _, state = url.partition("?left=")
                assert path == "/explore"
                assert re.sub(r"\$\{[^}]+\}", "", state).isascii()
                assert not re.search(r'[&#" ]', re.sub(r"\$\{[^}]+\}", "", state))
                filled = re.sub(r"\$\{__data\.fields\.(\w+)\}", "0af7", unquote(state))
                panes[title] = json.loads(filled)

        assert panes.keys() == {"Trace of this run", "Log of this run"}
        for pane, kind, variable in (
            (panes["Trace of this run"], "tempo", "${traces}"),
            (panes["Log of this run"], "loki", "${logs}"),
        ):
            [query] = pane["queries"]
            assert pane["datasource"] == query["datasource"]["uid"] == variable
            assert query["datasource"]["type"] == kind
            assert pane["range"] == {"from": "${__from}", "to": "${__to}"}
        assert panes["Trace of this run"]["queries"][0]["query"] == "0af7"
        assert conditions(panes["Log of this run"]["queries"][0]["expr"])["trace_id"] == "0*0af7"

    def test_panels_of_a_job_lead_to_its_runs(self) -> None:
        """Panels of the job's dashboard about runs link to the runs of that job."""
        linked = {
            panel["title"]
            for panel in grafana_queries.panels(grafana_queries.load("job"))
            for link in panel["fieldConfig"]["defaults"].get("links", ())
            if link["url"].startswith("/d/apscheduler-runs?") and "var-job_id=" in link["url"]
        }

        assert linked == {
            *("Run history", "Durations", "Outcomes", "Exceptions over time"),
            "Exceptions in the time range",
        }
