"""
Let gunicorn choose the worker that runs the jobs, and start its scheduler there.

    pip install apscheduler-telemetry flask gunicorn
    cd examples/gunicorn_hook
    gunicorn app:app
    curl http://127.0.0.1:8000/metrics

When that worker dies, the one that takes its place is chosen. With --preload it works as well, as
the scheduler is started after the fork.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from typing import Any

if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:  # so it is at a reload
    # Before prometheus_client is imported, as it makes up its mind then.
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = tempfile.mkdtemp(prefix="gunicorn-metrics-")

from apscheduler_telemetry import multiprocess

workers = 4
chosen: Any = None


def pre_fork(_server: Any, worker: Any) -> None:
    """Choose a worker if there is none; this runs in gunicorn's first process."""
    global chosen  # noqa: PLW0603  # gunicorn's hooks are functions of a module
    if chosen is None:
        chosen = worker


def post_worker_init(worker: Any) -> None:
    """Start the scheduler; this runs in the worker, when the app is loaded."""
    if worker is chosen:
        from app import scheduler  # noqa: PLC0415  # not before the fork

        scheduler.start()


def worker_exit(_server: Any, worker: Any) -> None:
    """Shut the scheduler down; this runs in the worker, when it ends."""
    if worker is chosen:
        from app import scheduler  # noqa: PLC0415

        if scheduler.running:
            scheduler.shutdown()  # waits for runs in progress


def child_exit(server: Any, worker: Any) -> None:
    """Let go of a worker that is dead, and of its gauges."""
    global chosen  # noqa: PLW0603
    if worker is chosen:
        chosen = None
    multiprocess.child_exit(server, worker)


def on_exit(_server: Any) -> None:
    """Leave nothing behind."""
    shutil.rmtree(os.environ["PROMETHEUS_MULTIPROC_DIR"], ignore_errors=True)
