"""
Shows which run times the scheduler's loop finds for jobs whose triggers cannot find them again.

The loop gets the due run times of a job, and keeps only the latest if it coalesces them. With
jitter, or with a trigger that has a state, the others cannot be found afterwards. So such a job has
call, between which only the job's executor is looked up. All other jobs stay as they are.
call, between which only the job's executor is looked up. All other jobs stay as they are.
"""

from __future__ import annotations

import copyreg
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any

from apscheduler.job import Job


def create_observed_job_class(on_run_times: Callable[[Sequence[datetime]], None]) -> type[Job]:
    """
    Return a class of jobs that report the run times that the loop finds.

    Args:
        on_run_times: called with all due run times of a job, when its class is `Job` again; it must
            not raise.
    """

    class ObservedDueJob(Job):
        __slots__ = ()

        def _get_run_times(self, now: datetime) -> Any:
            self.__class__ = Job
            run_times = self._get_run_times(now)
            on_run_times(run_times)
            return run_times

        def __reduce_ex__(self, _: Any) -> Any:  # for another thread that pickles it right now
            return copyreg.__newobj__, (Job,), self.__getstate__()  # type: ignore[attr-defined]

    return ObservedDueJob


class DueJobsReportingRunTimes(list[Any]):
    """
    A list of due jobs for the loop.

    Args:
        jobs: the jobs.
        observed_job_class: of those whose run times are to be seen, by `create_observed_job_class`.
        is_observed: tells whether those of a job are.
    """

    def __init__(
        self, jobs: Iterable[Any], observed_job_class: type[Job], is_observed: Callable[[Any], bool]
    ) -> None:
        super().__init__(jobs)
        self._job_subclass_reporting_run_times = observed_job_class
        self._must_report_run_times = is_observed

    def __iter__(self) -> Iterator[Any]:
        for job in super().__iter__():
            if type(job) is not Job or not self._must_report_run_times(job):
                yield job
                continue
            job.__class__ = self._job_subclass_reporting_run_times
            try:
                yield job
            finally:  # where the loop has not called it, as its executor does not exist
                job.__class__ = Job
