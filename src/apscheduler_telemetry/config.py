"""
The options of `instrument`, validated.
"""

from __future__ import annotations

import math
import os
import reprlib
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opentelemetry._logs import LoggerProvider
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider
from prometheus_client import CollectorRegistry

from apscheduler_telemetry.core.expectation_resolver import ExpectOption
from apscheduler_telemetry.core.expectations import Expectations, ExpectDecorator
from apscheduler_telemetry.core.labels import DEFAULT_MAX_LABELS
from apscheduler_telemetry.core.model import MAX_NAME_LENGTH, CaptureOptions
from apscheduler_telemetry.core.run_history import DEFAULT_HISTORY, MAX_HISTORY
from apscheduler_telemetry.core.safe_repr import safe_repr
from apscheduler_telemetry.errors import ArgumentTypeError, ArgumentValueError


@dataclass(frozen=True, kw_only=True)
class Config:
    """
    The options of one scheduler; `instrument` explains them.

    Raises:
        ArgumentTypeError: an option is of the wrong type; the message says what to pass.
        ArgumentValueError: an option has an impossible value.
    """

    name: str
    registry: CollectorRegistry | None
    tracer_provider: TracerProvider | None
    meter_provider: MeterProvider | None
    job_label: Callable[[Any], str] | None
    expect: ExpectOption | None
    singleton: bool
    propagate_baggage: bool
    context_store: MutableMapping[str, str] | None
    journal: str | os.PathLike[str] | None
    history: int
    check_at_start: bool
    run_log: bool
    logger_provider: LoggerProvider | None
    capture_arguments: bool
    capture_result: bool
    capture_stacktrace: bool
    capture_message: bool
    redact: Callable[[str], str] | None
    duration_buckets: Sequence[float]
    delay_buckets: Sequence[float]
    max_labels: int

    def __post_init__(self) -> None:
        """Validate the options."""
        _check_name(self.name)
        _raise_type_error_unless(
            "registry",
            self.registry,
            "a prometheus_client.CollectorRegistry, or None",
            ok=self.registry is None or isinstance(self.registry, CollectorRegistry),
        )
        _check_provider("tracer_provider", self.tracer_provider, "TracerProvider", "get_tracer")
        _check_provider("meter_provider", self.meter_provider, "MeterProvider", "get_meter")
        _check_provider("logger_provider", self.logger_provider, "LoggerProvider", "get_logger")
        _raise_type_error_unless(
            "job_label",
            self.job_label,
            "a callable that takes a job and returns a str",
            ok=self.job_label is None or callable(self.job_label),
        )
        _raise_type_error_unless(
            "redact",
            self.redact,
            "a callable that takes a str and returns one",
            ok=self.redact is None or callable(self.redact),
        )
        for option in _BOOLEAN_OPTIONS:
            value = getattr(self, option)
            _raise_type_error_unless(option, value, "True or False", ok=isinstance(value, bool))
        _raise_type_error_unless(
            "context_store",
            self.context_store,
            "a mapping of str to str, such as apscheduler_telemetry.FileContextStore(path)",
            ok=self.context_store is None or isinstance(self.context_store, MutableMapping),
        )
        if self.journal is not None:
            object.__setattr__(self, "journal", _validate_journal(self.journal))
        _check_expect(self.expect)
        for option in ("duration_buckets", "delay_buckets"):
            # The dataclass is frozen, so this is the way to set an attribute here.
            object.__setattr__(self, option, _validate_buckets(option, getattr(self, option)))
        _check_whole_number("max_labels", self.max_labels, "label values", DEFAULT_MAX_LABELS)
        _check_whole_number(
            "history", self.history, "runs", DEFAULT_HISTORY, minimum=0, maximum=MAX_HISTORY
        )

    @property
    def journal_directory(self) -> Path | None:
        """The directory of the journal; None if there is none."""
        return None if self.journal is None else Path(self.journal)

    @property
    def capture(self) -> CaptureOptions:
        """Which of a job's own data may be exported."""
        return CaptureOptions(
            captures_arguments=self.capture_arguments,
            captures_result=self.capture_result,
            captures_stacktrace=self.capture_stacktrace,
            captures_message=self.capture_message,
            redact=self.redact,
        )


_BOOLEAN_OPTIONS = (
    "singleton",
    "propagate_baggage",
    "check_at_start",
    "run_log",
    "capture_arguments",
    "capture_result",
    "capture_stacktrace",
    "capture_message",
)


def _check_name(name: str) -> None:
    _raise_type_error_unless("name", name, "a str, such as 'billing'", ok=isinstance(name, str))
    if not name.strip():
        msg = (
            "name must not be empty, because it is the label that distinguishes schedulers; omit "
            "it for 'default'"
        )
        raise ArgumentValueError(msg)
    if len(name) > MAX_NAME_LENGTH:
        msg = (
            f"name must have at most {MAX_NAME_LENGTH} characters, as every series repeats it, "
            f"got {len(name)}; pass a shorter one"
        )
        raise ArgumentValueError(msg)
    if not name.isprintable():
        msg = (
            "name must be printable text, because it is the value of a label, got "
            f"{_short_repr(name)}; pass letters, digits and punctuation"
        )
        raise ArgumentValueError(msg)


def _check_provider(option: str, provider: object, kind: str, method: str) -> None:
    is_provider = hasattr(provider, method) and not isinstance(provider, type)
    _raise_type_error_unless(
        option, provider, f"an OpenTelemetry {kind}", ok=provider is None or is_provider
    )


def _validate_journal(path: object) -> Path:
    text = os.fspath(path) if isinstance(path, (str, os.PathLike)) else None
    expected = "the path of a directory, such as '/var/lib/shop/journal'"
    _raise_type_error_unless("journal", path, expected, ok=isinstance(text, str))
    text = str(text)
    if not text.strip() or "\0" in text:
        msg = (
            f"journal must be the path of a directory, got {_short_repr(text)}; omit it for no "
            "journal"
        )
        raise ArgumentValueError(msg)
    if os.name == "nt":
        msg = "journal cannot be used on Windows, which has no flock(); omit it"
        raise ArgumentValueError(msg)
    return Path(text).absolute()  # as the process may change its directory


def _validate_buckets(option: str, buckets: Sequence[float]) -> tuple[float, ...]:
    bounds: tuple[float, ...] = ()
    is_sequence = not isinstance(buckets, (str, bytes))  # sequences too, whose items could pass
    try:
        bounds = tuple(float(bound) for bound in buckets)
    except OverflowError:  # of an int that no float can hold, which leaves no bounds
        pass
    except (TypeError, ValueError):
        is_sequence = False
    _raise_type_error_unless(option, buckets, "a sequence of seconds", ok=is_sequence)
    if bounds and bounds[-1] == math.inf:
        bounds = bounds[:-1]  # +Inf is always there
    is_ascending = list(bounds) == sorted(set(bounds)) and all(map(math.isfinite, bounds))
    if not bounds or not is_ascending or bounds[0] < 0:
        msg = (
            f"{option} must be seconds in ascending order, at least one, got {_short_repr(buckets)}"
        )
        raise ArgumentValueError(msg)
    return bounds


def _check_expect(expect: object) -> None:
    # A class and the decorator are callables, too, but return no expectations for a job.
    is_other_callable = callable(expect) and not isinstance(expect, (type, ExpectDecorator))
    _raise_type_error_unless(
        "expect",
        expect,
        "Expectations(...), a callable that returns Expectations or None for a job, or None",
        ok=expect is None or isinstance(expect, Expectations) or is_other_callable,
    )


def _check_whole_number(  # noqa: PLR0913  # what is checked, and its limits by name
    option: str,
    number: Any,
    unit: str,
    default: int,
    *,
    minimum: int = 1,
    maximum: int | None = None,
) -> None:
    is_integer = isinstance(number, int) and not isinstance(number, bool)
    _raise_type_error_unless(option, number, f"a number of {unit}", ok=is_integer)
    if number < minimum or (maximum is not None and number > maximum):
        limits = f"{minimum} or more" if maximum is None else f"{minimum} to {maximum:,}"
        msg = f"{option} must be {limits}, got {safe_repr(number)}; omit it for {default:,}"
        raise ArgumentValueError(msg)


def _raise_type_error_unless(option: str, value: object, expected: str, *, ok: bool) -> None:
    if not ok:
        msg = f"{option} must be {expected}, got {_short_repr(value)}"
        raise ArgumentTypeError(msg)


_repr_formatter = reprlib.Repr()  # in a line, and surviving a __repr__ that raises
_repr_formatter.maxother = _repr_formatter.maxstring = 100
_short_repr = _repr_formatter.repr
