"""
Which exceptions come from outside, and which are failures of the code in which they were raised.

``sys.exit()`` in ``job_label=`` must not end the application that adds a job, and so it is a
failure like any other. An exception from outside is no failure of the callable: the process was
told to end, or a time limit of the application has passed, while the callable ran.
"""

from __future__ import annotations

import inspect
import signal
import sys
from collections.abc import Iterator
from itertools import pairwise
from traceback import walk_tb
from types import CodeType
from typing import Any


def raise_if_interruption(error: BaseException) -> None:
    """
    Raise an exception again that has interrupted a callable of the user's, or the telemetry itself.

    That is Ctrl-C, what a handler of a signal has raised, and what gevent and eventlet raise in a
    greenlet that is killed or has timed out. Nothing raises `asyncio.CancelledError` or
    `GeneratorExit` in a callable that is only called, so these are its own.

    Args:
        error: what was raised; the exception that is being handled.
    """
    if _is_interruption_by_type(error) or _is_from_signal_handler(error):
        raise error


def _is_interruption_by_type(error: BaseException) -> bool:
    if isinstance(error, Exception):
        return False
    modules = {cls.__module__.partition(".")[0] for cls in type(error).__mro__}
    return isinstance(error, KeyboardInterrupt) or not modules.isdisjoint(
        _LIBRARIES_RAISING_INTERRUPTIONS
    )


def _is_from_signal_handler(error: BaseException) -> bool:
    """
    Return whether a handler of a signal was at work when an exception was raised.

    Python passes it the number of the signal and the frame that the signal has interrupted, and it
    may pass them on. A handler that deletes an argument is known by its code, while it is
    installed.

    An `Exception`, such as `TimeoutError`, is mostly a time limit. If its signal has no handler any
    more, the callable had set this limit for itself, and has failed.
    """
    ids_of_earlier_frames: set[int] = set()  # the traceback keeps them alive
    for frame, _ in walk_tb(error.__traceback__):
        names, tuple_name, _, variables = inspect.getargvalues(frame)
        arguments = [variables[name] for name in names if name in variables]
        if _FRAMES_COPY_VARIABLES and frame.f_code.co_flags & inspect.CO_OPTIMIZED:
            # The copy would keep the exception, which keeps the frame: all that the functions of
            # the traceback refer to would wait for garbage collection.
            for name in [name for name, value in variables.items() if value is error]:
                del variables[name]
        has_deleted_argument = len(arguments) < len(names)
        if tuple_name is not None and type(more := variables.get(tuple_name)) is tuple:
            arguments += more
        for number, interrupted in pairwise(arguments):
            if (
                id(interrupted) in ids_of_earlier_frames
                and isinstance(number, int)
                and (not isinstance(error, Exception) or _has_signal_handler(number))
            ):
                return True
        if has_deleted_argument and frame.f_code in _codes_of_signal_handlers():
            return True
        ids_of_earlier_frames.add(id(frame))
    return False


def _has_signal_handler(number: int) -> bool:
    return number in signal.valid_signals() and callable(signal.getsignal(number))


def _codes_of_signal_handlers() -> Iterator[CodeType | Any]:
    for number in signal.valid_signals():
        yield getattr(signal.getsignal(number), "__code__", None)


_LIBRARIES_RAISING_INTERRUPTIONS = {"eventlet", "gevent", "greenlet"}
"""Top-level modules; their exceptions are no `Exception`, so that code lets them through."""
_FRAMES_COPY_VARIABLES = sys.version_info < (3, 13)
"""Whether a frame of a function keeps a copy of its variables once they were read."""
