"""
Turns jobs into label values: readable, legal in every exposition, and bounded.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable
from typing import Any

from apscheduler_telemetry.core.model import GENERATED_ID_LENGTH
from apscheduler_telemetry.core.observers import Guard

OVERFLOW = "__overflow__"
MAX_LABELS = 1_000
"""
Label values of `job_id` per scheduler before the rest share `OVERFLOW`.

A Prometheus of default size copes with some 10 million series; a thousand jobs of about seventy
series each keep one scheduler below one percent of that.
"""
MAX_TEXT = 200
"""Characters of a label value; ids of 10 kB exist, and every sample would repeat them."""

_GENERATED = re.compile(rf"[0-9a-f]{{{GENERATED_ID_LENGTH}}}")


def text(value: object) -> str:
    """
    Return `value` as a legal label value.

    Surrogates, which no UTF-8 exposition can carry, are written as escapes; a text that is too
    long is cut, and a hash of the whole keeps it apart from its like.
    """
    legal = str(value).encode("utf-8", "backslashreplace").decode("utf-8")
    if len(legal) <= MAX_TEXT:
        return legal
    digest = hashlib.sha256(legal.encode()).hexdigest()[:8]
    return f"{legal[: MAX_TEXT - 10]}..{digest}"


def function_name(job: Any) -> str:
    """Return ``module:qualname`` of the callable of `job`, whatever kind of callable it is."""
    if reference := getattr(job, "func_ref", None):
        return text(reference)
    func = job.func
    while isinstance(func, functools.partial):
        func = func.func
    try:
        name, module = func.__qualname__, getattr(func, "__module__", None)
    except Exception:  # noqa: BLE001  # it has no name, and its __getattr__ raises what it likes
        name, module = type(func).__qualname__, type(func).__module__
    return text(f"{module or 'builtins'}:{name}")  # methods of builtins have no module


def is_generated(job_id: str) -> bool:
    """Tell whether APScheduler made up this id (``uuid4().hex``), as for one-off jobs."""
    return _GENERATED.fullmatch(job_id) is not None


class Labeller:
    """Finds the ``job_id`` label of a job."""

    def __init__(self, job_label: Callable[[Any], str] | None, guard: Guard) -> None:
        self._job_label = job_label
        self._guard = guard

    def label(self, job: Any) -> str:
        """
        Return the label of `job`: what the user's callback says, else by its id.

        A callback that raises, or returns anything but a non-empty string, is counted, logged
        once, and the id is used.
        """
        if self._job_label is not None:
            try:
                label: object = self._job_label(job)
                if not isinstance(label, str) or not label:
                    msg = (
                        f"job_label must return a non-empty str, got {label!r} for job "
                        f"{job.id!r}; using its id"
                    )
                    raise TypeError(msg)  # noqa: TRY301  # counted and logged like one it raises
                return text(label)
            except Exception:  # noqa: BLE001  # user code
                self._guard.failed("job_label")
        return function_name(job) if is_generated(job.id) else text(job.id)
