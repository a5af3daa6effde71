"""Calls in several threads at once and in a fork, and the names of running threads."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

from tests.helpers.waiting import wait_until


def calls_in_threads(function: Callable[[], Any]) -> int:
    """Return how many Python functions are called in threads that `function` starts."""
    calls = itertools.count()
    threading.setprofile(lambda _frame, event, _arg: event == "call" and next(calls))
    try:
        function()
    finally:
        threading.setprofile(None)
    return next(calls)


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


def in_fork(check: Callable[[], bool]) -> bool:
    """Return what `check` returns in a forked child; false if it hangs or raises."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            code = 0 if check() else 2
        finally:
            os._exit(code)
    try:
        _, status = wait_until(lambda: any(found := os.waitpid(pid, os.WNOHANG)) and found)
    except AssertionError:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return False
    return bool(os.waitstatus_to_exitcode(status) == 0)
