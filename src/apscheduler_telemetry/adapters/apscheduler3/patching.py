"""
Attributes laid over an instance's own, and taken off again in mirrored order.

APScheduler calls its own methods through ``self``, so an attribute of the instance comes before
the method of its class. The class, and every other instance, stays as it is.
"""

from __future__ import annotations

import inspect
import threading
import weakref
from collections.abc import Callable
from typing import Any

from apscheduler_telemetry.core.observers import renew_lock_after_fork


class _Absent:
    """What an owner has of its own where its class provides the attribute."""


_ABSENT = _Absent()


class Shadows:
    """
    All attributes laid over others for one scheduler.

    Held weakly, all of it: an executor that was removed from its scheduler, and forgotten, goes
    with what is laid over it. What comes in an attribute's place keeps what was there before.
    """

    def __init__(self) -> None:
        self._laid: list[tuple[_Reference, str, _Reference, _Reference]] = []
        self._lock = threading.RLock()
        renew_lock_after_fork(self)

    def lay(self, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
        """
        Lay an attribute over the one that `owner` has.

        Args:
            owner: the object.
            name: of the attribute, which must exist.
            make: is given what `owner` has now, and returns what comes in its place and keeps it.
        """
        found = getattr(owner, name)
        replacement = make(found)
        previous = found if _is_own(owner, name, found) else _ABSENT
        setattr(owner, name, replacement)
        laid = _reference(owner), name, _reference(replacement), _reference(previous)
        with self._lock:
            self._laid = [*(other for other in self._laid if other[0]() is not None), laid]

    def lift(self) -> None:
        """
        Put everything back.

        What somebody else has laid over ours meanwhile is left alone, as taking ours from under
        it is not possible; ours is passed through then, since its owner no longer counts.
        """
        while self._laid:
            its_owner, name, its_replacement, its_previous = self._laid.pop()
            owner, replacement, previous = its_owner(), its_replacement(), its_previous()
            if (
                owner is None
                or replacement is None
                or getattr(owner, name, None) is not replacement
            ):
                continue
            if previous is _ABSENT:
                delattr(owner, name)
            else:
                setattr(owner, name, previous)


def _is_own(owner: Any, name: str, found: Any) -> bool:
    """
    Tell whether an owner has the attribute that was found of its own, and not its class.

    Without a look at its ``__dict__``: before Python 3.13 whoever asks for that makes every later
    use of the owner's attributes slower, which APScheduler would pay for in every run.
    """
    provided = inspect.getattr_static(type(owner), name, _ABSENT)
    if provided is _ABSENT:
        return True
    if hasattr(type(provided), "__get__"):
        provided = provided.__get__(owner, type(owner))
    return bool(provided != found)


_Reference = Callable[[], Any]


def _reference(thing: Any) -> _Reference:
    try:
        return weakref.ref(thing)
    except TypeError:  # a logger of the user's with slots, for one
        return lambda: thing
