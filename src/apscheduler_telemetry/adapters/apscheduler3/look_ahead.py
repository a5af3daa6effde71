"""
Asks triggers for fire times that the scheduler has not asked for, and reports what is not known.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager

from apscheduler_telemetry.adapters.apscheduler3 import time_limit
from apscheduler_telemetry.adapters.apscheduler3.background_worker import BackgroundWorker
from apscheduler_telemetry.adapters.apscheduler3.triggers import (
    TOOK_TOO_LONG,
    FireTimeProblem,
    FireTimeSearch,
    custom_class_name,
    is_of_apscheduler,
)
from apscheduler_telemetry.core.model import JobInfo
from apscheduler_telemetry.core.observers import ErrorReporter, logger

COMPONENT = "schedule"

QUESTIONS_AT_ONCE = 5_000
"""Questions to a trigger of APScheduler's before other tasks get their turn: about 0.05 seconds."""
MAX_QUESTIONS = 3_000_000
"""Questions to a trigger of APScheduler's in one search: a job of every second, down a month."""
MAX_SECONDS = 1.0
"""
Seconds for a search with a trigger of the user's, whose copying and ten answers it includes.

The scheduler asks in its loop, which such a trigger would hold up as long.
"""
MAX_SLOW_SEARCHES = 3
"""Searches of a class of triggers that took too long, after which it is not asked for a while."""
RETRY_SECONDS = 3_600.0
"""Seconds after which a trigger is asked again with which there was a problem."""
MAX_REPORTS = 1_000
"""Problems that are logged and counted; as many as a scheduler has labels by default."""


class LookAhead:
    """
    Asks triggers for fire times in the background.

    APScheduler's own triggers are asked in turns with other tasks. Those of the user's may compute
    or wait for as long as they like, so they get a thread of their own with a time limit.

    Args:
        scheduler_name: the name of the scheduler, for the log.
        worker: asks APScheduler's own triggers.
        error_reporter: counts what is not known.
        create_task_context: makes the context manager in which triggers are asked.
    """

    def __init__(
        self,
        scheduler_name: str,
        worker: BackgroundWorker,
        error_reporter: ErrorReporter,
        create_task_context: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._scheduler_name = scheduler_name
        self._worker = worker
        self._error_reporter = error_reporter
        self._create_task_context = create_task_context
        self._custom_trigger_worker = BackgroundWorker(error_reporter)
        self._reported: set[tuple[str, str, str]] = set()
        self._slow_search_counts: Counter[str] = Counter()
        self._retry_at: dict[str, float] = {}

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

        def ask() -> None:
            if is_wanted():
                search.run(QUESTIONS_AT_ONCE)
                if not search.is_finished and search.question_count < MAX_QUESTIONS:
                    self._worker.submit(COMPONENT, ask)
                    return
                self._finish(search, info, on_done)

        def ask_with_time_limit() -> None:
            if is_wanted():
                self._run_with_time_limit(search)
                self._finish(search, info, on_done)

        if search.is_finished or is_of_apscheduler(search.trigger):
            self._worker.submit(COMPONENT, ask)
        else:
            self._custom_trigger_worker.submit(COMPONENT, ask_with_time_limit)

    def stop(self) -> None:
        """Begin no further search; this cannot be undone."""
        self._custom_trigger_worker.discard_tasks_and_stop()

    def _run_with_time_limit(self, search: FireTimeSearch) -> None:
        if not time_limit.are_threads_real():
            search.give_up(_NOT_ASKED_IN_GREENLET)
            return
        kind = custom_class_name(search.trigger)
        if self._retry_at.get(kind, 0.0) > time.perf_counter():
            search.give_up(_NOT_ASKED)
            return
        deadline = time.perf_counter() + MAX_SECONDS
        raised: list[BaseException] = []

        def run() -> None:
            try:
                with self._create_task_context():
                    search.run(deadline=deadline)
            except BaseException as error:  # noqa: BLE001  # a trigger may raise KeyboardInterrupt
                raised.append(error)

        try:
            if time_limit.run_with_time_limit(run, MAX_SECONDS) and raised:
                search.give_up_after_exception(raised[0])
        except time_limit.TooManyAbandonedThreadsError:
            search.give_up(_NOT_ASKED)
            return
        if not search.is_finished:
            search.give_up_after_time_limit()
        if search.problem is None or search.problem.kind != TOOK_TOO_LONG:
            self._slow_search_counts.pop(kind, None)
            return
        self._slow_search_counts[kind] += 1
        if self._slow_search_counts[kind] >= MAX_SLOW_SEARCHES:
            del self._slow_search_counts[kind]
            self._retry_at[kind] = time.perf_counter() + RETRY_SECONDS

    def _finish(
        self, search: FireTimeSearch, info: JobInfo, on_done: Callable[[FireTimeSearch], None]
    ) -> None:
        if not search.is_finished:
            search.give_up(_TOO_MANY_FIRE_TIMES)
        if search.problem is not None:
            self._report_once(search.problem, info)
        on_done(search)

    def _report_once(self, problem: FireTimeProblem, info: JobInfo) -> None:
        key = info.label, info.trigger, problem.kind
        if key in self._reported or len(self._reported) >= MAX_REPORTS:
            return
        self._reported.add(key)
        logger.warning(
            "apscheduler-telemetry does not know all fire times of the job %r of scheduler %r: its "
            "trigger %s %s. What was found before is used: the intervals of the job may be missing "
            "or cover fewer runs, and the count of its dropped runs may be too small",
            info.label,
            self._scheduler_name,
            info.trigger,
            problem.description,
        )
        self._error_reporter.count(COMPONENT)


_NOT_ASKED = FireTimeProblem(
    "not asked", "was not asked, as others before took too long; that is tried again later"
)
_NOT_ASKED_IN_GREENLET = FireTimeProblem(
    "not asked", "was not asked, as gevent has replaced threads, and it could hold up all greenlets"
)
_TOO_MANY_FIRE_TIMES = FireTimeProblem(
    "too many", f"has more than {MAX_QUESTIONS:,} of them, which are too many to be counted"
)
