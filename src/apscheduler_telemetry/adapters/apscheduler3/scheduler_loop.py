"""
Hooks on the scheduler's loop, and the answer to the question whether it really lives.
"""

from __future__ import annotations

import inspect
import math
import os
import sys
import threading
from collections.abc import Callable, Iterator
from operator import attrgetter
from threading import get_ident
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any

from apscheduler.schedulers.base import STATE_PAUSED, STATE_STOPPED, BaseScheduler

from apscheduler_telemetry.core.model import ErrorKind, Liveness, qualified_name

if TYPE_CHECKING:
    from apscheduler_telemetry.adapters.apscheduler3.adapter import Adapter
    from apscheduler_telemetry.core.recorder import Entry

OVERDUE_AFTER = 10.0
"""
Seconds that a pass over due jobs may be late, or last, before the loop is called overdue.

Long enough for a slow job store or a garbage collection, short beside the scrapes and the ``for``
of any alert; also APScheduler's default ``jobstore_retry_interval``.
"""


class LoopHook:
    """
    What is laid over the methods of one scheduler that make up its loop.

    Attributes:
        job: what a pass has just handed over, and has yet to give its next time.
        entry: the same in the books.
    """

    def __init__(self, adapter: Adapter, scheduler: Any) -> None:
        self._adapter = adapter
        self._scheduler = scheduler
        self.pid: int | None = None
        self.started_at: float | None = None
        self.last_wakeup: float | None = None
        self._thread: threading.Thread | None = None
        self._thread_id: int | None = None
        self._ended = False
        self.inside: int | None = None
        self.is_bypassed = False
        self._inside_since: float | None = None
        # When the next pass was last spoken of, and in how many seconds it is to come.
        self._expected: tuple[float, Any] | None = None
        self._failure: str | None = None
        self.job: Any = None
        self.entry: Entry | None = None
        self._user_code = {_DISPATCH}
        lay = adapter.shadows.lay
        lay(scheduler, "_process_jobs", self._process_jobs)
        lay(scheduler, "wakeup", self._wakeup)
        for name, make in (("_main_loop", self._main_loop), ("_start_timer", self._start_timer)):
            if hasattr(scheduler, name):  # a thread or a greenlet has one, an event loop the other
                lay(scheduler, name, make)
        self.watch_logger()

    def watch_logger(self) -> None:
        """Watch the scheduler's logger, if it is not watched; a new configuration brings one."""
        if not isinstance(self._scheduler._logger, _WatchedLogger):  # noqa: SLF001
            self._adapter.shadows.lay(self._scheduler, "_logger", self._watched_logger)

    # What the hooks of executors and stores ask and tell

    @property
    def is_inside(self) -> bool:
        """
        Whether it is the loop that acts now, in the middle of APScheduler's pass over due jobs.

        Not so while it calls a listener, or a job that an executor runs right there: what these
        do to the scheduler is the user's doing, and what fails there is told to the user. Found by
        looking at who called, as hardly anybody asks, and every run would pay for notes of it.
        """
        if self.inside != get_ident():
            return False
        frame: FrameType | None = sys._getframe(1)  # noqa: SLF001  # public, says its documentation
        while frame is not None and frame.f_code not in self._user_code:
            if frame.f_code is _PASS:
                return True
            frame = frame.f_back
        return False

    def calls_out(self, hook: CodeType) -> None:
        """Note the code of a hook that the loop calls and that calls the user's code."""
        self._user_code.add(hook)

    def has_handed_over(self, job: Any, entry: Entry | None) -> None:
        """Note that a job has just been given to its executor, if it was the loop that did so."""
        if self.inside == get_ident():
            self.job, self.entry = job, entry

    def goes_on(self, job_id: str) -> bool:
        """
        Tell whether it is the loop itself that changes this job now, and not the user.

        It does so right after it has handed the job over, and `has_gone_on` ends that.
        """
        return self.job is not None and self.job.id == job_id and self.inside == get_ident()

    def has_gone_on(self) -> None:
        """Note that the loop is through with the job that it has handed over."""
        self.job = self.entry = None

    def begins_past_the_hook(self) -> None:
        """
        Note that a job store is asked for due jobs, which only a pass does, and not one of ours.

        A pass that our hook knows nothing of is that of a scheduler of the user's, which calls
        what it inherits from APScheduler, and not itself. Its end is known from APScheduler's log.
        """
        self.is_bypassed = True
        logger = self._scheduler._logger  # noqa: SLF001
        if isinstance(logger, _WatchedLogger):
            logger.watch_passes()
        self._begin()

    def listener_failed(self) -> None:
        """Note that a listener has raised something, of which there is only a log."""
        self._adapter.ledger.error(ErrorKind.LISTENER)

    def has_started(self) -> None:
        """Note that the scheduler runs from now on, in this process."""
        self.pid = os.getpid()
        self.started_at = self._adapter.clock()
        self._thread = self._thread_id = self._expected = self._failure = None
        self._ended = False

    def runs_already(self) -> None:
        """Note that the scheduler ran before it was instrumented; since when is not known."""
        self.has_started()
        self._thread = getattr(self._scheduler, "_thread", None)

    # The hooks

    def _process_jobs(self, original: Callable[[], Any]) -> Callable[[], Any]:
        # Most passes find one job due, whose run pays for all that is done here.
        adapter = self._adapter
        leave_context, return_to_context = adapter.leave_context, adapter.return_to_context

        def process_jobs() -> Any:
            self.is_bypassed = False
            self._begin()
            self._inside_since = adapter.monotonic()
            context = leave_context()
            try:
                wait_seconds = original()
            except BaseException as exception:
                self._failure = qualified_name(type(exception))
                if adapter.active:
                    adapter.ledger.error(ErrorKind.LOOP)
                raise
            finally:
                self.inside = self._inside_since = self.job = self.entry = None
                adapter.due = ()
                if context is not None:
                    return_to_context(context)
            self._failure = None
            self.last_wakeup = adapter.clock()
            if self._expected is None:
                self._expected = adapter.monotonic(), wait_seconds
            return wait_seconds

        return process_jobs

    def _begin(self) -> None:
        self.inside = thread_id = get_ident()
        if thread_id != self._thread_id:  # or each pass would take two microseconds more
            self._thread, self._thread_id = threading.current_thread(), thread_id
        self._expected = None
        pipeline = self._adapter.pipeline
        if not pipeline.is_settled:
            pipeline.look()

    def ends_past_the_hook(self) -> None:
        """Note that a pass has written to the log, as it does at its end and its begin."""
        if self.inside is not None:
            self.inside = self.job = self.entry = None
            self.last_wakeup = self._adapter.clock()
            self._adapter.due = ()

    def _start_timer(self, original: Callable[[Any], None]) -> Callable[[Any], None]:
        def start_timer(wait_seconds: Any) -> None:
            original(wait_seconds)
            if self._expected is None:  # as where the pass does not return it: Qt
                self._expected = self._adapter.monotonic(), wait_seconds

        return start_timer

    def _wakeup(self, original: Callable[[], None]) -> Callable[[], None]:
        def wakeup() -> None:
            self._expected = self._adapter.monotonic(), 0
            original()

        return wakeup

    def _main_loop(self, original: Callable[[], None]) -> Callable[[], None]:
        def main_loop() -> None:
            try:
                original()
            finally:
                # Also where the thread lives on, as when Ctrl-C ends BlockingScheduler.start().
                self._ended = True
                self.inside = None

        return main_loop

    def _watched_logger(self, original: Any) -> Any:
        return _WatchedLogger(original, self)

    # The answer

    def liveness(self) -> Liveness:
        """Tell whether the loop lives, and why not."""
        scheduler = self._scheduler
        if scheduler.state == STATE_STOPPED:
            reason = ("stopped", "The scheduler has not been started, or was shut down.")
            return Liveness(state="stopped", up=False, reasons=[reason])
        state = "paused" if scheduler.state == STATE_PAUSED else "running"
        reasons = list(self._faults(state))
        return Liveness(state=state, up=not reasons, reasons=reasons)

    def _faults(self, state: str) -> Iterator[tuple[str, str]]:
        if self.pid is not None and self.pid != os.getpid():
            message = (
                f"The scheduler was started in process {self.pid}, and a fork took no thread "
                f"along: nothing runs jobs in this process, {os.getpid()}. Start the scheduler "
                "after the fork."
            )
            yield "forked", message
            return
        event_loop = _event_loop_of(self._scheduler)
        greenlet = getattr(self._scheduler, "_greenlet", None)
        ended = self._ended or (greenlet is not None and greenlet.dead)
        thread = self._thread if event_loop is None else None  # which may change threads
        if thread is not None and not thread.is_alive():
            ended = True
            self._thread_id = None  # which the next one may get
        if self._failure is not None:
            message = (
                f"The latest pass over due jobs ended with {self._failure}, which ends the "
                "scheduler's thread or loses its timer: no job runs any more."
            )
            yield "loop_failed", message
        elif ended:
            kind = "thread" if greenlet is None else "greenlet"
            yield "thread_dead", f"The scheduler's {kind} has ended: no job runs any more."
        if event_loop is not None and event_loop.is_closed():
            yield "event_loop_closed", "The scheduler's event loop was closed."
        elif event_loop is not None and not event_loop.is_running():
            yield "event_loop_stopped", "The scheduler's event loop does not run."
        now = self._adapter.monotonic()
        since, late = self._inside_since, self._lateness(now)
        if since is not None and now - since > OVERDUE_AFTER:
            message = (
                f"The loop has been busy for {now - since:.0f} s in one pass over due jobs: a "
                "job store, a listener or an inline job holds it up."
            )
            yield "overdue", message
        elif state == "running" and late > OVERDUE_AFTER:
            message = (
                f"The loop should have looked for due jobs {late:.0f} s ago: it is "
                "blocked, or its timer was lost."
            )
            yield "overdue", message

    def _lateness(self, now: float) -> float:
        """Return for how many seconds the next pass has been due; less than none before that."""
        since, wait_seconds = self._expected or (now, None)
        if not isinstance(wait_seconds, (int, float)):  # none is to come, or who knows when
            return -math.inf
        return now - since - wait_seconds


class _Reactor:
    """Twisted's reactor, asked as one asks an asyncio event loop."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor

    def is_closed(self) -> bool:
        return False

    def is_running(self) -> bool:
        return bool(getattr(self._reactor, "running", True))  # not every fake one tells


def _event_loop_of(scheduler: Any) -> Any:
    """Return what turns a scheduler that has no thread of its own, None if that cannot be asked."""
    reactor = getattr(scheduler, "_reactor", None)
    if reactor is not None:
        return _Reactor(reactor)
    io_loop = getattr(scheduler, "_ioloop", None)
    if io_loop is not None:
        return getattr(io_loop, "asyncio_loop", None)
    return getattr(scheduler, "_eventloop", None)


class _WatchedLogger:
    """
    The scheduler's logger, telling when a listener has failed.

    APScheduler catches what a listener raises and writes it to its log; there is no other sign.
    Its logger's own method does the writing, so that the record names the line that it should, also
    where the logger is none of the standard library's.
    """

    _logger: Any
    _loop: LoopHook

    def __init__(self, logger: Any, loop: LoopHook) -> None:
        vars(self).update(_logger=logger, _loop=loop)

    def watch_passes(self) -> None:
        """Tell from now on also when a pass writes to the log."""
        object.__setattr__(self, "__class__", _PassWatchingLogger)

    @property
    def exception(self) -> Any:
        if sys._getframe(1).f_code is _DISPATCH:  # noqa: SLF001  # as above
            self._loop.listener_failed()
        return self._logger.exception

    # What a pass asks for, and everybody else: found at once.
    debug = property(attrgetter("_logger.debug"))

    def __setattr__(self, name: str, value: Any) -> None:
        # As whoever silences it does: scheduler._logger.propagate = False
        setattr(self._logger, name, value)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._logger, name)


class _PassWatchingLogger(_WatchedLogger):
    """Tells also when a pass writes to it, for schedulers whose passes our hook is not asked."""

    @property
    def debug(self) -> Any:
        if self._loop.is_bypassed and sys._getframe(1).f_code is _PASS:  # noqa: SLF001
            self._loop.ends_past_the_hook()
        return self._logger.debug


# APScheduler's own, also where somebody has wrapped them.
_DISPATCH = inspect.unwrap(BaseScheduler._dispatch_event).__code__  # noqa: SLF001
_PASS = inspect.unwrap(BaseScheduler._process_jobs).__code__  # noqa: SLF001
