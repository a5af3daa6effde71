"""
Replaces attributes of single objects, and restores them in reverse order.

APScheduler calls its own methods through ``self``, so an attribute of the instance is found before
the method of its class. The class and its other instances are not changed.
"""

from __future__ import annotations

import functools
import inspect
import threading
import weakref
from collections.abc import Callable
from types import FunctionType
from typing import Any
from weakref import WeakKeyDictionary

from apscheduler_telemetry.core.locks import renew_lock_in_forked_children


class _InheritedMarker:
    """Marks an attribute that an object inherits from its class."""


_INHERITED = _InheritedMarker()


class PatchSet:
    """
    All attributes that were replaced for one scheduler.

    All references are weak, so that an executor that was removed from its scheduler is freed
    together with its patches. A replacement refers to the attribute that it replaces.

    Attributes:
        is_active: whether the replacements do anything; False from `restore` on, because a
            replacement that another tool has wrapped cannot be removed.
    """

    def __init__(self) -> None:
        self.is_active = True
        self._patches: list[_AppliedPatch] = []
        self._lock = threading.RLock()
        renew_lock_in_forked_children(self)

    def patch(self, owner: Any, name: str, wrap: Callable[[Any], Any]) -> None:
        """
        Replace an attribute of an object.

        Args:
            owner: the object.
            name: of the attribute, which must exist.
            wrap: takes the attribute as it is now, and returns its replacement.
        """
        original = getattr(owner, name)
        replacement = wrap(original)
        if inspect.isroutine(original):  # so that help() shows the user's method
            functools.update_wrapper(replacement, original, assigned=["__doc__"])
        previous = original if _is_own_attribute(owner, name, original) else _INHERITED
        setattr(owner, name, replacement)
        patch = (
            _create_reference(owner),
            name,
            _create_reference(replacement),
            _create_reference(previous),
        )
        with self._lock:
            self._patches = [*(other for other in self._patches if other[0]() is not None), patch]

    def deactivate(self) -> None:
        """Make the replacements only call what they replace."""
        self.is_active = False

    def restore(self) -> None:
        """
        Restore all attributes.

        If another tool has wrapped a replacement, it cannot be removed; it stays and does nothing.
        """
        self.deactivate()
        while (patch := self._pop_latest_patch()) is not None:
            get_owner, name, get_replacement, get_previous = patch
            owner, replacement, previous = get_owner(), get_replacement(), get_previous()
            if owner is None or replacement is None:
                continue
            if getattr(owner, name, None) is not replacement:
                if isinstance(replacement, FunctionType):
                    _previous_by_irremovable_replacement[replacement] = get_previous
                continue
            while (
                isinstance(previous, FunctionType)
                and previous in _previous_by_irremovable_replacement
            ):
                previous = _previous_by_irremovable_replacement[previous]()
            if previous is _INHERITED:
                delattr(owner, name)
            else:
                setattr(owner, name, previous)

    def _pop_latest_patch(self) -> _AppliedPatch | None:
        # Two runs in two threads may both end as the last one.
        with self._lock:
            return self._patches.pop() if self._patches else None


def _is_own_attribute(owner: Any, name: str, attribute: Any) -> bool:
    """
    Return whether an object has an attribute itself, and not from its class.

    This does not look at its ``__dict__``: before Python 3.13 that makes every later access to the
    object's attributes slower, in every run.
    """
    inherited = inspect.getattr_static(type(owner), name, _INHERITED)
    if inherited is _INHERITED:
        return True
    if hasattr(type(inherited), "__get__"):
        inherited = inherited.__get__(owner, type(owner))
    return bool(inherited != attribute)


_ReferenceGetter = Callable[[], Any]
_AppliedPatch = tuple[_ReferenceGetter, str, _ReferenceGetter, _ReferenceGetter]
"""The owner, the name of its attribute, the replacement, and what was there before."""

_previous_by_irremovable_replacement: WeakKeyDictionary[Any, _ReferenceGetter] = WeakKeyDictionary()
"""
Replacements that could not be removed, with what was there before them.

One may have been wrapped by a replacement of another `PatchSet`, if a scheduler was instrumented
again while it had runs in flight; then the other set restores what was there before both.
"""


def _create_reference(thing: Any) -> _ReferenceGetter:
    try:
        return weakref.ref(thing)
    except TypeError:  # the user's logger with slots, for example
        return lambda: thing
