"""
A thread for work that must not block the scheduler: reading job stores, calling triggers.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

from apscheduler_telemetry.core.forks import (
    create_daemon_thread,
    is_thread_alive,
    reset_in_forked_children,
)
from apscheduler_telemetry.core.locks import renew_lock_in_forked_children
from apscheduler_telemetry.core.observers import ErrorReporter, logger


class BackgroundWorker:
    """
    Runs tasks in another thread, at once or after a delay.

    The thread starts when there is a task, and ends after `IDLE_SECONDS` without one. It does not
    keep the process alive. If no thread can be started, tasks wait until one can.

    Args:
        error_reporter: counts tasks that fail.
        create_task_context: returns the context manager in which each task runs.
    """

    IDLE_SECONDS = 1.0
    MAX_TASKS_WITHOUT_THREAD = 1_000
    """Tasks that wait for a thread, which may never come; as many as a scheduler has labels."""

    def __init__(
        self,
        error_reporter: ErrorReporter,
        create_task_context: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._error_reporter = error_reporter
        self._create_task_context = create_task_context
        self._lock = threading.RLock()
        self._tasks: list[_Task] = []
        self._sequence_numbers = itertools.count()
        self._wakeup = threading.Event()
        self._thread: threading.Thread | None = None
        self._running_task: _Task | None = None
        self._is_stopped = False
        self._has_thread_start_failed = False
        renew_lock_in_forked_children(self)
        reset_in_forked_children(self)

    def reset_after_fork(self) -> None:
        """Keep the tasks, also the one that the parent works on, for a thread of the child."""
        # A thread that is a greenlet has a copy here, which ends, as its event is not this one.
        self._wakeup = threading.Event()
        self._thread = None
        if self._running_task is not None:
            heapq.heappush(self._tasks, self._running_task)
            self._running_task = None

    def submit(self, component: str, task: Callable[[], None], *, after: float = 0.0) -> None:
        """
        Run `task` in another thread.

        Args:
            component: the component under which its failure is counted.
            task: a callable. If it has to wait, it should not keep a scheduler alive.
            after: seconds to wait before it runs.
        """
        with self._lock:
            if self._is_stopped:
                return
            run_at = time.perf_counter() + after
            heapq.heappush(
                self._tasks, _Task(run_at, next(self._sequence_numbers), component, task)
            )
            self._wake_or_start_thread()

    def continue_tasks_after_fork(self) -> None:
        """Run the tasks that were left when this process was forked."""
        with self._lock:
            if self._tasks and not self._is_stopped:
                self._wake_or_start_thread()

    def discard_tasks_and_stop(self) -> None:
        """Drop the tasks that have not begun; the thread ends after the current one."""
        with self._lock:
            self._is_stopped = True
            self._tasks.clear()
            self._wakeup.set()

    def _wake_or_start_thread(self) -> None:
        if self._thread is None or not is_thread_alive(self._thread):
            self._wakeup = threading.Event()
            thread = create_daemon_thread(
                self._run_tasks, self._wakeup, name="apscheduler-telemetry"
            )
            try:
                thread.start()
            except RuntimeError as error:  # the process has too many, or its main thread has ended
                self._on_thread_start_failed(error)
                return
            self._thread, self._has_thread_start_failed = thread, False
        self._wakeup.set()

    def _on_thread_start_failed(self, error: RuntimeError) -> None:
        """Report once that tasks have to wait, and keep them within bounds."""
        del self._tasks[self.MAX_TASKS_WITHOUT_THREAD :]  # the rest is a heap, too
        if self._has_thread_start_failed:
            return
        self._has_thread_start_failed = True
        self._error_reporter.count(self._tasks[0].component)
        logger.warning(
            "apscheduler-telemetry could not start a thread (%s). Until a later attempt succeeds, "
            "it does not know the intervals between the runs of new jobs, or what other processes "
            "change in job stores, and it stores no trace links. Jobs and scheduler are not "
            "affected",
            error,
        )

    def _run_tasks(self, wakeup: threading.Event) -> None:
        timeout = 0.0
        while True:
            was_woken = wakeup.wait(timeout)
            with self._lock:
                if self._wakeup is not wakeup:
                    return  # the copy of a greenlet, in a forked child
                wakeup.clear()
                if not self._tasks:
                    if self._is_stopped or not (was_woken or timeout == 0.0):
                        self._thread = None
                        return
                    timeout = self.IDLE_SECONDS
                    continue
                timeout = self._tasks[0].run_at - time.perf_counter()
                if timeout > 0:
                    continue
                task = self._running_task = heapq.heappop(self._tasks)
                timeout = 0.0
            try:
                with self._create_task_context():
                    task.run()
            except BaseException:  # noqa: BLE001  # of a store of the user's, perhaps
                self._error_reporter.exception(task.component)
            finally:
                # It refers to the scheduler, which this thread must not keep alive.
                del task
                self._running_task = None


class _Task(NamedTuple):
    run_at: float
    sequence_number: int
    component: str
    run: Callable[[], None]
