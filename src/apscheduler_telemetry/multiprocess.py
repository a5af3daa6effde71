"""
Hooks for servers with several processes, to be called when one of these has ended.

They only matter if ``PROMETHEUS_MULTIPROC_DIR`` is set. ``docs/deployment.md`` describes the setup.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from prometheus_client import multiprocess

from apscheduler_telemetry.export.multiprocess.directory import read_directory_variable
from apscheduler_telemetry.export.multiprocess.slots import remove_stale_gauges

__all__ = ["child_exit", "mark_process_dead"]


def mark_process_dead(pid: int, path: str | None = None) -> None:
    """
    Remove the gauges of a dead process at once, and not only when another process finds them.

    It also does what ``prometheus_client.multiprocess.mark_process_dead`` does.

    Args:
        pid: the id of the dead process.
        path: the directory of multiprocess mode; by default that of the environment.
    """
    path = path or read_directory_variable()
    if path:
        # An exception in a hook would end gunicorn.
        with contextlib.suppress(OSError):
            multiprocess.mark_process_dead(pid, path)  # type: ignore[no-untyped-call]
        with contextlib.suppress(OSError):
            remove_stale_gauges(Path(path))


def child_exit(_server: Any, worker: Any) -> None:
    """
    Remove the gauges of a gunicorn worker that has ended.

    This is a hook of gunicorn. To use it, import it in ``gunicorn.conf.py``:
    ``from apscheduler_telemetry.multiprocess import child_exit``.
    """
    mark_process_dead(worker.pid)
