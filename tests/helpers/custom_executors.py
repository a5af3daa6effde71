"""A user's executor that calls APScheduler's functions itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from apscheduler.executors.base import BaseExecutor, run_job


class Executing(BaseExecutor):
    """An executor that calls a function of the test for each submission."""

    def __init__(self, execute: Callable[[Any, Any, Sequence[datetime]], None]) -> None:
        super().__init__()
        self._execute = execute

    def _do_submit_job(self, job: Any, run_times: Sequence[datetime]) -> None:
        self._execute(self, job, run_times)


def run(job: Any, run_times: Sequence[datetime]) -> list[Any]:
    events: list[Any] = run_job(job, "default", run_times, "apscheduler")
    return events
