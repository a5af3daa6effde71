"""
The translation of OTLP metrics to Prometheus, and its differences from a scrape.

This implements the default translation `UnderscoreEscapingWithSuffixes` as documented in
OpenTelemetry's "Prometheus and OpenMetrics Compatibility" and in Prometheus' guide "Using
Prometheus as your OpenTelemetry backend". Debian's Prometheus 2.42 cannot receive OTLP.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import Metric
from prometheus_client.samples import Exemplar

from tests.helpers.metrics import Series, without_usual_values
from tests.helpers.otlp_receiver import plain

UNITS = {"s": "seconds", "ms": "milliseconds", "By": "bytes", "1": ""}
"""Of UCUM's units, those that a test has; another is an error here."""
IDENTITY = ("service.name", "service.namespace", "service.instance.id")
CUMULATIVE = 2  # opentelemetry.proto.metrics.v1.AggregationTemporality


def metric_name(name: str, unit: str, *, gauge: bool, monotonic: bool) -> str:
    """Return the name of a metric in Prometheus, including the ``_total`` of a counter."""
    words = [word for word in re.split(r"[^a-zA-Z0-9:]+", name) if word]
    bare = re.sub(r"\{[^}]*\}", "", unit)
    suffix = UNITS[bare] if bare else ""
    if suffix and suffix not in words:
        words.append(suffix)
    if unit == "1" and gauge:
        words.append("ratio")
    if monotonic:
        words = [word for word in words if word != "total"] + ["total"]
    whole = "_".join(words)
    return f"_{whole}" if whole[:1].isdigit() else whole


def label_name(name: str) -> str:
    """Return the name of a label in Prometheus."""
    clean = re.sub(r"[^a-zA-Z0-9_]+", "_", name)
    return f"key_{clean}" if clean[:1].isdigit() else clean


def translate(request: Any) -> list[Metric]:
    """
    Return the series of one export, with the labels ``job`` and ``instance`` of its resource.

    Delta temporality is an error, as it has no translation.
    """
    families: dict[str, Metric] = {}
    for of_resource in request.resource_metrics:
        resource = plain(of_resource.resource.attributes)
        target = target_labels(resource)
        others = {label_name(k): _text(v) for k, v in resource.items() if k not in IDENTITY}
        if others:
            info = families.setdefault("target", Metric("target", "Target metadata", "info"))
            info.add_sample("target_info", {**target, **others}, 1)
        for scope in of_resource.scope_metrics:
            for metric in scope.metrics:
                _add(families, metric, target)
    return list(families.values())


def target_labels(resource: Mapping[str, Any]) -> dict[str, str]:
    """Return ``job`` and ``instance``, if the resource has them."""
    name, namespace, instance = (resource.get(key, "") for key in IDENTITY)
    labels = {"job": f"{namespace}/{name}" if namespace else name, "instance": instance}
    return {label: value for label, value in labels.items() if value}


def _add(families: dict[str, Metric], metric: Any, target: Mapping[str, str]) -> None:
    kind = metric.WhichOneof("data")
    data = getattr(metric, kind)
    if kind != "gauge":
        assert data.aggregation_temporality == CUMULATIVE, f"{metric.name} is no running total"
    monotonic = kind == "sum" and data.is_monotonic
    name = metric_name(metric.name, metric.unit, gauge=kind == "gauge", monotonic=monotonic)
    types = {"gauge": "gauge", "sum": "counter" if monotonic else "gauge", "histogram": "histogram"}
    base = name.removesuffix("_total")
    family = families.setdefault(base, Metric(base, metric.description, types[kind]))
    for point in data.data_points:
        labels = {label_name(k): _text(v) for k, v in plain(point.attributes).items()}
        labels = {**{label: value for label, value in labels.items() if value}, **target}
        if kind == "histogram":
            _add_histogram(family, labels, point)
        else:
            family.add_sample(name, labels, getattr(point, point.WhichOneof("value")))


def _add_histogram(family: Metric, labels: dict[str, str], point: Any) -> None:
    total = 0
    # Prometheus writes a bound with as few digits as it takes: 1 where a client library has 1.0.
    bounds = [f"{bound:.15g}" for bound in point.explicit_bounds]
    for index, (le, count) in enumerate(zip([*bounds, "+Inf"], point.bucket_counts, strict=True)):
        total += count
        exemplar = _exemplar(point, index)
        family.add_sample(f"{family.name}_bucket", {**labels, "le": le}, total, exemplar=exemplar)
    family.add_sample(f"{family.name}_count", labels, point.count)
    family.add_sample(f"{family.name}_sum", labels, point.sum)


def _exemplar(point: Any, index: int) -> Exemplar | None:
    """Return the exemplar of a bucket: that of its latest value."""
    low = point.explicit_bounds[index - 1] if index else float("-inf")
    high = (*point.explicit_bounds, float("inf"))[index]
    found = [e for e in point.exemplars if low < e.as_double <= high]
    if not found:
        return None
    latest = max(found, key=lambda e: e.time_unix_nano)
    labels = {"trace_id": latest.trace_id.hex(), "span_id": latest.span_id.hex()}
    return Exemplar(labels, latest.as_double, latest.time_unix_nano / 1e9)


def _text(value: Any) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)


def series(families: Iterable[Metric], leave_out: Iterable[str] = ()) -> dict[Series, float]:
    """Return the values by name and labels, without empty labels."""

    def labels(sample: Any) -> Iterator[tuple[str, str]]:
        for name, value in sample.labels.items():
            if value and name not in leave_out:
                yield name, str(float(value)) if name == "le" else value

    return {
        (sample.name, frozenset(labels(sample))): sample.value
        for family in families
        for sample in family.samples
    }


def differences(scraped: list[Metric], translated: list[Metric]) -> list[str]:
    """
    Return the differences between a scrape and the translation of an export.

    Documented differences are left out: OTLP has no histograms of jobs that never ran, and no
    workers of executors without a limit; only OTLP has ``target_info``, and values that are usual.
    """
    ours = [family for family in translated if family.name != "target"]
    here = series(scraped)
    there = without_usual_values(series(ours, ("job", "instance")))
    never = {
        labels for (name, labels), value in here.items() if name.endswith("_count") and not value
    }
    for name, labels in list(here):
        bare = frozenset(pair for pair in labels if pair[0] != "le")
        histogram = name.endswith(("_bucket", "_count", "_sum"))
        unlimited = name.endswith("_workers") and here[name, labels] == float("inf")
        if unlimited or (histogram and bare in never and (name, labels) not in there):
            del here[name, labels]
    found = [f"{key} is {here.get(key)} and {there.get(key)}" for key in here.keys() | there.keys()
             if here.get(key) != there.get(key)]  # fmt: skip
    kinds = {f.name: (f.type, f.documentation) for f in scraped}
    found += [
        f"{family.name} is {kinds.get(family.name)} and {family.type}"
        for family in ours
        if kinds.get(family.name) != (family.type, family.documentation)
    ]
    return sorted(found)
