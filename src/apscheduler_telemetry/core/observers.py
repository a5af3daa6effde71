"""
Observers of single runs, such as spans, and the counter of errors of the telemetry itself.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol, TypeVar

from apscheduler_telemetry.core.exception_text import MAX_STACKTRACE_LENGTH, ExceptionDescriber
from apscheduler_telemetry.core.interruptions import raise_if_interruption
from apscheduler_telemetry.core.locks import renew_lock_in_forked_children, synchronized
from apscheduler_telemetry.core.model import MAX_MESSAGE_LENGTH, CaptureOptions, exception_type_name
from apscheduler_telemetry.core.records import Run

logger = logging.getLogger("apscheduler_telemetry")

ERROR_COMPONENTS = (
    "adapter",
    "collector",
    "expect",
    "http",
    "job_label",
    "meter",
    "multiprocess",
    "redact",
    "schedule",
    "spans",
)
"""The ``component`` label of ``apscheduler_telemetry_errors_total``; each exists at 0."""


MAX_LOGGED_FILE_PATHS = 1_000
"""Paths that `ErrorReporter.report_unusable_path` logs; others are only counted."""
MAX_LOGGED_FILE_PATH_LENGTH = 4_096
"""Characters of their names in the log: the longest path of Linux."""
MAX_ENDED_RUNS_HELD = 1_000
"""Ended runs that an observer may still hold: at most half a megabyte of spans."""
STALE_SECONDS_AFTER_END = 60.0
"""Seconds after which a run that has ended is stale, if `on_run_finished` was not called."""

_T = TypeVar("_T")


class ErrorReporter:
    """
    Counts what fails inside telemetry, and logs the first failure of each component.

    Args:
        capture: whether the log may have the messages of exceptions.
    """

    def __init__(self, capture: CaptureOptions | None = None) -> None:
        self._exception_describer = ExceptionDescriber(
            capture or CaptureOptions(), self._report_redact_failure
        )
        self._lock = threading.RLock()
        self._counts = dict.fromkeys(ERROR_COMPONENTS, 0)
        self._logged_file_paths: set[str] = set()
        renew_lock_in_forked_children(self)

    def exception(self, component: str) -> None:
        """
        Report the exception that is being handled, as a failure of `component`.

        If it came from outside, such as Ctrl-C, it is no failure, and is raised again.
        """
        exception = sys.exc_info()[1]
        if exception is not None:
            raise_if_interruption(exception)
        if self._increment(component) > 1:
            return
        try:
            text = (
                "" if exception is None else self._exception_describer.format_stacktrace(exception)
            )
        except BaseException as error:  # noqa: BLE001  # an exception of the user's may be anything
            raise_if_interruption(error)
            text = "" if exception is None else exception_type_name(exception)
        if (
            exception is None
            or len(text) >= MAX_STACKTRACE_LENGTH
            or not self._exception_describer.can_be_logged_unredacted(exception)
        ):
            self._log(component, f"see below\n{text}", exc_info=False)
        else:
            self._log(component, "see below", exc_info=True)

    def report(self, component: str, description: str) -> None:
        """Report a failure of `component` that happened in another process, such as a worker."""
        if self._increment(component) == 1:
            self._log(component, description[:MAX_MESSAGE_LENGTH], exc_info=False)

    @synchronized
    def add_component(self, component: str) -> None:
        """Let a component that not every scheduler has exist at 0; see `ERROR_COMPONENTS`."""
        self._counts.setdefault(component, 0)

    def count(self, component: str) -> None:
        """Count a failure of `component` that the caller logs."""
        self._increment(component)

    def report_unusable_path(self, component: str, path: str, problem: str) -> None:
        """
        Report that `component` could not use one of several files; each path is logged once.

        Args:
            component: as of `exception`.
            path: of the file.
            problem: what is wrong with it, as the rest of a sentence that begins with the path.
        """
        self._increment(component)
        if self._add_logged_path(path):
            name = path[:MAX_LOGGED_FILE_PATH_LENGTH]
            logger.warning(
                "%s %s; apscheduler-telemetry leaves it out. This is not logged again, only "
                "counted in apscheduler_telemetry_errors_total as component %r",
                # A line break in the name of a file would begin a line that looks like another's.
                name if name.isprintable() else repr(name),
                problem,
                component,
            )

    def _report_redact_failure(self, description: str) -> None:
        self.report("redact", description)

    @staticmethod
    def _log(component: str, description: str, *, exc_info: bool) -> None:
        logger.error(
            "apscheduler-telemetry failed in its component %r (%s); jobs and scheduler are "
            "not affected. Further failures of it are not logged, only counted in "
            "apscheduler_telemetry_errors_total",
            component,
            description,
            exc_info=exc_info,
        )

    @synchronized
    def counts(self) -> Mapping[str, int]:
        """Return how often each component failed."""
        return dict(self._counts)

    @synchronized
    def _add_logged_path(self, path: str) -> bool:
        is_new = path not in self._logged_file_paths
        if is_new and len(self._logged_file_paths) < MAX_LOGGED_FILE_PATHS:
            self._logged_file_paths.add(path)
            return True
        return False

    @synchronized
    def _increment(self, component: str) -> int:
        count = self._counts[component] = self._counts.get(component, 0) + 1
        return count


class RunObserver(Protocol):
    """
    Observes single runs, for example to create spans.

    Each run gets one call of `on_run_finished`. An error in an observer is counted and logged once,
    and does not reach the job.

    Attributes:
        component: the component under which its errors are counted.
    """

    component: str

    def is_enabled(self) -> bool | None:
        """
        Return whether runs have to be observed from now on.

        Called before each pass over due jobs, while any observer returns False, and after
        `ignore_new_runs`. Only observers that have returned True are called for runs.

        Returns:
            None if that will not change before `ignore_new_runs`.
        """

    def on_callable_start(self, run: Run) -> None:
        """Called before the callable runs, in the same thread and context."""

    def on_callable_end(self, run: Run) -> None:
        """Called when the callable is over, in the thread and context of `on_callable_start`."""

    def create_trace_carrier(self, run: Run) -> Mapping[str, str] | None:
        """
        Called when the run is about to be sent to another process.

        Returns:
            A W3C carrier for the other process, or None if there is nothing to carry.
        """

    def on_run_finished(self, run: Run) -> None:
        """
        Called when it is known how a run ended: its ``outcome`` is set.

        `on_callable_start` and `on_callable_end` were called before if it ran in this process.
        Otherwise it ran in another process (its ``measured_end_at`` is set), or never (missed,
        skipped, coalesced, lost).
        """

    def ignore_new_runs(self) -> None:
        """Observe no further run from now on; `has_open_runs` is about the others."""

    def has_open_runs(self) -> bool:
        """Return whether any observed run is not finished yet."""


class ObservedRuns(dict[Run, _T]):
    """
    The data of an observer for each run, until `on_run_finished`.

    This is a dictionary because weak references would make a span 7 percent slower.
    `on_run_finished` should be called for each run, but an exception from outside may prevent
    that: call `drop_stale_runs` if there are more runs than `cleanup_threshold`.

    Attributes:
        cleanup_threshold: how many runs may be in it before the next `drop_stale_runs`.
    """

    __slots__ = ("cleanup_threshold",)

    def __init__(self) -> None:
        super().__init__()
        self.cleanup_threshold = MAX_ENDED_RUNS_HELD

    def drop_stale_runs(self) -> None:
        """Drop runs that ended some time ago without a call of `on_run_finished`."""
        now = time.time()
        for run in list(self):
            if run.outcome is not None and run.finished_at < now - STALE_SECONDS_AFTER_END:
                self.pop(run, None)
        self.cleanup_threshold = len(self) + MAX_ENDED_RUNS_HELD


class ObserverGroup:
    """
    Passes runs on to observers, and catches their errors.

    Starts are passed on in the order of the observers, and ends in the opposite order, so that the
    first observer encloses the others.

    Attributes:
        has_enabled_observers: whether any observer was enabled at the last
            `update_enabled_observers`; others are not called for runs. If none is, a run costs
            less.
        are_enabled_observers_final: whether `has_enabled_observers` cannot change before `stop`.
    """

    def __init__(
        self, error_reporter: ErrorReporter, observers: Iterable[RunObserver] = ()
    ) -> None:
        self._error_reporter = error_reporter
        self._observers = tuple(observers)
        self._enabled_observers: Sequence[RunObserver] = ()
        self._reversed_enabled_observers: Sequence[RunObserver] = ()
        self._on_last_open_run_finished: Callable[[], None] | None = None
        self.has_enabled_observers = self.are_enabled_observers_final = False
        self.update_enabled_observers()

    def update_enabled_observers(self) -> None:
        """Ask the observers whether runs have to be observed from now on."""
        enabled_observers, are_enabled_observers_final = [], True
        for observer in self._observers:
            try:
                answer = observer.is_enabled()
            except Exception:  # noqa: BLE001  # its next calls will show
                self._error_reporter.exception(observer.component)
                answer = True
            if answer:
                enabled_observers.append(observer)
            elif answer is not None:
                are_enabled_observers_final = False
        self._enabled_observers = enabled_observers
        self._reversed_enabled_observers = enabled_observers[::-1]
        self.has_enabled_observers, self.are_enabled_observers_final = (
            bool(enabled_observers),
            are_enabled_observers_final,
        )

    def on_callable_start(self, run: Run) -> None:
        """Notify all observers that a run starts."""
        for observer in self._enabled_observers:
            try:
                observer.on_callable_start(run)
            except Exception:  # noqa: BLE001, PERF203  # each observer on its own
                self._error_reporter.exception(observer.component)

    def on_callable_end(self, run: Run) -> None:
        """Notify all observers that the callable of a run has ended."""
        for observer in self._reversed_enabled_observers:
            try:
                observer.on_callable_end(run)
            except Exception:  # noqa: BLE001, PERF203
                self._error_reporter.exception(observer.component)

    def on_run_finished(self, run: Run) -> None:
        """Notify all observers that a run has its outcome."""
        for observer in self._reversed_enabled_observers:
            try:
                observer.on_run_finished(run)
            except Exception:  # noqa: BLE001, PERF203
                self._error_reporter.exception(observer.component)
        if self._on_last_open_run_finished is not None:
            self._call_back_if_no_open_runs()

    def stop_after_open_runs(self, on_all_finished: Callable[[], None]) -> None:
        """
        Stop observing further runs; runs that are already observed are observed to their end.

        Args:
            on_all_finished: called when no observed run is left: now, or in the `on_run_finished`
                of the last one.
        """
        for observer in self._observers:
            try:
                observer.ignore_new_runs()
            except Exception:  # noqa: BLE001, PERF203
                self._error_reporter.exception(observer.component)
        self.update_enabled_observers()  # some may only be called for these runs from now on
        self._on_last_open_run_finished = on_all_finished
        self._call_back_if_no_open_runs()

    def _call_back_if_no_open_runs(self) -> None:
        for observer in self._observers:
            try:
                if observer.has_open_runs():
                    return
            except Exception:  # noqa: BLE001, PERF203
                self._error_reporter.exception(observer.component)
        on_all_finished, self._on_last_open_run_finished = self._on_last_open_run_finished, None
        if on_all_finished is not None:  # otherwise another thread was faster
            on_all_finished()

    def create_trace_carrier(self, run: Run) -> Mapping[str, str]:
        """Return the W3C carrier of a run that is sent to another process; it may be empty."""
        carrier: dict[str, str] = {}
        for observer in self._enabled_observers:
            try:
                carrier.update(observer.create_trace_carrier(run) or {})
            except Exception:  # noqa: BLE001, PERF203
                self._error_reporter.exception(observer.component)
        return carrier
