"""
A thread for what must not be done on the scheduler's: reading stores, asking triggers.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

from apscheduler_telemetry.core.observers import Guard, renew_lock_after_fork


class Aside:
    """
    Does tasks in another thread, now or after a while.

    The thread starts when there is something to do, and ends when there has been nothing for a
    while. It keeps no process alive.
    """

    IDLE = 1.0  # seconds

    def __init__(
        self, guard: Guard, context: Callable[[], AbstractContextManager[None]] = nullcontext
    ) -> None:
        self._guard = guard
        self._context = context
        self._lock = threading.RLock()
        self._tasks: list[_Task] = []
        self._number = itertools.count()
        self._there_is_work = threading.Event()
        self._thread: threading.Thread | None = None
        self._stopped = False
        renew_lock_after_fork(self)

    def do(self, component: str, task: Callable[[], None], *, after: float = 0.0) -> None:
        """
        Do `task` in another thread.

        Args:
            component: what its failure counts for.
            task: what to do. If it is to wait, it should not keep a scheduler alive.
            after: in so many seconds, and soon by default.
        """
        with self._lock:
            if self._stopped:
                return
            at = time.perf_counter() + after
            heapq.heappush(self._tasks, _Task(at, next(self._number), component, task))
            if self._thread is None or not self._thread.is_alive():  # not alive: after a fork
                self._there_is_work = threading.Event()
                self._thread = threading.Thread(
                    target=self._work, name="apscheduler-telemetry", daemon=True
                )
                self._thread.start()
            self._there_is_work.set()

    def stop(self) -> None:
        """Drop what has not been begun; the thread ends when it is through with the rest."""
        with self._lock:
            self._stopped = True
            self._tasks.clear()
            self._there_is_work.set()

    def _work(self) -> None:
        patience = 0.0
        while True:
            there_is_news = self._there_is_work.wait(patience)
            with self._lock:
                self._there_is_work.clear()
                if not self._tasks:
                    if self._stopped or not (there_is_news or patience == 0.0):
                        self._thread = None
                        return
                    patience = self.IDLE
                    continue
                patience = self._tasks[0].at - time.perf_counter()
                if patience > 0:
                    continue
                task = heapq.heappop(self._tasks)
                patience = 0.0
            try:
                with self._context():
                    task.do()
            except Exception:  # noqa: BLE001
                self._guard.failed(task.component)
            del task  # it refers to the scheduler, which nothing here is to keep alive


class _Task(NamedTuple):
    at: float
    number: int
    component: str
    do: Callable[[], None]
