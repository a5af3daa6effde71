"""
Rotel, a collector that shares no code with this package or Python's SDK.

Its wheel contains one program, written in Rust. The program prints what it receives in the format
of the Collector's debug exporter, which is parsed here.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)

from tests.helpers.servers import free_port, running_process
from tests.helpers.waiting import wait_for_answer

_READ: Mapping[str, Any] = {"Str": str, "Int": int, "Double": float, "Bool": "true".__eq__}
_TEMPORALITY = {"DELTA": 1, "CUMULATIVE": 2}


@dataclass(frozen=True, kw_only=True)
class Span:
    """
    A span as Rotel understood it; ids in hexadecimal, times in Unix nanoseconds.

    Attributes:
        service: whose it is.
        scope: what instrumentation made it.
        parent: the parent's id; empty for a root.
        links: trace and span id of each.
    """

    service: str
    scope: str
    trace: str
    id: str
    parent: str
    name: str
    status: str
    message: str
    start: int
    end: int
    attributes: Mapping[str, Any]
    links: tuple[tuple[str, str], ...]


class Rotel:
    """
    A running Rotel.

    Attributes:
        endpoints: by protocol, ``grpc`` or ``http``, where it receives OTLP.
    """

    def __init__(self, endpoints: Mapping[str, str], output: Path) -> None:
        self.endpoints = endpoints
        self._output = output

    def spans(self, service: str) -> list[Span]:
        """Return all spans of a service so far."""
        return [
            _span(service, scope, block)
            for resource in self._resources("Spans", service)
            for scope in _split(r"ScopeSpans #\d+", resource)
            for block in _split(r"Span #\d+", scope)
        ]

    def metrics(self, service: str) -> Any:
        """Return what a service sent last, as the message of the protocol it must have been."""
        request = ExportMetricsServiceRequest()
        *_, resource = self._resources("Metrics", service)
        added = request.resource_metrics.add()
        for key, value in _attributes("Resource attributes", resource).items():
            added.resource.attributes.add(key=key).value.string_value = value
        for scope in _split(r"ScopeMetrics #\d+", resource):
            metrics = added.scope_metrics.add().metrics
            for block in _split(r"Metric #\d+", scope):
                _metric(metrics.add(), block)
        return request

    def _resources(self, kind: str, service: str) -> list[str]:
        text = self._output.read_text(encoding="utf-8")
        found = re.split(r"(?m)^Resource(Spans|Metrics) #\d+\n", text)[1:]
        return [
            block
            for of, block in zip(found[::2], found[1::2], strict=True)
            if of == kind
            and _attributes("Resource attributes", block).get("service.name") == service
        ]


def program() -> Path | None:
    """Return Rotel's program, None where it is not installed."""
    package = importlib.util.find_spec("rotel")
    return Path(str(package.origin)).with_name("rotel-agent") if package else None


@contextmanager
def rotel(binary: Path, directory: Path) -> Iterator[Rotel]:
    """Run Rotel on free ports, in front of a collector that throws all away."""
    ports = {"grpc": free_port(), "http": free_port()}
    command: list[str | Path] = [binary, "start", "--exporter", "blackhole"]
    command += ["--debug-log", "traces", "--debug-log", "metrics"]
    command += ["--debug-log-verbosity", "detailed"]
    command += ["--pid-file", directory / "rotel.pid", "--log-file", directory / "rotel.log"]
    for protocol, port in ports.items():
        command += [f"--otlp-{protocol}-endpoint", f"127.0.0.1:{port}"]
    output = directory / "rotel.txt"
    with running_process(command, output) as process:

        def is_up() -> bool:
            assert process.poll() is None, output.read_text()
            return "Starting Rotel" in output.read_text()

        wait_for_answer(is_up)
        yield Rotel({name: f"http://127.0.0.1:{port}" for name, port in ports.items()}, output)


def _split(title: str, text: str) -> list[str]:
    """Return the parts of a text that stand below such a title."""
    return re.split(rf"(?m)^{title}\n", text)[1:]


def _fields(text: str) -> dict[str, str]:
    """Return what stands as ``name: value``, with an arrow or without; the first of each name."""
    found: dict[str, str] = {}
    for name, value in re.findall(r"(?m)^(?: {4,5}(?:-> )?)?([A-Z][\w ]*?) *: (.*)$", text):
        found.setdefault(name, value)
    return found


def _attributes(title: str, text: str) -> dict[str, Any]:
    found = re.search(rf"(?m)^{title}:\n((?:     -> .*\n)+)", text)
    pairs = re.findall(r"-> (\S+): (\w+)\((.*)\)\n", found[1]) if found else ()
    return {key: _READ[kind](value) for key, kind, value in pairs}


def _span(service: str, scope: str, block: str) -> Span:
    fields = _fields(block)
    return Span(
        service=service,
        scope=re.findall(r"(?m)^InstrumentationScope (\S+)", scope)[0],
        trace=fields["Trace ID"],
        id=fields["ID"],
        parent=fields["Parent ID"],
        name=fields["Name"],
        status=fields["Status code"].removeprefix("STATUS_CODE_"),
        message=fields["Status message"],
        start=int(fields["Start time"]),
        end=int(fields["End time"]),
        attributes=_attributes("Attributes", block),
        links=tuple(
            (of["Trace ID"], of["ID"]) for of in map(_fields, _split(r"SpanLink #\d+", block))
        ),
    )


def _metric(metric: Any, block: str) -> None:
    fields = _fields(block)
    metric.name, metric.unit = fields["Name"], fields["Unit"]
    metric.description = fields["Description"]
    data = getattr(metric, fields["DataType"].lower())
    data.SetInParent()
    if "AggregationTemporality" in fields:
        name = fields["AggregationTemporality"].removeprefix("AGGREGATION_TEMPORALITY_")
        data.aggregation_temporality = _TEMPORALITY[name]
    if "IsMonotonic" in fields:
        data.is_monotonic = fields["IsMonotonic"] == "true"
    for text in _split(r"(?:Number|Histogram)DataPoints #\d+", block):
        point = data.data_points.add()
        for key, value in _attributes("Data point attributes", text).items():
            point.attributes.add(key=key).value.string_value = value
        values = _fields(text)
        if "Count" not in values:
            point.as_double = float(values["Value"])
            continue
        point.count, point.sum = int(values["Count"]), float(values["Sum"])
        bounds = re.findall(r"(?m)^ExplicitBounds #\d+: (.+)$", text)
        point.explicit_bounds.extend(map(float, bounds))
        counts = re.findall(r"(?m)^Buckets #\d+, Count: (\d+)$", text)
        point.bucket_counts.extend(map(int, counts))
