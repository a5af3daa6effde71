"""
Label values of jobs: readable, valid in every text format, and of bounded length.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from types import NoneType
from typing import Any

from apscheduler_telemetry.core.interruptions import raise_if_interruption
from apscheduler_telemetry.core.model import GENERATED_ID_LENGTH, MAX_NAME_LENGTH, shorten_name
from apscheduler_telemetry.core.observers import ErrorReporter
from apscheduler_telemetry.core.safe_repr import safe_repr

OVERFLOW_LABEL = "__overflow__"
DEFAULT_MAX_LABELS = 1_000
"""
Values of the ``job_id`` label for each scheduler before further jobs share `OVERFLOW_LABEL`.

A Prometheus server of default size handles about 10 million series. A thousand jobs have about
sixty thousand, recorded ones included, which is less than one percent of that.
"""

MAX_LABEL_LENGTH = MAX_NAME_LENGTH
"""Characters of a label value. Ids of 10 kB exist, and every sample would repeat them."""

_GENERATED_ID_PATTERN = re.compile(rf"[0-9a-f]{{{GENERATED_ID_LENGTH}}}")


def label_value(value: object) -> str:
    """
    Return the text of `value` as a valid label value.

    Lone surrogates, which UTF-8 cannot encode, become escapes. A text that is too long is
    truncated, and a hash of the whole text keeps it distinct from similar ones.
    """
    valid = escape_surrogates(value if type(value) is str else _safe_str(value))
    # Most are short, and a call for each would be a hundredth of what adding a job costs.
    return valid if len(valid) <= MAX_NAME_LENGTH else shorten_name(valid)


def escape_surrogates(text: str) -> str:
    """Escape what UTF-8 cannot encode: a lone surrogate would make the exporter drop a batch."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def _safe_str(value: object) -> str:
    """Return the text of an object; without code of the user's, if that fails."""
    kind = type(value)
    try:
        return str(value)
    except BaseException as error:  # noqa: BLE001  # user code
        raise_if_interruption(error)
        return str.__str__(value) if issubclass(kind, str) else kind.__qualname__


def function_name(job: Any) -> str:
    """Return ``module:qualname`` of the callable of `job`, whatever kind of callable it is."""
    reference, func = getattr(job, "func_ref", None), job.func
    # APScheduler takes the name of the class for that of an object with a name of its own, such as
    # a function that was compiled or has a cache, and all of the class would share one label.
    is_of_class = reference and reference.endswith(f":{type(func).__qualname__}")
    if not reference or is_of_class or reference.startswith("None:"):  # a method of a builtin
        return label_value(_qualified_name(func))
    return label_value(reference)


def _qualified_name(func: Any) -> str:
    """Return ``module:qualname`` of a callable; of its class if it has no name."""
    kind = type(func)
    while issubclass(kind, functools.partial):
        func = func.func
        kind = type(func)
    try:
        name = getattr(func, "__qualname__", None) or func.__name__
        module = getattr(func, "__module__", None)
        if isinstance(name, str) and isinstance(module, (str, NoneType)):
            return f"{module or 'builtins'}:{name}"  # methods of builtins have no module
    except BaseException as error:  # noqa: BLE001  # no name, or its `__getattr__` is user code
        raise_if_interruption(error)
    return f"{kind.__module__}:{kind.__qualname__}"


def is_generated_id(job_id: object) -> bool:
    """Return whether APScheduler generated this id (``uuid4().hex``), as for one-off jobs."""
    if not isinstance(job_id, str) or len(job_id) != GENERATED_ID_LENGTH:  # as most are
        return False
    return _GENERATED_ID_PATTERN.fullmatch(job_id) is not None


class JobLabeller:
    """
    Chooses the value of the ``job_id`` label of a job.

    Args:
        job_label: returns the label of a job; None for the default.
        error_reporter: counts the failures of `job_label`.
    """

    def __init__(
        self, job_label: Callable[[Any], str] | None, error_reporter: ErrorReporter
    ) -> None:
        self._get_custom_label = job_label
        self._error_reporter = error_reporter

    def choose_label(self, job: Any, get_default_name: Callable[[Any], str | None]) -> str:
        """
        Return the label of `job`: the result of ``job_label``, else its id.

        A job whose id APScheduler generated is labelled by its name instead, if the user gave it
        one, and else by its function, so that one-off jobs share a label. If ``job_label`` raises,
        or returns anything but a non-empty string, that is reported, and the default is used.

        Args:
            job: the job.
            get_default_name: returns the name that a job has if the user gives it none; None if
                that is not known.
        """
        if self._get_custom_label is not None:
            try:
                label: object = self._get_custom_label(job)
                if not isinstance(label, str) or not label:
                    msg = (
                        f"job_label must return a non-empty str, got {safe_repr(label)} for job "
                        f"{label_value(job.id)!r}; using its id"
                    )
                    raise TypeError(msg)  # noqa: TRY301  # reported like one that it raises
                return label_value(label)
            except BaseException:  # noqa: BLE001  # user code
                self._error_reporter.exception("job_label")
        if not is_generated_id(job.id):
            return label_value(job.id)
        has_given_name = job.name and get_default_name(job) not in {None, job.name}
        return label_value(job.name) if has_given_name else function_name(job)
