"""
Calls triggers for fire times that the scheduler does not look for, and reports what is unknown.
"""

from __future__ import annotations

from collections.abc import Callable

from apscheduler_telemetry.adapters.apscheduler3.background_worker import BackgroundWorker
from apscheduler_telemetry.adapters.apscheduler3.triggers import (
    CUSTOM_TRIGGER_PROBLEM,
    FireTimeProblem,
    FireTimeSearch,
)
from apscheduler_telemetry.core.model import JobInfo
from apscheduler_telemetry.core.observers import ErrorReporter, logger

ERROR_COMPONENT = "schedule"

MAX_TRIGGER_CALLS_PER_TURN = 5_000
"""Calls of a trigger before other tasks get their turn: about 0.05 seconds."""
MAX_TRIGGER_CALLS_PER_SEARCH = 3_000_000
"""Calls of a trigger in one search: a job of every second, down a month."""
PROBLEM_RETRY_SECONDS = 3_600.0
"""Seconds after which a trigger is called again with which there was a problem."""
MAX_REPORTED_PROBLEMS = 1_000
"""Problems that are logged and counted; as many as a scheduler has labels by default."""


class BackgroundFireTimeSearcher:
    """
    Calls APScheduler's own triggers for fire times in the background, in turns with other tasks.

    Args:
        scheduler_name: the name of the scheduler, for the log.
        worker: calls the triggers.
        error_reporter: counts what is not known, unless it cannot be.
    """

    def __init__(
        self, scheduler_name: str, worker: BackgroundWorker, error_reporter: ErrorReporter
    ) -> None:
        self._scheduler_name = scheduler_name
        self._worker = worker
        self._error_reporter = error_reporter
        self._reported_problems: set[tuple[str, str, str]] = set()

    def submit(
        self,
        search: FireTimeSearch,
        info: JobInfo,
        on_done: Callable[[FireTimeSearch], None],
        *,
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        """
        Search in the background.

        Args:
            search: what is to be found.
            info: the job.
            on_done: called in the end, with what could be found.
            is_wanted: whether that is still of interest when its turn comes.
        """

        def continue_search() -> None:
            if not is_wanted():
                return
            search.run(MAX_TRIGGER_CALLS_PER_TURN)
            if not search.is_finished and search.trigger_call_count < MAX_TRIGGER_CALLS_PER_SEARCH:
                self._worker.submit(ERROR_COMPONENT, continue_search)
                return
            if not search.is_finished:
                search.stop_early(_TOO_MANY_FIRE_TIMES)
            if search.problem is not None:
                self._report_once(search.problem, info)
            on_done(search)

        self._worker.submit(ERROR_COMPONENT, continue_search)

    def _report_once(self, problem: FireTimeProblem, info: JobInfo) -> None:
        key = info.label, info.trigger, problem.kind
        if key in self._reported_problems or len(self._reported_problems) >= MAX_REPORTED_PROBLEMS:
            return
        self._reported_problems.add(key)
        logger.warning(
            "apscheduler-telemetry does not know all fire times of the job %r of scheduler %r: its "
            "trigger %s %s",
            info.label,
            self._scheduler_name,
            info.trigger,
            problem.description,
        )
        if problem is not CUSTOM_TRIGGER_PROBLEM:
            self._error_reporter.count(ERROR_COMPONENT)


_TOO_MANY_FIRE_TIMES = FireTimeProblem(
    "too many",
    f"has more than {MAX_TRIGGER_CALLS_PER_SEARCH:,} of them, which are too many to be counted. "
    "The count of its dropped runs is too small",
)
