"""The dashboard that answers: which runs were there, when, and why did they fail?"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from grafana_foundation_sdk.models import dashboard, units

import parts
from parts import NEUTRAL, LogQuery, TraceQuery
from promql import JOB, JOB_OR_NONE

OUTCOME = "outcome=~`${outcome:regex}`"
OUTCOMES = {
    "success": ("● success", parts.GOOD),
    "error": ("✖ error", parts.BAD),
    "lost": ("✖ lost", parts.OTHER),
    "missed": ("▲ missed", parts.WARNING),
    "skipped": ("▲ skipped", parts.SKY),
    "coalesced": ("● coalesced", parts.INFO),
}

MAX_TRACES = 5_000
"""With fewer than there are, Tempo returns some of the runs, and not always the latest."""

TIME_WIDTH = 172
"""
Pixels of each column at least: a date with its time. A table that is too wide for a window can be
scrolled, while seconds that are cut off could not be read.
"""

# Grafana does not escape `|` in the queries of Tempo and Loki, unless the format is `regex`. Both
# change nothing between backquotes, and match from the start to the end of a text.
TRACES = """{ resource.service.name =~ `${application:regex}`
&& instrumentation:name = "apscheduler_telemetry" && nestedSetParent < 0
&& span.apscheduler.scheduler =~ `${scheduler:regex}`
&& name =~ `${job_id:regex}`
&& span.apscheduler.outcome =~ `${outcome:regex}` }
| select(span.apscheduler.scheduler, span.apscheduler.outcome, span.apscheduler.scheduled_time,
span.error.type, statusMessage) with (most_recent=true)"""
# The records come by OTLP, or as lines of JSON; `json` leaves out what is no JSON.
LOGS = """{service_name=~`${application:regex}`} | json | apscheduler_outcome!=""
| apscheduler_scheduler=~`${scheduler:regex}`
| apscheduler_job_label=~`${job_id:regex}`
| apscheduler_outcome=~`${outcome:regex}`
| drop __error__, __error_details__
| keep service_name, apscheduler_scheduler, apscheduler_job_label, apscheduler_outcome,
apscheduler_scheduled_time, apscheduler_start_time, apscheduler_job_run_duration,
error_type, apscheduler_error_message, trace_id"""


def build() -> dashboard.Dashboard:
    """Return the dashboard."""
    page = parts.Page(
        "apscheduler-runs",
        "APScheduler / Runs",
        "Which runs were there, when, and why did they fail? Single runs are in logs or in traces:"
        " collapse the section of which you have no data source.",
        since="24h",
    )
    page.variables(job=True, several=True)
    page.sources()
    page.choice("outcome", "Outcome", "How a run ended.", list(OUTCOMES))
    page.annotations(JOB_OR_NONE)
    for title, uid in (("Overview", "overview"), ("Scheduler", "scheduler")):
        page.link(title, f"apscheduler-{uid}", "datasource", "application", "scheduler")
    page.row(7, (24, counted()))
    page.heading("Runs from logs")
    page.row(14, (24, from_logs()))
    page.heading("Runs from traces")
    page.row(14, (24, from_traces()))
    return page.build()


def counted() -> Any:
    """Return the runs that the metrics have counted, by outcome over time."""
    return parts.runs_by_outcome(
        "Runs by outcome",
        "Runs that the metrics count, for each bar. Logs and traces may have fewer, for example"
        " because of sampling.",
        f"{JOB}, {OUTCOME}",
        points=parts.FEW,
    )


def from_logs() -> Any:
    """Return the table of the records of runs in Loki."""
    return records(
        "Latest runs, from logs",
        "The latest records of runs in Loki, as many as its data source returns: 1,000 by default."
        " Ended: the end of the run, or when it was clear that it does not run. Click a run to see"
        " its trace, its log, or its job.",
        LogQuery(LOGS),
        columns={
            "Time": "Ended",
            "apscheduler_job_label": "Job",
            "apscheduler_outcome": "Outcome",
            "apscheduler_scheduled_time": "Due",
            "apscheduler_start_time": "Started",
            "apscheduler_job_run_duration": "Duration",
            "error_type": "Error",
            "apscheduler_error_message": "Message",
            "apscheduler_scheduler": "Scheduler",
            "service_name": "Application",
            "trace_id": "Trace",
        },
        extracted="labels",
        times=["apscheduler_scheduled_time", "apscheduler_start_time"],
        numbers=["apscheduler_job_run_duration"],
        unit=units.Seconds,
        sort="Ended",
        links=links_of(
            "trace_id", "service_name", "apscheduler_scheduler", "apscheduler_job_label"
        ),
    )


def from_traces() -> Any:
    """Return the table of the spans of runs in Tempo."""
    return records(
        "Runs, from traces",
        f"The spans of runs in Tempo, at most {MAX_TRACES:,}: if there are more in the time range,"
        " these are not always the latest. The last 30 seconds are not listed. Started: the start"
        " of the run, or when it was clear that it does not run. Click a run to see its trace, its"
        " log, or its job.",
        TraceQuery(TRACES, MAX_TRACES),
        # Transformations know some fields only by the title that Grafana's source gives them.
        columns={
            "Start time": "Started",
            "Name": "Job",
            "apscheduler.outcome": "Outcome",
            "apscheduler.scheduled_time": "Due",
            "Duration": "Duration",
            "error.type": "Error",
            "statusMessage": "Message",
            "apscheduler.scheduler": "Scheduler",
            "Trace Service": "Application",
            "traceIdHidden": "Trace",  # hidden, and here for the links
        },
        times=["apscheduler.scheduled_time"],
        unit=units.Nanoseconds,
        sort="Started",
        links=links_of("traceIdHidden", "traceService", "apscheduler.scheduler", "name"),
    )


def records(
    title: str,
    description: str,
    query: LogQuery | TraceQuery,
    *,
    columns: Mapping[str, str],
    times: Sequence[str],
    numbers: Sequence[str] = (),
    extracted: str = "",
    unit: str,
    sort: str,
    links: Sequence[tuple[str, str]],
) -> Any:
    """
    Return a table of single runs.

    `columns` maps each field to the title of its column, in order; all others are left out.
    `times` and `numbers` are fields that arrive as text, and `extracted` is a field of JSON that
    contains others.
    """
    panel = parts.plain_table().decimals(1).sort_by([parts.sorted_by(sort)])
    panel.min_width(TIME_WIDTH)
    if extracted:
        panel.with_transformation(
            dashboard.DataTransformerConfig(
                id_val="extractFields", options={"source": extracted, "format": "json"}
            )
        )
    panel.with_transformation(parts.conversion(times, "time"))
    if numbers:
        panel.with_transformation(parts.conversion(numbers, "number"))
    for transformation in parts.only_columns(columns):
        panel.with_transformation(transformation)
    parts.override(
        panel, ["Outcome"], custom__cellOptions={"type": "color-background", "mode": "basic"}
    )
    parts.override(
        panel, ["Job", "Error", "Message"], custom__cellOptions={"type": "auto", "wrapText": True}
    )
    return parts.finish(
        panel,
        title,
        description,
        [query],
        unit=unit,
        no_value="–",  # also of single cells
        steps=NEUTRAL,
        # Tempo omits a duration of 0, and Grafana shows what is omitted as NaN.
        mappings=[parts.words(OUTCOMES), parts.NO_NUMBER, parts.AS_IT_IS],
        links=links,
    )


def links_of(trace: str, application: str, scheduler: str, job: str) -> list[tuple[str, str]]:
    """Return the links of a row, of whose fields these are the names."""
    trace = field(trace)
    logs = (
        f"{{service_name=~`.+`}} | json | trace_id=~`0*{trace}` | drop __error__, __error_details__"
    )
    return [
        ("Trace of this run", explore("tempo", "traces", {"queryType": "traceql", "query": trace})),
        # Tempo omits zeros at the start of an id.
        ("Log of this run", explore("loki", "logs", {"queryType": "range", "expr": logs})),
        (
            "Job",
            parts.to_job(*(field(name, "percentencode") for name in (application, scheduler, job))),
        ),
    ]


def field(name: str, form: str = "") -> str:
    """Return the variable that has a field of the row."""
    path = f'["{name}"]' if "." in name else f".{name}"
    return f"${{__data.fields{path}{form and f':{form}'}}}"


def explore(kind: str, source: str, query: Mapping[str, str]) -> str:
    """
    Return the address of a query in Explore.

    The parameter `left` is read by all versions from Grafana 10 on, and newer ones rewrite it.
    """
    state = {
        "datasource": f"${{{source}}}",
        "queries": [{"refId": "A", "datasource": {"type": kind, "uid": f"${{{source}}}"}, **query}],
        "range": {"from": "${__from}", "to": "${__to}"},
    }
    # Variables must stay as they are, and contain quotes.
    pieces = json.dumps(state, separators=(",", ":")).replace('\\"', '"')
    return "/explore?left=" + "".join(
        piece if piece.startswith("${") else quote(piece, safe="")
        for piece in re.split(r"(\$\{[^}]+\})", pieces)
    )
