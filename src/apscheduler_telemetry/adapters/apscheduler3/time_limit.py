"""
Runs code of the user's in a thread of its own, for a limited time.

Python cannot end a thread. One that waits, as for a lock or for a server, does no harm and is left
behind. One that computes takes time from all other threads for ever, so SystemExit is raised in it:
`with` and `finally` are carried out, and Python ends the thread without a message.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable

MAX_ABANDONED_THREADS = 3
"""Threads that were left behind in this process, and still run, after which no more are started."""
INTERRUPTION_ATTEMPTS = 10
"""
How often a thread is looked at, and SystemExit is raised in it if it computes.

Code with a bare ``except`` in a loop goes on after it. And on a machine with much to do, even a
thread that computes may seem to wait for some tenths of a second.
"""
INTERRUPTION_SECONDS = 0.1
"""Seconds between two attempts."""
BUSY_SHARE = 0.05
"""
Share of the time for which a thread has computed, from which on it does not only wait.

One that computes without an end gets more than that, unless twenty others do the same.
"""


class TooManyAbandonedThreadsError(Exception):
    """No thread can be started, as too many were left behind."""


def run_with_time_limit(function: Callable[[], None], seconds: float) -> bool:
    """
    Run a function in another thread, and wait until it has ended, but not for longer than a limit.

    Args:
        function: a callable. Exceptions that it raises are ignored. SystemExit may be raised in it.
        seconds: the limit.

    Returns:
        Whether it has ended in time.

    Raises:
        TooManyAbandonedThreadsError: the function was not run.
    """
    _abandoned[:] = [thread for thread in _abandoned if not thread.try_to_end(attempts=1)]
    if len(_abandoned) >= MAX_ABANDONED_THREADS:
        raise TooManyAbandonedThreadsError
    thread = _InterruptibleThread(function)
    thread.start()
    thread.join(seconds)
    if not thread.is_alive():
        return True
    if not thread.try_to_end():
        _abandoned.append(thread)
    return False


def are_threads_real() -> bool:
    """Tell whether `threading` starts threads, and not greenlets, which cannot be left behind."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey is None or not monkey.is_module_patched("threading")


class _InterruptibleThread(threading.Thread):
    def __init__(self, function: Callable[[], None]) -> None:
        super().__init__(name="apscheduler-telemetry-trigger", daemon=True)
        self._function = function
        self._clock_id: int | None = None
        self._last_times = time.perf_counter(), 0.0  # on the wall, and of computing
        self._has_ended = False
        self._ending_lock = threading.Lock()

    def run(self) -> None:
        # Not on Windows and macOS, where nothing tells whether another thread computes or waits.
        if hasattr(time, "pthread_getcpuclockid"):
            self._clock_id = time.pthread_getcpuclockid(threading.get_ident())
        try:
            self._function()
        except BaseException:  # noqa: BLE001, S110  # the user's, or SystemExit of `_interrupt`
            pass
        finally:
            with self._ending_lock:
                self._has_ended = True

    def try_to_end(self, attempts: int = INTERRUPTION_ATTEMPTS) -> bool:
        """Interrupt the thread if it computes, and tell whether it has ended."""
        for _ in range(attempts):
            if self._is_computing():
                self._interrupt()
            self.join(INTERRUPTION_SECONDS)
            if not self.is_alive():
                return True
        return False

    def _is_computing(self) -> bool:
        """Tell whether the thread has computed since it started, or was asked last."""
        if self._clock_id is None:
            return False
        try:
            now = time.perf_counter(), time.clock_gettime(self._clock_id)
        except OSError:  # it has just ended
            return False
        (since, cpu_before), self._last_times = self._last_times, now
        return now[1] - cpu_before > (now[0] - since) * BUSY_SHARE

    def _interrupt(self) -> None:
        """Raise SystemExit in the thread, when it comes to its next line of Python."""
        try:
            import ctypes  # noqa: PLC0415  # some Pythons have none
        except ImportError:
            return
        # Under the lock the thread does not end, so that its identity is not given to another one.
        with self._ending_lock:
            if not self._has_ended and self.ident is not None:
                identity = ctypes.c_ulong(self.ident)
                ctypes.pythonapi.PyThreadState_SetAsyncExc(identity, ctypes.py_object(SystemExit))


_abandoned: list[_InterruptibleThread] = []
