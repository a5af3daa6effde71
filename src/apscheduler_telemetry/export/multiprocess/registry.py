"""
Reads the metrics of all processes, for the HTTP applications of the handle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric

from apscheduler_telemetry.export.multiprocess.file_format import OnFileSkipped
from apscheduler_telemetry.export.multiprocess.merge import read_metrics
from apscheduler_telemetry.export.multiprocess.slots import remove_stale_gauges
from apscheduler_telemetry.export.prometheus import FixedMetricsCollector


class MultiprocessRegistry(CollectorRegistry):
    """
    The metrics of all processes as a registry, those of the application included.

    A file that is damaged, or that is no regular file, is left out.

    Args:
        directory: the directory of multiprocess mode.
        write_current_metrics: called before the files are read, to write the metrics of this
            process.
        on_file_skipped: called with the path of a file that is left out, and with what is wrong
            with it.
    """

    def __init__(
        self,
        directory: Path,
        *,
        write_current_metrics: Callable[[], None],
        on_file_skipped: OnFileSkipped,
    ) -> None:
        super().__init__()
        self._directory = directory
        self._write_current_metrics = write_current_metrics
        self._on_file_skipped = on_file_skipped

    def collect(self) -> Iterable[Metric]:
        """
        Return the gauges of live processes, and the counters of all processes so far.

        Raises:
            OSError: the directory cannot be read.
        """
        self._write_current_metrics()
        remove_stale_gauges(self._directory)
        return read_metrics(self._directory, self._on_file_skipped)

    def restricted_registry(self, names: Iterable[str]) -> Any:
        """Return a registry of the series that have one of these names."""
        registry = CollectorRegistry()
        # Read once: reading them costs more than all else that a scrape does.
        registry.register(FixedMetricsCollector(list(self.collect())))
        return registry.restricted_registry(names)
