"""
Which exceptions of the callables that users pass are failures of these callables.

``sys.exit()`` in ``job_label=`` must not end the application that adds a job, and so it is a
failure like any other. An exception from outside is no failure of the callable: the process was
told to end, or a greenlet to stop, while the callable ran.
"""

from __future__ import annotations

import signal
from inspect import CO_OPTIMIZED
from itertools import pairwise
from traceback import walk_tb
from types import FrameType


def raise_if_interruption(error: BaseException) -> None:
    """
    Raise an exception again that has interrupted a callable of the user's from outside.

    That is Ctrl-C, what a handler of a signal has raised, and what gevent and eventlet raise in a
    greenlet that is killed or has timed out. Nothing raises `asyncio.CancelledError` or
    `GeneratorExit` in a callable that is only called, so these are its own.

    Args:
        error: what the callable has let out; the exception that is being handled.
    """
    if isinstance(error, Exception):
        return
    modules = {cls.__module__.partition(".")[0] for cls in type(error).__mro__}
    if (
        isinstance(error, KeyboardInterrupt)
        or not modules.isdisjoint(_LIBRARIES_RAISING_INTERRUPTIONS)
        or _is_from_signal_handler(error)
    ):
        raise error


def _is_from_signal_handler(error: BaseException) -> bool:
    """
    Tell whether a handler of a signal was at work when an exception was raised.

    Python passes a handler the frame that the signal has interrupted, which is the frame before its
    own. A handler that deletes this argument is known by its code, as long as it is installed.
    """
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    handlers = (signal.getsignal(number) for number in signal.valid_signals())
    codes = {getattr(handler, "__code__", None) for handler in handlers}
    return any(frame.f_code in codes for frame in frames) or any(
        _has_variable(frame, before) for before, frame in pairwise(frames)
    )


def _has_variable(frame: FrameType, wanted: FrameType) -> bool:
    """Tell whether a variable of a function is a certain frame, or a tuple of arguments with it."""
    if not frame.f_code.co_flags & CO_OPTIMIZED:
        return False  # not of a function; the variables of a class may be any mapping of the user's
    return any(
        value is wanted or (type(value) is tuple and any(item is wanted for item in value))
        for value in frame.f_locals.values()
    )


_LIBRARIES_RAISING_INTERRUPTIONS = {"eventlet", "gevent", "greenlet"}
"""Top-level modules; their exceptions are no `Exception`, so that code lets them through."""
