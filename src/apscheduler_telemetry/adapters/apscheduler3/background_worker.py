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

from apscheduler_telemetry.core.locks import renew_lock_in_forked_children
from apscheduler_telemetry.core.observers import ErrorReporter


class BackgroundWorker:
    """
    Runs tasks in another thread, at once or after a delay.

    The thread starts when there is a task, and ends after `IDLE_SECONDS` without one. It does not
    keep the process alive.

    Args:
        error_reporter: counts tasks that fail.
        create_task_context: returns the context manager in which each task runs.
    """

    IDLE_SECONDS = 1.0

    def __init__(
        self,
        error_reporter: ErrorReporter,
        create_task_context: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._error_reporter = error_reporter
        self._create_task_context = create_task_context
        self._lock = threading.RLock()
        self._tasks: list[_Task] = []
        self._task_numbers = itertools.count()
        self._wakeup = threading.Event()
        self._thread: threading.Thread | None = None
        self._is_stopped = False
        renew_lock_in_forked_children(self)

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
            heapq.heappush(self._tasks, _Task(run_at, next(self._task_numbers), component, task))
            if self._thread is None or not self._thread.is_alive():  # not alive: after a fork
                self._wakeup = threading.Event()
                self._thread = threading.Thread(
                    target=self._work, name="apscheduler-telemetry", daemon=True
                )
                self._thread.start()
            self._wakeup.set()

    def discard_tasks_and_stop(self) -> None:
        """Drop the tasks that have not begun; the thread ends after the current one."""
        with self._lock:
            self._is_stopped = True
            self._tasks.clear()
            self._wakeup.set()

    def _work(self) -> None:
        timeout = 0.0
        while True:
            was_woken = self._wakeup.wait(timeout)
            with self._lock:
                self._wakeup.clear()
                if not self._tasks:
                    if self._is_stopped or not (was_woken or timeout == 0.0):
                        self._thread = None
                        return
                    timeout = self.IDLE_SECONDS
                    continue
                timeout = self._tasks[0].run_at - time.perf_counter()
                if timeout > 0:
                    continue
                task = heapq.heappop(self._tasks)
                timeout = 0.0
            try:
                with self._create_task_context():
                    task.run()
            except BaseException:  # noqa: BLE001  # of a store of the user's, perhaps
                self._error_reporter.exception(task.component)
            del task  # it refers to the scheduler, which this thread must not keep alive


class _Task(NamedTuple):
    run_at: float
    number: int
    component: str
    run: Callable[[], None]
