"""
What the code of a job reports of its own run: quantities, and failures without an exception.

    from apscheduler_telemetry import current_run

    current_run().record(rows=17)
    current_run().fail("the source had no file for today")

The children of process pools import this module too, so it needs the standard library only. Which
run is in progress is known by the stack of calls, and for coroutines by a context variable.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import ContextVar, Token
from sys import _getframe  # public, as documented
from types import CodeType, FrameType
from typing import SupportsFloat

from apscheduler_telemetry.errors import ArgumentTypeError, ArgumentValueError

MAX_QUANTITIES = 10
"""
Names of quantities for each run, and for each job.

Further quantities share `OTHER_QUANTITIES_NAME`.

Each is an attribute of the span and two series of the job.
"""
OTHER_QUANTITIES_NAME = "__overflow__"

MAX_QUANTITY_NAME_LENGTH = 100
"""Characters of the name of a quantity, which each sample and each span repeats."""

MAX_REASON_LENGTH = 65_536
"""
Characters of a reason that are kept until the run ends.

As many as ``redact=`` gets of a text; what it returns is cut like the message of an exception.
"""

REPORTED_FAILURE_ERROR_TYPE = "__fail__"
"""
The ``exception`` label and ``error.type`` of a run that was ended by `CurrentRun.fail`.

There is no exception and so no type; no class has this name, as names of classes that are not
builtins contain the name of a module.
"""


class CurrentRun:
    """
    The run in progress, as `current_run` returns it.

    What is recorded counts if the run ends as a success or as an error, and not if it is lost. It
    may be recorded from several threads and tasks of the run. After the end of the run, and outside
    of a run, the methods check their arguments and do nothing else.

    Attributes:
        recorded: what was recorded of each quantity so far; never changed, but replaced.
        failure_reason: the reason of the first call of `fail`; None before it.
    """

    __slots__ = ("_is_ended", "failure_reason", "recorded")

    recorded: Mapping[str, float]
    failure_reason: str | None

    def __init__(self, *, is_ended: bool = False) -> None:
        self.recorded = {}
        self.failure_reason = None
        self._is_ended = is_ended

    def record(self, /, **quantities: SupportsFloat) -> None:
        """
        Add to quantities of this run, such as ``record(rows=17, bytes=3.5)``.

        Several calls add up. The sum over all runs of the job is
        ``apscheduler_job_recorded_total{quantity="rows"}``, and the latest successful run is
        ``apscheduler_job_last_recorded{quantity="rows"}``. The span of the run has the attribute
        ``apscheduler.recorded.rows``.

        Args:
            **quantities: a number for each quantity, finite and not negative, in the unit of your
                choice. A job has at most `MAX_QUANTITIES`; further ones are added up as
                ``__overflow__``.

        Raises:
            ArgumentTypeError: a value is not a number.
            ArgumentValueError: a number is negative, infinite or not a number (NaN), or a name is
                no identifier of Python or longer than `MAX_QUANTITY_NAME_LENGTH` characters.
        """
        amounts = {
            _validate_quantity_name(name): _validate_amount(name, v)
            for name, v in quantities.items()
        }
        while not self._is_ended:
            before = self.recorded
            after = add_quantities(before, amounts)
            # In one line, in which neither another thread nor the handler of a signal comes in.
            if self.recorded is before: self.recorded = after; return  # fmt: skip  # noqa: E701, E702

    def fail(self, reason: str) -> None:
        """
        Let the run count as an error, although its callable goes on and raises no exception.

        The outcome in metrics and in the span is ``error``, and the reason is the description of
        the span's status, under the same options as the message of an exception:
        ``capture_message`` and ``redact``. APScheduler still sees a success, and listeners get
        ``EVENT_JOB_EXECUTED``. If the callable raises an exception later, that counts instead. Of
        several reasons, the first one counts.

        Args:
            reason: what went wrong, in words.

        Raises:
            ArgumentTypeError: the reason is not a str.
        """
        given: object = reason
        if not isinstance(given, str):
            msg = (
                f"fail() takes the reason as a str, got {_type_name(given)}; for an exception, "
                "pass str(exception), or raise it"
            )
            raise ArgumentTypeError(msg)
        text = str.__str__(given)[:MAX_REASON_LENGTH]
        if self.failure_reason is None and not self._is_ended:
            self.failure_reason = text

    def mark_ended(self) -> None:
        """Ignore what is reported from now on; called at the end of the callable."""
        self._is_ended = True

    def release_failure_reason(self) -> None:
        """Keep the reason no longer; for when the error of the run is described."""
        self.failure_reason = None

    def __repr__(self) -> str:
        """Name what was reported so far."""
        reason = "" if self.failure_reason is None else f", failed: {self.failure_reason[:100]!r}"
        return f"<{type(self).__name__} {dict(self.recorded)}{reason}>"


class MeasuredRun:
    """
    What is measured of a run where its callable is executed.

    Args:
        started_at: Unix seconds of the start.

    Attributes:
        started_at: Unix seconds of the measured start; None before it, and if it never started.
        duration: seconds from the start to the end; None before it, and if it is not known.
        current_run: what the callable has reported; None if it has not asked for its run.
    """

    __slots__ = ("current_run", "duration", "started_at")
    started_at: float | None
    duration: float | None
    current_run: CurrentRun | None

    def __init__(self, started_at: float) -> None:
        self.started_at = started_at
        self.duration = self.current_run = None

    @property
    def is_in_progress(self) -> bool:
        """Whether the callable has started and not ended."""
        return self.started_at is not None and self.duration is None

    def set_duration(self, duration: float) -> None:
        """Set the measured duration, in seconds, at the end of the callable."""
        self.duration = duration
        if self.current_run is not None:
            self.current_run.mark_ended()

    def get_or_create_current_run(self) -> CurrentRun:
        """Return what the callable reports, of which there is one object for each run."""
        new = CurrentRun()
        if self.current_run is None: self.current_run = new  # fmt: skip  # noqa: E701  # as above
        return self.current_run


def current_run() -> CurrentRun:
    """
    Return the run of a job that is in progress in this thread, task or greenlet.

    Outside of a run, and where the scheduler is not instrumented, the methods of the returned
    object check their arguments and do nothing else. So code that is used elsewhere too, and its
    tests, need no condition.

    A coroutine passes its run on to its tasks, and to threads by `asyncio.to_thread`. In a thread
    that a plain function starts, use the object that `current_run` has returned to the function.
    """
    by_context, by_stack = _run_of_context.get(None), _find_run_on_stack()
    # A task may outlive the run that has started it.
    runs = [run for run in (by_stack, by_context) if run is not None and run.is_in_progress]
    if not runs:
        return _NO_RUN
    # The inner one, if a job runs another scheduler, has started later.
    return max(runs, key=lambda run: run.started_at or 0.0).get_or_create_current_run()


def _find_run_on_stack() -> MeasuredRun | None:
    """Return the run of the innermost function that executes one by `set_run_finder`."""
    frame: FrameType | None = _getframe(2)
    while frame is not None:
        find_run = _run_finders.get(frame.f_code)
        if find_run is not None and (run := find_run(frame)) is not None:
            return run
        frame = frame.f_back
    return None


def set_run_finder(runner: CodeType, find_run: Callable[[FrameType], MeasuredRun | None]) -> None:
    """
    Let runs be found by the frame of the function that calls their callables.

    To set a context variable for each run would cost every run more than one percent.

    Args:
        runner: the code of that function, which waits for each callable.
        find_run: returns the run that a frame of it has in progress, or None.
    """
    _run_finders[runner] = find_run


def add_quantities(
    before: Mapping[str, float], amounts: Mapping[str, float]
) -> Mapping[str, float]:
    """Return the sums of quantities, of which there are at most `MAX_QUANTITIES` and one more."""
    sums = dict(before)
    for name, amount in amounts.items():
        known = name if name in sums or _can_have_more_quantities(sums) else OTHER_QUANTITIES_NAME
        sums[known] = sums.get(known, 0.0) + amount
    return sums


def is_quantity_name(text: str) -> bool:
    """Return whether `CurrentRun.record` takes this name of a quantity."""
    return text.isidentifier() and len(text) <= MAX_QUANTITY_NAME_LENGTH


def _can_have_more_quantities(quantities: Mapping[str, float]) -> bool:
    return len(quantities) - (OTHER_QUANTITIES_NAME in quantities) < MAX_QUANTITIES


def _validate_quantity_name(name: str) -> str:
    # A keyword may be of a subclass of str, whose methods are the user's.
    text = str.__str__(name)
    if not is_quantity_name(text):
        msg = (
            f"record() got {text[:MAX_QUANTITY_NAME_LENGTH]!r} as the name of a quantity; pass an "
            f"identifier of at most {MAX_QUANTITY_NAME_LENGTH} characters, such as rows=17"
        )
        raise ArgumentValueError(msg)
    return text


def _validate_amount(name: str, value: SupportsFloat) -> float:
    shown = str.__str__(name)[:MAX_QUANTITY_NAME_LENGTH]
    # What has a __float__, as the numbers of decimal, fractions and numpy do, but a str has not.
    if isinstance(value, bool) or not hasattr(type(value), "__float__"):
        msg = f"record() takes a number for {shown}, got {_type_name(value)}"
        raise ArgumentTypeError(msg)
    try:
        amount = float(value)
    except TypeError as error:  # such as an array of several numbers
        msg = f"record() takes a number for {shown}, got {_type_name(value)}: {error}"
        raise ArgumentTypeError(msg) from error
    except OverflowError:  # of an int
        amount = math.inf
    except ValueError:  # of a Decimal that is a signaling NaN
        amount = math.nan
    if not 0 <= amount < math.inf:
        msg = (
            f"record() takes a number for {shown} that is finite and not negative, got {amount}; "
            "it is added to a counter, which only grows"
        )
        raise ArgumentValueError(msg)
    return amount


def _type_name(value: object) -> str:
    return type(value).__qualname__[:MAX_QUANTITY_NAME_LENGTH]


_run_finders: dict[CodeType, Callable[[FrameType], MeasuredRun | None]] = {}
_run_of_context: ContextVar[MeasuredRun] = ContextVar("apscheduler_telemetry_run")
set_run_of_context = _run_of_context.set
"""
Called with a run before its callable is executed, in the context of that.

Needed for coroutines, whose tasks have other stacks. The run stays set at its end, as it takes no
reports any more.
"""


def restore_outer_run(token: Token[MeasuredRun]) -> None:
    """
    Undo a `set_run_of_context`, if the callable of a run that goes on has executed the run.

    Args:
        token: what `set_run_of_context` returned.
    """
    outer = token.old_value
    if outer is not Token.MISSING and outer.is_in_progress:
        with suppress(ValueError):  # an abandoned coroutine is closed from another context
            _run_of_context.reset(token)


_NO_RUN = CurrentRun(is_ended=True)
