"""
Follows runs: one submission of a job to an executor, its measurement and its results.

Whatever an executor does with a job, it passes the run times on to ``run_job``, which iterates over
them. So the executor gets a `Submission`, a list of run times that measures while it is iterated
over: one run takes place between two of its steps. The job stays APScheduler's own, and so do its
callable and the call stack. How run number k ended is known from event number k.
"""

from __future__ import annotations

import dis
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from sys import _getframe  # public, as documented
from threading import get_ident
from time import perf_counter, time
from types import AsyncGeneratorType, CoroutineType, FrameType, GeneratorType
from typing import Any, Protocol

from apscheduler.events import EVENT_JOB_ERROR, EVENT_JOB_EXECUTED, EVENT_JOB_MISSED
from apscheduler.executors import base

try:
    from apscheduler.executors.base import run_coroutine_job
except ImportError:  # before APScheduler 3.11
    from apscheduler.executors.base_py3 import run_coroutine_job

from apscheduler_telemetry.adapters.apscheduler3 import child_process
from apscheduler_telemetry.adapters.apscheduler3.tracked_jobs import TrackedJob
from apscheduler_telemetry.core.current_run import (
    REPORTED_FAILURE_ERROR_TYPE,
    restore_outer_run,
    set_run_finder,
    set_run_of_context,
)
from apscheduler_telemetry.core.exception_text import ExceptionDescriber
from apscheduler_telemetry.core.model import (
    ERROR,
    LOST,
    SUCCESS,
    CaptureOptions,
    ErrorDescription,
    Outcome,
    SchedulerErrorKind,
    exception_type_name,
)
from apscheduler_telemetry.core.observers import ErrorReporter, ObserverGroup
from apscheduler_telemetry.core.recorder import Recorder
from apscheduler_telemetry.core.records import Run
from apscheduler_telemetry.core.safe_repr import safe_repr, safe_repr_call

logger = logging.getLogger("apscheduler_telemetry")

_OUTCOMES_BY_EVENT_CODE: Mapping[Any, Outcome] = {
    EVENT_JOB_EXECUTED: Outcome.SUCCESS,
    EVENT_JOB_ERROR: Outcome.ERROR,
    EVENT_JOB_MISSED: Outcome.MISSED,
}

MAX_NOT_AWAITED_WARNINGS = 100
"""Labels for which a warning is logged; there may be ever new ones."""

_NOT_AWAITED_TEXTS_BY_TYPE: Mapping[type, tuple[str, str]] = {
    CoroutineType: (
        "a coroutine",
        "Add the coroutine function itself to an AsyncIOScheduler, or call asyncio.run() in it.",
    ),
    GeneratorType: ("a generator", "Let the job iterate over the generator."),
    AsyncGeneratorType: (
        "an async generator",
        "Let the job be a coroutine function that iterates over the generator.",
    ),
}
"""
Results whose code nothing runs, unless it has started: what each is, and what to do about it.

Not objects of other classes that can be awaited, as they do not tell whether they have started.
"""

_NOT_AWAITED_TYPES_BY_PREDICATE: Mapping[Callable[[object], bool], type] = {
    inspect.iscoroutinefunction: CoroutineType,
    inspect.isgeneratorfunction: GeneratorType,
    inspect.isasyncgenfunction: AsyncGeneratorType,
}
"""How to tell, before a run, which functions return an object of these types."""

# APScheduler's own functions that run jobs, recognised by their code at once.
_RUN_JOB_CODE = getattr(base.run_job, "__code__", None)
_RUN_COROUTINE_JOB_CODE = getattr(run_coroutine_job, "__code__", None)


def outcome_of(event: Any, run: Run) -> Outcome:
    """
    Return how a run has ended.

    Args:
        event: what its executor reports of it; it may be an object of the user's.
        run: the run, whose callable may have reported that it failed.
    """
    try:
        outcome = _OUTCOMES_BY_EVENT_CODE[event.code]
    except (AttributeError, LookupError, TypeError):
        return LOST
    if outcome is SUCCESS and run.current_run is not None and run.failure_reason is not None:
        return ERROR
    return outcome


class RunTracker:
    """
    Measures the runs of one scheduler, and records how they end.

    Args:
        observers: who follows single runs.
        recorder: counts runs that execute nothing; whether it keeps the messages of errors.
        error_reporter: counts failures of telemetry itself.
        capture: which of a job's own data may be exported.

    Attributes:
        observers: who follows single runs.
        captures_arguments: whether the arguments of the callable may be exported.
    """

    def __init__(
        self,
        *,
        observers: ObserverGroup,
        recorder: Recorder,
        error_reporter: ErrorReporter,
        capture: CaptureOptions,
    ) -> None:
        self.observers = observers
        self._recorder = recorder
        self._labels_not_awaited: set[str] = set()  # with a warning in the log
        self._error_reporter = error_reporter
        self.captures_arguments = capture.captures_arguments
        self._captures_result = capture.captures_result
        self._captures_stacktrace = capture.captures_stacktrace
        self._exception_describer = ExceptionDescriber(
            capture, lambda failure: error_reporter.report("redact", failure)
        )

    def capture_arguments(self, job: Any, runs: Sequence[Run]) -> None:
        """Let the runs keep what their callable is called with."""
        arguments = self._try_repr(safe_repr_call, job.args, job.kwargs)
        for run in runs:
            run.set_arguments(arguments)

    def create_trace_carriers(self, runs: Sequence[Run]) -> Sequence[Mapping[str, str]]:
        """Return the W3C carriers of runs that are sent to another process; none if all empty."""
        if not self.observers.has_enabled_observers:
            return ()
        carriers = [self.observers.create_trace_carrier(run) for run in runs]
        return carriers if any(carriers) else ()

    def finish_runs_by_events(self, runs: Sequence[Run], events: Sequence[Any]) -> None:
        """
        Record how runs have ended.

        Args:
            runs: the runs.
            events: one for each of them, which may be an object of the user's.
        """
        number, observers = 0, self.observers
        for run in runs:
            event = events[number]  # for a single run, zip() takes three times as long
            number += 1  # noqa: SIM113  # and so does enumerate()
            outcome, error = outcome_of(event, run), None
            if outcome is not SUCCESS:
                error = self._describe_failure(run, outcome, event)
            elif (result := getattr(event, "retval", None)) is not None or self._captures_result:
                self._inspect_result(run, result)
            if run.finish(outcome, error) and (
                observers.has_enabled_observers or error is not None
            ):
                self._notify_observers_of_end(run)

    def _inspect_result(self, run: Run, result: Any) -> None:
        """Look at what a callable has returned."""
        if type(result) in _NOT_AWAITED_TEXTS_BY_TYPE and _is_unstarted_coroutine_or_generator(
            result
        ):
            self._report_not_awaited(run, result)
        if self._captures_result:
            run.set_result(self._try_repr(safe_repr, result))

    def _describe_failure(self, run: Run, outcome: Outcome, event: Any) -> ErrorDescription | None:
        """Describe why a run was no success, as far as that is known."""
        is_described = self.observers.has_enabled_observers or bool(self._recorder.history)
        if (exception := getattr(event, "exception", None)) is not None:
            if not is_described:  # metrics need its type only
                return ErrorDescription(type=exception_type_name(exception), message=None)
            stack = ""
            if self.observers.has_enabled_observers:
                stack = self._format_stacktrace(exception, getattr(event, "traceback", None))
            return self._exception_describer.describe(exception, stack)
        if outcome is ERROR and (reason := run.failure_reason) is not None:
            if not is_described:
                return ErrorDescription(type=REPORTED_FAILURE_ERROR_TYPE, message=None)
            return self._exception_describer.describe_reported_failure(reason)
        return None

    def describe_error(self, exception: BaseException) -> ErrorDescription:
        """Describe why a run was lost, as far as that may be exported."""
        return self._exception_describer.describe(exception)

    def finish_run(self, run: Run, outcome: Outcome, error: ErrorDescription | None = None) -> None:
        """Record how a run has ended, unless that is known already."""
        if run.finish(outcome, error):
            self._notify_observers_of_end(run)

    def _notify_observers_of_end(self, run: Run) -> None:
        if self.observers.has_enabled_observers:
            self.observers.on_run_finished(run)
        run.release_long_texts()

    def _report_not_awaited(self, run: Run, result: Any) -> None:
        """Count that a run has executed nothing, and warn of it once for each label."""
        self._recorder.count_scheduler_error(SchedulerErrorKind.NOT_AWAITED)
        known = self._labels_not_awaited
        if run.label in known or len(known) >= MAX_NOT_AWAITED_WARNINGS:
            return
        self._labels_not_awaited.add(run.label)
        what, advice = _NOT_AWAITED_TEXTS_BY_TYPE[type(result)]
        logger.warning(
            "The code of job %r did not run: its callable only returned %s, and nothing runs that. "
            "APScheduler counts such a run as a success. %s",
            run.label,
            what,
            advice,
        )

    def report_telemetry_exception(self) -> None:
        """Count the exception that is being handled as a failure of telemetry."""
        self._error_reporter.exception("adapter")

    def report_child_error(self, failure: str) -> None:
        """Count a failure of telemetry in a child process."""
        if self._exception_describer.is_restricted:
            failure = failure.partition("(")[0]  # the type, of the ``repr()`` of an exception
        self._error_reporter.report("spans", failure)

    def _try_repr(self, describe: Callable[..., str], *values: Any) -> str | None:
        try:
            return describe(*values)
        except Exception:  # noqa: BLE001  # a collection may change while it is looked at
            self._error_reporter.exception("spans")
            return None

    def _format_stacktrace(self, exception: BaseException, child_stack_text: str | None) -> str:
        """Return the stack trace of `exception`; a child sends only the text of its stack."""
        if not self._captures_stacktrace:
            return ""
        try:
            return self._exception_describer.format_stacktrace(exception, child_stack_text)
        except BaseException:  # noqa: BLE001  # an exception of the user's may be anything
            self._error_reporter.exception("spans")
            return ""


def _is_unstarted_coroutine_or_generator(result: Any) -> bool:
    """
    Tell whether none of the code of a coroutine or a generator has run.

    A job may return one that it has run itself, or that another event loop runs.
    """
    if type(result) is CoroutineType:
        return inspect.getcoroutinestate(result) == inspect.CORO_CREATED
    if type(result) is GeneratorType:
        return inspect.getgeneratorstate(result) == inspect.GEN_CREATED
    if hasattr(inspect, "getasyncgenstate"):  # from Python 3.12 on
        return bool(inspect.getasyncgenstate(result) == "AGEN_CREATED")
    if result.ag_frame is None:  # it has ended
        return False
    last = result.ag_frame.f_lasti  # the bytecode that has run last
    return bool(last < 0 or result.ag_code.co_code[last] == dis.opmap.get("RETURN_GENERATOR"))


def describe_unawaited_result(
    function: object, *, is_coroutine_awaited: bool
) -> tuple[str, str] | None:
    """
    Return what a function returns whose code no run will execute, and what to do about it.

    Args:
        function: the callable of a job.
        is_coroutine_awaited: whether its executor awaits coroutines.

    Returns:
        None for a function whose code runs when it is called, as far as its definition shows.
    """
    for is_of_kind, result_type in _NOT_AWAITED_TYPES_BY_PREDICATE.items():
        if is_of_kind(function) and not (result_type is CoroutineType and is_coroutine_awaited):
            return _NOT_AWAITED_TEXTS_BY_TYPE[result_type]
        # No executor of APScheduler awaits what an object returns that can be called.
        if is_of_kind(getattr(type(function), "__call__", None)):  # noqa: B004  # looks at its kind
            return _NOT_AWAITED_TEXTS_BY_TYPE[result_type]
    return None


class SubmissionOwner(Protocol):
    """
    The executor to which jobs are submitted.

    Attributes:
        run_tracker: records their runs.
        measurement_sink_id: of the sink of a process pool, which takes what its children measure;
            else None.
    """

    run_tracker: RunTracker
    measurement_sink_id: int | None

    def on_abandoned_submission_end(self, submission: Submission) -> None:
        """Called when it has given up a submission, and its runs are over."""


class Submission(list[datetime]):
    """
    The run times of one submission of a job; iterating over them measures the runs.

    Args:
        submission_id: identifies it among the open submissions of its executor.
        job: APScheduler's job.
        tracked: what the adapter keeps of it.
        run_times: when its runs are due.
        runs: one for each of them.
        owner: the executor that it is submitted to.

    Attributes:
        submission_id: identifies it among the open submissions of its executor.
        job: APScheduler's job.
        tracked: what the adapter keeps of the job.
        runs: one for each run time.
        pool: the `concurrent.futures` pool that runs it; None until that is known.
    """

    __slots__ = (
        *("_trace_carriers", "_is_abandoned", "_working_thread_id", "_executor_hooks"),
        *("job", "submission_id", "pool", "runs", "tracked"),
    )
    pool: Any
    _trace_carriers: Sequence[Mapping[str, str]] | None
    _working_thread_id: int | None

    def __init__(  # noqa: PLR0913, PLR0917  # made for every run, and by position that is quicker
        self,
        submission_id: int,
        job: Any,
        tracked: TrackedJob,
        run_times: Sequence[datetime],
        runs: Sequence[Run],
        owner: SubmissionOwner,
    ) -> None:
        self.extend(run_times)  # what super().__init__() does, which takes as long as all the rest
        self.submission_id = submission_id
        self.runs = runs
        self.job = job
        self.tracked = tracked
        self._executor_hooks = owner
        self.pool = self._trace_carriers = self._working_thread_id = None
        self._is_abandoned = False

    __hash__ = object.__hash__  # type: ignore[assignment]  # a list has none

    def __iter__(self) -> Iterator[datetime]:
        code = _getframe(1).f_code  # of the function that iterates
        is_found_by_stack = code is _RUN_JOB_CODE  # see `_find_run_in_frame`
        has_own_context = code is _RUN_COROUTINE_JOB_CODE  # that of its task
        if not (is_found_by_stack or has_own_context or child_process.is_job_runner(_getframe(1))):
            yield from self[:]
            return
        observers, job = self._executor_hooks.run_tracker.observers, self.job
        try:
            self._working_thread_id = get_ident()
            runs = iter(self.runs)
            for due in self.copy():
                run = next(runs, None)
                if (
                    run is None
                    or run.due is not due  # a list that the user has changed
                    # A second attempt, or one that is too late, so that APScheduler drops it.
                    or not run.try_start(time(), job.misfire_grace_time)
                ):
                    yield due
                    continue
                is_observed = observers.has_enabled_observers
                if is_observed:
                    observers.on_callable_start(run)
                token = None if is_found_by_stack else set_run_of_context(run)
                since = perf_counter()
                try:
                    yield due
                finally:
                    run.set_duration(perf_counter() - since)
                    if token is not None and not has_own_context:
                        restore_outer_run(token)
                    if is_observed:
                        observers.on_callable_end(run)
        finally:
            self._working_thread_id = None
            if self._is_abandoned:
                self._executor_hooks.on_abandoned_submission_end(self)

    @property
    def misfire_grace_time(self) -> float | None:
        """Seconds after which APScheduler drops a run that has not started; None if never."""
        return self.job.misfire_grace_time  # type: ignore[no-any-return]

    @property
    def has_started(self) -> bool:
        """Whether any of its runs has started."""
        return any(run.measured_or_estimated_start_at is not None for run in self.runs)

    @property
    def run_in_progress(self) -> Run | None:
        """The run whose callable is being executed; None if there is none."""
        return next((run for run in self.runs if run.is_in_progress), None)

    @property
    def is_abandoned(self) -> bool:
        """Whether the executor expects no result any more."""
        return self._is_abandoned

    def set_pool(self, pool: Any) -> None:
        """Set which pool runs it."""
        self.pool = pool

    def mark_abandoned_and_check_not_running(self) -> bool:
        """
        Note that the executor expects no result any more.

        Returns:
            Whether no thread works on it. One may, as where asyncio has given it up; then
            `on_abandoned_submission_end` is called at its end.
        """
        # In this order, as the thread that iterates does it in the opposite order.
        self._is_abandoned = True
        # This very thread has ended its iteration, even if Ctrl-C kept it from noting that.
        return self._working_thread_id in {None, get_ident()}

    def __copy__(self) -> list[datetime]:
        return self[:]

    def __deepcopy__(self, memo: dict[int, Any]) -> list[datetime]:
        return self[:]

    def __reduce__(self) -> tuple[Any, ...]:
        times, owner = self[:], self._executor_hooks
        if owner.measurement_sink_id is None or times != [run.due for run in self.runs]:
            # Who reads it may not have this package; or the user has changed it.
            return list, (times,)
        try:
            if self._trace_carriers is None:  # the second attempt, in a fresh pool, sends the same
                self._trace_carriers = owner.run_tracker.create_trace_carriers(self.runs)
        except Exception:  # noqa: BLE001  # or the run would be lost; it is not measured then
            owner.run_tracker.report_telemetry_exception()
            return list, (times,)
        return child_process.MeasuringRunTimes, (
            times,
            self._trace_carriers,
            owner.measurement_sink_id,
            self.submission_id,
        )


def _find_run_in_frame(frame: FrameType) -> Run | None:
    """Return the run that a call of APScheduler's ``run_job`` has in progress."""
    run_times = frame.f_locals.get("run_times")
    return run_times.run_in_progress if isinstance(run_times, Submission) else None


if _RUN_JOB_CODE is not None:
    set_run_finder(_RUN_JOB_CODE, _find_run_in_frame)
