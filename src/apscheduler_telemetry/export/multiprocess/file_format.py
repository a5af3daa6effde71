"""
The files of prometheus_client's multiprocess mode.

A file maps keys to a value and a timestamp. A key is the JSON text of one sample: the name of the
metric, the name of the sample, its labels and the help text.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from prometheus_client.metrics_core import Metric
from prometheus_client.mmap_dict import mmap_key
from prometheus_client.utils import floatToGoString

from apscheduler_telemetry.core.files import open_regular_file, replace_private_file
from apscheduler_telemetry.core.stats import Histogram
from apscheduler_telemetry.export.metric_families import MetricFamily, MetricKind

MAX_FILE_BYTES = 1 << 29
"""
Of a file that is read, as other users may write to the directory.

The histograms of 10,000 jobs take a seventh of it.
"""
MAX_KEY_BYTES = 1 << 20
"""Of a key that is read: the help text of a metric, and the values of its labels."""

_HEADER_STRUCT = struct.Struct("i4x")
"""The number of bytes in use, this header included."""
_LENGTH_STRUCT = struct.Struct("i")
"""The number of bytes of the key that follows, without its padding."""
_VALUE_AND_TIMESTAMP_STRUCT = struct.Struct("dd")
"""The value and the timestamp, after the key."""
_VALID_SAMPLE_SUFFIXES = frozenset({"", "_total", "_bucket", "_sum", "_count", "_created"})


OnFileSkipped = Callable[[str, str], None]
"""Called with the path of a file that is not used, and with what is wrong with it."""


_BAD_KEY_MESSAGE = "has a key that is no sample of Prometheus"


class DamagedFileError(ValueError):
    """
    Raised for a file that is not in the format of prometheus_client.

    Args:
        problem: what is wrong, as the rest of a sentence that begins with the file's name.
    """

    def __init__(self, problem: str = "is damaged") -> None:
        super().__init__(problem)


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
        suffix = "_total" if family.kind is MetricKind.COUNTER else ""
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
    content = bytearray(_HEADER_STRUCT.size)
    for key, value in values.items():
        encoded = key.encode()
        content += _LENGTH_STRUCT.pack(len(encoded))
        content += encoded.ljust(_padded_key_length(len(encoded)))
        content += _VALUE_AND_TIMESTAMP_STRUCT.pack(value, timestamps.get(key, 0.0))
    _HEADER_STRUCT.pack_into(content, 0, len(content))
    replace_private_file(path, bytes(content))


def read_entries(path: Path) -> Iterator[tuple[str, float, float]]:
    """
    Yield the keys of a file with their values and timestamps.

    Raises:
        DamagedFileError: the file is not in the format of prometheus_client. What was yielded
            before is not to be used.
        OSError: the file cannot be opened, or is no regular file.
    """
    with os.fdopen(open_regular_file(path), "rb") as file:
        header = file.read(_HEADER_STRUCT.size)
        if not header:
            return  # prometheus_client has created it just now, and will write to it
        if len(header) < _HEADER_STRUCT.size:
            raise DamagedFileError
        (used,) = _HEADER_STRUCT.unpack(header)
        if not (used == 0 or _HEADER_STRUCT.size <= used <= MAX_FILE_BYTES):  # 0 in a new file
            raise DamagedFileError
        position = _HEADER_STRUCT.size
        while position < used:
            entry = file.read(_LENGTH_STRUCT.size)
            length = _LENGTH_STRUCT.unpack(entry)[0] if len(entry) == _LENGTH_STRUCT.size else 0
            if not 0 < length <= MAX_KEY_BYTES:
                raise DamagedFileError
            padded = _padded_key_length(length)
            position += _LENGTH_STRUCT.size + padded + _VALUE_AND_TIMESTAMP_STRUCT.size
            entry = file.read(padded + _VALUE_AND_TIMESTAMP_STRUCT.size)
            if position > used or len(entry) < padded + _VALUE_AND_TIMESTAMP_STRUCT.size:
                raise DamagedFileError
            try:
                key = entry[:length].decode()
            except UnicodeDecodeError as error:
                raise DamagedFileError from error
            yield (key, *_VALUE_AND_TIMESTAMP_STRUCT.unpack_from(entry, padded))


def read_values(path: Path) -> dict[str, float]:
    """
    Return the values of a file by key.

    Raises:
        DamagedFileError: the file, or a key in it, is not in the format of prometheus_client.
        OSError: the file cannot be opened, or is no regular file.
    """
    values = {key: value for key, value, _ in read_entries(path)}
    for key in values:
        parse_key(key)
    return values


class SampleKey(NamedTuple):
    """
    What a key says of its sample.

    Attributes:
        family_name: the name of the metric.
        sample_name: the name of the sample.
        labels: names and values of the labels, sorted by name.
        description: the help text.
    """

    family_name: str
    sample_name: str
    labels: tuple[tuple[str, str], ...]
    description: str


def parse_key(key: str) -> SampleKey:
    """
    Return what a key says.

    Raises:
        DamagedFileError: it is no key of prometheus_client, or no exposition can have such a
            sample.
    """
    try:
        family, name, labels, description = json.loads(key)
        texts = [family, name, description, *labels, *labels.values()]
        # The name of a sample is that of its metric with a suffix.
        is_valid = all(type(text) is str for text in texts) and name.startswith(family)
        suffix = name[len(family) :]
        "".join(texts).encode()  # raises an exception for what no exposition can contain
        if (
            is_valid
            and suffix in _VALID_SAMPLE_SUFFIXES
            and all(map(_is_valid_name, [family, *labels]))
        ):
            return SampleKey(family, name, tuple(sorted(labels.items())), description)
    except (ValueError, TypeError, AttributeError, RecursionError):
        pass
    raise DamagedFileError(_BAD_KEY_MESSAGE)


@lru_cache(maxsize=1024)
def _is_valid_name(name: str) -> bool:
    """Return whether the installed prometheus_client can expose that name."""
    try:
        Metric(name, "", "gauge")
    except ValueError:
        return False
    return True


def _padded_key_length(length: int) -> int:
    """Return the length of a key with its padding, after which the value is aligned."""
    return length + 8 - (length + _LENGTH_STRUCT.size) % 8


def parse_job_label(key: str) -> str | None:
    """Return the value of the label ``job_id`` in a key, None if it has no such label."""
    labels: dict[str, str] = json.loads(key)[2]
    return labels.get("job_id")


def drop_values_of_other_jobs(
    values: Mapping[str, float], job_labels: set[str]
) -> dict[str, float]:
    """Return the values of these jobs, and those that belong to no single job."""
    wanted = {None, *job_labels}
    return {key: value for key, value in values.items() if parse_job_label(key) in wanted}
