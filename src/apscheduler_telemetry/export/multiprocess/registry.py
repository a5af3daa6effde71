"""
Reads the metrics of all processes, for the HTTP applications of the handle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, multiprocess
from prometheus_client.metrics_core import Metric

from apscheduler_telemetry.export.multiprocess.slots import remove_stale_gauges


class MultiprocessRegistry(CollectorRegistry):
    """
    The metrics of all processes as a registry, those of the application included.

    Args:
        directory: the directory of multiprocess mode.
        refresh: called before the files are read, to write the current metrics of this process.
    """

    def __init__(self, directory: Path, *, refresh: Callable[[], None]) -> None:
        super().__init__()
        self._directory = directory
        self._refresh = refresh

    def collect(self) -> Iterable[Metric]:
        """Return the gauges of live processes, and the counters of all processes so far."""
        self._prepare()
        return self._new_collector(None).collect()  # type: ignore[no-any-return, no-untyped-call]

    def restricted_registry(self, names: Iterable[str]) -> Any:
        """Return a registry of the series that have one of these names."""
        self._prepare()
        registry = CollectorRegistry(auto_describe=True)
        self._new_collector(registry)
        return registry.restricted_registry(names)

    def _prepare(self) -> None:
        self._refresh()
        remove_stale_gauges(self._directory)

    def _new_collector(
        self, registry: CollectorRegistry | None
    ) -> multiprocess.MultiProcessCollector:
        """Return a reader of the directory, registered with `registry` if there is one."""
        return multiprocess.MultiProcessCollector(registry, str(self._directory))  # type: ignore[no-untyped-call]
