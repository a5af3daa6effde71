"""
A thread pool whose threads never delay the exit of the interpreter.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from apscheduler_telemetry.core.forks import reset_in_forked_children
from apscheduler_telemetry.http import limits

T = TypeVar("T")


class DaemonThreadPool:
    """
    Runs callables in at most `limits.MAX_THREADS_PER_PAGE` daemon threads, which end when idle.

    This is not a `concurrent.futures.ThreadPoolExecutor` because the interpreter joins the threads
    of that one at exit, which would block forever if a collector hangs.
    """

    def __init__(self) -> None:
        self.reset_after_fork()
        reset_in_forked_children(self)

    def reset_after_fork(self) -> None:
        """Start over with an empty queue and no threads."""
        self._lock = threading.Lock()
        self._pending: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._thread_count = 0

    def submit(self, function: Callable[[], T]) -> Future[T]:
        """
        Run `function` in a thread.

        Returns:
            Its result. A `BaseException` that is no `Exception` becomes a `RuntimeError`.

        Raises:
            RuntimeError: `limits.MAX_PENDING_REQUESTS` calls are waiting, or no thread can be
                started.
        """
        future: Future[T] = Future()
        with self._lock:
            if len(self._pending) >= limits.MAX_PENDING_REQUESTS:
                msg = (
                    f"{limits.MAX_PENDING_REQUESTS} requests are already waiting; "
                    "does a collector hang?"
                )
                raise RuntimeError(msg)
            if self._thread_count < limits.MAX_THREADS_PER_PAGE:
                name = "apscheduler-telemetry-collect"
                threading.Thread(target=self._run_pending, name=name, daemon=True).start()
                self._thread_count += 1
            self._pending.append((future, function))
        return future

    def _run_pending(self) -> None:
        while True:
            with self._lock:
                if not self._pending:
                    self._thread_count -= 1
                    return
                future, function = self._pending.popleft()
            if future.set_running_or_notify_cancel():  # false if the caller has cancelled it
                try:
                    future.set_result(function())
                except Exception as error:  # noqa: BLE001  # re-raised by future.result()
                    future.set_exception(error)
                except BaseException as error:  # noqa: BLE001  # sys.exit() in a collector must not
                    future.set_exception(RuntimeError(repr(error)))  # end the caller's thread
