"""
Describes jobs: converts a job of APScheduler into a `JobInfo`.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import tzinfo
from typing import Any

from apscheduler.util import get_callable_name

from apscheduler_telemetry.adapters.apscheduler3 import triggers
from apscheduler_telemetry.core import labels
from apscheduler_telemetry.core.expectation_resolver import ExpectationResolver
from apscheduler_telemetry.core.interruptions import raise_if_interruption
from apscheduler_telemetry.core.labels import JobLabeller
from apscheduler_telemetry.core.model import JobInfo


class JobDescriber:
    """
    Describes the jobs of one scheduler.

    Args:
        labeller: chooses the ``job_id`` label of a job.
        expectation_resolver: finds out what is expected of a job, for the alert rules.
        is_persistent: takes the alias of a job store, returns whether it outlives the process.
        get_timezone: returns the time zone of the scheduler.
    """

    def __init__(
        self,
        labeller: JobLabeller,
        expectation_resolver: ExpectationResolver,
        *,
        is_persistent: Callable[[str], bool],
        get_timezone: Callable[[], tzinfo],
    ) -> None:
        self._job_labeller = labeller
        self._expectation_resolver = expectation_resolver
        self._is_jobstore_persistent = is_persistent
        self._get_timezone = get_timezone

    def describe(self, job: Any, alias: str) -> JobInfo:
        """Describe a job in the store of this alias; this calls the user's callbacks."""
        grace, expectations = self._expectation_resolver.resolve(job, self._get_timezone)
        return JobInfo(  # by position, which takes less than half as long
            job.id,
            self._job_labeller.choose_label(job, default_name),
            labels.label_value(job.name),
            labels.function_name(job),
            labels.label_value(triggers.describe_trigger(job.trigger)),
            labels.label_value(job.executor),
            alias,
            self._is_jobstore_persistent(alias),
            grace,
            expectations,
        )


def default_name(job: Any) -> str | None:
    """Return the name that APScheduler gives a job that is added without one; None if unknown."""
    try:
        return str(get_callable_name(job.func))
    except BaseException as error:  # noqa: BLE001  # a callable of the user's may be anything
        raise_if_interruption(error)
        return None
