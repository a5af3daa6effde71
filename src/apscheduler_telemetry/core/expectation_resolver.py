"""
Which expectations hold for a job: those of ``expect=`` of `instrument`, and those of its function.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable, Sequence
from typing import Any

from apscheduler_telemetry.core.expectations import (
    EXPECTATION_NAMES,
    Expectations,
    find_expectations,
    to_float,
)
from apscheduler_telemetry.core.interruptions import raise_if_interruption
from apscheduler_telemetry.core.labels import label_value
from apscheduler_telemetry.core.model import NOTHING_EXPECTED, JobExpectations
from apscheduler_telemetry.core.observers import ErrorReporter
from apscheduler_telemetry.core.safe_repr import safe_repr

MIN_DEFAULT_GRACE_SECONDS = 60.0
"""
The least default of ``grace`` in seconds, even if ``misfire_grace_time`` is smaller.

APScheduler's default is 1 s, but an alert cannot be more precise than the intervals of scrapes and
of rule evaluations.
"""

ERROR_COMPONENT = "expect"

ExpectOption = Expectations | Callable[[Any], Expectations | None]
"""The types of ``expect=`` of `instrument`."""


class ExpectationResolver:
    """
    Finds out what is expected of jobs.

    For each field, a callable passed as ``expect=`` has priority over the decorator of the job's
    function, which has priority over a value passed as ``expect=``.

    Args:
        expect: expectations of all jobs, or a callable that returns those of a job; None if there
            are none.
        error_reporter: counts the failures of this callable.
    """

    def __init__(self, expect: ExpectOption | None, error_reporter: ErrorReporter) -> None:
        self._default = expect if isinstance(expect, Expectations) else None
        self._get_override = None if isinstance(expect, Expectations) else expect
        self._error_reporter = error_reporter

    def resolve(
        self, job: Any, get_timezone: Callable[[], dt.tzinfo]
    ) -> tuple[float, JobExpectations]:
        """
        Return the grace of a job in seconds, and what else is expected of it.

        This calls the callable of the user's. If it raises, or returns anything but `Expectations`
        or None, that is reported, and the decorator holds.

        Args:
            job: the job.
            get_timezone: returns the time zone of its scheduler.
        """
        sources = self._find_sources(job)
        if not sources:
            return _default_grace(job), NOTHING_EXPECTED
        expected = {name: _first_value(sources, name) for name in EXPECTATION_NAMES}
        grace, deadline = expected["grace"], expected["deadline"]
        if isinstance(deadline, dt.time) and deadline.tzinfo is None:
            deadline = deadline.replace(tzinfo=get_timezone())
        return _default_grace(job) if grace is None else grace, JobExpectations(
            max_duration=expected["max_duration"],
            min_duration=expected["min_duration"],
            deadline=deadline,
            max_failures=expected["max_failures"],
            min_recorded=tuple(sorted((expected["min_recorded"] or {}).items())),
            severity=expected["severity"] or "",
            owner=label_value(expected["owner"] or ""),
            runbook_url=expected["runbook_url"] or "",
        )

    def _find_sources(self, job: Any) -> list[Expectations]:
        """Return all expectations that hold for a job, those with priority first."""
        get_override = self._get_override
        found = (
            None if get_override is None else self._call_override(get_override, job),
            find_expectations(job.func),
            self._default,
        )
        return [expectations for expectations in found if expectations is not None]

    def _call_override(self, get_override: Callable[[Any], Any], job: Any) -> Expectations | None:
        """Return what the callable of the user's expects of a job; None if it fails."""
        try:
            expectations = get_override(job)
            if not (expectations is None or isinstance(expectations, Expectations)):
                msg = (
                    f"expect must return Expectations(...) or None, got {safe_repr(expectations)} "
                    f"for job {label_value(job.id)!r}; ignoring it"
                )
                raise TypeError(msg)  # noqa: TRY301  # reported like one that it raises
        except BaseException:  # noqa: BLE001  # user code
            self._error_reporter.exception(ERROR_COMPONENT)
            return None
        return expectations


def _first_value(sources: Sequence[Expectations], name: str) -> Any:
    """Return the value of a field in the first source that has one; None if none has."""
    values = (getattr(expectations, name) for expectations in sources)
    return next((value for value in values if value is not None), None)


def _default_grace(job: Any) -> float:
    try:
        own = to_float(job.misfire_grace_time or 0)
    except BaseException as error:  # noqa: BLE001  # of a subclass of the user's
        raise_if_interruption(error)
        own = 0.0
    return own if MIN_DEFAULT_GRACE_SECONDS < own < math.inf else MIN_DEFAULT_GRACE_SECONDS
