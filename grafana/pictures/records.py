"""
The log records and spans of runs, in the fields that Grafana's sources of Loki and Tempo return.

There is neither a Loki nor a Tempo: the conditions and the selected fields of the dashboard's
queries are applied here, to what the applications sent by OTLP.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from tests.helpers.grafana_queries import conditions, names_in_loki
from tests.helpers.otlp_receiver import OtlpReceiver, Received

LOKI_LINES = 1_000  # that the data source returns, unless configured
TEMPO_DELAY = 30.0  # seconds: the newest spans that Tempo does not search

Frame = dict[str, Any]
Range = tuple[float, float]


def from_loki(received: OtlpReceiver, target: Mapping[str, Any], query: str, span: Range) -> Frame:
    """Return the log records that a query finds between two times, the latest first."""
    kept = re.findall(r"\w+", query.partition("| keep ")[2])
    found = []
    for record in received.logs:
        labels = names_in_loki({**record.resource, **record.attributes})
        labels["trace_id"] = record.data.trace_id.hex()
        time = record.data.time_unix_nano / 1e9
        if span[0] <= time <= span[1] and fulfils(query, labels):
            shown = {name: str(labels[name]) for name in kept if name in labels}
            found.append((time, shown, record.data.body.string_value))
    found = sorted(found, key=lambda row: row[0], reverse=True)[:LOKI_LINES]
    return {
        "refId": target["refId"],
        "fields": [
            field("labels", "other", [labels for _, labels, _ in found]),
            field("Time", "time", [1000 * time for time, _, _ in found]),
            field("Line", "string", [line for _, _, line in found]),
        ],
    }


def from_tempo(received: OtlpReceiver, target: Mapping[str, Any], query: str, span: Range) -> Frame:
    """Return the spans of runs that a query finds between two times, the latest first."""
    selected = re.findall(r"[\w.]+", query.partition("select(")[2].partition(")")[0])
    found = []
    for one in received.spans:
        values = names_in_tempo(one)
        time = one.data.start_time_unix_nano / 1e9
        if (
            span[0] <= time <= span[1] - TEMPO_DELAY
            and not one.data.parent_span_id
            and fulfils(query, values)
        ):
            found.append((time, one, values))
    found = sorted(found, key=lambda row: row[0], reverse=True)[: target["limit"]]

    def column(name: str, kind: str, read: Callable[[Received], Any], **config: Any) -> Frame:
        return field(name, kind, [read(one) for _, one, _ in found], **config)

    return {
        "refId": target["refId"],
        "fields": [
            # Tempo omits zeros at the start of an id.
            column(
                *("traceIdHidden", "string", lambda one: one.data.trace_id.hex().lstrip("0")),
                custom={"hidden": True},
            ),
            column(
                *("traceService", "string", lambda one: one.resource["service.name"]),
                displayNameFromDS="Trace Service",
                custom={"width": 200},
            ),
            column(
                *("time", "time", lambda one: one.data.start_time_unix_nano / 1e6),
                displayNameFromDS="Start time",
            ),
            column("name", "string", lambda one: one.data.name, displayNameFromDS="Name"),
            # Of a number that is zero, and of an empty text, Grafana shows nothing.
            *(
                field(
                    name.removeprefix("span."),
                    "string",
                    [values.get(name) or None for _, _, values in found],
                    displayNameFromDS=name.removeprefix("span."),
                )
                for name in selected
            ),
            column(
                *("duration", "number", duration),
                displayNameFromDS="Duration",
                unit="ns",
                custom={"width": 120},
            ),
        ],
    }


def names_in_tempo(span: Received) -> dict[str, Any]:
    """Return the values of a span by their names in TraceQL."""
    return {
        **{f"resource.{name}": value for name, value in span.resource.items()},
        **{f"span.{name}": value for name, value in span.attributes.items()},
        "name": span.data.name,
        "statusMessage": span.data.status.message,
    }


def duration(span: Received) -> float:
    """Return the duration in nanoseconds; NaN for zero, which Tempo omits."""
    return span.data.end_time_unix_nano - span.data.start_time_unix_nano or math.nan


def fulfils(query: str, values: Mapping[str, Any]) -> bool:
    """Return whether values match all regular expressions of a query."""
    return all(
        re.fullmatch(regex, str(values.get(name, ""))) for name, regex in conditions(query).items()
    )


def field(name: str, kind: str, values: list[Any], **config: Any) -> Frame:
    """Return a field of a data frame."""
    return {"name": name, "type": kind, "config": config, "values": values}
