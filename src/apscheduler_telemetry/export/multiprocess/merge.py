"""
Reads the files of all processes and combines their values.

The collector of prometheus_client raises an exception for a whole directory if one file in it is
damaged, and it opens whatever has the name of such a file. Only its way of combining is used here.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector

from apscheduler_telemetry.core.files import UnusableFileError
from apscheduler_telemetry.core.interruptions import raise_if_interruption
from apscheduler_telemetry.export.multiprocess.file_format import (
    DamagedFileError,
    OnFileSkipped,
    SampleKey,
    parse_key,
    read_entries,
)

_BAD_FILE_NAME_MESSAGE = "has no name of a file of prometheus_client"
_CUMULATIVE_TYPES = frozenset({"counter", "histogram", "summary"})
_KNOWN_GAUGE_MODES = frozenset(
    f"{live}{mode}" for live in ("", "live") for mode in ("all", "max", "min", "mostrecent", "sum")
)


class _MultiprocessMetric(Metric):
    """A metric whose samples come from several processes."""

    def add_process_sample(  # called for each sample
        self, key: SampleKey, value: float, timestamp: float, mode: str, pid: str
    ) -> None:
        """Add a sample of one process; `mode` is that of a gauge, and else empty."""
        labels: Any = key.labels
        if mode:
            self._multiprocess_mode = mode  # which `_combine_samples` needs
            labels = (*labels, ("pid", pid))
        self.add_sample(key.sample_name, labels, value, timestamp)


def read_metrics(directory: Path, on_file_skipped: OnFileSkipped) -> list[Metric]:
    """
    Return the metrics of all processes; what cannot be read is left out.

    Args:
        directory: the directory of multiprocess mode.
        on_file_skipped: called for each file that is left out.

    Raises:
        OSError: the directory cannot be read.
    """
    metrics: dict[str, _MultiprocessMetric] = {}
    keys: dict[str, SampleKey] = {}
    for path in sorted(directory.iterdir()):
        if path.suffix == ".db":
            try:
                _add_samples_of_file(path, metrics, keys)
            except FileNotFoundError:
                pass  # its process removed it meanwhile
            except DamagedFileError as error:
                on_file_skipped(str(path), str(error))
            except UnusableFileError as error:
                on_file_skipped(str(path), error.problem)
            except OSError as error:
                on_file_skipped(str(path), f"cannot be read: {error.strerror or error}")
    return [
        combined
        for metric in metrics.values()
        for combined in _combine_samples(metric, on_file_skipped)
    ]


def _add_samples_of_file(
    path: Path, metrics: dict[str, _MultiprocessMetric], keys: dict[str, SampleKey]
) -> None:
    """Add all samples of a file, or none."""
    kind, mode, pid = _parse_file_name(path.name)
    samples = []
    for text, value, timestamp in read_entries(path):
        key = keys.get(text)
        if key is None:
            key = keys[text] = parse_key(text)
        samples.append((key, value, timestamp))
    for key, value, timestamp in samples:
        metric = metrics.get(key.family_name)
        if metric is None:
            metric = metrics[key.family_name] = _MultiprocessMetric(
                key.family_name, key.description, kind
            )
        metric.add_process_sample(key, value, timestamp, mode, pid)


def _parse_file_name(name: str) -> tuple[str, str, str]:
    """Return the type of the metrics in a file, and for gauges their mode and the process."""
    kind, *parts = name.split("_")
    if kind == "gauge" and len(parts) > 1 and parts[0] in _KNOWN_GAUGE_MODES:
        return kind, parts[0], parts[1].removesuffix(".db")
    if kind in _CUMULATIVE_TYPES and parts:
        return kind, "", ""
    raise DamagedFileError(_BAD_FILE_NAME_MESSAGE)


def _combine_samples(metric: Metric, on_file_skipped: OnFileSkipped) -> Iterable[Metric]:
    """Combine the samples of one metric, by a private function of prometheus_client."""
    try:
        return MultiProcessCollector._accumulate_metrics({metric.name: metric}, True)  # type: ignore[no-any-return, no-untyped-call]  # noqa: SLF001, FBT003
    except Exception as error:  # noqa: BLE001  # files that contradict each other
        raise_if_interruption(error)
        on_file_skipped(metric.name, f"cannot be combined ({type(error).__name__})")
        return ()
