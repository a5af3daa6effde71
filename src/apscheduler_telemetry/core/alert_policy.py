"""
What alert rules expect of each job: its grace, maximum duration, severity and owner.

Each option is one value for all jobs, or a callable that returns it for a job and is called when
the job is added or changed. So thresholds and routing are configured next to the job, and no rule
has to be edited.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from apscheduler_telemetry.core.interruptions import raise_if_interruption
from apscheduler_telemetry.core.labels import label_value
from apscheduler_telemetry.core.observers import ErrorReporter
from apscheduler_telemetry.core.safe_repr import safe_repr
from apscheduler_telemetry.errors import ArgumentTypeError, ArgumentValueError

MIN_DEFAULT_GRACE = 60.0
"""
The least default of ``grace`` in seconds, even if ``misfire_grace_time`` is smaller.

APScheduler's default is 1 s, but an alert cannot be more precise than the intervals of scrapes and
of rule evaluations.
"""
SEVERITIES = ("critical", "warning", "info")
"""The values of the ``severity`` label that the rules and routes in ``alerts/`` know."""


@dataclass(frozen=True)
class _OptionRule:
    """
    The valid values of one option.

    Attributes:
        type_text: the type in words.
        range_text: the valid values in words.
        has_type: returns whether a value has that type.
        is_in_range: returns whether a value of that type is valid.
    """

    type_text: str
    range_text: str
    has_type: Callable[[Any], bool]
    is_in_range: Callable[[Any], bool]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _to_float(number: float) -> float:
    """Return a number as a float; infinity if no float can hold it, as an int may be larger."""
    try:
        return float(number)
    except OverflowError:
        return math.inf


_OPTION_RULES = {
    "grace": _OptionRule(
        "seconds", "0 or more seconds", _is_number, lambda v: 0 <= _to_float(v) < math.inf
    ),
    "max_duration": _OptionRule(
        "seconds", "more than 0 seconds", _is_number, lambda v: 0 < _to_float(v) < math.inf
    ),
    "severity": _OptionRule(
        "a str",
        " or ".join(repr(severity) for severity in SEVERITIES),
        lambda v: isinstance(v, str),
        lambda v: v in SEVERITIES,
    ),
    "owner": _OptionRule(
        "a str", "a name", lambda v: isinstance(v, str), lambda v: bool(v.strip())
    ),
}


def validate(option: str, value: Any) -> Any:
    """
    Return `value` if it is valid for an option.

    Raises:
        ArgumentTypeError: it is neither None, nor callable, nor of the option's type.
        ArgumentValueError: it has that type, but is out of range.
    """
    known = _OPTION_RULES[option]
    if value is None or callable(value):
        return value
    if not known.has_type(value):
        them = "them" if known.type_text == "seconds" else "one"
        msg = (
            f"{option} must be {known.type_text}, a callable that returns {them} for a job, or "
            f"None, got {safe_repr(value)}"
        )
        raise ArgumentTypeError(msg)
    if not known.is_in_range(value):
        msg = (
            f"{option} must be {known.range_text}, got {safe_repr(value)}; omit it for the default"
        )
        raise ArgumentValueError(msg)
    return value


class AlertPolicy:
    """
    Returns what alert rules expect of each job.

    Args:
        error_reporter: counts callables that fail, each under the name of its option.
        options: for each name a value, a callable that returns one for a job, or None.
    """

    def __init__(self, error_reporter: ErrorReporter, **options: Any) -> None:
        self._error_reporter = error_reporter
        self._options = options

    def grace(self, job: Any) -> float:
        """Return the seconds that a run of `job` may be late."""
        try:
            own = _to_float(job.misfire_grace_time or 0)
        except BaseException as error:  # noqa: BLE001  # of a subclass of the user's
            raise_if_interruption(error)
            own = 0.0
        default = own if MIN_DEFAULT_GRACE < own < math.inf else MIN_DEFAULT_GRACE
        return float(self._option(job, "grace", default))

    def max_duration(self, job: Any) -> float | None:
        """Return the seconds that a run of `job` may take; None if not configured."""
        seconds = self._option(job, "max_duration", None)
        return None if seconds is None else float(seconds)

    def severity(self, job: Any) -> str:
        """Return the severity of alerts on `job`; empty for the severity of each rule."""
        severity = self._option(job, "severity", "")
        return str(severity) if severity else ""

    def owner(self, job: Any) -> str:
        """Return who is responsible for `job`; empty if not configured."""
        owner = self._option(job, "owner", "")
        return label_value(owner) if owner else ""

    def _option(self, job: Any, option: str, default: Any) -> Any:
        value = self._options.get(option)
        if value is None:
            return default
        if not callable(value):
            return value
        known = _OPTION_RULES[option]
        try:
            returned = value(job)
            if returned is None:
                return default
            if not known.has_type(returned) or not known.is_in_range(returned):
                msg = (
                    f"{option} must return {known.range_text}, got {safe_repr(returned)} for job "
                    f"{label_value(job.id)!r}; using {default!r}"
                )
                raise ValueError(msg)  # noqa: TRY301  # reported like one that it raises
        except BaseException:  # noqa: BLE001  # user code
            self._error_reporter.exception(option)
            return default
        return returned
