"""
Reset objects, ask for threads and end them, in forked child processes.

A child inherits the locks, queues and sockets of its parent, and of its threads only the one that
has forked. Greenlets are memory like any other, and go on in the child: so do all threads if gevent
or eventlet has replaced them by greenlets, and what the thread runs that has forked, such as an
event loop.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
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


def create_daemon_thread(
    target: Callable[..., None], *arguments: object, name: str
) -> threading.Thread:
    """
    Return a thread, to be started, that does not keep the process alive.

    It may end in a forked child, too, if it is a greenlet of gevent. Python does not know it there
    any more, and would fail where it removes it from the threads that it knows.

    Args:
        target: what it calls.
        *arguments: passed to `target`.
        name: its name.
    """

    def run() -> None:
        try:
            target(*arguments)
        finally:
            threading.current_thread()  # from which Python knows the thread that asks

    return threading.Thread(target=run, name=name, daemon=True)


def _reset_all() -> None:
    for resettable in list(_resettables):
        resettable.reset_after_fork()


_resettables: weakref.WeakSet[Resettable] = weakref.WeakSet()
if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_reset_all)
