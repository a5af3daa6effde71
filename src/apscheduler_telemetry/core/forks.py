"""
Reset objects, and ask for threads, in forked child processes.

A child inherits the locks, queues and sockets of its parent, but none of its threads.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import Protocol


class Resettable(Protocol):
    """An object whose state is wrong in a forked child."""

    def reset_after_fork(self) -> None:
        """Make the object usable in the child process that was just forked."""


def reset_in_forked_children(resettable: Resettable) -> None:
    """Call `reset_after_fork` of an object, as long as it lives, in every forked child."""
    _resettables.add(resettable)


def is_thread_alive(thread: threading.Thread) -> bool:
    """
    Return whether a thread is alive in this process.

    Python's own method fails in a forked child for a thread that Python has not started, as all are
    in which gevent runs greenlets.
    """
    try:
        return thread.is_alive()
    except (AssertionError, RuntimeError):  # the latter since Python 3.13
        return False


def _reset_all() -> None:
    for resettable in list(_resettables):
        resettable.reset_after_fork()


_resettables: weakref.WeakSet[Resettable] = weakref.WeakSet()
if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_reset_all)
