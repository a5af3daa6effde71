"""
The files of prometheus_client's multiprocess mode.

A file maps keys to a value and a timestamp. A key is the JSON text of one sample: the name of the
metric, the name of the sample, its labels and the help text.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.utils import floatToGoString

from apscheduler_telemetry.core.stats import Histogram
from apscheduler_telemetry.export.metric_families import Kind, MetricFamily

_ENTRY_OVERHEAD = 28
"""Bytes of an entry besides its key: length 4, padding at most 8, value 8 and timestamp 8."""


def sample_keys(
    family: MetricFamily, labels: tuple[str, ...], value: float | Histogram
) -> list[str]:
    """
    Return the keys of the samples of one series.

    Args:
        family: the metric.
        labels: the values of its labels.
        value: the value, of which only the type and the bounds matter.

    Returns:
        One key; for a histogram a key for each bucket, and then the key of the sum.
    """
    name, description = family.prometheus_family_name, family.description
    names = list(family.labels)
    if not isinstance(value, Histogram):
        suffix = "_total" if family.kind is Kind.COUNTER else ""
        return [mmap_key(name, name + suffix, names, [*labels], description)]
    bucket_names = [*names, "le"]
    bounds = [floatToGoString(bound) for bound in (*value.bounds, math.inf)]  # type: ignore[no-untyped-call]
    buckets = [
        mmap_key(name, f"{name}_bucket", bucket_names, [*labels, bound], description)
        for bound in bounds
    ]
    return [*buckets, mmap_key(name, f"{name}_sum", names, [*labels], description)]


def write_values(
    path: Path, values: Mapping[str, float], timestamps: Mapping[str, float] | None = None
) -> None:
    """
    Replace a file in one step, so that readers always find a complete one.

    Args:
        path: the file.
        values: all values of the file, by key.
        timestamps: their timestamps, where these are not 0.
    """
    timestamps = timestamps or {}
    partial = path.with_suffix(".partial")
    with partial.open("wb") as new:
        # Allocate all space here, where a full disk raises an error. Without it, a write to the
        # memory that is mapped to the file would end the process with a SIGBUS.
        new.write(bytes(8 + sum(len(key.encode()) + _ENTRY_OVERHEAD for key in values)))
    file = MmapedDict(str(partial))  # type: ignore[no-untyped-call]
    try:
        for key, value in values.items():
            file.write_value(key, value, timestamps.get(key, 0.0))  # type: ignore[no-untyped-call]
    finally:
        file.close()  # type: ignore[no-untyped-call]
    partial.replace(path)


def read_values(path: Path) -> dict[str, float]:
    """Return the values of a file by key."""
    entries = MmapedDict.read_all_values_from_file(str(path))  # type: ignore[no-untyped-call]
    return {key: value for key, value, *_ in entries}


def parse_job_label(key: str) -> str | None:
    """Return the value of the label ``job_id`` in a key, None if it has no such label."""
    labels: dict[str, str] = json.loads(key)[2]
    return labels.get("job_id")


def keep_jobs(values: Mapping[str, float], job_labels: set[str]) -> dict[str, float]:
    """Return the values of these jobs, and those that belong to no single job."""
    wanted = {None, *job_labels}
    return {key: value for key, value in values.items() if parse_job_label(key) in wanted}
