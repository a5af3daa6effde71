"""
Patches the scheduler's loop, and follows its passes over due jobs.
"""

from __future__ import annotations

import inspect
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from operator import attrgetter
from threading import get_ident
from types import CodeType, FrameType
from typing import Any

from apscheduler.schedulers.base import BaseScheduler

from apscheduler_telemetry.adapters.apscheduler3.loop_liveness import (
    LoopState,
    check_liveness,
    unusable_pool_reasons,
)
from apscheduler_telemetry.adapters.apscheduler3.patching import PatchSet
from apscheduler_telemetry.core.forks import is_thread_alive, reset_in_forked_children
from apscheduler_telemetry.core.model import (
    Clock,
    Liveness,
    SchedulerErrorKind,
    exception_type_name,
)
from apscheduler_telemetry.core.observers import ErrorReporter, ObserverGroup
from apscheduler_telemetry.core.recorder import Recorder

logger = logging.getLogger("apscheduler_telemetry")


class SchedulerLoop:
    """
    The loop of one scheduler: a pass over due jobs, again and again.

    Args:
        scheduler: an APScheduler 3 scheduler.
        patches: what was patched for the scheduler.
        recorder: counts what APScheduler only logs.
        observers: looked at before each pass.
        error_reporter: counts failures of telemetry itself.
        attach_empty_context: makes no OpenTelemetry context current, and returns what was, or None.
        detach_empty_context: takes that unless it is None, and makes it current again.
        on_survived_fork: called in a forked child, before the first pass there, if there is one.
        clock: returns Unix seconds.
        monotonic: returns seconds that never go back.

    Attributes:
        started_in_pid: the process in which the scheduler was started, or the forked child in which
            it has made a pass since; None before its start.
        started_at: when that was, in Unix seconds; None before it.
        last_pass_ended_at: when the latest pass ended, in Unix seconds; None before it.
        pass_thread_id: of the thread that is in the middle of a pass; None between passes.
        is_pass_bypassing_patch: whether that pass bypasses the patch, as one of the user's own
            scheduler class may.
        job_awaiting_next_run: the job that the pass has just submitted, until it has its next run.
        submission_awaiting_next_run: the submission of that job, if it is followed.
    """

    def __init__(  # noqa: PLR0913  # each part by name
        self,
        scheduler: Any,
        *,
        patches: PatchSet,
        recorder: Recorder,
        observers: ObserverGroup,
        error_reporter: ErrorReporter,
        attach_empty_context: Callable[[], Any],
        detach_empty_context: Callable[[Any], None],
        on_survived_fork: Callable[[], None],
        clock: Clock = time.time,
        monotonic: Clock = time.monotonic,
    ) -> None:
        self._scheduler = scheduler
        self._patches = patches
        self._recorder = recorder
        self._observers = observers
        self._error_reporter = error_reporter
        self._attach_empty_context = attach_empty_context
        self._detach_empty_context = detach_empty_context
        self._on_survived_fork = on_survived_fork
        self._clock = clock
        self._monotonic_clock = monotonic
        self.started_in_pid: int | None = None
        self.started_at: float | None = None
        self.last_pass_ended_at: float | None = None
        self.pass_thread_id: int | None = None
        self.is_pass_bypassing_patch = False
        self.job_awaiting_next_run: Any = None
        self.submission_awaiting_next_run: Any = None
        self._thread: threading.Thread | None = None
        self._thread_id: int | None = None
        self._has_loop_ended = False
        self._pass_started_at: float | None = None
        # When the wait for the next pass was last planned, and for how many seconds.
        self._wait_start_and_seconds: tuple[float, Any] | None = None
        self._last_pass_error_type: str | None = None
        self._latest_due_jobs: Sequence[Any] = ()
        self._codes_calling_user_code = {_DISPATCH_EVENT_CODE_OBJECT}
        reset_in_forked_children(self)

    def reset_after_fork(self) -> None:
        """Have the next pass, if there is one in the child, look at the process again."""
        self._thread_id = None

    def install(self) -> None:
        """Patch the scheduler."""
        scheduler, patches = self._scheduler, self._patches
        for name, wrap in (
            ("_process_jobs", self._wrap_process_jobs),
            ("wakeup", self._wrap_wakeup),
            # Threads and greenlets have the one, event loops the other.
            ("_main_loop", self._wrap_main_loop),
            ("_start_timer", self._wrap_start_timer),
        ):
            # Not an object of the user's in place of a method, such as a mock, which has more to it
            # than the call.
            if inspect.isroutine(getattr(scheduler, name, None)):
                patches.patch(scheduler, name, wrap)
        self.patch_logger()

    def patch_logger(self) -> None:
        """Watch the scheduler's logger, if it is not watched; a new configuration brings one."""
        if not isinstance(self._scheduler._logger, _ListenerErrorDetectingLogger):  # noqa: SLF001
            self._patches.patch(self._scheduler, "_logger", self._wrap_logger)

    # For the patches of executors and job stores

    @property
    def is_called_by_loop(self) -> bool:
        """
        Whether the loop itself acts now, in the middle of APScheduler's pass over due jobs.

        Not so while it calls a listener, or a job that an executor runs inline: what these do to
        the scheduler is the user's doing, and the user gets the exceptions. This looks at
        the stack, as it is hardly ever asked, and every run would pay for keeping track.
        """
        if self.pass_thread_id != get_ident():
            return False
        frame: FrameType | None = sys._getframe(1)  # noqa: SLF001  # public, as documented
        while frame is not None and frame.f_code not in self._codes_calling_user_code:
            if frame.f_code is _PROCESS_JOBS_CODE_OBJECT:
                return True
            frame = frame.f_back
        return False

    def add_user_code_boundary(self, code: CodeType) -> None:
        """Note the code of a patch that the loop calls and that calls the user's code."""
        self._codes_calling_user_code.add(code)

    def set_due_jobs(self, jobs: Sequence[Any]) -> None:
        """Note which jobs a job store has just called due."""
        self._latest_due_jobs = jobs

    def find_due_job(self, job_id: str) -> Any:
        """Return the job of this id among those, or None."""
        return next((job for job in self._latest_due_jobs if job.id == job_id), None)

    def on_job_submitted(self, job: Any, submission: Any) -> None:
        """Note that a job was submitted to its executor, by the loop if it is in a pass."""
        if self.pass_thread_id is not None:
            self.job_awaiting_next_run, self.submission_awaiting_next_run = job, submission

    def is_setting_next_run(self, job_id: str) -> bool:
        """
        Return whether the loop, and not the user, changes this job now.

        It does so right after it has submitted the job, until `clear_job_awaiting_next_run`.
        """
        job = self.job_awaiting_next_run
        return job is not None and job.id == job_id and self.pass_thread_id == get_ident()

    def pop_submission_awaiting_next_run(self, job: Any) -> Any:
        """
        Return the submission of this job, once, if the loop is setting its next run now.

        Returns:
            None otherwise, and if the submission is not followed.
        """
        if job is not self.job_awaiting_next_run:
            return None
        submission = self.submission_awaiting_next_run
        self.job_awaiting_next_run = self.submission_awaiting_next_run = None
        return submission

    def clear_job_awaiting_next_run(self) -> None:
        """Note that the loop has given the submitted job its next run, or has removed it."""
        self.job_awaiting_next_run = self.submission_awaiting_next_run = None

    def on_bypassing_pass_start(self) -> None:
        """
        Note that a job store is asked for due jobs by a pass that bypasses the patch.

        Such a pass is that of the user's own scheduler class, which calls what it inherits from
        APScheduler, and not itself. Its end is known from APScheduler's log.
        """
        self.is_pass_bypassing_patch = True
        logger = self._scheduler._logger  # noqa: SLF001
        if isinstance(logger, _ListenerErrorDetectingLogger):
            logger.detect_pass_ends()
        self._on_pass_start()

    def on_log_written_by_bypassing_pass(self) -> None:
        """Note that a pass has written to the log, as it does at its start and at its end."""
        if self.pass_thread_id is not None:
            self._clear_pass_state()
            self.last_pass_ended_at = self._clock()

    def on_listener_failed(self) -> None:
        """Note that a listener has raised an exception, which APScheduler only logs."""
        self._recorder.count_scheduler_error(SchedulerErrorKind.LISTENER)

    def on_scheduler_started(self) -> None:
        """Note that the scheduler runs from now on, in this process."""
        self.started_in_pid = os.getpid()
        self.started_at = self._clock()
        self._thread = self._thread_id = self._wait_start_and_seconds = (
            self._last_pass_error_type
        ) = None
        self._has_loop_ended = False
        for _, message in unusable_pool_reasons(
            self._scheduler, self._recorder.executor_aliases_of_jobs
        ):
            logger.warning(
                "The scheduler %r was started, but cannot run its jobs. %s",
                self._recorder.scheduler_name,
                message,
            )

    def on_scheduler_found_running(self) -> None:
        """Note that the scheduler was started before it was instrumented; when is not known."""
        self.on_scheduler_started()
        self._thread = getattr(self._scheduler, "_thread", None)

    # The patches

    def _wrap_process_jobs(self, original: Callable[[], Any]) -> Callable[[], Any]:
        # In most passes only one job is due, so all that is done here adds to the cost of its run.
        attach_empty_context, detach_empty_context = (
            self._attach_empty_context,
            self._detach_empty_context,
        )

        def process_jobs() -> Any:
            context = None
            try:
                self.is_pass_bypassing_patch = False
                self._on_pass_start()
                self._pass_started_at = self._monotonic_clock()
                context = attach_empty_context()
            except Exception:  # noqa: BLE001  # it would end the scheduler's thread
                self._error_reporter.exception("adapter")
            try:
                wait_seconds = original()
            except BaseException as exception:
                self._last_pass_error_type = exception_type_name(exception)
                if self._patches.is_active:
                    self._recorder.count_scheduler_error(SchedulerErrorKind.LOOP)
                raise
            finally:
                self._clear_pass_state()
                if context is not None:
                    detach_empty_context(context)
            self._last_pass_error_type = None
            self.last_pass_ended_at = self._clock()
            if self._wait_start_and_seconds is None:
                self._wait_start_and_seconds = self._monotonic_clock(), wait_seconds
            return wait_seconds

        return process_jobs

    def _on_pass_start(self) -> None:
        self.pass_thread_id = thread_id = get_ident()
        if thread_id != self._thread_id:  # else each pass would take two microseconds more
            if self.started_in_pid not in {None, os.getpid()}:
                self._on_survived_fork()
            self._thread, self._thread_id = threading.current_thread(), thread_id
        self._wait_start_and_seconds = None
        if not self._observers.are_enabled_observers_final:
            self._observers.update_enabled_observers()
        self._recorder.add_up_runs_if_many()

    def _clear_pass_state(self) -> None:
        self.pass_thread_id = self._pass_started_at = None
        self.job_awaiting_next_run = self.submission_awaiting_next_run = None
        self._latest_due_jobs = ()  # so that jobs are freed, as they are by APScheduler

    def _wrap_start_timer(self, original: Callable[[Any], None]) -> Callable[[Any], None]:
        def start_timer(wait_seconds: Any) -> None:
            original(wait_seconds)
            if self._wait_start_and_seconds is None:  # where the pass does not return it, as in Qt
                self._wait_start_and_seconds = self._monotonic_clock(), wait_seconds

        return start_timer

    def _wrap_wakeup(self, original: Callable[[], None]) -> Callable[[], None]:
        def wakeup() -> None:
            self._wait_start_and_seconds = self._monotonic_clock(), 0
            original()

        return wakeup

    def _wrap_main_loop(self, original: Callable[[], None]) -> Callable[[], None]:
        def main_loop() -> None:
            try:
                original()
            finally:
                # Also where the thread lives on, as when Ctrl-C ends BlockingScheduler.start().
                self._has_loop_ended = True
                self.pass_thread_id = None

        return main_loop

    def _wrap_logger(self, original: Any) -> Any:
        return _ListenerErrorDetectingLogger(original, self)

    # Liveness

    def get_latest_pass_thread(self) -> threading.Thread | None:
        """Return the thread of the latest pass; None if that is not known."""
        return self._thread

    def liveness(self) -> Liveness:
        """Return whether the loop is alive, and why not."""
        thread = self._thread
        if thread is not None and not is_thread_alive(thread):
            self._thread_id = None  # which the next one may get
        state = LoopState(
            started_in_pid=self.started_in_pid,
            thread=thread,
            has_loop_ended=self._has_loop_ended,
            pass_error_type=self._last_pass_error_type,
            pass_started_at=self._pass_started_at,
            wait_start_and_seconds=self._wait_start_and_seconds,
        )
        return check_liveness(
            self._scheduler, state, self._monotonic_clock(), self._recorder.executor_aliases_of_jobs
        )


class _ListenerErrorDetectingLogger:
    """
    The scheduler's logger, which notices when a listener has failed.

    APScheduler catches what a listener raises and writes it to its log; there is no other sign.
    The logger's own method does the writing, so that the record names the right line, also if the
    logger is not from the standard library.
    """

    _logger: Any
    _scheduler_loop: SchedulerLoop

    def __init__(self, logger: Any, loop: SchedulerLoop) -> None:
        vars(self).update(_logger=logger, _scheduler_loop=loop)

    def detect_pass_ends(self) -> None:
        """Notice from now on also when a pass writes to the log."""
        object.__setattr__(self, "__class__", _PassEndDetectingLogger)

    @property
    def exception(self) -> Any:
        if sys._getframe(1).f_code is _DISPATCH_EVENT_CODE_OBJECT:  # noqa: SLF001  # as above
            self._scheduler_loop.on_listener_failed()
        return self._logger.exception

    # The one is used in every pass, the other by every `add_job`.
    debug = property(attrgetter("_logger.debug"))
    info = property(attrgetter("_logger.info"))

    def __setattr__(self, name: str, value: Any) -> None:
        # For those who silence it: scheduler._logger.propagate = False
        setattr(self._logger, name, value)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._logger, name)


class _PassEndDetectingLogger(_ListenerErrorDetectingLogger):
    """Notices also when a pass writes to it, for schedulers whose passes bypass the patch."""

    @property
    def debug(self) -> Any:
        loop = self._scheduler_loop
        if loop.is_pass_bypassing_patch and sys._getframe(1).f_code is _PROCESS_JOBS_CODE_OBJECT:  # noqa: SLF001
            loop.on_log_written_by_bypassing_pass()
        return self._logger.debug


# APScheduler's own code, also if another tool has wrapped it.
_DISPATCH_EVENT_CODE_OBJECT = inspect.unwrap(BaseScheduler._dispatch_event).__code__  # noqa: SLF001
_PROCESS_JOBS_CODE_OBJECT = inspect.unwrap(BaseScheduler._process_jobs).__code__  # noqa: SLF001
