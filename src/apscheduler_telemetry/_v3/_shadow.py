"""
Attributes laid over an instance's own, and taken off again in mirrored order.

APScheduler calls its own methods through ``self``, so an attribute of the instance comes before
the method of its class. The class, and every other instance, stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_ABSENT = object()


class Shadows:
    """All attributes laid over others for one scheduler."""

    def __init__(self) -> None:
        self._laid: list[tuple[Any, str, Any, Any]] = []

    def lay(self, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
        """
        Lay an attribute over the one that `owner` has.

        Args:
            owner: the object.
            name: of the attribute, which must exist.
            make: is given what `owner` has now, and returns what comes in its place.
        """
        replacement = make(getattr(owner, name))
        previous = vars(owner).get(name, _ABSENT)
        setattr(owner, name, replacement)
        self._laid.append((owner, name, replacement, previous))

    def lift(self) -> None:
        """
        Put everything back.

        What somebody else has laid over ours meanwhile is left alone, as taking ours from under
        it is not possible; ours is passed through then, since its owner no longer counts.
        """
        while self._laid:
            owner, name, replacement, previous = self._laid.pop()
            if vars(owner).get(name, _ABSENT) is not replacement:
                continue
            if previous is _ABSENT:
                delattr(owner, name)
            else:
                setattr(owner, name, previous)
