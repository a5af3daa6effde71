"""A scheduler whose passes are started by the test, and a process pool that starts fast."""

from __future__ import annotations

import multiprocessing
from typing import Any

import apscheduler
from apscheduler.executors.debug import DebugExecutor
from apscheduler.executors.pool import ProcessPoolExecutor
from apscheduler.schedulers.base import BaseScheduler

APSCHEDULER = tuple(int(part) for part in apscheduler.__version__.split(".")[:2])


def finish_pass(scheduler: Any) -> None:
    """
    Wait until a pass over due jobs is over that is under way in another thread.

    A scheduler that is shut down in the middle of one breaks it off with an exception.
    """
    with scheduler._jobstores_lock:
        pass  # which is held for as long as that takes


class HandDriven(BaseScheduler):
    """A real scheduler whose passes are started by the test."""

    def wakeup(self) -> None:
        """Do nothing: see `turn`."""

    def shutdown(self, wait: bool = True) -> None:
        super().shutdown(wait)

    def turn(self) -> None:
        """Run one pass over due jobs."""
        self._process_jobs()


FORKSERVER_IMPORTS = [
    "apscheduler.executors.pool",
    "apscheduler_telemetry.instrumentor",
    "opentelemetry.sdk.metrics",
    "opentelemetry.sdk.trace",
    "pytest",
]
"""What children of process pools would each import, for half a second of computing or more."""


def forkserver_pool(workers: int = 1) -> ProcessPoolExecutor:
    """
    Return a process pool, on old versions of APScheduler as well.

    Its children are forked from a process that has no threads and has imported what they need. They
    have the environment variables that there were when a test first had such a pool.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(FORKSERVER_IMPORTS)
    return ProcessPoolExecutor(workers, pool_kwargs={"mp_context": context})


def hand_driven_scheduler(**options: Any) -> HandDriven:
    """Return a scheduler whose passes are started by the test, with the debug executor."""
    return HandDriven(**{"executors": {"default": DebugExecutor()}, **options})
