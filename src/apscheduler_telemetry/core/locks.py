"""
Locks that survive forks, signal handlers and exceptions from outside.
"""

from __future__ import annotations

import functools
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

_Method = TypeVar("_Method", bound=Callable[..., Any])


def synchronized(method: _Method) -> _Method:
    """
    Run a method under the ``_lock`` of its object.

    The call and the release are on one line, so that an exception between two lines, for example
    from a debugger or a test, cannot leave the lock locked.
    """

    @functools.wraps(method)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        with self._lock: return method(self, *args, **kwargs)  # fmt: skip  # noqa: E701

    return run  # type: ignore[return-value]


def renew_lock_in_forked_children(owner: Any) -> None:
    """
    Create a new ``_lock`` for `owner` in every forked child.

    The lock is reentrant, because a signal handler or a ``__del__`` may interrupt the thread that
    holds it, and may scrape or shut the scheduler down.

    A fork copies a lock in the state it is in. One that another thread held at that moment would
    stay locked in the child for ever, and a scrape of the child would hang.
    """
    _objects_with_lock.add(owner)


def _renew_locks() -> None:
    for owner in list(_objects_with_lock):
        owner._lock = threading.RLock()  # noqa: SLF001  # that is why they are registered


_objects_with_lock: weakref.WeakSet[Any] = weakref.WeakSet()
if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_renew_locks)
