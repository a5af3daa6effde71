"""
What an application expects of its jobs: `Expectations`, and the decorator `expect` for functions.

This module needs the standard library only, because the children of process pools import it with
the functions that it decorates.
"""

from __future__ import annotations

import datetime as dt
import functools
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from apscheduler_telemetry.core.current_run import (
    MAX_QUANTITIES,
    MAX_QUANTITY_NAME_LENGTH,
    is_quantity_name,
)
from apscheduler_telemetry.core.interruptions import raise_if_interruption
from apscheduler_telemetry.core.safe_repr import safe_repr
from apscheduler_telemetry.errors import ArgumentTypeError, ArgumentValueError

SEVERITIES = ("critical", "warning", "info")
"""The values of the ``severity`` label that the rules and routes in ``alerts/`` know."""
MAX_URL_LENGTH = 1_000
"""Characters of ``runbook_url``; a label value is cut, but a part of a URL leads nowhere."""
MAX_MAX_FAILURES = 1_000_000
"""Larger than any useful number, and far below what the integers of OTLP can hold."""

_EXPECTATIONS_ATTRIBUTE = "_apscheduler_telemetry_expectations"
"""Attribute of a decorated function that holds its `Expectations`."""

_F = TypeVar("_F", bound=Callable[..., Any])
_NUMBER_TYPES = (int, float)


@dataclass(frozen=True, kw_only=True)
class Expectations:
    """
    What alert rules expect of a job. None, the default of each field, is the default of the rules.

    Pass them to `instrument` as ``expect=``, or say them where the function of a job is, with the
    decorator `expect`. Durations are seconds or a `datetime.timedelta`, and are kept as seconds.

    Attributes:
        grace: how late a run may start before it counts as missed. By default the job's
            ``misfire_grace_time``, but at least 60 seconds.
        max_duration: how long a run may take before it counts as stuck. By default a limit from its
            recent runs.
        min_duration: how long a successful run takes at least. By default no time is too short.
        deadline: when a run has to have succeeded: a duration after the run was due, or a time of
            day, which is the first one after the run was due. A time of day is a `datetime.time`,
            or a str such as ``"06:30"`` or ``"06:30 Europe/Berlin"``; without a time zone it is in
            that of the scheduler. It is kept as a `datetime.time`. By default there is no deadline.
        max_failures: how many runs in a row fail before the job counts as failing. By default the
            rules choose by its interval.
        min_recorded: the least that a successful run records of each quantity, by its name, such as
            ``{"rows": 1}``. By default nothing.
        severity: ``critical``, ``warning`` or ``info``: of all alerts on the job. By default that
            of each rule.
        owner: the person or team responsible for the job. By default alerts have no owner.
        runbook_url: an address, http or https, that tells what to do. By default alerts have only
            the address of the runbook of this package.

    Raises:
        ArgumentTypeError: a value is of the wrong type; the message says what to pass.
        ArgumentValueError: a value is impossible.
    """

    grace: float | dt.timedelta | None = None
    max_duration: float | dt.timedelta | None = None
    min_duration: float | dt.timedelta | None = None
    deadline: float | dt.timedelta | dt.time | str | None = None
    max_failures: int | None = None
    # Not in the hash, as a mapping has none.
    min_recorded: Mapping[str, float] | None = field(default=None, hash=False)
    severity: str | None = None
    owner: str | None = None
    runbook_url: str | None = None

    def __post_init__(self) -> None:
        """Validate the values, and convert those that may be written in several ways."""
        for name, convert in _CONVERTERS.items():
            value = getattr(self, name)
            if value is not None:
                # The dataclass is frozen, so this is the way to set an attribute here.
                object.__setattr__(self, name, convert(name, value))
        shortest, longest = self.min_duration, self.max_duration
        if shortest is not None and longest is not None and shortest >= longest:  # type: ignore[operator]  # both are numbers now
            msg = (
                f"min_duration must be less than max_duration, got {shortest!r} and {longest!r}; "
                "each run would be too short or too long"
            )
            raise ArgumentValueError(msg)

    def override(self, others: Expectations) -> Expectations:
        """Return these expectations; fields that are None here have the values of `others`."""
        return Expectations(
            **{
                name: getattr(others if getattr(self, name) is None else self, name)
                for name in EXPECTATION_NAMES
            }
        )


EXPECTATION_NAMES = tuple(each.name for each in fields(Expectations))


class ExpectDecorator:
    """
    Keeps expectations on a function; made by `expect`.

    Args:
        expectations: what is expected of jobs that call the function.
    """

    def __init__(self, expectations: Expectations) -> None:
        self._expectations = expectations

    def __call__(self, func: _F) -> _F:
        """Set the expectations on `func`, and return `func` itself; see `expect`."""
        # Their attributes are not those of the function that a class hands out.
        target: Any = func.__func__ if isinstance(func, (staticmethod, classmethod)) else func
        advice = (
            "put @expect(...) on a function, a method or a class, or pass expect= to instrument(), "
            "a callable that returns Expectations for a job"
        )
        if not callable(target) or not hasattr(target, "__qualname__"):
            # APScheduler pickles all other callables with their attributes.
            msg = f"expect() cannot decorate {safe_repr(func)}, as it is no function: {advice}"
            raise ArgumentTypeError(msg)
        before = find_expectations(target)
        expectations = self._expectations
        if before is not None:
            expectations = expectations.override(before)
        try:
            setattr(target, _EXPECTATIONS_ATTRIBUTE, expectations)
        except (AttributeError, TypeError) as error:
            msg = f"expect() cannot decorate {safe_repr(func)}, as it has no attributes: {advice}"
            raise ArgumentTypeError(msg) from error
        return func


def expect(  # noqa: PLR0913  # the fields of `Expectations`
    *,
    grace: float | dt.timedelta | None = None,
    max_duration: float | dt.timedelta | None = None,
    min_duration: float | dt.timedelta | None = None,
    deadline: float | dt.timedelta | dt.time | str | None = None,
    max_failures: int | None = None,
    min_recorded: Mapping[str, float] | None = None,
    severity: str | None = None,
    owner: str | None = None,
    runbook_url: str | None = None,
) -> ExpectDecorator:
    """
    Return a decorator that says what is expected of the jobs of a function.

        @expect(max_duration=60, deadline="06:30 Europe/Berlin", owner="payments")
        def settle_accounts(): ...

    It returns the function itself, with one more attribute. So the function, its jobs and their
    pickles stay the same. Works on functions, coroutine functions, methods and classes, above and
    below ``@staticmethod`` and ``@classmethod``. Wrappers that `functools.wraps` has made have the
    expectations of what they wrap, and so have partials and bound methods. If a function is
    decorated twice, the outer decorator has priority, field by field.

    Args:
        grace: this and all others are the fields of `Expectations`, which explains them.
        max_duration: likewise.
        min_duration: likewise.
        deadline: likewise.
        max_failures: likewise.
        min_recorded: likewise.
        severity: likewise.
        owner: likewise.
        runbook_url: likewise.

    Raises:
        ArgumentTypeError: a value is of the wrong type, or what is decorated is not a function.
        ArgumentValueError: a value is impossible.
    """
    return ExpectDecorator(
        Expectations(
            grace=grace,
            max_duration=max_duration,
            min_duration=min_duration,
            deadline=deadline,
            max_failures=max_failures,
            min_recorded=min_recorded,
            severity=severity,
            owner=owner,
            runbook_url=runbook_url,
        )
    )


def find_expectations(func: Any) -> Expectations | None:
    """
    Return the expectations that `expect` has set on a function; None if there are none.

    Partials and bound methods have those of their function, and an object those of its class.
    """
    try:
        while isinstance(func, functools.partial):
            func = func.func
        expectations = getattr(func, _EXPECTATIONS_ATTRIBUTE, None)
    except BaseException as error:  # noqa: BLE001  # its __getattr__ may raise anything
        raise_if_interruption(error)
        return None
    # A mock has any attribute.
    return expectations if isinstance(expectations, Expectations) else None


def _convert_seconds(name: str, value: Any, *, may_be_zero: bool = False) -> float:
    if isinstance(value, dt.timedelta):
        seconds = value.total_seconds()
    elif _is_number(value):
        seconds = to_float(value)
    else:
        msg = f"{name} must be seconds or a datetime.timedelta, got {safe_repr(value)}"
        raise ArgumentTypeError(msg)
    if not (seconds > 0 or (may_be_zero and seconds == 0)) or seconds == math.inf:
        least = "0 or more" if may_be_zero else "more than 0"
        msg = f"{name} must be {least} seconds, got {safe_repr(value)}; omit it for the default"
        raise ArgumentValueError(msg)
    return seconds


def _convert_grace(name: str, value: Any) -> float:
    return _convert_seconds(name, value, may_be_zero=True)


_TIME_OF_DAY_PATTERN = re.compile(r"([0-9]{1,2}):([0-9]{2})(?::([0-9]{2}))?(?:\s+(\S+))?")


def _convert_deadline(name: str, value: Any) -> float | dt.time:
    if isinstance(value, dt.time):
        return value
    if isinstance(value, str):
        return _parse_time_of_day(name, value)
    if not _is_number(value) and not isinstance(value, dt.timedelta):
        msg = (
            f"{name} must be seconds or a datetime.timedelta after the due time, a datetime.time, "
            f"or a str such as '06:30' or '06:30 Europe/Berlin', got {safe_repr(value)}"
        )
        raise ArgumentTypeError(msg)
    return _convert_seconds(name, value)


def _parse_time_of_day(name: str, text: str) -> dt.time:
    match = _TIME_OF_DAY_PATTERN.fullmatch(text.strip())
    try:
        if match is None:
            raise ValueError  # noqa: TRY301  # as for an hour that there is not
        hour, minute, second, zone = match.groups()
        time_of_day = dt.time(int(hour), int(minute), int(second or 0))
    except ValueError:
        msg = (
            f"{name} must be a time of day such as '06:30' or '06:30 Europe/Berlin', "
            f"got {safe_repr(text)}"
        )
        raise ArgumentValueError(msg) from None
    return time_of_day.replace(tzinfo=None if zone is None else _find_timezone(name, zone))


def _find_timezone(name: str, zone: str) -> dt.tzinfo:
    if zone == "UTC":
        return dt.timezone.utc  # also where there is no database of time zones
    try:
        return ZoneInfo(zone)
    except (KeyError, ValueError, OSError) as error:  # which of them depends on the text
        msg = (
            f"{name} must have a time zone of the IANA database, such as Europe/Berlin, got "
            f"{safe_repr(zone)}; if this is one, install the package tzdata"
        )
        raise ArgumentValueError(msg) from error


def _convert_max_failures(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        msg = f"{name} must be a whole number of runs, got {safe_repr(value)}"
        raise ArgumentTypeError(msg)
    if not 1 <= value <= MAX_MAX_FAILURES:
        msg = (
            f"{name} must be from 1 to {MAX_MAX_FAILURES:,} runs, got {safe_repr(value)}; "
            "omit it for the default"
        )
        raise ArgumentValueError(msg)
    return int(value)


def _convert_min_recorded(name: str, value: Any) -> Mapping[str, float]:
    if not isinstance(value, Mapping):
        msg = (
            f"{name} must be a mapping of names of quantities to numbers, such as "
            f"{{'rows': 1}}, got {safe_repr(value)}"
        )
        raise ArgumentTypeError(msg)
    if len(value) > MAX_QUANTITIES:
        msg = (
            f"{name} must have at most {MAX_QUANTITIES} quantities, as a job records no more by "
            f"their names, got {len(value)}"
        )
        raise ArgumentValueError(msg)
    return {
        _check_quantity(name, key): _check_min_amount(name, each) for key, each in value.items()
    }


def _check_quantity(name: str, quantity: Any) -> str:
    if not isinstance(quantity, str):
        msg = f"a name in {name} must be a str, such as 'rows', got {safe_repr(quantity)}"
        raise ArgumentTypeError(msg)
    text = str(quantity)
    if not is_quantity_name(text):
        msg = (
            f"a name in {name} must be one that record() takes, an identifier of at most "
            f"{MAX_QUANTITY_NAME_LENGTH} characters, such as 'rows', got {safe_repr(text)}"
        )
        raise ArgumentValueError(msg)
    return text


def _check_min_amount(name: str, least: Any) -> float:
    if not _is_number(least):
        msg = f"a value in {name} must be a number, got {safe_repr(least)}"
        raise ArgumentTypeError(msg)
    if not 0 <= to_float(least) < math.inf:
        msg = f"a value in {name} must be 0 or more, got {safe_repr(least)}"
        raise ArgumentValueError(msg)
    return to_float(least)


def _convert_severity(name: str, value: Any) -> str:
    text = _check_text(name, value)
    if text not in SEVERITIES:
        choices = " or ".join(map(repr, SEVERITIES))
        msg = f"{name} must be {choices}, got {safe_repr(value)}; omit it for that of each rule"
        raise ArgumentValueError(msg)
    return text


def _convert_owner(name: str, value: Any) -> str:
    text = _check_text(name, value)
    if not text.strip():
        msg = f"{name} must be a name, got {safe_repr(value)}; omit it if there is none"
        raise ArgumentValueError(msg)
    return text


def _convert_runbook_url(name: str, value: Any) -> str:
    text = _check_text(name, value)
    try:
        parts = urlsplit(text)
        is_web_address = parts.scheme in {"http", "https"} and bool(parts.hostname)
    except ValueError:  # of a bad IPv6 address
        is_web_address = False
    if not is_web_address or not text.isprintable() or " " in text:
        msg = (
            f"{name} must be an address with http or https, such as "
            f"'https://wiki.example/imports', got {safe_repr(value)}"
        )
        raise ArgumentValueError(msg)
    if len(text) > MAX_URL_LENGTH:
        msg = f"{name} must have at most {MAX_URL_LENGTH:,} characters, got {len(text):,}"
        raise ArgumentValueError(msg)
    return text


def _check_text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        msg = f"{name} must be a str, got {safe_repr(value)}"
        raise ArgumentTypeError(msg)
    return str(value)


def _is_number(value: object) -> bool:
    return isinstance(value, _NUMBER_TYPES) and not isinstance(value, bool)


def to_float(number: float) -> float:
    """Return a number as a float; infinity if no float can hold it, as an int may be larger."""
    try:
        return float(number)
    except OverflowError:
        return math.inf


_CONVERTERS: Mapping[str, Callable[[str, Any], Any]] = {
    "grace": _convert_grace,
    "max_duration": _convert_seconds,
    "min_duration": _convert_seconds,
    "deadline": _convert_deadline,
    "max_failures": _convert_max_failures,
    "min_recorded": _convert_min_recorded,
    "severity": _convert_severity,
    "owner": _convert_owner,
    "runbook_url": _convert_runbook_url,
}
"""For each field of `Expectations` the function that validates a value and returns what is kept."""
