"""Interrupt code at a chosen line, as a signal handler does."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any


class Timeout(BaseException):
    """The exception of a signal handler."""


def interrupt(
    do: Callable[[], Any], files: tuple[str, ...], act: Callable[[], Any], at: int
) -> bool:
    """
    Call `do`, and `act` before one line of it, as the handler of a signal would be.

    Args:
        do: what is interrupted; what `act` raises ends it, and goes no further.
        files: ends of the names of the files whose lines count.
        act: called at that line, once.
        at: which line it is, of all that are executed, from 0 on.

    Returns:
        Whether there was such a line.
    """
    left = at

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if not frame.f_code.co_filename.endswith(files):
            return None
        if event == "line":
            left -= 1
            if left == -1:
                sys.settrace(None)
                act()
                return None
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        do()
    except Timeout:
        pass
    finally:
        sys.settrace(before)
    return left < 0


def raise_timeout() -> None:
    """Raise `Timeout`."""
    raise Timeout
