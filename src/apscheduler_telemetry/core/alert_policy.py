"""
What the application expects of its jobs, for the alert rules to go by.

Each can be one value for all jobs or a callable that is asked when a job is added or changed. So
thresholds and routing are tuned where the job is, and nobody edits rules.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from apscheduler_telemetry.core import labels as _labels
from apscheduler_telemetry.core.observers import Guard
from apscheduler_telemetry.errors import ArgumentTypeError, ArgumentValueError

MIN_GRACE = 60.0
"""
Seconds of lateness tolerated by default, however small the job's ``misfire_grace_time``.

Its default is 1 s, and an alert can know no better than scrapes and evaluations come.
"""
SEVERITIES = ("critical", "warning", "info")
"""The values of the label ``severity`` that the rules and routes of ``alerts/`` know."""


@dataclass(frozen=True)
class _Option:
    """
    One thing that can be said of a job.

    Attributes:
        type: what a value must be, in words.
        range: what values are possible, in words.
        is_typed: tells whether a value is of that type.
        is_possible: tells whether a value of that type is possible.
    """

    type: str
    range: str
    is_typed: Callable[[Any], bool]
    is_possible: Callable[[Any], bool]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


_OPTIONS = {
    "grace": _Option("seconds", "0 or more seconds", _is_number, lambda v: 0 <= v < math.inf),
    "max_duration": _Option(
        "seconds", "more than 0 seconds", _is_number, lambda v: 0 < v < math.inf
    ),
    "severity": _Option(
        "a str",
        " or ".join(repr(severity) for severity in SEVERITIES),
        lambda v: isinstance(v, str),
        lambda v: v in SEVERITIES,
    ),
    "owner": _Option("a str", "a name", lambda v: isinstance(v, str), lambda v: bool(v.strip())),
}


def checked(option: str, value: Any) -> Any:
    """
    Return `value` if an option can have it.

    Raises:
        ArgumentTypeError: it is neither None, nor callable, nor of the option's type.
        ArgumentValueError: it is of that type, but impossible.
    """
    known = _OPTIONS[option]
    if value is None or callable(value):
        return value
    if not known.is_typed(value):
        them = "them" if known.type == "seconds" else "one"
        msg = (
            f"{option} must be {known.type}, a callable that returns {them} for a job, or None, "
            f"got {value!r}"
        )
        raise ArgumentTypeError(msg)
    if not known.is_possible(value):
        msg = f"{option} must be {known.range}, got {value!r}; omit it for the default"
        raise ArgumentValueError(msg)
    return value


class Expectations:
    """
    What is expected of each job.

    Args:
        guard: counts callbacks that fail, each under the name of its option.
        options: by name, a value, a callable that returns one for a job, or None.
    """

    def __init__(self, guard: Guard, **options: Any) -> None:
        self._guard = guard
        self._options = options

    def grace(self, job: Any) -> float:
        """Return the seconds that a run of `job` may be late."""
        default = max(MIN_GRACE, float(job.misfire_grace_time or 0))
        return float(self._of(job, "grace", default))

    def max_duration(self, job: Any) -> float | None:
        """Return the seconds that a run of `job` may take, None where nobody says."""
        seconds = self._of(job, "max_duration", None)
        return None if seconds is None else float(seconds)

    def severity(self, job: Any) -> str:
        """Return the severity of alerts on `job`, empty for that of the rule."""
        return str(self._of(job, "severity", ""))

    def owner(self, job: Any) -> str:
        """Return who is to hear of `job`, empty where nobody says."""
        return _labels.text(self._of(job, "owner", ""))

    def _of(self, job: Any, option: str, default: Any) -> Any:
        value = self._options.get(option)
        if not callable(value):
            return default if value is None else value
        known = _OPTIONS[option]
        try:
            returned = value(job)
            if returned is None:
                return default
            if not known.is_typed(returned) or not known.is_possible(returned):
                msg = (
                    f"{option} must return {known.range}, got {returned!r} for job {job.id!r}; "
                    f"using {default!r}"
                )
                raise ValueError(msg)  # noqa: TRY301  # counted and logged like one it raises
        except Exception:  # noqa: BLE001  # user code
            self._guard.failed(option)
            return default
        return returned
